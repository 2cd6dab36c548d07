//! Remembers the clients that were redirected moments ago. One that returns tells something about the view:
//!
//! - By an unconfirmed view it was probably redirected to a pod that is gone or drains. Without this it would try a dead
//!   URL again and again until Redis is back. [`super::redirect`] decides what follows.
//! - By any view, the other pod knows another owner, so one of the two views is behind. [`super::view_gate`] waits for a
//!   newer one.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::exchange::ViewFreshness;
use crate::ids::AssessmentHash;
use crate::limits::{RECENT_REDIRECTS_MAX, REDIRECT_RETURN_MAX};

/// The redirects of the last moments.
#[derive(Debug, Default)]
pub(crate) struct RecentRedirects {
    /// By an unconfirmed view, of any client of an assessment.
    unconfirmed: Times,
    /// By any view, of one user's clients of an assessment.
    of_users: Times,
}

impl RecentRedirects {
    /// Records a redirect of this assessment by a view. With a confirmed one a returning client is redirected again, so
    /// nothing is remembered.
    pub(crate) fn record(&mut self, hash: AssessmentHash, view_freshness: &ViewFreshness, now: Instant) {
        if view_freshness.confirmed {
            self.unconfirmed = Times::default();
        } else {
            self.unconfirmed.record(hash.0, now);
        }
    }

    /// Records a redirect of an arriving client, by a view of any kind.
    pub(crate) fn record_user(&mut self, hash: AssessmentHash, user: &str, now: Instant) {
        self.of_users.record(key_of(hash, user), now);
    }

    /// Whether a client of this assessment was redirected so recently that this one probably returned.
    #[must_use]
    pub(crate) fn has_returned(&self, hash: AssessmentHash, view_freshness: &ViewFreshness, now: Instant) -> bool {
        !view_freshness.confirmed && self.unconfirmed.last(hash.0, now).is_some()
    }

    /// When an arriving client of this user and assessment was redirected last, if that was moments ago.
    #[must_use]
    pub(crate) fn last_of_user(&self, hash: AssessmentHash, user: &str, now: Instant) -> Option<Instant> {
        self.of_users.last(key_of(hash, user), now)
    }
}

fn key_of(hash: AssessmentHash, user: &str) -> u64 {
    hash.0 ^ AssessmentHash::of(user).0.rotate_left(1)
}

/// Times of the last moments, the last of each key, each until [`REDIRECT_RETURN_MAX`] has passed.
#[derive(Debug, Default)]
struct Times {
    last: HashMap<u64, Instant>,
    /// All times in `last`, and some that a later one replaced there; oldest first.
    times: VecDeque<(Instant, u64)>,
}

impl Times {
    fn record(&mut self, key: u64, now: Instant) {
        while let Some(&(time, of)) = self.times.front()
            && (self.times.len() >= RECENT_REDIRECTS_MAX || !is_recent(time, now))
        {
            self.times.pop_front();
            if self.last.get(&of) == Some(&time) {
                self.last.remove(&of);
            }
        }
        self.last.insert(key, now);
        self.times.push_back((now, key));
    }

    fn last(&self, key: u64, now: Instant) -> Option<Instant> {
        self.last.get(&key).copied().filter(|&time| is_recent(time, now))
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
            !recent_redirects.has_returned(A, &DOWN, now) && recent_redirects.unconfirmed.times.is_empty(),
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
        assert_eq!(
            (recent_redirects.unconfirmed.last.len(), recent_redirects.unconfirmed.times.len()),
            (1, RECENT_REDIRECTS_MAX)
        );
    }

    #[test]
    fn a_users_last_redirect_is_known_by_any_view() {
        let now = Instant::now();
        let mut recent_redirects = RecentRedirects::default();
        assert_eq!(recent_redirects.last_of_user(A, "u", now), None);
        recent_redirects.record_user(A, "u", now);
        recent_redirects.record(A, &CONFIRMED, now);
        assert_eq!(recent_redirects.last_of_user(A, "u", now + REDIRECT_RETURN_MAX), Some(now));
        assert_eq!(recent_redirects.last_of_user(A, "v", now), None);
        assert_eq!(recent_redirects.last_of_user(B, "u", now), None);
        assert_eq!(recent_redirects.last_of_user(A, "u", now + 2 * REDIRECT_RETURN_MAX), None);
    }
}
