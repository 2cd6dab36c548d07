//! Keeps one key set up to date. Where a read fails, the last good set stays in force. A token whose `kid` the set lacks
//! waits for the next read, if one may be made for it, and is checked once more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use tracing::{info, warn};

use super::metrics::SetMetrics;
use super::schedule::Schedule;
use super::source::{ReadFault, Source};
use crate::exchange::{TokenCheck, TokenChecks};
use crate::outage::{OutageLine, OutageLog};
use crate::protocol::auth::{KeySet, KeySets, SkippedKey, Unauthorized};

/// A token whose key the set lacked.
#[derive(Debug)]
pub(super) struct HeldBack {
    pub(super) check: TokenCheck,
    /// The edition that was asked; 0 for none.
    pub(super) edition: u64,
}

/// The task of one key set.
pub(super) struct Keeper {
    /// The set's index.
    pub(super) index: usize,
    pub(super) source: Source,
    /// `JWT_JWKS_REFRESH_MS`.
    pub(super) refresh: Duration,
    pub(super) keys: Arc<KeySets>,
    pub(super) checks: TokenChecks,
    pub(super) unknown: mpsc::Receiver<HeldBack>,
    /// Changes when the set is to be read again.
    pub(super) reload: watch::Receiver<u64>,
    pub(super) metrics: SetMetrics,
}

/// What happens to a token whose key the set lacked.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// The set was replaced meanwhile.
    CheckAgain,
    /// The set is read again for it.
    Read,
    Refuse,
}

impl Keeper {
    /// Runs for as long as the process.
    pub(super) async fn run(mut self) {
        let mut schedule = Schedule::new(self.refresh, Instant::now());
        let (mut outage, mut last_text) = (OutageLog::default(), Vec::new());
        let mut waiting: Option<HeldBack> = None;
        loop {
            let began = Instant::now();
            schedule.begin(began);
            self.reload.mark_unchanged();
            let read = self.source.read().await;
            let now = Instant::now();
            schedule.end(read.is_ok(), now);
            self.metrics.read_ended(read.is_ok(), now);
            match read {
                Ok((text, keys, skipped)) => {
                    self.log_success(outage.handle_success(now), &keys, &skipped, text != last_text);
                    self.metrics.set_keys(keys.len());
                    last_text = text;
                    self.keys.replace(self.index, keys);
                }
                Err(fault) => self.log_failure(outage.handle_failure(began, now), &fault),
            }
            if let Some(held_back) = waiting.take() {
                self.settle(held_back, &schedule);
            }
            waiting = self.wait(&schedule).await;
        }
    }

    /// Waits for the next read; returns the token that causes it, if one does.
    async fn wait(&mut self, schedule: &Schedule) -> Option<HeldBack> {
        loop {
            tokio::select! {
                () = sleep_until(schedule.next().into()) => return None,
                Ok(()) = self.reload.changed() => return None,
                Some(held_back) = self.unknown.recv() => {
                    if let Some(waiting) = self.settle(held_back, schedule) {
                        return Some(waiting);
                    }
                }
            }
        }
    }

    /// Answers a token, or has it checked again; returns it if the set is to be read for it.
    fn settle(&self, held_back: HeldBack, schedule: &Schedule) -> Option<HeldBack> {
        match self.fate(held_back.edition, schedule, Instant::now()) {
            Fate::CheckAgain => self.checks.repeat(held_back.check),
            Fate::Read => return Some(held_back),
            Fate::Refuse => held_back.check.answer(Err(Unauthorized::UnknownKey)),
        }
        None
    }

    fn fate(&self, edition: u64, schedule: &Schedule, now: Instant) -> Fate {
        if self.keys.edition(self.index) > edition {
            Fate::CheckAgain
        } else if schedule.may_ask(now) {
            Fate::Read
        } else {
            Fate::Refuse
        }
    }

    fn log_success(&self, line: Option<OutageLine>, keys: &KeySet, skipped: &[SkippedKey], is_new: bool) {
        if let Some(OutageLine::Ended(elapsed)) = line {
            info!(source = %self.source, ?elapsed, "key set is read again");
        }
        if is_new {
            info!(source = %self.source, keys = keys.len(), kids = ?keys.ids(), "key set in force");
            for key in skipped {
                warn!(source = %self.source, index = key.index, reason = %key.why, "key not used");
            }
        }
    }

    fn log_failure(&self, line: Option<OutageLine>, error: &ReadFault) {
        let last = if self.keys.edition(self.index) == 0 { "there is none yet" } else { "the last one stays in force" };
        match line {
            Some(OutageLine::Began) => warn!(source = %self.source, %error, "key set can't be read; {last}"),
            Some(OutageLine::Continues(elapsed)) => {
                warn!(source = %self.source, %error, ?elapsed, "key set still can't be read; {last}");
            }
            _ => {}
        }
    }
}
