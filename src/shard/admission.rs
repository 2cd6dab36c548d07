//! Who is served here, who is sent to another pod, and who is refused: PROTOCOL 1's order, as a rule on values.

use crate::clock::UnixMs;
use crate::exchange::{Owner, Standing};
use crate::ids::{AssessmentHash, NodeId};
use crate::protocol::auth::{Grant, Verifier};
use crate::protocol::close::CloseReason;
use crate::protocol::head::Upgrade;
use crate::protocol::messages;
use crate::routing::placement::Pod;

/// What becomes of a client that asks to be served.
#[derive(Debug)]
pub enum Admission {
    /// It is served here.
    Serve(Grant),
    /// It is told why not after the upgrade: one JSON text frame (made by [`Refused::message`]), then close.
    Refuse(Refused),
    /// 503: this pod was never ready yet, or drains and no other lives.
    Unavailable,
}

/// Why a client is refused after the upgrade.
#[derive(Debug)]
pub struct Refused {
    /// What the close frame says.
    pub reason: CloseReason,
    message: String,
    redirect: Option<Pod>,
}

/// This pod and how it places.
#[derive(Debug)]
pub struct Here<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// Where it stands.
    pub standing: &'a Standing,
    /// `PLACEMENT=any`.
    pub place_anywhere: bool,
}

/// Judges a good handshake.
#[must_use]
pub fn judge(upgrade: &Upgrade, here: &Here<'_>, verifier: &Verifier, now: UnixMs) -> Admission {
    let draining = here.standing.draining_since.is_some();
    if !here.standing.was_ready || (draining && here.any_other().is_none()) {
        return Admission::Unavailable;
    }
    let grant = match verifier.verify(upgrade.token.as_ref(), now) {
        Ok(grant) => grant,
        Err(fault) => return refuse(CloseReason::Unauthorized, fault.to_string()),
    };
    let assessment = match &upgrade.assessment {
        Ok(assessment) => assessment.as_ref(),
        Err(fault) => return refuse(CloseReason::BadRequest, fault.to_string()),
    };
    if assessment.is_some_and(|id| !grant.allowed.covers(id)) {
        return refuse(CloseReason::Forbidden, "the token does not allow this assessment".into());
    }
    let watching =
        assessment.map_or(Watching::Market { spread: spread_of(upgrade) }, |id| Watching::Assessment(id.hash()));
    match here.elsewhere(watching) {
        Some(pod) => Admission::Refuse(Refused {
            reason: CloseReason::Redirect,
            message: "another pod serves this".into(),
            redirect: Some(pod),
        }),
        None => Admission::Serve(grant),
    }
}

fn refuse(reason: CloseReason, message: String) -> Admission {
    Admission::Refuse(Refused { reason, message, redirect: None })
}

impl Refused {
    /// Appends the text frame that says why.
    pub fn message(&self, out: &mut Vec<u8>) {
        match (&self.redirect, self.reason) {
            (Some(pod), _) => messages::redirect(out, &self.message, pod, None),
            (None, CloseReason::BadRequest) => messages::error(out, "BadRequest", &self.message),
            (None, CloseReason::Forbidden) => messages::error(out, "Forbidden", &self.message),
            (None, _) => messages::error(out, "Unauthorized", &self.message),
        }
    }
}

/// What a client watches, as far as placement goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watching {
    /// An assessment, and market data.
    Assessment(AssessmentHash),
    /// Market data alone, to be had from any pod.
    Market {
        /// Any number: it spreads such clients over the other pods when this one drains.
        spread: u64,
    },
}

/// A number that differs from client to client: its handshake has one that is random.
fn spread_of(upgrade: &Upgrade) -> u64 {
    AssessmentHash::of(&upgrade.accept).0
}

impl Here<'_> {
    /// The pod that a client is to go to instead; `None` where it is served here. A draining pod sends everyone away, if
    /// it knows whom to.
    #[must_use]
    pub fn elsewhere(&self, watching: Watching) -> Option<Pod> {
        if self.standing.draining_since.is_some() {
            let (Watching::Assessment(AssessmentHash(number)) | Watching::Market { spread: number }) = watching;
            return self.next_owner(AssessmentHash(number));
        }
        match watching {
            Watching::Assessment(hash) if !self.place_anywhere => match self.standing.owner(hash) {
                Owner::Elsewhere(pod) => Some(pod.clone()),
                Owner::Here | Owner::Nobody => None,
            },
            Watching::Assessment(_) | Watching::Market { .. } => None,
        }
    }

    /// The owner once this pod is gone.
    fn next_owner(&self, hash: AssessmentHash) -> Option<Pod> {
        let mut view = (*self.standing.view).clone();
        for pod in &mut view.slots {
            if pod.as_ref().is_some_and(|pod| pod.node == *self.node) {
                *pod = None;
            }
        }
        view.pod(view.owner(hash)?).cloned()
    }

    fn any_other(&self) -> Option<&Pod> {
        self.standing.view.live().map(|(_, pod)| pod).find(|pod| pod.node != *self.node)
    }
}
