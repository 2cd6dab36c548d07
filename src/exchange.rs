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
use crate::limits::{HANDOFF_CHANNEL_DEPTH, LOOK_AGE_MAX};
use crate::protocol::auth::Grant;
use crate::protocol::head::Upgrade;
use crate::routing::placement::{Pod, View};
use crate::routing::table::Table;
use crate::stream::batch::Batch;

// ---- to a shard -----------------------------------------------------------------------------------------------------

/// A shard's way in, for the other threads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ShardDoor {
    batches: BatchSender,
    handoffs: Sender<Handoff>,
    bell: Arc<AtomicWaker>,
    wants_ends: Arc<AtomicBool>,
}

/// A shard's own side of its door.
#[derive(Debug)]
pub struct ShardInbox {
    /// Records from ingest.
    pub batches: BatchReceiver,
    /// Sockets that another shard accepted.
    pub handoffs: Receiver<Handoff>,
    /// Registered before the channels are looked at, so that no ring is lost; one ring a registration, whoever rings.
    pub bell: Arc<AtomicWaker>,
    wants_ends: Arc<AtomicBool>,
}

/// A socket whose request was read, on its way to the shard that owns its assessment.
#[derive(Debug)]
pub struct Handoff {
    /// The accepted socket.
    pub socket: OwnedFd,
    /// Who comes.
    pub newcomer: Box<Newcomer>,
}

/// A client with a good token, not yet judged further.
#[derive(Debug)]
pub struct Newcomer {
    /// What it asked for.
    pub upgrade: Upgrade,
    /// What its token grants.
    pub grant: Grant,
    /// Bytes that came right behind the head.
    pub rest: Vec<u8>,
}

/// Makes a shard's door and inbox.
#[must_use]
pub fn shard_door() -> (ShardDoor, ShardInbox) {
    let (batches, batches_in) = batch_channel();
    let (handoffs, handoffs_in) = bounded(HANDOFF_CHANNEL_DEPTH);
    let bell = Arc::new(AtomicWaker::new());
    let wants_ends = Arc::new(AtomicBool::new(false));
    (
        ShardDoor { batches, handoffs, bell: Arc::clone(&bell), wants_ends: Arc::clone(&wants_ends) },
        ShardInbox { batches: batches_in, handoffs: handoffs_in, bell, wants_ends },
    )
}

impl ShardDoor {
    /// Hands over a batch and rings; waits while the channel is full, for at most about `timeout`.
    ///
    /// # Errors
    /// The batch comes back, where the channel stayed full or the shard has ended.
    pub fn send_batch(&self, batch: Batch, timeout: Duration) -> Result<(), Undelivered> {
        match self.batches.try_send(batch) {
            Err(Undelivered::Full(batch)) => {
                self.bell.wake();
                self.batches.send(*batch, timeout)?;
            }
            sent => sent?,
        }
        self.bell.wake();
        Ok(())
    }

    /// Whether the shard wants to be told the ends of the partitions' logs: once for each time that it said so.
    #[must_use]
    pub fn take_wish_for_ends(&self) -> bool {
        // A look alone most of the time, which leaves the line of memory to the shard.
        self.wants_ends.load(Ordering::Relaxed) && self.wants_ends.swap(false, Ordering::Relaxed)
    }

    /// Hands over a socket and rings.
    ///
    /// # Errors
    /// The hand-off comes back where the channel is full or the shard has ended: the client is to be refused.
    pub fn try_handoff(&self, handoff: Handoff) -> Result<(), Handoff> {
        self.handoffs.try_send(handoff).map_err(TrySendError::into_inner)?;
        self.bell.wake();
        Ok(())
    }

    /// Rings: something that the shard looks at in each turn has changed.
    pub fn ring(&self) {
        self.bell.wake();
    }
}

impl ShardInbox {
    /// Makes ingest tell the shard the ends of the partitions' logs as it learns of them next, within some seconds,
    /// once: [`Batch::ends`]. Whoever needs ends that were asked for later, or those of other partitions, says so
    /// again when these have come. Without it nothing is told: an idle pod stays idle.
    pub fn want_ends(&self) {
        self.wants_ends.store(true, Ordering::Relaxed);
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
pub struct Standing {
    /// The live slots.
    pub view: Arc<View>,
    /// How sure the view is.
    pub sight: Sight,
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
pub struct Sight {
    /// When the newest look at Redis that was answered had been sent: the view is the state as of then, or later. `None`
    /// before the first.
    pub looked: Option<Instant>,
    /// Whether Redis is reached. Where it isn't, the last view stays in force: there is no surer one.
    pub reached: bool,
    /// Whether each pod of the view had to show itself since Redis was last away: it is reached, and has been for a lease.
    /// Where this isn't so, a pod in the view may be long gone.
    pub proven: bool,
}

impl Sight {
    /// Whether a client that is to be sent away since `wanted` may be: by a look that was at most [`LOOK_AGE_MAX`] old
    /// then, or else without Redis, by the last view. By the age at that time, not by that of now: where an answer takes
    /// longer than that, no look would ever be young enough.
    #[must_use]
    pub fn is_sure(&self, wanted: Instant) -> bool {
        let is_young = |looked| wanted.saturating_duration_since(looked) <= LOOK_AGE_MAX;
        !self.reached || self.looked.is_some_and(is_young)
    }
}

/// Who is to serve an assessment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner<'a> {
    /// This pod.
    Here,
    /// Another.
    Elsewhere(&'a Pod),
    /// No pod is known to live: the one that is asked serves, unless it drains.
    Nobody,
}

impl Standing {
    /// Who serves an assessment.
    #[must_use]
    pub fn owner(&self, hash: AssessmentHash) -> Owner<'_> {
        let Some(slot) = self.view.owner(hash) else {
            return Owner::Nobody;
        };
        if Some(slot) == self.own {
            return Owner::Here;
        }
        self.view.pod(slot).map_or(Owner::Nobody, Owner::Elsewhere)
    }
}

/// The newest [`Standing`], read without a lock.
pub type PublishedStanding = Arc<ArcSwap<Standing>>;

/// The routes in force. The control thread replaces them whole; ingest goes by the newest from its next look at the topics
/// on, and tells the shards what that changes, in the order of the records.
pub type PublishedRoutes = Arc<ArcSwap<Table>>;

/// Asks discovery for a look at Redis, from any thread. It keeps one wish until it is seen to, however many wish: one look
/// is for all of them. The standing tells when it is done.
pub type LookWish = Arc<Notify>;

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
pub type HttpDoor = tokio::sync::mpsc::Sender<HttpRequest>;

/// What ingest shows of itself.
#[derive(Debug, Default)]
pub struct IngestStatus {
    /// Whether the brokers answer.
    pub connected: AtomicBool,
    /// Whether the client that reads gives nothing, although the brokers say that there is something; a new one counts as
    /// such until it gives something.
    pub stuck: AtomicBool,
    /// How many partitions the pod started without, and that can't be read yet.
    pub missing: AtomicU64,
    /// Whether the history was filled to the partitions' ends as they were at the start. Never goes back.
    pub filled: AtomicBool,
    /// That its loop turns.
    pub pulse: Pulse,
    /// That the loop of its second thread turns, which asks Kafka what there is.
    pub watcher_pulse: Pulse,
}

impl IngestStatus {
    /// Whether the brokers answer, and what is there is read.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire) && !self.stuck.load(Ordering::Acquire)
    }
}

/// What a shard shows of itself.
#[derive(Debug, Default)]
pub struct ShardStatus {
    /// Clients that are connected, market data's included.
    pub clients: AtomicU64,
    /// That its loop turns.
    pub pulse: Pulse,
}

/// Shows that a thread's loop turns.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    beat_ms: AtomicU64,
    beats: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { start: Instant::now(), beat_ms: AtomicU64::new(0), beats: AtomicU64::new(0) }
    }
}

impl Pulse {
    /// Once a turn.
    pub fn beat(&self, now: Instant) {
        self.show(now);
        // One thread beats.
        self.beats.store(self.count() + 1, Ordering::Relaxed);
    }

    /// Within a turn that is long.
    pub fn show(&self, now: Instant) {
        self.beat_ms.store(self.ms(now), Ordering::Relaxed);
    }

    /// How many turns there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// How long ago the last sign of it was.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        Duration::from_millis(self.ms(now).saturating_sub(self.beat_ms.load(Ordering::Relaxed)))
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
    fn a_shard_that_rests_is_woken_once_however_many_batches_come_and_one_at_work_not_at_all() {
        let (door, inbox) = shard_door();
        let sleeper = Arc::new(Sleeper::default());
        let woken = || sleeper.0.load(Ordering::Relaxed);
        let send = || door.send_batch(Batch::default(), Duration::ZERO).expect("there is room");
        for rests in 1..=3 {
            inbox.bell.register(&Waker::from(Arc::clone(&sleeper)));
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
    fn a_view_is_sure_by_a_look_that_was_young_when_it_was_wanted_or_without_redis() {
        let looked = Instant::now();
        let after = |ms| looked + Duration::from_millis(ms);
        let sight = Sight { looked: Some(looked), reached: true, proven: true };
        assert!(sight.is_sure(after(0)) && sight.is_sure(after(100)));
        assert!(!sight.is_sure(after(101)));
        let slow = Sight { looked: Some(after(500)), ..sight };
        assert!(slow.is_sure(after(499)), "it was sent after it was wanted, whenever the answer came");
        assert!(!Sight { looked: None, ..sight }.is_sure(looked));
        assert!(Sight { reached: false, ..sight }.is_sure(after(1_000_000)), "the last view is in force");
    }
}
