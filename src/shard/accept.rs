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
use super::pod_limits::Arrival;
use super::reactor::{Listener, Stream};
use super::socket;
use crate::limits::{ACCEPT_LOG_EVERY, HANDSHAKE_PATIENCE, SILENT_PATIENCE};
use crate::log_throttle::LogThrottle;
use crate::protocol::head::{Fault, Refusal, Unavailable};

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
    /// For the line that an address has too many connections.
    address_warnings: LogThrottle,
    /// For the line that a proxy is not set up as it should be.
    proxy_warnings: LogThrottle,
}

#[derive(Debug, Clone, Copy)]
struct Begun {
    at: Instant,
    /// Once it is known.
    task: Option<TaskKey>,
}

impl Handshakes {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            next: Cell::new(0),
            silent: RefCell::default(),
            begun: RefCell::default(),
            address_warnings: LogThrottle::new(ACCEPT_LOG_EVERY),
            proxy_warnings: LogThrottle::new(ACCEPT_LOG_EVERY),
        }
    }

    /// Tells an operator of a refusal that settings may have to do with.
    pub(super) fn warn_of(&self, refusal: Refusal, client: IpAddr) {
        let (throttle, advice) = match refusal {
            Refusal::Unavailable(Unavailable::Address) => (
                &self.address_warnings,
                "refused: as many connections as MAX_CONNECTIONS_PER_ADDRESS allows come from this address; if it is a \
                 proxy's, name it in TRUSTED_PROXIES",
            ),
            Refusal::Malformed(Fault::ProxyHeader) => (
                &self.proxy_warnings,
                "refused: a trusted proxy's connection does not begin with the PROXY protocol's header; make it send \
                 one, or unset PROXY_PROTOCOL",
            ),
            Refusal::Malformed(Fault::Forwarded) => (
                &self.proxy_warnings,
                "refused: X-Forwarded-For and Forwarded of a trusted proxy name different clients; make it set both, or \
                 remove the one that it does not set",
            ),
            _ => return,
        };
        if let Some(held_back) = throttle.admit(Instant::now()) {
            tracing::warn!(%client, held_back, "{advice}");
        }
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
    /// Counted for its address.
    _arrival: Option<Arrival>,
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

/// Refuses a socket whose request is not even read.
fn turn_away(shard: &Shard, mut stream: Stream, peer: IpAddr, why: Unavailable) {
    let refusal = Refusal::Unavailable(why);
    shard.metrics.refused_by_http(refusal);
    shard.handshakes.warn_of(refusal, peer);
    stream.write_now(&refusal.response());
}

fn welcome(shard: &Rc<Shard>, stream: Stream, peer: IpAddr) {
    let is_proxy = shard.head_rules.trusted_proxies.contains(peer);
    let arrival = match if is_proxy { Ok(None) } else { shard.pod.arrive(peer) } {
        Ok(arrival) => arrival,
        Err(why) => return turn_away(shard, stream, peer, why),
    };
    let number = shard.handshakes.begin(Instant::now());
    let handshake = Handshake { shard: Rc::clone(shard), number, _arrival: arrival };
    let task = shard.spawn(async move {
        socket::handshake(&handshake, stream, peer).await;
    });
    shard.handshakes.is_run_by(number, task);
}
