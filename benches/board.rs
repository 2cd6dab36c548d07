//! The market board of one shard: applying ticks, publishing the changes, and finding the changes for a connection,
//! once per connection and flush. The floor is a copy of the same bytes.
//!
//! Not measured: the writes to sockets, and the cache misses of a walk over many thousands of connections.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shardgate::ids::TopicIndex;
use shardgate::limits::BOARD_BYTES_MAX;
use shardgate::routing::table::RouteTable;
use shardgate::stream::batch::{Batch, Origin, Tick, TickTime};
use shardgate::stream::board::{Board, BoardVersion};

const MARKETS: u16 = 200;

/// A tick of each market.
fn ticks(offset: i64) -> Batch {
    let mut batch = Batch::default();
    for topic in (0..MARKETS).map(TopicIndex) {
        let payload = batch
            .push_bytes(format!(r#"{{"price":64123.{offset:04},"timestamp":"2026-11-24T05:31:13.123Z"}}"#).as_bytes());
        let origin = Origin { topic, partition: 0, offset };
        batch.ticks.push(Tick { origin, made: TickTime(1_790_000_000_000 + offset), age_ms: 0, payload });
    }
    batch
}

/// A board on which each market has a tick that all connections have received.
fn board(now: Instant) -> Board {
    let table = RouteTable::built_in();
    let name = |number| format!("market-data.market-{number}-ticks");
    let topic = |number| table.resolve(TopicIndex(number), &name(number)).expect("a built-in route matches");
    let topics = (0..MARKETS).map(|number| Arc::new(topic(number))).collect();
    let mut board = Board::new(Duration::from_secs(300), BOARD_BYTES_MAX);
    board.apply(&Batch { topics, ..ticks(0) }, now);
    board.publish(now);
    board
}

fn boards(c: &mut Criterion) {
    let now = Instant::now();
    let mut group = c.benchmark_group("board");
    group.throughput(Throughput::Elements(u64::from(MARKETS)));
    let batches: Vec<_> = (1..1_000).map(ticks).collect();
    let (mut applying, mut next) = (board(now), batches.iter().cycle());
    group.bench_function("apply a tick of each market", |b| {
        b.iter(|| applying.apply(next.next().expect("a cycle never ends"), now));
    });
    let mut offset = 0;
    let mut publishing = board(now);
    group.bench_function("map, frame and publish them", |b| {
        b.iter_batched(
            || {
                offset += 1;
                ticks(offset)
            },
            |batch| {
                publishing.apply(&batch, now);
                publishing.publish(now);
            },
            BatchSize::SmallInput,
        );
    });
    let bytes = vec![7_u8; publishing.changes_since(BoardVersion::default()).bytes.len()];
    let mut copy = bytes.clone();
    group.bench_function("floor: copy of their frames", |b| b.iter(|| copy.copy_from_slice(black_box(&bytes))));
    group.finish();

    let mut group = c.benchmark_group("board, for each connection");
    let before = publishing.image_version();
    publishing.apply(&ticks(offset + 1), now);
    publishing.publish(now);
    group.bench_function("find its changes", |b| b.iter(|| publishing.changes_since(black_box(before)).bytes.len()));
    let unseen = publishing.changes_since(before);
    group.bench_function("progress after a write", |b| b.iter(|| unseen.progress(black_box(unseen.bytes.len()))));
    group.finish();
}

criterion_group!(benches, boards);
criterion_main!(benches);
