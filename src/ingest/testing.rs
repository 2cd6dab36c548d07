//! For the simulation: what the two threads of ingest do, without threads and without Kafka. The rules are the real
//! ones; what is asked of a cluster comes as an argument.

use std::time::{Duration, Instant};

use super::batcher::{Batcher, ConsumedRecord};
use super::catalogue::{IndexRules, SeenTopic, TopicCatalogue};
use super::continuity::{Continuity, LossKind, RecordContinuity, Truncation};
use super::read_offsets::ReadOffsets;
use super::startup::{Filling, LogRange, PartitionStart, StartOffsets};
use crate::ids::{ShardIndex, TopicIndex};
use crate::routing::table::RouteTable;
use crate::stream::batch::{Batch, EpochStart, LogEnd, LogTruncation, NextOffset, Origin, PartitionEnds};

/// A topic of the cluster, as a look sees it.
#[derive(Debug)]
pub(crate) struct TestTopic<'a> {
    pub(crate) name: &'a str,
    pub(crate) id: &'a str,
    pub(crate) partitions: i32,
}

/// What a partition's leader tells of its offsets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TestOffsets {
    pub(crate) beginning: i64,
    /// Of the first record that is young enough for the history.
    pub(crate) since: Option<i64>,
    pub(crate) end: i64,
}

/// What a look changed.
#[derive(Debug, Default)]
pub(crate) struct MetadataChange {
    /// No more is read of these.
    pub(crate) retired: Vec<TopicIndex>,
    /// These are read on.
    pub(crate) back: Vec<TopicIndex>,
    /// These are read from now on, each from this offset.
    pub(crate) fresh: Vec<(TopicIndex, i32, i64)>,
    /// It is to be looked again soon.
    pub(crate) doubtful: bool,
}

/// The ingest of a pod with one shard.
#[derive(Debug)]
pub(crate) struct TestIngest {
    catalogue: TopicCatalogue,
    batcher: Batcher,
    read_offsets: ReadOffsets,
    continuity: Continuity,
    /// `None` before the first look.
    filling: Option<Filling>,
}

impl TestIngest {
    pub(crate) fn new(routes: RouteTable, rules: IndexRules) -> Self {
        Self {
            catalogue: TopicCatalogue::new(std::sync::Arc::new(routes), rules),
            batcher: Batcher::new(1, 1 << 20, Duration::from_secs(300)),
            read_offsets: ReadOffsets::default(),
            continuity: Continuity::default(),
            filling: None,
        }
    }

    /// A look at the cluster, as the watcher takes it and the reader takes it in. Partitions of the first look are read
    /// from within the history's time, those that come later from their beginning.
    pub(crate) fn apply_metadata(
        &mut self,
        topics: &[TestTopic<'_>],
        now: Instant,
        offsets: impl Fn(&str, i32) -> TestOffsets,
    ) -> MetadataChange {
        let seen: Vec<SeenTopic> = topics
            .iter()
            .map(|topic| SeenTopic {
                name: topic.name.into(),
                id: topic.id.into(),
                led_partitions: (0..topic.partitions).collect(),
                leaderless: Vec::new(),
            })
            .collect();
        let changes = self.catalogue.apply_metadata("simulated", &seen, now);
        changes.retired.iter().for_each(|&topic| self.batcher.set_reading(topic, false));
        changes.back.iter().for_each(|&topic| self.batcher.set_reading(topic, true));
        for &topic in &changes.met {
            let places = self.read_offsets.forget(topic);
            places.iter().for_each(|&index| self.continuity.forget(topic, index));
            self.batcher.forget(topic, &places);
            self.batcher.add_topic(std::sync::Arc::clone(&self.catalogue.topics()[usize::from(topic.0)]));
        }
        let initial = self.filling.is_none();
        let starts: Vec<PartitionStart> =
            changes.fresh.iter().map(|&fresh| self.start(fresh, initial, &offsets)).collect();
        for start in &starts {
            self.read_offsets.set(start.topic, start.partition, start.offset);
        }
        let filling = self.filling.get_or_insert_with(|| Filling::new(&starts));
        changes.retired.iter().for_each(|&topic| filling.retired(topic));
        let fresh = starts.iter().map(|start| (start.topic, start.partition, start.offset)).collect();
        MetadataChange { retired: changes.retired, back: changes.back, fresh, doubtful: changes.doubtful }
    }

    fn start(
        &self,
        (topic, partition): (TopicIndex, i32),
        initial: bool,
        of: impl Fn(&str, i32) -> TestOffsets,
    ) -> PartitionStart {
        let TestOffsets { beginning, since, end } = of(self.name(topic), partition);
        let extent = match initial {
            true => StartOffsets { beginning, since, end },
            false => StartOffsets { beginning, since: Some(beginning), end: beginning },
        };
        PartitionStart { topic, partition, offset: extent.start(), recent: extent.recent(), end: extent.end }
    }

    /// The name of a topic that is or was read.
    pub(crate) fn name(&self, topic: TopicIndex) -> &str {
        &self.catalogue.topics()[usize::from(topic.0)].name
    }

    /// A record that came from Kafka, written under a leader epoch.
    pub(crate) fn record(&mut self, origin: Origin, epoch: i32, payload: &[u8]) {
        match self.continuity.record(&self.read_offsets, origin, epoch) {
            RecordContinuity::Next => {}
            RecordContinuity::Noted(notes) => self.epoch_starts(origin, notes.epoch),
            RecordContinuity::Duplicate => return,
            RecordContinuity::Replaced(cut) => {
                self.lost(origin.topic, origin.partition, LossKind::Truncated(cut));
                self.epoch_starts(origin, Some(epoch));
            }
        }
        let incoming = ConsumedRecord { origin, timestamp_ms: 0, epoch, key: None, payload: Some(payload) };
        let taken = self.batcher.push(&incoming, &self.read_offsets);
        assert!(taken.is_ok(), "the simulation's records are good: {taken:?}");
        self.read_offsets.set(origin.topic, origin.partition, origin.offset + 1);
    }

    fn epoch_starts(&mut self, first: Origin, epoch: Option<i32>) {
        if let Some(epoch) = epoch {
            self.batcher.epoch_starts(EpochStart { first, epoch });
        }
    }

    fn lost(&mut self, topic: TopicIndex, partition: i32, lost: LossKind) {
        match lost {
            LossKind::Deleted(offset) => {
                self.read_offsets.set(topic, partition, offset);
                self.batcher.deleted(NextOffset { topic, partition, offset });
            }
            LossKind::Truncated(Truncation { next: offset, is_below_unknown }) => {
                let next = NextOffset { topic, partition, offset };
                self.batcher.cut(LogTruncation { next, is_below_unknown }, &self.read_offsets);
                self.read_offsets.set(topic, partition, offset);
            }
        }
    }

    /// Kafka told that a partition is read to its end. While no batch is begun, where the end is below the position.
    pub(crate) fn end_seen(&mut self, topic: TopicIndex, partition: i32, offset: i64) {
        if let Some(cut) = self.continuity.end(&self.read_offsets, topic, partition, offset) {
            self.lost(topic, partition, LossKind::Truncated(cut));
        }
        self.read_offsets.set(topic, partition, offset);
        if let Some(filling) = &mut self.filling {
            filling.end_seen(topic, partition);
        }
    }

    /// Goes on with a partition that is out of range; returns where. While no batch is begun.
    pub(crate) fn restart(&mut self, topic: TopicIndex, partition: i32, beginning: i64, end: i64) -> i64 {
        let range = LogRange { beginning, end };
        let restart =
            self.continuity.restart(&self.read_offsets, topic, partition, range).expect("a partition that is read");
        if let Some(lost) = restart.lost {
            self.lost(topic, partition, lost);
        }
        restart.from
    }

    /// The next offset to be read of a partition that is read.
    pub(crate) fn next(&self, topic: TopicIndex, partition: i32) -> i64 {
        self.read_offsets.next(topic, partition).expect("it is asked for of partitions that are read")
    }

    /// Where the logs ended when that was asked, for the shard, which wants to know.
    pub(crate) fn update_ends(&mut self, asked: Instant, ends: Vec<LogEnd>) {
        self.batcher.update_ends(ShardIndex(0), &std::sync::Arc::new(PartitionEnds { asked, ends }));
    }

    /// What there is for the shard; `None` when there is nothing more.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Batch> {
        let full = self.batcher.take_full().map(|(_, batch)| batch);
        full.or_else(|| self.batcher.take(ShardIndex(0), &self.read_offsets, now))
    }

    /// Whether the history is filled.
    pub(crate) fn is_filled(&mut self) -> bool {
        let Some(filling) = &mut self.filling else { return false };
        filling.check(&self.read_offsets);
        filling.is_done()
    }
}
