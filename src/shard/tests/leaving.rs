//! Who is sent to another pod, and when: the handover and the drain, by views that are sure and by views that are not.

use std::sync::Arc;

use super::*;
use crate::config::DrainConfig;
use crate::exchange::{Sight, Standing};
use crate::ids::{AssessmentHash, SlotNumber};
use crate::routing::placement::{Pod, View};
use crate::shard::admission::Here;
use crate::shard::freshness::Step;
use crate::shard::handover::Handover;
use crate::shutdown::phases::Phase;

const NODE: &str = "this";

fn pod(name: &str) -> Option<Pod> {
    Some(Pod { node: NodeId(name.into()), url: format!("ws://{name}/ws").into() })
}

/// A pod in slot 0 beside another, or alone, as Redis said at `looked`.
fn standing(beside: bool, looked: Instant) -> Standing {
    let view = View { version: 1, slots: vec![pod(NODE), if beside { pod("that") } else { None }] };
    let sight = Sight { looked: Some(looked), reached: true, proven: true };
    Standing { view: Arc::new(view), sight, own: Some(SlotNumber(0)), ..Standing::default() }
}

/// As the standing, but looked at anew.
fn looked_at(standing: &Standing, looked: Instant) -> Standing {
    Standing { sight: Sight { looked: Some(looked), reached: true, proven: true }, ..standing.clone() }
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
        let both = standing(true, world.now.instant);
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

    fn advance(&mut self, standing: &Standing) -> Step {
        let node = NodeId(NODE.into());
        let here = Here { node: &node, standing, place_anywhere: self.place_anywhere };
        self.handover.advance(&mut self.world.state, &here, self.world.now)
    }

    fn gone(&self) -> usize {
        self.clients.iter().filter(|(key, _)| self.world.state.ended(*key).is_some()).count()
    }

    /// That it waits for something, and not in a circle.
    fn rests_until(&self) -> Duration {
        let next = self.handover.next(self.now()).expect("somebody waits");
        assert!(next > self.now(), "a turn that can do nothing must not be due");
        next - self.now()
    }
}

#[test]
fn nobody_is_sent_away_by_an_old_view_before_another_look_and_one_is_for_all() {
    let mut leaving = Leaving::begin(20, 1_000);
    let old = standing(true, leaving.now() - Duration::from_millis(101));
    assert_eq!((leaving.advance(&old), leaving.gone()), (Step::AskForLook, 0));
    for _ in 0..5 {
        leaving.pass(10);
        assert_eq!((leaving.advance(&old), leaving.gone()), (Step::Wait, 0), "asked for once");
        assert!(leaving.rests_until() > Duration::from_secs(1), "the standing's change wakes it");
    }
    let sure = looked_at(&old, leaving.now());
    assert_eq!((leaving.advance(&sure), leaving.gone()), (Step::Go, 20));
    assert_eq!(leaving.handover.next(leaving.now()), None);
    let last = leaving.clients[0].1.texts().pop().unwrap();
    assert!(last.contains(r#""error":"Redirect""#) && last.contains(r#""url":"ws://that/ws""#), "{last}");
}

#[test]
fn where_the_look_shows_that_they_are_at_home_they_are_told_nothing() {
    let mut leaving = Leaving::begin(20, 1_000);
    let old = standing(true, leaving.now() - Duration::from_secs(1));
    assert_eq!(leaving.advance(&old), Step::AskForLook);
    leaving.pass(5);
    let alone = standing(false, leaving.now());
    assert_eq!((leaving.advance(&alone), leaving.gone(), leaving.handover.next(leaving.now())), (Step::Go, 0, None));
    for (_, socket) in &leaving.clients {
        let texts = socket.texts();
        assert!(texts.len() == 1 && texts[0].contains(r#""type":"connected""#), "{texts:?}");
    }
    // The other one comes once more: that takes a look of its own.
    leaving.pass(3_000);
    let again = looked_at(&old, leaving.now() - Duration::from_secs(1));
    let again = Standing { view: Arc::new((*again.view).clone()), ..again };
    assert_eq!((leaving.advance(&again), leaving.gone()), (Step::AskForLook, 0));
}

#[test]
fn a_long_handover_looks_again_when_its_look_is_old() {
    let mut leaving = Leaving::begin(20, 10);
    let mut now = standing(true, leaving.now());
    let mut looks = 0;
    let mut seen = Vec::new();
    for _ in 0..12 {
        if leaving.advance(&now) == Step::AskForLook {
            looks += 1;
            now = looked_at(&now, leaving.now());
            leaving.advance(&now);
        }
        seen.push(leaving.gone());
        leaving.pass(100);
    }
    assert_eq!(seen, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], "ten a second, whatever it takes to be sure");
    assert!((5..=6).contains(&looks), "{looks} looks in 1.2 s, none while the last was young");
}

#[test]
fn many_are_looked_at_bit_by_bit_and_the_oldest_go_first_whoever_leaves_meanwhile() {
    let mut leaving = Leaving::begin(10_000, 10_000);
    for (number, (key, _)) in leaving.clients.iter().enumerate() {
        let age = Duration::from_millis(u64::try_from(number * 7919 % 10_000).unwrap());
        leaving.world.state.connections[*key].opened = leaving.world.now.instant - age;
    }
    let view = standing(true, leaving.now());
    assert_eq!((leaving.advance(&view), leaving.gone()), (Step::Wait, 0));
    assert_eq!(leaving.handover.next(leaving.now()), Some(leaving.now()), "the next turn comes at once");
    for place in [0, 4_000, 9_999] {
        let (key, _) = leaving.clients.swap_remove(place.min(leaving.clients.len() - 1));
        leaving.world.state.detach(key, CloseReason::ClientGone);
    }
    assert_eq!((leaving.advance(&view), leaving.gone()), (Step::Wait, 0));
    assert_eq!((leaving.advance(&view), leaving.gone()), (Step::Go, 1_001), "a tenth of a second's");
    let state = &leaving.world.state;
    let opened = |key: &ConnectionKey| state.connections[*key].opened;
    let (gone, here): (Vec<_>, Vec<_>) =
        leaving.clients.iter().map(|(key, _)| *key).partition(|key| state.ended(*key).is_some());
    assert!(gone.iter().map(opened).max() <= here.iter().map(opened).min());
}

#[test]
fn without_redis_the_last_view_is_gone_by() {
    let mut leaving = Leaving::begin(3, 1_000);
    let old = standing(true, leaving.now() - Duration::from_secs(60));
    let down = Standing { sight: Sight { reached: false, ..old.sight }, ..old.clone() };
    assert_eq!((leaving.advance(&down), leaving.gone()), (Step::Go, 3));

    let mut leaving = Leaving::begin(3, 1_000);
    assert_eq!((leaving.advance(&old), leaving.gone()), (Step::AskForLook, 0));
    leaving.pass(1_999);
    assert_eq!((leaving.advance(&old), leaving.gone()), (Step::Wait, 0));
    leaving.pass(1);
    assert_eq!((leaving.advance(&old), leaving.gone()), (Step::Go, 3), "one that doesn't answer is none");
}

#[test]
fn who_is_served_for_its_owner_goes_home_when_the_view_is_proven_the_same_or_not() {
    let mut leaving = Leaving::begin(6, 1_000);
    let unproven = |standing: Standing| Standing { sight: Sight { proven: false, ..standing.sight }, ..standing };
    let (returned, others) = leaving.clients.split_at(4);
    for (key, _) in returned {
        leaving.world.state.connections[*key].against_owner = Evidence::IsBack;
    }
    let others: Vec<_> = others.iter().map(|(key, _)| *key).collect();
    let down = Standing { sight: Sight::default(), ..standing(true, leaving.now()) };
    leaving.advance(&down);
    assert_eq!(leaving.gone(), 2);
    for key in others {
        assert_eq!(leaving.world.state.ended(key), Some(CloseReason::Moved), "the last view is gone by");
        let hash = leaving.world.state.connections[key].watch.unwrap().hash;
        assert!(leaving.world.state.sent_away.is_back(hash, &down.sight, leaving.now()), "and this is remembered");
    }
    leaving.pass(1_000);
    // Redis is back, and a pod that it lacks is in the view for a lease more: another view, and no better one.
    let back = unproven(looked_at(&down, leaving.now()));
    let back = Standing { view: Arc::new((*back.view).clone()), ..back };
    assert_eq!((leaving.advance(&back), leaving.gone(), leaving.handover.next(leaving.now())), (Step::Go, 2, None));
    leaving.pass(1_000);
    let proven = looked_at(&back, leaving.now());
    assert_eq!((leaving.advance(&proven), leaving.gone()), (Step::Go, 6));
}

#[test]
fn a_pod_without_a_slot_hands_nobody_over_and_goes_on_when_it_has_one() {
    let mut leaving = Leaving::begin(12, 10);
    let holds = standing(true, leaving.now());
    leaving.advance(&holds);
    assert_eq!(leaving.gone(), 2);
    let lost = Standing { own: None, ..holds.clone() };
    leaving.pass(500);
    assert_eq!((leaving.advance(&lost), leaving.gone(), leaving.handover.next(leaving.now())), (Step::Go, 2, None));
    leaving.pass(500);
    let holds = looked_at(&holds, leaving.now());
    leaving.advance(&holds);
    assert_eq!(leaving.gone(), 4, "also where the view is the same as before");
}

#[test]
fn placed_anywhere_nobody_moves_whatever_the_view() {
    let mut leaving = Leaving::begin(20, 1_000);
    leaving.place_anywhere = true;
    for beside in [true, false, true] {
        let view = standing(beside, leaving.now() - Duration::from_secs(1));
        assert_eq!((leaving.advance(&view), leaving.gone(), leaving.handover.next(leaving.now())), (Step::Go, 0, None));
    }
}

/// A drain over ten seconds of ten clients.
struct Draining {
    leaving: Leaving,
    sweeper: Sweeper,
    since: Instant,
}

impl Draining {
    fn begin() -> Self {
        let leaving = Leaving::begin(10, 1_000);
        let (sweeper, since) = (Sweeper::new(&config(), leaving.now()), leaving.now());
        Self { leaving, sweeper, since }
    }

    fn drain(&mut self, looked: Instant) -> Step {
        let config = DrainConfig { delay: Duration::ZERO, over: Duration::from_secs(10) };
        let phase = Phase::at(self.leaving.now(), Some(self.since), &config);
        let before = standing(true, looked);
        let standing = Standing { own: None, draining_since: Some(self.since), ..before };
        let node = NodeId(NODE.into());
        let here = Here { node: &node, standing: &standing, place_anywhere: self.leaving.place_anywhere };
        self.sweeper.drain(&mut self.leaving.world.state, phase, &here, self.leaving.world.now)
    }
}

#[test]
fn a_drain_sends_nobody_away_by_an_old_view_unless_all_is_over() {
    let mut draining = Draining::begin();
    let start = draining.leaving.now();
    assert_eq!((draining.drain(start), draining.leaving.gone()), (Step::Go, 0), "nobody is to go yet");
    draining.leaving.pass(2_000);
    assert_eq!((draining.drain(start), draining.leaving.gone()), (Step::AskForLook, 0));
    draining.leaving.pass(20);
    assert_eq!((draining.drain(start), draining.leaving.gone()), (Step::Wait, 0));
    let now = draining.leaving.now();
    assert_eq!((draining.drain(now), draining.leaving.gone()), (Step::Go, 2));
    draining.leaving.pass(20);
    assert_eq!((draining.drain(now), draining.leaving.gone()), (Step::Go, 2), "nobody is to go, and no look is wanted");
    draining.leaving.pass(8_000);
    assert_eq!((draining.drain(now), draining.leaving.gone()), (Step::Go, 10), "all is over");
}

#[test]
fn placed_anywhere_a_drain_names_no_pod() {
    let mut draining = Draining::begin();
    draining.leaving.place_anywhere = true;
    draining.leaving.pass(10_000);
    draining.drain(draining.leaving.now());
    for (key, socket) in &draining.leaving.clients {
        assert_eq!(draining.leaving.world.state.ended(*key), Some(CloseReason::GoingAway));
        assert!(!socket.texts().iter().any(|text| text.contains("Redirect")));
    }
}

// ---- evenly, and at a pace ----------------------------------------------------------------------------------------------

#[test]
fn a_drain_closes_evenly_and_redirects_where_another_pod_lives() {
    let drain = DrainConfig { delay: Duration::from_secs(1), over: Duration::from_secs(10) };
    let mut world = World::new();
    let mut sweeper = Sweeper::new(&config(), world.now.instant);
    let clients: Vec<_> = (0..20).map(|number| world.connect((number % 2 == 0).then_some("a"))).collect();
    let since = Some(world.now.instant);
    let view = View { version: 1, slots: vec![pod("this"), pod("that")] };
    let standing = Standing { view: Arc::new(view), draining_since: since, ..Standing::default() };
    let here = Here { node: &NodeId("this".into()), standing: &standing, place_anywhere: false };
    let mut open = Vec::new();
    for _ in 0..11 {
        let phase = Phase::at(world.now.instant, since, &drain);
        sweeper.drain(&mut world.state, phase, &here, world.now);
        open.push(clients.iter().filter(|(key, _)| world.state.ended(*key).is_none()).count());
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(open, [20, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2]);
    sweeper.drain(&mut world.state, Phase::at(world.now.instant, since, &drain), &here, world.now);
    for (key, socket) in clients {
        assert_eq!(world.state.ended(key), Some(CloseReason::Moved));
        let last = socket.texts().pop().unwrap();
        assert!(last.contains(r#""error":"Redirect""#) && last.contains(r#""url":"ws://that/ws""#), "{last}");
    }
}

#[test]
fn who_moved_is_sent_on_oldest_first_at_a_pace_and_who_comes_home_meanwhile_stays() {
    let config = ShardConfig { handover_per_second: 10, ..config() };
    let mut world = World::with(config.clone());
    let mut handover = Handover::new(&config, world.now.instant);
    let node = NodeId("this".into());
    let standing = |slots: Vec<Option<Pod>>| Standing {
        view: Arc::new(View { version: 1, slots }),
        own: Some(SlotNumber(0)),
        ..Standing::default()
    };
    let both = standing(vec![pod("this"), pod("that")]);
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

    let alone = standing(vec![pod("this"), None]);
    let both = Here { node: &node, standing: &both, place_anywhere: false };
    let alone = Here { standing: &alone, ..both };
    let mut seen = Vec::new();
    for _ in 0..5 {
        world.pass(Duration::from_millis(100));
        handover.advance(&mut world.state, &both, world.now);
        seen.push(gone(&world, &moved));
    }
    assert_eq!(seen, [2, 3, 4, 5, 6], "ten a second, after a tenth of a second's burst");
    assert!(moved[..6].iter().all(|&key| world.state.ended(key) == Some(CloseReason::Moved)), "the oldest");

    world.pass(Duration::from_millis(100));
    handover.advance(&mut world.state, &alone, world.now);
    assert_eq!((handover.next(world.now.instant), gone(&world, &moved)), (None, 6), "the others have come home");
    assert_eq!((gone(&world, &home), gone(&world, &[market])), (0, 0));
}
