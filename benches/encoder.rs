//! From a record's payload to a message: finding its assessment (ingest, once per record) and mapping it (a shard, once
//! per event with a subscriber). The floor is a copy of the same bytes.
//!
//! Not measured: cache misses on another core, and payloads of other shapes than the contract's.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shardgate::ids::TopicIndex;
use shardgate::protocol::messages::text_header;
use shardgate::routing::mapping::{assessment_of, map_open};
use shardgate::routing::table::RouteTable;

/// A topic of each message kind, with an event for it.
const KINDS: [(&str, &str); 6] = [
    ("market-data.btc-ticks", r#"{"price":64123.50,"timestamp":"2026-11-24T05:31:13.123Z","volume":12.5}"#),
    (
        "trading.order-filled",
        r#"{"assessmentId":"assessment-1","orderId":"o-1","unrealizedPnl":12.5,"realizedPnl":-3.25,"currentBalance":100123.75,"timestamp":"2026-11-24T05:31:13.123Z"}"#,
    ),
    (
        "trading.position-closed",
        r#"{"assessmentId":"assessment-1","positionId":"p-1","market":"BTC","side":"long","quantity":0.5,"entryPrice":64000.5,"exitPrice":64123.5,"realizedPnl":61.5,"timestamp":"2026-11-24T05:31:13.123Z"}"#,
    ),
    (
        "assessment.started",
        r#"{"assessmentId":"assessment-1","status":"started","timestamp":"2026-11-24T05:31:13.123Z"}"#,
    ),
    (
        "rules.violation-detected",
        r#"{"assessmentId":"assessment-1","ruleType":"max_loss","value":5.1,"threshold":5,"timestamp":"2026-11-24T05:31:13.123Z"}"#,
    ),
    (
        "rules.drawdown-checked",
        r#"{"assessmentId":"assessment-1","value":3.1,"threshold":5,"status":"ok","timestamp":"2026-11-24T05:31:13.123Z"}"#,
    ),
];

fn encode(c: &mut Criterion) {
    let table = RouteTable::parse(RouteTable::BUILT_IN).expect("the built-in routes are valid");
    for (name, payload) in KINDS {
        let topic = table.resolve(TopicIndex(0), name).expect("a built-in route matches");
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(payload.len() as u64));
        let mut message = Vec::with_capacity(1024);
        group.bench_function("map and frame", |b| {
            b.iter(|| {
                message.clear();
                map_open(&topic, payload.as_bytes(), &mut message).expect("a valid event");
                message.push(b'}');
                black_box(text_header(message.len()));
                black_box(&message);
            });
        });
        if topic.market().is_none() {
            group.bench_function("find the assessment", |b| b.iter(|| black_box(assessment_of(payload.as_bytes()))));
        }
        group.bench_function("floor: copy of the payload", |b| {
            b.iter(|| {
                message.clear();
                message.extend_from_slice(black_box(payload.as_bytes()));
                black_box(&message);
            });
        });
        group.finish();
    }
}

criterion_group!(benches, encode);
criterion_main!(benches);
