//! The chaos run: three brokers, a Redis, pods and some hundred clients, on a seeded schedule of faults; and afterwards
//! the judge of what the clients saw. It owns the run's order and its directory.
//!
//! ```text
//! schedule ──> faults ──> pods, Redis, brokers, clients       while it runs
//!              producer ──> Kafka ──> pods ──> clients
//!                 │                              │
//! faults.log   made.log                      clients.log
//!      └───────────┴────────── checker ──────────┘            afterwards
//!                                 └──> report
//! ```
//!
//! Everything ends by itself: faults at the run's length, then each part within its own time limit.

pub mod checker;
mod clients;
mod faults;
mod fleet;
pub mod log;
mod log_reader;
mod open_transaction;
mod producer;
pub mod report;
pub mod schedule;

use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::events;
use crate::kafka::Kafka;
use crate::pods;
use crate::process::allow_descriptors;
use crate::redis::Redis;
use checker::{CheckerRules, Verdict};
use clients::{Clients, RunProgress, Shared};
use faults::FaultLog;
use fleet::PodFleet;
use log::{ClientLogEntry, FaultSpan, LogFile, ProducedEvent};
use log_reader::LogReader;
use open_transaction::OpenTransaction;
use producer::ProducerLedger;
use report::Title;
use schedule::{FaultKind, Lane};

/// Pods at the start; a fault changes their number, and in the end they are as many again.
const PODS: usize = 3;

/// Clients that watch the same assessment.
const CLIENTS_PER_ASSESSMENT: u32 = 3;

/// All clients are connected within this time, before the first event.
const CONNECTED_WITHIN: Duration = Duration::from_secs(60);

/// The progress line comes this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

// ---- what is asked for ----------------------------------------------------------------------------------------------

/// A run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How long faults happen, in minutes. Before and after it takes about a minute more.
    #[arg(long, default_value_t = 2.0)]
    pub minutes: f64,
    /// The schedule's seed: the same seed, the same schedule.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many clients.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(12..=5_000))]
    pub clients: u32,
    /// Events a second.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(4..=50_000))]
    pub rate: u32,
    /// Which faults: all, none, or names by commas, such as kill,redis-pause.
    #[arg(long, default_value = "all")]
    pub faults: Faults,
    /// Keep the run's directory also where no fault was found.
    #[arg(long)]
    pub keep: bool,
    /// Judge the kept logs of a run, and make none. Its seed, minutes and clients are those of the other options.
    #[arg(long, value_name = "DIRECTORY")]
    pub judge: Option<PathBuf>,
    /// Recoveries that take too long don't count as a fault: for machines that do much else.
    #[arg(long)]
    pub lenient: bool,
}

/// Kinds of faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<FaultKind>);

impl std::str::FromStr for Faults {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(Self(match text {
            "none" => Vec::new(),
            names => {
                let mut kinds = Vec::new();
                for name in names.split(',') {
                    match name {
                        "all" => kinds.extend(FaultKind::ALL),
                        name => kinds.push(name.parse()?),
                    }
                }
                kinds
            }
        }))
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct ChaosOutcome {
    /// What the judge found.
    pub verdict: Verdict,
    /// What else went wrong: pods that ended, or were not ready; times that were too long.
    pub findings: Vec<String>,
    /// Where the run's logs are, where they were kept.
    pub kept: Option<PathBuf>,
}

impl ChaosOutcome {
    /// Whether all promises were kept.
    #[must_use]
    pub fn is_good(&self) -> bool {
        !self.verdict.is_fault() && self.findings.is_empty()
    }
}

// ---- what the parts share -------------------------------------------------------------------------------------------

/// The run's clock.
#[derive(Debug, Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    fn ms(self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).expect("a run is shorter than an age")
    }
}

/// What went wrong and is in no client's log.
#[derive(Debug, Default)]
struct RunFindings(Mutex<Vec<String>>);

impl RunFindings {
    fn add(&self, what: String) {
        println!("! {what}");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The run's files.
struct Files {
    dir: PathBuf,
}

impl Files {
    fn create(seed: u64) -> Result<Self> {
        let name = format!("shardgate-chaos-{seed}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self { dir })
    }

    fn made(&self) -> PathBuf {
        self.dir.join("made.log")
    }

    fn clients(&self) -> PathBuf {
        self.dir.join("clients.log")
    }

    fn faults(&self) -> PathBuf {
        self.dir.join("faults.log")
    }
}

// ---- the run --------------------------------------------------------------------------------------------------------

/// Makes a run, prints its progress and its table.
///
/// # Errors
/// Where it could not be made: then nothing is known of the gateway.
///
/// # Panics
/// Where a broker, Redis or the system does not do what it should: then nothing is known either.
pub fn run(options: &Options) -> Result<ChaosOutcome> {
    let findings = Arc::new(RunFindings::default());
    let files = match &options.judge {
        Some(dir) => Files { dir: dir.clone() },
        None => {
            let files = Files::create(options.seed)?;
            println!("chaos: the run's logs are in {}", files.dir.display());
            happen(options, &files, &findings)?;
            files
        }
    };
    let (verdict, spans) = judge(&files.dir)?;
    let title =
        Title { seed: options.seed, minutes: options.minutes, clients: options.clients, lease_ms: fleet::LEASE_MS };
    let table = report::table(&title, &verdict, &spans);
    fs::write(files.dir.join("table.txt"), &table)?;
    println!("\n{table}");
    for sentence in report::over_limit(&title, &verdict) {
        if options.lenient { println!("slow: {sentence}") } else { findings.add(sentence) }
    }
    let mut outcome = ChaosOutcome { verdict, findings: findings.take(), kept: None };
    if outcome.is_good() && !options.keep && options.judge.is_none() {
        fs::remove_dir_all(&files.dir)?;
    } else {
        println!("the run's logs are kept in {}", files.dir.display());
        outcome.kept = Some(files.dir);
    }
    Ok(outcome)
}

/// Reads a run's logs and judges them: the same logs, the same verdict.
///
/// # Errors
/// Where a log can't be read.
pub fn judge(dir: &Path) -> Result<(Verdict, Vec<FaultSpan>)> {
    let files = Files { dir: dir.to_owned() };
    let mut spans: Vec<FaultSpan> = log::read(&files.faults())?.collect::<Result<_>>()?;
    spans.sort_by_key(|span| span.from_ms);
    let rules = CheckerRules { history: fleet::HISTORY };
    let verdict = checker::check(
        rules,
        &spans,
        log::read::<ProducedEvent>(&files.made())?,
        log::read::<ClientLogEntry>(&files.clients())?,
    )?;
    Ok((verdict, spans))
}

/// Lets everything happen, and writes it down. Returns when all has ended.
fn happen(options: &Options, files: &Files, findings: &Arc<RunFindings>) -> Result<()> {
    allow_descriptors(4096 + u64::from(options.clients) * 2);
    // The gateway is built before anything else runs.
    let _ = pods::binary();
    let is_fragile = options.faults.0.contains(&FaultKind::Unclean);
    // A replica that doesn't follow counts as lost soon, so that the other leads alone.
    let mut settings = if is_fragile { vec![("replica.lag.time.max.ms", "1500")] } else { Vec::new() };
    settings.push(("log.cleaner.backoff.ms", "500"));
    let (kafka, redis) = (Kafka::start_with(faults::BROKERS as usize, &settings), Redis::start_with_clock());
    create_topics(&kafka, is_fragile, options.faults.0.contains(&FaultKind::Compaction));
    let logs = LogReader::default();
    let mut fleet = PodFleet::new(&files.dir, kafka.bootstrap(), redis.port(), &logs, findings);
    (0..PODS).for_each(|place| fleet.spawn(place));
    fleet.await_ready();

    let clock = Clock(Instant::now());
    let progress = Arc::new(RunProgress::default());
    let shared = Shared::new(LogFile::create(&files.clients())?, clock, fleet.directory());
    let assessments = options.clients / CLIENTS_PER_ASSESSMENT;
    let mut clients = Clients::new(options.clients, assessments, options.seed, shared, &progress);
    clients.connect(CONNECTED_WITHIN)?;
    let book = Arc::new(ProducerLedger::new(LogFile::create(&files.made())?, clock));
    let chronicle = FaultLog::new(LogFile::create(&files.faults())?, clock);
    let beside = (OpenTransaction::new(kafka.bootstrap(), assessments), logs);
    let world = ChaosWorld { kafka, redis, fleet, beside };
    let clients =
        ChaosStory { options, clock, progress: &progress, book: &book, chronicle: &chronicle }.tell(world, clients);
    book.log.flush();
    chronicle.flush();
    clients.flush();
    Ok(())
}

/// The topics of the built-in routes; where the run has unclean elections, one of them on two brokers, either of which
/// may lead at any time; where it has compaction, another's log is compacted.
fn create_topics(kafka: &Kafka, is_fragile: bool, is_compacted: bool) {
    let fragile = is_fragile.then(|| events::Kind::ALL[usize::from(producer::FRAGILE)].topic());
    let topics = pods::World::topics();
    let whole = topics.iter().filter(|(name, _)| Some(name.as_str()) != fragile);
    kafka.create_all(&whole.map(|(name, partitions)| (name.as_str(), *partitions)).collect::<Vec<_>>());
    if let Some(name) = fragile {
        kafka.create_on(name, &producer::FRAGILE_ON);
    }
    if is_compacted {
        let lag_ms = producer::COMPACTION_LAG.as_millis().to_string();
        let settings = [producer::COMPACTED_BY, &[("min.compaction.lag.ms", &lag_ms)]].concat();
        kafka.set(events::Kind::ALL[usize::from(producer::COMPACTED)].topic(), &settings);
    }
}

/// What faults break.
struct ChaosWorld {
    kafka: Kafka,
    redis: Redis,
    fleet: PodFleet,
    beside: (OpenTransaction, LogReader),
}

/// The run from the first event to the last.
struct ChaosStory<'a> {
    options: &'a Options,
    clock: Clock,
    progress: &'a RunProgress,
    book: &'a Arc<ProducerLedger>,
    chronicle: &'a FaultLog,
}

impl ChaosStory<'_> {
    /// Makes events, and lets the faults happen while the clients live; then lets the clients get what is left.
    fn tell(&self, world: ChaosWorld, mut clients: Clients) -> Clients {
        let ChaosWorld { mut kafka, mut redis, mut fleet, mut beside } = world;
        let (begin, length) = (self.clock.elapsed(), Duration::from_secs_f64(self.options.minutes * 60.0));
        let Self { clock, chronicle, .. } = *self;
        let plan = |lane| {
            let mut plan = schedule::schedule(self.options.seed, length, lane, &self.options.faults.0);
            plan.iter_mut().for_each(|planned| planned.at += begin);
            plan
        };
        let order = producer::Order {
            bootstrap: kafka.bootstrap().to_owned(),
            seed: self.options.seed,
            assessments: self.options.clients / CLIENTS_PER_ASSESSMENT,
            rate: self.options.rate,
            is_fragile: self.options.faults.0.contains(&FaultKind::Unclean),
            is_compacted: self.options.faults.0.contains(&FaultKind::Compaction),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let producers = producer::start(&order, self.book, &stop);
        let clients = thread::scope(|scope| {
            let (orders, inbox) = mpsc::sync_channel(clients::ORDERS_MAX);
            let (of_pods, mut of_lane) = (orders.clone(), orders.clone());
            let living = scope.spawn(move || {
                clients.live(&inbox);
                clients
            });
            // They outlive their lanes.
            let (brokers, redis, fleet, beside) = (&mut kafka, &mut redis, &mut fleet, &mut beside);
            let lanes = [
                scope.spawn(move || {
                    faults::pods(clock, &plan(Lane::Pods), fleet, &of_pods, chronicle);
                    fleet.await_ready();
                }),
                scope.spawn(move || faults::redis(clock, &plan(Lane::Redis), redis, chronicle)),
                scope.spawn(move || faults::brokers(clock, &plan(Lane::Brokers), brokers, chronicle)),
                scope.spawn(move || faults::beside(clock, &plan(Lane::Beside), beside, chronicle)),
                scope.spawn(move || faults::clients(clock, &plan(Lane::Clients), &mut of_lane, chronicle)),
            ];
            self.watch(begin + length, || lanes.iter().all(thread::ScopedJoinHandle::is_finished));
            lanes.into_iter().for_each(joined);
            println!("faults and events are over; clients get what is left");
            stop.store(true, Ordering::Relaxed);
            for producer in producers {
                producer.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
            // They live on until nobody can order any more.
            drop(orders);
            let mut clients = joined(living);
            clients.finish(&self.book.last());
            clients
        });
        self.book.look_into_the_log(&kafka);
        clients
    }

    /// Prints how it goes until this time, and until all is `done`.
    fn watch(&self, end: Duration, done: impl Fn() -> bool) {
        let mut next = self.clock.elapsed();
        while self.clock.elapsed() < end || !done() {
            if self.clock.elapsed() >= next {
                next += PROGRESS_EVERY;
                println!("{}", self.progress_line());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn progress_line(&self) -> String {
        let seconds = self.clock.elapsed().as_secs();
        let RunProgress { connected, seen } = self.progress;
        let (connected, seen) = (connected.load(Ordering::Relaxed), seen.load(Ordering::Relaxed));
        format!(
            "{:02}:{:02}  {connected}/{} clients  {} events made, {seen} seen  {}",
            seconds / 60,
            seconds % 60,
            self.options.clients,
            self.book.count(),
            self.chronicle.now().join("; ")
        )
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}
