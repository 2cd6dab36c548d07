//! A pod's ingest: the work of the reader and watcher threads, with ingest's rules. Each pod reads the partitions in
//! its own order.

use fastrand::Rng;

use super::{PodContext, RunningPod};
use crate::clock::whole_ms;
use crate::ids::TopicIndex;
use crate::ingest::testing::{MetadataChange, TestOffsets, TestTopic};
use crate::simulation::kafka::{SimulatedKafka, SimulatedTopic};
use crate::simulation::plan::WorldShape;
use crate::stream::batch::{Batch, LogEnd, NextOffset, Origin};

/// Records that a pod reads in a step, at most, once its history is complete.
const RECORDS_A_SLOT: usize = 6;

/// A partition that the pod reads.
pub(super) struct PodReader {
    topic: TopicIndex,
    partition: i32,
    /// Index in [`SimulatedKafka::parts`].
    part: usize,
    /// When the watcher returns the offset to continue at behind deleted records.
    restart_at_ms: Option<u64>,
}

/// What a process has read, for the checker, which derives from it what the window can't hold.
#[derive(Debug, Default)]
pub(in crate::simulation) struct ReadHistory {
    /// Offsets where reading of a partition started: at the start, and behind deleted records.
    begun: Vec<(usize, i64)>,
    read: Vec<PartitionRead>,
    /// The topics, as the process knows them.
    pub(in crate::simulation) known: Vec<KnownTopic>,
}

/// A topic, as a process knows it.
#[derive(Debug, Default)]
pub(in crate::simulation) struct KnownTopic {
    /// Topic id; empty before the topic was seen.
    pub(in crate::simulation) id: Box<str>,
    /// Partition count: first and now.
    pub(in crate::simulation) partitions: (usize, usize),
    /// When the process learned that the topic is not the one that it, or other pods, knew; 0 for never.
    pub(in crate::simulation) recreated_ms: u64,
    /// When the process learned that the topic has more partitions; 0 for never.
    pub(in crate::simulation) grown_ms: u64,
    /// Whether the process read other topics before it saw this one.
    pub(in crate::simulation) is_late_topic: bool,
}

#[derive(Debug, Clone, Copy)]
struct PartitionRead {
    part: usize,
    offset: i64,
    at_ms: u64,
}

/// The most bytes that a record takes in a history, beside its payload: entry, frame and cursor, in vectors that have
/// grown to twice their need.
const RECORD_BYTES_MAX: usize = 2_000;

/// Bytes by which a history can be below its limit when it has evicted its oldest segment and just started a new one.
const SEGMENT_BYTES_MAX: usize = 256 * 1024;

impl ReadHistory {
    /// Applies a metadata refresh.
    fn see(&mut self, topics: &[SimulatedTopic], now_ms: u64) {
        let is_first = self.known.is_empty();
        self.known.resize_with(topics.len(), KnownTopic::default);
        for (known, topic) in self.known.iter_mut().zip(topics).filter(|(_, topic)| !topic.is_hidden) {
            let now = topic.parts.len();
            if known.id != topic.id {
                let is_new = known.id.is_empty() && (is_first || !topic.is_recreated);
                known.recreated_ms = if is_new { 0 } else { now_ms };
                known.is_late_topic = !is_first;
                known.id.clone_from(&topic.id);
                known.partitions = (now, now);
            } else if known.partitions.1 != now {
                known.grown_ms = now_ms;
                known.partitions.1 = now;
            }
        }
    }

    /// The offset of a partition below which the process may have nothing to send.
    pub(in crate::simulation) fn low(&self, part: usize, shape: &WorldShape, now_ms: u64) -> i64 {
        let begun = self.begun.iter().filter(|(of, _)| *of == part).map(|&(_, from)| from);
        let kept = (shape.history_bytes - SEGMENT_BYTES_MAX) / (RECORD_BYTES_MAX + 2 * shape.padding);
        let window_ms = whole_ms(shape.history);
        let evicted = self.read.iter().enumerate().filter(|(index, read)| {
            let is_old = now_ms.saturating_sub(read.at_ms) >= window_ms;
            read.part == part && (is_old || self.read.len() - index > kept)
        });
        begun.chain(evicted.map(|(_, read)| read.offset + 1)).max().unwrap_or(i64::MAX)
    }
}

impl RunningPod {
    /// Reads from Kafka for one step.
    pub(super) fn read(&mut self, context: &PodContext<'_>, rng: &mut Rng) {
        if context.now_ms >= self.refresh_at_ms {
            self.refresh_topics(context);
            self.refresh_at_ms = context.now_ms + rng.u64(100..context.shape.refresh_ms);
        }
        let is_full = self.inbox.len() >= 3;
        if self.readings.is_empty() || is_full {
            return;
        }
        let mut left = if self.reported_complete { rng.usize(..=RECORDS_A_SLOT) } else { 200 };
        // Partitions without records are skipped, until every partition had its chance.
        let mut idle = 0;
        while left > 0 && idle < 2 * self.readings.len() {
            let chosen = rng.usize(..self.readings.len());
            let records = rng.usize(1..4).min(left);
            let read = self.read_from(chosen, records, context, rng);
            left -= read;
            idle = if read == 0 { idle + 1 } else { 0 };
            // A batch ends whenever the consumer has no more records.
            if rng.u8(..6) == 0 {
                self.hand_over(context);
            }
        }
        self.hand_over(context);
    }

    fn hand_over(&mut self, context: &PodContext<'_>) {
        while let Some(batch) = self.feed.take(context.now.instant) {
            self.inbox.push_back(batch);
        }
    }

    /// Queries the log ends now and then; the answer takes a while.
    pub(super) fn request_ends(&mut self, context: &PodContext<'_>) {
        if let Some((asked, ends)) = self.ends.take().filter(|_| self.shard.needs_ends()) {
            self.feed.update_ends(asked, ends);
            self.hand_over(context);
        }
        if context.now_ms >= self.ends_at_ms {
            self.ends_at_ms = context.now_ms + 1_000;
            // The query goes by topic name: for a recreated topic the answer is about the new one.
            let log = context.log;
            let end = |&PodReader { topic, partition, part, .. }: &PodReader| {
                let part = *log.topics[log.parts[part].topic].parts.get(usize::try_from(partition).ok()?)?;
                let at = NextOffset { topic, partition, offset: log.parts[part].end };
                Some(LogEnd { at, leader_epoch: Some(0) })
            };
            self.ends = Some((context.now.instant, self.readings.iter().filter_map(end).collect()));
        }
    }

    /// Reads records of one partition; returns how many.
    fn read_from(&mut self, chosen: usize, records: usize, context: &PodContext<'_>, rng: &mut Rng) -> usize {
        let PodReader { topic, partition, part, restart_at_ms } = self.readings[chosen];
        let log = &context.log.parts[part];
        if log.is_gone {
            return 0;
        }
        let next = self.feed.next(topic, partition);
        if next < log.beginning {
            let at_ms = *self.readings[chosen].restart_at_ms.get_or_insert(context.now_ms + rng.u64(..400));
            if context.now_ms >= at_ms {
                let from = self.feed.restart(topic, partition, log.beginning, log.end);
                self.history.borrow_mut().begun.push((part, from));
                self.readings[chosen].restart_at_ms = None;
                self.hand_over(context);
            }
            return 0;
        }
        debug_assert!(restart_at_ms.is_none());
        let first = log.index_of(next);
        let found = &log.records[first..log.records.len().min(first + records)];
        for record in found {
            self.feed.record(Origin { topic, partition, offset: record.offset }, 0, record.payload.as_bytes());
            self.history.borrow_mut().read.push(PartitionRead { part, offset: record.offset, at_ms: context.now_ms });
        }
        if found.len() < records && self.feed.next(topic, partition) <= log.end && rng.bool() {
            self.feed.end_seen(topic, partition, log.end);
        }
        found.len()
    }

    fn refresh_topics(&mut self, context: &PodContext<'_>) {
        if self.as_of == Some(context.log.version) {
            return;
        }
        self.as_of = Some(context.log.version);
        self.hand_over(context);
        let SimulatedKafka { topics, parts, .. } = context.log;
        let seen: Vec<_> = topics
            .iter()
            .filter(|topic| !topic.is_hidden)
            .map(|topic| TestTopic { name: &topic.name, id: &topic.id, partitions: count(topic.parts.len()) })
            .collect();
        let since_ms = context.now_ms.saturating_sub(whole_ms(context.shape.history));
        let of = |name: &str, partition: i32| part_of(context.log, name, partition);
        let MetadataChange { retired, back, fresh, doubtful } =
            self.feed.apply_metadata(&seen, context.now.instant, |name, partition| {
                let part = &parts[of(name, partition)];
                TestOffsets { beginning: part.beginning, since: part.since(since_ms), end: part.end }
            });
        self.retired.extend(self.readings.extract_if(.., |reading| retired.contains(&reading.topic)));
        self.readings.extend(self.retired.extract_if(.., |reading| back.contains(&reading.topic)));
        // Other topics use their indexes already.
        self.retired.retain(|reading| fresh.iter().all(|(topic, ..)| *topic != reading.topic));
        if doubtful {
            self.as_of = None;
        }
        for (topic, partition, from) in fresh {
            let part = of(self.feed.name(topic), partition);
            self.history.borrow_mut().begun.push((part, from));
            self.readings.push(PodReader { topic, partition, part, restart_at_ms: None });
        }
        self.history.borrow_mut().see(topics, context.now_ms);
        self.hand_over(context);
    }

    /// Records the shard's next offsets after a batch.
    pub(super) fn track_offsets(&mut self, batch: &Batch) {
        let Self { readings, retired, base, .. } = self;
        let mut set = |topic: TopicIndex, partition: i32, next: i64| {
            let is_it = |reading: &&PodReader| (reading.topic, reading.partition) == (topic, partition);
            let Some(reading) = readings.iter().chain(retired.iter()).find(is_it) else { return };
            if base.len() <= reading.part {
                base.resize(reading.part + 1, 0);
            }
            base[reading.part] = next;
        };
        batch.starts.iter().for_each(|start| set(start.topic, start.partition, start.offset));
        for record in &batch.records {
            set(record.origin.topic, record.origin.partition, record.origin.offset + 1);
        }
    }
}

fn part_of(log: &SimulatedKafka, name: &str, partition: i32) -> usize {
    let topic = log.topics.iter().find(|topic| *topic.name == *name).expect("it was seen just now");
    topic.parts[usize::try_from(partition).expect("Kafka numbers partitions from 0")]
}

fn count(number: usize) -> i32 {
    i32::try_from(number).expect("few partitions")
}
