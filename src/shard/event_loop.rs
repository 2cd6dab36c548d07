//! A shard's thread: the glommio executor, its turns, its accepting, and the tasks that run on it.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use futures_lite::future;
use glommio::timer::Timer;
use glommio::{Latency, LocalExecutor, LocalExecutorBuilder, Placement, Shares, TaskQueueHandle};
use pin_project_lite::pin_project;
use slotmap::{SlotMap, new_key_type};

use super::Parts;
use super::accept::{Handshakes, accept_from};
use super::admission::Here;
use super::age::Ages;
use super::freshness::{Freshness, Step};
use super::handover::Handover;
use super::metrics::ShardMetrics;
use super::nudges::{self, Pace};
use super::pod_limits::PodLimits;
use super::reactor::{Alarm, Reactor, Stream};
use super::report::Reporter;
use super::socket::{self, Writer};
use super::state::{Pass, State};
use super::sweep::Sweeper;
use crate::clock::Now;
use crate::config::{DoorConfig, DrainConfig, ShardConfig};
use crate::exchange::{HttpDoor, LookWish, PublishedStanding, Pulse, ShardDoor, ShardInbox, ShardStatus, Standing};
use crate::ids::{NodeId, ShardIndex};
use crate::limits::{CATCH_UP_BYTES_A_TURN, LOOK_WAIT_MAX, TURN_EVERY};
use crate::protocol::auth::Verifier;
use crate::protocol::head::Rules;
use crate::shutdown::phases::Phase;
use crate::stream::history::IndexKey;

/// Registered memory of an executor: what glommio takes by default, 10 MiB, is for files; sockets need none of it.
const IO_MEMORY_BYTES: usize = 64 * 1024;

/// glommio's preemption timer. Its executor parks with work at hand where this timer fires between being armed and the
/// first look at the queues: rare on a quiet machine, but on a busy one, where the thread waits for its core just there,
/// each time costs the shard a sleep until something else wakes it (with 1 ms: stalls of up to a second, some a minute).
/// So it is longer than any wait for a core, and tasks let others run by themselves, after [`BREATH`]. A latency for a
/// queue would shorten the timer again: the turns have none.
const PREEMPT_EVERY: Duration = Duration::from_secs(1);

/// What the turns get of the core where other tasks could run as well: four parts of five. glommio lets the queue run that
/// had least so far; with equal parts, turns that had sent for 40 ms waited as long for thousands of handshakes.
const TURNS_SHARES: Shares = Shares::Static(4);

/// For how long the turns send before they let other tasks run, which read and accept.
const BREATH: Duration = Duration::from_millis(1);

/// Sends between two looks at the clock.
const SENDS_A_BREATH: usize = 64;

/// How long a turn takes in what comes while it sends. Records that were made together come in some batches: whoever is
/// told late in a walk along thousands of watchers is to have them in one write, and the turn is to have an end.
const INTAKE: Duration = Duration::from_millis(20);

/// How often a draining shard looks at how many clients may still be there.
const DRAIN_EVERY: Duration = Duration::from_millis(20);

/// How much is read of a socket at once. One buffer a shard: a connection that is quiet has none.
const READ_BYTES: usize = 16 * 1024;

new_key_type! {
    /// A task of a shard. A key that outlives its task matches no other.
    pub(super) struct TaskKey;
}

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
    look: LookWish,
    /// Tasks that wait for another standing, each until it is woken.
    waiting: RefCell<Vec<Waker>>,
    pub(super) pod: Arc<PodLimits>,
    pub(super) metrics: ShardMetrics,
    pub(super) state: RefCell<State<Writer>>,
    pub(super) reactor: Rc<Reactor>,
    pub(super) scratch: RefCell<Box<[u8]>>,
    /// Those that run, each with the handle that cancels it.
    tasks: RefCell<SlotMap<TaskKey, Option<glommio::task::JoinHandle<()>>>>,
    pub(super) door: DoorConfig,
    pub(super) handshakes: Handshakes,
    /// Refused clients whose sockets are still being drained.
    pub(super) lingering: Cell<usize>,
    started_ms: u64,
    connections: Cell<u64>,
    /// When the turns last had theirs.
    turned: Cell<Instant>,
    /// Wakes the turns, while they rest.
    turns: RefCell<Option<Waker>>,
}

impl Shard {
    /// Runs a task that is cancelled and awaited when the shard stops.
    pub(super) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) -> TaskKey {
        let key = self.tasks.borrow_mut().insert(None);
        let handle = glommio::spawn_local(Tracked { shard: Rc::clone(self), key, task }).detach();
        // glommio runs a new task at once, up to its first wait: it may have ended.
        if let Some(place) = self.tasks.borrow_mut().get_mut(key) {
            *place = Some(handle);
        }
        key
    }

    /// Ends a task where it waits.
    pub(super) fn cancel(&self, task: TaskKey) {
        if let Some(handle) = self.tasks.borrow_mut().remove(task).flatten() {
            handle.cancel();
        }
    }

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
        future::or(sure, async {
            Timer::new(LOOK_WAIT_MAX).await;
        })
        .await;
        self.standing.load_full()
    }

    /// Wakes who waits for another standing.
    fn tell_of_standing(&self) {
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
            let_others_run().await;
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

pin_project! {
    /// A task that strikes itself off the shard's list at its end.
    struct Tracked<F> {
        shard: Rc<Shard>,
        key: TaskKey,
        #[pin]
        task: F,
    }
}

impl<F: Future<Output = ()>> Future for Tracked<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let tracked = self.project();
        ready!(tracked.task.poll(cx));
        tracked.shard.tasks.borrow_mut().remove(*tracked.key);
        Poll::Ready(())
    }
}

/// Starts a shard's thread, and returns when its executor is made.
pub(super) fn spawn(parts: Parts) -> io::Result<JoinHandle<()>> {
    let (made, is_made) = crossbeam_channel::bounded(1);
    let thread = std::thread::Builder::new().name(format!("shard-{}", parts.index.0)).spawn(move || {
        let reactor = Reactor::new().and_then(|reactor| Ok((Alarm::new(&reactor)?, reactor)));
        match executor(parts.core).and_then(|executor| Ok((executor, reactor?))) {
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

fn executor(core: Option<usize>) -> io::Result<LocalExecutor> {
    let placement = core.map_or(Placement::Unbound, Placement::Fixed);
    LocalExecutorBuilder::new(placement)
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(PREEMPT_EVERY)
        .make()
        .map_err(|error| io::Error::other(error.to_string()))
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
        tasks: RefCell::new(SlotMap::with_key()),
        handshakes: Handshakes::new(parts.door.handshakes_max),
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
    let queue = glommio::executor().create_task_queue(TURNS_SHARES, Latency::NotImportant, "turns");
    shard.spawn(Rc::clone(&shard.reactor).run());
    accept_from(&shard, parts.listener);
    keep_awake(&shard, &parts.status);
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
    run_turns(turns, queue).await;
}

/// Runs the turns in their own queue, to their end.
async fn run_turns(turns: Turns, queue: TaskQueueHandle) {
    match glommio::spawn_local_into(turns.run(), queue) {
        Ok(task) => task.await,
        Err(error) => panic!("the turns' queue was made on this executor: {error}"),
    }
}

/// Nudges the executor from a thread of its own, for as long as the shard runs.
///
/// glommio (0.9) may fall asleep on tasks that could run: where its preemption timer, or a wake that was already seen to,
/// comes between its look at the rings and its first task, it takes that for 'nothing to run' (`run_task_queues`), and
/// then sleeps without a timer. Whatever would wake it is to be armed by those very tasks. [`PREEMPT_EVERY`] keeps the
/// timer out of it; this is for what else may come there.
fn keep_awake(shard: &Rc<Shard>, status: &Arc<ShardStatus>) {
    let status = Arc::clone(status);
    shard.spawn(async move {
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let _nudger = Nudger::start(waker, status);
        future::pending::<()>().await;
    });
}

/// A thread that wakes a task now and then, until this is dropped.
struct Nudger {
    running: Option<crossbeam_channel::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Nudger {
    fn start(waker: Waker, status: Arc<ShardStatus>) -> Self {
        let (running, ended) = crossbeam_channel::bounded(0);
        let nudge = move || {
            let mut pace = Pace::default();
            let still_for = || status.pulse.age(Instant::now());
            let mut pause = || pace.pause(status.pulse.count(), still_for());
            while ended.recv_timeout(pause()) == Err(RecvTimeoutError::Timeout) {
                if nudges::is_wanted(still_for()) {
                    waker.wake_by_ref();
                }
            }
        };
        let thread = std::thread::Builder::new().name("nudger".into()).spawn(nudge);
        let thread = thread.unwrap_or_else(|error| panic!("a shard can't do without its nudger: {error}"));
        Self { running: Some(running), thread: Some(thread) }
    }
}

impl Drop for Nudger {
    fn drop(&mut self) {
        self.running = None;
        // It ends at once. A panic of its would have aborted the process.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Lets the tasks that wait in other queues run.
pub(super) async fn let_others_run() {
    glommio::executor().yield_task_queue_now().await;
}

/// Lets all that could run do so, and then the executor look at its rings: at what other threads and the kernel have to
/// say. A yield alone leads there only where nothing else could run.
pub(super) async fn let_all_run() {
    /// Longer than it takes to ask for it: a time that is over would be no wait.
    const MOMENT: Duration = Duration::from_micros(20);
    Timer::new(MOMENT).await;
}

/// [`let_others_run`] for a task that is polled by hand: it returns `Pending` after this, and is polled again.
pub(super) fn let_others_run_first(cx: &mut Context<'_>) {
    let yielding = pin!(let_others_run());
    // It marks the queue, wakes the task, and is done with.
    let _ = yielding.poll(cx);
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
            let_others_run().await;
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
            self.shard.spawn(async move { socket::enter(&shard, stream, handoff.newcomer).await });
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
            return let_others_run().await;
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

    /// Cancels what still runs and waits for it: glommio leaves pending tasks alone when an executor ends, and their
    /// sockets open.
    async fn stop(mut self) {
        let tasks: Vec<_> = self.shard.tasks.borrow_mut().drain().filter_map(|(_, task)| task).collect();
        for task in &tasks {
            task.cancel();
        }
        for task in tasks {
            task.await;
        }
        self.publish(Now::read());
    }
}
