//! Logs what a compacted topic means for clients. Which gaps in its offsets count is [`super::super::compaction`]'s rule.

use tracing::{info, warn};

use super::IngestState;
use crate::clock::whole_ms;
use crate::ingest::retention::CompactedTopic;
use crate::limits::COMPACTION_CLOCKS_MAX;

impl IngestState {
    /// Of these topics, records may be missing that were there: which, shows as gaps.
    pub(super) fn note_compacted(&mut self, topics: &[CompactedTopic]) {
        for compacted in topics {
            self.progress.is_compacted(compacted);
            let topic = self.topic_name(Some(compacted.topic));
            let min_compaction_lag_ms = whole_ms(compacted.kept_for);
            if compacted.kept_for >= self.window + COMPACTION_CLOCKS_MAX {
                info!(
                    topic,
                    min_compaction_lag_ms,
                    "compacted topic; min.compaction.lag.ms keeps records for longer than the window"
                );
                continue;
            }
            warn!(
                topic,
                min_compaction_lag_ms,
                "compacted topic (cleanup.policy): Kafka keeps only the last event of each key. Clients that resume across \
                 missing records get a reset, as do those connected to a pod that had not read them. A transaction's end \
                 looks the same and also causes resets. Set min.compaction.lag.ms a minute above HISTORY_SECONDS"
            );
        }
    }
}
