//! The fleet, short: each delivery is counted once, also by those who drop their connections and come back, and the JSON
//! file says what the table says.

use loadtest::fleet::report::{Report, cell};
use loadtest::fleet::{self, Options};
use loadtest::process::TempDir;

/// Options as the command line makes them.
fn options(arguments: &[&str]) -> Options {
    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        options: Options,
    }
    let name = std::iter::once("fleet");
    <Arguments as clap::Parser>::parse_from(name.chain(arguments.iter().copied())).options
}

#[test]
fn each_delivery_is_counted_once_and_the_json_has_what_the_table_has() {
    let dir = TempDir::new("fleet");
    let json = dir.path().join("fleet.json");
    let mut asked = options(&[
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
    ]);
    asked.json = Some(json.clone());
    let report = fleet::run(&asked).unwrap();

    let round = &report.rounds[0];
    let parts = [("gateway", &round.gateway), ("send loop", &round.send), ("kafka loop", &round.kafka)];
    for (name, part) in parts {
        let part = part.as_ref().unwrap_or_else(|| panic!("{name} was measured"));
        assert_eq!(part.made.events, 400, "{name}: 2.5 s at 160 a second");
        // 400 events of 30 assessments in turn, in bursts of two; the first twenty have seven watchers, the rest six.
        assert_eq!(part.counts.events, part.made.event_deliveries, "{name}: {:?}", part.counts);
        assert!((400 * 6..400 * 7).contains(&part.made.event_deliveries));
        assert_eq!((part.counts.resets, part.counts.strange), (0, 0), "{name}: {:?}", part.counts);
        assert!(part.counts.ticks > 0, "{name}");
        assert!(part.usage.as_ref().is_some_and(|usage| usage.total_ns() > 0), "{name}");
        assert!(part.latencies.is_some_and(|latencies| latencies.samples > 0), "{name}");
    }
    let gateway = round.gateway.as_ref().unwrap();
    assert!(gateway.counts.dropped > 0 && gateway.counts.resumed > 0, "{:?}", gateway.counts);
    assert_eq!(round.send.as_ref().unwrap().counts.dropped, 0, "a bare loop catches nobody up");
    // What is sent is of one length, whoever sends it; a gateway's cursors grow a byte with their offsets.
    let mean = |part: &Option<fleet::measure::Part>| {
        let counts = &part.as_ref().unwrap().counts;
        counts.event_bytes.div_ceil(counts.events)
    };
    assert!(mean(&round.gateway).abs_diff(mean(&round.kafka)) <= 1);
    assert!(mean(&round.gateway).abs_diff(mean(&round.send)) <= 1);

    let read: Report = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
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
}
