//! What reading costs, short: every record is read by all, each figure is there, and the JSON file says what the table
//! says.

use loadtest::fleet::ingest::report::IngestReport;
use loadtest::fleet::ingest::{self, Options};
use loadtest::fleet::rounds::Rounds;
use loadtest::process::TempDir;

const RECORDS: u64 = 30_000;

#[test]
fn all_records_are_read_by_the_bare_loop_and_by_each_pod_and_each_figure_is_told() {
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
    let ways = [("payload", &round.payload), ("key", &round.key)];
    for (name, way) in ways {
        for (what, read) in [("at the start", &way.filled), ("live", &way.live), ("bare", &round.bare)] {
            assert_eq!(read.records, RECORDS, "{name}, {what}");
            assert!(read.seconds > 0.0 && read.machine.total > 0, "{name}, {what}: {read:?}");
        }
        assert!(way.live.threads_ns(|thread| thread == "ingest") > 0.0, "{name}: {:?}", way.live);
        assert!(way.live.threads_ns(|thread| thread.starts_with("rdk:")) > 0.0, "{name}: {:?}", way.live);
        // A thousand assessments on two pods, by their hashes.
        assert!((0.4..0.6).contains(&way.elsewhere), "{name}: {}", way.elsewhere);
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
