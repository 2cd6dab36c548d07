//! The handover: when the view changes, clients whose assessment moved to another pod are sent there, oldest first and no
//! faster than their new owners are meant to take them. Until then they are served; who comes home meanwhile stays. The
//! view that they go by is made sure of first ([`super::freshness`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::{Here, Watching};
use super::connection::Socket;
use super::freshness::{Freshness, Step};
use super::state::{ConnectionKey, State};
use crate::clock::Now;
use crate::config::ShardConfig;
use crate::protocol::close::CloseReason;
use crate::routing::placement::{Pod, View};

/// The bucket's depth in time: what was not handed over while nobody had to move is not made up for by a burst.
const BURST: Duration = Duration::from_millis(100);

/// Who is still to be sent to another pod.
#[derive(Debug)]
pub(super) struct Handover {
    /// Between two clients, at this shard's part of `HANDOVER_PER_SECOND`.
    interval: Duration,
    /// The view by which those who wait were chosen.
    view: Arc<View>,
    /// Oldest first.
    waiting: VecDeque<ConnectionKey>,
    /// When the next may go.
    next: Instant,
    freshness: Freshness,
}

impl Handover {
    pub(super) fn new(config: &ShardConfig, now: Instant) -> Self {
        let shards = u32::from(config.shards.max(1));
        let interval = Duration::from_secs(1) * shards / config.handover_per_second.max(1);
        Self { interval, view: Arc::default(), waiting: VecDeque::new(), next: now, freshness: Freshness::default() }
    }

    /// When this has work again, unless the standing changes before; `None` where nobody waits.
    pub(super) fn next(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.freshness.until().unwrap_or(self.next))
    }

    /// Looks who has moved, if the view is another, and sends those on their way who may go now.
    pub(super) fn advance<S: Socket>(&mut self, state: &mut State<S>, here: &Here<'_>, now: Now) -> Step {
        // A pod without a slot is about to claim one, or drains: neither says that its clients have moved.
        if here.standing.own.is_none() || here.standing.draining_since.is_some() {
            if !self.waiting.is_empty() {
                self.waiting.clear();
                self.view = Arc::default();
            }
        } else if !Arc::ptr_eq(&self.view, &here.standing.view) {
            self.view = Arc::clone(&here.standing.view);
            self.choose(state, here);
        }
        self.next = self.next.max(now.instant.checked_sub(BURST).unwrap_or(now.instant));
        if self.waiting.is_empty() {
            self.freshness.withdraw();
            return Step::Go;
        }
        if self.next > now.instant {
            return Step::Wait;
        }
        let step = self.freshness.ask(&here.standing.sight, now.instant);
        while step == Step::Go && self.next <= now.instant {
            let Some(key) = self.waiting.pop_front() else { break };
            let Some(to) = moved_to(state, key, here) else { continue };
            self.next += self.interval;
            state.close(key, CloseReason::Moved, Some(to), now);
        }
        step
    }

    fn choose<S: Socket>(&mut self, state: &State<S>, here: &Here<'_>) {
        let moved = state.roster.iter().copied().filter(|&key| moved_to(state, key, here).is_some());
        let mut moved: Vec<_> = moved.collect();
        moved.sort_by_key(|&key| state.connections[key].opened);
        self.waiting = moved.into();
    }
}

/// The pod that serves a connection's assessment now, if it is another.
fn moved_to<S: Socket>(state: &State<S>, key: ConnectionKey, here: &Here<'_>) -> Option<Pod> {
    let connection = state.connections.get(key).filter(|connection| connection.is_live())?;
    here.elsewhere(Watching::Assessment(connection.watch?.hash))
}
