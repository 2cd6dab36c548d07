//! The chaos run: three brokers, a Redis, pods and some hundred clients under a seeded schedule of faults, and
//! afterwards a check of everything that the clients received. It owns the order of the run and its directory.
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
//! Every part ends by itself: the faults with the run, the other parts within their own time limits.

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
use crate::pods::{self, Plan};
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

/// Pods at the start and at the end. A fault changes their number in between.
const PODS: usize = 3;

/// Clients that subscribe to the same assessment.
const CLIENTS_PER_ASSESSMENT: u32 = 3;

/// Time limit for connecting all clients, before the first event.
const CONNECTED_WITHIN: Duration = Duration::from_secs(60);

/// Interval of the progress line.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

// ---- options --------------------------------------------------------------------------------------------------------

/// Options of a run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Duration of the faults in minutes. Start and end take about a minute more.
    #[arg(long, default_value_t = 2.0)]
    pub minutes: f64,
    /// Seed of the schedule: the same seed gives the same schedule.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Number of clients.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(12..=5_000))]
    pub clients: u32,
    /// Events per second.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(4..=50_000))]
    pub rate: u32,
    /// Faults to inject: all, none, or names separated by commas, such as kill,redis-pause.
    #[arg(long, default_value = "all")]
    pub faults: Faults,
    /// LEASE_TTL_MS of the pods.
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1_000..=60_000))]
    pub lease_ms: u64,
    /// Leave PEER_URL unset: pods don't look at each other, and a killed one is taken over after its lease.
    #[arg(long)]
    pub without_looks: bool,
    /// Keep the directory of the run even if no fault was found.
    #[arg(long)]
    pub keep: bool,
    /// Only check the kept logs of an earlier run, with the seed, minutes and clients given by the other options.
    #[arg(long, value_name = "DIRECTORY")]
    pub judge: Option<PathBuf>,
    /// Don't count slow recoveries as faults. For machines with other work.
    #[arg(long)]
    pub lenient: bool,
}

/// The kinds of faults to inject.
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

/// Result of a run.
#[derive(Debug)]
pub struct ChaosOutcome {
    /// Findings of the checker.
    pub verdict: Verdict,
    /// Other findings: pods that exited or were not ready, exceeded time limits.
    pub findings: Vec<String>,
    /// Directory of the logs, if they were kept.
    pub kept: Option<PathBuf>,
}

impl ChaosOutcome {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_good(&self) -> bool {
        !self.verdict.is_fault() && self.findings.is_empty()
    }
}

// ---- shared by the parts --------------------------------------------------------------------------------------------

/// The run's clock.
#[derive(Debug, Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    fn ms(self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).expect("a run is shorter than u64 milliseconds")
    }
}

/// Findings that are in no client's log.
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

/// Executes a run and prints its progress and its table.
///
/// # Errors
/// If the run could not be executed. That says nothing about the gateway.
///
/// # Panics
/// If a broker, Redis or the system fails. That says nothing about the gateway either.
pub fn run(options: &Options) -> Result<ChaosOutcome> {
    let findings = Arc::new(RunFindings::default());
    let files = match &options.judge {
        Some(dir) => Files { dir: dir.clone() },
        None => {
            let files = Files::create(options.seed)?;
            println!("chaos: the run's logs are in {}", files.dir.display());
            execute(options, &files, &findings)?;
            files
        }
    };
    let (verdict, spans) = judge(&files.dir)?;
    let title = Title {
        seed: options.seed,
        minutes: options.minutes,
        clients: options.clients,
        lease_ms: options.lease_ms,
        has_looks: !options.without_looks,
    };
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

/// Reads the logs of a run and checks them. The same logs give the same verdict.
///
/// # Errors
/// If a log can't be read.
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

/// Executes the run and writes its logs. Returns when all parts have ended.
fn execute(options: &Options, files: &Files, findings: &Arc<RunFindings>) -> Result<()> {
    allow_descriptors(4096 + u64::from(options.clients) * 2);
    // The gateway is built before anything else runs.
    let _ = pods::binary();
    let is_fragile = options.faults.0.contains(&FaultKind::Unclean);
    // A replica that stops following leaves the in-sync set soon, so that the other one leads alone.
    let mut settings = if is_fragile { vec![("replica.lag.time.max.ms", "1500")] } else { Vec::new() };
    settings.push(("log.cleaner.backoff.ms", "500"));
    let (kafka, redis) = (Kafka::start_with(faults::BROKERS as usize, &settings), Redis::start_with_clock());
    create_topics(&kafka, is_fragile, options.faults.0.contains(&FaultKind::Compaction));
    let logs = LogReader::default();
    let adapt = |plan: Plan| {
        let plan = plan.set("LEASE_TTL_MS", &options.lease_ms.to_string());
        if options.without_looks { plan } else { plan.with_looks() }
    };
    let mut fleet = PodFleet::new(&files.dir, (kafka.bootstrap(), redis.port()), adapt, &logs, findings);
    (0..PODS).for_each(|number| fleet.spawn(number));
    fleet.await_ready();

    let clock = Clock(Instant::now());
    let progress = Arc::new(RunProgress::default());
    let shared = Shared::new(LogFile::create(&files.clients())?, clock, fleet.directory());
    let assessments = options.clients / CLIENTS_PER_ASSESSMENT;
    let mut clients = Clients::new(options.clients, assessments, options.seed, shared, &progress);
    clients.connect(CONNECTED_WITHIN)?;
    let ledger = Arc::new(ProducerLedger::new(LogFile::create(&files.made())?, clock));
    let fault_log = FaultLog::new(LogFile::create(&files.faults())?, clock);
    let environment = (OpenTransaction::new(kafka.bootstrap(), assessments), logs);
    let world = ChaosWorld { kafka, redis, fleet, environment };
    let clients =
        ChaosRun { options, clock, progress: &progress, ledger: &ledger, fault_log: &fault_log }.drive(world, clients);
    ledger.log.flush();
    fault_log.flush();
    clients.flush();
    Ok(())
}

/// Creates the topics of the built-in routes. If the run has unclean elections, one topic is on two brokers, either of
/// which may lead at any time. If it has compaction, another topic is compacted.
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

/// The targets of the faults.
struct ChaosWorld {
    kafka: Kafka,
    redis: Redis,
    fleet: PodFleet,
    environment: (OpenTransaction, LogReader),
}

/// The run from the first event to the last.
struct ChaosRun<'a> {
    options: &'a Options,
    clock: Clock,
    progress: &'a RunProgress,
    ledger: &'a Arc<ProducerLedger>,
    fault_log: &'a FaultLog,
}

impl ChaosRun<'_> {
    /// Produces events and injects the faults while the clients run. Then the clients catch up.
    fn drive(&self, world: ChaosWorld, mut clients: Clients) -> Clients {
        let ChaosWorld { mut kafka, mut redis, mut fleet, mut environment } = world;
        let (begin, length) = (self.clock.elapsed(), Duration::from_secs_f64(self.options.minutes * 60.0));
        let Self { clock, fault_log, .. } = *self;
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
        let producers = producer::start(&order, self.ledger, &stop);
        let clients = thread::scope(|scope| {
            let (orders, inbox) = mpsc::sync_channel(clients::ORDERS_MAX);
            let (orders_of_pods, mut orders_of_clients) = (orders.clone(), orders.clone());
            let running = scope.spawn(move || {
                clients.run(&inbox);
                clients
            });
            // Borrowed here because they outlive the lanes.
            let (brokers, redis, fleet, environment) = (&mut kafka, &mut redis, &mut fleet, &mut environment);
            let lanes = [
                scope.spawn(move || {
                    faults::pods(clock, &plan(Lane::Pods), fleet, &orders_of_pods, fault_log);
                    fleet.await_ready();
                }),
                scope.spawn(move || faults::redis(clock, &plan(Lane::Redis), redis, fault_log)),
                scope.spawn(move || faults::brokers(clock, &plan(Lane::Brokers), brokers, fault_log)),
                scope.spawn(move || faults::environment(clock, &plan(Lane::Environment), environment, fault_log)),
                scope.spawn(move || faults::clients(clock, &plan(Lane::Clients), &mut orders_of_clients, fault_log)),
            ];
            self.print_progress(begin + length, || lanes.iter().all(thread::ScopedJoinHandle::is_finished));
            lanes.into_iter().for_each(join);
            println!("faults and events are over; clients catch up");
            stop.store(true, Ordering::Relaxed);
            for producer in producers {
                producer.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
            // The clients run until the last sender of orders is dropped.
            drop(orders);
            let mut clients = join(running);
            clients.finish(&self.ledger.last());
            clients
        });
        self.ledger.record_log_contents(&kafka);
        clients
    }

    /// Prints the progress until `end` and until `done`.
    fn print_progress(&self, end: Duration, done: impl Fn() -> bool) {
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
            "{:02}:{:02}  {connected}/{} clients  {} events produced, {seen} received  {}",
            seconds / 60,
            seconds % 60,
            self.options.clients,
            self.ledger.count(),
            self.fault_log.now().join("; ")
        )
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}
