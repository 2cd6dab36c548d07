//! Partitions that the pod starts without, since they have no leader, or may not be read: one that is lost must not hold back
//! all the others. They are assigned all the same. What first comes of one shows that it can be read: then it is read
//! from where it ends by now, and clients whose events may lie below are sent a reset.

use std::sync::atomic::Ordering;

use tracing::{info, warn};

use super::Desk;
use crate::ids::TopicIndex;
use crate::ingest::kafka::{Consumer, Message, ReadFrom};
use crate::stream::batch::NextOffset;

impl Desk {
    /// Begins without these: they have no leader.
    pub(super) fn begin_without(&mut self, partitions: &[(TopicIndex, i32)], consumer: &Consumer) {
        for &(topic, partition) in partitions {
            let name = self.name(Some(topic));
            let from = ReadFrom { topic: name, partition, offset: 0, epoch: None };
            if let Err(error) = consumer.assign([from]) {
                warn!(topic = name, partition, %error, "can't read the partition");
            }
            // Shards have to know that there is such a partition, for the topic's partitioner counts it.
            self.positions.set(topic, partition, 0);
            self.is_missing(topic, partition, "it has no leader");
        }
    }

    /// Waits no longer for partitions of the start of which nothing came.
    pub(super) fn give_up_the_silent(&mut self) {
        let Some(since) = &mut self.filling else { return };
        let (positions, progress) = (&self.positions, &self.progress);
        let is_silent =
            |topic, partition| positions.place(topic, partition).is_none_or(|place| progress.is_silent(place));
        for start in since.filling.give_up(|start| is_silent(start.topic, start.partition)) {
            self.is_missing(start.topic, start.partition, "nothing comes of it; the log may say why");
        }
    }

    fn is_missing(&mut self, topic: TopicIndex, partition: i32, why: &str) {
        let name = self.name(Some(topic));
        warn!(
            topic = name,
            partition, why, "the pod starts without the partition: its clients are sent a reset when it can be read"
        );
        self.missing.insert((topic, partition));
        self.is_not_expected(topic, partition);
        self.show_missing(topic);
    }

    pub(super) fn is_not_expected(&mut self, topic: TopicIndex, partition: i32) {
        if let Some(place) = self.positions.place(topic, partition) {
            self.progress.dropped(place, self.positions.all()[place].offset);
        }
    }

    /// Whether a message is of a partition that the pod started without. It is not taken in: where it says that the
    /// partition can be read, the watcher is asked where that ends.
    pub(super) fn is_of_missing(&mut self, message: &Message<'_>) -> bool {
        let (partition, can_be_read) = match message {
            Message::Record(incoming) => ((incoming.origin.topic, incoming.origin.partition), true),
            Message::End { topic, partition, .. } | Message::OutOfRange { topic, partition } => {
                ((*topic, *partition), true)
            }
            Message::Failed { topic: Some(topic), partition, .. } => ((*topic, *partition), false),
            Message::Failed { topic: None, .. } => return false,
        };
        if !self.missing.contains(&partition) {
            return false;
        }
        if can_be_read {
            let doubts = self.doubts.get_or_insert_default();
            if !doubts.out_of_range.contains(&partition) {
                doubts.out_of_range.push(partition);
            }
        }
        // Why it can't be read is worth a line.
        can_be_read
    }

    /// Reads a partition that the pod started without, from its end.
    pub(super) fn begin_late(&mut self, topic: TopicIndex, partition: i32, end: i64, consumer: &Consumer) {
        let name = self.name(Some(topic));
        info!(topic = name, partition, from = end, "the partition can be read now: its clients are sent a reset");
        if let Err(error) = consumer.restart(name, partition, end) {
            warn!(topic = name, partition, %error, "can't read the partition");
        }
        self.missing.remove(&(topic, partition));
        self.show_missing(topic);
        if self.positions.next(topic, partition) != Some(end) {
            self.positions.set(topic, partition, end);
            self.batcher.deleted(NextOffset { topic, partition, offset: end });
        }
        self.is_assigned(topic, partition);
    }

    pub(super) fn show_missing(&self, topic: TopicIndex) {
        let partitions = self.missing.iter().filter(|(missing, _)| *missing == topic).count();
        self.publisher.missing(self.name(Some(topic)), partitions);
        self.status.missing.store(self.missing.len() as u64, Ordering::Relaxed);
    }
}
