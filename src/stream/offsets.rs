//! Per partition, a shard's read offset and the offset from which on its window is complete. It judges cursors by them:
//! what the client has, and whether the window has everything else. [`super::history`] keeps the entries.
//!
//! A [`PartitionId`] numbers the partitions of all topics densely. An assessment's cursor lists the partitions that may
//! have its records: those where its topics' partitioners put it, for each partition count that a topic had of late;
//! and those where a misplaced record was found.

mod names;
mod resume_filter;
#[cfg(test)]
mod tests;
mod topics;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::names::Candidate;
pub(crate) use self::resume_filter::{CursorVerdict, LogEnds, ResumeFilter};
use self::topics::TopicState;
use crate::ids::{AssessmentHash, TopicIndex};
use crate::limits::GROWTH_NOTICED_MAX;
use crate::routing::partitioner::{KeyHash, Partitioner};
use crate::routing::table::Topic;
use crate::stream::batch::{EpochStart, LogTruncation, NextOffset, Origin};
use crate::stream::cursor::{self, Encoder, Form, PartitionOffset, Tag, TopicSum};
use crate::stream::epochs::{Branch, EpochOrder, EpochTimeline};
use crate::stream::fault_injection::{InjectedFault, is_injected};

/// A partition of an assessments' topic, numbered in the order in which the shard learned of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId(u32);

impl PartitionId {
    /// The lowest id.
    pub(crate) const FIRST: Self = Self(0);

    /// Its index in [`Offsets::all_next`].
    #[must_use]
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The offset of an unused id: its topic was forgotten, and another partition may get it.
pub(crate) const FORGOTTEN: i64 = i64::MIN;

/// All partitions' offsets, as of the newest record.
#[derive(Debug, Default)]
pub struct Offsets {
    topics: Vec<Option<TopicState>>,
    /// By name, the topic that has it now.
    current: HashMap<Box<str>, TopicIndex>,
    /// By the name in their tags, the topics that have their names now, in the order of these.
    tagged: HashMap<u16, Vec<Candidate>>,
    /// Topics whose name a recreated topic has taken, and since when; the window may hold their records.
    lately_replaced: Vec<(TopicIndex, Option<Instant>)>,
    /// The partitions of replaced topics.
    replaced: Vec<PartitionId>,
    partition_ids: Vec<PartitionInfo>,
    next: Vec<i64>,
    complete_from: Vec<i64>,
    first: Vec<i64>,
    /// Which leaders wrote what was read, and what logs lost of that.
    epochs: Vec<EpochTimeline>,
    /// Records below these are older than the history's time: a client that was away for longer shows it by other partitions.
    recent: Vec<i64>,
    /// The read offsets when the first client subscribed.
    first_subscribed: Option<Box<[i64]>>,
    /// Grows with each change of topics or partitions.
    layout: u32,
    /// Places of topics that were forgotten.
    free: Vec<PartitionId>,
}

/// A number of partitions that a topic has or had.
#[derive(Debug)]
struct PartitionCount {
    partitions: u32,
    since: Instant,
    /// By partition: the records that its producers placed by this number are not below these. Empty for the first one.
    from: Vec<i64>,
}

/// What is needed of a partition most.
#[derive(Debug, Clone, Copy)]
struct PartitionInfo {
    tag: Tag,
    sum: TopicSum,
    topic: TopicIndex,
    partition: u32,
    /// How many partitions the topic has.
    partitions: u32,
}

/// The partitions of one assessment, those of one topic side by side.
#[derive(Debug, Default)]
pub struct ListedPartitions {
    partition_ids: Box<[PartitionId]>,
    layout: u32,
    /// How many of them are listed only because a misplaced record was found there.
    misplaced: u32,
}

impl ListedPartitions {
    /// Whether all of them are where the topics' partitioners put the assessment: nearly always so.
    #[must_use]
    pub(crate) fn is_as_expected(&self) -> bool {
        self.misplaced == 0
    }

    /// Whether the partition is one of them.
    #[must_use]
    pub(crate) fn contains(&self, partition_id: PartitionId) -> bool {
        self.partition_ids.contains(&partition_id)
    }

    /// All of them.
    #[must_use]
    pub(crate) fn partition_ids(&self) -> &[PartitionId] {
        &self.partition_ids
    }
}

impl Offsets {
    // ---- updates ----------------------------------------------------------------------------------------------------

    /// Takes in where ingest stands; those that changed are appended to `changed`, and those that are new and begin
    /// above 0, so that something was deleted before it was read, to `deleted_unread`. `offset_timeline` tells where it
    /// stood [`GROWTH_NOTICED_MAX`] ago, if that is known; it is asked where a partition is new.
    pub fn apply_next_offsets<'a>(
        &mut self,
        starts: &[NextOffset],
        before_growth: impl FnOnce() -> Option<&'a [i64]>,
        now: Instant,
        changed: &mut Vec<PartitionId>,
        deleted_unread: &mut Vec<PartitionId>,
    ) {
        let mut grown = Vec::new();
        for start in starts {
            let Some((topic, partition)) = self.known(start.topic).zip(u32::try_from(start.partition).ok()) else {
                continue;
            };
            let partition_id = match topic.partition_ids.get(partition as usize) {
                Some(&Some(partition_id)) => partition_id,
                _ => {
                    grown.push(start.topic);
                    let partition_id = self.add_partition(start.topic, partition, start.offset);
                    deleted_unread.extend((start.offset > 0).then_some(partition_id));
                    partition_id
                }
            };
            self.next[partition_id.0 as usize] = start.offset;
            changed.push(partition_id);
            if start.offset > 0
                && let Some(Some(known)) = self.topics.get_mut(usize::from(start.topic.0))
            {
                known.is_empty = false;
            }
        }
        if grown.is_empty() {
            return;
        }
        grown.dedup();
        let before_growth = before_growth();
        for topic in grown {
            self.count_partitions(topic, before_growth, now);
        }
    }

    fn add_partition(&mut self, topic: TopicIndex, partition: u32, offset: i64) -> PartitionId {
        let partition_id = self.free_partition_id();
        let known = self.topics[usize::from(topic.0)].as_mut().expect("looked up before");
        let fingerprint = known.topic.fingerprint;
        let (tag, sum) = (Tag::of(fingerprint), TopicSum::of(fingerprint));
        if known.partition_ids.len() <= partition as usize {
            known.partition_ids.resize(partition as usize + 1, None);
        }
        known.partition_ids[partition as usize] = Some(partition_id);
        self.replaced.extend(known.replaced.then_some(partition_id));
        let at = partition_id.index();
        self.partition_ids[at] = PartitionInfo { tag, sum, topic, partition, partitions: 0 };
        (self.next[at], self.complete_from[at], self.first[at], self.recent[at]) = (offset, offset, offset, offset);
        self.layout += 1;
        partition_id
    }

    /// Records below these offsets are older than the history's time. Call this after the partitions were added.
    pub(crate) fn recent_from(&mut self, recent: &[NextOffset]) {
        for from in recent {
            if let Some(partition_id) = self.partition_id(from.topic, from.partition) {
                self.recent[partition_id.index()] = from.offset;
            }
        }
    }

    /// A topic has more partitions than before: its producers place by the new number from some moment on, at most
    /// [`GROWTH_NOTICED_MAX`] ago.
    fn count_partitions(&mut self, topic: TopicIndex, before_growth: Option<&[i64]>, now: Instant) {
        let Self { topics, partition_ids, first, .. } = self;
        let Some(Some(known)) = topics.get_mut(usize::from(topic.0)) else { return };
        let partitions = u32::try_from(known.partition_ids.len()).unwrap_or(u32::MAX);
        let from = |partition_id: &Option<PartitionId>| {
            let partition_id = partition_id.map(|partition_id| partition_id.0 as usize);
            let before_growth =
                |partition_id: usize| before_growth?.get(partition_id).copied().filter(|&next| next != FORGOTTEN);
            partition_id.map_or(0, |partition_id| before_growth(partition_id).unwrap_or(first[partition_id]))
        };
        match known.counts.last() {
            Some(last) if last.partitions >= partitions => {}
            Some(_) => {
                let from = known.partition_ids.iter().map(from).collect();
                known.counts.push(PartitionCount { partitions, since: now, from });
            }
            None => known.counts.push(PartitionCount { partitions, since: now, from: Vec::new() }),
        }
        for partition_id in known.partition_ids.iter().flatten() {
            partition_ids[partition_id.0 as usize].partitions = partitions;
        }
    }

    /// Forgets numbers of partitions by which no record of the window was placed.
    pub(crate) fn forget_old_counts(&mut self, window: Duration, now: Instant) {
        for known in self.topics.iter_mut().flatten() {
            known.forget_old_mappings(window, now);
            if known.counts.len() < 2 {
                continue;
            }
            let old = |count: &PartitionCount| now.saturating_duration_since(count.since) > window + GROWTH_NOTICED_MAX;
            if old(&known.counts[1]) {
                known.counts.remove(0);
                self.layout += 1;
            }
        }
        self.lately_replaced.retain_mut(|(_, since)| {
            let since = *since.get_or_insert(now);
            now.saturating_duration_since(since) <= window + GROWTH_NOTICED_MAX
        });
    }

    /// The record at an offset was read.
    pub(crate) fn advance(&mut self, origin: Origin) -> Option<PartitionId> {
        let known = self.topics.get_mut(usize::from(origin.topic.0))?.as_mut()?;
        let partition_id = (*known.partition_ids.get(usize::try_from(origin.partition).ok()?)?)?;
        known.is_empty = false;
        self.next[partition_id.0 as usize] = origin.offset.saturating_add(1);
        Some(partition_id)
    }

    /// The record at an offset left the window: the window is complete from the next offset on only.
    pub(crate) fn record_evicted(&mut self, origin: Origin) {
        if let Some(partition_id) = self.partition_id(origin.topic, origin.partition) {
            let complete_from = &mut self.complete_from[partition_id.0 as usize];
            *complete_from = origin.offset.saturating_add(1).max(*complete_from);
        }
    }

    /// Records below this offset are missing: they were not read, and no client can be sent them.
    pub(crate) fn missing_below(&mut self, at: &NextOffset) -> Option<PartitionId> {
        let partition_id = self.partition_id(at.topic, at.partition)?;
        let complete_from = &mut self.complete_from[partition_id.0 as usize];
        *complete_from = at.offset.max(*complete_from);
        Some(partition_id)
    }

    /// A log lost its end. Call this before its new read offset is set. Also returns the leader epoch of the last
    /// record read before, if known.
    pub(crate) fn truncate(&mut self, deleted_unread: &LogTruncation) -> Option<(PartitionId, Option<i32>)> {
        let partition_id = self.partition_id(deleted_unread.next.topic, deleted_unread.next.partition)?;
        let index = partition_id.index();
        let (from, read, complete_from, epochs) =
            (deleted_unread.next.offset, self.next[index], self.complete_from[index], &mut self.epochs[index]);
        let epoch = epochs.last();
        epochs.lose_end(from, read, deleted_unread.is_below_unknown, complete_from);
        // All that the log has from there on is read anew.
        self.complete_from[index] = if deleted_unread.is_below_unknown { from } else { from.min(complete_from) };
        self.next[index] = from.min(read);
        Some((partition_id, epoch))
    }

    /// Another leader began to write a partition.
    pub fn epoch_starts(&mut self, start: &EpochStart) {
        let Origin { topic, partition, offset } = start.first;
        let Some(partition_id) = self.partition_id(topic, partition) else { return };
        let epochs = &mut self.epochs[partition_id.0 as usize];
        if epochs.record(offset, start.epoch) == EpochOrder::Earlier {
            epochs.begin_at(offset, start.epoch);
        }
    }

    /// The first client subscribes: from now on the shard sees for itself how many partitions its topics have.
    pub(crate) fn record_first_subscribe(&mut self) {
        if self.first_subscribed.is_none() {
            self.first_subscribed = Some(self.next.as_slice().into());
        }
    }

    // ---- what is asked ----------------------------------------------------------------------------------------------

    /// A topic, by its index.
    #[must_use]
    pub(crate) fn topic(&self, index: TopicIndex) -> Option<&Arc<Topic>> {
        Some(&self.topics.get(usize::from(index.0))?.as_ref()?.topic)
    }

    /// The topic of a record, with the route that it was read by.
    #[must_use]
    pub(crate) fn topic_of(&self, origin: Origin) -> Option<&Arc<Topic>> {
        Some(self.topics.get(usize::from(origin.topic.0))?.as_ref()?.of(origin))
    }

    /// The id of a partition; `None` for a market's, and for one that is not known.
    #[must_use]
    pub(crate) fn partition_id(&self, topic: TopicIndex, partition: i32) -> Option<PartitionId> {
        *self.topics.get(usize::from(topic.0))?.as_ref()?.partition_ids.get(usize::try_from(partition).ok()?)?
    }

    /// The next offset of a partition.
    #[must_use]
    pub fn next(&self, partition_id: PartitionId) -> i64 {
        self.next[partition_id.0 as usize]
    }

    /// The first offset that the shard learned of a partition.
    #[must_use]
    pub(crate) fn first(&self, partition_id: PartitionId) -> i64 {
        self.first[partition_id.0 as usize]
    }

    /// The partitions of a topic.
    pub(crate) fn partitions_of(&self, topic: TopicIndex) -> impl Iterator<Item = PartitionId> + '_ {
        let known = self.topics.get(usize::from(topic.0)).and_then(Option::as_ref);
        known.into_iter().flat_map(|known| known.partition_ids.iter().flatten().copied())
    }

    /// The next offset of each partition; [`FORGOTTEN`] for an unused id.
    #[must_use]
    pub(crate) fn all_next(&self) -> &[i64] {
        &self.next
    }

    /// Whether topics or partitions changed since they were listed.
    #[must_use]
    pub(crate) fn is_outdated(&self, listed: &ListedPartitions) -> bool {
        listed.layout != self.layout
    }

    /// The partitions of an assessment: where its records are expected, and where they were `found`.
    #[must_use]
    pub fn list_partitions(&self, id: &str, found: impl IntoIterator<Item = PartitionId>) -> ListedPartitions {
        let hashes = Hashes::of(id);
        let mut partition_ids = Vec::new();
        for known in self.topics.iter().flatten().filter(|known| !known.replaced) {
            let Some(partitioner) = known.partitioner else { continue };
            match hashes.by(partitioner) {
                Some(hash) => {
                    let expected = known.counts.iter().map(|count| hash.of(count.partitions) as usize);
                    partition_ids.extend(expected.filter_map(|partition| *known.partition_ids.get(partition)?));
                }
                None => partition_ids.extend(known.partition_ids.iter().flatten()),
            }
        }
        let expected = partition_ids.len();
        for partition_id in found {
            if !self.is_replaced(partition_id) && !partition_ids.contains(&partition_id) {
                partition_ids.push(partition_id);
            }
        }
        let misplaced =
            u32::try_from(partition_ids.len() - expected).expect("Kafka has far fewer partitions than 2^32");
        let info = |partition_id: &PartitionId| &self.partition_ids[partition_id.0 as usize];
        partition_ids.sort_unstable_by(|a, b| {
            let (a, b) = (info(a), info(b));
            self.topic_order(a.topic, b.topic).then(a.partition.cmp(&b.partition))
        });
        partition_ids.dedup();
        ListedPartitions { partition_ids: partition_ids.into(), layout: self.layout, misplaced }
    }

    /// Whether the topic's partitioner would put the assessment's records there, by some number of partitions that the
    /// topic had of late.
    #[must_use]
    pub(crate) fn is_expected(&self, id: &str, partition_id: PartitionId) -> bool {
        let info = self.partition_ids[partition_id.0 as usize];
        let Some(known) = self.known(info.topic) else { return false };
        match known.partitioner.and_then(|partitioner| partitioner.hash(id)) {
            Some(hash) => known.counts.iter().any(|count| hash.of(count.partitions) == info.partition),
            None => true,
        }
    }

    /// Whether a record may lie there because the topic once had fewer partitions: one that was there before anyone
    /// watched.
    fn may_predate_growth(&self, id: &str, partition_id: PartitionId, offset: i64) -> bool {
        let info = self.partition_ids[partition_id.0 as usize];
        let was_there =
            |first_subscribed: &[i64]| first_subscribed.get(partition_id.0 as usize).is_some_and(|&next| offset < next);
        let partitioner = self.known(info.topic).and_then(|known| known.partitioner);
        let hash = partitioner.and_then(|partitioner| partitioner.hash(id));
        self.first_subscribed.as_deref().is_some_and(was_there)
            && hash.is_some_and(|hash| (1..=info.partitions).any(|partitions| hash.of(partitions) == info.partition))
    }

    /// Whether a recreated topic has taken the name of a partition's topic.
    #[must_use]
    pub(crate) fn is_replaced(&self, partition_id: PartitionId) -> bool {
        let topic = self.partition_ids[partition_id.0 as usize].topic;
        self.known(topic).is_none_or(|known| known.replaced)
    }

    /// Appends the cursor of an assessment, made of the `next` offset of each of its partitions. `false` if it would be
    /// too long; then a mark of that is appended.
    pub fn write_cursor(
        &self,
        assessment: AssessmentHash,
        listed: &ListedPartitions,
        next: impl Fn(PartitionId) -> i64,
        out: &mut Vec<u8>,
    ) -> bool {
        for form in Form::ALL {
            let mut encoder = Encoder::new(form);
            if self.encode(&mut encoder, listed, &next) {
                encoder.finish(assessment, TopicSum::default(), out);
                return true;
            }
        }
        cursor::encode_unresumable(assessment, out);
        false
    }

    fn encode(&self, encoder: &mut Encoder, listed: &ListedPartitions, next: &impl Fn(PartitionId) -> i64) -> bool {
        let mut rest = &*listed.partition_ids;
        while let Some((&first, behind)) = rest.split_first() {
            let PartitionInfo { tag, sum, topic, partitions, .. } = *self.info(first);
            // One alone is what nearly all topics have.
            let further = behind.iter().take_while(|&&partition_id| self.info(partition_id).topic == topic).count();
            rest = &behind[further..];
            let partition_id = |partition_id| {
                Some(self.offset_at(partition_id, next(partition_id))).filter(|at| self.must_list(topic, at.next))
            };
            let partition_ids =
                std::iter::once(first).chain(behind[..further].iter().copied()).filter_map(partition_id);
            if !encoder.topic(tag, sum, partitions, partition_ids) {
                return false;
            }
        }
        true
    }

    /// Whether a cursor must list a partition whose next offset is this. A topic that a cursor does not list was empty:
    /// the client lacks all of it. The same holds for a partition of a topic that has no partitioner.
    fn must_list(&self, topic: TopicIndex, next: i64) -> bool {
        if next > 0 {
            return true;
        }
        self.known(topic).is_some_and(|known| {
            known.is_always_listed || !known.is_empty && known.partitioner != Some(Partitioner::None)
        })
    }

    fn offset_at(&self, partition_id: PartitionId, next: i64) -> PartitionOffset {
        let epoch = self.epochs[partition_id.0 as usize].before(next);
        PartitionOffset { partition: self.info(partition_id).partition, next, epoch }
    }

    fn info(&self, partition_id: PartitionId) -> &PartitionInfo {
        &self.partition_ids[partition_id.0 as usize]
    }

    /// The order in which a cursor lists topics: those that share a tag by their names, so that every pod reads it
    /// alike.
    fn topic_order(&self, a: TopicIndex, b: TopicIndex) -> Ordering {
        let key = |topic: TopicIndex| {
            self.known(topic).map(|known| (Tag::of(known.topic.fingerprint).name, &*known.topic.name, topic))
        };
        key(a).cmp(&key(b))
    }

    /// Compares the log of a client's cursor with the one that was read here.
    fn branch(&self, partition_id: PartitionId, at: &PartitionOffset) -> Branch {
        self.epochs[partition_id.index()].judge(at.next, at.epoch, self.next(partition_id))
    }

    /// Whether a client has records of a newer leader than this pod has read of a partition. The log that the pod read
    /// is lost, so the client is sent nothing of it.
    fn is_outdated_at(&self, partition_id: PartitionId, at: &PartitionOffset) -> bool {
        self.epochs[partition_id.index()].is_older_than(at.next, at.epoch, self.next(partition_id))
            && !is_injected(InjectedFault::OldLogToANewerCursor)
    }

    /// The topics whose tags have this name.
    fn tagged(&self, name: u16) -> &[Candidate] {
        self.tagged.get(&name).map_or(&[], Vec::as_slice)
    }

    fn known(&self, topic: TopicIndex) -> Option<&TopicState> {
        self.topics.get(usize::from(topic.0))?.as_ref().filter(|known| known.partitioner.is_some())
    }

    /// The topic that has a name now.
    fn current(&self, name: &str) -> Option<TopicIndex> {
        self.current.get(name).copied()
    }
}

/// The hashes of an assessment's id for each partitioner, computed once for all topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hashes {
    murmur2: Option<KeyHash>,
    crc32: Option<KeyHash>,
}

impl Hashes {
    fn of(id: &str) -> Self {
        Self { murmur2: Partitioner::Murmur2.hash(id), crc32: Partitioner::Crc32.hash(id) }
    }

    fn by(&self, partitioner: Partitioner) -> Option<KeyHash> {
        match partitioner {
            Partitioner::Murmur2 => self.murmur2,
            Partitioner::Crc32 => self.crc32,
            Partitioner::None => None,
        }
    }
}
