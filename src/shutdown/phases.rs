//! What a stopping pod does when: announce, close evenly, be over. Time is an argument.

use std::time::{Duration, Instant};

use crate::config::DrainConfig;

/// What a pod does.
///
/// ```text
/// Serving --signal--> Announcing --DRAIN_DELAY_MS--> Closing --DRAIN_MS--> Over
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No signal came.
    Serving,
    /// The slot is given up and new clients are sent elsewhere; those who are here are served on.
    Announcing,
    /// Clients are closed, evenly.
    Closing {
        /// Since the closing began.
        elapsed: Duration,
        /// How long it is to take.
        over: Duration,
    },
    /// Whoever is still here is closed at once.
    Over,
}

impl Phase {
    /// The phase at `now` of a pod that drains since `since`.
    #[must_use]
    pub fn at(now: Instant, since: Option<Instant>, config: &DrainConfig) -> Self {
        let Some(since) = since else { return Self::Serving };
        let past = now.saturating_duration_since(since);
        let Some(elapsed) = past.checked_sub(config.delay) else { return Self::Announcing };
        if elapsed >= config.over { Self::Over } else { Self::Closing { elapsed, over: config.over } }
    }

    /// How many of the clients that were there when the closing began may still be.
    #[must_use]
    pub fn remaining(self, clients: usize) -> usize {
        match self {
            Self::Serving | Self::Announcing => clients,
            Self::Over => 0,
            Self::Closing { elapsed, over } => {
                let left = over.saturating_sub(elapsed).as_nanos();
                let remaining = (clients as u128 * left).div_ceil(over.as_nanos().max(1));
                usize::try_from(remaining).unwrap_or(clients)
            }
        }
    }
}
