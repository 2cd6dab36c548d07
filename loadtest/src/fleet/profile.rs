//! How much of what processes use is their own code, and how much the kernel's, from samples of their threads. The
//! kernel's own split ([`super::usage`]) is from its ticks: of a process that spends a fiftieth of its time in its own
//! code, ten seconds have twenty of them.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use perf_event::events::Software;
use perf_event::{Builder, Sampler};
use serde::{Deserialize, Serialize};

use super::usage::Usage;

/// Between two samples of a thread, of its time on a core, in nanoseconds: some four a millisecond, in step with
/// nothing.
const SAMPLE_EVERY_NS: u64 = 249_989;

/// What the kernel writes samples to, of a thread: eight bytes a sample, and they are read each second.
const RING_BYTES: usize = 128 * 1024;

/// Of a sample's header: whose code it met (perf_event_open(2), `PERF_RECORD_MISC_CPUMODE_MASK`).
const MODE: u16 = 7;
const MODE_USER: u16 = 2;

/// The kind of record that a sample is (perf_event_open(2), `PERF_RECORD_SAMPLE`).
const SAMPLE: u32 = 9;

/// Samples of the threads that some processes had when it began.
pub(super) struct Profile {
    /// With the thread's name.
    threads: Vec<(String, Sampler)>,
    seen: Samples,
}

/// How many samples there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// All of them.
    pub all: u64,
    /// Of these, those that met the processes' own code.
    pub user: u64,
    /// The same of each thread, by its name; those of one name are added.
    pub user_by_thread: BTreeMap<String, u64>,
}

impl Profile {
    /// Begins to sample.
    ///
    /// # Errors
    /// If the kernel doesn't let this process see another's kernel side: who may is root, and whoever
    /// `kernel.perf_event_paranoid` lets. And where a process has ended.
    pub(super) fn begin(pids: &[u32]) -> io::Result<Self> {
        let mut threads = Vec::new();
        for pid in pids {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let task = task?;
                let id = task.file_name().to_str().and_then(|id| id.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
                // It may have ended since.
                let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
                match sampler(id) {
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    sampler => threads.push((name.trim_end().to_owned(), sampler?)),
                }
            }
        }
        for (_, thread) in &mut threads {
            thread.enable()?;
        }
        Ok(Self { threads, seen: Samples::default() })
    }

    /// What was sampled so far. To be asked often enough for the rings: what has no room is lost, whatever it met.
    pub(super) fn read(&mut self) -> Samples {
        for (name, thread) in &mut self.threads {
            let (mut all, mut user) = (0, 0);
            while let Some(record) = thread.next_record() {
                if record.ty() == SAMPLE {
                    all += 1;
                    user += u64::from(record.misc() & MODE == MODE_USER);
                }
            }
            self.seen.all += all;
            self.seen.user += user;
            *self.seen.user_by_thread.entry(name.clone()).or_default() += user;
        }
        self.seen.clone()
    }
}

fn sampler(thread: libc::pid_t) -> io::Result<Sampler> {
    let mut builder = Builder::new(Software::CPU_CLOCK);
    builder.observe_pid(thread).any_cpu().include_kernel().sample_period(SAMPLE_EVERY_NS);
    builder.build()?.sampled(RING_BYTES)
}

impl Samples {
    /// The same time, split as these are; as it was, where there are none.
    #[must_use]
    pub fn split(&self, usage: Usage) -> Usage {
        let Some(user_ns) = (u128::from(usage.total_ns()) * u128::from(self.user)).checked_div(u128::from(self.all))
        else {
            return usage;
        };
        let user_ns = u64::try_from(user_ns).expect("a part of a u64");
        Usage { user_ns, system_ns: usage.total_ns() - user_ns, ..usage }
    }

    /// Which part of the time in the processes' own code is that of threads whose name begins so, from 0 to 1; `None`
    /// where there is no such thread.
    #[must_use]
    pub fn part_of(&self, name: &str) -> Option<f64> {
        let named = self.user_by_thread.iter().filter(|(thread, _)| thread.starts_with(name));
        let samples = named.map(|(_, samples)| *samples).reduce(|sum, samples| sum + samples)?;
        (self.user > 0).then(|| samples as f64 / self.user as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_split_as_its_samples_are() {
        let usage = Usage { user_ns: 600, system_ns: 400, waited_ns: 7, ..Usage::default() };
        let split = Samples { all: 50, user: 1, ..Samples::default() }.split(usage.clone());
        assert_eq!(split, Usage { user_ns: 20, system_ns: 980, ..usage.clone() });
        assert_eq!(Samples::default().split(usage.clone()), usage);
    }

    #[test]
    fn threads_of_one_kind_have_their_part() {
        let of = |name: &str, user| (name.to_owned(), user);
        let user_by_thread = [of("shard-0", 30), of("shard-1", 10), of("ingest", 40)].into();
        let samples = Samples { all: 1_000, user: 80, user_by_thread };
        assert_eq!((samples.part_of("shard-"), samples.part_of("sleep-watchdog")), (Some(0.5), None));
        assert_eq!(Samples::default().part_of("shard-"), None);
    }

    #[test]
    fn who_counts_is_seen_in_his_own_code_and_who_asks_the_kernel_in_the_kernels() {
        let share_of = |work: fn()| {
            let mut profile = match Profile::begin(&[std::process::id()]) {
                Ok(profile) => profile,
                // What the harness does then is told: it goes by ticks.
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                    return None;
                }
            };
            while profile.read().all < 400 {
                work();
            }
            let Samples { all, user, user_by_thread } = profile.read();
            assert_eq!(user_by_thread.values().sum::<u64>(), user);
            Some(user as f64 / all as f64)
        };
        let counts = share_of(|| {
            std::hint::black_box(
                (0..100_000_u64).fold(0, |sum: u64, number| sum.wrapping_mul(31).wrapping_add(number)),
            );
        });
        let asks = share_of(|| {
            std::hint::black_box(fs::read("/proc/self/maps").map_or(0, |maps| maps.len()));
        });
        assert_eq!(counts.is_some(), asks.is_some());
        if let Some((counts, asks)) = counts.zip(asks) {
            assert!(counts > asks + 0.2, "{counts} and {asks}");
        }
    }

    #[test]
    fn who_has_ended_has_no_samples() {
        assert!(Profile::begin(&[u32::MAX]).is_err());
    }
}
