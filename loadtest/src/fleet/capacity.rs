//! The capacity: the highest load at which p99 stays under a bound, and nothing is missing, closed or reset. One
//! gateway and the same clients take one load after the other; which, is the search's ([`search`]), and what the
//! highest says of a fleet is the sizing's ([`sizing`]). Where a load is not held, it is told what the limit was, for
//! it need not be the gateway.

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

/// A gateway whose busiest thread runs less than this part of the time is not what limits.
const GATEWAY_BUSY_MIN: f64 = 0.7;

/// A producer whose p99 is later than this part of the bound is what limits, and not the gateway.
const PRODUCER_PART: f64 = 0.5;

/// A search for the capacity. `--rate` and `--market-rate` are where it begins, both grow alike; `--seconds` and
/// `--warm-up` are of each step.
#[derive(Debug, Clone, Serialize, clap::Args)]
#[group(skip)]
pub struct Options {
    /// The clients and what they are sent.
    #[command(flatten)]
    #[serde(flatten)]
    pub fleet: super::Options,
    /// A load is held where p99, from the due time to the client's read, is no longer than this, in milliseconds.
    #[arg(long, default_value_t = 50.0, value_parser = above_zero)]
    pub p99_ms: f64,
    /// Each step's load is so many times the one before, until one is not held.
    #[arg(long, default_value_t = 2.0, value_parser = factor)]
    pub step_factor: f64,
    /// How close the highest load that is held and the lowest that is not come to each other: 0.05 is a twentieth.
    #[arg(long, default_value_t = 0.05, value_parser = above_zero)]
    pub precision: f64,
    /// Steps, at most.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub steps_max: u32,
    /// How many clients the fleet of the sizing has.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub fleet_clients: u32,
    /// Deliveries a second to each of them; as many as were measured, without it.
    #[arg(long, value_parser = above_zero)]
    pub client_rate: Option<f64>,
    /// Which part of its capacity a pod of the sizing has left, from 0 to 0.9.
    #[arg(long, default_value_t = 0.3, value_parser = not_negative)]
    pub headroom: f64,
}

fn factor(text: &str) -> Result<f64, String> {
    not_negative(text)
        .and_then(|factor| if (1.05..=10.0).contains(&factor) { Ok(factor) } else { Err("from 1.05 to 10".into()) })
}

/// Searches, prints a line a step, the table and the sizing, and writes the JSON file and the page.
///
/// # Errors
/// If the options don't fit each other, or a part ends.
pub fn run(options: &Options) -> Result<FleetReport> {
    let fleet = &options.fleet;
    fleet.check()?;
    ensure!(fleet.rate > 0.0 || fleet.market_rate > 0.0, "a search begins at --rate or --market-rate: both are 0");
    ensure!(options.headroom <= 0.9, "--headroom is from 0 to 0.9");
    let (found, floors) = if fleet.url.is_empty() {
        let world = super::own_world(fleet);
        let (pods, subject) = super::own_pods(fleet, &world)?;
        let found = find(options, &subject, world.kafka.bootstrap())?;
        // The bare loops have the machine to themselves.
        drop(pods);
        let floors = match &found.held {
            Some((rate, part)) => super::floors(&scaled(fleet, *rate), &world, Some(part))?,
            None => FleetRound::default(),
        };
        (found, floors)
    } else {
        let brokers = fleet.brokers.as_deref().context("--url needs --brokers")?;
        (find(options, &super::foreign_subject(fleet)?, brokers)?, FleetRound::default())
    };
    let (capacity, remarks) = found.capacity(options);
    let round = found.held.map(|(_, part)| FleetRound { gateway: Some(part), ..floors });
    let options_json = serde_json::to_value(options).context("options are JSON")?;
    let mut report = FleetReport::of(options_json, round.into_iter().collect(), found.discarded);
    report.remarks.extend(remarks);
    report.capacity = Some(capacity);
    super::tell(fleet, &report, "capacity")?;
    Ok(report)
}

/// The options of a load that is so many times that of the start.
fn scaled(fleet: &super::Options, times: f64) -> super::Options {
    super::Options { rate: fleet.rate * times, market_rate: fleet.market_rate * times, ..fleet.clone() }
}

/// What the steps came to.
struct Found {
    steps: Vec<SearchStep>,
    /// The highest load that was held: how many times that of the start, and all that was measured.
    held: Option<(f64, Measurement)>,
    is_narrow: bool,
    discarded: Vec<Discarded>,
}

fn find(options: &Options, subject: &Subject, brokers: &str) -> Result<Found> {
    let fleet = &options.fleet;
    let mut clients = ConnectedClients::connect(fleet, subject)?;
    let mut search = CapacitySearch::new(1.0, options.step_factor, options.precision, options.steps_max);
    let mut found = Found { steps: Vec::new(), held: None, is_narrow: false, discarded: Vec::new() };
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
            doubts.extend(step.stand_still(options.p99_ms));
            // Neither makes anything faster: what was held with them is held.
            if step.is_held() || doubts.is_empty() || left == 0 {
                break (step, part);
            }
            left -= 1;
            println!("{name:<12} not held, and it is measured again: {}", doubts.join("; "));
            found.discarded.push(Discarded { what: name.clone(), why: doubts });
        };
        println!("{name:<12} {}", step.line());
        search.tell(step.is_held());
        if step.is_held() {
            found.held = Some((times, part));
        }
        found.steps.push(step);
    }
    found.is_narrow = search.is_narrow();
    Ok(found)
}

impl Found {
    /// The sum of it, and what a reader must know of it.
    fn capacity(&self, options: &Options) -> (Capacity, Vec<String>) {
        let fleet = &options.fleet;
        let due = |place: &usize| self.steps[*place].due_per_second;
        let places = || 0..self.steps.len();
        let held = places().filter(|place| self.steps[*place].is_held()).max_by(|a, b| due(a).total_cmp(&due(b)));
        let failed = places().filter(|place| !self.steps[*place].is_held()).min_by(|a, b| due(a).total_cmp(&due(b)));
        let wanted =
            Wanted { clients: options.fleet_clients, per_client: options.client_rate, headroom: options.headroom };
        let pods = if fleet.url.is_empty() { fleet.pods } else { u32::try_from(fleet.url.len()).unwrap_or(u32::MAX) };
        let sizing = self.held.as_ref().zip(held).and_then(|((_, part), place)| {
            Sizing::of(part, self.steps[place].due_per_second, fleet.clients, pods, &wanted)
        });

        let mut lines = vec![match held {
            Some(place) => format!("capacity: {}", self.steps[place].line()),
            None => "capacity: no load was held".to_owned(),
        }];
        lines.extend(failed.map(|place| format!("the next: {}", self.steps[place].line())));
        lines.extend(sizing.as_ref().map(Sizing::line));
        let mut remarks: Vec<String> = sizing.iter().flat_map(Sizing::remarks).collect();
        let limit = failed.and_then(|place| self.steps[place].limit);
        if held.is_some() && limit.is_some_and(|limit| !matches!(limit, Limit::Gateway | Limit::Unknown)) {
            remarks
                .push("the capacity and the sizing are of what limited, not of the gateway: it may hold more".into());
        }
        if held.is_some() && !self.is_narrow {
            let text = "the search ended at --steps-max, before it was as precise as --precision: a pod may hold more";
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
            bail!("no latency was taken: begin at a higher --rate, or lower --sample; {}", faults.join("; "))
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

    /// Where nothing but p99 is over its bound, and p90 far from it: a load that is too high piles up, and has all
    /// wait; where the brokers or the machine stood still for a tenth of a second, it is but one delivery in a hundred
    /// of ten seconds.
    fn stand_still(&self, p99_ms: f64) -> Option<String> {
        let Percentiles { p90_ms, p99_ms: p99, .. } = self.latencies;
        let is_one = self.faults.len() == 1 && p99 > p99_ms && p90_ms <= p99_ms / 2.0;
        is_one.then(|| format!("p99 is {p99:.1} ms, but p90 is {p90_ms:.1} ms: something stood still"))
    }

    /// Whether the load was held.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.faults.is_empty()
    }

    /// Its line.
    #[must_use]
    pub fn line(&self) -> String {
        let Percentiles { p50_ms, p99_ms, .. } = self.latencies;
        let ticks =
            if self.market_rate > 0.0 { format!(" and {} ticks", rate(self.market_rate)) } else { String::new() };
        let cores = self.cores.map_or(String::new(), |cores| format!(", {:.0} % of a core", cores * 100.0));
        let verdict = match self.limit {
            None => "held".to_owned(),
            Some(limit) => format!("not held: {}; {}", self.faults.join("; "), limit.text()),
        };
        format!(
            "{} events{ticks} a second, {} deliveries a second due, {} read, p50 {p50_ms:.2} ms, p99 {p99_ms:.2} \
             ms{cores}: {verdict}",
            rate(self.rate),
            grouped(self.due_per_second),
            grouped(self.deliveries_per_second),
        )
    }
}

/// A rate as a line has it: of few a second, a part matters.
#[must_use]
pub fn rate(a_second: f64) -> String {
    if a_second < 100.0 { cell(Some(a_second)) } else { grouped(a_second) }
}

/// Why a load is not held.
fn faults(part: &Measurement, latencies: Option<Percentiles>, p99_ms: f64) -> Vec<String> {
    let p99 = latencies.map_or(0.0, |latencies| latencies.p99_ms);
    let closed: u64 = part.counts.closed.values().sum();
    let failed: u64 = part.counts.failed.values().sum();
    let all = [
        (p99 > p99_ms, format!("p99 is {p99:.1} ms, over {p99_ms} ms")),
        (part.missing() > 0, format!("{} events are missing", part.missing())),
        (part.counts.resets > 0, format!("{} resets", part.counts.resets)),
        (closed > 0, format!("{closed} connections were closed")),
        (failed > 0, format!("{failed} connections failed")),
    ];
    all.into_iter().filter_map(|(is_fault, text)| is_fault.then_some(text)).collect()
}

impl Limit {
    /// What limited a load that was not held, by a gateway of so many processes of this machine.
    #[must_use]
    pub fn of(part: &Measurement, p99_ms: f64, processes: usize) -> Self {
        let late_ms = part.lateness.map_or(0.0, |late| late.p99_ms);
        // Threads of a name are added: of each process there is one.
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

    /// A part of a sentence.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Gateway => "the gateway is the limit",
            Self::Clients => "the clients are the bottleneck, not the gateway",
            Self::Producer => "the producer is the bottleneck, not the gateway",
            Self::Machine => "the machine was noisy, and the gateway's threads not busy",
            Self::Elsewhere => "no thread of the gateway's was busy: the limit is before it, in the brokers",
            Self::Unknown => "the gateway's threads are of another machine (--pid), and the limit is not known",
        }
    }
}

#[cfg(test)]
mod tests;
