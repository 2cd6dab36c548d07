//! Usage of the machine by processes, and by others meanwhile, from `/proc`.
//!
//! A thread's CPU time comes from its `schedstat`, in nanoseconds. Only `stat` splits it into user and kernel time, in
//! ticks of ten milliseconds: so the split is approximate, and the sum is exact.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Usage of a process since its start, or between two snapshots.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// User CPU time in nanoseconds.
    pub user_ns: u64,
    /// Kernel CPU time in nanoseconds.
    pub system_ns: u64,
    /// Nanoseconds in which its threads waited for a busy core.
    pub waited_ns: u64,
    /// Involuntary context switches.
    pub involuntary: u64,
    /// CPU time by thread name in nanoseconds; threads with the same name are added up.
    pub threads_ns: BTreeMap<String, u64>,
}

/// Usage of processes and of the machine over an interval.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UsageInterval {
    /// Length of the interval in seconds.
    pub seconds: f64,
    /// Usage of all the processes together.
    pub usage: Usage,
    /// Usage of the machine.
    pub machine: MachineUsage,
}

/// Usage of the whole machine since its start, or between two snapshots, in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineUsage {
    /// All time of all cores.
    pub total: u64,
    /// Time that was not idle.
    pub busy: u64,
    /// Time that the host gave to other machines.
    pub steal: u64,
}

impl Usage {
    /// Usage of a process so far, in its threads that still exist.
    ///
    /// # Errors
    /// If it has exited.
    pub fn of(pid: u32) -> Result<Self> {
        let mut all = Self::default();
        let tasks = format!("/proc/{pid}/task");
        for task in fs::read_dir(&tasks).with_context(|| format!("{tasks}: the process has exited"))? {
            // A thread may end meanwhile.
            if let Some(one) = task.ok().and_then(|task| Self::of_thread(&task.path())) {
                all = all.plus(&one);
            }
        }
        Ok(all)
    }

    /// Usage of some processes together.
    ///
    /// # Errors
    /// If one has exited.
    pub fn of_all(pids: &[u32]) -> Result<Self> {
        pids.iter().try_fold(Self::default(), |sum, pid| Ok(sum.plus(&Self::of(*pid)?)))
    }

    fn of_thread(task: &Path) -> Option<Self> {
        let read = |name| fs::read_to_string(task.join(name)).ok();
        Self::parse(&read("stat")?, &read("schedstat")?, &read("status")?)
    }

    fn parse(stat: &str, schedstat: &str, status: &str) -> Option<Self> {
        // The name is in brackets, and may itself contain brackets and spaces.
        let (start, rest) = stat.rsplit_once(')')?;
        let name = start.split_once('(')?.1;
        let field = |number: usize| rest.split_ascii_whitespace().nth(number)?.parse::<u64>().ok();
        let (user, system) = (field(11)?, field(12)?);
        let mut times = schedstat.split_ascii_whitespace().map_while(|field| field.parse::<u64>().ok());
        let (ran_ns, waited_ns) = (times.next()?, times.next()?);
        let involuntary = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"))?;
        let of_all = |ticks: u64| u128::from(ran_ns) * u128::from(ticks) / u128::from((user + system).max(1));
        // The time of a thread without ticks counts as user time.
        let system_ns = u64::try_from(of_all(system)).expect("a part of a u64");
        Some(Self {
            user_ns: ran_ns - system_ns,
            system_ns,
            waited_ns,
            involuntary: involuntary.trim().parse().ok()?,
            threads_ns: [(name.to_owned(), ran_ns)].into(),
        })
    }

    /// The sum of two usages.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// The difference from an earlier snapshot.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        // The approximate split may decrease by a few nanoseconds.
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

    /// Total CPU time in nanoseconds.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.user_ns + self.system_ns
    }
}

impl UsageInterval {
    /// Usage during `meanwhile`, and its result.
    ///
    /// # Errors
    /// Those of `meanwhile`, or if a process has exited.
    pub fn of<T>(pids: &[u32], meanwhile: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let snapshot = || Ok::<_, anyhow::Error>((Instant::now(), Usage::of_all(pids)?, MachineUsage::now()?));
        let (begin, usage, machine) = snapshot()?;
        let done = meanwhile()?;
        let (end, usage_after, machine_after) = snapshot()?;
        let seconds = (end - begin).as_secs_f64();
        let (usage, machine) = (usage_after.since(&usage), machine_after.since(&machine));
        Ok((Self { seconds, usage, machine }, done))
    }

    /// Cores that the processes used: 0.01 is a hundredth of a core.
    #[must_use]
    pub fn cores(&self) -> f64 {
        self.cores_of(self.usage.total_ns())
    }

    /// Cores that a thread used, by its name.
    #[must_use]
    pub fn cores_of_thread(&self, name: &str) -> f64 {
        self.cores_of(self.usage.threads_ns.get(name).copied().unwrap_or(0))
    }

    fn cores_of(&self, ns: u64) -> f64 {
        ns as f64 / 1e9 / self.seconds
    }

    /// CPU time in nanoseconds beyond that of an idle interval. Negative if it is less.
    #[must_use]
    pub fn ns_beyond(&self, rest: &Self) -> f64 {
        (self.cores() - rest.cores()) * self.seconds * 1e9
    }
}

impl MachineUsage {
    /// Usage of the machine so far.
    ///
    /// # Errors
    /// If `/proc/stat` is not as on Linux.
    pub fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        Self::parse(&stat).context("/proc/stat begins with the sum of all cores")
    }

    fn parse(stat: &str) -> Option<Self> {
        let first = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = first.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
        // user, nice, system, idle, iowait, irq, softirq, steal. Guest time is already included in user.
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = ticks[..] else { return None };
        let busy = user + nice + system + irq + softirq + steal;
        Some(Self { total: busy + idle + iowait, busy, steal })
    }

    /// The difference from an earlier snapshot.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            total: self.total.saturating_sub(earlier.total),
            busy: self.busy.saturating_sub(earlier.busy),
            steal: self.steal.saturating_sub(earlier.steal),
        }
    }

    /// The share of all time, from 0 to 1.
    #[must_use]
    pub fn share(&self, ticks: u64) -> f64 {
        ticks as f64 / self.total.max(1) as f64
    }
}

/// A process's own memory (RssAnon: heap and stacks, no program text), in bytes.
///
/// # Errors
/// If it has exited.
pub fn memory(pid: u32) -> Result<u64> {
    let file = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&file).with_context(|| format!("{file}: the process has exited"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("Linux since 4.5")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("a number of KiB")?;
    Ok(kib * 1024)
}

/// Kernel memory of this machine for connections, in bytes: kernel objects with their share of the pages they are on,
/// and data waiting in TCP sockets (`mem` of `/proc/net/sockstat`).
///
/// Root can read `/proc/slabinfo`, which has the objects of the kinds that connections use ([`BOTH_ENDS`],
/// [`SERVERS_ALONE`]). Other users get all kernel objects (`Slab` of `/proc/meminfo`), which also change with unrelated
/// files and processes. So only the difference between two snapshots is meaningful, and only for many connections. Not
/// included are descriptor tables (8 to 16 bytes per descriptor), small objects without their own kind (`kmalloc`, some
/// tens of bytes per connection), and memory of ports and drivers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KernelMemory {
    /// Objects that both ends of a connection have. Both are included if both are on this machine.
    pub both_ends: u64,
    /// Objects that only servers have.
    pub servers: u64,
}

/// Kinds of objects of each end of a connection: the socket, its inode, its file, its name, data of security modules,
/// and waiting packets.
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

/// The kind of an io_uring operation, one of which waits for each client. Clients use epoll, whose objects are not
/// counted.
const SERVERS_ALONE: &[&str] = &["io_kiocb"];

impl KernelMemory {
    /// The current memory.
    ///
    /// # Errors
    /// If `/proc` is not as on Linux.
    pub fn now() -> Result<Self> {
        let sockstat = fs::read_to_string("/proc/net/sockstat").context("/proc/net/sockstat")?;
        // SAFETY: sysconf takes a plain number.
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

    /// The growth since an earlier snapshot for the server's end of one connection, if both ends of all `connections`
    /// are on this machine.
    #[must_use]
    pub fn per_connection_since(&self, earlier: &Self, connections: u32) -> f64 {
        let more = |of: fn(&Self) -> u64| of(self).saturating_sub(of(earlier)) as f64 / f64::from(connections);
        more(|all| all.both_ends) / 2.0 + more(|all| all.servers)
    }
}

/// Memory of the objects of these kinds in use, each with its share of the pages it is on.
fn objects_of(slabinfo: &str, kinds: &[&str], page: u64) -> u64 {
    let bytes = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?;
        let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        // Objects in use, all objects, size of an object, objects per slab, pages per slab.
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
    fn kernel_memory_counts_the_kinds_of_objects_of_connections() {
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
    fn a_server_has_one_of_both_ends() {
        let before = KernelMemory { both_ends: 1_000, servers: 500 };
        let after = KernelMemory { both_ends: 9_000, servers: 900 };
        assert_eq!(after.per_connection_since(&before, 4), 1_000.0 + 100.0);
        assert_eq!(before.per_connection_since(&after, 4), 0.0, "other processes may have freed more");
    }

    const STAT: &str = "77 (a (b) c) S 1 77 77 0 -1 4194304 10 0 0 0 30 10 0 0 20 0 3 0 5 0 0";
    const STATUS: &str = "Name:\tx\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t9\n";

    #[test]
    fn the_time_of_a_thread_is_split_in_the_ratio_of_its_ticks() {
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
    fn the_usage_of_a_running_process_grows() {
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
    fn usage_beyond_idle_is_scaled_to_the_length_of_the_interval() {
        let interval = |seconds, user_ns, shard_ns| {
            let threads_ns = [("shard".to_owned(), shard_ns)].into();
            UsageInterval {
                seconds,
                usage: Usage { user_ns, threads_ns, ..Usage::default() },
                machine: MachineUsage::default(),
            }
        };
        let (rest, busy) = (interval(2.0, 10_000_000, 4_000_000), interval(10.0, 150_000_000, 90_000_000));
        assert!((rest.cores() - 0.005).abs() < 1e-9);
        assert!((busy.cores_of_thread("shard") - 0.009).abs() < 1e-9);
        assert_eq!(busy.cores_of_thread("none"), 0.0);
        assert!((busy.ns_beyond(&rest) - 100_000_000.0).abs() < 1e-3);
        assert!((rest.ns_beyond(&busy) + 20_000_000.0).abs() < 1e-3);
        let (interval, done) = UsageInterval::of(&[std::process::id()], || Ok(7)).unwrap();
        assert!(done == 7 && interval.seconds > 0.0 && !interval.usage.threads_ns.is_empty(), "{interval:?}");
        assert!(UsageInterval::of(&[u32::MAX], || Ok(())).is_err());
    }

    #[test]
    fn steal_is_a_share_of_the_machines_time() {
        let machine = MachineUsage::parse("cpu  10 0 20 50 5 5 5 5 7 0\ncpu0 1\n").unwrap();
        assert_eq!(machine, MachineUsage { total: 100, busy: 45, steal: 5 });
        assert!((machine.share(machine.steal) - 0.05).abs() < 1e-9);
        let now = MachineUsage::now().unwrap();
        assert!(now.total >= now.busy && now.busy > now.steal, "{now:?}");
        assert_eq!(MachineUsage::parse("cpu 1 2"), None);
    }
}
