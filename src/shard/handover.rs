//! When the view changes, redirects the clients whose assessment moved to another pod, oldest first, at a limited rate.
//! Until then they are served; a client whose assessment comes back meanwhile stays. The view is refreshed first
//! ([`super::view_gate`]). Clients served in place of a doubted owner move to it once the view is confirmed, changed or
//! not.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{ConnectionKey, Socket};
use super::redirect::{Placement, PlacementKey, Redirect};
use super::state::ShardState;
use super::view_gate::{GateDecision, ViewGate};
use crate::clock::{Moment, Now};
use crate::config::ShardConfig;
use crate::ids::AssessmentHash;
use crate::protocol::close::CloseReason;
use crate::routing::placement::View;

/// Depth of the bucket in time: time without a handover allows no large burst later.
const BURST: Duration = Duration::from_millis(100);

/// Connections checked for a move per turn. Placing one hash takes about 100 ns and a cache miss, so others wait about
/// half a millisecond.
const SCANNED_PER_TURN: usize = 4096;

/// The clients to be redirected.
#[derive(Debug)]
pub(super) struct Handover {
    /// Time between two redirects, at this shard's part of `HANDOVER_PER_SECOND`.
    interval: Duration,
    /// The view by which `waiting` was filled, and whether it was confirmed. `None` while no client is handed over.
    view: Option<(Arc<View>, bool)>,
    /// Number of connections that the scan has not visited.
    unscanned: usize,
    /// Clients whose assessment moved, oldest first.
    waiting: BinaryHeap<Reverse<(Moment, ConnectionKey)>>,
    /// Earliest time of the next redirect.
    next: Instant,
    view_gate: ViewGate,
}

impl Handover {
    pub(super) fn new(config: &ShardConfig, now: Instant) -> Self {
        let shards = u32::from(config.shards.max(1));
        let interval = Duration::from_secs(1) * shards / config.handover_per_second.max(1);
        let (waiting, view_gate) = (BinaryHeap::new(), ViewGate::default());
        Self { interval, view: None, unscanned: 0, waiting, next: now, view_gate }
    }

    /// When there is work again, unless the pod state changes earlier; `None` if no client waits.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        if self.unscanned > 0 {
            return Some(now);
        }
        (!self.waiting.is_empty()).then(|| self.view_gate.deadline().unwrap_or(self.next))
    }

    /// Scans for moved clients if the view has changed, and redirects them as far as the rate allows.
    pub(super) fn advance<S: Socket>(
        &mut self,
        state: &mut ShardState<S>,
        placement: &Placement<'_>,
        now: Now,
    ) -> GateDecision {
        // A pod without a slot is about to claim one, or drains. Neither means that its clients have moved.
        if placement.pod_state.own_slot.is_none() || placement.pod_state.draining_since.is_some() {
            self.restart(None, 0);
        } else {
            let (view, confirmed) = (&placement.pod_state.view, placement.pod_state.view_freshness.confirmed);
            match &mut self.view {
                // A view that is confirmed no more keeps the clients that wait.
                Some((known, was_confirmed)) if Arc::ptr_eq(known, view) && (*was_confirmed || !confirmed) => {
                    *was_confirmed = confirmed;
                }
                _ => self.restart(Some((Arc::clone(view), confirmed)), state.connections.len()),
            }
        }
        self.scan(state, placement);
        self.next = self.next.max(now.instant.checked_sub(BURST).unwrap_or(now.instant));
        if self.unscanned > 0 {
            return GateDecision::Wait;
        }
        if self.waiting.is_empty() {
            self.view_gate.reset();
            return GateDecision::Proceed;
        }
        if self.next > now.instant {
            return GateDecision::Wait;
        }
        let step = self.view_gate.check(&placement.pod_state.view_freshness, now.instant);
        while step == GateDecision::Proceed && self.next <= now.instant {
            let Some(Reverse((_, key))) = self.waiting.pop() else { break };
            let Some((hash, to)) = redirect_if_moved(state, key, placement) else { continue };
            self.next += self.interval;
            state.recent_redirects.record(hash, &placement.pod_state.view_freshness, now.instant);
            state.close(key, CloseReason::Moved, Some(to), now);
        }
        step
    }

    /// Starts again with another view: clients that waited by the last one may stay by this one.
    fn restart(&mut self, view: Option<(Arc<View>, bool)>, connections: usize) {
        self.view_gate.reset();
        self.view = view;
        self.unscanned = connections;
        self.waiting.clear();
    }

    /// Continues the scan for moved connections, backwards, so that a connection that closes makes it miss none. New
    /// connections were admitted by this view.
    fn scan<S: Socket>(&mut self, state: &ShardState<S>, placement: &Placement<'_>) {
        let end = self.unscanned.min(state.connections.len());
        self.unscanned = end.saturating_sub(SCANNED_PER_TURN);
        for &key in &state.connections.keys()[self.unscanned..end] {
            if redirect_if_moved(state, key, placement).is_some() {
                self.waiting.push(Reverse((state.connections[key].opened, key)));
            }
        }
    }
}

/// A connection's assessment and its redirect, if another pod serves it now.
fn redirect_if_moved<S: Socket>(
    state: &ShardState<S>,
    key: ConnectionKey,
    placement: &Placement<'_>,
) -> Option<(AssessmentHash, Redirect)> {
    let connection = state.connections.get(key).filter(|connection| connection.is_live())?;
    let hash = connection.subscription?.hash;
    Some((hash, placement.redirect_for(PlacementKey::Assessment(hash), connection.owner_doubt)?))
}
