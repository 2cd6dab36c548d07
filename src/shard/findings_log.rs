//! Logs findings about records at a bounded rate, and counts all of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use super::metrics::ShardMetrics;
use crate::ids::TopicIndex;
use crate::limits::{
    BOARD_BYTES_MAX, CURSOR_CHARS_MAX, FINDINGS_LOG_EVERY, MALFORMED_LOG_EVERY, MARKETS_MAX, MESSAGE_BYTES_COMMON,
};
use crate::routing::table::Topic;
use crate::stream::history::RecordFindings;

/// Reports findings.
pub(super) struct FindingsLog {
    /// Ingest's counter of records that can't be used.
    malformed: Counter,
    /// When findings were last logged.
    logged: Option<Instant>,
    /// When events that are too large were last logged, by topic.
    too_large_logged: HashMap<TopicIndex, Instant>,
}

impl FindingsLog {
    pub(super) fn new(malformed: Counter) -> Self {
        Self { malformed, logged: None, too_large_logged: HashMap::new() }
    }

    /// Counts what was found, and logs it where that is due.
    pub(super) fn report(&mut self, findings: &RecordFindings, metrics: &ShardMetrics, now: Instant) {
        if findings.unusable > 0 {
            self.malformed.inc_by(findings.unusable);
        }
        if let Some(topic) = &findings.too_large_on {
            metrics.too_large(findings.too_large);
            self.log_too_large(findings.too_large, topic, now);
        }
        if findings.misplaced + findings.without_cursor + findings.off_board + findings.long == 0 {
            return;
        }
        metrics.misplaced(findings.misplaced);
        metrics.off_board(findings.off_board);
        if is_due(self.logged, FINDINGS_LOG_EVERY, now) {
            self.logged = Some(now);
            log(findings);
        }
    }

    fn log_too_large(&mut self, events: u64, topic: &Arc<Topic>, now: Instant) {
        if is_due(self.too_large_logged.get(&topic.index).copied(), MALFORMED_LOG_EVERY, now) {
            self.too_large_logged.insert(topic.index, now);
            tracing::warn!(
                topic = &*topic.name,
                events,
                "events are too large for the window and are not delivered, which their clients are told by a reset: an \
                 event, and its message, may take half of a shard's share of HISTORY_BYTES"
            );
        }
    }
}

fn is_due(last: Option<Instant>, every: Duration, now: Instant) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= every)
}

fn log(findings: &RecordFindings) {
    if let Some(topic) = &findings.misplaced_on {
        tracing::warn!(
            topic = &*topic.name,
            "records lie where the route's partitioner would not have put them, and a client of their assessment can't \
             resume: set the route's `partitioner` to the one of its producers, or to \"none\""
        );
    }
    if findings.off_board > 0 {
        tracing::warn!(
            ticks = findings.off_board,
            "the market board is full, and these ticks are not shown: it takes {MARKETS_MAX} markets, and \
             {BOARD_BYTES_MAX} bytes of ticks, or a quarter of the shard's share of HISTORY_BYTES"
        );
    }
    if findings.without_cursor > 0 {
        tracing::warn!(
            messages = findings.without_cursor,
            "cursors would be over {CURSOR_CHARS_MAX} characters: clients are given one that can't be resumed from, and are \
             sent a reset when they come back. A cursor lists each topic that an assessment's events are on, and all \
             partitions of those whose `partitioner` is \"none\": fewer of these make it shorter"
        );
    }
    if let Some(topic) = &findings.long_on {
        tracing::warn!(
            topic = &*topic.name,
            messages = findings.long,
            "messages are over {MESSAGE_BYTES_COMMON} bytes: a client whose library takes no more by default (Python's \
             websockets) closes at each of them, and comes back to the same one; a lower MAX_EVENT_BYTES counts such \
             records as malformed instead"
        );
    }
}
