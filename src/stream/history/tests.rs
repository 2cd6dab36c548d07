mod cursors;
mod long_windows;

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::ids::AssessmentId;
use crate::stream::testing::{events, number, texts, topics};

const WINDOW: Duration = Duration::from_secs(300);

fn history(bytes_max: usize) -> History {
    let mut history = History::new(HistoryLimits { bytes_max, window: WINDOW });
    history.append(Batch { topics: topics(), ..Batch::default() }, Instant::now());
    history
}

fn id(name: &str) -> AssessmentId {
    AssessmentId::parse(name).unwrap()
}

/// Reads all that is due from a position on, as a socket that takes everything would.
fn read(history: &mut History, log: AssessmentLogKey, position: &mut Position) -> Vec<u64> {
    let Some(due) = history.due(log, *position, (usize::MAX, &mut { usize::MAX })) else { return Vec::new() };
    let mut slices = [IoSlice::new(&[]); 1024];
    let (filled, bytes) = history.slices(&due, &mut slices);
    assert_eq!(bytes, due.bytes, "1024 slices suffice for these tests");
    let frames: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
    let progress = history.progress(*position, &due, bytes);
    *position = progress.position;
    assert_eq!(texts(&frames).len() as u64, progress.frames);
    texts(&frames).iter().map(|text| number(text)).collect()
}

#[test]
fn a_watcher_gets_its_own_events_in_order_and_nothing_from_before() {
    let mut history = history(1 << 20);
    let now = Instant::now();
    history.append(events(&[("a", 1), ("b", 2)]), now);
    let a = history.subscribe(&id("a"));
    let mut position = history.end(a);
    assert_eq!(history.locate(a, &mut position), PositionStatus::Current);
    history.append(events(&[("a", 3), ("b", 4), ("a", 5)]), now);
    history.append(events(&[("a", 6)]), now);
    assert_eq!(read(&mut history, a, &mut position), [3, 5, 6]);
    assert_eq!(history.locate(a, &mut position), PositionStatus::Current);
}

#[test]
fn events_without_subscribers_are_never_framed() {
    let mut history = history(1 << 20);
    history.append(events(&[("a", 1), ("b", 2)]), Instant::now());
    let framed = |history: &History| history.segments.iter().map(|segment| segment.frames.len()).sum::<usize>();
    let b = history.subscribe(&id("b"));
    assert_eq!(framed(&history), 0);
    let mut from_the_start = Position { number: 0, at: None };
    assert_eq!(read(&mut history, b, &mut from_the_start), [2]);
    let once = framed(&history);
    assert_eq!(read(&mut history, b, &mut Position { number: 0, at: None }), [2]);
    assert_eq!(framed(&history), once, "an entry is framed once");
}

#[test]
fn ids_that_share_a_hash_do_not_share_a_log() {
    let mut history = history(1 << 20);
    let mut batch = events(&[("a", 1), ("b", 2)]);
    batch.records[1].hash = batch.records[0].hash;
    history.append(batch, Instant::now());
    let a = history.subscribe(&id("a"));
    assert_eq!(read(&mut history, a, &mut Position { number: 0, at: None }), [1]);
}

#[test]
fn however_many_ids_share_a_hash_each_has_its_own_log() {
    const IDS: u64 = 300;
    let mut history = history(16 << 20);
    let names: Vec<String> = (0..IDS).map(|number| format!("id-{number}")).collect();
    let batch_of = |numbers: std::ops::Range<u64>| {
        let mut batch = events(
            &numbers.map(|number| (names[usize::try_from(number).unwrap()].as_str(), number)).collect::<Vec<_>>(),
        );
        batch.records.iter_mut().for_each(|record| record.hash = crate::ids::AssessmentHash(7));
        batch
    };
    let now = Instant::now();
    for round in 0..3 {
        history.append(batch_of(0..IDS), now + WINDOW * 2 * round);
        assert_eq!((history.logs.len(), history.index.len()), (300, 300));
        for (number, name) in (0..).zip(&names) {
            let log = history.index.find(&history.logs, crate::ids::AssessmentHash(7), name.as_bytes()).unwrap();
            assert_eq!(read(&mut history, log, &mut Position { number: 0, at: None }), [number]);
        }
        // The first of the hash goes, and the others stay; then all go.
        history.evict(now + WINDOW * 2 * round);
        history.append(batch_of(IDS / 2..IDS), now + WINDOW * 2 * round + WINDOW / 2);
        history.evict(now + WINDOW * 2 * round + WINDOW * 5 / 4);
        assert_eq!((history.logs.len(), history.index.len()), (150, 150));
        history.evict(now + WINDOW * 2 * (round + 1));
        assert_eq!((history.logs.len(), history.index.len()), (0, 0));
    }
}

#[test]
fn a_position_that_the_window_has_overtaken_is_lost() {
    let mut history = history(1 << 20);
    let start = Instant::now();
    let a = history.subscribe(&id("a"));
    let mut position = history.end(a);
    history.append(events(&[("a", 1)]), start);
    assert_eq!(history.locate(a, &mut position), PositionStatus::Behind);
    history.evict(start + WINDOW * 2);
    assert_eq!(history.locate(a, &mut position), PositionStatus::Lost);
    assert_eq!(history.due(a, position, (usize::MAX, &mut { usize::MAX })), None);
    let mut live = history.end(a);
    history.append(events(&[("a", 2)]), start + WINDOW * 2);
    assert_eq!(read(&mut history, a, &mut live), [2], "a quiet client loses nothing by what was evicted");
}

#[test]
fn entries_age_also_at_a_rate_so_low_that_segments_absorb_them() {
    let mut history = history(1 << 20);
    let start = Instant::now();
    for second in 0..1000 {
        history.append(events(&[("a", second)]), start + Duration::from_secs(second));
    }
    let oldest = history.segments.oldest().unwrap().first_arrived;
    let age = (start + Duration::from_secs(999)).saturating_duration_since(oldest);
    assert!(age <= WINDOW + WINDOW / 16, "{age:?}");
}

#[test]
fn a_half_written_frame_is_there_until_the_window_overtakes_it() {
    let mut history = history(1 << 20);
    let now = Instant::now();
    let a = history.subscribe(&id("a"));
    let position = history.end(a);
    history.append(events(&[("a", 1), ("a", 2)]), now);
    let due = history.due(a, position, (usize::MAX, &mut { usize::MAX })).unwrap();
    let first = due.bytes / 2;
    let progress = history.progress(position, &due, first + 3);
    let (frame, sent) = progress.partial.unwrap();
    assert_eq!((progress.frames, sent), (1, 3));
    assert!(progress.position.is_at(history.end(a)), "the position is behind what is half written");
    assert_eq!(history.rest_of_frame(frame, sent).map(<[u8]>::len), Some(first - 3));
    history.evict(now + WINDOW * 2);
    assert_eq!(history.rest_of_frame(frame, sent), None);
}

#[test]
fn a_record_that_can_not_be_mapped_is_passed_over_and_counted_once() {
    let mut history = history(1 << 20);
    let mut batch = events(&[("a", 1), ("a", 2), ("a", 3)]);
    batch.records[1].payload.len -= 1;
    let a = history.subscribe(&id("a"));
    let mut position = history.end(a);
    history.append(batch, Instant::now());
    assert_eq!(read(&mut history, a, &mut position), [1, 3]);
    assert_eq!(history.take_findings().unusable, 1);
    assert_eq!(history.take_findings().unusable, 0);
}

#[test]
fn assessment_logs_are_freed_without_events_and_subscribers() {
    let mut history = history(1 << 20);
    let now = Instant::now();
    let a = history.subscribe(&id("a"));
    history.append(events(&[("a", 1), ("b", 2)]), now);
    history.evict(now + WINDOW * 2);
    assert_eq!(history.logs.len(), 1);
    history.unsubscribe(a);
    assert_eq!((history.logs.len(), history.index.len(), history.bytes()), (0, 0, 0));
}

/// The equation: what a watcher reads is what was appended for its assessment since it came, up to what it has not read
/// when the window overtakes it. Against a model that keeps everything in plain lists.
#[derive(Debug, Clone)]
enum Step {
    Append(Vec<u8>),
    Read(u8),
    Leave(u8),
    Evict,
    Dispatch,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop::collection::vec(0u8..4, 1..40).prop_map(Step::Append),
        4 => (0u8..4).prop_map(Step::Read),
        1 => (0u8..4).prop_map(Step::Leave),
        1 => Just(Step::Evict),
        2 => Just(Step::Dispatch),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #[test]
    fn a_reader_sees_exactly_its_events_whatever_is_evicted(steps in steps(), bytes_max in 4_000usize..40_000) {
        let names = ["a", "b", "c", "d"];
        let mut history = history(bytes_max);
        let mut now = Instant::now();
        let mut next = 0;
        let mut readers: BTreeMap<u8, (AssessmentLogKey, Position)> = BTreeMap::new();
        let mut unread: BTreeMap<u8, VecDeque<u64>> = BTreeMap::new();
        for step in steps {
            now += Duration::from_secs(1);
            match step {
                Step::Append(assessments) => {
                    let numbered: Vec<_> = assessments.iter().map(|&who| { next += 1; (who, next) }).collect();
                    let named: Vec<_> = numbered.iter().map(|&(who, n)| (names[usize::from(who)], n)).collect();
                    history.append(events(&named), now);
                    for (who, number) in numbered {
                        if let Some(unread) = unread.get_mut(&who) { unread.push_back(number); }
                    }
                }
                Step::Read(who) => {
                    let (log, position) = readers.entry(who).or_insert_with(|| {
                        let log = history.subscribe(&id(names[usize::from(who)]));
                        unread.insert(who, VecDeque::new());
                        (log, history.end(log))
                    });
                    let expected = unread.get_mut(&who).unwrap();
                    match history.locate(*log, position) {
                        PositionStatus::Lost => {
                            prop_assert!(!expected.is_empty());
                            expected.clear();
                            *position = history.end(*log);
                        }
                        PositionStatus::Behind | PositionStatus::Current => {
                            let got = read(&mut history, *log, position);
                            prop_assert_eq!(got, expected.drain(..).collect::<Vec<_>>());
                        }
                    }
                }
                Step::Leave(who) => {
                    if let Some((log, _)) = readers.remove(&who) { history.unsubscribe(log); }
                    unread.remove(&who);
                }
                Step::Evict => { now += WINDOW / 3; history.evict(now); }
                Step::Dispatch => {
                    while let Some(log) = history.next_undispatched() {
                        for (watched, position) in readers.values_mut() {
                            if *watched == log { history.locate(log, position); }
                        }
                        history.mark_dispatched(log);
                    }
                }
            }
            prop_assert!(history.segments.numbers().is_empty() || history.bytes() > 0);
        }
        for (log, _) in readers.into_values() { history.unsubscribe(log); }
        history.evict(now + WINDOW * 2);
        prop_assert_eq!((history.bytes(), history.logs.len(), history.index.len()), (0, 0, 0));
    }
}
