//! This pod's lease on a slot, as a state machine: what it wants of the cluster, and what it makes of what it sees
//! there.

use crate::ids::SlotNumber;

/// Where this pod stands with its slot.
///
/// ```text
///            history is complete           ours
///  Watching --------------------> Wanting -------> Holding
///     |                            |  ^              |  |
///     |                            |  '--------------'  |
///     |                            |   missing, taken,  |
///     | give up            give up |   displaced        | give up
///     v                            v                    v
///   Left <---------------------- Leaving <--------------'
///        ---------------------->
///          missing ->, <- ours (a claim that came late)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// The history is not complete: the pod looks on, and claims nothing.
    Watching,
    /// The pod is to have a slot.
    Wanting {
        /// The number that it had: it takes this one again where it can.
        had: Option<SlotNumber>,
        /// Whether a slot held under its name is its own from before a restart. Never for a pod that had a slot:
        /// another process then runs under the same name, and the two must not take the slot from each other.
        take_over: bool,
    },
    /// The slot is this pod's until the lease runs out.
    Holding {
        /// Its number.
        slot: SlotNumber,
    },
    /// The pod drains; that its slot is given up has not been confirmed.
    Leaving,
    /// The pod drains and has no slot.
    Left,
}

/// What happens to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseEvent {
    /// The history is complete.
    HistoryComplete,
    /// The pod begins to drain.
    GiveUp,
    /// Redis says that this process holds this slot.
    Ours(SlotNumber),
    /// Redis says that this process holds none, and its number is vacant, or it had none.
    Missing,
    /// Another pod holds the number that this one had: its lease ran out while it could not renew it.
    Taken,
    /// Another process under the same name holds the number that this one had.
    Displaced,
}

impl Lease {
    /// The state after an event.
    #[must_use]
    pub fn after(self, event: LeaseEvent) -> Self {
        match (self, event) {
            (Self::Watching, LeaseEvent::HistoryComplete) => Self::Wanting { had: None, take_over: true },
            (Self::Watching, LeaseEvent::GiveUp) => Self::Left,
            (Self::Wanting { .. } | Self::Holding { .. }, LeaseEvent::GiveUp) => Self::Leaving,
            (Self::Wanting { .. } | Self::Holding { .. }, LeaseEvent::Ours(slot)) => Self::Holding { slot },
            (Self::Holding { slot }, LeaseEvent::Missing | LeaseEvent::Taken | LeaseEvent::Displaced) => {
                Self::Wanting { had: Some(slot), take_over: false }
            }
            (Self::Leaving, LeaseEvent::Missing | LeaseEvent::Taken | LeaseEvent::Displaced) => Self::Left,
            (Self::Left, LeaseEvent::Ours(_)) => Self::Leaving,
            (same, _) => same,
        }
    }

    /// The number that this pod has, or had and wants again.
    #[must_use]
    pub fn number(self) -> Option<SlotNumber> {
        match self {
            Self::Holding { slot } => Some(slot),
            Self::Wanting { had, .. } => had,
            Self::Watching | Self::Leaving | Self::Left => None,
        }
    }

    /// The slot that this pod owns its share of the assessments by.
    #[must_use]
    pub fn held(self) -> Option<SlotNumber> {
        if let Self::Holding { slot } = self { Some(slot) } else { None }
    }

    /// Whether the pod drains.
    #[must_use]
    pub fn is_given_up(self) -> bool {
        matches!(self, Self::Leaving | Self::Left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_in_each_state() {
        use Lease::{Holding, Leaving, Left, Wanting, Watching};
        use LeaseEvent::{Displaced, GiveUp, HistoryComplete, Missing, Ours, Taken};
        let (two, five) = (SlotNumber(2), SlotNumber(5));
        let events = [HistoryComplete, GiveUp, Ours(five), Missing, Taken, Displaced];
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
    fn a_slot_is_owned_by_who_holds_it_alone() {
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
