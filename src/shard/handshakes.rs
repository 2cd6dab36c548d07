//! The handshakes of a shard that are under way, and which of them makes room at their limit: the oldest past its grace
//! period, a socket that has sent nothing first. So silent sockets can't keep out those that speak.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use super::pod_limits::HandshakePermit;
use crate::limits::{ACCEPT_LOG_EVERY, HANDSHAKE_GRACE, SILENT_SOCKET_GRACE};
use crate::log_throttle::LogThrottle;
use crate::protocol::head::{HttpRefusal, RequestFault, Unavailable};

/// The requests that are being read or answered, oldest first, each with the task that does so.
#[derive(Debug)]
pub(super) struct Handshakes<Task> {
    max: usize,
    next: Cell<u64>,
    /// Sockets of which no byte has come yet.
    silent: RefCell<BTreeMap<u64, HandshakeEntry<Task>>>,
    /// The others.
    started: RefCell<BTreeMap<u64, HandshakeEntry<Task>>>,
    /// For the line that an address has too many connections.
    address_warnings: LogThrottle,
    /// For the line that a proxy is not set up as it should be.
    proxy_warnings: LogThrottle,
}

#[derive(Debug, Clone, Copy)]
struct HandshakeEntry<Task> {
    at: Instant,
    /// Once it is known.
    task: Option<Task>,
}

impl<Task: Copy> Handshakes<Task> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            next: Cell::new(0),
            silent: RefCell::default(),
            started: RefCell::default(),
            address_warnings: LogThrottle::new(ACCEPT_LOG_EVERY),
            proxy_warnings: LogThrottle::new(ACCEPT_LOG_EVERY),
        }
    }

    /// Tells an operator of a refusal that settings may have to do with.
    pub(super) fn warn_of(&self, refusal: HttpRefusal, client: IpAddr, now: Instant) {
        let (throttle, advice) = match refusal {
            HttpRefusal::Unavailable(Unavailable::Address) => (
                &self.address_warnings,
                "refused: as many connections as MAX_CONNECTIONS_PER_ADDRESS allows come from this address; if it is a \
                 proxy's, name it in TRUSTED_PROXIES",
            ),
            HttpRefusal::Malformed(RequestFault::ProxyHeader) => (
                &self.proxy_warnings,
                "refused: a trusted proxy's connection does not begin with the PROXY protocol's header; make it send \
                 one, or unset PROXY_PROTOCOL",
            ),
            HttpRefusal::Malformed(RequestFault::Forwarded) => (
                &self.proxy_warnings,
                "refused: X-Forwarded-For and Forwarded of a trusted proxy name different clients; make it set both, or \
                 remove the one that it does not set",
            ),
            _ => return,
        };
        if let Some(held_back) = throttle.admit(now) {
            tracing::warn!(%client, suppressed = held_back, "{advice}");
        }
    }

    /// How many there may be.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    fn begin(&self, now: Instant) -> u64 {
        let number = self.next.replace(self.next.get() + 1);
        self.silent.borrow_mut().insert(number, HandshakeEntry { at: now, task: None });
        number
    }

    pub(super) fn set_task(&self, number: u64, task: Task) {
        for handshakes in [&self.silent, &self.started] {
            if let Some(started) = handshakes.borrow_mut().get_mut(&number) {
                started.task = Some(task);
            }
        }
    }

    fn mark_started(&self, number: u64) {
        if let Some(started) = self.silent.borrow_mut().remove(&number) {
            self.started.borrow_mut().insert(number, started);
        }
    }

    fn end(&self, number: u64) {
        self.silent.borrow_mut().remove(&number);
        self.started.borrow_mut().remove(&number);
    }

    pub(super) fn is_full(&self) -> bool {
        self.silent.borrow().len() + self.started.borrow().len() >= self.max
    }

    /// Takes out the oldest that has had its time, a silent one first.
    pub(super) fn evict_oldest(&self, now: Instant) -> Option<Task> {
        let oldest = |handshakes: &RefCell<BTreeMap<u64, HandshakeEntry<Task>>>, patience| {
            let mut handshakes = handshakes.borrow_mut();
            let oldest = handshakes.first_entry()?;
            let has_had_its_time = now.saturating_duration_since(oldest.get().at) >= patience;
            has_had_its_time.then(|| oldest.remove().task).flatten()
        };
        oldest(&self.silent, SILENT_SOCKET_GRACE).or_else(|| oldest(&self.started, HANDSHAKE_GRACE))
    }
}

/// A handshake that is under way. Dropping it ends it.
pub(super) struct Handshake<Task: Copy> {
    all: Rc<Handshakes<Task>>,
    number: u64,
    /// Counted for its address.
    _arrival: Option<HandshakePermit>,
}

impl<Task: Copy> Handshake<Task> {
    /// Begins one, with what its address was counted by.
    pub(super) fn begin(all: &Rc<Handshakes<Task>>, arrival: Option<HandshakePermit>, now: Instant) -> Self {
        Self { all: Rc::clone(all), number: all.begin(now), _arrival: arrival }
    }

    /// How to end it from outside.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The socket has sent something.
    pub(super) fn mark_started(&self) {
        self.all.mark_started(self.number);
    }
}

impl<Task: Copy> Drop for Handshake<Task> {
    fn drop(&mut self) {
        self.all.end(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_oldest_handshake_past_its_grace_period_makes_room_a_silent_one_first() {
        let start = Instant::now();
        let all = Rc::new(Handshakes::new(3));
        let begin = |task: u32, ms| {
            let handshake = Handshake::begin(&all, None, start + Duration::from_millis(ms));
            all.set_task(handshake.number(), task);
            handshake
        };
        let (speaks, silent) = (begin(1, 0), begin(2, 1));
        speaks.mark_started();
        let silent_late = begin(3, 2);
        assert!(all.is_full());
        assert_eq!(all.evict_oldest(start), None, "nobody has had the grace period");

        let late = start + Duration::from_secs(3_600);
        assert_eq!([(); 4].map(|()| all.evict_oldest(late)), [Some(2), Some(3), Some(1), None]);
        assert!(!all.is_full());
        let next = begin(4, 3);
        drop((speaks, silent, silent_late));
        assert_eq!(all.evict_oldest(late), Some(4), "the end of one that was taken out ends no other");
        drop(next);
    }
}
