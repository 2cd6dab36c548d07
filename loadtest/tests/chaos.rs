//! The chaos run, short: every kind of fault, and nothing lost, doubled, out of order, or reset for no reason.

use std::time::Duration;

use loadtest::chaos::{self, Faults, Options};
use loadtest::storm;

#[test]
fn two_minutes_of_every_kind_of_fault_lose_nothing_and_double_nothing() {
    let faults = "all".parse::<Faults>().expect("all is a word");
    // How long recoveries take is a measure for a machine that does nothing else: a test runs beside others.
    let options =
        Options { minutes: 2.0, seed: 1, clients: 300, rate: 300, faults, keep: false, judge: None, lenient: true };
    let outcome = chaos::run(&options).expect("the run can be made");
    assert!(outcome.is_good(), "{:?}: see the table above", outcome.findings);
}

#[test]
fn a_storm_of_clients_that_come_back_are_sent_just_what_they_lack() {
    // The numbers of a small machine's debug build; each client's count is asserted on the way.
    let options = storm::Options { clients: 2_000, assessments: 200, lacking: 20, live: 20 };
    let outcome = storm::run(&options);
    // A storm that starved the live ones would show as its own length, in a debug build on a busy machine too.
    assert!(outcome.p99_during < outcome.took.max(Duration::from_secs(1)), "{outcome:?}");
}
