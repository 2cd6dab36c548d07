//! The table of a shard's handshakes, and which of them makes room at the limit: the oldest past its grace period, a
//! socket that has sent nothing first. So silent sockets can't keep out those that send. Running a handshake is left to
//! its task.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use super::pod_limits::HandshakePermit;
use crate::limits::{HANDSHAKE_GRACE, SILENT_SOCKET_GRACE};

/// The handshakes under way, oldest first, each with its task.
#[derive(Debug)]
pub(super) struct Handshakes<Task> {
    max: usize,
    next: Cell<u64>,
    /// Sockets that have sent nothing yet.
    silent: RefCell<BTreeMap<u64, HandshakeEntry<Task>>>,
    /// Sockets that have sent something.
    started: RefCell<BTreeMap<u64, HandshakeEntry<Task>>>,
}

#[derive(Debug, Clone, Copy)]
struct HandshakeEntry<Task> {
    at: Instant,
    /// Set once the task is spawned.
    task: Option<Task>,
}

impl<Task: Copy> Handshakes<Task> {
    pub(super) fn new(max: usize) -> Self {
        Self { max, next: Cell::new(0), silent: RefCell::default(), started: RefCell::default() }
    }

    /// The limit of handshakes under way.
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

    /// Removes the oldest handshake past its grace period, a silent one first, and returns its task.
    pub(super) fn evict_oldest(&self, now: Instant) -> Option<Task> {
        let oldest = |handshakes: &RefCell<BTreeMap<u64, HandshakeEntry<Task>>>, grace| {
            let mut handshakes = handshakes.borrow_mut();
            let oldest = handshakes.first_entry()?;
            let is_past_grace = now.saturating_duration_since(oldest.get().at) >= grace;
            is_past_grace.then(|| oldest.remove().task).flatten()
        };
        oldest(&self.silent, SILENT_SOCKET_GRACE).or_else(|| oldest(&self.started, HANDSHAKE_GRACE))
    }
}

/// A handshake under way. Dropping it removes it from the table.
pub(super) struct Handshake<Task: Copy> {
    all: Rc<Handshakes<Task>>,
    number: u64,
    /// Counts it for its address.
    _permit: Option<HandshakePermit>,
}

impl<Task: Copy> Handshake<Task> {
    /// Enters a handshake into the table, with its address's permit.
    pub(super) fn begin(all: &Rc<Handshakes<Task>>, permit: Option<HandshakePermit>, now: Instant) -> Self {
        Self { all: Rc::clone(all), number: all.begin(now), _permit: permit }
    }

    /// Its key in the table.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Records that the socket has sent something.
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
        let (sends, silent) = (begin(1, 0), begin(2, 1));
        sends.mark_started();
        let silent_late = begin(3, 2);
        assert!(all.is_full());
        assert_eq!(all.evict_oldest(start), None, "none is past its grace period");

        let late = start + Duration::from_secs(3_600);
        assert_eq!([(); 4].map(|()| all.evict_oldest(late)), [Some(2), Some(3), Some(1), None]);
        assert!(!all.is_full());
        let next = begin(4, 3);
        drop((sends, silent, silent_late));
        assert_eq!(all.evict_oldest(late), Some(4), "dropping an evicted handshake removes no other");
        drop(next);
    }
}
