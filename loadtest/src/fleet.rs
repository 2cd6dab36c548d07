//! The fleet: many clients on a gateway under an open-loop load, and bare loops that show the cost of the kernel and of
//! librdkafka alone. It owns the order of a run; [`mod@measure`] has the measurement.
//!
//! ```text
//! producer ──> Kafka ──> gateway      ──> clients      processes of their own, which count
//!                  └───> kafka loop   ──> clients      the floor: librdkafka and send(2)
//!            schedule ─> send loop    ──> clients      the floor: send(2)
//! ```
//!
//! **Time.** The schedule is an open loop ([`schedule`]): each record carries its due time, and its latency is from
//! then until a client read it. A late producer, a slow broker and a busy gateway all count, for every record that they
//! delayed. The producer's own lateness is reported separately.
//!
//! **CPU.** The CPU time of a process comes from its threads' clocks ([`usage`]), within a window after a warm-up,
//! divided by what the clients read in it. Samples show the share of the process's own code ([`profile`]). The floor is
//! measured in the same way, on the gateway's core.
//!
//! **CPU per handshake** is that of the measured processes from the first connection until all clients had `connected`,
//! less what they used idle for as long, from the second before.
//!
//! **Memory** per connection is the gateway's own ([`usage::memory`]) and the kernel's ([`usage::KernelMemory`]), both
//! as the difference made by connecting.
//!
//! **Noise** of the machine ([`machine_noise`]) is reported, and a measurement with too much of it is repeated.
//!
//! **Clients** are cheap: they count frames and parse only a sample ([`connection`]). If they limit the result, the
//! report says so.

pub mod bounds;
pub mod capacity;
pub mod clients;
pub mod connection;
pub(crate) mod epoll;
pub mod floor;
pub mod idle;
pub mod ingest;
pub mod io_wait;
pub mod machine_noise;
pub mod measure;
pub mod outcome;
pub mod page;
pub mod payload;
pub mod producer;
pub mod profile;
pub mod rates;
pub mod report;
pub mod rounds;
pub mod schedule;
pub mod statistics;
pub mod usage;
pub mod wire;
pub mod workers;

use std::fs;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;

use crate::pods::{Pod, World};
use crate::process::{own_cores, stay_on};
use crate::token;
use machine_noise::Discarded;
use measure::{Measurement, Subject, measure};
use outcome::FleetRound;
use payload::topic;
use producer::Produced;
use report::FleetReport;
use rounds::Rounds;
use schedule::{DueItem, Load};
use wire::{FloorMessage, FloorPlan, LoopSource, Target};
use workers::Worker;

/// Time limit for a message from a bare loop.
const FLOOR_WITHIN: Duration = Duration::from_secs(60);

/// Retention of the events' topic, so that a long run does not fill the disk.
const LOG_KEPT: &[(&str, &str)] = &[("retention.bytes", "1073741824"), ("segment.bytes", "134217728")];

/// Difference in length between a gateway's frame and its record, its cursor and a header, if no frame was measured.
const FRAME_OVER_RECORD_BYTES: usize = 64;

/// The name of the loop that reads Kafka.
const KAFKA_LOOP: &str = "kafka loop";

/// Options of a fleet and its load.
#[derive(Debug, Clone, Serialize, clap::Args)]
pub struct Options {
    /// URL of a running gateway, such as ws://127.0.0.1:3003/ws; for several pods, separated by commas. Without it, a
    /// gateway is started, with a Kafka and a Redis.
    #[arg(long, value_delimiter = ',')]
    pub url: Vec<String>,
    /// JWT_SECRET of the running gateway, to make a token.
    #[arg(long)]
    #[serde(skip)]
    pub secret: Option<String>,
    /// Token of all clients, instead of one that JWT_SECRET signs: with --set JWT_JWKS=FILE, one that a key signed.
    #[arg(long, value_name = "JWT")]
    #[serde(skip)]
    pub token: Option<String>,
    /// Brokers of the running gateway. The topics must exist: trading.position-opened, and for N markets
    /// market-data.load-<0 to N-1>-ticks.
    #[arg(long)]
    pub brokers: Option<String>,
    /// Process ids of the running gateway if it is on this machine, to measure CPU and memory.
    #[arg(long, value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// Number of pods to start.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub pods: u32,
    /// A setting for the started pods, such as HISTORY_SECONDS=60. Can be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
    /// Number of clients.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub clients: u32,
    /// Number of assessments that they subscribe to, in turn.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub assessments: u32,
    /// Events per second, all assessments together.
    #[arg(long, default_value_t = 100.0, value_parser = not_negative)]
    pub rate: f64,
    /// Number of events of one assessment that are due at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub burst: u32,
    /// Length of a record's payload in bytes. Its fields take about 190; the rest is padding.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub size: u32,
    /// Number of markets.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub markets: u32,
    /// Ticks per second, all markets together.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    pub market_rate: f64,
    /// Length of the measurement in seconds.
    #[arg(long, default_value_t = 10.0, value_parser = above_zero)]
    pub seconds: f64,
    /// Length of the warm-up under load in seconds.
    #[arg(long, default_value_t = 2.0, value_parser = not_negative)]
    pub warm_up: f64,
    /// Connections opened per second.
    #[arg(long, default_value_t = 2_000.0, value_parser = above_zero)]
    pub connects_per_second: f64,
    /// Share of slow clients, from 0 to 1.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    pub slow_share: f64,
    /// Bytes per second that a slow client reads.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..))]
    pub slow_bytes_per_second: u32,
    /// Clients per second that drop their connection and reconnect with their cursor.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    pub reconnects_per_second: f64,
    /// One message in this many is parsed to take its latency.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sample: u32,
    /// Number of client processes; by default as many as their descriptors need.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub processes: Option<u32>,
    /// Cores reserved for the gateway, separated by commas; everything else runs on the others. The bare loops run on
    /// the last of them. By default they run on the last core of the machine, which is a shard's.
    #[arg(long, value_delimiter = ',')]
    pub gateway_cores: Vec<usize>,
    /// Also measure the bare loops.
    #[arg(long)]
    pub with_floor: bool,
    /// Rounds of the measurement.
    #[command(flatten)]
    #[serde(flatten)]
    pub rounds: Rounds,
    /// The page with plots; by default beside the JSON file.
    #[arg(long)]
    pub html: Option<PathBuf>,
}

fn not_negative(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number.is_finite() && (0.0..=1e9).contains(&number) { Ok(number) } else { Err("from 0 to 1e9".into()) }
}

fn above_zero(text: &str) -> Result<f64, String> {
    not_negative(text).and_then(|number| if number > 0.0 { Ok(number) } else { Err("above 0".into()) })
}

impl Options {
    /// The load.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            clients: self.clients,
            assessments: self.assessments,
            rate: self.rate,
            burst: self.burst,
            markets: self.markets,
            market_rate: self.market_rate,
            size: self.size as usize,
        }
    }

    /// The clients' token: the given one, or one of this secret that allows all assessments.
    fn token(&self, secret: &str) -> String {
        let made = || {
            let header = json!({ "alg": "HS256", "typ": "JWT" });
            token::signed_with(secret.as_bytes(), &header, &json!({ "userId": "fleet" }))
        };
        self.token.clone().unwrap_or_else(made)
    }

    /// Duration of the load.
    fn length(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up + self.seconds)
    }

    /// The cores for everything but the gateway, if they are reserved.
    #[must_use]
    pub fn other_cores(&self) -> Vec<usize> {
        if self.gateway_cores.is_empty() {
            return Vec::new();
        }
        own_cores().into_iter().filter(|core| !self.gateway_cores.contains(core)).collect()
    }

    /// The bare loops' core, which is a shard's.
    fn floor_core(&self) -> Option<usize> {
        self.gateway_cores.last().copied().or_else(|| own_cores().last().copied())
    }

    fn settings(&self) -> Result<Vec<(&str, &str)>> {
        pairs(&self.settings)
    }

    fn check(&self) -> Result<()> {
        let is_own = self.url.is_empty();
        ensure!(is_own || self.secret.is_some(), "--url needs --secret, the gateway's JWT_SECRET");
        let is_loaded = self.rate > 0.0 || self.market_rate > 0.0;
        ensure!(is_own || !is_loaded || self.brokers.is_some(), "--url needs --brokers, or --rate 0");
        ensure!(is_own || !self.with_floor, "--with-floor can't be combined with --url");
        ensure!(is_own || self.settings.is_empty(), "--set can't be combined with --url");
        ensure!(self.slow_share <= 1.0, "--slow-share is from 0 to 1");
        let has_others = self.gateway_cores.is_empty() || !self.other_cores().is_empty();
        ensure!(has_others, "--gateway-cores leaves no core for the rest");
        self.settings().map(|_| ())
    }
}

/// Parses settings of the command line.
fn pairs(settings: &[String]) -> Result<Vec<(&str, &str)>> {
    settings.iter().map(|pair| pair.split_once('=').with_context(|| format!("{pair}: not NAME=VALUE"))).collect()
}

/// Measures a gateway, and with `--with-floor` the bare loops. Prints the table and writes the JSON file and the page.
///
/// # Errors
/// If the options contradict each other, or a process exits.
pub fn run(options: &Options) -> Result<FleetReport> {
    options.check()?;
    let (rounds, discarded) =
        if options.url.is_empty() { own_rounds(options, true)? } else { external_rounds(options)? };
    finish(options, rounds, discarded, "fleet")
}

/// Measures only the bare loops.
///
/// # Errors
/// As [`run`].
pub fn run_floor(options: &Options) -> Result<FleetReport> {
    options.check()?;
    ensure!(options.url.is_empty(), "floor can't be combined with --url");
    let floor = Options { with_floor: true, ..options.clone() };
    let (rounds, discarded) = own_rounds(&floor, false)?;
    finish(options, rounds, discarded, "floor")
}

fn finish(options: &Options, rounds: Vec<FleetRound>, discarded: Vec<Discarded>, name: &str) -> Result<FleetReport> {
    let options_json = serde_json::to_value(options).context("options are JSON")?;
    let report = FleetReport::of(options_json, rounds, discarded);
    publish(options, &report, name)?;
    Ok(report)
}

/// Prints the table and writes the JSON file and the page. `name` is the default of the files' names.
fn publish(options: &Options, report: &FleetReport, name: &str) -> Result<()> {
    let json = options.rounds.json_file(name);
    let html = options.html.clone().unwrap_or_else(|| json.with_extension("html"));
    report.write(&json)?;
    fs::write(&html, page::page(report, name)).with_context(|| format!("{} can't be written", html.display()))?;
    print!("\n{}", report.table());
    println!("JSON: {}, plots: {}", json.display(), html.display());
    Ok(())
}

// ---- gateways -------------------------------------------------------------------------------------------------------

/// A running gateway.
fn external_subject(options: &Options) -> Result<Subject> {
    let token = options.token(options.secret.as_deref().unwrap_or_default());
    let targets: Vec<Target> = options.url.iter().map(|url| target(url)).collect::<Result<_>>()?;
    Ok(Subject { name: "gateway", targets, pids: options.pid.clone(), token, supports_churn: true })
}

fn external_rounds(options: &Options) -> Result<(Vec<FleetRound>, Vec<Discarded>)> {
    let subject = external_subject(options)?;
    options.rounds.measure(|_| {
        let gateway = measure(options, &subject, || {
            Ok(match options.brokers.clone() {
                Some(brokers) => producer::start(brokers, options.load(), options.length()),
                None => thread::spawn(Produced::default),
            })
        })?;
        Ok(FleetRound { gateway: Some(gateway), ..FleetRound::default() })
    })
}

/// Starts a Kafka and a Redis with the topics of the load.
fn start_world(options: &Options) -> World {
    if !options.gateway_cores.is_empty() {
        // All processes started from now on inherit this thread's cores.
        stay_on(&options.other_cores());
    }
    let world = World::start();
    world.kafka.set(&topic(DueItem::Event(0)), LOG_KEPT);
    for number in 0..options.markets {
        if options.market_rate > 0.0 {
            world.kafka.create(&topic(DueItem::Tick(number)), 1);
        }
    }
    world
}

fn own_rounds(options: &Options, has_gateway: bool) -> Result<(Vec<FleetRound>, Vec<Discarded>)> {
    let world = start_world(options);
    options.rounds.measure(|_| {
        let gateway = has_gateway.then(|| measure_own(options, &world)).transpose()?;
        let floors = floors(options, &world, gateway.as_ref())?;
        Ok(FleetRound { gateway, ..floors })
    })
}

/// Starts pods and waits until they are ready.
fn start_pods(options: &Options, world: &World) -> Result<(Vec<Pod>, Subject)> {
    // Pods of the last round were killed and still hold their slots. When those leases expired, clients would be
    // redirected during the measurement.
    world.redis.flush();
    let settings = options.settings()?;
    let pods: Vec<Pod> = (0..options.pods)
        .map(|number| {
            // The gateway must not limit the rate at which the fleet connects.
            let plan = world.pod(&format!("pod-{number}")).set("ACCEPTS_PER_SECOND", "100000");
            // Measured pods use the default times, not the tests'.
            let plan = plan.unset("LEASE_TTL_MS").unset("TOPIC_REFRESH_MS");
            plan.set_all(&settings).on_cores(&options.gateway_cores).spawn()
        })
        .collect();
    pods.iter().for_each(Pod::ready);
    if pods.len() > 1 {
        world.settled(&pods);
    }
    let targets = pods.iter().map(|pod| Target { url: pod.url(), address: pod.address() }).collect();
    let pids = pods.iter().map(Pod::pid).collect();
    let subject = Subject { name: "gateway", targets, pids, token: options.token(token::SECRET), supports_churn: true };
    Ok((pods, subject))
}

/// Starts pods, measures them and stops them.
fn measure_own(options: &Options, world: &World) -> Result<Measurement> {
    let (_pods, subject) = start_pods(options, world)?;
    let brokers = world.kafka.bootstrap().to_owned();
    measure(options, &subject, || Ok(producer::start(brokers, options.load(), options.length())))
}

fn target(url: &str) -> Result<Target> {
    let rest = url.strip_prefix("ws://").with_context(|| format!("{url} doesn't begin with ws://"))?;
    let (host, _) = rest.split_once('/').with_context(|| format!("{url} has no path"))?;
    let mut addresses =
        std::net::ToSocketAddrs::to_socket_addrs(host).with_context(|| format!("{host}: no address"))?;
    let address =
        addresses.find(std::net::SocketAddr::is_ipv4).with_context(|| format!("{host} has no IPv4 address"))?;
    Ok(Target { url: url.to_owned(), address })
}

/// Mean length of an event's frame, as the gateway sent it.
fn frame_bytes(gateway: &Measurement) -> Option<usize> {
    let bytes = gateway.counts.event_bytes.checked_div(gateway.counts.events)?;
    usize::try_from(bytes).ok()
}

// ---- the floor ------------------------------------------------------------------------------------------------------

/// Measures both bare loops if requested, with frames as long as the gateway's.
fn floors(options: &Options, world: &World, gateway: Option<&Measurement>) -> Result<FleetRound> {
    let frame_bytes = gateway.and_then(frame_bytes).unwrap_or(options.size as usize + FRAME_OVER_RECORD_BYTES);
    let brokers = world.kafka.bootstrap();
    let floor = |source| options.with_floor.then(|| measure_floor(options, frame_bytes, brokers, source)).transpose();
    let send = floor(LoopSource::Schedule(options.length().as_secs_f64()))?;
    let kafka = floor(kafka_source(options, brokers))?;
    Ok(FleetRound { gateway: None, send, kafka })
}

/// All topics that the gateway reads, because each fetch asks for every partition.
fn kafka_source(options: &Options, brokers: &str) -> LoopSource {
    let loaded = (0..options.markets).filter(|_| options.market_rate > 0.0).map(|number| topic(DueItem::Tick(number)));
    let topics = World::topics().into_iter().map(|(name, _)| name).chain(loaded).collect();
    LoopSource::Kafka { brokers: brokers.to_owned(), topics }
}

fn measure_floor(options: &Options, frame_bytes: usize, brokers: &str, source: LoopSource) -> Result<Measurement> {
    let mut loops = BareLoops::start(options, frame_bytes, source)?;
    let subject = loops.subject.clone();
    let part = measure(options, &subject, || loops.begin(options, brokers))?;
    loops.end()?;
    Ok(part)
}

/// A bare loop, in one process or several.
struct BareLoops {
    workers: Vec<Worker>,
    subject: Subject,
    is_begun: bool,
}

impl BareLoops {
    fn start(options: &Options, frame_bytes: usize, source: LoopSource) -> Result<Self> {
        let load = options.load();
        let name = if matches!(source, LoopSource::Kafka { .. }) { KAFKA_LOOP } else { "send loop" };
        let cores: Vec<usize> = options.floor_core().into_iter().collect();
        let count = loops(options)?;
        let plan = |number: u32| {
            // Clients connect to the loops in turn.
            let clients = load.clients.saturating_sub(number).div_ceil(count);
            FloorPlan { load, clients, frame_bytes, source: source.clone() }
        };
        let mut workers: Vec<Worker> =
            (0..count).map(|number| Worker::start("fleet-floor", &plan(number), &cores)).collect::<Result<_>>()?;
        let target = |one: &mut Worker| {
            let FloorMessage::Listens(address) = one.receive(FLOOR_WITHIN)? else {
                bail!("a bare loop sends its address first")
            };
            Ok(Target { url: format!("ws://{address}/ws"), address })
        };
        let targets = workers.iter_mut().map(target).collect::<Result<_>>()?;
        let pids = workers.iter().map(Worker::pid).collect();
        let subject = Subject { name, targets, pids, token: "none".into(), supports_churn: false };
        Ok(Self { workers, subject, is_begun: false })
    }

    /// Begins a load, once all clients are connected. The kafka loop takes several, one after the other.
    fn begin(&mut self, options: &Options, brokers: &str) -> Result<JoinHandle<Produced>> {
        if !std::mem::replace(&mut self.is_begun, true) {
            for one in &mut self.workers {
                ensure!(
                    one.receive::<FloorMessage>(FLOOR_WITHIN)? == FloorMessage::Ready,
                    "a bare loop is ready when all clients are connected"
                );
            }
            for one in &mut self.workers {
                one.send(&"begin")?;
            }
        }
        let (load, length) = (options.load(), options.length());
        Ok(if self.subject.name == KAFKA_LOOP {
            producer::start(brokers.to_owned(), load, length)
        } else {
            thread::spawn(move || producer::of_schedule(&load, length))
        })
    }

    /// Ends the loops and prints what they sent.
    fn end(mut self) -> Result<()> {
        self.workers.iter_mut().for_each(Worker::close);
        let (mut all_sent, mut all_refused) = (0, 0);
        for one in &mut self.workers {
            let FloorMessage::Sent { frames, refused } = one.receive(FLOOR_WITHIN)? else {
                bail!("a bare loop reports the frames sent")
            };
            all_sent += frames;
            all_refused += refused;
        }
        let name = self.subject.name;
        println!("{name:<12} {all_sent} frames sent, {all_refused} not accepted by full sockets");
        Ok(())
    }
}

/// Number of processes of a bare loop: as many as pods, or as its sockets need.
fn loops(options: &Options) -> Result<u32> {
    let per_process = measure::descriptors_max().saturating_sub(floor::SPARE_DESCRIPTORS).max(1);
    let needed = u64::from(options.clients).div_ceil(per_process);
    Ok(options.pods.max(u32::try_from(needed).context("fewer processes")?))
}
