//! The results of measurements as plain data: what the report and the pages show, and the JSON file holds.

use serde::{Deserialize, Serialize};

use super::measure::Measurement;
use super::statistics::Percentiles;

/// A gateway and the bare loops, one after the other.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FleetRound {
    /// The gateway.
    pub gateway: Option<Measurement>,
    /// The loop of send(2) alone.
    pub send: Option<Measurement>,
    /// The loop from librdkafka to send(2).
    pub kafka: Option<Measurement>,
}

impl FleetRound {
    /// What was measured, with its name.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&'static str, &Measurement)> {
        let parts = [("gateway", &self.gateway), ("send loop", &self.send), ("kafka loop", &self.kafka)];
        parts.into_iter().filter_map(|(name, part)| Some((name, part.as_ref()?)))
    }
}

/// What the search came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// The bound, in milliseconds.
    pub p99_ms: f64,
    /// The steps, in their order.
    pub steps: Vec<SearchStep>,
    /// The step with the highest load that was held, by its place among the steps.
    pub held: Option<usize>,
    /// What a fleet takes; nothing, where no load was held.
    pub sizing: Option<Sizing>,
    /// What it comes to, a sentence a line; the sizing is the last.
    pub lines: Vec<String>,
}

/// A load that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchStep {
    /// Events a second.
    pub rate: f64,
    /// Ticks a second.
    pub market_rate: f64,
    /// Deliveries a second that were due.
    pub due_per_second: f64,
    /// Deliveries a second that were read.
    pub deliveries_per_second: f64,
    /// Latencies: those of events, or of ticks, whose p99 is the longer.
    pub latencies: Percentiles,
    /// Cores that the gateway used, where it is of this machine.
    pub cores: Option<f64>,
    /// Its CPU time for a delivery, in nanoseconds.
    pub cpu_ns: Option<f64>,
    /// Why it was not held; none, where it was.
    pub faults: Vec<String>,
    /// What limited, where it was not held.
    pub limit: Option<Limit>,
}

/// What limits a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    /// The gateway: a thread of its is busy.
    Gateway,
    /// The clients.
    Clients,
    /// The producer.
    Producer,
    /// The machine, that others share.
    Machine,
    /// None of these: the brokers, or the way there.
    Elsewhere,
    /// The gateway is of another machine, and nobody knows.
    Unknown,
}

/// A fleet's size. Deliveries alone are what it goes by: that each pod takes all records of the topics, also those that
/// none of its clients watch, is in it for as many records as were measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sizing {
    /// Deliveries a second for each core's worth of CPU time that all the pods' threads used.
    pub deliveries_per_core: Option<f64>,
    /// The pod's own memory for a connection that is idle, in bytes.
    pub user_bytes: Option<f64>,
    /// The kernel's, in bytes.
    pub kernel_bytes: Option<f64>,
    /// Deliveries a second to each client.
    pub per_client: f64,
    /// Deliveries a second of a pod, at its highest load that was held.
    pub per_pod: f64,
    /// Clients that it is for.
    pub clients: u32,
    /// Pods that they take, with the headroom.
    pub pods: u64,
    /// Clients of a pod then.
    pub clients_per_pod: u64,
    /// Clients of a pod that were tried.
    pub clients_tried: f64,
    /// Which part of a pod's capacity stays free.
    pub headroom: f64,
}
