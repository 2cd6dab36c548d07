//! Decides whether a client is served here, redirected, or refused, in the order of PROTOCOL 1. A decision that depends
//! on the view ([`Admission::depends_on_view`]) uses a fresh view ([`super::view_gate`]).
//!
//! Without Redis, the last known view may name pods that drain or are gone. Two signs tell: a client from a draining
//! pod says so in its cursor ([`cursor::add_draining_flag`]), and a client that was redirected to the owner moments ago
//! has returned ([`super::recent_redirects`]). The first pod that keeps serving takes such a client until the view is
//! confirmed; the handover then moves it to its owner.
//!
//! With `PLACEMENT=any` no client is redirected, because pods have no addresses of their own. A draining pod answers
//! 503 to new clients and closes connected ones with 1001.

use std::sync::Arc;

use super::recent_redirects::RecentRedirects;
use crate::clock::{Now, UnixMs};
use crate::exchange::{Owner, PodState};
use crate::ids::{AssessmentHash, NodeId};
use crate::protocol::auth::{self, Grant, Verifier};
use crate::protocol::close::CloseReason;
use crate::protocol::head::Upgrade;
use crate::protocol::messages;
use crate::routing::placement::Pod;
use crate::stream::cursor;

/// What becomes of a client that asks to be served.
#[derive(Debug)]
pub enum Admission {
    /// It is served here.
    Serve {
        /// What speaks against the owner that the view names, where that is another.
        owner_doubt: OwnerDoubt,
    },
    /// Refused after the upgrade: one JSON text frame (written by [`Rejection::message`]), then close.
    Reject(Rejection),
    /// 503: this pod was never ready yet, or drains and no other lives.
    Unavailable,
}

impl Admission {
    /// Whether another view could lead to a better answer for the client.
    #[must_use]
    pub fn depends_on_view(&self) -> bool {
        matches!(self, Self::Reject(Rejection { redirect: Some(_), .. }))
    }
}

/// Why a client is refused after the upgrade.
#[derive(Debug)]
pub struct Rejection {
    /// What the close frame says.
    pub reason: CloseReason,
    message: String,
    /// The pod to go to, and the cursor to go on with, where it is not the one that the client has.
    redirect: Option<(Pod, Option<String>)>,
}

/// Which pod is to serve a client that comes.
#[derive(Debug)]
pub enum PlacementDecision {
    /// This one.
    ThisPod {
        /// What speaks against the owner that the view names, where that is another.
        owner_doubt: OwnerDoubt,
    },
    /// Another.
    OtherPod {
        /// That one.
        to: Pod,
        /// The client's cursor, marked, where this pod drains.
        cursor: Option<String>,
    },
}

/// Signs that the owner named by an unconfirmed view does not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OwnerDoubt {
    /// Nothing: it is to be asked.
    #[default]
    None,
    /// A client of this assessment was redirected there moments ago, and one has returned: the owner does not serve it,
    /// or the client had its own reasons.
    Returned,
    /// The client comes from a pod that drains: from the owner.
    Draining,
}

/// Where a client is to go instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// The pod.
    pub to: Pod,
    /// This pod drains: the client's cursor says so to the next one.
    pub from_draining: bool,
}

/// This pod and how it places.
#[derive(Debug, Clone, Copy)]
pub struct Placement<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// Where it stands.
    pub pod_state: &'a PodState,
    /// `PLACEMENT=any`.
    pub place_anywhere: bool,
}

/// Authenticates the client of a valid handshake, before it takes any resource that others compete for.
///
/// # Errors
/// The client's answer, where it has no good token or the pod takes no clients.
pub fn authenticate(
    upgrade: &Upgrade,
    placement: &Placement<'_>,
    verifier: &Verifier,
    now: UnixMs,
) -> Result<Grant, Admission> {
    if !placement.accepts_clients() {
        return Err(Admission::Unavailable);
    }
    let fault = |fault: auth::Unauthorized| refuse(CloseReason::Unauthorized, fault.to_string());
    verifier.verify(upgrade.token.as_ref(), now).map_err(fault)
}

/// Judges a good handshake with a good token.
#[must_use]
pub fn admit(
    upgrade: &Upgrade,
    grant: &Grant,
    placement: &Placement<'_>,
    recent_redirects: &RecentRedirects,
    now: Now,
) -> Admission {
    if !placement.accepts_clients() {
        return Admission::Unavailable;
    }
    let assessment = match &upgrade.assessment {
        Ok(assessment) => assessment.as_ref(),
        Err(fault) => return refuse(CloseReason::BadRequest, fault.to_string()),
    };
    if assessment.is_some_and(|id| !grant.allowed.covers(id)) {
        return refuse(CloseReason::Forbidden, "the token does not allow this assessment".into());
    }
    let placement_key = assessment
        .map_or(PlacementKey::Market { spread: spread_of(upgrade) }, |id| PlacementKey::Assessment(id.hash()));
    match placement.decide(placement_key, upgrade.cursor.as_deref(), recent_redirects, now) {
        PlacementDecision::ThisPod { owner_doubt } => Admission::Serve { owner_doubt },
        PlacementDecision::OtherPod { to, cursor } => Admission::Reject(Rejection {
            reason: CloseReason::Redirect,
            message: "another pod serves this".into(),
            redirect: Some((to, cursor)),
        }),
    }
}

fn refuse(reason: CloseReason, message: String) -> Admission {
    Admission::Reject(Rejection { reason, message, redirect: None })
}

impl Rejection {
    /// Appends the text frame that says why.
    pub fn message(&self, out: &mut Vec<u8>) {
        match (&self.redirect, self.reason) {
            (Some((pod, cursor)), _) => messages::redirect(out, &self.message, pod, cursor.as_deref()),
            (None, CloseReason::BadRequest) => messages::error(out, "BadRequest", &self.message),
            (None, CloseReason::Forbidden) => messages::error(out, "Forbidden", &self.message),
            (None, _) => messages::error(out, "Unauthorized", &self.message),
        }
    }
}

/// What a client watches, as far as placement goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlacementKey {
    /// An assessment, and market data.
    Assessment(AssessmentHash),
    /// Market data alone, to be had from any pod.
    Market {
        /// Spreads such clients over the other pods while this one drains.
        spread: u64,
    },
}

/// A number that differs from client to client: its handshake has one that is random.
fn spread_of(upgrade: &Upgrade) -> u64 {
    AssessmentHash::of(&upgrade.accept).0
}

impl Placement<'_> {
    /// Which pod is to serve a client that comes with this cursor.
    #[must_use]
    pub fn decide(
        &self,
        placement_key: PlacementKey,
        cursor: Option<&str>,
        recent_redirects: &RecentRedirects,
        now: Now,
    ) -> PlacementDecision {
        let owner_doubt = self.owner_doubt(placement_key, cursor, recent_redirects, now);
        match self.redirect_for(placement_key, owner_doubt) {
            None => PlacementDecision::ThisPod { owner_doubt },
            Some(Redirect { to, from_draining }) => PlacementDecision::OtherPod {
                to,
                cursor: cursor.filter(|_| from_draining).and_then(cursor::add_draining_flag),
            },
        }
    }

    /// The pod to redirect a client to; `None` if it is served here or nobody may be redirected. A draining pod
    /// redirects every client if it knows another pod. `owner_doubt` is as of the client's arrival.
    #[must_use]
    pub fn redirect_for(&self, placement_key: PlacementKey, owner_doubt: OwnerDoubt) -> Option<Redirect> {
        if self.place_anywhere {
            return None;
        }
        let owner_doubt = if self.pod_state.view_freshness.confirmed { OwnerDoubt::None } else { owner_doubt };
        let from_draining = self.pod_state.draining_since.is_some();
        let to = match placement_key {
            PlacementKey::Assessment(hash) if from_draining => self.next_owner(hash, owner_doubt)?,
            PlacementKey::Market { spread } if from_draining => {
                self.next_owner(AssessmentHash(spread), OwnerDoubt::None)?
            }
            PlacementKey::Assessment(hash) if owner_doubt == OwnerDoubt::None => match self.pod_state.owner(hash) {
                Owner::OtherPod(pod) => pod.clone(),
                Owner::ThisPod | Owner::NoPod => return None,
            },
            PlacementKey::Assessment(_) | PlacementKey::Market { .. } => return None,
        };
        Some(Redirect { to, from_draining })
    }

    /// What a client that comes shows of the owner.
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

    /// The owner after this pod is gone. If that owner drains too, a third pod if there is one. A returned client alone
    /// is not enough for that: the owner may well be there.
    fn next_owner(&self, hash: AssessmentHash, owner_doubt: OwnerDoubt) -> Option<Pod> {
        let view = &self.pod_state.view;
        let own = view.live().find(|(_, pod)| pod.node == *self.node);
        let left = own.map_or_else(|| Arc::clone(view), |(own, _)| Arc::new(view.without(own)));
        let next = left.owner(hash)?;
        let third = || left.without(next).owner(hash);
        let third = (owner_doubt == OwnerDoubt::Draining).then(third).flatten();
        left.pod(third.unwrap_or(next)).cloned()
    }

    /// Whether the pod was ready once, and does not drain without another pod to redirect to.
    fn accepts_clients(&self) -> bool {
        let draining = self.pod_state.draining_since.is_some();
        let has_nobody = || self.place_anywhere || self.other_pod().is_none();
        self.pod_state.was_ready && !(draining && has_nobody())
    }

    fn other_pod(&self) -> Option<&Pod> {
        self.pod_state.view.live().map(|(_, pod)| pod).find(|pod| pod.node != *self.node)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::exchange::ViewFreshness;
    use crate::ids::SlotNumber;
    use crate::protocol::auth::mint;
    use crate::protocol::head::{self, Parsed};
    use crate::routing::placement::View;
    use crate::stream::testing::texts;

    const SECRET: &[u8] = b"a secret of thirty-two bytes or so";

    fn upgrade(query: &str) -> Upgrade {
        let request = format!(
            "GET /ws?{query} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let rules = head::Rules::default();
        match head::parse(request.as_bytes(), &rules) {
            Parsed::Upgrade { upgrade, .. } => upgrade,
            other => panic!("{other:?}"),
        }
    }

    fn token(claims: &serde_json::Value) -> String {
        mint(SECRET, claims)
    }

    /// A cluster of three, of which this pod is the first.
    fn pod_state() -> PodState {
        let pod = |name: &str| Some(Pod { node: NodeId(name.into()), url: format!("ws://{name}/ws").into() });
        let view = View { version: 1, slots: vec![pod("p0"), pod("p1"), pod("p2")] };
        PodState { view: Arc::new(view), own: Some(SlotNumber(0)), was_ready: true, ..PodState::default() }
    }

    /// The close reason's label and the first text of the answer, `served`, or `503`.
    fn answer(query: &str, pod_state: &PodState, place_anywhere: bool) -> String {
        answer_after(&RecentRedirects::default(), query, pod_state, place_anywhere)
    }

    fn now() -> Now {
        Now { instant: Instant::now(), unix: UnixMs(1_790_000_000_000) }
    }

    /// The same, after these were sent away.
    fn answer_after(
        recent_redirects: &RecentRedirects,
        query: &str,
        pod_state: &PodState,
        place_anywhere: bool,
    ) -> String {
        let verifier = Verifier::new(&auth::AuthConfig { secret: SECRET.into(), require_assessments: false });
        let node = NodeId("p0".into());
        let (upgrade, placement) = (upgrade(query), Placement { node: &node, pod_state, place_anywhere });
        let grant = authenticate(&upgrade, &placement, &verifier, now().unix);
        let user = grant.as_ref().map(|grant| grant.user.clone()).unwrap_or_default();
        match grant.map_or_else(|answer| answer, |grant| admit(&upgrade, &grant, &placement, recent_redirects, now())) {
            Admission::Serve { owner_doubt: OwnerDoubt::None } => format!("served {user}"),
            Admission::Serve { .. } => "served for its owner".into(),
            Admission::Unavailable => "503".into(),
            Admission::Reject(refused) => {
                let mut frame = Vec::new();
                refused.message(&mut frame);
                format!("{} {}", refused.reason.row().label, texts(&frame).concat())
            }
        }
    }

    /// An id that a slot of three owns.
    fn id_of(slot: u32) -> String {
        let view = pod_state().view;
        let owned = |id: &String| view.owner(AssessmentHash::of(id)) == Some(SlotNumber(slot));
        (0..).map(|number| format!("id{number}")).find(owned).expect("each slot owns about a third")
    }

    #[test]
    fn refusals_follow_the_order_of_the_contract() {
        let pod_state = pod_state();
        let elsewhere = id_of(1);
        let only_x = token(&serde_json::json!({"userId": "u", "assessments": ["x"]}));
        let any = token(&serde_json::json!({"userId": "u"}));
        let first = |query: &str| answer(query, &pod_state, false);
        assert!(first("assessmentId=").contains(r#""error":"Unauthorized""#));
        assert!(first(&format!("assessmentId=&token={only_x}")).contains(r#""error":"BadRequest""#));
        assert!(first(&format!("assessmentId={elsewhere}&token={only_x}")).contains(r#""error":"Forbidden""#));
        let redirect = first(&format!("assessmentId={elsewhere}&token={any}"));
        assert!(redirect.contains(r#""node":"p1","url":"ws://p1/ws""#), "{redirect}");
        assert_eq!(first(&format!("assessmentId={}&token={any}", id_of(0))), "served u");
        assert_eq!(first(&format!("token={only_x}")), "served u", "market data is open to every user");
    }

    #[test]
    fn a_pod_that_was_never_ready_refuses_clients_and_one_that_was_ready_accepts_them() {
        let any = token(&serde_json::json!({"sub": "u"}));
        let query = format!("assessmentId=a&token={any}");
        assert_eq!(answer(&query, &PodState::default(), false), "503");
        let alone = PodState { was_ready: true, ..PodState::default() };
        assert_eq!(answer(&query, &alone, false), "served u", "an empty view sends nobody away");
    }

    #[test]
    fn placed_anywhere_every_pod_serves_every_assessment() {
        let any = token(&serde_json::json!({"sub": "u"}));
        assert_eq!(answer(&format!("assessmentId={}&token={any}", id_of(2)), &pod_state(), true), "served u");
    }

    #[test]
    fn with_placement_any_no_client_is_redirected_even_while_draining() {
        let any = token(&serde_json::json!({"sub": "u"}));
        let draining = PodState { draining_since: Some(Instant::now()), ..pod_state() };
        let query = format!("assessmentId={}&token={any}", id_of(2));
        assert_eq!(answer(&query, &draining, true), "503");
        let node = NodeId("p0".into());
        let placement = Placement { node: &node, pod_state: &draining, place_anywhere: true };
        for placement_key in [PlacementKey::Assessment(AssessmentHash(7)), PlacementKey::Market { spread: 7 }] {
            assert_eq!(placement.redirect_for(placement_key, OwnerDoubt::None), None);
        }
    }

    #[test]
    fn only_a_redirect_depends_on_the_view() {
        let verifier = Verifier::new(&auth::AuthConfig { secret: SECRET.into(), require_assessments: false });
        let (node, pod_state) = (NodeId("p0".into()), pod_state());
        let placement = Placement { node: &node, pod_state: &pod_state, place_anywhere: false };
        let any = token(&serde_json::json!({"userId": "u"}));
        let depends_on_view = |query: &str| {
            let upgrade = upgrade(query);
            let grant = authenticate(&upgrade, &placement, &verifier, now().unix);
            grant.is_ok_and(|grant| {
                admit(&upgrade, &grant, &placement, &RecentRedirects::default(), now()).depends_on_view()
            })
        };
        assert!(depends_on_view(&format!("assessmentId={}&token={any}", id_of(1))));
        assert!(!depends_on_view(&format!("assessmentId={}&token={any}", id_of(0))));
        assert!(!depends_on_view(&format!("assessmentId={}", id_of(1))), "a token that is none is none on every pod");
    }

    #[test]
    fn a_draining_pod_redirects_every_client_to_the_remaining_pods() {
        let any = token(&serde_json::json!({"sub": "u"}));
        let draining = PodState { draining_since: Some(Instant::now()), ..pod_state() };
        for query in [format!("assessmentId={}&token={any}", id_of(0)), format!("token={any}")] {
            let redirect = answer(&query, &draining, false);
            assert!(redirect.contains(r#""error":"Redirect""#) && !redirect.contains("ws://p0"), "{redirect}");
        }
        let mut view = (*pod_state().view).clone();
        view.slots.truncate(1);
        let alone = PodState { view: Arc::new(view), ..draining };
        assert_eq!(answer(&format!("token={any}"), &alone, false), "503");
    }

    #[test]
    fn without_redis_a_client_that_returns_from_a_redirect_is_served_unless_this_pod_drains() {
        let any = token(&serde_json::json!({"sub": "u"}));
        let elsewhere = id_of(1);
        let query = format!("assessmentId={elsewhere}&token={any}");
        let down = pod_state();
        let mut recent_redirects = RecentRedirects::default();
        assert!(answer_after(&recent_redirects, &query, &down, false).contains("ws://p1/ws"));
        recent_redirects.record(AssessmentHash::of(&elsewhere), &down.view_freshness, Instant::now());
        assert_eq!(answer_after(&recent_redirects, &query, &down, false), "served for its owner");
        let own = format!("assessmentId={}&token={any}", id_of(0));
        assert_eq!(answer_after(&recent_redirects, &own, &down, false), "served u");
        let refused = answer_after(&recent_redirects, &format!("assessmentId={elsewhere}"), &down, false);
        assert!(refused.contains("Unauthorized"), "{refused}");

        let draining = PodState { draining_since: Some(Instant::now()), ..pod_state() };
        assert!(answer_after(&recent_redirects, &query, &draining, false).contains("Redirect"));
        let confirmed = ViewFreshness { as_of: Some(Instant::now()), redis_up: true, confirmed: true };
        let back = PodState { view_freshness: confirmed, ..pod_state() };
        assert!(answer_after(&recent_redirects, &query, &back, false).contains("ws://p1/ws"), "it is known who lives");
    }

    #[test]
    fn without_redis_a_client_from_a_draining_pod_is_served_at_once() {
        let any = token(&serde_json::json!({"sub": "u"}));
        let down = pod_state();
        let ask = |pod_state: &PodState, slot, cursor: &str| {
            answer(&format!("assessmentId={}&token={any}&cursor={cursor}", id_of(slot)), pod_state, false)
        };
        assert!(ask(&down, 1, "AbC").contains("ws://p1/ws"), "the last view is in force");
        assert_eq!(ask(&down, 1, "~AbC"), "served for its owner");
        assert_eq!(ask(&down, 0, "~AbC"), "served u", "it is the owner");
        let confirmed = ViewFreshness { as_of: Some(Instant::now()), redis_up: true, confirmed: true };
        let redis_up = PodState { view_freshness: confirmed, ..pod_state() };
        assert!(ask(&redis_up, 1, "~AbC").contains("ws://p1/ws"), "that one doesn't drain, or it wasn't in the view");

        // One that drains, too, sends it to the third.
        let draining = PodState { draining_since: Some(Instant::now()), ..pod_state() };
        let sent_to = |pod_state: &PodState, cursor: &str| {
            let answer = ask(pod_state, 1, cursor);
            assert!(answer.contains(r#""cursor":"~AbC"}"#), "{answer}");
            ["p1", "p2"].into_iter().find(|name| answer.contains(&format!("ws://{name}/ws"))).map(str::to_owned)
        };
        assert_eq!(sent_to(&draining, "AbC").as_deref(), Some("p1"));
        assert_eq!(sent_to(&draining, "~AbC").as_deref(), Some("p2"));
        let mut view = (*draining.view).clone();
        view.slots.truncate(2);
        let of_two = PodState { view: Arc::new(view), ..draining.clone() };
        assert_eq!(sent_to(&of_two, "~AbC").as_deref(), Some("p1"), "there is no third");
        assert_eq!(sent_to(&PodState { view_freshness: confirmed, ..draining.clone() }, "~AbC").as_deref(), Some("p1"));
        let node = NodeId("p0".into());
        let placement = Placement { node: &node, pod_state: &draining, place_anywhere: false };
        let placement_key = PlacementKey::Assessment(AssessmentHash::of(&id_of(1)));
        let to = |owner_doubt| placement.redirect_for(placement_key, owner_doubt).unwrap().to.node.0.to_string();
        assert_eq!(
            [OwnerDoubt::None, OwnerDoubt::Returned, OwnerDoubt::Draining].map(to),
            ["p1", "p1", "p2"],
            "p1 may be there"
        );
        assert!(!ask(&draining, 1, "").contains("cursor"), "who has none is given none");
    }
}
