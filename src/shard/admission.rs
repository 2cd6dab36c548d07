//! Judges a client that asks to be served, in the order of PROTOCOL 1: its token, its request, its rights, and then its
//! place ([`super::redirect`] decides that one). An answer that depends on the view ([`Admission::depends_on_view`])
//! needs a fresh one ([`super::view_gate`]).

use super::recent_redirects::RecentRedirects;
use super::redirect::{OwnerDoubt, Placement, PlacementDecision, PlacementKey};
use crate::clock::Now;
use crate::ids::{AssessmentHash, NodeId};
use crate::protocol::auth::{Grant, Unauthorized};
use crate::protocol::close::CloseReason;
use crate::protocol::head::Upgrade;
use crate::protocol::messages;
use crate::routing::placement::Pod;

/// The answer to a client that asks to be served.
#[derive(Debug)]
pub(super) enum Admission {
    /// This pod serves it.
    Serve {
        /// Signs against the owner that the view names, if that is another pod.
        owner_doubt: OwnerDoubt,
    },
    /// Refused after the upgrade: one JSON text frame (written by [`Rejection::message`]), then close.
    Reject(Rejection),
    /// 503: this pod was never ready yet, or it drains and knows no other pod.
    Unavailable,
}

impl Admission {
    /// Whether another view could lead to a better answer for the client.
    #[must_use]
    pub(super) fn depends_on_view(&self) -> bool {
        matches!(self, Self::Reject(Rejection { redirect: Some(_), .. }))
    }
}

/// Why a client is refused after the upgrade.
#[derive(Debug)]
pub(super) struct Rejection {
    /// Code and text of the close frame.
    pub(super) reason: CloseReason,
    message: String,
    /// The pod to connect to, and the cursor to resume with if it differs from the client's own.
    redirect: Option<(Pod, Option<String>)>,
}

/// The answer to a client whose token is rejected.
pub(super) fn unauthorized(why: Unauthorized) -> Admission {
    refuse(CloseReason::Unauthorized, why.to_string())
}

/// Judges a valid handshake with a valid token.
#[must_use]
pub(super) fn admit(
    upgrade: &Upgrade,
    grant: &Grant,
    placement: &Placement<'_>,
    recent_redirects: &RecentRedirects,
    now: Now,
) -> Admission {
    if !placement.accepts_clients() {
        return Admission::Unavailable;
    }
    // Here, and not when its signature was checked: from here on, the connection is found by those who look for it.
    if placement.pod_state.revocations.covers_grant(grant, now.unix) {
        return unauthorized(Unauthorized::Revoked);
    }
    let assessment = match &upgrade.assessment {
        Ok(assessment) => assessment.as_ref(),
        Err(fault) => return refuse(CloseReason::BadRequest, fault.to_string()),
    };
    if assessment.is_some_and(|id| !grant.allowed.covers(id.as_str())) {
        return refuse(CloseReason::Forbidden, "the token does not allow this assessment".into());
    }
    let placement_key = assessment
        .map_or(PlacementKey::Market { spread: spread_of(upgrade) }, |id| PlacementKey::Assessment(id.hash()));
    let (cursor, unreachable) = (upgrade.cursor.as_deref(), upgrade.unreachable.as_deref());
    match placement.decide(placement_key, cursor, unreachable, recent_redirects, now) {
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
    /// The reason in words, for the client and the log.
    pub(super) fn why(&self) -> &str {
        &self.message
    }

    /// The pod that the client is redirected to.
    pub(super) fn redirected_to(&self) -> Option<&NodeId> {
        self.redirect.as_ref().map(|(pod, _)| &pod.node)
    }

    /// Appends the text frame that says why.
    pub(super) fn message(&self, out: &mut Vec<u8>) {
        match (&self.redirect, self.reason) {
            (Some((pod, cursor)), _) => messages::redirect(out, &self.message, pod, cursor.as_deref()),
            (None, CloseReason::BadRequest) => messages::error(out, "BadRequest", &self.message),
            (None, CloseReason::Forbidden) => messages::error(out, "Forbidden", &self.message),
            (None, _) => messages::error(out, "Unauthorized", &self.message),
        }
    }
}

/// A number that differs between clients: each handshake has a random key.
fn spread_of(upgrade: &Upgrade) -> u64 {
    AssessmentHash::of(&upgrade.accept).0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::clock::UnixMs;
    use crate::exchange::{PodState, ViewFreshness};
    use crate::ids::SlotNumber;
    use crate::protocol::auth::{Verifier, mint};
    use crate::protocol::head::{self, Parsed};
    use crate::routing::placement::{Pod, View};
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
        PodState { view: Arc::new(view), own_slot: Some(SlotNumber(0)), was_ready: true, ..PodState::default() }
    }

    /// The close reason's label and the first text of the answer, `served`, or `503`.
    fn answer(query: &str, pod_state: &PodState, place_anywhere: bool) -> String {
        answer_after(&RecentRedirects::default(), query, pod_state, place_anywhere)
    }

    fn now() -> Now {
        Now { instant: Instant::now(), unix: UnixMs(1_790_000_000_000) }
    }

    fn granted(upgrade: &Upgrade, placement: &Placement<'_>, verifier: &Verifier) -> Result<Grant, Admission> {
        if !placement.accepts_clients() {
            return Err(Admission::Unavailable);
        }
        verifier.grant(upgrade.token.as_ref(), now().unix).map_err(unauthorized)
    }

    /// The same, after these redirects.
    fn answer_after(
        recent_redirects: &RecentRedirects,
        query: &str,
        pod_state: &PodState,
        place_anywhere: bool,
    ) -> String {
        let verifier = Verifier::of_secret(SECRET);
        let node = NodeId("p0".into());
        let (upgrade, placement) = (upgrade(query), Placement { node: &node, pod_state, place_anywhere });
        let grant = granted(&upgrade, &placement, &verifier);
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
        assert_eq!(answer(&query, &alone, false), "served u", "an empty view redirects no client");
    }

    #[test]
    fn with_placement_any_every_pod_serves_every_assessment() {
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
        let verifier = Verifier::of_secret(SECRET);
        let (node, pod_state) = (NodeId("p0".into()), pod_state());
        let placement = Placement { node: &node, pod_state: &pod_state, place_anywhere: false };
        let any = token(&serde_json::json!({"userId": "u"}));
        let depends_on_view = |query: &str| {
            let upgrade = upgrade(query);
            granted(&upgrade, &placement, &verifier).is_ok_and(|grant| {
                admit(&upgrade, &grant, &placement, &RecentRedirects::default(), now()).depends_on_view()
            })
        };
        assert!(depends_on_view(&format!("assessmentId={}&token={any}", id_of(1))));
        assert!(!depends_on_view(&format!("assessmentId={}&token={any}", id_of(0))));
        assert!(!depends_on_view(&format!("assessmentId={}", id_of(1))), "an invalid token is invalid on every pod");
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
        assert!(answer_after(&recent_redirects, &query, &back, false).contains("ws://p1/ws"), "the view is confirmed");
    }

    #[test]
    fn without_redis_a_client_from_a_draining_pod_is_served_at_once() {
        let any = token(&serde_json::json!({"sub": "u"}));
        let down = pod_state();
        let ask = |pod_state: &PodState, slot, cursor: &str| {
            answer(&format!("assessmentId={}&token={any}&cursor={cursor}", id_of(slot)), pod_state, false)
        };
        assert!(ask(&down, 1, "AbC").contains("ws://p1/ws"), "the last view is used");
        assert_eq!(ask(&down, 1, "~AbC"), "served for its owner");
        assert_eq!(ask(&down, 0, "~AbC"), "served u", "it is the owner");
        let confirmed = ViewFreshness { as_of: Some(Instant::now()), redis_up: true, confirmed: true };
        let redis_up = PodState { view_freshness: confirmed, ..pod_state() };
        assert!(
            ask(&redis_up, 1, "~AbC").contains("ws://p1/ws"),
            "the owner does not drain, or it would not be in the view"
        );

        // If this pod drains too, it redirects the client to the third.
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
        assert!(!ask(&draining, 1, "").contains("cursor"), "a client without a cursor gets none");
    }

    #[test]
    fn a_client_that_does_not_reach_the_owner_is_served_if_this_pod_does_not_either() {
        let any = token(&serde_json::json!({"userId": "u"}));
        let confirmed = ViewFreshness { as_of: Some(Instant::now()), redis_up: true, confirmed: true };
        let silent = |names: &[&str]| PodState {
            view_freshness: confirmed,
            silent: names.iter().map(|name| NodeId((*name).into())).collect(),
            ..pod_state()
        };
        let ask = |pod_state: &PodState, unreachable: &str| {
            answer(&format!("assessmentId={}&token={any}{unreachable}", id_of(1)), pod_state, false)
        };
        assert_eq!(ask(&silent(&["p1"]), "&unreachable=p1"), "served for its owner");
        for (pods, unreachable) in
            [(&["p1"][..], ""), (&["p1"], "&unreachable=p2"), (&["p2"], "&unreachable=p1"), (&[], "&unreachable=p1")]
        {
            assert!(ask(&silent(pods), unreachable).contains("ws://p1/ws"), "{pods:?} {unreachable}");
        }
        // It is handed over when the owner answers again, and a pod that drains sends it to a third.
        let node = NodeId("p0".into());
        let placement_key = PlacementKey::Assessment(AssessmentHash::of(&id_of(1)));
        let to = |pod_state: &PodState| {
            let placement = Placement { node: &node, pod_state, place_anywhere: false };
            placement
                .redirect_for(placement_key, OwnerDoubt::Unreachable)
                .map(|redirect| redirect.to.node.0.to_string())
        };
        assert_eq!(to(&silent(&["p1"])), None);
        assert_eq!(to(&silent(&[])).as_deref(), Some("p1"));
        let draining = PodState { draining_since: Some(Instant::now()), ..silent(&["p1"]) };
        assert_eq!(to(&draining).as_deref(), Some("p2"));
    }
}
