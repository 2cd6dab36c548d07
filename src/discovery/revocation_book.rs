//! The revocations that this pod knows, and those of them that Redis has not got yet. Reading and writing Redis is left to
//! [`super::redis`].

use std::sync::Arc;

use crate::clock::UnixMs;
use crate::limits::REVOCATIONS_MAX;
use crate::protocol::auth::{Revocation, RevocationSet};

/// A pod's revocations.
#[derive(Debug, Default)]
pub(crate) struct RevocationBook {
    in_force: Arc<RevocationSet>,
    /// Those that were made here while Redis was away.
    unsent: Vec<Revocation>,
}

impl RevocationBook {
    /// Those in force. It is another one after each change.
    pub(crate) fn in_force(&self) -> Arc<RevocationSet> {
        Arc::clone(&self.in_force)
    }

    /// Adds those that this pod learnt of, and forgets those whose tokens are over. Returns whether they had room: what is
    /// in Redis has, unless another program wrote it.
    pub(crate) fn learn(&mut self, revocations: &[Revocation], now: UnixMs) -> bool {
        let mut set = RevocationSet::clone(&self.in_force);
        set.forget_past(now);
        let mut had_room = true;
        for revocation in revocations.iter().filter(|revocation| now < revocation.rule.until) {
            if set.len() < REVOCATIONS_MAX || set.has(&revocation.subject) {
                set.add(revocation);
            } else {
                had_room = false;
            }
        }
        self.in_force = Arc::new(set);
        had_room
    }

    /// Keeps one that Redis did not take, until it does.
    pub(crate) fn keep_unsent(&mut self, revocation: Revocation) {
        // As many as are in force at most: it is in force, or was refused.
        self.unsent.push(revocation);
    }

    /// Takes those that Redis has not got yet.
    pub(crate) fn take_unsent(&mut self) -> Vec<Revocation> {
        std::mem::take(&mut self.unsent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::auth::{Rule, Subject};

    const NOW: UnixMs = UnixMs(1_000);

    fn of_user(user: &str, until: u64) -> Revocation {
        Revocation { subject: Subject::User(user.into()), rule: Rule { issued_before: None, until: UnixMs(until) } }
    }

    #[test]
    fn what_is_learnt_is_in_force_until_its_tokens_are_over() {
        let mut book = RevocationBook::default();
        let before = book.in_force();
        assert!(book.learn(&[of_user("a", 2_000), of_user("b", 3_000), of_user("past", 1_000)], NOW));
        assert!(!Arc::ptr_eq(&before, &book.in_force()));
        assert_eq!(book.in_force().page("", 9), [of_user("a", 2_000), of_user("b", 3_000)]);
        assert!(book.learn(&[], UnixMs(2_000)));
        assert_eq!(book.in_force().page("", 9), [of_user("b", 3_000)]);
    }

    #[test]
    fn a_full_book_takes_a_new_subject_once_old_ones_are_over() {
        let mut book = RevocationBook::default();
        let all: Vec<_> = (0..REVOCATIONS_MAX).map(|number| of_user(&number.to_string(), 2_000)).collect();
        assert!(book.learn(&all, NOW));
        assert!(!book.learn(&[of_user("more", 9_000)], NOW));
        assert!(book.learn(&[of_user("0", 9_000)], NOW), "it is there");
        assert!(book.learn(&[of_user("more", 9_000)], UnixMs(2_000)));
        assert_eq!(book.in_force().len(), 2);
    }
}
