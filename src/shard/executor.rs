//! A shard's executor: it runs tasks on the shard's thread, one at a time. Two engines can: `io_uring.rs` (glommio) and
//! `epoll.rs` (smol's executor, parked in tokio's epoll). Nothing else knows which one does. What the tasks do is left to others.
//!
//! A task is woken from another thread by its [`std::task::Waker`], as everywhere.

mod epoll;
mod io_uring;
mod sleep_watchdog;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::future;
use pin_project_lite::pin_project;
use slotmap::{SlotMap, new_key_type};

use crate::config::Engine;
use crate::cores::pin_thread;
use crate::exchange::ShardStatus;

thread_local! {
    /// The engine of this thread's executor.
    static ENGINE: Cell<Engine> = const { Cell::new(Engine::Epoll) };
}

/// What runs the tasks of one thread. It is made on that thread, and alone there.
pub(super) struct Executor(Kind);

enum Kind {
    IoUring(io_uring::Executor),
    Epoll(epoll::Executor),
}

impl Executor {
    /// Pins the thread to a core, if one is given.
    ///
    /// # Errors
    /// If the system refuses a ring and its memory, an epoll, or the core.
    pub(super) fn new(engine: Engine, core: Option<usize>) -> io::Result<Self> {
        core.map_or(Ok(()), pin_thread)?;
        let kind = match engine {
            Engine::IoUring => Kind::IoUring(io_uring::Executor::new()?),
            Engine::Epoll => Kind::Epoll(epoll::Executor::new()?),
        };
        Ok(Self(kind))
    }

    /// Runs the thread's main task until it ends, and those that are spawned. The main task gets most of the core, however
    /// many others could run.
    pub(super) fn run<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> T {
        match &self.0 {
            Kind::IoUring(executor) => {
                ENGINE.set(Engine::IoUring);
                executor.run(task)
            }
            Kind::Epoll(executor) => {
                ENGINE.set(Engine::Epoll);
                executor.run(task)
            }
        }
    }
}

// ---- tasks --------------------------------------------------------------------------------------------------------

new_key_type! {
    /// A task. A key that outlives its task matches no other.
    pub(super) struct TaskKey;
}

/// The tasks of a shard, each with the handle that cancels it.
#[derive(Clone, Default)]
pub(super) struct Tasks(Rc<RefCell<SlotMap<TaskKey, Option<Task>>>>);

enum Task {
    IoUring(io_uring::Task),
    Epoll(epoll::Task<()>),
}

impl Task {
    fn cancel(self) {
        match self {
            Self::IoUring(task) => task.cancel(),
            Self::Epoll(task) => drop(task),
        }
    }

    async fn cancelled(self) {
        match self {
            Self::IoUring(task) => {
                task.cancel();
                task.await;
            }
            Self::Epoll(task) => {
                task.cancel().await;
            }
        }
    }
}

impl Tasks {
    /// With address space for this many. Memory that is not used is not resident.
    pub(super) fn with_room_for(count: usize) -> Self {
        Self(Rc::new(RefCell::new(SlotMap::with_capacity_and_key(count))))
    }

    /// Runs a task that [`Tasks::cancel`] or [`Tasks::stop`] ends.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) -> TaskKey {
        let key = self.0.borrow_mut().insert(None);
        let task = Tracked { tasks: self.clone(), key, task };
        let handle = match ENGINE.get() {
            Engine::IoUring => Task::IoUring(io_uring::spawn(task)),
            Engine::Epoll => Task::Epoll(epoll::spawn(task)),
        };
        // It may have run, and ended.
        if let Some(task) = self.0.borrow_mut().get_mut(key) {
            *task = Some(handle);
        }
        key
    }

    /// Ends a task where it waits.
    pub(super) fn cancel(&self, task: TaskKey) {
        if let Some(task) = self.0.borrow_mut().remove(task).flatten() {
            task.cancel();
        }
    }

    /// Cancels all tasks and waits for their ends. When an executor ends, it leaves pending tasks alone, and their
    /// sockets open.
    pub(super) async fn stop(&self) {
        let tasks: Vec<_> = self.0.borrow_mut().drain().filter_map(|(_, task)| task).collect();
        let mut ends: Vec<_> = tasks.into_iter().map(|task| Box::pin(task.cancelled())).collect();
        // The first poll cancels: no task runs on when others have ended.
        poll_fn(|cx| {
            ends.retain_mut(|end| end.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        for end in ends {
            end.await;
        }
    }

    /// Has the executor woken, for as long as the tasks run, should it sleep on tasks that could run.
    pub(super) fn start_sleep_watchdog(&self, status: Arc<ShardStatus>) {
        if ENGINE.get() == Engine::IoUring {
            self.spawn(io_uring::watch_sleep(status));
        }
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

// ---- waits --------------------------------------------------------------------------------------------------------

/// Waits for a time.
pub(super) async fn sleep(duration: Duration) {
    match ENGINE.get() {
        Engine::IoUring => io_uring::sleep(duration).await,
        Engine::Epoll => epoll::sleep(duration).await,
    }
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

/// The main task lets the others run, and they let it run.
pub(super) async fn yield_now() {
    match ENGINE.get() {
        Engine::IoUring => io_uring::yield_now().await,
        Engine::Epoll => epoll::yield_now().await,
    }
}

/// [`yield_now`] for a task that is polled by hand: it returns `Pending` after this, and is polled again.
pub(super) fn yield_in_poll(cx: &mut Context<'_>) {
    match ENGINE.get() {
        Engine::IoUring => io_uring::yield_in_poll(cx),
        Engine::Epoll => epoll::yield_in_poll(cx.waker()),
    }
}

/// Lets all tasks run that can, and then the executor look at what other threads and the kernel have for it.
pub(super) async fn yield_to_kernel() {
    match ENGINE.get() {
        Engine::IoUring => io_uring::yield_to_kernel().await,
        Engine::Epoll => epoll::yield_to_kernel().await,
    }
}

/// Tells when a descriptor can be read.
pub(super) struct Watch<'a> {
    descriptor: BorrowedFd<'a>,
    epoll: Option<epoll::Watch<'a>>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(descriptor: BorrowedFd<'a>) -> Self {
        Self { descriptor, epoll: None }
    }

    /// Waits until the descriptor can be read. The caller then reads all that is there, or it may not be reported again.
    ///
    /// # Errors
    /// If the system has no memory, or no descriptor, for the wait.
    pub(super) async fn readable(&mut self) -> io::Result<()> {
        if ENGINE.get() == Engine::IoUring {
            return io_uring::readable(self.descriptor).await;
        }
        let watch = match self.epoll.take() {
            Some(watch) => watch,
            None => epoll::Watch::new(self.descriptor)?,
        };
        self.epoll.insert(watch).readable().await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::time::Instant;

    use super::*;

    fn on_both<F: Future<Output = ()> + 'static>(task: impl Fn() -> F) {
        for engine in Engine::ALL {
            Executor::new(engine, None).unwrap().run(task());
        }
    }

    #[test]
    fn tasks_that_are_cancelled_or_stopped_are_dropped_and_one_that_ended_leaves_the_list() {
        on_both(|| async {
            let tasks = Tasks::default();
            let alive = Rc::new(());
            let wait = |alive: Rc<()>| async move {
                future::pending::<()>().await;
                drop(alive);
            };
            tasks.spawn(async {});
            yield_to_kernel().await;
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
        on_both(|| async {
            assert_eq!(timeout(Duration::from_secs(3_600), async { 1 }).await, Some(1));
            assert_eq!(timeout(Duration::from_millis(1), future::pending::<()>()).await, None);
        });
    }

    #[test]
    fn the_main_task_and_others_take_turns_as_they_yield() {
        on_both(|| async {
            let (tasks, turns) = (Tasks::default(), Rc::new(Cell::new(0)));
            let counted = Rc::clone(&turns);
            tasks.spawn(async move {
                loop {
                    counted.set(counted.get() + 1);
                    yield_now().await;
                }
            });
            while turns.get() < 10 {
                yield_now().await;
            }
            tasks.stop().await;
        });
    }

    /// Runs for so long, and adds how long it was to a sum.
    fn work(micros: u64, sum: &Cell<Duration>) {
        let began = Instant::now();
        while began.elapsed() < Duration::from_micros(micros) {}
        sum.set(sum.get() + began.elapsed());
    }

    #[test]
    fn the_main_task_gets_most_of_the_core_while_many_others_could_run_and_they_get_some() {
        on_both(|| async {
            let (tasks, theirs) = (Tasks::default(), Rc::new(Cell::new(Duration::ZERO)));
            for _ in 0..1_000 {
                let theirs = Rc::clone(&theirs);
                tasks.spawn(async move {
                    loop {
                        work(50, &theirs);
                        yield_now().await;
                    }
                });
            }
            yield_to_kernel().await;
            // Where the thread waits for a core, the time is whose turn it was.
            for attempt in 1.. {
                let mains = Cell::new(Duration::ZERO);
                theirs.set(Duration::ZERO);
                for _ in 0..200 {
                    work(1_000, &mains);
                    yield_now().await;
                }
                let (mains, theirs) = (mains.get(), theirs.get());
                if theirs > mains / 10 && theirs < mains / 2 {
                    break;
                }
                assert!(attempt < 10, "{theirs:?} beside {mains:?}");
            }
            tasks.stop().await;
        });
    }

    #[test]
    fn a_descriptor_that_is_no_socket_is_waited_for() {
        on_both(|| async {
            let (reader, mut writer) = io::pipe().unwrap();
            let mut watch = Watch::new(reader.as_fd());
            assert!(timeout(Duration::from_millis(5), watch.readable()).await.is_none());
            for _ in 0..3 {
                writer.write_all(&[1]).unwrap();
                watch.readable().await.unwrap();
                (&reader).read_exact(&mut [0]).unwrap();
            }
        });
    }
}
