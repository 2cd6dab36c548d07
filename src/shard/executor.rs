//! A shard's executor: it runs tasks on the shard's thread, one at a time. All of glommio is here; nothing else knows
//! what runs the tasks. What they do is left to others.
//!
//! A task is woken from another thread by its [`Waker`], as everywhere.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use futures_lite::{AsyncRead, future};
use glommio::timer::Timer;
use glommio::{Latency, LocalExecutor, LocalExecutorBuilder, Shares};
use pin_project_lite::pin_project;
use slotmap::{SlotMap, new_key_type};

use super::sleep_watchdog::{self, CheckInterval};
use crate::exchange::ShardStatus;

/// Registered memory of an executor. glommio's default, 10 MiB, is for files; sockets need none of it.
const IO_MEMORY_BYTES: usize = 64 * 1024;

/// glommio's preemption timer. If it fires after it was armed and before the executor first looks at its queues, the
/// executor parks with work at hand. That is rare on a quiet machine. On a busy one, where the thread waits for its
/// core just there, the shard then sleeps until something else wakes it (with 1 ms: stalls of up to a second, some a
/// minute). So the timer is longer than any wait for a core, and tasks yield by themselves. A latency for a queue would
/// shorten the timer again: the main queue has none.
const PREEMPT_TIMER: Duration = Duration::from_secs(1);

/// The main queue's part of the core while other tasks can run, too: four parts of five. glommio runs the queue that
/// had least so far; with equal parts, turns that had sent for 40 ms waited as long for thousands of handshakes.
const MAIN_SHARES: Shares = Shares::Static(4);

/// Longer than it takes to ask for it: a time that is over already would be no wait.
const MOMENT: Duration = Duration::from_micros(20);

/// What runs the tasks of one thread. It is made on that thread.
pub(super) struct Executor(LocalExecutor);

impl Executor {
    /// Pins the thread to a core, if one is given.
    ///
    /// # Errors
    /// If the system refuses a ring, its memory or the core.
    pub(super) fn new(core: Option<usize>) -> io::Result<Self> {
        let placement = core.map_or(glommio::Placement::Unbound, glommio::Placement::Fixed);
        LocalExecutorBuilder::new(placement)
            .io_memory(IO_MEMORY_BYTES)
            .preempt_timer(PREEMPT_TIMER)
            .make()
            .map(Self)
            .map_err(|error| io::Error::other(error.to_string()))
    }

    /// Runs a task, and those that it spawns, until it ends.
    pub(super) fn run<T>(&self, task: impl Future<Output = T>) -> T {
        self.0.run(task)
    }
}

/// Runs the thread's main task to its end, in a queue of its own: it gets most of the core, however many others could
/// run.
pub(super) async fn run_main(task: impl Future<Output = ()> + 'static) {
    let queue = glommio::executor().create_task_queue(MAIN_SHARES, Latency::NotImportant, "main");
    match glommio::spawn_local_into(task, queue) {
        Ok(task) => task.await,
        Err(error) => panic!("the queue was made on this executor: {error}"),
    }
}

// ---- tasks
// --------------------------------------------------------------------------------------------------------------

new_key_type! {
    /// A task. A key that outlives its task matches no other.
    pub(super) struct TaskKey;
}

/// The tasks of a shard, each with the handle that cancels it.
#[derive(Clone, Default)]
pub(super) struct Tasks(Rc<RefCell<SlotMap<TaskKey, Option<glommio::task::JoinHandle<()>>>>>);

impl Tasks {
    /// Runs a task that [`Tasks::cancel`] or [`Tasks::stop`] ends.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) -> TaskKey {
        let key = self.0.borrow_mut().insert(None);
        let handle = glommio::spawn_local(Tracked { tasks: self.clone(), key, task }).detach();
        // glommio runs a new task at once, up to its first wait: it may have ended.
        if let Some(task) = self.0.borrow_mut().get_mut(key) {
            *task = Some(handle);
        }
        key
    }

    /// Ends a task where it waits.
    pub(super) fn cancel(&self, task: TaskKey) {
        if let Some(handle) = self.0.borrow_mut().remove(task).flatten() {
            handle.cancel();
        }
    }

    /// Cancels all tasks and waits for their ends. When an executor ends, glommio leaves pending tasks alone, and their
    /// sockets open.
    pub(super) async fn stop(&self) {
        let tasks: Vec<_> = self.0.borrow_mut().drain().filter_map(|(_, task)| task).collect();
        for task in &tasks {
            task.cancel();
        }
        for task in tasks {
            task.await;
        }
    }

    /// Wakes the executor from a thread of its own, for as long as the tasks run: see [`sleep_watchdog`].
    ///
    /// glommio (0.9) may fall asleep on tasks that could run. If its preemption timer fires, or a wake that was already
    /// handled comes, between its look at the rings and its first task, it takes that for 'nothing to run'
    /// (`run_task_queues`), and then sleeps without a timer. What would wake it is armed by those very tasks.
    /// [`PREEMPT_TIMER`] keeps the timer out of it; this is for what else may come there.
    pub(super) fn start_sleep_watchdog(&self, status: Arc<ShardStatus>) {
        self.spawn(async move {
            let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
            let _nudger = SleepWatchdog::start(waker, status);
            future::pending::<()>().await;
        });
    }
}

pin_project! {
    /// A task that removes itself from the list at its end.
    struct Tracked<F> {
        tasks: Tasks,
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
        tracked.tasks.0.borrow_mut().remove(*tracked.key);
        Poll::Ready(())
    }
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
        let thread = thread.unwrap_or_else(|error| panic!("a shard can't do without its nudger: {error}"));
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

// ---- waits
// --------------------------------------------------------------------------------------------------------------

/// Waits for a time.
pub(super) async fn sleep(duration: Duration) {
    Timer::new(duration).await;
}

/// Waits for a task at most this long; `None` if it takes longer, and the task is dropped.
pub(super) async fn timeout<T>(limit: Duration, task: impl Future<Output = T>) -> Option<T> {
    let task = async { Some(task.await) };
    future::or(task, async {
        sleep(limit).await;
        None
    })
    .await
}

/// Lets the tasks that wait in other queues run.
pub(super) async fn yield_now() {
    glommio::executor().yield_task_queue_now().await;
}

/// [`yield_now`] for a task that is polled by hand: it returns `Pending` after this, and is polled again.
pub(super) fn yield_in_poll(cx: &mut Context<'_>) {
    let yielding = pin!(yield_now());
    // The first poll marks the queue and wakes the task, which is all that it is for.
    let _ = yielding.poll(cx);
}

/// Lets all tasks run that can, and then the executor look at its rings: at what other threads and the kernel have for
/// it. [`yield_now`] leads there only if nothing else can run.
pub(super) async fn yield_to_kernel() {
    sleep(MOMENT).await;
}

/// Waits until a descriptor can be read.
///
/// glommio waits for sockets only. But its stream waits before it reads, and only the read finds out that this is no
/// socket (`ENOTSOCK`).
///
/// # Errors
/// If no descriptor is left for the wait.
pub(super) async fn readable(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let copy = descriptor.try_clone_to_owned()?;
    // SAFETY: the stream takes over the copy; whether it is a socket is asked by a system call.
    let mut stream = unsafe { glommio::net::TcpStream::from_raw_fd(copy.into_raw_fd()) };
    let _not_a_socket = poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut [0])).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn tasks_that_are_cancelled_or_stopped_are_dropped_and_one_that_ended_leaves_the_list() {
        let executor = Executor::new(None).unwrap();
        executor.run(async {
            let tasks = Tasks::default();
            let alive = Rc::new(());
            let wait = |alive: Rc<()>| async move {
                future::pending::<()>().await;
                drop(alive);
            };
            tasks.spawn(async {});
            assert!(tasks.0.borrow().is_empty());
            let cancelled = tasks.spawn(wait(Rc::clone(&alive)));
            tasks.spawn(wait(Rc::clone(&alive)));
            tasks.cancel(cancelled);
            yield_to_kernel().await;
            assert_eq!(Rc::strong_count(&alive), 2);
            tasks.cancel(cancelled);
            tasks.stop().await;
            assert_eq!(Rc::strong_count(&alive), 1);
        });
    }

    #[test]
    fn a_task_is_given_up_at_its_time_limit() {
        let executor = Executor::new(None).unwrap();
        executor.run(async {
            assert_eq!(timeout(Duration::from_secs(3_600), async { 1 }).await, Some(1));
            assert_eq!(timeout(Duration::from_millis(1), future::pending::<()>()).await, None);
        });
    }

    #[test]
    fn the_main_task_and_others_take_turns_as_they_yield() {
        let executor = Executor::new(None).unwrap();
        executor.run(async {
            let (tasks, turn_waker) = (Tasks::default(), Rc::new(Cell::new(0)));
            let counted = Rc::clone(&turn_waker);
            tasks.spawn(async move {
                loop {
                    counted.set(counted.get() + 1);
                    yield_now().await;
                }
            });
            let seen = Rc::clone(&turn_waker);
            run_main(async move {
                while seen.get() < 10 {
                    yield_now().await;
                }
            })
            .await;
            assert!(turn_waker.get() >= 10);
            tasks.stop().await;
        });
    }

    #[test]
    fn a_descriptor_that_is_no_socket_is_waited_for() {
        let executor = Executor::new(None).unwrap();
        executor.run(async {
            let (reader, mut writer) = io::pipe().unwrap();
            assert!(timeout(Duration::from_millis(5), readable(reader.as_fd())).await.is_none());
            writer.write_all(&[1]).unwrap();
            readable(reader.as_fd()).await.unwrap();
        });
    }
}
