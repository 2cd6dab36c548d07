//! This pod's lease on a slot, as a state machine: what the pod asks of the cluster, and what the answers change.

use crate::ids::SlotNumber;

/// State of this pod's lease.
///
/// ```text
///            history is complete           ours
///  Watching --------------------> Wanting -------> Holding
///     |                            |  ^              |  |
///     |                            |  '--------------'  |
///     |                            |   missing, taken,  |
///     | drain                drain |   displaced        | drain
///     v                            v                    v
///   Left <---------------------- Leaving <--------------'
///        ---------------------->
///          missing ->, <- ours (a claim that came late)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lease {
    /// The history is not complete: the pod reads the slots and claims none.
    Watching,
    /// The pod claims a slot.
    Wanting {
        /// The slot that it had, which it takes again if it can.
        had: Option<SlotNumber>,
        /// Whether a slot under the pod's name is its own from before a restart. Never for a pod that had a slot: then
        /// another process runs under the same name, and the two must not take the slot from each other.
        take_over: bool,
    },
    /// The slot is this pod's until the lease runs out.
    Holding {
        /// Number of the slot.
        slot: SlotNumber,
    },
    /// The pod drains; Redis has not yet confirmed that it holds no slot.
    Leaving,
    /// The pod drains and has no slot.
    Left,
}

/// What happens to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseEvent {
    /// The history is complete.
    HistoryComplete,
    /// The pod starts to drain.
    DrainStarted,
    /// Redis reports that this process holds this slot.
    Ours(SlotNumber),
    /// Redis reports that this process holds no slot; the slot that it had, if any, is vacant.
    Missing,
    /// Another pod holds the slot that this pod had: its lease ran out before it could renew it.
    Taken,
    /// Another process under the same name holds the slot that this process had.
    Displaced,
}

impl Lease {
    /// The state after an event.
    #[must_use]
    pub(crate) fn after(self, event: LeaseEvent) -> Self {
        match (self, event) {
            (Self::Watching, LeaseEvent::HistoryComplete) => Self::Wanting { had: None, take_over: true },
            (Self::Watching, LeaseEvent::DrainStarted) => Self::Left,
            (Self::Wanting { .. } | Self::Holding { .. }, LeaseEvent::DrainStarted) => Self::Leaving,
            (Self::Wanting { .. } | Self::Holding { .. }, LeaseEvent::Ours(slot)) => Self::Holding { slot },
            (Self::Holding { slot }, LeaseEvent::Missing | LeaseEvent::Taken | LeaseEvent::Displaced) => {
                Self::Wanting { had: Some(slot), take_over: false }
            }
            (Self::Leaving, LeaseEvent::Missing | LeaseEvent::Taken | LeaseEvent::Displaced) => Self::Left,
            (Self::Left, LeaseEvent::Ours(_)) => Self::Leaving,
            (same, _) => same,
        }
    }

    /// The slot that this pod holds, or held and claims again.
    #[must_use]
    pub(crate) fn number(self) -> Option<SlotNumber> {
        match self {
            Self::Holding { slot } => Some(slot),
            Self::Wanting { had, .. } => had,
            Self::Watching | Self::Leaving | Self::Left => None,
        }
    }

    /// The slot by which this pod owns its share of the assessments.
    #[must_use]
    pub(crate) fn held(self) -> Option<SlotNumber> {
        if let Self::Holding { slot } = self { Some(slot) } else { None }
    }

    /// Whether the pod drains.
    #[must_use]
    pub(crate) fn is_draining(self) -> bool {
        matches!(self, Self::Leaving | Self::Left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_tried_in_every_state() {
        use Lease::{Holding, Leaving, Left, Wanting, Watching};
        use LeaseEvent::{Displaced, DrainStarted, HistoryComplete, Missing, Ours, Taken};
        let (two, five) = (SlotNumber(2), SlotNumber(5));
        let events = [HistoryComplete, DrainStarted, Ours(five), Missing, Taken, Displaced];
        let fresh = Wanting { had: None, take_over: true };
        let again = Wanting { had: Some(two), take_over: false };
        let (held, moved) = (Holding { slot: two }, Holding { slot: five });
        let table = [
            (Watching, [fresh, Left, Watching, Watching, Watching, Watching]),
            (fresh, [fresh, Leaving, moved, fresh, fresh, fresh]),
            (again, [again, Leaving, moved, again, again, again]),
            (held, [held, Leaving, moved, again, again, again]),
            (Leaving, [Leaving, Leaving, Leaving, Left, Left, Left]),
            (Left, [Left, Left, Leaving, Left, Left, Left]),
        ];
        for (state, row) in table {
            for (event, expected) in events.into_iter().zip(row) {
                assert_eq!(state.after(event), expected, "{state:?} after {event:?}");
            }
        }
    }

    #[test]
    fn only_the_holder_owns_a_slot() {
        let states = [
            Lease::Watching,
            Lease::Wanting { had: Some(SlotNumber(1)), take_over: false },
            Lease::Leaving,
            Lease::Left,
        ];
        assert!(states.into_iter().all(|state| state.held().is_none()));
        assert_eq!(Lease::Holding { slot: SlotNumber(1) }.held(), Some(SlotNumber(1)));
    }

    #[test]
    fn a_pod_that_had_a_slot_never_takes_one_over_by_name() {
        let lease = Lease::Holding { slot: SlotNumber(1) };
        for event in [LeaseEvent::Missing, LeaseEvent::Taken, LeaseEvent::Displaced] {
            assert_eq!(lease.after(event), Lease::Wanting { had: Some(SlotNumber(1)), take_over: false });
        }
    }
}
