//! Delays a redirect until the view is fresh: at most [`VIEW_AGE_MAX`](crate::limits::VIEW_AGE_MAX) old, one refresh
//! for all that wait. Two pods with views of different age may send a client to and fro meanwhile, so one that returns
//! waits for a view that was read after its last redirect ([`ViewGate::newer_than`]): the pod behind then sees what the
//! other one saw. Owns when a refresh is needed and how long to wait; discovery refreshes.
//!
//! Applies to admission, handover and drain. A drain closes its clients in any case and could use the last known view;
//! but in a rolling restart the next pod is about to leave too, a pod that just left may still be in the view, and a
//! refresh costs next to nothing. Only what must end now uses the view as it is.

use std::time::Instant;

use crate::exchange::ViewFreshness;
use crate::limits::VIEW_REFRESH_WAIT_MAX;

/// What a caller that wants to redirect has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GateDecision {
    /// Redirect: the view is as fresh as it gets.
    Proceed,
    /// Request a refresh, and wait.
    RequestRefresh,
    /// Wait for a newer pod state, until [`ViewGate::deadline`].
    Wait,
}

/// A wait for a fresh view.
///
/// ```text
/// idle --RequestRefresh--> waiting --Proceed: fresh, or waited too long--> idle
///                             '------------reset-------------------------> idle
/// ```
#[derive(Debug, Default)]
pub(super) struct ViewGate {
    /// Start of the wait, if waiting.
    wanted: Option<Instant>,
    /// The view has to be this new, however old another may be.
    newer_than: Option<Instant>,
}

impl ViewGate {
    /// For a client that this pod redirected at this time, if it did.
    pub(super) fn newer_than(redirected: Option<Instant>) -> Self {
        Self { wanted: None, newer_than: redirected }
    }

    /// Decides about a redirect by a view of this freshness.
    pub(super) fn check(&mut self, view_freshness: &ViewFreshness, now: Instant) -> GateDecision {
        let wanted = self.wanted.unwrap_or(now);
        let is_new = self.newer_than.is_none_or(|time| view_freshness.is_as_of(time));
        if (is_new && view_freshness.is_fresh_for(wanted)) || now >= wanted + VIEW_REFRESH_WAIT_MAX {
            self.wanted = None;
            return GateDecision::Proceed;
        }
        // The answer to an earlier call may come first, and not be new enough.
        let is_first = self.wanted.replace(wanted).is_none();
        if is_first || !is_new { GateDecision::RequestRefresh } else { GateDecision::Wait }
    }

    /// Cancels the wait; a later redirect needs its own refresh.
    pub(super) fn reset(&mut self) {
        self.wanted = None;
    }

    /// End of the wait; `None` if not waiting.
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
        assert_eq!(
            view_gate.check(&view_freshness(at(49)), at(170)),
            GateDecision::Wait,
            "this one was read before the wait"
        );
        assert_eq!(
            view_gate.check(&view_freshness(at(155)), at(900)),
            GateDecision::Proceed,
            "however long the answer took"
        );
        assert_eq!(view_gate.deadline(), None);
        assert_eq!(
            view_gate.check(&view_freshness(at(155)), at(900)),
            GateDecision::RequestRefresh,
            "a later redirect has its own wait"
        );
    }

    #[test]
    fn a_client_that_returns_needs_a_view_that_was_read_after_its_redirect() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut view_gate = ViewGate::newer_than(Some(at(50)));
        let young = view_freshness(at(49));
        assert_eq!(view_gate.check(&young, at(52)), GateDecision::RequestRefresh);
        assert_eq!(view_gate.check(&young, at(60)), GateDecision::RequestRefresh, "by the answer to an earlier call");
        assert_eq!(view_gate.check(&view_freshness(at(150)), at(152)), GateDecision::Proceed);
        let down = ViewFreshness { redis_up: false, confirmed: false, ..young };
        assert_eq!(ViewGate::newer_than(Some(at(50))).check(&down, at(52)), GateDecision::Proceed);
        assert_eq!(ViewGate::newer_than(None).check(&young, at(52)), GateDecision::Proceed);
    }

    #[test]
    fn without_redis_the_last_known_view_is_used() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut view_gate = ViewGate::default();
        let down = ViewFreshness { redis_up: false, confirmed: false, ..view_freshness(start) };
        assert_eq!(view_gate.check(&down, at(60_000)), GateDecision::Proceed);
        assert_eq!(view_gate.check(&view_freshness(start), at(60_000)), GateDecision::RequestRefresh);
        assert_eq!(view_gate.check(&down, at(60_400)), GateDecision::Proceed, "Redis was found down meanwhile");
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
            "the age counts now"
        );
    }
}
