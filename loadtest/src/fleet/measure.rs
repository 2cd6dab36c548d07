//! One measurement: clients connect, the load runs, and within a window the clients' counts and the processes' use of
//! the machine are looked at together. What serves them is a gateway or a bare loop: here it is an address and a
//! process.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::Options;
use super::producer::Produced;
use super::profile::{Profile, Samples};
use super::statistics::{Latencies, Percentiles};
use super::usage::{KernelMemory, MachineUsage, Usage, UsageInterval, memory};
use super::wire::{ClientsPlan, Counts, Target};
use super::workers::{Workers, sum};

/// Clients are connected within this time beyond what their pace takes.
const CONNECTED_WITHIN: Duration = Duration::from_secs(60);

/// How long the processes are looked at before the first connection, for what they use at rest.
const AT_REST: Duration = Duration::from_secs(1);

/// What is due is waited for as long as more comes, and then so long.
const DRAINED_AFTER: Duration = Duration::from_secs(3);

/// Between two looks at how far it is, while clients connect and while the rest comes in.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Descriptors of a process that no client takes.
const SPARE_DESCRIPTORS: u64 = 500;

/// What serves the clients.
#[derive(Debug, Clone)]
pub struct Subject {
    /// For the progress.
    pub name: &'static str,
    /// Where it listens.
    pub targets: Vec<Target>,
    /// Its processes, where they are of this machine.
    pub pids: Vec<u32>,
    /// What its clients show.
    pub token: String,
    /// Whether clients may be slow, and may drop their connections: a bare loop knows neither.
    pub supports_churn: bool,
}

/// What was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measurement {
    /// From the first connection until all clients had `connected`, in seconds.
    pub connecting_seconds: f64,
    /// Handshakes, in milliseconds.
    pub handshakes: Option<Percentiles>,
    /// The processes at rest, just before the first connection, where they are of this machine.
    pub at_rest: Option<UsageInterval>,
    /// The same from the first connection until all clients had `connected`.
    pub while_connecting: Option<UsageInterval>,
    /// The memory of the processes that is their own, per connection, in bytes.
    pub memory_per_connection: Option<f64>,
    /// What the kernel of this machine holds for the processes' end of a connection that is idle, in bytes: what came
    /// while the clients connected, less the clients' ends. See [`KernelMemory`]. Others' sockets and files are in it,
    /// so that it wants thousands of connections.
    pub kernel_memory_per_connection: Option<f64>,
    /// The window's length, in seconds.
    pub seconds: f64,
    /// Events and ticks that were read within it.
    pub deliveries: u64,
    /// What the processes used within it, where they are of this machine.
    pub usage: Option<Usage>,
    /// What their use is split into their own and the kernel's by; without, it is by the kernel's ticks.
    pub samples: Option<Samples>,
    /// What the machine did within it.
    pub machine: MachineUsage,
    /// The busiest process of clients: its share of a core, and the share of time that it waited for one.
    pub client_busy: f64,
    /// See `client_busy`.
    pub client_waiting: f64,
    /// From an event's due time until it was read.
    pub latencies: Option<Percentiles>,
    /// The same for ticks.
    pub tick_latencies: Option<Percentiles>,
    /// The same for slow clients, and for what was due while a client was away.
    pub late_latencies: Option<Percentiles>,
    /// What came second by second.
    pub timeline: Vec<Moment>,
    /// What was made, from the first to the last.
    pub made: Produced,
    /// From a record's due time until it was made.
    pub lateness: Option<Percentiles>,
    /// What all clients counted, from the first to the last.
    pub counts: Counts,
}

/// A second of the window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Its end, since the window's begin.
    pub at_seconds: f64,
    /// Deliveries a second.
    pub deliveries_per_second: f64,
    /// Latencies of what was read in it.
    pub latencies: Option<Percentiles>,
    /// Cores that the processes used.
    pub cores: Option<f64>,
    /// The memory at its end that is the processes' own, in bytes.
    pub memory: Option<u64>,
}

impl Measurement {
    /// The processes' time on cores for a handshake, beyond what they use at rest, in nanoseconds.
    #[must_use]
    pub fn handshake_ns(&self) -> Option<f64> {
        let used = self.while_connecting.as_ref()?.ns_beyond(self.at_rest.as_ref()?);
        Some(used / self.handshakes?.samples as f64)
    }

    /// Events that are due to clients and did not come.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.made.event_deliveries.saturating_sub(self.counts.events)
    }

    /// Events that came and are due to nobody.
    #[must_use]
    pub fn doubled(&self) -> u64 {
        self.counts.events.saturating_sub(self.made.event_deliveries)
    }
}

/// A look at all at once.
struct MeasureSnapshot {
    at: Instant,
    each: Vec<Counts>,
    all: Counts,
    usage: Option<Usage>,
    memory: Option<u64>,
    machine: MachineUsage,
}

impl MeasureSnapshot {
    fn take(workers: &mut Workers, pids: &[u32]) -> Result<Self> {
        let each = workers.mark()?;
        let is_here = !pids.is_empty();
        let usage = is_here.then(|| Usage::of_all(pids)).transpose()?;
        let memory = is_here.then(|| memory_of(pids)).transpose()?;
        Ok(Self { at: Instant::now(), all: sum(&each), each, usage, memory, machine: MachineUsage::now()? })
    }
}

fn memory_of(pids: &[u32]) -> Result<u64> {
    pids.iter().map(|pid| memory(*pid)).sum()
}

/// Connects the clients, lets `begin` begin the load, and measures; `begin` returns what makes the records.
///
/// # Errors
/// If clients can't connect, or a process ends.
pub fn measure(
    options: &Options,
    subject: &Subject,
    begin: impl FnOnce() -> Result<JoinHandle<Produced>>,
) -> Result<Measurement> {
    let mut clients = ConnectedClients::connect(options, subject)?;
    let part = clients.measure(options, subject, begin)?;
    clients.stop()?;
    Ok(part)
}

/// Memory that is held for connections, per connection, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PerConnection {
    /// The processes' own.
    pub user: f64,
    /// The kernel's, as [`Measurement::kernel_memory_per_connection`].
    pub kernel: f64,
}

/// Clients that are connected, for one load or for some, one after the other.
pub struct ConnectedClients {
    workers: Workers,
    connecting: Duration,
    handshakes: Latencies,
    /// The processes at rest, and while clients connected.
    stretches: Option<[UsageInterval; 2]>,
    /// The memory before the first connection.
    without_any: (u64, KernelMemory),
    memory: Option<PerConnection>,
    /// What was counted before the load that is measured next.
    before: Counts,
}

impl ConnectedClients {
    /// Connects them.
    ///
    /// # Errors
    /// If they can't connect, or a process ends.
    pub fn connect(options: &Options, subject: &Subject) -> Result<Self> {
        let mut workers = Workers::start(&plans(options, subject)?, &options.other_cores())?;
        // Who answers has all that it needs: what memory grows by from now on is that of connections.
        workers.mark()?;
        let is_here = !subject.pids.is_empty();
        // A pace, not a wait for something.
        let (at_rest, ()) = UsageInterval::of(&subject.pids, || {
            thread::sleep(if is_here { AT_REST } else { Duration::ZERO });
            Ok(())
        })?;
        let without_any = (memory_of(&subject.pids)?, KernelMemory::now()?);
        let (while_connecting, (connecting, handshakes)) = UsageInterval::of(&subject.pids, || {
            workers.connect()?;
            await_connected(options, subject, &mut workers)
        })?;
        println!("{:<12} {} clients connected in {:.2} s", subject.name, options.clients, connecting.as_secs_f64());
        let stretches = is_here.then_some([at_rest, while_connecting]);
        let before = Counts::default();
        let mut clients = Self { workers, connecting, handshakes, stretches, without_any, memory: None, before };
        clients.memory = is_here.then(|| clients.per_connection(options, subject)).transpose()?;
        Ok(clients)
    }

    /// The memory of a connection, as it is now.
    ///
    /// # Errors
    /// If a process has ended.
    pub fn per_connection(&self, options: &Options, subject: &Subject) -> Result<PerConnection> {
        let (user, kernel) = self.without_any;
        Ok(PerConnection {
            user: memory_of(&subject.pids)?.saturating_sub(user) as f64 / f64::from(options.clients),
            kernel: KernelMemory::now()?.per_connection_since(&kernel, options.clients),
        })
    }

    /// What all have counted so far.
    ///
    /// # Errors
    /// If a process has ended.
    pub fn counts(&mut self) -> Result<Counts> {
        Ok(sum(&self.workers.mark()?))
    }

    /// Ends them.
    ///
    /// # Errors
    /// If a process has ended already.
    pub fn stop(&mut self) -> Result<()> {
        self.workers.stop().map(|_| ())
    }

    /// Returns when all are there again: a load before may have been more than the gateway held. What comes until then
    /// is counted to no load.
    ///
    /// # Errors
    /// If they can't connect, or a process ends.
    pub fn settle(&mut self, options: &Options, subject: &Subject) -> Result<()> {
        await_connected(options, subject, &mut self.workers)?;
        self.before = self.counts()?;
        Ok(())
    }

    /// Lets `begin` begin a load, and measures.
    ///
    /// # Errors
    /// If a process ends.
    pub fn measure(
        &mut self,
        options: &Options,
        subject: &Subject,
        begin: impl FnOnce() -> Result<JoinHandle<Produced>>,
    ) -> Result<Measurement> {
        let maker = begin()?;
        let window = Window::run(options, subject, &mut self.workers)?;
        let made = maker.join().map_err(|_| anyhow::anyhow!("the producer failed: its message is above"))?;
        let Window { first, last, samples, mut collected, timeline } = window;
        drain(&mut self.workers, &self.before, &made, &mut collected)?;
        let counts = self.counts()?;
        collected.add(&counts);
        let counts = counts.since(&self.before);
        let [at_rest, while_connecting] = self.stretches.clone().map_or([None, None], |both| both.map(Some));

        let seconds = (last.at - first.at).as_secs_f64();
        let busiest = |of: fn(&Usage) -> u64| {
            let pairs = first.each.iter().zip(&last.each);
            let shares = pairs.map(|(first, last)| of(&last.usage.since(&first.usage)) as f64 / 1e9 / seconds);
            shares.fold(0.0, f64::max)
        };
        Ok(Measurement {
            connecting_seconds: self.connecting.as_secs_f64(),
            handshakes: self.handshakes.percentiles(),
            at_rest,
            while_connecting,
            memory_per_connection: self.memory.map(|memory| memory.user),
            kernel_memory_per_connection: self.memory.map(|memory| memory.kernel),
            seconds,
            deliveries: last.all.deliveries() - first.all.deliveries(),
            usage: last.usage.as_ref().zip(first.usage.as_ref()).map(|(last, first)| {
                let usage = last.since(first);
                match &samples {
                    Some(samples) => samples.split(usage),
                    None => usage,
                }
            }),
            samples,
            machine: last.machine.since(&first.machine),
            client_busy: busiest(Usage::total_ns),
            client_waiting: busiest(|usage| usage.waited_ns),
            latencies: collected.events.percentiles(),
            tick_latencies: collected.ticks.percentiles(),
            late_latencies: collected.late.percentiles(),
            timeline,
            lateness: made.lateness.percentiles(),
            made,
            counts,
        })
    }
}

/// The latencies of a window, of all its looks: also of those after its end, for what was due in it and came late.
#[derive(Default)]
struct Collected {
    events: Latencies,
    ticks: Latencies,
    late: Latencies,
}

impl Collected {
    fn add(&mut self, counts: &Counts) {
        self.events.add(&counts.latencies);
        self.ticks.add(&counts.tick_latencies);
        self.late.add(&counts.late_latencies);
    }
}

/// The load while it runs, after its warm-up.
struct Window {
    first: MeasureSnapshot,
    last: MeasureSnapshot,
    samples: Option<Samples>,
    collected: Collected,
    timeline: Vec<Moment>,
}

impl Window {
    fn run(options: &Options, subject: &Subject, workers: &mut Workers) -> Result<Self> {
        let begin = Instant::now() + Duration::from_secs_f64(options.warm_up);
        let end = begin + Duration::from_secs_f64(options.seconds);
        // A pace, not a wait for something.
        let sleep_until = |at: Instant| thread::sleep(at.saturating_duration_since(Instant::now()));
        sleep_until(begin);
        // Without samples the split is by ticks, and the report says so.
        let mut profile = Profile::begin(&subject.pids).ok();
        let first = MeasureSnapshot::take(workers, &subject.pids)?;
        let (mut before, mut collected, mut timeline): (Option<MeasureSnapshot>, _, Vec<Moment>) =
            (None, Collected::default(), Vec::new());
        loop {
            let second = u32::try_from(timeline.len()).expect("a run is shorter than an age") + 1;
            let at = (begin + Duration::from_secs(1) * second).min(end);
            sleep_until(at);
            let look = MeasureSnapshot::take(workers, &subject.pids)?;
            let samples = profile.as_mut().map(Profile::read);
            let moment = Moment::between(before.as_ref().unwrap_or(&first), &look, first.at);
            println!("{}", moment.line(options, subject, &look));
            collected.add(&look.all);
            timeline.push(moment);
            if at == end {
                return Ok(Self { first, last: look, samples, collected, timeline });
            }
            before = Some(look);
        }
    }
}

impl Moment {
    fn between(before: &MeasureSnapshot, after: &MeasureSnapshot, start: Instant) -> Self {
        let seconds = (after.at - before.at).as_secs_f64();
        let used = after.usage.as_ref().zip(before.usage.as_ref());
        Self {
            at_seconds: (after.at - start).as_secs_f64(),
            deliveries_per_second: (after.all.deliveries() - before.all.deliveries()) as f64 / seconds,
            latencies: after.all.latencies.percentiles().or_else(|| after.all.tick_latencies.percentiles()),
            cores: used.map(|(after, before)| after.since(before).total_ns() as f64 / 1e9 / seconds),
            memory: after.memory,
        }
    }

    fn line(&self, options: &Options, subject: &Subject, look: &MeasureSnapshot) -> String {
        let latencies = self.latencies.map_or(String::new(), |latencies| {
            format!(", p50 {:.2} ms, p99 {:.2} ms", latencies.p50_ms, latencies.p99_ms)
        });
        let cores = self.cores.map_or(String::new(), |cores| format!(", {:.0} % of a core", cores * 100.0));
        format!(
            "{:<12} {:>5.1} of {} s: {} open, {:.0} deliveries/s{latencies}{cores}",
            subject.name, self.at_seconds, options.seconds, look.all.open, self.deliveries_per_second
        )
    }
}

/// Shares the clients out to as many processes as their descriptors need.
fn plans(options: &Options, subject: &Subject) -> Result<Vec<ClientsPlan>> {
    let per_process = descriptors_max().saturating_sub(SPARE_DESCRIPTORS).max(1);
    let needed = u32::try_from(u64::from(options.clients).div_ceil(per_process)).context("fewer processes")?;
    let processes = options.processes.unwrap_or(needed).clamp(needed, options.clients);
    let part = |of: f64| if subject.supports_churn { of } else { 0.0 };
    let load = options.load();
    let cut = |number: u32| u64::from(options.clients) * u64::from(number) / u64::from(processes);
    let plan = |number: u32| {
        let (first, next) = (cut(number), cut(number + 1));
        let count = u32::try_from(next - first).expect("a part of a u32");
        let share = f64::from(count) / f64::from(options.clients);
        let slow = (part(options.slow_share) * f64::from(count)).round() as u32;
        // Each of those who come back does so every ten seconds, or oftener where these are all.
        let returns_per_second = part(options.reconnects_per_second) * share;
        let returning = ((returns_per_second * 10.0).ceil() as u32).min(count - slow);
        ClientsPlan {
            targets: subject.targets.clone(),
            token: subject.token.clone(),
            load,
            first: u32::try_from(first).expect("a part of a u32"),
            count,
            connects_per_second: options.connects_per_second * share,
            slow,
            slow_bytes_per_second: options.slow_bytes_per_second,
            returning,
            returns_per_second,
            sample: options.sample,
        }
    };
    Ok((0..processes).map(plan).collect())
}

/// How many descriptors a process may have.
pub(super) fn descriptors_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is of a live struct of the type that getrlimit fills.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
    limit.rlim_max
}

fn await_connected(options: &Options, subject: &Subject, workers: &mut Workers) -> Result<(Duration, Latencies)> {
    let (start, clients) = (Instant::now(), u64::from(options.clients));
    let pace = Duration::from_secs_f64(f64::from(options.clients) / options.connects_per_second);
    let (mut handshakes, mut told) = (Latencies::default(), Instant::now());
    loop {
        let counts = sum(&workers.mark()?);
        handshakes.add(&counts.handshakes);
        if counts.open >= clients {
            let took = start.elapsed();
            return Ok((took, handshakes));
        }
        if start.elapsed() > pace + CONNECTED_WITHIN {
            bail!(
                "{} of {clients} clients are connected; failed: {:?}, closed: {:?}",
                counts.open,
                counts.failed,
                counts.closed
            );
        }
        if told.elapsed() > Duration::from_secs(1) {
            told = Instant::now();
            println!("{:<12} {} of {clients} clients connected", subject.name, counts.open);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Returns when all that is due has come, or nothing comes any more.
fn drain(workers: &mut Workers, before: &Counts, made: &Produced, collected: &mut Collected) -> Result<()> {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let counts = sum(&workers.mark()?);
        collected.add(&counts);
        if counts.events != last {
            (last, since) = (counts.events, Instant::now());
        }
        if counts.events - before.events >= made.event_deliveries || since.elapsed() > DRAINED_AFTER {
            return Ok(());
        }
        thread::sleep(LOOK_EVERY);
    }
}
