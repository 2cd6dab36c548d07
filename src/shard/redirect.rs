//! Where a client is to be served: here, or at another pod that it is redirected to. The policy for clients that arrive
//! ([`Placement::decide`]) and for those that are connected ([`Placement::redirect_for`]). When a redirect may happen is
//! left to others: it waits for a fresh view ([`super::view_gate`]).
//!
//! Without Redis, the last known view may name pods that drain or are gone. Two signs tell: a client from a draining
//! pod says so in its cursor ([`cursor::add_draining_flag`]), and a client that was redirected to the owner moments ago
//! has returned ([`super::recent_redirects`]). The first pod that keeps serving takes such a client until the view is
//! confirmed; the handover then moves it to its owner.
//!
//! By any view, a client may say that it does not reach the owner. If this pod does not either, it serves the client.
//!
//! With `PLACEMENT=any` no client is redirected, because pods have no addresses of their own. A draining pod answers
//! 503 to new clients and closes connected ones with 1001.

use std::sync::Arc;

use super::recent_redirects::RecentRedirects;
use crate::clock::Now;
use crate::exchange::{Owner, PodState};
use crate::ids::{AssessmentHash, NodeId};
use crate::routing::placement::Pod;
use crate::stream::cursor;

/// The pod that is to serve an arriving client.
#[derive(Debug)]
pub(crate) enum PlacementDecision {
    /// This pod serves it.
    ThisPod {
        /// Signs against the owner that the view names, if that is another pod.
        owner_doubt: OwnerDoubt,
    },
    /// The client is redirected.
    OtherPod {
        /// Target of the redirect.
        to: Pod,
        /// The client's cursor with the draining flag, if this pod drains.
        cursor: Option<String>,
    },
}

/// Signs that the owner named by an unconfirmed view does not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum OwnerDoubt {
    /// No sign: clients are redirected to the owner.
    #[default]
    None,
    /// A client of this assessment was redirected there moments ago, and one has returned: the owner does not serve it,
    /// or the client had its own reasons.
    Returned,
    /// The client comes from a draining pod, which is the owner.
    Draining,
    /// The client did not reach the owner, nor did this pod when it looked last (PROTOCOL 1, `unreachable`).
    Unreachable,
}

/// The pod that a client is to connect to instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Redirect {
    /// Target of the redirect.
    pub(crate) to: Pod,
    /// This pod drains. A flag in the client's cursor says so to the next one.
    pub(crate) from_draining: bool,
}

/// What decides on a redirect: this pod, its view of the cluster, and `PLACEMENT`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placement<'a> {
    /// Name of this pod.
    pub(crate) node: &'a NodeId,
    /// Its view and whether it drains.
    pub(crate) pod_state: &'a PodState,
    /// Whether `PLACEMENT` is `any`.
    pub(crate) place_anywhere: bool,
}

/// What a client subscribed to, as far as placement needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlacementKey {
    /// An assessment and market data.
    Assessment(AssessmentHash),
    /// Market data alone, which any pod serves.
    Market {
        /// Spreads such clients over the other pods while this one drains.
        spread: u64,
    },
}

impl Placement<'_> {
    /// Decides where an arriving client with this cursor is served.
    #[must_use]
    pub(crate) fn decide(
        &self,
        placement_key: PlacementKey,
        cursor: Option<&str>,
        unreachable: Option<&str>,
        recent_redirects: &RecentRedirects,
        now: Now,
    ) -> PlacementDecision {
        let owner_doubt = match self.silent_owner(placement_key) {
            Some(owner) if unreachable == Some(&*owner.0) => OwnerDoubt::Unreachable,
            _ => self.owner_doubt(placement_key, cursor, recent_redirects, now),
        };
        match self.redirect_for(placement_key, owner_doubt) {
            None => PlacementDecision::ThisPod { owner_doubt },
            Some(Redirect { to, from_draining }) => PlacementDecision::OtherPod {
                to,
                cursor: cursor.filter(|_| from_draining).and_then(cursor::add_draining_flag),
            },
        }
    }

    /// The pod to redirect a client to; `None` if it is served here or no redirect is allowed. A draining pod
    /// redirects every client if it knows another pod. `owner_doubt` is as of the client's arrival.
    #[must_use]
    pub(crate) fn redirect_for(&self, placement_key: PlacementKey, owner_doubt: OwnerDoubt) -> Option<Redirect> {
        if self.place_anywhere {
            return None;
        }
        let owner_doubt = match owner_doubt {
            OwnerDoubt::Unreachable if self.silent_owner(placement_key).is_some() => owner_doubt,
            OwnerDoubt::Unreachable => OwnerDoubt::None,
            _ if self.pod_state.view_freshness.confirmed => OwnerDoubt::None,
            _ => owner_doubt,
        };
        let from_draining = self.pod_state.draining_since.is_some();
        let to = match placement_key {
            PlacementKey::Assessment(hash) if from_draining => self.next_owner(hash, owner_doubt)?,
            PlacementKey::Market { spread } if from_draining => {
                self.next_owner(AssessmentHash(spread), OwnerDoubt::None)?
            }
            PlacementKey::Assessment(hash) if owner_doubt == OwnerDoubt::None => match self.pod_state.owner(hash) {
                Owner::OtherPod(pod) => pod.clone(),
                Owner::ThisPod | Owner::Vacant => return None,
            },
            PlacementKey::Assessment(_) | PlacementKey::Market { .. } => return None,
        };
        Some(Redirect { to, from_draining })
    }

    /// The owner, if it is another pod that did not answer when this pod looked at it last.
    fn silent_owner(&self, placement_key: PlacementKey) -> Option<&NodeId> {
        let PlacementKey::Assessment(hash) = placement_key else { return None };
        let Owner::OtherPod(pod) = self.pod_state.owner(hash) else { return None };
        Some(&pod.node).filter(|node| self.pod_state.is_silent(node))
    }

    /// What an arriving client tells about the owner.
    fn owner_doubt(
        &self,
        placement_key: PlacementKey,
        cursor: Option<&str>,
        recent_redirects: &RecentRedirects,
        now: Now,
    ) -> OwnerDoubt {
        let view_freshness = &self.pod_state.view_freshness;
        match placement_key {
            PlacementKey::Assessment(hash)
                if !view_freshness.confirmed && matches!(self.pod_state.owner(hash), Owner::OtherPod(_)) =>
            {
                match cursor {
                    Some(cursor) if cursor::has_draining_flag(cursor) => OwnerDoubt::Draining,
                    _ if recent_redirects.has_returned(hash, view_freshness, now.instant) => OwnerDoubt::Returned,
                    _ => OwnerDoubt::None,
                }
            }
            _ => OwnerDoubt::None,
        }
    }

    /// The owner after this pod is gone. If that owner drains too, or does not answer, a third pod if there is one. A
    /// returned client alone is not enough for that: the owner may well be there.
    fn next_owner(&self, hash: AssessmentHash, owner_doubt: OwnerDoubt) -> Option<Pod> {
        let view = &self.pod_state.view;
        let own = view.live().find(|(_, pod)| pod.node == *self.node);
        let left = own.map_or_else(|| Arc::clone(view), |(own, _)| Arc::new(view.without(own)));
        let next = left.owner(hash)?;
        let third = || left.without(next).owner(hash);
        let is_leaving = owner_doubt == OwnerDoubt::Draining;
        let is_silent = || left.pod(next).is_some_and(|pod| self.pod_state.is_silent(&pod.node));
        let third = if is_leaving || is_silent() { third() } else { None };
        left.pod(third.unwrap_or(next)).cloned()
    }

    /// Whether the pod was ready once, and does not drain without another pod to redirect to.
    pub(super) fn accepts_clients(&self) -> bool {
        let draining = self.pod_state.draining_since.is_some();
        let has_no_target = || self.place_anywhere || self.other_pod().is_none();
        self.pod_state.was_ready && !(draining && has_no_target())
    }

    fn other_pod(&self) -> Option<&Pod> {
        self.pod_state.view.live().map(|(_, pod)| pod).find(|pod| pod.node != *self.node)
    }
}
