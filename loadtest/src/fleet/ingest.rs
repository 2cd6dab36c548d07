//! The cost of reading for a pod without clients: the CPU time per record compared with a bare loop, which reads the
//! same records with librdkafka on the same core and discards them; and the speed at which the history is filled at
//! startup.
//!
//! A round, for each source of a record's assessment (payload or key):
//! 1. A pod starts with empty topics, beside a second pod on the other cores. This measures the startup itself.
//! 2. All records are written in one transaction and become visible at once when it commits. The pod reads them as live
//!    records. By their hash, the second pod owns about half of them. It is paused meanwhile, with a long lease.
//! 3. Another pod starts and fills its history from them. It gets its slot only when the history is complete, so it
//!    counts all of these records as another pod's.
//!
//! Ingest treats records of another pod like its own, except for the lookup of the owner, which it counts. Only the
//! shard knows whether a record has a subscriber, and it does not touch a record without one again. So 3. is the cost
//! of an event without a subscriber, and 2. is the same with the lookup. Both include the shard's work: to take over
//! the batch, store it in the history and evict an older one.
//!
//! The bare loop reads the same topics with librdkafka at its fastest. The cost of its process with empty topics is
//! subtracted as well.

pub mod report;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::pairs;
use super::payload::{key, now_us, record, topic};
use super::report::write_json;
use super::rounds::Rounds;
use super::schedule::{DueItem, Load};
use super::usage::{MachineUsage, Usage};
use super::wire::{FloorMessage, FloorPlan, LoopSource};
use super::workers::Worker;
use crate::events::Producer;
use crate::pods::{self, Pod, READY_WITHIN, World};
use crate::process::{Signal, TempDir, eventually, own_cores, stay_on};
use report::IngestReport;

/// Time limit for reading all records.
const READ_WITHIN: Duration = Duration::from_secs(600);

/// Interval at which a pod's counters are read. Each read costs the pod a request.
const SCRAPE_EVERY: Duration = Duration::from_millis(250);

/// Time limit for a pod to exit.
const ENDED_WITHIN: Duration = Duration::from_secs(60);

/// Settings of the pods: the history covers all records, and a paused pod keeps its slot.
const SETTINGS: &[(&str, &str)] = &[("HISTORY_SECONDS", "86400"), ("LEASE_TTL_MS", "600000")];

/// Properties of the producer: large batches, and a long transaction.
const PRODUCER: &[(&str, &str)] = &[("linger.ms", "20"), ("transaction.timeout.ms", "900000")];

/// Kafka deletes whole segments. Those of a round must be deletable before the next.
const SEGMENTS: &[(&str, &str)] = &[("segment.bytes", "67108864")];

/// Options of a measurement of ingest.
#[derive(Debug, Clone, Serialize, clap::Args)]
pub struct Options {
    /// Number of records to read at a time. A default history stores about the first 600,000 of 300 bytes in memory
    /// that is new to the process, which costs kernel time. Later ones reuse that memory.
    #[arg(long, default_value_t = 3_000_000, value_parser = clap::value_parser!(u32).range(1_000..=100_000_000))]
    pub records: u32,
    /// Length of a record's payload in bytes. Its fields take about 190; the rest is padding.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub size: u32,
    /// Number of assessments, whose records take turns.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub assessments: u32,
    /// The core of the pod and of the bare loop; everything else runs on the others. By default the last one.
    #[arg(long)]
    pub core: Option<usize>,
    /// A setting for the pods, such as HISTORY_BYTES=16MiB. Can be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
    /// Rounds of the measurement.
    #[command(flatten)]
    #[serde(flatten)]
    pub rounds: Rounds,
}

/// Cost of reading all records.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReadResult {
    /// Number of records.
    pub records: u64,
    /// Seconds from the first fetch on.
    pub seconds: f64,
    /// Usage of the process, without its startup.
    pub usage: Usage,
    /// Usage of the machine since the process was started, or since the commit.
    pub machine: MachineUsage,
    /// Part of it by processes of this run, in nanoseconds.
    pub run_ns: u64,
}

/// Measurements for one source of the assessment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceResult {
    /// Usage of a pod's startup with empty topics.
    pub start: Usage,
    /// Filling the history at startup.
    pub filled: ReadResult,
    /// Reading live records.
    pub live: ReadResult,
    /// Share of these that another pod owned, from 0 to 1.
    pub elsewhere: f64,
}

/// A round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IngestRound {
    /// Usage of the bare loop's startup with empty topics.
    pub bare_start: Usage,
    /// The bare loop.
    pub bare: ReadResult,
    /// The assessment comes from the payload.
    pub payload: SourceResult,
    /// The assessment is the key.
    pub key: SourceResult,
}

/// Measures, prints the table and writes the JSON file.
///
/// # Errors
/// If a process exits, or does not read all records.
pub fn run(options: &Options) -> Result<IngestReport> {
    pairs(&options.settings)?;
    let mut bench = Testbed::new(options)?;
    let (rounds, discarded) = options.rounds.measure(|number| bench.round(number))?;
    let options_json = serde_json::to_value(options).context("options are JSON")?;
    let report = IngestReport::of(options_json, rounds, discarded);
    let json = options.rounds.json_file("ingest");
    write_json(&json, &report)?;
    print!("\n{}", report.table());
    println!("JSON: {}", json.display());
    Ok(report)
}

/// The environment of the measurement.
struct Testbed<'a> {
    options: &'a Options,
    world: World,
    /// The core of the measured process, and the others. With a single core, both are that one.
    core: Vec<usize>,
    others: Vec<usize>,
    /// Routes that take the assessment from the key.
    by_key: PathBuf,
    transactions: u32,
    _dir: TempDir,
}

impl<'a> Testbed<'a> {
    fn new(options: &'a Options) -> Result<Self> {
        let all = own_cores();
        let core = options.core.or_else(|| all.last().copied()).context("a core to run on")?;
        ensure!(all.contains(&core), "--core {core}: there are {all:?}");
        let mut others: Vec<usize> = all.iter().copied().filter(|one| *one != core).collect();
        if others.is_empty() {
            others = all;
        }
        // All processes started from now on inherit this thread's cores.
        stay_on(&others);
        let world = World::start();
        world.kafka.set(&events(), SEGMENTS);
        let dir = TempDir::new("ingest");
        let built_in = pods::run(&["routes"], &[]).output;
        let scope = "scope = \"assessment\"\n";
        ensure!(built_in.contains(scope), "the built-in routes have a scope");
        let by_key = dir.file("by-key.toml", &built_in.replace(scope, &format!("{scope}assessment = \"key\"\n")));
        Ok(Self { options, world, core: vec![core], others, by_key, transactions: 0, _dir: dir })
    }

    fn round(&mut self, number: u32) -> Result<IngestRound> {
        let print = |what: &str, read: &ReadResult| println!("round {number}: {what:<20} {}", read.line());
        self.trim();
        let bare_start = self.bare()?.usage;
        let payload = self.measure_source("payload", None)?;
        print("payload, live", &payload.live);
        print("payload, filling", &payload.filled);
        let bare = self.bare()?.without(&bare_start);
        print("bare loop", &bare);
        let by_key = self.by_key.to_str().context("a path that is text")?.to_owned();
        let key = self.measure_source("key", Some(&by_key))?;
        print("key, live", &key.live);
        print("key, filling", &key.filled);
        let records = u64::from(self.options.records);
        for (what, read) in [("the bare loop", &bare), ("the pod by payload", &payload.filled)] {
            ensure!(read.records == records, "{what} read {} of {records} records", read.records);
        }
        Ok(IngestRound { bare_start, bare, payload, key })
    }

    // ---- the bare loop ----------------------------------------------------------------------------------------------

    fn bare(&self) -> Result<ReadResult> {
        let topics = World::topics().into_iter().map(|(name, _)| name).collect();
        let source = LoopSource::Log { brokers: self.world.kafka.bootstrap().to_owned(), topics };
        // No client gets anything.
        let load = Load { clients: 0, assessments: 1, rate: 0.0, burst: 1, markets: 1, market_rate: 0.0, size: 0 };
        let before = UsageSnapshot::take(&self.world, None)?;
        let mut floor =
            Worker::start("fleet-floor", &FloorPlan { load, clients: 0, frame_bytes: 0, source }, &self.core)?;
        let FloorMessage::Listens(_) = floor.receive(READ_WITHIN)? else {
            bail!("a bare loop sends its address first")
        };
        ensure!(
            floor.receive::<FloorMessage>(READ_WITHIN)? == FloorMessage::Ready,
            "a bare loop reports that it is ready"
        );
        floor.send(&"begin")?;
        let FloorMessage::Read { records, us } = floor.receive(READ_WITHIN)? else {
            bail!("a bare loop reports the records read")
        };
        Ok(UsageSnapshot::take(&self.world, Some(floor.pid()))?.since(&before, records, us as f64 / 1e6))
    }

    // ---- pods -------------------------------------------------------------------------------------------------------

    fn measure_source(&mut self, name: &str, routes: Option<&str>) -> Result<SourceResult> {
        self.trim();
        let settings = [SETTINGS, &pairs(&self.options.settings)?].concat();
        let plan = |pod: &str, cores: &[usize]| {
            let plan = self.world.pod(pod).set_all(&settings).on_cores(cores);
            routes.map_or(plan.clone(), |file| plan.set("ROUTES_FILE", file))
        };
        let (measured, second) = (plan("pod-0", &self.core), plan("pod-1", &self.others));
        let pod = measured.spawn();
        await_history(&pod)?;
        pod.ready();
        let start = Usage::of(pod.pid())?;
        let pods = [pod, second.start()];
        self.world.settled(&pods);
        let (live, elsewhere) = self.live(name, &pods)?;
        pods.into_iter().for_each(stop);

        let before = UsageSnapshot::take(&self.world, None)?;
        let pod = measured.spawn();
        let seconds = await_history(&pod)?;
        pod.ready();
        let after = UsageSnapshot::take(&self.world, Some(pod.pid()))?;
        let (all, _) = counted(&pod)?;
        stop(pod);
        let filled = after.since(&before, all, seconds).without(&start);
        Ok(SourceResult { start, filled, live, elsewhere })
    }

    /// Writes all records and lets the first pod read them while the second is paused. Also returns the share of
    /// records that the second owned.
    fn live(&mut self, name: &str, [pod, second]: &[Pod; 2]) -> Result<(ReadResult, f64)> {
        self.transactions += 1;
        let id = format!("ingest-{name}-{}", self.transactions);
        let properties = [PRODUCER, &[("transactional.id", id.as_str())]].concat();
        let producer = Producer::with(self.world.kafka.bootstrap(), &properties);
        producer.begin(true);
        self.write(&producer);
        second.signal(Signal::Stop);
        let before = UsageSnapshot::take(&self.world, Some(pod.pid()))?;
        let begin = Instant::now();
        producer.commit();
        let records = u64::from(self.options.records);
        let elsewhere = loop {
            let (all, elsewhere) = counted(pod)?;
            if all >= records {
                break elsewhere;
            }
            ensure!(begin.elapsed() < READ_WITHIN, "the pod read {all} of {records} records");
            thread::sleep(SCRAPE_EVERY);
        };
        let read =
            UsageSnapshot::take(&self.world, Some(pod.pid()))?.since(&before, records, begin.elapsed().as_secs_f64());
        second.signal(Signal::Cont);
        Ok((read, elsewhere as f64 / records as f64))
    }

    // ---- records ----------------------------------------------------------------------------------------------------

    fn write(&self, producer: &Producer) {
        let (topic, now, mut payload) = (events(), now_us(), Vec::new());
        let keys: Vec<String> = (0..self.options.assessments).map(|number| key(DueItem::Event(number))).collect();
        for (number, turn) in (0..self.options.records).zip((0..self.options.assessments).cycle()) {
            record(&mut payload, DueItem::Event(turn), now + u64::from(number), self.options.size as usize);
            producer.send(&topic, Some(&keys[turn as usize]), Some(&payload));
        }
        producer.flush();
    }

    /// Deletes all records.
    fn trim(&self) {
        let (name, kafka) = (events(), &self.world.kafka);
        let partitions = i32::try_from(kafka.partitions(&name)).expect("few partitions");
        for partition in 0..partitions {
            let (begin, end) = kafka.offsets(&name, partition);
            if begin < end {
                kafka.trim(&name, partition, end);
            }
        }
    }
}

/// The topic of all records.
fn events() -> String {
    topic(DueItem::Event(0))
}

/// Stops a pod with SIGTERM.
fn stop(mut pod: Pod) {
    pod.signal(Signal::Term);
    pod.wait_exit(ENDED_WITHIN);
}

/// Waits until the pod logs that its history is complete. Returns the time from the first fetch on, in seconds.
fn await_history(pod: &Pod) -> Result<f64> {
    let line = eventually("the history is complete", READY_WITHIN + READ_WITHIN, || {
        pod.log().lines().find(|line| line.contains("history complete")).map(str::to_owned)
    });
    elapsed(&line).with_context(|| format!("no elapsed time in {line}"))
}

/// The elapsed time in a log line, in seconds.
fn elapsed(line: &str) -> Option<f64> {
    let text = line.split_once("elapsed_ms=")?.1.split_ascii_whitespace().next()?;
    Some(text.parse::<f64>().ok()? / 1000.0)
}

/// The records that a pod has counted, and those of them that another pod owns.
fn counted(pod: &Pod) -> Result<(u64, u64)> {
    const SKIPPED: &str = "websocket_kafka_messages_skipped_total";
    let metrics = pod.metrics();
    let malformed = metrics.of(SKIPPED, &[("reason", "malformed")]);
    ensure!(malformed == 0.0, "{malformed} records are malformed");
    let elsewhere = metrics.of(SKIPPED, &[("reason", "not_owner")]);
    Ok(((metrics.sum("websocket_kafka_messages_processed_total") + elsewhere) as u64, elsewhere as u64))
}

/// Usage of a process, the run and the machine at one time.
struct UsageSnapshot {
    usage: Usage,
    run_ns: u64,
    machine: MachineUsage,
}

impl UsageSnapshot {
    /// Takes a snapshot; without a process before it starts.
    fn take(world: &World, pid: Option<u32>) -> Result<Self> {
        let usage = pid.map(Usage::of).transpose()?.unwrap_or_default();
        let mut run_ns = usage.total_ns() + Usage::of(std::process::id())?.total_ns();
        for broker in world.kafka.pids() {
            run_ns += Usage::of(broker)?.total_ns();
        }
        Ok(Self { usage, run_ns, machine: MachineUsage::now()? })
    }

    fn since(&self, earlier: &Self, records: u64, seconds: f64) -> ReadResult {
        ReadResult {
            records,
            seconds,
            usage: self.usage.since(&earlier.usage),
            machine: self.machine.since(&earlier.machine),
            run_ns: self.run_ns.saturating_sub(earlier.run_ns),
        }
    }
}

impl ReadResult {
    fn without(self, start: &Usage) -> Self {
        Self { usage: self.usage.since(start), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_elapsed_time_is_read_from_the_log() {
        let line = "2026-01-01T00:00:00Z  INFO shardgate::ingest: history complete partitions=3 elapsed_ms=1250";
        assert_eq!(elapsed(line), Some(1.25));
        assert_eq!(elapsed("elapsed_ms=20 more=1"), Some(0.02));
        assert_eq!((elapsed("elapsed_ms=long"), elapsed("history complete")), (None, None));
    }

    #[test]
    fn usage_since_a_snapshot_excludes_earlier_usage_and_the_startup() {
        let usage = |user_ns| Usage { user_ns, ..Usage::default() };
        let snapshot = |ns, run_ns, busy| UsageSnapshot {
            usage: usage(ns),
            run_ns,
            machine: MachineUsage { total: 2 * busy, busy, steal: 0 },
        };
        let read = snapshot(900, 2_000, 30).since(&snapshot(100, 500, 10), 7, 0.5);
        assert_eq!((read.usage.user_ns, read.run_ns, read.machine.busy, read.records), (800, 1_500, 20, 7));
        assert_eq!(read.without(&usage(300)).usage.user_ns, 500);
    }
}
