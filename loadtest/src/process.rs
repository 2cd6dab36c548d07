//! Child processes that never outlive the tests, each with a temporary directory, a free port and a log.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, Once, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Poll interval of conditions that cause no event.
const POLL_EVERY: Duration = Duration::from_millis(10);

/// Lines of a process's log that are shown if its test fails.
const LOG_LINES_SHOWN: usize = 60;

/// Polls `find` until it returns a value, and returns that value.
///
/// # Panics
/// If it returns nothing `within` the time. The message names `what`.
#[track_caller]
pub fn eventually<T>(what: &str, within: Duration, mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {within:?}");
        thread::sleep(POLL_EVERY);
    }
}

/// Polls a condition for a time, to check what must not change.
///
/// # Panics
/// As soon as `holds` is false. The message names `what`.
#[track_caller]
pub fn always(what: &str, during: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + during;
    while Instant::now() < deadline {
        assert!(holds(), "{what}: no longer");
        thread::sleep(POLL_EVERY);
    }
}

// ---- processes ------------------------------------------------------------------------------------------------------

/// A signal that tests send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Term,
    /// SIGINT, as Ctrl-C sends.
    Int,
    /// SIGKILL.
    Kill,
    /// SIGQUIT, as Ctrl-\ sends.
    Quit,
    /// SIGHUP, as a closed terminal sends.
    Hup,
    /// SIGUSR1.
    User1,
    /// SIGUSR2.
    User2,
    /// SIGPIPE, as a write to a closed pipe sends.
    Pipe,
    /// SIGSTOP.
    Stop,
    /// SIGCONT.
    Cont,
}

/// A child process. It is killed when this value is dropped, and by the kernel when the test process ends.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to the file `log`.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn start(name: &str, command: Command, log: &Path) -> Self {
        Self::start_with(name, command, log, None)
    }

    /// Like [`Self::start`], with standard error redirected to `errors`.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn start_with(name: &str, mut command: Command, log: &Path, errors: Option<OwnedFd>) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("a log in our own directory");
        let err = errors.unwrap_or_else(|| out.try_clone().expect("a second handle of an open file").into());
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = spawn(command).unwrap_or_else(|error| panic!("{name} can't be started: {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If the process has exited and was reaped.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let number = match signal {
            Signal::Term => libc::SIGTERM,
            Signal::Int => libc::SIGINT,
            Signal::Kill => libc::SIGKILL,
            Signal::Quit => libc::SIGQUIT,
            Signal::Hup => libc::SIGHUP,
            Signal::User1 => libc::SIGUSR1,
            Signal::User2 => libc::SIGUSR2,
            Signal::Pipe => libc::SIGPIPE,
            Signal::Stop => libc::SIGSTOP,
            Signal::Cont => libc::SIGCONT,
        };
        let pid = libc::pid_t::try_from(self.pid()).expect("process ids fit pid_t");
        // SAFETY: kill takes plain numbers. The child is not reaped before `exited` or `drop` reports it, so the pid is
        // its own.
        let sent = unsafe { libc::kill(pid, number) };
        assert_eq!(sent, 0, "{signal:?} to {}: {}", self.name, io::Error::last_os_error());
    }

    /// Its exit status, if it has exited.
    ///
    /// # Panics
    /// If the kernel doesn't know it.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Waits until it exits.
    ///
    /// # Panics
    /// If it does not exit `within` the time.
    #[track_caller]
    pub fn wait_exit(&mut self, within: Duration) -> ExitStatus {
        let what = format!("{} exits", self.name);
        eventually(&what, within, || self.exited())
    }

    /// Kills it and waits until it has exited.
    pub fn kill(&mut self) {
        // It may have exited by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its output so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last lines of its output, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let mut lines = VecDeque::with_capacity(LOG_LINES_SHOWN);
        for line in log.lines() {
            if lines.len() == LOG_LINES_SHOWN {
                lines.pop_front();
            }
            lines.push_back(line);
        }
        format!("---- {} ----\n{}\n", self.name, Vec::from(lines).join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        self.kill();
    }
}

type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts a process from a thread that lives as long as this process: the kernel sends the signal of PR_SET_PDEATHSIG
/// when the *thread* that forked ends, and each test has its own thread.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: LazyLock<Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                // The caller waits for it. If it does not, the child does not matter any more.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    // SAFETY: prctl is async-signal-safe and touches nothing of ours.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let (answer, started) = mpsc::channel();
    let jobs = SPAWNER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    jobs.send((command, answer)).expect("the spawner never ends");
    started.recv().expect("the spawner answers")
}

/// Restricts a command to these cores. An empty list allows all cores.
pub fn run_on(command: &mut Command, cores: &[usize]) {
    if cores.is_empty() {
        return;
    }
    let set = core_set(cores);
    // SAFETY: sched_setaffinity is a plain system call, and the set is the closure's own.
    unsafe {
        command.pre_exec(move || match libc::sched_setaffinity(0, size_of_val(&set), &raw const set) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// Restricts this thread, and everything that it starts from now on, to these cores.
///
/// # Panics
/// If the machine does not have these cores.
pub fn stay_on(cores: &[usize]) {
    let set = core_set(cores);
    // SAFETY: the pointer and the size are of a live set, which the kernel only reads.
    let done = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    assert_eq!(done, 0, "cores {cores:?}: {}", io::Error::last_os_error());
}

/// The cores that this thread may run on, in order.
///
/// # Panics
/// If the kernel returns an error.
#[must_use]
pub fn own_cores() -> Vec<usize> {
    let mut set = core_set(&[]);
    // SAFETY: the pointer and the size are of a live set, and the kernel writes no more than that.
    let got = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    assert_eq!(got, 0, "{}", io::Error::last_os_error());
    let count = usize::try_from(libc::CPU_SETSIZE).expect("CPU_SETSIZE is small");
    // SAFETY: every number below CPU_SETSIZE lies in the set.
    (0..count).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
}

fn core_set(cores: &[usize]) -> libc::cpu_set_t {
    // SAFETY: a cpu_set_t is plain bits, for which zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let count = usize::try_from(libc::CPU_SETSIZE).expect("CPU_SETSIZE is small");
    for &core in cores.iter().filter(|core| **core < count) {
        // SAFETY: the number lies in the set.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    set
}

/// Raises the limit of open files, sockets included, of this process and those that it starts from now on.
///
/// # Panics
/// If the system allows fewer.
pub fn allow_descriptors(count: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is of a live struct of the type that getrlimit fills.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(got, 0, "{}", io::Error::last_os_error());
    if limit.rlim_cur < count {
        limit.rlim_cur = count;
        // SAFETY: as above; setrlimit only reads it.
        let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        assert_eq!(set, 0, "{count} open files (ulimit -Hn {count}): {}", io::Error::last_os_error());
    }
}

/// Limits a process to `more` descriptors beyond those that it has open.
///
/// # Panics
/// If it has ended.
pub fn leave_descriptors(pid: u32, more: u64) {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is running").count();
    let count = u64::try_from(open).expect("few") + more;
    let limit = libc::rlimit { rlim_cur: count, rlim_max: count };
    let pid = libc::pid_t::try_from(pid).expect("process ids fit pid_t");
    // SAFETY: the pointer is of a live struct, which prlimit only reads. A null pointer asks for no result.
    let set = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// The path of an installed program.
///
/// # Panics
/// If it is missing. The message is one line that says how to install it.
#[must_use]
pub fn tool(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    found
        .unwrap_or_else(|| panic!("{name} is missing; on Debian: apt-get install -y --no-install-recommends {package}"))
}

// ---- directories and ports ------------------------------------------------------------------------------------------

/// A directory that is removed when this value is dropped. If the test process is killed, the next one removes it.
#[derive(Debug)]
pub struct TempDir(PathBuf);

const TEMP_PREFIX: &str = "shardgate-test-";

impl TempDir {
    /// A new directory.
    ///
    /// # Panics
    /// If the machine's temporary directory can't be written to.
    #[must_use]
    pub fn new(label: &str) -> Self {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(remove_orphans);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{TEMP_PREFIX}{}-{number}-{label}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{} can't be created: {error}", path.display()));
        Self(path)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into the directory and returns its path.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("our own directory can be written to");
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A process that was just killed may still hold files open. The next test process removes the rest.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn remove_orphans() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(TEMP_PREFIX)) else { continue };
        let owner = rest.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(owner).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A loopback address that no other test on this machine uses: 127.a.b.c, from the process id and a counter.
#[must_use]
pub fn loopback() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let [.., high, low] = std::process::id().to_be_bytes();
    let [.., last] = (1 + number % 250).to_be_bytes();
    Ipv4Addr::new(127, high | 1, low, last)
}

/// A free port of `host`, outside the range that the system uses for outgoing connections, so that a server that is
/// down finds its port still free when it returns.
///
/// # Panics
/// If no port is free.
#[must_use]
pub fn free_port(host: Ipv4Addr) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_240;
    const COUNT: u32 = 22_000;
    (0..COUNT)
        .map(|_| {
            // Test binaries that run at the same time start far from each other.
            let index =
                std::process::id().wrapping_mul(7919).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
            u16::try_from(FIRST + index).expect("below 32768")
        })
        .find(|&port| TcpListener::bind(SocketAddr::new(IpAddr::V4(host), port)).is_ok())
        .expect("a free port among 22,000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_outlives_the_thread_that_started_it_and_is_killed_on_drop() {
        let dir = TempDir::new("process");
        let log = dir.path().join("log");
        let mut process = thread::spawn({
            let log = log.clone();
            move || {
                let mut command = Command::new("sh");
                command.args(["-c", "echo ready; exec sleep 1000"]);
                Process::start("sleeper", command, &log)
            }
        })
        .join()
        .unwrap();
        eventually("the process writes its log", Duration::from_secs(5), || {
            process.log().contains("ready").then_some(())
        });
        assert!(process.exited().is_none(), "the process still runs after the thread has ended");

        let pid = process.pid();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "killed and reaped");
    }

    #[test]
    fn the_message_about_a_missing_tool_says_how_to_install_it() {
        let message = std::panic::catch_unwind(|| tool("no-such-tool", "its-package")).unwrap_err();
        let message = message.downcast_ref::<String>().unwrap();
        assert_eq!(
            message,
            "no-such-tool is missing; on Debian: apt-get install -y --no-install-recommends its-package"
        );
    }

    #[test]
    fn directories_of_dead_test_processes_are_removed() {
        let orphan = std::env::temp_dir().join(format!("{TEMP_PREFIX}4999999-0-orphan"));
        fs::create_dir_all(&orphan).unwrap();
        remove_orphans();
        assert!(!orphan.exists());
    }
}
