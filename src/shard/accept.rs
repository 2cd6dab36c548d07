//! Accepts sockets, no faster than their requests can be read: what is not accepted waits in the kernel's queue. At the
//! limit of handshakes, the oldest one past its grace period is closed, a socket that has sent nothing first: so silent
//! sockets can't keep out those that speak.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::timer::Timer;

use super::event_loop::{Shard, TaskKey, let_all_run};
use super::reactor::{Listener, Stream};
use super::socket;
use crate::limits::{ACCEPT_LOG_EVERY, HANDSHAKE_PATIENCE, SILENT_PATIENCE};
use crate::log_throttle::LogThrottle;

/// How long accepting pauses when the system refuses (descriptors, memory).
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// How long it pauses where there is no room for a request.
const ROOM_PAUSE: Duration = Duration::from_millis(2);

/// Sockets that are accepted before the requests of others are read: while sockets wait, an accept is ready at once, and
/// a storm of them must not be all that the shard does. With their handshakes it is about a millisecond's work.
const ACCEPTS_A_TURN: u32 = 16;

/// The requests that are being read or answered, oldest first.
#[derive(Debug)]
pub(super) struct Handshakes {
    max: usize,
    next: Cell<u64>,
    /// Sockets of which no byte has come yet.
    silent: RefCell<BTreeMap<u64, Begun>>,
    /// The others.
    begun: RefCell<BTreeMap<u64, Begun>>,
}

#[derive(Debug, Clone, Copy)]
struct Begun {
    at: Instant,
    /// Once it is known.
    task: Option<TaskKey>,
}

impl Handshakes {
    pub(super) fn new(max: usize) -> Self {
        Self { max, next: Cell::new(0), silent: RefCell::default(), begun: RefCell::default() }
    }

    /// How many there may be.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    fn begin(&self, now: Instant) -> u64 {
        let number = self.next.replace(self.next.get() + 1);
        self.silent.borrow_mut().insert(number, Begun { at: now, task: None });
        number
    }

    fn is_run_by(&self, number: u64, task: TaskKey) {
        for handshakes in [&self.silent, &self.begun] {
            if let Some(begun) = handshakes.borrow_mut().get_mut(&number) {
                begun.task = Some(task);
            }
        }
    }

    fn has_begun(&self, number: u64) {
        if let Some(begun) = self.silent.borrow_mut().remove(&number) {
            self.begun.borrow_mut().insert(number, begun);
        }
    }

    fn end(&self, number: u64) {
        self.silent.borrow_mut().remove(&number);
        self.begun.borrow_mut().remove(&number);
    }

    fn is_full(&self) -> bool {
        self.silent.borrow().len() + self.begun.borrow().len() >= self.max
    }

    /// Takes out the oldest that has had its time, a silent one first.
    fn take_oldest(&self, now: Instant) -> Option<TaskKey> {
        let oldest = |handshakes: &RefCell<BTreeMap<u64, Begun>>, patience| {
            let mut handshakes = handshakes.borrow_mut();
            let oldest = handshakes.first_entry()?;
            let has_had_its_time = now.saturating_duration_since(oldest.get().at) >= patience;
            has_had_its_time.then(|| oldest.remove().task).flatten()
        };
        oldest(&self.silent, SILENT_PATIENCE).or_else(|| oldest(&self.begun, HANDSHAKE_PATIENCE))
    }
}

/// A handshake that is under way. Dropping it ends it.
pub(super) struct Handshake {
    pub(super) shard: Rc<Shard>,
    number: u64,
}

impl Handshake {
    /// The socket has sent something.
    pub(super) fn has_begun(&self) {
        self.shard.handshakes.has_begun(self.number);
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.shard.handshakes.end(self.number);
    }
}

/// Accepts from a listener for as long as the shard runs.
pub(super) fn accept_from(shard: &Rc<Shard>, listener: std::net::TcpListener) {
    let mut listener = Listener::new(&shard.reactor, listener);
    let accepting = Rc::clone(shard);
    shard.spawn(async move {
        let failures = LogThrottle::new(ACCEPT_LOG_EVERY);
        let mut accepted = 0;
        loop {
            make_room(&accepting).await;
            match listener.accept().await {
                Ok((stream, peer)) => welcome(&accepting, stream, peer),
                Err(error) => {
                    if let Some(held_back) = failures.admit(Instant::now()) {
                        tracing::warn!(%error, held_back, "PORT can't accept connections; trying again until it works");
                    }
                    Timer::new(REFUSED_PAUSE).await;
                }
            }
            accepted += 1;
            if accepted == ACCEPTS_A_TURN {
                accepted = 0;
                let_all_run().await;
            }
        }
    });
}

async fn make_room(shard: &Shard) {
    while shard.handshakes.is_full() {
        match shard.handshakes.take_oldest(Instant::now()) {
            Some(task) => shard.cancel(task),
            None => {
                Timer::new(ROOM_PAUSE).await;
            }
        }
    }
}

fn welcome(shard: &Rc<Shard>, stream: Stream, peer: IpAddr) {
    let number = shard.handshakes.begin(Instant::now());
    let handshake = Handshake { shard: Rc::clone(shard), number };
    let task = shard.spawn(async move {
        socket::handshake(&handshake, stream, peer).await;
    });
    shard.handshakes.is_run_by(number, task);
}
