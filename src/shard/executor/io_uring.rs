//! The engine on io_uring: glommio.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use futures_lite::{AsyncRead, future};
use glommio::timer::Timer;
use glommio::{Latency, LocalExecutor, LocalExecutorBuilder, Placement, Shares, TaskQueueHandle};

use super::sleep_watchdog::{self, CheckInterval};
use crate::exchange::ShardStatus;

/// Registered memory of an executor. glommio's default, 10 MiB, is for files; sockets need none of it.
const IO_MEMORY_BYTES: usize = 64 * 1024;

/// glommio's preemption timer. If it fires after it was armed and before the executor first looks at its queues, the
/// executor parks with work at hand. That is rare on a quiet machine. On a busy one, where the thread waits for its core
/// just there, the shard then sleeps until something else wakes it (with 1 ms: stalls of up to a second, some a minute).
/// So the timer is longer than any wait for a core, and tasks yield by themselves. A latency for a queue would shorten the
/// timer again: no queue has one.
const PREEMPT_TIMER: Duration = Duration::from_secs(1);

/// The part of the core that all other tasks have while the main task could run, which is in the default queue and has
/// 1000, the most that there is: one part of five. glommio runs the queue that had least so far; with equal parts, turns
/// that had sent for 40 ms waited as long for thousands of handshakes.
const OTHERS_SHARES: Shares = Shares::Static(250);

/// Longer than it takes to ask for it: a time that is over already would be no wait.
const MOMENT: Duration = Duration::from_micros(20);

thread_local! {
    /// The queue of all tasks but the main one.
    static OTHERS: Cell<TaskQueueHandle> = Cell::default();
}

pub(super) struct Executor(LocalExecutor);

impl Executor {
    pub(super) fn new() -> io::Result<Self> {
        LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(IO_MEMORY_BYTES)
            .preempt_timer(PREEMPT_TIMER)
            .make()
            .map(Self)
            .map_err(|error| io::Error::other(error.to_string()))
    }

    pub(super) fn run<T>(&self, task: impl Future<Output = T>) -> T {
        self.0.run(async {
            OTHERS.set(glommio::executor().create_task_queue(OTHERS_SHARES, Latency::NotImportant, "others"));
            task.await
        })
    }
}

// ---- tasks --------------------------------------------------------------------------------------------------------

pub(super) type Task = glommio::task::JoinHandle<()>;

pub(super) fn spawn(task: impl Future<Output = ()> + 'static) -> Task {
    let spawned = glommio::spawn_local_into(task, OTHERS.get());
    spawned.unwrap_or_else(|error| panic!("the queue is this executor's: {error}")).detach()
}

/// Wakes the executor from a thread of its own, for as long as this runs: see [`sleep_watchdog`].
///
/// glommio (0.9) may fall asleep on tasks that could run. If its preemption timer fires, or a wake that was already
/// handled comes, between its look at the rings and its first task, it takes that for 'nothing to run'
/// (`run_task_queues`), and then sleeps without a timer. What would wake it is armed by those very tasks.
/// [`PREEMPT_TIMER`] keeps the timer out of it; this is for what else may come there.
pub(super) async fn watch_sleep(status: Arc<ShardStatus>) {
    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    let _watchdog = SleepWatchdog::start(waker, status);
    future::pending::<()>().await;
}

/// A thread that wakes a task now and then, until this is dropped.
struct SleepWatchdog {
    running: Option<crossbeam_channel::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl SleepWatchdog {
    fn start(waker: Waker, status: Arc<ShardStatus>) -> Self {
        let (running, ended) = crossbeam_channel::bounded(0);
        let wake_if_asleep = move || {
            let mut check_interval = CheckInterval::default();
            let still_for = || status.liveness.age(Instant::now());
            let mut pause = || check_interval.pause(status.liveness.turns(), still_for());
            while ended.recv_timeout(pause()) == Err(RecvTimeoutError::Timeout) {
                if sleep_watchdog::needs_wake(still_for()) {
                    waker.wake_by_ref();
                }
            }
        };
        let thread = std::thread::Builder::new().name("sleep-watchdog".into()).spawn(wake_if_asleep);
        let thread = thread.unwrap_or_else(|error| panic!("a shard can't do without its sleep watchdog: {error}"));
        Self { running: Some(running), thread: Some(thread) }
    }
}

impl Drop for SleepWatchdog {
    fn drop(&mut self) {
        self.running = None;
        // It ends at once. If it had panicked, the process would have aborted.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

// ---- waits --------------------------------------------------------------------------------------------------------

pub(super) async fn sleep(duration: Duration) {
    Timer::new(duration).await;
}

pub(super) async fn yield_now() {
    glommio::executor().yield_task_queue_now().await;
}

pub(super) fn yield_in_poll(cx: &mut Context<'_>) {
    let yielding = pin!(yield_now());
    // The first poll marks the queue and wakes the task, which is all that it is for.
    let _ = yielding.poll(cx);
}

/// [`yield_now`] leads to the rings only if nothing else can run.
pub(super) async fn yield_to_kernel() {
    sleep(MOMENT).await;
}

/// glommio waits for sockets only. But its stream waits before it reads, and only the read finds out that this is no socket
/// (`ENOTSOCK`).
pub(super) async fn readable(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let copy = descriptor.try_clone_to_owned()?;
    // SAFETY: the stream takes over the copy; whether it is a socket is asked by a system call.
    let mut stream = unsafe { glommio::net::TcpStream::from_raw_fd(copy.into_raw_fd()) };
    let _not_a_socket = poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut [0])).await;
    Ok(())
}
