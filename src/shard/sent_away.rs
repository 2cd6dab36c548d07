//! Who was sent away moments ago by a view that is not proven: one that is back was sent in vain, as a rule: the pod that the
//! view names is gone, or drains. Without this a client would go to a dead URL again and again until Redis tells who lives. It
//! owns that memory; what is made of it is [`super::admission`]'s.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::exchange::Sight;
use crate::ids::AssessmentHash;
use crate::limits::{RETURN_WITHIN, SENT_AWAY_MAX};

/// The assessments whose clients were sent away moments ago, each until [`RETURN_WITHIN`] after the last time.
#[derive(Debug, Default)]
pub struct SentAway {
    last: HashMap<AssessmentHash, Instant>,
    /// Each time that is in `last`, and some that a later one has replaced there; oldest first.
    times: VecDeque<(Instant, AssessmentHash)>,
}

impl SentAway {
    /// A client of this assessment is sent to another pod by a view of this sight. Where that is proven, whoever comes back
    /// is sent there again, and nothing is remembered.
    pub fn note(&mut self, hash: AssessmentHash, sight: &Sight, now: Instant) {
        if sight.proven {
            *self = Self::default();
            return;
        }
        while let Some(&(time, of)) = self.times.front()
            && (self.times.len() >= SENT_AWAY_MAX || !is_recent(time, now))
        {
            self.times.pop_front();
            if self.last.get(&of) == Some(&time) {
                self.last.remove(&of);
            }
        }
        self.last.insert(hash, now);
        self.times.push_back((now, hash));
    }

    /// Whether a client of this assessment that comes now may be one that was sent away moments ago, in vain.
    #[must_use]
    pub fn is_back(&self, hash: AssessmentHash, sight: &Sight, now: Instant) -> bool {
        !sight.proven && self.last.get(&hash).is_some_and(|&time| is_recent(time, now))
    }
}

fn is_recent(time: Instant, now: Instant) -> bool {
    now.saturating_duration_since(time) <= RETURN_WITHIN
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DOWN: Sight = Sight { looked: None, reached: false, proven: false };
    const PROVEN: Sight = Sight { looked: None, reached: true, proven: true };
    const A: AssessmentHash = AssessmentHash(1);
    const B: AssessmentHash = AssessmentHash(2);

    #[test]
    fn an_assessment_that_was_sent_away_is_known_for_some_seconds_after_the_last_time() {
        let start = Instant::now();
        let mut sent_away = SentAway::default();
        assert!(!sent_away.is_back(A, &DOWN, start));
        sent_away.note(A, &DOWN, start);
        assert!(sent_away.is_back(A, &DOWN, start) && !sent_away.is_back(B, &DOWN, start));
        let again = start + RETURN_WITHIN;
        assert!(sent_away.is_back(A, &DOWN, again));
        let late = Duration::from_millis(1);
        assert!(!sent_away.is_back(A, &DOWN, again + late));
        sent_away.note(A, &DOWN, again);
        // The older of its two times is dropped here, the newer counts.
        sent_away.note(B, &DOWN, again + late);
        assert!(sent_away.is_back(A, &DOWN, again + RETURN_WITHIN));
        assert!(!sent_away.is_back(A, &DOWN, again + RETURN_WITHIN + late));
    }

    #[test]
    fn a_proven_view_asks_and_keeps_nothing() {
        let now = Instant::now();
        let mut sent_away = SentAway::default();
        sent_away.note(A, &PROVEN, now);
        assert!(!sent_away.is_back(A, &DOWN, now), "by the view that sent it away, the other pod lived");
        sent_away.note(A, &DOWN, now);
        assert!(!sent_away.is_back(A, &PROVEN, now), "it is known now who lives");
        sent_away.note(B, &PROVEN, now);
        assert!(!sent_away.is_back(A, &DOWN, now) && sent_away.times.is_empty(), "another outage begins anew");
    }

    #[test]
    fn over_its_bound_the_oldest_is_forgotten() {
        let now = Instant::now();
        let mut sent_away = SentAway::default();
        let number = |number: usize| AssessmentHash(number as u64);
        for of in 0..=SENT_AWAY_MAX {
            sent_away.note(number(of), &DOWN, now);
        }
        assert!(!sent_away.is_back(number(0), &DOWN, now));
        assert!(sent_away.is_back(number(1), &DOWN, now) && sent_away.is_back(number(SENT_AWAY_MAX), &DOWN, now));
        for _ in 0..SENT_AWAY_MAX {
            sent_away.note(A, &DOWN, now);
        }
        assert!(sent_away.is_back(A, &DOWN, now));
        assert_eq!((sent_away.last.len(), sent_away.times.len()), (1, SENT_AWAY_MAX));
    }
}
