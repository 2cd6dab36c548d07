//! The metrics of ingest (PROTOCOL 5). Ingest counts in plain integers and publishes them once a turn. The handles of
//! metrics are resolved once, those of a topic when the topic is discovered.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::ids::TopicIndex;
use crate::routing::mapping::Malformed;
use crate::stream::batch::NextOffset;

use super::batcher::RecordFault;
use super::lag::HeldBackPartition;
use super::ticks::TimeFault;

/// Why a record was not processed: the label of `websocket_kafka_messages_skipped_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SkipReason {
    /// Another pod owns its assessment, or this pod owns none yet. The history keeps it all the same.
    NotOwner,
    /// It can't be used.
    Malformed,
    /// Its route's filter leaves it out.
    FilteredOut,
}

impl SkipReason {
    const ALL: [Self; 3] = [Self::NotOwner, Self::Malformed, Self::FilteredOut];

    fn label(self) -> [(&'static str, &'static str); 1] {
        let reason = match self {
            Self::NotOwner => "not_owner",
            Self::Malformed => "malformed",
            Self::FilteredOut => "filtered_out",
        };
        [("reason", reason)]
    }
}

impl RecordFault {
    const ALL: [Self; 5] = [
        Self::TooLarge,
        Self::Malformed(Malformed::NoPayload),
        Self::Malformed(Malformed::NotAnObject),
        Self::Malformed(Malformed::NoAssessment),
        Self::Malformed(Malformed::SchemaRegistry),
    ];

    fn label(self) -> [(&'static str, &'static str); 1] {
        let fault = match self {
            Self::TooLarge => "too_large",
            Self::Malformed(Malformed::NoPayload) => "no_payload",
            Self::Malformed(Malformed::NotAnObject) => "not_an_object",
            Self::Malformed(Malformed::NoAssessment) => "no_assessment",
            Self::Malformed(Malformed::SchemaRegistry) => "schema_registry",
        };
        [("fault", fault)]
    }

    fn index(self) -> usize {
        Self::ALL.iter().position(|&fault| fault == self).expect("ALL has each fault, as a test holds")
    }
}

/// Handles of the metrics. A clone counts in the same metrics.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    processed: Counter,
    skipped: Family<[(&'static str, &'static str); 1], Counter>,
    lag: Family<[(&'static str, String); 1], Gauge>,
    faults: [Counter; RecordFault::ALL.len()],
    tick_faults: [Counter; TimeFault::ALL.len()],
    batches: Counter,
    batch_bytes: Counter,
    blocked: Counter<f64, AtomicU64>,
    offset_resets: Counter,
    passed_over: Counter,
    partition_errors: Counter,
    topics: Gauge,
    partitions: Gauge,
    unread_topics: Gauge,
    topic_indexes: Gauge,
    filling: Gauge,
    filling_left: Gauge,
    open_transactions: Family<[(&'static str, String); 2], Gauge>,
    open_transaction_ends: Family<[(&'static str, String); 3], Gauge>,
    missing: Family<[(&'static str, String); 1], Gauge>,
    consumer_replacements: Counter,
    metadata_client_replacements: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let skipped = Family::<[(&'static str, &'static str); 1], Counter>::default();
        for reason in SkipReason::ALL {
            // Shown as 0 from the start: a rate over a series that appears with its first event misses that event.
            skipped.get_or_create_owned(&reason.label());
        }
        let faults = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let tick_faults = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let replacements = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let metrics = Self {
            open_transactions: Family::default(),
            open_transaction_ends: Family::default(),
            missing: Family::default(),
            consumer_replacements: replacements.get_or_create_owned(&[("client", "reading")]),
            metadata_client_replacements: replacements.get_or_create_owned(&[("client", "asking")]),
            processed: Counter::default(),
            skipped,
            lag: Family::default(),
            faults: RecordFault::ALL.map(|fault| faults.get_or_create_owned(&fault.label())),
            tick_faults: TimeFault::ALL.map(|fault| tick_faults.get_or_create_owned(&[("fault", fault.label())])),
            batches: Counter::default(),
            batch_bytes: Counter::default(),
            blocked: Counter::default(),
            offset_resets: Counter::default(),
            passed_over: Counter::default(),
            partition_errors: Counter::default(),
            topics: Gauge::default(),
            partitions: Gauge::default(),
            unread_topics: Gauge::default(),
            topic_indexes: Gauge::default(),
            filling: Gauge::default(),
            filling_left: Gauge::default(),
        };
        metrics.register_contract(registry);
        metrics.register_own(registry, faults);
        registry.register(
            "shardgate_ingest_tick_timestamp_faults",
            "Ticks with an invalid record timestamp, by fault",
            tick_faults,
        );
        metrics.register_filling(registry);
        registry.register(
            "shardgate_ingest_open_transaction_offsets",
            "Offsets held back by an open transaction for some seconds, by partition",
            metrics.open_transactions.clone(),
        );
        registry.register(
            "shardgate_ingest_open_transaction_end_offset",
            "Last stable offset and high watermark of partitions held back by an open transaction",
            metrics.open_transaction_ends.clone(),
        );
        registry.register(
            "shardgate_ingest_missing_partitions",
            "Partitions that the pod started without and still cannot read, by topic",
            metrics.missing.clone(),
        );
        registry.register("shardgate_ingest_client_rebuilds", "Kafka clients replaced, by role", replacements);
        metrics
    }

    /// The names that PROTOCOL 5 fixes; the library appends `_total` to a counter's.
    fn register_contract(&self, registry: &mut Registry) {
        registry.register(
            "websocket_kafka_messages_processed",
            "Records of owned assessments, and market data",
            self.processed.clone(),
        );
        registry.register(
            "websocket_kafka_messages_skipped",
            "Records not served by this pod, by reason",
            self.skipped.clone(),
        );
        registry.register(
            "websocket_kafka_consumer_lag",
            "Offsets between the read offset and the high watermark, by topic",
            self.lag.clone(),
        );
    }

    fn register_own(&self, registry: &mut Registry, faults: Family<[(&'static str, &'static str); 1], Counter>) {
        registry.register("shardgate_ingest_malformed_records", "Malformed records, by fault", faults);
        registry.register(
            "shardgate_ingest_batches",
            "Batches handed to shards; each wakes its shard once",
            self.batches.clone(),
        );
        registry.register_with_unit(
            "shardgate_ingest_batch",
            "Payloads and ids handed to shards; a tick counts once for each shard",
            Unit::Bytes,
            self.batch_bytes.clone(),
        );
        registry.register_with_unit(
            "shardgate_ingest_blocked",
            "Time that ingest waited for room in a shard's channel; Kafka is not read meanwhile",
            Unit::Seconds,
            self.blocked.clone(),
        );
        registry.register(
            "shardgate_ingest_batches_passed_over",
            "Compressed batches skipped because they cannot be decompressed or are too large",
            self.passed_over.clone(),
        );
        registry.register(
            "shardgate_ingest_offset_resets",
            "Partitions whose next records were deleted before they were read; reading continued at the first offset left",
            self.offset_resets.clone(),
        );
        registry.register(
            "shardgate_ingest_partition_errors",
            "Failed fetches of partitions, which are retried",
            self.partition_errors.clone(),
        );
        registry.register(
            "shardgate_ingest_unread_topics",
            "Topics with a route that are not read because the pod's limit of topics is reached",
            self.unread_topics.clone(),
        );
        registry.register(
            "shardgate_ingest_topic_indexes",
            "Topic indexes in use, including those of topics read within the window",
            self.topic_indexes.clone(),
        );
        registry.register("shardgate_ingest_topics", "Topics being read", self.topics.clone());
        registry.register("shardgate_ingest_partitions", "Partitions being read", self.partitions.clone());
    }

    fn register_filling(&self, registry: &mut Registry) {
        let unit = || Unit::Other("offsets".to_owned());
        registry.register_with_unit(
            "shardgate_ingest_filling",
            "Offsets to read before the history is complete: an upper bound of the records",
            unit(),
            self.filling.clone(),
        );
        registry.register_with_unit(
            "shardgate_ingest_filling_left",
            "Offsets still to read; 0 once the history is complete",
            unit(),
            self.filling_left.clone(),
        );
    }

    /// The counter of a reason. Shards use it when they find that a record is malformed.
    #[must_use]
    pub(crate) fn skipped(&self, reason: SkipReason) -> Counter {
        self.skipped.get_or_create_owned(&reason.label())
    }

    /// Removes the topic's lag from the output.
    pub(super) fn forget_lag_of(&self, topic: &str) {
        self.lag.remove(&[("topic", topic.to_owned())]);
    }

    /// Sets how many topic indexes are in use, and how many topics are unread because none was free.
    pub(super) fn topics_known(&self, indexes: usize, unread: usize) {
        self.topic_indexes.set(i64::try_from(indexes).unwrap_or(i64::MAX));
        self.unread_topics.set(i64::try_from(unread).unwrap_or(i64::MAX));
    }

    /// The gauge of a topic's lag; adds it to the output.
    pub(super) fn lag_of(&self, topic: &str) -> Gauge {
        self.lag.get_or_create_owned(&[("topic", topic.to_owned())])
    }

    /// The consumer was replaced.
    pub(super) fn consumer_replaced(&self) {
        self.consumer_replacements.inc();
    }

    /// The metadata client was replaced.
    pub(super) fn metadata_client_replaced(&self) {
        self.metadata_client_replacements.inc();
    }

    /// Sets how much is read.
    pub(super) fn reading(&self, topics: usize, partitions: usize) {
        self.topics.set(i64::try_from(topics).unwrap_or(i64::MAX));
        self.partitions.set(i64::try_from(partitions).unwrap_or(i64::MAX));
    }
}

/// Counts since they were last published.
#[derive(Debug, Default)]
pub(super) struct IngestCounts {
    pub(super) processed: u64,
    pub(super) not_owner: u64,
    pub(super) filtered_out: u64,
    pub(super) batches: u64,
    pub(super) batch_bytes: u64,
    pub(super) blocked: Duration,
    pub(super) offset_resets: u64,
    pub(super) passed_over: u64,
    pub(super) partition_errors: u64,
    faults: [u64; RecordFault::ALL.len()],
    tick_faults: [u64; TimeFault::ALL.len()],
}

impl IngestCounts {
    /// A record can't be used.
    pub(super) fn malformed(&mut self, fault: RecordFault) {
        self.faults[fault.index()] += 1;
    }

    /// A tick's timestamp can't be used.
    pub(super) fn bad_tick(&mut self, fault: TimeFault) {
        if let Some(index) = TimeFault::ALL.iter().position(|&other| other == fault) {
            self.tick_faults[index] += 1;
        }
    }
}

/// Publishes the counts of each turn, with handles resolved in advance.
#[derive(Debug)]
pub(super) struct Publisher {
    metrics: Metrics,
    not_owner: Counter,
    malformed: Counter,
    filtered_out: Counter,
    /// By [`TopicIndex`]; `None` for a topic that is not read any more.
    lags: Vec<Option<Gauge>>,
    /// The labels of the partitions published as held back by an open transaction.
    open_transactions: Vec<[(&'static str, String); 2]>,
}

/// A partition's labels, and which of its two ends a gauge shows.
fn of_end([topic, partition]: &[(&'static str, String); 2], end: &str) -> [(&'static str, String); 3] {
    [topic.clone(), partition.clone(), ("end", end.to_owned())]
}

impl Publisher {
    pub(super) fn new(metrics: Metrics) -> Self {
        let [not_owner, malformed, filtered_out] = SkipReason::ALL.map(|reason| metrics.skipped(reason));
        Self { metrics, not_owner, malformed, filtered_out, lags: Vec::new(), open_transactions: Vec::new() }
    }

    /// Adds the lag of a topic.
    pub(super) fn add_topic(&mut self, topic: TopicIndex, name: &str) {
        let index = usize::from(topic.0);
        self.lags.resize(self.lags.len().max(index + 1), None);
        self.lags[index] = Some(self.metrics.lag_of(name));
    }

    /// A topic is no longer read. Call this before another topic of its name is added.
    pub(super) fn retire_topic(&mut self, topic: TopicIndex, name: &str) {
        if let Some(lag) = self.lags.get_mut(usize::from(topic.0)) {
            *lag = None;
            self.metrics.forget_lag_of(name);
        }
    }

    /// A topic that was no longer read is read again.
    pub(super) fn resume_topic(&mut self, topic: TopicIndex, name: &str) {
        if let Some(lag) = self.lags.get_mut(usize::from(topic.0)) {
            *lag = Some(self.metrics.lag_of(name));
        }
    }

    /// Publishes how many topics and partitions are read. `read_offsets` also has those of topics no longer read.
    pub(super) fn reading(&self, read_offsets: &[NextOffset]) {
        let is_read = |topic: TopicIndex| self.lags.get(usize::from(topic.0)).is_some_and(Option::is_some);
        let partitions = read_offsets.iter().filter(|at| is_read(at.topic)).count();
        self.metrics.reading(self.lags.iter().flatten().count(), partitions);
    }

    /// Filling begins, with this many offsets to read.
    pub(super) fn filling_begins(&self, offsets: i64) {
        self.metrics.filling.set(offsets);
        self.filling_left(offsets);
    }

    /// Publishes how many of them are left.
    pub(super) fn filling_left(&self, offsets: i64) {
        self.metrics.filling_left.set(offsets);
    }

    /// Publishes each topic's lag.
    pub(super) fn lag(&self, by_topic: &[i64]) {
        for (gauge, &lag) in self.lags.iter().zip(by_topic) {
            if let Some(gauge) = gauge {
                gauge.set(lag);
            }
        }
    }

    /// Publishes all partitions that open transactions hold back, each with its topic's name.
    pub(super) fn open_transactions<'a>(&mut self, held: impl Iterator<Item = (&'a str, &'a HeldBackPartition)>) {
        let before = std::mem::take(&mut self.open_transactions);
        for (topic, held) in held {
            let labels = [("topic", topic.to_owned()), ("partition", held.at.partition.to_string())];
            let gauge = self.metrics.open_transactions.get_or_create_owned(&labels);
            gauge.set(held.high_watermark - held.at.offset);
            let ends = [("last_stable_offset", held.at.offset), ("high_watermark", held.high_watermark)];
            for (end, offset) in ends {
                self.metrics.open_transaction_ends.get_or_create_owned(&of_end(&labels, end)).set(offset);
            }
            self.open_transactions.push(labels);
        }
        for labels in before.iter().filter(|labels| !self.open_transactions.contains(labels)) {
            self.metrics.open_transactions.remove(labels);
            for end in ["last_stable_offset", "high_watermark"] {
                self.metrics.open_transaction_ends.remove(&of_end(labels, end));
            }
        }
    }

    /// Publishes how many partitions of a topic can't be read.
    pub(super) fn missing(&self, topic: &str, partitions: usize) {
        let labels = [("topic", topic.to_owned())];
        if partitions == 0 {
            self.metrics.missing.remove(&labels);
        } else {
            self.metrics.missing.get_or_create_owned(&labels).set(i64::try_from(partitions).unwrap_or(i64::MAX));
        }
    }

    /// The consumer was replaced.
    pub(super) fn consumer_replaced(&self) {
        self.metrics.consumer_replaced();
    }

    /// Publishes the counts and sets them to zero.
    pub(super) fn publish(&self, counts: &mut IngestCounts) {
        let IngestCounts {
            processed,
            not_owner,
            filtered_out,
            batches,
            batch_bytes,
            blocked,
            offset_resets,
            passed_over,
            partition_errors,
            faults,
            tick_faults,
        } = std::mem::take(counts);
        let metrics = &self.metrics;
        metrics.processed.inc_by(processed);
        self.not_owner.inc_by(not_owner);
        self.filtered_out.inc_by(filtered_out);
        self.malformed.inc_by(faults.iter().sum());
        for (counter, count) in metrics.faults.iter().zip(faults) {
            counter.inc_by(count);
        }
        for (counter, count) in metrics.tick_faults.iter().zip(tick_faults) {
            counter.inc_by(count);
        }
        metrics.batches.inc_by(batches);
        metrics.batch_bytes.inc_by(batch_bytes);
        metrics.blocked.inc_by(blocked.as_secs_f64());
        metrics.offset_resets.inc_by(offset_resets);
        metrics.passed_over.inc_by(passed_over);
        metrics.partition_errors.inc_by(partition_errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }

    #[test]
    fn the_contracts_metrics_show_from_the_start_and_grow_by_what_was_counted() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let text = encoded(&registry);
        has(&text, "websocket_kafka_messages_processed_total 0");
        has(&text, r#"websocket_kafka_messages_skipped_total{reason="not_owner"} 0"#);
        has(&text, r#"websocket_kafka_messages_skipped_total{reason="malformed"} 0"#);
        has(&text, r#"shardgate_ingest_malformed_records_total{fault="too_large"} 0"#);
        has(&text, "shardgate_ingest_blocked_seconds_total 0.0");

        let mut publisher = Publisher::new(metrics.clone());
        publisher.add_topic(TopicIndex(0), "orders");
        publisher.lag(&[12]);
        let mut counts = IngestCounts {
            processed: 3,
            not_owner: 6,
            filtered_out: 5,
            blocked: Duration::from_millis(1_500),
            ..IngestCounts::default()
        };
        counts.malformed(RecordFault::TooLarge);
        counts.malformed(Malformed::NoPayload.into());
        counts.bad_tick(TimeFault::Ahead);
        publisher.publish(&mut counts);
        publisher.publish(&mut counts);
        metrics.skipped(SkipReason::Malformed).inc();

        let text = encoded(&registry);
        has(&text, "websocket_kafka_messages_processed_total 3");
        has(&text, r#"websocket_kafka_messages_skipped_total{reason="not_owner"} 6"#);
        has(&text, r#"websocket_kafka_messages_skipped_total{reason="malformed"} 3"#);
        has(&text, r#"websocket_kafka_messages_skipped_total{reason="filtered_out"} 5"#);
        has(&text, r#"shardgate_ingest_malformed_records_total{fault="no_payload"} 1"#);
        has(&text, r#"shardgate_ingest_tick_timestamp_faults_total{fault="ahead"} 1"#);
        has(&text, r#"shardgate_ingest_tick_timestamp_faults_total{fault="expired"} 0"#);
        has(&text, r#"websocket_kafka_consumer_lag{topic="orders"} 12"#);
        has(&text, "shardgate_ingest_blocked_seconds_total 1.5");
    }

    #[test]
    fn the_progress_of_the_filling_shows() {
        let mut registry = Registry::default();
        let publisher = Publisher::new(Metrics::register(&mut registry));
        has(&encoded(&registry), "shardgate_ingest_filling_left_offsets 0");
        publisher.filling_begins(1_000);
        has(&encoded(&registry), "shardgate_ingest_filling_left_offsets 1000");
        publisher.filling_left(10);
        let text = encoded(&registry);
        has(&text, "shardgate_ingest_filling_offsets 1000");
        has(&text, "shardgate_ingest_filling_left_offsets 10");
        has(&text, "# UNIT shardgate_ingest_filling_left_offsets offsets");
    }

    #[test]
    fn a_topic_made_anew_goes_on_in_the_same_series_and_one_that_is_gone_has_none() {
        let mut registry = Registry::default();
        let mut publisher = Publisher::new(Metrics::register(&mut registry));
        let at = |topic, partition| NextOffset { topic: TopicIndex(topic), partition, offset: 0 };
        publisher.add_topic(TopicIndex(0), "orders");
        publisher.lag(&[12]);
        publisher.retire_topic(TopicIndex(0), "orders");
        publisher.lag(&[12]);
        assert!(!encoded(&registry).contains("orders"));
        publisher.add_topic(TopicIndex(1), "orders");
        publisher.lag(&[12, 3]);
        publisher.reading(&[at(0, 0), at(0, 1), at(1, 0)]);
        let text = encoded(&registry);
        has(&text, r#"websocket_kafka_consumer_lag{topic="orders"} 3"#);
        has(&text, "shardgate_ingest_topics 1");
        has(&text, "shardgate_ingest_partitions 1");

        publisher.retire_topic(TopicIndex(1), "orders");
        publisher.resume_topic(TopicIndex(1), "orders");
        publisher.lag(&[12, 4]);
        has(&encoded(&registry), r#"websocket_kafka_consumer_lag{topic="orders"} 4"#);
    }

    #[test]
    fn each_fault_has_its_index_and_its_label() {
        let malformed =
            [Malformed::NoPayload, Malformed::NotAnObject, Malformed::NoAssessment, Malformed::SchemaRegistry];
        let faults = malformed.into_iter().map(RecordFault::from).chain([RecordFault::TooLarge]);
        let indexes: std::collections::HashSet<_> = faults.map(|fault| (fault.index(), fault.label())).collect();
        assert_eq!(indexes.len(), RecordFault::ALL.len());
    }
}
