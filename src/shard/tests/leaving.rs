//! Redirects of connected clients by handover and drain, with fresh, stale and unconfirmed views.

use std::sync::Arc;

use super::*;
use crate::config::DrainConfig;
use crate::exchange::{PodState, ViewFreshness};
use crate::ids::{AssessmentHash, SlotNumber};
use crate::routing::placement::{Pod, View};
use crate::shard::drain::Drain;
use crate::shard::handover::Handover;
use crate::shard::redirect::Placement;
use crate::shard::view_gate::GateDecision;
use crate::shutdown::phases::DrainPhase;

const NODE: &str = "this";

fn pod(name: &str) -> Option<Pod> {
    Some(Pod { node: NodeId(name.into()), url: format!("ws://{name}/ws").into() })
}

/// A pod in slot 0, beside another or alone, with a view read at `as_of`.
fn pod_state(beside: bool, as_of: Instant) -> PodState {
    let view = View { version: 1, slots: vec![pod(NODE), if beside { pod("that") } else { None }] };
    let view_freshness = ViewFreshness { as_of: Some(as_of), redis_up: true, confirmed: true };
    PodState { view: Arc::new(view), view_freshness, own_slot: Some(SlotNumber(0)), ..PodState::default() }
}

/// The same pod state with a view read at `as_of`.
fn refreshed(pod_state: &PodState, as_of: Instant) -> PodState {
    PodState {
        view_freshness: ViewFreshness { as_of: Some(as_of), redis_up: true, confirmed: true },
        ..pod_state.clone()
    }
}

/// A shard whose clients all belong to the other pod, if there is one.
struct Leaving {
    world: World,
    handover: Handover,
    place_anywhere: bool,
    clients: Vec<(ConnectionKey, Scripted)>,
}

impl Leaving {
    fn begin(clients: usize, handover_per_second: u32) -> Self {
        let config = ShardConfig { handover_per_second, ..config() };
        let mut world = World::with(config.clone());
        let handover = Handover::new(&config, world.now.instant);
        let both = pod_state(true, world.now.instant);
        let moves = |id: &String| both.view.owner(AssessmentHash::of(id)) == Some(SlotNumber(1));
        let ids = (0..).map(|number| format!("id{number}")).filter(moves).take(clients);
        let clients = ids.map(|id| world.connect(Some(&id))).collect();
        let mut leaving = Self { world, handover, place_anywhere: false, clients };
        leaving.pass(1_000);
        leaving
    }

    fn now(&self) -> Instant {
        self.world.now.instant
    }

    fn pass(&mut self, ms: u64) {
        self.world.pass(Duration::from_millis(ms));
    }

    fn advance(&mut self, pod_state: &PodState) -> GateDecision {
        let node = NodeId(NODE.into());
        let placement = Placement { node: &node, pod_state, place_anywhere: self.place_anywhere };
        self.handover.advance(&mut self.world.state, &placement, self.world.now)
    }

    fn gone(&self) -> usize {
        self.clients.iter().filter(|(key, _)| self.world.state.ended(*key).is_some()).count()
    }

    /// How long it waits: a turn without work must not be due at once.
    fn wait(&self) -> Duration {
        let next = self.handover.next(self.now()).expect("clients wait");
        assert!(next > self.now(), "a turn without work must not be due");
        next - self.now()
    }
}

#[test]
fn a_stale_view_is_refreshed_once_before_any_client_is_handed_over() {
    let mut leaving = Leaving::begin(20, 1_000);
    let old = pod_state(true, leaving.now() - Duration::from_millis(101));
    assert_eq!((leaving.advance(&old), leaving.gone()), (GateDecision::RequestRefresh, 0));
    for _ in 0..5 {
        leaving.pass(10);
        assert_eq!((leaving.advance(&old), leaving.gone()), (GateDecision::Wait, 0), "one refresh is requested");
        assert!(leaving.wait() > Duration::from_secs(1), "a change of the pod state wakes it");
    }
    let fresh = refreshed(&old, leaving.now());
    assert_eq!((leaving.advance(&fresh), leaving.gone()), (GateDecision::Proceed, 20));
    assert_eq!(leaving.handover.next(leaving.now()), None);
    let last = leaving.clients[0].1.texts().pop().unwrap();
    assert!(last.contains(r#""error":"Redirect""#) && last.contains(r#""url":"ws://that/ws""#), "{last}");
}

#[test]
fn clients_stay_if_the_refreshed_view_names_this_pod() {
    let mut leaving = Leaving::begin(20, 1_000);
    let old = pod_state(true, leaving.now() - Duration::from_secs(1));
    assert_eq!(leaving.advance(&old), GateDecision::RequestRefresh);
    leaving.pass(5);
    let alone = pod_state(false, leaving.now());
    assert_eq!(
        (leaving.advance(&alone), leaving.gone(), leaving.handover.next(leaving.now())),
        (GateDecision::Proceed, 0, None)
    );
    for (_, socket) in &leaving.clients {
        let texts = socket.texts();
        assert!(texts.len() == 1 && texts[0].contains(r#""type":"connected""#), "{texts:?}");
    }
    // The other pod appears again, which takes another refresh.
    leaving.pass(3_000);
    let again = refreshed(&old, leaving.now() - Duration::from_secs(1));
    let again = PodState { view: Arc::new((*again.view).clone()), ..again };
    assert_eq!((leaving.advance(&again), leaving.gone()), (GateDecision::RequestRefresh, 0));
}

#[test]
fn a_long_handover_refreshes_its_view() {
    let mut leaving = Leaving::begin(20, 10);
    let mut now = pod_state(true, leaving.now());
    let mut refreshes = 0;
    let mut seen = Vec::new();
    for _ in 0..12 {
        if leaving.advance(&now) == GateDecision::RequestRefresh {
            refreshes += 1;
            now = refreshed(&now, leaving.now());
            leaving.advance(&now);
        }
        seen.push(leaving.gone());
        leaving.pass(100);
    }
    assert_eq!(seen, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], "ten a second, however long a refresh takes");
    assert!((5..=6).contains(&refreshes), "{refreshes} refreshes in 1.2 s, none while the view was fresh");
}

#[test]
fn a_handover_scans_in_steps_and_moves_the_oldest_connections_first() {
    let mut leaving = Leaving::begin(10_000, 10_000);
    for (number, (key, _)) in leaving.clients.iter().enumerate() {
        let age = Duration::from_millis(u64::try_from(number * 7919 % 10_000).unwrap());
        leaving.world.state.connections[*key].opened = (leaving.world.now.instant - age).into();
    }
    let view = pod_state(true, leaving.now());
    assert_eq!((leaving.advance(&view), leaving.gone()), (GateDecision::Wait, 0));
    assert_eq!(leaving.handover.next(leaving.now()), Some(leaving.now()), "the next turn comes at once");
    for index in [0, 4_000, 9_999] {
        let (key, _) = leaving.clients.swap_remove(index.min(leaving.clients.len() - 1));
        leaving.world.state.detach(key, CloseReason::ClientGone);
    }
    assert_eq!((leaving.advance(&view), leaving.gone()), (GateDecision::Wait, 0));
    assert_eq!(
        (leaving.advance(&view), leaving.gone()),
        (GateDecision::Proceed, 1_001),
        "those of a tenth of a second"
    );
    let state = &leaving.world.state;
    let opened = |key: &ConnectionKey| state.connections[*key].opened;
    let (gone, kept): (Vec<_>, Vec<_>) =
        leaving.clients.iter().map(|(key, _)| *key).partition(|key| state.ended(*key).is_some());
    assert!(gone.iter().map(opened).max() <= kept.iter().map(opened).min());
}

#[test]
fn without_redis_a_handover_uses_the_last_known_view() {
    let mut leaving = Leaving::begin(3, 1_000);
    let old = pod_state(true, leaving.now() - Duration::from_secs(60));
    let down = PodState { view_freshness: ViewFreshness { redis_up: false, ..old.view_freshness }, ..old.clone() };
    assert_eq!((leaving.advance(&down), leaving.gone()), (GateDecision::Proceed, 3));

    let mut leaving = Leaving::begin(3, 1_000);
    assert_eq!((leaving.advance(&old), leaving.gone()), (GateDecision::RequestRefresh, 0));
    leaving.pass(1_999);
    assert_eq!((leaving.advance(&old), leaving.gone()), (GateDecision::Wait, 0));
    leaving.pass(1);
    assert_eq!(
        (leaving.advance(&old), leaving.gone()),
        (GateDecision::Proceed, 3),
        "a Redis that does not answer counts as down"
    );
}

#[test]
fn a_client_served_for_its_owner_is_handed_over_when_the_view_is_confirmed() {
    let mut leaving = Leaving::begin(6, 1_000);
    let unconfirmed = |pod_state: PodState| PodState {
        view_freshness: ViewFreshness { confirmed: false, ..pod_state.view_freshness },
        ..pod_state
    };
    let (returned, others) = leaving.clients.split_at(4);
    for (key, _) in returned {
        leaving.world.state.connections[*key].owner_doubt = OwnerDoubt::Returned;
    }
    let others: Vec<_> = others.iter().map(|(key, _)| *key).collect();
    let down = PodState { view_freshness: ViewFreshness::default(), ..pod_state(true, leaving.now()) };
    leaving.advance(&down);
    assert_eq!(leaving.gone(), 2);
    for key in others {
        assert_eq!(leaving.world.state.ended(key), Some(CloseReason::Moved), "the last known view is used");
        let hash = leaving.world.state.connections[key].subscription.unwrap().hash;
        assert!(
            leaving.world.state.recent_redirects.has_returned(hash, &down.view_freshness, leaving.now()),
            "and this is remembered"
        );
    }
    leaving.pass(1_000);
    // Redis is back. Pods that it lacks stay in the view for a lease's time: a new view, still unconfirmed.
    let back = unconfirmed(refreshed(&down, leaving.now()));
    let back = PodState { view: Arc::new((*back.view).clone()), ..back };
    assert_eq!(
        (leaving.advance(&back), leaving.gone(), leaving.handover.next(leaving.now())),
        (GateDecision::Proceed, 2, None)
    );
    leaving.pass(1_000);
    let confirmed = refreshed(&back, leaving.now());
    assert_eq!((leaving.advance(&confirmed), leaving.gone()), (GateDecision::Proceed, 6));
}

#[test]
fn a_pod_without_a_slot_hands_no_client_over() {
    let mut leaving = Leaving::begin(12, 10);
    let holds = pod_state(true, leaving.now());
    leaving.advance(&holds);
    assert_eq!(leaving.gone(), 2);
    let lost = PodState { own_slot: None, ..holds.clone() };
    leaving.pass(500);
    assert_eq!(
        (leaving.advance(&lost), leaving.gone(), leaving.handover.next(leaving.now())),
        (GateDecision::Proceed, 2, None)
    );
    leaving.pass(500);
    let holds = refreshed(&holds, leaving.now());
    leaving.advance(&holds);
    assert_eq!(leaving.gone(), 4, "also by the same view as before");
}

#[test]
fn with_placement_any_no_client_is_handed_over() {
    let mut leaving = Leaving::begin(20, 1_000);
    leaving.place_anywhere = true;
    for beside in [true, false, true] {
        let view = pod_state(beside, leaving.now() - Duration::from_secs(1));
        assert_eq!(
            (leaving.advance(&view), leaving.gone(), leaving.handover.next(leaving.now())),
            (GateDecision::Proceed, 0, None)
        );
    }
}

/// A drain over ten seconds of ten clients.
struct Draining {
    leaving: Leaving,
    drain: Drain,
    since: Instant,
}

impl Draining {
    fn begin() -> Self {
        let leaving = Leaving::begin(10, 1_000);
        let since = leaving.now();
        Self { leaving, drain: Drain::default(), since }
    }

    fn drain(&mut self, as_of: Instant) -> GateDecision {
        let config = DrainConfig { delay: Duration::ZERO, over: Duration::from_secs(10) };
        let phase = DrainPhase::at(self.leaving.now(), Some(self.since), &config);
        let before = pod_state(true, as_of);
        let pod_state = PodState { own_slot: None, draining_since: Some(self.since), ..before };
        let node = NodeId(NODE.into());
        let placement = Placement { node: &node, pod_state: &pod_state, place_anywhere: self.leaving.place_anywhere };
        self.drain.advance(&mut self.leaving.world.state, phase, &placement, self.leaving.world.now)
    }
}

#[test]
fn a_drain_refreshes_a_stale_view_unless_its_time_is_up() {
    let mut draining = Draining::begin();
    let start = draining.leaving.now();
    assert_eq!((draining.drain(start), draining.leaving.gone()), (GateDecision::Proceed, 0), "no client has to go yet");
    draining.leaving.pass(2_000);
    assert_eq!((draining.drain(start), draining.leaving.gone()), (GateDecision::RequestRefresh, 0));
    draining.leaving.pass(20);
    assert_eq!((draining.drain(start), draining.leaving.gone()), (GateDecision::Wait, 0));
    let now = draining.leaving.now();
    assert_eq!((draining.drain(now), draining.leaving.gone()), (GateDecision::Proceed, 2));
    draining.leaving.pass(20);
    assert_eq!(
        (draining.drain(now), draining.leaving.gone()),
        (GateDecision::Proceed, 2),
        "no client has to go, so no refresh is wanted"
    );
    draining.leaving.pass(8_000);
    assert_eq!((draining.drain(now), draining.leaving.gone()), (GateDecision::Proceed, 10), "its time is up");
}

#[test]
fn with_placement_any_a_drain_sends_no_redirect() {
    let mut draining = Draining::begin();
    draining.leaving.place_anywhere = true;
    draining.leaving.pass(10_000);
    draining.drain(draining.leaving.now());
    for (key, socket) in &draining.leaving.clients {
        assert_eq!(draining.leaving.world.state.ended(*key), Some(CloseReason::GoingAway));
        assert!(!socket.texts().iter().any(|text| text.contains("Redirect")));
    }
}

// ---- evenness and rates -------------------------------------------------------------------------------------------

#[test]
fn a_drain_closes_evenly_and_redirects_to_another_live_pod() {
    let config = DrainConfig { delay: Duration::from_secs(1), over: Duration::from_secs(10) };
    let mut world = World::new();
    let mut drain = Drain::default();
    let clients: Vec<_> = (0..20).map(|number| world.connect((number % 2 == 0).then_some("a"))).collect();
    let since = Some(world.now.instant);
    let view = View { version: 1, slots: vec![pod("this"), pod("that")] };
    let pod_state = PodState { view: Arc::new(view), draining_since: since, ..PodState::default() };
    let placement = Placement { node: &NodeId("this".into()), pod_state: &pod_state, place_anywhere: false };
    let mut open = Vec::new();
    for _ in 0..11 {
        let phase = DrainPhase::at(world.now.instant, since, &config);
        drain.advance(&mut world.state, phase, &placement, world.now);
        open.push(clients.iter().filter(|(key, _)| world.state.ended(*key).is_none()).count());
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(open, [20, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2]);
    drain.advance(&mut world.state, DrainPhase::at(world.now.instant, since, &config), &placement, world.now);
    for (key, socket) in clients {
        assert_eq!(world.state.ended(key), Some(CloseReason::Moved));
        let last = socket.texts().pop().unwrap();
        assert!(last.contains(r#""error":"Redirect""#) && last.contains(r#""url":"ws://that/ws""#), "{last}");
    }
}

#[test]
fn a_handover_is_rate_limited_and_skips_clients_whose_assessment_came_back() {
    let config = ShardConfig { handover_per_second: 10, ..config() };
    let mut world = World::with(config.clone());
    let mut handover = Handover::new(&config, world.now.instant);
    let node = NodeId("this".into());
    let pod_state = |slots: Vec<Option<Pod>>| PodState {
        view: Arc::new(View { version: 1, slots }),
        own_slot: Some(SlotNumber(0)),
        ..PodState::default()
    };
    let both = pod_state(vec![pod("this"), pod("that")]);
    let moved = |id: &String| both.view.owner(AssessmentHash::of(id)) == Some(SlotNumber(1));
    let (moved, home): (Vec<_>, Vec<_>) = (0..40).map(|number| format!("id{number}")).partition(moved);
    assert!(moved.len() > 10 && home.len() > 10);
    let mut connect = |ids: &[String]| -> Vec<_> {
        ids.iter()
            .map(|id| {
                world.pass(Duration::from_millis(1));
                world.connect(Some(id)).0
            })
            .collect()
    };
    let (moved, home, market) = (connect(&moved), connect(&home), world.connect(None).0);
    let gone =
        |world: &World, keys: &[ConnectionKey]| keys.iter().filter(|&&key| world.state.ended(key).is_some()).count();

    let alone = pod_state(vec![pod("this"), None]);
    let both = Placement { node: &node, pod_state: &both, place_anywhere: false };
    let alone = Placement { pod_state: &alone, ..both };
    let mut seen = Vec::new();
    for _ in 0..5 {
        world.pass(Duration::from_millis(100));
        handover.advance(&mut world.state, &both, world.now);
        seen.push(gone(&world, &moved));
    }
    assert_eq!(seen, [2, 3, 4, 5, 6], "ten a second, after a burst of a tenth of a second");
    assert!(moved[..6].iter().all(|&key| world.state.ended(key) == Some(CloseReason::Moved)), "the oldest");

    world.pass(Duration::from_millis(100));
    handover.advance(&mut world.state, &alone, world.now);
    assert_eq!(
        (handover.next(world.now.instant), gone(&world, &moved)),
        (None, 6),
        "the assessments of the others came back"
    );
    assert_eq!((gone(&world, &home), gone(&world, &[market])), (0, 0));
}
