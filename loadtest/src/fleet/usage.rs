//! What processes used of the machine, and how noisy it was meanwhile, from `/proc`.
//!
//! A thread's time on a core comes in nanoseconds from its `schedstat`. How much of it was the kernel's is known from `stat`
//! alone, whose ticks are of ten milliseconds: the split is theirs, the sum is exact.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// What a process used since it began, or between two looks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Nanoseconds on a core in its own code.
    pub user_ns: u64,
    /// Nanoseconds on a core in the kernel.
    pub system_ns: u64,
    /// Nanoseconds that its threads waited for a core that another had.
    pub waited_ns: u64,
    /// How often a thread was put off its core while it had work.
    pub involuntary: u64,
    /// Nanoseconds on a core of each thread, by its name; those of one name are added.
    pub threads_ns: BTreeMap<String, u64>,
}

/// What the whole machine did since it began, or between two looks, in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// All of all cores.
    pub total: u64,
    /// Of these, what was no idling.
    pub busy: u64,
    /// Of these, what the machine's host gave to others.
    pub steal: u64,
}

impl Usage {
    /// What a process has used so far: those of its threads that live.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn of(pid: u32) -> Result<Self> {
        let mut all = Self::default();
        let tasks = format!("/proc/{pid}/task");
        for task in fs::read_dir(&tasks).with_context(|| format!("{tasks}: the process has ended"))? {
            // A thread may end while it is looked at.
            if let Some(one) = task.ok().and_then(|task| Self::of_thread(&task.path())) {
                all = all.plus(&one);
            }
        }
        Ok(all)
    }

    fn of_thread(task: &Path) -> Option<Self> {
        let read = |name| fs::read_to_string(task.join(name)).ok();
        Self::parse(&read("stat")?, &read("schedstat")?, &read("status")?)
    }

    fn parse(stat: &str, schedstat: &str, status: &str) -> Option<Self> {
        // The name is in brackets, and may have brackets and spaces itself.
        let (start, rest) = stat.rsplit_once(')')?;
        let name = start.split_once('(')?.1;
        let field = |number: usize| rest.split_ascii_whitespace().nth(number)?.parse::<u64>().ok();
        let (user, system) = (field(11)?, field(12)?);
        let mut times = schedstat.split_ascii_whitespace().map_while(|field| field.parse::<u64>().ok());
        let (ran_ns, waited_ns) = (times.next()?, times.next()?);
        let involuntary = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"))?;
        let of_all = |ticks: u64| u128::from(ran_ns) * u128::from(ticks) / u128::from((user + system).max(1));
        // One that is too young for a tick is taken to have run in its own code.
        let system_ns = u64::try_from(of_all(system)).expect("a part of a u64");
        Some(Self {
            user_ns: ran_ns - system_ns,
            system_ns,
            waited_ns,
            involuntary: involuntary.trim().parse().ok()?,
            threads_ns: [(name.to_owned(), ran_ns)].into(),
        })
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// What came since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        // The split by ticks may move a few nanoseconds back.
        self.with(earlier, u64::saturating_sub)
    }

    fn with(&self, other: &Self, join: fn(u64, u64) -> u64) -> Self {
        let mut threads_ns = self.threads_ns.clone();
        for (name, ns) in &other.threads_ns {
            let own = threads_ns.entry(name.clone()).or_default();
            *own = join(*own, *ns);
        }
        Self {
            user_ns: join(self.user_ns, other.user_ns),
            system_ns: join(self.system_ns, other.system_ns),
            waited_ns: join(self.waited_ns, other.waited_ns),
            involuntary: join(self.involuntary, other.involuntary),
            threads_ns,
        }
    }

    /// Nanoseconds on a core.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.user_ns + self.system_ns
    }
}

impl Machine {
    /// What it has done so far.
    ///
    /// # Errors
    /// Where `/proc/stat` isn't Linux'.
    pub fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        Self::parse(&stat).context("/proc/stat begins with the sum of all cores")
    }

    fn parse(stat: &str) -> Option<Self> {
        let first = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = first.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user's already.
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = ticks[..] else { return None };
        let busy = user + nice + system + irq + softirq + steal;
        Some(Self { total: busy + idle + iowait, busy, steal })
    }

    /// What came since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            total: self.total.saturating_sub(earlier.total),
            busy: self.busy.saturating_sub(earlier.busy),
            steal: self.steal.saturating_sub(earlier.steal),
        }
    }

    /// A part of all, from 0 to 1.
    #[must_use]
    pub fn share(&self, ticks: u64) -> f64 {
        ticks as f64 / self.total.max(1) as f64
    }
}

/// A process' memory that is its own (RssAnon: heap and stacks, no program text), in bytes.
///
/// # Errors
/// Where it has ended.
pub fn memory(pid: u32) -> Result<u64> {
    let file = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&file).with_context(|| format!("{file}: the process has ended"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("Linux since 4.5")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("a number of KiB")?;
    Ok(kib * 1024)
}

/// What the kernel of this machine holds for all that runs on it, in bytes: its objects (`Slab`), the stacks of threads
/// (`KernelStack`), page tables (`PageTables`), and what waits in sockets of TCP (`mem` of `/proc/net/sockstat`).
///
/// Objects are a socket's own, its inode, its file and its name; also what has nothing to do with sockets, such as the
/// cache of file names. So only the difference between two looks says anything, and that of many connections. What it
/// does not hold: tables of descriptors and other memory of `vmalloc` (8 to 16 bytes a descriptor), pages of drivers, and
/// the sockets of another network namespace in `mem`.
///
/// # Errors
/// Where `/proc` isn't Linux'.
pub fn kernel_memory() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let sockstat = fs::read_to_string("/proc/net/sockstat").context("/proc/net/sockstat")?;
    // SAFETY: it takes a plain number.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).context("the size of a page")?;
    parse_kernel_memory(&meminfo, &sockstat, page).context("/proc/meminfo and /proc/net/sockstat as Linux has them")
}

fn parse_kernel_memory(meminfo: &str, sockstat: &str, page: u64) -> Option<u64> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = tcp.split_ascii_whitespace().skip_while(|word| *word != "mem").skip(1);
    let pages: u64 = words.next()?.parse().ok()?;
    Some((kib("Slab")? + kib("KernelStack")? + kib("PageTables")?) * 1024 + pages * page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_memory_is_the_sum_of_its_parts_and_not_of_their_like() {
        let meminfo = "MemTotal: 9 kB\nSlab:             100 kB\nSReclaimable:  60 kB\nKernelStack:  20 kB\n\
            PageTables:  3 kB\nSecPageTables:  50 kB\n";
        let sockstat = "sockets: used 9\nTCP: inuse 8 orphan 0 tw 7 alloc 9 mem 5\nUDP: inuse 0 mem 4\n";
        assert_eq!(parse_kernel_memory(meminfo, sockstat, 4096), Some(123 * 1024 + 5 * 4096));
        assert_eq!(parse_kernel_memory(meminfo, "TCP: inuse 8\n", 4096), None);
        assert_eq!(parse_kernel_memory("Slab: 1 kB\n", sockstat, 4096), None);
        assert!(kernel_memory().unwrap() > 1 << 20, "no kernel runs in a MiB");
    }

    const STAT: &str = "77 (a (b) c) S 1 77 77 0 -1 4194304 10 0 0 0 30 10 0 0 20 0 3 0 5 0 0";
    const STATUS: &str = "Name:\tx\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t9\n";

    #[test]
    fn a_threads_time_is_split_as_its_ticks_are() {
        let usage = Usage::parse(STAT, "400000001 77 5\n", STATUS).unwrap();
        let threads_ns = [("a (b) c".to_owned(), 400_000_001)].into();
        let expected =
            Usage { user_ns: 300_000_001, system_ns: 100_000_000, waited_ns: 77, involuntary: 9, threads_ns };
        assert_eq!(usage, expected);
        let twice = usage.plus(&usage);
        assert_eq!(twice.total_ns(), 800_000_002);
        assert_eq!(twice.since(&usage), usage);
        assert_eq!(Usage::parse("77 (a", "1 2 3", STATUS), None);
    }

    #[test]
    fn a_process_is_seen_to_work() {
        let before = Usage::of(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while Usage::of(std::process::id()).unwrap().since(&before).total_ns() < 1_000_000 {
            sum = (0..10_000_u64).fold(sum, |sum, number| sum.wrapping_mul(31).wrapping_add(number));
        }
        assert_ne!(std::hint::black_box(sum), 1);
        assert!(memory(std::process::id()).unwrap() > 0);
        assert!(Usage::of(u32::MAX).is_err());
    }

    #[test]
    fn the_machines_steal_is_a_part_of_its_time() {
        let machine = Machine::parse("cpu  10 0 20 50 5 5 5 5 7 0\ncpu0 1\n").unwrap();
        assert_eq!(machine, Machine { total: 100, busy: 45, steal: 5 });
        assert!((machine.share(machine.steal) - 0.05).abs() < 1e-9);
        let now = Machine::now().unwrap();
        assert!(now.total >= now.busy && now.busy > now.steal, "{now:?}");
        assert_eq!(Machine::parse("cpu 1 2"), None);
    }
}
