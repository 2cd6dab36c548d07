//! Checks every message that a client reads: no event missing, none twice, each partition in order, and no `reset`
//! without a cause. It knows the log and what each pod has read; cursors are opaque to it, as to a client.

use super::kafka::{SimulatedKafka, SimulatedTopic, placed};
use super::plan::WorldShape;
use super::pod::{KnownTopic, ReadHistory};

/// What the checker found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) kind: ViolationKind,
    pub(super) what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ViolationKind {
    Gap,
    Double,
    Strange,
    ResetEvent,
    /// The pods do not come to agree, or a client does not come to its pod, or does not see all.
    Unserved,
    /// A client is sent to and fro.
    Bounced,
    /// The gateway's own code panicked.
    Panic,
}

/// How far a client has seen a partition.
#[derive(Debug, Clone, Copy)]
enum SeenEvents {
    /// It began, or was reset, when the partition's list of its assessment had so many events: some of those may be
    /// missing, none behind them. The pod stood at this offset at least. Of those it has seen what is below `next`.
    From { index: usize, offset: i64, next: usize },
    /// The next one that it is to see.
    Next(usize),
}

/// What one client has seen.
pub(super) struct ClientChecker {
    assessment: usize,
    /// By partition; those that are not there yet are to be seen from their beginning.
    seen: Vec<SeenEvents>,
    /// What it had seen when it was connected without being resumed: by that its reset is judged.
    before: Option<Vec<SeenEvents>>,
}

/// A reset, and what the checker needs to judge it.
pub(super) struct ResetEvent<'a> {
    pub(super) reason: &'a str,
    /// What the pod that sent it has read.
    pub(super) pod: &'a ReadHistory,
    /// What the pod that made the cursor has read, and when the client was handed it.
    pub(super) maker: Option<&'a ReadHistory>,
    pub(super) cursor_ms: u64,
    pub(super) is_damaged: bool,
    pub(super) now_ms: u64,
}

/// How long before a client reads its cursor a pod may have made it, in ms: longer than a slow client is slow.
const WAY_MS: u64 = 4_000;

/// How long it takes from a pod's look at the topics until a client reads what it made before, in ms.
const JUST_MS: u64 = 1_000;

impl ClientChecker {
    pub(super) fn new(assessment: usize) -> Self {
        Self { assessment, seen: Vec::new(), before: None }
    }

    /// The client is live from now on, without what was before.
    pub(super) fn begin(&mut self, log: &SimulatedKafka, base: &[i64]) {
        let from = |(part, of): (usize, &super::kafka::SimulatedPartition)| SeenEvents::From {
            index: of.lists[self.assessment].len(),
            offset: base.get(part).copied().unwrap_or(0),
            next: 0,
        };
        self.seen = log.parts.iter().enumerate().map(from).collect();
        self.before = None;
    }

    /// The client is connected and resumed.
    pub(super) fn go_on(&mut self) {
        self.before = None;
    }

    /// The client is connected and not resumed, though it had a cursor: it knows what that means, also where it never
    /// reads the reset that is to come.
    pub(super) fn begin_again(&mut self, log: &SimulatedKafka, base: &[i64]) {
        let before = std::mem::take(&mut self.seen);
        self.begin(log, base);
        self.before = Some(before);
    }

    /// The client reads an event.
    pub(super) fn event(&mut self, log: &SimulatedKafka, number: usize) -> Result<(), Violation> {
        let Some(event) = log.events.get(number).filter(|event| event.assessment == self.assessment) else {
            return Err(Violation {
                kind: ViolationKind::Strange,
                what: format!("event {number} is none of its assessment's"),
            });
        };
        self.seen.resize(log.parts.len().max(self.seen.len()), SeenEvents::Next(0));
        let part = &log.parts[event.part];
        let list = &part.lists[self.assessment];
        let seen = &mut self.seen[event.part];
        // What lies on a wrong partition is delivered; more is not promised of it.
        let verdict = match *seen {
            _ if part.strays[self.assessment] => Ok(()),
            SeenEvents::Next(next) | SeenEvents::From { next, .. } if event.index < next => {
                Err((ViolationKind::Double, "comes twice, or after a later one".into()))
            }
            SeenEvents::Next(next) if event.index > next => {
                let missing = &list[next..event.index];
                Err((ViolationKind::Gap, format!("comes where {missing:?} should")))
            }
            SeenEvents::From { index, .. } if event.index > index => {
                let missing = &list[index..event.index];
                Err((ViolationKind::Gap, format!("comes, yet {missing:?} came after it was connected or reset")))
            }
            _ => Ok(()),
        };
        *seen = match *seen {
            SeenEvents::From { index, offset, .. } if event.index < index => {
                SeenEvents::From { index, offset, next: event.index + 1 }
            }
            _ => SeenEvents::Next(event.index + 1),
        };
        verdict.map_err(|(kind, why)| {
            let (topic, partition) = (part.topic, part.number);
            Violation { kind, what: format!("event {number} (t{topic}/{partition} at {}) {why}", event.offset) }
        })
    }

    /// The client was reset.
    pub(super) fn reset(
        &mut self,
        log: &SimulatedKafka,
        shape: &WorldShape,
        reset: &ResetEvent<'_>,
        base: &[i64],
    ) -> Result<(), Violation> {
        let explained = match reset.reason {
            "expired" | "lagged" => self.may_be_out_of_the_window(log, shape, reset),
            "invalid" => reset.is_damaged || is_of_other_topics(log, reset),
            "misplaced" => {
                log.parts.iter().any(|part| part.strays[self.assessment])
                    || may_not_know_its_numbers(log, reset)
                    || !shape.is_roomy() && self.has_grown(log)
            }
            _ => false,
        };
        // It does not fall behind what it has seen; by how much it may have fallen short is what a reset is for.
        self.begin(log, base);
        if explained {
            return Ok(());
        }
        Err(Violation {
            kind: ViolationKind::ResetEvent,
            what: format!("a reset, `{}`, that nothing explains", reset.reason),
        })
    }

    /// Whether a topic with more partitions than it had has older records of it. The maker of its cursor may have let
    /// go of them, while a pod that starts reads the last hundred, however old.
    fn has_grown(&self, log: &SimulatedKafka) -> bool {
        let id = log.assessments[self.assessment].as_str();
        let mut keyed = log.topics.iter().filter(|topic| !topic.spread);
        keyed.any(|topic| {
            let others = topic.parts.iter().enumerate().filter(|(number, _)| placed(id, topic.parts.len()) != *number);
            others.into_iter().any(|(_, &part)| !log.parts[part].lists[self.assessment].is_empty())
        })
    }

    /// Whether the pod may lack something behind what the client has seen.
    fn may_be_out_of_the_window(&self, log: &SimulatedKafka, shape: &WorldShape, reset: &ResetEvent<'_>) -> bool {
        let id = log.assessments[self.assessment].as_str();
        let parts = log.parts.iter().enumerate().filter(|(_, part)| {
            let topic = &log.topics[part.topic];
            let number = usize::try_from(part.number).expect("Kafka numbers partitions from 0");
            // By any number of partitions that the topic had.
            topic.spread || (1..=topic.parts.len()).any(|count| placed(id, count) == number)
        });
        parts.into_iter().any(|(place, part)| {
            let topic = &log.topics[part.topic];
            let number = usize::try_from(part.number).expect("Kafka numbers partitions from 0");
            let is_unlisted = !topic.spread && may_be_unlisted(reset, id, part.topic, number);
            let next = match self.before.as_ref().unwrap_or(&self.seen).get(place) {
                _ if is_unlisted => 0,
                Some(&SeenEvents::From { offset, .. }) => offset,
                Some(&SeenEvents::Next(next @ 1..)) => log.events[part.lists[self.assessment][next - 1]].offset + 1,
                Some(SeenEvents::Next(0)) | None => 0,
            };
            let low = reset.pod.low(place, shape, reset.now_ms);
            low != i64::MAX && low > next
        })
    }

    /// What the client has not seen yet of what it is to see.
    pub(super) fn missing(&self, log: &SimulatedKafka) -> Vec<usize> {
        let parts = log.parts.iter().enumerate().filter(|(_, part)| !part.is_gone && !part.strays[self.assessment]);
        let missing = parts.flat_map(|(place, part)| {
            let from = match self.seen.get(place) {
                Some(&(SeenEvents::From { index, .. } | SeenEvents::Next(index))) => index,
                None => 0,
            };
            part.lists[self.assessment][from..].iter().copied()
        });
        missing.collect()
    }

    /// Whether it has seen all.
    pub(super) fn is_complete(&self, log: &SimulatedKafka) -> bool {
        log.parts.iter().enumerate().all(|(place, part)| {
            let from = match self.seen.get(place) {
                Some(&(SeenEvents::From { index, .. } | SeenEvents::Next(index))) => index,
                None => 0,
            };
            part.is_gone || part.strays[self.assessment] || from == part.lists[self.assessment].len()
        })
    }
}

/// Whether the pod knows other topics by these names than the one that made the cursor.
fn is_of_other_topics(log: &SimulatedKafka, reset: &ResetEvent<'_>) -> bool {
    let Some(maker) = reset.maker else { return false };
    let lately = |topic: &KnownTopic| topic.remade_ms > 0 && topic.remade_ms + WAY_MS > reset.cursor_ms;
    // Where the maker has not seen it, the cursor may hand on what another said of it.
    let differ = |(topic, (a, b)): (&SimulatedTopic, (&KnownTopic, &KnownTopic))| {
        // And what a pod takes for the topic's end may be that of the one that was made anew.
        let is_outdated = !a.id.is_empty() && a.id != topic.id;
        is_outdated || a.id != b.id && !a.id.is_empty() && (!b.id.is_empty() || topic.is_remade)
    };
    log.topics.iter().zip(reset.pod.known.iter().zip(&maker.known)).any(differ)
        || reset.pod.known.iter().chain(&maker.known).any(lately)
}

/// Whether a pod does not know how many partitions a topic has or had: what was placed by that number looks misplaced
/// to it.
fn may_not_know_its_numbers(log: &SimulatedKafka, reset: &ResetEvent<'_>) -> bool {
    let mut topics = log.topics.iter().zip(&reset.pod.known).filter(|(topic, _)| !topic.spread);
    topics.any(|(topic, known)| {
        let has_just_grown = known.grown_ms > 0 && known.grown_ms + JUST_MS > reset.now_ms;
        known.partitions.1 != topic.parts.len() || has_just_grown || known.is_met_late
    })
}

/// Whether the maker of a cursor may not have listed a partition, since it knew of fewer: then the cursor says nothing
/// of what lies there.
fn may_be_unlisted(reset: &ResetEvent<'_>, id: &str, topic: usize, number: usize) -> bool {
    let Some(maker) = reset.maker else { return false };
    maker.known.get(topic).is_none_or(|known| {
        let (first, last) = known.partitions;
        let last = last - usize::from(known.grown_ms > 0 && known.grown_ms + WAY_MS > reset.cursor_ms);
        known.id.is_empty() || (first..=last).all(|count| placed(id, count) != number)
    })
}
