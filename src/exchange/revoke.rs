//! Revocations on their way from an operator to discovery, which tells all pods.

use tokio::sync::oneshot;

use crate::protocol::auth::Revocation;

/// An operator's request to revoke tokens.
#[derive(Debug)]
pub(crate) struct RevokeRequest {
    /// Which tokens.
    pub(crate) revocation: Revocation,
    /// How far it got.
    pub(crate) answer: oneshot::Sender<Spread>,
}

/// How far a revocation got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spread {
    /// Redis has it, and has told every pod.
    AllPods,
    /// It holds on this pod; Redis gets it when it is back.
    ThisPod,
    /// There are too many.
    Nowhere,
}

/// The way of these requests.
pub(crate) type RevokeSender = tokio::sync::mpsc::Sender<RevokeRequest>;
