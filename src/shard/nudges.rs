//! When a shard is looked at next for whether it sleeps on its work, and whether it is nudged: often while it is at work, and
//! seldom while it rests. It owns the pace; who nudges, and what for, is [`super::event_loop`]'s.

use std::time::Duration;

/// How long until the next look: while the shard is at work, and while it rests. The executor may sleep on tasks that could
/// run for as long as from one look to the next, should it do so: in a storm of clients it did each second or third second.
/// A look costs the core some thirty microseconds, and a nudge some fifty more.
const EVERY: Duration = Duration::from_millis(20);
const EVERY_AT_REST: Duration = Duration::from_millis(500);

/// A shard that had no turn for so long is at rest.
const AT_REST_AFTER: Duration = Duration::from_millis(300);

/// One that rested is at work when it had so many turns since the last look. At rest it has one or two a second, and to be
/// nudged thirty times after each was half of what an idle pod used.
const TURNS_OF_WORK: u64 = 8;

/// Whether a shard is at work, as it looks from one look to the next.
#[derive(Debug, Default)]
pub(super) struct Pace {
    at_work: bool,
    turns: u64,
}

impl Pace {
    /// How long until the next look at a shard that has had so many turns in all, the last of them so long ago. Whom a nudge
    /// has not brought to a turn had nothing to do: the pause grows with the time without one.
    pub(super) fn pause(&mut self, turns: u64, since_turn: Duration) -> Duration {
        let fresh = turns.saturating_sub(self.turns);
        self.turns = turns;
        self.at_work = if self.at_work { since_turn < AT_REST_AFTER } else { fresh >= TURNS_OF_WORK };
        if self.at_work { since_turn.clamp(EVERY, EVERY_AT_REST) } else { EVERY_AT_REST }
    }
}

/// Whether a shard may sleep on its work that had its last turn so long ago.
pub(super) fn is_wanted(since_turn: Duration) -> bool {
    since_turn >= EVERY
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times of the looks, each with whether it led to a nudge, of a shard that has a turn in each millisecond of which
    /// `turns` says so.
    fn looks(until: u64, turns: impl Fn(u64) -> bool) -> Vec<(u64, bool)> {
        let (mut pace, mut now, mut at) = (Pace::default(), 0, Vec::new());
        while now < until {
            let had: Vec<u64> = (0..=now).filter(|ms| turns(*ms)).collect();
            let since_turn = had.last().map_or(Duration::MAX, |turn| Duration::from_millis(now - turn));
            at.push((now, is_wanted(since_turn)));
            now += u64::try_from(pace.pause(had.len() as u64, since_turn).as_millis()).unwrap();
        }
        at
    }

    #[test]
    fn a_shard_that_has_a_few_turns_a_second_is_at_rest() {
        for phase in [0, 1, 50, 99] {
            let turns = |ms| [phase, phase + 30].contains(&(ms % 1_000));
            assert_eq!(looks(10_000, turns).len(), 20, "{phase}");
        }
    }

    #[test]
    fn one_that_works_is_looked_at_often_and_nudged_ever_less_while_it_has_no_turns() {
        let at = looks(2_100, |ms| (800..1_500).contains(&ms) && ms % 4 == 0 && !(1_100..1_160).contains(&ms));
        let seen: Vec<u64> = at.iter().map(|look| look.0).filter(|at| (1_000..=1_100).contains(at)).collect();
        assert_eq!(seen, [1_000, 1_020, 1_040, 1_060, 1_080, 1_100], "at work");
        let nudged: Vec<u64> = at.iter().filter(|look| look.1).map(|look| look.0).collect();
        assert_eq!(nudged[..2], [0, 500], "at rest");
        assert_eq!(nudged[2..4], [1_120, 1_144], "it may sleep");
        assert_eq!(nudged[4..], [1_532, 1_568, 1_640, 1_784, 2_072], "it comes to rest");
    }
}
