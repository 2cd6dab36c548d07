//! Whether the brokers answer, judged from probes. Time is an argument; who probes is [`super::watcher`].

use std::time::Instant;

use crate::limits::{PROBE_EVERY, PROBE_SILENCE_MAX, PROBE_TIMEOUT};

/// Why a probe got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No broker could be connected to, or the connection broke.
    Unreachable,
    /// A broker took the question and did not answer in time: it may hang, or only be slow.
    Silent,
}

/// The verdict over the last probes.
///
/// ```text
///               answer
///        .---------------------.
///        v                     |
///   Connected --------> Disconnected (at first)
///              unreachable, or silent for PROBE_SILENCE_MAX
/// ```
#[derive(Debug, Default)]
pub(super) struct Reachability {
    /// While the brokers count as connected.
    connected: Option<LastAnswer>,
}

#[derive(Debug)]
struct LastAnswer {
    at: Instant,
    /// Whether a question after it was left open. librdkafka then gives up the connection, and what fails next says no
    /// more than that.
    silent_since: bool,
}

impl Reachability {
    /// A probe was answered.
    pub(super) fn answered(&mut self, now: Instant) {
        self.connected = Some(LastAnswer { at: now, silent_since: false });
    }

    /// A probe was not answered. One that got no answer in time alone proves nothing: a broker that collects its
    /// garbage must not make every pod of the fleet unready at the same moment.
    pub(super) fn failed(&mut self, failure: Failure, now: Instant) {
        let Some(last) = &mut self.connected else { return };
        last.silent_since |= failure == Failure::Silent;
        let patient = last.silent_since && now.saturating_duration_since(last.at) < PROBE_SILENCE_MAX;
        if !patient {
            self.connected = None;
        }
    }

    /// Whether the brokers answer.
    pub(super) fn connected(&self) -> bool {
        self.connected.is_some()
    }
}

/// The contract's times (PROTOCOL 5). After a failed question the next is asked at once; at worst a broker stops, or
/// hangs, while it is asked for ends, and shows it at the probe after that.
const _: () = {
    assert!(PROBE_EVERY.as_millis() <= PROBE_TIMEOUT.as_millis());
    let question_and_probe = 2 * PROBE_TIMEOUT.as_millis();
    assert!(question_and_probe < 5_000, "a stopped broker shows within 5 s");
    assert!(PROBE_SILENCE_MAX.as_millis() + question_and_probe < 15_000, "a broker that hangs shows within 15 s");
};

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_takes_one_refusal_but_some_silence_to_be_disconnected_and_one_answer_to_be_back() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut brokers = Reachability::default();
        assert!(!brokers.connected(), "nothing is known at first");
        brokers.failed(Failure::Silent, at(100));
        assert!(!brokers.connected());

        brokers.answered(at(1_000));
        assert!(brokers.connected());
        brokers.failed(Failure::Silent, at(4_000));
        assert!(brokers.connected(), "slow for 3 s: it may come");
        brokers.answered(at(4_500));
        brokers.failed(Failure::Silent, at(6_000));
        brokers.failed(Failure::Unreachable, at(7_500));
        assert!(brokers.connected(), "the connection was given up, which is no refusal");
        brokers.failed(Failure::Unreachable, at(10_500));
        assert!(!brokers.connected(), "silent for 6 s");

        brokers.answered(at(20_000));
        assert!(brokers.connected());
        brokers.failed(Failure::Unreachable, at(21_000));
        assert!(!brokers.connected());
    }
}
