//! When a shard is nudged next: often while it is at work, and seldom while it rests. It owns the pace; who nudges, and what
//! for, is [`super::event_loop`]'s.

use std::time::Duration;

/// How long the executor may sleep on tasks that could run, should it do so: while the shard is at work, and while it rests.
/// In a storm of clients it did so each second or third second. A nudge costs it some fifty microseconds, and its
/// thread some twenty.
const EVERY: Duration = Duration::from_millis(10);
const EVERY_AT_REST: Duration = Duration::from_millis(100);

/// A shard that had no turn for so long is at rest.
const AT_REST_AFTER: Duration = Duration::from_millis(300);

/// A shard that had turns between so many nudges, one after the other, is at work. At rest it has one or two a second, and
/// to be nudged thirty times after each was half of what an idle pod used.
const AT_WORK_AFTER: u32 = 3;

/// Whether a shard is at work, as it looks from one nudge to the next.
#[derive(Debug, Default)]
pub(super) struct Pace {
    at_work: bool,
    /// Between how many nudges there were turns, up to the last.
    in_a_row: u32,
}

impl Pace {
    /// How long until the next nudge, where the last turn was so long ago.
    pub(super) fn pause(&mut self, since_turn: Duration) -> Duration {
        self.in_a_row = if since_turn < EVERY_AT_REST { self.in_a_row.saturating_add(1) } else { 0 };
        self.at_work = if self.at_work { since_turn < AT_REST_AFTER } else { self.in_a_row >= AT_WORK_AFTER };
        if self.at_work { EVERY } else { EVERY_AT_REST }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nudges of some time, by a shard's turns, in milliseconds.
    fn nudges(until: u64, turns: impl Fn(u64) -> bool) -> Vec<u64> {
        let (mut pace, mut now, mut at) = (Pace::default(), 0, Vec::new());
        while now < until {
            let turn = (0..=now).rev().find(|ms| turns(*ms));
            let since_turn = turn.map_or(Duration::MAX, |turn| Duration::from_millis(now - turn));
            now += u64::try_from(pace.pause(since_turn).as_millis()).unwrap();
            at.push(now);
        }
        at
    }

    #[test]
    fn a_shard_that_has_a_few_turns_a_second_is_at_rest() {
        for phase in [0, 1, 50, 99] {
            let turns = |ms| [phase, phase + 110].contains(&(ms % 1_000));
            assert_eq!(nudges(10_000, turns).len(), 100, "{phase}");
        }
    }

    #[test]
    fn one_that_works_is_nudged_often_from_its_third_tenth_of_a_second_until_it_rests() {
        let at = nudges(2_000, |ms| (500..1_000).contains(&ms) && ms % 20 == 0);
        let pauses: Vec<(u64, u64)> = at.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).collect();
        assert!(
            pauses.iter().all(|(begin, pause)| *pause == if (700..1_280).contains(begin) { 10 } else { 100 }),
            "{pauses:?}"
        );
    }
}
