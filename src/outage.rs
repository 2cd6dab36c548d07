//! Decides when an outage of Redis or Kafka is logged: at its start, every 30 seconds, and at its end. Owns the timing;
//! the callers own the text.

use std::time::{Duration, Instant};

/// How often an outage that goes on is logged.
pub const LOG_EVERY: Duration = Duration::from_secs(30);

/// What to log of an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutageLine {
    /// It has begun.
    Began,
    /// It goes on, and has lasted this long.
    GoesOn(Duration),
    /// It is over, and has lasted this long.
    Ended(Duration),
    /// The first try of all has succeeded.
    First,
}

/// An outage in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutageLog {
    /// Nothing was tried yet.
    #[default]
    Untried,
    /// All is well.
    Reached,
    /// The last try failed.
    Away {
        /// When the first try that failed had begun.
        since: Instant,
        /// When the log last said so.
        logged: Instant,
    },
}

impl OutageLog {
    /// A try that began at `began` has failed at `now`.
    pub fn handle_failure(&mut self, began: Instant, now: Instant) -> Option<OutageLine> {
        match self {
            Self::Untried | Self::Reached => {
                *self = Self::Away { since: began, logged: now };
                Some(OutageLine::Began)
            }
            Self::Away { since, logged } if now.saturating_duration_since(*logged) >= LOG_EVERY => {
                *logged = now;
                Some(OutageLine::GoesOn(now.saturating_duration_since(*since)))
            }
            Self::Away { .. } => None,
        }
    }

    /// A try has succeeded at `now`.
    pub fn handle_success(&mut self, now: Instant) -> Option<OutageLine> {
        match std::mem::replace(self, Self::Reached) {
            Self::Untried => Some(OutageLine::First),
            Self::Reached => None,
            Self::Away { since, .. } => Some(OutageLine::Ended(now.saturating_duration_since(since))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_logged_at_once_then_every_half_a_minute_and_at_its_end() {
        let (start, mut log) = (Instant::now(), OutageLog::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(log.handle_success(start), Some(OutageLine::First));
        assert_eq!(log.handle_success(after(1)), None);
        assert_eq!(log.handle_failure(after(2), after(4)), Some(OutageLine::Began));
        let lines: Vec<_> = (5..100).filter_map(|second| log.handle_failure(after(second), after(second))).collect();
        assert_eq!(lines, [32, 62, 92].map(|seconds| OutageLine::GoesOn(Duration::from_secs(seconds))));
        assert_eq!(log.handle_success(after(102)), Some(OutageLine::Ended(Duration::from_secs(100))));
        assert_eq!(log.handle_failure(after(103), after(103)), Some(OutageLine::Began));
    }

    #[test]
    fn a_first_try_that_fails_begins_an_outage() {
        let (start, mut log) = (Instant::now(), OutageLog::default());
        assert_eq!(log.handle_failure(start, start), Some(OutageLine::Began));
        assert_eq!(log.handle_success(start), Some(OutageLine::Ended(Duration::ZERO)));
    }
}
