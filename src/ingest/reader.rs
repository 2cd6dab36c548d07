//! The ingest thread's loop: takes what came from Kafka, has it batched, and hands the batches to the shards. It owns
//! the order of a turn; what a record means is [`super::batcher`]'s, what is to be read [`super::watcher`]'s to find.

mod assignment;
mod compacted;
mod missing;
mod renewal;
mod unpacked;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::TrySendError;
use tracing::{info, warn};

use crate::clock::Now;
use crate::config::KafkaConfig;
use crate::exchange::{IngestStatus, Owner, PublishedStanding, ShardDoor, Standing, Undelivered};
use crate::ids::{AssessmentHash, ShardIndex, TopicIndex};
use crate::limits::{
    INGEST_WAIT, KAFKA_LOG_EVERY, LOOK_WAITED_FOR_MAX, MALFORMED_LOG_EVERY, STANDSTILL_MIN, STRAY_LOOK_EVERY,
    TICK_LOG_EVERY, TURN_AGE_MAX, TURN_RECORDS_MAX,
};
use crate::log_throttle::LogThrottles;
use crate::stream::batch::{Batch, Ends, NextOffset, Origin};

use super::batcher::{Batcher, Fault, Incoming, Taken};
use super::client::Ending;
use super::compaction::Compaction;
use super::continuity::{Continuity, Course, Lost, Notes};
use super::kafka::{Consumer, FetchFailure, Message};
use super::lag::{Held, Lag};
use super::metrics::{Publisher, Tally};
use super::pace::Pace;
use super::positions::Positions;
use super::progress::Progress;
use super::startup::Filling;
use super::ticks::TimeFault;
use super::watcher::{Doubts, LogEnds, Watcher};

/// How often the lag is summed up, and the progress of the filling said.
const LAG_EVERY: Duration = Duration::from_millis(250);
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// A wait for a shard that is worth counting: less is the cost of the clock.
const BLOCKED_MIN: Duration = Duration::from_millis(1);

/// All is over: the standing says so, or a shard has ended.
struct Over;

/// What the thread reads with.
pub(super) struct Reader {
    config: KafkaConfig,
    consumer: Consumer,
    watcher: Watcher,
    desk: Desk,
    pace: Pace,
    /// Where a client that is replaced ends.
    ending: Ending,
    /// How often the brokers had come back when the client was made, or judged last.
    returns: u64,
}

/// What the thread works on, whichever way records came.
struct Desk {
    doors: Vec<ShardDoor>,
    standing: PublishedStanding,
    place_anywhere: bool,
    status: Arc<IngestStatus>,
    batcher: Batcher,
    positions: Positions,
    continuity: Continuity,
    compaction: Compaction,
    /// How far back the shards remember.
    window: Duration,
    /// Topics that are not read any more.
    retired: HashSet<TopicIndex>,
    /// Partitions that the pod started without. What first comes of one has the watcher asked where it ends by now: what
    /// lies below is skipped, and clients are told.
    missing: HashSet<(TopicIndex, i32)>,
    /// Partitions whose positions were refused: what the watcher finds of others is of no use any more.
    refused: HashSet<(TopicIndex, i32)>,
    /// Partitions whose next batch can't be unpacked, and how often in a row that came of those that are passed over.
    not_unpacked: HashSet<(TopicIndex, i32)>,
    passed_over: HashMap<(TopicIndex, i32), u32>,
    progress: Progress,
    filling: Option<FillingSince>,
    lag: Lag,
    lag_by_topic: Vec<i64>,
    lag_summed: Instant,
    tally: Tally,
    publisher: Publisher,
    /// The start waits so long for partitions that can't be read.
    start_wait: Duration,
    malformed: LogThrottles<TopicIndex>,
    tick_times: LogThrottles<(TopicIndex, TimeFault)>,
    failed: LogThrottles<(Option<TopicIndex>, i32)>,
    /// Topics whose records make a look worth while: they may have more partitions.
    strays: LogThrottles<TopicIndex>,
    /// For the watcher, as soon as it takes them.
    doubts: Option<Doubts>,
    /// When the loop was last seen to turn.
    turned: Instant,
    /// Since when nothing is read, because the process stood still: a topic may have been made anew meanwhile, and
    /// librdkafka would go on at the old log's offset in the new one.
    held: Option<Instant>,
    /// Messages wait and the last turn took none of them.
    leaves_messages: bool,
    /// Shards that take no batch, for the log.
    waited_for: LogThrottles<ShardIndex>,
    open_transactions: LogThrottles<(TopicIndex, i32)>,
    gaps: LogThrottles<(TopicIndex, i32)>,
}

struct FillingSince {
    filling: Filling,
    began: Instant,
    /// Since when partitions that give nothing are waited for, while Kafka is reached.
    waits_since: Instant,
    partitions: usize,
    offsets: i64,
    said: Instant,
}

impl Reader {
    pub(super) fn new(consumer: Consumer, watcher: Watcher, parts: super::Parts, ending: Ending) -> Self {
        let config = parts.config.clone();
        let desk = Desk::new(parts, Instant::now());
        Self { config, consumer, watcher, desk, pace: Pace::default(), ending, returns: 0 }
    }

    /// Reads until all is over.
    pub(super) fn run(mut self) {
        while let Ok(records) = self.turn() {
            let pause = self.pace.after(records, Instant::now());
            if !pause.is_zero() {
                thread::sleep(pause);
            }
        }
    }

    /// Returns how many records were taken.
    fn turn(&mut self) -> Result<usize, Over> {
        let desk = &mut self.desk;
        let now = Instant::now();
        desk.turns(now);
        let standing = desk.standing.load_full();
        if standing.ended {
            return Err(Over);
        }
        let found = match desk.is_held(now) {
            true => self.watcher.found.recv_timeout(INGEST_WAIT).ok(),
            false => self.watcher.found.try_recv().ok(),
        };
        if let Some(found) = found {
            desk.take_in(&found, &mut self.consumer, now);
            // Before the first record: where reading begins, or goes on behind what was deleted, is what each shard goes by.
            desk.flush(&self.watcher, now)?;
        }
        let (mut taken, mut records) = (0, 0);
        // In a flood, what is handed over together wakes a shard once.
        while !desk.is_held(now) && taken < TURN_RECORDS_MAX {
            let fetched = self.consumer.fetch(if taken == 0 { INGEST_WAIT } else { Duration::ZERO });
            let fetched_at = Now::read();
            desk.turns(fetched_at.instant);
            desk.batcher.set_now(fetched_at);
            if fetched.len() > 0 {
                desk.took(fetched_at.instant);
            }
            for message in fetched.iter() {
                records += usize::from(matches!(message, Message::Record(_)));
                desk.message(message, &standing, &self.watcher, now)?;
            }
            taken += fetched.len();
            if !fetched.is_full() {
                break;
            }
        }
        desk.flush(&self.watcher, now)?;
        desk.pass_over(&self.consumer);
        desk.finish_turn(&self.watcher, now);
        desk.leaves_messages = taken == 0 && !desk.is_held(now) && self.consumer.waiting() > 0;
        self.renew_where_needed(Instant::now());
        Ok(records)
    }
}

impl Desk {
    fn new(parts: super::Parts, now: Instant) -> Self {
        let shards = u16::try_from(parts.shards.len()).unwrap_or(u16::MAX);
        Self {
            batcher: Batcher::new(shards, parts.config.event_bytes_max, parts.config.history),
            doors: parts.shards,
            standing: parts.standing,
            place_anywhere: parts.place_anywhere,
            status: parts.status,
            positions: Positions::default(),
            continuity: Continuity::default(),
            compaction: Compaction::default(),
            window: parts.config.history,
            retired: HashSet::new(),
            missing: HashSet::new(),
            refused: HashSet::new(),
            not_unpacked: HashSet::new(),
            passed_over: HashMap::new(),
            start_wait: parts.config.start_wait,
            progress: Progress::new(parts.config.stall, now),
            filling: None,
            lag: Lag::default(),
            lag_by_topic: Vec::new(),
            lag_summed: now,
            tally: Tally::default(),
            publisher: Publisher::new(parts.metrics),
            malformed: LogThrottles::new(MALFORMED_LOG_EVERY),
            tick_times: LogThrottles::new(TICK_LOG_EVERY),
            failed: LogThrottles::new(KAFKA_LOG_EVERY),
            strays: LogThrottles::new(STRAY_LOOK_EVERY),
            doubts: None,
            turned: now,
            held: None,
            leaves_messages: false,
            waited_for: LogThrottles::new(KAFKA_LOG_EVERY),
            open_transactions: LogThrottles::new(KAFKA_LOG_EVERY),
            gaps: LogThrottles::new(KAFKA_LOG_EVERY),
        }
    }

    /// The loop turns. Where it has not for long, the process stood still: reading waits for a look at the topics.
    fn turns(&mut self, now: Instant) {
        if !self.leaves_messages {
            self.status.pulse.beat(now);
        }
        if now.saturating_duration_since(self.turned) >= STANDSTILL_MIN {
            self.progress.interrupted(now);
            self.held = Some(now);
            self.doubts.get_or_insert_default().wants_answer = true;
        }
        self.turned = now;
    }

    /// Whether nothing may be read yet.
    fn is_held(&mut self, now: Instant) -> bool {
        // Where Kafka doesn't say what there is, the topics are most likely what they were.
        self.held.take_if(|since| now.saturating_duration_since(*since) >= LOOK_WAITED_FOR_MAX);
        if self.held.is_some() {
            self.progress.interrupted(now);
        }
        self.held.is_some()
    }

    /// The client gave something.
    fn took(&mut self, now: Instant) {
        self.progress.took(now);
        // A look alone most of the time.
        if self.status.stuck.load(Ordering::Relaxed) {
            self.status.stuck.store(false, Ordering::Release);
            info!("reading again");
        }
    }

    // ---- what comes -------------------------------------------------------------------------------------------------------

    fn message(
        &mut self,
        message: Message<'_>,
        standing: &Standing,
        watcher: &Watcher,
        now: Instant,
    ) -> Result<(), Over> {
        if !self.missing.is_empty() && self.is_of_missing(&message) {
            return Ok(());
        }
        match message {
            Message::Record(incoming) => self.record(&incoming, standing, watcher, now)?,
            Message::End { topic, partition, offset } => self.end_seen((topic, partition), offset, watcher, now)?,
            Message::OutOfRange { topic, partition } => {
                self.said(topic, partition, false);
                self.refused.insert((topic, partition));
                self.doubts.get_or_insert_default().out_of_range.push((topic, partition));
            }
            Message::Failed { topic, partition, failure, error } => {
                if failure == FetchFailure::Gone {
                    self.doubts.get_or_insert_default();
                }
                if let Some(topic) = topic {
                    self.said(topic, partition, failure == FetchFailure::Refused);
                }
                if let (FetchFailure::NotUnpacked, Some(topic)) = (failure, topic) {
                    self.not_unpacked.insert((topic, partition));
                }
                self.fetch_failed(topic, partition, &error, now);
            }
        }
        Ok(())
    }

    fn record(
        &mut self,
        incoming: &Incoming<'_>,
        standing: &Standing,
        watcher: &Watcher,
        now: Instant,
    ) -> Result<(), Over> {
        let origin = incoming.origin;
        self.is_unpacked(origin.topic, origin.partition);
        match self.continuity.record(&self.positions, origin, incoming.epoch) {
            Course::On => {}
            Course::Noted(notes) => self.note(origin, notes, now),
            Course::Again => return Ok(()),
            Course::Replaced(cut) => {
                self.flush(watcher, now)?;
                self.lost(origin.topic, origin.partition, Lost::Cut(cut));
                let epoch = (incoming.epoch >= 0).then_some(incoming.epoch);
                self.note(origin, Notes { epoch, ..Notes::default() }, now);
            }
        }
        match self.batcher.push(incoming, &self.positions) {
            Ok(Taken::Tick(fault)) => {
                self.tally.processed += 1;
                if let Some(fault) = fault {
                    self.bad_tick_time(incoming, fault, now);
                }
            }
            Ok(Taken::Event { hash, is_stray }) => {
                let is_own = self.place_anywhere || is_own(hash, standing);
                // Without a branch: which it will be, no processor can guess.
                self.tally.processed += u64::from(is_own);
                self.tally.not_owner += u64::from(!is_own);
                if is_stray && self.strays.admit(origin.topic, now).is_some() {
                    self.doubts.get_or_insert_default();
                }
            }
            Err(fault) => self.malformed(origin, fault, now),
        }
        self.positions.set(origin.topic, origin.partition, origin.offset + 1);
        while let Some((shard, batch)) = self.batcher.take_full() {
            self.deliver(shard, batch, watcher)?;
        }
        Ok(())
    }

    fn malformed(&mut self, origin: Origin, fault: Fault, now: Instant) {
        self.tally.malformed(fault);
        if let Some(held_back) = self.malformed.admit(origin.topic, now) {
            let topic = self.name(Some(origin.topic));
            let Origin { partition, offset, .. } = origin;
            warn!(topic, partition, offset, reason = %fault, held_back, "a record can't be used");
        }
    }

    fn bad_tick_time(&mut self, incoming: &Incoming<'_>, fault: TimeFault, now: Instant) {
        self.tally.bad_tick_time(fault);
        let Origin { topic, partition, offset } = incoming.origin;
        if let Some(held_back) = self.tick_times.admit((topic, fault), now) {
            let (topic, timestamp_ms) = (self.name(Some(topic)), incoming.timestamp_ms);
            warn!(topic, partition, offset, timestamp_ms, reason = %fault, held_back, "a tick's timestamp can't be used");
        }
    }

    fn end_seen(
        &mut self,
        (topic, partition): (TopicIndex, i32),
        offset: i64,
        watcher: &Watcher,
        now: Instant,
    ) -> Result<(), Over> {
        if let Some(cut) = self.continuity.end(&self.positions, topic, partition, offset) {
            self.flush(watcher, now)?;
            self.lost(topic, partition, Lost::Cut(cut));
        }
        if self.positions.next(topic, partition).is_some_and(|next| next < offset) {
            self.gap(NextOffset { topic, partition, offset }, now);
        }
        self.is_unpacked(topic, partition);
        self.positions.set(topic, partition, offset);
        self.lag.end_seen(topic, partition, offset, &self.positions);
        self.said(topic, partition, false);
        if let Some(since) = &mut self.filling {
            since.filling.end_seen(topic, partition);
        }
        Ok(())
    }

    /// The client said something of a partition beside its records.
    fn said(&mut self, topic: TopicIndex, partition: i32, is_refused: bool) {
        if let Some(place) = self.positions.place(topic, partition) {
            self.progress.said(place, is_refused);
        }
    }

    fn fetch_failed(&mut self, topic: Option<TopicIndex>, partition: i32, error: &str, now: Instant) {
        self.tally.partition_errors += 1;
        if let Some(held_back) = self.failed.admit((topic, partition), now) {
            warn!(topic = self.name(topic), partition, error, held_back, "reading failed; trying on");
        }
    }

    fn name(&self, topic: Option<TopicIndex>) -> &str {
        topic.and_then(|topic| self.batcher.topics().get(usize::from(topic.0))).map_or("", |topic| &topic.name)
    }

    // ---- what leaves ------------------------------------------------------------------------------------------------------

    fn flush(&mut self, watcher: &Watcher, now: Instant) -> Result<(), Over> {
        let shards = u16::try_from(self.doors.len()).unwrap_or(u16::MAX);
        for shard in (0..shards).map(ShardIndex) {
            if let Some(batch) = self.batcher.take(shard, &self.positions, now) {
                self.deliver(shard, batch, watcher)?;
            }
        }
        Ok(())
    }

    /// Hands a batch over, however long the shard takes: nothing is dropped, and Kafka keeps what is not read yet.
    fn deliver(&mut self, shard: ShardIndex, mut batch: Batch, watcher: &Watcher) -> Result<(), Over> {
        self.tally.batches += 1;
        self.tally.batch_bytes += batch.arena.len() as u64;
        let began = Instant::now();
        loop {
            let Some(door) = self.doors.get(usize::from(shard.0)) else { return Err(Over) };
            let tried = Instant::now();
            let sent = door.send_batch(batch, INGEST_WAIT);
            let now = Instant::now();
            let waited = now.saturating_duration_since(tried);
            if waited >= BLOCKED_MIN {
                self.tally.blocked += waited;
            }
            batch = match sent {
                Ok(()) => return Ok(()),
                Err(Undelivered::Ended) => return Err(Over),
                Err(Undelivered::Full(batch)) => *batch,
            };
            self.turns(now);
            if self.standing.load().ended {
                return Err(Over);
            }
            let waited = now.saturating_duration_since(began);
            if waited >= TURN_AGE_MAX && self.waited_for.admit(shard, now).is_some() {
                warn!(shard = shard.0, ?waited, "the shard takes no batch; nothing is read from Kafka meanwhile");
            }
            self.publish(watcher, now);
            self.progress.interrupted(now);
        }
    }

    // ---- what shows -------------------------------------------------------------------------------------------------------

    fn finish_turn(&mut self, watcher: &Watcher, now: Instant) {
        if let Some(doubts) = self.doubts.take() {
            // Full is where the watcher has not taken the last ones, or can't, since Kafka doesn't answer.
            self.doubts = watcher.doubts.try_send(doubts).err().map(TrySendError::into_inner);
        }
        self.check_filling(now);
        self.publish(watcher, now);
    }

    fn check_filling(&mut self, now: Instant) {
        let Some(since) = &mut self.filling else { return };
        since.filling.check(&self.positions);
        // While no broker answers, no partition is worse than another.
        if !self.status.connected.load(Ordering::Relaxed) {
            since.waits_since = now;
        }
        if now.saturating_duration_since(since.waits_since) >= self.start_wait {
            self.give_up_the_silent();
        }
        let Some(since) = &mut self.filling else { return };
        let FillingSince { filling, began, partitions, offsets, said, .. } = since;
        // With the wait for this turn's records.
        let took = began.elapsed();
        if filling.is_done() {
            info!(partitions = *partitions, offsets = *offsets, ?took, "the history is complete");
            self.publisher.filling_left(0);
            self.status.filled.store(true, Ordering::Release);
            self.filling = None;
            return;
        }
        let left = filling.offsets_left(&self.positions);
        self.publisher.filling_left(left);
        if now.saturating_duration_since(*said) >= PROGRESS_EVERY {
            *said = now;
            info!(offsets = *offsets, left, ?took, "filling the history");
        }
    }

    fn publish(&mut self, watcher: &Watcher, now: Instant) {
        self.publisher.publish(&mut self.tally);
        let ends = watcher.ends.try_recv().ok();
        let has_ends = ends.is_some();
        if let Some(LogEnds { stable, high }) = ends {
            let offsets: Vec<_> = stable.ends.iter().map(|end| end.at).collect();
            self.progress.ends_are(stable.asked, &offsets, &self.positions);
            self.lag.ends_are(&offsets, &self.positions);
            self.lag.watermarks_are(stable.asked, &high, &self.positions);
            self.compaction.ends_are(&self.positions, stable.asked, &offsets, &high);
            self.tell_ends(stable);
            self.tell_open_transactions(now);
        }
        if has_ends || now.saturating_duration_since(self.lag_summed) >= LAG_EVERY {
            self.lag_summed = now;
            self.lag.sum_up(&self.positions, &mut self.lag_by_topic);
            self.publisher.lag(&self.lag_by_topic);
        }
    }

    /// Partitions that stand behind an open transaction show, and are logged now and then.
    fn tell_open_transactions(&mut self, now: Instant) {
        let held: Vec<Held> = self.lag.held(&self.positions, now).collect();
        let name =
            |held: &Held| self.batcher.topics().get(usize::from(held.at.topic.0)).map_or("", |topic| &*topic.name);
        for held in &held {
            let NextOffset { topic, partition, offset: last_stable_offset } = held.at;
            if self.open_transactions.admit((topic, partition), now).is_some() {
                let Held { high_watermark, for_time, .. } = held;
                warn!(
                    topic = name(held),
                    partition,
                    last_stable_offset,
                    high_watermark,
                    ?for_time,
                    "an open transaction holds back what lies behind it: it is delivered when that is committed or aborted"
                );
            }
        }
        self.publisher.open_transactions(held.iter().map(|held| (name(held), held)));
    }

    /// Has the ends told to the shards that want them, with the next turn's batches.
    fn tell_ends(&mut self, mut ends: Ends) {
        let wanting: Vec<_> = self.doors.iter().map(ShardDoor::take_wish_for_ends).collect();
        if !wanting.contains(&true) {
            return;
        }
        // The watcher may have asked for partitions that are on their way here.
        ends.ends.retain(|end| self.positions.place(end.at.topic, end.at.partition).is_some());
        let ends = Arc::new(ends);
        for (shard, _) in (0..).map(ShardIndex).zip(wanting).filter(|(_, wants)| *wants) {
            self.batcher.ends_are(shard, &ends);
        }
    }
}

/// Whether this pod counts an event as its own. A pod without a slot owns nothing: so the pods' counts add up to the
/// events, however one of them comes and goes.
fn is_own(hash: AssessmentHash, standing: &Standing) -> bool {
    standing.own.is_some() && !matches!(standing.owner(hash), Owner::Elsewhere(_))
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

    fn holder(view: &Arc<View>, own: Option<u32>) -> Standing {
        Standing { view: Arc::clone(view), own: own.map(SlotNumber), ..Standing::default() }
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
        assert!(!is_own(AssessmentHash::of("a"), &Standing::default()), "it has claimed nothing yet");
    }
}
