//! Replaces the consumer: the new one continues from the read offsets. [`crate::ingest::stall_detector`] decides when.

use std::mem;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tracing::{info, warn};

use super::Reader;
use crate::clock::whole_ms;
use crate::ingest::kafka::Consumer;

impl Reader {
    /// Replaces the consumer if it makes no progress although there is something to read; and after an outage, which may
    /// have left it in any state.
    pub(super) fn replace_client_if_stalled(&mut self, now: Instant) {
        let state = &mut self.state;
        let recoveries = self.watcher.recoveries();
        if mem::replace(&mut self.recoveries, recoveries) != recoveries {
            if state.reads_something() {
                info!("consumer replaced after an outage");
                return self.replace_client(now);
            }
            state.status.reader_stalled.store(false, Ordering::Release);
        }
        let Some(stall) = state.stall_detector.stall(now) else { return };
        if stall.is_client_silent && !state.status.reader_stalled.swap(true, Ordering::Release) {
            state.stalled_since = Some(now);
            warn!("no records although the brokers have some; not ready");
        }
        if state.stall_detector.may_replace(now) {
            let first = state.progress.read_offsets.all()[stall.first];
            let (topic, partition, partitions) =
                (state.topic_name(Some(first.topic)), first.partition, stall.partitions);
            let (next, waited) = (first.offset, stall.longest);
            warn!(
                partitions,
                elapsed_ms = whole_ms(waited),
                topic,
                partition,
                offset = next,
                "partitions stalled although their logs grow; replacing the consumer"
            );
            self.replace_client(now);
        }
    }

    /// Continues from the read offsets with a new consumer. Records that the old one has fetched and not handed out are
    /// fetched again.
    fn replace_client(&mut self, now: Instant) {
        if !self.terminator.has_room() {
            return warn!("replaced Kafka clients do not shut down; keeping the current one");
        }
        match Consumer::new(&self.config) {
            Ok(consumer) => self.terminator.end(mem::replace(&mut self.consumer, consumer)),
            Err(error) => return warn!(%error, "no new Kafka client; keeping the current one"),
        }
        self.state.reassign_all(&mut self.consumer, now);
    }
}
