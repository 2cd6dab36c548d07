//! Messages between the harness and its processes: lines of JSON on their pipes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::schedule::Load;
use super::statistics::Latencies;
use super::usage::Usage;
use crate::client::Ask;

/// The plan of a client process, which is its first line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientsPlan {
    /// The targets, to which the clients of the run connect in turn, by number.
    pub targets: Vec<Target>,
    /// The token of all clients.
    pub token: String,
    /// The load of the run.
    pub load: Load,
    /// The number of its first client.
    pub first: u32,
    /// Number of clients.
    pub count: u32,
    /// Connections opened per second.
    pub connects_per_second: f64,
    /// Number of slow clients, the last ones.
    pub slow: u32,
    /// Bytes per second that a slow client reads.
    pub slow_bytes_per_second: u32,
    /// Number of clients that sometimes drop their connection and reconnect with their cursor, the first ones.
    pub returning: u32,
    /// Number of these reconnects per second.
    pub returns_per_second: f64,
    /// One message in this many is parsed, on average.
    pub sample: u32,
}

/// A gateway, or a bare loop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its URL, as in redirects.
    pub url: String,
    /// Its address.
    pub address: SocketAddr,
}

/// A command of the harness to a client process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerCommand {
    /// Start to connect. The answer is that of `Mark`.
    Connect,
    /// Send the counts so far. Latencies are those since the last command.
    Mark,
    /// Send the counts and exit.
    Stop,
}

/// Counts of a client process since its start; histograms are since the last command.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Open connections that have received `connected`.
    pub open: u64,
    /// Completed handshakes.
    pub connected: u64,
    /// Connections resumed from a cursor.
    pub resumed: u64,
    /// Connections that clients dropped to reconnect.
    pub dropped: u64,
    /// Failed connections, by reason.
    pub failed: BTreeMap<String, u64>,
    /// Connections that the gateway closed, by close code; 1006 without one.
    pub closed: BTreeMap<u16, u64>,
    /// Events of all clients.
    pub events: u64,
    /// Events of slow clients.
    pub slow_events: u64,
    /// Bytes of the events' frames.
    pub event_bytes: u64,
    /// Ticks received.
    pub ticks: u64,
    /// Ping frames: heartbeats.
    pub pings: u64,
    /// Resets received.
    pub resets: u64,
    /// Redirects followed.
    pub redirects: u64,
    /// Sampled messages without a timestamp of this load.
    pub strange: u64,
    /// Usage of this process.
    pub usage: Usage,
    /// Latencies of events, from the due time until they were read, for clients that are neither slow nor catching up.
    pub latencies: Latencies,
    /// Latencies of ticks.
    pub tick_latencies: Latencies,
    /// Latencies of slow clients, and of events that were due while their client was disconnected.
    pub late_latencies: Latencies,
    /// Durations from the start of a connection until `connected`.
    pub handshakes: Latencies,
}

/// The plan of a bare loop, which is its first line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FloorPlan {
    /// The load.
    pub load: Load,
    /// Number of the load's clients that connect to it.
    pub clients: u32,
    /// Length of an event's frame in bytes.
    pub frame_bytes: usize,
    /// Source of the events.
    pub source: LoopSource,
}

/// Source of a bare loop's events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum LoopSource {
    /// Its own schedule, for this many seconds.
    Schedule(f64),
    /// Topics in Kafka.
    Kafka {
        /// Bootstrap brokers.
        brokers: String,
        /// The topics.
        topics: Vec<String>,
    },
    /// The existing records of these topics, from beginning to end. They are read and discarded.
    Log {
        /// Bootstrap brokers.
        brokers: String,
        /// The topics.
        topics: Vec<String>,
    },
}

/// A message of a bare loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FloorMessage {
    /// It listens on this address.
    Listens(SocketAddr),
    /// All clients and Kafka are connected. It starts at the next line of input and ends with the input.
    Ready,
    /// Frames sent, and frames that full sockets did not accept.
    Sent {
        /// Frames sent.
        frames: u64,
        /// Frames that a full socket did not accept completely.
        refused: u64,
    },
    /// It has read the topics to their ends. It ends with its input.
    Read {
        /// Records read.
        records: u64,
        /// Microseconds from the first fetch on.
        us: u64,
    },
}

impl Target {
    /// A client's request to it. The address is this one, host and path are those of the URL.
    #[must_use]
    pub fn ask(&self) -> Ask {
        let rest = self.url.split_once("://").map_or(&*self.url, |(_, rest)| rest);
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        Ask::to(&format!("ws://{}/{path}", self.address)).header("Host", host)
    }
}

impl Counts {
    /// Adds the counts of another process.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.open, other.open),
            (&mut self.connected, other.connected),
            (&mut self.resumed, other.resumed),
            (&mut self.dropped, other.dropped),
            (&mut self.events, other.events),
            (&mut self.slow_events, other.slow_events),
            (&mut self.event_bytes, other.event_bytes),
            (&mut self.ticks, other.ticks),
            (&mut self.pings, other.pings),
            (&mut self.resets, other.resets),
            (&mut self.redirects, other.redirects),
            (&mut self.strange, other.strange),
        ];
        for (own, other) in pairs {
            *own += other;
        }
        for (reason, count) in &other.failed {
            *self.failed.entry(reason.clone()).or_default() += count;
        }
        for (code, count) in &other.closed {
            *self.closed.entry(*code).or_default() += count;
        }
        self.usage = self.usage.plus(&other.usage);
        self.latencies.add(&other.latencies);
        self.tick_latencies.add(&other.tick_latencies);
        self.late_latencies.add(&other.late_latencies);
        self.handshakes.add(&other.handshakes);
    }

    /// The difference from an earlier snapshot. Values of a moment, such as open connections, and histograms stay as
    /// they are.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = self.clone();
        let pairs = [
            (&mut difference.connected, earlier.connected),
            (&mut difference.resumed, earlier.resumed),
            (&mut difference.dropped, earlier.dropped),
            (&mut difference.events, earlier.events),
            (&mut difference.slow_events, earlier.slow_events),
            (&mut difference.event_bytes, earlier.event_bytes),
            (&mut difference.ticks, earlier.ticks),
            (&mut difference.pings, earlier.pings),
            (&mut difference.resets, earlier.resets),
            (&mut difference.redirects, earlier.redirects),
            (&mut difference.strange, earlier.strange),
        ];
        for (own, earlier) in pairs {
            *own = own.saturating_sub(earlier);
        }
        for (reason, count) in &mut difference.failed {
            *count -= earlier.failed.get(reason).copied().unwrap_or(0).min(*count);
        }
        for (code, count) in &mut difference.closed {
            *count -= earlier.closed.get(code).copied().unwrap_or(0).min(*count);
        }
        difference.failed.retain(|_, count| *count > 0);
        difference.closed.retain(|_, count| *count > 0);
        difference.usage = self.usage.since(&earlier.usage);
        difference
    }

    /// Events and ticks delivered.
    #[must_use]
    pub fn deliveries(&self) -> u64 {
        self.events + self.ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_since_a_snapshot_exclude_earlier_ones_and_keep_open_connections() {
        let mut earlier = Counts { open: 5, connected: 5, events: 10, ticks: 1, ..Counts::default() };
        earlier.closed.insert(1013, 2);
        earlier.failed.insert("refused".into(), 1);
        let mut new = Counts { open: 1, connected: 2, events: 30, resets: 3, ..Counts::default() };
        new.closed.insert(1001, 4);
        new.failed.insert("refused".into(), 6);
        let mut later = earlier.clone();
        later.add(&new);
        let since = later.since(&earlier);
        assert_eq!((since.open, since.connected, since.events, since.ticks, since.resets), (6, 2, 30, 0, 3));
        assert_eq!((since.closed, since.failed), (new.closed, new.failed));
        assert_eq!(later.since(&later).closed.len(), 0);
    }

    #[test]
    fn a_request_goes_to_the_targets_address_with_its_host() {
        let target = Target { url: "ws://gateway.example:3003/ws".into(), address: ([127, 0, 0, 1], 3003).into() };
        let head = target.ask().token("t").head();
        assert!(head.starts_with("GET /ws?token=t HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("\r\nHost: gateway.example:3003\r\n"), "{head}");
        assert_eq!(target.ask().address(), target.address);
    }

    #[test]
    fn counts_of_processes_add_up() {
        let mut one = Counts { open: 1, events: 5, ticks: 2, ..Counts::default() };
        one.closed.insert(1013, 1);
        one.failed.insert("busy".into(), 2);
        one.latencies.record(7);
        let mut all = one.clone();
        all.add(&one);
        assert_eq!((all.open, all.deliveries(), all.latencies.len()), (2, 14, 2));
        assert_eq!((all.closed[&1013], all.failed["busy"]), (2, 4));
    }
}
