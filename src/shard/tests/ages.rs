//! Connections at their maximum age: when they are closed, at which rate, and where their clients are redirected.

use std::sync::Arc;

use super::*;
use crate::exchange::{PodState, ViewFreshness};
use crate::ids::{AssessmentHash, SlotNumber};
use crate::routing::placement::{Pod, View};
use crate::shard::age_limit::AgeLimiter;
use crate::shard::redirect::Placement;

const AGE: Duration = Duration::from_secs(100);

/// This pod in slot 0 beside another, with a fresh view.
fn pod_state() -> PodState {
    let pod = |name: &str| Some(Pod { node: NodeId(name.into()), url: format!("ws://{name}/ws").into() });
    let view = View { version: 1, slots: vec![pod("this"), pod("that")] };
    let view_freshness = ViewFreshness { as_of: Some(Instant::now()), redis_up: true, confirmed: true };
    PodState {
        view: Arc::new(view),
        view_freshness,
        own_slot: Some(SlotNumber(0)),
        was_ready: true,
        ..PodState::default()
    }
}

/// An id of an assessment that a slot owns.
fn id_of(slot: u32) -> String {
    let view = pod_state().view;
    (0..).map(|n| format!("id{n}")).find(|id| view.owner(AssessmentHash::of(id)) == Some(SlotNumber(slot))).unwrap()
}

struct Aging {
    world: World,
    age_limiter: AgeLimiter,
    place_anywhere: bool,
}

impl Aging {
    fn begin(age_max: Option<Duration>, per_second: u32) -> Self {
        let config = ShardConfig { handover_per_second: per_second, ..config() };
        let world = World::with(config.clone());
        let age_limiter = AgeLimiter::new(age_max, &config, world.now.instant);
        Self { world, age_limiter, place_anywhere: false }
    }

    /// Lets time pass, with a turn each 100 ms.
    fn pass(&mut self, time: Duration, pod_state: &PodState) {
        const STEP: Duration = Duration::from_millis(100);
        let until = self.world.now.instant + time;
        while self.world.now.instant < until {
            self.world.pass(STEP);
            let node = NodeId("this".into());
            let placement = Placement { node: &node, pod_state, place_anywhere: self.place_anywhere };
            self.age_limiter.advance(&mut self.world.state, &placement, self.world.now);
            if let Some(next) = self.age_limiter.next(self.world.now.instant) {
                assert!(next > self.world.now.instant, "a turn without work must not be due");
            }
        }
    }

    fn gone(&self, clients: &[(ConnectionKey, Scripted)]) -> usize {
        clients.iter().filter(|(key, _)| self.world.state.ended(*key) == Some(CloseReason::TooOld)).count()
    }
}

#[test]
fn clients_that_arrived_together_leave_spread_over_a_quarter_of_the_age() {
    let mut aging = Aging::begin(Some(AGE), 1_000);
    let id = id_of(0);
    let clients: Vec<_> = (0..100).map(|_| aging.world.connect(Some(&id))).collect();
    aging.pass(AGE * 3 / 4, &pod_state());
    assert_eq!(aging.gone(&clients), 0);
    let mut before = 0;
    for quarter in 1..=4 {
        aging.pass(AGE / 16, &pod_state());
        let gone = aging.gone(&clients);
        assert!((15..=35).contains(&(gone - before)), "{gone} after {quarter} of four parts, {before} before");
        before = gone;
    }
    aging.pass(AGE / 50, &pod_state());
    assert_eq!(aging.gone(&clients), 100);
    let last = clients[0].1.texts().pop().unwrap();
    assert!(last.contains(r#""error":"Redirect""#) && last.contains(r#""url":"ws://this/ws","cursor":""#), "{last}");
}

#[test]
fn the_age_limit_keeps_to_the_handover_rate() {
    let mut aging = Aging::begin(Some(Duration::from_secs(1)), 10);
    let clients: Vec<_> = (0..100).map(|_| aging.world.connect(Some(&id_of(0)))).collect();
    aging.pass(Duration::from_secs(3), &pod_state());
    let gone = aging.gone(&clients);
    assert!((15..=25).contains(&gone), "{gone} in some two seconds");
    aging.pass(Duration::from_secs(9), &pod_state());
    assert_eq!(aging.gone(&clients), 100);
}

#[test]
fn the_age_limit_closes_no_client_without_a_setting_without_a_target_or_during_a_drain() {
    for (age_max, pod_state) in [
        (None, pod_state()),
        (Some(AGE), PodState { own_slot: None, view: Arc::default(), ..pod_state() }),
        (Some(AGE), PodState { draining_since: Some(Instant::now()), ..pod_state() }),
    ] {
        let mut aging = Aging::begin(age_max, 1_000);
        let clients = [aging.world.connect(Some(&id_of(0))), aging.world.connect(None)];
        aging.pass(2 * AGE, &pod_state);
        assert_eq!(aging.gone(&clients), 0, "{pod_state:?}");
    }
    // Another pod serves the assessment: the handover redirects its clients.
    let mut aging = Aging::begin(Some(AGE), 1_000);
    let clients = [aging.world.connect(Some(&id_of(1)))];
    aging.pass(2 * AGE, &pod_state());
    assert_eq!(aging.gone(&clients), 0);
}

#[test]
fn clients_of_market_data_are_spread_over_the_pods() {
    let mut aging = Aging::begin(Some(AGE), 1_000);
    let clients: Vec<_> = (0..40).map(|_| aging.world.connect(None)).collect();
    let unconfirmed = ViewFreshness { confirmed: false, ..pod_state().view_freshness };
    aging.pass(2 * AGE, &PodState { view_freshness: unconfirmed, ..pod_state() });
    assert_eq!(aging.gone(&clients), 0, "the other pod may be gone");
    aging.pass(AGE, &pod_state());
    assert_eq!(aging.gone(&clients), 40);
    let to_that = clients.iter().filter(|(_, socket)| socket.texts().last().unwrap().contains("ws://that/ws")).count();
    assert!((10..=30).contains(&to_that), "{to_that} of 40");
}

#[test]
fn with_placement_any_an_aged_client_gets_a_cursor_and_no_url() {
    let mut aging = Aging::begin(Some(AGE), 1_000);
    aging.place_anywhere = true;
    let clients = [aging.world.connect(Some(&id_of(1)))];
    aging.pass(2 * AGE, &pod_state());
    assert_eq!(aging.gone(&clients), 1);
    let texts = clients[0].1.texts();
    let last = texts.last().unwrap();
    assert!(last.contains(r#""type":"ping""#) && last.contains(r#""cursor":""#), "{texts:?}");
    assert!(!texts.concat().contains("Redirect"), "{texts:?}");
}
