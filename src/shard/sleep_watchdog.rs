//! When a shard is looked at next for whether it sleeps on its work, and whether it is nudged: often while it is at work, and
//! seldom while it rests. It owns the pace; who nudges, and what for, is [`super::event_loop`]'s.

use std::time::Duration;

/// How long until the next look: while the shard is at work, and while it rests. The executor may sleep on tasks that could
/// run for as long as from one look to the next, should it do so: in a storm of clients it did each second or third second.
/// A look costs the core some thirty microseconds, and a nudge some fifty more.
const CHECK_EVERY: Duration = Duration::from_millis(20);
const CHECK_EVERY_IDLE: Duration = Duration::from_millis(500);

/// A shard that had no turn for so long is at rest.
const IDLE_AFTER: Duration = Duration::from_millis(300);

/// One that rested is at work when it had so many turns since the last look. At rest it has one or two a second, and to be
/// nudged thirty times after each was half of what an idle pod used.
const ACTIVE_TURNS_MIN: u64 = 8;

/// Whether a shard is at work, as it looks from one look to the next.
#[derive(Debug, Default)]
pub(super) struct CheckInterval {
    active: bool,
    turns: u64,
}

impl CheckInterval {
    /// How long until the next look at a shard that has had so many turns in all, the last of them so long ago. Whom a nudge
    /// has not brought to a turn had nothing to do: the pause grows with the time without one.
    pub(super) fn pause(&mut self, turns: u64, since_turn: Duration) -> Duration {
        let fresh = turns.saturating_sub(self.turns);
        self.turns = turns;
        self.active = if self.active { since_turn < IDLE_AFTER } else { fresh >= ACTIVE_TURNS_MIN };
        if self.active { since_turn.clamp(CHECK_EVERY, CHECK_EVERY_IDLE) } else { CHECK_EVERY_IDLE }
    }
}

/// Whether a shard may sleep on its work that had its last turn so long ago.
pub(super) fn needs_wake(since_turn: Duration) -> bool {
    since_turn >= CHECK_EVERY
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times of the looks, each with whether it led to a nudge, of a shard that has a turn in each millisecond of which
    /// `turns` says so.
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
