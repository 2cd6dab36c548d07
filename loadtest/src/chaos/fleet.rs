//! The pods of a run: how each is started, ended and started again, and where clients look for one.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::RunFindings;
use super::log_reader::LogReader;
use crate::pods::{Plan, Pod};
use crate::process::Signal;

/// The fleet at its largest.
pub(super) const PODS_MAX: usize = 5;

/// The pods' lease.
pub(super) const LEASE_MS: u64 = 3_000;

/// How far back pods remember.
pub(super) const HISTORY: Duration = Duration::from_secs(60);

/// A pod is ready within this time, also when all brokers were down at its start.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// A pod that was asked to end has ended within this time: its drain, and what a busy machine adds.
const ENDED_WITHIN: Duration = Duration::from_secs(20);

/// What pods are set to, so that two minutes hold what else would take an hour.
const SETTINGS: &[(&str, &str)] = &[
    ("LEASE_TTL_MS", "3000"),
    ("HISTORY_SECONDS", "60"),
    ("HEARTBEAT_INTERVAL", "1000"),
    ("CONNECTION_TIMEOUT", "6000"),
    ("STALL_TIMEOUT_MS", "8000"),
    ("DRAIN_DELAY_MS", "500"),
    ("DRAIN_MS", "1500"),
    ("MARKET_FLUSH_MS", "500"),
    ("SHARDS", "2"),
];

/// Where clients look for a pod: the URLs of those that are meant to be there.
#[derive(Debug, Clone, Default)]
pub(super) struct Directory(Arc<Mutex<Vec<String>>>);

impl Directory {
    /// One of them.
    pub(super) fn any(&self, random: &mut fastrand::Rng) -> Option<String> {
        random.choice(self.0.lock().unwrap_or_else(PoisonError::into_inner).iter()).cloned()
    }

    fn set(&self, urls: Vec<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = urls;
    }
}

/// The pods.
pub(super) struct PodFleet {
    plans: Vec<Plan>,
    /// Those that run, by the place of their plan.
    pods: Vec<Option<Pod>>,
    directory: Directory,
    findings: Arc<RunFindings>,
}

impl PodFleet {
    /// The plans of a fleet whose logs lie in a directory; no pod runs yet.
    pub(super) fn new(dir: &Path, kafka: &str, redis_port: u16, logs: &LogReader, findings: &Arc<RunFindings>) -> Self {
        let log = |name: &str| logs.pipe_to(&dir.join(format!("{name}.log"))).expect("pipes are left");
        let names = (0..PODS_MAX).map(|number| format!("pod-{number}"));
        let plans = names.map(|name| Plan::new(&name, kafka, redis_port).set_all(SETTINGS).errors_to(log(&name)));
        let pods = (0..PODS_MAX).map(|_| None).collect();
        Self { plans: plans.collect(), pods, directory: Directory::default(), findings: Arc::clone(findings) }
    }

    /// Where clients look for a pod.
    pub(super) fn directory(&self) -> Directory {
        self.directory.clone()
    }

    /// The places of the pods that run.
    pub(super) fn running(&self) -> Vec<usize> {
        (0..PODS_MAX).filter(|place| self.pods[*place].is_some()).collect()
    }

    /// A pod's name.
    pub(super) fn name(place: usize) -> String {
        format!("pod-{place}")
    }

    /// The names of those that run.
    pub(super) fn names(&self) -> String {
        self.running().into_iter().map(Self::name).collect::<Vec<_>>().join(",")
    }

    /// Starts a pod; it is not ready yet. Clients look for it from now on.
    pub(super) fn spawn(&mut self, place: usize) {
        self.pods[place] = Some(self.plans[place].spawn());
        self.publish();
    }

    /// Waits until all that run are ready.
    pub(super) fn await_ready(&mut self) {
        let deadline = Instant::now() + READY_WITHIN;
        for place in self.running() {
            let pod = self.pods[place].as_ref().expect("it runs");
            while pod.try_get("/ready").is_none_or(|answer| answer.status != 200) {
                if Instant::now() > deadline {
                    self.findings.add(format!("{} was not ready within {READY_WITHIN:?}", Self::name(place)));
                    break;
                }
                if has_ended(pod) {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
        self.look();
    }

    /// Kills a pod. Clients go on looking for it: nobody tells them.
    pub(super) fn kill(&mut self, place: usize) {
        if let Some(mut pod) = self.pods[place].take() {
            pod.kill();
        }
    }

    /// Asks pods to end, and waits for it. `for_good` ones are no longer looked for by clients.
    pub(super) fn end(&mut self, places: &[usize], for_good: bool) {
        let ending: Vec<(usize, Pod)> =
            places.iter().filter_map(|place| Some((*place, self.pods[*place].take()?))).collect();
        if for_good {
            self.publish();
        }
        for (_, pod) in &ending {
            pod.signal(Signal::Term);
        }
        let deadline = Instant::now() + ENDED_WITHIN;
        for (place, mut pod) in ending {
            let status = loop {
                match pod.exited() {
                    None if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                    status => break status,
                }
            };
            match status {
                Some(status) if status.success() => {}
                Some(status) => self.findings.add(format!("{} ended with {status} when asked to", Self::name(place))),
                None => self.findings.add(format!("{} did not end within {ENDED_WITHIN:?}", Self::name(place))),
            }
        }
    }

    /// Pauses a pod, or lets it go on.
    pub(super) fn pause(&self, place: usize, signal: Signal) {
        if let Some(pod) = &self.pods[place] {
            pod.signal(signal);
        }
    }

    /// Looks whether a pod ended by itself. It is started again, so that the run shows what else there is.
    pub(super) fn look(&mut self) {
        for place in self.running() {
            if self.pods[place].as_mut().and_then(Pod::exited).is_some() {
                self.findings.add(format!("{} ended by itself; its log tells why", Self::name(place)));
                self.pods[place] = None;
                self.spawn(place);
            }
        }
    }

    fn publish(&self) {
        let urls = self.running().into_iter().filter_map(|place| Some(self.pods[place].as_ref()?.url()));
        self.directory.set(urls.collect());
    }
}

fn has_ended(pod: &Pod) -> bool {
    !Path::new(&format!("/proc/{}/fd/1", pod.pid())).exists()
}
