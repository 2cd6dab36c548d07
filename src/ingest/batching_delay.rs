//! How long records gather before the next fetch, by how busy the shards are.
//!
//! Each fetch wakes three threads and costs about a hundred microseconds, however many records it brings. While the shards
//! have time to spare, that buys latency: the next fetch leaves at once. The busier they are, the longer fetches are held
//! back, for about as long as a shard takes for what the last one brought: records that would wait for the shard gather
//! at the broker instead.

use std::time::{Duration, Instant};

use crate::limits::{BATCHING_DELAY_MAX, CONSUME_RECORDS_MAX};

/// Time over which the shards' turns are summed up. Shorter, and a single long turn would count as a busy shard.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The share of its time that a shard's turns take, in thousandths: up to the first, fetches leave at once; from the second
/// on, they are held back longest.
type BusyRange = (u32, u32);

/// Where ingest has a core of its own, a fetch takes no time from a shard.
const BUSY_APART: BusyRange = (500, 800);

/// Where shards and ingest share cores, a fetch takes the shards' time. All threads use a fifth of the core when turns take
/// the first share, and two fifths at the second: about 15,000 and 50,000 deliveries a second. A shorter delay costs
/// more CPU there than it saves in latency: `loadtest rates`.
const BUSY_TOGETHER: BusyRange = (90, 220);

/// Decides how long fetches are held back.
#[derive(Debug)]
pub(super) struct BatchingDelay {
    busy_range: BusyRange,
    looked: Option<Instant>,
    /// Of each shard, the sum of its turns at the last look.
    busy: Vec<Duration>,
}

impl BatchingDelay {
    /// For ingest with a core of its own, or one that shares it with shards.
    pub(super) fn new(has_own_core: bool) -> Self {
        let busy_range = if has_own_core { BUSY_APART } else { BUSY_TOGETHER };
        Self { busy_range, looked: None, busy: Vec::new() }
    }

    /// The delay from now on, if it is time for a look; from the sum of each shard's turns so far. In a flood, each fetch
    /// brings many records already.
    pub(super) fn update(
        &mut self,
        records: usize,
        busy: impl Iterator<Item = Duration>,
        now: Instant,
    ) -> Option<Duration> {
        if records >= CONSUME_RECORDS_MAX {
            return Some(Duration::ZERO);
        }
        let elapsed = self.looked.map(|looked| now.saturating_duration_since(looked));
        if elapsed.is_some_and(|elapsed| elapsed < LOOK_EVERY) {
            return None;
        }
        self.looked = Some(now);
        let last = std::mem::replace(&mut self.busy, busy.collect());
        let used = self.busy.iter().zip(&last).map(|(now, last)| now.saturating_sub(*last)).max()?;
        Some(delay(self.busy_range, per_mille(used, elapsed?)))
    }
}

fn per_mille(part: Duration, whole: Duration) -> u32 {
    let share = part.as_nanos() * 1_000 / whole.as_nanos().max(1);
    u32::try_from(share).unwrap_or(u32::MAX)
}

/// The delay where the busiest shard uses this share of its time.
fn delay((min, max): BusyRange, busy_per_mille: u32) -> Duration {
    BATCHING_DELAY_MAX * (busy_per_mille.clamp(min, max) - min) / (max - min)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn fetches_leave_at_once_while_shards_have_time_and_are_held_back_longer_the_busier_one_is() {
        for range @ (min, max) in [BUSY_APART, BUSY_TOGETHER] {
            assert_eq!([0, min / 2, min].map(|busy| delay(range, busy)), [Duration::ZERO; 3]);
            let delays: Vec<_> = (min..=max).step_by(10).map(|busy| delay(range, busy)).collect();
            assert!(delays.is_sorted_by(|a, b| a < b), "{delays:?}");
            assert_eq!([max, 1_000, u32::MAX].map(|busy| delay(range, busy)), [BATCHING_DELAY_MAX; 3]);
        }
    }

    #[test]
    fn the_busiest_shard_decides_by_its_turns_since_the_last_look() {
        let (mut batching_delay, start) = (BatchingDelay::new(true), Instant::now());
        let mut update = |at_ms, busy: [u64; 2]| batching_delay.update(1, busy.map(ms).into_iter(), start + ms(at_ms));
        assert_eq!(update(0, [5_000, 5_000]), None, "what was before is not known");
        assert_eq!(update(19, [5_000, 5_019]), None, "it is too early");
        assert_eq!(update(20, [5_000, 5_020]), Some(BATCHING_DELAY_MAX));
        assert_eq!(update(120, [5_005, 5_020]), Some(Duration::ZERO));
        assert_eq!(update(220, [5_105, 5_021]), Some(BATCHING_DELAY_MAX));
        assert_eq!(update(320, [5_305, 5_021]), Some(BATCHING_DELAY_MAX), "a turn that began earlier has ended");
        let flood = batching_delay.update(CONSUME_RECORDS_MAX, [ms(9_000)].into_iter(), start + ms(420));
        assert_eq!(flood, Some(Duration::ZERO));
    }
}
