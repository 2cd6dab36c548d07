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
                    "the topic is compacted; what the window needs is kept for long enough"
                );
                continue;
            }
            warn!(
                topic,
                ?min_compaction_lag,
                "the topic is compacted (cleanup.policy): of events with one key only the last is kept for sure. Where \
                 records are missing, clients are sent a reset that come back for them, and those that are connected to a pod \
                 that had not read them; so they are behind each transaction's end, which looks alike. min.compaction.lag.ms \
                 a minute above HISTORY_SECONDS keeps what the window needs"
            );
        }
    }

    /// Nothing came between a partition's position and this offset.
    pub(super) fn gap(&mut self, end: NextOffset, now: Instant) {
        let is_watched = self.status.filled.load(Ordering::Relaxed);
        let Some(offset) = self.compaction.gap(&self.read_offsets, end, is_watched, now) else { return };
        self.batcher.whole_from(NextOffset { offset, ..end });
        if is_watched && self.gaps.admit((end.topic, end.partition), now).is_some() {
            let (topic, partition) = (self.topic_name(Some(end.topic)), end.partition);
            let position = self.read_offsets.next(end.topic, partition);
            warn!(
                topic,
                partition,
                position,
                going_on = end.offset,
                "compaction removed records before they were read, or a transaction ended; clients are sent a reset"
            );
        }
    }
}
