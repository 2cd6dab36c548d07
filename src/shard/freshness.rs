//! Before a client is sent to another pod, the view is made sure of: by a look at Redis that is at most
//! [`LOOK_AGE_MAX`](crate::limits::LOOK_AGE_MAX) old, one for all who wait. So two pods that disagree for a moment can't
//! send a client to and fro: whoever is behind looks first, and then agrees. It owns when that is needed and how long it is
//! waited for; the look is discovery's.
//!
//! It holds for all three ways to be sent away: at admission, by the handover, and by a drain. A drain could do with the
//! last view, for its clients have to go in any case. But where pods are replaced one after another, the next one is about
//! to leave too, and a pod that has just left is what a view lacks that is a second old; and for a pod that goes on
//! looking, a look costs next to nothing. Only what must end now goes by the view that there is.

use std::time::Instant;

use crate::exchange::Sight;
use crate::limits::LOOK_WAIT_MAX;

/// What is to be done about clients who are to be sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// They may go: the view is as sure as it gets.
    Go,
    /// A look is to be asked for, and then waited for as below.
    AskForLook,
    /// Another standing is to be waited for, until [`Freshness::until`].
    Wait,
}

/// A wait for a view that is sure.
///
/// ```text
/// nobody is to go <--withdraw-- wanted since
///       |     ^                   ^    |
///       |     '---Go: it is sure, or has taken too long
///       '-----AskForLook----------'
/// ```
#[derive(Debug, Default)]
pub(super) struct Freshness {
    wanted: Option<Instant>,
}

impl Freshness {
    /// Somebody is to be sent away by a view of this sight.
    pub(super) fn ask(&mut self, sight: &Sight, now: Instant) -> Step {
        let wanted = self.wanted.unwrap_or(now);
        if sight.is_sure(wanted) || now >= wanted + LOOK_WAIT_MAX {
            self.wanted = None;
            return Step::Go;
        }
        if self.wanted.replace(wanted).is_none() { Step::AskForLook } else { Step::Wait }
    }

    /// Nobody is to be sent away any more: who is later has to have a look of their own.
    pub(super) fn withdraw(&mut self) {
        self.wanted = None;
    }

    /// Until when a surer view is waited for; `None` where none is.
    pub(super) fn until(&self) -> Option<Instant> {
        self.wanted.map(|wanted| wanted + LOOK_WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sight(looked: Instant) -> Sight {
        Sight { looked: Some(looked), reached: true, proven: true }
    }

    #[test]
    fn a_young_look_is_enough_and_an_old_one_asks_for_another_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut freshness = Freshness::default();
        assert_eq!(freshness.ask(&sight(at(0)), at(100)), Step::Go);
        assert_eq!(freshness.ask(&sight(at(0)), at(150)), Step::AskForLook);
        assert_eq!(freshness.ask(&sight(at(0)), at(160)), Step::Wait);
        assert_eq!(freshness.until(), Some(at(2_150)));
        assert_eq!(freshness.ask(&sight(at(49)), at(170)), Step::Wait, "this one is as old");
        assert_eq!(freshness.ask(&sight(at(155)), at(900)), Step::Go, "however long the answer took");
        assert_eq!(freshness.until(), None);
        assert_eq!(freshness.ask(&sight(at(155)), at(900)), Step::AskForLook, "who comes later has another");
    }

    #[test]
    fn without_redis_and_where_it_does_not_answer_the_last_view_is_gone_by() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut freshness = Freshness::default();
        let down = Sight { reached: false, proven: false, ..sight(start) };
        assert_eq!(freshness.ask(&down, at(60_000)), Step::Go);
        assert_eq!(freshness.ask(&sight(start), at(60_000)), Step::AskForLook);
        assert_eq!(freshness.ask(&down, at(60_400)), Step::Go, "that it is down was found out meanwhile");
        assert_eq!(freshness.ask(&sight(start), at(61_000)), Step::AskForLook);
        assert_eq!(freshness.ask(&sight(start), at(62_999)), Step::Wait);
        assert_eq!(freshness.ask(&sight(start), at(63_000)), Step::Go);
    }

    #[test]
    fn a_wait_that_was_withdrawn_is_good_for_nobody() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut freshness = Freshness::default();
        assert_eq!(freshness.ask(&sight(at(0)), at(500)), Step::AskForLook);
        freshness.withdraw();
        assert_eq!(freshness.until(), None);
        assert_eq!(freshness.ask(&sight(at(600)), at(9_000)), Step::AskForLook, "by the age of now, not of then");
    }
}
