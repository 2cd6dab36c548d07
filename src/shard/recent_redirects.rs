//! Remembers the assessments whose clients were redirected moments ago by an unconfirmed view. A client that returns
//! was probably redirected to a pod that is gone or drains. Without this it would try a dead URL again and again until
//! Redis is back. [`super::redirect`] decides what follows.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::exchange::ViewFreshness;
use crate::ids::AssessmentHash;
use crate::limits::{RECENT_REDIRECTS_MAX, REDIRECT_RETURN_MAX};

/// The assessments whose clients were redirected moments ago, each until [`REDIRECT_RETURN_MAX`] after the last time.
#[derive(Debug, Default)]
pub(crate) struct RecentRedirects {
    last: HashMap<AssessmentHash, Instant>,
    /// All times in `last`, and some that a later one replaced there; oldest first.
    times: VecDeque<(Instant, AssessmentHash)>,
}

impl RecentRedirects {
    /// Records a redirect of this assessment. With a confirmed view a returning client is redirected again, so nothing
    /// is remembered.
    pub(crate) fn record(&mut self, hash: AssessmentHash, view_freshness: &ViewFreshness, now: Instant) {
        if view_freshness.confirmed {
            *self = Self::default();
            return;
        }
        while let Some(&(time, of)) = self.times.front()
            && (self.times.len() >= RECENT_REDIRECTS_MAX || !is_recent(time, now))
        {
            self.times.pop_front();
            if self.last.get(&of) == Some(&time) {
                self.last.remove(&of);
            }
        }
        self.last.insert(hash, now);
        self.times.push_back((now, hash));
    }

    /// Whether a client of this assessment was redirected so recently that this one probably returned.
    #[must_use]
    pub(crate) fn has_returned(&self, hash: AssessmentHash, view_freshness: &ViewFreshness, now: Instant) -> bool {
        !view_freshness.confirmed && self.last.get(&hash).is_some_and(|&time| is_recent(time, now))
    }
}

fn is_recent(time: Instant, now: Instant) -> bool {
    now.saturating_duration_since(time) <= REDIRECT_RETURN_MAX
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DOWN: ViewFreshness = ViewFreshness { as_of: None, redis_up: false, confirmed: false };
    const CONFIRMED: ViewFreshness = ViewFreshness { as_of: None, redis_up: true, confirmed: true };
    const A: AssessmentHash = AssessmentHash(1);
    const B: AssessmentHash = AssessmentHash(2);

    #[test]
    fn a_redirect_is_remembered_for_some_seconds_after_the_last_one() {
        let start = Instant::now();
        let mut recent_redirects = RecentRedirects::default();
        assert!(!recent_redirects.has_returned(A, &DOWN, start));
        recent_redirects.record(A, &DOWN, start);
        assert!(recent_redirects.has_returned(A, &DOWN, start) && !recent_redirects.has_returned(B, &DOWN, start));
        let again = start + REDIRECT_RETURN_MAX;
        assert!(recent_redirects.has_returned(A, &DOWN, again));
        let late = Duration::from_millis(1);
        assert!(!recent_redirects.has_returned(A, &DOWN, again + late));
        recent_redirects.record(A, &DOWN, again);
        // The older of its two times is dropped here, the newer counts.
        recent_redirects.record(B, &DOWN, again + late);
        assert!(recent_redirects.has_returned(A, &DOWN, again + REDIRECT_RETURN_MAX));
        assert!(!recent_redirects.has_returned(A, &DOWN, again + REDIRECT_RETURN_MAX + late));
    }

    #[test]
    fn a_confirmed_view_remembers_no_redirects() {
        let now = Instant::now();
        let mut recent_redirects = RecentRedirects::default();
        recent_redirects.record(A, &CONFIRMED, now);
        assert!(!recent_redirects.has_returned(A, &DOWN, now), "by the view that redirected it, the other pod lived");
        recent_redirects.record(A, &DOWN, now);
        assert!(!recent_redirects.has_returned(A, &CONFIRMED, now), "the view is confirmed now");
        recent_redirects.record(B, &CONFIRMED, now);
        assert!(
            !recent_redirects.has_returned(A, &DOWN, now) && recent_redirects.times.is_empty(),
            "another outage starts empty"
        );
    }

    #[test]
    fn over_its_bound_the_oldest_is_forgotten() {
        let now = Instant::now();
        let mut recent_redirects = RecentRedirects::default();
        let number = |number: usize| AssessmentHash(number as u64);
        for of in 0..=RECENT_REDIRECTS_MAX {
            recent_redirects.record(number(of), &DOWN, now);
        }
        assert!(!recent_redirects.has_returned(number(0), &DOWN, now));
        assert!(
            recent_redirects.has_returned(number(1), &DOWN, now)
                && recent_redirects.has_returned(number(RECENT_REDIRECTS_MAX), &DOWN, now)
        );
        for _ in 0..RECENT_REDIRECTS_MAX {
            recent_redirects.record(A, &DOWN, now);
        }
        assert!(recent_redirects.has_returned(A, &DOWN, now));
        assert_eq!((recent_redirects.last.len(), recent_redirects.times.len()), (1, RECENT_REDIRECTS_MAX));
    }
}
