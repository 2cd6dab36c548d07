//! Judges a chaos run from its logs: finds lost, duplicate and out-of-order events, resets without a cause, and how
//! long clients were behind. A pure function of the logs, read after the run.
//!
//! Clients are there before the first event is made, so each is owed every event of its assessment. What a client lacks
//! is forgiven after a `reset` alone, and only for what was made before it.

mod recovery;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::log::{ClientFact, ClientLogEntry, Fate, FaultSpan, ProducedEvent};
use super::producer::{COMPACTION_LAG, FRAGILE};
use super::schedule::{FaultKind, Lane};

pub use recovery::{Cause, Recovery};
use recovery::{Disturbed, causes};

/// Redirects that a client may see in one rolling restart.
pub const REDIRECTS_MAX: u64 = 3;

/// How many sentences of each run tell what is wrong; the counts tell of all.
const TOLD_MAX: usize = 40;

/// What was made up to this time after a reset may be missing: the pod may have seen it before it said so, and the
/// producer was told of it later.
const RESET_SLACK_MS: u64 = 5_000;

/// So much less than the window may have passed since the brokers went away: a pod reads its last records a while after
/// they were made, and the window of another begins when that one starts.
const CUT_OFF_SLACK_MS: u64 = 5_000;

/// After the brokers are back, so long a pod may take until it reads all partitions again.
const AFTER_BROKERS_MS: u64 = 30_000;

/// After a log lost its end, clients hear of it for so long: pods notice at the next record, and clients that were away
/// when they come back.
const AFTER_TRUNCATION_MS: u64 = 60_000;

/// What the judge goes by.
#[derive(Debug, Clone, Copy)]
pub struct CheckerRules {
    /// How far back a pod remembers.
    pub history: Duration,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    /// Events that were made, without those of aborted transactions.
    pub made: u64,
    /// Events of aborted transactions.
    pub aborted: u64,
    /// Events of which nobody knows whether they were made.
    pub unknown: u64,
    /// Events that were made, and lost with the end of their log.
    pub truncated: u64,
    /// Events that were made, and removed from their log by compaction.
    pub compacted: u64,
    /// Events that clients saw, all together.
    pub seen: u64,
    /// Connections that were opened.
    pub connections: u64,
    /// Those among them that went on from a cursor.
    pub resumed: u64,
    /// Events that a client lacks, though it saw a later one of the same topic.
    pub lost: u64,
    /// Events at a topic's end that a client lacks.
    pub missing_tail: u64,
    /// Events that a client saw twice.
    pub doubled: u64,
    /// Events that a client saw after a later one of the same topic.
    pub out_of_order: u64,
    /// Events that a client saw, and that were aborted or never made.
    pub ghosts: u64,
    /// Clients that gave a cursor, were not resumed and not told so; and those that saw what a log lost later, and were
    /// not told of that.
    pub silent_losses: u64,
    /// Events that came again because the log holds them more than once.
    pub written_again: u64,
    /// Resets that nothing explains, by reason.
    pub unexplained_resets: BTreeMap<String, u64>,
    /// Resets that a fault explains, by reason.
    pub explained_resets: BTreeMap<String, u64>,
    /// Things that no pod should say.
    pub wrong: u64,
    /// Clients whose logs don't reach the run's end.
    pub unfinished: u64,
    /// The first things that were found, as sentences.
    pub told: Vec<String>,
    /// Each loss of a connection, and the way back.
    pub recoveries: Vec<Recovery>,
    /// The most redirects that one client saw in one rolling restart.
    pub redirects_max: u64,
    /// The same, for restarts in which Redis was not always there: pods then can't hear of each other, and send a
    /// client to and fro once.
    pub redirects_max_without_redis: u64,
}

impl Verdict {
    /// Whether a promise was broken, or nothing was tried: a run in which nothing was made, or seen, proves nothing.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        let broken = [
            self.lost,
            self.missing_tail,
            self.doubled,
            self.out_of_order,
            self.ghosts,
            self.silent_losses,
            self.unexplained_resets.values().sum(),
            self.wrong,
            self.unfinished,
        ];
        broken.iter().any(|count| *count > 0) || self.made == 0 || self.seen == 0
    }

    fn tell(&mut self, entry: &ClientLogEntry, what: &str) {
        if self.told.len() < TOLD_MAX {
            self.told.push(format!("{:>9.3} s, client {}: {what}", seconds(entry.at_ms), entry.client));
        }
    }
}

/// Milliseconds as seconds.
pub(super) fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

/// Judges a run. Entries are in the order in which each client wrote them.
///
/// # Errors
/// The first line of a log that can't be read.
pub fn check<E>(
    rules: CheckerRules,
    spans: &[FaultSpan],
    made: impl IntoIterator<Item = Result<ProducedEvent, E>>,
    entries: impl IntoIterator<Item = Result<ClientLogEntry, E>>,
) -> Result<Verdict, E> {
    let mut verdict = Verdict::default();
    let mut truth = Truth::read(made, &mut verdict)?;
    let mut clients: BTreeMap<u32, CheckedClient> = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        clients.entry(entry.client).or_default().step(&entry, rules, spans, &mut truth, &mut verdict);
    }
    for (number, client) in clients {
        client.end(number, &truth, &mut verdict);
    }
    causes(&mut verdict.recoveries, spans);
    Ok(verdict)
}

// ---- what was made --------------------------------------------------------------------------------------------------

/// A topic of an assessment: the fates of its events by their numbers, and when each was known.
#[derive(Debug, Default)]
struct TopicEvents(Vec<Option<(Fate, u64)>>);

impl TopicEvents {
    fn fate(&self, number: u64) -> Option<Fate> {
        let place = usize::try_from(number).ok()?;
        self.0.get(place).copied().flatten().map(|(fate, _)| fate)
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// The numbers in a range that everybody is owed.
    fn owed(&self, range: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
        range.filter(|number| self.fate(*number) == Some(Fate::ProducedEvent))
    }

    /// The number that follows the last event of which is known, at a time, that it was made.
    fn made_before(&self, at_ms: u64) -> u64 {
        let later = |event: &Option<(Fate, u64)>| event.is_none_or(|(_, known_ms)| known_ms > at_ms);
        // Fates become known nearly in the order of numbers, so the search from the end is short only for what is new.
        let end = self.0.partition_point(|event| !later(event));
        (0..end)
            .rev()
            .find(|place| self.0[*place].is_some_and(|(fate, _)| fate == Fate::ProducedEvent))
            .map_or(0, |place| place as u64 + 1)
    }
}

/// All that was made.
#[derive(Debug, Default)]
struct Truth {
    streams: BTreeMap<(u32, u8), TopicEvents>,
    /// What the log holds more than once.
    again: BTreeSet<(u32, u8, u64)>,
    /// The number that follows the last event that any client has seen so far, and when it was seen. That may be long
    /// before its producer is told that it was made.
    seen: BTreeMap<(u32, u8), (u64, u64)>,
}

impl Truth {
    /// A client has seen an event.
    fn is_seen(&mut self, assessment: u32, topic: u8, number: u64, at_ms: u64) {
        let stream = self.streams.get(&(assessment, topic));
        if stream.is_some_and(|stream| stream.fate(number) == Some(Fate::ProducedEvent)) {
            let seen = self.seen.entry((assessment, topic)).or_default();
            *seen = (*seen).max((number + 1, at_ms));
        }
    }

    fn read<E>(made: impl IntoIterator<Item = Result<ProducedEvent, E>>, verdict: &mut Verdict) -> Result<Self, E> {
        let mut truth = Self::default();
        for made in made {
            let made = made?;
            match made.fate {
                Fate::ProducedEvent => verdict.made += 1,
                Fate::Aborted => verdict.aborted += 1,
                Fate::Unknown => verdict.unknown += 1,
                Fate::Truncated => {
                    // It was made before.
                    verdict.made = verdict.made.saturating_sub(1);
                    verdict.truncated += 1;
                }
                Fate::Compacted => {
                    verdict.compacted += 1;
                    continue;
                }
                Fate::Again => {
                    truth.again.insert((made.assessment, made.topic, made.number));
                    continue;
                }
            }
            let stream = &mut truth.streams.entry((made.assessment, made.topic)).or_default().0;
            let place = usize::try_from(made.number).expect("fewer events than addresses");
            if stream.len() <= place {
                stream.resize(place + 1, None);
            }
            // That it was made was known before it was known to be lost: what followed it is no younger for that.
            let known_ms =
                stream[place].filter(|_| made.fate == Fate::Truncated).map_or(made.at_ms, |(_, known_ms)| known_ms);
            stream[place] = Some((made.fate, known_ms));
        }
        Ok(truth)
    }

    /// The topics of an assessment.
    fn streams(&self, assessment: u32) -> impl Iterator<Item = (u8, &TopicEvents)> {
        self.streams.range((assessment, 0)..=(assessment, u8::MAX)).map(|((_, topic), stream)| (*topic, stream))
    }
}

// ---- a client -------------------------------------------------------------------------------------------------------

/// What a client has of a topic.
#[derive(Debug, Default, Clone)]
pub(crate) struct TopicProgress {
    /// The number that follows the highest that it saw.
    next: u64,
    /// Lower ones that it lacks, and is owed.
    lacking: BTreeSet<u64>,
    /// What lies below may be missing: a reset told so.
    forgiven: u64,
    /// What lies below may come again: a log lost its end, and its producer wrote it again.
    may_come_again: u64,
}

/// A client as its log tells of it.
#[derive(Debug, Default)]
struct CheckedClient {
    assessment: u32,
    places: BTreeMap<u8, TopicProgress>,
    /// It gave a cursor, was not resumed, and waits for the `reset` that says so.
    owed_a_reset: bool,
    /// It saw an event that its log lost later, and was not told so yet: when.
    saw_truncated: Option<ClientLogEntry>,
    /// The election that its last reset was explained by, by its begin.
    told_of_ms: Option<u64>,
    /// How long it did not read by its own will, and whether it has read events since.
    absent_ms: u64,
    has_read: bool,
    /// When its last connection ended, and how long it was away until it read again.
    gone_ms: Option<u64>,
    away_ms: u64,
    disturbed: Disturbed,
    done: bool,
}

impl CheckedClient {
    fn step(
        &mut self,
        entry: &ClientLogEntry,
        rules: CheckerRules,
        spans: &[FaultSpan],
        truth: &mut Truth,
        verdict: &mut Verdict,
    ) {
        if self.owed_a_reset && !matches!(entry.what, ClientFact::Reset(_)) {
            self.owed_a_reset = false;
            // A connection that was cut right behind `connected` had no time to say more.
            if matches!(entry.what, ClientFact::Event { .. }) {
                verdict.silent_losses += 1;
                verdict.tell(entry, "it gave a cursor, was not resumed, and no reset came");
            }
        }
        match &entry.what {
            ClientFact::Watches(assessment) => self.assessment = *assessment,
            ClientFact::Connected { node, asked, resumed } => {
                verdict.connections += 1;
                verdict.resumed += u64::from(*resumed);
                self.owed_a_reset = *asked && !resumed;
                self.away_ms = self.gone_ms.map_or(0, |gone_ms| entry.at_ms.saturating_sub(gone_ms));
                let target =
                    truth.streams(self.assessment).map(|(topic, stream)| (topic, stream.made_before(entry.at_ms)));
                self.disturbed.connected(node, target.collect());
            }
            ClientFact::Event { topic, number } => {
                truth.is_seen(self.assessment, *topic, *number, entry.at_ms);
                self.event(entry, *topic, *number, truth, verdict);
            }
            ClientFact::Reset(reason) => self.reset(entry, reason, (rules, spans), truth, verdict),
            ClientFact::Absent(ms) => {
                self.absent_ms += ms;
                self.has_read = false;
                self.disturbed.reads_again(entry.at_ms);
            }
            ClientFact::Tries => self.disturbed.tries(entry.at_ms),
            ClientFact::Failed(_) => self.disturbed.failed(),
            ClientFact::Redirected(to) => {
                if let Some((rolling, redirects)) = self.disturbed.redirected(entry.at_ms, to, spans) {
                    let most = match recovery::has_redis(rolling, spans) {
                        true => &mut verdict.redirects_max,
                        false => &mut verdict.redirects_max_without_redis,
                    };
                    *most = redirects.max(*most);
                    if redirects > REDIRECTS_MAX {
                        let since = seconds(rolling.from_ms);
                        verdict.tell(entry, &format!("redirect {redirects} in the rolling restart of {since:.3} s"));
                    }
                }
            }
            ClientFact::Gone(end) => {
                if self.has_read {
                    self.absent_ms = 0;
                }
                self.gone_ms = Some(entry.at_ms);
                self.disturbed.gone(entry, *end);
            }
            ClientFact::Wrong(what) => {
                verdict.wrong += 1;
                verdict.tell(entry, what);
            }
            ClientFact::Done => self.done = true,
        }
        verdict.recoveries.extend(self.disturbed.caught_up(entry, &self.places));
    }

    fn event(&mut self, entry: &ClientLogEntry, topic: u8, number: u64, truth: &Truth, verdict: &mut Verdict) {
        verdict.seen += 1;
        self.has_read = true;
        self.away_ms = 0;
        let empty = TopicEvents::default();
        let stream = truth.streams.get(&(self.assessment, topic)).unwrap_or(&empty);
        if matches!(stream.fate(number), None | Some(Fate::Aborted)) {
            verdict.ghosts += 1;
            let what = format!("topic {topic}: {number} was never made, or its transaction was aborted");
            return verdict.tell(entry, &what);
        }
        if stream.fate(number) == Some(Fate::Truncated) {
            self.saw_truncated = Some(entry.clone());
        }
        let place = self.places.entry(topic).or_default();
        if number >= place.next {
            let missing: Vec<u64> = stream.owed(place.next.max(place.forgiven)..number).collect();
            if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
                verdict.tell(entry, &format!("topic {topic}: {number} came, {first} to {last} did not"));
            }
            verdict.lost += missing.len() as u64;
            place.lacking.extend(missing);
            place.next = number + 1;
        } else if place.lacking.remove(&number) {
            verdict.lost -= 1;
            verdict.out_of_order += 1;
            verdict.tell(entry, &format!("topic {topic}: {number} came behind {}", place.next - 1));
        } else if number < place.may_come_again || truth.again.contains(&(self.assessment, topic, number)) {
            verdict.written_again += 1;
        } else {
            verdict.doubled += 1;
            verdict.tell(entry, &format!("topic {topic}: {number} came again"));
        }
    }

    fn reset(
        &mut self,
        entry: &ClientLogEntry,
        reason: &str,
        (rules, spans): (CheckerRules, &[FaultSpan]),
        truth: &Truth,
        verdict: &mut Verdict,
    ) {
        let was_away = self.absent_ms >= ms(rules.history) || were_cut_off(spans, entry.at_ms, rules);
        let was_away = was_away && matches!(reason, "expired" | "lagged");
        // Who was away for too long may be told of the election besides.
        let truncation = truncation(spans, entry.at_ms).filter(|_| !was_away && reason == "expired");
        let truncation = truncation.filter(|since| self.told_of_ms != Some(*since));
        let is_explained =
            was_away || truncation.is_some() || reason == "expired" && self.lacks_compacted(spans, entry.at_ms);
        if truncation.is_some() {
            self.told_of_ms = truncation;
        }
        if reason == "expired" {
            self.saw_truncated = None;
        }
        let resets = if is_explained { &mut verdict.explained_resets } else { &mut verdict.unexplained_resets };
        *resets.entry(reason.to_owned()).or_default() += 1;
        if !is_explained {
            verdict.tell(entry, &format!("reset: {reason}, which nothing explains"));
        }
        self.owed_a_reset = false;
        self.absent_ms = 0;
        for (topic, stream) in truth.streams(self.assessment) {
            let until_ms = entry.at_ms + RESET_SLACK_MS;
            let seen = truth.seen.get(&(self.assessment, topic)).filter(|(_, at_ms)| *at_ms <= until_ms);
            let forgiven = stream.made_before(until_ms).max(seen.map_or(0, |(next, _)| *next));
            let place = self.places.entry(topic).or_default();
            place.forgiven = forgiven;
            if truncation.is_some() && topic == FRAGILE {
                place.may_come_again = place.next;
            }
        }
    }

    /// Whether compaction explains that it is too late: it was away for long enough, or its pod was.
    fn lacks_compacted(&self, spans: &[FaultSpan], at_ms: u64) -> bool {
        let behind_ms = ms(COMPACTION_LAG) / 2;
        let is_late = |since_ms: u64| at_ms >= since_ms + behind_ms;
        let held_back = |span: &&FaultSpan| {
            let is_of_pods = span.kind.lane() == Lane::Brokers || span.kind == FaultKind::Stop;
            is_of_pods && is_late(span.from_ms) && at_ms <= span.to_ms + AFTER_BROKERS_MS
        };
        spans.iter().any(|span| span.kind == FaultKind::Compaction)
            && (self.away_ms.max(self.absent_ms) >= behind_ms || spans.iter().any(|span| held_back(&span)))
    }

    fn end(self, number: u32, truth: &Truth, verdict: &mut Verdict) {
        let entry = ClientLogEntry { at_ms: 0, client: number, what: ClientFact::Done };
        if !self.done {
            verdict.unfinished += 1;
            verdict.tell(&entry, "its log does not reach the run's end");
        }
        for (topic, stream) in truth.streams(self.assessment) {
            let place = self.places.get(&topic).cloned().unwrap_or_default();
            let missing: Vec<u64> = stream.owed(place.next.max(place.forgiven)..stream.len()).collect();
            if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
                verdict.missing_tail += missing.len() as u64;
                verdict.tell(&entry, &format!("topic {topic}: {first} to {last} are missing at the end"));
            }
        }
        if let Some(entry) = self.saw_truncated {
            verdict.silent_losses += 1;
            verdict.tell(&entry, "it saw an event that the log lost, and no reset came");
        }
        verdict.recoveries.extend(self.disturbed.never());
    }
}

/// The election, by its begin, in which a log lost its end, where one explains a reset at this time.
fn truncation(spans: &[FaultSpan], at_ms: u64) -> Option<u64> {
    let mut elections = spans.iter().filter(|span| span.kind == FaultKind::Unclean);
    let last = elections.rfind(|span| (span.from_ms..=span.to_ms + AFTER_TRUNCATION_MS).contains(&at_ms))?;
    Some(last.from_ms)
}

/// Whether brokers that were away, or a transaction that stayed open, are to blame for a cursor that is too old: its
/// pod had read nothing of some partitions since before the window that another begins with. Outages without a pause
/// between them are one.
fn were_cut_off(spans: &[FaultSpan], at_ms: u64, rules: CheckerRules) -> bool {
    let is_of_brokers =
        |span: &&FaultSpan| span.kind.lane() == Lane::Brokers || span.kind == FaultKind::OpenTransaction;
    let since_ms = at_ms.saturating_sub(ms(rules.history).saturating_sub(CUT_OFF_SLACK_MS));
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
