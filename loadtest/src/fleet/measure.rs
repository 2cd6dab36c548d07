//! One measurement: clients connect, the load runs, and the clients' counts and the processes' usage are read together
//! at the ends of a window. The server may be a gateway or a bare loop: here it is an address and a process.

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

/// Time limit for connecting, in addition to the time that the connection rate takes.
const CONNECTED_WITHIN: Duration = Duration::from_secs(60);

/// Length of the idle measurement before the first connection.
const AT_REST: Duration = Duration::from_secs(1);

/// Time without a delivery after which missing events are given up.
const DRAINED_AFTER: Duration = Duration::from_secs(3);

/// Poll interval while clients connect and while the last events arrive.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// Descriptors of a client process besides its connections.
const SPARE_DESCRIPTORS: u64 = 500;

/// The server under test.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its name in progress lines.
    pub name: &'static str,
    /// Its addresses.
    pub targets: Vec<Target>,
    /// Its process ids, if it is on this machine.
    pub pids: Vec<u32>,
    /// Its clients' token.
    pub token: String,
    /// Whether clients may be slow and reconnect. The bare loops don't support either.
    pub supports_churn: bool,
}

/// The result of a measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measurement {
    /// Seconds from the first connection until all clients had `connected`.
    pub connecting_seconds: f64,
    /// Durations of handshakes.
    pub handshakes: Option<Percentiles>,
    /// Usage of the idle processes just before the first connection, if they are on this machine.
    pub at_rest: Option<UsageInterval>,
    /// The same from the first connection until all clients had `connected`.
    pub while_connecting: Option<UsageInterval>,
    /// The processes' own memory per connection, in bytes.
    pub memory_per_connection: Option<f64>,
    /// Kernel memory per idle connection for the server's end, in bytes: the growth while clients connected, less the
    /// clients' ends. See [`KernelMemory`]. It includes sockets and files of other programs, so that it needs thousands
    /// of connections.
    pub kernel_memory_per_connection: Option<f64>,
    /// Length of the window in seconds.
    pub seconds: f64,
    /// Events and ticks read in the window.
    pub deliveries: u64,
    /// Usage of the processes in the window, if they are on this machine.
    pub usage: Option<Usage>,
    /// Samples that split usage into user and kernel time. Without them the split is by the kernel's ticks.
    pub samples: Option<Samples>,
    /// Usage of the machine in the window.
    pub machine: MachineUsage,
    /// The busiest client process: its share of a core, and its share of time waiting for one.
    pub client_busy: f64,
    /// See `client_busy`.
    pub client_waiting: f64,
    /// Latencies of events, from the due time until they were read.
    pub latencies: Option<Percentiles>,
    /// Latencies of ticks.
    pub tick_latencies: Option<Percentiles>,
    /// Latencies of slow clients, and of events that were due while a client was disconnected.
    pub late_latencies: Option<Percentiles>,
    /// Progress by second.
    pub timeline: Vec<Moment>,
    /// Everything that was produced.
    pub made: Produced,
    /// Lateness of the producer, from a record's due time until it was produced.
    pub lateness: Option<Percentiles>,
    /// The counts of all clients, from the first event to the last.
    pub counts: Counts,
}

/// A second of the window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Its end, in seconds since the start of the window.
    pub at_seconds: f64,
    /// Deliveries per second.
    pub deliveries_per_second: f64,
    /// Latencies of what was read in it.
    pub latencies: Option<Percentiles>,
    /// Cores that the processes used.
    pub cores: Option<f64>,
    /// The processes' own memory at its end, in bytes.
    pub memory: Option<u64>,
}

impl Measurement {
    /// CPU time of the processes per handshake, beyond idle usage, in nanoseconds.
    #[must_use]
    pub fn handshake_ns(&self) -> Option<f64> {
        let used = self.while_connecting.as_ref()?.ns_beyond(self.at_rest.as_ref()?);
        Some(used / self.handshakes?.samples as f64)
    }

    /// Events that were due to clients and did not arrive.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.made.event_deliveries.saturating_sub(self.counts.events)
    }

    /// Events that arrived and were not due.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.counts.events.saturating_sub(self.made.event_deliveries)
    }
}

/// Counts and usage at one time.
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

/// Connects the clients, starts the load with `begin`, and measures. `begin` returns the producer's thread.
///
/// # Errors
/// If clients can't connect, or a process exits.
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

/// Memory per connection, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PerConnection {
    /// The processes' own memory.
    pub user: f64,
    /// Kernel memory, as in [`Measurement::kernel_memory_per_connection`].
    pub kernel: f64,
}

/// Connected clients, for one load or for several in sequence.
pub struct ConnectedClients {
    workers: Workers,
    connecting: Duration,
    handshakes: Latencies,
    /// Usage of the idle processes, and while clients connected.
    intervals: Option<[UsageInterval; 2]>,
    /// Memory before the first connection.
    without_any: (u64, KernelMemory),
    memory: Option<PerConnection>,
    /// Counts before the next measured load.
    before: Counts,
}

impl ConnectedClients {
    /// Connects the clients.
    ///
    /// # Errors
    /// If they can't connect, or a process exits.
    pub fn connect(options: &Options, subject: &Subject) -> Result<Self> {
        let mut workers = Workers::start(&plans(options, subject)?, &options.other_cores())?;
        // A process that answers has allocated its buffers, so later growth of memory is that of connections.
        workers.mark()?;
        let is_here = !subject.pids.is_empty();
        // A fixed time. It does not wait for an event.
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
        let intervals = is_here.then_some([at_rest, while_connecting]);
        let before = Counts::default();
        let mut clients = Self { workers, connecting, handshakes, intervals, without_any, memory: None, before };
        clients.memory = is_here.then(|| clients.per_connection(options, subject)).transpose()?;
        Ok(clients)
    }

    /// The current memory per connection.
    ///
    /// # Errors
    /// If a process has exited.
    pub fn per_connection(&self, options: &Options, subject: &Subject) -> Result<PerConnection> {
        let (user, kernel) = self.without_any;
        Ok(PerConnection {
            user: memory_of(&subject.pids)?.saturating_sub(user) as f64 / f64::from(options.clients),
            kernel: KernelMemory::now()?.per_connection_since(&kernel, options.clients),
        })
    }

    /// The counts of all clients so far.
    ///
    /// # Errors
    /// If a process has exited.
    pub fn counts(&mut self) -> Result<Counts> {
        Ok(sum(&self.workers.mark()?))
    }

    /// Stops the clients.
    ///
    /// # Errors
    /// If a process has already exited.
    pub fn stop(&mut self) -> Result<()> {
        self.workers.stop().map(|_| ())
    }

    /// Waits until all clients are connected again, because the last load may have exceeded what the gateway sustains.
    /// Events until then count for no load.
    ///
    /// # Errors
    /// If they can't connect, or a process exits.
    pub fn settle(&mut self, options: &Options, subject: &Subject) -> Result<()> {
        await_connected(options, subject, &mut self.workers)?;
        self.before = self.counts()?;
        Ok(())
    }

    /// Starts a load with `begin`, and measures.
    ///
    /// # Errors
    /// If a process exits.
    pub fn measure(
        &mut self,
        options: &Options,
        subject: &Subject,
        begin: impl FnOnce() -> Result<JoinHandle<Produced>>,
    ) -> Result<Measurement> {
        let producer = begin()?;
        let window = Window::run(options, subject, &mut self.workers)?;
        let made = producer.join().map_err(|_| anyhow::anyhow!("the producer failed; see its message above"))?;
        let Window { first, last, samples, mut collected, timeline } = window;
        drain(&mut self.workers, &self.before, &made, &mut collected)?;
        let counts = self.counts()?;
        collected.add(&counts);
        let counts = counts.since(&self.before);
        let [at_rest, while_connecting] = self.intervals.clone().map_or([None, None], |both| both.map(Some));

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

/// Latencies of a window, including events that were due in it and arrived after its end.
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

/// The load after its warm-up.
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
        // A fixed time. It does not wait for an event.
        let sleep_until = |at: Instant| thread::sleep(at.saturating_duration_since(Instant::now()));
        sleep_until(begin);
        // Without samples the split is by ticks, and the report says so.
        let mut profile = Profile::begin(&subject.pids).ok();
        let first = MeasureSnapshot::take(workers, &subject.pids)?;
        let (mut before, mut collected, mut timeline): (Option<MeasureSnapshot>, _, Vec<Moment>) =
            (None, Collected::default(), Vec::new());
        loop {
            let second = u32::try_from(timeline.len()).expect("a run has fewer seconds than a u32") + 1;
            let at = (begin + Duration::from_secs(1) * second).min(end);
            sleep_until(at);
            let snapshot = MeasureSnapshot::take(workers, &subject.pids)?;
            let samples = profile.as_mut().map(Profile::read);
            let moment = Moment::between(before.as_ref().unwrap_or(&first), &snapshot, first.at);
            println!("{}", moment.line(options, subject, &snapshot));
            collected.add(&snapshot.all);
            timeline.push(moment);
            if at == end {
                return Ok(Self { first, last: snapshot, samples, collected, timeline });
            }
            before = Some(snapshot);
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

    fn line(&self, options: &Options, subject: &Subject, snapshot: &MeasureSnapshot) -> String {
        let latencies = self.latencies.map_or(String::new(), |latencies| {
            format!(", p50 {:.2} ms, p99 {:.2} ms", latencies.p50_ms, latencies.p99_ms)
        });
        let cores = self.cores.map_or(String::new(), |cores| format!(", {:.0} % of a core", cores * 100.0));
        format!(
            "{:<12} {:>5.1} of {} s: {} open, {:.0} deliveries/s{latencies}{cores}",
            subject.name, self.at_seconds, options.seconds, snapshot.all.open, self.deliveries_per_second
        )
    }
}

/// Distributes the clients over as many processes as their descriptors need.
fn plans(options: &Options, subject: &Subject) -> Result<Vec<ClientsPlan>> {
    let per_process = descriptors_max().saturating_sub(SPARE_DESCRIPTORS).max(1);
    let needed = u32::try_from(u64::from(options.clients).div_ceil(per_process)).context("fewer processes")?;
    let processes = options.processes.unwrap_or(needed).clamp(needed, options.clients);
    let part = |of: f64| if subject.supports_churn { of } else { 0.0 };
    let load = options.load();
    let cut = |number: u32| u64::from(options.clients) * u64::from(number) / u64::from(processes);
    let plan = |number: u32| {
        let (first, next) = (cut(number), cut(number + 1));
        let count = u32::try_from(next - first).expect("at most a u32");
        let share = f64::from(count) / f64::from(options.clients);
        let slow = (part(options.slow_share) * f64::from(count)).round() as u32;
        // Each reconnecting client reconnects every ten seconds, or more often if there are fewer of them.
        let returns_per_second = part(options.reconnects_per_second) * share;
        let returning = ((returns_per_second * 10.0).ceil() as u32).min(count - slow);
        ClientsPlan {
            targets: subject.targets.clone(),
            token: subject.token.clone(),
            load,
            first: u32::try_from(first).expect("at most a u32"),
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

/// Limit of descriptors per process.
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
    let (mut handshakes, mut reported) = (Latencies::default(), Instant::now());
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
        if reported.elapsed() > Duration::from_secs(1) {
            reported = Instant::now();
            println!("{:<12} {} of {clients} clients connected", subject.name, counts.open);
        }
        thread::sleep(POLL_EVERY);
    }
}

/// Waits until everything due has arrived, or nothing arrives any more.
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
        thread::sleep(POLL_EVERY);
    }
}
