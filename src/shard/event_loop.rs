//! A shard's thread and its turns.

use std::cell::{Cell, RefCell};
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
use super::admission::Here;
use super::age::Ages;
use super::context::{BREATH, Shard};
use super::executor::{self, Executor, Tasks};
use super::freshness::Step;
use super::handover::Handover;
use super::handshakes::Handshakes;
use super::reactor::{Alarm, Reactor, Stream};
use super::report::Reporter;
use super::socket;
use super::state::{Pass, State};
use super::sweep::Sweeper;
use crate::clock::Now;
use crate::config::DrainConfig;
use crate::exchange::{Pulse, ShardInbox, ShardStatus, Standing};
use crate::limits::{CATCH_UP_BYTES_A_TURN, TURN_EVERY};
use crate::protocol::auth::Verifier;
use crate::shutdown::phases::Phase;
use crate::stream::history::IndexKey;

/// Sends between two looks at the clock.
const SENDS_A_BREATH: usize = 64;

/// How long a turn takes in what comes while it sends. Records that were made together come in some batches: whoever is
/// told late in a walk along thousands of watchers is to have them in one write, and the turn is to have an end.
const INTAKE: Duration = Duration::from_millis(20);

/// How often a draining shard looks at how many clients may still be there.
const DRAIN_EVERY: Duration = Duration::from_millis(20);

/// How much is read of a socket at once. One buffer a shard: a connection that is quiet has none.
const READ_BYTES: usize = 16 * 1024;

/// Starts a shard's thread, and returns when its executor is made.
pub(super) fn spawn(parts: Parts) -> io::Result<JoinHandle<()>> {
    let (made, is_made) = crossbeam_channel::bounded(1);
    let thread = std::thread::Builder::new().name(format!("shard-{}", parts.index.0)).spawn(move || {
        let reactor = Reactor::new().and_then(|reactor| Ok((Alarm::new(&reactor)?, reactor)));
        match Executor::new(parts.core).and_then(|executor| Ok((executor, reactor?))) {
            Ok((executor, (alarm, reactor))) => {
                let _ = made.send(Ok(()));
                executor.run(run(parts, reactor, alarm));
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

async fn run(parts: Parts, reactor: Rc<Reactor>, alarm: Alarm) {
    let now = Now::read();
    let shard = Rc::new(Shard {
        index: parts.index,
        verifier: Verifier::new(&parts.auth),
        metrics: parts.metrics.of_shard(parts.index),
        state: RefCell::new(State::new(parts.config.clone(), parts.node.clone()).with_index_key(index_key())),
        reactor,
        scratch: RefCell::new(vec![0; READ_BYTES].into_boxed_slice()),
        tasks: Tasks::default(),
        handshakes: Rc::new(Handshakes::new(parts.door.handshakes_max)),
        door: parts.door,
        lingering: Cell::new(0),
        started_ms: now.unix.0,
        connections: Cell::new(0),
        turned: Cell::new(now.instant),
        turns: RefCell::default(),
        config: parts.config,
        node: parts.node,
        head_rules: parts.head_rules,
        doors: parts.doors,
        http: parts.http,
        look: parts.look,
        waiting: RefCell::default(),
        standing: parts.standing,
        pod: parts.pod,
    });
    shard.tasks.spawn(Rc::clone(&shard.reactor).run());
    accept_from(&shard, parts.listener);
    shard.tasks.keep_awake(Arc::clone(&parts.status));
    let turns = Turns {
        sweeper: Sweeper::new(&shard.config, now.instant),
        handover: Handover::new(&shard.config, now.instant),
        ages: Ages::new(shard.door.connection_age_max, &shard.config, now.instant),
        shard,
        inbox: parts.inbox,
        status: parts.status,
        drain: parts.drain,
        reporter: Reporter::new(parts.malformed),
        alarm,
    };
    executor::run_main(turns.run()).await;
}

/// Since when the turns have run without letting others.
struct Breath<'a> {
    since: Instant,
    pulse: &'a Pulse,
}

impl<'a> Breath<'a> {
    fn begin(pulse: &'a Pulse) -> Self {
        Self { since: Instant::now(), pulse }
    }

    /// Lets others run, if it is time; returns whether they have. That it came to this shows that the thread doesn't sleep.
    async fn take(&mut self) -> bool {
        let now = Instant::now();
        let is_time = now.saturating_duration_since(self.since) >= BREATH;
        if is_time {
            self.pulse.show(now);
            executor::yield_now().await;
            self.since = Instant::now();
        }
        is_time
    }
}

/// What a turn may still take in.
struct Intake {
    bytes_left: usize,
    until: Instant,
}

impl Intake {
    fn begin(shard: &Shard) -> Self {
        Self { bytes_left: shard.state.borrow().intake_bytes_max(), until: Instant::now() + INTAKE }
    }
}

/// A shard's main task: a turn takes in what came, sends what is due, and rests.
struct Turns {
    shard: Rc<Shard>,
    inbox: ShardInbox,
    status: Arc<ShardStatus>,
    drain: DrainConfig,
    sweeper: Sweeper,
    handover: Handover,
    ages: Ages,
    reporter: Reporter,
    /// When the next turn is due.
    alarm: Alarm,
}

impl Turns {
    async fn run(mut self) {
        let mut last = Arc::default();
        loop {
            let standing = self.shard.standing.load_full();
            if standing.ended {
                break;
            }
            if !Arc::ptr_eq(&last, &standing) {
                self.shard.tell_of_standing();
                last = Arc::clone(&standing);
            }
            let mut intake = Intake::begin(&self.shard);
            self.take_in(&mut intake).await;
            self.send(&mut intake).await;
            let now = Now::read();
            self.part_with_clients(&standing, now);
            self.publish(now);
            self.shard.turned.set(now.instant);
            self.rest(&standing, now).await;
        }
        self.stop().await;
    }

    /// Empties the inbox: overload shows as positions that lag, not as an ingest that stands.
    async fn take_in(&self, intake: &mut Intake) {
        let mut breath = Breath::begin(&self.status.pulse);
        while self.take_batch(intake) {
            breath.take().await;
        }
        while let Ok(handoff) = self.inbox.handoffs.try_recv() {
            let stream = Stream::new(&self.shard.reactor, handoff.socket);
            let shard = Rc::clone(&self.shard);
            self.shard.tasks.spawn(async move { socket::enter(&shard, stream, handoff.newcomer).await });
        }
    }

    /// Takes in the next batch, if there is one and the turn may have it.
    fn take_batch(&self, intake: &mut Intake) -> bool {
        if intake.bytes_left == 0 {
            return false;
        }
        let Ok(batch) = self.inbox.batches.try_recv() else { return false };
        intake.bytes_left = intake.bytes_left.saturating_sub(batch.arena.len());
        self.shard.state.borrow_mut().take(batch, Instant::now());
        true
    }

    /// Sends what is due: events first, then markets, then heartbeats, then as much as may be to those who lag.
    async fn send(&mut self, intake: &mut Intake) {
        let mut breath = Breath::begin(&self.status.pulse);
        while self.shard.state.borrow_mut().dispatch(SENDS_A_BREATH, Now::read()) == Pass::More {
            if breath.take().await && Instant::now() < intake.until {
                while self.take_batch(intake) {}
            }
        }
        while self.shard.state.borrow_mut().flush_markets(SENDS_A_BREATH, Now::read()) == Pass::More {
            breath.take().await;
        }
        while self.sweeper.sweep(&mut self.shard.state.borrow_mut(), SENDS_A_BREATH, Now::read()) == Pass::More {
            breath.take().await;
        }
        while self.shard.state.borrow_mut().judge_those_ahead(SENDS_A_BREATH) == Pass::More {
            breath.take().await;
        }
        let mut bytes = CATCH_UP_BYTES_A_TURN;
        while self.shard.state.borrow_mut().catch_up(SENDS_A_BREATH, &mut bytes, Now::read()) == Pass::More {
            breath.take().await;
        }
    }

    /// Sends away who is to go: to its new owner, or because the pod drains.
    fn part_with_clients(&mut self, standing: &Standing, now: Now) {
        let phase = Phase::at(now.instant, standing.draining_since, &self.drain);
        let here = Here { node: &self.shard.node, standing, place_anywhere: self.shard.config.place_anywhere };
        let mut state = self.shard.state.borrow_mut();
        self.ages.advance(&mut state, &here, now);
        let steps = [self.handover.advance(&mut state, &here, now), self.sweeper.drain(&mut state, phase, &here, now)];
        if steps.contains(&Step::AskForLook) {
            self.shard.look.notify_one();
        }
    }

    fn publish(&mut self, now: Now) {
        let mut state = self.shard.state.borrow_mut();
        let (counts, findings, history_bytes) = state.end_turn(now.instant);
        self.shard.metrics.publish(counts, history_bytes);
        if state.wants_ends() {
            self.inbox.want_ends();
        }
        self.status.clients.store(state.roster.len() as u64, std::sync::atomic::Ordering::Relaxed);
        drop(state);
        self.reporter.report(&findings, &self.shard.metrics, now.instant);
        self.status.pulse.beat(now.instant);
    }

    /// Waits until something is to be done.
    async fn rest(&self, standing: &Arc<Standing>, now: Now) {
        let until = self.next_turn(standing, now.instant);
        let wait = until.saturating_duration_since(now.instant);
        if wait.is_zero() {
            return executor::yield_now().await;
        }
        let mut looked = false;
        poll_fn(|cx| {
            // Armed before the look, or what comes between the two would be missed.
            self.inbox.bell.register(cx.waker());
            self.shard.turns.replace(Some(cx.waker().clone()));
            let due = !self.inbox.batches.is_empty()
                || !self.inbox.handoffs.is_empty()
                || !Arc::ptr_eq(standing, &self.shard.standing.load())
                || self.shard.state.borrow().has_pending();
            if due || std::mem::replace(&mut looked, true) {
                return Poll::Ready(());
            }
            self.alarm.set(until, now.instant, cx.waker());
            Poll::Pending
        })
        .await;
    }

    fn next_turn(&self, standing: &Standing, now: Instant) -> Instant {
        let mut until = self.sweeper.next().min(now + TURN_EVERY);
        if let Some(flush) = self.shard.state.borrow().next_market_flush() {
            until = until.min(flush);
        }
        for due in [self.handover.next(now), self.ages.next(now)].into_iter().flatten() {
            until = until.min(due);
        }
        if standing.draining_since.is_some() {
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
