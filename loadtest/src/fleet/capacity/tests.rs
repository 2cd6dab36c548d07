//! Steps, their limits and the result of a search, from constructed measurements.

use super::*;
use crate::fleet::report::tests::part;
use crate::fleet::usage::{MachineUsage, Usage};
use crate::fleet::wire::Counts;

/// Options parsed as on the command line.
fn options(arguments: &[&str]) -> Options {
    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        options: Options,
    }
    let name = std::iter::once("capacity");
    <Arguments as clap::Parser>::parse_from(name.chain(arguments.iter().copied())).options
}

/// A measurement whose busiest thread ran for this share of the ten seconds.
fn busy(share: f64) -> Measurement {
    let threads_ns = [("shard-0".to_owned(), (share * 1e10) as u64), ("control".to_owned(), 5)].into();
    Measurement { usage: Some(Usage { threads_ns, ..Usage::default() }), ..part(1_000) }
}

fn subject(pids: &[u32]) -> Subject {
    Subject { name: "gateway", targets: Vec::new(), pids: pids.to_vec(), token: String::new(), supports_churn: true }
}

/// The step of a measurement whose p99 is 99 ms.
fn step(arguments: &[&str], part: &Measurement) -> SearchStep {
    let options = options(arguments);
    SearchStep::of(&options.fleet, options.p99_ms, &subject(&[1]), part).unwrap()
}

#[test]
fn a_load_is_sustained_if_p99_is_within_the_bound_and_nothing_is_lost() {
    let held =
        step(&["--p99-ms=100", "--clients=1000", "--assessments=100", "--rate=70", "--market-rate=2"], &busy(0.9));
    assert!(held.is_held() && held.limit.is_none(), "{held:?}");
    assert_eq!(held.due_per_second, 70.0 * 10.0 + 2.0 * 1_000.0);
    assert!(
        held.line().starts_with("70 events and 2 ticks per second, 2,700 deliveries per second due, 100 read, p50 ")
    );
    assert!(held.line().ends_with(": sustained"), "{}", held.line());

    assert_eq!([0.5, 12.0, 99.25, 1_234.5].map(rate), ["0.50", "12", "99.25", "1,234"]);

    let late = step(&["--p99-ms=98"], &busy(0.9));
    assert_eq!((late.faults.len(), late.limit), (1, Some(Limit::Gateway)));
    assert!(
        late.line().ends_with("not sustained: p99 is 99.3 ms, limit 98 ms; the gateway is the limit"),
        "{}",
        late.line()
    );

    let mut counts = Counts { events: 1_199, resets: 2, ..Counts::default() };
    counts.closed = [(1013, 3), (1006, 1)].into();
    counts.failed = [("refused".to_owned(), 5)].into();
    let lost = step(&["--p99-ms=100"], &Measurement { counts, ..busy(0.9) });
    let expected = ["1 events are missing", "2 resets", "4 connections were closed", "5 connections failed"];
    assert_eq!(lost.faults, expected);

    let ticks_late = Measurement { latencies: None, tick_latencies: part(1).latencies, ..busy(0.9) };
    assert!(!step(&["--p99-ms=98"], &ticks_late).is_held(), "ticks have the same bound");
    let nothing = Measurement { latencies: None, ..busy(0.9) };
    assert!(SearchStep::of(&options(&[]).fleet, 50.0, &subject(&[1]), &nothing).is_err());
}

#[test]
fn a_failure_because_of_one_stall_is_doubted_and_one_because_of_a_queue_is_not() {
    let with = |p90_ms| {
        let latencies = part(1).latencies.map(|all| Percentiles { p90_ms, ..all });
        step(&["--p99-ms=98"], &Measurement { latencies, ..busy(0.9) })
    };
    let doubt = with(49.0).stall(98.0);
    assert_eq!(doubt.as_deref(), Some("p99 is 99.3 ms, but p90 is 49.0 ms: something stalled"));
    assert_eq!(with(49.1).stall(98.0), None);
    assert_eq!(with(1.0).stall(100.0), None, "the load is sustained");
    let lost = SearchStep { faults: vec!["p99".into(), "1 events are missing".into()], ..with(1.0) };
    assert_eq!(lost.stall(98.0), None);
}

#[test]
fn the_gateway_is_the_limit_only_if_nothing_else_is() {
    let lateness = part(1).latencies;
    let stolen = MachineUsage { total: 1_000, busy: 500, steal: 100 };
    let cases = [
        (busy(0.7), 50.0, 1, Limit::Gateway),
        (Measurement { machine: stolen, ..busy(0.7) }, 50.0, 1, Limit::Gateway),
        (busy(0.69), 50.0, 1, Limit::Elsewhere),
        (busy(1.3), 50.0, 2, Limit::Elsewhere),
        (busy(1.4), 50.0, 2, Limit::Gateway),
        (Measurement { machine: stolen, ..busy(0.5) }, 50.0, 1, Limit::Machine),
        (Measurement { client_busy: 0.81, ..busy(0.9) }, 50.0, 1, Limit::Clients),
        (Measurement { lateness, ..busy(0.9) }, 50.0, 1, Limit::Producer),
        (Measurement { lateness, ..busy(0.9) }, 500.0, 1, Limit::Gateway),
        (Measurement { usage: None, ..busy(0.9) }, 50.0, 0, Limit::Unknown),
    ];
    for (part, p99_ms, processes, expected) in cases {
        assert_eq!(Limit::of(&part, p99_ms, processes), expected, "{:?}, {processes} processes", part.usage);
    }
}

/// A search with a step for each of two measurements and a bound of 98 ms. The first load is sustained.
fn found(is_narrow: bool, second: &Measurement) -> (Capacity, Vec<String>) {
    let quick = Percentiles { samples: 9, p50_ms: 1.0, p90_ms: 1.5, p99_ms: 2.0, p999_ms: 3.0, max_ms: 4.0 };
    let low = Measurement { latencies: Some(quick), ..busy(0.5) };
    let asked = ["--p99-ms=98", "--clients=1000", "--headroom=0.2", "--rate=100", "--assessments=100"];
    let twice = asked.map(|argument| if argument == "--rate=100" { "--rate=200" } else { argument });
    let steps = vec![step(&asked, &low), step(&twice, second)];
    let found = SearchResult { steps, held: Some((1.0, low)), is_narrow, discarded: Vec::new() };
    found.capacity(&options(&asked))
}

#[test]
fn the_summary_has_the_highest_load_sustained_the_next_step_and_the_sizing() {
    let (capacity, remarks) = found(true, &busy(0.9));
    assert_eq!(capacity.held, Some(0));
    let starts = ["capacity: 100 events per second, 1,000 deliveries", "next step: 200 events per second", "sizing: "];
    assert_eq!(capacity.lines.len(), starts.len());
    for (line, start) in capacity.lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    assert_eq!(capacity.sizing.unwrap().pods, 125);
    assert_eq!(remarks, Vec::<String>::new());
}

#[test]
fn remarks_name_a_limit_outside_the_gateway_and_an_incomplete_search() {
    let (_, remarks) = found(true, &Measurement { client_busy: 0.9, ..busy(0.9) });
    assert!(remarks.len() == 1 && remarks[0].contains("other than the gateway"), "{remarks:?}");
    let (_, remarks) = found(false, &busy(0.9));
    assert!(remarks.len() == 1 && remarks[0].contains("--steps-max"), "{remarks:?}");
    let none = SearchResult { steps: Vec::new(), held: None, is_narrow: false, discarded: Vec::new() };
    let (capacity, remarks) = none.capacity(&options(&[]));
    assert_eq!(
        (capacity.lines, capacity.sizing, remarks),
        (vec!["capacity: no load was sustained".into()], None, vec![])
    );
}
