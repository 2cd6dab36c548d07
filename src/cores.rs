//! The machine's cores: which ones the process may use, which thread gets which, and how a thread is pinned to one.

use std::io;
use std::thread::available_parallelism;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The core that each thread is pinned to; `None` leaves it to the scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cores {
    /// Core of the ingest thread.
    pub(crate) ingest: Option<usize>,
    /// Cores of the shards, by index.
    pub(crate) shards: Vec<Option<usize>>,
}

impl Cores {
    /// Assigns the cores that the process may use.
    #[must_use]
    pub(crate) fn share(shards: u16) -> Self {
        let allowed = allowed_cores();
        Self::share_of(&allowed, usable_cores(), usize::from(shards))
    }

    /// Whether no shard runs on ingest's core. Asked before threads are pinned: a pinned one may use a single core.
    #[must_use]
    pub(crate) fn has_ingest_its_own(&self) -> bool {
        self.is_own_of(usable_cores())
    }

    fn is_own_of(&self, usable: usize) -> bool {
        match self.ingest {
            Some(core) => !self.shards.contains(&Some(core)),
            None => usable > self.shards.len(),
        }
    }

    /// Ingest gets the first core and the shards the others, round-robin if there are too few. Nothing is pinned if the
    /// process has a share of more cores than threads (a cgroup quota, few shards on a large machine): all pods of the
    /// machine would share the same few cores.
    fn share_of(allowed: &[usize], usable: usize, shards: usize) -> Self {
        if allowed.is_empty() || usable < allowed.len() || shards + 1 < allowed.len() {
            return Self { ingest: None, shards: vec![None; shards] };
        }
        let in_turns = allowed.iter().copied().cycle().skip(1);
        Self { ingest: allowed.first().copied(), shards: in_turns.take(shards).map(Some).collect() }
    }
}

/// Number of cores that the calling thread may use, by its affinity and its cgroup's quota.
#[must_use]
pub(crate) fn usable_cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Cores in the process' affinity, in order; none if it is unknown.
fn allowed_cores() -> Vec<usize> {
    let Ok(allowed) = sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect()
}

/// Pins the calling thread, and those that it starts from now on, to a core.
///
/// # Errors
/// If the machine has no such core, or the process may not use it.
pub(crate) fn pin_thread(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no core {core}")));
    }
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(allowed: &[usize], usable: usize, shards: usize) -> (Option<usize>, Vec<Option<usize>>) {
        let Cores { ingest, shards } = Cores::share_of(allowed, usable, shards);
        (ingest, shards)
    }

    #[test]
    fn ingest_has_the_first_core_and_the_shards_have_the_others() {
        assert_eq!(share(&[2, 3, 6, 7], 4, 3), (Some(2), vec![Some(3), Some(6), Some(7)]));
        assert_eq!(share(&[0, 1], 2, 1), (Some(0), vec![Some(1)]));
    }

    #[test]
    fn too_few_cores_are_shared_round_robin() {
        assert_eq!(share(&[0], 1, 1), (Some(0), vec![Some(0)]));
        assert_eq!(share(&[0, 1], 2, 3), (Some(0), vec![Some(1), Some(0), Some(1)]));
    }

    #[test]
    fn a_pod_with_a_part_of_the_machine_is_not_pinned() {
        assert_eq!(share(&[0, 1, 2, 3], 2, 1), (None, vec![None]), "a quota of two cores");
        assert_eq!(share(&[0, 1, 2, 3], 4, 1), (None, vec![None]), "one shard where three would fit");
        assert_eq!(share(&[], 1, 2), (None, vec![None, None]), "an unknown affinity");
    }

    #[test]
    fn ingest_has_its_own_core_unless_shards_share_it() {
        let is_own = |allowed: &[usize], usable, shards| Cores::share_of(allowed, usable, shards).is_own_of(usable);
        assert!(is_own(&[0, 1], 2, 1) && is_own(&[2, 3, 6, 7], 4, 3));
        assert!(!is_own(&[0], 1, 1) && !is_own(&[0, 1], 2, 3));
        assert!(is_own(&[0, 1, 2, 3], 2, 1) && !is_own(&[0, 1, 2, 3], 2, 2), "not pinned, with a quota");
    }

    #[test]
    fn this_process_may_use_at_least_one_core() {
        assert!(!allowed_cores().is_empty());
    }

    #[test]
    fn a_pinned_thread_runs_on_its_core_alone_and_a_core_that_is_not_there_is_an_error() {
        let core = allowed_cores()[0];
        let pinned = std::thread::spawn(move || pin_thread(core).map(|()| allowed_cores())).join().unwrap();
        assert_eq!(pinned.unwrap(), [core]);
        assert_eq!(pin_thread(usize::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
