//! The cost of an idle pod: its share of a core without a client, the memory and CPU time that each client adds if it
//! gets nothing but heartbeats, and how much more the machine seems to wait for I/O than before the pod. Figures with a
//! bound are shown beside it.
//!
//! ```text
//! without the pod: --seconds
//! pod ready, warm-up │ alone: --seconds │ clients connect, warm-up │ held: --heartbeats × --heartbeat-ms │ memory
//! ```
//!
//! The CPU time of connections is what the pod uses with them, less what it uses alone. The window has whole heartbeat
//! intervals, so that every client has the same number of heartbeats. Memory is read after the heartbeats, so it
//! includes what they leave behind.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::bounds::{self, Bound, BoundRow};
use super::io_wait::IoWait;
use super::machine_noise::{Discarded, Noise, Noisy};
use super::measure::{ConnectedClients, PerConnection};
use super::report::write_json;
use super::usage::UsageInterval;

/// Bound of the CPU time of a pod without a client, and of one with 10,000, in percent of a core.
const IDLE_PERCENT_MAX: f64 = 0.5;

/// Bound of what the pod adds to waits for I/O, in percent. It adds nothing; others' waits differ by less than this.
const IO_WAIT_PERCENT_MAX: f64 = 2.0;

/// Bound of the pod's own memory per connection, in bytes.
const MEMORY_BYTES_MAX: f64 = 600.0;

/// Bound of the CPU time per connection, in microseconds per second.
const CPU_US_MAX: f64 = 1.0;

/// Options of a measurement of an idle pod and its clients. `--seconds` is the time without a client, and `--warm-up`
/// the pause before each measurement.
#[derive(Debug, Clone, Serialize, clap::Args)]
#[group(skip)]
#[command(mut_args(for_idle))]
pub struct Options {
    /// The pod and its clients.
    #[command(flatten)]
    #[serde(flatten)]
    pub fleet: super::Options,
    /// HEARTBEAT_INTERVAL of the pod, in milliseconds.
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(100..))]
    pub heartbeat_ms: u32,
    /// Number of heartbeat intervals in the measurement with clients.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub heartbeats: u32,
}

/// Changes the fleet's arguments: hides those of the load.
fn for_idle(argument: clap::Arg) -> clap::Arg {
    match argument.get_id().as_str() {
        "clients" => argument.default_value("10000"),
        "seconds" => argument.default_value("30").help("Length of the measurement without a client, in seconds"),
        "warm_up" => argument.default_value("5").help("Pause before each measurement, in seconds"),
        "rate" => argument.default_value("0").hide(true),
        "settings"
        | "connects_per_second"
        | "processes"
        | "gateway_cores"
        | "rounds"
        | "repeats"
        | "json"
        | "heartbeat_ms"
        | "heartbeats" => argument,
        _ => argument.hide(true),
    }
}

impl Options {
    fn check(&self) -> Result<()> {
        let fleet = &self.fleet;
        fleet.check()?;
        ensure!(
            fleet.url.is_empty() && fleet.pods == 1,
            "idle measures one pod that it starts: leave out --url and --pods"
        );
        let is_loaded = [fleet.rate, fleet.market_rate, fleet.reconnects_per_second, fleet.slow_share];
        ensure!(is_loaded == [0.0; 4] && !fleet.with_floor, "an idle pod has no load, and no floor");
        Ok(())
    }

    /// The fleet's options with the heartbeat interval, which an explicit setting overrides.
    fn with_heartbeat(&self) -> super::Options {
        let mut fleet = self.fleet.clone();
        fleet.settings.insert(0, format!("HEARTBEAT_INTERVAL={}", self.heartbeat_ms));
        fleet
    }
}

/// A measurement of a pod alone and with its clients.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IdleRound {
    /// Waits for I/O without the pod.
    pub without_pod: IoWait,
    /// Waits for I/O without a client.
    pub alone_io: IoWait,
    /// Waits for I/O with all clients.
    pub held_io: IoWait,
    /// Usage without a client.
    pub alone: UsageInterval,
    /// Usage with all clients.
    pub held: UsageInterval,
    /// Number of clients.
    pub clients: u32,
    /// Memory per connection at the end.
    pub memory: PerConnection,
    /// Heartbeats that clients read during the measurement.
    pub heartbeats: u64,
    /// Connections that were lost.
    pub lost: u64,
}

/// The report.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct IdleReport {
    /// The options.
    pub options: serde_json::Value,
    /// The table.
    pub rows: Vec<BoundRow>,
    /// Remarks about the figures.
    pub remarks: Vec<String>,
    /// The rounds.
    pub rounds: Vec<IdleRound>,
    /// Discarded measurements, because the machine was noisy.
    pub discarded: Vec<Discarded>,
}

/// Measures, prints the table and writes the JSON file.
///
/// # Errors
/// If the options contradict each other, or a process exits.
pub fn run(options: &Options) -> Result<IdleReport> {
    options.check()?;
    let fleet = options.with_heartbeat();
    let world = super::start_world(&fleet);
    let (rounds, discarded) = fleet.rounds.measure(|_| {
        println!("{:<12} without the pod: {} s", "machine", fleet.seconds);
        let (without_pod, ()) = IoWait::of(|| pause(fleet.seconds))?;
        let (_pods, subject) = super::start_pods(&fleet, &world)?;
        IdleRound::measure(options, &fleet, &subject, without_pod)
    })?;
    let options_json = serde_json::to_value(options).context("options are JSON")?;
    let report = IdleReport::of(options_json, rounds, discarded);
    let json = fleet.rounds.json_file("idle");
    write_json(&json, &report)?;
    print!("\n{}", report.table());
    println!("JSON: {}", json.display());
    Ok(report)
}

/// A fixed time. It does not wait for an event.
fn pause(seconds: f64) {
    thread::sleep(Duration::from_secs_f64(seconds));
}

impl IdleRound {
    fn measure(
        options: &Options,
        fleet: &super::Options,
        subject: &super::Subject,
        without_pod: IoWait,
    ) -> Result<Self> {
        let measure = |what: &str, seconds: f64| {
            println!("{:<12} {what}: {seconds} s", subject.name);
            let (io, usage) = IoWait::of(|| {
                UsageInterval::of(&subject.pids, || {
                    pause(seconds);
                    Ok(())
                })
            })?;
            Ok::<_, anyhow::Error>((usage?.0, io))
        };
        pause(fleet.warm_up);
        let (alone, alone_io) = measure("without a client", fleet.seconds)?;
        let mut clients = ConnectedClients::connect(fleet, subject)?;
        pause(fleet.warm_up);
        let before = clients.counts()?;
        let held_seconds = f64::from(options.heartbeats) * f64::from(options.heartbeat_ms) / 1e3;
        let (held, held_io) = measure(&format!("with {} idle clients", fleet.clients), held_seconds)?;
        let after = clients.counts()?;
        let memory = clients.per_connection(fleet, subject)?;
        clients.stop()?;
        let heartbeats = after.since(&before).pings;
        let lost = after.closed.values().sum();
        Ok(Self { without_pod, alone_io, held_io, alone, held, clients: fleet.clients, memory, heartbeats, lost })
    }

    fn parts(&self) -> [(&'static str, &UsageInterval); 2] {
        [("without a client", &self.alone), ("with its clients", &self.held)]
    }

    /// Converts cores above those of the pod alone to microseconds per second and connection.
    fn us_per_connection(&self, cores_beyond: f64) -> f64 {
        cores_beyond * 1e6 / f64::from(self.clients)
    }
}

impl Noisy for IdleRound {
    fn faults(&self) -> Vec<String> {
        let faults = |(name, interval)| {
            Noise::of_interval(interval).faults().into_iter().map(move |fault| format!("{name}: {fault}"))
        };
        self.parts().into_iter().flat_map(faults).collect()
    }

    fn noise(&self) -> f64 {
        self.parts().into_iter().map(|(_, interval)| Noise::of_interval(interval).total()).sum()
    }
}

impl IdleReport {
    /// Summarizes rounds and discarded measurements.
    #[must_use]
    pub fn of(options: serde_json::Value, rounds: Vec<IdleRound>, discarded: Vec<Discarded>) -> Self {
        let rows = rows(&rounds);
        let mut remarks = Vec::new();
        for (number, round) in rounds.iter().enumerate() {
            let prefix = if rounds.len() > 1 { format!("round {}, ", number + 1) } else { String::new() };
            remarks.extend(round.faults().into_iter().map(|fault| format!("{prefix}{fault}")));
            if round.lost > 0 {
                remarks.push(format!("{prefix}{} connections were closed", round.lost));
            }
        }
        remarks.extend(
            discarded
                .iter()
                .map(|Discarded { what, why }| format!("discarded measurement of {what}: {}", why.join("; "))),
        );
        Self { options, rows, remarks, rounds, discarded }
    }

    /// Whether every bound is met.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.rows.iter().all(|row| row.is_held() != Some(false))
    }

    /// The table with the remarks below.
    #[must_use]
    pub fn table(&self) -> String {
        bounds::table(&self.rows, &self.remarks)
    }
}

fn rows(rounds: &[IdleRound]) -> Vec<BoundRow> {
    let row = |name: &str, at_most: Option<f64>, of: &dyn Fn(&IdleRound) -> f64| {
        BoundRow::of(name, at_most.map(Bound::AtMost), rounds.iter().map(of))
    };
    let threads: BTreeSet<&String> = rounds.iter().flat_map(|round| round.held.usage.threads_ns.keys()).collect();
    // Rows of the threads, the busiest first.
    let of_threads = |of: &dyn Fn(&IdleRound, &str) -> f64| {
        let one = |name: &&String| row(&format!("  {name}"), None, &|round| of(round, name));
        let mut rows: Vec<BoundRow> = threads.iter().filter_map(one).collect();
        rows.sort_by(|a, b| b.median.total_cmp(&a.median));
        rows
    };
    let percent = |ns: u64, interval: &UsageInterval| ns as f64 / 1e7 / interval.seconds;
    let beyond = |round: &IdleRound| round.us_per_connection(round.held.cores() - round.alone.cores());
    let beyond_of = |round: &IdleRound, name: &str| {
        round.us_per_connection(round.held.cores_of_thread(name) - round.alone.cores_of_thread(name))
    };

    let mut rows = Vec::new();
    rows.extend(row("pod alone, % of a core", Some(IDLE_PERCENT_MAX), &|round| round.alone.cores() * 100.0));
    rows.extend(of_threads(&|round, name| round.alone.cores_of_thread(name) * 100.0));
    rows.extend(row("pod with its clients, % of a core", Some(IDLE_PERCENT_MAX), &|round| round.held.cores() * 100.0));
    rows.extend(row("own memory per connection, bytes", Some(MEMORY_BYTES_MAX), &|round| round.memory.user));
    rows.extend(row("kernel memory per connection, bytes", None, &|round| round.memory.kernel));
    rows.extend(row("CPU per connection, us per second", Some(CPU_US_MAX), &beyond));
    rows.extend(of_threads(&beyond_of));
    for (name, of) in
        [("alone", (|round| &round.alone_io) as fn(&IdleRound) -> &IoWait), ("with clients", |round| &round.held_io)]
    {
        let bound = Some(IO_WAIT_PERCENT_MAX);
        let iowait = |round: &IdleRound| of(round).iowait - round.without_pod.iowait;
        rows.extend(row(&format!("{name}: iowait above that without the pod, %"), bound, &iowait));
        let pressure = |round: &IdleRound| {
            let both = of(round).pressure.zip(round.without_pod.pressure);
            both.map_or(f64::NAN, |(with, without)| with - without)
        };
        rows.extend(row(&format!("{name}: I/O pressure above that without the pod, %"), bound, &pressure));
    }
    rows.extend(row("heartbeats per connection", None, &|round| round.heartbeats as f64 / f64::from(round.clients)));
    for (name, of) in
        [("alone", (|round| &round.alone) as fn(&IdleRound) -> &UsageInterval), ("with clients", |round| &round.held)]
    {
        let waited = |round: &IdleRound| percent(of(round).usage.waited_ns, of(round));
        rows.extend(row(&format!("{name}: waiting for a core, %"), None, &waited));
        let machine = |round: &IdleRound| of(round).machine.share(of(round).machine.busy) * 100.0;
        rows.extend(row(&format!("{name}: machine busy, %"), None, &machine));
        let stolen = |round: &IdleRound| of(round).machine.share(of(round).machine.steal) * 100.0;
        rows.extend(row(&format!("{name}: machine stolen, %"), None, &stolen));
    }
    rows
}

#[cfg(test)]
mod tests;
