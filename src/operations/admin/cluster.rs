//! The body of `GET /cluster`: this pod's view of the slots, in pages, and the owner of an assessment.

use serde::Serialize;

use super::request::ClusterQuery;
use crate::clock::{Now, whole_ms};
use crate::exchange::{Owner, PodState};
use crate::ids::{AssessmentId, NodeId, SlotNumber};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClusterBody<'a> {
    node: &'a str,
    timestamp: String,
    placement: &'static str,
    own_slot: Option<u32>,
    draining: bool,
    view: ViewBody,
    slots: Vec<SlotBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<OwnerBody<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ViewBody {
    version: u64,
    /// `None` until Redis has answered.
    age_ms: Option<u64>,
    redis: &'static str,
    confirmed: bool,
    slots: usize,
    pods: usize,
}

/// A slot; `node` and `url` are null while it is vacant.
#[derive(Serialize)]
struct SlotBody<'a> {
    slot: u32,
    node: Option<&'a str>,
    url: Option<&'a str>,
    /// Whether the pod did not answer this pod's last look.
    silent: bool,
}

/// The pod that serves an assessment; `node` is null if none is known.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OwnerBody<'a> {
    assessment_id: &'a str,
    slot: Option<u32>,
    node: Option<&'a str>,
    url: Option<&'a str>,
    /// Whether this pod serves it.
    this_pod: bool,
}

/// The answer by this pod's newest state.
pub(super) fn body<'a>(
    node: &'a NodeId,
    pod_state: &'a PodState,
    place_anywhere: bool,
    query: &'a ClusterQuery,
    now: Now,
) -> ClusterBody<'a> {
    let view = &pod_state.view;
    let freshness = &pod_state.view_freshness;
    let first = query.after.map_or(0, |SlotNumber(after)| after.saturating_add(1));
    let mut slots: Vec<SlotBody<'_>> = (0..)
        .zip(&view.slots)
        .skip(usize::try_from(first).unwrap_or(usize::MAX))
        .take(query.limit + 1)
        .map(|(slot, pod)| SlotBody {
            slot,
            node: pod.as_ref().map(|pod| &*pod.node.0),
            url: pod.as_ref().map(|pod| &*pod.url),
            silent: pod.as_ref().is_some_and(|pod| pod_state.is_silent(&pod.node)),
        })
        .collect();
    let has_more = slots.len() > query.limit;
    slots.truncate(query.limit);
    ClusterBody {
        node: &node.0,
        timestamp: now.unix.to_string(),
        placement: if place_anywhere { "any" } else { "owner" },
        own_slot: pod_state.own_slot.map(|slot| slot.0),
        draining: pod_state.draining_since.is_some(),
        view: ViewBody {
            version: view.version,
            age_ms: freshness.as_of.map(|as_of| whole_ms(now.instant.saturating_duration_since(as_of))),
            redis: if freshness.redis_up { "connected" } else { "disconnected" },
            confirmed: freshness.confirmed,
            slots: view.slots.len(),
            pods: view.live().count(),
        },
        next: slots.last().filter(|_| has_more).map(|last| last.slot),
        slots,
        owner: query.assessment.as_ref().map(|id| owner(node, pod_state, place_anywhere, id)),
    }
}

fn owner<'a>(node: &'a NodeId, pod_state: &'a PodState, place_anywhere: bool, id: &'a AssessmentId) -> OwnerBody<'a> {
    let slot = pod_state.view.owner(id.hash()).filter(|_| !place_anywhere);
    let pod = slot.and_then(|slot| pod_state.view.pod(slot));
    let this_pod = place_anywhere || matches!(pod_state.owner(id.hash()), Owner::ThisPod);
    OwnerBody {
        assessment_id: id.as_str(),
        slot: slot.map(|slot| slot.0),
        node: pod.map(|pod| &*pod.node.0).or(Some(&*node.0).filter(|_| this_pod)),
        url: pod.map(|pod| &*pod.url),
        this_pod,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::clock::UnixMs;
    use crate::exchange::ViewFreshness;
    use crate::routing::placement::{Pod, View};

    fn pod_state(now: Now) -> PodState {
        let pod = |name: &str| Some(Pod { node: NodeId(name.into()), url: format!("ws://{name}/ws").into() });
        let as_of = now.instant.checked_sub(Duration::from_millis(40));
        PodState {
            view: Arc::new(View { version: 7, slots: vec![pod("a"), None, pod("c")] }),
            view_freshness: ViewFreshness { as_of, redis_up: true, confirmed: true },
            silent: [NodeId("c".into())].into(),
            own_slot: Some(SlotNumber(0)),
            ..PodState::default()
        }
    }

    fn json(query: &str, place_anywhere: bool) -> serde_json::Value {
        let now = Now { instant: Instant::now(), unix: UnixMs(0) };
        let (node, pod_state) = (NodeId("a".into()), pod_state(now));
        let query = ClusterQuery::parse(query).unwrap();
        serde_json::to_value(body(&node, &pod_state, place_anywhere, &query, now)).unwrap()
    }

    #[test]
    fn the_body_has_every_slot_and_the_view() {
        assert_eq!(
            json("", false),
            serde_json::json!({
                "node": "a", "timestamp": "1970-01-01T00:00:00.000Z", "placement": "owner", "ownSlot": 0, "draining": false,
                "view": { "version": 7, "ageMs": 40, "redis": "connected", "confirmed": true, "slots": 3, "pods": 2 },
                "slots": [
                    { "slot": 0, "node": "a", "url": "ws://a/ws", "silent": false },
                    { "slot": 1, "node": null, "url": null, "silent": false },
                    { "slot": 2, "node": "c", "url": "ws://c/ws", "silent": true },
                ],
            })
        );
    }

    #[test]
    fn slots_come_in_pages() {
        let mut pages = Vec::new();
        let mut query = "limit=2".to_owned();
        loop {
            let body = json(&query, false);
            pages.push(body["slots"].as_array().unwrap().iter().map(|slot| slot["slot"].clone()).collect::<Vec<_>>());
            let Some(next) = body["next"].as_u64() else { break };
            query = format!("limit=2&after={next}");
        }
        assert_eq!(pages, [vec![0, 1], vec![2]]);
        assert_eq!(json("after=4294967295", false)["slots"], serde_json::json!([]));
    }

    #[test]
    fn the_owner_is_the_pod_that_serves() {
        let owners = (0..50).map(|number| json(&format!("assessmentId=id{number}"), false)["owner"].clone());
        let mut nodes = std::collections::BTreeSet::new();
        for owner in owners {
            assert_eq!(owner["thisPod"], owner["node"] == "a", "{owner}");
            nodes.insert(owner["node"].as_str().unwrap().to_owned());
        }
        assert_eq!(nodes.into_iter().collect::<Vec<_>>(), ["a", "c"]);
        let here = json("assessmentId=x", true)["owner"].clone();
        assert_eq!(
            here,
            serde_json::json!({ "assessmentId": "x", "slot": null, "node": "a", "url": null, "thisPod": true })
        );
    }
}
