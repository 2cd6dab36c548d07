//! The ingest thread's loop: takes what came from Kafka, has it batched, and hands the batches to the shards. It owns
//! the order of a turn; what a record means is [`super::batcher`]'s, what is to be read [`super::watcher`]'s to find.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::TrySendError;
use tracing::{info, warn};

use crate::clock::Now;
use crate::exchange::{IngestStatus, Owner, PublishedStanding, ShardDoor, Standing, Undelivered};
use crate::ids::{AssessmentHash, ShardIndex, TopicIndex};
use crate::limits::{
    INGEST_WAIT, KAFKA_LOG_EVERY, LOOK_WAITED_FOR_MAX, MALFORMED_LOG_EVERY, STANDSTILL_MIN, STRAY_LOOK_EVERY,
    TICK_LOG_EVERY, TURN_RECORDS_MAX,
};
use crate::stream::batch::{Batch, Ends, EpochStart, LogCut, NextOffset, Origin};

use super::batcher::{Batcher, Fault, Incoming, Taken};
use super::complaints::Complaints;
use super::continuity::{Continuity, Course, Cut, Lost, Notes};
use super::kafka::{Consumer, Message, ReadFrom};
use super::lag::Lag;
use super::metrics::{Publisher, Tally};
use super::pace::Pace;
use super::positions::Positions;
use super::startup::{Filling, Range};
use super::ticks::TimeFault;
use super::watcher::{Doubts, Found, Watcher};

/// How often the lag is summed up, and the progress of the filling said.
const LAG_EVERY: Duration = Duration::from_millis(250);
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// A wait for a shard that is worth counting: less is the cost of the clock.
const BLOCKED_MIN: Duration = Duration::from_millis(1);

/// All is over: the standing says so, or a shard has ended.
struct Over;

/// What the thread reads with.
pub(super) struct Reader {
    pub(super) consumer: Consumer,
    pub(super) watcher: Watcher,
    pub(super) desk: Desk,
    pub(super) pace: Pace,
}

/// What the thread works on, whichever way records came.
pub(super) struct Desk {
    doors: Vec<ShardDoor>,
    standing: PublishedStanding,
    place_anywhere: bool,
    status: Arc<IngestStatus>,
    batcher: Batcher,
    positions: Positions,
    continuity: Continuity,
    filling: Option<FillingSince>,
    lag: Lag,
    lag_by_topic: Vec<i64>,
    lag_summed: Instant,
    tally: Tally,
    publisher: Publisher,
    malformed: Complaints<TopicIndex>,
    tick_times: Complaints<(TopicIndex, TimeFault)>,
    failed: Complaints<(Option<TopicIndex>, i32)>,
    /// Topics whose records make a look worth while: they may have more partitions.
    strays: Complaints<TopicIndex>,
    /// For the watcher, as soon as it takes them.
    doubts: Option<Doubts>,
    /// When the loop was last seen to turn.
    turned: Instant,
    /// Since when nothing is read, because the process stood still: a topic may have been made anew meanwhile, and
    /// librdkafka would go on at the old log's offset in the new one.
    held: Option<Instant>,
}

struct FillingSince {
    filling: Filling,
    began: Instant,
    partitions: usize,
    offsets: i64,
    said: Instant,
}

impl Reader {
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
        desk.finish_turn(&self.watcher, now);
        Ok(records)
    }
}

impl Desk {
    pub(super) fn new(parts: super::Parts, now: Instant) -> Self {
        let shards = u16::try_from(parts.shards.len()).unwrap_or(u16::MAX);
        Self {
            batcher: Batcher::new(shards, parts.config.event_bytes_max, parts.config.history),
            doors: parts.shards,
            standing: parts.standing,
            place_anywhere: parts.place_anywhere,
            status: parts.status,
            positions: Positions::default(),
            continuity: Continuity::default(),
            filling: None,
            lag: Lag::default(),
            lag_by_topic: Vec::new(),
            lag_summed: now,
            tally: Tally::default(),
            publisher: Publisher::new(parts.metrics),
            malformed: Complaints::new(MALFORMED_LOG_EVERY),
            tick_times: Complaints::new(TICK_LOG_EVERY),
            failed: Complaints::new(KAFKA_LOG_EVERY),
            strays: Complaints::new(STRAY_LOOK_EVERY),
            doubts: None,
            turned: now,
            held: None,
        }
    }

    /// The loop turns. Where it has not for long, the process stood still: reading waits for a look at the topics.
    fn turns(&mut self, now: Instant) {
        self.status.pulse.beat(now);
        if now.saturating_duration_since(self.turned) >= STANDSTILL_MIN {
            self.held = Some(now);
            self.doubts.get_or_insert_default().wants_answer = true;
        }
        self.turned = now;
    }

    /// Whether nothing may be read yet.
    fn is_held(&mut self, now: Instant) -> bool {
        // Where Kafka doesn't say what there is, the topics are most likely what they were.
        self.held.take_if(|since| now.saturating_duration_since(*since) >= LOOK_WAITED_FOR_MAX);
        self.held.is_some()
    }

    // ---- what is read -----------------------------------------------------------------------------------------------------

    fn take_in(&mut self, found: &Found, consumer: &mut Consumer, now: Instant) {
        for &topic in &found.retired {
            self.retire(topic, consumer);
        }
        for &topic in &found.back {
            self.resume(topic, consumer);
        }
        for &((topic, partition), range) in &found.restarts {
            self.restart(topic, partition, range, consumer);
        }
        if found.initial || !found.topics.is_empty() || !found.partitions.is_empty() {
            self.begin_to_read(found, consumer, now);
        }
        self.publisher.reading(self.positions.all());
        self.held.take_if(|_| found.is_answer);
    }

    fn begin_to_read(&mut self, found: &Found, consumer: &mut Consumer, now: Instant) {
        for topic in &found.topics {
            if let Err(error) = consumer.add_topic(topic) {
                warn!(topic = %topic.name, %error, "can't read the topic");
            }
            self.batcher.add_topic(Arc::clone(topic));
            self.publisher.add_topic(&topic.name);
            self.lag_by_topic.push(0);
        }
        let topics = self.batcher.topics();
        let starts = found.partitions.iter().map(|start| {
            let name = topics.get(usize::from(start.topic.0)).map_or("", |topic| &topic.name);
            ReadFrom { topic: name, partition: start.partition, offset: start.offset, epoch: None }
        });
        if let Err(error) = consumer.assign(starts) {
            warn!(%error, partitions = found.partitions.len(), "can't read the partitions");
        }
        for start in &found.partitions {
            self.positions.set(start.topic, start.partition, start.offset);
            let (topic, partition) = (start.topic, start.partition);
            self.batcher.recent_from(NextOffset { topic, partition, offset: start.recent });
            if start.end > start.offset {
                self.batcher.ended_at(NextOffset { topic, partition, offset: start.end });
            }
        }
        let partitions = found.partitions.len();
        if found.initial {
            let filling = Filling::new(&found.partitions);
            let offsets = filling.offsets_left(&self.positions);
            info!(topics = found.topics.len(), partitions, offsets, "filling the history");
            self.publisher.filling_begins(offsets);
            self.filling = Some(FillingSince { filling, began: now, partitions, offsets, said: now });
        } else {
            let mut names: Vec<_> = found.partitions.iter().map(|start| self.name(Some(start.topic))).collect();
            names.dedup();
            info!(topics = names.join(", "), partitions, "reading what is new in the cluster");
        }
    }

    /// A topic is deleted, or another has its name by now.
    fn retire(&mut self, topic: TopicIndex, consumer: &Consumer) {
        let name = self.name(Some(topic)).to_owned();
        warn!(topic = name, "deleted in Kafka, or made anew: no more is read of it as it was");
        if let Err(error) = consumer.drop_partitions(&name, self.positions.of(topic).map(|at| at.partition)) {
            warn!(topic = name, %error, "can't let go of the partitions");
        }
        self.publisher.retire_topic(topic, &name);
        if let Some(since) = &mut self.filling {
            since.filling.retired(topic);
        }
    }

    fn resume(&mut self, topic: TopicIndex, consumer: &Consumer) {
        let name = self.name(Some(topic)).to_owned();
        info!(topic = name, "is still there: reading on");
        let places = self.positions.of(topic).map(|at| ReadFrom {
            topic: &name,
            partition: at.partition,
            offset: at.offset,
            epoch: self.continuity.epoch(&self.positions, &at),
        });
        if let Err(error) = consumer.assign(places) {
            warn!(topic = name, %error, "can't read the partitions");
        }
        self.publisher.resume_topic(topic, &name);
    }

    /// Goes on with a partition whose position was refused. Its topic is the one that it was.
    fn restart(&mut self, topic: TopicIndex, partition: i32, range: Range, consumer: &Consumer) {
        self.tally.offset_resets += 1;
        let Some(next) = self.positions.next(topic, partition) else { return };
        let Some(restart) = self.continuity.restart(&self.positions, topic, partition, range) else { return };
        let name = self.name(Some(topic));
        let Range { beginning, end } = range;
        info!(
            topic = name,
            partition,
            next,
            beginning,
            end,
            from = restart.from,
            "the position is refused; reading again"
        );
        if let Err(error) = consumer.restart(name, partition, restart.from) {
            warn!(topic = name, partition, %error, "can't read the partition any more");
        }
        if let Some(lost) = restart.lost {
            self.lost(topic, partition, lost);
        }
    }

    /// Has the shards told what a partition lost. While no batch is begun.
    fn lost(&mut self, topic: TopicIndex, partition: i32, lost: Lost) {
        let position = self.positions.next(topic, partition);
        let name = self.name(Some(topic));
        match lost {
            Lost::Deleted(offset) => {
                warn!(
                    topic = name,
                    partition, position, offset, "records were deleted before they were read; going on behind them"
                );
                self.positions.set(topic, partition, offset);
                self.batcher.deleted(NextOffset { topic, partition, offset });
            }
            Lost::Cut(Cut { next: offset, is_below_unknown }) => {
                warn!(
                    topic = name,
                    partition,
                    position,
                    offset,
                    "the log lost records that were read, as after an unclean leader election; going on where it parts from \
                     them, and clients are sent a reset"
                );
                self.positions.set(topic, partition, offset);
                self.batcher.cut(LogCut { next: NextOffset { topic, partition, offset }, is_below_unknown });
            }
        }
    }

    /// Has the shards told what is new with a record.
    fn note(&mut self, origin: Origin, notes: Notes) {
        if let Some(epoch) = notes.epoch {
            self.batcher.epoch_starts(EpochStart { first: origin, epoch });
        }
        if notes.is_behind_gap {
            let Origin { topic, partition, offset } = origin;
            self.batcher.whole_from(NextOffset { topic, partition, offset });
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
        match message {
            Message::Record(incoming) => self.record(&incoming, standing, watcher, now)?,
            Message::End { topic, partition, offset } => self.end_seen((topic, partition), offset, watcher, now)?,
            Message::OutOfRange { topic, partition } => {
                self.doubts.get_or_insert_default().out_of_range.push((topic, partition));
            }
            Message::Failed { topic, partition, is_gone, error } => {
                if is_gone {
                    self.doubts.get_or_insert_default();
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
        match self.continuity.record(&self.positions, origin, incoming.epoch) {
            Course::On => {}
            Course::Noted(notes) => self.note(origin, notes),
            Course::Again => return Ok(()),
            Course::Replaced(cut) => {
                self.flush(watcher, now)?;
                self.lost(origin.topic, origin.partition, Lost::Cut(cut));
                let epoch = (incoming.epoch >= 0).then_some(incoming.epoch);
                self.note(origin, Notes { epoch, ..Notes::default() });
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
        self.positions.set(topic, partition, offset);
        self.lag.end_seen(topic, partition, offset, &self.positions);
        if let Some(since) = &mut self.filling {
            since.filling.end_seen(topic, partition);
        }
        Ok(())
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
            self.publish(watcher, now);
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
        let FillingSince { filling, began, partitions, offsets, said } = since;
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
        if let Some(ends) = ends {
            self.lag.ends_are(&ends.ends, &self.positions);
            self.tell_ends(ends);
        }
        if has_ends || now.saturating_duration_since(self.lag_summed) >= LAG_EVERY {
            self.lag_summed = now;
            self.lag.sum_up(&self.positions, &mut self.lag_by_topic);
            self.publisher.lag(&self.lag_by_topic);
        }
    }

    /// Has the ends told to the shards that want them, with the next turn's batches.
    fn tell_ends(&mut self, mut ends: Ends) {
        let wanting: Vec<_> = self.doors.iter().map(ShardDoor::take_wish_for_ends).collect();
        if !wanting.contains(&true) {
            return;
        }
        // The watcher may have asked for partitions that are on their way here.
        ends.ends.retain(|end| self.positions.place(end.topic, end.partition).is_some());
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
