//! Whether the brokers answer, judged from probes. Time is an argument; [`super::watcher`] sends the probes.

use std::time::{Duration, Instant};

use crate::limits::{METADATA_TIMEOUT, PROBE_EVERY, PROBE_SILENCE_MAX, PROBE_TIMEOUT};

/// Why a probe got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeFailure {
    /// No broker could be connected to, or the connection broke.
    Unreachable,
    /// A broker took the request and did not answer in time: it may hang, or only be slow.
    Silent,
    /// A broker answered with an empty list of brokers. The client then drops all brokers that it knew, and may never
    /// find one again.
    NoBrokers,
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
    /// The last answer, while the brokers count as connected.
    kafka_up: Option<LastAnswer>,
}

#[derive(Debug)]
struct LastAnswer {
    at: Instant,
    /// Whether a later request timed out. librdkafka then closes the connection, so the next failure proves no more
    /// than the timeout did.
    silent_since: bool,
}

impl Reachability {
    /// A probe was answered.
    pub(super) fn handle_answer(&mut self, now: Instant) {
        self.kafka_up = Some(LastAnswer { at: now, silent_since: false });
    }

    /// A probe failed. One timeout proves nothing: a garbage collection of a broker must not make every pod of the fleet
    /// unready at the same moment.
    pub(super) fn handle_failure(&mut self, failure: ProbeFailure, now: Instant) {
        let Some(last) = &mut self.kafka_up else { return };
        last.silent_since |= failure == ProbeFailure::Silent;
        let patient = last.silent_since && now.saturating_duration_since(last.at) < PROBE_SILENCE_MAX;
        if !patient {
            self.kafka_up = None;
        }
    }

    /// Whether the brokers answer.
    pub(super) fn connected(&self) -> bool {
        self.kafka_up.is_some()
    }
}

/// When the metadata client is replaced: after some time without an answer, since a new client may get one.
#[derive(Debug)]
pub(super) struct ReplacementTimer {
    /// The longest time without an answer (`KAFKA_STALL_MS`).
    bound: Duration,
    /// Since when the client has had no answer.
    failing: Option<Instant>,
    /// Number of clients replaced since the last answer.
    replaced: u32,
}

impl ReplacementTimer {
    /// For a new client.
    pub(super) fn new(bound: Duration) -> Self {
        Self { bound, failing: None, replaced: 0 }
    }

    /// The client got an answer.
    pub(super) fn handle_answer(&mut self) {
        (self.failing, self.replaced) = (None, 0);
    }

    /// The client got none. Returns whether to replace it. Every fourth client gets three times as long, so that a
    /// cluster that is slow to accept connections is reached, too.
    pub(super) fn handle_failure(&mut self, failure: ProbeFailure, now: Instant) -> bool {
        let since = *self.failing.get_or_insert(now);
        let patience = if self.replaced % 4 == 3 { self.bound * 3 } else { self.bound };
        let is_due = failure == ProbeFailure::NoBrokers || now.saturating_duration_since(since) >= patience;
        if is_due {
            self.failing = Some(now);
            self.replaced += 1;
        }
        is_due
    }
}

/// The contract's times (PROTOCOL 5). After a failed request the next is sent at once. At worst a broker stops or hangs
/// during a query for end offsets, and only the next probe shows it.
const _: () = {
    assert!(PROBE_EVERY.as_millis() <= PROBE_TIMEOUT.as_millis());
    let question_and_probe = METADATA_TIMEOUT.as_millis() + PROBE_TIMEOUT.as_millis();
    assert!(question_and_probe < 5_000, "a stopped broker shows within 5 s");
    assert!(PROBE_SILENCE_MAX.as_millis() + question_and_probe < 15_000, "a broker that hangs shows within 15 s");
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_one_refusal_but_some_silence_to_be_disconnected_and_one_answer_to_be_back() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut brokers = Reachability::default();
        assert!(!brokers.connected(), "nothing is known at first");
        brokers.handle_failure(ProbeFailure::Silent, at(100));
        assert!(!brokers.connected());

        brokers.handle_answer(at(1_000));
        assert!(brokers.connected());
        brokers.handle_failure(ProbeFailure::Silent, at(4_000));
        assert!(brokers.connected(), "slow for 3 s: it may come");
        brokers.handle_answer(at(4_500));
        brokers.handle_failure(ProbeFailure::Silent, at(6_000));
        brokers.handle_failure(ProbeFailure::Unreachable, at(7_500));
        assert!(brokers.connected(), "the connection was given up, which is no refusal");
        brokers.handle_failure(ProbeFailure::Unreachable, at(10_500));
        assert!(!brokers.connected(), "silent for 6 s");

        brokers.handle_answer(at(20_000));
        assert!(brokers.connected());
        brokers.handle_failure(ProbeFailure::Unreachable, at(21_000));
        assert!(!brokers.connected());
    }

    #[test]
    fn a_client_without_an_answer_is_replaced_after_the_bound_and_one_that_heard_of_no_broker_at_once() {
        let start = Instant::now();
        let mut timer = ReplacementTimer::new(Duration::from_secs(3));
        let mut due = |failure, seconds: std::ops::Range<u64>| {
            let is_due = |second: &u64| timer.handle_failure(failure, start + Duration::from_secs(*second));
            seconds.filter(is_due).collect::<Vec<_>>()
        };
        assert_eq!(due(ProbeFailure::Unreachable, 0..22), [3, 6, 9, 18, 21], "the fourth has three times as long");
        assert_eq!(due(ProbeFailure::NoBrokers, 22..24), [22, 23]);
        timer.handle_answer();
        assert!(!timer.handle_failure(ProbeFailure::Silent, start + Duration::from_secs(60)));
    }
}
