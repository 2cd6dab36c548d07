//! What reading costs a pod that serves nobody: each record's CPU time beside that of a bare loop, which takes the same
//! records from librdkafka and drops them, on the same core; and how fast a history is filled at the start.
//!
//! A round, for each way to find a record's assessment (its payload, its key):
//! 1. A pod starts on topics without a record, with a second pod on the other cores: what the start itself costs.
//! 2. All records are written in a transaction, and are there at once when it is committed. The pod reads them as it
//!    reads what is new: by its hash, about half of them are the second pod's, which is paused meanwhile (its lease is long).
//! 3. Another pod starts, and fills its history from them. None of them is its own until it has a slot, for which the
//!    history must be complete: to its counters all of them are another pod's.
//!
//! Ingest treats a record that another pod owns as any other, but for a look at who owns it, by which it is counted;
//! and that nobody watches one is known to the shard alone, which then never looks at it again. So 3. is what an event
//! that nobody watches costs, and 2. is the same with the look. Both hold the shard's part: the batch taken over, its
//! place in the history, and the eviction of an older one.
//!
//! The bare loop reads the same topics, from librdkafka at its fastest. What its process costs on topics without
//! a record is subtracted too.

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
use super::wire::{FloorPlan, FloorSays, LoopSource};
use super::workers::Worker;
use crate::events::Producer;
use crate::pods::{self, Pod, READY_WITHIN, World};
use crate::process::{Signal, TempDir, eventually, own_cores, stay_on};
use report::IngestReport;

/// All records are read within this time.
const READ_WITHIN: Duration = Duration::from_secs(600);

/// Between two looks at a pod's counters: each look costs it a request.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A pod ends within this time.
const ENDED_WITHIN: Duration = Duration::from_secs(60);

/// What a pod is started with: all records are of its history's time, and a pod that is paused keeps its slot.
const SETTINGS: &[(&str, &str)] = &[("HISTORY_SECONDS", "86400"), ("LEASE_TTL_MS", "600000")];

/// What the producer is set to: large batches, and time for a transaction of all records.
const PRODUCER: &[(&str, &str)] = &[("linger.ms", "20"), ("transaction.timeout.ms", "900000")];

/// Kafka drops records by whole segments: those of a round are to go before the next one's come.
const SEGMENTS: &[(&str, &str)] = &[("segment.bytes", "67108864")];

/// What is read, and how often.
#[derive(Debug, Clone, Serialize, clap::Args)]
pub struct Options {
    /// How many records are read at a time. A history of the default size takes in some 600,000 of 300 bytes in memory
    /// that is new to the process, and gives the kernel work; those that come after have the memory of older ones.
    #[arg(long, default_value_t = 3_000_000, value_parser = clap::value_parser!(u32).range(1_000..=100_000_000))]
    pub records: u32,
    /// The length of a record's payload, in bytes; about 190 are its fields, and it is filled up.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub size: u32,
    /// How many assessments the records are of, in turns.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub assessments: u32,
    /// The core that a pod, and the bare loop, has to itself; all else runs on the others. The last one, where none is
    /// named.
    #[arg(long)]
    pub core: Option<usize>,
    /// A setting for the pods, such as HISTORY_BYTES=16MiB; may be given again.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
    /// How often all is measured.
    #[command(flatten)]
    #[serde(flatten)]
    pub rounds: Rounds,
}

/// What it took to read all records.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReadResult {
    /// How many there were.
    pub records: u64,
    /// How long it took from the first fetch on, in seconds.
    pub seconds: f64,
    /// What the process used for it, without its start.
    pub usage: Usage,
    /// What the machine did from the process' start on, or from the commit.
    pub machine: MachineUsage,
    /// Of that, what processes of the run used, in nanoseconds.
    pub run_ns: u64,
}

/// What was measured of one way to find a record's assessment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Way {
    /// What a pod's start used on topics without a record.
    pub start: Usage,
    /// A history that was filled at a pod's start.
    pub filled: ReadResult,
    /// Records that came to a pod that was there.
    pub live: ReadResult,
    /// Which part of these was another pod's, from 0 to 1.
    pub elsewhere: f64,
}

/// All, once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IngestRound {
    /// What the bare loop's start used on topics without a record.
    pub bare_start: Usage,
    /// The bare loop.
    pub bare: ReadResult,
    /// The assessment is in the payload.
    pub payload: Way,
    /// It is the key.
    pub key: Way,
}

/// Measures; prints the table, and writes the JSON file.
///
/// # Errors
/// If a part ends, or does not read what is there.
pub fn run(options: &Options) -> Result<IngestReport> {
    pairs(&options.settings)?;
    let mut bench = Testbed::new(options)?;
    let (rounds, discarded) = options.rounds.measure(|number| bench.round(number))?;
    let options_json = serde_json::to_value(options).context("options are JSON")?;
    let report = IngestReport::of(options_json, rounds, discarded);
    let json = options.rounds.json_file("ingest");
    write_json(&json, &report)?;
    print!("\n{}", report.table());
    println!("all of it: {}", json.display());
    Ok(report)
}

/// What is measured on.
struct Testbed<'a> {
    options: &'a Options,
    world: World,
    /// The core of what is measured, and all others; both are all, where there is but one.
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
        // What is started from now on is a child of this thread, or of one that it starts.
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
        let tell = |what: &str, read: &ReadResult| println!("round {number}: {what:<20} {}", read.line());
        self.trim();
        let bare_start = self.bare()?.usage;
        let payload = self.way("payload", None)?;
        tell("payload, live", &payload.live);
        tell("payload, filling", &payload.filled);
        let bare = self.bare()?.without(&bare_start);
        tell("bare loop", &bare);
        let by_key = self.by_key.to_str().context("a path that is text")?.to_owned();
        let key = self.way("key", Some(&by_key))?;
        tell("key, live", &key.live);
        tell("key, filling", &key.filled);
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
        // Nobody is sent anything.
        let load = Load { clients: 0, assessments: 1, rate: 0.0, burst: 1, markets: 1, market_rate: 0.0, size: 0 };
        let before = UsageSnapshot::take(&self.world, None)?;
        let mut floor =
            Worker::start("fleet-floor", &FloorPlan { load, clients: 0, frame_bytes: 0, source }, &self.core)?;
        let FloorSays::Listens(_) = floor.hear(READ_WITHIN)? else { bail!("a bare loop begins with its address") };
        ensure!(floor.hear::<FloorSays>(READ_WITHIN)? == FloorSays::Ready, "a bare loop is ready when all are there");
        floor.tell(&"begin")?;
        let FloorSays::Read { records, us } = floor.hear(READ_WITHIN)? else { bail!("a bare loop tells what it read") };
        Ok(UsageSnapshot::take(&self.world, Some(floor.pid()))?.since(&before, records, us as f64 / 1e6))
    }

    // ---- pods -------------------------------------------------------------------------------------------------------

    fn way(&mut self, name: &str, routes: Option<&str>) -> Result<Way> {
        self.trim();
        let settings = [SETTINGS, &pairs(&self.options.settings)?].concat();
        let plan = |pod: &str, cores: &[usize]| {
            let plan = self.world.pod(pod).set_all(&settings).on_cores(cores);
            routes.map_or(plan.clone(), |file| plan.set("ROUTES_FILE", file))
        };
        let (measured, second) = (plan("pod-0", &self.core), plan("pod-1", &self.others));
        let pod = measured.spawn();
        filled_in(&pod)?;
        pod.ready();
        let start = Usage::of(pod.pid())?;
        let pods = [pod, second.start()];
        self.world.settled(&pods);
        let (live, elsewhere) = self.live(name, &pods)?;
        pods.into_iter().for_each(end);

        let before = UsageSnapshot::take(&self.world, None)?;
        let pod = measured.spawn();
        let seconds = filled_in(&pod)?;
        pod.ready();
        let after = UsageSnapshot::take(&self.world, Some(pod.pid()))?;
        let (all, _) = counted(&pod)?;
        end(pod);
        let filled = after.since(&before, all, seconds).without(&start);
        Ok(Way { start, filled, live, elsewhere })
    }

    /// Writes all records, and lets the first pod read them while the second one is paused. Returns which part of them
    /// was the second one's, too.
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
            thread::sleep(LOOK_EVERY);
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

    /// Deletes what was written.
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

/// Ends a pod, as an operator does.
fn end(mut pod: Pod) {
    pod.signal(Signal::Term);
    pod.wait_exit(ENDED_WITHIN);
}

/// Waits until the pod says that its history is complete. Returns how long it took from the first fetch on, in seconds.
fn filled_in(pod: &Pod) -> Result<f64> {
    let line = eventually("the history is complete", READY_WITHIN + READ_WITHIN, || {
        pod.log().lines().find(|line| line.contains("history complete")).map(str::to_owned)
    });
    took(&line).with_context(|| format!("how long it took: {line}"))
}

/// The time that a line of the log tells of, in seconds.
fn took(line: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 4] = [("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let text = line.split_once("elapsed=")?.1.split_ascii_whitespace().next()?;
    UNITS.iter().find_map(|(unit, seconds)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * seconds))
}

/// How many records a pod has counted, and how many of them were another pod's.
fn counted(pod: &Pod) -> Result<(u64, u64)> {
    const SKIPPED: &str = "websocket_kafka_messages_skipped_total";
    let metrics = pod.metrics();
    let malformed = metrics.of(SKIPPED, &[("reason", "malformed")]);
    ensure!(malformed == 0.0, "{malformed} records are malformed");
    let elsewhere = metrics.of(SKIPPED, &[("reason", "not_owner")]);
    Ok(((metrics.sum("websocket_kafka_messages_processed_total") + elsewhere) as u64, elsewhere as u64))
}

/// What a process, the run and the machine had used at a time.
struct UsageSnapshot {
    usage: Usage,
    run_ns: u64,
    machine: MachineUsage,
}

impl UsageSnapshot {
    /// Without a process, before it begins.
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
    fn the_log_tells_how_long_the_history_took() {
        let line = "2026-01-01T00:00:00Z  INFO shardgate::ingest: history complete partitions=3 elapsed=1.25s";
        assert_eq!(took(line), Some(1.25));
        assert_eq!(took("elapsed=20.5ms more=1"), Some(0.0205));
        assert_eq!(took("elapsed=8µs"), Some(8e-6));
        assert_eq!((took("elapsed=long"), took("history complete")), (None, None));
    }

    #[test]
    fn a_look_is_what_came_since_an_earlier_one_and_a_start_is_no_part_of_it() {
        let usage = |user_ns| Usage { user_ns, ..Usage::default() };
        let look = |ns, run_ns, busy| UsageSnapshot {
            usage: usage(ns),
            run_ns,
            machine: MachineUsage { total: 2 * busy, busy, steal: 0 },
        };
        let read = look(900, 2_000, 30).since(&look(100, 500, 10), 7, 0.5);
        assert_eq!((read.usage.user_ns, read.run_ns, read.machine.busy, read.records), (800, 1_500, 20, 7));
        assert_eq!(read.without(&usage(300)).usage.user_ns, 500);
    }
}
