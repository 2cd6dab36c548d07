//! Closes connections at `MAX_CONNECTION_AGE_MS` so that load evens out as clients reconnect. A client of an assessment
//! is redirected to its owner, which may be this pod; a market-data client to any live pod. With `PLACEMENT=any` the
//! client gets a heartbeat with a fresh cursor and reconnects as before.
//!
//! Clients that arrived together do not leave together: each connection lives between three quarters of the age and all
//! of it, by a fraction derived from its key, and closes keep to the handover rate.

use std::time::{Duration, Instant};

use slotmap::Key;

use super::connection::{Connection, ConnectionKey, Socket};
use super::redirect::{Placement, Redirect};
use super::state::ShardState;
use crate::clock::Now;
use crate::config::ShardConfig;
use crate::exchange::Owner;
use crate::protocol::close::CloseReason;

/// Depth of the bucket in time, as of a handover's.
const BURST: Duration = Duration::from_millis(100);

/// Connections checked per turn: each takes a cache miss.
const SCANNED_PER_TURN: usize = 4096;

/// Passes over a shard's connections for those that have reached their age.
#[derive(Debug)]
pub(super) struct AgeLimiter {
    age_max: Option<Duration>,
    every: Duration,
    /// End of the last pass.
    passed: Instant,
    /// Number of connections that the pass under way has not visited.
    left: usize,
    /// Time between two closes, at this shard's part of `HANDOVER_PER_SECOND`.
    interval: Duration,
    /// Earliest time of the next close.
    next: Instant,
}

impl AgeLimiter {
    pub(super) fn new(age_max: Option<Duration>, config: &ShardConfig, now: Instant) -> Self {
        // A pass each hundredth of the age: no close is later than that.
        let every = (age_max.unwrap_or_default() / 100).clamp(Duration::from_millis(10), Duration::from_secs(1));
        let interval = Duration::from_secs(1) * u32::from(config.shards.max(1)) / config.handover_per_second.max(1);
        Self { age_max, every, passed: now, left: 0, interval, next: now }
    }

    /// When there is work again; `None` without an age limit.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.age_max?;
        Some(if self.left > 0 { self.next.max(now) } else { self.passed + self.every })
    }

    /// Closes connections that have reached their age, as far as the rate allows.
    pub(super) fn advance<S: Socket>(&mut self, state: &mut ShardState<S>, placement: &Placement<'_>, now: Now) {
        let Some(age_max) = self.age_max else { return };
        // A drain closes every connection.
        if placement.pod_state.draining_since.is_some() {
            (self.passed, self.left) = (now.instant, 0);
            return;
        }
        if self.left == 0 {
            if now.instant < self.passed + self.every {
                return;
            }
            self.left = state.connections.len();
        }
        self.next = self.next.max(now.instant.checked_sub(BURST).unwrap_or(now.instant));
        // Backwards, so that a connection that closes meanwhile makes it miss none.
        self.left = self.left.min(state.connections.len());
        let end = self.left.saturating_sub(SCANNED_PER_TURN);
        while self.left > end && self.next <= now.instant {
            self.left -= 1;
            let key = state.connections.keys()[self.left];
            if is_due(&state.connections[key], key, age_max, now.instant) && close_for_age(state, key, placement, now) {
                self.next += self.interval;
            }
        }
        if self.left == 0 {
            self.passed = now.instant;
        }
    }
}

/// Whether a connection has reached its age. One that catches up or has a full socket is left to the next pass.
fn is_due<S>(connection: &Connection<S>, key: ConnectionKey, age_max: Duration, now: Instant) -> bool {
    let age = now.saturating_duration_since(connection.opened.instant());
    age >= lifetime(key, age_max) && connection.is_open() && !connection.catching_up
}

/// The age at which a connection is closed: between three quarters of the maximum and all of it.
fn lifetime(key: ConnectionKey, age_max: Duration) -> Duration {
    age_max.saturating_sub((age_max / 4).mul_f64(f64::from(mixed(key)) / f64::from(u32::MAX)))
}

/// A number that differs between neighbouring keys, whose connections opened at about the same time.
fn mixed(key: ConnectionKey) -> u32 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    (key.data().as_ffi().wrapping_mul(GOLDEN) >> 32) as u32
}

/// Closes a connection with a redirect; returns `false` if no target is known.
fn close_for_age<S: Socket>(
    state: &mut ShardState<S>,
    key: ConnectionKey,
    placement: &Placement<'_>,
    now: Now,
) -> bool {
    let subscription = state.connections[key].subscription;
    let to = if placement.place_anywhere {
        None
    } else {
        let view = &placement.pod_state.view;
        let to = match subscription {
            Some(subscription) => match placement.pod_state.owner(subscription.hash) {
                Owner::ThisPod => placement.pod_state.own_slot.and_then(|own| view.pod(own)),
                // The handover redirects it.
                Owner::OtherPod(_) | Owner::Vacant => None,
            },
            // A pod of an unconfirmed view may be gone.
            None if !placement.pod_state.view_freshness.confirmed => None,
            None => {
                let live = view.live().count();
                let index = (mixed(key) as usize).checked_rem(live);
                index.and_then(|index| view.live().map(|(_, pod)| pod).nth(index))
            }
        };
        let Some(to) = to else { return false };
        Some(Redirect { to: to.clone(), from_draining: false })
    };
    if to.is_none() {
        state.connections[key].control_due.heartbeat = true;
        state.flush(key, now);
    }
    state.close(key, CloseReason::TooOld, to, now);
    true
}
