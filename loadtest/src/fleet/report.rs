//! The report: a table, and all data as JSON. With several rounds, a cell is the median of the rounds, and a ratio is
//! the median of the rounds' ratios.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::machine_noise::{Discarded, Noise};
use super::measure::Measurement;
use super::outcome::{Capacity, FleetRound};
use super::statistics::{Percentiles, median};

/// Share of time on a core, or waiting for it, above which a client process may limit the result.
pub(super) const CLIENT_BUSY_MAX: f64 = 0.8;

/// Lateness of the producer above which it adds noticeably to latencies.
const LATENESS_MAX_MS: f64 = 1.0;

/// The report of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FleetReport {
    /// The options.
    pub options: serde_json::Value,
    /// The table.
    pub rows: Vec<TableRow>,
    /// Remarks about the figures.
    pub remarks: Vec<String>,
    /// The rounds. A search for the capacity has one, with the highest load sustained.
    pub rounds: Vec<FleetRound>,
    /// Discarded measurements, because the machine was noisy.
    pub discarded: Vec<Discarded>,
    /// Result of a search for the capacity.
    pub capacity: Option<Capacity>,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableRow {
    /// Name of the figure, with its unit.
    pub name: String,
    /// The gateway's value.
    pub gateway: Option<f64>,
    /// The send loop's value.
    pub send: Option<f64>,
    /// The kafka loop's value.
    pub kafka: Option<f64>,
    /// Ratio of the gateway to the send loop.
    pub to_send: Option<f64>,
    /// Ratio of the gateway to the kafka loop.
    pub to_kafka: Option<f64>,
}

type Figure = (&'static str, fn(&Measurement) -> Option<f64>);

/// The figures of each measurement. Those of CPU time, latency and deliveries have ratios.
const FIGURES: &[Figure] = &[
    ("deliveries per second", |part| Some(part.deliveries as f64 / part.seconds)),
    ("CPU per delivery, user, ns", |part| per_delivery(part, part.usage.as_ref()?.user_ns)),
    ("  of it in shards' threads, ns", |part| {
        per_delivery(part, part.usage.as_ref()?.user_ns)
            .zip(part.samples.as_ref()?.part_of("shard-"))
            .map(|(all, part)| all * part)
    }),
    ("CPU per delivery, user+sys, ns", |part| per_delivery(part, part.usage.as_ref()?.total_ns())),
    ("CPU, % of a core", |part| Some(share(part, part.usage.as_ref()?.total_ns()))),
    ("latency p50, ms", |part| Some(part.latencies?.p50_ms)),
    ("latency p90, ms", |part| Some(part.latencies?.p90_ms)),
    ("latency p99, ms", |part| Some(part.latencies?.p99_ms)),
    ("latency p99.9, ms", |part| Some(part.latencies?.p999_ms)),
    ("latency max, ms", |part| Some(part.latencies?.max_ms)),
    ("tick latency p50, ms", |part| Some(part.tick_latencies?.p50_ms)),
    ("tick latency p99, ms", |part| Some(part.tick_latencies?.p99_ms)),
    ("slow or catching up p99, ms", |part| Some(part.late_latencies?.p99_ms)),
    ("producer lateness p99, ms", |part| Some(part.lateness?.p99_ms)),
    ("connects per second", |part| Some(part.handshakes?.samples as f64 / part.connecting_seconds)),
    ("handshake p99, ms", |part| Some(part.handshakes?.p99_ms)),
    ("CPU per handshake, user+sys, us", |part| Some(part.handshake_ns()? / 1e3)),
    ("own memory per connection, bytes", |part| part.memory_per_connection),
    ("kernel memory per connection, bytes", |part| part.kernel_memory_per_connection),
    ("events due", |part| Some(part.made.event_deliveries as f64)),
    ("events delivered", |part| Some(part.counts.events as f64)),
    ("events missing", |part| Some(part.missing() as f64)),
    ("events duplicated", |part| Some(part.duplicates() as f64)),
    ("ticks delivered", |part| Some(part.counts.ticks as f64)),
    ("resumed", |part| Some(part.counts.resumed as f64)),
    ("resets", |part| Some(part.counts.resets as f64)),
    ("client process, % of a core", |part| Some(part.client_busy * 100.0)),
    ("client process waiting, %", |part| Some(part.client_waiting * 100.0)),
    ("server waiting for a core, %", |part| Some(share(part, part.usage.as_ref()?.waited_ns))),
    ("server preempted, per second", |part| Some(part.usage.as_ref()?.involuntary as f64 / part.seconds)),
    ("machine busy, %", |part| Some(part.machine.share(part.machine.busy) * 100.0)),
    ("machine stolen, %", |part| Some(part.machine.share(part.machine.steal) * 100.0)),
];

fn per_delivery(part: &Measurement, ns: u64) -> Option<f64> {
    (part.deliveries > 0).then(|| ns as f64 / part.deliveries as f64)
}

fn share(part: &Measurement, ns: u64) -> f64 {
    ns as f64 / 1e7 / part.seconds
}

impl FleetReport {
    /// Summarizes rounds and discarded measurements.
    #[must_use]
    pub fn of(options: serde_json::Value, rounds: Vec<FleetRound>, discarded: Vec<Discarded>) -> Self {
        let rows = FIGURES.iter().filter_map(|figure| TableRow::of(figure, &rounds)).collect();
        let mut remarks: Vec<String> =
            rounds.iter().enumerate().flat_map(|(number, round)| round.remarks(number, rounds.len())).collect();
        if !discarded.is_empty() {
            remarks.push(format!("measurements discarded because the machine was noisy: {}", discarded.len()));
        }
        remarks.extend(
            discarded
                .iter()
                .map(|Discarded { what, why }| format!("discarded measurement of {what}: {}", why.join("; "))),
        );
        Self { options, rows, remarks, rounds, discarded, capacity: None }
    }

    /// The table with the remarks below.
    ///
    /// # Panics
    /// Never: writing to a string does not fail.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<36}{:>14}{:>14}{:>14}{:>9}{:>9}\n",
            "", "gateway", "send loop", "kafka loop", "/ send", "/ kafka"
        );
        for row in &self.rows {
            let [gateway, send, kafka] = [row.gateway, row.send, row.kafka].map(cell);
            let [to_send, to_kafka] = [row.to_send, row.to_kafka].map(|ratio| ratio.map_or(String::new(), ratio_cell));
            let line = format!("{:<36}{gateway:>14}{send:>14}{kafka:>14}{to_send:>9}{to_kafka:>9}", row.name);
            writeln!(text, "{}", line.trim_end()).expect("writing to a string does not fail");
        }
        for remark in &self.remarks {
            writeln!(text, "NOTE: {remark}").expect("writing to a string does not fail");
        }
        for line in self.capacity.iter().flat_map(|capacity| &capacity.lines) {
            writeln!(text, "{line}").expect("writing to a string does not fail");
        }
        text
    }

    /// Writes the JSON file.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        write_json(file, self)
    }
}

/// Writes a JSON file.
///
/// # Errors
/// If it can't be written.
pub fn write_json(file: &Path, what: &impl Serialize) -> Result<()> {
    let json = serde_json::to_vec_pretty(what).context("plain values are JSON")?;
    fs::write(file, json).with_context(|| format!("{} can't be written", file.display()))
}

/// Formats a value for the table: at least three significant digits, and no meaningless ones.
#[must_use]
pub fn cell(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(whole) if whole.fract() == 0.0 || whole.abs() >= 1_000.0 => format!("{whole:.0}"),
        Some(some) if some.abs() >= 100.0 => format!("{some:.1}"),
        Some(small) => format!("{small:.2}"),
    }
}

fn ratio_cell(ratio: f64) -> String {
    format!("{ratio:.2}")
}

impl TableRow {
    fn of((name, of): &Figure, rounds: &[FleetRound]) -> Option<Self> {
        let column =
            |part: fn(&FleetRound) -> Option<&Measurement>| median(rounds.iter().filter_map(|round| of(part(round)?)));
        let ratio = |part: fn(&FleetRound) -> Option<&Measurement>| {
            let has_ratio = name.starts_with("CPU") || name.starts_with("latency") || name.starts_with("deliveries");
            let of_round = |round: &FleetRound| Some(of(round.gateway.as_ref()?)? / of(part(round)?)?);
            median(rounds.iter().filter_map(of_round).filter(|ratio| has_ratio && ratio.is_finite()))
        };
        let row = Self {
            name: (*name).to_owned(),
            gateway: column(|round| round.gateway.as_ref()),
            send: column(|round| round.send.as_ref()),
            kafka: column(|round| round.kafka.as_ref()),
            to_send: ratio(|round| round.send.as_ref()),
            to_kafka: ratio(|round| round.kafka.as_ref()),
        };
        (row.gateway.is_some() || row.send.is_some() || row.kafka.is_some()).then_some(row)
    }
}

impl FleetRound {
    fn remarks(&self, number: usize, rounds: usize) -> Vec<String> {
        let parts = [("gateway", &self.gateway), ("send loop", &self.send), ("kafka loop", &self.kafka)];
        let prefix = if rounds > 1 { format!("round {}, ", number + 1) } else { String::new() };
        let parts = parts.into_iter().filter_map(|(name, part)| Some((format!("{prefix}{name}"), part.as_ref()?)));
        parts
            .flat_map(|(name, part)| part_remarks(part).into_iter().map(move |text| format!("{name}: {text}")))
            .collect()
    }
}

/// Whether the clients limit the result: on their core, or waiting for it.
#[must_use]
pub fn clients_limit(part: &Measurement) -> bool {
    part.client_busy + part.client_waiting > CLIENT_BUSY_MAX
}

fn part_remarks(part: &Measurement) -> Vec<String> {
    let mut remarks = Vec::new();
    let mut remark = |is: bool, text: String| {
        if is {
            remarks.push(text);
        }
    };
    let are_clients_the_limit = clients_limit(part);
    remark(
        are_clients_the_limit,
        format!(
            "the clients are the bottleneck: a client process ran {:.0} % of the time and waited {:.0} % for a core",
            part.client_busy * 100.0,
            part.client_waiting * 100.0
        ),
    );
    remark(part.missing() > 0, format!("{} events due did not arrive", part.missing()));
    remark(part.duplicates() > 0, format!("{} events arrived in excess of those due", part.duplicates()));
    remark(part.counts.resets > 0, format!("{} resets were sent to clients", part.counts.resets));
    remark(
        part.counts.strange > 0,
        format!("{} sampled messages had no due time: there are other producers", part.counts.strange),
    );
    for (reason, count) in &part.counts.failed {
        remark(true, format!("{count} connections failed: {reason}"));
    }
    for (code, count) in &part.counts.closed {
        remark(true, format!("{count} connections were closed with {code}"));
    }
    let late = part.lateness.filter(|late: &Percentiles| late.p99_ms > LATENESS_MAX_MS);
    remark(
        late.is_some(),
        format!(
            "the producer was late (p99 {:.1} ms), which adds to latencies, because they begin at the due time",
            late.map_or(0.0, |late| late.p99_ms)
        ),
    );
    remark(
        part.usage.is_some() && part.samples.is_none(),
        "no permission to sample the server (perf_event_open(2)): user CPU is by the kernel's ticks of 10 ms".into(),
    );
    for fault in part.while_connecting.iter().flat_map(|interval| Noise::of_interval(interval).faults()) {
        remark(true, format!("while the clients connected, {fault}"));
    }
    let noise = Noise::of(part);
    // The remark about the bottleneck has already reported the waiting.
    let clients_waited = if are_clients_the_limit { 0.0 } else { noise.clients_waited };
    for fault in (Noise { clients_waited, ..noise }).faults() {
        remark(true, fault);
    }
    remarks
}

#[cfg(test)]
pub(super) mod tests;
