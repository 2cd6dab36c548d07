//! Time, which the rules take as an argument. Owns the reading of both clocks and the format of timestamps.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, for values that leave the process (timestamps, token times).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// The time `duration` later, or the last one that fits.
    #[must_use]
    pub(crate) fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(whole_ms(duration)))
    }
}

/// ISO 8601, UTC, with milliseconds (PROTOCOL 2): `2026-11-24T05:31:13.123Z`.
impl fmt::Display for UnixMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The format ends with the year 9999, and a clock from outside must not make us panic.
        const LAST: u64 = 253_402_300_799_999;
        let time = UNIX_EPOCH + Duration::from_millis(self.0.min(LAST));
        humantime::format_rfc3339_millis(time).fmt(f)
    }
}

/// A duration's whole milliseconds.
#[must_use]
pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One reading of both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic, for intervals.
    pub(crate) instant: Instant,
    /// For values that leave the process.
    pub unix: UnixMs,
}

impl Now {
    /// Reads the clocks. Only edges call this; rules take the result as an argument.
    #[must_use]
    pub fn read() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), unix: UnixMs(whole_ms(unix)) }
    }

    /// The instant at which a Unix time will be reached by the clock as it is now; a later step of the wall clock does
    /// not move it. `None` if that is never.
    #[must_use]
    pub(crate) fn instant_of(&self, time: UnixMs) -> Option<Instant> {
        self.instant.checked_add(Duration::from_millis(time.0.saturating_sub(self.unix.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_time_is_reached_after_the_time_left() {
        let now = Now { instant: Instant::now(), unix: UnixMs(1_000) };
        assert_eq!(now.instant_of(UnixMs(3_500)), Some(now.instant + Duration::from_millis(2_500)));
        assert_eq!(now.instant_of(UnixMs(0)), Some(now.instant), "a past time is reached now");
        // Far beyond any clock: must not panic.
        let _ = now.instant_of(UnixMs(u64::MAX));
    }

    #[test]
    fn a_timestamp_is_iso_8601_in_utc_with_milliseconds() {
        assert_eq!(UnixMs(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(UnixMs(1_790_000_000_007).to_string(), "2026-09-21T14:13:20.007Z");
        assert_eq!(UnixMs(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }
}
