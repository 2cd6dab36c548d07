//! Counts the findings about records, such as misplaced or too large ones, and decides when they are logged: each kind
//! and topic by itself, so that none hides another. [`operator_log`] has the lines.

use std::time::Instant;

use prometheus_client::metrics::counter::Counter;

use super::metrics::ShardMetrics;
use super::operator_log;
use crate::ids::TopicIndex;
use crate::limits::{FINDINGS_LOG_EVERY, MALFORMED_LOG_EVERY};
use crate::log_throttle::{LogThrottle, LogThrottles};
use crate::stream::history::{FindingKind, RecordFindings, TopicFinding};

/// Counts findings and logs them at a bounded rate.
pub(super) struct FindingsLog {
    /// Ingest's counter of malformed records.
    malformed: Counter,
    too_large: LogThrottles<Option<TopicIndex>>,
    others: LogThrottles<(FindingKind, Option<TopicIndex>)>,
    board_full: LogThrottle,
    without_cursor: LogThrottle,
}

impl FindingsLog {
    pub(super) fn new(malformed: Counter) -> Self {
        Self {
            malformed,
            too_large: LogThrottles::new(MALFORMED_LOG_EVERY),
            others: LogThrottles::new(FINDINGS_LOG_EVERY),
            board_full: LogThrottle::new(FINDINGS_LOG_EVERY),
            without_cursor: LogThrottle::new(FINDINGS_LOG_EVERY),
        }
    }

    /// Counts the findings of a turn, and logs those that are due.
    pub(super) fn report(&mut self, findings: &RecordFindings, metrics: &ShardMetrics, now: Instant) {
        if findings.unusable > 0 {
            self.malformed.inc_by(findings.unusable);
        }
        if findings.board_overflow > 0 {
            metrics.board_overflow(findings.board_overflow);
            if self.board_full.admit(now).is_some() {
                operator_log::board_full(findings.board_overflow);
            }
        }
        if findings.without_cursor > 0 {
            metrics.without_cursor(findings.without_cursor);
            if self.without_cursor.admit(now).is_some() {
                operator_log::cursors_too_long(findings.without_cursor);
            }
        }
        for finding in &findings.of_topics {
            metrics.finding(finding.kind, finding.records);
            if self.is_due(finding, now) {
                operator_log::finding(finding);
            }
        }
    }

    fn is_due(&mut self, finding: &TopicFinding, now: Instant) -> bool {
        let (kind, topic) = finding.key();
        match kind {
            FindingKind::TooLarge => self.too_large.admit(topic, now).is_some(),
            FindingKind::Misplaced | FindingKind::Long => self.others.admit((kind, topic), now).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::routing::table::RouteTable;

    #[test]
    fn each_kind_and_topic_is_logged_by_itself() {
        let mut log = FindingsLog::new(Counter::default());
        let start = Instant::now();
        let routes = RouteTable::built_in();
        let topic = |index| {
            let found = routes.resolve(TopicIndex(index), "trading.order-filled").expect("a built-in topic");
            Some(Arc::new(found))
        };
        let mut is_due = |kind, index, ms| {
            let finding = TopicFinding { kind, topic: topic(index), records: 1 };
            log.is_due(&finding, start + Duration::from_millis(ms))
        };
        for kind in [FindingKind::TooLarge, FindingKind::Misplaced, FindingKind::Long] {
            assert!(is_due(kind, 0, 0) && is_due(kind, 1, 1) && !is_due(kind, 0, 999), "{kind:?}");
        }
        assert!(is_due(FindingKind::TooLarge, 0, 1_000), "once a second and topic");
        assert!(!is_due(FindingKind::Misplaced, 0, 1_000) && is_due(FindingKind::Misplaced, 0, 10_000));
    }
}
