//! A broker hangs and goes on, on a busy machine: whatever state that leaves librdkafka in, records flow again soon.

use loadtest::hangs::{BACK_WITHIN, Options, run};

#[test]
fn a_pod_reads_again_each_time_that_a_hung_broker_goes_on() {
    // Of one time in five on a busy machine, librdkafka alone would never read again: `loadtest hangs` has many rounds.
    let outcome = run(&Options { rounds: 3, longest_s: 0.0, busy: 3, until_not_ready: true, seed: 1 });
    assert!(outcome.worst() <= BACK_WITHIN, "{outcome:?}");
}

#[test]
fn a_pod_reads_again_after_short_hangs_and_after_the_broker_was_killed() {
    let outcome = run(&Options { rounds: 6, longest_s: 4.0, busy: 3, until_not_ready: false, seed: 2 });
    assert!(outcome.worst() <= BACK_WITHIN, "{outcome:?}");
}
