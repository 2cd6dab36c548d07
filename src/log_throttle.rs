//! Limits how often the same line is logged. Owns the rule; the caller owns the line.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::limits::LOG_KEYS_MAX;

/// Admits one line in each period, and counts the lines that it suppresses.
#[derive(Debug)]
pub(crate) struct LogThrottle {
    every: Duration,
    last: Cell<Option<Instant>>,
    suppressed: Cell<u64>,
}

impl LogThrottle {
    /// Admits at most one line per `every`.
    #[must_use]
    pub(crate) const fn new(every: Duration) -> Self {
        Self { every, last: Cell::new(None), suppressed: Cell::new(0) }
    }

    /// Returns `Some` if the line may be written now, with the number of lines suppressed since the last one.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        if !self.is_due(now) {
            self.suppressed.set(self.suppressed.get() + 1);
            return None;
        }
        self.last.set(Some(now));
        Some(self.suppressed.take())
    }

    /// Whether the next line would be admitted.
    fn is_due(&self, now: Instant) -> bool {
        self.last.get().is_none_or(|last| now.saturating_duration_since(last) >= self.every)
    }
}

/// A [`LogThrottle`] for each kind of line; at most [`LOG_KEYS_MAX`] kinds.
#[derive(Debug)]
pub(crate) struct LogThrottles<K> {
    every: Duration,
    kinds: HashMap<K, LogThrottle>,
}

impl<K: Eq + Hash> LogThrottles<K> {
    /// Admits at most one line of each kind per `every`.
    #[must_use]
    pub(crate) fn new(every: Duration) -> Self {
        Self { every, kinds: HashMap::new() }
    }

    /// Returns `Some` if a line of this kind may be written now, with the number of its kind suppressed since the last
    /// one. At the limit of kinds, a new kind is suppressed until the period of an old one is over.
    pub(crate) fn admit(&mut self, kind: K, now: Instant) -> Option<u64> {
        if self.kinds.len() == LOG_KEYS_MAX && !self.kinds.contains_key(&kind) {
            self.kinds.retain(|_, throttle| !throttle.is_due(now));
            if self.kinds.len() == LOG_KEYS_MAX {
                return None;
            }
        }
        self.kinds.entry(kind).or_insert_with(|| LogThrottle::new(self.every)).admit(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_period_and_count() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut throttles = LogThrottles::new(Duration::from_secs(1));
        assert_eq!(throttles.admit("orders", at(0)), Some(0));
        assert_eq!(throttles.admit("orders", at(10)), None);
        assert_eq!(throttles.admit("ticks", at(20)), Some(0));
        assert_eq!(throttles.admit("orders", at(999)), None);
        assert_eq!(throttles.admit("orders", at(1_000)), Some(2));
        assert_eq!(throttles.admit("orders", at(2_000)), Some(0));
    }

    #[test]
    fn the_number_of_kinds_is_bounded() {
        let start = Instant::now();
        let mut throttles = LogThrottles::new(Duration::from_secs(1));
        let admitted = (0..10_000).filter(|kind| throttles.admit(*kind, start).is_some()).count();
        assert_eq!(admitted, LOG_KEYS_MAX);
        assert_eq!(throttles.admit(10_000, start + Duration::from_secs(1)), Some(0), "expired kinds make room");
    }

    #[test]
    fn one_line_per_period_is_written_with_the_number_of_suppressed_ones() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let throttle = LogThrottle::new(Duration::from_secs(30));
        assert_eq!(throttle.admit(at(0)), Some(0));
        assert_eq!((throttle.admit(at(100)), throttle.admit(at(29_999))), (None, None));
        assert_eq!(throttle.admit(at(30_000)), Some(2));
        assert_eq!(throttle.admit(at(60_000)), Some(0));
    }
}
