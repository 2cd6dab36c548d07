//! Partitions that the pod starts without, because they have no leader or may not be read: one lost partition must not
//! hold back the others. They are assigned anyway. The first sign that one can be read starts reading at its current
//! end, and clients with possible events below get a reset.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::{info, warn};

use super::IngestState;
use crate::ids::TopicIndex;
use crate::ingest::kafka::{Consumer, ConsumerEvent, ReadFrom};
use crate::limits::MISSING_NAMED_MAX;

impl IngestState {
    /// Begins without these: they have no leader.
    pub(super) fn register_missing(&mut self, partitions: &[(TopicIndex, i32)], consumer: &Consumer) {
        for &(topic, partition) in partitions {
            let name = self.topic_name(Some(topic));
            let from = ReadFrom { topic: name, partition, offset: 0, epoch: None };
            if let Err(error) = consumer.assign([from]) {
                warn!(topic = name, partition, %error, "partition not readable");
            }
            // Shards have to know that there is such a partition, for the topic's partitioner counts it.
            self.progress.read_offsets.set(topic, partition, 0);
            self.is_missing(topic, partition, "it has no leader");
        }
    }

    /// Waits no longer for partitions of the start of which nothing came.
    pub(super) fn stop_waiting_for_missing(&mut self) {
        let Some(since) = &mut self.filling else { return };
        let (read_offsets, stall_detector) = (&self.progress.read_offsets, &self.stall_detector);
        let has_no_events = |topic, partition| {
            read_offsets.index_of(topic, partition).is_none_or(|index| stall_detector.has_no_events(index))
        };
        for start in since.filling.give_up(|start| has_no_events(start.topic, start.partition)) {
            self.is_missing(start.topic, start.partition, "nothing comes of it; the log may say why");
        }
    }

    fn is_missing(&mut self, topic: TopicIndex, partition: i32, why: &str) {
        let name = self.topic_name(Some(topic));
        warn!(
            topic = name,
            partition,
            error = why,
            "starting without the partition; its clients get a reset when it can be read"
        );
        self.missing.insert((topic, partition));
        self.is_not_expected(topic, partition);
        self.publish_missing(topic);
    }

    pub(super) fn is_not_expected(&mut self, topic: TopicIndex, partition: i32) {
        if let Some(index) = self.progress.read_offsets.index_of(topic, partition) {
            self.stall_detector.dropped(index, self.progress.read_offsets.all()[index].offset);
        }
    }

    /// Whether a message is of a partition that the pod started without. It is not taken in: where it says that the
    /// partition can be read, the watcher is asked where that ends.
    pub(super) fn handle_missing(&mut self, message: &ConsumerEvent<'_>) -> bool {
        let (partition, can_be_read) = match message {
            ConsumerEvent::Record(incoming) => ((incoming.origin.topic, incoming.origin.partition), true),
            ConsumerEvent::End { topic, partition, .. } | ConsumerEvent::OutOfRange { topic, partition } => {
                ((*topic, *partition), true)
            }
            ConsumerEvent::Failed { topic: Some(topic), partition, .. } => ((*topic, *partition), false),
            ConsumerEvent::Failed { topic: None, .. } => return false,
        };
        if !self.missing.contains(&partition) {
            return false;
        }
        if can_be_read {
            let recheck = self.recheck.get_or_insert_default();
            if !recheck.out_of_range.contains(&partition) {
                recheck.out_of_range.push(partition);
            }
        }
        // Why it can't be read is worth a line.
        can_be_read
    }

    /// Reads a partition that the pod started without, from its end.
    pub(super) fn start_missing(&mut self, topic: TopicIndex, partition: i32, end: i64, consumer: &Consumer) {
        let name = self.topic_name(Some(topic));
        info!(topic = name, partition, offset = end, "missing partition can be read; its clients get a reset");
        if let Err(error) = consumer.restart(name, partition, end) {
            warn!(topic = name, partition, %error, "partition not readable");
        }
        self.missing.remove(&(topic, partition));
        self.publish_missing(topic);
        if self.progress.read_offsets.next(topic, partition) != Some(end) {
            self.progress.skip_to(topic, partition, end);
        }
        self.is_assigned(topic, partition);
    }

    pub(super) fn publish_missing(&self, topic: TopicIndex) {
        let partitions = self.missing.iter().filter(|(missing, _)| *missing == topic).count();
        self.publisher.missing(self.topic_name(Some(topic)), partitions);
        self.status.missing.store(self.missing.len() as u64, Ordering::Relaxed);
        let name = |&(topic, partition): &(TopicIndex, i32)| format!("{}:{partition}", self.topic_name(Some(topic)));
        let mut names: Vec<Box<str>> = self.missing.iter().map(|missing| name(missing).into()).collect();
        names.sort_unstable();
        names.truncate(MISSING_NAMED_MAX);
        self.status.missing_names.store(Arc::new(names));
    }
}
