//! For the simulation: what the two threads of ingest do, without threads and without Kafka. The rules are the real
//! ones; what is asked of a cluster comes as an argument.

use std::time::{Duration, Instant};

use super::batcher::ConsumedRecord;
use super::catalogue::{IndexRules, SeenTopic, TopicCatalogue};
use super::read_progress::ReadProgress;
use super::startup::{Filling, LogRange, PartitionStart, StartOffsets};
use crate::ids::{ShardIndex, TopicIndex};
use crate::routing::table::RouteTable;
use crate::stream::batch::{Batch, LogEnd, Origin, PartitionEnds};

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
    progress: ReadProgress,
    /// `None` before the first look.
    filling: Option<Filling>,
}

impl TestIngest {
    pub(crate) fn new(routes: RouteTable, rules: IndexRules, now: Instant) -> Self {
        Self {
            catalogue: TopicCatalogue::new(std::sync::Arc::new(routes), rules),
            progress: ReadProgress::new(1, 1 << 20, Duration::from_secs(300), now),
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
        changes.retired.iter().for_each(|&topic| self.progress.batcher.set_reading(topic, false));
        changes.back.iter().for_each(|&topic| self.progress.batcher.set_reading(topic, true));
        for &topic in &changes.met {
            self.progress.forget(topic);
            self.progress.add_topic(std::sync::Arc::clone(&self.catalogue.topics()[usize::from(topic.0)]));
        }
        let initial = self.filling.is_none();
        let starts: Vec<PartitionStart> =
            changes.fresh.iter().map(|&fresh| self.start(fresh, initial, &offsets)).collect();
        for start in &starts {
            self.progress.read_offsets.set(start.topic, start.partition, start.offset);
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
        let incoming =
            ConsumedRecord { origin, timestamp_ms: 0, epoch, key: None, payload: Some(payload), headers: &() };
        let outcome = self.progress.record(&incoming);
        assert!(outcome.is_none_or(|outcome| outcome.is_ok()), "the simulation's records are good: {outcome:?}");
    }

    /// Kafka told that a partition is read to its end.
    pub(crate) fn end_seen(&mut self, topic: TopicIndex, partition: i32, offset: i64) {
        self.progress.end(topic, partition, offset);
        if let Some(filling) = &mut self.filling {
            filling.end_seen(topic, partition);
        }
    }

    /// Continues with a partition that is out of range; returns where.
    pub(crate) fn restart(&mut self, topic: TopicIndex, partition: i32, beginning: i64, end: i64) -> i64 {
        let range = LogRange { beginning, end };
        self.progress.restart(topic, partition, range).expect("a partition that is read").from
    }

    /// The next offset to be read of a partition that is read.
    pub(crate) fn next(&self, topic: TopicIndex, partition: i32) -> i64 {
        self.progress.read_offsets.next(topic, partition).expect("it is asked for of partitions that are read")
    }

    /// Where the logs ended when that was asked, for the shard, which wants to know.
    pub(crate) fn update_ends(&mut self, asked: Instant, ends: Vec<LogEnd>) {
        self.progress.batcher.update_ends(ShardIndex(0), &std::sync::Arc::new(PartitionEnds { asked, ends }));
    }

    /// What there is for the shard; `None` when there is nothing more.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Batch> {
        let full = self.progress.batcher.take_full().map(|(_, batch)| batch);
        full.or_else(|| self.progress.batcher.take(ShardIndex(0), &self.progress.read_offsets, now))
    }

    /// Whether the history is filled.
    pub(crate) fn is_filled(&mut self) -> bool {
        let Some(filling) = &mut self.filling else { return false };
        filling.check(&self.progress.read_offsets);
        filling.is_done()
    }
}
