//! Runs of the simulation: thousands of seeds, the seeds that failed once, and tests of the simulation itself.

mod cuts;
mod truncation;

use std::time::Instant;

use super::checker::{Violation, ViolationKind};
use super::outcomes::Outcomes;
use super::plan::WorldPlan;
use super::shrink;
use super::world::RunSummary;
use crate::stream::fault_injection::{self, InjectedFault};

/// Number of seeds, unless `SIMULATION_SEEDS` is set.
const SEEDS: u64 = 2_000;

fn seeds() -> std::ops::Range<u64> {
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let from = setting("SIMULATION_FROM").unwrap_or(0);
    from..from + setting("SIMULATION_SEEDS").unwrap_or(SEEDS)
}

/// Runs a seed's world; fails with the report of the shrunk plan.
fn run(seed: u64) -> RunSummary {
    let start = Instant::now();
    let plan = WorldPlan::of_seed(seed);
    shrink::run(&plan, start).unwrap_or_else(|fault| panic!("\n{}", shrink::report(&plan, &fault, start)))
}

#[test]
fn no_event_is_lost_or_doubled_in_thousands_of_worlds() {
    let (began, mut outcomes, mut elapsed_ms) = (Instant::now(), Outcomes::default(), Vec::new());
    for seed in seeds() {
        let sum = run(seed);
        outcomes.add(&sum.outcomes);
        elapsed_ms.push(sum.elapsed_ms);
    }
    elapsed_ms.sort_unstable();
    let (median, most) = (elapsed_ms[elapsed_ms.len() / 2], elapsed_ms[elapsed_ms.len() - 1]);
    println!(
        "{} worlds in {:?}; served within {median} ms (median), {most} ms at most",
        elapsed_ms.len(),
        began.elapsed()
    );
    for (outcome, count) in outcomes.all() {
        println!("{count:>9} {outcome:?}");
        assert!(count > 0 || elapsed_ms.len() < 1_000, "no world has this outcome: {outcome:?}");
    }
}

/// Seeds whose worlds failed once. They stay the same worlds as long as plans are derived from seeds in the same way.
#[test]
fn seeds_that_failed_once() {
    let seeds = [
        // Covered events came again behind the last event that the client lacked.
        3,     // A partition that a pod saw late had lost its first records without a reset.
        154,   // A client that had all of a partition that a pod saw late was reset.
        210,   // The redirect's cursor was behind a reset that was never sent.
        2_555, // A topic that was missing in the cursor, and had grown, caused a reset.
        4_819, // Events of a recreated topic came again, behind the covered ones.
        4_994, // A redirect returned a damaged cursor, and the checker took it for a good one.
        6_844,
    ];
    for seed in seeds {
        run(seed);
    }
}

// ---- tests of the simulation --------------------------------------------------------------------------------------

const FAULTS: [InjectedFault; 4] = [
    InjectedFault::CursorFromHead,
    InjectedFault::ResumeAsSuffix,
    InjectedFault::EntryCursorWhileCatchingUp,
    InjectedFault::PingFromHead,
];

/// Runs worlds with an injected fault until one fails; returns its seed.
fn found_within(injected: InjectedFault) -> Option<(u64, Violation)> {
    fault_injection::tests::with(injected, || {
        (0..SEEDS).find_map(|seed| Some((seed, shrink::run(&WorldPlan::of_seed(seed), Instant::now()).err()?)))
    })
}

#[test]
fn each_injected_fault_is_found() {
    for injected in FAULTS {
        let (seed, fault) = found_within(injected).unwrap_or_else(|| panic!("{injected:?}: not in {SEEDS} worlds"));
        println!("{injected:?}: seed {seed}, {fault:?}");
        assert!(matches!(fault.kind, ViolationKind::Gap | ViolationKind::Double), "{fault:?}");
    }
}
