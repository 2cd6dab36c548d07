//! The ingest thread's loop: fetches records, batches them, and sends the batches to the shards. Owns the order of a
//! turn; [`super::batcher`] interprets records, [`super::watcher`] finds what to read.

mod assignment;
mod compacted;
mod missing;
mod replacement;
mod unpacked;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::TrySendError;
use tracing::{info, warn};

use crate::clock::{Now, whole_ms};
use crate::config::KafkaConfig;
use crate::exchange::{IngestStatus, Owner, PodState, PublishedPodState, ShardHandle, Undelivered};
use crate::ids::{AssessmentHash, ShardIndex, TopicIndex};
use crate::limits::{
    INGEST_WAIT, KAFKA_LOG_EVERY, LOOP_STALL_MAX, MALFORMED_LOG_EVERY, METADATA_WAIT_MAX, MISPLACED_REFRESH_EVERY,
    PAUSE_DETECTED_MIN, TICK_LOG_EVERY, TURN_RECORDS_MAX,
};
use crate::log_throttle::LogThrottles;
use crate::stream::batch::{Batch, NextOffset, Origin, PartitionEnds};

use super::batcher::{ConsumedRecord, RecordFault, RecordOutcome};
use super::batching_delay::BatchingDelay;
use super::client::{ClientTerminator, delay_fetches};
use super::kafka::{Consumer, ConsumerEvent, FetchFailure};
use super::lag::{ConsumerLag, HeldBackPartition};
use super::metrics::{IngestCounts, Publisher};
use super::read_progress::ReadProgress;
use super::stall_detector::StallDetector;
use super::startup::Filling;
use super::ticks::TimeFault;
use super::watcher::{RecheckRequest, WatcherHandle, Watermarks};

/// How often the lag is computed, and the progress of the filling is logged.
const LAG_EVERY: Duration = Duration::from_millis(250);
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Shorter waits for a shard are not counted.
const BLOCKED_MIN: Duration = Duration::from_millis(1);

/// The pod stops, or a shard has ended.
struct Stopped;

/// What the thread reads with.
pub(super) struct Reader {
    config: KafkaConfig,
    consumer: Consumer,
    watcher: WatcherHandle,
    state: IngestState,
    batching_delay: BatchingDelay,
    /// Shuts down replaced consumers.
    terminator: ClientTerminator,
    /// Number of outages that the brokers had recovered from when this was last compared.
    recoveries: u64,
}

/// What the thread works on, independent of its client.
struct IngestState {
    shard_handles: Vec<ShardHandle>,
    /// Since when the reader counts as stalled.
    stalled_since: Option<Instant>,
    pod_state: PublishedPodState,
    place_anywhere: bool,
    status: Arc<IngestStatus>,
    progress: ReadProgress,
    /// The length of the shards' windows.
    window: Duration,
    /// Topics that are no longer read.
    retired: HashSet<TopicIndex>,
    /// Partitions that the pod started without. What first comes of one has the watcher asked where it ends by now:
    /// what lies below is skipped, and clients are told.
    missing: HashSet<(TopicIndex, i32)>,
    /// Partitions whose read offsets were refused. What the watcher finds of other partitions is ignored.
    refused: HashSet<(TopicIndex, i32)>,
    /// Partitions of which a batch can't be unpacked, with the offset where it begins.
    not_unpacked: HashMap<(TopicIndex, i32), i64>,
    stall_detector: StallDetector,
    filling: Option<FillProgress>,
    lag: ConsumerLag,
    lag_by_topic: Vec<i64>,
    lag_summed: Instant,
    counts: IngestCounts,
    publisher: Publisher,
    /// How long the start waits for partitions that can't be read.
    start_wait: Duration,
    malformed: LogThrottles<TopicIndex>,
    tick_times: LogThrottles<(TopicIndex, TimeFault)>,
    failed: LogThrottles<(Option<TopicIndex>, i32)>,
    /// Topics with misplaced records, for which a metadata refresh is requested: they may have more partitions.
    misplaced_topics: LogThrottles<TopicIndex>,
    /// The request to send to the watcher, once it can take one.
    recheck: Option<RecheckRequest>,
    /// When the last turn began.
    turned: Instant,
    /// When reading was paused, if it is. It is paused after the process was suspended: a topic may have been
    /// recreated, and librdkafka would continue at the old offset in the new log.
    paused_since: Option<Instant>,
    /// Messages wait and the last turn took none of them.
    leaves_messages: bool,
    /// Shards that take no batch, for the log.
    waited_for: LogThrottles<ShardIndex>,
    open_transactions: LogThrottles<(TopicIndex, i32)>,
    gaps: LogThrottles<(TopicIndex, i32)>,
}

struct FillProgress {
    filling: Filling,
    began: Instant,
    /// Since when the start waits for silent partitions while Kafka answers.
    waits_since: Instant,
    partitions: usize,
    offsets: i64,
    said: Instant,
}

impl Reader {
    pub(super) fn new(
        consumer: Consumer,
        watcher: WatcherHandle,
        parts: super::Parts,
        terminator: ClientTerminator,
    ) -> Self {
        let config = parts.config.clone();
        let batching_delay = BatchingDelay::new(parts.has_own_core);
        let state = IngestState::new(parts, Instant::now());
        Self { config, consumer, watcher, state, batching_delay, terminator, recoveries: 0 }
    }

    /// Reads until the pod stops.
    pub(super) fn run(mut self) {
        while let Ok(taken) = self.turn() {
            let busy = self.state.shard_handles.iter().map(ShardHandle::busy_time);
            if let Some(delay) = self.batching_delay.update(taken, busy, Instant::now()) {
                delay_fetches(delay);
            }
        }
    }

    /// Runs one turn; returns how many messages it took.
    fn turn(&mut self) -> Result<usize, Stopped> {
        let state = &mut self.state;
        let now = Instant::now();
        state.record_turn(now);
        let pod_state = state.pod_state.load_full();
        if pod_state.ended {
            return Err(Stopped);
        }
        let change = match state.is_paused(now) {
            true => self.watcher.change.recv_timeout(INGEST_WAIT).ok(),
            false => self.watcher.change.try_recv().ok(),
        };
        if let Some(change) = change {
            state.apply_change(&change, &mut self.consumer, now);
            // Before the first record: each shard must know where reading starts, or where it continues after a
            // deletion.
            state.flush(&self.watcher, now)?;
        }
        let mut taken = 0;
        // In a flood, what is handed over together wakes a shard once.
        while !state.is_paused(now) && taken < TURN_RECORDS_MAX {
            let fetched = self.consumer.fetch(if taken == 0 { INGEST_WAIT } else { Duration::ZERO });
            let fetched_at = Now::read();
            state.record_turn(fetched_at.instant);
            state.progress.set_fetched(fetched_at);
            if fetched.len() > 0 {
                state.record_activity(fetched_at.instant);
            }
            for message in fetched.iter() {
                state.message(message, &pod_state, &self.watcher, fetched_at.instant)?;
            }
            taken += fetched.len();
            if !fetched.is_full() {
                break;
            }
        }
        state.flush(&self.watcher, now)?;
        state.skip_batches(&self.consumer);
        state.finish_turn(&self.watcher, now);
        state.leaves_messages = taken == 0 && !state.is_paused(now) && self.consumer.queue_len() > 0;
        self.replace_client_if_stalled(Instant::now());
        Ok(taken)
    }
}

impl IngestState {
    fn new(parts: super::Parts, now: Instant) -> Self {
        let shards = u16::try_from(parts.shards.len()).unwrap_or(u16::MAX);
        Self {
            progress: ReadProgress::new(shards, parts.config.event_bytes_max, parts.config.history, now),
            shard_handles: parts.shards,
            stalled_since: None,
            pod_state: parts.pod_state,
            place_anywhere: parts.place_anywhere,
            status: parts.status,
            window: parts.config.history,
            retired: HashSet::new(),
            missing: HashSet::new(),
            refused: HashSet::new(),
            not_unpacked: HashMap::new(),
            start_wait: parts.config.start_wait,
            stall_detector: StallDetector::new(parts.config.stall, now),
            filling: None,
            lag: ConsumerLag::default(),
            lag_by_topic: Vec::new(),
            lag_summed: now,
            counts: IngestCounts::default(),
            publisher: Publisher::new(parts.metrics),
            malformed: LogThrottles::new(MALFORMED_LOG_EVERY),
            tick_times: LogThrottles::new(TICK_LOG_EVERY),
            failed: LogThrottles::new(KAFKA_LOG_EVERY),
            misplaced_topics: LogThrottles::new(MISPLACED_REFRESH_EVERY),
            recheck: None,
            turned: now,
            paused_since: None,
            leaves_messages: false,
            waited_for: LogThrottles::new(KAFKA_LOG_EVERY),
            open_transactions: LogThrottles::new(KAFKA_LOG_EVERY),
            gaps: LogThrottles::new(KAFKA_LOG_EVERY),
        }
    }

    /// A turn begins. If the last one was long ago, the process was suspended: reading pauses until a metadata refresh.
    fn record_turn(&mut self, now: Instant) {
        if !self.leaves_messages {
            self.status.liveness.turn_ended(now);
        }
        if now.saturating_duration_since(self.turned) >= PAUSE_DETECTED_MIN {
            self.stall_detector.interrupted(now);
            self.paused_since = Some(now);
            self.recheck.get_or_insert_default().wants_answer = true;
        }
        self.turned = now;
    }

    /// Whether reading is paused.
    fn is_paused(&mut self, now: Instant) -> bool {
        // If Kafka does not answer the refresh, the topics are most likely unchanged.
        self.paused_since.take_if(|since| now.saturating_duration_since(*since) >= METADATA_WAIT_MAX);
        if self.paused_since.is_some() {
            self.stall_detector.interrupted(now);
        }
        self.paused_since.is_some()
    }

    /// The client delivered something.
    fn record_activity(&mut self, now: Instant) {
        self.stall_detector.record_activity(now);
        // In most cases this is a plain load.
        if self.status.reader_stalled.load(Ordering::Relaxed) {
            self.status.reader_stalled.store(false, Ordering::Release);
            let stalled = self.stalled_since.take().map(|since| now.saturating_duration_since(since));
            info!(elapsed_ms = whole_ms(stalled.unwrap_or_default()), "records arrive again");
        }
    }

    // ---- events of the consumer ------------------------------------------------------------------------------------

    fn message(
        &mut self,
        message: ConsumerEvent<'_>,
        pod_state: &PodState,
        watcher: &WatcherHandle,
        now: Instant,
    ) -> Result<(), Stopped> {
        if !self.missing.is_empty() && self.handle_missing(&message) {
            return Ok(());
        }
        match message {
            ConsumerEvent::Record(incoming) => self.record(&incoming, pod_state, now),
            ConsumerEvent::End { topic, partition, offset } => self.end_seen(topic, partition, offset, now),
            ConsumerEvent::OutOfRange { topic, partition } => {
                self.record_event(topic, partition, false);
                self.refused.insert((topic, partition));
                self.recheck.get_or_insert_default().out_of_range.push((topic, partition));
            }
            ConsumerEvent::Failed { topic, partition, offset, failure, error } => {
                if failure == FetchFailure::Gone {
                    self.recheck.get_or_insert_default();
                }
                if let Some(topic) = topic {
                    self.record_event(topic, partition, failure == FetchFailure::Refused);
                }
                if let (FetchFailure::NotUnpacked, Some(topic)) = (failure, topic) {
                    self.not_unpacked.insert((topic, partition), offset);
                }
                self.fetch_failed(topic, partition, &error, now);
            }
        }
        while let Some((shard, batch)) = self.progress.batcher.take_full() {
            self.deliver(shard, batch, watcher)?;
        }
        Ok(())
    }

    fn record(&mut self, incoming: &ConsumedRecord<'_>, pod_state: &PodState, now: Instant) {
        let outcome = self.progress.record(incoming);
        let topic = incoming.origin.topic;
        match outcome {
            None => {}
            Some(Ok(RecordOutcome::Tick(fault))) => {
                self.counts.processed += 1;
                if let Some(fault) = fault {
                    self.bad_tick(incoming, fault, now);
                }
            }
            Some(Ok(RecordOutcome::Event { hash, is_misplaced })) => {
                let is_own = self.place_anywhere || is_own(hash, pod_state);
                // Without a branch, because no processor can predict it.
                self.counts.processed += u64::from(is_own);
                self.counts.not_owner += u64::from(!is_own);
                if is_misplaced && self.misplaced_topics.admit(topic, now).is_some() {
                    self.recheck.get_or_insert_default();
                }
            }
            Some(Ok(RecordOutcome::FilteredOut)) => self.counts.filtered_out += 1,
            Some(Err(fault)) => self.malformed(incoming.origin, fault, now),
        }
        self.log_notices(now);
    }

    fn malformed(&mut self, origin: Origin, fault: RecordFault, now: Instant) {
        self.counts.malformed(fault);
        if let Some(held_back) = self.malformed.admit(origin.topic, now) {
            let topic = self.topic_name(Some(origin.topic));
            let Origin { partition, offset, .. } = origin;
            warn!(topic, partition, offset, error = %fault, suppressed = held_back, "malformed record skipped");
        }
    }

    fn bad_tick(&mut self, incoming: &ConsumedRecord<'_>, fault: TimeFault, now: Instant) {
        self.counts.bad_tick(fault);
        let Origin { topic, partition, offset } = incoming.origin;
        if let Some(held_back) = self.tick_times.admit((topic, fault), now) {
            let (topic, timestamp_ms) = (self.topic_name(Some(topic)), incoming.timestamp_ms);
            warn!(topic, partition, offset, timestamp_ms, error = %fault, suppressed = held_back, "invalid tick timestamp");
        }
    }

    fn end_seen(&mut self, topic: TopicIndex, partition: i32, offset: i64, now: Instant) {
        self.progress.end(topic, partition, offset);
        self.lag.end_seen(topic, partition, offset, &self.progress.read_offsets);
        self.record_event(topic, partition, false);
        if let Some(since) = &mut self.filling {
            since.filling.end_seen(topic, partition);
        }
        self.log_notices(now);
    }

    /// The consumer reported an event of a partition that is no record.
    fn record_event(&mut self, topic: TopicIndex, partition: i32, is_refused: bool) {
        if let Some(index) = self.progress.read_offsets.index_of(topic, partition) {
            self.stall_detector.record_event(index, is_refused);
        }
    }

    fn fetch_failed(&mut self, topic: Option<TopicIndex>, partition: i32, error: &str, now: Instant) {
        self.counts.partition_errors += 1;
        if let Some(held_back) = self.failed.admit((topic, partition), now) {
            warn!(topic = self.topic_name(topic), partition, error, suppressed = held_back, "fetch failed; retrying");
        }
    }

    fn topic_name(&self, topic: Option<TopicIndex>) -> &str {
        topic.and_then(|topic| self.progress.batcher.topics().get(usize::from(topic.0))).map_or("", |topic| &topic.name)
    }

    // ---- batches ---------------------------------------------------------------------------------------------------

    fn flush(&mut self, watcher: &WatcherHandle, now: Instant) -> Result<(), Stopped> {
        let shards = u16::try_from(self.shard_handles.len()).unwrap_or(u16::MAX);
        for shard in (0..shards).map(ShardIndex) {
            while let Some(batch) = self.progress.batcher.take(shard, &self.progress.read_offsets, now) {
                self.deliver(shard, batch, watcher)?;
            }
        }
        Ok(())
    }

    /// Sends a batch, however long the shard takes: nothing is dropped, and Kafka keeps what is not read yet.
    fn deliver(&mut self, shard: ShardIndex, mut batch: Batch, watcher: &WatcherHandle) -> Result<(), Stopped> {
        self.counts.batches += 1;
        self.counts.batch_bytes += batch.arena.len() as u64;
        let began = Instant::now();
        loop {
            let Some(handle) = self.shard_handles.get(usize::from(shard.0)) else { return Err(Stopped) };
            let tried = Instant::now();
            let sent = handle.send_batch(batch, INGEST_WAIT);
            let now = Instant::now();
            let waited = now.saturating_duration_since(tried);
            if waited >= BLOCKED_MIN {
                self.counts.blocked += waited;
            }
            batch = match sent {
                Ok(()) => return Ok(()),
                Err(Undelivered::Ended) => return Err(Stopped),
                Err(Undelivered::Full(batch)) => *batch,
            };
            self.record_turn(now);
            if self.pod_state.load().ended {
                return Err(Stopped);
            }
            let waited = now.saturating_duration_since(began);
            if waited >= LOOP_STALL_MAX && self.waited_for.admit(shard, now).is_some() {
                warn!(shard = shard.0, elapsed_ms = whole_ms(waited), "shard accepts no batches; reading is blocked");
            }
            self.publish(watcher, now);
            self.stall_detector.interrupted(now);
        }
    }

    // ---- status ----------------------------------------------------------------------------------------------------

    fn finish_turn(&mut self, watcher: &WatcherHandle, now: Instant) {
        if let Some(recheck) = self.recheck.take() {
            // It is full while the watcher is in a query, which may be one that Kafka does not answer.
            self.recheck = watcher.recheck.try_send(recheck).err().map(TrySendError::into_inner);
        }
        self.check_filling(now);
        self.publish(watcher, now);
    }

    fn check_filling(&mut self, now: Instant) {
        let Some(since) = &mut self.filling else { return };
        since.filling.check(&self.progress.read_offsets);
        // While no broker answers, no partition is worse than another.
        if !self.status.kafka_up.load(Ordering::Relaxed) {
            since.waits_since = now;
        }
        if now.saturating_duration_since(since.waits_since) >= self.start_wait {
            self.stop_waiting_for_missing();
        }
        let Some(since) = &mut self.filling else { return };
        let FillProgress { filling, began, partitions, offsets, said, .. } = since;
        // Includes the wait for this turn's records.
        let took = began.elapsed();
        if filling.is_done() {
            info!(partitions = *partitions, offsets = *offsets, elapsed_ms = whole_ms(took), "history complete");
            self.publisher.filling_left(0);
            self.progress.set_filled();
            self.status.history_complete.store(true, Ordering::Release);
            self.filling = None;
            return;
        }
        let left = filling.offsets_left(&self.progress.read_offsets);
        self.publisher.filling_left(left);
        if now.saturating_duration_since(*said) >= PROGRESS_EVERY {
            *said = now;
            info!(offsets = *offsets, offsets_left = left, elapsed_ms = whole_ms(took), "filling the history");
        }
    }

    fn publish(&mut self, watcher: &WatcherHandle, now: Instant) {
        self.publisher.publish(&mut self.counts);
        let ends = watcher.ends.try_recv().ok();
        let has_ends = ends.is_some();
        if let Some(Watermarks { stable, high }) = ends {
            let offsets: Vec<_> = stable.ends.iter().map(|end| end.at).collect();
            self.stall_detector.update_ends(stable.asked, &offsets, &self.progress.read_offsets);
            self.lag.update_ends(&offsets, &self.progress.read_offsets);
            self.lag.update_watermarks(stable.asked, &high, &self.progress.read_offsets);
            self.progress.update_ends(stable.asked, &offsets, &high);
            self.send_ends(stable);
            self.publish_open_transactions(now);
        }
        if has_ends || now.saturating_duration_since(self.lag_summed) >= LAG_EVERY {
            self.lag_summed = now;
            self.lag.sum_up(&self.progress.read_offsets, &mut self.lag_by_topic);
            self.publisher.lag(&self.lag_by_topic);
        }
    }

    /// Publishes the partitions that an open transaction holds back, and logs them at intervals.
    fn publish_open_transactions(&mut self, now: Instant) {
        let held: Vec<HeldBackPartition> = self.lag.held(&self.progress.read_offsets, now).collect();
        let topic_name = |held: &HeldBackPartition| {
            self.progress.batcher.topics().get(usize::from(held.at.topic.0)).map_or("", |topic| &*topic.name)
        };
        for held in &held {
            let NextOffset { topic, partition, offset: last_stable_offset } = held.at;
            if self.open_transactions.admit((topic, partition), now).is_some() {
                let HeldBackPartition { high_watermark, for_time, .. } = held;
                warn!(
                    topic = topic_name(held),
                    partition,
                    last_stable_offset,
                    high_watermark,
                    elapsed_ms = whole_ms(*for_time),
                    "open transaction holds back the records behind it; they are delivered when it is committed or aborted"
                );
            }
        }
        self.publisher.open_transactions(held.iter().map(|held| (topic_name(held), held)));
    }

    /// Sends the ends to the shards that asked for them, with the next turn's batches.
    fn send_ends(&mut self, mut ends: PartitionEnds) {
        let wanting: Vec<_> = self.shard_handles.iter().map(ShardHandle::take_ends_request).collect();
        if !wanting.contains(&true) {
            return;
        }
        // The watcher may have queried partitions of a change that has not arrived here.
        ends.ends.retain(|end| self.progress.read_offsets.index_of(end.at.topic, end.at.partition).is_some());
        let ends = Arc::new(ends);
        for (shard, _) in (0..).map(ShardIndex).zip(wanting).filter(|(_, wants)| *wants) {
            self.progress.batcher.update_ends(shard, &ends);
        }
    }
}

/// Whether this pod counts an event as its own. A pod without a slot owns nothing, so that the pods' counts add up to
/// the events whichever pods come and go.
fn is_own(hash: AssessmentHash, pod_state: &PodState) -> bool {
    pod_state.own_slot.is_some() && !matches!(pod_state.owner(hash), Owner::OtherPod(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, SlotNumber};
    use crate::routing::placement::{Pod, View};

    fn cluster(pods: u32) -> Arc<View> {
        let pod = |number| Some(Pod { node: NodeId(format!("pod-{number}").into()), url: "ws://pod/ws".into() });
        Arc::new(View { version: 1, slots: (0..pods).map(pod).collect() })
    }

    fn holder(view: &Arc<View>, own: Option<u32>) -> PodState {
        PodState { view: Arc::clone(view), own_slot: own.map(SlotNumber), ..PodState::default() }
    }

    #[test]
    fn each_event_is_one_pods_own_and_a_pod_without_a_slot_has_none() {
        let view = cluster(3);
        let pods: Vec<_> = (0..3).map(|slot| holder(&view, Some(slot))).collect();
        let filling = holder(&view, None);
        for number in 0..300 {
            let hash = AssessmentHash::of(&format!("assessment-{number}"));
            assert_eq!(pods.iter().filter(|pod| is_own(hash, pod)).count(), 1);
            assert!(!is_own(hash, &filling));
        }
    }

    #[test]
    fn a_pod_with_a_slot_counts_what_nobody_owns_for_it_serves_that_too() {
        let alone = holder(&Arc::default(), Some(0));
        assert!(is_own(AssessmentHash::of("a"), &alone));
        assert!(!is_own(AssessmentHash::of("a"), &PodState::default()), "it has claimed nothing yet");
    }
}
