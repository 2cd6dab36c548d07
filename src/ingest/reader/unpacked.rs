//! Batches that can't be unpacked, or come to more than is taken: librdkafka would fetch one again and again, and
//! nothing behind it. They are skipped, and clients whose events may be in them are sent a reset. How far is
//! [`super::super::read_progress`]'s rule.

use tracing::warn;

use super::IngestState;
use crate::ingest::kafka::Consumer;
use crate::ingest::read_progress::Skip;

impl IngestState {
    /// Skips the batches that could not be unpacked.
    pub(super) fn skip_batches(&mut self, consumer: &Consumer) {
        // Nearly always so.
        if self.not_unpacked.is_empty() {
            return;
        }
        for ((topic, partition), base) in std::mem::take(&mut self.not_unpacked) {
            let is_read = !self.retired.contains(&topic) && !self.missing.contains(&(topic, partition));
            let index = self.progress.read_offsets.index_of(topic, partition).filter(|_| is_read);
            let Some(log_end) = index.map(|index| self.lag.end(index)) else { continue };
            let Some(skip) = self.progress.skip_batch(topic, partition, base, log_end) else { continue };
            let Skip { expected, from, is_lost } = skip;
            let name = self.topic_name(Some(topic));
            if is_lost {
                warn!(
                    topic = name,
                    partition,
                    expected_offset = expected,
                    batch_offset = base,
                    offset = from,
                    "batch skipped: damaged, or too large when unpacked; clients get a reset"
                );
            }
            if let Err(error) = consumer.restart(name, partition, from) {
                warn!(topic = name, partition, %error, "partition not readable any more");
            }
            self.counts.passed_over += u64::from(is_lost);
            self.is_assigned(topic, partition);
        }
    }
}
