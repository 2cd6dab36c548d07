//! A short chaos run: every kind of fault, and nothing lost, duplicated, out of order, or reset without a cause.

use std::time::Duration;

use loadtest::chaos::{self, Faults, Options};
use loadtest::storm;

#[test]
fn two_minutes_of_every_kind_of_fault_lose_and_duplicate_no_event() {
    let faults = "all".parse::<Faults>().expect("all is valid");
    // Recovery times are not checked, because other tests run beside this one.
    let options = Options {
        minutes: 2.0,
        seed: 1,
        clients: 300,
        rate: 300,
        faults,
        keep: false,
        judge: None,
        lenient: true,
        lease_ms: 3_000,
        without_looks: false,
    };
    let outcome = chaos::run(&options).expect("the run succeeds");
    assert!(outcome.is_good(), "{:?}: see the table above", outcome.findings);
}

#[test]
fn clients_of_a_reconnect_storm_are_sent_exactly_what_they_missed() {
    // Numbers for a debug build on a small machine. The run asserts each client's count.
    let options = storm::Options { clients: 2_000, assessments: 200, lacking: 20, live: 20 };
    let outcome = storm::run(&options);
    // If the storm starved live clients, their latency would be its duration. On an overloaded machine they are as slow
    // before it.
    let limit = outcome.took.max(outcome.p99_before).max(Duration::from_secs(1));
    assert!(outcome.p99_during < limit, "{outcome:?}");
}
