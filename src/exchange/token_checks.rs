//! Checks of tokens by public keys: a shard asks, one thread of the pod answers.

use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::sync::oneshot;

use crate::limits::TOKEN_CHECKS_MAX;
use crate::protocol::auth::{Grant, PublicKeyCheck, Unauthorized};

/// The shards' way to the thread that makes the checks. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct TokenChecks(Sender<TokenCheck>);

/// A check that is asked for. Dropped, it is answered by [`Busy`].
#[derive(Debug)]
pub(crate) struct TokenCheck {
    /// What is to be checked.
    pub(crate) check: PublicKeyCheck,
    answer: oneshot::Sender<Result<Grant, Unauthorized>>,
}

/// Too many checks wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Busy;

impl TokenChecks {
    /// The way, and its end.
    pub(crate) fn channel() -> (Self, Receiver<TokenCheck>) {
        let (sender, receiver) = bounded(TOKEN_CHECKS_MAX);
        (Self(sender), receiver)
    }

    /// Returns what the token grants, or why it is rejected.
    ///
    /// # Errors
    /// If too many checks wait, here or for a key set.
    pub(crate) async fn run(&self, check: PublicKeyCheck) -> Result<Result<Grant, Unauthorized>, Busy> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(TokenCheck { check, answer }).map_err(|_| Busy)?;
        answered.await.map_err(|_| Busy)
    }

    /// Asks once more. Where too many wait, it is answered by [`Busy`].
    pub(crate) fn repeat(&self, check: TokenCheck) {
        drop(self.0.try_send(check));
    }
}

impl TokenCheck {
    /// Whether nothing waits for the answer any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.answer.is_closed()
    }

    /// Answers who asked.
    pub(crate) fn answer(self, answer: Result<Grant, Unauthorized>) {
        // It fails if the client has gone meanwhile.
        drop(self.answer.send(answer));
    }
}
