//! The phases of a stopping pod: announce, close evenly, finish. Time is an argument.

use std::time::{Duration, Instant};

use crate::config::DrainConfig;
use crate::limits::LINGER;

/// How long a pod without clients waits for Redis to confirm that its slot is given up. After it, the lease runs out.
const GIVE_UP_MAX: Duration = Duration::from_secs(3);

/// What a pod does.
///
/// ```text
/// Serving --signal--> Announcing --DRAIN_DELAY_MS--> Closing --DRAIN_MS--> Over
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainPhase {
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
    Finished,
}

impl DrainPhase {
    /// The phase at `now` of a pod that drains since `since`.
    #[must_use]
    pub fn at(now: Instant, since: Option<Instant>, config: &DrainConfig) -> Self {
        let Some(since) = since else { return Self::Serving };
        let past = now.saturating_duration_since(since);
        let Some(elapsed) = past.checked_sub(config.delay) else { return Self::Announcing };
        if elapsed >= config.over { Self::Finished } else { Self::Closing { elapsed, over: config.over } }
    }

    /// How many of the clients connected at the start of closing may still be connected.
    #[must_use]
    pub fn remaining(self, clients: usize) -> usize {
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

/// Whether a pod that drains since `since` may end: no client is left, and its slot is given up, so that nobody is sent
/// here any more. Once all is over it ends whoever is left, after the time that their close handshakes may take.
#[must_use]
pub fn may_end(now: Instant, since: Instant, config: &DrainConfig, clients: u64, slot_given_up: bool) -> bool {
    let past = now.saturating_duration_since(since);
    let over = config.delay + config.over;
    let announced = slot_given_up || past >= GIVE_UP_MAX;
    (clients == 0 && announced) || past >= over + LINGER.max(GIVE_UP_MAX)
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
    fn a_pod_announces_then_closes_then_is_over() {
        let over = CONFIG.over;
        assert_eq!(DrainPhase::at(Instant::now(), None, &CONFIG), DrainPhase::Serving);
        assert_eq!(at(0), DrainPhase::Announcing);
        assert_eq!(at(4_999), DrainPhase::Announcing);
        assert_eq!(at(5_000), DrainPhase::Closing { elapsed: Duration::ZERO, over });
        assert_eq!(at(24_999), DrainPhase::Closing { elapsed: Duration::from_millis(19_999), over });
        assert_eq!(at(25_000), DrainPhase::Finished);
    }

    #[test]
    fn a_signal_that_is_stamped_later_than_the_turn_is_announced_all_the_same() {
        let now = Instant::now();
        assert_eq!(DrainPhase::at(now, Some(now + Duration::from_millis(3)), &CONFIG), DrainPhase::Announcing);
    }

    #[test]
    fn without_delay_and_without_time_to_close_all_is_over_at_once() {
        let now = Instant::now();
        let at_once = DrainConfig { delay: Duration::ZERO, over: Duration::ZERO };
        assert_eq!(DrainPhase::at(now, Some(now), &at_once), DrainPhase::Finished);
    }

    #[test]
    fn clients_leave_evenly_over_the_closing() {
        let still_here: Vec<usize> = (0..=20).map(|second| at(5_000 + second * 1_000).remaining(1_000)).collect();
        let evenly: Vec<usize> = (0..=20).map(|second| 1_000 - second * 50).collect();
        assert_eq!(still_here, evenly);
    }

    #[test]
    fn a_lone_client_has_the_whole_time() {
        assert_eq!(at(24_999).remaining(1), 1);
        assert_eq!(at(25_000).remaining(1), 0);
    }

    #[test]
    fn a_pod_ends_once_no_client_is_left_and_its_slot_is_released() {
        let since = Instant::now();
        let may_end = |past_ms, clients, slot_given_up| {
            super::may_end(since + Duration::from_millis(past_ms), since, &CONFIG, clients, slot_given_up)
        };
        assert!(may_end(0, 0, true));
        assert!(!may_end(0, 0, false), "Redis still sends clients here");
        assert!(may_end(3_000, 0, false), "but a Redis that is away is not waited for");
        assert!(!may_end(24_999, 1, true));
        assert!(!may_end(25_000, 1, true), "its close handshake has its time");
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
