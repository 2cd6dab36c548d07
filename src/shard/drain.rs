//! Closes the clients of a draining pod, as many as its phase asks for, each with a redirect if another pod serves it.
//! [`DrainPhase`] decides how many may remain, [`super::redirect`] where the others go.

use super::connection::Socket;
use super::redirect::{Placement, PlacementKey};
use super::state::ShardState;
use super::view_gate::{GateDecision, ViewGate};
use crate::clock::Now;
use crate::ids::AssessmentHash;
use crate::protocol::close::CloseReason;
use crate::shutdown::phases::DrainPhase;

/// A drain of a shard's clients.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// Number of clients when the closing began.
    started_with: Option<usize>,
    view_gate: ViewGate,
}

impl Drain {
    /// Closes as many clients as the phase asks for. The view has to be fresh until the drain's time is over; then any
    /// view does.
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
        let live = |state: &ShardState<S>| {
            state.connection_keys.iter().filter(|&&key| state.connections[key].is_live()).count()
        };
        let open = live(state);
        let remaining = phase.remaining(*self.started_with.get_or_insert(open));
        let mut excess = open.saturating_sub(remaining);
        if excess == 0 || phase == DrainPhase::Finished {
            self.view_gate.reset();
        } else {
            let step = self.view_gate.check(&placement.pod_state.view_freshness, now.instant);
            if step != GateDecision::Proceed {
                return step;
            }
        }
        for index in (0..state.connection_keys.len()).rev() {
            if excess == 0 {
                break;
            }
            let key = state.connection_keys[index];
            let connection = &state.connections[key];
            if !connection.is_live() {
                continue;
            }
            excess -= 1;
            let spread = AssessmentHash::of(&format!("{key:?}")).0;
            let placement_key = connection
                .subscription
                .map_or(PlacementKey::Market { spread }, |subscription| PlacementKey::Assessment(subscription.hash));
            let to = placement.redirect_for(placement_key, connection.owner_doubt);
            let reason = if to.is_some() { CloseReason::Moved } else { CloseReason::GoingAway };
            state.close(key, reason, to, now);
        }
        GateDecision::Proceed
    }
}
