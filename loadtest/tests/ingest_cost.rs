//! A short measurement of ingest: every record is read, every figure exists, and the JSON file agrees with the table.

use loadtest::fleet::ingest::report::IngestReport;
use loadtest::fleet::ingest::{self, Options};
use loadtest::fleet::rounds::Rounds;
use loadtest::process::TempDir;

const RECORDS: u64 = 30_000;

#[test]
fn the_bare_loop_and_each_pod_read_all_records_and_every_figure_is_reported() {
    let dir = TempDir::new("reading");
    let json = dir.path().join("ingest.json");
    let options = Options {
        records: u32::try_from(RECORDS).unwrap(),
        size: 300,
        assessments: 1_000,
        core: None,
        settings: vec!["HISTORY_BYTES=8MiB".to_owned()],
        rounds: Rounds { rounds: 1, repeats: 0, json: Some(json.clone()) },
    };
    let report = ingest::run(&options).unwrap();

    let [round] = &report.rounds[..] else { panic!("one round: {:?}", report.rounds) };
    let results = [("payload", &round.payload), ("key", &round.key)];
    for (name, result) in results {
        for (what, read) in [("at the start", &result.filled), ("live", &result.live), ("bare", &round.bare)] {
            assert_eq!(read.records, RECORDS, "{name}, {what}");
            assert!(read.seconds > 0.0 && read.machine.total > 0, "{name}, {what}: {read:?}");
        }
        assert!(result.live.threads_ns(|thread| thread == "ingest") > 0.0, "{name}: {:?}", result.live);
        assert!(result.live.threads_ns(|thread| thread.starts_with("rdk:")) > 0.0, "{name}: {:?}", result.live);
        // A thousand assessments on two pods, by their hash.
        assert!((0.4..0.6).contains(&result.elsewhere), "{name}: {}", result.elsewhere);
    }
    let bounds = report.rows.iter().filter(|row| row.bound.is_some()).count();
    assert_eq!(bounds, 8, "{:?}", report.rows);

    let read: IngestReport = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let table = report.table();
    assert_eq!(read.table(), table);
    for row in &read.rows {
        assert!(table.lines().any(|line| line.starts_with(&row.name)), "{}: {table}", row.name);
    }
}
