//! The results of measurements as plain data, for the report, the page and the JSON file.

use serde::{Deserialize, Serialize};

use super::measure::Measurement;
use super::statistics::Percentiles;

/// Measurements of a gateway and the bare loops, one after the other.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FleetRound {
    /// The gateway.
    pub gateway: Option<Measurement>,
    /// The send loop.
    pub send: Option<Measurement>,
    /// The loop from librdkafka to send(2).
    pub kafka: Option<Measurement>,
}

impl FleetRound {
    /// The measurements with their names.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&'static str, &Measurement)> {
        let parts = [("gateway", &self.gateway), ("send loop", &self.send), ("kafka loop", &self.kafka)];
        parts.into_iter().filter_map(|(name, part)| Some((name, part.as_ref()?)))
    }
}

/// Result of the search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// Bound of p99 in milliseconds.
    pub p99_ms: f64,
    /// The steps, in order.
    pub steps: Vec<SearchStep>,
    /// Index of the step with the highest load sustained.
    pub held: Option<usize>,
    /// Size of the fleet, if a load was sustained.
    pub sizing: Option<Sizing>,
    /// The summary, one sentence per line; the sizing is the last.
    pub lines: Vec<String>,
}

/// A load that was tested.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchStep {
    /// Events per second.
    pub rate: f64,
    /// Ticks per second.
    pub market_rate: f64,
    /// Deliveries per second due.
    pub due_per_second: f64,
    /// Deliveries per second read.
    pub deliveries_per_second: f64,
    /// Latencies of events or of ticks, whichever have the longer p99.
    pub latencies: Percentiles,
    /// Cores that the gateway used, if it is on this machine.
    pub cores: Option<f64>,
    /// CPU time per delivery in nanoseconds.
    pub cpu_ns: Option<f64>,
    /// Reasons why the load was not sustained; empty if it was.
    pub faults: Vec<String>,
    /// The limit, if the load was not sustained.
    pub limit: Option<Limit>,
}

/// The part that limits a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    /// The gateway: one of its threads is busy.
    Gateway,
    /// The clients.
    Clients,
    /// The producer.
    Producer,
    /// The machine, because of other work on it.
    Machine,
    /// None of these: the brokers, or the network before them.
    Elsewhere,
    /// Unknown, because the gateway is on another machine.
    Unknown,
}

/// The size of a fleet, derived from deliveries only. Each pod reads all records of the topics, including those without
/// a subscriber on it: this cost is included for as many records as were measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sizing {
    /// Deliveries per second and core of CPU time of all the pods' threads.
    pub deliveries_per_core: Option<f64>,
    /// The pod's own memory per idle connection, in bytes.
    pub user_bytes: Option<f64>,
    /// The kernel's memory per idle connection, in bytes.
    pub kernel_bytes: Option<f64>,
    /// Deliveries per second to each client.
    pub per_client: f64,
    /// Deliveries per second of a pod at its highest load sustained.
    pub per_pod: f64,
    /// Clients of the fleet.
    pub clients: u32,
    /// Number of pods, headroom included.
    pub pods: u64,
    /// Clients per pod.
    pub clients_per_pod: u64,
    /// Clients per pod in the measurement.
    pub clients_tried: f64,
    /// Share of a pod's capacity that stays free.
    pub headroom: f64,
}
