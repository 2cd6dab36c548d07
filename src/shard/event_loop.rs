//! A shard's thread and its turns: each takes in batches and sockets, sends what is due, and waits for more. What is
//! sent is left to [`super::state`].

use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Parts;
use super::accept::accept_from;
use super::age_limit::AgeLimiter;
use super::client_task::admit_client;
use super::connection::Pass;
use super::context::{ShardContext, TIME_SLICE};
use super::drain::Drain;
use super::executor::{self, Executor};
use super::findings_log::FindingsLog;
use super::handover::Handover;
use super::operator_requests::OperatorRequests;
use super::reactor::{Reactor, Stream, WakeTimer};
use super::sweep::Sweeper;
use super::view_gate::GateDecision;
use crate::clock::Now;
use crate::config::DrainConfig;
use crate::exchange::{Liveness, PodState, ShardInbox, ShardStatus};
use crate::limits::{CATCH_UP_BYTES_PER_TURN, TURN_EVERY};
use crate::shutdown::phases::DrainPhase;
use crate::stream::history::IndexKey;

/// Sends between two checks of the clock.
const SENDS_PER_SLICE: usize = 64;

/// How long a turn keeps accepting batches while it sends. Records produced together arrive in several batches; the
/// last subscribers of a long dispatch get them in one write, and the turn must still end.
const INTAKE_MAX: Duration = Duration::from_millis(20);

/// Time between two steps of a drain.
const DRAIN_EVERY: Duration = Duration::from_millis(20);

/// Starts a shard's thread; returns once its executor is made.
pub(super) fn spawn(parts: Parts) -> io::Result<JoinHandle<()>> {
    let (made, is_made) = crossbeam_channel::bounded(1);
    let thread = std::thread::Builder::new().name(format!("shard-{}", parts.index.0)).spawn(move || {
        let reactor = Reactor::with_room_for(parts.config.connections_expected())
            .and_then(|reactor| Ok((WakeTimer::new(&reactor)?, reactor)));
        match Executor::new(parts.engine, parts.core).and_then(|executor| Ok((executor, reactor?))) {
            Ok((executor, (wake_timer, reactor))) => {
                let _ = made.send(Ok(()));
                executor.run(run(parts, reactor, wake_timer));
            }
            Err(error) => {
                let _ = made.send(Err(error));
            }
        }
    })?;
    match is_made.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the shard's thread ended before its executor was made")),
    }
}

/// A secret for the index of the shard's assessments.
fn index_key() -> IndexKey {
    let random = || RandomState::new().hash_one(std::process::id());
    IndexKey(random(), random())
}

async fn run(parts: Parts, reactor: Rc<Reactor>, wake_timer: WakeTimer) {
    let now = Now::read();
    let shard = ShardContext::new(&parts, reactor, index_key(), now);
    shard.tasks.spawn(Rc::clone(&shard.reactor).run());
    accept_from(&shard, parts.listener);
    shard.tasks.start_sleep_watchdog(Arc::clone(&parts.status));
    let turn_loop = TurnLoop {
        sweeper: Sweeper::new(&shard.config, now.instant),
        handover: Handover::new(&shard.config, now.instant),
        operator_requests: OperatorRequests::default(),
        age_limiter: AgeLimiter::new(shard.admission.connection_age_max, &shard.config, now.instant),
        shard,
        inbox: parts.inbox,
        status: parts.status,
        drain: Drain::default(),
        drain_config: parts.drain,
        findings_log: FindingsLog::new(parts.malformed),
        wake_timer,
    };
    turn_loop.run().await;
}

/// The time for which the turn loop runs before other tasks do.
struct TimeSlice<'a> {
    since: Instant,
    liveness: &'a Liveness,
}

impl<'a> TimeSlice<'a> {
    fn begin(liveness: &'a Liveness) -> Self {
        Self { since: Instant::now(), liveness }
    }

    /// Yields if the time slice is over; returns whether it did. Reaching this point shows that the thread does not
    /// sleep.
    async fn take(&mut self) -> bool {
        let now = Instant::now();
        let is_over = now.saturating_duration_since(self.since) >= TIME_SLICE;
        if is_over {
            self.liveness.refresh(now);
            executor::yield_now().await;
            self.since = Instant::now();
        }
        is_over
    }
}

/// How much a turn may still take in.
struct IntakeBudget {
    bytes_left: usize,
    until: Instant,
}

impl IntakeBudget {
    fn begin(shard: &ShardContext, now: Instant) -> Self {
        Self { bytes_left: shard.state.borrow().intake_bytes_max(), until: now + INTAKE_MAX }
    }
}

/// A shard's main task.
struct TurnLoop {
    shard: Rc<ShardContext>,
    inbox: ShardInbox,
    status: Arc<ShardStatus>,
    sweeper: Sweeper,
    handover: Handover,
    drain: Drain,
    drain_config: DrainConfig,
    age_limiter: AgeLimiter,
    operator_requests: OperatorRequests,
    findings_log: FindingsLog,
    /// Wakes the loop when the next turn is due.
    wake_timer: WakeTimer,
}

impl TurnLoop {
    async fn run(mut self) {
        let mut last = Arc::default();
        loop {
            let pod_state = self.shard.pod_state.load_full();
            if pod_state.ended {
                break;
            }
            if !Arc::ptr_eq(&last, &pod_state) {
                self.sweeper.judge_by(&pod_state.revocations, self.shard.state.borrow().connections.len());
                self.shard.wake_pod_state_waiters();
                last = Arc::clone(&pod_state);
            }
            let began = Instant::now();
            let mut intake = IntakeBudget::begin(&self.shard, began);
            self.take_in(&mut intake).await;
            self.send(&mut intake).await;
            let now = Now::read();
            self.close_departing(&pod_state, now);
            self.publish(now);
            self.shard.turn_ended(now.instant);
            self.inbox.add_busy_time(now.instant.saturating_duration_since(began));
            self.wait_for_work(&pod_state, now).await;
        }
        self.stop().await;
    }

    /// Empties the inbox, so that overload appears as lagging positions and not as blocked ingest.
    async fn take_in(&self, intake: &mut IntakeBudget) {
        let mut slice = TimeSlice::begin(&self.status.liveness);
        while self.take_batch(intake) {
            slice.take().await;
        }
        while let Ok(handoff) = self.inbox.handoffs.try_recv() {
            let stream = Stream::new(&self.shard.reactor, handoff.socket);
            let shard = Rc::clone(&self.shard);
            self.shard.tasks.spawn(async move { admit_client(&shard, stream, handoff.request).await });
        }
    }

    /// Takes in the next batch, if there is one and the budget allows it.
    fn take_batch(&self, intake: &mut IntakeBudget) -> bool {
        if intake.bytes_left == 0 {
            return false;
        }
        let Ok(batch) = self.inbox.batches.try_recv() else { return false };
        intake.bytes_left = intake.bytes_left.saturating_sub(batch.arena.len());
        self.shard.state.borrow_mut().take(batch, Instant::now());
        true
    }

    /// Sends what is due: events, then markets, then heartbeats, then up to the budget to clients that catch up.
    async fn send(&mut self, intake: &mut IntakeBudget) {
        let mut slice = TimeSlice::begin(&self.status.liveness);
        while self.shard.state.borrow_mut().dispatch(SENDS_PER_SLICE, Now::read()) == Pass::More {
            if slice.take().await && Instant::now() < intake.until {
                while self.take_batch(intake) {}
            }
        }
        while self.shard.state.borrow_mut().flush_markets(SENDS_PER_SLICE, Now::read()) == Pass::More {
            slice.take().await;
        }
        while self.sweeper.sweep(&mut self.shard.state.borrow_mut(), SENDS_PER_SLICE, Now::read()) == Pass::More {
            slice.take().await;
        }
        while self.shard.state.borrow_mut().recheck_ahead(SENDS_PER_SLICE) == Pass::More {
            slice.take().await;
        }
        let mut bytes = CATCH_UP_BYTES_PER_TURN;
        while self.shard.state.borrow_mut().catch_up(SENDS_PER_SLICE, &mut bytes, Now::read()) == Pass::More {
            slice.take().await;
        }
    }

    /// Closes clients by the handover, the age limit, operators and the drain.
    fn close_departing(&mut self, pod_state: &PodState, now: Now) {
        let phase = DrainPhase::at(now.instant, pod_state.draining_since, &self.drain_config);
        let placement = self.shard.placement(pod_state);
        let mut state = self.shard.state.borrow_mut();
        self.age_limiter.advance(&mut state, &placement, now);
        self.operator_requests.advance(&self.inbox.requests, &mut state, now);
        let steps = [
            self.handover.advance(&mut state, &placement, now),
            self.drain.advance(&mut state, phase, &placement, now),
        ];
        if steps.contains(&GateDecision::RequestRefresh) {
            self.shard.request_refresh();
        }
    }

    fn publish(&mut self, now: Now) {
        let mut state = self.shard.state.borrow_mut();
        let (counts, findings, history_bytes) = state.end_turn(now.instant);
        self.shard.metrics.publish(counts, history_bytes);
        if state.needs_ends() {
            self.inbox.request_ends();
        }
        self.status.clients.store(state.connections.len() as u64, std::sync::atomic::Ordering::Relaxed);
        drop(state);
        self.findings_log.report(&findings, &self.shard.metrics, now.instant);
        self.status.liveness.turn_ended(now.instant);
    }

    /// Waits until there is work.
    async fn wait_for_work(&self, pod_state: &Arc<PodState>, now: Now) {
        let until = self.next_turn(pod_state, now.instant);
        let wait = until.saturating_duration_since(now.instant);
        if wait.is_zero() {
            return executor::yield_now().await;
        }
        let mut was_polled = false;
        poll_fn(|cx| {
            // Registered before the check: a change between the two would be missed otherwise.
            self.inbox.waker.register(cx.waker());
            self.shard.set_turn_waker(cx.waker());
            let has_work = !self.inbox.batches.is_empty()
                || !self.inbox.handoffs.is_empty()
                || !self.inbox.requests.is_empty()
                || !Arc::ptr_eq(pod_state, &self.shard.pod_state.load())
                || self.shard.state.borrow().has_queued();
            if has_work || std::mem::replace(&mut was_polled, true) {
                return Poll::Ready(());
            }
            self.wake_timer.set(until, now.instant, cx.waker());
            Poll::Pending
        })
        .await;
    }

    fn next_turn(&self, pod_state: &PodState, now: Instant) -> Instant {
        let mut until = self.sweeper.next().min(now + TURN_EVERY);
        if let Some(flush) = self.shard.state.borrow().next_market_flush(now) {
            until = until.min(flush);
        }
        let passes = [
            self.handover.next(now),
            self.age_limiter.next(now),
            self.operator_requests.next(now),
            self.drain.next(now),
        ];
        for due in passes.into_iter().flatten() {
            until = until.min(due);
        }
        if pod_state.draining_since.is_some() {
            until = until.min(now + DRAIN_EVERY);
        }
        until
    }

    /// Ends all tasks, which closes their sockets.
    async fn stop(mut self) {
        self.shard.tasks.stop().await;
        self.publish(Now::read());
    }
}
