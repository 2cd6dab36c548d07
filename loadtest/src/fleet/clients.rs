//! A client process: one thread, one epoll, thousands of connections. It opens them at a given rate, counts what they
//! receive, and answers the harness on its pipe.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::connection::{ClientState, FleetConnection, ReadOutcome, Sampler};
use super::epoll::{Epoll, Ready};
use super::schedule::assessment;
use super::usage::Usage;
use super::wire::{ClientsPlan, Counts, WorkerCommand};
use crate::client::Ask;
use crate::process::{allow_descriptors, loopback};

/// Handshakes in progress at a time. More would only wait in the gateway's backlog.
const HANDSHAKES_MAX: u64 = 512;

/// Delay before a client reconnects after a close or a failure. After a redirect there is none.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Interval at which slow clients read.
const SLOW_EVERY: Duration = Duration::from_millis(100);

/// Source addresses of a process. There are several because a dropped connection keeps its port for a while.
const SOURCES: usize = 4;

/// Largest read in bytes.
const SCRATCH_BYTES: usize = 256 * 1024;

/// The epoll token of the pipe.
const PIPE: u64 = u64::MAX;

/// A client, with or without a connection.
struct FleetClient {
    connection: Option<FleetConnection>,
    memory: ClientState,
    /// Index of the target to which it connects.
    target: usize,
}

struct ClientProcess {
    plan: ClientsPlan,
    epoll: Epoll,
    clients: Vec<FleetClient>,
    sources: Vec<Ipv4Addr>,
    /// The request to each target, without assessment and cursor.
    asks: Vec<Ask>,
    counts: Counts,
    sampler: Sampler,
    scratch: Vec<u8>,
    /// Clients that will reconnect, with the earliest time.
    retries: VecDeque<(Instant, usize)>,
    /// Handshakes in progress.
    handshakes: u64,
    /// Clients that have started their first connection.
    begun: usize,
    /// Time at which the first connection was due, once the harness has requested connections.
    began: Option<Instant>,
    /// The client that drops its connection next, and the time of that.
    returning: usize,
    next_return: Option<Instant>,
    next_slow: Instant,
}

/// Runs the clients of the plan in the first line of standard input, until that input ends.
///
/// # Errors
/// If the system lacks resources for the clients.
pub fn run() -> Result<()> {
    let mut pipe = Pipe::default();
    let first = pipe.wait_line()?.context("the first line is the plan")?;
    let plan: ClientsPlan = serde_json::from_str(&first).context("the first line is the plan")?;
    allow_descriptors(u64::from(plan.count) + 100);
    let mut clients = ClientProcess::new(plan)?;
    clients.epoll.add_readable(io::stdin().as_raw_fd(), PIPE)?;
    let mut is_open = true;
    while is_open {
        // The first command may have arrived together with the plan.
        while let Some(line) = pipe.line() {
            let command: WorkerCommand = serde_json::from_str(&line).context("a command")?;
            clients.report()?;
            match command {
                WorkerCommand::Connect => clients.began = Some(Instant::now()),
                WorkerCommand::Mark => {}
                WorkerCommand::Stop => return Ok(()),
            }
        }
        if clients.turn()? {
            is_open = pipe.read()?;
        }
    }
    Ok(())
}

impl ClientProcess {
    fn new(plan: ClientsPlan) -> Result<Self> {
        let (count, slow, returning) = (plan.count as usize, plan.slow as usize, plan.returning as usize);
        // With several pods, any client may be redirected and then resumes there.
        let all_keep = plan.targets.len() > 1;
        let first = plan.first as usize;
        let client = |number: usize| {
            let is_slow = number >= count - slow;
            let keeps_cursor = all_keep || is_slow || number < returning;
            let memory = ClientState { keeps_cursor, is_slow, cursor: String::new() };
            FleetClient { connection: None, memory, target: (first + number) % plan.targets.len() }
        };
        let is_loopback = plan.targets.iter().all(|target| target.address.ip().is_loopback());
        let now = Instant::now();
        Ok(Self {
            epoll: Epoll::new().context("epoll")?,
            clients: (0..count).map(client).collect(),
            sources: (0..if is_loopback { SOURCES } else { 0 }).map(|_| loopback()).collect(),
            asks: plan.targets.iter().map(|target| target.ask().token(&plan.token)).collect(),
            counts: Counts::default(),
            sampler: Sampler::new(plan.sample),
            scratch: vec![0; SCRATCH_BYTES],
            retries: VecDeque::new(),
            handshakes: 0,
            begun: 0,
            began: None,
            returning: 0,
            next_return: None,
            next_slow: now + SLOW_EVERY,
            plan,
        })
    }

    /// Waits for events and handles them. Returns whether the harness sent something.
    fn turn(&mut self) -> Result<bool> {
        let wait = self.open_due();
        self.drop_due();
        self.read_slow();
        let mut ready: Vec<Ready> = Vec::new();
        ready.extend(self.epoll.wait(wait).context("epoll")?);
        let mut has_command = false;
        for Ready { token, to_write } in ready {
            if token == PIPE {
                has_command = true;
                continue;
            }
            let number = usize::try_from(token).expect("a client's number");
            self.serve(number, to_write)?;
        }
        Ok(has_command)
    }

    // ---- connecting -------------------------------------------------------------------------------------------------

    /// Starts the connections that are due. Returns the time until the next one.
    fn open_due(&mut self) -> Duration {
        let now = Instant::now();
        let mut wait = SLOW_EVERY;
        while self.handshakes < HANDSHAKES_MAX {
            if let Some(&(at, number)) = self.retries.front()
                && at <= now
            {
                self.retries.pop_front();
                self.begin(number);
            } else if let Some(began) = self.began
                && self.begun < self.clients.len()
            {
                let due = began + Duration::from_secs_f64(self.begun as f64 / self.plan.connects_per_second);
                if due > now {
                    wait = wait.min(due - now);
                    break;
                }
                self.begun += 1;
                self.begin(self.begun - 1);
            } else {
                break;
            }
        }
        let others = [self.retries.front().map(|(at, _)| *at), self.next_return, Some(self.next_slow)];
        others.into_iter().flatten().fold(wait, |wait, at| wait.min(at.saturating_duration_since(now)))
    }

    fn begin(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let source = self.sources.get(number % SOURCES).copied();
        let to = self.plan.targets[client.target].address;
        let begun = FleetConnection::begin(to, source, client.memory.is_slow).and_then(|connection| {
            self.epoll.await_connected(connection.fd(), number as u64)?;
            Ok(connection)
        });
        match begun {
            Ok(connection) => {
                client.connection = Some(connection);
                self.handshakes += 1;
            }
            Err(error) => self.fail(number, error.to_string()),
        }
    }

    fn fail(&mut self, number: usize, reason: String) {
        self.end(number);
        *self.counts.failed.entry(reason).or_default() += 1;
        self.retries.push_back((Instant::now() + RETRY_AFTER, number));
    }

    /// Closes a connection from this side.
    fn end(&mut self, number: usize) {
        if let Some(connection) = self.clients[number].connection.take() {
            let of = if connection.is_open() { &mut self.counts.open } else { &mut self.handshakes };
            *of -= 1;
        }
    }

    fn ask(&mut self, number: usize) -> io::Result<()> {
        let FleetClient { connection: Some(connection), memory, target } = &mut self.clients[number] else {
            return Ok(());
        };
        let id = self.plan.first + u32::try_from(number).expect("a client's number");
        let mut ask = self.asks[*target].clone().assessment(&assessment(self.plan.load.assessment_of_client(id)));
        if !memory.cursor.is_empty() {
            ask = ask.parameter(&format!("cursor={}", memory.cursor));
        }
        connection.ask(&ask.head())?;
        self.epoll.await_readable(connection.fd(), number as u64)
    }

    // ---- reading ----------------------------------------------------------------------------------------------------

    fn serve(&mut self, number: usize, to_write: bool) -> Result<()> {
        // An earlier event of this turn may have closed it.
        let Some(connection) = &self.clients[number].connection else { return Ok(()) };
        if connection.is_connecting() {
            if to_write && let Err(error) = self.ask(number) {
                self.fail(number, error.to_string());
            }
            return Ok(());
        }
        self.read(number, usize::MAX);
        let client = &self.clients[number];
        if let Some(connection) = &client.connection
            && client.memory.is_slow
            && connection.is_open()
        {
            // From now on the timer of slow clients decides when it reads.
            self.epoll.remove(connection.fd()).context("epoll")?;
        }
        Ok(())
    }

    fn read(&mut self, number: usize, budget: usize) {
        let FleetClient { connection: Some(connection), memory, .. } = &mut self.clients[number] else { return };
        let was_open = connection.is_open();
        let turn = connection.read(&mut self.scratch, budget, memory, &mut self.counts, &mut self.sampler);
        if connection.is_open() && !was_open {
            self.handshakes -= 1;
        }
        match turn {
            ReadOutcome::On => {}
            ReadOutcome::Ended(code) => {
                self.end(number);
                *self.counts.closed.entry(code).or_default() += 1;
                self.retries.push_back((Instant::now() + RETRY_AFTER, number));
            }
            ReadOutcome::Moved(url) => {
                self.end(number);
                match self.plan.targets.iter().position(|target| target.url == url) {
                    Some(target) => {
                        self.clients[number].target = target;
                        self.counts.redirects += 1;
                        self.retries.push_front((Instant::now(), number));
                    }
                    None => self.fail(number, format!("a redirect to {url}, which is not one of the URLs")),
                }
            }
            ReadOutcome::Failed(reason) => self.fail(number, reason),
        }
    }

    fn read_slow(&mut self) {
        let now = Instant::now();
        if now < self.next_slow {
            return;
        }
        self.next_slow = now + SLOW_EVERY;
        let budget = f64::from(self.plan.slow_bytes_per_second) * SLOW_EVERY.as_secs_f64();
        let count = self.clients.len();
        for number in count - self.plan.slow as usize..count {
            if self.clients[number].connection.as_ref().is_some_and(FleetConnection::is_open) {
                self.read(number, budget as usize);
            }
        }
    }

    /// Drops the connections that are due, once all clients are connected. They reconnect at once.
    fn drop_due(&mut self) {
        let Some(every) = (self.plan.returning > 0 && self.plan.returns_per_second > 0.0)
            .then(|| Duration::from_secs_f64(1.0 / self.plan.returns_per_second))
        else {
            return;
        };
        let now = Instant::now();
        if self.next_return.is_none() && self.counts.connected >= self.clients.len() as u64 {
            self.next_return = Some(now + every);
        }
        while let Some(at) = self.next_return.filter(|at| *at <= now) {
            self.next_return = Some(at + every);
            let number = self.returning;
            self.returning = (self.returning + 1) % self.plan.returning as usize;
            if self.clients[number].connection.as_ref().is_some_and(FleetConnection::is_open) {
                self.end(number);
                self.counts.dropped += 1;
                self.retries.push_front((now, number));
            }
        }
    }

    /// Sends the counts to the harness.
    fn report(&mut self) -> Result<()> {
        self.counts.usage = Usage::of(std::process::id())?;
        let mut line = serde_json::to_vec(&self.counts).context("counts are JSON")?;
        line.push(b'\n');
        io::stdout().write_all(&line).and_then(|()| io::stdout().flush()).context("the harness is gone")?;
        for histogram in [
            &mut self.counts.latencies,
            &mut self.counts.tick_latencies,
            &mut self.counts.late_latencies,
            &mut self.counts.handshakes,
        ] {
            *histogram = crate::fleet::statistics::Latencies::default();
        }
        Ok(())
    }
}

/// The lines of standard input, read without blocking on a whole line.
#[derive(Default)]
struct Pipe(VecDeque<u8>);

impl Pipe {
    /// Reads once. Returns whether the input is still open.
    fn read(&mut self) -> Result<bool> {
        let mut buffer = [0; 64 * 1024];
        let len = io::stdin().lock().read(&mut buffer).context("the harness's pipe")?;
        self.0.extend(&buffer[..len]);
        Ok(len > 0)
    }

    fn line(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.0.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).into_owned())
    }

    fn wait_line(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(line) = self.line() {
                return Ok(Some(line));
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }
}
