//! Topics that are compacted: what the log says of them, and what follows from a gap in their offsets. Which gaps count
//! is [`super::super::compaction`]'s rule.

use std::sync::atomic::Ordering;
use std::time::Instant;

use tracing::{info, warn};

use super::IngestState;
use crate::ingest::retention::Compacted;
use crate::limits::COMPACTION_CLOCKS_MAX;
use crate::stream::batch::NextOffset;

impl IngestState {
    /// Of these topics, records may be missing that were there: which, shows as gaps.
    pub(super) fn note_compacted(&mut self, topics: &[Compacted]) {
        for &Compacted { topic, kept_for, unchanged } in topics {
            let whole_from = self.compaction.is_compacted(&self.read_offsets, topic, kept_for, unchanged);
            whole_from.into_iter().for_each(|from| self.batcher.whole_from(from));
            let (topic, min_compaction_lag) = (self.topic_name(Some(topic)), kept_for);
            if kept_for >= self.window + COMPACTION_CLOCKS_MAX {
                info!(
                    topic,
                    ?min_compaction_lag,
                    "compacted topic; min.compaction.lag.ms keeps records for longer than the window"
                );
                continue;
            }
            warn!(
                topic,
                ?min_compaction_lag,
                "compacted topic (cleanup.policy): Kafka keeps only the last event of each key. Clients that resume across \
                 missing records get a reset, as do those connected to a pod that had not read them. A transaction's end \
                 looks the same and also causes resets. Set min.compaction.lag.ms a minute above HISTORY_SECONDS"
            );
        }
    }

    /// Nothing came between a partition's position and this offset.
    pub(super) fn gap(&mut self, end: NextOffset, now: Instant) {
        let is_watched = self.status.history_complete.load(Ordering::Relaxed);
        let Some(offset) = self.compaction.gap(&self.read_offsets, end, is_watched, now) else { return };
        self.batcher.whole_from(NextOffset { offset, ..end });
        if is_watched && self.gaps.admit((end.topic, end.partition), now).is_some() {
            let (topic, partition) = (self.topic_name(Some(end.topic)), end.partition);
            let position = self.read_offsets.next(end.topic, partition);
            warn!(
                topic,
                partition,
                expected_offset = position,
                offset = end.offset,
                "records missing: compacted before they were read, or a transaction ended; clients get a reset"
            );
        }
    }
}
