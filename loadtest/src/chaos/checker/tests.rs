//! Logs with planted mistakes: each must be found, and nothing else.

use super::*;
use crate::chaos::log::{EndCause, Fate};
use crate::chaos::schedule::FaultKind;

const RULES: CheckerRules = CheckerRules { history: Duration::from_secs(60) };

/// The logs of one client that watches assessment 0, and of what was made for it.
#[derive(Default, Clone)]
struct Story {
    made: Vec<ProducedEvent>,
    entries: Vec<ClientLogEntry>,
    spans: Vec<FaultSpan>,
}

impl Story {
    /// Ten events on each of two topics, at a second each, all seen as they should.
    fn good() -> Self {
        let mut story = Self::default();
        story.add(0, ClientFact::Watches(0));
        story.add(1, ClientFact::Tries);
        story.connected(5, false, false);
        for number in 0..10 {
            for topic in [0, 7] {
                story.make(1000 * (number + 1), topic, number, Fate::ProducedEvent);
                story.add(1000 * (number + 1) + 3, ClientFact::Event { topic, number });
            }
        }
        story.add(20_000, ClientFact::Done);
        story
    }

    fn make(&mut self, at_ms: u64, topic: u8, number: u64, fate: Fate) {
        self.made.push(ProducedEvent { at_ms, assessment: 0, topic, number, fate });
    }

    fn add(&mut self, at_ms: u64, what: ClientFact) {
        self.entries.push(ClientLogEntry { at_ms, client: 0, what });
    }

    fn connected(&mut self, at_ms: u64, asked: bool, resumed: bool) {
        self.add(at_ms, ClientFact::Connected { node: "pod-0".into(), asked, resumed });
    }

    /// Where in the log the client saw an event.
    fn place(&self, topic: u8, number: u64) -> usize {
        self.entries.iter().position(|entry| entry.what == ClientFact::Event { topic, number }).unwrap()
    }

    /// Puts facts before the one at a place, at its time.
    fn insert(&mut self, place: usize, facts: impl IntoIterator<Item = ClientFact>) {
        let at_ms = self.entries[place].at_ms;
        let facts = facts.into_iter().map(|what| ClientLogEntry { at_ms, client: 0, what });
        self.entries.splice(place..place, facts.collect::<Vec<_>>());
    }

    fn check(&self) -> Verdict {
        let made = self.made.iter().map(|made| Ok::<_, std::convert::Infallible>(*made));
        let entries = self.entries.iter().map(|entry| Ok(entry.clone()));
        check(RULES, &self.spans, made, entries).unwrap()
    }
}

/// The counts of what is wrong: lost, doubled, out of order, missing at the end, ghosts, unexplained resets.
fn counts(verdict: &Verdict) -> [u64; 6] {
    let resets = verdict.unexplained_resets.values().sum();
    [verdict.lost, verdict.doubled, verdict.out_of_order, verdict.missing_tail, verdict.ghosts, resets]
}

#[test]
fn a_good_log_is_without_fault() {
    let verdict = Story::good().check();
    assert!(!verdict.is_fault(), "{:?}", verdict.told);
    assert_eq!((verdict.made, verdict.seen, verdict.connections), (20, 20, 1));
    assert!(verdict.recoveries.is_empty());
}

#[test]
fn a_run_in_which_nothing_was_made_proves_nothing() {
    assert!(Story::default().check().is_fault());
}

#[test]
fn a_gap_is_lost_and_told_with_its_numbers() {
    let mut story = Story::good();
    for number in [4, 5] {
        story.entries.remove(story.place(7, number));
    }
    let verdict = story.check();
    assert_eq!(counts(&verdict), [2, 0, 0, 0, 0, 0]);
    assert!(verdict.is_fault());
    assert!(verdict.told[0].contains("topic 7: 6 came, 4 to 5 did not"), "{:?}", verdict.told);
}

#[test]
fn a_first_event_that_never_came_is_lost_too() {
    let mut story = Story::good();
    story.entries.remove(story.place(0, 0));
    assert_eq!(counts(&story.check()), [1, 0, 0, 0, 0, 0]);
}

#[test]
fn a_double_is_found_wherever_it_comes() {
    for behind in [3, 9] {
        let mut story = Story::good();
        let place = story.place(0, behind) + 1;
        story.insert(place, [ClientFact::Event { topic: 0, number: 3 }]);
        assert_eq!(counts(&story.check()), [0, 1, 0, 0, 0, 0]);
    }
}

#[test]
fn a_swap_is_out_of_order_and_neither_lost_nor_doubled() {
    let mut story = Story::good();
    let (first, second) = (story.place(0, 3), story.place(0, 4));
    story.entries.swap(first, second);
    assert_eq!(counts(&story.check()), [0, 0, 1, 0, 0, 0]);
}

#[test]
fn topics_may_interleave_as_they_like() {
    let mut story = Story::good();
    let (first, second) = (story.place(0, 3), story.place(7, 3));
    story.entries.swap(first, second);
    assert!(!story.check().is_fault());
}

#[test]
fn a_missing_tail_is_found_also_of_a_topic_that_was_never_seen() {
    let mut story = Story::good();
    for number in [8, 9] {
        story.entries.remove(story.place(0, number));
    }
    story.make(10_000, 5, 0, Fate::ProducedEvent);
    let verdict = story.check();
    assert_eq!(counts(&verdict), [0, 0, 0, 3, 0, 0]);
}

#[test]
fn a_client_whose_log_breaks_off_is_found() {
    let mut story = Story::good();
    story.entries.pop();
    assert_eq!(story.check().unfinished, 1);
}

#[test]
fn what_was_aborted_may_not_be_seen_and_what_nobody_knows_may() {
    let mut story = Story::good();
    story.make(10_500, 0, 10, Fate::Aborted);
    story.make(10_600, 0, 11, Fate::Unknown);
    story.make(10_700, 0, 12, Fate::ProducedEvent);
    let end = story.entries.pop().unwrap();
    story.add(10_800, ClientFact::Event { topic: 0, number: 12 });
    story.entries.push(end);
    assert!(!story.check().is_fault());

    let mut unknown_seen = story.clone();
    let place = unknown_seen.place(0, 12);
    unknown_seen.insert(place, [ClientFact::Event { topic: 0, number: 11 }]);
    assert!(!unknown_seen.check().is_fault());

    for number in [10, 13] {
        let mut ghost = story.clone();
        let place = ghost.place(0, 12);
        ghost.insert(place, [ClientFact::Event { topic: 0, number }]);
        assert_eq!(counts(&ghost.check()), [0, 0, 0, 0, 1, 0]);
    }
}

/// A client that loses its connection after number 3, and misses 4 to 6.
fn returns_with_a_gap(between: impl IntoIterator<Item = ClientFact>) -> Story {
    let mut story = Story::good();
    for topic in [0, 7] {
        for number in 4..7 {
            story.entries.remove(story.place(topic, number));
        }
    }
    let place = story.place(0, 7);
    story.insert(place, between);
    story
}

fn connected(resumed: bool) -> ClientFact {
    ClientFact::Connected { node: "pod-1".into(), asked: true, resumed }
}

#[test]
fn a_reset_forgives_what_was_made_before_it_where_a_fault_explains_it() {
    let away = [ClientFact::Gone(EndCause::Own(FaultKind::Away)), ClientFact::Absent(75_000), ClientFact::Tries];
    let explained =
        returns_with_a_gap(away.clone().into_iter().chain([connected(false), ClientFact::Reset("expired".into())]));
    let verdict = explained.check();
    assert!(!verdict.is_fault(), "{:?}", verdict.told);
    assert_eq!(verdict.explained_resets["expired"], 1);

    // The same, for a reason that absence does not explain.
    let other = returns_with_a_gap(away.into_iter().chain([connected(false), ClientFact::Reset("invalid".into())]));
    assert_eq!(counts(&other.check()), [0, 0, 0, 0, 0, 1]);
}

#[test]
fn what_others_saw_before_a_reset_was_made_before_it_whenever_its_producer_is_told() {
    let lost = |others_see_it: bool| {
        let away = [ClientFact::Gone(EndCause::Own(FaultKind::Away)), ClientFact::Absent(75_000), ClientFact::Tries];
        let mut story =
            returns_with_a_gap(away.into_iter().chain([connected(false), ClientFact::Reset("expired".into())]));
        // Told only when the reset is long over.
        for made in story.made.iter_mut().filter(|made| made.topic == 0 && made.number >= 6) {
            made.at_ms += 60_000;
        }
        if others_see_it {
            let at_ms = story.entries[story.place(0, 7)].at_ms - 100;
            let place = story.place(0, 7) - 1;
            let events = (0..7).map(|number| ClientFact::Event { topic: 0, number });
            let entries = [ClientFact::Watches(0)].into_iter().chain(events).map(|what| ClientLogEntry {
                at_ms,
                client: 1,
                what,
            });
            story.entries.splice(place..place, entries);
        }
        story.check().lost
    };
    assert_eq!((lost(false), lost(true)), (1, 0));
}

#[test]
fn a_reset_that_no_fault_explains_is_one() {
    for absent in [None, Some(ClientFact::Absent(20_000))] {
        let facts = absent.into_iter().chain([ClientFact::Gone(EndCause::Cut), ClientFact::Tries, connected(false)]);
        let story = returns_with_a_gap(facts.chain([ClientFact::Reset("expired".into())]));
        let verdict = story.check();
        assert_eq!(counts(&verdict), [0, 0, 0, 0, 0, 1]);
        assert!(verdict.is_fault());
    }
}

#[test]
fn what_is_made_after_a_reset_is_owed_again() {
    let mut story = Story::good();
    let end = story.entries.pop().unwrap();
    story.add(11_000, ClientFact::Absent(75_000));
    story.add(11_000, ClientFact::Reset("lagged".into()));
    for number in 10..20 {
        story.make(12_000 + 1000 * (number - 10), 0, number, Fate::ProducedEvent);
    }
    story.add(22_000, ClientFact::Event { topic: 0, number: 19 });
    story.entries.push(end);
    // Those made within the slack after the reset are forgiven: 10 to 14.
    assert_eq!(counts(&story.check()), [4, 0, 0, 0, 0, 0]);
}

#[test]
fn who_gave_a_cursor_and_is_not_resumed_must_be_told_so() {
    let story = returns_with_a_gap([ClientFact::Gone(EndCause::Cut), ClientFact::Tries, connected(false)]);
    let verdict = story.check();
    assert_eq!((verdict.silent_losses, verdict.lost), (1, 6));

    // One that was cut right behind `connected` was not told anything yet.
    let facts = [ClientFact::Gone(EndCause::Cut), connected(false), ClientFact::Gone(EndCause::Cut), connected(true)];
    assert_eq!(returns_with_a_gap(facts).check().silent_losses, 0);
}

#[test]
fn what_no_pod_should_say_is_a_fault() {
    let mut story = Story::good();
    story.insert(5, [ClientFact::Wrong("a message nobody knows".into())]);
    assert!(story.check().is_fault());
}

/// A client that loses its connection at 5.5 s and is back at 8.5 s, and has what it missed at 9 s.
fn moves(end: EndCause) -> Story {
    let mut story = Story::good();
    let place = story.place(0, 5);
    let late: Vec<ClientLogEntry> = story.entries.drain(place..).collect();
    story.add(5_500, ClientFact::Gone(end));
    story.add(5_600, ClientFact::Tries);
    story.add(5_700, ClientFact::Failed("refused".into()));
    story.add(8_400, ClientFact::Tries);
    story.connected(8_500, true, true);
    story.entries.extend(late.into_iter().map(|entry| ClientLogEntry { at_ms: entry.at_ms.max(9_000), ..entry }));
    story
}

#[test]
fn a_recovery_lasts_until_all_is_there_that_was_made_before_the_client_was_connected_again() {
    let mut story = moves(EndCause::Cut);
    story.spans.push(FaultSpan { kind: FaultKind::Kill, target: "pod-0".into(), from_ms: 5_490, to_ms: 12_000 });
    story.spans.push(FaultSpan { kind: FaultKind::Kill, target: "pod-1".into(), from_ms: 100, to_ms: 200 });
    let verdict = story.check();
    assert!(!verdict.is_fault(), "{:?}", verdict.told);
    let [recovery] = &verdict.recoveries[..] else { panic!("one: {:?}", verdict.recoveries) };
    assert_eq!((recovery.from_ms, recovery.took_ms()), (5_500, Some(3_500)));
    assert_eq!((recovery.cause, recovery.is_alone), (Cause::Fault(FaultKind::Kill), true));

    // While Redis is away, no lease runs out: the kill is not alone to blame.
    story.spans.push(FaultSpan { kind: FaultKind::RedisPause, target: String::new(), from_ms: 4_000, to_ms: 7_000 });
    assert!(!story.check().recoveries[0].is_alone);
}

#[test]
fn a_recovery_without_a_fault_of_its_pod_has_another_cause() {
    assert_eq!(moves(EndCause::Closed(1012)).check().recoveries[0].cause, Cause::Handover);
    assert_eq!(moves(EndCause::Cut).check().recoveries[0].cause, Cause::None);
    assert_eq!(moves(EndCause::Own(FaultKind::Drop)).check().recoveries[0].cause, Cause::Fault(FaultKind::Drop));
    // Who was away by its own will is behind from when it tries to return.
    assert_eq!(moves(EndCause::Own(FaultKind::Away)).check().recoveries[0].from_ms, 5_600);
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
        let place = story.place(0, number);
        story.insert(place, [ClientFact::Redirected("pod-1".into())]);
    }
    assert_eq!(story.check().redirects_max, 2);
    story.spans.push(FaultSpan { kind: FaultKind::RedisPause, target: String::new(), from_ms: 0, to_ms: 500 });
    let verdict = story.check();
    assert_eq!((verdict.redirects_max, verdict.redirects_max_without_redis), (0, 2));
}

#[test]
fn a_pod_that_was_called_by_chance_may_send_a_client_on_once_without_its_counting_for_a_restart() {
    let redirects = |end, failed: bool| {
        let mut story = Story::good();
        story.spans.push(FaultSpan { kind: FaultKind::Rolling, target: "pod-0".into(), from_ms: 1_000, to_ms: 60_000 });
        let place = story.place(0, 2);
        let failed = failed.then(|| ClientFact::Failed("503".into()));
        let there = || ClientFact::Redirected("pod-1".into());
        let rest = [ClientFact::Tries, there(), ClientFact::Tries, there()];
        story.insert(place, [ClientFact::Gone(end)].into_iter().chain(failed).chain(rest));
        story.check().redirects_max
    };
    assert_eq!(redirects(EndCause::Own(FaultKind::Hasty), false), 1, "the second is of two pods that disagree");
    assert_eq!(redirects(EndCause::Closed(1012), false), 2, "it went where it was told to go");
    assert_eq!(redirects(EndCause::Closed(1012), true), 1, "where nobody answered");
}

#[test]
fn a_client_that_leaves_by_its_own_will_again_and_again_is_sent_on_again_and_again() {
    let redirects = |end: EndCause| {
        let mut story = Story::good();
        story.spans.push(FaultSpan { kind: FaultKind::Rolling, target: "pod-0".into(), from_ms: 1_000, to_ms: 60_000 });
        for number in [2, 4] {
            let place = story.place(0, number);
            let there = || ClientFact::Redirected("pod-1".into());
            let way = [
                ClientFact::Gone(end),
                ClientFact::Tries,
                there(),
                ClientFact::Tries,
                there(),
                ClientFact::Tries,
                there(),
            ];
            story.insert(place, way.into_iter().chain([ClientFact::Tries, connected(true)]));
        }
        story.check().redirects_max
    };
    assert_eq!(redirects(EndCause::Own(FaultKind::Hasty)), 2, "each way by itself, and not its first");
    assert_eq!(redirects(EndCause::Closed(1012)), 6, "all ways of the restart together");
}

#[test]
fn a_pod_that_comes_back_from_another_fault_may_be_sent_a_client_once_without_its_counting_for_a_restart() {
    let redirects = |spans: &[(FaultKind, &str, u64, u64)]| {
        let mut story = Story::good();
        for &(kind, target, from_ms, to_ms) in spans {
            story.spans.push(FaultSpan { kind, target: target.into(), from_ms, to_ms });
        }
        for (number, to) in [(1, "pod-1"), (2, "pod-1"), (7, "pod-2")] {
            let place = story.place(0, number);
            story.insert(place, [ClientFact::Redirected(to.into())]);
        }
        let verdict = story.check();
        verdict.redirects_max.max(verdict.redirects_max_without_redis)
    };
    let rolling = (FaultKind::Rolling, "pod-0,pod-1,pod-2", 1_000, 60_000);
    let stop = |to_ms| (FaultKind::Stop, "pod-1", 0, to_ms);
    assert_eq!(redirects(&[rolling]), 3);
    assert_eq!(redirects(&[stop(500), rolling]), 2, "once, and not the other pod");
    assert_eq!(redirects(&[(FaultKind::Scale, "pod-0,pod-1", 0, 500), rolling]), 2);
    assert_eq!(redirects(&[(FaultKind::Kill, "pod-0", 0, 500), rolling]), 3, "another pod");
}

#[test]
fn a_pod_comes_back_when_redis_does() {
    let of = |kind, target: &str, from_ms, to_ms| FaultSpan { kind, target: target.into(), from_ms, to_ms };
    let stop = of(FaultKind::Stop, "pod-1", 1_000, 8_000);
    let alone = [stop.clone()];
    assert!(recovery::comes_back("pod-1", 1_000, &alone) && recovery::comes_back("pod-1", 18_000, &alone));
    assert!(!recovery::comes_back("pod-1", 18_001, &alone) && !recovery::comes_back("pod-1", 999, &alone));
    let without = [stop, of(FaultKind::RedisPause, "", 5_000, 30_000)];
    assert!(recovery::comes_back("pod-1", 40_000, &without) && !recovery::comes_back("pod-1", 40_001, &without));
    assert!(!recovery::comes_back("pod-2", 9_000, &without));
}

#[test]
fn what_its_producer_wrote_again_comes_again_and_is_no_double() {
    let mut story = Story::good();
    let place = story.place(7, 5);
    story.insert(place, [ClientFact::Event { topic: 7, number: 3 }]);
    assert_eq!(story.check().doubled, 1);
    story.make(30_000, 7, 3, Fate::Again);
    let verdict = story.check();
    assert!(!verdict.is_fault(), "{verdict:?}");
    assert_eq!((verdict.doubled, verdict.written_again, verdict.made), (0, 1, 20));
}

#[test]
fn brokers_that_were_away_for_nearly_the_window_explain_a_cursor_that_is_too_old_and_others_do_not() {
    let outage = |from_ms, to_ms| FaultSpan { kind: FaultKind::BrokersDown, target: String::new(), from_ms, to_ms };
    assert!(were_cut_off(&[outage(10_000, 60_000)], 72_000, RULES));
    assert!(!were_cut_off(&[outage(50_000, 60_000)], 72_000, RULES), "read on in time");
    assert!(!were_cut_off(&[outage(10_000, 30_000)], 72_000, RULES), "long over");
    let in_turns = [outage(30_000, 50_000), outage(10_000, 30_000), outage(50_000, 60_000)];
    assert!(were_cut_off(&in_turns, 72_000, RULES), "whatever the order in which they were told");
    assert!(!were_cut_off(&[outage(10_000, 30_000), outage(30_001, 60_000)], 72_000, RULES), "read meanwhile");
    let other = FaultSpan { kind: FaultKind::Stop, ..outage(10_000, 60_000) };
    assert!(!were_cut_off(&[other], 72_000, RULES), "not the brokers");
}

/// A client that saw numbers 4 to 6 of the topic that may lose its end, which its log then lost; and what else it saw.
fn sees_a_log_lose_its_end(facts: impl IntoIterator<Item = ClientFact>) -> Story {
    let mut story = Story::default();
    story.add(0, ClientFact::Watches(0));
    story.add(1, ClientFact::Tries);
    story.connected(5, false, false);
    for number in 0..10 {
        let at_ms = 1000 * (number + 1);
        story.make(at_ms, FRAGILE, number, Fate::ProducedEvent);
        story.add(at_ms + 3, ClientFact::Event { topic: FRAGILE, number });
    }
    (4..7).for_each(|number| story.make(20_000, FRAGILE, number, Fate::Truncated));
    story.spans.push(FaultSpan { kind: FaultKind::Unclean, target: String::new(), from_ms: 4_500, to_ms: 7_500 });
    story.add(20_000, ClientFact::Done);
    let place = story.place(FRAGILE, 7);
    story.insert(place, facts);
    story
}

#[test]
fn who_saw_what_a_log_lost_must_be_told_and_a_reset_is_explained_by_it_once() {
    let reset = || ClientFact::Reset("expired".into());
    let told = sees_a_log_lose_its_end([reset()]).check();
    assert!(!told.is_fault(), "{:?}", told.told);
    assert_eq!((told.made, told.truncated, told.explained_resets["expired"]), (7, 3, 1));

    let untold = sees_a_log_lose_its_end([]).check();
    assert_eq!((untold.silent_losses, counts(&untold)), (1, [0; 6]));
    assert!(sees_a_log_lose_its_end([ClientFact::Reset("lagged".into())]).check().is_fault());
    assert_eq!(counts(&sees_a_log_lose_its_end([reset(), reset()]).check()), [0, 0, 0, 0, 0, 1]);

    let away = sees_a_log_lose_its_end([ClientFact::Absent(75_000), reset(), reset()]).check();
    assert_eq!(
        (away.explained_resets["expired"], counts(&away)[5]),
        (2, 0),
        "one for its absence, and one for the log"
    );

    let mut long_after = sees_a_log_lose_its_end([reset()]);
    long_after.spans[0] = FaultSpan { from_ms: 0, to_ms: 1, ..long_after.spans[0].clone() };
    long_after.entries.iter_mut().for_each(|entry| entry.at_ms += 60_000);
    assert_eq!(counts(&long_after.check())[5], 1);
}

#[test]
fn a_reset_forgives_what_was_made_before_it_also_behind_what_the_log_lost() {
    let mut story = sees_a_log_lose_its_end([ClientFact::Reset("expired".into())]);
    // What is lost turns out long after the reset, and what followed it is not lost.
    story.entries.retain(|entry| !matches!(entry.what, ClientFact::Event { number: 7.., .. }));
    let verdict = story.check();
    assert!(!verdict.is_fault(), "{:?}", verdict.told);
}

#[test]
fn nobody_is_owed_what_a_log_lost_and_after_the_reset_it_may_come_again() {
    let mut unseen = sees_a_log_lose_its_end([]);
    unseen.entries.retain(|entry| !matches!(entry.what, ClientFact::Event { number: 4..7, .. }));
    assert!(!unseen.check().is_fault());

    let again = [ClientFact::Event { topic: FRAGILE, number: 5 }];
    let story = sees_a_log_lose_its_end([ClientFact::Reset("expired".into())].into_iter().chain(again.clone()));
    // It has seen a truncated one since, of which it is told by no other reset.
    let verdict = story.check();
    assert_eq!((verdict.written_again, verdict.doubled), (1, 0));
    assert_eq!(sees_a_log_lose_its_end(again).check().doubled, 1);
}

#[test]
fn what_compaction_took_is_forgiven_behind_a_reset_alone_and_to_those_who_were_away_for_long_enough() {
    let compaction =
        |from_ms| FaultSpan { kind: FaultKind::Compaction, target: String::new(), from_ms, to_ms: from_ms };
    // Lacks 4 to 6 of the compacted topic, and comes back after this time.
    let story = |away_ms: u64, facts: &[ClientFact]| {
        let mut story = Story::good();
        for number in 0..10 {
            story.make(1000 * (number + 1), 8, number, Fate::ProducedEvent);
        }
        for number in (0..4).chain(7..10) {
            let place = story.place(7, number) + 1;
            story.insert(place, [ClientFact::Event { topic: 8, number }]);
        }
        let back = story.place(7, 6) + 1;
        story.insert(back, facts.iter().cloned());
        let at_ms = story.entries[back].at_ms - away_ms;
        story.insert(back, [ClientFact::Gone(EndCause::Own(FaultKind::Compaction))]);
        story.entries[back].at_ms = at_ms;
        story.spans.push(compaction(1));
        story.make(19_000, 8, 5, Fate::Compacted);
        story
    };
    let is_back = |resumed| ClientFact::Connected { node: "pod-1".into(), asked: true, resumed };
    let expired = || ClientFact::Reset("expired".into());
    let told = story(7_500, &[is_back(false), expired()]).check();
    assert!(!told.is_fault(), "{:?}", told.told);
    assert_eq!((told.compacted, told.explained_resets["expired"]), (1, 1));
    assert_eq!(counts(&story(7_500, &[is_back(true)]).check()), [3, 0, 0, 0, 0, 0], "not told");
    assert_eq!(counts(&story(7_000, &[is_back(false), expired()]).check())[5], 1, "it was there just before");
    let mut none = story(7_500, &[is_back(false), expired()]);
    none.spans.clear();
    assert_eq!(counts(&none.check())[5], 1, "no log is compacted");
}
