//! Closes the clients of a draining pod, as many as its phase asks for, each with a redirect if another pod serves it.
//! [`DrainPhase`] decides how many may remain, [`super::redirect`] where the others go.

use std::time::Instant;

use super::connection::{ConnectionKey, Socket};
use super::redirect::{Placement, PlacementKey};
use super::state::ShardState;
use super::view_gate::{GateDecision, ViewGate};
use crate::clock::Now;
use crate::ids::AssessmentHash;
use crate::limits::VISITS_A_SEND;
use crate::protocol::close::CloseReason;
use crate::shutdown::phases::DrainPhase;

/// Visits that a turn has for the drain; a close takes [`VISITS_A_SEND`] of them.
const VISITS_PER_TURN: usize = 4096;

/// The drain of a shard's clients.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// Number of connections when the closing began.
    started_with: Option<usize>,
    /// Number of connections that the pass under way has not visited.
    left: Option<usize>,
    view_gate: ViewGate,
}

impl Drain {
    /// When there is work again, unless the pod state or the phase changes earlier.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        (self.left.is_some() && self.view_gate.deadline().is_none()).then_some(now)
    }

    /// Closes the connections beyond those that may remain, the last of the list first. Each step of a pass visits a
    /// bounded number of them. The view has to be fresh until the drain's time is over; then any view does.
    pub(super) fn advance<S: Socket>(
        &mut self,
        state: &mut ShardState<S>,
        phase: DrainPhase,
        placement: &Placement<'_>,
        now: Now,
    ) -> GateDecision {
        if matches!(phase, DrainPhase::Serving | DrainPhase::Announcing) {
            return GateDecision::Proceed;
        }
        let all = state.connections.len();
        let remaining = phase.remaining(*self.started_with.get_or_insert(all));
        let mut may_close = phase == DrainPhase::Finished;
        if may_close {
            self.view_gate.reset();
        }
        let mut left = self.left.take().unwrap_or(all).min(all);
        let mut visits = VISITS_PER_TURN;
        while left > remaining {
            if visits == 0 {
                self.left = Some(left);
                return GateDecision::Wait;
            }
            let key = state.connections.keys()[left - 1];
            if state.connections[key].is_live() {
                if !may_close {
                    let decision = self.view_gate.check(&placement.pod_state.view_freshness, now.instant);
                    if decision != GateDecision::Proceed {
                        self.left = Some(left);
                        return decision;
                    }
                    may_close = true;
                }
                close(state, key, placement, now);
                visits = visits.saturating_sub(VISITS_A_SEND);
            } else {
                visits -= 1;
            }
            left -= 1;
        }
        if !may_close {
            self.view_gate.reset();
        }
        GateDecision::Proceed
    }
}

/// Closes a connection, with a redirect if another pod serves it.
fn close<S: Socket>(state: &mut ShardState<S>, key: ConnectionKey, placement: &Placement<'_>, now: Now) {
    let connection = &state.connections[key];
    let spread = AssessmentHash::of(&format!("{key:?}")).0;
    let placement_key = connection
        .subscription
        .map_or(PlacementKey::Market { spread }, |subscription| PlacementKey::Assessment(subscription.hash));
    let to = placement.redirect_for(placement_key, connection.owner_doubt);
    let reason = if to.is_some() { CloseReason::Moved } else { CloseReason::GoingAway };
    state.close(key, reason, to, now);
}
