//! What the harness and its processes tell each other: JSON, a line each, on their pipes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::schedule::Load;
use super::statistics::Latencies;
use super::usage::Usage;
use crate::client::Ask;

/// The clients of one process. It is its first line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientsPlan {
    /// Where they connect, in turns: a client of the run by its number.
    pub targets: Vec<Target>,
    /// Shown by all.
    pub token: String,
    /// What all clients of the run watch.
    pub load: Load,
    /// The number of its first client, and how many it has.
    pub first: u32,
    /// How many it has.
    pub count: u32,
    /// Connections that it opens a second.
    pub connects_per_second: f64,
    /// How many of its clients are slow: the last ones.
    pub slow: u32,
    /// How many bytes a slow one reads a second.
    pub slow_bytes_per_second: u32,
    /// How many of its clients drop their connection now and then, and come back with their cursor: the first ones.
    pub returning: u32,
    /// How many of these do so a second.
    pub returns_per_second: f64,
    /// Of how many messages one is parsed, on average.
    pub sample: u32,
}

/// A gateway, or a bare loop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its URL, as redirects name it.
    pub url: String,
    /// Where it listens.
    pub address: SocketAddr,
}

/// What the harness asks of a process of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerCommand {
    /// Begin to connect; it is answered as `Mark`.
    Connect,
    /// Tell what was counted so far; the latencies are those since the last such question.
    Mark,
    /// The same, and end.
    Stop,
}

/// What a process of clients has counted since its start; what is `Latencies` since the last question.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Connections that are open, and past `connected`.
    pub open: u64,
    /// Handshakes that came to `connected`.
    pub connected: u64,
    /// Of these, those that went on from a cursor.
    pub resumed: u64,
    /// Connections that were dropped by their clients, to come back.
    pub dropped: u64,
    /// Connections that could not be made, by the reason.
    pub failed: BTreeMap<String, u64>,
    /// Connections that the gateway ended, by its close code; 1006 without one.
    pub closed: BTreeMap<u16, u64>,
    /// Events, of all clients.
    pub events: u64,
    /// Of these, those of slow clients.
    pub slow_events: u64,
    /// The events' frames, in bytes.
    pub event_bytes: u64,
    /// Messages of markets.
    pub ticks: u64,
    /// Pings of WebSocket: heartbeats.
    pub pings: u64,
    /// `reset`: events are lost, and it is told so.
    pub resets: u64,
    /// Redirects that were followed.
    pub redirects: u64,
    /// Messages that were parsed and had no timestamp of ours.
    pub strange: u64,
    /// What this process used.
    pub usage: Usage,
    /// From an event's due time until it was read, by clients that are neither slow nor catching up.
    pub latencies: Latencies,
    /// The same for ticks.
    pub tick_latencies: Latencies,
    /// The same for events that slow clients read, and for those that were due while their client was away.
    pub late_latencies: Latencies,
    /// From the connection's begin until `connected`.
    pub handshakes: Latencies,
}

/// A bare loop. It is its process' first line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FloorPlan {
    /// What is sent.
    pub load: Load,
    /// How many of the load's clients come to it.
    pub clients: u32,
    /// The length of an event's frame, in bytes.
    pub frame_bytes: usize,
    /// Whence it comes: this schedule, for so many seconds; or Kafka.
    pub source: LoopSource,
}

/// Where a bare loop's events come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum LoopSource {
    /// Its own schedule, of so many seconds.
    Schedule(f64),
    /// These topics of these brokers.
    Kafka {
        /// The brokers to begin with.
        brokers: String,
        /// The topics.
        topics: Vec<String>,
    },
    /// What these topics hold already, from their beginnings to their ends. It is read, and sent to nobody.
    Log {
        /// The brokers to begin with.
        brokers: String,
        /// The topics.
        topics: Vec<String>,
    },
}

/// What a bare loop says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FloorSays {
    /// It listens here.
    Listens(SocketAddr),
    /// All clients are there, and so is Kafka: it begins at the next line that it gets, and ends with its input.
    Ready,
    /// What it sent, in frames, and what sockets that were full did not take.
    Sent {
        /// Frames.
        frames: u64,
        /// Frames that a full socket did not take, whole or in part.
        refused: u64,
    },
    /// It has read what the topics hold, and ends with its input.
    Read {
        /// Records.
        records: u64,
        /// How long it took from the first fetch on, in microseconds.
        us: u64,
    },
}

impl Target {
    /// What a client asks it for: the address is this one, the host and the path are the URL's.
    #[must_use]
    pub fn ask(&self) -> Ask {
        let rest = self.url.split_once("://").map_or(&*self.url, |(_, rest)| rest);
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        Ask::to(&format!("ws://{}/{path}", self.address)).header("Host", host)
    }
}

impl Counts {
    /// Both together.
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

    /// What came since an earlier look: what is told of a moment, as who is open, and what is told since the last
    /// question, stays as it is.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut rest = self.clone();
        let pairs = [
            (&mut rest.connected, earlier.connected),
            (&mut rest.resumed, earlier.resumed),
            (&mut rest.dropped, earlier.dropped),
            (&mut rest.events, earlier.events),
            (&mut rest.slow_events, earlier.slow_events),
            (&mut rest.event_bytes, earlier.event_bytes),
            (&mut rest.ticks, earlier.ticks),
            (&mut rest.pings, earlier.pings),
            (&mut rest.resets, earlier.resets),
            (&mut rest.redirects, earlier.redirects),
            (&mut rest.strange, earlier.strange),
        ];
        for (own, earlier) in pairs {
            *own = own.saturating_sub(earlier);
        }
        for (reason, count) in &mut rest.failed {
            *count -= earlier.failed.get(reason).copied().unwrap_or(0).min(*count);
        }
        for (code, count) in &mut rest.closed {
            *count -= earlier.closed.get(code).copied().unwrap_or(0).min(*count);
        }
        rest.failed.retain(|_, count| *count > 0);
        rest.closed.retain(|_, count| *count > 0);
        rest.usage = self.usage.since(&earlier.usage);
        rest
    }

    /// Events and ticks: what was delivered.
    #[must_use]
    pub fn deliveries(&self) -> u64 {
        self.events + self.ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_since_a_look_leave_out_what_was_before_it_and_keep_who_is_open() {
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
    fn a_target_is_asked_at_its_address_by_its_name() {
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
