//! Batches with numbered events and ticks, for tests.

use std::sync::Arc;

use super::batch::{Batch, Origin, Record, Tick, TickTime};
use crate::ids::{AssessmentHash, TopicIndex};
use crate::routing::table::{RouteTable, Topic};

pub(crate) const EVENTS: TopicIndex = TopicIndex(0);
pub(crate) const BTC: TopicIndex = TopicIndex(1);
pub(crate) const ETH: TopicIndex = TopicIndex(2);

/// One topic of events and two of markets.
pub(crate) fn topics() -> Vec<Arc<Topic>> {
    let table = RouteTable::parse(RouteTable::BUILT_IN).expect("the built-in routes are valid");
    [(EVENTS, "assessment.balance-updated"), (BTC, "market-data.btc-ticks"), (ETH, "market-data.eth-ticks")]
        .map(|(index, name)| Arc::new(table.resolve(index, name).expect("a built-in route matches")))
        .into()
}

/// A batch with one event for each assessment named, numbered as given.
pub(crate) fn events(ids: &[(&str, u64)]) -> Batch {
    let mut batch = Batch::default();
    for &(id, number) in ids {
        push(&mut batch, id, number, &format!(r#"{{"assessmentId":"{id}","currentBalance":{number}}}"#));
    }
    batch
}

/// A batch with one event whose message is about this many bytes larger.
pub(crate) fn large_event(id: &str, number: u64, bytes: usize) -> Batch {
    let fill = "x".repeat(bytes);
    let mut batch = Batch::default();
    push(
        &mut batch,
        id,
        number,
        &format!(r#"{{"assessmentId":"{id}","currentBalance":{number},"timestamp":"{fill}"}}"#),
    );
    batch
}

/// A batch with one record that can't be mapped.
pub(crate) fn malformed(id: &str, number: u64) -> Batch {
    let mut batch = Batch::default();
    push(&mut batch, id, number, "not json");
    batch
}

fn push(batch: &mut Batch, id: &str, number: u64, payload: &str) {
    let id_span = batch.push_bytes(id.as_bytes());
    let payload = batch.push_bytes(payload.as_bytes());
    batch.records.push(Record {
        hash: AssessmentHash::of(id),
        origin: Origin { topic: EVENTS, partition: 0, offset: i64::try_from(number).expect("a small number") },
        id: id_span,
        payload,
    });
}

/// A batch with one tick.
pub(crate) fn tick(topic: TopicIndex, partition: i32, offset: i64, timestamp_ms: i64, price: u64) -> Batch {
    let mut batch = Batch::default();
    let payload = batch.push_bytes(format!(r#"{{"price":{price}}}"#).as_bytes());
    batch.ticks.push(Tick {
        origin: Origin { topic, partition, offset },
        made: TickTime(timestamp_ms),
        age_ms: 0,
        payload,
    });
    batch
}

/// The JSON texts in a run of whole server frames. Control frames are passed over.
pub(crate) fn texts(mut frames: &[u8]) -> Vec<String> {
    let mut texts = Vec::new();
    while let [first, second, rest @ ..] = frames {
        let (len, payload) = match second {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            127 => {
                let len = rest.first_chunk().copied().map_or(0, u64::from_be_bytes);
                (usize::try_from(len).expect("a frame of a test"), &rest[8..])
            }
            &len => (usize::from(len), rest),
        };
        if first & 0x0f == 1 {
            texts.push(String::from_utf8(payload[..len].to_vec()).expect("a text frame is UTF-8"));
        }
        frames = &payload[len..];
    }
    texts
}

/// The number of an event, or the price of a tick, in a message.
pub(crate) fn number(text: &str) -> u64 {
    let message: serde_json::Value = serde_json::from_str(text).expect("a message is JSON");
    message["currentBalance"]
        .as_u64()
        .or(message["price"].as_u64())
        .unwrap_or_else(|| panic!("an event has a number, a tick a price: {text}"))
}
