//! What an idle pod costs: the share of a core that one takes without a client, and what each client adds, in memory
//! and in time, that is sent nothing but heartbeats. Each figure stands beside its bound, where it has one.
//!
//! ```text
//! pod ready, warm-up │ alone: --seconds │ clients connect, warm-up │ held: --heartbeats × --heartbeat-ms │ memory
//! ```
//!
//! The time of the clients' connections is what the pod used while it held them, less what it used alone. The window is
//! of whole intervals, so that each client has as many heartbeats as any other. Memory is looked at after them: what a
//! heartbeat leaves behind is in it.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::bounds::{self, Bound, BoundRow};
use super::machine_noise::{Discarded, Noise, Noisy};
use super::measure::{ConnectedClients, PerConnection};
use super::report::write_json;
use super::usage::UsageInterval;

/// The highest share of a core for a pod without a client, in percent.
const ALONE_PERCENT_MAX: f64 = 0.5;

/// The most memory for a connection that is the pod's own, in bytes.
const MEMORY_BYTES_MAX: f64 = 1_536.0;

/// The most time on cores for a connection, in microseconds a second.
const CPU_US_MAX: f64 = 1.0;

/// A pod that idles, and then its clients. `--seconds` is how long it is looked at without one, and `--warm-up` how
/// long it is left alone before each look.
#[derive(Debug, Clone, Serialize, clap::Args)]
#[group(skip)]
#[command(mut_args(for_idle))]
pub struct Options {
    /// The pod, and its clients.
    #[command(flatten)]
    #[serde(flatten)]
    pub fleet: super::Options,
    /// The pod's HEARTBEAT_INTERVAL, in milliseconds.
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(100..))]
    pub heartbeat_ms: u32,
    /// How many heartbeats of each client the look at them takes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub heartbeats: u32,
}

/// The fleet's arguments, as an idle one has them: what makes a load is not shown.
fn for_idle(argument: clap::Arg) -> clap::Arg {
    match argument.get_id().as_str() {
        "clients" => argument.default_value("15000"),
        "seconds" => argument.default_value("30").help("How long the pod is looked at without a client, in seconds"),
        "warm_up" => argument.default_value("5").help("How long the pod is left alone before each look, in seconds"),
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
            "idle is of one pod, that it starts: leave out --url and --pods"
        );
        let is_loaded = [fleet.rate, fleet.market_rate, fleet.reconnects_per_second, fleet.slow_share];
        ensure!(is_loaded == [0.0; 4] && !fleet.with_floor, "an idle pod has no load, and no floor");
        Ok(())
    }

    /// The fleet's options, with the heartbeat's setting, which another that is given for it overrides.
    fn with_heartbeat(&self) -> super::Options {
        let mut fleet = self.fleet.clone();
        fleet.settings.insert(0, format!("HEARTBEAT_INTERVAL={}", self.heartbeat_ms));
        fleet
    }
}

/// A pod alone, and then with its clients.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IdleRound {
    /// Without a client.
    pub alone: UsageInterval,
    /// With all of them.
    pub held: UsageInterval,
    /// How many they are.
    pub clients: u32,
    /// What a connection holds at the end.
    pub memory: PerConnection,
    /// Heartbeats that clients read while they were held.
    pub heartbeats: u64,
    /// Connections that were not held to the end.
    pub lost: u64,
}

/// What it came to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct IdleReport {
    /// What was asked for.
    pub options: serde_json::Value,
    /// The table.
    pub rows: Vec<BoundRow>,
    /// What a reader must know of the figures.
    pub remarks: Vec<String>,
    /// The rounds.
    pub rounds: Vec<IdleRound>,
    /// What was measured and thrown away, for the machine was noisy.
    pub discarded: Vec<Discarded>,
}

/// Measures, prints the table, and writes the JSON file.
///
/// # Errors
/// If the options don't fit each other, or a part ends.
pub fn run(options: &Options) -> Result<IdleReport> {
    options.check()?;
    let fleet = options.with_heartbeat();
    let world = super::own_world(&fleet);
    let (rounds, discarded) = fleet.rounds.measure(|_| {
        let (_pods, subject) = super::own_pods(&fleet, &world)?;
        IdleRound::measure(options, &fleet, &subject)
    })?;
    let options_json = serde_json::to_value(options).context("options are JSON")?;
    let report = IdleReport::of(options_json, rounds, discarded);
    let json = fleet.rounds.json_file("idle");
    write_json(&json, &report)?;
    print!("\n{}", report.table());
    println!("all of it: {}", json.display());
    Ok(report)
}

impl IdleRound {
    fn measure(options: &Options, fleet: &super::Options, subject: &super::Subject) -> Result<Self> {
        // Paces, not waits for something.
        let rest = |seconds: f64| {
            thread::sleep(Duration::from_secs_f64(seconds));
            Ok(())
        };
        let look = |what: &str, seconds: f64| {
            println!("{:<12} {what}: {seconds} s", subject.name);
            UsageInterval::of(&subject.pids, || rest(seconds)).map(|(stretch, ())| stretch)
        };
        rest(fleet.warm_up)?;
        let alone = look("without a client", fleet.seconds)?;
        let mut clients = ConnectedClients::connect(fleet, subject)?;
        rest(fleet.warm_up)?;
        let before = clients.counts()?;
        let held_seconds = f64::from(options.heartbeats) * f64::from(options.heartbeat_ms) / 1e3;
        let held = look(&format!("with {} idle clients", fleet.clients), held_seconds)?;
        let after = clients.counts()?;
        let memory = clients.per_connection(fleet, subject)?;
        clients.stop()?;
        let heartbeats = after.since(&before).pings;
        let lost = after.closed.values().sum();
        Ok(Self { alone, held, clients: fleet.clients, memory, heartbeats, lost })
    }

    fn parts(&self) -> [(&'static str, &UsageInterval); 2] {
        [("without a client", &self.alone), ("with its clients", &self.held)]
    }

    /// Microseconds a second for each connection, beyond what there is alone.
    fn us_per_connection(&self, cores_beyond: f64) -> f64 {
        cores_beyond * 1e6 / f64::from(self.clients)
    }
}

impl Noisy for IdleRound {
    fn faults(&self) -> Vec<String> {
        let faults = |(name, stretch)| {
            Noise::of_stretch(stretch).faults().into_iter().map(move |fault| format!("{name}: {fault}"))
        };
        self.parts().into_iter().flat_map(faults).collect()
    }

    fn noise(&self) -> f64 {
        self.parts().into_iter().map(|(_, stretch)| Noise::of_stretch(stretch).total()).sum()
    }
}

impl IdleReport {
    /// Sums up rounds, and what was thrown away for them.
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
        remarks.extend(discarded.iter().map(|Discarded { what, why }| format!("a try of {what}: {}", why.join("; "))));
        Self { options, rows, remarks, rounds, discarded }
    }

    /// Whether each bound is held.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.rows.iter().all(|row| row.is_held() != Some(false))
    }

    /// The table, with the remarks below it.
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
    // Those of the threads, the busiest first.
    let of_threads = |of: &dyn Fn(&IdleRound, &str) -> f64| {
        let one = |name: &&String| row(&format!("  {name}"), None, &|round| of(round, name));
        let mut rows: Vec<BoundRow> = threads.iter().filter_map(one).collect();
        rows.sort_by(|a, b| b.median.total_cmp(&a.median));
        rows
    };
    let percent = |ns: u64, stretch: &UsageInterval| ns as f64 / 1e7 / stretch.seconds;
    let beyond = |round: &IdleRound| round.us_per_connection(round.held.cores() - round.alone.cores());
    let beyond_of = |round: &IdleRound, name: &str| {
        round.us_per_connection(round.held.cores_of_thread(name) - round.alone.cores_of_thread(name))
    };

    let mut rows = Vec::new();
    rows.extend(row("pod alone, % of a core", Some(ALONE_PERCENT_MAX), &|round| round.alone.cores() * 100.0));
    rows.extend(of_threads(&|round, name| round.alone.cores_of_thread(name) * 100.0));
    rows.extend(row("own memory a connection, bytes", Some(MEMORY_BYTES_MAX), &|round| round.memory.user));
    rows.extend(row("kernel memory a connection, bytes", None, &|round| round.memory.kernel));
    rows.extend(row("CPU a connection, us a second", Some(CPU_US_MAX), &beyond));
    rows.extend(of_threads(&beyond_of));
    rows.extend(row("heartbeats a connection", None, &|round| round.heartbeats as f64 / f64::from(round.clients)));
    for (name, of) in
        [("alone", (|round| &round.alone) as fn(&IdleRound) -> &UsageInterval), ("with clients", |round| &round.held)]
    {
        let waited = |round: &IdleRound| percent(of(round).usage.waited_ns, of(round));
        rows.extend(row(&format!("{name}: waited for a core, %"), None, &waited));
        let machine = |round: &IdleRound| of(round).machine.share(of(round).machine.busy) * 100.0;
        rows.extend(row(&format!("{name}: machine busy, %"), None, &machine));
        let stolen = |round: &IdleRound| of(round).machine.share(of(round).machine.steal) * 100.0;
        rows.extend(row(&format!("{name}: machine stolen, %"), None, &stolen));
    }
    rows
}

#[cfg(test)]
mod tests;
