//! How long records may be collected before the next fetch.
//!
//! Every turn of the reader wakes a shard, and a wake-up costs two threads a sleep and a start, about forty
//! microseconds. So a stream of records is fetched at most once per [`BATCHING_DELAY`], like interrupt moderation of a
//! network card: a record after a quiet moment is handed over at once, one in a stream waits at most that long. Records
//! of one broker are collected by librdkafka's longer fetch back-off (`fetch.queue.backoff.ms`); this delay is for
//! several brokers, whose answers interleave.

use std::time::{Duration, Instant};

use crate::limits::{BATCHING_DELAY, BATCHING_RECORDS_MAX};

/// When records were handed over.
#[derive(Debug, Default)]
pub(super) struct BatchingDelay {
    last: Option<Instant>,
}

impl BatchingDelay {
    /// A turn has handed over so many records, just now: how long others may gather before they are looked for.
    pub(super) fn after(&mut self, records: usize, now: Instant) -> Duration {
        if records == 0 {
            return Duration::ZERO;
        }
        let last = self.last.replace(now);
        let streams =
            last.is_some_and(|last| now.saturating_duration_since(last) <= BATCHING_DELAY + BATCHING_DELAY / 2);
        // Where many come at a time, a wake is shared by many already.
        if streams && records < BATCHING_RECORDS_MAX { BATCHING_DELAY } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_after_a_quiet_moment_holds_up_nothing_and_a_stream_gathers_until_it_ends_or_is_a_flood() {
        let (mut batching_delay, start) = (BatchingDelay::default(), Instant::now());
        let mut after = |records, at_us| batching_delay.after(records, start + Duration::from_micros(at_us));
        assert_eq!(after(1, 0), Duration::ZERO);
        assert_eq!(after(0, 400), Duration::ZERO, "nothing came: the next is waited for");
        assert_eq!(after(1, 500), BATCHING_DELAY, "the second within a moment is a stream");
        assert_eq!(after(3, 1_600), BATCHING_DELAY);
        assert_eq!(after(BATCHING_RECORDS_MAX, 2_700), Duration::ZERO);
        assert_eq!(after(1, 3_000), BATCHING_DELAY);
        assert_eq!(after(1, 3_000 + 1_501), Duration::ZERO, "it has ended");
    }
}
