//! What the threads hand each other: bounded channels with a bell, published state, and pulses. It owns the types where
//! `ingest`, `shard`, `discovery` and `operations` meet, so that none of them needs to know another.

mod batches;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::Notify;

pub use batches::BatchReceiver;
use batches::{BatchSender, batch_channel};

use crate::clock::whole_ms;
use crate::ids::{AssessmentHash, SlotNumber};
use crate::limits::{HANDOFF_CHANNEL_DEPTH, VIEW_AGE_MAX};
use crate::protocol::auth::Grant;
use crate::protocol::head::Upgrade;
use crate::routing::placement::{Pod, View};
use crate::routing::table::RouteTable;
use crate::stream::batch::Batch;

// ---- to a shard -----------------------------------------------------------------------------------------------------

/// A shard's way in, for the other threads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ShardHandle {
    batches: BatchSender,
    handoffs: Sender<Handoff>,
    waker: Arc<AtomicWaker>,
    ends_requested: Arc<AtomicBool>,
}

/// A shard's own side of its door.
#[derive(Debug)]
pub struct ShardInbox {
    /// Records from ingest.
    pub batches: BatchReceiver,
    /// Sockets that another shard accepted.
    pub handoffs: Receiver<Handoff>,
    /// Registered before the channels are looked at, so that no ring is lost; one ring a registration, whoever rings.
    pub waker: Arc<AtomicWaker>,
    ends_requested: Arc<AtomicBool>,
}

/// A socket whose request was read, on its way to the shard that owns its assessment.
#[derive(Debug)]
pub struct Handoff {
    /// The accepted socket.
    pub socket: OwnedFd,
    /// Who comes.
    pub request: Box<AuthenticatedUpgrade>,
}

/// A client with a good token, not yet judged further.
#[derive(Debug)]
pub struct AuthenticatedUpgrade {
    /// What it asked for.
    pub upgrade: Upgrade,
    /// What its token grants.
    pub grant: Grant,
    /// Bytes that came right behind the head.
    pub rest: Vec<u8>,
}

/// Makes a shard's door and inbox.
#[must_use]
pub fn shard_channel() -> (ShardHandle, ShardInbox) {
    let (batches, batches_in) = batch_channel();
    let (handoffs, handoffs_in) = bounded(HANDOFF_CHANNEL_DEPTH);
    let waker = Arc::new(AtomicWaker::new());
    let ends_requested = Arc::new(AtomicBool::new(false));
    (
        ShardHandle { batches, handoffs, waker: Arc::clone(&waker), ends_requested: Arc::clone(&ends_requested) },
        ShardInbox { batches: batches_in, handoffs: handoffs_in, waker, ends_requested },
    )
}

impl ShardHandle {
    /// Hands over a batch and rings; waits while the channel is full, for at most about `timeout`.
    ///
    /// # Errors
    /// The batch comes back, where the channel stayed full or the shard has ended.
    pub fn send_batch(&self, batch: Batch, timeout: Duration) -> Result<(), Undelivered> {
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

    /// Whether the shard wants to be told the ends of the partitions' logs: once for each time that it said so.
    #[must_use]
    pub fn take_ends_request(&self) -> bool {
        // A look alone most of the time, which leaves the line of memory to the shard.
        self.ends_requested.load(Ordering::Relaxed) && self.ends_requested.swap(false, Ordering::Relaxed)
    }

    /// Hands over a socket and rings.
    ///
    /// # Errors
    /// The hand-off comes back where the channel is full or the shard has ended: the client is to be refused.
    pub fn try_handoff(&self, handoff: Handoff) -> Result<(), Handoff> {
        self.handoffs.try_send(handoff).map_err(TrySendError::into_inner)?;
        self.waker.wake();
        Ok(())
    }

    /// Rings: something that the shard looks at in each turn has changed.
    pub fn wake(&self) {
        self.waker.wake();
    }
}

impl ShardInbox {
    /// Makes ingest tell the shard the ends of the partitions' logs as it learns of them next, within some seconds,
    /// once: [`Batch::ends`]. Whoever needs ends that were asked for later, or those of other partitions, says so
    /// again when these have come. Without it nothing is told: an idle pod stays idle.
    pub fn request_ends(&self) {
        self.ends_requested.store(true, Ordering::Relaxed);
    }
}

/// A batch that a shard did not take.
#[derive(Debug)]
pub enum Undelivered {
    /// The shard is behind: try again.
    Full(Box<Batch>),
    /// The shard has ended.
    Ended,
}

// ---- from the control thread to all -----------------------------------------------------------------------------------

/// Where this pod stands in the cluster and in its life. The control thread publishes it; everyone reads the newest.
#[derive(Debug, Clone, Default)]
pub struct PodState {
    /// The live slots.
    pub view: Arc<View>,
    /// How sure the view is.
    pub view_freshness: ViewFreshness,
    /// The slot of this pod, while it holds one.
    pub own: Option<SlotNumber>,
    /// Whether this pod was ready at some time, but for what `/ready` also asks of Kafka and Redis at that moment: since
    /// it first held a slot, with a full history. From then on it takes clients, whatever fails later.
    pub was_ready: bool,
    /// Since when it drains.
    pub draining_since: Option<Instant>,
    /// All is over: whoever reads this ends.
    pub ended: bool,
}

/// How sure a view is: of a time, and of whether a surer one is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ViewFreshness {
    /// When the newest look at Redis that was answered had been sent: the view is the state as of then, or later. `None`
    /// before the first.
    pub as_of: Option<Instant>,
    /// Whether Redis is reached. Where it isn't, the last view stays in force: there is no surer one.
    pub redis_up: bool,
    /// Whether each pod of the view had to show itself since Redis was last away: it is reached, and has been for a lease.
    /// Where this isn't so, a pod in the view may be long gone.
    pub confirmed: bool,
}

impl ViewFreshness {
    /// Whether a client that is to be sent away since `wanted` may be: by a look that was at most [`VIEW_AGE_MAX`] old
    /// then, or else without Redis, by the last view. By the age at that time, not by that of now: where an answer takes
    /// longer than that, no look would ever be young enough.
    #[must_use]
    pub fn is_fresh_for(&self, wanted: Instant) -> bool {
        let is_young = |as_of| wanted.saturating_duration_since(as_of) <= VIEW_AGE_MAX;
        !self.redis_up || self.as_of.is_some_and(is_young)
    }
}

/// Who is to serve an assessment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner<'a> {
    /// This pod.
    ThisPod,
    /// Another.
    OtherPod(&'a Pod),
    /// No pod is known to live: the one that is asked serves, unless it drains.
    NoPod,
}

impl PodState {
    /// Who serves an assessment.
    #[must_use]
    pub fn owner(&self, hash: AssessmentHash) -> Owner<'_> {
        let Some(slot) = self.view.owner(hash) else {
            return Owner::NoPod;
        };
        if Some(slot) == self.own {
            return Owner::ThisPod;
        }
        self.view.pod(slot).map_or(Owner::NoPod, Owner::OtherPod)
    }
}

/// The newest [`PodState`], read without a lock.
pub type PublishedPodState = Arc<ArcSwap<PodState>>;

/// The routes in force. The control thread replaces them whole; ingest goes by the newest from its next look at the topics
/// on, and tells the shards what that changes, in the order of the records.
pub type PublishedRoutes = Arc<ArcSwap<RouteTable>>;

/// Asks discovery for a look at Redis, from any thread. It keeps one wish until it is seen to, however many wish: one look
/// is for all of them. The standing tells when it is done.
pub type RefreshRequest = Arc<Notify>;

// ---- from all to the control thread -----------------------------------------------------------------------------------

/// An operator's request that a shard has accepted: the socket with what was read of it. The control thread answers.
#[derive(Debug)]
pub struct HttpRequest {
    /// The accepted socket.
    pub socket: OwnedFd,
    /// The head, and what came behind it.
    pub read: Vec<u8>,
}

/// The control thread's way in for operators' requests.
pub type HttpSender = tokio::sync::mpsc::Sender<HttpRequest>;

/// What ingest shows of itself.
#[derive(Debug, Default)]
pub struct IngestStatus {
    /// Whether the brokers answer.
    pub kafka_up: AtomicBool,
    /// Whether the client that reads gives nothing, although the brokers say that there is something; a new one counts as
    /// such until it gives something.
    pub reader_stalled: AtomicBool,
    /// How many partitions the pod started without, and that can't be read yet.
    pub missing: AtomicU64,
    /// Whether the history was filled to the partitions' ends as they were at the start. Never goes back.
    pub filled: AtomicBool,
    /// That its loop turns.
    pub liveness: Liveness,
    /// That the loop of its second thread turns, which asks Kafka what there is.
    pub watcher_liveness: Liveness,
}

impl IngestStatus {
    /// Whether the brokers answer, and what is there is read.
    #[must_use]
    pub fn is_kafka_up(&self) -> bool {
        self.kafka_up.load(Ordering::Acquire) && !self.reader_stalled.load(Ordering::Acquire)
    }
}

/// What a shard shows of itself.
#[derive(Debug, Default)]
pub struct ShardStatus {
    /// Clients that are connected, market data's included.
    pub clients: AtomicU64,
    /// That its loop turns.
    pub liveness: Liveness,
}

/// Shows that a thread's loop turns.
#[derive(Debug)]
pub struct Liveness {
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
    pub fn turn_ended(&self, now: Instant) {
        self.refresh(now);
        // One thread beats.
        self.turns.store(self.turns() + 1, Ordering::Relaxed);
    }

    /// Within a turn that is long.
    pub fn refresh(&self, now: Instant) {
        self.alive_ms.store(self.ms(now), Ordering::Relaxed);
    }

    /// How many turns there were.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// How long ago the last sign of it was.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
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
