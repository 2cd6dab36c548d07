//! Before a client is sent to another pod, the view is made sure of: by a look at Redis that is at most
//! [`VIEW_AGE_MAX`](crate::limits::VIEW_AGE_MAX) old, one for all who wait. So two pods that disagree for a moment can't
//! send a client to and fro: whoever is behind looks first, and then agrees. It owns when that is needed and how long it is
//! waited for; the look is discovery's.
//!
//! It holds for all three ways to be sent away: at admission, by the handover, and by a drain. A drain could do with the
//! last view, for its clients have to go in any case. But where pods are replaced one after another, the next one is about
//! to leave too, and a pod that has just left is what a view lacks that is a second old; and for a pod that goes on
//! looking, a look costs next to nothing. Only what must end now goes by the view that there is.

use std::time::Instant;

use crate::exchange::ViewFreshness;
use crate::limits::VIEW_REFRESH_WAIT_MAX;

/// What is to be done about clients who are to be sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GateDecision {
    /// They may go: the view is as sure as it gets.
    Proceed,
    /// A look is to be asked for, and then waited for as below.
    RequestRefresh,
    /// Another standing is to be waited for, until [`ViewGate::deadline`].
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
pub(super) struct ViewGate {
    wanted: Option<Instant>,
}

impl ViewGate {
    /// Somebody is to be sent away by a view of this sight.
    pub(super) fn check(&mut self, view_freshness: &ViewFreshness, now: Instant) -> GateDecision {
        let wanted = self.wanted.unwrap_or(now);
        if view_freshness.is_fresh_for(wanted) || now >= wanted + VIEW_REFRESH_WAIT_MAX {
            self.wanted = None;
            return GateDecision::Proceed;
        }
        if self.wanted.replace(wanted).is_none() { GateDecision::RequestRefresh } else { GateDecision::Wait }
    }

    /// Nobody is to be sent away any more: who is later has to have a look of their own.
    pub(super) fn reset(&mut self) {
        self.wanted = None;
    }

    /// Until when a surer view is waited for; `None` where none is.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.wanted.map(|wanted| wanted + VIEW_REFRESH_WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn view_freshness(as_of: Instant) -> ViewFreshness {
        ViewFreshness { as_of: Some(as_of), redis_up: true, confirmed: true }
    }

    #[test]
    fn a_fresh_view_is_enough_and_a_stale_one_requests_one_refresh() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut view_gate = ViewGate::default();
        assert_eq!(view_gate.check(&view_freshness(at(0)), at(100)), GateDecision::Proceed);
        assert_eq!(view_gate.check(&view_freshness(at(0)), at(150)), GateDecision::RequestRefresh);
        assert_eq!(view_gate.check(&view_freshness(at(0)), at(160)), GateDecision::Wait);
        assert_eq!(view_gate.deadline(), Some(at(2_150)));
        assert_eq!(view_gate.check(&view_freshness(at(49)), at(170)), GateDecision::Wait, "this one is as old");
        assert_eq!(
            view_gate.check(&view_freshness(at(155)), at(900)),
            GateDecision::Proceed,
            "however long the answer took"
        );
        assert_eq!(view_gate.deadline(), None);
        assert_eq!(
            view_gate.check(&view_freshness(at(155)), at(900)),
            GateDecision::RequestRefresh,
            "who comes later has another"
        );
    }

    #[test]
    fn without_redis_the_last_known_view_is_used() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut view_gate = ViewGate::default();
        let down = ViewFreshness { redis_up: false, confirmed: false, ..view_freshness(start) };
        assert_eq!(view_gate.check(&down, at(60_000)), GateDecision::Proceed);
        assert_eq!(view_gate.check(&view_freshness(start), at(60_000)), GateDecision::RequestRefresh);
        assert_eq!(
            view_gate.check(&down, at(60_400)),
            GateDecision::Proceed,
            "that it is down was found out meanwhile"
        );
        assert_eq!(view_gate.check(&view_freshness(start), at(61_000)), GateDecision::RequestRefresh);
        assert_eq!(view_gate.check(&view_freshness(start), at(62_999)), GateDecision::Wait);
        assert_eq!(view_gate.check(&view_freshness(start), at(63_000)), GateDecision::Proceed);
    }

    #[test]
    fn a_cancelled_wait_does_not_count_for_a_later_redirect() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut view_gate = ViewGate::default();
        assert_eq!(view_gate.check(&view_freshness(at(0)), at(500)), GateDecision::RequestRefresh);
        view_gate.reset();
        assert_eq!(view_gate.deadline(), None);
        assert_eq!(
            view_gate.check(&view_freshness(at(600)), at(9_000)),
            GateDecision::RequestRefresh,
            "by the age of now, not of then"
        );
    }
}
