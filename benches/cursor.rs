//! Cursors over the ten assessment topics of the built-in routes: made once per event, whatever the number of clients;
//! parsed and checked once per resuming client. The floor is the base64url of as many bytes.
//!
//! Not measured: looking up older offsets for an entry that is framed late, and the cache misses of a shard with many
//! thousands of assessments, each with its own list of partitions.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use criterion::{Criterion, criterion_group, criterion_main};
use shardgate::ids::{AssessmentHash, TopicIndex};
use shardgate::routing::table::RouteTable;
use shardgate::stream::batch::{EpochStart, NextOffset, Origin};
use shardgate::stream::cursor;
use shardgate::stream::offsets::Offsets;

const PARTITIONS: i32 = 6;
const ID: &str = "assessment-4711";

const TOPICS: [&str; 10] = [
    "trading.order-filled",
    "trading.position-opened",
    "trading.position-closed",
    "assessment.balance-updated",
    "assessment.pnl-updated",
    "assessment.created",
    "assessment.started",
    "assessment.completed",
    "rules.violation-detected",
    "rules.drawdown-checked",
];

/// Offsets of a shard that has read millions of records of each partition.
fn offsets() -> Offsets {
    let table = RouteTable::built_in();
    let mut offsets = Offsets::default();
    let mut starts = Vec::new();
    for (index, name) in (0..).map(TopicIndex).zip(TOPICS) {
        offsets.add_topics(&[Arc::new(table.resolve(index, name).expect("a built-in route matches"))]);
        let start =
            |partition| NextOffset { topic: index, partition, offset: 3_000_000 + i64::from(partition) * 77_777 };
        starts.extend((0..PARTITIONS).map(start));
    }
    offsets.apply_next_offsets(&starts, || None, Instant::now(), &mut Vec::new(), &mut Vec::new());
    for &NextOffset { topic, partition, offset } in &starts {
        // Leaders change topic by topic.
        let first = Origin { topic, partition, offset: offset - 1 };
        offsets.epoch_starts(&EpochStart { first, epoch: i32::from(topic.0) });
    }
    offsets
}

fn cursors(c: &mut Criterion) {
    let offsets = offsets();
    let listed = offsets.list_partitions(ID, []);
    let hash = AssessmentHash::of(ID);
    let make = |out: &mut Vec<u8>| offsets.write_cursor(hash, &listed, |partition| offsets.next(partition), out);
    let mut made = Vec::new();
    assert!(make(&mut made), "ten topics fit");
    let text = String::from_utf8(made.clone()).expect("base64url");
    let read = || cursor::decode(&text, hash).expect("just made");
    let filter = offsets.judge(read(), ID, &listed, |_| None).expect("nothing was evicted");

    let mut group = c.benchmark_group("cursor");
    let mut out = Vec::with_capacity(2 * made.len());
    group.bench_function("make", |b| {
        b.iter(|| {
            out.clear();
            make(black_box(&mut out))
        });
    });
    group.bench_function("make for a client that is catching up", |b| {
        b.iter(|| {
            out.clear();
            filter.write_cursor(&offsets, hash, &listed, |partition| offsets.next(partition), black_box(&mut out))
        });
    });
    group.bench_function("parse", |b| b.iter(|| cursor::decode(black_box(&text), hash)));
    group.bench_function("parse and check", |b| b.iter(|| offsets.judge(black_box(read()), ID, &listed, |_| None)));
    let raw = BASE64_URL_SAFE_NO_PAD.decode(&text).expect("base64url");
    let mut encoded = vec![0; made.len()];
    group.bench_function("floor: base64url", |b| {
        b.iter(|| BASE64_URL_SAFE_NO_PAD.encode_slice(black_box(&raw), &mut encoded));
    });
    group.finish();
}

criterion_group!(benches, cursors);
criterion_main!(benches);
