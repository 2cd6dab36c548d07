//! The topics that a shard knows from ingest: which of those that had a name has it now, how cursors tell them apart,
//! and by which route a record was read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::names::Candidate;
use super::{FORGOTTEN, Offsets, PartitionCount, PartitionId, PartitionInfo};
use crate::ids::TopicIndex;
use crate::limits::{GROWTH_NOTICED_MAX, MAPPINGS_KEPT};
use crate::routing::partitioner::Partitioner;
use crate::routing::table::{Scope, Topic};
use crate::stream::batch::Origin;
use crate::stream::cursor::{Tag, TopicSum};
use crate::stream::epochs::EpochTimeline;

/// A topic, and its partitions where it is an assessments' one.
#[derive(Debug)]
pub(super) struct TopicState {
    pub(super) topic: Arc<Topic>,
    /// `None` for a market's topic: no client resumes on it.
    pub(super) partitioner: Option<Partitioner>,
    /// By partition.
    pub(super) partition_ids: Vec<Option<PartitionId>>,
    /// The numbers of partitions that it has and had of late, the present one last.
    pub(super) counts: Vec<PartitionCount>,
    /// Another topic has its name by now.
    pub(super) replaced: bool,
    /// Cursors list it while it is empty, too: it has the name of another one before it, of which the client of a
    /// cursor that lists this one lacks nothing; or the fingerprint of another one, and then it must be known which is
    /// which.
    pub(super) is_always_listed: bool,
    /// No record of it was read yet.
    pub(super) is_empty: bool,
    pub(super) reading: Reading,
    /// The routes that it had before, the oldest first.
    earlier: Vec<Mapping>,
}

/// Whether ingest reads a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    Active,
    /// It was deleted, or no route takes it.
    Stopped(Instant),
    /// It has not been read for longer than the window: no record of it is left, and none comes.
    Over,
}

/// A route that a topic had.
#[derive(Debug)]
struct Mapping {
    topic: Arc<Topic>,
    /// By partition: it goes for the records below these offsets.
    below: Box<[i64]>,
    /// Since when another one is known; `None` until that is asked.
    since: Option<Instant>,
}

impl TopicState {
    fn new(topic: Arc<Topic>) -> Self {
        Self {
            partitioner: partitioner_of(&topic),
            topic,
            partition_ids: Vec::new(),
            counts: Vec::new(),
            replaced: false,
            is_always_listed: false,
            is_empty: true,
            reading: Reading::Active,
            earlier: Vec::new(),
        }
    }

    /// The topic, by the route that a record was read by.
    pub(super) fn of(&self, origin: Origin) -> &Arc<Topic> {
        let partition = usize::try_from(origin.partition).unwrap_or(usize::MAX);
        let is_of = |mapping: &&Mapping| mapping.below.get(partition).is_some_and(|&below| origin.offset < below);
        self.earlier.iter().find(is_of).map_or(&self.topic, |mapping| &mapping.topic)
    }

    /// Whether this is the same topic, with another route.
    fn is_remapped_by(&self, topic: &Topic) -> bool {
        self.topic.name == topic.name
            && self.topic.fingerprint == topic.fingerprint
            && self.partitioner.is_some()
            && self.partitioner == partitioner_of(topic)
    }

    /// Has another route from the offsets `next` on.
    fn remap(&mut self, topic: &Arc<Topic>, next: &[i64]) {
        let stands = |partition_id: &Option<PartitionId>| {
            partition_id.and_then(|partition_id| next.get(partition_id.index())).copied().unwrap_or(0)
        };
        let below = self.partition_ids.iter().map(stands).collect();
        if self.earlier.len() == MAPPINGS_KEPT {
            self.earlier.remove(0);
        }
        let topic = std::mem::replace(&mut self.topic, Arc::clone(topic));
        self.earlier.push(Mapping { topic, below, since: None });
    }

    /// Forgets routes by which no record of the window was read, and notices that the window has none of a topic that
    /// is not read any more.
    pub(super) fn forget_old_mappings(&mut self, window: Duration, now: Instant) {
        let is_old = |since: Instant| now.saturating_duration_since(since) > window + GROWTH_NOTICED_MAX;
        if let Reading::Stopped(since) = self.reading
            && is_old(since)
        {
            self.reading = Reading::Over;
        }
        self.earlier.retain_mut(|mapping| !is_old(*mapping.since.get_or_insert(now)));
    }
}

fn partitioner_of(topic: &Topic) -> Option<Partitioner> {
    match topic.route.scope {
        Scope::Assessment { partitioner, .. } => Some(partitioner),
        Scope::Market { .. } => None,
    }
}

impl Offsets {
    /// Learns of topics. One that has the name of another takes its place; one that is known has another route.
    pub fn add_topics(&mut self, topics: &[Arc<Topic>]) {
        for topic in topics {
            let index = usize::from(topic.index.0);
            if self.topics.len() <= index {
                self.topics.resize_with(index + 1, || None);
            }
            if let Some(known) = self.topics[index].as_mut().filter(|known| known.is_remapped_by(topic)) {
                known.remap(topic, &self.next);
                continue;
            }
            self.forget(topic.index);
            let mut known = TopicState::new(Arc::clone(topic));
            if known.partitioner.is_some() {
                self.layout += 1;
                if let Some(before) = self.current.insert(topic.name.clone(), topic.index)
                    && let Some(Some(before)) = self.topics.get_mut(usize::from(before.0))
                {
                    before.replaced = true;
                    self.replaced.extend(before.partition_ids.iter().flatten());
                    known.is_always_listed = true;
                    self.lately_replaced.push((before.topic.index, None));
                }
            }
            let is_assessments = known.partitioner.is_some();
            self.topics[index] = Some(known);
            if is_assessments {
                self.tag(index);
            }
        }
    }

    /// Ingest stopped reading a topic, or continues to read it.
    pub(crate) fn set_reading(&mut self, topic: TopicIndex, is_read: bool, now: Instant) {
        if let Some(Some(known)) = self.topics.get_mut(usize::from(topic.0)) {
            known.reading = if is_read { Reading::Active } else { Reading::Stopped(now) };
        }
    }

    /// Whether a new topic has the index of one that is no longer read.
    pub(in crate::stream) fn is_reused_by(&self, topic: &Topic) -> bool {
        let known = self.topics.get(usize::from(topic.index.0)).and_then(Option::as_ref);
        known.is_some_and(|known| !known.is_remapped_by(topic))
    }

    /// Forgets the topic that has an index, which another one gets. The window has none of its records any more.
    fn forget(&mut self, topic: TopicIndex) {
        let Some(known) = self.topics.get_mut(usize::from(topic.0)).and_then(Option::take) else { return };
        if self.current.get(&known.topic.name) == Some(&topic) {
            self.current.remove(&known.topic.name);
        }
        self.lately_replaced.retain(|(replaced, _)| *replaced != topic);
        if let Some(tagged) = self.tagged.get_mut(&Tag::of(known.topic.fingerprint).name) {
            tagged.retain(|(tagged, _)| *tagged != topic);
        }
        self.replaced.retain(|partition_id| !known.partition_ids.contains(&Some(*partition_id)));
        for partition_id in known.partition_ids.into_iter().flatten() {
            self.partition_ids[partition_id.index()].topic = TopicIndex::NONE;
            self.next[partition_id.index()] = FORGOTTEN;
            self.epochs[partition_id.index()] = EpochTimeline::default();
            if let Some(first_subscribed) = self
                .first_subscribed
                .as_mut()
                .and_then(|first_subscribed| first_subscribed.get_mut(partition_id.index()))
            {
                *first_subscribed = 0;
            }
            self.free.push(partition_id);
        }
        self.layout += 1;
    }

    /// An id for a new partition.
    pub(super) fn free_partition_id(&mut self) -> PartitionId {
        self.free.pop().unwrap_or_else(|| {
            let partition_id =
                PartitionId(u32::try_from(self.partition_ids.len()).expect("Kafka has far fewer partitions than 2^32"));
            let (tag, sum) = (Tag::default(), TopicSum::default());
            self.partition_ids.push(PartitionInfo { tag, sum, topic: TopicIndex::NONE, partition: 0, partitions: 0 });
            for offsets in [&mut self.next, &mut self.complete_from, &mut self.first, &mut self.recent] {
                offsets.push(0);
            }
            self.epochs.push(EpochTimeline::default());
            partition_id
        })
    }

    /// Files a topic by its tag.
    fn tag(&mut self, index: usize) {
        let Self { topics, tagged, .. } = self;
        let Some(Some(TopicState { topic, .. })) = topics.get(index) else { return };
        let own = (topic.index, topic.fingerprint);
        let name = |candidate: &Candidate| {
            let known = topics.get(usize::from(candidate.0.0)).and_then(Option::as_ref);
            known.filter(|known| !known.replaced).map(|known| &known.topic.name)
        };
        let tagged = tagged.entry(Tag::of(topic.fingerprint).name).or_default();
        tagged.retain(|candidate| name(candidate).is_some());
        tagged.push(own);
        tagged.sort_unstable_by_key(name);
        let twins: Vec<_> = tagged.iter().filter(|other| other.1 == own.1).map(|twin| twin.0).collect();
        for twin in twins.iter().filter(|_| twins.len() > 1) {
            if let Some(Some(known)) = topics.get_mut(usize::from(twin.0)) {
                known.is_always_listed = true;
            }
        }
    }
}
