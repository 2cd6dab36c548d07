//! Batches that can't be unpacked, or come to more than is taken: librdkafka would fetch one again and again, and
//! nothing behind it. They are passed over, and clients whose events may be in them are sent a reset.
//!
//! Nobody tells where such a batch ends. So reading goes on one offset further, then two, then four, up to the end of
//! the log: a batch of many records takes few tries, and as many records behind it may be passed over with it. The
//! reset is for these, too.

use tracing::warn;

use super::IngestState;
use crate::ids::TopicIndex;
use crate::ingest::kafka::Consumer;
use crate::stream::batch::NextOffset;

/// What is longer than this is found in as many tries.
const STEP_BITS_MAX: u32 = 40;

impl IngestState {
    /// Something of a partition was unpacked.
    pub(super) fn is_unpacked(&mut self, topic: TopicIndex, partition: i32) {
        // Nearly always so.
        if !self.passed_over.is_empty() {
            self.passed_over.remove(&(topic, partition));
        }
    }

    /// Passes over the batches that could not be unpacked. While no batch is begun.
    pub(super) fn pass_over(&mut self, consumer: &Consumer) {
        if self.not_unpacked.is_empty() {
            return;
        }
        for (topic, partition) in std::mem::take(&mut self.not_unpacked) {
            let is_read = !self.retired.contains(&topic) && !self.missing.contains(&(topic, partition));
            let Some(index) = self.read_offsets.index_of(topic, partition).filter(|_| is_read) else { continue };
            let times = self.passed_over.entry((topic, partition)).or_default();
            *times += 1;
            // librdkafka fetches it once more by itself: what came may have been damaged on its way.
            let Some(step) = times.checked_sub(2).map(|doubled| 1_i64 << doubled.min(STEP_BITS_MAX)) else { continue };
            let next = self.read_offsets.all()[index].offset;
            let from = next.saturating_add(step).min(self.lag.end(index)).max(next.saturating_add(1));
            let name = self.topic_name(Some(topic));
            warn!(
                topic = name,
                partition,
                expected_offset = next,
                offset = from,
                "batch skipped: damaged, or too large when unpacked; clients get a reset"
            );
            if let Err(error) = consumer.restart(name, partition, from) {
                warn!(topic = name, partition, %error, "partition not readable any more");
            }
            self.counts.passed_over += 1;
            self.read_offsets.set(topic, partition, from);
            self.batcher.deleted(NextOffset { topic, partition, offset: from });
            self.is_assigned(topic, partition);
        }
    }
}
