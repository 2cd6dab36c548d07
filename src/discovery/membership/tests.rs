//! One pod, `a`, and the snapshots that it receives.

use proptest::prelude::*;

use super::*;

mod clock;
mod confirmed;
mod fields;

mod urls;

const LEASE: Duration = Duration::from_secs(10);
const EPOCH: u64 = 1_000;

/// A pod on a virtual clock, which is also Redis' clock.
struct Story {
    start: Instant,
    now: Instant,
    pod: Member,
}

impl Story {
    fn begin() -> Self {
        let identity = Identity {
            node: NodeId("a".into()),
            instance: "a1".into(),
            url: "ws://a/ws".into(),
            peer_url: Some("http://a".into()),
            owns_url: true,
            key_prefix: "websocket".into(),
        };
        let now = Instant::now();
        Self { start: now, now, pod: Member::new(identity, LeaseTimes::of(LEASE)) }
    }

    /// The pod holds slot 0, `b` slot 1 and `c` slot 2.
    fn of_three() -> Self {
        let mut story = Self::begin();
        story.pod.handle_history_complete(story.now);
        story.sees(EPOCH, 3, &[(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")]);
        story.pod.take_notices();
        story
    }

    fn redis_ms(&self) -> u64 {
        EPOCH + u64::try_from((self.now - self.start).as_millis()).unwrap()
    }

    fn snapshot(&self, epoch: u64, version: u64, holders: &[(u32, &str, &str)]) -> Snapshot {
        let expires_at_ms = self.redis_ms() + whole_ms(LEASE);
        let holder = |&(slot, node, instance): &(u32, &str, &str)| {
            let url = format!("ws://{node}/ws").into();
            let peer_url = Some(format!("http://{node}").into());
            Holder { slot, node: node.into(), instance: instance.into(), url, peer_url, expires_at_ms }
        };
        let holders: Vec<Holder> = holders.iter().map(holder).collect();
        let slots = holders.iter().map(|holder| holder.slot + 1).max().unwrap_or(0);
        Snapshot { now_ms: self.redis_ms(), late: false, epoch, version, slots, holders, ..Snapshot::default() }
    }

    fn sees(&mut self, epoch: u64, version: u64, holders: &[(u32, &str, &str)]) {
        let snapshot = self.snapshot(epoch, version, holders);
        self.pod.handle_snapshot(self.now, self.now, snapshot);
    }

    /// Receives the same snapshot once a second.
    fn sees_for(&mut self, time: Duration, epoch: u64, version: u64, holders: &[(u32, &str, &str)]) {
        let until = self.now + time;
        while self.now < until {
            self.now += Duration::from_secs(1);
            self.sees(epoch, version, holders);
        }
    }

    fn fails_for(&mut self, time: Duration) {
        self.pod.handle_failure(self.now);
        self.now += time;
        self.pod.handle_failure(self.now);
    }

    fn call(&self) -> Call {
        self.pod.call(self.now)
    }

    fn pods(&self) -> String {
        let live = self.pod.view().live().map(|(slot, pod)| format!("{slot}={}", pod.node));
        live.collect::<Vec<_>>().join(" ")
    }

    fn due(&self) -> Duration {
        self.pod.call_at().expect("a call precedes").saturating_duration_since(self.now)
    }
}

#[test]
fn a_pod_claims_a_slot_only_once_its_history_is_complete() {
    let mut story = Story::begin();
    assert_eq!(story.pod.call_at(), None, "the first call is due at once");
    story.sees(EPOCH, 1, &[(0, "b", "b1")]);
    assert_eq!(story.call().action, Action::Watch);
    assert_eq!((story.pods().as_str(), story.pod.own_slot()), ("0=b", None));

    story.pod.handle_history_complete(story.now);
    assert_eq!(story.due(), Duration::ZERO);
    assert_eq!((story.call().action, story.call().slot), (Action::Claim, None));

    story.sees(EPOCH, 2, &[(0, "b", "b1"), (1, "a", "a1")]);
    assert_eq!(story.pod.own_slot(), Some(SlotNumber(1)));
    assert_eq!(story.pods(), "0=b 1=a");
    assert!(story.pod.take_notices().contains(&Notice::Claimed(SlotNumber(1))));
    assert_eq!((story.call().action, story.call().slot), (Action::Hold, Some(1)));
}

#[test]
fn the_first_call_only_reads_because_redis_cannot_tell_if_it_is_late() {
    let mut story = Story::begin();
    story.pod.handle_history_complete(story.now);
    let call = story.call();
    assert_eq!((call.action, call.judge, call.sent_ms), (Action::Watch, false, None));
    story.sees(EPOCH, 0, &[]);
    let call = story.call();
    assert_eq!((call.action, call.judge, call.sent_ms), (Action::Claim, true, Some(EPOCH)));
    assert_eq!(story.due(), Duration::ZERO);
}

#[test]
fn a_restarted_pod_takes_over_the_slot_of_its_name_only_with_its_first_claim() {
    let mut story = Story::begin();
    story.pod.handle_history_complete(story.now);
    story.sees(EPOCH, 1, &[(0, "a", "a0")]);
    assert!(story.call().take_over);
    story.sees(EPOCH, 1, &[(0, "a", "a1")]);
    assert!(!story.call().take_over);
    story.sees(EPOCH, 2, &[(0, "a", "a2")]);
    assert_eq!(story.call().action, Action::Claim);
    assert!(!story.call().take_over, "or two processes would take it from each other");
}

#[test]
fn a_pod_displaced_by_a_process_of_its_name_reports_it_and_claims_another_slot() {
    let mut story = Story::of_three();
    story.sees(EPOCH, 4, &[(0, "a", "a2"), (1, "b", "b1"), (2, "c", "c1")]);
    assert!(story.pod.take_notices().contains(&Notice::Displaced(SlotNumber(0))));
    assert_eq!(story.pod.own_slot(), None);
    assert_eq!((story.due(), story.call().action), (Duration::ZERO, Action::Claim));

    story.sees(EPOCH, 5, &[(0, "a", "a2"), (1, "b", "b1"), (2, "c", "c1"), (3, "a", "a1")]);
    assert_eq!(story.pod.own_slot(), Some(SlotNumber(3)));
    assert_eq!(story.pod.take_notices(), [Notice::Claimed(SlotNumber(3)), Notice::ViewChanged], "it is reported once");
}

#[test]
fn a_shared_name_is_reported_once_for_each_process() {
    let mut story = Story::of_three();
    let shared = [(0, "a", "a1"), (1, "a", "a2")];
    story.sees(EPOCH, 4, &shared);
    assert!(story.pod.take_notices().contains(&Notice::NameShared(SlotNumber(1))));
    story.sees_for(Duration::from_secs(5), EPOCH, 4, &shared);
    assert!(story.pod.take_notices().is_empty());
    story.sees(EPOCH, 5, &[(0, "a", "a1")]);
    story.sees(EPOCH, 6, &[(0, "a", "a1"), (1, "a", "a3")]);
    assert!(story.pod.take_notices().contains(&Notice::NameShared(SlotNumber(1))));
}

#[test]
fn a_pod_without_a_slot_does_not_report_a_lease_under_its_name() {
    let mut story = Story::begin();
    story.sees(EPOCH, 1, &[(0, "a", "a0")]);
    assert_eq!(story.pod.take_notices(), [Notice::ViewChanged]);
}

#[test]
fn a_pod_that_was_paused_beyond_its_lease_claims_again() {
    let mut story = Story::of_three();
    story.now += Duration::from_secs(60);
    assert_eq!(story.call().action, Action::Hold, "its own number again, if that is vacant");
    assert_eq!(story.call().slot, Some(0));
    assert!(!story.call().judge, "and it expires no lease by what it knew before the pause");

    story.sees(EPOCH, 9, &[(0, "d", "d1"), (1, "b", "b1"), (2, "c", "c1")]);
    assert_eq!(story.pod.own_slot(), None);
    assert!(story.pod.take_notices().contains(&Notice::Lost(SlotNumber(0))));
    assert_eq!((story.due(), story.call().action), (Duration::ZERO, Action::Claim));
    story.sees(EPOCH, 10, &[(0, "d", "d1"), (1, "b", "b1"), (2, "c", "c1"), (3, "a", "a1")]);
    assert_eq!(story.pod.own_slot(), Some(SlotNumber(3)));
}

#[test]
fn a_pod_that_starts_after_an_outage_leaves_the_others_time_to_renew() {
    let missed = |age_ms: u64, node: &str| {
        let mut story = Story::begin();
        story.pod.handle_history_complete(story.now);
        let mut snapshot = story.snapshot(EPOCH, 2, &[(0, "b", "b1"), (1, node, "c1")]);
        snapshot.now_ms += whole_ms(LEASE);
        snapshot.holders[0].expires_at_ms = snapshot.now_ms + whole_ms(LEASE);
        snapshot.holders[1].expires_at_ms = snapshot.now_ms + whole_ms(LEASE) - age_ms;
        story.pod.handle_snapshot(story.now, story.now, snapshot);
        story
    };
    // A lease is renewed each second, or later if a call or two were slow.
    assert!(missed(1_000, "c").call().judge && missed(5_000, "c").call().judge);
    assert!(missed(15_000, "a").call().judge, "the lease under its name is from before its restart");
    for age_ms in [5_001, 9_000, 15_000] {
        let mut story = missed(age_ms, "c");
        assert_eq!((story.call().action, story.call().judge), (Action::Claim, false), "it claims a vacant slot");
        story.sees_for(LEASE - Duration::from_secs(1), EPOCH, 3, &[(0, "b", "b1"), (1, "c", "c1"), (2, "a", "a1")]);
        assert!(!story.call().judge);
        story.sees_for(Duration::from_secs(1), EPOCH, 3, &[(0, "b", "b1"), (1, "c", "c1"), (2, "a", "a1")]);
        assert!(story.call().judge);
    }
}

#[test]
fn the_last_view_stays_in_force_while_redis_is_down() {
    let mut story = Story::of_three();
    story.fails_for(Duration::from_secs(600));
    assert!(!story.pod.is_redis_up());
    assert_eq!((story.pods().as_str(), story.pod.own_slot()), ("0=a 1=b 2=c", Some(SlotNumber(0))));
    assert!(story.pod.take_notices().is_empty());
}

#[test]
fn time_of_an_outage_counts_against_no_lease() {
    let mut story = Story::of_three();
    assert!(story.call().judge);
    story.fails_for(Duration::from_secs(60));
    let all = [(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")];
    story.sees(EPOCH, 3, &all);
    assert!(!story.call().judge, "b and c had no chance to renew");
    story.sees_for(Duration::from_secs(9), EPOCH, 3, &all);
    assert!(!story.call().judge);
    story.sees_for(Duration::from_secs(1), EPOCH, 3, &all);
    assert!(story.call().judge, "now they had: Redis was up for a whole lease");
}

#[test]
fn a_stuck_call_does_nothing_and_counts_as_an_outage() {
    let mut story = Story::of_three();
    let began = story.now + Duration::from_secs(1);
    story.now = began + Duration::from_millis(2_001);
    let late = Snapshot { now_ms: 99_000, late: true, ..Snapshot::default() };
    story.pod.handle_snapshot(began, story.now, late);
    assert!(!story.pod.is_redis_up());
    assert_eq!(story.pods(), "0=a 1=b 2=c");
    assert_eq!(story.call().sent_ms, Some(99_000), "Redis' clock is known anyway");
}

#[test]
fn a_call_carries_its_time_by_redis_clock() {
    let mut story = Story::begin();
    assert_eq!(story.call().sent_ms, None);
    story.sees(EPOCH, 0, &[]);
    story.now += Duration::from_millis(1_234);
    assert_eq!(story.call().sent_ms, Some(EPOCH + 1_234));
}

#[test]
fn the_old_view_holds_for_one_more_lease_if_redis_comes_back_empty() {
    let mut story = Story::of_three();
    story.fails_for(Duration::from_secs(5));
    assert_eq!((story.call().action, story.call().slot), (Action::Hold, Some(0)), "its own number again");
    assert_eq!(story.call().slots, 3, "the call tells Redis the number of slots");

    story.sees(2 * EPOCH, 1, &[(0, "a", "a1")]);
    assert_eq!(story.pod.take_notices(), [Notice::MemoryLost]);
    assert_eq!(story.pods(), "0=a 1=b 2=c");
    assert_eq!(story.pod.view().version, 1, "a lower version is accepted");

    story.sees_for(Duration::from_secs(9), 2 * EPOCH, 2, &[(0, "a", "a1"), (1, "b", "b1")]);
    assert_eq!(story.pods(), "0=a 1=b 2=c");
    story.sees_for(Duration::from_secs(1), 2 * EPOCH, 2, &[(0, "a", "a1"), (1, "b", "b1")]);
    assert_eq!(story.pods(), "0=a 1=b", "the time of c is over");
}

#[test]
fn a_hash_that_was_emptied_and_refilled_between_two_calls_has_another_epoch() {
    let mut story = Story::of_three();
    story.sees(2 * EPOCH, 7, &[(0, "a", "a1"), (2, "c", "c1")]);
    assert_eq!(story.pods(), "0=a 1=b 2=c");
    assert!(story.pod.take_notices().contains(&Notice::MemoryLost));
}

#[test]
fn a_hash_that_gets_its_first_epoch_has_lost_nothing() {
    let mut story = Story::begin();
    story.pod.handle_history_complete(story.now);
    // A field without a view, as another program might write it.
    story.sees(0, 0, &[(1, "b", "b1")]);
    story.sees(EPOCH, 1, &[(0, "a", "a1"), (1, "b", "b1")]);
    assert!(!story.pod.take_notices().contains(&Notice::MemoryLost));
    story.sees(EPOCH, 2, &[(0, "a", "a1")]);
    assert_eq!(story.pods(), "0=a", "so b is not retained");
}

#[test]
fn an_older_state_of_a_restored_redis_is_accepted() {
    let mut story = Story::of_three();
    story.sees(EPOCH, 9, &[(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")]);
    story.sees(EPOCH, 2, &[(0, "a", "a1"), (1, "b", "b1"), (4, "e", "e1")]);
    assert_eq!(story.pod.view().version, 2);
    assert_eq!(story.pods(), "0=a 1=b 2=c 4=e");
}

#[test]
fn a_retained_pod_yields_if_its_slot_is_filled_or_it_appears_elsewhere() {
    let mut story = Story::of_three();
    story.sees(2 * EPOCH, 1, &[(0, "a", "a1"), (2, "b", "b1")]);
    assert_eq!(story.pods(), "0=a 2=b", "b went to 2, where c was");
    story.sees(2 * EPOCH, 2, &[(0, "a", "a1"), (1, "d", "d1"), (2, "b", "b1")]);
    assert_eq!(story.pods(), "0=a 1=d 2=b");
}

#[test]
fn a_pod_that_came_back_and_left_again_is_not_retained() {
    let mut story = Story::of_three();
    story.sees(2 * EPOCH, 3, &[(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")]);
    story.sees(2 * EPOCH, 4, &[(0, "a", "a1"), (2, "c", "c1")]);
    assert_eq!(story.pods(), "0=a 2=c");
}

#[test]
fn slots_of_retained_pods_are_not_claimed() {
    let mut story = Story::of_three();
    story.sees(2 * EPOCH, 1, &[(0, "d", "d1")]);
    assert_eq!(story.pod.own_slot(), None, "d was quicker");
    let call = story.call();
    assert_eq!((call.action, call.slot, call.reserved), (Action::Claim, Some(0), vec![1, 2]));
}

#[test]
fn a_pod_that_announced_its_leave_is_not_retained() {
    let mut story = Story::of_three();
    story.pod.handle_drain(story.now);
    story.pod.handle_leave(NodeId("b".into()), story.now);
    story.sees(0, 0, &[]);
    assert_eq!(story.pods(), "2=c", "only c has not announced its leave");
    story.pod.handle_leave(NodeId("c".into()), story.now);
    story.sees(0, 0, &[]);
    assert_eq!(story.pods(), "");
}

#[test]
fn an_empty_hash_does_not_extend_the_time_of_retained_pods() {
    let mut story = Story::of_three();
    story.pod.handle_drain(story.now);
    story.sees(0, 0, &[]);
    story.sees_for(Duration::from_secs(9), 0, 0, &[]);
    assert_eq!(story.pods(), "1=b 2=c");
    story.sees_for(Duration::from_secs(1), 0, 0, &[]);
    assert_eq!(story.pods(), "");
}

#[test]
fn after_an_outage_a_new_pod_lets_earlier_holders_claim_first() {
    let mut story = Story::begin();
    story.pod.handle_history_complete(story.now);
    story.fails_for(Duration::from_secs(5));
    story.sees(EPOCH, 0, &[]);
    assert_eq!(story.call().action, Action::Watch);
    story.sees_for(Duration::from_secs(2), EPOCH, 1, &[(0, "b", "b1")]);
    assert_eq!(story.call().action, Action::Watch);
    story.sees_for(Duration::from_secs(1), EPOCH, 1, &[(0, "b", "b1")]);
    assert_eq!(story.call().action, Action::Claim);
}

#[test]
fn a_draining_pod_owns_nothing_at_once_and_releases_its_slot() {
    let mut story = Story::of_three();
    story.pod.handle_drain(story.now);
    assert_eq!((story.pod.own_slot(), story.pods().as_str()), (None, "1=b 2=c"));
    assert_eq!((story.due(), story.call().action), (Duration::ZERO, Action::Leave));
    assert!(!story.pod.has_left());

    story.sees(EPOCH, 4, &[(1, "b", "b1"), (2, "c", "c1")]);
    assert!(story.pod.has_left());
    assert!(story.pod.take_notices().contains(&Notice::Left));
    assert_eq!(story.call().action, Action::Watch, "it keeps reading the slots to redirect its clients");
}

#[test]
fn a_pod_that_drains_without_redis_owns_nothing_either() {
    let mut story = Story::of_three();
    story.fails_for(Duration::from_secs(5));
    story.pod.handle_drain(story.now);
    assert_eq!((story.pod.own_slot(), story.pods().as_str()), (None, "1=b 2=c"));
    assert!(!story.pod.has_left());
    story.sees(EPOCH, 3, &[(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")]);
    assert_eq!(story.pods(), "1=b 2=c", "whatever Redis still holds");
    assert_eq!(story.call().action, Action::Leave);
}

#[test]
fn a_pod_that_drains_before_it_had_a_slot_has_left_already() {
    let mut story = Story::begin();
    story.sees(EPOCH, 1, &[(0, "b", "b1")]);
    story.pod.handle_drain(story.now);
    assert!(story.pod.has_left());
    story.pod.handle_history_complete(story.now);
    assert_eq!(story.call().action, Action::Watch);
}

#[test]
fn a_burst_of_announcements_causes_one_call() {
    let mut story = Story::of_three();
    story.pod.handle_announcement(story.now);
    assert_eq!(story.due(), BETWEEN_CALLS);
    story.now += Duration::from_millis(15);
    story.pod.handle_announcement(story.now);
    assert_eq!(story.due(), Duration::from_millis(5));
    story.now += Duration::from_millis(500);
    story.pod.handle_announcement(story.now);
    assert_eq!(story.due(), Duration::ZERO);
}

#[test]
fn an_announcement_does_not_shorten_the_pause_after_a_failure() {
    let mut story = Story::of_three();
    story.fails_for(Duration::from_secs(5));
    let due = story.due();
    story.pod.handle_announcement(story.now);
    assert_eq!(story.due(), due);
}

#[test]
fn a_refresh_request_calls_redis_at_once_or_a_tenth_of_a_second_after_the_last_call() {
    let mut story = Story::of_three();
    let answered = story.now;
    assert_eq!(story.pod.as_of(), Some(answered));
    story.now += Duration::from_millis(40);
    story.pod.handle_refresh_request(story.now);
    assert_eq!(story.due(), Duration::from_millis(60));
    story.now += Duration::from_millis(80);
    story.pod.handle_refresh_request(story.now);
    assert_eq!((story.due(), story.call().action), (Duration::ZERO, Action::Hold));
    assert_eq!(story.pod.as_of(), Some(answered));
}

#[test]
fn a_thousand_refresh_requests_a_second_cause_ten_calls() {
    let mut story = Story::of_three();
    let mut calls = 0;
    for _ in 0..3_000 {
        story.now += Duration::from_millis(1);
        story.pod.handle_refresh_request(story.now);
        if story.due() == Duration::ZERO {
            calls += 1;
            story.sees(EPOCH, 3, &[(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")]);
        }
    }
    assert_eq!(calls, 30);
}

#[test]
fn the_age_of_a_view_counts_from_the_last_successful_call() {
    let mut story = Story::of_three();
    let before = story.pod.as_of();
    let began = story.now + Duration::from_millis(500);
    story.now += Duration::from_millis(900);
    let snapshot = story.snapshot(EPOCH, 3, &[(0, "a", "a1")]);
    story.pod.handle_failure(story.now);
    assert_eq!((story.pod.as_of(), story.pod.is_redis_up()), (before, false));
    let due = story.due();
    story.pod.handle_refresh_request(story.now);
    assert_eq!(story.due(), due, "if Redis is down, no redirect waits, and attempts keep their own rate");
    story.pod.handle_snapshot(began, story.now, snapshot);
    assert_eq!(story.pod.as_of(), Some(began));
}

#[test]
fn the_end_of_a_lease_causes_a_call_before_the_next_poll() {
    let mut story = Story::of_three();
    assert_eq!(story.due(), Duration::from_secs(1));
    let mut snapshot = story.snapshot(EPOCH, 3, &[(0, "a", "a1"), (1, "b", "b1")]);
    snapshot.holders[1].expires_at_ms = story.redis_ms() + 300;
    story.pod.handle_snapshot(story.now, story.now, snapshot.clone());
    assert_eq!(story.due(), Duration::from_millis(301));

    snapshot.holders[1].expires_at_ms = story.redis_ms() - 300;
    story.pod.handle_snapshot(story.now, story.now, snapshot);
    assert_eq!(story.due(), Duration::from_secs(1), "a lease that may not be expired yet is no reason to call earlier");
}

#[test]
fn vacant_slots_of_a_view_stay() {
    let mut story = Story::of_three();
    let mut snapshot = story.snapshot(EPOCH, 4, &[(0, "a", "a1")]);
    snapshot.slots = 3;
    story.pod.handle_snapshot(story.now, story.now, snapshot);
    assert_eq!(story.pod.view().slots.len(), 3);
    assert_eq!(story.pods(), "0=a");
    assert_eq!(story.pod.take_notices(), [Notice::ViewChanged]);
}

#[test]
fn an_unchanged_view_stays_the_same_object() {
    let mut story = Story::of_three();
    let before = Arc::clone(story.pod.view());
    story.sees_for(Duration::from_secs(30), EPOCH, 3, &[(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")]);
    assert!(Arc::ptr_eq(&before, story.pod.view()));
    assert!(story.pod.take_notices().is_empty());
}

/// Any event of a pod.
#[derive(Debug, Clone)]
enum AnyEvent {
    Sees { epoch: u64, version: u64, slots: u32, holders: Vec<(u32, usize)> },
    Late,
    Fails,
    HistoryComplete,
    StartsDraining,
    Hears(usize),
    Waits(u64),
}

/// Names and instances: `a1` is the pod itself, `a2` another process of its name.
const KNOWN: [(&str, &str); 4] = [("a", "a1"), ("a", "a2"), ("b", "b1"), ("c", "c1")];

fn any_event() -> impl Strategy<Value = AnyEvent> {
    let holders = prop::collection::vec((0u32..6, 0usize..4), 0..5);
    prop_oneof![
        6 => (0u64..3, 0u64..9, 0u32..8, holders)
            .prop_map(|(epoch, version, slots, holders)| AnyEvent::Sees { epoch, version, slots, holders }),
        1 => Just(AnyEvent::Late),
        2 => Just(AnyEvent::Fails),
        1 => Just(AnyEvent::HistoryComplete),
        1 => Just(AnyEvent::StartsDraining),
        1 => (0usize..4).prop_map(AnyEvent::Hears),
        3 => (0u64..15_000).prop_map(AnyEvent::Waits),
    ]
}

impl Story {
    fn happens(&mut self, event: AnyEvent) {
        match event {
            AnyEvent::Sees { epoch, version, slots, mut holders } => {
                holders.sort_unstable();
                holders.dedup_by_key(|(slot, _)| *slot);
                let holders: Vec<_> =
                    holders.iter().map(|&(slot, index)| (slot, KNOWN[index].0, KNOWN[index].1)).collect();
                let mut snapshot = self.snapshot(epoch, version, &holders);
                snapshot.slots = snapshot.slots.max(slots);
                self.pod.handle_snapshot(self.now, self.now, snapshot);
            }
            AnyEvent::Late => {
                let late = Snapshot { now_ms: self.redis_ms(), late: true, ..Snapshot::default() };
                self.pod.handle_snapshot(self.now, self.now, late);
            }
            AnyEvent::Fails => self.pod.handle_failure(self.now),
            AnyEvent::HistoryComplete => self.pod.handle_history_complete(self.now),
            AnyEvent::StartsDraining => self.pod.handle_drain(self.now),
            AnyEvent::Hears(index) => self.pod.handle_leave(NodeId(KNOWN[index].0.into()), self.now),
            AnyEvent::Waits(ms) => self.now += Duration::from_millis(ms),
        }
    }
}

proptest! {
    #[test]
    fn no_sequence_of_events_makes_a_pod_contradict_itself(events in prop::collection::vec(any_event(), 0..60)) {
        let mut story = Story::begin();
        let (mut complete, mut draining) = (false, false);
        for event in events {
            complete |= matches!(event, AnyEvent::HistoryComplete);
            draining |= matches!(event, AnyEvent::StartsDraining);
            story.happens(event);
            let (pod, call) = (&story.pod, story.call());
            if let Some(own) = pod.own_slot() {
                prop_assert!(complete && !draining);
                prop_assert_eq!(&*pod.view().pod(own).expect("the own slot is in the view").node.0, "a");
                prop_assert_eq!((call.action, call.slot), (Action::Hold, Some(own.0)));
            }
            if call.action == Action::Claim {
                prop_assert!(complete && !draining && pod.own_slot().is_none());
            }
            if draining {
                prop_assert!(matches!(call.action, Action::Leave | Action::Watch));
                prop_assert_eq!(call.action == Action::Watch, pod.has_left());
            }
            if !pod.is_redis_up() && pod.call_at().is_some() {
                prop_assert!(pod.call_at() <= Some(story.now + Duration::from_secs(1)), "Redis is tried each second");
            }
        }
    }
}
