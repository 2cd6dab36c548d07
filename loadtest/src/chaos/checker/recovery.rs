//! Recovery times: from the loss of a connection until the client has everything that was produced before it was
//! connected again. Also finds the fault that caused the loss.

use std::collections::{BTreeMap, BTreeSet};

use super::TopicProgress;
use crate::chaos::log::{ClientLogEntry, EndCause, FaultSpan};
use crate::chaos::schedule::{FaultKind, Lane};

/// Time after the end of a fault in which it still counts as a cause: pods wait for their lease, and clients return to
/// their owner.
const AFTERMATH_MS: u64 = 10_000;

/// Largest difference between the times that different threads log for the same moment.
const SKEW_MS: u64 = 200;

/// Time in which a client reads what is left in the buffers of its socket.
const AFTER_STALL_MS: u64 = 2_000;

/// The loss of a connection and the recovery from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The client's number.
    pub client: u32,
    /// The pod that served it.
    pub node: String,
    /// How the connection ended.
    pub end: EndCause,
    /// Time of the loss.
    pub from_ms: u64,
    /// Time when the client had caught up. `None` if it never did.
    pub to_ms: Option<u64>,
    /// Cause, as far as the fault log shows it.
    pub cause: Cause,
    /// Whether no other fault overlapped.
    pub is_alone: bool,
}

/// Cause of a lost connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// An injected fault.
    Fault(FaultKind),
    /// A redirect to another pod after a view change.
    Handover,
    /// No known fault.
    None,
}

impl Recovery {
    /// Duration of the recovery in milliseconds.
    #[must_use]
    pub fn took_ms(&self) -> Option<u64> {
        Some(self.to_ms? - self.from_ms)
    }
}

/// State of a client from the loss of a connection until it has caught up.
#[derive(Debug, Default)]
pub(super) struct RecoveryTracker {
    node: String,
    is_connected: bool,
    /// The recovery in progress.
    open: Option<Recovery>,
    /// Its loss was an injected absence: the recovery starts with the first attempt to reconnect.
    waits_for_try: bool,
    /// For each topic, the number that it must reach.
    target: Option<BTreeMap<u8, u64>>,
    /// Time when it last started to read again after a pause.
    read_again_ms: Option<u64>,
    /// The rolling restart by its index among the faults, and the redirects in it.
    redirects: (usize, u64),
    /// Pods that returned from other faults during that restart and got the client by a redirect.
    returned: BTreeSet<String>,
    /// It connects to a pod chosen at random, which may redirect it once at any time.
    chose_at_random: bool,
    /// Redirects since it disconnected as an injected fault, until it is connected again. Each such attempt may be
    /// redirected.
    redirects_since_injected: Option<u64>,
}

impl RecoveryTracker {
    pub(super) fn gone(&mut self, entry: &ClientLogEntry, end: EndCause) {
        self.target = None;
        if !std::mem::take(&mut self.is_connected) {
            return;
        }
        // After a close frame, it goes where the redirect points.
        self.chose_at_random = !matches!(end, EndCause::Closed(_));
        self.redirects_since_injected = matches!(end, EndCause::Injected(_)).then_some(0);
        match &mut self.open {
            // It had not caught up yet: it has been behind since the first loss, with more than one cause.
            Some(open) => open.is_alone = false,
            None => {
                self.waits_for_try = matches!(end, EndCause::Injected(FaultKind::Away | FaultKind::Compaction));
                self.open = Some(Recovery {
                    client: entry.client,
                    node: self.node.clone(),
                    end,
                    from_ms: entry.at_ms,
                    to_ms: None,
                    // A client that did not read finds, when it reads again, that its pod closed the connection.
                    cause: if self.read_again_ms.is_some_and(|at_ms| entry.at_ms < at_ms + AFTER_STALL_MS) {
                        Cause::Fault(FaultKind::Stall)
                    } else {
                        Cause::None
                    },
                    is_alone: true,
                });
            }
        }
    }

    pub(super) fn tries(&mut self, at_ms: u64) {
        if std::mem::take(&mut self.waits_for_try)
            && let Some(open) = &mut self.open
        {
            open.from_ms = at_ms;
        }
    }

    pub(super) fn reads_again(&mut self, at_ms: u64) {
        self.read_again_ms = Some(at_ms);
    }

    pub(super) fn failed(&mut self) {
        self.target = None;
        self.chose_at_random = true;
    }

    pub(super) fn connected(&mut self, node: &str, target: BTreeMap<u8, u64>) {
        node.clone_into(&mut self.node);
        self.is_connected = true;
        self.chose_at_random = false;
        self.redirects_since_injected = None;
        self.target = Some(target);
    }

    /// Counts a redirect. Returns the rolling restart in progress, if any, and the number of redirects in it. Redirects
    /// after an injected disconnect are counted separately, for each attempt. Not attributed to the restart are the
    /// first answer to a client that chose a pod at random, and the first redirect to a pod that returns from another
    /// fault.
    pub(super) fn redirected<'a>(
        &mut self,
        at_ms: u64,
        to: &str,
        spans: &'a [FaultSpan],
    ) -> Option<(&'a FaultSpan, u64)> {
        if !self.is_connected && std::mem::take(&mut self.chose_at_random) {
            return None;
        }
        let is_of = |span: &FaultSpan| {
            span.kind == FaultKind::Rolling && (span.from_ms..=span.to_ms + SKEW_MS).contains(&at_ms)
        };
        let rolling = spans.iter().position(is_of)?;
        if let Some(redirects) = &mut self.redirects_since_injected {
            *redirects += 1;
            return Some((&spans[rolling], *redirects));
        }
        if self.redirects.0 != rolling {
            self.redirects = (rolling, 0);
            self.returned.clear();
        }
        if is_returning(to, at_ms, spans) && self.returned.insert(to.to_owned()) {
            return None;
        }
        self.redirects.1 += 1;
        Some((&spans[rolling], self.redirects.1))
    }

    /// Returns the recovery if this entry completes it.
    pub(super) fn caught_up(
        &mut self,
        entry: &ClientLogEntry,
        topics: &BTreeMap<u8, TopicProgress>,
    ) -> Option<Recovery> {
        let target = self.target.as_ref()?;
        let has = |topic: &u8, number: u64| {
            topics.get(topic).is_some_and(|progress| progress.next.max(progress.forgiven) >= number)
        };
        if !target.iter().all(|(topic, number)| *number == 0 || has(topic, *number)) {
            return None;
        }
        self.target = None;
        let mut open = self.open.take()?;
        open.to_ms = Some(entry.at_ms);
        Some(open)
    }

    /// Returns the recovery that never completed.
    pub(super) fn never(self) -> Option<Recovery> {
        self.open
    }
}

/// Sets the cause of each recovery.
pub(super) fn causes(recoveries: &mut [Recovery], spans: &[FaultSpan]) {
    for recovery in recoveries {
        let to_ms = recovery.to_ms.unwrap_or(u64::MAX);
        recovery.cause = cause(recovery, spans);
        let others = spans.iter().filter(|span| span.kind.lane() != Lane::Clients);
        let mut others =
            others.filter(|span| Cause::Fault(span.kind) != recovery.cause && overlaps(span, recovery.from_ms, to_ms));
        recovery.is_alone &= others.next().is_none();
    }
}

/// Whether Redis was up and had its data during a restart and shortly before.
pub(super) fn has_redis(rolling: &FaultSpan, spans: &[FaultSpan]) -> bool {
    let mut of_redis = spans.iter().filter(|span| span.kind.lane() == Lane::Redis);
    !of_redis.any(|span| overlaps(span, rolling.from_ms, rolling.to_ms))
}

/// Whether a pod returns at this time from a fault other than a rolling restart. It may have to wait for Redis.
pub(super) fn is_returning(pod: &str, at_ms: u64, spans: &[FaultSpan]) -> bool {
    let hit_the_pod = |span: &&FaultSpan| {
        matches!(span.kind, FaultKind::Kill | FaultKind::Stop | FaultKind::Scale | FaultKind::Compaction)
            && span.target.split(',').any(|name| name == pod)
    };
    let with_redis = |of: &FaultSpan| {
        let redis = spans.iter().filter(|span| span.kind.lane() == Lane::Redis && overlaps(span, of.from_ms, of.to_ms));
        redis.map(|span| span.to_ms).fold(of.to_ms, u64::max)
    };
    spans.iter().filter(hit_the_pod).any(|of| (of.from_ms..=with_redis(of) + AFTERMATH_MS).contains(&at_ms))
}

fn overlaps(span: &FaultSpan, from_ms: u64, to_ms: u64) -> bool {
    span.from_ms <= to_ms && span.to_ms + AFTERMATH_MS >= from_ms
}

fn cause(recovery: &Recovery, spans: &[FaultSpan]) -> Cause {
    if recovery.cause != Cause::None {
        return recovery.cause;
    }
    if let EndCause::Injected(kind) = recovery.end {
        return Cause::Fault(kind);
    }
    let at_ms = recovery.from_ms;
    let at = |span: &&FaultSpan| (span.from_ms.saturating_sub(SKEW_MS)..=span.to_ms + AFTERMATH_MS).contains(&at_ms);
    let hits = |span: &&FaultSpan| span.target.split(',').any(|name| name == recovery.node);
    let of_its_pod = spans.iter().filter(|span| span.kind.lane() == Lane::Pods).filter(at).rfind(hits);
    if let Some(span) = of_its_pod {
        return Cause::Fault(span.kind);
    }
    if recovery.end == EndCause::Closed(1012) {
        return Cause::Handover;
    }
    Cause::None
}
