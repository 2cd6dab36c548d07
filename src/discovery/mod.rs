//! Which pods there are, and which slot of the cluster is this pod's (PROTOCOL 7). It owns the lease and the
//! view; what follows from a view for an assessment is [`crate::routing::placement`]'s.
//!
//! - [`membership`]: what a pod asks and believes: the rules, with time as an argument. They rest on
//! - [`lease`], the state of this pod's own slot, and [`redis_health`], since when Redis is reached;
//! - [`wire`]: the calls and their answers;
//! - [`redis`] (edge): connections, and the one script that changes anything, `slots.lua`.

pub mod lease;
pub mod membership;
pub mod redis;
pub mod redis_health;
pub mod wire;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::config::RedisConfig;
use crate::exchange::RefreshRequest;
use crate::ids::{NodeId, SlotNumber};
use crate::routing::placement::{Pod, View};

/// Who the members of the cluster are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterMode {
    /// All pods that share the Redis of the settings.
    Redis,
    /// This pod alone, without Redis: for the demo.
    SinglePod,
}

/// What the pod is to be in the cluster. It only ever moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Intent {
    /// The history is not complete: look on.
    Watch,
    /// Have a slot.
    Serve,
    /// The pod drains: give the slot up.
    Leave,
}

/// The cluster as this pod sees it.
#[derive(Debug, Clone, Default)]
pub struct ClusterState {
    /// Whether Redis is reached.
    pub redis_up: bool,
    /// The live slots.
    pub view: Arc<View>,
    /// When the newest look at Redis that was answered had been sent; `None` before the first, and for a pod alone.
    pub as_of: Option<Instant>,
    /// Whether each pod of the view had to show itself since Redis was last away.
    pub confirmed: bool,
    /// The slot of this pod, while it holds one.
    pub own: Option<SlotNumber>,
    /// The pod drains, and holds no slot any more.
    pub left: bool,
}

/// What discovery is built of.
pub struct Parts {
    /// Where Redis is, and how long a lease lasts.
    pub config: RedisConfig,
    /// This pod's name.
    pub node: NodeId,
    /// Where clients reach it.
    pub url: Arc<str>,
    /// `PLACEMENT=any`: clients are not sent to the pod by its URL.
    pub place_anywhere: bool,
    /// What the pod is to be.
    pub intent: watch::Receiver<Intent>,
    /// Where discovery publishes the cluster's state.
    pub cluster: watch::Sender<ClusterState>,
    /// Requests for a refresh of the view. A single pod redirects nobody and ignores them.
    pub refresh: RefreshRequest,
    /// What an operator sees of it.
    pub metrics: Metrics,
}

/// Runs discovery until the intent's sender is gone.
pub async fn run(membership: ClusterMode, parts: Parts) {
    match membership {
        ClusterMode::Redis => redis::run(parts).await,
        ClusterMode::SinglePod => alone(parts).await,
    }
}

/// The cluster of one pod: slot 0 is its own as soon as it may have one.
async fn alone(parts: Parts) {
    let Parts { node, url, mut intent, cluster, metrics, .. } = parts;
    let mut version = 0;
    loop {
        let own = (*intent.borrow_and_update() == Intent::Serve).then_some(SlotNumber(0));
        version += 1;
        let pod = own.map(|_| Pod { node: node.clone(), url: Arc::clone(&url) });
        let view = Arc::new(View { version, slots: vec![pod] });
        let left = *intent.borrow() == Intent::Leave;
        let now = ClusterState { redis_up: true, view, as_of: None, confirmed: true, own, left };
        metrics.show(&now);
        cluster.send_replace(now);
        if intent.changed().await.is_err() {
            return;
        }
    }
}

/// Discovery's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    redis_up: Gauge,
    calls: Counter,
    calls_failed: Counter,
    connections: Counter,
    announcements_dropped: Counter,
    fields_ignored: Gauge,
    slots: Gauge,
    pods: Gauge,
    own_slot: Gauge,
    view_version: Gauge<u64, AtomicU64>,
    view_changes: Counter,
}

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            redis_up: Gauge::default(),
            calls: Counter::default(),
            calls_failed: Counter::default(),
            connections: Counter::default(),
            announcements_dropped: Counter::default(),
            fields_ignored: Gauge::default(),
            slots: Gauge::default(),
            pods: Gauge::default(),
            own_slot: Gauge::default(),
            view_version: Gauge::default(),
            view_changes: Counter::default(),
        };
        metrics.own_slot.set(-1);
        let mut gauge = |name, help, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("shardgate_redis_connected", "Whether Redis is reached: 1 or 0", &metrics.redis_up);
        gauge("shardgate_slots", "Slots of the cluster, vacant ones included", &metrics.slots);
        gauge("shardgate_pods", "Pods that hold a slot, as this one knows", &metrics.pods);
        gauge("shardgate_own_slot", "The slot of this pod; -1 while it holds none", &metrics.own_slot);
        let ignored = "Fields of the hash of slots that no pod wrote: they are ignored";
        gauge("shardgate_redis_fields_ignored", ignored, &metrics.fields_ignored);
        let version = "The view in force: equal on pods that agree, lower after Redis was emptied";
        registry.register("shardgate_view_version", version, metrics.view_version.clone());
        let changes = "Views that came into force";
        registry.register("shardgate_view_changes", changes, metrics.view_changes.clone());
        let calls = "Calls to Redis: renewals, and looks before clients are sent away";
        registry.register("shardgate_redis_calls", calls, metrics.calls.clone());
        let failed = "Calls to Redis that failed or took too long";
        registry.register("shardgate_redis_calls_failed", failed, metrics.calls_failed.clone());
        let made = "Connections made to Redis: two at the start, and others where one broke or stopped answering";
        registry.register("shardgate_redis_connections", made, metrics.connections.clone());
        let dropped = "Announcements from Redis over the bound of those that wait: the next call sees what they told";
        registry.register("shardgate_redis_announcements_dropped", dropped, metrics.announcements_dropped.clone());
        metrics
    }

    fn show_ignored(&self, fields: u64) {
        self.fields_ignored.set(i64::try_from(fields).unwrap_or(i64::MAX));
    }

    fn show(&self, now: &ClusterState) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.redis_up.set(i64::from(now.redis_up));
        self.slots.set(count(now.view.slots.len()));
        self.pods.set(count(now.view.live().count()));
        self.own_slot.set(now.own.map_or(-1, |slot| i64::from(slot.0)));
        if self.view_version.set(now.view.version) != now.view.version {
            self.view_changes.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ::redis::IntoConnectionInfo;
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn parts(intent: watch::Receiver<Intent>, cluster: watch::Sender<ClusterState>, registry: &mut Registry) -> Parts {
        let config = RedisConfig {
            connection: "redis://127.0.0.1/".into_connection_info().unwrap(),
            address: "127.0.0.1:6379".into(),
            key_prefix: "websocket".into(),
            lease: Duration::from_secs(10),
        };
        let metrics = Metrics::register(registry);
        let refresh = RefreshRequest::default();
        let (node, url) = (NodeId("a".into()), "ws://a/ws".into());
        Parts { config, node, url, place_anywhere: false, intent, cluster, refresh, metrics }
    }

    #[tokio::test]
    async fn a_pod_alone_is_the_cluster_from_when_it_may_serve_until_it_drains() {
        let (intent, intent_seen) = watch::channel(Intent::Watch);
        let (cluster, mut seen) = watch::channel(ClusterState::default());
        let mut registry = Registry::default();
        let running = tokio::spawn(run(ClusterMode::SinglePod, parts(intent_seen, cluster, &mut registry)));

        let watching = seen.wait_for(|cluster| cluster.redis_up).await.unwrap().clone();
        assert_eq!((watching.own, watching.view.live().count(), watching.left), (None, 0, false));

        intent.send_replace(Intent::Serve);
        let serving = seen.wait_for(|cluster| cluster.own.is_some()).await.unwrap().clone();
        assert_eq!(serving.view.live().map(|(slot, pod)| (slot.0, &*pod.node.0)).collect::<Vec<_>>(), [(0, "a")]);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in ["shardgate_own_slot 0", "shardgate_pods 1", "shardgate_slots 1", "shardgate_redis_connected 1"] {
            assert!(text.contains(&format!("{line}\n")), "{text}");
        }

        intent.send_replace(Intent::Leave);
        let left = seen.wait_for(|cluster| cluster.left).await.unwrap().clone();
        assert_eq!((left.own, left.view.live().count()), (None, 0));
        drop(intent);
        running.await.unwrap();
    }
}
