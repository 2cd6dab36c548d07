//! Numbered events on the built-in routes' topics with the messages of PROTOCOL 3, specified independently of the
//! gateway's code. It also owns the producer.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message as _};

use crate::client::{Client, Message};
use crate::kafka::client_config;
use crate::process::eventually;

/// Markets that get ticks in tests.
pub const MARKETS: [&str; 5] = ["btc-usd", "eth-usd", "eur-usd", "gold", "spx500"];

/// The timestamp of number 0.
pub const FIRST_TIMESTAMP: u64 = 1_790_000_000_000;

/// Time limit for the delivery of records to the brokers.
const DELIVERED_WITHIN: Duration = Duration::from_secs(60);

// ---- events and their messages --------------------------------------------------------------------------------------

/// A record, and the message that its subscribers must receive.
#[derive(Debug, Clone)]
pub struct Event {
    /// The topic.
    pub topic: String,
    /// The record's key: the assessment, or the market.
    pub key: String,
    /// The record's value.
    pub payload: String,
    /// The expected message.
    pub expected: ExpectedMessage,
}

/// A message's type and its fields in order, each value with its original bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedMessage {
    /// The message's `type`.
    pub kind: String,
    /// All other fields except `cursor`.
    pub fields: Vec<(String, String)>,
}

impl From<&Message> for ExpectedMessage {
    fn from(message: &Message) -> Self {
        Self { kind: message.kind.clone(), fields: message.fields() }
    }
}

/// The events of assessments, in the order of PROTOCOL 3's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `trading.order-filled`.
    OrderFilled,
    /// `trading.position-opened`.
    PositionOpened,
    /// `trading.position-closed`.
    PositionClosed,
    /// `assessment.balance-updated`.
    BalanceUpdated,
    /// `assessment.pnl-updated`.
    PnlUpdated,
    /// `assessment.created`.
    Created,
    /// `assessment.started`.
    Started,
    /// `assessment.completed`.
    Completed,
    /// `rules.violation-detected`.
    ViolationDetected,
    /// `rules.drawdown-checked`.
    DrawdownChecked,
}

/// Source of a message's field.
enum FieldOrigin {
    /// The payload's field of the same name.
    Same,
    /// The payload's field of another name.
    Other(&'static str),
    /// A constant of the route, as JSON.
    Route(&'static str),
}
use FieldOrigin::{Other, Route, Same};

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::OrderFilled,
        Self::PositionOpened,
        Self::PositionClosed,
        Self::BalanceUpdated,
        Self::PnlUpdated,
        Self::Created,
        Self::Started,
        Self::Completed,
        Self::ViolationDetected,
        Self::DrawdownChecked,
    ];

    /// Its topic.
    #[must_use]
    pub fn topic(self) -> &'static str {
        self.contract().0
    }

    /// The topic, the message's type, and its fields after `assessmentId`.
    fn contract(self) -> (&'static str, &'static str, &'static [(&'static str, FieldOrigin)]) {
        match self {
            Self::OrderFilled => (
                "trading.order-filled",
                "pnl_update",
                &[("unrealizedPnl", Same), ("realizedPnl", Same), ("currentBalance", Same), ("timestamp", Same)],
            ),
            Self::PositionOpened => (
                "trading.position-opened",
                "position_update",
                &[
                    ("positionId", Same),
                    ("market", Same),
                    ("side", Same),
                    ("quantity", Same),
                    ("entryPrice", Same),
                    ("unrealizedPnl", Route("0")),
                    ("timestamp", Same),
                ],
            ),
            Self::PositionClosed => (
                "trading.position-closed",
                "position_update",
                &[
                    ("positionId", Same),
                    ("market", Same),
                    ("side", Same),
                    ("quantity", Same),
                    ("entryPrice", Same),
                    ("exitPrice", Same),
                    ("realizedPnl", Same),
                    ("timestamp", Same),
                ],
            ),
            Self::BalanceUpdated => {
                ("assessment.balance-updated", "pnl_update", &[("currentBalance", Same), ("timestamp", Same)])
            }
            Self::PnlUpdated => (
                "assessment.pnl-updated",
                "pnl_update",
                &[("unrealizedPnl", Same), ("realizedPnl", Same), ("timestamp", Same)],
            ),
            Self::Created => ("assessment.created", "assessment_update", &[("status", Same), ("timestamp", Same)]),
            Self::Started => ("assessment.started", "assessment_update", &[("status", Same), ("timestamp", Same)]),
            Self::Completed => ("assessment.completed", "assessment_update", &[("status", Same), ("timestamp", Same)]),
            Self::ViolationDetected => (
                "rules.violation-detected",
                "violation",
                &[("rule", Other("ruleType")), ("value", Same), ("threshold", Same), ("timestamp", Same)],
            ),
            Self::DrawdownChecked => (
                "rules.drawdown-checked",
                "rule_status",
                &[
                    ("rule", Route(r#""drawdown""#)),
                    ("value", Same),
                    ("threshold", Same),
                    ("status", Same),
                    ("timestamp", Same),
                ],
            ),
        }
    }

    /// The event of this kind and number for an assessment. Compared with the message, the payload has its fields in
    /// another order, additional fields, and its own `type` and `cursor`.
    ///
    /// # Panics
    /// Never: a string is always JSON.
    #[must_use]
    pub fn event(self, assessment: &str, number: u64) -> Event {
        let (topic, kind, fields) = self.contract();
        let id = serde_json::to_string(assessment).expect("a string is JSON");
        let mut payload = vec![r#""type":"from the payload""#.to_owned(), r#""cursor":"from the payload""#.to_owned()];
        let mut message_fields = vec![("assessmentId".to_owned(), id.clone())];
        for (name, source) in fields {
            let (name, value) = match source {
                Same => (name, value(name, number)),
                Other(payload_name) => {
                    payload.push(format!("\"{payload_name}\": {}", value(payload_name, number)));
                    message_fields.push(((*name).to_owned(), value(payload_name, number)));
                    continue;
                }
                Route(constant) => {
                    message_fields.push(((*name).to_owned(), (*constant).to_owned()));
                    continue;
                }
            };
            payload.push(format!("\"{name}\" : {value}"));
            message_fields.push(((*name).to_owned(), value));
        }
        payload.push(format!("\"assessmentId\":{id}"));
        payload.reverse();
        Event {
            topic: topic.to_owned(),
            key: assessment.to_owned(),
            payload: format!("{{{}}}", payload.join(", ")),
            expected: ExpectedMessage { kind: kind.to_owned(), fields: message_fields },
        }
    }
}

/// A field's value, in JSON that would change if a gateway re-encoded it: digits, escapes, nested values, a null.
fn value(field: &str, number: u64) -> String {
    match field {
        "timestamp" => timestamp(number),
        "unrealizedPnl" => format!("-{number}.50"),
        "realizedPnl" => format!("{number}.0e-1"),
        "currentBalance" => format!("12345678901234567890.{number}0"),
        "quantity" => format!("{number}E+2"),
        "entryPrice" => "1.10000".to_owned(),
        "exitPrice" => "null".to_owned(),
        "value" => format!("{{ \"nested\": [{number}, 2.0, \"}}\"] }}"),
        "threshold" => "5.00".to_owned(),
        "ruleType" => r#""max\u0020\"loss\"""#.to_owned(),
        other => format!("\"{other}\\/{number}\""),
    }
}

/// The number as the producer's timestamp.
fn timestamp(number: u64) -> String {
    (FIRST_TIMESTAMP + number).to_string()
}

/// The event with this number for an assessment. The kinds take turns.
#[must_use]
pub fn event(assessment: &str, number: u64) -> Event {
    let turn = usize::try_from(number % 10).expect("below ten");
    Kind::ALL[turn].event(assessment, number)
}

/// The tick with this number on a market. The `market` in its payload must be ignored in favour of the topic's name.
#[must_use]
pub fn tick(market: &str, number: u64) -> Event {
    let price = format!("{number}.250");
    let message_fields = [
        ("market".to_owned(), format!("\"{market}\"")),
        ("price".to_owned(), price.clone()),
        ("timestamp".to_owned(), timestamp(number)),
    ];
    Event {
        topic: ticks_topic(market),
        key: market.to_owned(),
        payload: format!(r#"{{"timestamp":{},"price":{price},"market":"another"}}"#, timestamp(number)),
        expected: ExpectedMessage { kind: "market_price".to_owned(), fields: message_fields.to_vec() },
    }
}

/// The topic of a market's ticks.
#[must_use]
pub fn ticks_topic(market: &str) -> String {
    format!("market-data.{market}-ticks")
}

// ---- received events ------------------------------------------------------------------------------------------------

/// The events of assessments among a client's messages.
pub fn seen(client: &Client) -> impl Iterator<Item = &Message> {
    const OTHERS: [&str; 9] = [
        "connected",
        "market_price",
        "ping",
        "pong",
        "reset",
        "Redirect",
        "token_expiring",
        "refreshed",
        "Unauthorized",
    ];
    client.messages().iter().filter(|message| !OTHERS.contains(&message.kind.as_str()))
}

/// The number of the event or tick in a message.
///
/// # Panics
/// If the message is neither.
#[must_use]
#[track_caller]
pub fn number_of(message: &Message) -> u64 {
    let timestamp = message.json()["timestamp"].as_u64();
    timestamp.unwrap_or_else(|| panic!("no numbered event: {}", message.text)) - FIRST_TIMESTAMP
}

/// Checks that a client of `assessment` received exactly the events with these numbers, as [`event`] makes them: each
/// once, with the expected message, and those of a topic in order.
///
/// # Panics
/// If it did not.
#[track_caller]
pub fn assert_saw(client: &Client, assessment: &str, numbers: Range<u64>) {
    let mut last_of_topic = BTreeMap::new();
    let mut missing: BTreeSet<u64> = numbers.collect();
    for message in seen(client) {
        let number = number_of(message);
        assert!(missing.remove(&number), "{assessment}: {number} is a duplicate or unexpected: {}", message.text);
        let event = event(assessment, number);
        assert_eq!(ExpectedMessage::from(message), event.expected, "{assessment}: the message of PROTOCOL 3");
        let last = last_of_topic.insert(event.topic, number);
        assert!(last < Some(number), "{assessment}: {number} after {last:?}");
    }
    assert!(missing.is_empty(), "{assessment}: {missing:?} are missing");
}

/// Checks that a client received ticks of each market in order, the last one with this number.
///
/// # Panics
/// If it did not.
#[track_caller]
pub fn assert_saw_ticks(client: &Client, last: u64) {
    let mut latest = BTreeMap::new();
    for message in client.of_type("market_price") {
        let (market, number) = (message.json()["market"].as_str().expect("a market").to_owned(), number_of(message));
        assert_eq!(ExpectedMessage::from(message), tick(&market, number).expected);
        let before = latest.insert(market, number);
        assert!(before < Some(number), "{number} after {before:?}: {}", message.text);
    }
    assert_eq!(latest, MARKETS.map(|market| (market.to_owned(), last)).into());
}

// ---- producing records ----------------------------------------------------------------------------------------------

/// Produces records with the partitioner of Java's producers: murmur2 of the key.
pub struct Producer(ThreadedProducer<Deliveries>);

/// Keeps the failed deliveries.
#[derive(Default)]
struct Deliveries {
    failed: Mutex<Vec<String>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, record)) = result {
            let mut failed = self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            failed.push(format!("{}: {error}", record.topic()));
        }
    }
}

impl Producer {
    /// A producer for the brokers.
    #[must_use]
    pub fn to(bootstrap: &str) -> Self {
        Self::with(bootstrap, &[])
    }

    /// A producer with these properties of librdkafka on top of the kit's.
    ///
    /// # Panics
    /// If a property is invalid.
    #[must_use]
    pub fn with(bootstrap: &str, properties: &[(&str, &str)]) -> Self {
        let mut config = client_config(bootstrap);
        config
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "1")
            .set("socket.nagle.disable", "true")
            .set("message.max.bytes", "8388608");
        config.set("queue.buffering.max.messages", "1000000").set("enable.idempotence", "true");
        for (key, value) in properties {
            config.set(*key, *value);
        }
        Self(config.create_with_context(Deliveries::default()).expect("good properties"))
    }

    /// Sends an event.
    pub fn event(&self, event: &Event) {
        self.send(&event.topic, Some(&event.key), Some(event.payload.as_bytes()));
    }

    /// Sends a record. Without a payload it is a tombstone.
    pub fn send(&self, topic: &str, key: Option<&str>, payload: Option<&[u8]>) {
        self.record(BaseRecord::to(topic), key, payload);
    }

    /// Sends a record with these headers.
    pub fn send_with_headers(&self, topic: &str, key: Option<&str>, payload: &[u8], headers: &[(&str, &[u8])]) {
        let header = |all: OwnedHeaders, (key, value): &(&str, &[u8])| all.insert(Header { key, value: Some(*value) });
        let headers = headers.iter().fold(OwnedHeaders::new(), header);
        self.record(BaseRecord::to(topic).headers(headers), key, Some(payload));
    }

    /// Sends a record to a partition, whatever its key.
    pub fn send_to(&self, topic: &str, partition: i32, key: Option<&str>, payload: Option<&[u8]>) {
        self.record(BaseRecord::to(topic).partition(partition), key, payload);
    }

    /// Sends a record with this timestamp, in Unix ms, to a partition.
    pub fn send_at(&self, topic: &str, partition: i32, timestamp_ms: i64, payload: &[u8]) {
        self.record(BaseRecord::to(topic).partition(partition).timestamp(timestamp_ms), None, Some(payload));
    }

    fn record<'a>(&self, mut record: BaseRecord<'a, str, [u8]>, key: Option<&'a str>, payload: Option<&'a [u8]>) {
        record.key = key;
        record.payload = payload;
        let mut waiting = Some(record);
        eventually("the producer's queue has room", DELIVERED_WITHIN, || {
            match self.0.send(waiting.take().expect("a full queue returns the record")) {
                Ok(()) => Some(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => {
                    waiting = Some(record);
                    None
                }
                Err((error, record)) => panic!("a record for {}: {error}", record.topic),
            }
        });
    }

    /// Waits until the brokers have acknowledged everything.
    ///
    /// # Panics
    /// If they did not.
    pub fn flush(&self) {
        self.0.flush(DELIVERED_WITHIN).expect("the brokers acknowledge all records");
        let failed = self.0.context().failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        assert!(failed.is_empty(), "not delivered: {failed:?}");
    }

    /// Begins a transaction, with the initialization if it is the first. The producer needs `transactional.id`.
    ///
    /// # Panics
    /// If the brokers refuse.
    pub fn begin(&self, is_first: bool) {
        if is_first {
            self.0.init_transactions(DELIVERED_WITHIN).expect("the transaction's coordinator answers");
        }
        self.0.begin_transaction().expect("a transaction can begin");
    }

    /// Commits it.
    ///
    /// # Panics
    /// If the brokers refuse.
    pub fn commit(&self) {
        self.0.commit_transaction(DELIVERED_WITHIN).expect("commit");
    }

    /// Aborts it after its records have reached the brokers.
    ///
    /// # Panics
    /// If the brokers refuse.
    pub fn abort(&self) {
        self.0.flush(DELIVERED_WITHIN).expect("the brokers acknowledge all records");
        self.0.abort_transaction(DELIVERED_WITHIN).expect("abort");
    }
}

/// Delivers everything before the producer is dropped, because librdkafka would discard it.
impl Drop for Producer {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::TopicPartitionList;
    use rdkafka::consumer::{BaseConsumer, Consumer as _};

    use super::*;
    use crate::kafka::Kafka;

    #[test]
    fn payloads_are_json_and_expected_messages_are_those_of_the_protocol() {
        for kind in Kind::ALL {
            let event = kind.event("a\"1", 7);
            let payload: serde_json::Value = serde_json::from_str(&event.payload).unwrap();
            assert_eq!(payload["assessmentId"], "a\"1");
            assert_eq!(payload["type"], "from the payload");
            assert_eq!(event.expected.fields[0], ("assessmentId".into(), r#""a\"1""#.into()));
            assert_eq!(event.expected.fields.last().unwrap(), &("timestamp".into(), "1790000000007".into()));
        }
        let violation = Kind::ViolationDetected.event("a", 1);
        let names: Vec<_> = violation.expected.fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["assessmentId", "rule", "value", "threshold", "timestamp"]);
        assert_eq!(violation.expected.fields[1].1, r#""max\u0020\"loss\"""#);
        assert!(violation.payload.contains(r#""ruleType": "max\u0020\"loss\"""#));
        let tick = tick("gold", 3);
        assert_eq!(tick.topic, "market-data.gold-ticks");
        assert_eq!(tick.expected.fields[1], ("price".into(), "3.250".into()));
    }
    #[test]
    fn events_of_one_assessment_are_on_one_partition_and_aborted_ones_are_not_read() {
        let kafka = Kafka::start();
        kafka.create("trading.order-filled", 4);
        let plain = Producer::with(kafka.bootstrap(), &[("compression.type", "zstd")]);
        let transactional = Producer::with(kafka.bootstrap(), &[("transactional.id", "unit-test")]);
        plain.event(&Kind::OrderFilled.event("a", 0));
        plain.flush();
        transactional.begin(true);
        transactional.event(&Kind::OrderFilled.event("a", 1));
        transactional.abort();
        transactional.begin(false);
        transactional.event(&Kind::OrderFilled.event("a", 2));
        transactional.commit();

        let mut config = client_config(kafka.bootstrap());
        config
            .set("group.id", "unit-test")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut all = TopicPartitionList::new();
        all.add_partition_range("trading.order-filled", 0, 3);
        consumer.assign(&all).unwrap();
        let read = || {
            let record = consumer.poll(DELIVERED_WITHIN).unwrap().unwrap().detach();
            (record.partition(), record.payload_view::<str>().unwrap().unwrap().to_owned())
        };
        let (first, second) = (read(), read());
        assert_eq!(first.1, Kind::OrderFilled.event("a", 0).payload);
        assert_eq!(second.1, Kind::OrderFilled.event("a", 2).payload);
        assert_eq!(first.0, second.0);
    }
}
