//! Cursors: made, parsed, damaged and resumed from.

use std::sync::Arc;
use std::time::Instant;

use shardgate::ids::{AssessmentHash, TopicIndex};
use shardgate::limits::CURSOR_CHARS_MAX;
use shardgate::routing::table::RouteTable;
use shardgate::stream::batch::NextOffset;
use shardgate::stream::cursor::decode;
use shardgate::stream::offsets::Offsets;

const ID: &str = "a";

/// Parses the bytes as a cursor. Also takes them as the offsets of a shard, makes its cursor, and damages it.
pub fn cursor(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(read) = decode(text, AssessmentHash::of(ID))
    {
        judge(read);
    }
    let [damage_at, damage, plan @ ..] = data else { return };
    let offsets = offsets(plan);
    let listed = offsets.list_partitions(ID, []);
    let mut made = Vec::new();
    let fits = offsets.write_cursor(AssessmentHash::of(ID), &listed, |partition| offsets.next(partition), &mut made);
    let text = String::from_utf8(made).expect("a cursor is text");
    assert!(text.len() <= CURSOR_CHARS_MAX);
    let read = decode(&text, AssessmentHash::of(ID)).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(offsets.judge(read, ID, &listed, |_| None).is_ok(), fits, "a current cursor is valid");
    assert!(decode(&text, AssessmentHash::of("b")).is_err(), "another assessment's");
    let mut damaged = text.clone().into_bytes();
    let at = usize::from(*damage_at) % damaged.len();
    damaged[at] ^= damage & 0x7f;
    if let Ok(other) = std::str::from_utf8(&damaged)
        && other != text
    {
        assert!(decode(other, AssessmentHash::of(ID)).is_err(), "{other} was {text}");
    }
}

/// Offsets of a shard as given by `plan`.
fn offsets(plan: &[u8]) -> Offsets {
    const TOPICS: [&str; 4] =
        ["trading.order-filled", "assessment.created", "assessment.started", "rules.drawdown-checked"];
    let table = RouteTable::built_in();
    let mut offsets = Offsets::default();
    let mut starts = Vec::new();
    for (index, (name, plan)) in (0..).zip(TOPICS.into_iter().zip(plan.chunks(9))) {
        let topic = TopicIndex(index);
        offsets.add_topics(&[Arc::new(table.resolve(topic, name).expect("a built-in route matches"))]);
        let [partitions, offset @ ..] = plan else { continue };
        let offset = offset.iter().fold(0_i64, |offset, byte| offset << 8 | i64::from(*byte)).max(0);
        starts.extend((0..=i32::from(partitions % 8)).map(|partition| NextOffset { topic, partition, offset }));
    }
    offsets.apply_next_offsets(&starts, || None, Instant::now(), &mut Vec::new(), &mut Vec::new());
    offsets
}

/// Any valid cursor can be checked without a panic.
fn judge(read: shardgate::stream::cursor::Cursor) {
    let offsets = offsets(&[3, 0, 0, 0, 0, 0, 0, 1, 0, 3, 0, 0, 0, 0, 0, 0, 1, 0]);
    drop(offsets.judge(read, ID, &offsets.list_partitions(ID, []), |_| None));
}
