//! Short fleet runs: each delivery is counted once, also with reconnecting clients, and the JSON file agrees with the
//! table. Short searches for the capacity, with bounds that every machine meets, or none.

use loadtest::fleet::bounds::Bound;
use loadtest::fleet::report::{FleetReport, cell};
use loadtest::fleet::{self, Options, capacity, idle};
use loadtest::pods::World;
use loadtest::process::TempDir;
use loadtest::token;

/// Options parsed as on the command line.
fn options<O: clap::Args>(arguments: &[&str]) -> O {
    #[derive(clap::Parser)]
    struct Arguments<O: clap::Args> {
        #[command(flatten)]
        options: O,
    }
    let name = std::iter::once("fleet");
    <Arguments<O> as clap::Parser>::parse_from(name.chain(arguments.iter().copied())).options
}

#[test]
fn each_delivery_is_counted_once_and_the_json_has_what_the_table_has() {
    let dir = TempDir::new("fleet");
    let json = dir.path().join("fleet.json");
    let mut requested: Options = options(&[
        "--clients=200",
        "--assessments=30",
        "--rate=160",
        "--burst=2",
        "--market-rate=5",
        "--seconds=2",
        "--warm-up=0.5",
        "--reconnects-per-second=10",
        "--processes=2",
        "--sample=1",
        "--with-floor",
        "--repeats=0",
    ]);
    requested.rounds.json = Some(json.clone());
    let report = fleet::run(&requested).unwrap();

    let round = &report.rounds[0];
    let parts = [("gateway", &round.gateway), ("send loop", &round.send), ("kafka loop", &round.kafka)];
    for (name, part) in parts {
        let part = part.as_ref().unwrap_or_else(|| panic!("{name} was measured"));
        assert_eq!(part.made.events, 400, "{name}: 2.5 s at 160 per second");
        // 400 events of 30 assessments in turn, in bursts of two; the first twenty have seven subscribers, the rest
        // six.
        assert_eq!(part.counts.events, part.made.event_deliveries, "{name}: {:?}", part.counts);
        assert!((400 * 6..400 * 7).contains(&part.made.event_deliveries));
        assert_eq!((part.counts.resets, part.counts.strange), (0, 0), "{name}: {:?}", part.counts);
        assert!(part.counts.ticks > 0, "{name}");
        assert!(part.usage.as_ref().is_some_and(|usage| usage.total_ns() > 0), "{name}");
        assert!(part.latencies.is_some_and(|latencies| latencies.samples > 0), "{name}");
        let connecting = part.while_connecting.as_ref().unwrap_or_else(|| panic!("{name} is on this machine"));
        assert!(connecting.usage.total_ns() > 0 && part.at_rest.is_some() && part.handshake_ns().is_some(), "{name}");
    }
    let handshake = report.rows.iter().find(|row| row.name == "CPU per handshake, user+sys, us").unwrap();
    assert!(handshake.to_send.is_some() && handshake.to_kafka.is_some(), "{handshake:?}");
    let gateway = round.gateway.as_ref().unwrap();
    assert!(gateway.counts.dropped > 0 && gateway.counts.resumed > 0, "{:?}", gateway.counts);
    assert_eq!(round.send.as_ref().unwrap().counts.dropped, 0, "a bare loop does not support reconnects");
    // All servers send frames of the same length, except that a gateway's cursors grow by a byte with their offsets.
    let mean = |part: &Option<fleet::measure::Measurement>| {
        let counts = &part.as_ref().unwrap().counts;
        counts.event_bytes.div_ceil(counts.events)
    };
    assert!(mean(&round.gateway).abs_diff(mean(&round.kafka)) <= 1);
    assert!(mean(&round.gateway).abs_diff(mean(&round.send)) <= 1);

    let read: FleetReport = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(read.rounds.len(), 1);
    let table = report.table();
    let lines: Vec<&str> = table.lines().skip(1).filter(|line| !line.starts_with("NOTE")).collect();
    assert_eq!(lines.len(), read.rows.len());
    for (line, row) in lines.into_iter().zip(&read.rows) {
        let rest = line.strip_prefix(&row.name).unwrap_or_else(|| panic!("{line}: not {}", row.name));
        let cells: Vec<&str> = rest.split_ascii_whitespace().collect();
        let ratios = [row.to_send, row.to_kafka].into_iter().flatten().map(|ratio| format!("{ratio:.2}"));
        let expected: Vec<String> = [row.gateway, row.send, row.kafka].map(cell).into_iter().chain(ratios).collect();
        assert_eq!(cells, expected, "{line}");
    }
    assert_eq!(read.remarks, report.remarks);
    let page = std::fs::read_to_string(dir.path().join("fleet.html")).unwrap();
    for plot in ["Latency over time (gateway)", "CPU per delivery", "Memory of an idle connection"] {
        assert!(page.contains(&format!("<figcaption>{plot}</figcaption>")), "{plot}: {page}");
    }
}

#[test]
fn a_bare_loop_has_as_many_processes_as_there_are_pods_and_together_they_send_everything() {
    let dir = TempDir::new("loops");
    let mut requested: Options = options(&[
        "--pods=3",
        "--clients=100",
        "--assessments=30",
        "--rate=60",
        "--seconds=1",
        "--warm-up=0.5",
        "--sample=1",
        "--repeats=0",
    ]);
    requested.rounds.json = Some(dir.path().join("loops.json"));
    let report = fleet::run_floor(&requested).unwrap();
    let round = &report.rounds[0];
    assert!(round.gateway.is_none());
    for part in [&round.send, &round.kafka] {
        let part = part.as_ref().expect("both loops were measured");
        assert_eq!((part.made.events, part.counts.open), (90, 100));
        assert_eq!(part.counts.events, part.made.event_deliveries, "{:?}", part.counts);
    }
}

#[test]
fn the_capacity_is_searched_with_one_gateway_and_the_same_clients() {
    let dir = TempDir::new("capacity");
    let json = dir.path().join("capacity.json");
    let mut requested: capacity::Options = options(&[
        "--clients=100",
        "--assessments=20",
        "--rate=40",
        "--seconds=1",
        "--warm-up=0.25",
        "--sample=1",
        "--repeats=0",
        "--steps-max=3",
        // Longer than any machine needs, so that every load is sustained.
        "--p99-ms=30000",
        "--with-floor",
        "--fleet-clients=1000",
        "--headroom=0",
    ]);
    requested.fleet.rounds.json = Some(json.clone());
    let report = capacity::run(&requested).unwrap();

    let found = report.capacity.as_ref().unwrap();
    let rates: Vec<f64> = found.steps.iter().map(|step| step.rate).collect();
    assert_eq!((rates, found.held), (vec![40.0, 80.0, 160.0], Some(2)), "{:?}", found.lines);
    let due: Vec<f64> = found.steps.iter().map(|step| step.due_per_second).collect();
    assert_eq!(due, [200.0, 400.0, 800.0], "each event has five subscribers");
    // The report has all data of the last step, and nothing else.
    let gateway = report.rounds[0].gateway.as_ref().unwrap();
    assert_eq!((gateway.made.events, gateway.made.event_deliveries), (200, 1_000), "1.25 s at 160 per second");
    assert_eq!(gateway.counts.events, 1_000);
    assert_eq!(
        (gateway.counts.open, gateway.counts.connected),
        (100, 0),
        "they stayed connected from the first step on"
    );
    assert!(report.rounds[0].send.is_some() && report.rounds[0].kafka.is_some());

    let sizing = found.sizing.as_ref().unwrap();
    assert_eq!((sizing.pods, sizing.clients_per_pod), (10, 100), "as many as were measured, without headroom");
    assert!(sizing.deliveries_per_core.is_some_and(|rate| rate > 0.0), "{sizing:?}");
    assert!(sizing.user_bytes.is_some() && sizing.kernel_bytes.is_some(), "{sizing:?}");
    assert_eq!(found.lines.last(), Some(&sizing.line()));
    assert!(report.table().ends_with(&format!("{}\n", sizing.line())));
    assert!(report.remarks.iter().any(|remark| remark.contains("--steps-max")), "{:?}", report.remarks);

    let read: FleetReport = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(read.capacity.as_ref().unwrap().lines, found.lines);
    let page = std::fs::read_to_string(dir.path().join("capacity.html")).unwrap();
    assert!(page.contains("<figcaption>Latency over load (gateway)</figcaption>"), "{page}");
}

#[test]
fn a_running_gateway_is_measured_and_an_impossible_bound_has_no_capacity() {
    let (world, dir) = (World::start(), TempDir::new("capacity"));
    let pod = world.pod("pod-0").start();
    let mut requested: capacity::Options = options(&[
        &format!("--url={}", pod.url()),
        &format!("--secret={}", token::SECRET),
        &format!("--brokers={}", world.kafka.bootstrap()),
        &format!("--pid={}", pod.pid()),
        "--clients=20",
        "--assessments=20",
        "--rate=100",
        "--seconds=1",
        "--warm-up=0",
        "--sample=1",
        "--repeats=0",
        "--steps-max=2",
        // A nanosecond.
        "--p99-ms=0.000001",
    ]);
    requested.fleet.rounds.json = Some(dir.path().join("capacity.json"));
    let report = capacity::run(&requested).unwrap();
    let found = report.capacity.as_ref().unwrap();
    let rates: Vec<f64> = found.steps.iter().map(|step| step.rate).collect();
    assert_eq!(rates, [100.0, 50.0], "the next is lower");
    assert!(found.steps.iter().all(|step| !step.is_held() && step.limit.is_some()), "{found:?}");
    assert_eq!((found.held, &found.sizing, report.rounds.len()), (None, &None, 0));
    assert_eq!(found.lines[0], "capacity: no load was sustained");
}

#[test]
fn an_idle_pod_is_measured_alone_and_then_with_idle_clients() {
    let dir = TempDir::new("idle");
    let json = dir.path().join("idle.json");
    let mut requested: idle::Options = options(&[
        "--clients=100",
        "--seconds=1",
        "--warm-up=0",
        "--heartbeat-ms=500",
        "--heartbeats=4",
        "--rounds=2",
        "--repeats=0",
    ]);
    requested.fleet.rounds.json = Some(json.clone());
    let report = idle::run(&requested).unwrap();

    assert_eq!(report.rounds.len(), 2);
    for round in &report.rounds {
        assert_eq!((round.clients, round.lost), (100, 0));
        // Each has four in this time, and the measurement may end slightly late. A stalled machine may delay some.
        assert!((200..=600).contains(&round.heartbeats), "{round:?}");
        for interval in [&round.alone, &round.held] {
            assert!(interval.usage.total_ns() > 0 && interval.usage.threads_ns.len() > 2, "{interval:?}");
        }
    }
    let names: Vec<&str> = report.rows.iter().map(|row| &*row.name).collect();
    let bounds: Vec<Bound> = report.rows.iter().filter_map(|row| row.bound).collect();
    assert_eq!(bounds, [0.5, 0.5, 600.0, 1.0, 2.0, 2.0, 2.0, 2.0].map(Bound::AtMost), "{names:?}");
    let shards = names.iter().filter(|name| name.starts_with("  shard")).count();
    assert!(shards >= 2, "each shard alone, and with clients: {names:?}");
    let table = report.table();
    assert!(names.iter().all(|name| table.contains(name)), "{table}");

    let read: idle::IdleReport = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((read.rows.len(), read.rounds.len()), (report.rows.len(), 2));
    let error = idle::run(&options(&["--rate=1"])).unwrap_err();
    assert_eq!(error.to_string(), "an idle pod has no load, and no floor");
}
