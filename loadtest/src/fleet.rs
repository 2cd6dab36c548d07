//! The fleet: many clients on a gateway, under a load that keeps its time, and beside it the bare loops that say what
//! the kernel and librdkafka cost by themselves. It owns a run's order; what is measured is in [`measure`].
//!
//! ```text
//! producer ──> Kafka ──> gateway      ──> clients      processes of their own, which count
//!                  └───> kafka loop   ──> clients      the floor: librdkafka and send(2)
//!            schedule ─> send loop    ──> clients      the floor: send(2)
//! ```
//!
//! **Time.** The schedule is an open loop ([`schedule`]): each record carries when it was due, and a latency is from
//! then until a client read it. A producer that is late, a broker that stands, a gateway that is behind: all of it is
//! in the latency, of every record that it held up. How late the producer itself was is told beside.
//!
//! **CPU.** What a process used comes from its threads' clocks ([`usage`]), within a window after a warm-up, and is
//! divided by what the clients read within it. How much of it is the process' own code is from samples ([`profile`]).
//! The floor is measured in the same way, on the gateway's core.
//!
//! **A handshake's CPU** is that of the subject's processes from the first connection until all clients had
//! `connected`, less what they used at rest, over the same time, in the second before.
//!
//! **Memory** of a connection is the gateway's own ([`usage::memory`]) and the kernel's ([`usage::KernelMemory`]), both
//! as the difference that connecting makes.
//!
//! **Noise** of the machine ([`machine_noise`]) is told, and what was measured in too much of it is measured again.
//!
//! **Clients** are cheap: they count frames without a parse, but of a sample ([`connection`]); where they are what
//! limits after all, the report says so.

pub mod bounds;
pub mod capacity;
pub mod clients;
pub mod connection;
pub(crate) mod epoll;
pub mod floor;
pub mod idle;
pub mod ingest;
pub mod machine_noise;
pub mod measure;
pub mod outcome;
pub mod page;
pub mod payload;
pub mod producer;
pub mod profile;
pub mod report;
pub mod rounds;
pub mod schedule;
pub mod statistics;
pub mod usage;
pub mod wire;
pub mod workers;

use std::fs;
use std::path::PathBuf;
use std::thread;
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
use wire::{FloorPlan, FloorSays, LoopSource, Target};
use workers::Worker;

/// A bare loop says what it has to say within this time.
const FLOOR_WITHIN: Duration = Duration::from_secs(60);

/// How much of the events Kafka keeps: a run of hours doesn't fill the disk.
const LOG_KEPT: &[(&str, &str)] = &[("retention.bytes", "1073741824"), ("segment.bytes", "134217728")];

/// What a gateway's frame has over its record, where no frame was seen to go by: its cursor, and a header.
const FRAME_OVER_RECORD_BYTES: usize = 64;

/// A fleet, and its load.
#[derive(Debug, Clone, Serialize, clap::Args)]
pub struct Options {
    /// A gateway that runs, such as ws://127.0.0.1:3003/ws; each of its pods, with commas between. Without it, one is
    /// started, with a Kafka and a Redis.
    #[arg(long, value_delimiter = ',')]
    pub url: Vec<String>,
    /// The running gateway's JWT_SECRET, to make a token with.
    #[arg(long)]
    #[serde(skip)]
    pub secret: Option<String>,
    /// The running gateway's brokers. Its topics must be there: trading.position-opened, and for N markets
    /// market-data.load-<0 to N-1>-ticks.
    #[arg(long)]
    pub brokers: Option<String>,
    /// The running gateway's process numbers, where it is on this machine: for figures of CPU and memory.
    #[arg(long, value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// Pods to start.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub pods: u32,
    /// A setting for the pods to start, such as HISTORY_SECONDS=60; may be given again.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
    /// How many clients.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub clients: u32,
    /// How many assessments they watch, in turns.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub assessments: u32,
    /// Events a second, of all assessments together.
    #[arg(long, default_value_t = 100.0, value_parser = not_negative)]
    pub rate: f64,
    /// How many events of one assessment are due at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub burst: u32,
    /// The length of a record's payload, in bytes; about 190 are its fields, and it is filled up.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub size: u32,
    /// How many markets.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub markets: u32,
    /// Ticks a second, of all markets together.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    pub market_rate: f64,
    /// How long is measured, in seconds.
    #[arg(long, default_value_t = 10.0, value_parser = above_zero)]
    pub seconds: f64,
    /// How long the load runs before, in seconds.
    #[arg(long, default_value_t = 2.0, value_parser = not_negative)]
    pub warm_up: f64,
    /// Connections that are opened a second.
    #[arg(long, default_value_t = 2_000.0, value_parser = above_zero)]
    pub connects_per_second: f64,
    /// Which part of the clients is slow, from 0 to 1.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    pub slow_share: f64,
    /// How many bytes a slow client reads a second.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..))]
    pub slow_bytes_per_second: u32,
    /// Clients that drop their connection a second, and come back with their cursor.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    pub reconnects_per_second: f64,
    /// Of how many messages one is parsed, and its latency taken.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sample: u32,
    /// Processes of clients; as many as their descriptors need, at least.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub processes: Option<u32>,
    /// Cores that the gateway has to itself, with commas between; all else runs on the others. The bare loops run on
    /// the last of them; without them, on the last core, which is a shard's.
    #[arg(long, value_delimiter = ',')]
    pub gateway_cores: Vec<usize>,
    /// Measure the bare loops too.
    #[arg(long)]
    pub with_floor: bool,
    /// How often all is measured.
    #[command(flatten)]
    #[serde(flatten)]
    pub rounds: Rounds,
    /// The page with the plots; without it, beside the JSON file.
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
    /// What is sent.
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

    /// How long the load runs.
    fn length(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up + self.seconds)
    }

    /// The cores of all but the gateway, where they are told apart.
    #[must_use]
    pub fn other_cores(&self) -> Vec<usize> {
        if self.gateway_cores.is_empty() {
            return Vec::new();
        }
        own_cores().into_iter().filter(|core| !self.gateway_cores.contains(core)).collect()
    }

    /// The bare loops' core: a shard's.
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
        ensure!(is_own || !self.with_floor, "--with-floor needs the machine to itself: leave out --url");
        ensure!(is_own || self.settings.is_empty(), "--set is for pods that are started: leave out --url");
        ensure!(self.slow_share <= 1.0, "--slow-share is from 0 to 1");
        let has_others = self.gateway_cores.is_empty() || !self.other_cores().is_empty();
        ensure!(has_others, "--gateway-cores leaves no core to the others");
        self.settings().map(|_| ())
    }
}

/// Settings as the command line has them.
fn pairs(settings: &[String]) -> Result<Vec<(&str, &str)>> {
    settings.iter().map(|pair| pair.split_once('=').with_context(|| format!("{pair}: not NAME=VALUE"))).collect()
}

/// Measures a gateway, and with `--with-floor` the bare loops; prints the table, and writes the JSON file and the page.
///
/// # Errors
/// If the options don't fit each other, or a part ends.
pub fn run(options: &Options) -> Result<FleetReport> {
    options.check()?;
    let (rounds, discarded) =
        if options.url.is_empty() { own_rounds(options, true)? } else { foreign_rounds(options)? };
    finish(options, rounds, discarded, "fleet")
}

/// Measures the bare loops alone.
///
/// # Errors
/// As [`run`].
pub fn run_floor(options: &Options) -> Result<FleetReport> {
    options.check()?;
    ensure!(options.url.is_empty(), "the bare loops need no gateway: leave out --url");
    let floor = Options { with_floor: true, ..options.clone() };
    let (rounds, discarded) = own_rounds(&floor, false)?;
    finish(options, rounds, discarded, "floor")
}

fn finish(options: &Options, rounds: Vec<FleetRound>, discarded: Vec<Discarded>, name: &str) -> Result<FleetReport> {
    let options_json = serde_json::to_value(options).context("options are JSON")?;
    let report = FleetReport::of(options_json, rounds, discarded);
    tell(options, &report, name)?;
    Ok(report)
}

/// Prints the table, and writes the JSON file and the page; where nothing else is said, in files of this name.
fn tell(options: &Options, report: &FleetReport, name: &str) -> Result<()> {
    let json = options.rounds.json_file(name);
    let html = options.html.clone().unwrap_or_else(|| json.with_extension("html"));
    report.write(&json)?;
    fs::write(&html, page::page(report, name)).with_context(|| format!("{} can't be written", html.display()))?;
    print!("\n{}", report.table());
    println!("all of it: {}, and with plots: {}", json.display(), html.display());
    Ok(())
}

// ---- gateways -------------------------------------------------------------------------------------------------------

/// A gateway that runs.
fn foreign_subject(options: &Options) -> Result<Subject> {
    let token = token_of(options.secret.as_deref().unwrap_or_default());
    let targets: Vec<Target> = options.url.iter().map(|url| target(url)).collect::<Result<_>>()?;
    Ok(Subject { name: "gateway", targets, pids: options.pid.clone(), token, supports_churn: true })
}

fn foreign_rounds(options: &Options) -> Result<(Vec<FleetRound>, Vec<Discarded>)> {
    let subject = foreign_subject(options)?;
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

/// A Kafka and a Redis, with the load's topics.
fn own_world(options: &Options) -> World {
    if !options.gateway_cores.is_empty() {
        // What is started from now on is a child of this thread, or of one that it starts.
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
    let world = own_world(options);
    options.rounds.measure(|_| {
        let gateway = has_gateway.then(|| measure_own(options, &world)).transpose()?;
        let floors = floors(options, &world, gateway.as_ref())?;
        Ok(FleetRound { gateway, ..floors })
    })
}

/// Starts pods, and returns when they are ready.
fn own_pods(options: &Options, world: &World) -> Result<(Vec<Pod>, Subject)> {
    // Those of the round before were killed, and hold their slots for some seconds more: when their leases run out,
    // clients are handed over, in the midst of what is measured.
    world.redis.flush();
    let settings = options.settings()?;
    let pods: Vec<Pod> = (0..options.pods)
        .map(|number| {
            // A fleet that connects at its own pace is not to be held to the gateway's.
            let plan = world.pod(&format!("pod-{number}")).set("ACCEPTS_PER_SECOND", "100000");
            // What is measured keeps the time that it keeps by default, and not the tests'.
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
    let subject = Subject { name: "gateway", targets, pids, token: token_of(token::SECRET), supports_churn: true };
    Ok((pods, subject))
}

/// Measures pods that are started for it, and end with it.
fn measure_own(options: &Options, world: &World) -> Result<Measurement> {
    let (_pods, subject) = own_pods(options, world)?;
    let brokers = world.kafka.bootstrap().to_owned();
    measure(options, &subject, || Ok(producer::start(brokers, options.load(), options.length())))
}

/// A token that may watch anything.
fn token_of(secret: &str) -> String {
    let header = json!({ "alg": "HS256", "typ": "JWT" });
    token::signed_with(secret.as_bytes(), &header, &json!({ "userId": "fleet" }))
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

/// The mean length of an event's frame, as the gateway sent it.
fn frame_bytes(gateway: &Measurement) -> Option<usize> {
    let bytes = gateway.counts.event_bytes.checked_div(gateway.counts.events)?;
    usize::try_from(bytes).ok()
}

// ---- the floor ------------------------------------------------------------------------------------------------------

/// Measures both bare loops, where they are asked for, with frames as long as the gateway's.
fn floors(options: &Options, world: &World, gateway: Option<&Measurement>) -> Result<FleetRound> {
    let frame_bytes = gateway.and_then(frame_bytes).unwrap_or(options.size as usize + FRAME_OVER_RECORD_BYTES);
    let brokers = world.kafka.bootstrap();
    let floor = |source| options.with_floor.then(|| measure_floor(options, frame_bytes, brokers, source)).transpose();
    let send = floor(LoopSource::Schedule(options.length().as_secs_f64()))?;
    // All that the gateway reads: each fetch asks for each partition, whatever comes of it.
    let loaded = (0..options.markets).filter(|_| options.market_rate > 0.0).map(|number| topic(DueItem::Tick(number)));
    let topics = World::topics().into_iter().map(|(name, _)| name).chain(loaded).collect();
    let kafka = floor(LoopSource::Kafka { brokers: brokers.to_owned(), topics })?;
    Ok(FleetRound { gateway: None, send, kafka })
}

fn measure_floor(options: &Options, frame_bytes: usize, brokers: &str, source: LoopSource) -> Result<Measurement> {
    let load = options.load();
    let is_kafka = matches!(source, LoopSource::Kafka { .. });
    let name = if is_kafka { "kafka loop" } else { "send loop" };
    let cores: Vec<usize> = options.floor_core().into_iter().collect();
    let count = loops(options)?;
    let plan = |number: u32| {
        // Clients come in turns.
        let clients = load.clients.saturating_sub(number).div_ceil(count);
        FloorPlan { load, clients, frame_bytes, source: source.clone() }
    };
    let mut loops: Vec<Worker> =
        (0..count).map(|number| Worker::start("fleet-floor", &plan(number), &cores)).collect::<Result<_>>()?;
    let target = |one: &mut Worker| {
        let FloorSays::Listens(address) = one.hear(FLOOR_WITHIN)? else { bail!("a bare loop begins with its address") };
        Ok(Target { url: format!("ws://{address}/ws"), address })
    };
    let targets = loops.iter_mut().map(target).collect::<Result<_>>()?;
    let pids = loops.iter().map(Worker::pid).collect();
    let subject = Subject { name, targets, pids, token: "none".into(), supports_churn: false };
    let part = measure(options, &subject, || {
        for one in &mut loops {
            ensure!(
                one.hear::<FloorSays>(FLOOR_WITHIN)? == FloorSays::Ready,
                "a bare loop is ready when all are there"
            );
        }
        for one in &mut loops {
            one.tell(&"begin")?;
        }
        let length = options.length();
        Ok(if is_kafka {
            producer::start(brokers.to_owned(), load, length)
        } else {
            thread::spawn(move || producer::of_schedule(&load, length))
        })
    })?;
    loops.iter_mut().for_each(Worker::close);
    let (mut all_sent, mut all_refused) = (0, 0);
    for one in &mut loops {
        let FloorSays::Sent { frames, refused } = one.hear(FLOOR_WITHIN)? else {
            bail!("a bare loop tells what it sent")
        };
        all_sent += frames;
        all_refused += refused;
    }
    println!("{name:<12} {all_sent} frames sent, {all_refused} refused by sockets that were full");
    Ok(part)
}

/// How many processes a bare loop is: as many as the pods, and as its sockets need.
fn loops(options: &Options) -> Result<u32> {
    let per_process = measure::descriptors_max().saturating_sub(floor::SPARE_DESCRIPTORS).max(1);
    let needed = u64::from(options.clients).div_ceil(per_process);
    Ok(options.pods.max(u32::try_from(needed).context("fewer processes")?))
}
