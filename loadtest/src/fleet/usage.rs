//! What processes used of the machine, and how noisy it was meanwhile, from `/proc`.
//!
//! A thread's time on a core comes in nanoseconds from its `schedstat`. How much of it was the kernel's is known from
//! `stat` alone, whose ticks are of ten milliseconds: the split is theirs, the sum is exact.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

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

/// What processes used over a stretch of time, and what the machine did meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UsageInterval {
    /// Its length, in seconds.
    pub seconds: f64,
    /// Of the processes, all together.
    pub usage: Usage,
    /// Of the machine.
    pub machine: MachineUsage,
}

/// What the whole machine did since it began, or between two looks, in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineUsage {
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
    /// If it has ended.
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

    /// The same of some processes, all together.
    ///
    /// # Errors
    /// If one has ended.
    pub fn of_all(pids: &[u32]) -> Result<Self> {
        pids.iter().try_fold(Self::default(), |sum, pid| Ok(sum.plus(&Self::of(*pid)?)))
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

impl UsageInterval {
    /// That of `meanwhile`, and what it returns.
    ///
    /// # Errors
    /// Those of `meanwhile`; and where a process has ended.
    pub fn of<T>(pids: &[u32], meanwhile: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let look = || Ok::<_, anyhow::Error>((Instant::now(), Usage::of_all(pids)?, MachineUsage::now()?));
        let (begin, usage, machine) = look()?;
        let done = meanwhile()?;
        let (end, usage_after, machine_after) = look()?;
        let seconds = (end - begin).as_secs_f64();
        let (usage, machine) = (usage_after.since(&usage), machine_after.since(&machine));
        Ok((Self { seconds, usage, machine }, done))
    }

    /// The cores that the processes used: 0.01 is a hundredth of one.
    #[must_use]
    pub fn cores(&self) -> f64 {
        self.cores_of(self.usage.total_ns())
    }

    /// The same of a thread, by its name.
    #[must_use]
    pub fn cores_of_thread(&self, name: &str) -> f64 {
        self.cores_of(self.usage.threads_ns.get(name).copied().unwrap_or(0))
    }

    fn cores_of(&self, ns: u64) -> f64 {
        ns as f64 / 1e9 / self.seconds
    }

    /// The time on cores beyond what the processes use at rest, in nanoseconds; below 0, where they did less than at
    /// rest.
    #[must_use]
    pub fn ns_beyond(&self, rest: &Self) -> f64 {
        (self.cores() - rest.cores()) * self.seconds * 1e9
    }
}

impl MachineUsage {
    /// What it has done so far.
    ///
    /// # Errors
    /// If `/proc/stat` isn't Linux'.
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
/// If it has ended.
pub fn memory(pid: u32) -> Result<u64> {
    let file = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&file).with_context(|| format!("{file}: the process has ended"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("Linux since 4.5")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("a number of KiB")?;
    Ok(kib * 1024)
}

/// What the kernel of this machine holds, of what connections are made of, in bytes: objects of the kernel, with their
/// share of the pages that they lie in, and what waits in sockets of TCP (`mem` of `/proc/net/sockstat`).
///
/// Who may read `/proc/slabinfo` (root) has the objects of the kinds that connections have ([`BOTH_ENDS`],
/// [`SERVERS_ALONE`]); anybody else has all objects of the kernel (`Slab` of `/proc/meminfo`), which also come and go
/// with files and processes that have nothing to do with it. So only the difference between two looks says anything,
/// and that of many connections. What it does not hold: tables of descriptors (8 to 16 bytes a descriptor), small
/// objects of no kind of their own (`kmalloc`, some tens of bytes a connection), ports' and drivers' memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KernelMemory {
    /// What both ends of a connection have, of both ends where both are of this machine.
    pub both_ends: u64,
    /// What servers alone have.
    pub servers: u64,
}

/// The kinds that each end of a connection has: the socket, its inode, its file, its name, what security modules keep
/// of them, and packets that wait.
const BOTH_ENDS: &[&str] = &[
    "TCP",
    "TCPv6",
    "sock_inode_cache",
    "filp",
    "dentry",
    "lsm_file_cache",
    "lsm_inode_cache",
    "skbuff_head_cache",
    "skbuff_small_head",
];

/// The kind that an operation of io_uring is, one of which waits for each client. Clients wait by epoll, and its kinds
/// are not counted.
const SERVERS_ALONE: &[&str] = &["io_kiocb"];

impl KernelMemory {
    /// What it holds now.
    ///
    /// # Errors
    /// If `/proc` isn't Linux'.
    pub fn now() -> Result<Self> {
        let sockstat = fs::read_to_string("/proc/net/sockstat").context("/proc/net/sockstat")?;
        // SAFETY: it takes a plain number.
        let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).context("the size of a page")?;
        let waiting = waiting_in_tcp(&sockstat, page).context("/proc/net/sockstat has the memory of TCP")?;
        let objects = match fs::read_to_string("/proc/slabinfo") {
            Ok(slabinfo) => Self {
                both_ends: objects_of(&slabinfo, BOTH_ENDS, page),
                servers: objects_of(&slabinfo, SERVERS_ALONE, page),
            },
            Err(_) => {
                let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
                Self { both_ends: all_objects(&meminfo).context("/proc/meminfo has Slab")?, servers: 0 }
            }
        };
        Ok(Self { both_ends: objects.both_ends + waiting, ..objects })
    }

    /// Of what came since an earlier look, for so many connections whose other ends are here too, what is a server's
    /// for one connection.
    #[must_use]
    pub fn per_connection_since(&self, earlier: &Self, connections: u32) -> f64 {
        let more = |of: fn(&Self) -> u64| of(self).saturating_sub(of(earlier)) as f64 / f64::from(connections);
        more(|all| all.both_ends) / 2.0 + more(|all| all.servers)
    }
}

/// The objects of these kinds that are in use, each with its share of the pages that it lies in.
fn objects_of(slabinfo: &str, kinds: &[&str], page: u64) -> u64 {
    let bytes = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?;
        let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        // Objects in use, all objects, their size, objects and pages of a slab.
        let [used, _, _, per_slab, pages] = numbers[..] else { return None };
        kinds.contains(&name).then(|| used * pages * page / per_slab.max(1))
    };
    slabinfo.lines().filter_map(bytes).sum()
}

fn all_objects(meminfo: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("Slab:"))?.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn waiting_in_tcp(sockstat: &str, page: u64) -> Option<u64> {
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let pages = tcp.split_ascii_whitespace().skip_while(|word| *word != "mem").nth(1)?;
    pages.parse::<u64>().ok().map(|pages| pages * page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_memory_is_that_of_the_kinds_that_connections_have() {
        let slabinfo = "slabinfo - version: 2.1\n\
            # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables\n\
            tw_sock_TCP  9 16 256 16 1 : tunables 0 0 0 : slabdata 1 1 0\n\
            TCP  130 949 2368 13 8 : tunables 0 0 0 : slabdata 73 73 0\n\
            filp  42 3213 192 21 1 : tunables 0 0 0 : slabdata 153 153 0\n\
            io_kiocb  32 32 256 16 1 : tunables 0 0 0 : slabdata 1 1 0\n";
        assert_eq!(objects_of(slabinfo, BOTH_ENDS, 4096), 130 / 13 * 32_768 + 42 / 21 * 4096);
        assert_eq!(objects_of(slabinfo, SERVERS_ALONE, 4096), 2 * 4096);
        assert_eq!(all_objects("MemTotal: 9 kB\nSlab:             100 kB\nSReclaimable:  60 kB\n"), Some(102_400));
        assert_eq!(all_objects("MemTotal: 9 kB\n"), None);
        let sockstat = "sockets: used 9\nTCP: inuse 8 orphan 0 tw 7 alloc 9 mem 5\nUDP: inuse 0 mem 4\n";
        assert_eq!(waiting_in_tcp(sockstat, 4096), Some(5 * 4096));
        assert_eq!(waiting_in_tcp("TCP: inuse 8\n", 4096), None);
        assert!(KernelMemory::now().unwrap().both_ends > 0);
    }

    #[test]
    fn of_both_ends_a_server_has_one() {
        let before = KernelMemory { both_ends: 1_000, servers: 500 };
        let after = KernelMemory { both_ends: 9_000, servers: 900 };
        assert_eq!(after.per_connection_since(&before, 4), 1_000.0 + 100.0);
        assert_eq!(before.per_connection_since(&after, 4), 0.0, "others may have let go of more");
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
    fn what_is_beyond_rest_is_told_by_the_time_that_it_took() {
        let stretch = |seconds, user_ns, shard_ns| {
            let threads_ns = [("shard".to_owned(), shard_ns)].into();
            UsageInterval {
                seconds,
                usage: Usage { user_ns, threads_ns, ..Usage::default() },
                machine: MachineUsage::default(),
            }
        };
        let (rest, busy) = (stretch(2.0, 10_000_000, 4_000_000), stretch(10.0, 150_000_000, 90_000_000));
        assert!((rest.cores() - 0.005).abs() < 1e-9);
        assert!((busy.cores_of_thread("shard") - 0.009).abs() < 1e-9);
        assert_eq!(busy.cores_of_thread("none"), 0.0);
        assert!((busy.ns_beyond(&rest) - 100_000_000.0).abs() < 1e-3);
        assert!((rest.ns_beyond(&busy) + 20_000_000.0).abs() < 1e-3);
        let (stretch, done) = UsageInterval::of(&[std::process::id()], || Ok(7)).unwrap();
        assert!(done == 7 && stretch.seconds > 0.0 && !stretch.usage.threads_ns.is_empty(), "{stretch:?}");
        assert!(UsageInterval::of(&[u32::MAX], || Ok(())).is_err());
    }

    #[test]
    fn the_machines_steal_is_a_part_of_its_time() {
        let machine = MachineUsage::parse("cpu  10 0 20 50 5 5 5 5 7 0\ncpu0 1\n").unwrap();
        assert_eq!(machine, MachineUsage { total: 100, busy: 45, steal: 5 });
        assert!((machine.share(machine.steal) - 0.05).abs() < 1e-9);
        let now = MachineUsage::now().unwrap();
        assert!(now.total >= now.busy && now.busy > now.steal, "{now:?}");
        assert_eq!(MachineUsage::parse("cpu 1 2"), None);
    }
}
