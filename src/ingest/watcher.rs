//! The metadata thread: queries topics and partitions, probes the brokers, and queries end offsets. Its queries block
//! within time limits and so never delay records. [`super::startup`] and [`super::reachability`] judge the answers, the
//! reader acts on them.

mod extents;

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use rdkafka::error::KafkaError;
use tracing::{error, info, warn};

use crate::clock::{Now, UnixMs, whole_ms};
use crate::config::KafkaConfig;
use crate::exchange::{IngestStatus, PublishedRoutes};
use crate::ids::TopicIndex;
use crate::limits::{
    ENDS_ASKED_MAX, KAFKA_LOG_EVERY, METADATA_REFRESH_MIN, METADATA_TIMEOUT, PROBE_EVERY, PROBE_TIMEOUT,
    START_QUERY_TIMEOUT, TOPICS_MAX, TOPICS_NAMED_MAX,
};
use crate::log_throttle::LogThrottles;
use crate::outage::{OutageLine, OutageLog};
use crate::routing::table::Topic;
use crate::stream::batch::{LogEnd, NextOffset, PartitionEnds};

use self::extents::names_of;
use super::catalogue::{IndexRules, SeenTopic, TopicCatalogue};
use super::client::ClientTerminator;
use super::metadata_client::{BrokerId, FoundOffset, MetadataClient, failure_of};
use super::metrics::Metrics;
use super::reachability::{ProbeFailure, Reachability, ReplacementTimer};
use super::retention::{CompactedTopic, Retentions, Settings};
use super::startup::{LogRange, PartitionStart};

/// Changes of what is read.
#[derive(Debug)]
pub(super) struct TopologyChange {
    /// Topics that were deleted or recreated, by the indexes under which they were read.
    pub(super) retired: Vec<TopicIndex>,
    /// Topics that were missing and exist after all. Reading continues.
    pub(super) back: Vec<TopicIndex>,
    /// Whether the routes changed.
    pub(super) by_routes: bool,
    /// Topics that no route takes any more, or that another route takes differently.
    pub(super) dropped: Vec<TopicIndex>,
    /// Topics whose records are now mapped to other messages.
    pub(super) remapped: Vec<Arc<Topic>>,
    /// New topics, in the order of their indexes.
    pub(super) topics: Vec<Arc<Topic>>,
    /// Compacted topics that the reader does not know as such.
    pub(super) compacted: Vec<CompactedTopic>,
    /// New partitions, of new and of known topics.
    pub(super) partitions: Vec<PartitionStart>,
    /// No record from their `recent` offsets on was written before this; `None` if that is not known.
    pub(super) since: Option<Instant>,
    /// Partitions without a leader. Reading starts without them.
    pub(super) missing: Vec<(TopicIndex, i32)>,
    /// The log ranges of partitions whose read offsets were out of range.
    pub(super) restarts: Vec<((TopicIndex, i32), LogRange)>,
    /// Whether this is the first change, from which the history is filled.
    pub(super) initial: bool,
    /// Whether the reader waits for this refresh, even if nothing changed.
    pub(super) is_answer: bool,
}

impl TopologyChange {
    fn is_empty(&self) -> bool {
        let topics = self.retired.is_empty() && self.back.is_empty() && self.topics.is_empty();
        let routes = !self.by_routes && self.missing.is_empty();
        topics && routes && self.partitions.is_empty() && self.restarts.is_empty() && self.compacted.is_empty()
    }
}

/// The end offsets of partitions.
#[derive(Debug)]
pub(super) struct Watermarks {
    /// Last stable offsets: the ends for `read_committed`.
    pub(super) stable: PartitionEnds,
    /// High watermarks, of the partitions whose leaders answered.
    pub(super) high: Vec<NextOffset>,
}

/// Why the reader wants a metadata refresh soon.
#[derive(Debug, Default)]
pub(super) struct RecheckRequest {
    /// Partitions whose read offsets are out of range. Their topics may have been recreated.
    pub(super) out_of_range: Vec<(TopicIndex, i32)>,
    /// Whether it waits for the refresh.
    pub(super) wants_answer: bool,
}

/// The reader's side of the thread. The thread ends when this is dropped, after its current query.
pub(super) struct WatcherHandle {
    /// The last change. Until the reader takes it, the thread does not refresh the topics.
    pub(super) change: Receiver<TopologyChange>,
    /// The partitions' ends. Until the reader takes them, no newer ones are queried.
    pub(super) ends: Receiver<Watermarks>,
    /// Requests a metadata refresh at once.
    pub(super) recheck: Sender<RecheckRequest>,
    recoveries: Arc<AtomicU64>,
    stop: Option<Sender<Infallible>>,
    done: Receiver<Infallible>,
}

/// How long shutdown waits for the thread. It may be in a query that a broker does not answer, and holds nothing that
/// needs cleaning up.
const END_WAIT: Duration = Duration::from_secs(1);

impl WatcherHandle {
    /// How often the brokers answered again after an outage.
    pub(super) fn recoveries(&self) -> u64 {
        self.recoveries.load(Ordering::Acquire)
    }
}

impl Drop for WatcherHandle {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Returns when the thread has ended, or after the wait. Neither needs handling.
        let _ = self.done.recv_timeout(END_WAIT);
    }
}

/// The topic of a probe while no topic is read. It need not exist, and the query does not create it.
const ANY_TOPIC: &str = "__consumer_offsets";

/// What the thread is made from.
pub(super) struct WatcherParts {
    pub(super) config: KafkaConfig,
    pub(super) routes: PublishedRoutes,
    pub(super) indexes: IndexRules,
    pub(super) status: Arc<IngestStatus>,
    pub(super) metrics: Metrics,
    /// Shuts down replaced clients.
    pub(super) terminator: ClientTerminator,
}

/// Starts the thread.
///
/// # Errors
/// If the system can't start a thread.
pub(super) fn start(cluster: MetadataClient, settings: WatcherParts) -> io::Result<WatcherHandle> {
    let (found_in, change) = bounded(1);
    let (ends_in, ends) = bounded(1);
    let (recheck, doubts_out) = bounded(1);
    let (stop, stopped) = bounded(0);
    let (done_in, done) = bounded(0);
    let recoveries = Arc::new(AtomicU64::new(0));
    let watcher_thread = WatcherThread {
        cluster,
        catalogue: TopicCatalogue::new(settings.routes.load_full(), settings.indexes),
        routes: settings.routes,
        replacement_timer: ReplacementTimer::new(settings.config.stall),
        outage: OutageLog::default(),
        last_answer: None,
        config: settings.config,
        status: settings.status,
        metrics: settings.metrics,
        terminator: settings.terminator,
        recoveries: Arc::clone(&recoveries),
        change: found_in,
        ends: ends_in,
        brokers: Reachability::default(),
        recheck: doubts_out,
        cluster_id: None,
        led_partitions: Vec::new(),
        asked_until: 0,
        retentions: Retentions::default(),
        is_refusal_told: false,
        out_of_range: HashSet::new(),
        owes_answer: false,
        refreshed: None,
        started: false,
        first_look: None,
        log_throttle: LogThrottles::new(KAFKA_LOG_EVERY),
    };
    thread::Builder::new().name("kafka-watcher".into()).spawn(move || {
        let _done = done_in;
        watcher_thread.run(&stopped);
    })?;
    Ok(WatcherHandle { change, ends, recheck, recoveries, stop: Some(stop), done })
}

struct WatcherThread {
    cluster: MetadataClient,
    config: KafkaConfig,
    status: Arc<IngestStatus>,
    metrics: Metrics,
    terminator: ClientTerminator,
    replacement_timer: ReplacementTimer,
    outage: OutageLog,
    last_answer: Option<Instant>,
    /// How often the brokers answered again after an outage.
    recoveries: Arc<AtomicU64>,
    change: Sender<TopologyChange>,
    ends: Sender<Watermarks>,
    recheck: Receiver<RecheckRequest>,
    brokers: Reachability,
    /// Once it was queried.
    cluster_id: Option<String>,
    /// The topics, as announced to the reader.
    catalogue: TopicCatalogue,
    routes: PublishedRoutes,
    /// The partitions that had a leader at the last refresh.
    led_partitions: Vec<(TopicIndex, i32)>,
    /// Where the next query for ends continues among them.
    asked_until: usize,
    retentions: Retentions,
    /// Whether it was logged that settings may not be read.
    is_refusal_told: bool,
    /// Partitions for which the reader waits to learn where to continue.
    out_of_range: HashSet<(TopicIndex, i32)>,
    /// Whether the reader waits for the next refresh.
    owes_answer: bool,
    refreshed: Option<Instant>,
    started: bool,
    /// When the first refresh was.
    first_look: Option<Instant>,
    log_throttle: LogThrottles<&'static str>,
}

impl WatcherThread {
    fn run(mut self, stopped: &Receiver<Infallible>) {
        loop {
            let asked = Instant::now();
            self.status.watcher_liveness.turn_ended(asked);
            if let Err(error) = self.poll_cluster(asked) {
                self.handle_failure(&error, asked);
            }
            self.cluster.serve();
            let pause = self.config.topic_refresh.min(PROBE_EVERY).saturating_sub(asked.elapsed());
            let recheck = select! {
                recv(self.recheck) -> recheck => recheck.ok(),
                recv(stopped) -> _ => return,
                default(pause) => None,
            };
            if let Some(recheck) = recheck {
                self.out_of_range.extend(recheck.out_of_range);
                self.owes_answer |= recheck.wants_answer;
                self.refreshed = None;
                let pause = METADATA_REFRESH_MIN.saturating_sub(asked.elapsed());
                if stopped.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        }
    }

    /// Sends a probe, and then the queries that are due.
    fn poll_cluster(&mut self, now: Instant) -> Result<(), KafkaError> {
        let one = self.led_partitions.first().and_then(|(topic, _)| self.catalogue.topics().get(usize::from(topic.0)));
        self.cluster.probe(one.map_or(ANY_TOPIC, |topic| &topic.name), PROBE_TIMEOUT)?;
        self.handle_answer();
        if self.catalogue.go_by(self.routes.load_full()) {
            self.refreshed = None;
        }
        let due = self.refreshed.is_none_or(|last| now.saturating_duration_since(last) >= self.config.topic_refresh);
        // Until the reader has taken the last change, another one could not be sent.
        if due && !self.change.is_full() {
            let (seen, broker) = self.fetch_topics()?;
            let seen = self.identify(seen, broker);
            self.refreshed = seen.is_some_and(|seen| self.send_change(&seen, broker)).then_some(now);
        }
        // If the brokers are gone, the next probe should show it soon.
        if !self.cluster.are_brokers_gone() {
            self.ask_for_ends();
        }
        Ok(())
    }

    /// The brokers answered, just now.
    fn handle_answer(&mut self) {
        let now = Instant::now();
        self.cluster.handle_answer();
        self.brokers.handle_answer(now);
        self.replacement_timer.handle_answer();
        self.last_answer = Some(now);
        let brokers = &self.config.brokers;
        match self.outage.handle_success(now) {
            Some(OutageLine::Ended(outage)) => {
                info!(%brokers, elapsed_ms = whole_ms(outage), "Kafka connection restored");
            }
            Some(_) => info!(%brokers, "connected to Kafka"),
            None => {}
        }
        if !self.status.kafka_up.swap(true, Ordering::Relaxed) && self.started {
            self.recoveries.fetch_add(1, Ordering::Release);
        }
    }

    /// A query failed that was sent at `asked` or later. The rules judge what that means.
    fn handle_failure(&mut self, error: &KafkaError, asked: Instant) {
        let now = Instant::now();
        let failure = match failure_of(error) {
            ProbeFailure::Silent if self.cluster.are_brokers_gone() => ProbeFailure::Unreachable,
            failure => failure,
        };
        self.brokers.handle_failure(failure, now);
        if !self.brokers.connected() {
            if self.status.kafka_up.swap(false, Ordering::Relaxed) && self.started {
                // Until the reader's client has delivered again.
                self.status.reader_stalled.store(true, Ordering::Release);
            }
            let began = self.last_answer.unwrap_or(asked);
            let brokers = &self.config.brokers;
            match self.outage.handle_failure(began, now) {
                Some(OutageLine::Continues(outage)) => {
                    let since = UnixMs(Now::read().unix.0.saturating_sub(whole_ms(outage)));
                    warn!(%brokers, %since, elapsed_ms = whole_ms(outage), %error, "Kafka still unreachable");
                }
                Some(_) => warn!(%brokers, %error, "Kafka unreachable; clients stay connected and catch up later"),
                None => {}
            }
        }
        if self.replacement_timer.handle_failure(failure, now) {
            self.replace_client(error);
        }
    }

    /// Replaces the metadata client, which may not recover.
    fn replace_client(&mut self, error: &KafkaError) {
        if !self.terminator.has_room() {
            return self.log_throttled(
                "replaced Kafka clients do not shut down; keeping the current metadata client",
                0,
                Some(error),
            );
        }
        match MetadataClient::new(&self.config) {
            Ok(cluster) => {
                self.terminator.end(std::mem::replace(&mut self.cluster, cluster));
                self.metrics.metadata_client_replaced();
                info!(%error, "metadata client replaced: no answer");
            }
            Err(invalid) => warn!(error = %invalid, "no new metadata client; keeping the current one"),
        }
    }

    /// The time limit of a large query.
    fn query_timeout(&self) -> Duration {
        if self.started { METADATA_TIMEOUT } else { START_QUERY_TIMEOUT }
    }

    /// All topics that a route takes, without their ids, and the broker for further queries.
    fn fetch_topics(&self) -> Result<(Vec<SeenTopic>, BrokerId), KafkaError> {
        let mut seen = Vec::new();
        let broker = self.cluster.topics(self.query_timeout(), |name, partitions| {
            // A topic that is being created or deleted has no partitions.
            let mut partitions = partitions.peekable();
            if partitions.peek().is_none() || !self.catalogue.takes(name) {
                return;
            }
            let (led_partitions, leaderless): (Vec<_>, Vec<_>) = partitions.partition(|(_, has_leader)| *has_leader);
            let numbers =
                |partitions: Vec<(i32, bool)>| partitions.into_iter().map(|(partition, _)| partition).collect();
            seen.push(SeenTopic {
                name: name.into(),
                id: "".into(),
                led_partitions: numbers(led_partitions),
                leaderless: numbers(leaderless),
            });
        })?;
        Ok((seen, broker))
    }

    /// Adds the topics' ids. `None` if the query fails.
    fn identify(&mut self, mut seen: Vec<SeenTopic>, broker: BrokerId) -> Option<Vec<SeenTopic>> {
        let names: Vec<Box<str>> = seen.iter().map(|topic| topic.name.clone()).collect();
        match self.cluster.topic_ids(&names, broker, PROBE_TIMEOUT) {
            Ok(mut ids) => {
                // A topic that was deleted between the queries has no id. It is left out.
                seen.retain_mut(|topic| ids.remove(&topic.name).map(|id| topic.id = id).is_some());
                Some(seen)
            }
            Err(error) => {
                let partitions = seen.iter().map(|topic| topic.led_partitions.len()).sum();
                self.log_throttled("topic ids unknown; retrying", partitions, Some(&error));
                None
            }
        }
    }

    /// Queries settings of topics, of which those of the indexes `new` are new. Returns what is known then, and what the
    /// reader does not know.
    fn query_retention(
        &mut self,
        catalogue: &TopicCatalogue,
        new: &[TopicIndex],
        broker: BrokerId,
    ) -> (Retentions, Vec<CompactedTopic>) {
        let mut retentions = self.retentions.clone();
        if !self.config.has_topic_settings {
            return (retentions, Vec::new());
        }
        let due = retentions.due(catalogue.topics(), new, |topic| catalogue.is_current(topic));
        let names: Vec<&str> = due.iter().map(|topic| &*topic.name).collect();
        let queried = Instant::now();
        match self.cluster.retention(&names, broker, PROBE_TIMEOUT) {
            Ok(answers) => {
                let topics = answers.iter().filter(|answer| **answer == Settings::Refused).count();
                if topics > 0 && !std::mem::replace(&mut self.is_refusal_told, true) {
                    warn!(
                        topics,
                        "no right to read the settings of topics (DESCRIBE_CONFIGS): compacted topics are treated as not compacted"
                    );
                }
                let answers = answers.iter().map(|settings| settings.retention());
                let compacted = retentions.handle_answers(&due, answers, queried);
                (retentions, compacted)
            }
            Err(error) => {
                self.log_throttled("cleanup.policy unknown; retrying", 0, Some(&error));
                (self.retentions.clone(), Vec::new())
            }
        }
    }

    /// Sends the reader what changed. Returns `false` if something is still unknown: then the next turn refreshes again.
    fn send_change(&mut self, seen: &[SeenTopic], broker: BrokerId) -> bool {
        let initial = !self.started;
        if initial && self.waits_for_leaders(seen) {
            return false;
        }
        let cluster_id = self.cluster_id.get_or_insert_with(|| self.cluster.id(PROBE_TIMEOUT));
        let mut catalogue = self.catalogue.clone();
        let changes = catalogue.apply_metadata(cluster_id, seen, Instant::now());
        self.metrics.topics_known(catalogue.topics().len(), changes.unread);
        self.log_unread_topics(changes.unread);
        let since = initial.then(|| Instant::now().checked_sub(self.config.history)).flatten();
        let partitions = match self.starts(initial, &changes, catalogue.topics()) {
            Ok(partitions) => partitions,
            Err(error) => {
                self.log_throttled("partition offsets unknown; retrying", changes.fresh.len(), Some(&error));
                return false;
            }
        };
        self.out_of_range.retain(|&(topic, _)| catalogue.is_current(topic));
        let restarts = self.restarts(&changes.led_partitions, catalogue.topics());
        let topics = topics_of(&changes.met, catalogue.topics());
        let remapped = topics_of(&changes.remapped, catalogue.topics());
        // If this change can't be sent, their settings are queried again.
        self.retentions.forget(&changes.met);
        let (retentions, compacted) = self.query_retention(&catalogue, &changes.met, broker);
        let is_answer = self.owes_answer;
        let mut missing = changes.leaderless;
        missing.retain(|(topic, _)| initial || changes.met_by_routes.contains(topic));
        catalogue.mark_announced(&missing);
        let (retired, back, dropped) = (changes.retired, changes.back, changes.dropped);
        let change = TopologyChange {
            retired,
            back,
            by_routes: changes.by_routes,
            dropped,
            remapped,
            topics,
            compacted,
            partitions,
            since,
            missing,
            restarts,
            initial,
            is_answer,
        };
        if initial || is_answer || !change.is_empty() {
            let answered: Vec<_> = change.restarts.iter().map(|(partition, _)| *partition).collect();
            // It is full if the reader has not taken the last change: then the next refresh finds this one again. It is
            // closed when the pod stops.
            if self.change.try_send(change).is_err() {
                return false;
            }
            self.out_of_range.retain(|partition| !answered.contains(partition));
            self.started = true;
            self.owes_answer = false;
        }
        self.retentions = retentions;
        self.catalogue = catalogue;
        self.led_partitions = changes.led_partitions;
        !changes.doubtful && self.out_of_range.is_empty()
    }

    /// Whether the start still waits for partitions to have leaders. The wait is bounded: a lost partition must not hold
    /// back all others.
    fn waits_for_leaders(&mut self, seen: &[SeenTopic]) -> bool {
        let leaderless: usize = seen.iter().map(|topic| topic.leaderless.len()).sum();
        let since = *self.first_look.get_or_insert_with(Instant::now);
        if leaderless == 0 || since.elapsed() >= self.config.start_wait {
            return false;
        }
        let names = seen.iter().filter(|topic| !topic.leaderless.is_empty()).map(|topic| &*topic.name);
        let topics = names.take(TOPICS_NAMED_MAX).collect::<Vec<_>>().join(", ");
        if self.log_throttle.admit("leaderless", Instant::now()).is_some() {
            let limit_ms = whole_ms(self.config.start_wait);
            warn!(partitions = leaderless, topics, limit_ms, "waiting at start for partitions without a leader");
        }
        true
    }

    fn log_unread_topics(&mut self, topics: usize) {
        if topics > 0 && self.log_throttle.admit("unread topics", Instant::now()).is_some() {
            error!(
                topics,
                "too many topics: a pod can read {TOPICS_MAX} in its lifetime, deleted and recreated ones \
                 included; restart it"
            );
        }
    }

    fn log_throttled(&mut self, what: &'static str, partitions: usize, error: Option<&KafkaError>) {
        if self.log_throttle.admit(what, Instant::now()).is_some() {
            warn!(partitions, error = error.map(tracing::field::display), "{what}");
        }
    }

    /// Sends partitions' ends to the reader, those of many partitions in turn. If a leader doesn't answer, its last ends
    /// remain.
    fn ask_for_ends(&mut self) {
        if self.ends.is_full() {
            return;
        }
        let first = if self.asked_until < self.led_partitions.len() { self.asked_until } else { 0 };
        self.asked_until = self.led_partitions.len().min(first + ENDS_ASKED_MAX);
        let led_partitions = &self.led_partitions[first..self.asked_until];
        let names = names_of(led_partitions, self.catalogue.topics());
        let asked = Instant::now();
        let Ok(ends) = self.cluster.ends(&names, PROBE_TIMEOUT) else { return };
        let end = |(&(topic, partition), offset): (&(TopicIndex, i32), Option<i64>)| {
            Some(NextOffset { topic, partition, offset: offset? })
        };
        let log_end = |(partition, change): (&(TopicIndex, i32), Option<FoundOffset>)| {
            let FoundOffset { offset, leader_epoch } = change?;
            Some(LogEnd { at: end((partition, Some(offset)))?, leader_epoch })
        };
        let ends = led_partitions.iter().zip(ends).filter_map(log_end).collect();
        // The high watermarks are queried last: a record written in between is not held back by a transaction for long.
        let high = self.cluster.high_watermarks(&names, PROBE_TIMEOUT).unwrap_or_default();
        let high = led_partitions.iter().zip(high).filter_map(end).collect();
        // It was not full, and has no other sender. If it is closed, the pod stops.
        drop(self.ends.try_send(Watermarks { stable: PartitionEnds { asked, ends }, high }));
    }
}

fn topics_of(indexes: &[TopicIndex], topics: &[Arc<Topic>]) -> Vec<Arc<Topic>> {
    indexes.iter().filter_map(|index| topics.get(usize::from(index.0))).cloned().collect()
}
