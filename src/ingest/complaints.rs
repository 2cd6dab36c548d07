//! How often the same complaint is worth a line in the log. It owns the rule; what is said is up to the one who asks.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::limits::COMPLAINT_KINDS_MAX;

/// Lets a complaint of each kind through once in a while, and counts what it holds back.
#[derive(Debug)]
pub(super) struct Complaints<K> {
    every: Duration,
    kinds: HashMap<K, (Instant, u64)>,
}

impl<K: Eq + Hash> Complaints<K> {
    /// At most one of a kind in `every`.
    pub(super) fn new(every: Duration) -> Self {
        Self { every, kinds: HashMap::new() }
    }

    /// Whether to say it now; if so, how many of its kind were held back since it was last said.
    pub(super) fn admit(&mut self, kind: K, now: Instant) -> Option<u64> {
        if let Some((said, held_back)) = self.kinds.get_mut(&kind) {
            if now.saturating_duration_since(*said) < self.every {
                *held_back += 1;
                return None;
            }
            let before = std::mem::take(held_back);
            *said = now;
            return Some(before);
        }
        if self.kinds.len() == COMPLAINT_KINDS_MAX {
            // More kinds than anyone will read: forget those that may be said again anyway, or say nothing new.
            self.kinds.retain(|_, (said, _)| now.saturating_duration_since(*said) < self.every);
            if self.kinds.len() == COMPLAINT_KINDS_MAX {
                return None;
            }
        }
        self.kinds.insert(kind, (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_said_once_in_its_time_and_tells_how_many_were_held_back() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut complaints = Complaints::new(Duration::from_secs(1));
        assert_eq!(complaints.admit("orders", at(0)), Some(0));
        assert_eq!(complaints.admit("orders", at(10)), None);
        assert_eq!(complaints.admit("ticks", at(20)), Some(0), "another kind has its own time");
        assert_eq!(complaints.admit("orders", at(999)), None);
        assert_eq!(complaints.admit("orders", at(1_000)), Some(2));
        assert_eq!(complaints.admit("orders", at(2_000)), Some(0));
    }

    #[test]
    fn kinds_without_end_take_no_memory_without_end() {
        let start = Instant::now();
        let mut complaints = Complaints::new(Duration::from_secs(1));
        let said = (0..10_000).filter(|kind| complaints.admit(*kind, start).is_some()).count();
        assert_eq!(said, COMPLAINT_KINDS_MAX);
        assert_eq!(complaints.admit(10_000, start + Duration::from_secs(1)), Some(0), "and old ones make room");
    }
}
