//! Checks a chaos run from its logs: lost, duplicate and out-of-order events, unexplained resets, and the recovery
//! times of clients. A pure function of the logs, run after the end.
//!
//! Clients connect before the first event, so each must receive every event of its assessment. Only a `reset` excuses
//! missing events, and only those sent to the brokers before it.

mod recovery;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::log::{ClientFact, ClientLogEntry, Fate, FaultSpan, ProducedEvent};
use super::producer::{COMPACTION_LAG, FRAGILE};
use super::schedule::{FaultKind, Lane};

pub use recovery::{Cause, Recovery};
use recovery::{RecoveryTracker, causes};

/// Largest number of redirects of a client in one rolling restart.
pub const REDIRECTS_MAX: u64 = 3;

/// The same while Redis is away. A pod that starts when Redis has lost its data takes the first slot that is vacant,
/// although its pod is about to claim it again, and that one moves once more.
pub const REDIRECTS_MAX_WITHOUT_REDIS: u64 = 4;

/// Violations that are listed per run. All are counted.
const VIOLATIONS_LISTED_MAX: usize = 40;

/// Slack on the length of an outage that outlasts the window: a pod reads its last records some time after they were
/// produced, and the window of another pod begins when that pod starts.
const OUTAGE_SLACK_MS: u64 = 5_000;

/// Time after the return of the brokers within which a pod reads all partitions again.
const AFTER_BROKERS_MS: u64 = 30_000;

/// Time after a truncation within which clients may get a reset: pods notice it at the next record, and clients that
/// were away when they return.
const AFTER_TRUNCATION_MS: u64 = 60_000;

/// Parameters of the check.
#[derive(Debug, Clone, Copy)]
pub struct CheckerRules {
    /// The pods' `HISTORY_SECONDS`.
    pub history: Duration,
}

/// Findings of a check.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    /// Events produced, without those of aborted transactions.
    pub made: u64,
    /// Events of aborted transactions.
    pub aborted: u64,
    /// Events whose fate the producer never learned.
    pub unknown: u64,
    /// Events produced, and lost by truncation of their log.
    pub truncated: u64,
    /// Events produced, and removed from their log by compaction.
    pub compacted: u64,
    /// Events received by all clients together.
    pub seen: u64,
    /// Connections opened.
    pub connections: u64,
    /// Connections resumed from a cursor.
    pub resumed: u64,
    /// Events that a client did not receive although it received a later one of the same topic.
    pub lost: u64,
    /// Events at the end of a topic that a client did not receive.
    pub missing_tail: u64,
    /// Events that a client received twice.
    pub duplicated: u64,
    /// Events that a client received after a later one of the same topic.
    pub out_of_order: u64,
    /// Events that a client received although they were aborted or never produced.
    pub unexpected: u64,
    /// Losses without a `reset`: of clients whose cursor was not accepted, and of clients that received events which a
    /// truncation removed later.
    pub silent_losses: u64,
    /// Repeated events that the log holds more than once.
    pub written_again: u64,
    /// Unexplained resets by reason.
    pub unexplained_resets: BTreeMap<String, u64>,
    /// Resets explained by a fault, by reason.
    pub explained_resets: BTreeMap<String, u64>,
    /// Messages and close codes that break the protocol.
    pub protocol_violations: u64,
    /// Clients whose log ends before the run does.
    pub unfinished: u64,
    /// The first violations as sentences.
    pub violations: Vec<String>,
    /// Each loss of a connection, with the recovery from it.
    pub recoveries: Vec<Recovery>,
    /// Largest number of redirects of one client in one rolling restart.
    pub redirects_max: u64,
    /// The same for restarts during a fault of Redis. Pods then don't learn of each other, and redirect a client back
    /// and forth once.
    pub redirects_max_without_redis: u64,
}

impl Verdict {
    /// Whether there is a violation, or nothing was tested: nothing produced, or nothing received.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        let broken = [
            self.lost,
            self.missing_tail,
            self.duplicated,
            self.out_of_order,
            self.unexpected,
            self.silent_losses,
            self.unexplained_resets.values().sum(),
            self.protocol_violations,
            self.unfinished,
        ];
        broken.iter().any(|count| *count > 0) || self.made == 0 || self.seen == 0
    }

    fn report(&mut self, entry: &ClientLogEntry, what: &str) {
        if self.violations.len() < VIOLATIONS_LISTED_MAX {
            self.violations.push(format!("{:>9.3} s, client {}: {what}", seconds(entry.at_ms), entry.client));
        }
    }
}

/// Converts milliseconds to seconds.
pub(super) fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

/// Checks a run. The entries of each client are in the order in which it wrote them.
///
/// # Errors
/// Returns the first line of a log that can't be read.
pub fn check<E>(
    rules: CheckerRules,
    spans: &[FaultSpan],
    made: impl IntoIterator<Item = Result<ProducedEvent, E>>,
    entries: impl IntoIterator<Item = Result<ClientLogEntry, E>>,
) -> Result<Verdict, E> {
    let mut verdict = Verdict::default();
    let produced = Produced::read(made, &mut verdict)?;
    let mut clients: BTreeMap<u32, CheckedClient> = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        clients.entry(entry.client).or_default().step(&entry, rules, spans, &produced, &mut verdict);
    }
    for (number, client) in clients {
        client.end(number, &produced, &mut verdict);
    }
    causes(&mut verdict.recoveries, spans);
    Ok(verdict)
}

// ---- produced events ------------------------------------------------------------------------------------------------

/// The fate of an event, the time when it was sent and the time when its fate became known.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    fate: Fate,
    sent_ms: u64,
    known_ms: u64,
}

/// One topic of an assessment: the outcome of each event, by number.
#[derive(Debug, Default)]
struct TopicEvents(Vec<Option<Outcome>>);

impl TopicEvents {
    fn fate(&self, number: u64) -> Option<Fate> {
        let index = usize::try_from(number).ok()?;
        self.0.get(index).copied().flatten().map(|event| event.fate)
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// The numbers in a range that every client must receive.
    fn required(&self, range: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
        range.filter(|number| self.fate(*number) == Some(Fate::Produced))
    }

    /// The number after the last event that was known to be produced at this time.
    fn produced_before(&self, at_ms: u64) -> u64 {
        // Fates become known almost in the order of numbers, so this search is short.
        let end = self.0.partition_point(|event| event.is_some_and(|event| event.known_ms <= at_ms));
        (0..end)
            .rev()
            .find(|index| self.0[*index].is_some_and(|event| event.fate == Fate::Produced))
            .map_or(0, |index| index as u64 + 1)
    }

    /// The number after the last event that was sent by this time.
    fn sent_before(&self, at_ms: u64) -> u64 {
        let last = self.0.iter().rposition(|event| event.is_some_and(|event| event.sent_ms <= at_ms));
        last.map_or(0, |index| index as u64 + 1)
    }
}

/// All events produced.
#[derive(Debug, Default)]
struct Produced {
    streams: BTreeMap<(u32, u8), TopicEvents>,
    /// Events that the log holds more than once.
    repeated_in_log: BTreeSet<(u32, u8, u64)>,
}

impl Produced {
    fn read<E>(made: impl IntoIterator<Item = Result<ProducedEvent, E>>, verdict: &mut Verdict) -> Result<Self, E> {
        let mut produced = Self::default();
        for made in made {
            let made = made?;
            match made.fate {
                Fate::Produced => verdict.made += 1,
                Fate::Aborted => verdict.aborted += 1,
                Fate::Unknown => verdict.unknown += 1,
                Fate::Truncated => {
                    // It was counted as produced before.
                    verdict.made = verdict.made.saturating_sub(1);
                    verdict.truncated += 1;
                }
                Fate::Compacted => {
                    verdict.compacted += 1;
                    continue;
                }
                Fate::Repeated => {
                    produced.repeated_in_log.insert((made.assessment, made.topic, made.number));
                    continue;
                }
            }
            let stream = &mut produced.streams.entry((made.assessment, made.topic)).or_default().0;
            let index = usize::try_from(made.number).expect("event numbers fit usize");
            if stream.len() <= index {
                stream.resize(index + 1, None);
            }
            // Keeps the time when it became known to be produced, so that the events behind it count as no younger.
            let before = stream[index].filter(|_| made.fate == Fate::Truncated);
            let (sent_ms, known_ms) =
                before.map_or((made.sent_ms, made.at_ms), |before| (before.sent_ms, before.known_ms));
            stream[index] = Some(Outcome { fate: made.fate, sent_ms, known_ms });
        }
        Ok(produced)
    }

    /// The topics of an assessment.
    fn streams(&self, assessment: u32) -> impl Iterator<Item = (u8, &TopicEvents)> {
        self.streams.range((assessment, 0)..=(assessment, u8::MAX)).map(|((_, topic), stream)| (*topic, stream))
    }
}

// ---- a client -------------------------------------------------------------------------------------------------------

/// Progress of a client in a topic.
#[derive(Debug, Default, Clone)]
pub(crate) struct TopicProgress {
    /// The number after the highest that it received.
    next: u64,
    /// Lower numbers that are missing and required.
    missing: BTreeSet<u64>,
    /// Lower numbers may be missing, because a reset reported it.
    forgiven: u64,
    /// Lower numbers may come again: the log was truncated, and the producer wrote them again.
    may_repeat: u64,
}

/// State of a client, replayed from its log.
#[derive(Debug, Default)]
struct CheckedClient {
    assessment: u32,
    topics: BTreeMap<u8, TopicProgress>,
    /// Its cursor was not accepted, and the `reset` that reports this has not come yet.
    awaits_reset: bool,
    /// The last event that it received and that was truncated later, until a reset reports it.
    truncated_event: Option<ClientLogEntry>,
    /// Start of the election that explained its last reset.
    election_ms: Option<u64>,
    /// Time in which an injected fault kept it from reading, and whether it has read events since.
    absent_ms: u64,
    has_read: bool,
    /// End of its last connection, and the time from then until it read again.
    gone_ms: Option<u64>,
    away_ms: u64,
    recovery: RecoveryTracker,
    done: bool,
}

impl CheckedClient {
    fn step(
        &mut self,
        entry: &ClientLogEntry,
        rules: CheckerRules,
        spans: &[FaultSpan],
        produced: &Produced,
        verdict: &mut Verdict,
    ) {
        if self.awaits_reset && !matches!(entry.what, ClientFact::Reset(_)) {
            self.awaits_reset = false;
            // A connection aborted right after `connected` had no time to send more.
            if matches!(entry.what, ClientFact::Event { .. }) {
                verdict.silent_losses += 1;
                verdict.report(entry, "its cursor was not accepted, and no reset came");
            }
        }
        match &entry.what {
            ClientFact::Subscribes(assessment) => self.assessment = *assessment,
            ClientFact::Connected { node, sent_cursor, resumed } => {
                verdict.connections += 1;
                verdict.resumed += u64::from(*resumed);
                self.awaits_reset = *sent_cursor && !resumed;
                self.away_ms = self.gone_ms.map_or(0, |gone_ms| entry.at_ms.saturating_sub(gone_ms));
                let target = produced
                    .streams(self.assessment)
                    .map(|(topic, stream)| (topic, stream.produced_before(entry.at_ms)));
                self.recovery.connected(node, target.collect());
            }
            ClientFact::Event { topic, number } => {
                self.event(entry, *topic, *number, produced, verdict);
            }
            ClientFact::Reset(reason) => self.reset(entry, reason, (rules, spans), produced, verdict),
            ClientFact::NotReading(ms) => {
                self.absent_ms += ms;
                self.has_read = false;
                self.recovery.reads_again(entry.at_ms);
            }
            ClientFact::Connecting => self.recovery.tries(entry.at_ms),
            ClientFact::ConnectFailed(_) => self.recovery.failed(),
            ClientFact::Redirected(to) => {
                if let Some((rolling, redirects)) = self.recovery.redirected(entry.at_ms, to, spans) {
                    let (max, limit) = match recovery::has_redis(rolling, spans) {
                        true => (&mut verdict.redirects_max, REDIRECTS_MAX),
                        false => (&mut verdict.redirects_max_without_redis, REDIRECTS_MAX_WITHOUT_REDIS),
                    };
                    *max = redirects.max(*max);
                    if redirects > limit {
                        let since = seconds(rolling.from_ms);
                        verdict.report(entry, &format!("redirect {redirects} in the rolling restart at {since:.3} s"));
                    }
                }
            }
            ClientFact::Disconnected(end) => {
                if self.has_read {
                    self.absent_ms = 0;
                }
                self.gone_ms = Some(entry.at_ms);
                self.recovery.gone(entry, *end);
            }
            ClientFact::Violation(what) => {
                verdict.protocol_violations += 1;
                verdict.report(entry, what);
            }
            ClientFact::Done => self.done = true,
        }
        verdict.recoveries.extend(self.recovery.caught_up(entry, &self.topics));
    }

    fn event(&mut self, entry: &ClientLogEntry, topic: u8, number: u64, produced: &Produced, verdict: &mut Verdict) {
        verdict.seen += 1;
        self.has_read = true;
        self.away_ms = 0;
        let empty = TopicEvents::default();
        let stream = produced.streams.get(&(self.assessment, topic)).unwrap_or(&empty);
        if matches!(stream.fate(number), None | Some(Fate::Aborted)) {
            verdict.unexpected += 1;
            let what = format!("topic {topic}: {number} was never produced, or its transaction was aborted");
            return verdict.report(entry, &what);
        }
        if stream.fate(number) == Some(Fate::Truncated) {
            self.truncated_event = Some(entry.clone());
        }
        let index = self.topics.entry(topic).or_default();
        if number >= index.next {
            let missing: Vec<u64> = stream.required(index.next.max(index.forgiven)..number).collect();
            if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
                verdict.report(entry, &format!("topic {topic}: {number} came, {first} to {last} are missing"));
            }
            verdict.lost += missing.len() as u64;
            index.missing.extend(missing);
            index.next = number + 1;
        } else if index.missing.remove(&number) {
            verdict.lost -= 1;
            verdict.out_of_order += 1;
            verdict.report(entry, &format!("topic {topic}: {number} came after {}", index.next - 1));
        } else if number < index.may_repeat || produced.repeated_in_log.contains(&(self.assessment, topic, number)) {
            verdict.written_again += 1;
        } else {
            verdict.duplicated += 1;
            verdict.report(entry, &format!("topic {topic}: {number} came again"));
        }
    }

    fn reset(
        &mut self,
        entry: &ClientLogEntry,
        reason: &str,
        (rules, spans): (CheckerRules, &[FaultSpan]),
        produced: &Produced,
        verdict: &mut Verdict,
    ) {
        let was_away = self.absent_ms >= ms(rules.history) || outlasted_window(spans, entry.at_ms, rules);
        let was_away = was_away && matches!(reason, "expired" | "lagged");
        // A client that was away for too long may get another reset for the election.
        let truncation = truncation(spans, entry.at_ms).filter(|_| !was_away && reason == "expired");
        let truncation = truncation.filter(|since| self.election_ms != Some(*since));
        let is_explained =
            was_away || truncation.is_some() || reason == "expired" && self.missed_compacted(spans, entry.at_ms);
        if truncation.is_some() {
            self.election_ms = truncation;
        }
        if reason == "expired" {
            self.truncated_event = None;
        }
        let resets = if is_explained { &mut verdict.explained_resets } else { &mut verdict.unexplained_resets };
        *resets.entry(reason.to_owned()).or_default() += 1;
        if !is_explained {
            verdict.report(entry, &format!("unexplained reset: {reason}"));
        }
        self.awaits_reset = false;
        self.absent_ms = 0;
        for (topic, stream) in produced.streams(self.assessment) {
            let index = self.topics.entry(topic).or_default();
            // The pod may have read these long before the producer gets its acknowledgement.
            index.forgiven = stream.sent_before(entry.at_ms);
            if truncation.is_some() && topic == FRAGILE {
                index.may_repeat = index.next;
            }
        }
    }

    /// Whether compaction explains the reset: the client, or its pod, was away for long enough.
    fn missed_compacted(&self, spans: &[FaultSpan], at_ms: u64) -> bool {
        let behind_ms = ms(COMPACTION_LAG) / 2;
        let is_late = |since_ms: u64| at_ms >= since_ms + behind_ms;
        let held_back = |span: &&FaultSpan| {
            let is_of_pods = span.kind.lane() == Lane::Brokers || span.kind == FaultKind::Stop;
            is_of_pods && is_late(span.from_ms) && at_ms <= span.to_ms + AFTER_BROKERS_MS
        };
        spans.iter().any(|span| span.kind == FaultKind::Compaction)
            && (self.away_ms.max(self.absent_ms) >= behind_ms || spans.iter().any(|span| held_back(&span)))
    }

    fn end(self, number: u32, produced: &Produced, verdict: &mut Verdict) {
        let entry = ClientLogEntry { at_ms: 0, client: number, what: ClientFact::Done };
        if !self.done {
            verdict.unfinished += 1;
            verdict.report(&entry, "its log ends before the run does");
        }
        for (topic, stream) in produced.streams(self.assessment) {
            let index = self.topics.get(&topic).cloned().unwrap_or_default();
            let missing: Vec<u64> = stream.required(index.next.max(index.forgiven)..stream.len()).collect();
            if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
                verdict.missing_tail += missing.len() as u64;
                verdict.report(&entry, &format!("topic {topic}: {first} to {last} are missing at the end"));
            }
        }
        if let Some(entry) = self.truncated_event {
            verdict.silent_losses += 1;
            verdict.report(&entry, "it received an event that was truncated later, and no reset came");
        }
        verdict.recoveries.extend(self.recovery.never());
    }
}

/// The start of the unclean election that explains a reset at this time, if one does.
fn truncation(spans: &[FaultSpan], at_ms: u64) -> Option<u64> {
    let mut elections = spans.iter().filter(|span| span.kind == FaultKind::Unclean);
    let last = elections.rfind(|span| (span.from_ms..=span.to_ms + AFTER_TRUNCATION_MS).contains(&at_ms))?;
    Some(last.from_ms)
}

/// Whether an outage of brokers or an open transaction explains an expired cursor: for longer than the window, the
/// client's pod read nothing of some partitions. Outages without a pause between them count as one.
fn outlasted_window(spans: &[FaultSpan], at_ms: u64, rules: CheckerRules) -> bool {
    let is_of_brokers =
        |span: &&FaultSpan| span.kind.lane() == Lane::Brokers || span.kind == FaultKind::OpenTransaction;
    let since_ms = at_ms.saturating_sub(ms(rules.history).saturating_sub(OUTAGE_SLACK_MS));
    let mut outages: Vec<_> = spans.iter().filter(is_of_brokers).map(|span| (span.from_ms, span.to_ms)).collect();
    outages.sort_unstable();
    outages.dedup_by(|next, outage| {
        let goes_on = next.0 <= outage.1;
        outage.1 = if goes_on { outage.1.max(next.1) } else { outage.1 };
        goes_on
    });
    outages.iter().any(|&(from_ms, to_ms)| from_ms <= since_ms && at_ms <= to_ms + AFTER_BROKERS_MS)
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("a run is shorter than an age")
}
