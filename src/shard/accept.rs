//! Accepts sockets, no faster than their requests can be read: what is not accepted waits in the kernel's queue. Where as
//! many requests are being read as may be, the one that has taken longest makes room, if it has had its time: so sockets
//! that say nothing can't keep out those that do.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::timer::Timer;

use super::event_loop::{Shard, TaskKey, let_all_run};
use super::reactor::{Listener, Stream};
use super::socket;
use crate::limits::{ACCEPT_LOG_EVERY, HANDSHAKE_PATIENCE, HANDSHAKES_MAX};

/// How long accepting pauses when the system refuses (descriptors, memory).
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// How long it pauses where there is no room for a request.
const ROOM_PAUSE: Duration = Duration::from_millis(2);

/// Sockets that are accepted before the requests of others are read: while sockets wait, an accept is ready at once, and
/// a storm of them must not be all that the shard does. With their handshakes it is about a millisecond's work.
const ACCEPTS_A_TURN: u32 = 16;

/// The requests that are being read or answered, oldest first.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    next: Cell<u64>,
    under_way: RefCell<BTreeMap<u64, Begun>>,
}

#[derive(Debug, Clone, Copy)]
struct Begun {
    at: Instant,
    /// Once it is known.
    task: Option<TaskKey>,
}

impl Handshakes {
    fn begin(&self, now: Instant) -> u64 {
        let number = self.next.replace(self.next.get() + 1);
        self.under_way.borrow_mut().insert(number, Begun { at: now, task: None });
        number
    }

    fn is_run_by(&self, number: u64, task: TaskKey) {
        if let Some(begun) = self.under_way.borrow_mut().get_mut(&number) {
            begun.task = Some(task);
        }
    }

    fn end(&self, number: u64) {
        self.under_way.borrow_mut().remove(&number);
    }

    fn is_full(&self) -> bool {
        self.under_way.borrow().len() >= HANDSHAKES_MAX
    }

    /// Takes out the oldest, if it has had its time.
    fn take_oldest(&self, now: Instant) -> Option<TaskKey> {
        let mut under_way = self.under_way.borrow_mut();
        let oldest = under_way.first_entry()?;
        let has_had_its_time = now.saturating_duration_since(oldest.get().at) >= HANDSHAKE_PATIENCE;
        has_had_its_time.then(|| oldest.remove().task).flatten()
    }
}

/// Ends a handshake when it is dropped.
struct Handshake {
    shard: Rc<Shard>,
    number: u64,
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
        let mut told = None;
        let mut accepted = 0;
        loop {
            make_room(&accepting).await;
            match listener.accept().await {
                Ok(stream) => welcome(&accepting, stream),
                Err(error) => {
                    let now = Instant::now();
                    if told.is_none_or(|told| now.saturating_duration_since(told) >= ACCEPT_LOG_EVERY) {
                        tracing::warn!(%error, "can't accept connections; trying again until it works");
                        told = Some(now);
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

fn welcome(shard: &Rc<Shard>, stream: Stream) {
    let number = shard.handshakes.begin(Instant::now());
    let handshake = Handshake { shard: Rc::clone(shard), number };
    let task = shard.spawn(async move {
        socket::handshake(Rc::clone(&handshake.shard), stream).await;
        drop(handshake);
    });
    shard.handshakes.is_run_by(number, task);
}
