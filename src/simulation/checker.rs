//! What a client may see, judged at each message that it reads: no event missing, none twice, each partition's in order;
//! and no `reset` without a cause. It knows the log and what each pod has read; cursors are as opaque to it as to a
//! client.

use super::log::{Log, placed};
use super::plan::Shape;
use super::pod::Memory;

/// What the checker found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    pub(super) what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Gap,
    Double,
    Strange,
    Reset,
    /// The pods do not come to agree, or a client does not come to its pod, or does not see all.
    Unserved,
    /// The gateway's own code panicked.
    Panic,
}

/// How far a client has seen a partition.
#[derive(Debug, Clone, Copy)]
enum Seen {
    /// It began, or was reset, when the partition's list of its assessment had so many events: whichever it sees first,
    /// none behind those may be missing. The pod stood at this offset at least.
    From { index: usize, offset: i64 },
    /// The next one that it is to see.
    Next(usize),
}

/// What one client has seen.
pub(super) struct Witness {
    assessment: usize,
    /// By partition; those that are not there yet are to be seen from their beginning.
    seen: Vec<Seen>,
}

/// A reset, and what the checker needs to judge it.
pub(super) struct Reset<'a> {
    pub(super) reason: &'a str,
    /// What the pod that sent it has read.
    pub(super) pod: &'a Memory,
    /// What the pod that made the cursor has read, and when the client was handed it.
    pub(super) maker: Option<&'a Memory>,
    pub(super) cursor_ms: u64,
    pub(super) is_damaged: bool,
    pub(super) now_ms: u64,
}

/// How long before a client reads its cursor a pod may have made it, in ms: longer than a slow client is slow.
const WAY_MS: u64 = 4_000;

impl Witness {
    pub(super) fn new(assessment: usize) -> Self {
        Self { assessment, seen: Vec::new() }
    }

    /// The client is live from now on, without what was before.
    pub(super) fn begin(&mut self, log: &Log, base: &[i64]) {
        let from = |(part, of): (usize, &super::log::Part)| Seen::From {
            index: of.lists[self.assessment].len(),
            offset: base.get(part).copied().unwrap_or(0),
        };
        self.seen = log.parts.iter().enumerate().map(from).collect();
    }

    /// The client reads an event.
    pub(super) fn event(&mut self, log: &Log, number: usize) -> Result<(), Fault> {
        let Some(event) = log.events.get(number).filter(|event| event.assessment == self.assessment) else {
            return Err(Fault { kind: Kind::Strange, what: format!("event {number} is none of its assessment's") });
        };
        self.seen.resize(log.parts.len().max(self.seen.len()), Seen::Next(0));
        let part = &log.parts[event.part];
        let list = &part.lists[self.assessment];
        let seen = &mut self.seen[event.part];
        // What lies on a wrong partition is delivered; more is not promised of it.
        let verdict = match *seen {
            _ if part.strays[self.assessment] => Ok(()),
            Seen::Next(next) if event.index < next => Err((Kind::Double, "comes twice, or after a later one".into())),
            Seen::Next(next) if event.index > next => {
                let missing = &list[next..event.index];
                Err((Kind::Gap, format!("comes where {missing:?} should")))
            }
            Seen::From { index, .. } if event.index > index => {
                let missing = &list[index..event.index];
                Err((Kind::Gap, format!("comes first, yet {missing:?} came after it was connected")))
            }
            _ => Ok(()),
        };
        *seen = Seen::Next(event.index + 1);
        verdict.map_err(|(kind, why)| {
            let (topic, partition) = (part.topic, part.number);
            Fault { kind, what: format!("event {number} (t{topic}/{partition} at {}) {why}", event.offset) }
        })
    }

    /// The client was reset.
    pub(super) fn reset(&mut self, log: &Log, shape: &Shape, reset: &Reset<'_>, base: &[i64]) -> Result<(), Fault> {
        let explained = match reset.reason {
            "expired" | "lagged" => self.may_be_out_of_the_window(log, shape, reset),
            "invalid" => reset.is_damaged || is_of_other_topics(reset),
            "misplaced" => log.parts.iter().any(|part| part.strays[self.assessment]),
            _ => false,
        };
        // It does not fall behind what it has seen; by how much it may have fallen short is what a reset is for.
        self.begin(log, base);
        if explained {
            return Ok(());
        }
        Err(Fault { kind: Kind::Reset, what: format!("a reset, `{}`, that nothing explains", reset.reason) })
    }

    /// Whether the pod may lack something behind what the client has seen.
    fn may_be_out_of_the_window(&self, log: &Log, shape: &Shape, reset: &Reset<'_>) -> bool {
        let id = log.assessments[self.assessment].as_str();
        let parts = log.parts.iter().enumerate().filter(|(_, part)| {
            let topic = &log.topics[part.topic];
            let number = usize::try_from(part.number).expect("Kafka numbers partitions from 0");
            // By any number of partitions that the topic had.
            !part.is_gone && (topic.spread || (1..=topic.parts.len()).any(|count| placed(id, count) == number))
        });
        parts.into_iter().any(|(place, part)| {
            let next = match self.seen.get(place) {
                Some(&Seen::From { offset, .. }) => offset,
                Some(&Seen::Next(next @ 1..)) => log.events[part.lists[self.assessment][next - 1]].offset + 1,
                Some(Seen::Next(0)) | None => 0,
            };
            let low = reset.pod.low(place, shape, reset.now_ms);
            low != i64::MAX && low > next
        })
    }

    /// What the client has not seen yet of what it is to see.
    pub(super) fn missing(&self, log: &Log) -> Vec<usize> {
        let parts = log.parts.iter().enumerate().filter(|(_, part)| !part.is_gone && !part.strays[self.assessment]);
        let missing = parts.flat_map(|(place, part)| {
            let from = match self.seen.get(place) {
                Some(&(Seen::From { index, .. } | Seen::Next(index))) => index,
                None => 0,
            };
            part.lists[self.assessment][from..].iter().copied()
        });
        missing.collect()
    }

    /// Whether it has seen all.
    pub(super) fn is_complete(&self, log: &Log) -> bool {
        log.parts.iter().enumerate().all(|(place, part)| {
            let from = match self.seen.get(place) {
                Some(&(Seen::From { index, .. } | Seen::Next(index))) => index,
                None => 0,
            };
            part.is_gone || part.strays[self.assessment] || from == part.lists[self.assessment].len()
        })
    }
}

/// Whether the pod knows other topics by these names than the one that made the cursor.
fn is_of_other_topics(reset: &Reset<'_>) -> bool {
    let lately = |memory: &Memory| memory.known.iter().any(|&(_, at)| at > 0 && at + WAY_MS > reset.cursor_ms);
    let Some(maker) = reset.maker else { return false };
    reset.pod.known.iter().zip(&maker.known).any(|(a, b)| a.0 != b.0) || lately(reset.pod) || lately(maker)
}
