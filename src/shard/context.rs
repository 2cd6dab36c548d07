//! What the tasks of a shard share: its settings, its state, and its handles to other threads. What the tasks do with
//! them is left to the tasks.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;

use super::Parts;
use super::executor::{self, TaskKey, Tasks};
use super::handshakes::Handshakes;
use super::metrics::ShardMetrics;
use super::operator_log::RefusalLog;
use super::pod_limits::PodLimits;
use super::reactor::Reactor;
use super::redirect::Placement;
use super::state::ShardState;
use super::view_gate::{GateDecision, ViewGate};
use super::writer::Writer;
use crate::clock::Now;
use crate::config::{AdmissionConfig, ShardConfig};
use crate::exchange::{
    Busy, Handoff, HttpRequest, HttpSender, PodState, PublishedPodState, RefreshRequest, ShardHandle, TokenChecks,
};
use crate::ids::{ConnectionIds, NodeId, ShardIndex};
use crate::limits::VIEW_REFRESH_WAIT_MAX;
use crate::protocol::auth::{Grant, Unauthorized, Verdict, Verifier};
use crate::protocol::head::{BearerToken, Rules};
use crate::stream::history::IndexKey;

/// How long the turn loop sends before other tasks run, which read and accept.
pub(super) const TIME_SLICE: Duration = Duration::from_millis(1);

/// Reads from one socket in a row before other tasks run.
pub(super) const READS_A_POLL: usize = 4;

/// Refused clients may linger in at most one in this many handshake slots.
const LINGERING_PART: usize = 4;

/// Bytes per read from a socket. One buffer per shard: a quiet connection holds none.
const READ_BYTES: usize = 16 * 1024;

/// What the tasks of a shard share.
pub(super) struct ShardContext {
    pub(super) index: ShardIndex,
    pub(super) config: ShardConfig,
    pub(super) admission: AdmissionConfig,
    pub(super) head_rules: Rules,
    verifier: Verifier,
    token_checks: TokenChecks,
    node: NodeId,
    /// The handles of all shards, by index.
    shard_handles: Vec<ShardHandle>,
    http: HttpSender,
    pub(super) pod_state: PublishedPodState,
    refresh: RefreshRequest,
    /// Tasks that wait for a change of the pod state. All are woken at each.
    pod_state_waiters: RefCell<Vec<Waker>>,
    pub(super) pod: Arc<PodLimits>,
    pub(super) metrics: ShardMetrics,
    pub(super) state: RefCell<ShardState<Writer>>,
    pub(super) reactor: Rc<Reactor>,
    /// Where every task reads to.
    pub(super) scratch: RefCell<Box<[u8]>>,
    pub(super) tasks: Tasks,
    pub(super) handshakes: Rc<Handshakes<TaskKey>>,
    pub(super) refusal_log: RefusalLog,
    /// Refused clients whose sockets linger.
    lingering: Cell<usize>,
    pub(super) connection_ids: ConnectionIds,
    /// Number of connections so far.
    connections: Cell<u64>,
    /// End of the last turn.
    last_turn: Cell<Instant>,
    /// Wakes the turn loop while it waits.
    turn_waker: RefCell<Option<Waker>>,
}

impl ShardContext {
    pub(super) fn new(parts: &Parts, reactor: Rc<Reactor>, index_key: IndexKey, now: Now) -> Rc<Self> {
        let mut state = ShardState::new(parts.config.clone(), parts.node.clone()).with_index_key(index_key);
        let expected = parts.config.connections_expected();
        state.connections.reserve(expected);
        Rc::new(Self {
            index: parts.index,
            config: parts.config.clone(),
            admission: parts.admission.clone(),
            head_rules: parts.head_rules.clone(),
            verifier: Verifier::new(&parts.auth, Arc::clone(&parts.keys)),
            token_checks: parts.token_checks.clone(),
            node: parts.node.clone(),
            shard_handles: parts.shard_handles.clone(),
            http: parts.http.clone(),
            pod_state: Arc::clone(&parts.pod_state),
            refresh: Arc::clone(&parts.refresh),
            pod_state_waiters: RefCell::default(),
            pod: Arc::clone(&parts.pod),
            metrics: parts.metrics.of_shard(parts.index),
            state: RefCell::new(state),
            reactor,
            scratch: RefCell::new(vec![0; READ_BYTES].into_boxed_slice()),
            tasks: Tasks::with_room_for(expected),
            handshakes: Rc::new(Handshakes::new(parts.admission.handshakes_max)),
            refusal_log: RefusalLog::default(),
            lingering: Cell::new(0),
            connection_ids: parts.connection_ids.clone(),
            connections: Cell::new(0),
            last_turn: Cell::new(now.instant),
            turn_waker: RefCell::default(),
        })
    }

    // ---- the pod and its view ---------------------------------------------------------------------------------------

    /// Where clients are served by this pod state.
    pub(super) fn placement<'a>(&'a self, pod_state: &'a PodState) -> Placement<'a> {
        Placement { node: &self.node, pod_state, place_anywhere: self.config.place_anywhere }
    }

    /// Asks discovery for a refresh of the view.
    pub(super) fn request_refresh(&self) {
        self.refresh.notify_one();
    }

    /// The pod state to redirect a client by: waits until its view is fresh, and newer than the client's last redirect.
    pub(super) async fn fresh_pod_state(&self, redirected: Option<Instant>) -> Arc<PodState> {
        let mut view_gate = ViewGate::newer_than(redirected);
        let fresh = poll_fn(|cx| {
            match view_gate.check(&self.pod_state.load().view_freshness, Instant::now()) {
                GateDecision::Proceed => return Poll::Ready(()),
                GateDecision::RequestRefresh => self.request_refresh(),
                GateDecision::Wait => {}
            }
            self.pod_state_waiters.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        });
        executor::timeout(VIEW_REFRESH_WAIT_MAX, fresh).await;
        self.pod_state.load_full()
    }

    /// Wakes the tasks that wait for a change of the pod state.
    pub(super) fn wake_pod_state_waiters(&self) {
        for task in self.pod_state_waiters.take() {
            task.wake();
        }
    }

    // ---- tokens -----------------------------------------------------------------------------------------------------

    /// Whether tokens can be verified: there is a secret, or a key set was read.
    pub(super) fn can_verify(&self) -> bool {
        self.verifier.is_ready()
    }

    /// Returns what a token grants, or why it is rejected. A signature by a public key is checked on another thread.
    ///
    /// # Errors
    /// If that thread has too many to check.
    pub(super) async fn verify(&self, token: Option<&BearerToken>) -> Result<Result<Grant, Unauthorized>, Busy> {
        match self.verifier.verify(token, Now::read().unix) {
            Ok(Verdict::Granted(grant)) => Ok(Ok(grant)),
            Ok(Verdict::PublicKey(check)) => self.token_checks.run(check).await,
            Err(why) => Ok(Err(why)),
        }
    }

    // ---- other threads ----------------------------------------------------------------------------------------------

    /// Passes a socket to the shard that owns its assessment.
    ///
    /// # Errors
    /// If its queue is full.
    pub(super) fn hand_off(&self, owner: ShardIndex, handoff: Handoff) -> Result<(), Handoff> {
        self.shard_handles[usize::from(owner.0)].try_handoff(handoff)
    }

    /// Passes an operator's request to the control thread.
    ///
    /// # Errors
    /// If its queue is full, or the thread has ended.
    pub(super) fn pass_to_operators(&self, request: HttpRequest) -> Result<(), HttpRequest> {
        self.http.try_send(request).map_err(TrySendError::into_inner)
    }

    // ---- turns ------------------------------------------------------------------------------------------------------

    /// Lets the turn loop run if other tasks have run for long: a thousand clients that connect at once must not delay
    /// those that are connected. It is woken for that, because the executor handles wakes of other threads only when it
    /// has run out of tasks.
    pub(super) async fn yield_to_turns(&self) {
        if self.last_turn.get().elapsed() >= 2 * TIME_SLICE {
            if let Some(turn_waker) = self.turn_waker.take() {
                turn_waker.wake();
            }
            executor::yield_now().await;
        }
    }

    /// Records the end of a turn.
    pub(super) fn turn_ended(&self, now: Instant) {
        self.last_turn.set(now);
    }

    /// Sets what wakes the turn loop while it waits.
    pub(super) fn set_turn_waker(&self, waker: &Waker) {
        self.turn_waker.replace(Some(waker.clone()));
    }

    /// Wakes the turn loop, as other threads do.
    pub(super) fn wake(&self) {
        self.shard_handles[usize::from(self.index.0)].wake();
    }

    // ---- clients ----------------------------------------------------------------------------------------------------

    /// The number of the next connection: no other of this shard has it.
    pub(super) fn next_connection_number(&self) -> u64 {
        let number = self.connections.get() + 1;
        self.connections.set(number);
        number
    }

    /// Lets one more refused client linger, unless too many do.
    pub(super) fn try_linger(&self) -> Option<LingerGuard<'_>> {
        let lingering = self.lingering.get();
        (lingering < self.handshakes.max() / LINGERING_PART).then(|| {
            self.lingering.set(lingering + 1);
            LingerGuard(&self.lingering)
        })
    }
}

/// Counts a refused client that lingers, until it is dropped.
pub(super) struct LingerGuard<'a>(&'a Cell<usize>);

impl Drop for LingerGuard<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
