//! Decides when the watchdog next checks whether a shard sleeps although it has work, and whether it wakes it: often
//! while the shard is active, rarely while it is idle. [`super::io_uring`] runs the watchdog.

use std::time::Duration;

/// Check intervals while the shard is active and while it is idle. The executor may sleep on runnable tasks for one
/// interval; in a storm of clients it did so every two to three seconds. A check costs about thirty microseconds, a
/// wake-up about fifty more.
const CHECK_EVERY: Duration = Duration::from_millis(20);
const CHECK_EVERY_IDLE: Duration = Duration::from_millis(500);

/// A shard without a turn for this long is idle.
const IDLE_AFTER: Duration = Duration::from_millis(300);

/// An idle shard becomes active with this many turns since the last check. An idle one makes one or two turns a second;
/// waking it thirty times after each was half of an idle pod's CPU.
const ACTIVE_TURNS_MIN: u64 = 8;

/// Whether a shard is at work, as it looks from one look to the next.
#[derive(Debug, Default)]
pub(super) struct CheckInterval {
    active: bool,
    turns: u64,
}

impl CheckInterval {
    /// The time until the next check, from the total number of turns and the time since the last. A shard that stays
    /// idle after a wake-up had no work, so the interval grows with the time without a turn.
    pub(super) fn pause(&mut self, turns: u64, since_turn: Duration) -> Duration {
        let fresh = turns.saturating_sub(self.turns);
        self.turns = turns;
        self.active = if self.active { since_turn < IDLE_AFTER } else { fresh >= ACTIVE_TURNS_MIN };
        if self.active { since_turn.clamp(CHECK_EVERY, CHECK_EVERY_IDLE) } else { CHECK_EVERY_IDLE }
    }
}

/// Whether a shard whose last turn was this long ago may be asleep with work to do.
pub(super) fn needs_wake(since_turn: Duration) -> bool {
    since_turn >= CHECK_EVERY
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times of the looks, each with whether it led to a nudge, of a shard that has a turn in each millisecond of
    /// which `turns` says so.
    fn looks(until: u64, turns: impl Fn(u64) -> bool) -> Vec<(u64, bool)> {
        let (mut check_interval, mut now, mut at) = (CheckInterval::default(), 0, Vec::new());
        while now < until {
            let had: Vec<u64> = (0..=now).filter(|ms| turns(*ms)).collect();
            let since_turn = had.last().map_or(Duration::MAX, |turn| Duration::from_millis(now - turn));
            at.push((now, needs_wake(since_turn)));
            now += u64::try_from(check_interval.pause(had.len() as u64, since_turn).as_millis()).unwrap();
        }
        at
    }

    #[test]
    fn a_shard_with_a_few_turns_per_second_is_idle() {
        for phase in [0, 1, 50, 99] {
            let turns = |ms| [phase, phase + 30].contains(&(ms % 1_000));
            assert_eq!(looks(10_000, turns).len(), 20, "{phase}");
        }
    }

    #[test]
    fn an_active_shard_is_checked_often_and_woken_less_often_the_longer_it_has_no_turn() {
        let at = looks(2_100, |ms| (800..1_500).contains(&ms) && ms % 4 == 0 && !(1_100..1_160).contains(&ms));
        let seen: Vec<u64> = at.iter().map(|refresh| refresh.0).filter(|at| (1_000..=1_100).contains(at)).collect();
        assert_eq!(seen, [1_000, 1_020, 1_040, 1_060, 1_080, 1_100], "at work");
        let nudged: Vec<u64> = at.iter().filter(|refresh| refresh.1).map(|refresh| refresh.0).collect();
        assert_eq!(nudged[..2], [0, 500], "at rest");
        assert_eq!(nudged[2..4], [1_120, 1_144], "it may sleep");
        assert_eq!(nudged[4..], [1_532, 1_568, 1_640, 1_784, 2_072], "it comes to rest");
    }
}
