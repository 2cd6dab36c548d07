//! Passes over many connections visit a bounded number of them at a time, and events are sent in between.

use std::sync::Arc;

use super::returns::{self, cursor_in, told};
use super::*;
use crate::exchange::PodState;
use crate::limits::VISITS_A_SEND;
use crate::routing::placement::{Pod, View};
use crate::routing::table::RouteTable;
use crate::shard::drain::Drain;
use crate::shard::redirect::Placement;
use crate::shard::view_gate::GateDecision;
use crate::shutdown::phases::DrainPhase;
use crate::stream::testing::EVENTS;

const MANY: usize = 5_000;

/// A subscriber among many market clients, which takes events while a pass is under way.
struct Crowd {
    world: World,
    subscriber: Scripted,
    keys: Vec<ConnectionKey>,
    sent: u64,
}

impl Crowd {
    /// The market clients' sockets take this many bytes.
    fn with_sockets_that_take(bytes: usize) -> Self {
        let mut world = World::new();
        let (first, subscriber) = world.connect(Some("a"));
        let mut connect = || {
            let socket = Scripted::default();
            socket.takes(bytes);
            world.connect_to(&socket, None, None)
        };
        let keys = std::iter::once(first).chain((0..MANY).map(|_| connect())).collect();
        subscriber.texts();
        Self { world, subscriber, keys, sent: 0 }
    }

    /// Fails if an event does not reach the subscriber now.
    fn expect_delivery(&mut self) {
        self.sent += 1;
        self.world.state.take(events(&[("a", self.sent)]), self.world.now.instant);
        while self.world.state.dispatch(1, self.world.now) == Pass::More {}
        assert_eq!(self.subscriber.numbers(), [self.sent]);
    }

    /// Runs a pass to its end; returns its number of steps.
    fn steps(&mut self, mut step: impl FnMut(&mut World) -> Pass) -> usize {
        let mut steps = 1;
        while step(&mut self.world) == Pass::More {
            steps += 1;
            self.expect_delivery();
        }
        steps
    }

    fn closed(&self) -> usize {
        self.keys.iter().filter(|&&key| self.world.state.ended(key).is_some()).count()
    }
}

#[test]
fn a_sweep_over_quiet_connections_yields_after_a_bounded_number_of_visits() {
    let mut crowd = Crowd::with_sockets_that_take(usize::MAX);
    let mut sweeper = Sweeper::new(&config(), crowd.world.now.instant);
    crowd.world.pass(Duration::from_secs(2));
    let steps = crowd.steps(|world| sweeper.sweep(&mut world.state, 2, world.now));
    assert_eq!(steps, (MANY + 1).div_ceil(2 * VISITS_A_SEND));
}

#[test]
fn a_market_flush_over_full_sockets_yields_after_a_bounded_number_of_visits() {
    let mut crowd = Crowd::with_sockets_that_take(0);
    crowd.world.state.take(tick(BTC, 0, 1, 0, 100), crowd.world.now.instant);
    crowd.world.pass(Duration::from_millis(100));
    let steps = crowd.steps(|world| world.state.flush_markets(2, world.now));
    assert_eq!(steps, (MANY + VISITS_A_SEND).div_ceil(2 * VISITS_A_SEND), "with the send to the subscriber");
}

#[test]
fn filters_forget_a_topic_whose_index_another_gets_in_bounded_steps_and_nothing_is_written_before() {
    let mut crowd = Crowd::with_sockets_that_take(usize::MAX);
    // Another pod has read more.
    let mut other = returns::world();
    let (_, live) = other.connect(Some("a"));
    other.turn((0..9).map(|number| events(&[("a", number)])));
    let ahead = cursor_in(live.texts().last().unwrap()).to_owned();
    let world = &mut crowd.world;
    world.turn([told(0)]);
    let (key, back) = world.come_back(&ahead);
    back.texts();
    let before = world.state.connections[key].resume_filter.clone();
    let pnl = RouteTable::built_in().resolve(EVENTS, "assessment.pnl-updated").unwrap();
    world.state.take(Batch { topics: vec![Arc::new(pnl)], ..Batch::default() }, world.now.instant);
    world.state.inbound(key, Inbound::Ping, world.now);
    world.state.flush(key, world.now);
    let mut steps = 1;
    while world.state.dispatch(64, world.now) == Pass::More {
        steps += 1;
        assert!(back.texts().is_empty(), "its cursor would name the old topic");
    }
    assert!(steps >= MANY / 64, "{steps} steps");
    assert!(before.is_some() && world.state.connections[key].resume_filter != before, "{before:?}");
}

#[test]
fn a_drain_closes_a_bounded_number_of_clients_per_turn_and_as_many_as_its_phase_asks_for() {
    let mut crowd = Crowd::with_sockets_that_take(usize::MAX);
    let slots = ["this", "that"].map(|name| Some(Pod { node: NodeId(name.into()), url: "ws://that/ws".into() }));
    let pod_state = PodState {
        view: Arc::new(View { version: 1, slots: slots.into() }),
        draining_since: Some(crowd.world.now.instant),
        ..PodState::default()
    };
    let node = NodeId("this".into());
    let placement = Placement { node: &node, pod_state: &pod_state, place_anywhere: false };
    let mut drain = Drain::default();
    let over = Duration::from_secs(10);
    let half = DrainPhase::Closing { elapsed: over / 2, over };
    let begin = DrainPhase::Closing { elapsed: Duration::ZERO, over };
    let now = crowd.world.now;
    assert_eq!(drain.advance(&mut crowd.world.state, begin, &placement, now), GateDecision::Proceed);
    for phase in [half, DrainPhase::Finished] {
        let mut turns = 1;
        let before = crowd.closed();
        while drain.advance(&mut crowd.world.state, phase, &placement, now) == GateDecision::Wait {
            assert_eq!(drain.next(now.instant), Some(now.instant), "the next turn comes at once");
            assert!(crowd.closed() - before <= turns * 256);
            turns += 1;
            crowd.expect_delivery();
            // Clients that leave meanwhile make it miss none, and it closes no more than it has to.
            if turns == 3 {
                let leaver = crowd.keys.swap_remove(1);
                crowd.world.state.detach(leaver, CloseReason::ClientGone);
            }
        }
        assert!(turns > 5, "{turns} turns");
        assert_eq!(drain.next(now.instant), None);
        let open = crowd.keys.len() - crowd.closed();
        let remaining = phase.remaining(MANY + 1);
        assert!((remaining.saturating_sub(1)..=remaining).contains(&open), "{open} open of {remaining}");
    }
}
