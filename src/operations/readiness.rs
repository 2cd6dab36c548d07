//! Readiness and liveness of a pod, from the status of its parts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::Serialize;

use crate::clock::Now;
use crate::exchange::{IngestStatus, ShardStatus};
use crate::ids::{NodeId, SlotNumber};
use crate::limits::{LOOP_STALL_MAX, WATCHER_STALL_MAX};

/// One latch per subsystem. Each reports only its own part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each latch is of another subsystem")]
pub(crate) struct Readiness {
    /// Whether Redis answers.
    pub(crate) redis_up: bool,
    /// Whether the brokers answer, and records that they have are read.
    pub(crate) kafka_up: bool,
    /// Partitions that this pod started without and still can't read. They delay nothing.
    pub(crate) missing: u64,
    /// Whether the history was filled to the partitions' ends. Never goes back to false.
    pub(crate) history_complete: bool,
    /// Whether tokens can be verified: there is a secret, or a key set was read. Never goes back to false.
    pub(crate) can_verify: bool,
    /// Slot of this pod, while it holds one.
    pub(crate) own_slot: Option<SlotNumber>,
    /// Whether this pod ever held a slot. Before, it owns nothing and would redirect every client. Never goes back to
    /// false: a lost slot is claimed again while clients are served.
    pub(crate) had_slot: bool,
    /// Whether the pod drains. Never goes back to false.
    pub(crate) draining: bool,
}

impl Readiness {
    /// Whether the pod may hold a slot: it has all that clients need.
    #[must_use]
    pub(crate) fn may_serve(&self) -> bool {
        self.history_complete && self.can_verify
    }

    /// Whether clients should be sent here: every part is ready.
    #[must_use]
    pub(crate) fn is_ready(&self) -> bool {
        self.redis_up && self.kafka_up && self.may_serve() && self.had_slot && !self.draining
    }

    /// Whether the pod accepts clients: from the first time it holds a slot, which it claims with a complete history,
    /// until it drains. A later outage of Kafka or Redis makes no pod worse than another.
    #[must_use]
    pub(crate) fn is_accepting(&self) -> bool {
        self.may_serve() && self.had_slot && !self.draining
    }

    /// Names of the parts that the pod waits for, for the log.
    #[must_use]
    pub(crate) fn waits_for(&self) -> Vec<&'static str> {
        let outages = [(!self.redis_up, "Redis"), (!self.kafka_up, "Kafka")];
        let mut waits_for = named(outages);
        waits_for.extend(self.waits_to_accept());
        waits_for
    }

    /// Those of them without which it accepts no clients.
    fn waits_to_accept(&self) -> Vec<&'static str> {
        named([
            (!self.history_complete, "the history"),
            (!self.can_verify, "a key set"),
            (!self.had_slot, "a slot"),
            (self.draining, "nothing: it drains"),
        ])
    }

    /// The body of `/ready`.
    #[must_use]
    pub(crate) fn json(&self, node: &NodeId, missing: &[Box<str>], now: Now) -> String {
        let connected = |connected| if connected { "connected" } else { "disconnected" };
        let body = ReadyBody {
            status: if self.is_ready() { "ready" } else { "not_ready" },
            redis: connected(self.redis_up),
            kafka: connected(self.kafka_up),
            timestamp: now.unix.to_string(),
            node: &node.0,
            history: if self.history_complete { "complete" } else { "filling" },
            draining: self.draining,
            slot: self.own_slot.map(|slot| slot.0),
            missing: self.missing,
            missing_names: if self.missing > 0 { missing } else { &[] },
        };
        json(&body)
    }

    /// The body of `/accepting`.
    #[must_use]
    pub(crate) fn accepting_json(&self, node: &NodeId, now: Now) -> String {
        json(&AcceptingBody {
            status: if self.is_accepting() { "accepting" } else { "not_accepting" },
            timestamp: now.unix.to_string(),
            node: &node.0,
            draining: self.draining,
            waiting_for: self.waits_to_accept(),
        })
    }
}

fn named<const N: usize>(missing: [(bool, &'static str); N]) -> Vec<&'static str> {
    missing.into_iter().filter_map(|(missing, what)| missing.then_some(what)).collect()
}

#[derive(Serialize)]
struct AcceptingBody<'a> {
    status: &'static str,
    timestamp: String,
    node: &'a str,
    draining: bool,
    /// Why it does not accept clients.
    #[serde(rename = "waitingFor", skip_serializing_if = "Vec::is_empty")]
    waiting_for: Vec<&'static str>,
}

#[derive(Serialize)]
struct ReadyBody<'a> {
    status: &'static str,
    redis: &'static str,
    kafka: &'static str,
    timestamp: String,
    node: &'a str,
    history: &'static str,
    draining: bool,
    slot: Option<u32>,
    /// Partitions that can't be read, if any.
    #[serde(rename = "missingPartitions", skip_serializing_if = "is_none")]
    missing: u64,
    /// The first of them.
    #[serde(rename = "missing", skip_serializing_if = "<[_]>::is_empty")]
    missing_names: &'a [Box<str>],
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde requires this signature")]
fn is_none(missing: &u64) -> bool {
    *missing == 0
}

/// Status of the threads.
#[derive(Debug, Clone)]
pub(crate) struct Threads {
    /// Status of the ingest threads.
    pub(crate) ingest: Arc<IngestStatus>,
    /// Status of the shards, by index.
    pub(crate) shards: Vec<Arc<ShardStatus>>,
}

impl Threads {
    /// Number of clients of all shards.
    #[must_use]
    pub(crate) fn clients(&self) -> u64 {
        self.shards.iter().map(|shard| shard.clients.load(Ordering::Relaxed)).sum()
    }

    /// Names of threads whose loop has not turned for [`LOOP_STALL_MAX`], or [`WATCHER_STALL_MAX`]. The control thread
    /// is not among them: an answer shows that it turns.
    #[must_use]
    pub(crate) fn stalled(&self, now: Instant) -> Vec<String> {
        let ingest = [
            ("ingest".to_owned(), &self.ingest.liveness, LOOP_STALL_MAX),
            ("kafka-watcher".to_owned(), &self.ingest.watcher_liveness, WATCHER_STALL_MAX),
        ];
        let shards = self.shards.iter().enumerate();
        let shards = shards.map(|(index, shard)| (format!("shard {index}"), &shard.liveness, LOOP_STALL_MAX));
        let stalled = ingest.into_iter().chain(shards).filter(|(_, liveness, age_max)| liveness.age(now) > *age_max);
        stalled.map(|(name, ..)| name).collect()
    }

    /// Whether all threads turn their loops, and the body of `/health`.
    #[must_use]
    pub(crate) fn health(&self, now: Now) -> (bool, String) {
        let stalled = self.stalled(now.instant);
        let healthy = stalled.is_empty();
        let status = if healthy { "ok" } else { "stalled" };
        (healthy, json(&HealthBody { status, timestamp: now.unix.to_string(), stalled }))
    }
}

#[derive(Serialize)]
struct HealthBody {
    status: &'static str,
    timestamp: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stalled: Vec<String>,
}

fn json(body: &impl Serialize) -> String {
    serde_json::to_string(body).expect("a struct of strings and flags is always JSON")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::UnixMs;

    const READY: Readiness = Readiness {
        redis_up: true,
        missing: 0,
        kafka_up: true,
        history_complete: true,
        can_verify: true,
        own_slot: Some(SlotNumber(2)),
        had_slot: true,
        draining: false,
    };

    fn now() -> Now {
        Now { instant: Instant::now(), unix: UnixMs(0) }
    }

    #[test]
    fn a_pod_is_ready_only_if_every_part_is() {
        assert!(READY.is_ready() && READY.waits_for().is_empty());
        let lacking = [
            Readiness { redis_up: false, ..READY },
            Readiness { kafka_up: false, ..READY },
            Readiness { history_complete: false, ..READY },
            Readiness { can_verify: false, ..READY },
            Readiness { had_slot: false, own_slot: None, ..READY },
            Readiness { draining: true, ..READY },
        ];
        for readiness in lacking {
            assert!(!readiness.is_ready(), "{readiness:?}");
            assert_eq!(readiness.waits_for().len(), 1, "{readiness:?}");
        }
    }

    #[test]
    fn a_pod_that_was_ready_once_accepts_clients_until_it_drains() {
        for fails in [Readiness { redis_up: false, ..READY }, Readiness { kafka_up: false, own_slot: None, ..READY }] {
            assert!(!fails.is_ready() && fails.is_accepting(), "{fails:?}");
        }
        for lacks in [
            Readiness { history_complete: false, ..READY },
            Readiness { can_verify: false, ..READY },
            Readiness { had_slot: false, own_slot: None, ..READY },
            Readiness { draining: true, ..READY },
        ] {
            assert!(!lacks.is_accepting(), "{lacks:?}");
        }
        assert_eq!(
            READY.accepting_json(&NodeId("a".into()), now()),
            r#"{"status":"accepting","timestamp":"1970-01-01T00:00:00.000Z","node":"a","draining":false}"#
        );
        let no_keys = Readiness { can_verify: false, redis_up: false, ..READY };
        let body = no_keys.accepting_json(&NodeId("a".into()), now());
        assert!(body.ends_with(r#""draining":false,"waitingFor":["a key set"]}"#), "{body}");
    }

    #[test]
    fn a_pod_stays_ready_while_it_claims_a_lost_slot_again() {
        assert!(Readiness { own_slot: None, ..READY }.is_ready());
    }

    #[test]
    fn the_body_of_ready_matches_the_contract() {
        let node = NodeId("pod-\"1\"".into());
        assert_eq!(
            READY.json(&node, &[], now()),
            r#"{"status":"ready","redis":"connected","kafka":"connected","timestamp":"1970-01-01T00:00:00.000Z","node":"pod-\"1\"","history":"complete","draining":false,"slot":2}"#
        );
        let lacking = Readiness { missing: 2, ..READY };
        let names = ["t:0", "t:1"].map(Into::into);
        let body = lacking.json(&node, &names, now());
        assert!(body.contains(r#""slot":2,"missingPartitions":2,"missing":["t:0","t:1"]}"#), "{body}");
        assert!(Readiness { missing: 2, ..READY }.is_ready(), "a missing partition delays nothing else");
        assert_eq!(
            Readiness { draining: true, ..Readiness::default() }.json(&node, &[], now()),
            r#"{"status":"not_ready","redis":"disconnected","kafka":"disconnected","timestamp":"1970-01-01T00:00:00.000Z","node":"pod-\"1\"","history":"filling","draining":true,"slot":null}"#
        );
    }

    #[test]
    fn a_stalled_thread_is_named() {
        let threads = Threads { ingest: Arc::default(), shards: vec![Arc::default(), Arc::default()] };
        let start = now();
        assert_eq!(
            threads.health(start),
            (true, r#"{"status":"ok","timestamp":"1970-01-01T00:00:00.000Z"}"#.to_owned())
        );

        let later = start.instant + LOOP_STALL_MAX + Duration::from_secs(1);
        threads.ingest.liveness.turn_ended(later);
        threads.shards[0].liveness.turn_ended(later);
        assert_eq!(threads.stalled(later), ["shard 1"]);
        let (healthy, body) = threads.health(Now { instant: later, unix: UnixMs(0) });
        assert!(!healthy);
        assert_eq!(body, r#"{"status":"stalled","timestamp":"1970-01-01T00:00:00.000Z","stalled":["shard 1"]}"#);

        let later = start.instant + WATCHER_STALL_MAX + Duration::from_secs(1);
        threads.ingest.liveness.turn_ended(later);
        threads.shards.iter().for_each(|shard| shard.liveness.turn_ended(later));
        assert_eq!(threads.stalled(later), ["kafka-watcher"]);
    }

    #[test]
    fn clients_of_all_shards_are_counted() {
        let threads = Threads { ingest: Arc::default(), shards: vec![Arc::default(), Arc::default()] };
        threads.shards[0].clients.store(3, Ordering::Relaxed);
        threads.shards[1].clients.store(4, Ordering::Relaxed);
        assert_eq!(threads.clients(), 7);
    }
}
