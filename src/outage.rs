//! Decides when an outage of Redis or Kafka is logged: at its start, every 30 seconds, and at its end. Owns the timing;
//! the callers own the text.

use std::time::{Duration, Instant};

/// How often an outage that goes on is logged.
pub(crate) const LOG_EVERY: Duration = Duration::from_secs(30);

/// A line to log about an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutageLine {
    /// The outage has started.
    Began,
    /// The outage continues; its duration so far.
    Continues(Duration),
    /// The outage is over; its duration.
    Ended(Duration),
    /// The very first attempt succeeded.
    First,
}

/// State of an outage's log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum OutageLog {
    /// No attempt was made yet.
    #[default]
    NotTried,
    /// The last attempt succeeded.
    Up,
    /// The last attempt failed.
    Down {
        /// Start of the first failed attempt.
        since: Instant,
        /// Time of the last log line.
        logged: Instant,
    },
}

impl OutageLog {
    /// An attempt that began at `began` has failed at `now`.
    pub(crate) fn handle_failure(&mut self, began: Instant, now: Instant) -> Option<OutageLine> {
        match self {
            Self::NotTried | Self::Up => {
                *self = Self::Down { since: began, logged: now };
                Some(OutageLine::Began)
            }
            Self::Down { since, logged } if now.saturating_duration_since(*logged) >= LOG_EVERY => {
                *logged = now;
                Some(OutageLine::Continues(now.saturating_duration_since(*since)))
            }
            Self::Down { .. } => None,
        }
    }

    /// An attempt has succeeded at `now`.
    pub(crate) fn handle_success(&mut self, now: Instant) -> Option<OutageLine> {
        match std::mem::replace(self, Self::Up) {
            Self::NotTried => Some(OutageLine::First),
            Self::Up => None,
            Self::Down { since, .. } => Some(OutageLine::Ended(now.saturating_duration_since(since))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_logged_at_once_then_every_half_minute_and_at_its_end() {
        let (start, mut log) = (Instant::now(), OutageLog::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(log.handle_success(start), Some(OutageLine::First));
        assert_eq!(log.handle_success(after(1)), None);
        assert_eq!(log.handle_failure(after(2), after(4)), Some(OutageLine::Began));
        let lines: Vec<_> = (5..100).filter_map(|second| log.handle_failure(after(second), after(second))).collect();
        assert_eq!(lines, [32, 62, 92].map(|seconds| OutageLine::Continues(Duration::from_secs(seconds))));
        assert_eq!(log.handle_success(after(102)), Some(OutageLine::Ended(Duration::from_secs(100))));
        assert_eq!(log.handle_failure(after(103), after(103)), Some(OutageLine::Began));
    }

    #[test]
    fn a_failed_first_attempt_starts_an_outage() {
        let (start, mut log) = (Instant::now(), OutageLog::default());
        assert_eq!(log.handle_failure(start, start), Some(OutageLine::Began));
        assert_eq!(log.handle_success(start), Some(OutageLine::Ended(Duration::ZERO)));
    }
}
