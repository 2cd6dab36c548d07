//! The types by which threads communicate: bounded channels with a wake-up, published state, and liveness counters.
//! `ingest`, `shard`, `discovery` and `operations` meet only here, so that none of them imports another.

mod batches;
mod operators;
mod revoke;
mod token_checks;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::Notify;

pub(crate) use batches::BatchReceiver;
use batches::{BatchSender, batch_channel};
pub(crate) use operators::{ConnectionFilter, ConnectionRow, FleetChannels, Publication, ShardRequest};
pub(crate) use revoke::{RevokeRequest, RevokeSender, Spread};
pub(crate) use token_checks::{Busy, TokenCheck, TokenChecks};

use crate::clock::whole_ms;
use crate::ids::{AssessmentHash, NodeId, SlotNumber};
use crate::limits::{HANDOFF_CHANNEL_DEPTH, SHARD_REQUESTS_MAX, VIEW_AGE_MAX};
use crate::protocol::auth::{Grant, RevocationSet};
use crate::protocol::head::Upgrade;
use crate::routing::placement::{Pod, View};
use crate::routing::table::RouteTable;
use crate::stream::batch::Batch;

// ---- to a shard -----------------------------------------------------------------------------------------------------

/// The other threads' handle to a shard. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ShardHandle {
    batches: BatchSender,
    handoffs: Sender<Handoff>,
    requests: Sender<ShardRequest>,
    waker: Arc<AtomicWaker>,
    ends_requested: Arc<AtomicBool>,
    busy_ns: Arc<AtomicU64>,
}

/// The shard's receiving side.
#[derive(Debug)]
pub(crate) struct ShardInbox {
    /// Records from ingest.
    pub(crate) batches: BatchReceiver,
    /// Sockets that another shard accepted.
    pub(crate) handoffs: Receiver<Handoff>,
    /// Requests of operators.
    pub(crate) requests: Receiver<ShardRequest>,
    /// Registered before the channels are checked, so that no wake-up is lost. One wake-up per registration, whichever
    /// thread sends it.
    pub(crate) waker: Arc<AtomicWaker>,
    ends_requested: Arc<AtomicBool>,
    busy_ns: Arc<AtomicU64>,
}

/// A socket whose request was read, on its way to the shard that owns its assessment.
#[derive(Debug)]
pub(crate) struct Handoff {
    /// The accepted socket.
    pub(crate) socket: OwnedFd,
    /// The client and its request.
    pub(crate) request: Box<AuthenticatedUpgrade>,
}

/// A client whose token was verified; its request is not yet judged further.
#[derive(Debug)]
pub(crate) struct AuthenticatedUpgrade {
    /// What it asked for.
    pub(crate) upgrade: Upgrade,
    /// What its token grants.
    pub(crate) grant: Grant,
    /// Bytes that came right behind the head.
    pub(crate) rest: Vec<u8>,
}

/// Makes a shard's door and inbox.
#[must_use]
pub(crate) fn shard_channel() -> (ShardHandle, ShardInbox) {
    let (batches, batches_in) = batch_channel();
    let (handoffs, handoffs_in) = bounded(HANDOFF_CHANNEL_DEPTH);
    let (requests, requests_in) = bounded(SHARD_REQUESTS_MAX);
    let waker = Arc::new(AtomicWaker::new());
    let (ends_requested, busy_ns) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let handle = ShardHandle {
        batches,
        handoffs,
        requests,
        waker: Arc::clone(&waker),
        ends_requested: Arc::clone(&ends_requested),
        busy_ns: Arc::clone(&busy_ns),
    };
    let inbox = ShardInbox {
        batches: batches_in,
        handoffs: handoffs_in,
        requests: requests_in,
        waker,
        ends_requested,
        busy_ns,
    };
    (handle, inbox)
}

impl ShardHandle {
    /// Sends a batch and wakes the shard. Waits up to about `timeout` while the channel is full.
    ///
    /// # Errors
    /// The batch comes back, where the channel stayed full or the shard has ended.
    pub(crate) fn send_batch(&self, batch: Batch, timeout: Duration) -> Result<(), Undelivered> {
        match self.batches.try_send(batch) {
            Err(Undelivered::Full(batch)) => {
                self.waker.wake();
                self.batches.send(*batch, timeout)?;
            }
            sent => sent?,
        }
        self.waker.wake();
        Ok(())
    }

    /// Takes the shard's request for the partitions' end offsets; `true` once per request.
    #[must_use]
    pub(crate) fn take_ends_request(&self) -> bool {
        // Almost always a plain load, which leaves the cache line with the shard.
        self.ends_requested.load(Ordering::Relaxed) && self.ends_requested.swap(false, Ordering::Relaxed)
    }

    /// The sum of the shard's turns so far.
    #[must_use]
    pub(crate) fn busy_time(&self) -> Duration {
        Duration::from_nanos(self.busy_ns.load(Ordering::Relaxed))
    }

    /// Hands over a socket and rings.
    ///
    /// # Errors
    /// The hand-off comes back where the channel is full or the shard has ended: the client is to be refused.
    pub(crate) fn try_handoff(&self, handoff: Handoff) -> Result<(), Handoff> {
        self.handoffs.try_send(handoff).map_err(TrySendError::into_inner)?;
        self.waker.wake();
        Ok(())
    }

    /// Passes on an operator's request, and wakes the shard.
    ///
    /// # Errors
    /// The request comes back if the channel is full or the shard has ended.
    pub(crate) fn try_request(&self, request: ShardRequest) -> Result<(), ShardRequest> {
        self.requests.try_send(request).map_err(TrySendError::into_inner)?;
        self.waker.wake();
        Ok(())
    }

    /// Wakes the shard: something that it checks every turn has changed.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }
}

impl ShardInbox {
    /// Reports the length of a turn.
    pub(crate) fn add_busy_time(&self, turn: Duration) {
        let nanos = u64::try_from(turn.as_nanos()).unwrap_or(u64::MAX);
        self.busy_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Requests the partitions' end offsets from ingest, once, within some seconds ([`Batch::ends`]). A shard that
    /// needs later ends, or those of other partitions, requests again after these arrive. Without a request nothing is
    /// sent, so an idle pod stays idle.
    pub(crate) fn request_ends(&self) {
        self.ends_requested.store(true, Ordering::Relaxed);
    }
}

/// A batch that a shard did not take.
#[derive(Debug)]
pub(crate) enum Undelivered {
    /// The shard is behind: try again.
    Full(Box<Batch>),
    /// The shard has ended.
    Ended,
}

// ---- from the control thread to all -------------------------------------------------------------------------------

/// This pod's state in the cluster and in its lifecycle. The control thread publishes it; all threads read the newest.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodState {
    /// The live slots.
    pub(crate) view: Arc<View>,
    /// How current the view is.
    pub(crate) view_freshness: ViewFreshness,
    /// Pods that did not answer when this pod looked at them last, gone or not yet.
    pub(crate) silent: Arc<[NodeId]>,
    /// Tokens that operators have revoked.
    pub(crate) revocations: Arc<RevocationSet>,
    /// The slot of this pod, while it holds one.
    pub(crate) own_slot: Option<SlotNumber>,
    /// Whether this pod was ready at some time, but for what `/ready` also asks of Kafka and Redis at that moment:
    /// since it first held a slot, with a full history. From then on it takes clients, whatever fails later.
    pub(crate) was_ready: bool,
    /// The start of the drain, if it drains.
    pub(crate) draining_since: Option<Instant>,
    /// The pod has ended: each thread that reads this ends, too.
    pub(crate) ended: bool,
}

/// How current a view is, and whether a newer one is available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ViewFreshness {
    /// When the newest answered call to Redis was sent: the view is at least as recent. `None` before the first answer.
    pub(crate) as_of: Option<Instant>,
    /// Whether Redis answers. If it does not, the last known view stays in force.
    pub(crate) redis_up: bool,
    /// Whether every pod in the view has renewed its lease since the last outage of Redis: Redis has been up for a
    /// whole lease. If not, a pod in the view may be gone.
    pub(crate) confirmed: bool,
}

impl ViewFreshness {
    /// Whether a redirect requested at `wanted` may use this view: it was at most [`VIEW_AGE_MAX`] old at that time, or
    /// Redis is down. The age counts at `wanted`, not now: if answers take longer than the limit, no view would ever be
    /// fresh enough.
    #[must_use]
    pub(crate) fn is_fresh_for(&self, wanted: Instant) -> bool {
        let is_young = |as_of| wanted.saturating_duration_since(as_of) <= VIEW_AGE_MAX;
        !self.redis_up || self.as_of.is_some_and(is_young)
    }

    /// Whether this view was read at `time` or later, or Redis is down.
    #[must_use]
    pub(crate) fn is_as_of(&self, time: Instant) -> bool {
        !self.redis_up || self.as_of.is_some_and(|as_of| as_of >= time)
    }
}

/// Who is to serve an assessment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner<'a> {
    /// This pod.
    ThisPod,
    /// Another pod.
    OtherPod(&'a Pod),
    /// The view has no live pod: the pod that was asked serves, unless it drains.
    Vacant,
}

impl PodState {
    /// Who serves an assessment.
    #[must_use]
    pub(crate) fn owner(&self, hash: AssessmentHash) -> Owner<'_> {
        let Some(slot) = self.view.owner(hash) else {
            return Owner::Vacant;
        };
        if Some(slot) == self.own_slot {
            return Owner::ThisPod;
        }
        self.view.pod(slot).map_or(Owner::Vacant, Owner::OtherPod)
    }

    /// Whether a pod did not answer when this pod looked at it last.
    #[must_use]
    pub(crate) fn is_silent(&self, node: &NodeId) -> bool {
        self.silent.contains(node)
    }
}

/// The newest [`PodState`], read without a lock.
pub(crate) type PublishedPodState = Arc<ArcSwap<PodState>>;

/// The routes in force. The control thread replaces them whole; ingest goes by the newest from its next look at the
/// topics on, and tells the shards what that changes, in the order of the records.
pub(crate) type PublishedRoutes = Arc<ArcSwap<RouteTable>>;

/// Requests a refresh of the view from any thread. Requests are merged until discovery takes one. The published pod
/// state shows the result.
pub(crate) type RefreshRequest = Arc<Notify>;

// ---- from all to the control thread -------------------------------------------------------------------------------

/// An operator's request that a shard has accepted: the socket with what was read of it. The control thread answers.
#[derive(Debug)]
pub(crate) struct HttpRequest {
    /// The accepted socket.
    pub(crate) socket: OwnedFd,
    /// The head, and what came behind it.
    pub(crate) read: Vec<u8>,
}

/// The control thread's way in for operators' requests.
pub(crate) type HttpSender = tokio::sync::mpsc::Sender<HttpRequest>;

/// What ingest reports to the control thread and to operators.
#[derive(Debug, Default)]
pub(crate) struct IngestStatus {
    /// Whether the brokers answer.
    pub(crate) kafka_up: AtomicBool,
    /// Whether the consuming client delivers nothing although the brokers have records. Also true for a new client
    /// until it delivers something.
    pub(crate) reader_stalled: AtomicBool,
    /// How many partitions the pod started without, and that can't be read yet.
    pub(crate) missing: AtomicU64,
    /// The first of them, as `topic:partition`.
    pub(crate) missing_names: ArcSwap<Vec<Box<str>>>,
    /// Whether the history was filled to the partitions' ends as they were at the start. Never goes back.
    pub(crate) history_complete: AtomicBool,
    /// That its loop turns.
    pub(crate) liveness: Liveness,
    /// That the loop of its second thread turns, which asks Kafka what there is.
    pub(crate) watcher_liveness: Liveness,
}

impl IngestStatus {
    /// Whether the brokers answer, and what is there is read.
    #[must_use]
    pub(crate) fn is_kafka_up(&self) -> bool {
        self.kafka_up.load(Ordering::Acquire) && !self.reader_stalled.load(Ordering::Acquire)
    }
}

/// What a shard shows of itself.
#[derive(Debug, Default)]
pub(crate) struct ShardStatus {
    /// Clients that are connected, market data's included.
    pub(crate) clients: AtomicU64,
    /// That its loop turns.
    pub(crate) liveness: Liveness,
}

/// A liveness counter: shows that a thread's loop makes turns.
#[derive(Debug)]
pub(crate) struct Liveness {
    start: Instant,
    alive_ms: AtomicU64,
    turns: AtomicU64,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { start: Instant::now(), alive_ms: AtomicU64::new(0), turns: AtomicU64::new(0) }
    }
}

impl Liveness {
    /// Once a turn.
    pub(crate) fn turn_ended(&self, now: Instant) {
        self.refresh(now);
        // One thread beats.
        self.turns.store(self.turns() + 1, Ordering::Relaxed);
    }

    /// Within a turn that is long.
    pub(crate) fn refresh(&self, now: Instant) {
        self.alive_ms.store(self.ms(now), Ordering::Relaxed);
    }

    /// How many turns there were.
    #[must_use]
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// How long ago the last sign of it was.
    #[must_use]
    pub(crate) fn age(&self, now: Instant) -> Duration {
        Duration::from_millis(self.ms(now).saturating_sub(self.alive_ms.load(Ordering::Relaxed)))
    }

    fn ms(&self, now: Instant) -> u64 {
        whole_ms(now.saturating_duration_since(self.start))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    use super::*;

    /// Counts how often it is woken: each is a write to another thread's eventfd, and that thread's start.
    #[derive(Default)]
    struct Sleeper(AtomicUsize);

    impl Wake for Sleeper {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_idle_shard_is_woken_once_per_wait_and_a_busy_one_never() {
        let (handle, inbox) = shard_channel();
        let sleeper = Arc::new(Sleeper::default());
        let woken = || sleeper.0.load(Ordering::Relaxed);
        let send = || handle.send_batch(Batch::default(), Duration::ZERO).expect("there is room");
        for rests in 1..=3 {
            inbox.waker.register(&Waker::from(Arc::clone(&sleeper)));
            assert_eq!(woken(), rests - 1, "who lies down is not woken by what came before");
            for _ in 0..10 {
                send();
            }
            assert_eq!(woken(), rests);
            while inbox.batches.try_recv().is_ok() {}
            send();
            assert_eq!(woken(), rests, "it is at work");
        }
    }

    #[test]
    fn a_view_is_fresh_if_it_was_fresh_when_wanted_or_redis_is_down() {
        let as_of = Instant::now();
        let after = |ms| as_of + Duration::from_millis(ms);
        let view_freshness = ViewFreshness { as_of: Some(as_of), redis_up: true, confirmed: true };
        assert!(view_freshness.is_fresh_for(after(0)) && view_freshness.is_fresh_for(after(100)));
        assert!(!view_freshness.is_fresh_for(after(101)));
        let slow = ViewFreshness { as_of: Some(after(500)), ..view_freshness };
        assert!(slow.is_fresh_for(after(499)), "it was sent after it was wanted, whenever the answer came");
        assert!(!ViewFreshness { as_of: None, ..view_freshness }.is_fresh_for(as_of));
        assert!(
            ViewFreshness { redis_up: false, ..view_freshness }.is_fresh_for(after(1_000_000)),
            "the last view is in force"
        );
    }
}
