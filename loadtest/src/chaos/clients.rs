//! The clients of a run, all on one thread, and the orders by which some of them misbehave.

mod connection;
mod life;
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
use life::{Abandoned, ChaosClient};

/// Timers are this exact.
const TURN: Duration = Duration::from_millis(10);

/// A socket that was abandoned is closed after this time: its pod has long found out by itself.
const ABANDONED_FOR: Duration = Duration::from_secs(30);

/// After the last event was made, clients have this long to get it; and less, where nothing comes at all any more.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(90);
const NOTHING_COMES_FOR: Duration = Duration::from_secs(20);

/// Who has all stays a little longer: a double may still come.
const LISTENS_ON: Duration = Duration::from_secs(2);

/// How many orders may wait: they come seconds apart.
pub(super) const ORDERS_MAX: usize = 16;

/// A fault that the clients make themselves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Misbehaviour {
    pub(super) kind: FaultKind,
    pub(super) lasts: Duration,
    pub(super) seed: u32,
}

/// How many, of a hundred, a fault of the clients hits.
fn share(kind: FaultKind) -> u32 {
    match kind {
        FaultKind::Drop => 100,
        FaultKind::Stall | FaultKind::HalfOpen | FaultKind::Hasty | FaultKind::Compaction => 20,
        _ => 3,
    }
}

/// What the clients have in common.
pub(super) struct Shared {
    pub(super) log: LogFile,
    pub(super) clock: Clock,
    pub(super) directory: Directory,
    pub(super) seen: u64,
    /// Clients that have read only a part of what came.
    pub(super) has_more: Vec<u32>,
    abandoned: Abandoned,
}

impl Shared {
    pub(super) fn new(log: LogFile, clock: Clock, directory: Directory) -> Self {
        Self { log, clock, directory, seen: 0, has_more: Vec::new(), abandoned: Vec::new() }
    }

    /// Keeps a socket open that nobody reads any more.
    pub(super) fn abandon(&mut self, stream: TcpStream) {
        self.abandoned.push((Instant::now(), stream));
    }
}

/// What the progress line tells of the clients.
#[derive(Debug, Default)]
pub(super) struct RunProgress {
    pub(super) connected: AtomicU64,
    pub(super) seen: AtomicU64,
}

/// The clients.
pub(super) struct Clients {
    lives: Vec<ChaosClient>,
    shared: Shared,
    progress: Arc<RunProgress>,
}

impl Clients {
    /// So many clients; each assessment has several.
    pub(super) fn new(count: u32, assessments: u32, seed: u64, shared: Shared, progress: &Arc<RunProgress>) -> Self {
        let lives = (0..count).map(|number| ChaosClient::new(number, number % assessments, seed, &shared)).collect();
        Self { lives, shared, progress: Arc::clone(progress) }
    }

    /// Lives until all are connected.
    ///
    /// # Errors
    /// Where they aren't within the time.
    pub(super) fn connect(&mut self, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        while !self.lives.iter().all(ChaosClient::is_connected) {
            let connected = self.lives.iter().filter(|life| life.is_connected()).count();
            anyhow::ensure!(Instant::now() < deadline, "only {connected} clients are connected within {within:?}");
            self.turn();
        }
        Ok(())
    }

    /// Lives, and misbehaves as ordered, until no more orders can come.
    pub(super) fn live(&mut self, orders: &mpsc::Receiver<Misbehaviour>) {
        loop {
            match orders.try_recv() {
                Ok(order) => self.obey(order),
                Err(mpsc::TryRecvError::Empty) => self.turn(),
                Err(mpsc::TryRecvError::Disconnected) => return,
            }
        }
    }

    /// Lives until each has all that was made, or will not get it any more; then says goodbye.
    pub(super) fn finish(&mut self, last: &BTreeMap<(u32, u8), u64>) {
        self.lives.iter_mut().for_each(ChaosClient::hurry);
        let deadline = Instant::now() + CAUGHT_UP_WITHIN;
        let mut last_came = (self.shared.seen, Instant::now());
        while !self.lives.iter().all(|life| life.has_all(last)) {
            self.turn();
            let now = Instant::now();
            if self.shared.seen != last_came.0 {
                last_came = (self.shared.seen, now);
            }
            if now > deadline || now > last_came.1 + NOTHING_COMES_FOR {
                break;
            }
        }
        let end = Instant::now() + LISTENS_ON;
        while Instant::now() < end {
            self.turn();
        }
        self.lives.iter_mut().for_each(|life| life.finish(&self.shared));
    }

    /// Brings their log to its file.
    pub(super) fn flush(&self) {
        self.shared.log.flush();
    }

    fn obey(&mut self, order: Misbehaviour) {
        let mut random = fastrand::Rng::with_seed(u64::from(order.seed));
        for life in &mut self.lives {
            if random.u32(0..100) < share(order.kind) {
                life.suffer(order.kind, order.lasts, &mut self.shared);
            }
        }
    }

    /// Waits a moment for what comes, reads it, and does what is due.
    fn turn(&mut self) {
        let (places, mut polls): (Vec<usize>, Vec<_>) =
            self.lives.iter().enumerate().filter_map(|(place, life)| Some((place, life.poll()?))).unzip();
        let has_more: Vec<u32> = std::mem::take(&mut self.shared.has_more);
        let turn = if has_more.is_empty() { TURN } else { Duration::ZERO };
        let timeout = i32::try_from(turn.as_millis()).expect("ten");
        let count = libc::nfds_t::try_from(polls.len()).expect("fewer than descriptors");
        // SAFETY: the pointer and the count are of one live vector, whose descriptors the clients keep open.
        unsafe { libc::poll(polls.as_mut_ptr(), count, timeout) };
        let now = Instant::now();
        for number in has_more {
            self.lives[number as usize].read(now, &mut self.shared);
        }
        for (place, poll) in places.into_iter().zip(polls) {
            if poll.revents != 0 {
                self.lives[place].read(now, &mut self.shared);
            }
        }
        for life in &mut self.lives {
            life.tick(now, &mut self.shared);
        }
        self.shared.abandoned.retain(|(since, _)| now < *since + ABANDONED_FOR);
        let connected = self.lives.iter().filter(|life| life.is_connected()).count();
        self.progress.connected.store(connected as u64, Ordering::Relaxed);
        self.progress.seen.store(self.shared.seen, Ordering::Relaxed);
    }
}
