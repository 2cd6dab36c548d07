//! The clients of a run, all on one thread, and the orders that make some of them misbehave.

mod client;
mod connection;
mod reconnect_policy;

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::Clock;
use super::fleet::Directory;
use super::log::LogFile;
use super::schedule::FaultKind;
use client::{Abandoned, ChaosClient};

/// Resolution of the timers.
const TURN: Duration = Duration::from_millis(10);

/// An abandoned socket is closed after this time: its pod has closed its end long before.
const ABANDONED_FOR: Duration = Duration::from_secs(30);

/// Time limit for catching up after the last event, and a shorter one without any event.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(90);
const NO_EVENT_FOR: Duration = Duration::from_secs(20);

/// Clients that have caught up stay for this time, because a duplicate may still come.
const LISTEN_FOR_DUPLICATES: Duration = Duration::from_secs(2);

/// Capacity of the queue of orders, which come seconds apart.
pub(super) const ORDERS_MAX: usize = 16;

/// A fault that the clients inject.
#[derive(Debug, Clone, Copy)]
pub(super) struct Misbehaviour {
    pub(super) kind: FaultKind,
    pub(super) lasts: Duration,
    pub(super) seed: u32,
}

/// Percentage of clients that a fault hits.
fn share(kind: FaultKind) -> u32 {
    match kind {
        FaultKind::Drop => 100,
        FaultKind::Stall | FaultKind::HalfOpen | FaultKind::Hasty | FaultKind::Compaction => 20,
        _ => 3,
    }
}

/// State shared by all clients.
pub(super) struct Shared {
    pub(super) log: LogFile,
    pub(super) clock: Clock,
    pub(super) directory: Directory,
    pub(super) seen: u64,
    /// Clients with more messages in their buffers.
    pub(super) has_more: Vec<u32>,
    abandoned: Abandoned,
}

impl Shared {
    pub(super) fn new(log: LogFile, clock: Clock, directory: Directory) -> Self {
        Self { log, clock, directory, seen: 0, has_more: Vec::new(), abandoned: Vec::new() }
    }

    /// Keeps a socket open without reading it.
    pub(super) fn abandon(&mut self, stream: TcpStream) {
        self.abandoned.push((Instant::now(), stream));
    }
}

/// The clients' numbers for the progress line.
#[derive(Debug, Default)]
pub(super) struct RunProgress {
    pub(super) connected: AtomicU64,
    pub(super) seen: AtomicU64,
}

/// The clients.
pub(super) struct Clients {
    clients: Vec<ChaosClient>,
    shared: Shared,
    progress: Arc<RunProgress>,
}

impl Clients {
    /// Creates `count` clients, several for each assessment.
    pub(super) fn new(count: u32, assessments: u32, seed: u64, shared: Shared, progress: &Arc<RunProgress>) -> Self {
        let clients = (0..count).map(|number| ChaosClient::new(number, number % assessments, seed, &shared)).collect();
        Self { clients, shared, progress: Arc::clone(progress) }
    }

    /// Runs until all clients are connected.
    ///
    /// # Errors
    /// If some are not connected in time.
    pub(super) fn connect(&mut self, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        while !self.clients.iter().all(ChaosClient::is_connected) {
            let connected = self.clients.iter().filter(|client| client.is_connected()).count();
            anyhow::ensure!(Instant::now() < deadline, "only {connected} clients are connected within {within:?}");
            self.turn();
        }
        Ok(())
    }

    /// Runs the clients and carries out orders until the senders are gone.
    pub(super) fn run(&mut self, orders: &mpsc::Receiver<Misbehaviour>) {
        loop {
            match orders.try_recv() {
                Ok(order) => self.misbehave(order),
                Err(mpsc::TryRecvError::Empty) => self.turn(),
                Err(mpsc::TryRecvError::Disconnected) => return,
            }
        }
    }

    /// Runs until each client has received all events, or none come any more; then closes the connections.
    pub(super) fn finish(&mut self, last: &BTreeMap<(u32, u8), u64>) {
        self.clients.iter_mut().for_each(ChaosClient::return_now);
        let deadline = Instant::now() + CAUGHT_UP_WITHIN;
        let mut last_progress = (self.shared.seen, Instant::now());
        while !self.clients.iter().all(|client| client.has_all(last)) {
            self.turn();
            let now = Instant::now();
            if self.shared.seen != last_progress.0 {
                last_progress = (self.shared.seen, now);
            }
            if now > deadline || now > last_progress.1 + NO_EVENT_FOR {
                break;
            }
        }
        let end = Instant::now() + LISTEN_FOR_DUPLICATES;
        while Instant::now() < end {
            self.turn();
        }
        self.clients.iter_mut().for_each(|client| client.finish(&self.shared));
    }

    /// Writes the buffered log.
    pub(super) fn flush(&self) {
        self.shared.log.flush();
    }

    fn misbehave(&mut self, order: Misbehaviour) {
        let mut random = fastrand::Rng::with_seed(u64::from(order.seed));
        for client in &mut self.clients {
            if random.u32(0..100) < share(order.kind) {
                client.misbehave(order.kind, order.lasts, &mut self.shared);
            }
        }
    }

    /// Polls the sockets, reads what has arrived, and runs timers.
    fn turn(&mut self) {
        let (indices, mut polls): (Vec<usize>, Vec<_>) =
            self.clients.iter().enumerate().filter_map(|(index, client)| Some((index, client.poll()?))).unzip();
        let has_more: Vec<u32> = std::mem::take(&mut self.shared.has_more);
        let turn = if has_more.is_empty() { TURN } else { Duration::ZERO };
        let timeout = i32::try_from(turn.as_millis()).expect("a turn of ten milliseconds");
        let count = libc::nfds_t::try_from(polls.len()).expect("fewer clients than descriptors");
        // SAFETY: the pointer and the count are of one live vector, whose descriptors the clients keep open.
        unsafe { libc::poll(polls.as_mut_ptr(), count, timeout) };
        let now = Instant::now();
        for number in has_more {
            self.clients[number as usize].read(now, &mut self.shared);
        }
        for (index, poll) in indices.into_iter().zip(polls) {
            if poll.revents != 0 {
                self.clients[index].read(now, &mut self.shared);
            }
        }
        for client in &mut self.clients {
            client.tick(now, &mut self.shared);
        }
        self.shared.abandoned.retain(|(since, _)| now < *since + ABANDONED_FOR);
        let connected = self.clients.iter().filter(|client| client.is_connected()).count();
        self.progress.connected.store(connected as u64, Ordering::Relaxed);
        self.progress.seen.store(self.shared.seen, Ordering::Relaxed);
    }
}
