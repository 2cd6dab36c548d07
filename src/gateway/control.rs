//! The control thread's loop, the only writer of the pod state: it combines discovery's view, the parts' status and
//! signals, and wakes every shard on a change.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::ProcessHandles;
use crate::clock::whole_ms;
use crate::config::{DrainConfig, InvalidConfig};
use crate::discovery::{ClusterState, Intent};
use crate::exchange::{PodState, PublishedPodState, PublishedRoutes, ShardHandle, ViewFreshness};
use crate::operations::log_level::LogLevel;
use crate::operations::readiness::{Readiness, Threads};
use crate::protocol::auth::Verifier;
use crate::routing::table::RouteTable;
use crate::shutdown::phases;
use crate::shutdown::signals::{SignalRequest, Signals};

/// Poll interval of the parts' status while the pod starts or stops; the status has no wake-up.
const POLL_EVERY: Duration = Duration::from_millis(50);

/// Poll interval once the pod is ready: the only change left to see is that Kafka fails.
const POLL_EVERY_WHEN_READY: Duration = Duration::from_millis(500);

/// How often the log says what a pod that is not ready waits for.
const WAIT_LOG_EVERY: Duration = Duration::from_secs(30);

/// The control thread's loop.
pub(super) struct Control {
    /// The pod state that every shard reads.
    pub(super) pod_state: PublishedPodState,
    /// Handles that wake the shards.
    pub(super) shard_handles: Vec<ShardHandle>,
    /// Status of the threads.
    pub(super) threads: Threads,
    /// The role that discovery aims for.
    pub(super) intent: watch::Sender<Intent>,
    /// The cluster as discovery sees it.
    pub(super) cluster: watch::Receiver<ClusterState>,
    /// Readiness for the pages.
    pub(super) readiness: watch::Sender<Readiness>,
    /// Routes that ingest uses.
    pub(super) routes: PublishedRoutes,
    /// Tells whether tokens can be verified.
    pub(super) verifier: Verifier,
    /// Has all key sets read again, when it changes.
    pub(super) reload: watch::Sender<u64>,
    /// Times of the drain.
    pub(super) drain: DrainConfig,
    /// The log's level.
    pub(super) log_level: Arc<LogLevel>,
    /// Start of the process, for the log.
    pub(super) started: Instant,
    /// Whether "ready" was logged before.
    pub(super) was_ready_logged: bool,
    /// Present while the pod is not ready.
    pub(super) wait: Option<NotReadyPeriod>,
}

/// A period in which the pod is not ready.
#[derive(Debug, Clone, Copy)]
pub(super) struct NotReadyPeriod {
    since: Instant,
    logged: Instant,
}

impl NotReadyPeriod {
    fn begin(now: Instant) -> Self {
        Self { since: now, logged: now }
    }

    /// The length of the period so far, if it is due to be logged.
    fn log_due(&mut self, now: Instant) -> Option<Duration> {
        let due = now.saturating_duration_since(self.logged) >= WAIT_LOG_EVERY;
        due.then(|| {
            self.logged = now;
            now.saturating_duration_since(self.since)
        })
    }
}

impl Control {
    /// Runs until the drain is over, then tells every thread to end.
    pub(super) async fn run(mut self, mut signals: Signals, process: &ProcessHandles) {
        let since = loop {
            self.update_state();
            self.log_wait(Instant::now());
            self.log_level.expire(Instant::now());
            let pause = if self.readiness.borrow().is_ready() { POLL_EVERY_WHEN_READY } else { POLL_EVERY };
            tokio::select! {
                asked = signals.next() => match asked {
                    SignalRequest::End(signal) => break self.start_drain(signal),
                    SignalRequest::Reload => {
                        self.reload.send_modify(|reloads| *reloads += 1);
                        self.replace_routes((process.read_routes)());
                    }
                    SignalRequest::LogMore => self.log_level.step(true, Instant::now()),
                    SignalRequest::LogLess => self.log_level.step(false, Instant::now()),
                },
                // Its sender lives as long as discovery, which ends after this loop.
                Ok(()) = self.cluster.changed() => {}
                () = sleep(pause) => {}
            }
        };
        let log = process.log.clone();
        tokio::spawn(signals.end_at_next(move || log.flush()));
        while !phases::may_end(Instant::now(), since, &self.drain, self.threads.clients(), self.cluster.borrow().left) {
            tokio::select! {
                Ok(()) = self.cluster.changed() => {}
                () = sleep(POLL_EVERY) => {}
            }
            self.update_state();
        }
        info!(elapsed_ms = whole_ms(since.elapsed()), connections = self.threads.clients(), "drain finished");
        self.publish(|pod_state| pod_state.ended = true);
    }

    /// Puts new routes in force, unless they are invalid or unchanged.
    fn replace_routes(&self, read: Result<RouteTable, InvalidConfig>) {
        match read {
            Err(faults) => {
                error!(error = faults.0.join("; "), "SIGHUP: invalid routes; the current ones stay in force");
            }
            Ok(routes) if routes == **self.routes.load() => info!("SIGHUP: routes unchanged"),
            Ok(routes) => {
                info!(
                    routes = routes.routes.len(),
                    "SIGHUP: routes changed; they take effect with the next metadata refresh"
                );
                self.routes.store(Arc::new(routes));
            }
        }
    }

    /// Starts the drain: releases the slot, so that no more clients are sent here; the shards do the rest.
    fn start_drain(&mut self, signal: &str) -> Instant {
        let since = Instant::now();
        let DrainConfig { delay, over } = self.drain;
        let (delay_ms, drain_ms) = (whole_ms(delay), whole_ms(over));
        info!(signal, connections = self.threads.clients(), delay_ms, drain_ms, "drain started");
        self.intent.send_replace(Intent::Drain);
        self.readiness.send_modify(|readiness| readiness.draining = true);
        self.publish(|pod_state| {
            pod_state.draining_since = Some(since);
            // At once, not when discovery has released the slot: from now on this pod owns nothing.
            let others = pod_state.own_slot.take().map(|own| pod_state.view.without(own));
            if let Some(others) = others {
                pod_state.view = Arc::new(others);
            }
        });
        since
    }

    /// Combines the status of the parts, and publishes it on a change.
    fn update_state(&mut self) {
        let cluster = self.cluster.borrow_and_update().clone();
        let before = *self.readiness.borrow();
        let ingest = &self.threads.ingest;
        let now = Readiness {
            redis_up: cluster.redis_up,
            kafka_up: ingest.is_kafka_up(),
            missing: ingest.missing.load(Ordering::Relaxed),
            history_complete: ingest.history_complete.load(Ordering::Acquire),
            can_verify: self.verifier.is_ready(),
            own_slot: cluster.own_slot,
            had_slot: before.had_slot || cluster.own_slot.is_some(),
            draining: before.draining,
        };
        if now.may_serve() && !before.may_serve() {
            // Only forward: a pod that drains while it fills keeps draining.
            self.intent.send_modify(|intent| *intent = (*intent).max(Intent::Serve));
        }
        if now != before {
            self.log_readiness_change(before, now);
            self.readiness.send_replace(now);
        }
        // Other pods redirect clients here from the claim on, whether or not Kafka and Redis answer at this moment.
        self.publish_cluster(&cluster, now.may_serve() && now.own_slot.is_some() && !now.draining);
    }

    /// Publishes changes for the shards. `takes_clients`: the pod holds a slot and may serve.
    fn publish_cluster(&self, cluster: &ClusterState, takes_clients: bool) {
        let pod_state = self.pod_state.load();
        let draining = pod_state.draining_since.is_some();
        let own_slot = if draining { None } else { cluster.own_slot };
        // A view from before the drain still has this pod in it.
        let stale = draining && cluster.own_slot.is_some();
        let view_freshness =
            ViewFreshness { as_of: cluster.as_of, redis_up: cluster.redis_up, confirmed: cluster.confirmed };
        let same_view = stale
            || Arc::ptr_eq(&pod_state.view, &cluster.view)
                && pod_state.view_freshness == view_freshness
                && pod_state.silent == cluster.silent;
        let same_revocations = Arc::ptr_eq(&pod_state.revocations, &cluster.revocations);
        if same_view && same_revocations && pod_state.own_slot == own_slot && (pod_state.was_ready || !takes_clients) {
            return;
        }
        self.publish(|pod_state| {
            if !stale {
                pod_state.view = Arc::clone(&cluster.view);
                pod_state.view_freshness = view_freshness;
                pod_state.silent = Arc::clone(&cluster.silent);
            }
            pod_state.revocations = Arc::clone(&cluster.revocations);
            pod_state.own_slot = own_slot;
            pod_state.was_ready |= takes_clients;
        });
    }

    fn log_readiness_change(&mut self, before: Readiness, now: Readiness) {
        match (before.is_ready(), now.is_ready()) {
            (false, true) if std::mem::replace(&mut self.was_ready_logged, true) => {
                info!(elapsed_ms = self.wait.map(|wait| whole_ms(wait.since.elapsed())), "ready again");
            }
            (false, true) => info!(elapsed_ms = whole_ms(self.started.elapsed()), "ready"),
            (true, false) if !now.draining => warn!(waiting_for = now.waits_for().join(", "), "not ready"),
            _ => {}
        }
    }

    /// Logs every half minute what the pod waits for, so that an outage is visible in any part of the log.
    fn log_wait(&mut self, now: Instant) {
        let readiness = *self.readiness.borrow();
        if readiness.is_ready() {
            self.wait = None;
        } else if let Some(lasts) = self.wait.get_or_insert(NotReadyPeriod::begin(now)).log_due(now) {
            warn!(waiting_for = readiness.waits_for().join(", "), elapsed_ms = whole_ms(lasts), "still not ready");
        }
    }

    fn publish(&self, change: impl FnOnce(&mut PodState)) {
        let mut pod_state = PodState::clone(&self.pod_state.load());
        change(&mut pod_state);
        self.pod_state.store(Arc::new(pod_state));
        for handle in &self.shard_handles {
            handle.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::task::{Wake, Waker};

    use arc_swap::ArcSwap;

    use super::*;
    use crate::exchange::{ShardInbox, shard_channel};
    use crate::ids::{AssessmentHash, NodeId, SlotNumber};
    use crate::operations::log::Log;
    use crate::routing::placement::{Pod, View};

    struct TestControl {
        control: Control,
        cluster: watch::Sender<ClusterState>,
        intent: watch::Receiver<Intent>,
        readiness: watch::Receiver<Readiness>,
        inbox: ShardInbox,
    }

    fn bench() -> TestControl {
        let (handle, inbox) = shard_channel();
        let (intent, intent_seen) = watch::channel(Intent::Watch);
        let (cluster, cluster_seen) = watch::channel(ClusterState::default());
        let (readiness, readiness_seen) = watch::channel(Readiness::default());
        let control = Control {
            pod_state: PublishedPodState::default(),
            shard_handles: vec![handle],
            threads: Threads { ingest: Arc::default(), shards: vec![Arc::default()] },
            intent,
            cluster: cluster_seen,
            readiness,
            routes: PublishedRoutes::new(ArcSwap::from_pointee(RouteTable::built_in())),
            verifier: Verifier::of_secret(b"secret"),
            reload: watch::channel(0).0,
            drain: DrainConfig { delay: Duration::ZERO, over: Duration::ZERO },
            log_level: Arc::new(LogLevel::new(tracing::Level::INFO, |_| {})),
            started: Instant::now(),
            was_ready_logged: false,
            wait: None,
        };
        TestControl { control, cluster, intent: intent_seen, readiness: readiness_seen, inbox }
    }

    impl TestControl {
        fn fill(&self) {
            self.control.threads.ingest.kafka_up.store(true, Ordering::Release);
            self.control.threads.ingest.history_complete.store(true, Ordering::Release);
        }

        fn join(&self) {
            let pod = |name: &str| Some(Pod { node: NodeId(name.into()), url: "ws://pod/ws".into() });
            let view = Arc::new(View { version: 2, slots: vec![pod("a"), pod("b")] });
            self.cluster.send_replace(ClusterState {
                redis_up: true,
                view,
                confirmed: true,
                own_slot: Some(SlotNumber(0)),
                ..ClusterState::default()
            });
        }

        fn pod_state(&self) -> Arc<PodState> {
            self.control.pod_state.load_full()
        }

        /// Updates the state; returns whether the shard was woken.
        fn update_wakes(&mut self) -> bool {
            struct Woken(AtomicBool);
            impl Wake for Woken {
                fn wake(self: Arc<Self>) {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
            let woken = Arc::new(Woken(AtomicBool::new(false)));
            self.inbox.waker.register(&Waker::from(Arc::clone(&woken)));
            self.control.update_state();
            woken.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn a_pod_that_is_not_ready_logs_every_half_minute_what_it_waits_for() {
        let mut bench = bench();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut wait = NotReadyPeriod::begin(start);
        let logged = (0..=100).filter_map(|second| wait.log_due(at(second)));
        assert_eq!(logged.collect::<Vec<_>>(), [30, 60, 90].map(Duration::from_secs));

        bench.control.update_state();
        bench.control.log_wait(at(1));
        bench.control.log_wait(at(50));
        assert!(bench.control.wait.is_some_and(|wait| (wait.since, wait.logged) == (at(1), at(50))));
        bench.fill();
        bench.join();
        bench.control.update_state();
        bench.control.log_wait(at(51));
        assert!(bench.control.wait.is_none());
    }

    #[test]
    fn a_slot_is_claimed_once_the_history_is_complete() {
        let mut bench = bench();
        bench.control.update_state();
        assert_eq!(*bench.intent.borrow(), Intent::Watch);
        bench.fill();
        bench.control.update_state();
        assert_eq!(*bench.intent.borrow(), Intent::Serve);
        assert!(!bench.readiness.borrow().is_ready(), "the pod has no slot yet");
    }

    #[test]
    fn a_pod_stays_marked_as_once_ready() {
        let mut bench = bench();
        bench.fill();
        bench.join();
        bench.control.update_state();
        assert!(bench.readiness.borrow().is_ready() && bench.pod_state().was_ready);
        assert_eq!(bench.pod_state().own_slot, Some(SlotNumber(0)));

        bench.control.threads.ingest.kafka_up.store(false, Ordering::Release);
        bench.control.update_state();
        assert!(!bench.readiness.borrow().is_ready() && bench.pod_state().was_ready);
    }

    #[test]
    fn a_pod_accepts_clients_once_it_holds_a_slot_even_without_kafka_or_redis() {
        for fails in ["kafka", "redis"] {
            let mut bench = bench();
            bench.fill();
            bench.control.update_state();
            assert!(!bench.pod_state().was_ready, "no client is sent here yet");
            bench.join();
            match fails {
                "kafka" => bench.control.threads.ingest.kafka_up.store(false, Ordering::Release),
                _ => bench.cluster.send_modify(|cluster| cluster.redis_up = false),
            }
            bench.control.update_state();
            assert!(!bench.readiness.borrow().is_ready() && bench.pod_state().was_ready, "{fails} fails");
        }
        let mut drains = bench();
        drains.control.start_drain("SIGTERM");
        drains.fill();
        drains.join();
        drains.control.update_state();
        assert!(!drains.pod_state().was_ready, "a pod that drains before it was ready accepts no client");
    }

    #[test]
    fn a_draining_pod_owns_nothing_from_the_signal_on() {
        let mut bench = bench();
        bench.fill();
        bench.join();
        bench.control.update_state();
        bench.control.start_drain("SIGTERM");
        for _ in 0..2 {
            let pod_state = bench.pod_state();
            assert!(pod_state.draining_since.is_some());
            assert_eq!(pod_state.own_slot, None);
            let live: Vec<_> = pod_state.view.live().map(|(slot, _)| slot).collect();
            assert_eq!(live, [SlotNumber(1)]);
            assert!(
                matches!(pod_state.owner(AssessmentHash(7)), crate::exchange::Owner::OtherPod(pod) if &*pod.node.0 == "b")
            );
            // Discovery does not know of the drain yet.
            bench.control.update_state();
        }
        assert_eq!(*bench.intent.borrow(), Intent::Drain);
        assert!(bench.readiness.borrow().draining);
    }

    #[test]
    fn a_pod_that_drains_while_it_fills_claims_no_slot() {
        let mut bench = bench();
        bench.control.start_drain("SIGINT");
        bench.fill();
        bench.control.update_state();
        assert_eq!(*bench.intent.borrow(), Intent::Drain);
    }

    #[test]
    fn shards_are_woken_only_for_changes() {
        let mut bench = bench();
        bench.control.update_state();
        assert!(!bench.update_wakes());
        bench.join();
        assert!(bench.update_wakes(), "there is a view");
        assert!(!bench.update_wakes());
        bench.fill();
        assert!(bench.update_wakes(), "the pod is ready for the first time");
        bench.control.threads.ingest.kafka_up.store(false, Ordering::Release);
        assert!(!bench.update_wakes(), "it has been ready, whatever fails later");

        let as_of = Some(Instant::now());
        bench.cluster.send_modify(|cluster| cluster.as_of = as_of);
        assert!(bench.update_wakes(), "a redirect may wait for a fresh view");
        assert_eq!(bench.pod_state().view_freshness, ViewFreshness { as_of, redis_up: true, confirmed: true });
        bench.cluster.send_modify(|cluster| (cluster.redis_up, cluster.confirmed) = (false, false));
        assert!(bench.update_wakes(), "or for Redis to be down");
        assert_eq!(bench.pod_state().view_freshness, ViewFreshness { as_of, redis_up: false, confirmed: false });
    }

    #[tokio::test]
    async fn a_drained_pod_publishes_its_end() {
        let bench = bench();
        let pod_state = Arc::clone(&bench.control.pod_state);
        let cluster = bench.cluster;
        let signals = Signals::listen().unwrap();
        let process =
            ProcessHandles { log: Log::start().unwrap(), read_routes: Box::new(|| Ok(RouteTable::built_in())) };
        // SAFETY: raise takes any signal, and this one has a handler now.
        unsafe { libc::raise(libc::SIGTERM) };
        cluster.send_modify(|cluster| cluster.left = true);
        bench.control.run(signals, &process).await;
        assert!(pod_state.load().ended && pod_state.load().draining_since.is_some());
    }
}
