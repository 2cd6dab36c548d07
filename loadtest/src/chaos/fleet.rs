//! The pods of a run: starts, stops and restarts them, and gives clients their URLs.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::RunFindings;
use super::log_reader::LogReader;
use crate::pods::{Plan, Pod};
use crate::process::Signal;

/// Largest number of pods.
pub(super) const PODS_MAX: usize = 5;

/// `HISTORY_SECONDS` of the pods.
pub(super) const HISTORY: Duration = Duration::from_secs(60);

/// Time limit until a pod is ready, also if all brokers were down at its start.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// Time limit for a pod to exit after SIGTERM: its drain, and more for a busy machine.
const ENDED_WITHIN: Duration = Duration::from_secs(20);

/// Settings of the pods, with which two minutes contain what would otherwise take an hour.
const SETTINGS: &[(&str, &str)] = &[
    ("HISTORY_SECONDS", "60"),
    ("HEARTBEAT_INTERVAL", "1000"),
    ("CONNECTION_TIMEOUT", "6000"),
    ("STALL_TIMEOUT_MS", "8000"),
    ("DRAIN_DELAY_MS", "500"),
    ("DRAIN_MS", "1500"),
    ("MARKET_FLUSH_MS", "500"),
    ("SHARDS", "2"),
];

/// The URLs of the pods that should be running, from which clients choose.
#[derive(Debug, Clone, Default)]
pub(super) struct Directory(Arc<Mutex<Vec<String>>>);

impl Directory {
    /// A random URL.
    pub(super) fn any(&self, random: &mut fastrand::Rng) -> Option<String> {
        random.choice(self.0.lock().unwrap_or_else(PoisonError::into_inner).iter()).cloned()
    }

    fn set(&self, urls: Vec<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = urls;
    }
}

/// The pods of a run.
pub(super) struct PodFleet {
    plans: Vec<Plan>,
    /// The running pods, by the index of their plan.
    pods: Vec<Option<Pod>>,
    directory: Directory,
    findings: Arc<RunFindings>,
}

impl PodFleet {
    /// Creates the plans of a fleet, each changed by `adapt`, with its logs in a directory. No pod runs yet.
    pub(super) fn new(
        dir: &Path,
        (kafka, redis_port): (&str, u16),
        adapt: impl Fn(Plan) -> Plan,
        logs: &LogReader,
        findings: &Arc<RunFindings>,
    ) -> Self {
        let log = |name: &str| logs.pipe_to(&dir.join(format!("{name}.log"))).expect("pipes are left");
        let names = (0..PODS_MAX).map(|number| format!("pod-{number}"));
        let plan = |name: &str| adapt(Plan::new(name, kafka, redis_port).set_all(SETTINGS)).errors_to(log(name));
        let plans = names.map(|name| plan(&name));
        let pods = (0..PODS_MAX).map(|_| None).collect();
        Self { plans: plans.collect(), pods, directory: Directory::default(), findings: Arc::clone(findings) }
    }

    /// The directory of URLs.
    pub(super) fn directory(&self) -> Directory {
        self.directory.clone()
    }

    /// Numbers of the running pods.
    pub(super) fn running(&self) -> Vec<usize> {
        (0..PODS_MAX).filter(|number| self.pods[*number].is_some()).collect()
    }

    /// Name of a pod.
    pub(super) fn name(number: usize) -> String {
        format!("pod-{number}")
    }

    /// Names of the running pods, separated by commas.
    pub(super) fn names(&self) -> String {
        self.running().into_iter().map(Self::name).collect::<Vec<_>>().join(",")
    }

    /// Starts a pod without waiting until it is ready. Clients may connect to it from now on.
    pub(super) fn spawn(&mut self, number: usize) {
        self.pods[number] = Some(self.plans[number].spawn());
        self.publish();
    }

    /// Waits until all running pods are ready.
    pub(super) fn await_ready(&mut self) {
        let deadline = Instant::now() + READY_WITHIN;
        for number in self.running() {
            let pod = self.pods[number].as_ref().expect("the pod runs");
            while pod.try_get("/ready").is_none_or(|answer| answer.status != 200) {
                if Instant::now() > deadline {
                    self.findings.add(format!("{} was not ready within {READY_WITHIN:?}", Self::name(number)));
                    break;
                }
                if has_ended(pod) {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
        self.restart_exited();
    }

    /// Kills a pod. It stays in the directory, because clients don't know of the kill.
    pub(super) fn kill(&mut self, number: usize) {
        if let Some(mut pod) = self.pods[number].take() {
            pod.kill();
        }
    }

    /// Sends SIGTERM to pods and waits until they exit. With `for_good` they leave the directory.
    pub(super) fn end(&mut self, numbers: &[usize], for_good: bool) {
        let ending: Vec<(usize, Pod)> =
            numbers.iter().filter_map(|number| Some((*number, self.pods[*number].take()?))).collect();
        if for_good {
            self.publish();
        }
        for (_, pod) in &ending {
            pod.signal(Signal::Term);
        }
        let deadline = Instant::now() + ENDED_WITHIN;
        for (number, mut pod) in ending {
            let status = loop {
                match pod.exited() {
                    None if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                    status => break status,
                }
            };
            match status {
                Some(status) if status.success() => {}
                Some(status) => self.findings.add(format!("{} exited with {status} after SIGTERM", Self::name(number))),
                None => self.findings.add(format!("{} did not exit within {ENDED_WITHIN:?}", Self::name(number))),
            }
        }
    }

    /// Pauses or resumes a pod.
    pub(super) fn pause(&self, number: usize, signal: Signal) {
        if let Some(pod) = &self.pods[number] {
            pod.signal(signal);
        }
    }

    /// Restarts pods that exited by themselves, and records a finding for each, so that the run continues.
    pub(super) fn restart_exited(&mut self) {
        for number in self.running() {
            if self.pods[number].as_mut().and_then(Pod::exited).is_some() {
                self.findings.add(format!("{} exited by itself; see its log", Self::name(number)));
                self.pods[number] = None;
                self.spawn(number);
            }
        }
    }

    fn publish(&self) {
        let urls = self.running().into_iter().filter_map(|number| Some(self.pods[number].as_ref()?.url()));
        self.directory.set(urls.collect());
    }
}

fn has_ended(pod: &Pod) -> bool {
    !Path::new(&format!("/proc/{}/fd/1", pod.pid())).exists()
}
