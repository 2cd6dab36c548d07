//! Which partitions the client reads, and from which offsets: new ones, ones whose offset was out of range, and ones that
//! are no longer read. [`super::super::watcher`] finds them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tracing::{info, warn};

use super::{FillProgress, IngestState};
use crate::ids::TopicIndex;
use crate::ingest::kafka::{Consumer, ReadFrom};
use crate::ingest::read_progress::{Notice, NoticeKind};
use crate::ingest::startup::{Filling, LogRange};
use crate::ingest::watcher::TopologyChange;
use crate::limits::CURSOR_CHARS_MAX;
use crate::routing::table::{Partitioner, Scope};
use crate::stream::batch::NextOffset;
use crate::stream::cursor::{has_room_for, has_room_for_epochs, topics_max};

impl IngestState {
    pub(super) fn apply_change(&mut self, change: &TopologyChange, consumer: &mut Consumer, now: Instant) {
        for &topic in &change.retired {
            self.retire(topic, consumer);
        }
        for &topic in &change.dropped {
            self.drop_topic(topic, consumer);
        }
        for topic in &change.remapped {
            info!(topic = %topic.name, to = %topic.route.message_type, "topic has another route now; its next records become other messages");
            self.progress.batcher.remap(Arc::clone(topic));
        }
        for &topic in &change.back {
            self.resume(topic, consumer);
        }
        for &((topic, partition), range) in &change.restarts {
            self.restart((topic, partition), range, consumer, now);
        }
        if change.initial || !(change.topics.is_empty() && change.partitions.is_empty() && change.missing.is_empty()) {
            self.assign_new(change, consumer, now);
        }
        self.note_compacted(&change.compacted);
        if change.by_routes {
            info!("new routes in force");
        }
        self.publisher.reading(self.progress.read_offsets.all());
        self.paused_since.take_if(|_| change.is_answer);
    }

    /// Says so where cursors may become too long to be resumed from.
    fn check_room_in_cursors(&self) {
        let (mut topics, mut places) = (0, 0);
        for topic in self.progress.batcher.topics() {
            match topic.route.scope {
                Scope::Assessment { partitioner: Partitioner::None, .. } => {
                    topics += 1;
                    places += (self.progress.read_offsets.partitions(topic.index) as usize).saturating_sub(1);
                }
                Scope::Assessment { .. } => topics += 1,
                Scope::Market { .. } => {}
            }
        }
        if !has_room_for(topics, places) {
            warn!(
                topics,
                further_partitions = places,
                topics_max = topics_max(),
                "too many topics and partitions per assessment: a cursor of {CURSOR_CHARS_MAX} characters may not list them all, \
                 and clients without a complete cursor get a reset when they reconnect. Topics whose `partitioner` is \"none\" are \
                 listed with all their partitions"
            );
        } else if !has_room_for_epochs(topics, places) {
            warn!(
                topics,
                further_partitions = places,
                "many topics and partitions per assessment: a cursor of {CURSOR_CHARS_MAX} characters may have no room for leader \
                 epochs, and then a client that returns after an unclean leader election may not be told what was lost"
            );
        }
    }

    fn assign_new(&mut self, change: &TopologyChange, consumer: &mut Consumer, now: Instant) {
        for topic in &change.topics {
            self.forget(topic.index, consumer);
            if let Err(error) = consumer.add_topic(topic) {
                warn!(topic = %topic.name, %error, "topic not readable");
            }
            self.progress.add_topic(Arc::clone(topic));
            self.publisher.add_topic(topic.index, &topic.name);
            self.lag_by_topic.resize(self.progress.batcher.topics().len(), 0);
        }
        let topics = self.progress.batcher.topics();
        let starts = change.partitions.iter().map(|start| {
            let name = topics.get(usize::from(start.topic.0)).map_or("", |topic| &topic.name);
            ReadFrom { topic: name, partition: start.partition, offset: start.offset, epoch: None }
        });
        if let Err(error) = consumer.assign(starts) {
            warn!(%error, partitions = change.partitions.len(), "partitions not readable");
        }
        for start in &change.partitions {
            self.progress.read_offsets.set(start.topic, start.partition, start.offset);
            self.is_assigned(start.topic, start.partition);
            let (topic, partition) = (start.topic, start.partition);
            self.progress.batcher.recent_from(NextOffset { topic, partition, offset: start.recent });
            if let Some(since) = change.since {
                self.progress.younger_from(NextOffset { topic, partition, offset: start.recent }, since);
            }
            if start.end > start.offset {
                self.progress.batcher.ended_at(NextOffset { topic, partition, offset: start.end });
            }
        }
        self.register_missing(&change.missing, consumer);
        self.check_room_in_cursors();
        let partitions = change.partitions.len();
        if change.initial {
            let filling = Filling::new(&change.partitions);
            let offsets = filling.offsets_left(&self.progress.read_offsets);
            info!(topics = change.topics.len(), partitions, offsets, "filling the history");
            self.publisher.filling_begins(offsets);
            self.filling = Some(FillProgress { filling, began: now, waits_since: now, partitions, offsets, said: now });
        } else {
            let mut names: Vec<_> = change.partitions.iter().map(|start| self.topic_name(Some(start.topic))).collect();
            names.dedup();
            info!(topics = names.join(", "), partitions, "reading new topics and partitions");
        }
    }

    /// Forgets the topic that had an index before, if any. While no batch is begun.
    fn forget(&mut self, topic: TopicIndex, consumer: &mut Consumer) {
        let Some(known) = self.progress.batcher.topics().get(usize::from(topic.0)) else { return };
        consumer.forget_topic(known);
        for index in self.progress.forget(topic) {
            self.lag.forget(index);
            self.stall_detector.dropped(index, 0);
        }
        self.refused.retain(|&(refused, _)| refused != topic);
        self.retired.remove(&topic);
        self.retired.insert(TopicIndex::NONE);
    }

    /// A topic is deleted, or another has its name by now.
    fn retire(&mut self, topic: TopicIndex, consumer: &Consumer) {
        warn!(topic = self.topic_name(Some(topic)), "topic deleted or recreated; reading of the old one stopped");
        self.stop_reading(topic, consumer);
    }

    /// No route takes a topic any more as it did.
    fn drop_topic(&mut self, topic: TopicIndex, consumer: &Consumer) {
        info!(topic = self.topic_name(Some(topic)), "no route for the topic any more; its records are no longer sent");
        if !self.retired.contains(&topic) {
            self.stop_reading(topic, consumer);
        }
        self.progress.batcher.dropped(topic);
    }

    fn stop_reading(&mut self, topic: TopicIndex, consumer: &Consumer) {
        let name = self.topic_name(Some(topic)).to_owned();
        if let Err(error) = consumer.drop_partitions(&name, self.progress.read_offsets.of(topic).map(|at| at.partition))
        {
            warn!(topic = name, %error, "partitions not unassigned");
        }
        for at in self.progress.read_offsets.of(topic) {
            if let Some(index) = self.progress.read_offsets.index_of(topic, at.partition) {
                self.stall_detector.dropped(index, at.offset);
            }
        }
        self.progress.batcher.set_reading(topic, false);
        self.missing.retain(|&(missing, _)| missing != topic);
        self.progress.stop_reading(topic);
        self.publish_missing(topic);
        self.retired.insert(topic);
        self.publisher.retire_topic(topic, &name);
        if let Some(since) = &mut self.filling {
            since.filling.retired(topic);
        }
    }

    fn resume(&mut self, topic: TopicIndex, consumer: &Consumer) {
        let name = self.topic_name(Some(topic)).to_owned();
        info!(topic = name, "topic is back; reading continues");
        let places = self.progress.read_offsets.of(topic).map(|at| ReadFrom {
            topic: &name,
            partition: at.partition,
            offset: at.offset,
            epoch: self.progress.epoch(&at),
        });
        if let Err(error) = consumer.assign(places) {
            warn!(topic = name, %error, "partitions not readable");
        }
        self.retired.remove(&topic);
        self.progress.batcher.set_reading(topic, true);
        for partition in self.progress.read_offsets.of(topic).map(|at| at.partition).collect::<Vec<_>>() {
            self.is_assigned(topic, partition);
        }
        self.publisher.resume_topic(topic, &name);
    }

    /// Continues a partition whose offset was out of range. Its topic is still the same.
    fn restart(&mut self, (topic, partition): (TopicIndex, i32), range: LogRange, consumer: &Consumer, now: Instant) {
        if self.missing.contains(&(topic, partition)) {
            return self.start_missing(topic, partition, range.end, consumer);
        }
        if !self.refused.remove(&(topic, partition)) {
            return;
        }
        self.counts.offset_resets += 1;
        let Some(next) = self.progress.read_offsets.next(topic, partition) else { return };
        let Some(restart) = self.progress.restart(topic, partition, range) else { return };
        let name = self.topic_name(Some(topic));
        let LogRange { beginning, end } = range;
        info!(
            topic = name,
            partition,
            expected_offset = next,
            log_start = beginning,
            log_end = end,
            offset = restart.from,
            "offset out of range; reading restarts"
        );
        if let Err(error) = consumer.restart(name, partition, restart.from) {
            warn!(topic = name, partition, %error, "partition not readable any more");
        }
        self.log_notices(now);
        self.is_assigned(topic, partition);
    }

    /// Logs the notices of the last record, end or refused read offset.
    pub(super) fn log_notices(&mut self, now: Instant) {
        if !self.progress.has_notices() {
            return;
        }
        for Notice { kind, expected, at } in self.progress.take_notices() {
            let NextOffset { topic, partition, offset } = at;
            let is_due = kind != NoticeKind::Gap || self.gaps.admit((topic, partition), now).is_some();
            let topic = self.topic_name(Some(topic));
            match kind {
                NoticeKind::Deleted => warn!(
                    topic,
                    partition,
                    expected_offset = expected,
                    offset,
                    "records were deleted before they were read; reading continues behind them"
                ),
                NoticeKind::Truncated => warn!(
                    topic,
                    partition,
                    expected_offset = expected,
                    offset,
                    "log truncated, as after an unclean leader election; reading continues where the logs diverge, \
                     and clients get a reset"
                ),
                NoticeKind::Gap if is_due => warn!(
                    topic,
                    partition,
                    expected_offset = expected,
                    offset,
                    "records missing: compacted before they were read, or a transaction ended; clients get a reset"
                ),
                NoticeKind::Gap => {}
            }
        }
    }

    /// Whether there is a partition to be read.
    pub(super) fn reads_something(&self) -> bool {
        self.progress.read_offsets.all().iter().any(|at| !self.retired.contains(&at.topic))
    }

    /// Assigns all partitions to a new client, from their read offsets.
    pub(super) fn reassign_all(&mut self, consumer: &mut Consumer, now: Instant) {
        let read = |topic: &TopicIndex| !self.retired.contains(topic);
        for topic in self.progress.batcher.topics().iter().filter(|topic| read(&topic.index)) {
            if let Err(error) = consumer.add_topic(topic) {
                warn!(topic = %topic.name, %error, "topic not readable");
            }
        }
        let places: Vec<_> = self.progress.read_offsets.all().iter().copied().filter(|at| read(&at.topic)).collect();
        let from = places.iter().map(|at| ReadFrom {
            topic: self.topic_name(Some(at.topic)),
            partition: at.partition,
            offset: at.offset,
            epoch: self.progress.epoch(at),
        });
        if let Err(error) = consumer.assign(from) {
            warn!(%error, partitions = places.len(), "partitions not readable");
        }
        self.stall_detector.client_replaced(now);
        self.refused.clear();
        for at in &places {
            match self.missing.contains(&(at.topic, at.partition)) {
                true => self.is_not_expected(at.topic, at.partition),
                false => self.is_assigned(at.topic, at.partition),
            }
        }
        self.publisher.consumer_replaced();
        self.status.reader_stalled.store(!places.is_empty(), Ordering::Release);
    }

    /// Assigns this partition to the client, from its read offset.
    pub(super) fn is_assigned(&mut self, topic: TopicIndex, partition: i32) {
        if let Some(index) = self.progress.read_offsets.index_of(topic, partition) {
            self.stall_detector.assigned(index, self.progress.read_offsets.all()[index].offset);
        }
    }
}
