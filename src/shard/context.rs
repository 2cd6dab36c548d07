//! What the tasks of a shard share: its settings, its state, and the ways to other threads. What they do with it is left to
//! the tasks.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::executor::{self, TaskKey, Tasks};
use super::freshness::{Freshness, Step};
use super::handshakes::Handshakes;
use super::metrics::ShardMetrics;
use super::pod_limits::PodLimits;
use super::reactor::Reactor;
use super::state::State;
use super::writer::Writer;
use crate::config::{DoorConfig, ShardConfig};
use crate::exchange::{HttpDoor, LookWish, PublishedStanding, ShardDoor, Standing};
use crate::ids::{NodeId, ShardIndex};
use crate::limits::LOOK_WAIT_MAX;
use crate::protocol::auth::Verifier;
use crate::protocol::head::Rules;

/// For how long the turns send before they let other tasks run, which read and accept.
pub(super) const BREATH: Duration = Duration::from_millis(1);

/// What the tasks of a shard share.
pub(super) struct Shard {
    pub(super) index: ShardIndex,
    pub(super) config: ShardConfig,
    pub(super) node: NodeId,
    pub(super) head_rules: Rules,
    pub(super) verifier: Verifier,
    pub(super) doors: Vec<ShardDoor>,
    pub(super) http: HttpDoor,
    pub(super) standing: PublishedStanding,
    pub(super) look: LookWish,
    /// Tasks that wait for another standing, each until it is woken.
    pub(super) waiting: RefCell<Vec<Waker>>,
    pub(super) pod: Arc<PodLimits>,
    pub(super) metrics: ShardMetrics,
    pub(super) state: RefCell<State<Writer>>,
    pub(super) reactor: Rc<Reactor>,
    pub(super) scratch: RefCell<Box<[u8]>>,
    pub(super) tasks: Tasks,
    pub(super) door: DoorConfig,
    pub(super) handshakes: Rc<Handshakes<TaskKey>>,
    /// Refused clients whose sockets are still being drained.
    pub(super) lingering: Cell<usize>,
    pub(super) started_ms: u64,
    pub(super) connections: Cell<u64>,
    /// When the turns last had theirs.
    pub(super) turned: Cell<Instant>,
    /// Wakes the turns, while they rest.
    pub(super) turns: RefCell<Option<Waker>>,
}

impl Shard {
    /// The standing by which a client may be sent away: waits until its view is sure.
    pub(super) async fn sure_standing(&self) -> Arc<Standing> {
        let mut freshness = Freshness::default();
        let sure = poll_fn(|cx| {
            match freshness.ask(&self.standing.load().sight, Instant::now()) {
                Step::Go => return Poll::Ready(()),
                Step::AskForLook => self.look.notify_one(),
                Step::Wait => {}
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        });
        executor::timeout(LOOK_WAIT_MAX, sure).await;
        self.standing.load_full()
    }

    /// Wakes who waits for another standing.
    pub(super) fn tell_of_standing(&self) {
        for task in self.waiting.take() {
            task.wake();
        }
    }

    /// Lets the turns have theirs, if others have run for long: a thousand clients that come at a time are not to keep
    /// those who are there waiting. The turns are woken for it: who rings their bell from another thread is not heard before
    /// the executor looks at its rings again, which it does when it has run out of tasks.
    pub(super) async fn give_way(&self) {
        if self.turned.get().elapsed() >= 2 * BREATH {
            if let Some(turns) = self.turns.take() {
                turns.wake();
            }
            executor::yield_now().await;
        }
    }

    /// Wakes the turns.
    pub(super) fn ring(&self) {
        self.doors[usize::from(self.index.0)].ring();
    }

    /// Differs from that of every other connection of every pod that started at another millisecond or has another name.
    pub(super) fn next_connection_id(&self) -> String {
        let count = self.connections.get() + 1;
        self.connections.set(count);
        format!("{}-{:x}-{}-{count}", self.node, self.started_ms, self.index.0)
    }
}
