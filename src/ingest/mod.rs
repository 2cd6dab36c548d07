//! Reads every partition of every routed topic and hands each record to the shard of its assessment, in batches. Owns
//! where reading starts and the read offsets; a shard decides what a record means.
//!
//! ```text
//!   metadata thread (watcher): topics and partitions, probes, ends of logs
//!      | changes, ends (bounded, one each)    topics -> catalogue -> which are new, recreated, gone
//!      v   ^ recheck requests                 offsets -> startup -> where to start, when the history is filled
//!   reader, pinned thread: consumer -> batcher -> a batch for each shard -> its channel
//!                                   \-> read offsets -> lag
//! ```
//!
//! - Rules: `read_progress`, with `batcher`, `read_offsets`, `continuity` and `compaction`; `batching_delay`,
//!   `stall_detector`, `startup`, `catalogue`, `retention`, `lag`, `reachability`, `ticks`.
//! - Edges: `kafka` and `metadata_client` (librdkafka; `client` is what both have in common, `unpacking` bounds
//!   the size of unpacked batches), and the two threads' loops, `reader` and `watcher`.
//! - `metrics`: ingest's metrics.
//!
//! Measured with all threads pinned to one core, 2 million records of 295 bytes whose route takes the assessment from
//! the payload, one shard: 440 ns of CPU a record on the reader's thread and 235 ns on librdkafka's, so about 1.4
//! million records a second if the core does nothing else.

mod batcher;
mod batching_delay;
mod catalogue;
mod client;
mod compaction;
mod continuity;
mod kafka;
mod lag;
mod metadata_client;
mod metrics;
mod oauth;
mod reachability;
mod read_offsets;
mod read_progress;
mod reader;
mod retention;
mod stall_detector;
mod startup;
#[cfg(test)]
mod stuck;
#[cfg(test)]
pub(crate) mod testing;
mod ticks;
mod unpacking;
mod watcher;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::bounded;
use tracing::{info, warn};

pub(crate) use catalogue::IndexRules;
pub(crate) use client::InvalidProperties;
pub(crate) use metrics::{Metrics, SkipReason};

use crate::config::KafkaConfig;
use crate::cores::pin_thread;
use crate::exchange::{IngestStatus, PublishedPodState, PublishedRoutes, ShardHandle};
use crate::ids::TopicIndex;
use crate::limits::CHECK_MAX;
use crate::routing::table::RouteTable;

use client::ClientTerminator;
use kafka::Consumer;
use metadata_client::MetadataClient;
use reader::Reader;

/// What ingest is built from.
pub(crate) struct Parts {
    /// The brokers, and how they are read.
    pub(crate) config: KafkaConfig,
    /// The newest routes. They apply from the next metadata refresh on.
    pub(crate) routes: PublishedRoutes,
    /// How indexes are assigned to topics.
    pub(crate) indexes: IndexRules,
    /// The senders of the shards' channels, by shard.
    pub(crate) shards: Vec<ShardHandle>,
    /// The pod state: which assessments this pod owns, for the counts, and when the pod stops.
    pub(crate) pod_state: PublishedPodState,
    /// Whether this pod serves every assessment (`PLACEMENT` is `any`).
    pub(crate) place_anywhere: bool,
    /// Ingest publishes its status here.
    pub(crate) status: Arc<IngestStatus>,
    /// Ingest's metrics.
    pub(crate) metrics: Metrics,
    /// The core to be pinned to, with all of librdkafka's threads.
    pub(crate) core: Option<usize>,
    /// Whether no shard runs on ingest's core.
    pub(crate) has_own_core: bool,
}

/// Why ingest can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operator's properties.
    #[error(transparent)]
    Properties(#[from] InvalidProperties),
    /// The system can't start a thread.
    #[error("can't start ingest's threads: {0}")]
    Thread(#[from] io::Error),
}

/// Queries Kafka's topics; returns how many of them have a route.
///
/// # Errors
/// If no broker answers.
pub(crate) fn check(config: &KafkaConfig, routes: &RouteTable) -> Result<usize, String> {
    let client = MetadataClient::new(config).map_err(|error| error.to_string())?;
    let mut routed = 0;
    let answer = client.topics(CHECK_MAX, |name, _| {
        routed += usize::from(routes.resolve(TopicIndex::NONE, name).is_some());
    });
    answer.map(|_| routed).map_err(|error| format!("no answer within {CHECK_MAX:?}: {error}"))
}

/// Starts ingest. Its threads end soon after the pod state says that the pod stops. An unreachable broker is no error:
/// ingest retries, and its status shows it.
///
/// # Errors
/// If librdkafka refuses the properties, or the system can't start a thread.
pub(crate) fn spawn(parts: Parts) -> Result<JoinHandle<()>, StartError> {
    let (started_in, started) = bounded(1);
    let thread = thread::Builder::new().name("ingest".into()).spawn(move || {
        let reader = match start(parts) {
            Ok(reader) => reader,
            Err(error) => return drop(started_in.send(Err(error))),
        };
        // The waiting thread may have gone; then the pod state will say that the pod ended.
        drop(started_in.send(Ok(())));
        reader.run();
    })?;
    match started.recv() {
        Ok(outcome) => outcome.map(|()| thread),
        Err(_) => Err(io::Error::other("the thread ended at its start").into()),
    }
}

/// Runs on the reader's thread. It is pinned first, because librdkafka's threads inherit that.
fn start(parts: Parts) -> Result<Reader, StartError> {
    if let Some(core) = parts.core {
        pin_thread(core).unwrap_or_else(|error| warn!(core, %error, "not pinned"));
    }
    let consumer = Consumer::new(&parts.config)?;
    let cluster = MetadataClient::new(&parts.config)?;
    info!(brokers = %parts.config.brokers, routes = parts.routes.load().routes.len(), core = parts.core, "ingest started");
    let terminator = ClientTerminator::default();
    let settings = watcher::WatcherParts {
        config: parts.config.clone(),
        routes: Arc::clone(&parts.routes),
        indexes: parts.indexes,
        status: Arc::clone(&parts.status),
        metrics: parts.metrics.clone(),
        terminator: terminator.clone(),
    };
    let watcher = watcher::start(cluster, settings)?;
    Ok(Reader::new(consumer, watcher, parts, terminator))
}

#[cfg(test)]
mod tests {
    //! On librdkafka's own mock cluster, which runs in this process. What it can't do (transactions, offsets for a
    //! time, deleted records, a broker that hangs) is tried on a real Kafka, end to end.

    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    use arc_swap::ArcSwap;
    use prometheus_client::registry::Registry;
    use rdkafka::ClientConfig;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};

    use super::*;
    use crate::exchange::{PodState, ShardInbox, shard_channel};
    use crate::ids::{AssessmentHash, TopicIndex};
    use crate::limits::BATCH_CHANNEL_DEPTH;
    use crate::routing::placement::shard_of;
    use crate::routing::table::{Fingerprint, RouteTable};
    use crate::stream::batch::{Batch, NextOffset, PartitionEnds};

    /// Far longer than anything here takes; a test that gets here has failed.
    const PATIENCE: Duration = Duration::from_secs(30);

    struct Story {
        kafka: MockCluster<'static, DefaultProducerContext>,
        producer: BaseProducer,
        inboxes: Vec<ShardInbox>,
        pod_state: PublishedPodState,
        status: Arc<IngestStatus>,
        registry: Registry,
        parts: Option<Parts>,
    }

    impl Story {
        fn new(shards: u16) -> Self {
            let kafka = MockCluster::new(1).unwrap();
            let brokers = kafka.bootstrap_servers();
            let producer = ClientConfig::new()
                .set("bootstrap.servers", &brokers)
                .set("partitioner", "murmur2_random")
                .set("linger.ms", "0")
                .create()
                .unwrap();
            let (shard_handles, inboxes) = (0..shards).map(|_| shard_channel()).unzip();
            let pod_state = Arc::new(ArcSwap::from_pointee(PodState::default()));
            let status = Arc::new(IngestStatus::default());
            let mut registry = Registry::default();
            let config = KafkaConfig {
                brokers: brokers.into(),
                client_id: "shardgate-test".into(),
                group_id: "shardgate-test".into(),
                oidc: None,
                properties: vec![("fetch.wait.max.ms".to_owned(), "10".to_owned())],
                topic_refresh: Duration::from_millis(50),
                stall: Duration::from_secs(3),
                start_wait: Duration::from_millis(500),
                event_bytes_max: 1024,
                history: Duration::from_secs(60),
                has_topic_settings: false,
            };
            let parts = Parts {
                config,
                routes: Arc::new(ArcSwap::from_pointee(RouteTable::built_in())),
                indexes: IndexRules::new(Duration::from_secs(60), Duration::from_millis(50)),
                shards: shard_handles,
                pod_state: Arc::clone(&pod_state),
                place_anywhere: true,
                status: Arc::clone(&status),
                metrics: Metrics::register(&mut registry),
                core: Some(0),
                has_own_core: false,
            };
            Self { kafka, producer, inboxes, pod_state, status, registry, parts: Some(parts) }
        }

        fn start(&mut self) -> JoinHandle<()> {
            spawn(self.parts.take().expect("started once")).unwrap()
        }

        fn produce(&self, topic: &str, id: &str, payload: &str) {
            self.producer.send(BaseRecord::to(topic).key(id).payload(payload)).map_err(|(error, _)| error).unwrap();
            while self.producer.in_flight_count() > 0 {
                self.producer.poll(Duration::from_millis(1));
            }
        }

        fn event(&self, topic: &str, id: &str) {
            self.produce(topic, id, &format!(r#"{{"assessmentId":"{id}"}}"#));
        }

        /// Waits for this many records and ticks at a shard.
        fn receive(&self, shard: usize, count: usize) -> Vec<Batch> {
            let (mut batches, mut received) = (Vec::new(), 0);
            while received < count {
                let batch = self.inboxes[shard].batches.recv_timeout(PATIENCE).unwrap();
                received += batch.records.len() + batch.ticks.len();
                batches.push(batch);
            }
            assert_eq!(received, count, "none twice");
            batches
        }

        fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
            let start = Instant::now();
            while !condition(self) {
                assert!(start.elapsed() < PATIENCE, "{what}");
                // No event tells when the condition holds, and spinning would take the core from what it waits for.
                thread::sleep(Duration::from_millis(2));
            }
        }

        fn shows(&self, line: &str) -> bool {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
            text.lines().any(|found| found == line)
        }

        fn end(&self) {
            self.pod_state.store(Arc::new(PodState { ended: true, ..PodState::default() }));
        }
    }

    fn ids(batches: &[Batch]) -> Vec<String> {
        let id = |batch: &Batch, record: &crate::stream::batch::Record| {
            String::from_utf8(record.id.of(&batch.arena).to_vec()).unwrap()
        };
        batches.iter().flat_map(|batch| batch.records.iter().map(move |record| id(batch, record))).collect()
    }

    #[test]
    fn what_was_there_fills_the_history_and_what_comes_later_follows_new_topics_included() {
        let mut story = Story::new(2);
        story.kafka.create_topic("assessment.created", 3, 1).unwrap();
        story.kafka.create_topic("nobodys.business", 1, 1).unwrap();
        for number in 0..20 {
            story.event("assessment.created", &format!("early-{number}"));
        }
        story.produce("assessment.created", "early-0", "not json");
        let thread = story.start();

        story.until("the history is complete", |story| story.status.history_complete.load(Ordering::Acquire));
        assert!(story.status.kafka_up.load(Ordering::Relaxed));
        let home = |id: &str| usize::from(shard_of(AssessmentHash::of(id), 2).0);
        for shard in 0..2 {
            let expected = (0..20).filter(|number| home(&format!("early-{number}")) == shard).count();
            let batches = story.receive(shard, expected);
            assert!(ids(&batches).iter().all(|id| home(id) == shard));
            assert_eq!(batches[0].topics.iter().map(|topic| &*topic.name).collect::<Vec<_>>(), ["assessment.created"]);
            let starts: Vec<_> = batches[0].starts.iter().map(|start| (start.partition, start.offset)).collect();
            assert_eq!(starts, [(0, 0), (1, 0), (2, 0)], "where reading began, ahead of all records");
            assert!(batches[0].records.is_empty() && batches.iter().all(|batch| batch.deleted.is_empty()));
            let plain = Fingerprint::new("assessment.created", "", "");
            assert_eq!(batches[0].topics[0].fingerprint.name, plain.name);
            assert_ne!(
                batches[0].topics[0].fingerprint.incarnation, plain.incarnation,
                "the cluster and the topic have ids"
            );
        }

        story.event("assessment.created", "late");
        assert_eq!(ids(&story.receive(home("late"), 1)), ["late"]);

        story.kafka.create_topic("market-data.BTC-ticks", 1, 1).unwrap();
        story.produce("market-data.BTC-ticks", "BTC", r#"{"price":1}"#);
        for shard in 0..2 {
            let batches = story.receive(shard, 1);
            let topics: Vec<_> = batches.iter().flat_map(|batch| &batch.topics).collect();
            assert_eq!(topics.len(), 1, "only the new one");
            assert_eq!(topics[0].market(), Some("BTC"));
        }
        for line in [
            "websocket_kafka_messages_processed_total 22",
            r#"websocket_kafka_messages_skipped_total{reason="malformed"} 1"#,
            r#"websocket_kafka_consumer_lag{topic="assessment.created"} 0"#,
            "shardgate_ingest_topics 2",
            "shardgate_ingest_partitions 4",
        ] {
            story.until(line, |story| story.shows(line));
        }
        story.end();
        thread.join().unwrap();
    }

    #[test]
    fn a_shard_that_takes_nothing_stops_the_reading_and_the_lag_shows_it_but_nothing_is_lost() {
        let mut story = Story::new(1);
        story.kafka.create_topic("assessment.created", 1, 1).unwrap();
        let thread = story.start();
        story.until("the history is complete", |story| story.status.history_complete.load(Ordering::Acquire));
        let topics = story.inboxes[0].batches.recv_timeout(PATIENCE).unwrap();
        assert!(topics.records.is_empty(), "the topic is announced ahead of its first record");
        // A batch each, and one now and then that tells of offsets alone, until the channel is full and ingest stands
        // with one more in its hand.
        let blocked = |story: &Story| !story.shows("shardgate_ingest_blocked_seconds_total 0.0");
        // On a busy machine a send may take long enough to count without that the channel is full.
        let full = |story: &Story| story.inboxes[0].batches.len() >= BATCH_CHANNEL_DEPTH;
        let mut events = 0;
        while !(full(&story) && blocked(&story)) {
            story.event("assessment.created", &format!("id-{events}"));
            events += 1;
            let taken = |story: &Story| story.inboxes[0].batches.len() >= BATCH_CHANNEL_DEPTH.min(events);
            story.until("in the channel", |story| taken(story) || blocked(story));
        }
        let behind = || (0..10).for_each(|_| story.event("assessment.created", "behind"));
        behind();
        let lag = |lag| format!(r#"websocket_kafka_consumer_lag{{topic="assessment.created"}} {lag}"#);
        story.until("the lag grows", |story| (10..=10 + events).any(|behind| story.shows(&lag(behind))));

        story.receive(0, events + 10);
        let line = r#"websocket_kafka_consumer_lag{topic="assessment.created"} 0"#;
        story.until("the lag is gone", |story| story.shows(line));
        story.end();
        thread.join().unwrap();
    }

    #[test]
    fn a_shard_without_records_still_hears_how_far_ingest_has_read_and_where_new_partitions_begin() {
        let mut story = Story::new(2);
        story.kafka.create_topic("assessment.created", 1, 1).unwrap();
        let thread = story.start();
        let id = (0..).map(|number| format!("id-{number}")).find(|id| shard_of(AssessmentHash::of(id), 2).0 == 0);
        let told = |inbox: &ShardInbox| {
            let batch = inbox.batches.recv_timeout(PATIENCE).unwrap();
            assert!(batch.records.is_empty() && batch.ticks.is_empty());
            batch.starts.iter().map(|start| (start.topic.0, start.partition, start.offset)).collect::<Vec<_>>()
        };
        assert_eq!(told(&story.inboxes[1]), [(0, 0, 0)]);
        story.event("assessment.created", &id.unwrap());
        assert_eq!(told(&story.inboxes[1]), [(0, 0, 1)], "a record of the other shard's");
        story.kafka.create_topic("assessment.started", 2, 1).unwrap();
        assert_eq!(told(&story.inboxes[1]), [(1, 0, 0), (1, 1, 0)], "ahead of any record");
        story.end();
        thread.join().unwrap();
    }

    #[test]
    fn the_ends_of_the_logs_are_told_to_a_shard_that_wants_them_each_time_that_it_says_so_and_to_no_other() {
        let mut story = Story::new(2);
        story.kafka.create_topic("assessment.created", 1, 1).unwrap();
        (0..3).for_each(|_| story.event("assessment.created", "a"));
        let began = Instant::now();
        let thread = story.start();
        story.until("the history is complete", |story| story.status.history_complete.load(Ordering::Acquire));
        let ends = |inbox: &ShardInbox| loop {
            if let Some(ends) = inbox.batches.recv_timeout(PATIENCE).unwrap().ends {
                break ends;
            }
        };
        story.inboxes[1].request_ends();
        let first = ends(&story.inboxes[1]);
        story.event("assessment.created", "a");
        let sent = Instant::now();
        let told = loop {
            story.inboxes[1].request_ends();
            let told = ends(&story.inboxes[1]);
            assert!(told.asked > first.asked, "as they were asked for later");
            if told.asked > sent {
                break told;
            }
        };
        let log_end = |offset| [NextOffset { topic: TopicIndex(0), partition: 0, offset }];
        let offsets = |ends: &PartitionEnds| ends.ends.iter().map(|end| end.at).collect::<Vec<_>>();
        assert!(first.asked > began);
        assert_eq!((offsets(&first), offsets(&told)), (log_end(3).into(), log_end(4).into()));
        let others: Vec<_> = std::iter::from_fn(|| story.inboxes[0].batches.try_recv().ok()).collect();
        assert!(!others.is_empty() && others.iter().all(|batch| batch.ends.is_none()));
        story.end();
        thread.join().unwrap();
    }

    #[test]
    fn after_an_outage_a_new_client_reads_on_from_where_the_old_one_came_to() {
        let mut story = Story::new(1);
        story.kafka.create_topic("assessment.created", 3, 1).unwrap();
        let thread = story.start();
        story.until("the history is complete", |story| story.status.history_complete.load(Ordering::Acquire));
        let send = |story: &Story, numbers: std::ops::Range<u32>| {
            numbers.for_each(|number| story.event("assessment.created", &format!("id-{number}")));
        };
        send(&story, 0..20);
        let mut expected: Vec<_> = (0..20).map(|number| format!("id-{number}")).collect();
        let mut received = ids(&story.receive(0, 20));
        for outage in 1..=2_u32 {
            story.kafka.broker_down(1).unwrap();
            story.until("it shows", |story| !story.status.kafka_up.load(Ordering::Relaxed));
            story.kafka.broker_up(1).unwrap();
            send(&story, 20 * outage..20 * (outage + 1));
            received.extend(ids(&story.receive(0, 20)));
            story.until("a new client reads", |story| {
                // One that asks may be replaced besides.
                story.shows(&format!(r#"shardgate_ingest_client_rebuilds_total{{client="reading"}} {outage}"#))
            });
            story.until("it gives something", |story| story.status.is_kafka_up());
            expected.extend((20 * outage..20 * (outage + 1)).map(|number| format!("id-{number}")));
        }
        received.sort_unstable();
        expected.sort_unstable();
        assert_eq!(received, expected, "none is lost, and none comes twice");
        story.end();
        thread.join().unwrap();
        let late: Vec<_> = std::iter::from_fn(|| story.inboxes[0].batches.try_recv().ok()).collect();
        assert!(late.iter().all(|batch| batch.records.is_empty()), "none comes twice");
    }

    #[test]
    fn a_consumer_that_gives_nothing_is_replaced_and_nothing_is_lost_or_doubled() {
        let mut story = Story::new(1);
        story.kafka.create_topic("assessment.created", 3, 1).unwrap();
        {
            let config = &mut story.parts.as_mut().expect("not started").config;
            config.client_id = "shardgate-stuck".into();
            config.stall = Duration::from_millis(500);
        }
        let thread = story.start();
        story.until("the history is complete", |story| story.status.history_complete.load(Ordering::Acquire));
        let send = |story: &Story, numbers: std::ops::Range<u32>| {
            numbers.for_each(|number| story.event("assessment.created", &format!("id-{number}")));
        };
        send(&story, 0..20);
        let mut received = ids(&story.receive(0, 20));
        for replaced in 1..=3_u32 {
            stuck::get_stuck("shardgate-stuck");
            send(&story, 20 * replaced..20 * (replaced + 1));
            received.extend(ids(&story.receive(0, 20)));
            story.until("a new consumer reads", |story| {
                story.shows(&format!(r#"shardgate_ingest_client_rebuilds_total{{client="reading"}} {replaced}"#))
            });
            story.until("ready", |story| story.status.is_kafka_up());
        }
        received.sort_unstable();
        let mut expected: Vec<_> = (0..80).map(|number| format!("id-{number}")).collect();
        expected.sort_unstable();
        assert_eq!(received, expected);
        story.end();
        thread.join().unwrap();
    }

    #[test]
    fn brokers_that_are_gone_show_within_five_seconds_whatever_is_being_asked_then() {
        let mut story = Story::new(1);
        story.kafka.create_topic("assessment.created", 3, 1).unwrap();
        let thread = story.start();
        story.until("the history is complete", |story| story.status.history_complete.load(Ordering::Acquire));
        for round in 0..12 {
            story.until("it is connected", |story| story.status.is_kafka_up());
            // Somewhere between two questions, or in one of them.
            thread::sleep(Duration::from_millis(37 * round));
            story.kafka.broker_down(1).unwrap();
            let gone = Instant::now();
            story.until("it shows", |story| !story.status.is_kafka_up());
            assert!(gone.elapsed() < Duration::from_secs(5), "{:?}", gone.elapsed());
            story.kafka.broker_up(1).unwrap();
        }
        story.end();
        thread.join().unwrap();
    }

    #[test]
    fn a_pod_starts_without_a_partition_that_has_no_leader_and_skips_to_its_end_when_it_has_one() {
        let mut story = Story::new(1);
        let topic = "assessment.created";
        story.kafka.create_topic(topic, 2, 1).unwrap();
        (0..40).for_each(|number| story.event(topic, &format!("early-{number}")));
        story.kafka.partition_leader(topic, 1, None).unwrap();
        let thread = story.start();
        story.until("the history is complete", |story| story.status.history_complete.load(Ordering::Acquire));
        let missing = format!(r#"shardgate_ingest_missing_partitions{{topic="{topic}"}} 1"#);
        story.until("it shows", |story| story.shows(&missing));
        assert_eq!(story.status.missing.load(Ordering::Relaxed), 1);
        assert!(story.status.is_kafka_up());

        story.kafka.partition_leader(topic, 1, Some(1)).unwrap();
        story.until("it can be read", |story| story.status.missing.load(Ordering::Relaxed) == 0);
        assert!(!story.shows(&missing));
        let mut batches: Vec<Batch> = std::iter::from_fn(|| story.inboxes[0].batches.try_recv().ok()).collect();
        let is_told = |batch: &Batch| batch.deleted.iter().any(|next| next.partition == 1);
        while !batches.iter().any(is_told) {
            batches.push(story.inboxes[0].batches.recv_timeout(PATIENCE).unwrap());
        }
        let starts = batches.iter().flat_map(|batch| &batch.starts);
        let first = starts.clone().find(|start| start.partition == 1).expect("the partition is known from the start");
        assert_eq!(first.offset, 0);
        let read = batches.iter().flat_map(|batch| &batch.records);
        assert!(read.clone().count() > 0 && read.clone().all(|record| record.origin.partition == 0));
        let read = read.count();
        (0..40).for_each(|number| story.event(topic, &format!("late-{number}")));
        let late = ids(&story.receive(0, 40));
        assert!(late.iter().all(|id| id.starts_with("late-")), "{late:?}");
        assert!(read < 40);
        story.end();
        thread.join().unwrap();
    }

    #[test]
    fn a_rejected_property_is_named_without_its_value() {
        let mut story = Story::new(1);
        let parts = story.parts.as_mut().unwrap();
        parts.config.properties.push(("security.protocol".to_owned(), "s3cret".to_owned()));
        let error = spawn(story.parts.take().unwrap()).unwrap_err().to_string();
        assert!(error.contains("security.protocol") && !error.contains("s3cret"), "{error}");
    }
}
