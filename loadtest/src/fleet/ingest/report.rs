//! The report: a table of figures with their bounds, and the same as JSON.

use serde::{Deserialize, Serialize};

use super::{IngestRound, ReadResult, SourceResult};
use crate::fleet::bounds::{self, Bound, BoundRow};
use crate::fleet::machine_noise::{Discarded, Noise, Noisy};
use crate::fleet::report::cell;

/// Share of the machine that other processes may use before CPU figures are unreliable: they push the measured process
/// off its core, and its data out of the caches.
const OTHERS_MAX: f64 = 0.05;

/// The report of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IngestReport {
    /// The options.
    pub options: serde_json::Value,
    /// The table.
    pub rows: Vec<BoundRow>,
    /// Remarks about the figures.
    pub remarks: Vec<String>,
    /// The rounds.
    pub rounds: Vec<IngestRound>,
    /// Discarded measurements, because the machine was noisy.
    pub discarded: Vec<Discarded>,
}

type Figure = (&'static str, Option<Bound>, fn(&IngestRound) -> f64);

const FIGURES: &[Figure] = &[
    ("ingest core by payload, records per second of CPU", Some(Bound::AtLeast(500_000.0)), |round| {
        core(&round.payload)
    }),
    ("ingest core by key, records per second of CPU", Some(Bound::AtLeast(800_000.0)), |round| core(&round.key)),
    ("no subscriber, by payload, above the bare loop, ns", Some(Bound::AtMost(600.0)), |round| {
        beyond(round, &round.payload.filled)
    }),
    ("no subscriber, by key, above the bare loop, ns", Some(Bound::AtMost(250.0)), |round| {
        beyond(round, &round.key.filled)
    }),
    ("half another pod's, by payload, above the bare loop, ns", Some(Bound::AtMost(600.0)), |round| {
        beyond(round, &round.payload.live)
    }),
    ("half another pod's, by key, above the bare loop, ns", Some(Bound::AtMost(250.0)), |round| {
        beyond(round, &round.key.live)
    }),
    ("filling by payload, records per second", Some(Bound::AtLeast(300_000.0)), |round| round.payload.filled.rate()),
    ("filling by key, records per second", Some(Bound::AtLeast(300_000.0)), |round| round.key.filled.rate()),
    ("bare loop, records per second", None, |round| round.bare.rate()),
    ("bare loop, CPU per record, ns", None, |round| round.bare.cpu_ns()),
    ("pod by payload, CPU per record, ns", None, |round| round.payload.filled.cpu_ns()),
    ("  by payload, ingest's thread", None, |round| round.payload.filled.threads_ns(is_ingest)),
    ("  by payload, librdkafka's threads", None, |round| round.payload.filled.threads_ns(is_librdkafka)),
    ("  by payload, the shard's thread", None, |round| round.payload.filled.threads_ns(is_shard)),
    ("pod by key, CPU per record, ns", None, |round| round.key.filled.cpu_ns()),
    ("  by key, ingest's thread", None, |round| round.key.filled.threads_ns(is_ingest)),
    ("  by key, librdkafka's threads", None, |round| round.key.filled.threads_ns(is_librdkafka)),
    ("  by key, the shard's thread", None, |round| round.key.filled.threads_ns(is_shard)),
    ("live pod by payload, CPU per record, ns", None, |round| round.payload.live.cpu_ns()),
    ("live pod by key, CPU per record, ns", None, |round| round.key.live.cpu_ns()),
    ("live records owned by another pod, by payload, %", None, |round| round.payload.elsewhere * 100.0),
    ("live records owned by another pod, by key, %", None, |round| round.key.elsewhere * 100.0),
    ("startup of a pod, subtracted, ms of CPU", None, |round| round.payload.start.total_ns() as f64 / 1e6),
    ("startup of a bare loop, subtracted, ms of CPU", None, |round| round.bare_start.total_ns() as f64 / 1e6),
    ("used by other processes of the machine, %", None, |round| round.max(ReadResult::others) * 100.0),
    ("stolen by the host, %", None, |round| round.max(ReadResult::steal) * 100.0),
];

fn is_ingest(thread: &str) -> bool {
    thread == "ingest"
}

fn is_librdkafka(thread: &str) -> bool {
    thread.starts_with("rdk:")
}

fn is_shard(thread: &str) -> bool {
    thread.starts_with("shard-")
}

/// Records per second of CPU time of the ingest core's threads: its own and librdkafka's.
fn core(source_result: &SourceResult) -> f64 {
    1e9 / source_result.filled.threads_ns(|thread| is_ingest(thread) || is_librdkafka(thread))
}

fn beyond(round: &IngestRound, read: &ReadResult) -> f64 {
    read.cpu_ns() - round.bare.cpu_ns()
}

impl IngestReport {
    /// Summarizes rounds and discarded measurements.
    #[must_use]
    pub fn of(options: serde_json::Value, rounds: Vec<IngestRound>, discarded: Vec<Discarded>) -> Self {
        let rows =
            FIGURES.iter().filter_map(|(name, bound, of)| BoundRow::of(name, *bound, rounds.iter().map(of))).collect();
        let numbered = rounds.iter().enumerate();
        let mut remarks: Vec<String> = numbered
            .flat_map(|(number, round)| {
                round.faults().into_iter().map(move |fault| format!("round {}, {fault}", number + 1))
            })
            .collect();
        remarks.extend(
            discarded.iter().map(|one| format!("discarded measurement of {}: {}", one.what, one.why.join("; "))),
        );
        Self { options, rows, remarks, rounds, discarded }
    }

    /// The table with the remarks below.
    #[must_use]
    pub fn table(&self) -> String {
        bounds::table(&self.rows, &self.remarks)
    }
}

impl ReadResult {
    /// Records per second of wall time.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.records as f64 / self.seconds
    }

    /// Nanoseconds of CPU time per record, of the whole process.
    #[must_use]
    pub fn cpu_ns(&self) -> f64 {
        self.usage.total_ns() as f64 / self.records as f64
    }

    /// Nanoseconds of CPU time per record, of the threads with these names.
    #[must_use]
    pub fn threads_ns(&self, is_wanted: impl Fn(&str) -> bool) -> f64 {
        let wanted = self.usage.threads_ns.iter().filter(|(name, _)| is_wanted(name));
        wanted.map(|(_, ns)| *ns).sum::<u64>() as f64 / self.records as f64
    }

    /// Share of the machine that other processes used.
    #[must_use]
    pub fn others(&self) -> f64 {
        // A tick is ten milliseconds.
        let busy = (self.machine.busy - self.machine.steal) as f64 * 1e7;
        ((busy - self.run_ns as f64) / (self.machine.total.max(1) as f64 * 1e7)).max(0.0)
    }

    fn steal(&self) -> f64 {
        self.machine.share(self.machine.steal)
    }

    fn faults(&self) -> Vec<String> {
        let others = (self.others() > OTHERS_MAX)
            .then(|| format!("other processes used {:.0} % of the machine", self.others() * 100.0));
        // The pod's threads wait for each other on the same core, which is not noise.
        let noise = Noise { steal: self.steal(), server_waited: 0.0, clients_waited: 0.0 };
        noise.faults().into_iter().chain(others).collect()
    }

    /// The line printed for it.
    #[must_use]
    pub fn line(&self) -> String {
        let (rate, cpu) = (cell(Some(self.rate())), cell(Some(self.cpu_ns())));
        format!("{} records in {:.2} s, {rate} per second, {cpu} ns of CPU each", self.records, self.seconds)
    }
}

impl IngestRound {
    fn reads(&self) -> [(&'static str, &ReadResult); 5] {
        [
            ("bare loop", &self.bare),
            ("filling by payload", &self.payload.filled),
            ("live by payload", &self.payload.live),
            ("filling by key", &self.key.filled),
            ("live by key", &self.key.live),
        ]
    }

    fn max(&self, of: fn(&ReadResult) -> f64) -> f64 {
        self.reads().into_iter().map(|(_, read)| of(read)).fold(0.0, f64::max)
    }
}

impl Noisy for IngestRound {
    fn faults(&self) -> Vec<String> {
        let named = |(name, read): (&str, &ReadResult)| {
            read.faults().into_iter().map(|fault| format!("{name}: {fault}")).collect::<Vec<_>>()
        };
        self.reads().into_iter().flat_map(named).collect()
    }

    fn noise(&self) -> f64 {
        self.reads().into_iter().map(|(_, read)| read.others() + read.steal()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::usage::{MachineUsage, Usage};

    /// A million records with this CPU time each: a tenth in the shard, the rest in ingest and librdkafka by halves.
    fn read(ns: u64) -> ReadResult {
        let all = ns * 1_000_000;
        let threads = [("ingest", 45), ("rdk:broker1", 40), ("rdk:main", 5), ("shard-0", 10)];
        let threads_ns = threads.map(|(name, percent)| (name.to_owned(), all / 100 * percent)).into();
        let usage = Usage { user_ns: all, threads_ns, ..Usage::default() };
        let machine = MachineUsage { total: 400, busy: 200, steal: 0 };
        ReadResult { records: 1_000_000, seconds: 2.0, usage, machine, run_ns: 2_000_000_000 }
    }

    fn source_result(ns: u64) -> SourceResult {
        SourceResult { start: Usage::default(), filled: read(ns), live: read(ns + 50), elsewhere: 0.5 }
    }

    fn round(bare: u64, payload: u64, key: u64) -> IngestRound {
        IngestRound {
            bare_start: Usage::default(),
            bare: read(bare),
            payload: source_result(payload),
            key: source_result(key),
        }
    }

    #[test]
    fn the_median_of_each_figure_is_compared_with_its_bound() {
        let rounds = vec![round(300, 1_000, 500), round(300, 800, 510), round(300, 900, 700)];
        let report = IngestReport::of(serde_json::Value::Null, rounds, Vec::new());
        let row = |name: &str| report.rows.iter().find(|row| row.name.starts_with(name)).unwrap();
        let payload = row("no subscriber, by payload");
        assert_eq!((payload.median, payload.least, payload.most), (600.0, 500.0, 700.0));
        assert_eq!(payload.is_held(), Some(true), "the bound itself is allowed");
        let key = row("half another pod's, by key");
        assert_eq!((key.median, key.is_held()), (260.0, Some(false)));
        let core = row("ingest core by payload");
        assert!((core.median - 1e9 / 810.0).abs() < 1e-3, "the shard's time is not the ingest core's: {core:?}");
        assert_eq!(row("bare loop, CPU").is_held(), None);
        assert_eq!(row("filling by key").median, 500_000.0);
        let table = report.table();
        let line = table.lines().find(|line| line.starts_with("half another pod's, by key")).unwrap();
        assert!(line.split_ascii_whitespace().rev().take(4).eq(["NO", "250", "<=", "450"]), "{line}");
        assert_eq!(report.remarks, Vec::<String>::new());
    }

    #[test]
    fn other_processes_and_steal_are_noise() {
        let mut noisy = round(300, 800, 500);
        noisy.key.live.run_ns = 1_760_000_000;
        noisy.bare.machine.steal = 40;
        let faults = noisy.faults();
        assert_eq!(
            faults,
            [
                "bare loop: the host stole 10.0 % of the machine's time",
                "live by key: other processes used 6 % of the machine"
            ]
        );
        assert!(noisy.noise() > round(300, 800, 500).noise());
        let report = IngestReport::of(serde_json::Value::Null, vec![noisy], Vec::new());
        assert!(report.remarks[1].starts_with("round 1, live by key: other"), "{:?}", report.remarks);
    }
}
