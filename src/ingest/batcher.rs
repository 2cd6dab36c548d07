//! From records to batches: finds each record's assessment as its route says, and copies it into the batch of its
//! shard, or, for a tick, of every shard. Owns what each shard knows of topics and offsets; [`super::reader`]
//! decides when a batch is handed over.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::Now;
use crate::ids::{AssessmentHash, ShardIndex, TopicIndex};
use crate::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, OFFSETS_SENT_EVERY};
use crate::routing::mapping::{Malformed, assessment_at, assessment_in, assessment_of, check_object};
use crate::routing::placement::shard_of;
use crate::routing::record_values::{RecordValues, carry};
use crate::routing::table::{AssessmentFrom, Scope, Topic};
use crate::stream::batch::{
    ArenaRange, Batch, EpochStart, LogTruncation, NextOffset, Origin, PartitionEnds, Record, Tick, TickTime,
};

use super::read_offsets::ReadOffsets;
use super::ticks::{TickJudge, TickVerdict, TimeFault};

/// A record as it came from Kafka, still in the consumer's memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConsumedRecord<'a> {
    pub(super) origin: Origin,
    /// In Unix ms; -1 if the record has none.
    pub(super) timestamp_ms: i64,
    /// The leader epoch under which it was written; -1 if the brokers don't report it.
    pub(super) epoch: i32,
    pub(super) key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub(super) payload: Option<&'a [u8]>,
    pub(super) headers: &'a dyn Headers,
}

/// A record's headers, in the consumer's memory.
pub(super) trait Headers: std::fmt::Debug {
    /// The last one of a name.
    fn last(&self, name: &str) -> Option<&[u8]>;
}

/// No headers.
impl Headers for () {
    fn last(&self, _: &str) -> Option<&[u8]> {
        None
    }
}

impl RecordValues for ConsumedRecord<'_> {
    fn key(&self) -> Option<&[u8]> {
        self.key
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.last(name)
    }

    fn partition(&self) -> i32 {
        self.origin.partition
    }

    fn offset(&self) -> i64 {
        self.origin.offset
    }

    fn timestamp_ms(&self) -> i64 {
        self.timestamp_ms
    }
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordOutcome {
    /// An event of this assessment, added to its shard's batch. It is misplaced if the topic's partitioner would put it
    /// on another of the partitions known so far.
    Event { hash: AssessmentHash, is_misplaced: bool },
    /// A tick: every shard has it, unless it is too old for the board. With what is wrong with its timestamp.
    Tick(Option<TimeFault>),
    /// Its route's filter leaves it out.
    FilteredOut,
}

/// Why a record can't be used. The producer caused it; no other record is affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(super) enum RecordFault {
    /// Its payload is over `MAX_EVENT_BYTES`.
    #[error("the payload is over MAX_EVENT_BYTES")]
    TooLarge,
    /// It is not what its route takes.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Fills a batch for each shard.
#[derive(Debug)]
pub(super) struct Batcher {
    /// By [`TopicIndex`].
    topics: Vec<Arc<Topic>>,
    shards: Vec<ShardBatch>,
    /// Shards whose batch has reached a limit.
    full: Vec<ShardIndex>,
    /// Batches that precede a loss, or a change of routes.
    closed: VecDeque<(ShardIndex, Batch)>,
    event_bytes_max: usize,
    judge: TickJudge,
    /// What the last record carries for its fields.
    carried: Vec<u8>,
}

/// One shard's batch, and what the shard was sent so far.
#[derive(Debug, Default)]
struct ShardBatch {
    batch: Batch,
    /// Whether the batch was begun: its topics and starts are written.
    begun: bool,
    /// These go into the next batch.
    dropped: Vec<TopicIndex>,
    reading: Vec<(TopicIndex, bool)>,
    topics: Vec<Arc<Topic>>,
    /// The offset last sent, by the partition's index in [`ReadOffsets`]; `i64::MAX` if the partition is forgotten.
    offsets_sent: Vec<i64>,
    /// When they were last compared with the read offsets.
    offsets_compared: Option<Instant>,
    /// These, too, go into the next batch.
    deleted: Vec<NextOffset>,
    truncations: Vec<LogTruncation>,
    epochs: Vec<EpochStart>,
    complete_from: Vec<NextOffset>,
    /// Of new partitions: records below are older than the history's time.
    recent: Vec<NextOffset>,
    ends: Option<Arc<PartitionEnds>>,
    /// The sizes of the last batch: the next one starts with this capacity.
    arena_len: usize,
    records_len: usize,
}

impl Batcher {
    /// For shards 0 to `shards` less one, whose boards show nothing older than `window`.
    pub(super) fn new(shards: u16, event_bytes_max: usize, window: Duration) -> Self {
        let shards = (0..shards.max(1)).map(|_| ShardBatch::default()).collect();
        Self {
            topics: Vec::new(),
            shards,
            full: Vec::new(),
            closed: VecDeque::new(),
            event_bytes_max,
            judge: TickJudge::new(window),
            carried: Vec::new(),
        }
    }

    /// The time by which ticks are judged from now on.
    pub(super) fn set_time(&mut self, now: Now) {
        self.judge.set_time(now);
    }

    /// A partition that is new to the reader ended at this offset when it was found.
    pub(super) fn ended_at(&mut self, end: NextOffset) {
        let topic = self.topics.get(usize::from(end.topic.0));
        if topic.is_some_and(|topic| topic.market().is_some()) {
            self.judge.ended_at(end);
        }
    }

    /// Makes a topic known, before its first record. Topics come in the order of their indexes, but for those that have
    /// the index of one that was forgotten.
    pub(super) fn add_topic(&mut self, topic: Arc<Topic>) {
        debug_assert!(usize::from(topic.index.0) <= self.topics.len());
        self.shards.iter_mut().for_each(|shard_batch| shard_batch.topics.push(Arc::clone(&topic)));
        match self.topics.get_mut(usize::from(topic.index.0)) {
            Some(forgotten) => *forgotten = topic,
            None => self.topics.push(topic),
        }
    }

    /// Forgets a topic whose partitions had these indexes. The topic's own index is free for another one.
    pub(super) fn forget(&mut self, topic: TopicIndex, indexes: &[usize]) {
        self.judge.forget(topic);
        for shard_batch in &mut self.shards {
            // The next offset at these indexes is another partition's, so it is sent whatever it is.
            for &index in indexes {
                if let Some(sent) = shard_batch.offsets_sent.get_mut(index) {
                    *sent = i64::MAX;
                }
            }
        }
    }

    /// Closes the batches that are begun: what a shard is sent next must not come before their records.
    fn close(&mut self) {
        for (shard, shard_batch) in (0..).map(ShardIndex).zip(&mut self.shards).filter(|(_, batch)| batch.begun) {
            self.closed.push_back((shard, shard_batch.finish()));
        }
        self.full.clear();
    }

    /// The records of a known topic become other messages from now on.
    pub(super) fn remap(&mut self, topic: Arc<Topic>) {
        self.close();
        let Some(known) = self.topics.get_mut(usize::from(topic.index.0)) else { return };
        self.shards.iter_mut().for_each(|shard_batch| shard_batch.topics.push(Arc::clone(&topic)));
        *known = topic;
    }

    /// No route takes a topic any more as it did.
    pub(super) fn dropped(&mut self, topic: TopicIndex) {
        self.close();
        self.shards.iter_mut().for_each(|shard_batch| shard_batch.dropped.push(topic));
    }

    /// A topic is not read any more, or is read again.
    pub(super) fn set_reading(&mut self, topic: TopicIndex, is_read: bool) {
        self.shards.iter_mut().for_each(|shard_batch| shard_batch.reading.push((topic, is_read)));
    }

    /// Reports that the next records of a partition were deleted; reading continues at `next`.
    pub(super) fn deleted(&mut self, next: NextOffset) {
        self.close();
        self.shards.iter_mut().for_each(|shard_batch| shard_batch.deleted.push(next));
    }

    /// The log of a partition lost its end; `read_offsets` are still those from before that. Each shard first gets what
    /// it has not been sent of that log: its records, how far it was read, and by which leaders it was written. Only
    /// then does the shard know what is lost.
    pub(super) fn truncate(&mut self, truncation: LogTruncation, read_offsets: &ReadOffsets) {
        for shard_batch in &mut self.shards {
            if !shard_batch.epochs.is_empty() || shard_batch.has_unsent_offsets(read_offsets) {
                shard_batch.begin(read_offsets);
            }
        }
        self.close();
        self.shards.iter_mut().for_each(|shard_batch| shard_batch.truncations.push(truncation));
    }

    /// Another leader began to write a partition.
    pub(super) fn epoch_starts(&mut self, start: EpochStart) {
        for shard_batch in &mut self.shards {
            shard_batch.epochs.push(start);
        }
    }

    /// Compaction may have removed records of a partition before this offset.
    pub(super) fn complete_from(&mut self, from: NextOffset) {
        for shard_batch in &mut self.shards {
            // A log that is filled from may have a gap before each record.
            match shard_batch.complete_from.last_mut() {
                Some(last) if (last.topic, last.partition) == (from.topic, from.partition) => last.offset = from.offset,
                _ => shard_batch.complete_from.push(from),
            }
        }
    }

    /// Below this offset of a new partition, records are older than the history's time.
    pub(super) fn recent_from(&mut self, from: NextOffset) {
        for shard_batch in &mut self.shards {
            shard_batch.recent.push(from);
        }
    }

    /// Sends these ends to a shard with its next batch, in place of older ones that were not sent yet: those prove less.
    pub(super) fn update_ends(&mut self, shard: ShardIndex, ends: &Arc<PartitionEnds>) {
        if let Some(shard_batch) = self.shards.get_mut(usize::from(shard.0)) {
            shard_batch.ends = Some(Arc::clone(ends));
        }
    }

    /// The topics that are known, by index.
    pub(super) fn topics(&self) -> &[Arc<Topic>] {
        &self.topics
    }

    /// Copies a record to where it belongs. `read_offsets` stands at the record: it is moved on after this.
    ///
    /// # Errors
    /// What makes the record unusable.
    pub(super) fn push(
        &mut self,
        incoming: &ConsumedRecord<'_>,
        read_offsets: &ReadOffsets,
    ) -> Result<RecordOutcome, RecordFault> {
        let payload = incoming.payload.ok_or(Malformed::NoPayload)?;
        if payload.len() > self.event_bytes_max {
            return Err(RecordFault::TooLarge);
        }
        // A record of an unknown topic would be our own fault, and belongs to no assessment.
        let topic = self.topics.get(usize::from(incoming.origin.topic.0)).ok_or(Malformed::NoAssessment)?;
        let route = &topic.route;
        let payload = route.payload.json(payload)?;
        if let Some(when) = &route.when
            && !when.holds(payload)?
        {
            return Ok(RecordOutcome::FilteredOut);
        }
        self.carried.clear();
        carry(&route.carried, incoming, &mut self.carried);
        if self.carried.len() + payload.len() > self.event_bytes_max {
            return Err(RecordFault::TooLarge);
        }
        let Scope::Assessment { from, partitioner } = &route.scope else {
            check_object(payload)?;
            let TickVerdict { shown, fault } = self.judge.judge(incoming.origin, incoming.timestamp_ms);
            if let Some((made, age_ms)) = shown {
                self.push_tick(incoming.origin, (made, age_ms), payload, read_offsets);
            }
            return Ok(RecordOutcome::Tick(fault));
        };
        let id = match from {
            AssessmentFrom::Payload => assessment_of(payload)?,
            AssessmentFrom::Path(path) => assessment_at(path, payload)?,
            AssessmentFrom::Key => assessment_in(incoming.key)?,
            AssessmentFrom::Header(name) => assessment_in(incoming.headers.last(name))?,
        };
        let hash = AssessmentHash::of(&id);
        let Origin { topic, partition, .. } = incoming.origin;
        let expected = partitioner.hash(&id).map(|key| key.of(read_offsets.partitions(topic)));
        let is_misplaced = expected.is_some_and(|expected| Ok(expected) != u32::try_from(partition));
        self.push_event((incoming.origin, is_misplaced), hash, &id, payload, read_offsets);
        Ok(RecordOutcome::Event { hash, is_misplaced })
    }

    /// A batch that is closed or has reached a limit, with its shard.
    pub(super) fn take_full(&mut self) -> Option<(ShardIndex, Batch)> {
        if let Some(closed) = self.closed.pop_front() {
            return Some(closed);
        }
        let shard = self.full.pop()?;
        Some((shard, self.shards[usize::from(shard.0)].finish()))
    }

    /// The next batch for a shard, if there is anything to send: records, topics and partitions that are new to it,
    /// deletions, ends that it requested; and once in [`OFFSETS_SENT_EVERY`], offsets that changed without a record for
    /// it.
    pub(super) fn take(&mut self, shard: ShardIndex, read_offsets: &ReadOffsets, now: Instant) -> Option<Batch> {
        if let Some(index) = self.closed.iter().position(|(closed, _)| *closed == shard) {
            return self.closed.remove(index).map(|(_, batch)| batch);
        }
        let shard_batch = self.shards.get_mut(usize::from(shard.0))?;
        let unheard = !shard_batch.topics.is_empty()
            || !shard_batch.dropped.is_empty()
            || !shard_batch.reading.is_empty()
            || shard_batch.offsets_sent.len() < read_offsets.all().len()
            || !shard_batch.deleted.is_empty()
            || !shard_batch.truncations.is_empty()
            || !shard_batch.complete_from.is_empty()
            || shard_batch.ends.is_some();
        if unheard || shard_batch.is_outdated(read_offsets, now) {
            shard_batch.begin(read_offsets);
        }
        if shard_batch.begun {
            shard_batch.offsets_compared = Some(now);
        }
        self.full.retain(|&full| full != shard);
        shard_batch.begun.then(|| shard_batch.finish())
    }

    fn push_event(
        &mut self,
        (origin, is_misplaced): (Origin, bool),
        hash: AssessmentHash,
        id: &str,
        payload: &[u8],
        read_offsets: &ReadOffsets,
    ) {
        let shards = u16::try_from(self.shards.len()).unwrap_or(u16::MAX);
        let shard = shard_of(hash, shards);
        let shard_batch = &mut self.shards[usize::from(shard.0)];
        let batch = shard_batch.begin(read_offsets);
        let carried = batch.push_bytes(&self.carried);
        let payload_span = batch.push_bytes(payload);
        let id = match within(payload, id.as_bytes()) {
            Some(start) => ArenaRange { start: payload_span.start + start, len: byte_count(id.len()) },
            None => batch.push_bytes(id.as_bytes()),
        };
        if is_misplaced {
            batch.misplaced.push(byte_count(batch.records.len()));
        }
        let payload = ArenaRange { start: carried.start, len: carried.len + payload_span.len };
        batch.records.push(Record { hash, origin, id, payload });
        if shard_batch.has_reached_a_limit() && !self.full.contains(&shard) {
            self.full.push(shard);
        }
    }

    fn push_tick(
        &mut self,
        origin: Origin,
        (made, age_ms): (TickTime, u32),
        payload: &[u8],
        read_offsets: &ReadOffsets,
    ) {
        for (shard, shard_batch) in (0u16..).map(ShardIndex).zip(&mut self.shards) {
            let batch = shard_batch.begin(read_offsets);
            let carried = batch.push_bytes(&self.carried);
            let payload = ArenaRange { start: carried.start, len: carried.len + batch.push_bytes(payload).len };
            batch.ticks.push(Tick { origin, made, age_ms, payload });
            if shard_batch.has_reached_a_limit() && !self.full.contains(&shard) {
                self.full.push(shard);
            }
        }
    }
}

impl ShardBatch {
    /// The batch, with the topics and the offsets that changed since the shard's last one at its head.
    fn begin(&mut self, read_offsets: &ReadOffsets) -> &mut Batch {
        if !self.begun {
            self.begun = true;
            self.batch.deleted = std::mem::take(&mut self.deleted);
            self.batch.truncations = std::mem::take(&mut self.truncations);
            self.batch.recent = std::mem::take(&mut self.recent);
            self.batch.dropped = std::mem::take(&mut self.dropped);
            self.batch.reading = std::mem::take(&mut self.reading);
            self.batch.topics = std::mem::take(&mut self.topics);
            self.offsets_sent.resize(read_offsets.all().len(), i64::MIN);
            for (at, sent) in read_offsets.all().iter().zip(&mut self.offsets_sent) {
                if at.offset != *sent {
                    *sent = at.offset;
                    self.batch.starts.push(*at);
                }
            }
            self.batch.arena.reserve(self.arena_len);
            self.batch.records.reserve(self.records_len);
        }
        &mut self.batch
    }

    /// Whether offsets changed since they were sent. This is checked at intervals.
    fn is_outdated(&mut self, read_offsets: &ReadOffsets, now: Instant) -> bool {
        if self.offsets_compared.is_some_and(|compared| now.saturating_duration_since(compared) < OFFSETS_SENT_EVERY) {
            return false;
        }
        self.offsets_compared = Some(now);
        self.has_unsent_offsets(read_offsets)
    }

    fn has_unsent_offsets(&self, read_offsets: &ReadOffsets) -> bool {
        self.offsets_sent.len() < read_offsets.all().len()
            || read_offsets.all().iter().zip(&self.offsets_sent).any(|(at, sent)| at.offset != *sent)
    }

    /// The batch, in no more memory than it needs: a shard keeps it as it is.
    fn finish(&mut self) -> Batch {
        self.begun = false;
        self.arena_len = self.batch.arena.len();
        self.records_len = self.batch.records.len();
        let mut batch = std::mem::take(&mut self.batch);
        batch.ends = self.ends.take();
        batch.epochs = std::mem::take(&mut self.epochs);
        batch.complete_from = std::mem::take(&mut self.complete_from);
        batch.arena.shrink_to_fit();
        batch.records.shrink_to_fit();
        batch.ticks.shrink_to_fit();
        batch
    }

    fn has_reached_a_limit(&self) -> bool {
        let records = self.batch.records.len() + self.batch.ticks.len();
        self.batch.arena.len() >= BATCH_BYTES_MAX || records >= BATCH_RECORDS_MAX
    }
}

/// Where `part` lies in `whole`, if it is a slice of it: an id that the payload holds as it is needs no second copy.
fn within(whole: &[u8], part: &[u8]) -> Option<u32> {
    let start = part.as_ptr().addr().checked_sub(whole.as_ptr().addr())?;
    (start + part.len() <= whole.len()).then(|| byte_count(start))
}

fn byte_count(len: usize) -> u32 {
    u32::try_from(len).expect("an event is bounded by MAX_EVENT_BYTES, far below 4 GiB")
}
