//! What a client does when a connection ends or cannot be opened (PROTOCOL 4). Plain values: no socket, no clock.

use std::time::Duration;

use crate::chaos::log::EndCause;
use crate::chaos::schedule::FaultKind;

/// The first step of the back-off, and its last.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Where a client goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Goal {
    /// To any pod of the fleet.
    Any,
    /// To this URL.
    Url(String),
}

/// What a client does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Next {
    /// Where it goes.
    pub(super) goal: Goal,
    /// When.
    pub(super) after: Duration,
}

/// What it does after the end of a connection, or of an attempt, on which it was sent to `url`, or not. `attempts` were
/// in vain since it was last connected.
pub(super) fn after_end(end: EndCause, url: Option<String>, attempts: u32, random: &mut fastrand::Rng) -> Next {
    if let (EndCause::Closed(1008 | 1012), Some(url)) = (end, url) {
        return Next { goal: Goal::Url(url), after: Duration::ZERO };
    }
    let after = match end {
        EndCause::Closed(1001) => Duration::from_millis(random.u64(1_000..=5_000)),
        EndCause::Closed(1012 | 1013 | 4408) | EndCause::Own(_) => Duration::ZERO,
        EndCause::Closed(_) | EndCause::Cut | EndCause::Silent => backoff(attempts, random),
    };
    Next { goal: Goal::Any, after }
}

/// What it does where no connection came about.
pub(super) fn after_failure(attempts: u32, random: &mut fastrand::Rng) -> Next {
    Next { goal: Goal::Any, after: backoff(attempts, random) }
}

/// Whether a close is one that a client of good manners never gets.
pub(super) fn is_wrong(code: u16, has_url: bool) -> bool {
    match code {
        1008 => !has_url,
        1000 | 1001 | 1012 | 1013 | 4408 => false,
        _ => true,
    }
}

/// Whether the client's own fault leaves the pod to find out by itself.
pub(super) fn is_half_open(kind: FaultKind) -> bool {
    kind == FaultKind::HalfOpen
}

/// Between half and all of a time that doubles with each attempt.
fn backoff(attempts: u32, random: &mut fastrand::Rng) -> Duration {
    let whole = BACKOFF_MIN.saturating_mul(1 << attempts.min(10)).min(BACKOFF_MAX);
    whole.mul_f64(0.5 + random.f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_goes_where_it_is_sent_and_else_to_any_pod() {
        let mut random = fastrand::Rng::with_seed(1);
        let url = || Some("ws://127.0.0.1:1/ws".to_owned());
        for code in [1008, 1012] {
            let next = after_end(EndCause::Closed(code), url(), 3, &mut random);
            assert_eq!(next, Next { goal: Goal::Url(url().unwrap()), after: Duration::ZERO });
        }
        for end in [
            EndCause::Closed(1012),
            EndCause::Closed(4408),
            EndCause::Cut,
            EndCause::Silent,
            EndCause::Own(FaultKind::Drop),
        ] {
            assert_eq!(after_end(end, None, 0, &mut random).goal, Goal::Any);
        }
    }

    #[test]
    fn a_client_waits_as_the_contract_says() {
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
    fn refusals_are_wrong_and_redirects_are_not() {
        assert!(is_wrong(1008, false) && is_wrong(1002, false) && is_wrong(1011, false) && is_wrong(4401, false));
        assert!(!is_wrong(1008, true) && !is_wrong(1001, false) && !is_wrong(4408, false));
    }
}
