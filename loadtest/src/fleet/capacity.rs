//! The capacity: the highest load with p99 latency under a bound and nothing missing, closed or reset. One gateway and
//! the same clients take one load after the other. The search ([`search`]) chooses the loads, and the sizing
//! ([`sizing`]) derives a fleet from the highest load sustained. For a load that is not sustained, the report names
//! what limited it, which need not be the gateway.

pub mod search;
pub mod sizing;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::machine_noise::{Discarded, Noise};
use super::measure::{ConnectedClients, Measurement, Subject};
use super::outcome::{Capacity, FleetRound, Limit, SearchStep, Sizing};
use super::producer;
use super::report::{FleetReport, cell, clients_limit};
use super::statistics::Percentiles;
use super::{above_zero, not_negative};
use search::CapacitySearch;
use sizing::{Wanted, grouped};

/// If the gateway's busiest thread runs for less than this share of the time, the gateway is not the limit.
const GATEWAY_BUSY_MIN: f64 = 0.7;

/// If the producer's p99 lateness is over this share of the bound, the producer is the limit.
const PRODUCER_PART: f64 = 0.5;

/// Options of a search for the capacity. It starts at `--rate` and `--market-rate` and scales both. `--seconds` and
/// `--warm-up` apply to each step.
#[derive(Debug, Clone, Serialize, clap::Args)]
#[group(skip)]
pub struct Options {
    /// The clients and their load.
    #[command(flatten)]
    #[serde(flatten)]
    pub fleet: super::Options,
    /// Bound of p99 latency, from the due time to the client's read, in milliseconds.
    #[arg(long, default_value_t = 50.0, value_parser = above_zero)]
    pub p99_ms: f64,
    /// Factor between steps, until a load is not sustained.
    #[arg(long, default_value_t = 2.0, value_parser = factor)]
    pub step_factor: f64,
    /// Final ratio between the lowest load not sustained and the highest sustained, less one: 0.05 is a twentieth.
    #[arg(long, default_value_t = 0.05, value_parser = above_zero)]
    pub precision: f64,
    /// Largest number of steps.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub steps_max: u32,
    /// Number of clients in the fleet to be sized.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub fleet_clients: u32,
    /// Deliveries per second to each of them; by default as measured.
    #[arg(long, value_parser = above_zero)]
    pub client_rate: Option<f64>,
    /// Share of its capacity that a pod keeps free, from 0 to 0.9.
    #[arg(long, default_value_t = 0.3, value_parser = not_negative)]
    pub headroom: f64,
}

fn factor(text: &str) -> Result<f64, String> {
    not_negative(text)
        .and_then(|factor| if (1.05..=10.0).contains(&factor) { Ok(factor) } else { Err("from 1.05 to 10".into()) })
}

/// Searches. Prints a line per step, the table and the sizing, and writes the JSON file and the page.
///
/// # Errors
/// If the options contradict each other, or a process exits.
pub fn run(options: &Options) -> Result<FleetReport> {
    let fleet = &options.fleet;
    fleet.check()?;
    ensure!(fleet.rate > 0.0 || fleet.market_rate > 0.0, "a search starts at --rate or --market-rate, but both are 0");
    ensure!(options.headroom <= 0.9, "--headroom is from 0 to 0.9");
    let (found, floors) = if fleet.url.is_empty() {
        let world = super::start_world(fleet);
        let (pods, subject) = super::start_pods(fleet, &world)?;
        let found = find(options, &subject, world.kafka.bootstrap())?;
        // The bare loops run without the gateway beside them.
        drop(pods);
        let floors = match &found.held {
            Some((rate, part)) => super::floors(&scaled(fleet, *rate), &world, Some(part))?,
            None => FleetRound::default(),
        };
        (found, floors)
    } else {
        let brokers = fleet.brokers.as_deref().context("--url needs --brokers")?;
        (find(options, &super::external_subject(fleet)?, brokers)?, FleetRound::default())
    };
    let (capacity, remarks) = found.capacity(options);
    let round = found.held.map(|(_, part)| FleetRound { gateway: Some(part), ..floors });
    let options_json = serde_json::to_value(options).context("options are JSON")?;
    let mut report = FleetReport::of(options_json, round.into_iter().collect(), found.discarded);
    report.remarks.extend(remarks);
    report.capacity = Some(capacity);
    super::publish(fleet, &report, "capacity")?;
    Ok(report)
}

/// The options with the load multiplied.
fn scaled(fleet: &super::Options, times: f64) -> super::Options {
    super::Options { rate: fleet.rate * times, market_rate: fleet.market_rate * times, ..fleet.clone() }
}

/// Result of the steps.
struct SearchResult {
    steps: Vec<SearchStep>,
    /// The highest load sustained: its multiple of the start, and its measurement.
    held: Option<(f64, Measurement)>,
    is_narrow: bool,
    discarded: Vec<Discarded>,
}

fn find(options: &Options, subject: &Subject, brokers: &str) -> Result<SearchResult> {
    let fleet = &options.fleet;
    let mut clients = ConnectedClients::connect(fleet, subject)?;
    let mut search = CapacitySearch::new(1.0, options.step_factor, options.precision, options.steps_max);
    let mut found = SearchResult { steps: Vec::new(), held: None, is_narrow: false, discarded: Vec::new() };
    while let Some(times) = search.next() {
        let at = scaled(fleet, times);
        let name = format!("step {}", found.steps.len() + 1);
        let mut left = fleet.rounds.repeats;
        let (step, part) = loop {
            clients.settle(&at, subject)?;
            let part = clients.measure(&at, subject, || {
                let (brokers, load, length) = (brokers.to_owned(), at.load(), at.length());
                Ok(producer::start(brokers, load, length))
            })?;
            let step = SearchStep::of(&at, options.p99_ms, subject, &part)?;
            let mut doubts = Noise::of(&part).faults();
            doubts.extend(step.stall(options.p99_ms));
            // Neither makes a run faster, so a load sustained despite them counts.
            if step.is_held() || doubts.is_empty() || left == 0 {
                break (step, part);
            }
            left -= 1;
            println!("{name:<12} not sustained; measured again because {}", doubts.join("; "));
            found.discarded.push(Discarded { what: name.clone(), why: doubts });
        };
        println!("{name:<12} {}", step.line());
        search.record(step.is_held());
        if step.is_held() {
            found.held = Some((times, part));
        }
        found.steps.push(step);
    }
    found.is_narrow = search.is_narrow();
    Ok(found)
}

impl SearchResult {
    /// The capacity, and remarks about it.
    fn capacity(&self, options: &Options) -> (Capacity, Vec<String>) {
        let fleet = &options.fleet;
        let due = |index: &usize| self.steps[*index].due_per_second;
        let indices = || 0..self.steps.len();
        let held = indices().filter(|index| self.steps[*index].is_held()).max_by(|a, b| due(a).total_cmp(&due(b)));
        let failed = indices().filter(|index| !self.steps[*index].is_held()).min_by(|a, b| due(a).total_cmp(&due(b)));
        let wanted =
            Wanted { clients: options.fleet_clients, per_client: options.client_rate, headroom: options.headroom };
        let pods = if fleet.url.is_empty() { fleet.pods } else { u32::try_from(fleet.url.len()).unwrap_or(u32::MAX) };
        let sizing = self.held.as_ref().zip(held).and_then(|((_, part), index)| {
            Sizing::of(part, self.steps[index].due_per_second, fleet.clients, pods, &wanted)
        });

        let mut lines = vec![match held {
            Some(index) => format!("capacity: {}", self.steps[index].line()),
            None => "capacity: no load was sustained".to_owned(),
        }];
        lines.extend(failed.map(|index| format!("next step: {}", self.steps[index].line())));
        lines.extend(sizing.as_ref().map(Sizing::line));
        let mut remarks: Vec<String> = sizing.iter().flat_map(Sizing::remarks).collect();
        let limit = failed.and_then(|index| self.steps[index].limit);
        if held.is_some() && limit.is_some_and(|limit| !matches!(limit, Limit::Gateway | Limit::Unknown)) {
            remarks.push(
                "the capacity and the sizing are limited by something other than the gateway, which may sustain more"
                    .into(),
            );
        }
        if held.is_some() && !self.is_narrow {
            let text = "the search reached --steps-max before --precision: a pod may sustain more";
            remarks.push(text.into());
        }
        (Capacity { p99_ms: options.p99_ms, steps: self.steps.clone(), held, sizing, lines }, remarks)
    }
}

impl SearchStep {
    fn of(options: &super::Options, p99_ms: f64, subject: &Subject, part: &Measurement) -> Result<Self> {
        let [events, ticks] = [part.latencies, part.tick_latencies];
        let longer = events.into_iter().chain(ticks).max_by(|a, b| a.p99_ms.total_cmp(&b.p99_ms));
        let faults = faults(part, longer, p99_ms);
        let Some(latencies) = longer else {
            bail!("no latency was sampled: use a higher --rate or a lower --sample; {}", faults.join("; "))
        };
        let clients = f64::from(options.clients);
        let ns = part.usage.as_ref().map(|usage| usage.total_ns() as f64);
        let limit = (!faults.is_empty()).then(|| Limit::of(part, p99_ms, subject.pids.len()));
        Ok(Self {
            rate: options.rate,
            market_rate: options.market_rate,
            due_per_second: options.rate * clients / f64::from(options.assessments) + options.market_rate * clients,
            deliveries_per_second: part.deliveries as f64 / part.seconds,
            latencies,
            cores: ns.map(|ns| ns / 1e9 / part.seconds),
            cpu_ns: ns.filter(|_| part.deliveries > 0).map(|ns| ns / part.deliveries as f64),
            faults,
            limit,
        })
    }

    /// Reports a probable stall: only p99 is over its bound, and p90 is far below. An excessive load builds a queue
    /// that delays everything, but a stall of the brokers or the machine for a tenth of a second delays one delivery in
    /// a hundred of a ten-second window.
    fn stall(&self, p99_ms: f64) -> Option<String> {
        let Percentiles { p90_ms, p99_ms: p99, .. } = self.latencies;
        let is_one = self.faults.len() == 1 && p99 > p99_ms && p90_ms <= p99_ms / 2.0;
        is_one.then(|| format!("p99 is {p99:.1} ms, but p90 is {p90_ms:.1} ms: something stalled"))
    }

    /// Whether the load was sustained.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.faults.is_empty()
    }

    /// The line printed for it.
    #[must_use]
    pub fn line(&self) -> String {
        let Percentiles { p50_ms, p99_ms, .. } = self.latencies;
        let ticks =
            if self.market_rate > 0.0 { format!(" and {} ticks", rate(self.market_rate)) } else { String::new() };
        let cores = self.cores.map_or(String::new(), |cores| format!(", {:.0} % of a core", cores * 100.0));
        let verdict = match self.limit {
            None => "sustained".to_owned(),
            Some(limit) => format!("not sustained: {}; {}", self.faults.join("; "), limit.text()),
        };
        format!(
            "{} events{ticks} per second, {} deliveries per second due, {} read, p50 {p50_ms:.2} ms, p99 {p99_ms:.2} \
             ms{cores}: {verdict}",
            rate(self.rate),
            grouped(self.due_per_second),
            grouped(self.deliveries_per_second),
        )
    }
}

/// Formats a rate; small rates have decimals.
#[must_use]
pub fn rate(per_second: f64) -> String {
    if per_second < 100.0 { cell(Some(per_second)) } else { grouped(per_second) }
}

/// Reasons why a load was not sustained.
fn faults(part: &Measurement, latencies: Option<Percentiles>, p99_ms: f64) -> Vec<String> {
    let p99 = latencies.map_or(0.0, |latencies| latencies.p99_ms);
    let closed: u64 = part.counts.closed.values().sum();
    let failed: u64 = part.counts.failed.values().sum();
    let all = [
        (p99 > p99_ms, format!("p99 is {p99:.1} ms, limit {p99_ms} ms")),
        (part.missing() > 0, format!("{} events are missing", part.missing())),
        (part.counts.resets > 0, format!("{} resets", part.counts.resets)),
        (closed > 0, format!("{closed} connections were closed")),
        (failed > 0, format!("{failed} connections failed")),
    ];
    all.into_iter().filter_map(|(is_fault, text)| is_fault.then_some(text)).collect()
}

impl Limit {
    /// The part that limited a load that was not sustained. `processes` is the gateway's number of processes on this
    /// machine.
    #[must_use]
    pub fn of(part: &Measurement, p99_ms: f64, processes: usize) -> Self {
        let late_ms = part.lateness.map_or(0.0, |late| late.p99_ms);
        // Threads with the same name are added up, and each process has one of them.
        let busiest = part.usage.as_ref().and_then(|usage| usage.threads_ns.values().max());
        let busiest = busiest.map(|ns| *ns as f64 / 1e9 / part.seconds / processes.max(1) as f64);
        let noise = Noise::of(part);
        match busiest {
            _ if clients_limit(part) => Self::Clients,
            _ if late_ms > p99_ms * PRODUCER_PART => Self::Producer,
            None => Self::Unknown,
            Some(busy) if busy >= GATEWAY_BUSY_MIN => Self::Gateway,
            Some(_) if !noise.faults().is_empty() => Self::Machine,
            Some(_) => Self::Elsewhere,
        }
    }

    /// Its description in a sentence.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Gateway => "the gateway is the limit",
            Self::Clients => "the clients are the bottleneck, not the gateway",
            Self::Producer => "the producer is the bottleneck, not the gateway",
            Self::Machine => "the machine was noisy, and no thread of the gateway was busy",
            Self::Elsewhere => "no thread of the gateway was busy: the limit is before it, in the brokers",
            Self::Unknown => "the limit is unknown: the gateway's threads can't be measured (--pid)",
        }
    }
}

#[cfg(test)]
mod tests;
