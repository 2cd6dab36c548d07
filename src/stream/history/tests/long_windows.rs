//! Windows with hundreds of thousands of entries of one assessment: what each turn costs is bounded.

use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;

use super::cursors::{FILLED, UPDATED, pod};
use super::*;
use crate::ids::AssessmentHash;
use crate::limits::STEPS_MAX;
use crate::routing::table::Topic;
use crate::stream::batch::{NextOffset, Origin};
use crate::stream::cursor::{self, Cursor, Encoder, Form, PartitionOffset, Tag, TopicSum};
use crate::stream::offsets::{CursorVerdict, ResumeFilter};
use crate::stream::testing::EVENTS;

/// A pod that read this many events of one assessment on one topic, in batches of some hundred, and on the other
/// topic's partition what is of others.
fn long(count: i64) -> (History, AssessmentLogKey) {
    let (mut history, a) = pod(&[]);
    history.limits.bytes_max = 1 << 30;
    for first in (0..count).step_by(300) {
        let numbers: Vec<_> = (first..count.min(first + 300)).map(|number| ("a", number.unsigned_abs())).collect();
        let mut batch = events(&numbers);
        batch.starts.push(NextOffset { topic: UPDATED, partition: 0, offset: first });
        batch.records.iter_mut().for_each(|record| record.origin.topic = FILLED);
        history.append(batch, Instant::now());
    }
    (history, a)
}

/// The cursor of a client that has so much of the topics' partitions, as anyone can make one.
fn forged(topics: &[(&Topic, &[i64])]) -> String {
    let mut encoder = Encoder::new(Form::Full);
    for (topic, has) in topics {
        let (tag, sum) = (Tag::of(topic.fingerprint), TopicSum::of(topic.fingerprint));
        let partition_ids = (0..).zip(*has).map(|(partition, &next)| PartitionOffset { partition, next, epoch: None });
        assert!(encoder.topic(tag, sum, 1, partition_ids));
    }
    let mut text = Vec::new();
    encoder.finish(AssessmentHash::of("a"), TopicSum::default(), &mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn whatever_a_cursor_holds_a_handshake_and_each_turn_after_it_take_a_bounded_number_of_steps() {
    const COUNT: i64 = 200_000;
    let (mut history, a) = long(COUNT);
    let [filled, updated] = [FILLED, UPDATED].map(|topic| Arc::clone(history.offsets.topic(topic).unwrap()));
    let many: Vec<i64> = std::iter::once(COUNT).chain((0..80).map(|_| i64::from(u16::MAX))).collect();
    let cursors = [
        ("one behind", forged(&[(&updated, &[1]), (&filled, &[COUNT - 1])]), 1),
        ("behind by what is of others", forged(&[(&updated, &[1]), (&filled, &[COUNT])]), 0),
        ("with many unknown partitions", forged(&[(&updated, &[1]), (&filled, &many)]), 0),
    ];
    for (nth, (name, cursor, lacks)) in cursors.into_iter().enumerate() {
        let (mut resume_filter, mut position) = history.resume(a, &cursor, STEPS_MAX).unwrap();
        let (mut turns, mut used) = (0, 0);
        let mut catch_up_frames = CatchUpFrames::default();
        loop {
            let (before, mut steps) = (position.number, STEPS_MAX);
            history.make_catch_up_frames(
                a,
                position,
                &mut resume_filter,
                (usize::MAX, &mut steps),
                &mut catch_up_frames,
            );
            position = catch_up_frames.from;
            (turns, used) = (turns + 1, used + STEPS_MAX - steps);
            if !catch_up_frames.is_unfinished {
                break;
            }
            assert!(position.number > before && turns < 1_000, "{name}: it gets nowhere");
        }
        assert_eq!(position.number, (COUNT - lacks).unsigned_abs(), "{name}");
        // The first one looks at each entry. What it found out is left for the others.
        assert!(used <= if nth == 0 { 210_000 } else { 4_000 }, "{name}: {used} steps");
    }
}

#[test]
fn who_lacks_an_event_that_is_sent_to_nobody_is_told_also_where_that_takes_more_steps_than_a_handshake_has() {
    const COUNT: i64 = 20_000;
    let (mut history, a) = long(COUNT);
    let [filled, updated] = [FILLED, UPDATED].map(|topic| Arc::clone(history.offsets.topic(topic).unwrap()));
    history.unsent_below.insert(a, 15_000);
    for (has, lacks) in [(14_000, true), (16_000, false)] {
        let cursor = forged(&[(&updated, &[1]), (&filled, &[has])]);
        let (mut resume_filter, mut position) = history.resume(a, &cursor, 100).unwrap();
        let mut catch_up_frames = CatchUpFrames::default();
        for _ in 0..100 {
            history.make_catch_up_frames(
                a,
                position,
                &mut resume_filter,
                (1, &mut { STEPS_MAX }),
                &mut catch_up_frames,
            );
            position = catch_up_frames.from;
            if !catch_up_frames.is_unfinished {
                break;
            }
        }
        assert_eq!(catch_up_frames.verdict == CursorVerdict::Lost, lacks, "{has}");
        assert_eq!(history.resume(a, &cursor, usize::MAX).is_err(), lacks, "in one go");
    }
}

#[test]
fn the_steps_of_a_cursor_that_is_made_for_a_position_are_counted() {
    let (mut history, a) = long(1_000);
    let start = Position { number: 0, at: history.logs[a].first };
    let entries = history.segments.oldest().unwrap().entries().len();
    for cost in [entries, 0] {
        let (mut steps, mut text) = (STEPS_MAX, Vec::new());
        assert!(history.write_cursor(a, start, None, &mut steps, &mut text));
        assert_eq!(STEPS_MAX - steps, cost, "the first one prepares the segment for all others");
    }
}

#[test]
fn the_partitions_of_an_assessment_are_listed_without_a_step_along_its_entries() {
    let (mut history, a) = long(1_000);
    history.unsubscribe(a);
    let mut misplaced = events(&[("a", 7)]);
    misplaced.records[0].origin = Origin { topic: FILLED, partition: 1, offset: 7 };
    misplaced.starts.push(NextOffset { topic: FILLED, partition: 1, offset: 7 });
    misplaced.misplaced.push(0);
    history.append(misplaced, Instant::now());
    // Nothing leads from one entry to the next any more.
    for segment in history.segments.iter_mut() {
        (0..segment.entries().len()).for_each(|index| segment.entry_mut(index).unwrap().next = None);
    }
    let a = history.subscribe(&id("a"));
    let listed = history.listed_partitions(a);
    let partition_ids =
        [(FILLED, 0), (FILLED, 1)].map(|(topic, partition)| history.offsets.partition_id(topic, partition).unwrap());
    assert!(partition_ids.iter().all(|&partition_id| listed.contains(&partition_id)));
}

#[test]
fn an_entry_of_a_long_log_is_found_by_its_number_also_when_much_has_left_the_window() {
    let (mut history, a) = long(12_000);
    history.mark_dispatched(a);
    let is_found = |history: &History, number: u64| {
        let mut position = Position { number, at: None };
        let status = history.locate(a, &mut position);
        let entry = position.at.and_then(|at| history.segments.entry(at)).map(|(_, entry)| entry.record.origin.offset);
        status == PositionStatus::Behind && entry == Some(number.cast_signed())
    };
    let mut starts = Vec::new();
    while history.segments.iter().len() > 1 {
        let start = history.logs[a].start;
        starts.push(start);
        assert!((start..12_000).step_by(97).all(|number| is_found(&history, number)));
        history.drop_oldest();
    }
    assert!(starts.len() > 2, "{starts:?}");
    history.drop_oldest();
    history.unsubscribe(a);
    assert_eq!(history.bytes(), 0, "nothing stays counted");
}

proptest! {
    #[test]
    fn in_steps_and_by_blocks_a_client_comes_to_the_same_entry_as_by_looking_at_each(
        order in prop::collection::vec((0..3usize, 1..20i64), 1..200), has in prop::collection::vec(0..2_000i64, 3),
        gone in 0..6usize, steps in 1..700usize,
    ) {
        let mut history = history(1 << 24);
        let starts = (0..3).map(|partition| NextOffset { topic: EVENTS, partition, offset: 0 }).collect();
        history.append(Batch { starts, ..Batch::default() }, Instant::now());
        let a = history.subscribe(&id("a"));
        let mut next = [0i64; 3];
        for (partition, count) in order {
            let mut batch = events(&vec![("a", 0); count.unsigned_abs() as usize]);
            for record in &mut batch.records {
                let offset = &mut next[partition];
                record.origin = Origin { topic: EVENTS, partition: [0, 1, 2][partition], offset: *offset };
                *offset += 1;
            }
            history.append(batch, Instant::now());
        }
        (0..gone).for_each(|_| history.drop_oldest());
        let text = forged(&[(&topics()[0], &has)]);
        let Ok(Cursor::Of(listing)) = cursor::decode(&text, AssessmentHash::of("a")) else { unreachable!() };
        let resume_filter = ResumeFilter::of(&history.offsets, "a", listing).unwrap();
        let AssessmentLog { start, first, .. } = history.logs[a];
        let mut one_by_one = Position { number: start, at: first };
        while one_by_one.at.is_some_and(|at| history.is_covered(at, &resume_filter)) {
            one_by_one = history.after(one_by_one);
        }
        let mut position = Position { number: start, at: first };
        for _ in 0..5_000 {
            position = history.skip(a, position, &resume_filter, &mut steps.clone());
        }
        prop_assert_eq!(position, one_by_one);
    }
}
