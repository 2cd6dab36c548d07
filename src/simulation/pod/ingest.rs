//! A pod's reading: what the reader's and the watcher's threads do with the rules of ingest. Each pod reads the
//! partitions in an order of its own.

use fastrand::Rng;

use super::{Around, Life};
use crate::clock::whole_ms;
use crate::ids::TopicIndex;
use crate::ingest::testing::{Looked, Offsets, SeenTopic};
use crate::simulation::log::Log;
use crate::simulation::plan::Shape;
use crate::stream::batch::Origin;

/// Records that a pod reads in a slot, at most, once its history is filled.
const RECORDS_A_SLOT: usize = 6;

/// A partition that is read.
pub(super) struct Reading {
    topic: TopicIndex,
    partition: i32,
    /// Its place in [`Log::parts`].
    part: usize,
    /// When the watcher says where to go on behind what was deleted.
    restart_at_ms: Option<u64>,
}

/// What a process has read, for the checker: from this follows what its window can't have.
#[derive(Debug, Default)]
pub(in crate::simulation) struct Memory {
    /// From where on a partition was read: at the start, and behind what was deleted.
    begun: Vec<(usize, i64)>,
    read: Vec<Read>,
    /// The topics' ids as it knows them, by topic, each with when it last learned that it is another one.
    pub(in crate::simulation) known: Vec<(Box<str>, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Read {
    part: usize,
    offset: i64,
    at_ms: u64,
}

/// Bytes that a record costs a history, at most: its entry, its payload, its frame and its cursor, in vectors that have
/// grown to twice their need.
const RECORD_BYTES_MAX: usize = 2_000;

impl Memory {
    /// Below which offset of a partition the process may have nothing to send, and why.
    pub(in crate::simulation) fn low(&self, part: usize, shape: &Shape, now_ms: u64) -> i64 {
        let begun = self.begun.iter().filter(|(of, _)| *of == part).map(|&(_, from)| from);
        let kept = shape.history_bytes / RECORD_BYTES_MAX;
        let window_ms = whole_ms(shape.history);
        let evicted = self.read.iter().enumerate().filter(|(place, read)| {
            let is_old = now_ms.saturating_sub(read.at_ms) >= window_ms;
            read.part == part && (is_old || self.read.len() - place > kept)
        });
        begun.chain(evicted.map(|(_, read)| read.offset + 1)).max().unwrap_or(i64::MAX)
    }
}

impl Life {
    /// Takes from Kafka what comes in a slot.
    pub(super) fn read(&mut self, around: &Around<'_>, dice: &mut Rng) {
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

    fn hand_over(&mut self, around: &Around<'_>) {
        self.inbox.extend(self.feed.take(around.now.instant));
    }

    /// Reads records of one partition; returns how many.
    fn read_from(&mut self, chosen: usize, records: usize, around: &Around<'_>, dice: &mut Rng) -> usize {
        let Reading { topic, partition, part, restart_at_ms } = self.readings[chosen];
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
        let first = log.place(next);
        let found = &log.records[first..log.records.len().min(first + records)];
        for record in found {
            self.feed.record(Origin { topic, partition, offset: record.offset }, record.payload.as_bytes());
            self.memory.borrow_mut().read.push(Read { part, offset: record.offset, at_ms: around.now_ms });
        }
        if found.len() < records && self.feed.next(topic, partition) <= log.end && dice.bool() {
            self.feed.end_seen(topic, partition, log.end);
        }
        found.len()
    }

    fn look_at_topics(&mut self, around: &Around<'_>) {
        if self.looked == Some(around.log.version) {
            return;
        }
        self.looked = Some(around.log.version);
        self.hand_over(around);
        let Log { topics, parts, .. } = around.log;
        let seen: Vec<_> = topics
            .iter()
            .filter(|topic| !topic.is_hidden)
            .map(|topic| SeenTopic { name: &topic.name, id: &topic.id, partitions: count(topic.parts.len()) })
            .collect();
        let since_ms = around.now_ms.saturating_sub(whole_ms(around.shape.history));
        let of = |name: &str, partition: i32| part_of(around.log, name, partition);
        let Looked { retired, back, fresh, doubtful } = self.feed.look(&seen, |name, partition| {
            let part = &parts[of(name, partition)];
            Offsets { beginning: part.beginning, since: part.since(since_ms), end: part.end }
        });
        self.retired.extend(self.readings.extract_if(.., |reading| retired.contains(&reading.topic)));
        self.readings.extend(self.retired.extract_if(.., |reading| back.contains(&reading.topic)));
        if doubtful {
            self.looked = None;
        }
        for (topic, partition, from) in fresh {
            let part = of(self.feed.name(topic), partition);
            self.memory.borrow_mut().begun.push((part, from));
            self.readings.push(Reading { topic, partition, part, restart_at_ms: None });
        }
        let mut memory = self.memory.borrow_mut();
        for (place, topic) in topics.iter().enumerate() {
            match memory.known.get_mut(place) {
                Some(known) if known.0 == topic.id => {}
                Some(known) => *known = (topic.id.clone(), around.now_ms),
                None => memory.known.push((topic.id.clone(), 0)),
            }
        }
        drop(memory);
        self.hand_over(around);
    }

    /// Notes where the shard stands, which has taken in all that was read.
    pub(super) fn rebase(&mut self) {
        for reading in &self.readings {
            if self.base.len() <= reading.part {
                self.base.resize(reading.part + 1, 0);
            }
            self.base[reading.part] = self.feed.next(reading.topic, reading.partition);
        }
    }
}

fn part_of(log: &Log, name: &str, partition: i32) -> usize {
    let topic = log.topics.iter().find(|topic| *topic.name == *name).expect("it was seen just now");
    topic.parts[usize::try_from(partition).expect("Kafka numbers partitions from 0")]
}

fn count(number: usize) -> i32 {
    i32::try_from(number).expect("few partitions")
}
