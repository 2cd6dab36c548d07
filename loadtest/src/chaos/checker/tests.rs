//! Logs with injected violations: the checker must find each, and nothing else.

use super::*;
use crate::chaos::log::{EndCause, Fate};
use crate::chaos::schedule::FaultKind;

const RULES: CheckerRules = CheckerRules { history: Duration::from_secs(60) };

/// The logs of one client that subscribes to assessment 0, and of the events produced for it.
#[derive(Default, Clone)]
struct Story {
    made: Vec<ProducedEvent>,
    entries: Vec<ClientLogEntry>,
    spans: Vec<FaultSpan>,
}

impl Story {
    /// Ten events on each of two topics, one per second, all received as they should be.
    fn good() -> Self {
        let mut story = Self::default();
        story.add(0, ClientFact::Subscribes(0));
        story.add(1, ClientFact::Connecting);
        story.connected(5, false, false);
        for number in 0..10 {
            for topic in [0, 7] {
                story.make(1000 * (number + 1), topic, number, Fate::Produced);
                story.add(1000 * (number + 1) + 3, ClientFact::Event { topic, number });
            }
        }
        story.add(20_000, ClientFact::Done);
        story
    }

    fn make(&mut self, at_ms: u64, topic: u8, number: u64, fate: Fate) {
        self.made.push(ProducedEvent { at_ms, sent_ms: at_ms, assessment: 0, topic, number, fate });
    }

    fn add(&mut self, at_ms: u64, what: ClientFact) {
        self.entries.push(ClientLogEntry { at_ms, client: 0, what });
    }

    fn connected(&mut self, at_ms: u64, sent_cursor: bool, resumed: bool) {
        self.add(at_ms, ClientFact::Connected { node: "pod-0".into(), sent_cursor, resumed });
    }

    /// Index in the log of an event that the client received.
    fn index(&self, topic: u8, number: u64) -> usize {
        self.entries.iter().position(|entry| entry.what == ClientFact::Event { topic, number }).unwrap()
    }

    /// Inserts facts before the entry at `index`, at its time.
    fn insert(&mut self, index: usize, facts: impl IntoIterator<Item = ClientFact>) {
        let at_ms = self.entries[index].at_ms;
        let facts = facts.into_iter().map(|what| ClientLogEntry { at_ms, client: 0, what });
        self.entries.splice(index..index, facts.collect::<Vec<_>>());
    }

    fn check(&self) -> Verdict {
        let made = self.made.iter().map(|made| Ok::<_, std::convert::Infallible>(*made));
        let entries = self.entries.iter().map(|entry| Ok(entry.clone()));
        check(RULES, &self.spans, made, entries).unwrap()
    }
}

/// The counts of violations: lost, duplicated, out of order, missing at the end, unexpected, unexplained resets.
fn counts(verdict: &Verdict) -> [u64; 6] {
    let resets = verdict.unexplained_resets.values().sum();
    [verdict.lost, verdict.duplicated, verdict.out_of_order, verdict.missing_tail, verdict.unexpected, resets]
}

#[test]
fn a_good_log_has_no_violation() {
    let verdict = Story::good().check();
    assert!(!verdict.is_fault(), "{:?}", verdict.violations);
    assert_eq!((verdict.made, verdict.seen, verdict.connections), (20, 20, 1));
    assert!(verdict.recoveries.is_empty());
}

#[test]
fn a_run_without_events_fails() {
    assert!(Story::default().check().is_fault());
}

#[test]
fn a_gap_is_reported_as_lost_with_its_numbers() {
    let mut story = Story::good();
    for number in [4, 5] {
        story.entries.remove(story.index(7, number));
    }
    let verdict = story.check();
    assert_eq!(counts(&verdict), [2, 0, 0, 0, 0, 0]);
    assert!(verdict.is_fault());
    assert!(verdict.violations[0].contains("topic 7: 6 came, 4 to 5 are missing"), "{:?}", verdict.violations);
}

#[test]
fn a_missing_first_event_is_lost() {
    let mut story = Story::good();
    story.entries.remove(story.index(0, 0));
    assert_eq!(counts(&story.check()), [1, 0, 0, 0, 0, 0]);
}

#[test]
fn a_duplicate_is_found_wherever_it_comes() {
    for behind in [3, 9] {
        let mut story = Story::good();
        let index = story.index(0, behind) + 1;
        story.insert(index, [ClientFact::Event { topic: 0, number: 3 }]);
        assert_eq!(counts(&story.check()), [0, 1, 0, 0, 0, 0]);
    }
}

#[test]
fn a_swap_is_out_of_order_and_neither_lost_nor_duplicated() {
    let mut story = Story::good();
    let (first, second) = (story.index(0, 3), story.index(0, 4));
    story.entries.swap(first, second);
    assert_eq!(counts(&story.check()), [0, 0, 1, 0, 0, 0]);
}

#[test]
fn topics_may_interleave_in_any_order() {
    let mut story = Story::good();
    let (first, second) = (story.index(0, 3), story.index(7, 3));
    story.entries.swap(first, second);
    assert!(!story.check().is_fault());
}

#[test]
fn a_missing_tail_is_found_even_if_the_topic_was_never_received() {
    let mut story = Story::good();
    for number in [8, 9] {
        story.entries.remove(story.index(0, number));
    }
    story.make(10_000, 5, 0, Fate::Produced);
    let verdict = story.check();
    assert_eq!(counts(&verdict), [0, 0, 0, 3, 0, 0]);
}

#[test]
fn an_incomplete_client_log_is_found() {
    let mut story = Story::good();
    story.entries.pop();
    assert_eq!(story.check().unfinished, 1);
}

#[test]
fn aborted_events_must_not_be_received_and_events_of_unknown_fate_may() {
    let mut story = Story::good();
    story.make(10_500, 0, 10, Fate::Aborted);
    story.make(10_600, 0, 11, Fate::Unknown);
    story.make(10_700, 0, 12, Fate::Produced);
    let end = story.entries.pop().unwrap();
    story.add(10_800, ClientFact::Event { topic: 0, number: 12 });
    story.entries.push(end);
    assert!(!story.check().is_fault());

    let mut unknown_seen = story.clone();
    let index = unknown_seen.index(0, 12);
    unknown_seen.insert(index, [ClientFact::Event { topic: 0, number: 11 }]);
    assert!(!unknown_seen.check().is_fault());

    for number in [10, 13] {
        let mut ghost = story.clone();
        let index = ghost.index(0, 12);
        ghost.insert(index, [ClientFact::Event { topic: 0, number }]);
        assert_eq!(counts(&ghost.check()), [0, 0, 0, 0, 1, 0]);
    }
}

/// A client that loses its connection after number 3 and misses 4 to 6.
fn returns_with_a_gap(between: impl IntoIterator<Item = ClientFact>) -> Story {
    let mut story = Story::good();
    for topic in [0, 7] {
        for number in 4..7 {
            story.entries.remove(story.index(topic, number));
        }
    }
    let index = story.index(0, 7);
    story.insert(index, between);
    story
}

fn connected(resumed: bool) -> ClientFact {
    ClientFact::Connected { node: "pod-1".into(), sent_cursor: true, resumed }
}

#[test]
fn an_explained_reset_excuses_events_produced_before_it() {
    let away = [
        ClientFact::Disconnected(EndCause::Injected(FaultKind::Away)),
        ClientFact::NotReading(75_000),
        ClientFact::Connecting,
    ];
    let explained =
        returns_with_a_gap(away.clone().into_iter().chain([connected(false), ClientFact::Reset("expired".into())]));
    let verdict = explained.check();
    assert!(!verdict.is_fault(), "{:?}", verdict.violations);
    assert_eq!(verdict.explained_resets["expired"], 1);

    // The same with a reason that absence does not explain.
    let other = returns_with_a_gap(away.into_iter().chain([connected(false), ClientFact::Reset("invalid".into())]));
    assert_eq!(counts(&other.check()), [0, 0, 0, 0, 0, 1]);
}

#[test]
fn a_reset_excuses_what_was_sent_before_it_however_late_the_acknowledgement_and_nothing_that_was_sent_after_it() {
    let lost = |sent_after: bool| {
        let away = [
            ClientFact::Disconnected(EndCause::Injected(FaultKind::Away)),
            ClientFact::NotReading(75_000),
            ClientFact::Connecting,
        ];
        let mut story =
            returns_with_a_gap(away.into_iter().chain([connected(false), ClientFact::Reset("expired".into())]));
        let reset_ms = story.entries[story.index(0, 7)].at_ms;
        for made in story.made.iter_mut().filter(|made| made.topic == 0 && made.number >= 6) {
            made.sent_ms = reset_ms + u64::from(sent_after);
            made.at_ms += 60_000;
        }
        story.check().lost
    };
    assert_eq!((lost(false), lost(true)), (0, 1));
}

#[test]
fn a_reset_without_a_fault_is_unexplained() {
    for absent in [None, Some(ClientFact::NotReading(20_000))] {
        let facts = absent.into_iter().chain([
            ClientFact::Disconnected(EndCause::Aborted),
            ClientFact::Connecting,
            connected(false),
        ]);
        let story = returns_with_a_gap(facts.chain([ClientFact::Reset("expired".into())]));
        let verdict = story.check();
        assert_eq!(counts(&verdict), [0, 0, 0, 0, 0, 1]);
        assert!(verdict.is_fault());
    }
}

#[test]
fn events_produced_after_a_reset_are_required_again() {
    let mut story = Story::good();
    let end = story.entries.pop().unwrap();
    story.add(11_000, ClientFact::NotReading(75_000));
    story.add(11_000, ClientFact::Reset("lagged".into()));
    for number in 10..20 {
        story.make(12_000 + 1000 * (number - 10), 0, number, Fate::Produced);
    }
    story.add(22_000, ClientFact::Event { topic: 0, number: 19 });
    story.entries.push(end);
    assert_eq!(counts(&story.check()), [9, 0, 0, 0, 0, 0]);
}

#[test]
fn a_client_whose_cursor_is_not_accepted_must_get_a_reset() {
    let story =
        returns_with_a_gap([ClientFact::Disconnected(EndCause::Aborted), ClientFact::Connecting, connected(false)]);
    let verdict = story.check();
    assert_eq!((verdict.silent_losses, verdict.lost), (1, 6));

    // A connection aborted right after `connected` could not get its reset.
    let facts = [
        ClientFact::Disconnected(EndCause::Aborted),
        connected(false),
        ClientFact::Disconnected(EndCause::Aborted),
        connected(true),
    ];
    assert_eq!(returns_with_a_gap(facts).check().silent_losses, 0);
}

#[test]
fn a_protocol_violation_is_found() {
    let mut story = Story::good();
    story.insert(5, [ClientFact::Violation("an unknown message".into())]);
    assert!(story.check().is_fault());
}

/// A client that loses its connection at 5.5 s, reconnects at 8.5 s, and has caught up at 9 s.
fn moves(end: EndCause) -> Story {
    let mut story = Story::good();
    let index = story.index(0, 5);
    let late: Vec<ClientLogEntry> = story.entries.drain(index..).collect();
    story.add(5_500, ClientFact::Disconnected(end));
    story.add(5_600, ClientFact::Connecting);
    story.add(5_700, ClientFact::ConnectFailed("refused".into()));
    story.add(8_400, ClientFact::Connecting);
    story.connected(8_500, true, true);
    story.entries.extend(late.into_iter().map(|entry| ClientLogEntry { at_ms: entry.at_ms.max(9_000), ..entry }));
    story
}

#[test]
fn a_recovery_lasts_until_the_client_has_all_events_from_before_it_reconnected() {
    let mut story = moves(EndCause::Aborted);
    story.spans.push(FaultSpan { kind: FaultKind::Kill, target: "pod-0".into(), from_ms: 5_490, to_ms: 12_000 });
    story.spans.push(FaultSpan { kind: FaultKind::Kill, target: "pod-1".into(), from_ms: 100, to_ms: 200 });
    let verdict = story.check();
    assert!(!verdict.is_fault(), "{:?}", verdict.violations);
    let [recovery] = &verdict.recoveries[..] else { panic!("one: {:?}", verdict.recoveries) };
    assert_eq!((recovery.from_ms, recovery.took_ms()), (5_500, Some(3_500)));
    assert_eq!((recovery.cause, recovery.is_alone), (Cause::Fault(FaultKind::Kill), true));

    // While Redis is down, no lease expires: the kill is not the only cause.
    story.spans.push(FaultSpan { kind: FaultKind::RedisPause, target: String::new(), from_ms: 4_000, to_ms: 7_000 });
    assert!(!story.check().recoveries[0].is_alone);
}

#[test]
fn a_recovery_without_a_fault_of_its_pod_has_another_cause() {
    assert_eq!(moves(EndCause::Closed(1012)).check().recoveries[0].cause, Cause::Handover);
    assert_eq!(moves(EndCause::Aborted).check().recoveries[0].cause, Cause::None);
    assert_eq!(moves(EndCause::Injected(FaultKind::Drop)).check().recoveries[0].cause, Cause::Fault(FaultKind::Drop));
    // After an injected absence, recovery starts with the first attempt to reconnect.
    assert_eq!(moves(EndCause::Injected(FaultKind::Away)).check().recoveries[0].from_ms, 5_600);
}

#[test]
fn redirects_are_counted_per_client_and_rolling_restart() {
    let mut story = Story::good();
    for from_ms in [1_000, 6_000] {
        story.spans.push(FaultSpan {
            kind: FaultKind::Rolling,
            target: "pod-0".into(),
            from_ms,
            to_ms: from_ms + 4_000,
        });
    }
    for number in [1, 2, 7] {
        let index = story.index(0, number);
        story.insert(index, [ClientFact::Redirected("pod-1".into())]);
    }
    assert_eq!(story.check().redirects_max, 2);
    story.spans.push(FaultSpan { kind: FaultKind::RedisPause, target: String::new(), from_ms: 0, to_ms: 500 });
    let verdict = story.check();
    assert_eq!((verdict.redirects_max, verdict.redirects_max_without_redis), (0, 2));
}

#[test]
fn the_first_redirect_by_a_pod_chosen_at_random_is_not_counted_for_a_restart() {
    let redirects = |end, failed: bool| {
        let mut story = Story::good();
        story.spans.push(FaultSpan { kind: FaultKind::Rolling, target: "pod-0".into(), from_ms: 1_000, to_ms: 60_000 });
        let index = story.index(0, 2);
        let failed = failed.then(|| ClientFact::ConnectFailed("503".into()));
        let there = || ClientFact::Redirected("pod-1".into());
        let rest = [ClientFact::Connecting, there(), ClientFact::Connecting, there()];
        story.insert(index, [ClientFact::Disconnected(end)].into_iter().chain(failed).chain(rest));
        story.check().redirects_max
    };
    assert_eq!(redirects(EndCause::Injected(FaultKind::Hasty), false), 1, "the second shows that two pods disagree");
    assert_eq!(redirects(EndCause::Closed(1012), false), 2, "the client followed a redirect");
    assert_eq!(redirects(EndCause::Closed(1012), true), 1, "the pod did not answer");
}

#[test]
fn redirects_after_each_injected_disconnect_are_counted_separately() {
    let redirects = |end: EndCause| {
        let mut story = Story::good();
        story.spans.push(FaultSpan { kind: FaultKind::Rolling, target: "pod-0".into(), from_ms: 1_000, to_ms: 60_000 });
        for number in [2, 4] {
            let index = story.index(0, number);
            let there = || ClientFact::Redirected("pod-1".into());
            let way = [
                ClientFact::Disconnected(end),
                ClientFact::Connecting,
                there(),
                ClientFact::Connecting,
                there(),
                ClientFact::Connecting,
                there(),
            ];
            story.insert(index, way.into_iter().chain([ClientFact::Connecting, connected(true)]));
        }
        story.check().redirects_max
    };
    assert_eq!(
        redirects(EndCause::Injected(FaultKind::Hasty)),
        2,
        "each attempt separately, without its first redirect"
    );
    assert_eq!(redirects(EndCause::Closed(1012)), 6, "all redirects of the restart together");
}

#[test]
fn the_first_redirect_to_a_pod_that_returns_from_another_fault_is_not_counted_for_a_restart() {
    let redirects = |spans: &[(FaultKind, &str, u64, u64)]| {
        let mut story = Story::good();
        for &(kind, target, from_ms, to_ms) in spans {
            story.spans.push(FaultSpan { kind, target: target.into(), from_ms, to_ms });
        }
        for (number, to) in [(1, "pod-1"), (2, "pod-1"), (7, "pod-2")] {
            let index = story.index(0, number);
            story.insert(index, [ClientFact::Redirected(to.into())]);
        }
        let verdict = story.check();
        verdict.redirects_max.max(verdict.redirects_max_without_redis)
    };
    let rolling = (FaultKind::Rolling, "pod-0,pod-1,pod-2", 1_000, 60_000);
    let stop = |to_ms| (FaultKind::Stop, "pod-1", 0, to_ms);
    assert_eq!(redirects(&[rolling]), 3);
    assert_eq!(redirects(&[stop(500), rolling]), 2, "only the first redirect, and only to that pod");
    assert_eq!(redirects(&[(FaultKind::Scale, "pod-0,pod-1", 0, 500), rolling]), 2);
    assert_eq!(redirects(&[(FaultKind::Kill, "pod-0", 0, 500), rolling]), 3, "another pod");
}

#[test]
fn a_pod_returns_when_redis_does() {
    let of = |kind, target: &str, from_ms, to_ms| FaultSpan { kind, target: target.into(), from_ms, to_ms };
    let stop = of(FaultKind::Stop, "pod-1", 1_000, 8_000);
    let alone = [stop.clone()];
    assert!(recovery::is_returning("pod-1", 1_000, &alone) && recovery::is_returning("pod-1", 18_000, &alone));
    assert!(!recovery::is_returning("pod-1", 18_001, &alone) && !recovery::is_returning("pod-1", 999, &alone));
    let restarts = [of(FaultKind::Compaction, "pod-1", 1_000, 8_000)];
    assert!(recovery::is_returning("pod-1", 8_010, &restarts), "the pod was restarted while a topic was compacted");
    let without = [stop, of(FaultKind::RedisPause, "", 5_000, 30_000)];
    assert!(recovery::is_returning("pod-1", 40_000, &without) && !recovery::is_returning("pod-1", 40_001, &without));
    assert!(!recovery::is_returning("pod-2", 9_000, &without));
}

#[test]
fn an_event_that_the_log_holds_twice_is_no_duplicate() {
    let mut story = Story::good();
    let index = story.index(7, 5);
    story.insert(index, [ClientFact::Event { topic: 7, number: 3 }]);
    assert_eq!(story.check().duplicated, 1);
    story.make(30_000, 7, 3, Fate::Repeated);
    let verdict = story.check();
    assert!(!verdict.is_fault(), "{verdict:?}");
    assert_eq!((verdict.duplicated, verdict.written_again, verdict.made), (0, 1, 20));
}

#[test]
fn only_an_outage_of_brokers_for_nearly_the_window_explains_an_expired_cursor() {
    let outage = |from_ms, to_ms| FaultSpan { kind: FaultKind::BrokersDown, target: String::new(), from_ms, to_ms };
    assert!(outlasted_window(&[outage(10_000, 60_000)], 72_000, RULES));
    assert!(!outlasted_window(&[outage(50_000, 60_000)], 72_000, RULES), "the outage began within the window");
    assert!(!outlasted_window(&[outage(10_000, 30_000)], 72_000, RULES), "long over");
    let in_turns = [outage(30_000, 50_000), outage(10_000, 30_000), outage(50_000, 60_000)];
    assert!(outlasted_window(&in_turns, 72_000, RULES), "in any order");
    assert!(
        !outlasted_window(&[outage(10_000, 30_000), outage(30_001, 60_000)], 72_000, RULES),
        "the pod read between the outages"
    );
    let other = FaultSpan { kind: FaultKind::Stop, ..outage(10_000, 60_000) };
    assert!(!outlasted_window(&[other], 72_000, RULES), "not the brokers");
}

/// A client that received numbers 4 to 6 of the fragile topic, which were truncated later, and further facts.
fn sees_a_truncation(facts: impl IntoIterator<Item = ClientFact>) -> Story {
    let mut story = Story::default();
    story.add(0, ClientFact::Subscribes(0));
    story.add(1, ClientFact::Connecting);
    story.connected(5, false, false);
    for number in 0..10 {
        let at_ms = 1000 * (number + 1);
        story.make(at_ms, FRAGILE, number, Fate::Produced);
        story.add(at_ms + 3, ClientFact::Event { topic: FRAGILE, number });
    }
    (4..7).for_each(|number| story.make(20_000, FRAGILE, number, Fate::Truncated));
    story.spans.push(FaultSpan { kind: FaultKind::Unclean, target: String::new(), from_ms: 4_500, to_ms: 7_500 });
    story.add(20_000, ClientFact::Done);
    let index = story.index(FRAGILE, 7);
    story.insert(index, facts);
    story
}

#[test]
fn a_client_that_received_truncated_events_must_get_one_reset() {
    let reset = || ClientFact::Reset("expired".into());
    let violations = sees_a_truncation([reset()]).check();
    assert!(!violations.is_fault(), "{:?}", violations.violations);
    assert_eq!((violations.made, violations.truncated, violations.explained_resets["expired"]), (7, 3, 1));

    let without_reset = sees_a_truncation([]).check();
    assert_eq!((without_reset.silent_losses, counts(&without_reset)), (1, [0; 6]));
    assert!(sees_a_truncation([ClientFact::Reset("lagged".into())]).check().is_fault());
    assert_eq!(counts(&sees_a_truncation([reset(), reset()]).check()), [0, 0, 0, 0, 0, 1]);

    let away = sees_a_truncation([ClientFact::NotReading(75_000), reset(), reset()]).check();
    assert_eq!(
        (away.explained_resets["expired"], counts(&away)[5]),
        (2, 0),
        "one for its absence, and one for the truncation"
    );

    let mut long_after = sees_a_truncation([reset()]);
    long_after.spans[0] = FaultSpan { from_ms: 0, to_ms: 1, ..long_after.spans[0].clone() };
    long_after.entries.iter_mut().for_each(|entry| entry.at_ms += 60_000);
    assert_eq!(counts(&long_after.check())[5], 1);
}

#[test]
fn a_reset_excuses_events_produced_before_it_also_behind_truncated_ones() {
    let mut story = sees_a_truncation([ClientFact::Reset("expired".into())]);
    // The truncation is logged long after the reset. The events behind it are not truncated.
    story.entries.retain(|entry| !matches!(entry.what, ClientFact::Event { number: 7, .. }));
    let verdict = story.check();
    assert!(!verdict.is_fault(), "{:?}", verdict.violations);
}

#[test]
fn truncated_events_are_not_required_and_may_come_again_after_a_reset() {
    let mut unseen = sees_a_truncation([]);
    unseen.entries.retain(|entry| !matches!(entry.what, ClientFact::Event { number: 4..7, .. }));
    assert!(!unseen.check().is_fault());

    let again = [ClientFact::Event { topic: FRAGILE, number: 5 }];
    let story = sees_a_truncation([ClientFact::Reset("expired".into())].into_iter().chain(again.clone()));
    // It has received a truncated event since, which no other reset reports.
    let verdict = story.check();
    assert_eq!((verdict.written_again, verdict.duplicated), (1, 0));
    assert_eq!(sees_a_truncation(again).check().duplicated, 1);
}

#[test]
fn compacted_events_are_excused_only_by_a_reset_after_a_long_enough_absence() {
    let compaction =
        |from_ms| FaultSpan { kind: FaultKind::Compaction, target: String::new(), from_ms, to_ms: from_ms };
    // Misses 4 to 6 of the compacted topic, and returns after this time.
    let story = |away_ms: u64, facts: &[ClientFact]| {
        let mut story = Story::good();
        for number in 0..10 {
            story.make(1000 * (number + 1), 8, number, Fate::Produced);
        }
        for number in (0..4).chain(7..10) {
            let index = story.index(7, number) + 1;
            story.insert(index, [ClientFact::Event { topic: 8, number }]);
        }
        let back = story.index(7, 6) + 1;
        story.insert(back, facts.iter().cloned());
        let at_ms = story.entries[back].at_ms - away_ms;
        story.insert(back, [ClientFact::Disconnected(EndCause::Injected(FaultKind::Compaction))]);
        story.entries[back].at_ms = at_ms;
        story.spans.push(compaction(1));
        story.make(19_000, 8, 5, Fate::Compacted);
        story
    };
    let reconnected = |resumed| ClientFact::Connected { node: "pod-1".into(), sent_cursor: true, resumed };
    let expired = || ClientFact::Reset("expired".into());
    let violations = story(7_500, &[reconnected(false), expired()]).check();
    assert!(!violations.is_fault(), "{:?}", violations.violations);
    assert_eq!((violations.compacted, violations.explained_resets["expired"]), (1, 1));
    assert_eq!(counts(&story(7_500, &[reconnected(true)]).check()), [3, 0, 0, 0, 0, 0], "no reset");
    assert_eq!(counts(&story(7_000, &[reconnected(false), expired()]).check())[5], 1, "the absence was too short");
    let mut none = story(7_500, &[reconnected(false), expired()]);
    none.spans.clear();
    assert_eq!(counts(&none.check())[5], 1, "no log is compacted");
}
