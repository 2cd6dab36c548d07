//! Tables from constructed rounds.

use super::*;
use crate::fleet::usage::{MachineUsage, Usage};

/// Usage of a pod whose shard used this time and whose reader a millisecond per second.
fn interval(seconds: f64, shard_ns: u64, waited_ns: u64) -> UsageInterval {
    let reader_ns = (seconds * 1e6) as u64;
    let threads_ns = [("reader".to_owned(), reader_ns), ("shard".to_owned(), shard_ns)].into();
    let usage = Usage { user_ns: shard_ns + reader_ns, waited_ns, threads_ns, ..Usage::default() };
    UsageInterval { seconds, usage, machine: MachineUsage { total: 100, busy: 20, steal: 0 } }
}

fn round(alone_ns: u64, held_ns: u64) -> IdleRound {
    IdleRound {
        without_pod: IoWait { iowait: 1.0, pressure: Some(2.0) },
        alone_io: IoWait { iowait: 1.5, pressure: Some(2.0) },
        held_io: IoWait { iowait: 1.0, pressure: Some(3.0) },
        alone: interval(10.0, alone_ns, 0),
        held: interval(20.0, held_ns, 0),
        clients: 1_000,
        memory: PerConnection { user: 512.0, kernel: 3_000.0 },
        heartbeats: 2_000,
        lost: 0,
    }
}

fn report(rounds: Vec<IdleRound>) -> IdleReport {
    IdleReport::of(serde_json::Value::Null, rounds, Vec::new())
}

fn values(report: &IdleReport, name: &str) -> Vec<f64> {
    report.rows.iter().filter(|row| row.name == name).map(|row| (row.median * 1e6).round() / 1e6).collect()
}

#[test]
fn the_time_of_connections_excludes_that_of_the_pod_alone() {
    // The shard uses 3 ms per second alone, and 3.8 ms with a thousand clients.
    let report = report(vec![round(30_000_000, 76_000_000)]);
    assert_eq!(values(&report, "pod alone, % of a core"), [0.4]);
    assert_eq!(values(&report, "CPU per connection, us per second"), [0.8]);
    assert_eq!(values(&report, "  shard"), [0.3, 0.8], "alone, and per connection");
    assert_eq!(values(&report, "  reader"), [0.1, 0.0]);
    assert_eq!(values(&report, "heartbeats per connection"), [2.0]);
    assert!(report.is_held() && report.remarks.is_empty(), "{}", report.table());
    assert_eq!(report.table().matches("  yes").count(), 8, "{}", report.table());
}

#[test]
fn exceeded_bounds_and_noise_are_reported() {
    let over = |round: IdleRound, name: &str, cells: [&str; 6]| {
        let report = report(vec![round]);
        let table = report.table();
        let line = table.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert!(!report.is_held() && line.split_ascii_whitespace().eq(cells), "{table}");
    };
    over(round(50_000_000, 100_000_000), "pod alone, % of a core", ["0.60", "0.60", "0.60", "<=", "0.50", "NO"]);
    over(
        round(30_000_000, 90_000_000),
        "pod with its clients, % of a core",
        ["0.55", "0.55", "0.55", "<=", "0.50", "NO"],
    );
    over(round(30_000_000, 90_000_000), "CPU per connection, us per second", ["1.50", "1.50", "1.50", "<=", "1", "NO"]);
    let memory = PerConnection { user: 700.0, kernel: 0.0 };
    let memory = IdleRound { memory, ..round(0, 0) };
    over(memory, "own memory per connection, bytes", ["700", "700", "700", "<=", "600", "NO"]);

    let waits = IoWait { iowait: 98.0, pressure: Some(2.0) };
    let waits = IdleRound { alone_io: waits, ..round(0, 0) };
    over(waits, "alone: iowait above that without the pod, %", ["97", "97", "97", "<=", "2", "NO"]);

    let noisy = IdleRound { alone: interval(10.0, 0, 1_000_000_000), lost: 3, ..round(0, 0) };
    let remarks = report(vec![round(0, 0), noisy]).remarks;
    assert_eq!(remarks.len(), 2, "{remarks:?}");
    assert!(remarks[0].starts_with("round 2, without a client: its threads waited for a core 10 %"), "{remarks:?}");
    assert_eq!(remarks[1], "round 2, 3 connections were closed");
}

#[test]
fn figures_are_the_median_of_the_rounds() {
    let report =
        report(vec![round(30_000_000, 70_000_000), round(10_000_000, 400_000_000), round(20_000_000, 60_000_000)]);
    assert_eq!(values(&report, "pod alone, % of a core"), [0.3]);
    assert_eq!(values(&report, "CPU per connection, us per second"), [1.0]);
}
