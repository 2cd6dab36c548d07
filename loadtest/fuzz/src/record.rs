//! Records from Kafka: their assessments, and their messages for each kind of route.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use shardgate::ids::{AssessmentId, TopicIndex};
use shardgate::limits::BOARD_BYTES_MAX;
use shardgate::routing::mapping::{assessment_of, check_object, map_open};
use shardgate::routing::table::{FieldSource, MessageFields, RouteTable, Topic};
use shardgate::stream::batch::{Batch, Origin, Tick, TickTime};
use shardgate::stream::board::{Board, BoardVersion};

use super::json::fields;

/// One route of each kind.
const ROUTES: &str = r#"
[[route]]
topic = "all.{part}"
scope = "assessment"
assessment = "payload"
type = "listed"
fields = ["assessmentId", "a", { name = "renamed", from = "a" }, { name = "c", const = "x\"\u0007" }, { name = "p", topic = "part" }, "type\"d", "b"]

[[route]]
topic = "whole.{part}"
scope = "assessment"
assessment = "key"
type = "whole"
fields = "*"

[[route]]
topic = "market-data.{market}-ticks"
scope = "market"
type = "market_price"
fields = [{ name = "market", topic = "market" }, "price", "timestamp"]
"#;

static TOPICS: LazyLock<Vec<Arc<Topic>>> = LazyLock::new(|| {
    let table = RouteTable::parse(ROUTES).expect("valid routes");
    let names = ["all.\"quoted\\", "whole.x", "market-data.\u{e9}-ticks"];
    let topic = |(index, name)| Arc::new(table.resolve(TopicIndex(index), name).expect("a route matches"));
    (0..).zip(names).map(topic).collect()
});

/// Parses a payload.
pub fn record(payload: &[u8]) {
    let object = std::str::from_utf8(payload).ok().and_then(fields);
    let id = assessment_of(payload);
    if let Ok(id) = &id {
        assert_eq!(AssessmentId::check(id), Ok(()));
    }
    // A name with half of a surrogate pair is valid for the gateway and an error for the model.
    if let Some(object) = &object {
        let ids: Vec<_> = object.iter().filter(|(name, _)| name == "assessmentId").collect();
        let only = ids.first().filter(|_| ids.len() == 1).and_then(|(_, id)| serde_json::from_str::<String>(id).ok());
        let expected = only.filter(|id| AssessmentId::check(id).is_ok());
        assert_eq!(id.as_deref().ok(), expected.as_deref());
        assert_eq!(check_object(payload), Ok(()));
    }
    for topic in TOPICS.iter() {
        map(topic, payload, object.as_deref());
    }
    if check_object(payload).is_ok() {
        check_board(&TOPICS[2], payload);
    }
}

/// A message is one JSON object with one type, that of the route, and without the payload's cursor.
fn map(topic: &Topic, payload: &[u8], object: Option<&[(String, &str)]>) {
    let mut message = b"before".to_vec();
    let mapped = map_open(topic, payload, &mut message);
    assert!(message.starts_with(b"before"));
    assert_eq!(mapped.is_ok(), check_object(payload).is_ok(), "both apply the same rule for objects");
    if mapped.is_err() {
        return assert_eq!(message, b"before", "an error leaves the output as it was");
    }
    message.push(b'}');
    let text = std::str::from_utf8(&message["before".len()..]).expect("a message is UTF-8");
    let got = fields(text).unwrap_or_else(|| panic!("{text} is not a JSON object"));
    let kind = serde_json::to_string(&topic.route.message_type).expect("a string has a form in JSON");
    assert_eq!(got.first().map(|(name, value)| (&**name, *value)), Some(("type", &*kind)));
    let mut names: Vec<_> = got.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a repeated name: {text}");
    assert!(!names.iter().any(|name| *name == "cursor"));
    if let (MessageFields::Listed(listed), Some(object)) = (&topic.route.fields, object) {
        for field in listed {
            let FieldSource::Payload(from) = &field.source else { continue };
            let last = object.iter().rfind(|(name, _)| **name == **from).map(|(_, value)| *value);
            let shown = got.iter().find(|(name, _)| **name == *field.name).map(|(_, value)| *value);
            assert_eq!(shown, last, "{} is copied byte for byte", field.name);
        }
    }
}

/// A tick is one complete frame that holds the mapped message.
fn check_board(topic: &Arc<Topic>, payload: &[u8]) {
    let now = Instant::now();
    let mut board = Board::new(Duration::from_secs(60), BOARD_BYTES_MAX);
    let mut batch = Batch { topics: vec![Arc::clone(topic)], ..Batch::default() };
    let payload_span = batch.push_bytes(payload);
    let origin = Origin { topic: topic.index, partition: 0, offset: 0 };
    batch.ticks.push(Tick { origin, made: TickTime::UNKNOWN, age_ms: 0, payload: payload_span });
    board.apply(&batch, now);
    board.publish(now);
    let unseen = board.changes_since(BoardVersion::default());
    let mut message = Vec::new();
    map_open(topic, payload, &mut message).expect("an object");
    message.push(b'}');
    assert!(unseen.bytes.ends_with(&message) && unseen.bytes.len() <= message.len() + 10);
    let progress = unseen.progress(unseen.bytes.len());
    assert_eq!((progress.frames, progress.cut_until), (1, None));
    let cut = unseen.progress(unseen.bytes.len() - 1);
    assert_eq!((cut.frames, cut.cut_until), (0, Some(unseen.bytes.len())));
}
