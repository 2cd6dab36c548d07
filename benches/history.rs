//! The history of one shard: taking batches in with the window full (so that as much goes as comes), and walking to
//! what is due. Each beside its floor: the copy of the same bytes.
//!
//! Not measured: the hand-over from ingest (the channel, another core's caches), sending, and the cost of a window that
//! doesn't fit in the last-level cache beyond what 64 MiB show.

use std::hint::black_box;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shardgate::ids::{AssessmentHash, AssessmentId, TopicIndex};
use shardgate::routing::table::{Table, Topic};
use shardgate::stream::batch::{Batch, NextOffset, Origin, Record};
use shardgate::stream::history::{History, Limits};

const RECORDS: usize = 256;
const ASSESSMENTS: usize = 1000;
const MANY_ASSESSMENTS: usize = 40 * RECORDS;
const WINDOW_BYTES: usize = 64 << 20;

fn topic() -> Arc<Topic> {
    let table = Table::parse(Table::BUILT_IN).expect("the built-in routes are valid");
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
    let mut history = History::new(Limits { bytes_max: WINDOW_BYTES, window: Duration::from_secs(300) });
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
        let next = || copy_of(templates.next().expect("it goes round"));
        b.iter_batched(next, |batch| history.append(batch, now), BatchSize::SmallInput);
    });
    group.bench_function("floor: copy of the bytes", |b| {
        b.iter_batched(|| (), |()| black_box(template.arena.clone()), BatchSize::SmallInput);
    });
    group.finish();
}

fn due(c: &mut Criterion) {
    let mut group = c.benchmark_group("one watcher's event of 300 B");
    let now = Instant::now();
    let template = {
        let mut one = batch(0);
        one.records.truncate(1);
        one
    };
    let mut history = full_history();
    let chain = history.watch(&AssessmentId::parse("assessment-0").expect("a valid id"));
    group.bench_function("append, frame, find its slice, move on", |b| {
        b.iter_batched(
            || copy_of(&template),
            |batch| {
                let position = history.end(chain);
                history.append(batch, now);
                let due = history.due(chain, position, usize::MAX).expect("an event is due");
                let mut slices = [IoSlice::new(&[]); 4];
                black_box(history.slices(&due, &mut slices));
                black_box(history.progress(position, &due, due.bytes));
                history.dispatched(chain);
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, append, due);
criterion_main!(benches);
