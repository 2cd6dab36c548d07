//! An idle pod on a machine that others watch: it does not look like a busy disk, and its clients take little memory.
//! The only test of its program, since it reads counters of the whole machine.

use loadtest::fleet::idle;
use loadtest::process::{TempDir, allow_descriptors};

#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    options: idle::Options,
}

#[test]
fn an_idle_pod_adds_nothing_to_iowait_and_io_pressure_and_each_client_takes_600_bytes() {
    allow_descriptors(20_000);
    let dir = TempDir::new("idle");
    let json = dir.path().join("idle.json");
    // On the engine that a pod takes by itself: on newer kernels the other one shows what this test forbids.
    let arguments = "idle --set ENGINE=auto --clients=10000 --seconds=10 --warm-up=2 --heartbeat-ms=10000 --heartbeats=1 \
                     --repeats=0";
    let mut options = <Arguments as clap::Parser>::parse_from(arguments.split_ascii_whitespace()).options;
    options.fleet.rounds.json = Some(json);
    let report = idle::run(&options).unwrap();

    // CPU time is bounded in a release build.
    let of_any_build = |name: &str| name.contains("iowait") || name.contains("I/O pressure") || name.contains("memory");
    let rows: Vec<_> = report.rows.iter().filter(|row| row.bound.is_some() && of_any_build(&row.name)).collect();
    assert_eq!(rows.len(), 5, "{}", report.table());
    assert!(rows.iter().all(|row| row.is_held() == Some(true)), "{}", report.table());
    assert_eq!(report.rounds[0].lost, 0, "{}", report.table());
}
