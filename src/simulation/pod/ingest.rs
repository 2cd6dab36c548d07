//! A pod's reading: what the reader's and the watcher's threads do with the rules of ingest. Each pod reads the
//! partitions in an order of its own.

use fastrand::Rng;

use super::{PodContext, RunningPod};
use crate::clock::whole_ms;
use crate::ids::TopicIndex;
use crate::ingest::testing::{MetadataChange, TestOffsets, TestTopic};
use crate::simulation::kafka::{SimulatedKafka, SimulatedTopic};
use crate::simulation::plan::WorldShape;
use crate::stream::batch::{Batch, LogEnd, NextOffset, Origin};

/// Records that a pod reads in a slot, at most, once its history is filled.
const RECORDS_A_SLOT: usize = 6;

/// A partition that is read.
pub(super) struct PodReader {
    topic: TopicIndex,
    partition: i32,
    /// Its place in [`SimulatedKafka::parts`].
    part: usize,
    /// When the watcher says where to go on behind what was deleted.
    restart_at_ms: Option<u64>,
}

/// What a process has read, for the checker: from this follows what its window can't have.
#[derive(Debug, Default)]
pub(in crate::simulation) struct ReadHistory {
    /// From where on a partition was read: at the start, and behind what was deleted.
    begun: Vec<(usize, i64)>,
    read: Vec<PartitionRead>,
    /// The topics as it knows them.
    pub(in crate::simulation) known: Vec<KnownTopic>,
}

/// A topic, as a process knows it.
#[derive(Debug, Default)]
pub(in crate::simulation) struct KnownTopic {
    /// Empty before it was seen.
    pub(in crate::simulation) id: Box<str>,
    /// How many partitions it had at first, and has now.
    pub(in crate::simulation) partitions: (usize, usize),
    /// When it learned that the topic is another one than it or others knew; 0 for never.
    pub(in crate::simulation) remade_ms: u64,
    /// When it learned that the topic has more partitions; 0 for never.
    pub(in crate::simulation) grown_ms: u64,
    /// It began to read other topics before it saw this one.
    pub(in crate::simulation) is_met_late: bool,
}

#[derive(Debug, Clone, Copy)]
struct PartitionRead {
    part: usize,
    offset: i64,
    at_ms: u64,
}

/// Bytes that a record costs a history, at most, beside its payload: its entry, its frame and its cursor, in vectors
/// that have grown to twice their need.
const RECORD_BYTES_MAX: usize = 2_000;

/// Bytes by which a history falls short of its bound when it lets go of its oldest segment, and has just begun another.
const SEGMENT_BYTES_MAX: usize = 256 * 1024;

impl ReadHistory {
    /// A look at the topics.
    fn see(&mut self, topics: &[SimulatedTopic], now_ms: u64) {
        let is_first = self.known.is_empty();
        self.known.resize_with(topics.len(), KnownTopic::default);
        for (known, topic) in self.known.iter_mut().zip(topics).filter(|(_, topic)| !topic.is_hidden) {
            let now = topic.parts.len();
            if known.id != topic.id {
                let is_new = known.id.is_empty() && (is_first || !topic.is_remade);
                known.remade_ms = if is_new { 0 } else { now_ms };
                known.is_met_late = !is_first;
                known.id.clone_from(&topic.id);
                known.partitions = (now, now);
            } else if known.partitions.1 != now {
                known.grown_ms = now_ms;
                known.partitions.1 = now;
            }
        }
    }

    /// Below which offset of a partition the process may have nothing to send, and why.
    pub(in crate::simulation) fn low(&self, part: usize, shape: &WorldShape, now_ms: u64) -> i64 {
        let begun = self.begun.iter().filter(|(of, _)| *of == part).map(|&(_, from)| from);
        let kept = (shape.history_bytes - SEGMENT_BYTES_MAX) / (RECORD_BYTES_MAX + 2 * shape.padding);
        let window_ms = whole_ms(shape.history);
        let evicted = self.read.iter().enumerate().filter(|(place, read)| {
            let is_old = now_ms.saturating_sub(read.at_ms) >= window_ms;
            read.part == part && (is_old || self.read.len() - place > kept)
        });
        begun.chain(evicted.map(|(_, read)| read.offset + 1)).max().unwrap_or(i64::MAX)
    }
}

impl RunningPod {
    /// Takes from Kafka what comes in a slot.
    pub(super) fn read(&mut self, around: &PodContext<'_>, dice: &mut Rng) {
        if around.now_ms >= self.look_at_ms {
            self.look_at_topics(around);
            self.look_at_ms = around.now_ms + dice.u64(100..around.shape.refresh_ms);
        }
        let is_full = self.inbox.len() >= 3;
        if self.readings.is_empty() || is_full {
            return;
        }
        let mut left = if self.told_complete { dice.usize(..=RECORDS_A_SLOT) } else { 200 };
        // Whoever has nothing to read is passed over, so often that all have had their turn.
        let mut idle = 0;
        while left > 0 && idle < 2 * self.readings.len() {
            let chosen = dice.usize(..self.readings.len());
            let records = dice.usize(1..4).min(left);
            let read = self.read_from(chosen, records, around, dice);
            left -= read;
            idle = if read == 0 { idle + 1 } else { 0 };
            // A batch ends wherever the consumer has no more at hand.
            if dice.u8(..6) == 0 {
                self.hand_over(around);
            }
        }
        self.hand_over(around);
    }

    fn hand_over(&mut self, around: &PodContext<'_>) {
        self.inbox.extend(self.feed.take(around.now.instant));
    }

    /// Asks for the logs' ends, now and then; the answer takes a while.
    pub(super) fn ask_for_ends(&mut self, around: &PodContext<'_>) {
        if let Some((asked, ends)) = self.ends.take().filter(|_| self.shard.needs_ends()) {
            self.feed.update_ends(asked, ends);
            self.hand_over(around);
        }
        if around.now_ms >= self.ends_at_ms {
            self.ends_at_ms = around.now_ms + 1_000;
            // They are asked for by name: where the topic was made anew, the answer is of the new one.
            let log = around.log;
            let end = |&PodReader { topic, partition, part, .. }: &PodReader| {
                let part = *log.topics[log.parts[part].topic].parts.get(usize::try_from(partition).ok()?)?;
                let at = NextOffset { topic, partition, offset: log.parts[part].end };
                Some(LogEnd { at, leader_epoch: Some(0) })
            };
            self.ends = Some((around.now.instant, self.readings.iter().filter_map(end).collect()));
        }
    }

    /// Reads records of one partition; returns how many.
    fn read_from(&mut self, chosen: usize, records: usize, around: &PodContext<'_>, dice: &mut Rng) -> usize {
        let PodReader { topic, partition, part, restart_at_ms } = self.readings[chosen];
        let log = &around.log.parts[part];
        if log.is_gone {
            return 0;
        }
        let next = self.feed.next(topic, partition);
        if next < log.beginning {
            let at_ms = *self.readings[chosen].restart_at_ms.get_or_insert(around.now_ms + dice.u64(..400));
            if around.now_ms >= at_ms {
                self.hand_over(around);
                let from = self.feed.restart(topic, partition, log.beginning, log.end);
                self.memory.borrow_mut().begun.push((part, from));
                self.readings[chosen].restart_at_ms = None;
                self.hand_over(around);
            }
            return 0;
        }
        debug_assert!(restart_at_ms.is_none());
        let first = log.decide(next);
        let found = &log.records[first..log.records.len().min(first + records)];
        for record in found {
            self.feed.record(Origin { topic, partition, offset: record.offset }, 0, record.payload.as_bytes());
            self.memory.borrow_mut().read.push(PartitionRead { part, offset: record.offset, at_ms: around.now_ms });
        }
        if found.len() < records && self.feed.next(topic, partition) <= log.end && dice.bool() {
            self.feed.end_seen(topic, partition, log.end);
        }
        found.len()
    }

    fn look_at_topics(&mut self, around: &PodContext<'_>) {
        if self.as_of == Some(around.log.version) {
            return;
        }
        self.as_of = Some(around.log.version);
        self.hand_over(around);
        let SimulatedKafka { topics, parts, .. } = around.log;
        let seen: Vec<_> = topics
            .iter()
            .filter(|topic| !topic.is_hidden)
            .map(|topic| TestTopic { name: &topic.name, id: &topic.id, partitions: count(topic.parts.len()) })
            .collect();
        let since_ms = around.now_ms.saturating_sub(whole_ms(around.shape.history));
        let of = |name: &str, partition: i32| part_of(around.log, name, partition);
        let MetadataChange { retired, back, fresh, doubtful } =
            self.feed.apply_metadata(&seen, around.now.instant, |name, partition| {
                let part = &parts[of(name, partition)];
                TestOffsets { beginning: part.beginning, since: part.since(since_ms), end: part.end }
            });
        self.retired.extend(self.readings.extract_if(.., |reading| retired.contains(&reading.topic)));
        self.readings.extend(self.retired.extract_if(.., |reading| back.contains(&reading.topic)));
        // Others have their indexes by now.
        self.retired.retain(|reading| fresh.iter().all(|(topic, ..)| *topic != reading.topic));
        if doubtful {
            self.as_of = None;
        }
        for (topic, partition, from) in fresh {
            let part = of(self.feed.name(topic), partition);
            self.memory.borrow_mut().begun.push((part, from));
            self.readings.push(PodReader { topic, partition, part, restart_at_ms: None });
        }
        self.memory.borrow_mut().see(topics, around.now_ms);
        self.hand_over(around);
    }

    /// Notes where the shard stands when it has taken a batch.
    pub(super) fn follow(&mut self, batch: &Batch) {
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
