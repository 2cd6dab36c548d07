//! Checks every message that a client reads: no event missing, none twice, each partition in order, and no `reset`
//! without a cause. It knows the log and what each pod has read. Cursors are opaque to it, as to a client.

use super::kafka::{SimulatedKafka, SimulatedTopic, placed};
use super::plan::WorldShape;
use super::pod::{KnownTopic, ReadHistory};

/// A violation of the contract.
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
    Reset,
    /// The pods do not agree in the end, a client does not reach its owner, or a client does not get every event.
    Unserved,
    /// A client is redirected too often in a row.
    RedirectLoop,
    /// The gateway's own code panicked.
    Panic,
}

/// How far a client has read a partition.
#[derive(Debug, Clone, Copy)]
enum SeenEvents {
    /// The client started, or was reset, when the partition's list of its assessment had `index` events. Some of those
    /// may be missing, but none behind them. The pod had read up to `offset` at least. Of those events the client has
    /// seen the ones below `next`.
    From { index: usize, offset: i64, next: usize },
    /// Index of the next event that the client must see.
    Next(usize),
}

/// What one client has read.
pub(super) struct ClientChecker {
    assessment: usize,
    /// By partition. A partition that is not listed must be seen from its start.
    seen: Vec<SeenEvents>,
    /// What it had read when it connected without being resumed; its reset is checked against this.
    before: Option<Vec<SeenEvents>>,
}

/// A reset, and the facts to check it.
pub(super) struct Reset<'a> {
    pub(super) reason: &'a str,
    /// What the pod that sent the reset has read.
    pub(super) pod: &'a ReadHistory,
    /// What the pod that made the cursor has read, and when the client read the cursor.
    pub(super) maker: Option<&'a ReadHistory>,
    pub(super) cursor_ms: u64,
    pub(super) is_damaged: bool,
    pub(super) now_ms: u64,
}

/// How long before a client reads its cursor a pod may have made it, in ms: more than the delay of a slow client.
const CURSOR_DELAY_MS: u64 = 4_000;

/// Time from a pod's metadata refresh until clients have read all messages from before it, in ms.
const REFRESH_DELAY_MS: u64 = 1_000;

impl ClientChecker {
    pub(super) fn new(assessment: usize) -> Self {
        Self { assessment, seen: Vec::new(), before: None }
    }

    /// The client is live from now on, without earlier events.
    pub(super) fn started(&mut self, log: &SimulatedKafka, base: &[i64]) {
        let from = |(part, of): (usize, &super::kafka::SimulatedPartition)| SeenEvents::From {
            index: of.lists[self.assessment].len(),
            offset: base.get(part).copied().unwrap_or(0),
            next: 0,
        };
        self.seen = log.parts.iter().enumerate().map(from).collect();
        self.before = None;
    }

    /// The client connected and was resumed.
    pub(super) fn resumed(&mut self) {
        self.before = None;
    }

    /// The client connected with a cursor and was not resumed. It knows what that means even if it never reads the
    /// reset that follows.
    pub(super) fn connected_without_resume(&mut self, log: &SimulatedKafka, base: &[i64]) {
        let before = std::mem::take(&mut self.seen);
        self.started(log, base);
        self.before = Some(before);
    }

    /// The client reads an event.
    pub(super) fn event(&mut self, log: &SimulatedKafka, number: usize) -> Result<(), Violation> {
        let Some(event) = log.events.get(number).filter(|event| event.assessment == self.assessment) else {
            return Err(Violation {
                kind: ViolationKind::Strange,
                what: format!("event {number} belongs to another assessment"),
            });
        };
        self.seen.resize(log.parts.len().max(self.seen.len()), SeenEvents::Next(0));
        let part = &log.parts[event.part];
        let list = &part.lists[self.assessment];
        let seen = &mut self.seen[event.part];
        // A misplaced event is delivered, but without a promise of order.
        let verdict = match *seen {
            _ if part.misplaced[self.assessment] => Ok(()),
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
        reset: &Reset<'_>,
        base: &[i64],
    ) -> Result<(), Violation> {
        let explained = match reset.reason {
            "expired" | "lagged" => self.may_be_out_of_the_window(log, shape, reset),
            "invalid" => reset.is_damaged || knows_other_topics(log, reset),
            "misplaced" => {
                log.parts.iter().any(|part| part.misplaced[self.assessment])
                    || may_not_know_partition_counts(log, reset)
                    || !shape.is_roomy() && self.has_grown(log)
            }
            _ => false,
        };
        // From here the client is as one that has just started; the reset reports what it may lack.
        self.started(log, base);
        if explained {
            return Ok(());
        }
        Err(Violation { kind: ViolationKind::Reset, what: format!("an unexplained reset, `{}`", reset.reason) })
    }

    /// Whether a topic that has grown has older events of the assessment on other partitions. The maker of the cursor
    /// may have evicted them, while a pod that starts reads the last hundred records, however old.
    fn has_grown(&self, log: &SimulatedKafka) -> bool {
        let id = log.assessments[self.assessment].as_str();
        let mut keyed = log.topics.iter().filter(|topic| !topic.spread);
        keyed.any(|topic| {
            let others = topic.parts.iter().enumerate().filter(|(number, _)| placed(id, topic.parts.len()) != *number);
            others.into_iter().any(|(_, &part)| !log.parts[part].lists[self.assessment].is_empty())
        })
    }

    /// Whether the pod may lack an event behind what the client has read.
    fn may_be_out_of_the_window(&self, log: &SimulatedKafka, shape: &WorldShape, reset: &Reset<'_>) -> bool {
        let id = log.assessments[self.assessment].as_str();
        let parts = log.parts.iter().enumerate().filter(|(_, part)| {
            let topic = &log.topics[part.topic];
            let number = usize::try_from(part.number).expect("Kafka numbers partitions from 0");
            // Placed by any partition count that the topic had, or where an event of it lies all the same.
            topic.spread
                || part.misplaced[self.assessment]
                || (1..=topic.parts.len()).any(|count| placed(id, count) == number)
        });
        parts.into_iter().any(|(index, part)| {
            let topic = &log.topics[part.topic];
            let number = usize::try_from(part.number).expect("Kafka numbers partitions from 0");
            let is_unlisted = !topic.spread && may_be_unlisted(reset, id, part.topic, number);
            let next = match self.before.as_ref().unwrap_or(&self.seen).get(index) {
                _ if is_unlisted => 0,
                Some(&SeenEvents::From { offset, .. }) => offset,
                Some(&SeenEvents::Next(next @ 1..)) => log.events[part.lists[self.assessment][next - 1]].offset + 1,
                Some(SeenEvents::Next(0)) | None => 0,
            };
            let low = reset.pod.low(index, shape, reset.now_ms);
            low != i64::MAX && low > next
        })
    }

    /// Events that the client must still read.
    pub(super) fn missing(&self, log: &SimulatedKafka) -> Vec<usize> {
        let parts = log.parts.iter().enumerate().filter(|(_, part)| !part.is_gone && !part.misplaced[self.assessment]);
        let missing = parts.flat_map(|(index, part)| {
            let from = match self.seen.get(index) {
                Some(&(SeenEvents::From { index, .. } | SeenEvents::Next(index))) => index,
                None => 0,
            };
            part.lists[self.assessment][from..].iter().copied()
        });
        missing.collect()
    }

    /// Whether the client has read every event.
    pub(super) fn is_complete(&self, log: &SimulatedKafka) -> bool {
        log.parts.iter().enumerate().all(|(index, part)| {
            let from = match self.seen.get(index) {
                Some(&(SeenEvents::From { index, .. } | SeenEvents::Next(index))) => index,
                None => 0,
            };
            part.is_gone || part.misplaced[self.assessment] || from == part.lists[self.assessment].len()
        })
    }
}

/// Whether the pod knows other topics by these names than the maker of the cursor.
fn knows_other_topics(log: &SimulatedKafka, reset: &Reset<'_>) -> bool {
    let Some(maker) = reset.maker else { return false };
    let is_recent =
        |topic: &KnownTopic| topic.recreated_ms > 0 && topic.recreated_ms + CURSOR_DELAY_MS > reset.cursor_ms;
    // If the maker has not seen the topic, the cursor may repeat what another pod wrote.
    let differ = |(topic, (a, b)): (&SimulatedTopic, (&KnownTopic, &KnownTopic))| {
        // What a pod takes for the topic's end may be the end of the recreated topic.
        let is_outdated = !a.id.is_empty() && a.id != topic.id;
        is_outdated || a.id != b.id && !a.id.is_empty() && (!b.id.is_empty() || topic.is_recreated)
    };
    log.topics.iter().zip(reset.pod.known.iter().zip(&maker.known)).any(differ)
        || reset.pod.known.iter().chain(&maker.known).any(is_recent)
}

/// Whether a pod lacks a partition count that the topic has or had; records placed by that count look misplaced to it.
fn may_not_know_partition_counts(log: &SimulatedKafka, reset: &Reset<'_>) -> bool {
    let mut topics = log.topics.iter().zip(&reset.pod.known).filter(|(topic, _)| !topic.spread);
    topics.any(|(topic, known)| {
        let has_just_grown = known.grown_ms > 0 && known.grown_ms + REFRESH_DELAY_MS > reset.now_ms;
        known.partitions.1 != topic.parts.len() || has_just_grown || known.is_late_topic
    })
}

/// Whether the maker of a cursor may not have listed a partition because it knew of fewer; then the cursor has no
/// offset for it.
fn may_be_unlisted(reset: &Reset<'_>, id: &str, topic: usize, number: usize) -> bool {
    let Some(maker) = reset.maker else { return false };
    maker.known.get(topic).is_none_or(|known| {
        let (first, last) = known.partitions;
        let last = last - usize::from(known.grown_ms > 0 && known.grown_ms + CURSOR_DELAY_MS > reset.cursor_ms);
        known.id.is_empty() || (first..=last).all(|count| placed(id, count) != number)
    })
}
