//! Which pods serve, and which slot of the cluster is this pod's (PROTOCOL 7). Owns the lease and the view;
//! [`crate::routing::placement`] derives owners from a view.
//!
//! - [`membership`]: a pod's calls and conclusions: the rules, with time as an argument. They build on
//! - [`lease`], the state of this pod's own slot, and [`redis_health`], how long Redis has been reachable;
//! - [`peers`]: which of the other pods are gone, as looks at them tell;
//! - `revocation_book`: the tokens that operators have revoked, which all pods know by Redis;
//! - [`wire`]: the calls and their answers;
//! - `peer_looks` (edge): a look at another pod;
//! - [`redis`] (edge): calls and announcements, and the one script that changes anything, `slots.lua`;
//! - `redis_link` (edge): how Redis is reached.

pub(crate) mod lease;
pub mod membership;
mod peer_looks;
pub(crate) mod peers;
pub(crate) mod redis;
pub mod redis_health;
mod redis_link;
mod revocation_book;
pub mod wire;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};

use self::revocation_book::RevocationBook;
use crate::clock::Now;
use crate::config::RedisConfig;
use crate::exchange::{FleetChannels, RefreshRequest, RevokeRequest, Spread};
use crate::ids::{NodeId, SlotNumber};
use crate::protocol::auth::RevocationSet;
use crate::routing::placement::{Pod, View};

/// Which pods belong to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterMode {
    /// All pods that share the configured Redis.
    Redis,
    /// This pod only, without Redis: for the demo.
    SinglePod,
}

/// The role that the pod wants in the cluster. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Intent {
    /// The history is not complete: read the slots only.
    Watch,
    /// Hold a slot.
    Serve,
    /// The pod drains: release the slot.
    Drain,
}

/// The cluster as this pod sees it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterState {
    /// Whether the last call to Redis was answered.
    pub(crate) redis_up: bool,
    /// The live slots.
    pub(crate) view: Arc<View>,
    /// When the newest answered call to Redis was sent; `None` before the first, and for a single pod.
    pub(crate) as_of: Option<Instant>,
    /// Whether each pod in the view had to renew its lease since Redis was last down.
    pub(crate) confirmed: bool,
    /// Pods that did not answer when this pod looked at them last.
    pub(crate) silent: Arc<[NodeId]>,
    /// Tokens that operators have revoked.
    pub(crate) revocations: Arc<RevocationSet>,
    /// The slot of this pod, while it holds one.
    pub(crate) own_slot: Option<SlotNumber>,
    /// The pod drains, and holds no slot.
    pub(crate) left: bool,
}

/// Parts that discovery is built from.
pub(crate) struct Parts {
    /// Connection to Redis, and the lease.
    pub(crate) config: RedisConfig,
    /// This pod's name.
    pub(crate) node: NodeId,
    /// URL by which clients reach the pod.
    pub(crate) url: Arc<str>,
    /// `PEER_URL`.
    pub(crate) peer_url: Option<Arc<str>>,
    /// `PLACEMENT=any`: clients are not redirected to the pod by its URL.
    pub(crate) place_anywhere: bool,
    /// The role that the pod wants.
    pub(crate) intent: watch::Receiver<Intent>,
    /// Publishes the cluster's state.
    pub(crate) cluster: watch::Sender<ClusterState>,
    /// Requests for a refresh of the view. A single pod never redirects and ignores them.
    pub(crate) refresh: RefreshRequest,
    /// Messages of operators to and from all pods. A single pod has no others.
    pub(crate) fleet: FleetChannels,
    /// Requests to revoke tokens.
    pub(crate) revoke: mpsc::Receiver<RevokeRequest>,
    /// Metrics of discovery.
    pub(crate) metrics: Metrics,
}

/// Runs discovery until the intent's sender is gone.
pub(crate) async fn run(membership: ClusterMode, parts: Parts) {
    match membership {
        ClusterMode::Redis => redis::run(parts).await,
        ClusterMode::SinglePod => run_single_pod(parts).await,
    }
}

/// Asks Redis for the number of fields in the slots hash.
///
/// # Errors
/// Why there is no answer.
pub(crate) async fn check(config: &RedisConfig) -> Result<u64, String> {
    redis::check(config).await
}

/// The cluster of one pod, which owns slot 0 once it may serve.
async fn run_single_pod(parts: Parts) {
    let Parts { node, url, mut intent, cluster, fleet, mut revoke, metrics, .. } = parts;
    drop(fleet);
    let mut book = RevocationBook::default();
    let mut version = 0;
    loop {
        let own_slot = (*intent.borrow_and_update() == Intent::Serve).then_some(SlotNumber(0));
        version += 1;
        let pod = own_slot.map(|_| Pod { node: node.clone(), url: Arc::clone(&url) });
        let view = Arc::new(View { version, slots: vec![pod] });
        let left = *intent.borrow() == Intent::Drain;
        let revocations = book.in_force();
        let now = ClusterState {
            redis_up: true,
            view,
            confirmed: true,
            own_slot,
            left,
            revocations,
            ..ClusterState::default()
        };
        metrics.publish(&now);
        cluster.send_replace(now);
        tokio::select! {
            changed = intent.changed() => if changed.is_err() {
                return;
            },
            Some(RevokeRequest { revocation, answer }) = revoke.recv() => {
                let had_room = book.learn(&[revocation], Now::read().unix);
                // It fails if the operator has gone.
                let _ = answer.send(if had_room { Spread::AllPods } else { Spread::Nowhere });
            }
        }
    }
}

/// Discovery's metrics.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    redis_up: Gauge,
    calls: Counter,
    calls_failed: Counter,
    connections: Counter,
    announcements_dropped: Counter,
    fields_ignored: Gauge,
    peer_looks: Counter,
    peer_looks_failed: Counter,
    peers_gone: Gauge,
    revocations: Gauge,
    slots: Gauge,
    pods: Gauge,
    own_slot: Gauge,
    view_version: Gauge<u64, AtomicU64>,
    view_changes: Counter,
}

impl Metrics {
    /// Registers the families.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            redis_up: Gauge::default(),
            calls: Counter::default(),
            calls_failed: Counter::default(),
            connections: Counter::default(),
            announcements_dropped: Counter::default(),
            fields_ignored: Gauge::default(),
            peer_looks: Counter::default(),
            peer_looks_failed: Counter::default(),
            peers_gone: Gauge::default(),
            revocations: Gauge::default(),
            slots: Gauge::default(),
            pods: Gauge::default(),
            own_slot: Gauge::default(),
            view_version: Gauge::default(),
            view_changes: Counter::default(),
        };
        metrics.own_slot.set(-1);
        let mut gauge = |name, help, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("shardgate_redis_connected", "1 if Redis answers, else 0", &metrics.redis_up);
        gauge("shardgate_slots", "Slots of the cluster, vacant ones included", &metrics.slots);
        gauge("shardgate_pods", "Pods that hold a slot", &metrics.pods);
        gauge("shardgate_own_slot", "Slot of this pod; -1 without one", &metrics.own_slot);
        let ignored = "Foreign fields in the slots hash, which are ignored";
        gauge("shardgate_redis_fields_ignored", ignored, &metrics.fields_ignored);
        gauge(
            "shardgate_peers_gone",
            "Other pods that count as gone before their lease has run out",
            &metrics.peers_gone,
        );
        gauge("shardgate_revocations", "Revocations of tokens in force", &metrics.revocations);
        let looks = "Looks at other pods (PEER_URL)";
        registry.register("shardgate_peer_looks", looks, metrics.peer_looks.clone());
        let failed = "Looks at other pods that were refused, reset or not answered in time";
        registry.register("shardgate_peer_looks_failed", failed, metrics.peer_looks_failed.clone());
        let version = "Version of the view; equal on pods that agree, lower after Redis lost its data";
        registry.register("shardgate_view_version", version, metrics.view_version.clone());
        let changes = "Views that came into force";
        registry.register("shardgate_view_changes", changes, metrics.view_changes.clone());
        let calls = "Calls to Redis";
        registry.register("shardgate_redis_calls", calls, metrics.calls.clone());
        let failed = "Calls to Redis that failed or timed out";
        registry.register("shardgate_redis_calls_failed", failed, metrics.calls_failed.clone());
        let made = "Connections opened to Redis";
        registry.register("shardgate_redis_connections", made, metrics.connections.clone());
        let dropped = "Announcements dropped at the queue's limit; the next call covers them";
        registry.register("shardgate_redis_announcements_dropped", dropped, metrics.announcements_dropped.clone());
        metrics
    }

    fn publish_ignored(&self, fields: u64) {
        self.fields_ignored.set(i64::try_from(fields).unwrap_or(i64::MAX));
    }

    fn publish(&self, now: &ClusterState) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.redis_up.set(i64::from(now.redis_up));
        self.slots.set(count(now.view.slots.len()));
        self.pods.set(count(now.view.live().count()));
        self.own_slot.set(now.own_slot.map_or(-1, |slot| i64::from(slot.0)));
        if self.view_version.set(now.view.version) != now.view.version {
            self.view_changes.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::encoding::text::encode;
    use tokio::sync::mpsc;

    use super::*;
    use crate::config::RedisServers;

    fn parts(intent: watch::Receiver<Intent>, cluster: watch::Sender<ClusterState>, registry: &mut Registry) -> Parts {
        let config = RedisConfig {
            servers: RedisServers::Unix("/run/redis.sock".into()),
            login: ::redis::RedisConnectionInfo::default(),
            sentinel_login: ::redis::RedisConnectionInfo::default(),
            trust: None,
            key_prefix: "websocket".into(),
            lease: Duration::from_secs(10),
        };
        let metrics = Metrics::register(registry);
        let refresh = RefreshRequest::default();
        let (node, url) = (NodeId("a".into()), "ws://a/ws".into());
        let fleet = FleetChannels { publications: mpsc::channel(1).1, messages: mpsc::channel(1).0 };
        let revoke = mpsc::channel(1).1;
        let (peer_url, place_anywhere) = (None, false);
        Parts { config, node, url, peer_url, place_anywhere, intent, cluster, refresh, fleet, revoke, metrics }
    }

    #[tokio::test]
    async fn a_single_pod_owns_everything_from_intent_serve_until_it_drains() {
        let (intent, intent_seen) = watch::channel(Intent::Watch);
        let (cluster, mut seen) = watch::channel(ClusterState::default());
        let mut registry = Registry::default();
        let running = tokio::spawn(run(ClusterMode::SinglePod, parts(intent_seen, cluster, &mut registry)));

        let watching = seen.wait_for(|cluster| cluster.redis_up).await.unwrap().clone();
        assert_eq!((watching.own_slot, watching.view.live().count(), watching.left), (None, 0, false));

        intent.send_replace(Intent::Serve);
        let serving = seen.wait_for(|cluster| cluster.own_slot.is_some()).await.unwrap().clone();
        assert_eq!(serving.view.live().map(|(slot, pod)| (slot.0, &*pod.node.0)).collect::<Vec<_>>(), [(0, "a")]);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in ["shardgate_own_slot 0", "shardgate_pods 1", "shardgate_slots 1", "shardgate_redis_connected 1"] {
            assert!(text.contains(&format!("{line}\n")), "{text}");
        }

        intent.send_replace(Intent::Drain);
        let left = seen.wait_for(|cluster| cluster.left).await.unwrap().clone();
        assert_eq!((left.own_slot, left.view.live().count()), (None, 0));
        drop(intent);
        running.await.unwrap();
    }
}
