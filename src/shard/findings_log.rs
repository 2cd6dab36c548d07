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
        if findings.misplaced + findings.without_cursor + findings.board_overflow + findings.long == 0 {
            return;
        }
        metrics.misplaced(findings.misplaced);
        metrics.board_overflow(findings.board_overflow);
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
                "events too large for the window; their clients get a reset. An event and its message may each \
                 take half of a shard's share of HISTORY_BYTES"
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
            "misplaced records: not on the partition of the route's partitioner, so clients of their \
                 assessment cannot resume. Set the route's `partitioner` to that of the producers, or to \"none\""
        );
    }
    if findings.board_overflow > 0 {
        tracing::warn!(
            ticks = findings.board_overflow,
            "market board full; ticks not shown. It holds {MARKETS_MAX} markets and {BOARD_BYTES_MAX} bytes \
                 of ticks, or a quarter of the shard's share of HISTORY_BYTES"
        );
    }
    if findings.without_cursor > 0 {
        tracing::warn!(
            messages = findings.without_cursor,
            "cursors over {CURSOR_CHARS_MAX} characters; these clients cannot resume and get a reset. A \
                 cursor lists every topic of an assessment, and every partition of topics whose `partitioner` is \
                 \"none\""
        );
    }
    if let Some(topic) = &findings.long_on {
        tracing::warn!(
            topic = &*topic.name,
            messages = findings.long,
            "messages over {MESSAGE_BYTES_COMMON} bytes: a client library with a lower default limit \
                 (Python's websockets) closes at each of them and again after reconnecting. A lower \
                 MAX_EVENT_BYTES counts such records as malformed"
        );
    }
}
