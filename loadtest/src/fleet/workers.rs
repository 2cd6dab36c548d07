//! The harness's child processes: it starts this program with a hidden subcommand and exchanges lines on its pipes. An
//! early exit or a missing answer is an error that names the process.

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

/// Time limit for an answer, from a process on a busy core.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A child process of the harness. It is killed on drop.
pub struct Worker {
    name: &'static str,
    child: Child,
    lines: Receiver<String>,
}

impl Worker {
    /// Starts this program with a subcommand, on these cores if any, and sends it its plan.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(subcommand: &'static str, plan: &impl Serialize, cores: &[usize]) -> Result<Self> {
        let mut program = Program::new(own_program()?);
        program.arg(subcommand).stdin(Stdio::piped()).stdout(Stdio::piped());
        run_on(&mut program, cores);
        let mut child = spawn(program).with_context(|| format!("{subcommand} can't be started"))?;
        let output = BufReader::new(child.stdout.take().expect("its output is piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // Ends when the receiver is dropped.
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut worker = Self { name: subcommand, child, lines };
        worker.send(plan)?;
        Ok(worker)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line.
    ///
    /// # Errors
    /// If it has exited.
    pub fn send(&mut self, what: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(what).context("plain values are JSON")?;
        line.push(b'\n');
        let input = self.child.stdin.as_mut().with_context(|| format!("the input of {} is closed", self.name))?;
        input.write_all(&line).with_context(|| format!("{} has exited", self.name))
    }

    /// Closes its input, after which it exits by itself.
    pub fn close(&mut self) {
        self.child.stdin = None;
    }

    /// Waits for its next line.
    ///
    /// # Errors
    /// If none comes.
    pub fn receive<T: DeserializeOwned>(&mut self, within: Duration) -> Result<T> {
        let Ok(line) = self.lines.recv_timeout(within) else {
            match self.child.try_wait().ok().flatten() {
                Some(status) => bail!("{} exited: {status}", self.name),
                None => bail!("{} sent nothing for {within:?}", self.name),
            }
        };
        serde_json::from_str(&line).with_context(|| format!("{} sent {line}", self.name))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have exited by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The path of this program. A test of it runs in a subdirectory.
fn own_program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("the program's own path")?;
    let directory = this.parent().context("a directory up")?;
    let directory = if directory.ends_with("deps") { directory.parent().context("a directory up")? } else { directory };
    Ok(directory.join("loadtest"))
}

/// The client processes.
pub struct Workers(Vec<Worker>);

impl Workers {
    /// Starts a process for each plan. They connect on command.
    ///
    /// # Errors
    /// If one can't be started.
    pub fn start(plans: &[ClientsPlan], cores: &[usize]) -> Result<Self> {
        plans.iter().map(|plan| Worker::start("fleet-clients", plan, cores)).collect::<Result<_>>().map(Self)
    }

    /// Commands all to connect.
    ///
    /// # Errors
    /// If one has exited.
    pub fn connect(&mut self) -> Result<()> {
        self.command(WorkerCommand::Connect).map(|_| ())
    }

    /// The counts of each process. This resets their latencies.
    ///
    /// # Errors
    /// If one has exited.
    pub fn mark(&mut self) -> Result<Vec<Counts>> {
        self.command(WorkerCommand::Mark)
    }

    /// The final counts of each process, which then exits.
    ///
    /// # Errors
    /// If one has exited.
    pub fn stop(&mut self) -> Result<Vec<Counts>> {
        self.command(WorkerCommand::Stop)
    }

    fn command(&mut self, command: WorkerCommand) -> Result<Vec<Counts>> {
        for worker in &mut self.0 {
            worker.send(&command)?;
        }
        self.0.iter_mut().map(|worker| worker.receive(ANSWER_WITHIN)).collect()
    }
}

/// The counts of all processes together.
#[must_use]
pub fn sum(counts: &[Counts]) -> Counts {
    let mut all = Counts::default();
    counts.iter().for_each(|one| all.add(one));
    all
}
