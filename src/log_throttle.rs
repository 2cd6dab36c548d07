//! How often the same line may be written to the log. It owns the rule; the caller owns the line.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Lets one line through in each period, and counts those that it holds back.
#[derive(Debug)]
pub struct LogThrottle {
    every: Duration,
    last: Cell<Option<Instant>>,
    held_back: Cell<u64>,
}

impl LogThrottle {
    /// At most one line in `every`.
    #[must_use]
    pub const fn new(every: Duration) -> Self {
        Self { every, last: Cell::new(None), held_back: Cell::new(0) }
    }

    /// Whether to write the line now; if so, how many were held back since the last one.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        if self.last.get().is_some_and(|last| now.saturating_duration_since(last) < self.every) {
            self.held_back.set(self.held_back.get() + 1);
            return None;
        }
        self.last.set(Some(now));
        Some(self.held_back.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_period_is_written_with_the_number_of_those_held_back() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let throttle = LogThrottle::new(Duration::from_secs(30));
        assert_eq!(throttle.admit(at(0)), Some(0));
        assert_eq!((throttle.admit(at(100)), throttle.admit(at(29_999))), (None, None));
        assert_eq!(throttle.admit(at(30_000)), Some(2));
        assert_eq!(throttle.admit(at(60_000)), Some(0));
    }
}
