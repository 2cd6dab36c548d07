//! The engine that needs nothing of the system but epoll. Tasks run on smol's executor, and tokio waits for what they wait
//! for: descriptors, times, other threads. A thread that waits so counts as idle.
//!
//! tokio runs a single task, [`run_tasks`], in which the others run: tasks of tokio's are aligned to 128 bytes, and take
//! 240 bytes more a connection.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::task::Waker;
use std::time::{Duration, Instant};

pub(super) use async_executor::Task;
use async_executor::{LocalExecutor, StaticLocalExecutor};
use futures_lite::future;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};

/// The others' tasks that run before it is looked whose turn it is. A handshake takes some 40 us, so the main task, where
/// it is woken, waits for a third of a millisecond.
const TASKS_A_ROUND: usize = 8;

/// How long tasks run before tokio asks the kernel for events, which takes a microsecond.
const LOOK_EVERY: Duration = Duration::from_micros(250);

/// The main task's time for each unit of the others', while both can run: four parts of five.
const MAIN_SHARE: u32 = 4;

/// The most that either is owed, in nanoseconds: a main task that ran for long without a yield must not wait for a quarter
/// of that.
const OWED_MAX: i64 = 2_000_000;

thread_local! {
    /// Where this thread's tasks are spawned, the main one not among them.
    static OTHERS: Cell<Option<&'static StaticLocalExecutor>> = const { Cell::new(None) };
}

pub(super) struct Executor {
    runtime: Runtime,
    queues: Queues,
}

/// They live on when their executor ends, a few hundred bytes for each shard: a connection then takes 50 bytes less.
struct Queues {
    main: &'static StaticLocalExecutor,
    others: &'static StaticLocalExecutor,
}

impl Executor {
    pub(super) fn new() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let queues = Queues { main: LocalExecutor::new().leak(), others: LocalExecutor::new().leak() };
        Ok(Self { runtime, queues })
    }

    pub(super) fn run<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> T {
        OTHERS.set(Some(self.queues.others));
        let main = self.queues.main.spawn(task);
        self.runtime.block_on(run_tasks(&self.queues, main))
    }
}

/// Runs the tasks until the main one ends.
async fn run_tasks<T>(queues: &Queues, main: Task<T>) -> T {
    let mut shares = Shares::default();
    loop {
        let can_more_run = run_for_a_while(queues, &mut shares);
        if main.is_finished() {
            return main.await;
        }
        if can_more_run {
            tokio::task::yield_now().await;
        } else {
            shares = Shares::default();
            future::or(queues.main.tick(), queues.others.tick()).await;
        }
    }
}

/// Runs tasks until it is time to ask the kernel for events; returns whether more can run.
fn run_for_a_while(queues: &Queues, shares: &mut Shares) -> bool {
    let began = Instant::now();
    let mut now = began;
    while now.saturating_duration_since(began) < LOOK_EVERY {
        let (before, is_main_next) = (now, !shares.are_others_next());
        if is_main_next && queues.main.try_tick() {
            now = Instant::now();
            shares.main_ran(now.saturating_duration_since(before));
            continue;
        }
        let ran = (0..TASKS_A_ROUND).take_while(|_| queues.others.try_tick()).count();
        now = Instant::now();
        if !is_main_next {
            // A round that is not full ran out of tasks.
            shares.others_ran(now.saturating_duration_since(before), ran == TASKS_A_ROUND);
        } else if ran > 0 {
            *shares = Shares::default();
        } else {
            return false;
        }
    }
    true
}

/// How the main task and the others share the core while both can run.
#[derive(Debug, Default)]
struct Shares {
    /// What the main task owes the others, in nanoseconds; below zero, what they had in advance: a round has no end within it.
    owed: i64,
}

impl Shares {
    fn main_ran(&mut self, time: Duration) {
        self.add(nanos(time / MAIN_SHARE));
    }

    /// Those who have nothing more to run are owed nothing.
    fn others_ran(&mut self, time: Duration, are_more: bool) {
        self.add(-nanos(time));
        if !are_more {
            self.owed = self.owed.min(0);
        }
    }

    fn add(&mut self, nanos: i64) {
        self.owed = self.owed.saturating_add(nanos).clamp(-OWED_MAX, OWED_MAX);
    }

    fn are_others_next(&self) -> bool {
        self.owed > 0
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

// ---- tasks --------------------------------------------------------------------------------------------------------

pub(super) fn spawn(task: impl Future<Output = ()> + 'static) -> Task<()> {
    OTHERS.get().expect("tasks are spawned by tasks").spawn(task)
}

// ---- waits --------------------------------------------------------------------------------------------------------

pub(super) async fn sleep(duration: Duration) {
    // Boxed, for it is as long as a connection's own state.
    Box::pin(tokio::time::sleep(duration)).await;
}

pub(super) async fn yield_now() {
    future::yield_now().await;
}

pub(super) fn yield_in_poll(task: &Waker) {
    task.wake_by_ref();
}

/// tokio wakes who yields so when it has asked the kernel for events: it then comes after all tasks that could run before.
pub(super) async fn yield_to_kernel() {
    tokio::task::yield_now().await;
}

/// A descriptor in tokio's epoll.
pub(super) struct Watch<'a>(AsyncFd<BorrowedFd<'a>>);

impl<'a> Watch<'a> {
    pub(super) fn new(descriptor: BorrowedFd<'a>) -> io::Result<Self> {
        // SAFETY: the descriptor is borrowed for as long as the watch lives, and the same one all the time.
        let watch = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        Ok(Self(watch?))
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        // Cleared before the caller takes what is there: what comes meanwhile sets it again.
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of the two ran, in microseconds, where the main task yields after `main_us`, and a round of the others
    /// takes `others_us`.
    fn ran(main_us: u64, others_us: u64, are_more: bool) -> (u64, u64) {
        let (mut shares, mut ran) = (Shares::default(), (0, 0));
        while ran.0 + ran.1 < 1_000_000 {
            if shares.are_others_next() {
                shares.others_ran(Duration::from_micros(others_us), are_more);
                ran.1 += others_us;
            } else {
                shares.main_ran(Duration::from_micros(main_us));
                ran.0 += main_us;
            }
        }
        ran
    }

    #[test]
    fn the_main_task_gets_four_parts_of_five_however_long_a_round_of_the_others_takes() {
        for others_us in [1, 50, 250, 400, 1_700] {
            let (main, others) = ran(1_000, others_us, true);
            assert!((195_000..=205_000).contains(&others), "{others_us}: {main} and {others}");
        }
    }

    #[test]
    fn one_that_runs_long_is_bounded_in_what_it_owes() {
        let (main, others) = ran(40_000, 250, true);
        assert!(others * 15 < main, "{main} and {others}");
    }

    #[test]
    fn who_has_nothing_to_run_is_owed_nothing() {
        let (main, others) = ran(1_000, 10, false);
        assert!(others <= main / 99, "{main} and {others}");
    }
}
