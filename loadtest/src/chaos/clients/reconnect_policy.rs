//! Decides how a client reconnects after a connection ended or could not be opened (PROTOCOL 4). Pure: no socket, no
//! clock.

use std::time::Duration;

use crate::chaos::log::EndCause;
use crate::chaos::schedule::FaultKind;

/// Bounds of the backoff.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Destination of the next attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Goal {
    /// Any pod of the fleet.
    Any,
    /// This URL.
    Url(String),
}

/// The next attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Next {
    /// Where it connects next.
    pub(super) goal: Goal,
    /// Delay before the attempt.
    pub(super) after: Duration,
}

/// The next attempt after the end of a connection, with the URL of a redirect if there was one. `attempts` have failed
/// since the client was last connected.
pub(super) fn after_end(end: EndCause, url: Option<String>, attempts: u32, random: &mut fastrand::Rng) -> Next {
    if let (EndCause::Closed(1008 | 1012), Some(url)) = (end, url) {
        return Next { goal: Goal::Url(url), after: Duration::ZERO };
    }
    let after = match end {
        EndCause::Closed(1001) => Duration::from_millis(random.u64(1_000..=5_000)),
        EndCause::Closed(1012 | 1013 | 4408) | EndCause::Injected(_) => Duration::ZERO,
        EndCause::Closed(_) | EndCause::Aborted | EndCause::HeartbeatTimeout => backoff(attempts, random),
    };
    Next { goal: Goal::Any, after }
}

/// The next attempt after one that failed.
pub(super) fn after_failure(attempts: u32, random: &mut fastrand::Rng) -> Next {
    Next { goal: Goal::Any, after: backoff(attempts, random) }
}

/// Whether a client that follows the protocol never gets this close code.
pub(super) fn is_violation(code: u16, has_url: bool) -> bool {
    match code {
        1008 => !has_url,
        1000 | 1001 | 1012 | 1013 | 4408 => false,
        _ => true,
    }
}

/// Whether the fault leaves a half-open connection.
pub(super) fn is_half_open(kind: FaultKind) -> bool {
    kind == FaultKind::HalfOpen
}

/// Exponential backoff with jitter: between half and all of a time that doubles with each attempt.
fn backoff(attempts: u32, random: &mut fastrand::Rng) -> Duration {
    let whole = BACKOFF_MIN.saturating_mul(1 << attempts.min(10)).min(BACKOFF_MAX);
    whole.mul_f64(0.5 + random.f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_follows_a_redirect_and_otherwise_goes_to_any_pod() {
        let mut random = fastrand::Rng::with_seed(1);
        let url = || Some("ws://127.0.0.1:1/ws".to_owned());
        for code in [1008, 1012] {
            let next = after_end(EndCause::Closed(code), url(), 3, &mut random);
            assert_eq!(next, Next { goal: Goal::Url(url().unwrap()), after: Duration::ZERO });
        }
        for end in [
            EndCause::Closed(1012),
            EndCause::Closed(4408),
            EndCause::Aborted,
            EndCause::HeartbeatTimeout,
            EndCause::Injected(FaultKind::Drop),
        ] {
            assert_eq!(after_end(end, None, 0, &mut random).goal, Goal::Any);
        }
    }

    #[test]
    fn delays_are_those_of_the_protocol() {
        let mut random = fastrand::Rng::with_seed(2);
        for _ in 0..100 {
            let after = after_end(EndCause::Closed(1001), None, 0, &mut random).after;
            assert!((1_000..=5_000).contains(&after.as_millis()));
            assert!(after_failure(0, &mut random).after <= BACKOFF_MIN);
            let late = after_failure(40, &mut random).after;
            assert!(late >= BACKOFF_MAX / 2 && late <= BACKOFF_MAX);
        }
        assert_eq!(after_end(EndCause::Closed(1013), None, 5, &mut random).after, Duration::ZERO);
    }

    #[test]
    fn refusals_are_violations_and_redirects_are_not() {
        assert!(
            is_violation(1008, false)
                && is_violation(1002, false)
                && is_violation(1011, false)
                && is_violation(4401, false)
        );
        assert!(!is_violation(1008, true) && !is_violation(1001, false) && !is_violation(4408, false));
    }
}
