//! When a key set is read again: regularly, soon after a failure, and at most each [`UNKNOWN_KEY_EVERY`] for a `kid` that
//! it lacks, so that a flood of made-up ones does not become a flood at the provider.

use std::time::{Duration, Instant};

use crate::limits::{KEY_SET_RETRY_MAX, UNKNOWN_KEY_EVERY};

/// Pause after a first failure. It doubles with each further one.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// The times of a set's reads.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// `JWT_JWKS_REFRESH_MS`.
    refresh: Duration,
    /// When the last read began.
    began: Option<Instant>,
    next: Instant,
    failures: u32,
}

impl Schedule {
    /// The first read is due at once.
    pub(crate) fn new(refresh: Duration, now: Instant) -> Self {
        Self { refresh, began: None, next: now, failures: 0 }
    }

    /// When the next regular read is due.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// A read begins.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.began = Some(now);
    }

    /// The read has ended.
    pub(crate) fn end(&mut self, is_good: bool, now: Instant) {
        let pause = if is_good {
            self.failures = 0;
            self.refresh
        } else {
            let pause = RETRY_FIRST * 2_u32.saturating_pow(self.failures.min(16));
            self.failures = self.failures.saturating_add(1);
            pause.min(KEY_SET_RETRY_MAX).min(self.refresh)
        };
        self.next = now + pause;
    }

    /// Whether an unknown `kid` may cause a read now.
    pub(crate) fn may_ask(&self, now: Instant) -> bool {
        self.began.is_none_or(|began| now.saturating_duration_since(began) >= UNKNOWN_KEY_EVERY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFRESH: Duration = Duration::from_secs(300);

    #[test]
    fn a_set_is_read_at_once_then_regularly_and_sooner_after_failures() {
        let start = Instant::now();
        let mut schedule = Schedule::new(REFRESH, start);
        let pause_after = |schedule: &mut Schedule, is_good| {
            let now = schedule.next();
            schedule.begin(now);
            schedule.end(is_good, now);
            schedule.next().saturating_duration_since(now).as_secs()
        };
        assert_eq!(schedule.next(), start);
        assert_eq!([true, true].map(|good| pause_after(&mut schedule, good)), [300, 300]);
        assert_eq!([false; 7].map(|good| pause_after(&mut schedule, good)), [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!([true, false].map(|good| pause_after(&mut schedule, good)), [300, 1]);
        let mut often = Schedule::new(Duration::from_millis(100), start);
        assert_eq!(pause_after(&mut often, false), 0, "a failure delays no read");
        for _ in 0..100 {
            pause_after(&mut schedule, false);
        }
    }

    #[test]
    fn an_unknown_kid_causes_a_read_at_most_every_half_minute() {
        let start = Instant::now();
        let mut schedule = Schedule::new(REFRESH, start);
        assert!(schedule.may_ask(start));
        schedule.begin(start);
        schedule.end(true, start + Duration::from_secs(5));
        assert!(!schedule.may_ask(start + Duration::from_secs(29)));
        assert!(
            schedule.may_ask(start + Duration::from_secs(30)),
            "it counts from the begin: what came later is not in it"
        );
    }
}
