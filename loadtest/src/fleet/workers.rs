//! The harness' own processes, as it sees them: it starts this program again with a hidden subcommand, and talks to it
//! by lines on its pipes. What they end with, or a question that they don't answer, is an error that says which one it
//! was.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command as Program, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{ClientsPlan, Counts, WorkerCommand};
use crate::process::{run_on, spawn};

/// An answer comes within this time, from a process whose core has much else to do.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A process of the harness. It is killed when this value is dropped.
pub struct Worker {
    name: &'static str,
    child: Child,
    lines: Receiver<String>,
}

impl Worker {
    /// Starts this program with a subcommand, on these cores where some are named, and tells it its plan.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(subcommand: &'static str, plan: &impl Serialize, cores: &[usize]) -> Result<Self> {
        let mut program = Program::new(own_program()?);
        program.arg(subcommand).stdin(Stdio::piped()).stdout(Stdio::piped());
        run_on(&mut program, cores);
        let mut child = spawn(program).with_context(|| format!("{subcommand} can't be started"))?;
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // Whoever no longer listens needs no more lines.
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut worker = Self { name: subcommand, child, lines };
        worker.tell(plan)?;
        Ok(worker)
    }

    /// Its process' number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line.
    ///
    /// # Errors
    /// If it has ended.
    pub fn tell(&mut self, what: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(what).context("plain values are JSON")?;
        line.push(b'\n');
        let input = self.child.stdin.as_mut().with_context(|| format!("{} was told to end", self.name))?;
        input.write_all(&line).with_context(|| format!("{} has ended", self.name))
    }

    /// Closes its input: it ends by itself.
    pub fn close(&mut self) {
        self.child.stdin = None;
    }

    /// Waits for the next line.
    ///
    /// # Errors
    /// If none comes.
    pub fn hear<T: DeserializeOwned>(&mut self, within: Duration) -> Result<T> {
        let Ok(line) = self.lines.recv_timeout(within) else {
            match self.child.try_wait().ok().flatten() {
                Some(status) => bail!("{} ended: {status}", self.name),
                None => bail!("{} says nothing for {within:?}", self.name),
            }
        };
        serde_json::from_str(&line).with_context(|| format!("{} said {line}", self.name))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself: that is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This program, also where a test of it runs: that lies in a directory beside.
fn own_program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("the program's own path")?;
    let directory = this.parent().context("a directory up")?;
    let directory = if directory.ends_with("deps") { directory.parent().context("a directory up")? } else { directory };
    Ok(directory.join("loadtest"))
}

/// All processes of clients.
pub struct Workers(Vec<Worker>);

impl Workers {
    /// Starts a process for each plan. They connect when they are told to.
    ///
    /// # Errors
    /// If one can't be started.
    pub fn start(plans: &[ClientsPlan], cores: &[usize]) -> Result<Self> {
        plans.iter().map(|plan| Worker::start("fleet-clients", plan, cores)).collect::<Result<_>>().map(Self)
    }

    /// Lets all begin to connect.
    ///
    /// # Errors
    /// If one has ended.
    pub fn connect(&mut self) -> Result<()> {
        self.ask(WorkerCommand::Connect).map(|_| ())
    }

    /// What each has counted; their latencies begin anew.
    ///
    /// # Errors
    /// If one has ended.
    pub fn mark(&mut self) -> Result<Vec<Counts>> {
        self.ask(WorkerCommand::Mark)
    }

    /// The same, for the last time.
    ///
    /// # Errors
    /// If one has ended.
    pub fn stop(&mut self) -> Result<Vec<Counts>> {
        self.ask(WorkerCommand::Stop)
    }

    fn ask(&mut self, command: WorkerCommand) -> Result<Vec<Counts>> {
        for worker in &mut self.0 {
            worker.tell(&command)?;
        }
        self.0.iter_mut().map(|worker| worker.hear(ANSWER_WITHIN)).collect()
    }
}

/// The counts of all processes together.
#[must_use]
pub fn sum(counts: &[Counts]) -> Counts {
    let mut all = Counts::default();
    counts.iter().for_each(|one| all.add(one));
    all
}
