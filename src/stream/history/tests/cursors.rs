//! Cursors of entries and positions, and going on from one.

use super::*;
use crate::ids::TopicIndex;
use crate::limits::STEPS_MAX;
use crate::protocol::messages::ResetReason;
use crate::routing::partitioner::Partitioner;
use crate::routing::table::RouteTable;
use crate::stream::batch::{EpochStart, LogTruncation, NextOffset, Origin};
use crate::stream::cursor::{self, Cursor};
use crate::stream::offsets::ResumeFilter;
use crate::stream::testing::EVENTS;

/// The cursor in a message.
pub(super) fn cursor_in(text: &str) -> &str {
    let (_, rest) = text.split_once(r#""cursor":""#).unwrap_or_else(|| panic!("no cursor: {text}"));
    rest.split_once('"').unwrap().0
}

/// The offsets that a cursor of an assessment lists.
fn listed(text: &str, id: &str) -> Vec<i64> {
    match cursor::decode(text, crate::ids::AssessmentHash::of(id)).unwrap() {
        Cursor::Of(listing) => {
            listing.topics.iter().flat_map(|topic| &topic.offsets).map(|partition_id| partition_id.next).collect()
        }
        Cursor::None => Vec::new(),
    }
}

fn starts(offset: i64) -> Batch {
    Batch { starts: vec![NextOffset { topic: EVENTS, partition: 0, offset }], ..Batch::default() }
}

/// All that is due from a position, in the shared frames.
pub(super) fn due(history: &mut History, log: AssessmentLogKey, position: Position) -> Vec<String> {
    let Some(due) = history.due(log, position, (usize::MAX, &mut { usize::MAX })) else { return Vec::new() };
    let mut slices = [IoSlice::new(&[]); 64];
    let (filled, _) = history.slices(&due, &mut slices);
    texts(&slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>())
}

pub(super) fn numbers(texts: &[String]) -> Vec<u64> {
    texts.iter().map(|text| number(text)).collect()
}

/// All frames that a client with this filter lacks from a position on.
fn catch_up(history: &mut History, log: AssessmentLogKey, from: Position, filter: &mut ResumeFilter) -> CatchUpFrames {
    let mut frames = CatchUpFrames::default();
    history.make_catch_up_frames(log, from, filter, (usize::MAX, &mut { usize::MAX }), &mut frames);
    frames
}

#[test]
fn a_cursor_is_as_of_its_entry_whenever_the_entry_is_framed() {
    let mut history = history(1 << 20);
    let now = Instant::now();
    history.append(starts(0), now);
    let a = history.subscribe(&id("a"));
    let position = history.end(a);
    history.append(events(&[("a", 1), ("b", 2), ("a", 3)]), now);
    history.append(starts(7), now);
    history.append(events(&[("b", 9)]), now);
    let next = |text: &String, id| listed(cursor_in(text), id)[0];
    let early: Vec<_> = due(&mut history, a, position).iter().map(|text| next(text, "a")).collect();
    assert_eq!(early, [2, 4]);
    // It had no subscriber when it came.
    let b = history.subscribe(&id("b"));
    let start = Position { number: 0, at: history.logs[b].first };
    let late: Vec<_> = due(&mut history, b, start).iter().map(|text| next(text, "b")).collect();
    assert_eq!(late, [3, 10]);
    let mut text = Vec::new();
    assert!(history.write_cursor(b, history.after(start), None, &mut 0, &mut text));
    let between = listed(std::str::from_utf8(&text).unwrap(), "b");
    assert_eq!(between, [7], "the position's own, and neither the entry's nor where ingest stands");
}

#[test]
fn a_quiet_assessments_cursor_moves_on_with_what_ingest_reads() {
    let mut history = history(1 << 20);
    let now = Instant::now();
    history.append(starts(0), now);
    let quiet = history.subscribe(&id("quiet"));
    history.append(events(&[("b", 5)]), now);
    history.append(starts(40), now);
    let mut text = Vec::new();
    assert!(history.write_cursor(quiet, history.end(quiet), None, &mut 0, &mut text));
    assert_eq!(listed(std::str::from_utf8(&text).unwrap(), "quiet"), [40]);
}

#[test]
fn a_resumed_client_gets_each_missed_event_once() {
    let mut history = history(1 << 20);
    let now = Instant::now();
    history.append(starts(0), now);
    let a = history.subscribe(&id("a"));
    let position = history.end(a);
    history.append(events(&[("a", 1), ("a", 2), ("a", 3), ("a", 4)]), now);
    let all = due(&mut history, a, position);
    for had in 0..4 {
        let (resume_filter, position) = history.resume(a, cursor_in(&all[had]), STEPS_MAX).unwrap();
        assert!(history.is_caught_up(&resume_filter));
        let rest = due(&mut history, a, position);
        assert_eq!(numbers(&rest), numbers(&all[had + 1..]));
    }
    assert_eq!(history.resume(a, "nonsense", STEPS_MAX).unwrap_err(), ResetReason::Invalid);
    history.evict(now + WINDOW * 2);
    assert_eq!(history.resume(a, cursor_in(&all[0]), STEPS_MAX).unwrap_err(), ResetReason::Expired);
    assert!(history.resume(a, cursor_in(&all[3]), STEPS_MAX).is_ok(), "it has all that left the window");
}

pub(super) const FILLED: TopicIndex = TopicIndex(3);
pub(super) const UPDATED: TopicIndex = TopicIndex(4);

/// A pod that read one partition of each of two topics in this order.
pub(super) fn pod(order: &[(TopicIndex, i64)]) -> (History, AssessmentLogKey) {
    let mut history = history(1 << 20);
    let topics = [(FILLED, "trading.order-filled"), (UPDATED, "assessment.pnl-updated")]
        .map(|(index, name)| Arc::new(RouteTable::built_in().resolve(index, name).unwrap()));
    let starts = [FILLED, UPDATED].map(|topic| NextOffset { topic, partition: 0, offset: 0 });
    history.append(Batch { topics: topics.into(), starts: starts.into(), ..Batch::default() }, Instant::now());
    let a = history.subscribe(&id("a"));
    for &(topic, offset) in order {
        let mut batch = events(&[("a", u64::from(topic.0) * 100 + offset.unsigned_abs())]);
        batch.records[0].origin = Origin { topic, partition: 0, offset };
        history.append(batch, Instant::now());
    }
    (history, a)
}

#[test]
fn where_pods_interleave_differently_entries_that_the_cursor_covers_are_skipped_between_others() {
    let (mut first, a) = pod(&[(FILLED, 0), (FILLED, 1), (UPDATED, 0), (UPDATED, 1)]);
    let order = [(UPDATED, 0), (FILLED, 0), (UPDATED, 1), (FILLED, 1), (UPDATED, 2)];
    let (mut second, b) = pod(&order);
    let had = |text: &String| listed(cursor_in(text), "a").iter().sum::<i64>();
    let start = Position { number: 0, at: first.logs[a].first };
    let seen = due(&mut first, a, start);
    assert_eq!(seen.iter().map(had).collect::<Vec<_>>(), [1, 2, 3, 4]);

    // It has all of the one topic and nothing of the other: what it lacks is the first and the third entry.
    let (mut resume_filter, position) = second.resume(b, cursor_in(&seen[1]), STEPS_MAX).unwrap();
    let catch_up_frames = catch_up(&mut second, b, position, &mut resume_filter);
    assert_eq!(
        texts(&catch_up_frames.bytes).iter().map(had).collect::<Vec<_>>(),
        [3, 4],
        "its own is never taken back"
    );
    assert!(catch_up_frames.passed);
    let (_, after) = *catch_up_frames.frames.last().unwrap();
    let rest = due(&mut second, b, after);
    assert_eq!(rest.iter().map(had).collect::<Vec<_>>(), [5], "what is covered is behind it, also where it comes last");
}

#[test]
fn a_pod_behind_the_cursor_skips_up_to_it() {
    let (mut ahead, mut behind) = (history(1 << 20), history(1 << 20));
    let now = Instant::now();
    let logs = [&mut ahead, &mut behind].map(|history| {
        history.append(starts(0), now);
        history.subscribe(&id("a"))
    });
    ahead.append(events(&[("a", 1), ("a", 2)]), now);
    let start = Position { number: 0, at: ahead.logs[logs[0]].first };
    let seen = due(&mut ahead, logs[0], start);
    let (mut resume_filter, position) = behind.resume(logs[1], cursor_in(&seen[1]), STEPS_MAX).unwrap();
    assert!(!behind.is_caught_up(&resume_filter));
    let mut text = Vec::new();
    assert!(behind.write_cursor(logs[1], position, Some(&mut resume_filter), &mut 0, &mut text));
    assert_eq!(text, cursor_in(&seen[1]).as_bytes());

    behind.append(events(&[("a", 1), ("a", 2), ("a", 3)]), now);
    let catch_up_frames = catch_up(&mut behind, logs[1], position, &mut resume_filter);
    assert!(catch_up_frames.frames.is_empty() && catch_up_frames.passed, "from there on it is like all others");
    assert_eq!(numbers(&due(&mut behind, logs[1], catch_up_frames.from)), [3]);
}

#[test]
fn a_partitioner_of_none_lists_all_partitions_and_where_that_is_too_long_what_it_is_given_says_so() {
    let route =
        "[[route]]\ntopic = \"any\"\nscope = \"assessment\"\ntype = \"t\"\nfields = \"*\"\npartitioner = \"none\"";
    let topic = Arc::new(RouteTable::parse(route).unwrap().resolve(TopicIndex(7), "any").unwrap());
    for (partitions, fits) in [(20, true), (400, false)] {
        let mut history = history(1 << 20);
        let starts =
            (0..partitions).map(|partition| NextOffset { topic: topic.index, partition, offset: 70_000 }).collect();
        history.append(Batch { topics: vec![Arc::clone(&topic)], starts, ..Batch::default() }, Instant::now());
        let a = history.subscribe(&id("a"));
        let position = history.end(a);
        let mut batch = events(&[("a", 1)]);
        batch.records[0].origin = Origin { topic: topic.index, partition: 0, offset: 70_000 };
        history.append(batch, Instant::now());
        let text = due(&mut history, a, position).remove(0);
        let cursor = cursor_in(&text);
        assert_eq!(listed(cursor, "a").len(), if fits { 20 } else { 0 });
        // A client that resumes with the cursor that stands for none gets a reset, on any pod.
        let resumed = history.resume(a, cursor, STEPS_MAX).map(|_| ());
        assert_eq!(resumed, if fits { Ok(()) } else { Err(ResetReason::Expired) });
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
        assert_eq!(history.take_findings().without_cursor, u64::from(!fits));
    }
}

#[test]
fn records_on_a_partition_that_is_not_theirs_are_sent_and_counted_and_no_resume_goes_past_them() {
    let mut history = history(1 << 20);
    let now = Instant::now();
    let starts = (0..3).map(|partition| NextOffset { topic: EVENTS, partition, offset: 0 }).collect();
    history.append(Batch { starts, ..Batch::default() }, now);
    let a = history.subscribe(&id("a"));
    let home = Partitioner::Murmur2.hash("a").unwrap().of(3).cast_signed();
    let position = history.end(a);
    let mut batch = events(&[("a", 1), ("a", 2)]);
    batch.records[0].origin.partition = home;
    batch.records[1].origin.partition = (home + 1) % 3;
    batch.misplaced.push(1);
    history.append(batch, now);
    let seen = due(&mut history, a, position);
    assert_eq!(numbers(&seen), [1, 2]);
    let findings = history.take_findings();
    let found: Vec<_> = findings.of_topics.iter().map(|found| (found.key(), found.records)).collect();
    assert_eq!(found, [((FindingKind::Misplaced, Some(EVENTS)), 1)]);
    assert_eq!(history.resume(a, cursor_in(&seen[0]), STEPS_MAX).unwrap_err(), ResetReason::Misplaced);
    // Also if they had no subscriber when they came.
    history.unsubscribe(a);
    let again = history.subscribe(&id("a"));
    assert_eq!(history.resume(again, cursor_in(&seen[0]), STEPS_MAX).unwrap_err(), ResetReason::Misplaced);
    history.evict(now + WINDOW * 2);
    assert!(history.resume(again, cursor_in(&seen[1]), STEPS_MAX).is_ok(), "they have left the window");
}

/// Where the log goes on that lost its end.
fn truncate(offset: i64) -> Batch {
    let next = NextOffset { topic: EVENTS, partition: 0, offset };
    Batch { truncations: vec![LogTruncation { next, is_below_unknown: false }], starts: vec![next], ..Batch::default() }
}

/// Another leader writes from this offset on.
fn elected(offset: i64, epoch: i32) -> Batch {
    let first = Origin { topic: EVENTS, partition: 0, offset };
    Batch { epochs: vec![EpochStart { first, epoch }], ..Batch::default() }
}

#[test]
fn truncated_events_are_not_resumed_and_their_cursors_expire() {
    let mut history = history(1 << 20);
    let now = Instant::now();
    history.append(starts(1), now);
    history.append(elected(1, 0), now);
    let a = history.subscribe(&id("a"));
    let position = history.end(a);
    history.append(events(&[("a", 1), ("a", 2), ("a", 3), ("a", 4)]), now);
    let old = due(&mut history, a, position);

    // The log ends at 3, and another leader writes 3 anew, as event 30.
    history.append(truncate(3), now);
    let losses: Vec<_> = history.take_losses().iter().map(|loss| loss.end.map(|end| end.from)).collect();
    assert_eq!(losses, [None, Some(3)], "reading began above 0, and the log was cut");
    let mut text = Vec::new();
    assert!(history.write_cursor(a, history.end(a), None, &mut 0, &mut text));
    assert_eq!(listed(std::str::from_utf8(&text).unwrap(), "a"), [3]);
    history.append(elected(3, 1), now);
    let mut anew = events(&[("a", 30), ("a", 40)]);
    anew.records[0].origin.offset = 3;
    anew.records[1].origin.offset = 4;
    history.append(anew, now);

    for lost in [2, 3] {
        assert_eq!(history.resume(a, cursor_in(&old[lost]), STEPS_MAX).unwrap_err(), ResetReason::Expired);
    }
    let rest = |history: &mut History, cursor: &str| {
        let (mut resume_filter, position) = history.resume(a, cursor, STEPS_MAX).unwrap();
        let catch_up_frames = catch_up(history, a, position, &mut resume_filter);
        let mut all = texts(&catch_up_frames.bytes);
        let from = catch_up_frames.frames.last().map_or(catch_up_frames.from, |&(_, after)| after);
        all.extend(due(history, a, from));
        all
    };
    let all = rest(&mut history, cursor_in(&old[0]));
    assert_eq!(numbers(&all), [2, 30, 40], "from before the cut, as on a pod that never read what was lost");
    assert_eq!(numbers(&rest(&mut history, cursor_in(&old[1]))), [30, 40]);
    assert_eq!(numbers(&rest(&mut history, cursor_in(&all[1]))), [40]);
    assert_eq!(numbers(&rest(&mut history, cursor_in(&all[2]))), [0; 0]);
}

#[test]
fn what_a_dropped_topic_has_in_the_window_is_sent_to_nobody_and_who_lacks_it_is_told() {
    let (mut history, a) = pod(&[(FILLED, 0), (UPDATED, 0), (FILLED, 1), (FILLED, 2)]);
    let start = Position { number: 0, at: history.logs[a].first };
    let all = due(&mut history, a, start);
    let cursors: Vec<_> = all.iter().map(|text| cursor_in(text)).collect();
    history.append(Batch { dropped: vec![UPDATED], ..Batch::default() }, Instant::now());
    let after = history.take_unsent();
    assert_eq!(after.iter().map(|(log, after)| (*log, after.number)).collect::<Vec<_>>(), [(a, 2)]);
    assert!(start.is_before(after[0].1) && !history.after(history.after(start)).is_before(after[0].1));
    assert_eq!(numbers(&due(&mut history, a, start)), [300, 301, 302]);
    assert_eq!(history.resume(a, cursors[0], STEPS_MAX).unwrap_err(), ResetReason::Expired);
    let (_, position) = history.resume(a, cursors[1], STEPS_MAX).unwrap();
    assert_eq!(numbers(&due(&mut history, a, position)), [301, 302]);
}

#[test]
fn a_record_becomes_the_message_of_the_route_that_it_was_read_by_whenever_it_is_framed() {
    let (mut history, a) = pod(&[]);
    history.unsubscribe(a);
    let updated = |offset| {
        let mut batch = events(&[("a", offset)]);
        batch.records[0].origin = Origin { topic: UPDATED, partition: 0, offset: offset.cast_signed() };
        batch
    };
    let remap = |kind: &str| {
        let table = RouteTable::BUILT_IN.replace("type = \"pnl_update\"", &format!("type = \"{kind}\""));
        Batch {
            topics: vec![Arc::new(
                RouteTable::parse(&table).unwrap().resolve(UPDATED, "assessment.pnl-updated").unwrap(),
            )],
            ..Batch::default()
        }
    };
    let now = Instant::now();
    for (number, kind) in (0..).zip(["one", "two", "three"]) {
        history.append(updated(number), now);
        history.append(remap(kind), now);
    }
    history.append(updated(3), now);
    let a = history.subscribe(&id("a"));
    let start = Position { number: 0, at: history.logs[a].first };
    let kinds = |texts: &[String]| -> Vec<String> {
        texts.iter().map(|text| text.split('"').nth(3).unwrap().to_owned()).collect()
    };
    let texts = due(&mut history, a, start);
    assert_eq!(kinds(&texts), ["pnl_update", "one", "two", "three"]);
    let (_, position) = history.resume(a, cursor_in(&texts[1]), STEPS_MAX).unwrap();
    assert_eq!(kinds(&due(&mut history, a, position)), ["two", "three"]);
}

/// The topic of an index, and where its one partition begins to be read.
fn met(index: TopicIndex, name: &str, from: i64) -> Batch {
    let topics = vec![Arc::new(RouteTable::built_in().resolve(index, name).unwrap())];
    Batch { topics, starts: vec![NextOffset { topic: index, partition: 0, offset: from }], ..Batch::default() }
}

#[test]
fn a_topic_that_gets_the_index_of_another_has_nothing_of_it() {
    let read = |history: &mut History, topic, offset: i64, now| {
        let mut batch = events(&[("a", u64::from(topic == UPDATED) * 100 + offset.unsigned_abs())]);
        batch.records[0].origin = Origin { topic, partition: 0, offset };
        history.append(batch, now);
    };
    let start = Instant::now();
    let (mut history, a) = pod(&[]);
    read(&mut history, UPDATED, 50, start);
    read(&mut history, FILLED, 0, start);
    let mut text = Vec::new();
    assert!(history.write_cursor(a, history.end(a), None, &mut 0, &mut text));
    let cursor = String::from_utf8(text).unwrap();
    // Its records have left the window, as those of a topic that is long gone have.
    let later = start + WINDOW * 2;
    read(&mut history, FILLED, 1, later);
    let (mut resume_filter, position) = history.resume(a, &cursor, STEPS_MAX).unwrap();
    history.append(met(UPDATED, "assessment.balance-updated", 0), later);
    assert_eq!((history.take_reused(), history.take_losses()), (vec![UPDATED], vec![]));
    resume_filter.forget(UPDATED);
    read(&mut history, UPDATED, 0, later);
    read(&mut history, FILLED, 2, later);

    let all = due(&mut history, a, position);
    let at: Vec<_> = all.iter().map(|text| listed(cursor_in(text), "a")).collect();
    assert_eq!(at, [[2, 51], [2, 1], [3, 1]], "a frame that was made before names the old one by its fingerprint");
    let catch_up_frames = catch_up(&mut history, a, position, &mut resume_filter);
    assert!(catch_up_frames.passed, "the old one is not waited for");
    let (_, position) = history.resume(a, cursor_in(&all[1]), STEPS_MAX).unwrap();
    assert_eq!(due(&mut history, a, position).len(), 1, "and cursors go on");
    assert_eq!(history.offsets.all_next().len(), 2, "its place is the old one's");
}

#[test]
fn a_shard_that_has_records_of_a_topic_whose_index_another_gets_lets_go_of_them() {
    lets_go_of_a_reused_topic(Batch::default());
    // Compaction may have removed records up to an offset that is not read yet: the complete-from offset is above all
    // records.
    let complete_from = vec![NextOffset { topic: UPDATED, partition: 0, offset: 10 }];
    lets_go_of_a_reused_topic(Batch { complete_from, ..Batch::default() });
}

fn lets_go_of_a_reused_topic(before: Batch) {
    let (mut history, a) = pod(&[(FILLED, 0), (UPDATED, 0)]);
    let start = Position { number: 0, at: history.logs[a].first };
    history.append(before, Instant::now());
    history.append(met(UPDATED, "assessment.balance-updated", 0), Instant::now());
    assert_eq!(history.locate(a, &mut { start }), PositionStatus::Lost);
    assert_eq!(history.locate(a, &mut history.end(a)), PositionStatus::Current, "who is up to date notices nothing");
    let mut batch = events(&[("a", 7)]);
    batch.records[0].origin = Origin { topic: UPDATED, partition: 0, offset: 0 };
    let end = history.end(a);
    history.append(batch, Instant::now());
    assert_eq!(due(&mut history, a, end).len(), 1);
}

#[test]
fn several_logs_that_lose_their_ends_at_a_time_lose_no_more_than_one_after_the_other() {
    let order: Vec<_> = (0..40).flat_map(|offset| [(FILLED, offset), (UPDATED, offset)]).collect();
    let truncate = |topic, offset| {
        let next = NextOffset { topic, partition: 0, offset };
        let truncations = vec![LogTruncation { next, is_below_unknown: false }];
        Batch { truncations, starts: vec![next], ..Batch::default() }
    };
    let [(mut at_a_time, a), (mut one_by_one, b)] = [pod(&order), pod(&order)];
    let cuts = [truncate(FILLED, 30), truncate(UPDATED, 5), truncate(FILLED, 20)];
    let mut all = Batch::default();
    for cut in &cuts {
        all.truncations.extend_from_slice(&cut.truncations);
    }
    all.starts.extend([cuts[1].starts[0], cuts[2].starts[0]]);
    at_a_time.append(all, Instant::now());
    for cut in cuts {
        one_by_one.append(cut, Instant::now());
    }
    assert_eq!(at_a_time.take_losses(), one_by_one.take_losses());
    let left = [(&mut at_a_time, a), (&mut one_by_one, b)].map(|(history, log)| {
        let start = Position { number: 0, at: history.logs[log].first };
        due(history, log, start)
    });
    assert_eq!(left[0].len(), 20 + 5);
    assert_eq!(left[0], left[1]);
    let mut text = Vec::new();
    assert!(at_a_time.write_cursor(a, at_a_time.end(a), None, &mut 0, &mut text));
    let mut next = listed(std::str::from_utf8(&text).unwrap(), "a");
    next.sort_unstable();
    assert_eq!(next, [5, 20]);
}
