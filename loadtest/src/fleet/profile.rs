//! Splits the CPU time of processes into their own code and the kernel's, by sampling their threads. The kernel's split
//! ([`super::usage`]) is by ticks: for a process that spends a fiftieth of its time in its own code, ten seconds have
//! twenty of them.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use perf_event::events::Software;
use perf_event::{Builder, Sampler};
use serde::{Deserialize, Serialize};

use super::usage::Usage;

/// Sampling period in nanoseconds of a thread's CPU time: about four samples per millisecond, in step with nothing.
const SAMPLE_EVERY_NS: u64 = 249_989;

/// Size of a thread's sample ring. A sample has eight bytes, and the rings are read each second.
const RING_BYTES: usize = 128 * 1024;

/// Bits of a sample's header that tell whose code it hit (perf_event_open(2), `PERF_RECORD_MISC_CPUMODE_MASK`).
const MODE: u16 = 7;
const MODE_USER: u16 = 2;

/// The record type of a sample (perf_event_open(2), `PERF_RECORD_SAMPLE`).
const SAMPLE: u32 = 9;

/// Samples of the threads that some processes had at the start.
pub(super) struct Profile {
    /// Samplers with the names of their threads.
    threads: Vec<(String, Sampler)>,
    seen: Samples,
}

/// Numbers of samples.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// All samples.
    pub all: u64,
    /// Samples in the processes' own code.
    pub user: u64,
    /// The same by thread name; threads with the same name are added up.
    pub user_by_thread: BTreeMap<String, u64>,
}

impl Profile {
    /// Starts sampling.
    ///
    /// # Errors
    /// If a process has exited, or the kernel does not let this process sample another's kernel side. Root may, and
    /// other users as `kernel.perf_event_paranoid` allows.
    pub(super) fn begin(pids: &[u32]) -> io::Result<Self> {
        let mut threads = Vec::new();
        for pid in pids {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let task = task?;
                let id = task.file_name().to_str().and_then(|id| id.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
                // The thread may have ended since.
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

    /// The samples so far. Must be called often enough for the rings: samples without room are lost, of either kind.
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
    /// Splits a usage in the ratio of the samples; returns it unchanged without samples.
    #[must_use]
    pub fn split(&self, usage: Usage) -> Usage {
        let Some(user_ns) = (u128::from(usage.total_ns()) * u128::from(self.user)).checked_div(u128::from(self.all))
        else {
            return usage;
        };
        let user_ns = u64::try_from(user_ns).expect("a part of a u64");
        Usage { user_ns, system_ns: usage.total_ns() - user_ns, ..usage }
    }

    /// Share of user time in threads whose name begins with `name`, from 0 to 1. `None` if there is no such thread.
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
    fn time_is_split_in_the_ratio_of_the_samples() {
        let usage = Usage { user_ns: 600, system_ns: 400, waited_ns: 7, ..Usage::default() };
        let split = Samples { all: 50, user: 1, ..Samples::default() }.split(usage.clone());
        assert_eq!(split, Usage { user_ns: 20, system_ns: 980, ..usage.clone() });
        assert_eq!(Samples::default().split(usage.clone()), usage);
    }

    #[test]
    fn threads_with_the_same_prefix_are_added_up() {
        let of = |name: &str, user| (name.to_owned(), user);
        let user_by_thread = [of("shard-0", 30), of("shard-1", 10), of("ingest", 40)].into();
        let samples = Samples { all: 1_000, user: 80, user_by_thread };
        assert_eq!((samples.part_of("shard-"), samples.part_of("sleep-watchdog")), (Some(0.5), None));
        assert_eq!(Samples::default().part_of("shard-"), None);
    }

    #[test]
    fn computation_is_sampled_as_user_code_and_system_calls_as_the_kernels() {
        let share_of = |work: fn()| {
            let mut profile = match Profile::begin(&[std::process::id()]) {
                Ok(profile) => profile,
                // Without permission the harness falls back to ticks.
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
        let computing = share_of(|| {
            std::hint::black_box(
                (0..100_000_u64).fold(0, |sum: u64, number| sum.wrapping_mul(31).wrapping_add(number)),
            );
        });
        let calling = share_of(|| {
            std::hint::black_box(fs::read("/proc/self/maps").map_or(0, |maps| maps.len()));
        });
        assert_eq!(computing.is_some(), calling.is_some());
        if let Some((computing, calling)) = computing.zip(calling) {
            assert!(computing > calling + 0.2, "{computing} and {calling}");
        }
    }

    #[test]
    fn a_process_that_has_exited_can_not_be_sampled() {
        assert!(Profile::begin(&[u32::MAX]).is_err());
    }
}
