//! What the tasks of a shard share: its settings, its state, and the ways to other threads. What they do with it is
//! left to the tasks.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::executor::{self, TaskKey, Tasks};
use super::handshakes::Handshakes;
use super::metrics::ShardMetrics;
use super::operator_log::RefusalLog;
use super::pod_limits::PodLimits;
use super::reactor::Reactor;
use super::state::ShardState;
use super::view_gate::{GateDecision, ViewGate};
use super::writer::Writer;
use crate::config::{AdmissionConfig, ShardConfig};
use crate::exchange::{HttpSender, PodState, PublishedPodState, RefreshRequest, ShardHandle};
use crate::ids::{NodeId, ShardIndex};
use crate::limits::VIEW_REFRESH_WAIT_MAX;
use crate::protocol::auth::Verifier;
use crate::protocol::head::Rules;

/// For how long the turns send before they let other tasks run, which read and accept.
pub(super) const TIME_SLICE: Duration = Duration::from_millis(1);

/// What the tasks of a shard share.
pub(super) struct ShardContext {
    pub(super) index: ShardIndex,
    pub(super) config: ShardConfig,
    pub(super) node: NodeId,
    pub(super) head_rules: Rules,
    pub(super) verifier: Verifier,
    pub(super) shard_handles: Vec<ShardHandle>,
    pub(super) http: HttpSender,
    pub(super) pod_state: PublishedPodState,
    pub(super) refresh: RefreshRequest,
    /// Tasks that wait for another standing, each until it is woken.
    pub(super) waiting: RefCell<Vec<Waker>>,
    pub(super) pod: Arc<PodLimits>,
    pub(super) metrics: ShardMetrics,
    pub(super) state: RefCell<ShardState<Writer>>,
    pub(super) reactor: Rc<Reactor>,
    pub(super) scratch: RefCell<Box<[u8]>>,
    pub(super) tasks: Tasks,
    pub(super) admission: AdmissionConfig,
    pub(super) handshakes: Rc<Handshakes<TaskKey>>,
    pub(super) refusal_log: RefusalLog,
    /// Refused clients whose sockets are still being drained.
    pub(super) lingering: Cell<usize>,
    pub(super) started_ms: u64,
    pub(super) connections: Cell<u64>,
    /// When the turns last had theirs.
    pub(super) last_turn: Cell<Instant>,
    /// Wakes the turns, while they rest.
    pub(super) turn_waker: RefCell<Option<Waker>>,
}

impl ShardContext {
    /// The standing by which a client may be sent away: waits until its view is sure.
    pub(super) async fn fresh_pod_state(&self) -> Arc<PodState> {
        let mut view_gate = ViewGate::default();
        let sure = poll_fn(|cx| {
            match view_gate.check(&self.pod_state.load().view_freshness, Instant::now()) {
                GateDecision::Proceed => return Poll::Ready(()),
                GateDecision::RequestRefresh => self.refresh.notify_one(),
                GateDecision::Wait => {}
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        });
        executor::timeout(VIEW_REFRESH_WAIT_MAX, sure).await;
        self.pod_state.load_full()
    }

    /// Wakes who waits for another standing.
    pub(super) fn wake_pod_state_waiters(&self) {
        for task in self.waiting.take() {
            task.wake();
        }
    }

    /// Lets the turns have theirs, if others have run for long: a thousand clients that come at a time are not to keep
    /// those who are there waiting. The turns are woken for it: who rings their bell from another thread is not heard
    /// before the executor looks at its rings again, which it does when it has run out of tasks.
    pub(super) async fn yield_to_turns(&self) {
        if self.last_turn.get().elapsed() >= 2 * TIME_SLICE {
            if let Some(turn_waker) = self.turn_waker.take() {
                turn_waker.wake();
            }
            executor::yield_now().await;
        }
    }

    /// Wakes the turns.
    pub(super) fn wake(&self) {
        self.shard_handles[usize::from(self.index.0)].wake();
    }

    /// Differs from that of every other connection of every pod that started at another millisecond or has another
    /// name.
    pub(super) fn next_connection_id(&self) -> String {
        let count = self.connections.get() + 1;
        self.connections.set(count);
        format!("{}-{:x}-{}-{count}", self.node, self.started_ms, self.index.0)
    }
}
