//! How long clients were behind: from the loss of a connection until the client has all that was made before it was
//! connected again; and which fault it was.

use std::collections::{BTreeMap, BTreeSet};

use super::TopicProgress;
use crate::chaos::log::{ClientLogEntry, EndCause, FaultSpan};
use crate::chaos::schedule::{FaultKind, Lane};

/// A fault is the cause of what happens up to this time after its end: pods wait for their lease, and clients come
/// home.
const AFTERMATH_MS: u64 = 10_000;

/// Logs of different threads tell the same moment a little differently.
const SKEW_MS: u64 = 200;

/// What was left in a socket's buffers is read within this time.
const AFTER_STALL_MS: u64 = 2_000;

/// A client lost its connection, and came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Which client.
    pub client: u32,
    /// The pod that it was on.
    pub node: String,
    /// How the connection ended.
    pub end: EndCause,
    /// When.
    pub from_ms: u64,
    /// When it had all that was made before it was connected again; none where that never came.
    pub to_ms: Option<u64>,
    /// Why, as far as the faults tell.
    pub cause: Cause,
    /// Whether no other fault was in its way.
    pub is_alone: bool,
}

/// Why a client lost its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A fault.
    Fault(FaultKind),
    /// It was sent to another pod, for the view had changed.
    Handover,
    /// No fault that is known.
    None,
}

impl Recovery {
    /// How long it took.
    #[must_use]
    pub fn took_ms(&self) -> Option<u64> {
        Some(self.to_ms? - self.from_ms)
    }
}

/// A client's state between two connections, and after the second.
#[derive(Debug, Default)]
pub(super) struct Disturbed {
    node: String,
    is_connected: bool,
    /// What is to be told once it has caught up.
    open: Option<Recovery>,
    /// A client that left by its own will is behind from its first try to come back.
    waits_for_try: bool,
    /// The number that it must reach per topic.
    target: Option<BTreeMap<u8, u64>>,
    /// When it last read again after it did not.
    read_again_ms: Option<u64>,
    /// Redirects in the rolling restart at this place among the faults.
    redirects: (usize, u64),
    /// Pods that came back from other faults while that restart went on, and were sent the client by those who had it.
    returned: BTreeSet<String>,
    /// It calls a pod that it chose by chance: which may send it on once, restart or not.
    calls_anyone: bool,
    /// Redirects since it left by its own will, until it is connected: whoever calls again and again is sent on each
    /// time.
    own_way: Option<u64>,
}

impl Disturbed {
    pub(super) fn gone(&mut self, entry: &ClientLogEntry, end: EndCause) {
        self.target = None;
        if !std::mem::take(&mut self.is_connected) {
            return;
        }
        // One that was told to go, goes where it was told.
        self.calls_anyone = !matches!(end, EndCause::Closed(_));
        self.own_way = matches!(end, EndCause::Own(_)).then_some(0);
        match &mut self.open {
            // It was not yet back: it is behind since the first loss, and not by one cause alone.
            Some(open) => open.is_alone = false,
            None => {
                self.waits_for_try = matches!(end, EndCause::Own(FaultKind::Away | FaultKind::Compaction));
                self.open = Some(Recovery {
                    client: entry.client,
                    node: self.node.clone(),
                    end,
                    from_ms: entry.at_ms,
                    to_ms: None,
                    // A client that did not read finds, when it reads again, that its pod gave it up.
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
        self.calls_anyone = true;
    }

    pub(super) fn connected(&mut self, node: &str, target: BTreeMap<u8, u64>) {
        node.clone_into(&mut self.node);
        self.is_connected = true;
        self.calls_anyone = false;
        self.own_way = None;
        self.target = Some(target);
    }

    /// Counts a redirect; returns the rolling restart that is under way, if one is, and how many there were in it:
    /// those on each way back of a client that had left by its own will for themselves. Not the restart's doing are the
    /// first answer to a client that called a pod by chance, and the first time that the client is sent to a pod that
    /// comes back from another fault.
    pub(super) fn redirected<'a>(
        &mut self,
        at_ms: u64,
        to: &str,
        spans: &'a [FaultSpan],
    ) -> Option<(&'a FaultSpan, u64)> {
        if !self.is_connected && std::mem::take(&mut self.calls_anyone) {
            return None;
        }
        let is_of = |span: &FaultSpan| {
            span.kind == FaultKind::Rolling && (span.from_ms..=span.to_ms + SKEW_MS).contains(&at_ms)
        };
        let rolling = spans.iter().position(is_of)?;
        if let Some(redirects) = &mut self.own_way {
            *redirects += 1;
            return Some((&spans[rolling], *redirects));
        }
        if self.redirects.0 != rolling {
            self.redirects = (rolling, 0);
            self.returned.clear();
        }
        if comes_back(to, at_ms, spans) && self.returned.insert(to.to_owned()) {
            return None;
        }
        self.redirects.1 += 1;
        Some((&spans[rolling], self.redirects.1))
    }

    /// The way back, where it is at its end with this entry.
    pub(super) fn caught_up(
        &mut self,
        entry: &ClientLogEntry,
        places: &BTreeMap<u8, TopicProgress>,
    ) -> Option<Recovery> {
        let target = self.target.as_ref()?;
        let has =
            |topic: &u8, number: u64| places.get(topic).is_some_and(|place| place.next.max(place.forgiven) >= number);
        if !target.iter().all(|(topic, number)| *number == 0 || has(topic, *number)) {
            return None;
        }
        self.target = None;
        let mut open = self.open.take()?;
        open.to_ms = Some(entry.at_ms);
        Some(open)
    }

    /// The way back that never came to its end.
    pub(super) fn never(self) -> Option<Recovery> {
        self.open
    }
}

/// Says of each recovery which fault it was.
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

/// Whether Redis was there, and knew what it knew, while a restart went on, and for a while before.
pub(super) fn has_redis(rolling: &FaultSpan, spans: &[FaultSpan]) -> bool {
    let mut of_redis = spans.iter().filter(|span| span.kind.lane() == Lane::Redis);
    !of_redis.any(|span| overlaps(span, rolling.from_ms, rolling.to_ms))
}

/// Whether a pod comes back at this time from a fault other than a restart: it may have to wait for Redis.
pub(super) fn comes_back(pod: &str, at_ms: u64, spans: &[FaultSpan]) -> bool {
    let took_it_away = |span: &&FaultSpan| {
        matches!(span.kind, FaultKind::Kill | FaultKind::Stop | FaultKind::Scale)
            && span.target.split(',').any(|name| name == pod)
    };
    let with_redis = |of: &FaultSpan| {
        let redis = spans.iter().filter(|span| span.kind.lane() == Lane::Redis && overlaps(span, of.from_ms, of.to_ms));
        redis.map(|span| span.to_ms).fold(of.to_ms, u64::max)
    };
    spans.iter().filter(took_it_away).any(|of| (of.from_ms..=with_redis(of) + AFTERMATH_MS).contains(&at_ms))
}

fn overlaps(span: &FaultSpan, from_ms: u64, to_ms: u64) -> bool {
    span.from_ms <= to_ms && span.to_ms + AFTERMATH_MS >= from_ms
}

fn cause(recovery: &Recovery, spans: &[FaultSpan]) -> Cause {
    if recovery.cause != Cause::None {
        return recovery.cause;
    }
    if let EndCause::Own(kind) = recovery.end {
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
