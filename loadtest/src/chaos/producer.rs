//! Produces the events of a run, numbered per assessment and topic: a steady stream of plain events, and transactions,
//! some of which are aborted. Each assessment has one producer, so that the order of numbers is the order in Kafka.
//! Logs the fate of each event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};

use super::Clock;
use super::log::{Fate, LogFile, ProducedEvent};
use crate::events::{self, Event, FIRST_TIMESTAMP, MARKETS};
use crate::kafka::{Kafka, client_config};

/// Time limit for the brokers. All of them may be down for half a minute.
const BROKERS_WITHIN: Duration = Duration::from_secs(60);

/// Interval at which due events are sent.
const TICK: Duration = Duration::from_millis(10);

/// One assessment in this many has all its events in transactions.
const TRANSACTIONAL_IN: u32 = 4;

/// The first few assessments get this percentage of all events, so that their clients are the first to be slow.
const HOT: u32 = 4;
const HOT_PERCENT: u32 = 40;

/// Percentage of events by topic: some are busy, some nearly silent.
const WEIGHTS: [u32; events::Kind::ALL.len()] = [30, 10, 10, 14, 20, 1, 1, 1, 3, 10];

/// Index of the topic whose log is truncated in an unclean election, if the run has any.
pub(super) const FRAGILE: u8 = 6;

/// Index of the topic that is compacted, if the run has compaction. Its record keys are the assessments.
pub(super) const COMPACTED: u8 = 8;

/// Minimum age of a compacted record: less than the pods' history, so that returning clients may find records removed.
pub(super) const COMPACTION_LAG: Duration = Duration::from_secs(15);

/// Other settings of the compacted topic: its log is compacted almost at once.
pub(super) const COMPACTED_BY: &[(&str, &str)] =
    &[("cleanup.policy", "compact"), ("segment.ms", "1000"), ("min.cleanable.dirty.ratio", "0.01")];

/// The two brokers of the fragile topic.
pub(super) const FRAGILE_ON: [usize; 2] = [1, 2];

const PREFIX: &str = "chaos-";

/// The id of the assessment with this number.
#[must_use]
pub(super) fn assessment(number: u32) -> String {
    format!("{PREFIX}{number}")
}

/// The event with this number on a topic of an assessment. The last digit of the number in its timestamp is the topic.
#[must_use]
pub(super) fn event(assessment_number: u32, topic: u8, number: u64) -> Event {
    events::event(&assessment(assessment_number), number * 10 + u64::from(topic))
}

/// Identifies an event by its payload.
fn id_of(payload: &[u8]) -> Id {
    let event: serde_json::Value = serde_json::from_slice(payload).expect("events are JSON");
    let assessment = event["assessmentId"].as_str().and_then(|id| id.strip_prefix(PREFIX)?.parse().ok());
    let stamp = event["timestamp"].as_u64().and_then(|timestamp| timestamp.checked_sub(FIRST_TIMESTAMP));
    let (assessment, stamp) = assessment.zip(stamp).expect("an event of this run");
    (assessment, u8::try_from(stamp % 10).expect("below ten"), stamp / 10)
}

/// The events produced so far.
pub(super) struct ProducerLedger {
    pub(super) log: LogFile,
    pub(super) clock: Clock,
    /// Highest number produced, by assessment and topic.
    last: Mutex<BTreeMap<(u32, u8), u64>>,
    /// Events produced on topics whose logs may lose them.
    losable: Mutex<BTreeSet<Id>>,
    count: AtomicU64,
}

/// An event's assessment, topic and number.
type Id = (u32, u8, u64);

impl ProducerLedger {
    /// An empty ledger.
    pub(super) fn new(log: LogFile, clock: Clock) -> Self {
        Self { log, clock, last: Mutex::default(), losable: Mutex::default(), count: AtomicU64::new(0) }
    }

    /// Number of events produced.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Highest number produced, by assessment and topic.
    pub(super) fn last(&self) -> BTreeMap<(u32, u8), u64> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs which events Kafka holds more than once, and which it has lost.
    pub(super) fn record_log_contents(&self, kafka: &Kafka) {
        let mut seen = BTreeSet::new();
        for topic in events::Kind::ALL.map(events::Kind::topic) {
            let partitions = i32::try_from(kafka.partitions(topic)).expect("a few partitions");
            for payload in (0..partitions).flat_map(|partition| kafka.payloads(topic, partition)) {
                let id = id_of(&payload);
                if !seen.insert(id) {
                    self.write(id, self.clock.ms(), Fate::Repeated);
                }
            }
        }
        for id in &*self.losable.lock().unwrap_or_else(PoisonError::into_inner) {
            if !seen.contains(id) {
                let fate = if id.1 == FRAGILE { Fate::Truncated } else { Fate::Compacted };
                self.write(*id, self.clock.ms(), fate);
            }
        }
    }

    fn write(&self, (assessment, topic, number): Id, sent_ms: u64, fate: Fate) {
        self.log.add(&ProducedEvent { at_ms: self.clock.ms(), sent_ms, assessment, topic, number, fate });
    }

    fn add(&self, id @ (assessment, topic, number): Id, sent_ms: u64, fate: Fate) {
        self.write(id, sent_ms, fate);
        if fate == Fate::Produced {
            if matches!(topic, FRAGILE | COMPACTED) {
                self.losable.lock().unwrap_or_else(PoisonError::into_inner).insert((assessment, topic, number));
            }
            self.count.fetch_add(1, Ordering::Relaxed);
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let last = last.entry((assessment, topic)).or_insert(number);
            *last = number.max(*last);
        }
    }
}

/// Parameters of the producers.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) bootstrap: String,
    pub(super) seed: u64,
    pub(super) assessments: u32,
    /// Events per second, both producers together.
    pub(super) rate: u32,
    /// Whether a topic's log may be truncated.
    pub(super) is_fragile: bool,
    /// Whether a topic is compacted.
    pub(super) is_compacted: bool,
}

/// Produces events until `stop`. Returns the two threads.
pub(super) fn start(
    order: &Order,
    ledger: &Arc<ProducerLedger>,
    stop: &Arc<AtomicBool>,
) -> [thread::JoinHandle<()>; 2] {
    let source = |is_transactional| EventChooser {
        random: fastrand::Rng::with_seed(order.seed.wrapping_mul(3).wrapping_add(u64::from(is_transactional))),
        numbers: BTreeMap::new(),
        assessments: order.assessments,
        is_transactional,
        is_fragile: order.is_fragile,
        is_compacted: order.is_compacted,
    };
    let (plain, transactional) = (source(false), source(true));
    let share = order.rate / TRANSACTIONAL_IN;
    let of_plain = {
        let (bootstrap, ledger, stop) = (order.bootstrap.clone(), Arc::clone(ledger), Arc::clone(stop));
        let rate = order.rate - share;
        thread::spawn(move || produce_plain(&bootstrap, plain, rate, &ledger, &stop))
    };
    let of_transactions = {
        let (bootstrap, ledger, stop) = (order.bootstrap.clone(), Arc::clone(ledger), Arc::clone(stop));
        thread::spawn(move || produce_transactions(&bootstrap, transactional, share.max(1), &ledger, &stop))
    };
    [of_plain, of_transactions]
}

// ---- choice of events -----------------------------------------------------------------------------------------------

/// Chooses and numbers events.
struct EventChooser {
    random: fastrand::Rng,
    numbers: BTreeMap<(u32, u8), u64>,
    assessments: u32,
    is_transactional: bool,
    is_fragile: bool,
    is_compacted: bool,
}

impl EventChooser {
    fn next(&mut self) -> Id {
        let mut topic = self.topic();
        // A truncated log can keep half of a transaction, and a gap in a compacted log must not be a transaction
        // marker. Both topics get plain events only.
        let (is_fragile, is_compacted) = (self.is_fragile, self.is_compacted);
        let is_plain_only = |topic| topic == FRAGILE && is_fragile || topic == COMPACTED && is_compacted;
        while self.is_transactional && is_plain_only(topic) {
            topic = self.topic();
        }
        loop {
            let is_hot = self.random.u32(0..100) < HOT_PERCENT;
            let assessment = self.random.u32(0..if is_hot { HOT.min(self.assessments) } else { self.assessments });
            // About a hundred assessments: a suitable one is drawn soon.
            if (assessment % TRANSACTIONAL_IN == TRANSACTIONAL_IN - 1) == self.is_transactional {
                let number = self.numbers.entry((assessment, topic)).or_insert(0);
                *number += 1;
                return (assessment, topic, *number - 1);
            }
        }
    }

    fn topic(&mut self) -> u8 {
        let mut drawn = self.random.u32(0..WEIGHTS.iter().sum());
        for (topic, weight) in (0..).zip(WEIGHTS) {
            match drawn.checked_sub(weight) {
                Some(rest) => drawn = rest,
                None => return topic,
            }
        }
        unreachable!("the drawn number is below the sum of the weights")
    }
}

// ---- plain events ---------------------------------------------------------------------------------------------------

/// Logs the fate of each event. Events of a transaction are logged when it ends.
struct Deliveries {
    ledger: Arc<ProducerLedger>,
    is_transactional: bool,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    /// The event and the time when it was sent. `None` for a tick.
    type DeliveryOpaque = Box<Option<(Id, u64)>>;

    fn delivery(&self, result: &DeliveryResult<'_>, event: Box<Option<(Id, u64)>>) {
        if let Some((id, sent_ms)) = event.filter(|_| !self.is_transactional) {
            self.ledger.add(id, sent_ms, if result.is_ok() { Fate::Produced } else { Fate::Unknown });
        }
    }
}

fn producer(
    bootstrap: &str,
    ledger: &Arc<ProducerLedger>,
    transactional_id: Option<&str>,
) -> ThreadedProducer<Deliveries> {
    let mut config = client_config(bootstrap);
    config.set("partitioner", "murmur2_random").set("linger.ms", "2").set("enable.idempotence", "true");
    if let Some(id) = transactional_id {
        config.set("transactional.id", id);
    }
    let deliveries = Deliveries { ledger: Arc::clone(ledger), is_transactional: transactional_id.is_some() };
    config.create_with_context(deliveries).expect("good properties")
}

/// A producer for the topic that may be truncated: an idempotent producer fails if brokers lose what they acknowledged.
/// A retry would land behind later events, so only one event is in flight at a time.
struct OneByOne {
    producer: ThreadedProducer<Deliveries>,
    waiting: VecDeque<Id>,
}

impl OneByOne {
    fn new(bootstrap: &str, ledger: &Arc<ProducerLedger>) -> Self {
        let mut config = client_config(bootstrap);
        config.set("partitioner", "murmur2_random").set("acks", "all");
        let deliveries = Deliveries { ledger: Arc::clone(ledger), is_transactional: false };
        Self { producer: config.create_with_context(deliveries).expect("good properties"), waiting: VecDeque::new() }
    }

    /// Sends the next event if none is in flight.
    fn turn(&mut self) {
        if self.producer.in_flight_count() == 0
            && let Some(id) = self.waiting.pop_front()
        {
            send(&self.producer, &event(id.0, id.1, id.2), Some(id)).expect("an empty queue takes an event");
        }
    }

    fn finish(&mut self) {
        while !self.waiting.is_empty() && self.producer.flush(BROKERS_WITHIN).is_ok() {
            self.turn();
        }
        let _ = self.producer.flush(BROKERS_WITHIN);
    }
}

fn send(producer: &ThreadedProducer<Deliveries>, event: &Event, id: Option<Id>) -> Result<(), KafkaError> {
    let sent_ms = producer.context().ledger.clock.ms();
    let opaque = Box::new(id.map(|id| (id, sent_ms)));
    let record = BaseRecord::with_opaque_to(&event.topic, opaque).key(&event.key).payload(&event.payload);
    let mut waiting = Some(record);
    let deadline = Instant::now() + BROKERS_WITHIN;
    while let Some(record) = waiting.take() {
        match producer.send(record) {
            Ok(()) => {}
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) if Instant::now() < deadline => {
                waiting = Some(record);
                thread::sleep(TICK);
            }
            Err((error, _)) => return Err(error),
        }
    }
    Ok(())
}

fn produce_plain(
    bootstrap: &str,
    mut source: EventChooser,
    rate: u32,
    ledger: &Arc<ProducerLedger>,
    stop: &AtomicBool,
) {
    let producer = producer(bootstrap, ledger, None);
    let mut one_by_one = source.is_fragile.then(|| OneByOne::new(bootstrap, ledger));
    let start = Instant::now();
    let (mut sent, mut ticked) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let due = start.elapsed().as_millis() * u128::from(rate) / 1000;
        while sent < due {
            let id @ (assessment, topic, number) = source.next();
            sent += 1;
            if let Some(fragile) = one_by_one.as_mut().filter(|_| topic == FRAGILE) {
                fragile.waiting.push_back(id);
                continue;
            }
            send(&producer, &event(assessment, topic, number), Some(id))
                .expect("an idempotent producer takes an event");
        }
        one_by_one.iter_mut().for_each(OneByOne::turn);
        // One tick per market and second.
        while ticked < start.elapsed().as_secs() {
            for market in MARKETS {
                send(&producer, &events::tick(market, ticked), None).expect("an idempotent producer takes a tick");
            }
            ticked += 1;
        }
        thread::sleep(TICK);
    }
    // Events that the brokers don't accept in this time reach `delivery` as errors when the producer is dropped.
    let _ = producer.flush(BROKERS_WITHIN);
    one_by_one.iter_mut().for_each(OneByOne::finish);
}

// ---- transactions ---------------------------------------------------------------------------------------------------

/// Fate of a transaction, and whether its producer is unusable.
struct Ended {
    fate: Fate,
    is_fatal: bool,
}

fn produce_transactions(
    bootstrap: &str,
    mut source: EventChooser,
    rate: u32,
    ledger: &Arc<ProducerLedger>,
    stop: &AtomicBool,
) {
    while !stop.load(Ordering::Relaxed) {
        // The new producer has the transactional id of the last one, so its initialization aborts what that one left
        // open.
        let producer = producer(bootstrap, ledger, Some("chaos"));
        if producer.init_transactions(BROKERS_WITHIN).is_err() {
            continue;
        }
        let mut is_fatal = false;
        while !stop.load(Ordering::Relaxed) && !is_fatal {
            let ids: Vec<Id> = (0..source.random.usize(1..=8)).map(|_| source.next()).collect();
            let sent_ms = ledger.clock.ms();
            let ended = transaction(&producer, &ids, &mut source.random);
            for id in &ids {
                ledger.add(*id, sent_ms, ended.fate);
            }
            is_fatal = ended.is_fatal;
            let pause = Duration::from_secs(1) / rate * u32::try_from(ids.len()).expect("eight at most");
            thread::sleep(pause);
        }
    }
}

fn transaction(producer: &ThreadedProducer<Deliveries>, ids: &[Id], random: &mut fastrand::Rng) -> Ended {
    if producer.begin_transaction().is_err() {
        return Ended { fate: Fate::Aborted, is_fatal: true };
    }
    let all_sent = ids.iter().all(|id| send(producer, &event(id.0, id.1, id.2), Some(*id)).is_ok());
    // Some stay open for a while: consumers of committed records wait for their end.
    if random.u8(0..5) == 0 {
        thread::sleep(Duration::from_millis(random.u64(0..300)));
    }
    if !all_sent || random.u8(0..4) == 0 {
        if random.bool() {
            // Makes sure that aborted records reach the log instead of being dropped from the queue.
            let _ = producer.flush(BROKERS_WITHIN);
        }
        return abort(producer);
    }
    match repeated(|| producer.commit_transaction(BROKERS_WITHIN)) {
        Ok(()) => Ended { fate: Fate::Produced, is_fatal: false },
        // The brokers may have committed it and lost the answer. Then there is nothing left to abort.
        Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
            Ended { fate: Fate::Unknown, ..abort(producer) }
        }
        Err(_) => Ended { fate: Fate::Unknown, is_fatal: true },
    }
}

/// Aborts. If the brokers don't answer, the next producer with this id aborts it.
fn abort(producer: &ThreadedProducer<Deliveries>) -> Ended {
    let aborted = repeated(|| producer.abort_transaction(BROKERS_WITHIN));
    Ended { fate: Fate::Aborted, is_fatal: aborted.is_err() }
}

/// Retries while the error is retriable.
fn repeated(ask: impl Fn() -> Result<(), KafkaError>) -> Result<(), KafkaError> {
    let deadline = Instant::now() + BROKERS_WITHIN;
    loop {
        match ask() {
            Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_identified_by_its_payload() {
        for id in [(0, 0, 0), (77, 9, 123_456)] {
            assert_eq!(id_of(event(id.0, id.1, id.2).payload.as_bytes()), id);
        }
    }

    #[test]
    fn numbers_have_no_gaps_and_each_assessment_has_one_producer() {
        let mut owners = BTreeMap::new();
        for is_transactional in [false, true] {
            let random = fastrand::Rng::with_seed(1);
            let (numbers, is_fragile, is_compacted) = (BTreeMap::new(), false, false);
            let mut source =
                EventChooser { random, numbers, assessments: 40, is_transactional, is_fragile, is_compacted };
            let mut seen: BTreeMap<(u32, u8), Vec<u64>> = BTreeMap::new();
            for _ in 0..20_000 {
                let (assessment, topic, number) = source.next();
                seen.entry((assessment, topic)).or_default().push(number);
                assert_eq!(*owners.entry(assessment).or_insert(is_transactional), is_transactional);
            }
            assert!(seen.values().all(|numbers| numbers.iter().copied().eq(0..numbers.len() as u64)));
            assert!((0..10).all(|topic| seen.keys().any(|key| key.1 == topic)), "all ten topics");
        }
        assert_eq!(owners.len(), 40, "all assessments");
    }
}
