//! The phases of a stopping pod: announce, close evenly, finish. Time is an argument.

use std::time::{Duration, Instant};

use crate::config::DrainConfig;
use crate::limits::LINGER;

/// How long a pod without clients waits for Redis to confirm that its slot is released. After that, the lease runs out
/// by itself.
const RELEASE_WAIT_MAX: Duration = Duration::from_secs(3);

/// Phase of a pod.
///
/// ```text
/// Serving --signal--> Announcing --DRAIN_DELAY_MS--> Closing --DRAIN_MS--> Over
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DrainPhase {
    /// No signal has arrived.
    Serving,
    /// The slot is released, and new clients are redirected. Connected clients are still served.
    Announcing,
    /// Clients are closed, evenly over time.
    Closing {
        /// Time since closing started.
        elapsed: Duration,
        /// Time over which clients are closed.
        over: Duration,
    },
    /// The remaining clients are closed at once.
    Finished,
}

impl DrainPhase {
    /// The phase, at `now`, of a pod that drains since `since`.
    #[must_use]
    pub(crate) fn at(now: Instant, since: Option<Instant>, config: &DrainConfig) -> Self {
        let Some(since) = since else { return Self::Serving };
        let past = now.saturating_duration_since(since);
        let Some(elapsed) = past.checked_sub(config.delay) else { return Self::Announcing };
        if elapsed >= config.over { Self::Finished } else { Self::Closing { elapsed, over: config.over } }
    }

    /// How many of the clients connected at the start of closing may still be connected.
    #[must_use]
    pub(crate) fn remaining(self, clients: usize) -> usize {
        match self {
            Self::Serving | Self::Announcing => clients,
            Self::Finished => 0,
            Self::Closing { elapsed, over } => {
                let left = over.saturating_sub(elapsed).as_nanos();
                let remaining = (clients as u128 * left).div_ceil(over.as_nanos().max(1));
                usize::try_from(remaining).unwrap_or(clients)
            }
        }
    }
}

/// Whether a pod that drains since `since` may end: no client is left, and its slot is released, so that no client is
/// redirected here. After the last phase it ends in any case, once the time for close handshakes is over.
#[must_use]
pub(crate) fn may_end(now: Instant, since: Instant, config: &DrainConfig, clients: u64, slot_released: bool) -> bool {
    let past = now.saturating_duration_since(since);
    let over = config.delay + config.over;
    let announced = slot_released || past >= RELEASE_WAIT_MAX;
    (clients == 0 && announced) || past >= over + LINGER.max(RELEASE_WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONFIG: DrainConfig = DrainConfig { delay: Duration::from_secs(5), over: Duration::from_secs(20) };

    fn at(past_ms: u64) -> DrainPhase {
        let since = Instant::now();
        DrainPhase::at(since + Duration::from_millis(past_ms), Some(since), &CONFIG)
    }

    #[test]
    fn a_pod_announces_then_closes_then_finishes() {
        let over = CONFIG.over;
        assert_eq!(DrainPhase::at(Instant::now(), None, &CONFIG), DrainPhase::Serving);
        assert_eq!(at(0), DrainPhase::Announcing);
        assert_eq!(at(4_999), DrainPhase::Announcing);
        assert_eq!(at(5_000), DrainPhase::Closing { elapsed: Duration::ZERO, over });
        assert_eq!(at(24_999), DrainPhase::Closing { elapsed: Duration::from_millis(19_999), over });
        assert_eq!(at(25_000), DrainPhase::Finished);
    }

    #[test]
    fn a_signal_stamped_later_than_the_turn_starts_announcing() {
        let now = Instant::now();
        assert_eq!(DrainPhase::at(now, Some(now + Duration::from_millis(3)), &CONFIG), DrainPhase::Announcing);
    }

    #[test]
    fn without_delay_and_closing_time_the_drain_finishes_at_once() {
        let now = Instant::now();
        let at_once = DrainConfig { delay: Duration::ZERO, over: Duration::ZERO };
        assert_eq!(DrainPhase::at(now, Some(now), &at_once), DrainPhase::Finished);
    }

    #[test]
    fn clients_are_closed_evenly() {
        let still_here: Vec<usize> = (0..=20).map(|second| at(5_000 + second * 1_000).remaining(1_000)).collect();
        let evenly: Vec<usize> = (0..=20).map(|second| 1_000 - second * 50).collect();
        assert_eq!(still_here, evenly);
    }

    #[test]
    fn a_single_client_has_the_whole_time() {
        assert_eq!(at(24_999).remaining(1), 1);
        assert_eq!(at(25_000).remaining(1), 0);
    }

    #[test]
    fn a_pod_ends_once_no_client_is_left_and_its_slot_is_released() {
        let since = Instant::now();
        let may_end = |past_ms, clients, slot_released| {
            super::may_end(since + Duration::from_millis(past_ms), since, &CONFIG, clients, slot_released)
        };
        assert!(may_end(0, 0, true));
        assert!(!may_end(0, 0, false), "other pods still redirect clients here");
        assert!(may_end(3_000, 0, false), "the pod does not wait for a Redis that is down");
        assert!(!may_end(24_999, 1, true));
        assert!(!may_end(25_000, 1, true), "a close handshake may still be open");
        assert!(may_end(28_000, 1, true) && may_end(28_000, 1, false));
    }

    proptest! {
        #[test]
        fn nobody_comes_back_while_a_pod_closes(
            clients in 0usize..3_000_000,
            first in 0u64..40_000,
            later in 0u64..40_000,
        ) {
            let before = at(first).remaining(clients);
            prop_assert!(before <= clients);
            prop_assert!(at(first + later).remaining(clients) <= before);
        }
    }
}
