//! Time, which the rules take as an argument. Owns the reading of both clocks and the format of timestamps.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, for values that leave the process (timestamps, token times).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// Reads a time in ISO 8601, UTC; `None` if it is none, or before 1970.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let time = humantime::parse_rfc3339(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(Self(whole_ms(time)))
    }

    /// The time `duration` later, or the last one that fits.
    #[must_use]
    pub(crate) fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(whole_ms(duration)))
    }

    /// The time `duration` earlier, or the first one.
    #[must_use]
    pub(crate) fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(whole_ms(duration)))
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

/// An instant in eight bytes, for what is kept for each connection: nanoseconds since a time in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(NonZeroU64);

impl Moment {
    /// How long before the first conversion an instant may lie. An earlier one counts as that early.
    const BEFORE: Duration = Duration::from_secs(24 * 60 * 60);

    fn base() -> Instant {
        static BASE: OnceLock<Instant> = OnceLock::new();
        *BASE.get_or_init(|| {
            let first = Instant::now();
            first.checked_sub(Self::BEFORE).unwrap_or(first)
        })
    }

    /// The instant.
    #[must_use]
    pub(crate) fn instant(self) -> Instant {
        Self::base() + Duration::from_nanos(self.0.get())
    }
}

impl From<Instant> for Moment {
    fn from(instant: Instant) -> Self {
        // 2^64 nanoseconds are 584 years.
        let nanos = u64::try_from(instant.saturating_duration_since(Self::base()).as_nanos()).unwrap_or(u64::MAX);
        Self(NonZeroU64::new(nanos).unwrap_or(NonZeroU64::MIN))
    }
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
    fn a_moment_is_its_instant_in_eight_bytes() {
        assert_eq!(size_of::<Option<Moment>>(), 8);
        let now = Instant::now();
        for instant in [now, now + Duration::from_nanos(1), now + Duration::from_secs(3_600 * 24 * 365 * 100)] {
            assert_eq!(Moment::from(instant).instant(), instant);
        }
        assert!(Moment::from(now) < Moment::from(now + Duration::from_nanos(1)));
    }

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
