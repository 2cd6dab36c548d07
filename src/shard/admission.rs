//! Who is served here, who is sent to another pod, and who is refused: PROTOCOL 1's order, as a rule on values. An answer
//! that goes by where the others are ([`Admission::goes_by_view`]) is given by a view that is sure ([`super::freshness`]).
//!
//! Without Redis the last view names pods that drain, or are gone. Two things tell that an owner is one of them: a client
//! that comes from a pod that drains says so by its cursor ([`cursor::mark_draining`]), and one that was sent to the owner
//! moments ago is back ([`super::sent_away`]). Such a client is served by the first pod that goes on serving, until the
//! view is proven ([`Sight::proven`](crate::exchange::Sight)); then the handover takes it home.
//!
//! With `PLACEMENT=any` nobody is ever sent to another pod, for the pods' URLs lead nowhere: a pod that drains has 503 for
//! who comes, and the close code 1001 for who is there.

use std::sync::Arc;

use super::sent_away::SentAway;
use crate::clock::{Now, UnixMs};
use crate::exchange::{Owner, Standing};
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
        against_owner: Evidence,
    },
    /// It is told why not after the upgrade: one JSON text frame (made by [`Refused::message`]), then close.
    Refuse(Refused),
    /// 503: this pod was never ready yet, or drains and no other lives.
    Unavailable,
}

impl Admission {
    /// Whether another view would have led to another answer, of which the client would be better off.
    #[must_use]
    pub fn goes_by_view(&self) -> bool {
        matches!(self, Self::Refuse(Refused { redirect: Some(_), .. }))
    }
}

/// Why a client is refused after the upgrade.
#[derive(Debug)]
pub struct Refused {
    /// What the close frame says.
    pub reason: CloseReason,
    message: String,
    /// The pod to go to, and the cursor to go on with, where it is not the one that the client has.
    redirect: Option<(Pod, Option<String>)>,
}

/// Which pod is to serve a client that comes.
#[derive(Debug)]
pub enum Placed {
    /// This one.
    Here {
        /// What speaks against the owner that the view names, where that is another.
        against_owner: Evidence,
    },
    /// Another.
    Elsewhere {
        /// That one.
        to: Pod,
        /// The client's cursor, marked, where this pod drains.
        cursor: Option<String>,
    },
}

/// What a client that comes shows of the owner that a view names which is not proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Evidence {
    /// Nothing: it is to be asked.
    #[default]
    None,
    /// A client of the assessment was sent there moments ago, and one is back: the owner doesn't serve it, or the client has
    /// asked here again for reasons of its own.
    IsBack,
    /// The client comes from a pod that drains: from the owner.
    Drains,
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
pub struct Here<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// Where it stands.
    pub standing: &'a Standing,
    /// `PLACEMENT=any`.
    pub place_anywhere: bool,
}

/// Who the client of a good handshake is. It is asked first, before the client takes anything that others could want.
///
/// # Errors
/// The client's answer, where it has no good token or the pod takes no clients.
pub fn identify(upgrade: &Upgrade, here: &Here<'_>, verifier: &Verifier, now: UnixMs) -> Result<Grant, Admission> {
    if !here.takes_clients() {
        return Err(Admission::Unavailable);
    }
    let fault = |fault: auth::Unauthorized| refuse(CloseReason::Unauthorized, fault.to_string());
    verifier.verify(upgrade.token.as_ref(), now).map_err(fault)
}

/// Judges a good handshake with a good token.
#[must_use]
pub fn judge(upgrade: &Upgrade, grant: &Grant, here: &Here<'_>, sent_away: &SentAway, now: Now) -> Admission {
    if !here.takes_clients() {
        return Admission::Unavailable;
    }
    let assessment = match &upgrade.assessment {
        Ok(assessment) => assessment.as_ref(),
        Err(fault) => return refuse(CloseReason::BadRequest, fault.to_string()),
    };
    if assessment.is_some_and(|id| !grant.allowed.covers(id)) {
        return refuse(CloseReason::Forbidden, "the token does not allow this assessment".into());
    }
    let watching =
        assessment.map_or(Watching::Market { spread: spread_of(upgrade) }, |id| Watching::Assessment(id.hash()));
    match here.place(watching, upgrade.cursor.as_deref(), sent_away, now) {
        Placed::Here { against_owner } => Admission::Serve { against_owner },
        Placed::Elsewhere { to, cursor } => Admission::Refuse(Refused {
            reason: CloseReason::Redirect,
            message: "another pod serves this".into(),
            redirect: Some((to, cursor)),
        }),
    }
}

fn refuse(reason: CloseReason, message: String) -> Admission {
    Admission::Refuse(Refused { reason, message, redirect: None })
}

impl Refused {
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
    /// Which pod is to serve a client that comes with this cursor.
    #[must_use]
    pub fn place(&self, watching: Watching, cursor: Option<&str>, sent_away: &SentAway, now: Now) -> Placed {
        let against_owner = self.evidence(watching, cursor, sent_away, now);
        match self.elsewhere(watching, against_owner) {
            None => Placed::Here { against_owner },
            Some(Redirect { to, from_draining }) => {
                Placed::Elsewhere { to, cursor: cursor.filter(|_| from_draining).and_then(cursor::mark_draining) }
            }
        }
    }

    /// The pod that a client is to go to instead; `None` where it is served here, or nobody is to be sent anywhere. A
    /// draining pod sends everyone away, if it knows whom to. The evidence is that of when the client came.
    #[must_use]
    pub fn elsewhere(&self, watching: Watching, against_owner: Evidence) -> Option<Redirect> {
        if self.place_anywhere {
            return None;
        }
        let against_owner = if self.standing.sight.proven { Evidence::None } else { against_owner };
        let from_draining = self.standing.draining_since.is_some();
        let to = match watching {
            Watching::Assessment(hash) if from_draining => self.next_owner(hash, against_owner)?,
            Watching::Market { spread } if from_draining => self.next_owner(AssessmentHash(spread), Evidence::None)?,
            Watching::Assessment(hash) if against_owner == Evidence::None => match self.standing.owner(hash) {
                Owner::Elsewhere(pod) => pod.clone(),
                Owner::Here | Owner::Nobody => return None,
            },
            Watching::Assessment(_) | Watching::Market { .. } => return None,
        };
        Some(Redirect { to, from_draining })
    }

    /// What a client that comes shows of the owner.
    fn evidence(&self, watching: Watching, cursor: Option<&str>, sent_away: &SentAway, now: Now) -> Evidence {
        let sight = &self.standing.sight;
        match watching {
            Watching::Assessment(hash) if !sight.proven && matches!(self.standing.owner(hash), Owner::Elsewhere(_)) => {
                match cursor {
                    Some(cursor) if cursor::is_from_draining(cursor) => Evidence::Drains,
                    _ if sent_away.is_back(hash, sight, now.instant) => Evidence::IsBack,
                    _ => Evidence::None,
                }
            }
            _ => Evidence::None,
        }
    }

    /// The owner once this pod is gone; another than the present one, too, where that drains and a third is there. That a
    /// client is back is not enough for it: the owner may well be there.
    fn next_owner(&self, hash: AssessmentHash, against_owner: Evidence) -> Option<Pod> {
        let view = &self.standing.view;
        let own = view.live().find(|(_, pod)| pod.node == *self.node);
        let left = own.map_or_else(|| Arc::clone(view), |(own, _)| Arc::new(view.without(own)));
        let next = left.owner(hash)?;
        let third = || left.without(next).owner(hash);
        let third = (against_owner == Evidence::Drains).then(third).flatten();
        left.pod(third.unwrap_or(next)).cloned()
    }

    /// Whether the pod was ready once, and does not drain without another pod to send its clients to.
    fn takes_clients(&self) -> bool {
        let draining = self.standing.draining_since.is_some();
        let has_nobody = || self.place_anywhere || self.any_other().is_none();
        self.standing.was_ready && !(draining && has_nobody())
    }

    fn any_other(&self) -> Option<&Pod> {
        self.standing.view.live().map(|(_, pod)| pod).find(|pod| pod.node != *self.node)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::exchange::Sight;
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
    fn standing() -> Standing {
        let pod = |name: &str| Some(Pod { node: NodeId(name.into()), url: format!("ws://{name}/ws").into() });
        let view = View { version: 1, slots: vec![pod("p0"), pod("p1"), pod("p2")] };
        Standing { view: Arc::new(view), own: Some(SlotNumber(0)), was_ready: true, ..Standing::default() }
    }

    /// The close reason's label and the first text of the answer, `served`, or `503`.
    fn answer(query: &str, standing: &Standing, place_anywhere: bool) -> String {
        answer_after(&SentAway::default(), query, standing, place_anywhere)
    }

    fn now() -> Now {
        Now { instant: Instant::now(), unix: UnixMs(1_790_000_000_000) }
    }

    /// The same, after these were sent away.
    fn answer_after(sent_away: &SentAway, query: &str, standing: &Standing, place_anywhere: bool) -> String {
        let verifier = Verifier::new(&auth::Config { secret: SECRET.into(), require_assessments: false });
        let node = NodeId("p0".into());
        let (upgrade, here) = (upgrade(query), Here { node: &node, standing, place_anywhere });
        let grant = identify(&upgrade, &here, &verifier, now().unix);
        let user = grant.as_ref().map(|grant| grant.user.clone()).unwrap_or_default();
        match grant.map_or_else(|answer| answer, |grant| judge(&upgrade, &grant, &here, sent_away, now())) {
            Admission::Serve { against_owner: Evidence::None } => format!("served {user}"),
            Admission::Serve { .. } => "served for its owner".into(),
            Admission::Unavailable => "503".into(),
            Admission::Refuse(refused) => {
                let mut frame = Vec::new();
                refused.message(&mut frame);
                format!("{} {}", refused.reason.row().label, texts(&frame).concat())
            }
        }
    }

    /// An id that a slot of three owns.
    fn id_of(slot: u32) -> String {
        let view = standing().view;
        let owned = |id: &String| view.owner(AssessmentHash::of(id)) == Some(SlotNumber(slot));
        (0..).map(|number| format!("id{number}")).find(owned).expect("each slot owns about a third")
    }

    #[test]
    fn refusals_come_in_the_contracts_order() {
        let standing = standing();
        let elsewhere = id_of(1);
        let only_x = token(&serde_json::json!({"userId": "u", "assessments": ["x"]}));
        let any = token(&serde_json::json!({"userId": "u"}));
        let first = |query: &str| answer(query, &standing, false);
        assert!(first("assessmentId=").contains(r#""error":"Unauthorized""#));
        assert!(first(&format!("assessmentId=&token={only_x}")).contains(r#""error":"BadRequest""#));
        assert!(first(&format!("assessmentId={elsewhere}&token={only_x}")).contains(r#""error":"Forbidden""#));
        let redirect = first(&format!("assessmentId={elsewhere}&token={any}"));
        assert!(redirect.contains(r#""node":"p1","url":"ws://p1/ws""#), "{redirect}");
        assert_eq!(first(&format!("assessmentId={}&token={any}", id_of(0))), "served u");
        assert_eq!(first(&format!("token={only_x}")), "served u", "market data is open to every user");
    }

    #[test]
    fn a_pod_that_was_never_ready_takes_nobody_and_one_that_was_goes_on() {
        let any = token(&serde_json::json!({"sub": "u"}));
        let query = format!("assessmentId=a&token={any}");
        assert_eq!(answer(&query, &Standing::default(), false), "503");
        let alone = Standing { was_ready: true, ..Standing::default() };
        assert_eq!(answer(&query, &alone, false), "served u", "an empty view sends nobody away");
    }

    #[test]
    fn placed_anywhere_every_pod_serves_every_assessment() {
        let any = token(&serde_json::json!({"sub": "u"}));
        assert_eq!(answer(&format!("assessmentId={}&token={any}", id_of(2)), &standing(), true), "served u");
    }

    #[test]
    fn placed_anywhere_nobody_is_sent_to_a_pod_that_cannot_be_addressed_not_even_by_a_drain() {
        let any = token(&serde_json::json!({"sub": "u"}));
        let draining = Standing { draining_since: Some(Instant::now()), ..standing() };
        let query = format!("assessmentId={}&token={any}", id_of(2));
        assert_eq!(answer(&query, &draining, true), "503");
        let node = NodeId("p0".into());
        let here = Here { node: &node, standing: &draining, place_anywhere: true };
        for watching in [Watching::Assessment(AssessmentHash(7)), Watching::Market { spread: 7 }] {
            assert_eq!(here.elsewhere(watching, Evidence::None), None);
        }
    }

    #[test]
    fn of_all_answers_the_redirect_alone_goes_by_the_view() {
        let verifier = Verifier::new(&auth::Config { secret: SECRET.into(), require_assessments: false });
        let (node, standing) = (NodeId("p0".into()), standing());
        let here = Here { node: &node, standing: &standing, place_anywhere: false };
        let any = token(&serde_json::json!({"userId": "u"}));
        let goes_by_view = |query: &str| {
            let upgrade = upgrade(query);
            let grant = identify(&upgrade, &here, &verifier, now().unix);
            grant.is_ok_and(|grant| judge(&upgrade, &grant, &here, &SentAway::default(), now()).goes_by_view())
        };
        assert!(goes_by_view(&format!("assessmentId={}&token={any}", id_of(1))));
        assert!(!goes_by_view(&format!("assessmentId={}&token={any}", id_of(0))));
        assert!(!goes_by_view(&format!("assessmentId={}", id_of(1))), "a token that is none is none on every pod");
    }

    #[test]
    fn a_draining_pod_sends_everyone_to_who_is_left() {
        let any = token(&serde_json::json!({"sub": "u"}));
        let draining = Standing { draining_since: Some(Instant::now()), ..standing() };
        for query in [format!("assessmentId={}&token={any}", id_of(0)), format!("token={any}")] {
            let redirect = answer(&query, &draining, false);
            assert!(redirect.contains(r#""error":"Redirect""#) && !redirect.contains("ws://p0"), "{redirect}");
        }
        let mut view = (*standing().view).clone();
        view.slots.truncate(1);
        let alone = Standing { view: Arc::new(view), ..draining };
        assert_eq!(answer(&format!("token={any}"), &alone, false), "503");
    }

    #[test]
    fn without_redis_who_was_sent_away_in_vain_is_served_on_return_but_not_by_a_pod_that_drains() {
        let any = token(&serde_json::json!({"sub": "u"}));
        let elsewhere = id_of(1);
        let query = format!("assessmentId={elsewhere}&token={any}");
        let down = standing();
        let mut sent_away = SentAway::default();
        assert!(answer_after(&sent_away, &query, &down, false).contains("ws://p1/ws"));
        sent_away.note(AssessmentHash::of(&elsewhere), &down.sight, Instant::now());
        assert_eq!(answer_after(&sent_away, &query, &down, false), "served for its owner");
        let own = format!("assessmentId={}&token={any}", id_of(0));
        assert_eq!(answer_after(&sent_away, &own, &down, false), "served u");
        let refused = answer_after(&sent_away, &format!("assessmentId={elsewhere}"), &down, false);
        assert!(refused.contains("Unauthorized"), "{refused}");

        let draining = Standing { draining_since: Some(Instant::now()), ..standing() };
        assert!(answer_after(&sent_away, &query, &draining, false).contains("Redirect"));
        let proven = Sight { looked: Some(Instant::now()), reached: true, proven: true };
        let back = Standing { sight: proven, ..standing() };
        assert!(answer_after(&sent_away, &query, &back, false).contains("ws://p1/ws"), "it is known who lives");
    }

    #[test]
    fn without_redis_who_comes_from_a_pod_that_drains_is_served_at_once() {
        let any = token(&serde_json::json!({"sub": "u"}));
        let down = standing();
        let ask = |standing: &Standing, slot, cursor: &str| {
            answer(&format!("assessmentId={}&token={any}&cursor={cursor}", id_of(slot)), standing, false)
        };
        assert!(ask(&down, 1, "AbC").contains("ws://p1/ws"), "the last view is in force");
        assert_eq!(ask(&down, 1, "~AbC"), "served for its owner");
        assert_eq!(ask(&down, 0, "~AbC"), "served u", "it is the owner");
        let proven = Sight { looked: Some(Instant::now()), reached: true, proven: true };
        let reached = Standing { sight: proven, ..standing() };
        assert!(ask(&reached, 1, "~AbC").contains("ws://p1/ws"), "that one doesn't drain, or it wasn't in the view");

        // One that drains, too, sends it to the third.
        let draining = Standing { draining_since: Some(Instant::now()), ..standing() };
        let sent_to = |standing: &Standing, cursor: &str| {
            let answer = ask(standing, 1, cursor);
            assert!(answer.contains(r#""cursor":"~AbC"}"#), "{answer}");
            ["p1", "p2"].into_iter().find(|name| answer.contains(&format!("ws://{name}/ws"))).map(str::to_owned)
        };
        assert_eq!(sent_to(&draining, "AbC").as_deref(), Some("p1"));
        assert_eq!(sent_to(&draining, "~AbC").as_deref(), Some("p2"));
        let mut view = (*draining.view).clone();
        view.slots.truncate(2);
        let of_two = Standing { view: Arc::new(view), ..draining.clone() };
        assert_eq!(sent_to(&of_two, "~AbC").as_deref(), Some("p1"), "there is no third");
        assert_eq!(sent_to(&Standing { sight: proven, ..draining.clone() }, "~AbC").as_deref(), Some("p1"));
        let node = NodeId("p0".into());
        let here = Here { node: &node, standing: &draining, place_anywhere: false };
        let watching = Watching::Assessment(AssessmentHash::of(&id_of(1)));
        let to = |evidence| here.elsewhere(watching, evidence).unwrap().to.node.0.to_string();
        assert_eq!([Evidence::None, Evidence::IsBack, Evidence::Drains].map(to), ["p1", "p1", "p2"], "p1 may be there");
        assert!(!ask(&draining, 1, "").contains("cursor"), "who has none is given none");
    }
}
