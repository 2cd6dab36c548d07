//! Counts the findings about records, such as misplaced or too large ones, and decides when they are logged.
//! [`operator_log`] has the lines.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use super::metrics::ShardMetrics;
use super::operator_log;
use crate::ids::TopicIndex;
use crate::limits::{FINDINGS_LOG_EVERY, MALFORMED_LOG_EVERY};
use crate::routing::table::Topic;
use crate::stream::history::RecordFindings;

/// Counts findings and logs them at a bounded rate.
pub(super) struct FindingsLog {
    /// Ingest's counter of malformed records.
    malformed: Counter,
    /// Time of the last lines, if any.
    logged: Option<Instant>,
    /// Time of the last line about too large events, by topic.
    too_large_logged: HashMap<TopicIndex, Instant>,
}

impl FindingsLog {
    pub(super) fn new(malformed: Counter) -> Self {
        Self { malformed, logged: None, too_large_logged: HashMap::new() }
    }

    /// Counts the findings of a turn, and logs them if a line is due.
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
            operator_log::events_too_large(topic, events);
        }
    }
}

fn is_due(last: Option<Instant>, every: Duration, now: Instant) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= every)
}

fn log(findings: &RecordFindings) {
    if let Some(topic) = &findings.misplaced_on {
        operator_log::records_misplaced(topic);
    }
    if findings.board_overflow > 0 {
        operator_log::board_full(findings.board_overflow);
    }
    if findings.without_cursor > 0 {
        operator_log::cursors_too_long(findings.without_cursor);
    }
    if let Some(topic) = &findings.long_on {
        operator_log::messages_too_long(topic, findings.long);
    }
}
