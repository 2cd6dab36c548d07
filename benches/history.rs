//! The history of one shard: appending batches with a full window (so that as much is evicted as is appended), and
//! finding what is due. The floors are copies of the same bytes.
//!
//! Also the time for which a client that resumes in a long window blocks its shard, compared with a client without a
//! cursor.
//!
//! Not measured: the channel from ingest, cache misses on another core, sending, and a window larger than the
//! last-level cache beyond what 64 MiB show.

use std::hint::black_box;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shardgate::ids::{AssessmentHash, AssessmentId, TopicIndex};
use shardgate::routing::table::{RouteTable, Topic};
use shardgate::stream::batch::{Batch, NextOffset, Origin, Record};
use shardgate::stream::cursor::{Encoder, Form, PartitionOffset, Tag, TopicSum};
use shardgate::stream::history::{History, HistoryLimits};

const RECORDS: usize = 256;
const ASSESSMENTS: usize = 1000;
const MANY_ASSESSMENTS: usize = 40 * RECORDS;
const WINDOW_BYTES: usize = 64 << 20;

fn topic() -> Arc<Topic> {
    let table = RouteTable::parse(RouteTable::BUILT_IN).expect("the built-in routes are valid");
    Arc::new(table.resolve(TopicIndex(0), "trading.order-filled").expect("a built-in route matches"))
}

/// An event of about 300 bytes.
fn payload(id: &str, number: usize) -> String {
    let padding = "x".repeat(140);
    format!(
        r#"{{"assessmentId":"{id}","unrealizedPnl":12.5,"realizedPnl":-3.25,"currentBalance":{number},"timestamp":"2026-11-24T05:31:13.123Z","note":"{padding}"}}"#
    )
}

fn batch(first: usize) -> Batch {
    batch_of(first, ASSESSMENTS)
}

fn batch_of(first: usize, assessments: usize) -> Batch {
    let mut batch = Batch::default();
    for number in first..first + RECORDS {
        let id = format!("assessment-{}", number % assessments);
        let id_span = batch.push_bytes(id.as_bytes());
        let payload = batch.push_bytes(payload(&id, number).as_bytes());
        let offset = i64::try_from(number).expect("small");
        let origin = Origin { topic: TopicIndex(0), partition: 0, offset };
        batch.records.push(Record { hash: AssessmentHash::of(&id), origin, id: id_span, payload });
    }
    batch
}

fn copy_of(batch: &Batch) -> Batch {
    Batch { arena: batch.arena.clone(), records: batch.records.clone(), ..Batch::default() }
}

fn full_history() -> History {
    let mut history = History::new(HistoryLimits { bytes_max: WINDOW_BYTES, window: Duration::from_secs(300) });
    let now = Instant::now();
    let starts = vec![NextOffset { topic: TopicIndex(0), partition: 0, offset: 0 }];
    history.append(Batch { topics: vec![topic()], starts, ..Batch::default() }, now);
    let batch = batch(0);
    let mut taken = 0;
    while taken < 2 * WINDOW_BYTES {
        taken += batch.arena.len();
        history.append(copy_of(&batch), now);
    }
    history
}

fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("append 256 records of 300 B");
    group.throughput(Throughput::Elements(RECORDS as u64));
    let template = batch(0);
    let now = Instant::now();
    let mut history = full_history();
    group.bench_function("history, window full", |b| {
        b.iter_batched(|| copy_of(&template), |batch| history.append(batch, now), BatchSize::SmallInput);
    });
    let many: Vec<Batch> =
        (0..MANY_ASSESSMENTS / RECORDS).map(|number| batch_of(number * RECORDS, MANY_ASSESSMENTS)).collect();
    let mut templates = many.iter().cycle();
    for template in &many {
        history.append(copy_of(template), now);
    }
    group.bench_function("history, window full, 10,240 assessments", |b| {
        let next = || copy_of(templates.next().expect("a cycle never ends"));
        b.iter_batched(next, |batch| history.append(batch, now), BatchSize::SmallInput);
    });
    group.bench_function("floor: copy of the bytes", |b| {
        b.iter_batched(|| (), |()| black_box(template.arena.clone()), BatchSize::SmallInput);
    });
    group.finish();
}

fn due(c: &mut Criterion) {
    let mut group = c.benchmark_group("an event of 300 B for one subscriber");
    let now = Instant::now();
    let template = {
        let mut one = batch(0);
        one.records.truncate(1);
        one
    };
    let mut history = full_history();
    let log = history.subscribe(&AssessmentId::parse("assessment-0").expect("a valid id"));
    group.bench_function("append, frame, find its slice, advance", |b| {
        b.iter_batched(
            || copy_of(&template),
            |batch| {
                let position = history.end(log);
                history.append(batch, now);
                let due = history.due(log, position, (usize::MAX, &mut { usize::MAX })).expect("an event is due");
                let mut slices = [IoSlice::new(&[]); 4];
                black_box(history.slices(&due, &mut slices));
                black_box(history.progress(position, &due, due.bytes));
                history.mark_dispatched(log);
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

const LONG: usize = 198_000;
const OTHER_TOPIC: TopicIndex = TopicIndex(1);

/// A window with many events of one assessment on one topic, and none on another topic that is also read.
fn long_history() -> History {
    let mut history = History::new(HistoryLimits { bytes_max: 1 << 30, window: Duration::from_secs(300) });
    let now = Instant::now();
    let table = RouteTable::built_in();
    let other_topic =
        Arc::new(table.resolve(OTHER_TOPIC, "trading.position-opened").expect("a built-in route matches"));
    let start = |topic, offset| NextOffset { topic, partition: 0, offset };
    let starts = vec![start(TopicIndex(0), 0), start(OTHER_TOPIC, 0)];
    history.append(Batch { topics: vec![topic(), other_topic], starts, ..Batch::default() }, now);
    for first in (0..LONG).step_by(RECORDS) {
        let mut batch = batch_of(first, 1);
        batch.starts.push(start(OTHER_TOPIC, i64::try_from(first).expect("small")));
        history.append(batch, now);
    }
    history
}

/// A cursor with all but `missed` events of one topic and nothing of the other.
fn long_cursor(missed: i64) -> String {
    let table = RouteTable::built_in();
    let mut encoder = Encoder::new(Form::Full);
    let events = i64::try_from(LONG.next_multiple_of(RECORDS)).expect("small");
    for (name, next) in [("trading.order-filled", events - missed), ("trading.position-opened", 1)] {
        let topic = table.resolve(TopicIndex(0), name).expect("a built-in route matches").fingerprint;
        assert!(encoder.topic(
            Tag::of(topic),
            TopicSum::of(topic),
            1,
            [PartitionOffset { partition: 0, next, epoch: None }]
        ));
    }
    let mut text = Vec::new();
    encoder.finish(AssessmentHash::of("assessment-0"), TopicSum::default(), &mut text);
    String::from_utf8(text).expect("base64url")
}

/// The shard's work for a handshake: it subscribes, checks the cursor, and makes that of the greeting.
fn enter(history: &mut History, id: &AssessmentId, cursor: Option<&str>) {
    let log = history.subscribe(id);
    let mut text = Vec::new();
    match cursor {
        None => {
            history.write_cursor(log, history.end(log), None, &mut 0, &mut text);
        }
        Some(cursor) => {
            let (mut filter, position) = history.resume(log, cursor, 2048).expect("the window is complete");
            history.write_cursor(log, position, Some(&mut filter), &mut 0, &mut text);
        }
    }
    black_box(text);
    history.unsubscribe(log);
}

fn handshakes(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake");
    let [long, short] = ["assessment-0", "assessment-1"].map(|id| AssessmentId::parse(id).expect("a valid id"));
    let mut history = long_history();
    let cases = [("one event behind", long_cursor(1)), ("nothing missed", long_cursor(0))];
    group.bench_function("without a cursor, an empty window", |b| b.iter(|| enter(&mut history, &short, None)));
    group.bench_function("without a cursor, 198,000 events", |b| b.iter(|| enter(&mut history, &long, None)));
    for (name, cursor) in &cases {
        group.bench_function(format!("with a cursor, 198,000 events, {name}"), |b| {
            b.iter(|| enter(&mut history, &long, Some(cursor)));
        });
    }
    group.sample_size(10).bench_function("the first client with a cursor", |b| {
        b.iter_batched_ref(long_history, |history| enter(history, &long, Some(&cases[0].1)), BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, append, due, handshakes);
criterion_main!(benches);
