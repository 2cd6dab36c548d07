//! Tables and ratios from constructed measurements.

use super::*;
use crate::fleet::measure::Moment;
use crate::fleet::producer::Produced;
use crate::fleet::profile::Samples;
use crate::fleet::statistics::Latencies;
use crate::fleet::usage::{MachineUsage, Usage, UsageInterval};
use crate::fleet::wire::Counts;

fn interval(seconds: f64, user_ns: u64) -> UsageInterval {
    UsageInterval { seconds, usage: Usage { user_ns, ..Usage::default() }, machine: MachineUsage::default() }
}

/// Ten seconds on a quiet machine, with this CPU time per delivery in nanoseconds.
pub(in crate::fleet) fn part(ns_per_delivery: u64) -> Measurement {
    let mut latencies = Latencies::default();
    (1..=100).for_each(|ms| latencies.record(ms * 1_000));
    let usage = Usage { user_ns: 1_000 * ns_per_delivery / 2, ..Usage::default() };
    let usage = Usage { system_ns: 1_000 * ns_per_delivery - usage.user_ns, involuntary: 20, ..usage };
    let moment =
        Moment { at_seconds: 1.0, deliveries_per_second: 100.0, latencies: None, cores: Some(0.5), memory: None };
    Measurement {
        connecting_seconds: 2.0,
        handshakes: latencies.percentiles(),
        at_rest: Some(interval(1.0, 1_000_000)),
        // A hundred handshakes, plus two seconds of idle usage.
        while_connecting: Some(interval(2.0, 100 * 50_000 + 2_000_000)),
        memory_per_connection: Some(1_024.0),
        kernel_memory_per_connection: Some(3_072.0),
        seconds: 10.0,
        deliveries: 1_000,
        usage: Some(usage),
        samples: Some(Samples { all: 1_000, user: 500, user_by_thread: [("shard-0".to_owned(), 250)].into() }),
        machine: MachineUsage { total: 1_000, busy: 500, steal: 0 },
        client_busy: 0.3,
        client_waiting: 0.0,
        latencies: latencies.percentiles(),
        tick_latencies: None,
        late_latencies: None,
        timeline: vec![moment],
        made: Produced { events: 120, event_deliveries: 1_200, ..Produced::default() },
        lateness: None,
        counts: Counts { events: 1_200, ..Counts::default() },
    }
}

fn report(rounds: Vec<FleetRound>) -> FleetReport {
    FleetReport::of(serde_json::Value::Null, rounds, Vec::new())
}

fn row<'a>(report: &'a FleetReport, name: &str) -> &'a TableRow {
    report.rows.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("{name}: {}", report.table()))
}

#[test]
fn a_figure_has_a_ratio_to_each_floor() {
    let round = FleetRound { gateway: Some(part(3_000)), send: Some(part(2_000)), kafka: Some(part(2_400)) };
    let report = report(vec![round]);
    let cpu = row(&report, "CPU per delivery, user+sys, ns");
    assert_eq!((cpu.gateway, cpu.send, cpu.kafka), (Some(3_000.0), Some(2_000.0), Some(2_400.0)));
    assert_eq!((cpu.to_send, cpu.to_kafka), (Some(1.5), Some(1.25)));
    let shards = row(&report, "  of it in shards' threads, ns");
    assert_eq!(shards.gateway, Some(750.0), "half of user CPU, which is half of the total");
    assert_eq!(row(&report, "CPU per delivery, user, ns").gateway, Some(1_500.0));
    assert_eq!(row(&report, "deliveries per second").gateway, Some(100.0));
    let handshake = row(&report, "CPU per handshake, user+sys, us");
    assert_eq!((handshake.gateway.map(f64::round), handshake.to_send), (Some(50.0), Some(1.0)), "without idle usage");
    let memory = row(&report, "own memory per connection, bytes");
    assert_eq!((memory.gateway, memory.to_send), (Some(1_024.0), None), "no ratio if it is meaningless");
    assert_eq!(row(&report, "kernel memory per connection, bytes").kafka, Some(3_072.0));
    assert!(
        report.rows.iter().all(|row| row.name != "tick latency p50, ms"),
        "figures that were not measured have no row"
    );
    assert_eq!(report.remarks, Vec::<String>::new(), "a quiet machine, and nothing is missing");
}

#[test]
fn rounds_have_the_median_of_their_ratios_and_not_the_ratio_of_medians() {
    let round = |gateway, send| FleetRound { gateway: Some(part(gateway)), send: Some(part(send)), kafka: None };
    // The machine was half as fast in the second round, for both.
    let report = report(vec![round(1_000, 1_000), round(2_400, 2_000), round(1_100, 1_000)]);
    let cpu = row(&report, "CPU per delivery, user+sys, ns");
    assert_eq!((cpu.gateway, cpu.send, cpu.to_send), (Some(1_100.0), Some(1_000.0), Some(1.1)));
    assert_eq!((cpu.kafka, cpu.to_kafka), (None, None));
}

#[test]
fn remarks_report_everything_that_distorts_the_figures() {
    let good = part(1_000);
    let remarks = |part: Measurement| {
        report(vec![FleetRound { gateway: Some(part), ..FleetRound::default() }]).remarks.join("\n")
    };
    let usage = Some(Usage { waited_ns: 2_000_000_000, ..good.usage.clone().unwrap() });
    let cases = [
        (Measurement { client_busy: 0.5, client_waiting: 0.4, ..good.clone() }, "the clients are the bottleneck"),
        (Measurement { client_waiting: 0.2, ..good.clone() }, "a client process waited for a core 20 %"),
        (
            Measurement { counts: Counts { events: 1_199, ..Counts::default() }, ..good.clone() },
            "1 events due did not arrive",
        ),
        (
            Measurement { counts: Counts { events: 1_201, ..Counts::default() }, ..good.clone() },
            "1 events arrived in excess",
        ),
        (Measurement { machine: MachineUsage { steal: 50, ..good.machine }, ..good.clone() }, "the host stole 5.0 %"),
        (Measurement { usage, ..good.clone() }, "waited for a core 20 %"),
        (Measurement { lateness: good.latencies, ..good.clone() }, "the producer was late (p99 99"),
        (Measurement { samples: None, ..good.clone() }, "no permission to sample"),
    ];
    for (part, expected) in cases {
        let text = remarks(part);
        assert!(text.contains(expected) && text.lines().count() == 1, "{expected}: {text}");
    }
    let mut counts = Counts { events: 1_200, resets: 2, ..Counts::default() };
    counts.closed.insert(1013, 3);
    counts.failed.insert("refused".into(), 4);
    let text = remarks(Measurement { counts, ..good });
    for expected in ["2 resets were sent", "3 connections were closed with 1013", "4 connections failed: refused"] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn discarded_measurements_are_listed_with_their_reasons() {
    let discarded = Discarded { what: "round 1".into(), why: vec!["a".into(), "b".into()] };
    let report = FleetReport::of(serde_json::Value::Null, vec![FleetRound::default()], vec![discarded]);
    assert_eq!(
        report.remarks,
        ["measurements discarded because the machine was noisy: 1", "discarded measurement of round 1: a; b"]
    );
    assert!(report.table().ends_with("NOTE: discarded measurement of round 1: a; b\n"), "{}", report.table());
}

#[test]
fn cells_have_three_significant_digits() {
    let cells = [None, Some(0.0), Some(7.0), Some(1.234), Some(123.45), Some(12_345.6)].map(cell);
    assert_eq!(cells, ["-", "0", "7", "1.23", "123.5", "12346"].map(str::to_owned));
}
