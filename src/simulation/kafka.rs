//! The simulated Kafka: topics with partitions, records with offsets that have holes, retention, topics that grow and
//! topics that are made anew. It is the truth that the checker goes by.

use crate::ids::AssessmentId;
use crate::routing::table::RouteTable;

/// The routes of the simulation: topics whose producers place by key, and topics whose records lie anywhere.
pub(super) const ROUTES: &str = r#"
[[route]]
topic = "keyed.{x}"
scope = "assessment"
partitioner = "murmur2"
type = "event"
fields = ["n"]

[[route]]
topic = "spread.{x}"
scope = "assessment"
partitioner = "none"
type = "event"
fields = ["n"]
"#;

/// When each pod has seen that a topic has more partitions, in ms: pods that stand still and pods that are cut off
/// included.
const NOTICED_MS: u64 = 6_000;

/// All topics, and every record that was ever written.
pub(super) struct SimulatedKafka {
    pub(super) topics: Vec<SimulatedTopic>,
    /// Of all topics, those that are gone included.
    pub(super) parts: Vec<SimulatedPartition>,
    /// By their numbers.
    pub(super) events: Vec<LoggedEvent>,
    pub(super) assessments: Vec<AssessmentId>,
    /// Grows with each change that a look at the topics would show.
    pub(super) version: u64,
    /// Bytes by which each payload is longer than it need be.
    padding: usize,
    incarnations: u32,
}

pub(super) struct SimulatedTopic {
    pub(super) name: Box<str>,
    /// Kafka's id of it, which another topic of the same name does not have.
    pub(super) id: Box<str>,
    /// Its partitions' places in [`SimulatedKafka::parts`].
    pub(super) parts: Vec<usize>,
    /// Whether its records lie on any partition.
    pub(super) spread: bool,
    /// Another of its name was there before it.
    pub(super) is_remade: bool,
    /// When it was last made or given a partition more; `None` where that was before all pods.
    widened_ms: Option<u64>,
    /// Looks don't see it.
    pub(super) is_hidden: bool,
}

/// A partition.
pub(super) struct SimulatedPartition {
    pub(super) topic: usize,
    pub(super) number: i32,
    /// The first offset that is still there.
    pub(super) beginning: i64,
    /// The offset behind the last record, control records and aborted ones included.
    pub(super) end: i64,
    pub(super) records: Vec<LoggedRecord>,
    /// By assessment, the numbers of its events in order, trimmed ones included.
    pub(super) lists: Vec<Vec<usize>>,
    /// Its topic was made anew: nobody reads it to its end.
    pub(super) is_gone: bool,
    /// Assessments of which records lie here that have no place here.
    pub(super) strays: Vec<bool>,
}

pub(super) struct LoggedRecord {
    pub(super) offset: i64,
    pub(super) at_ms: u64,
    pub(super) payload: Box<str>,
}

/// Where an event lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoggedEvent {
    pub(super) part: usize,
    pub(super) offset: i64,
    pub(super) assessment: usize,
    /// Its place in the partition's list of its assessment.
    pub(super) index: usize,
}

impl SimulatedKafka {
    pub(super) fn new(assessments: Vec<AssessmentId>, padding: usize) -> Self {
        let (topics, parts, events) = (Vec::new(), Vec::new(), Vec::new());
        Self { topics, parts, events, assessments, version: 0, padding, incarnations: 0 }
    }

    /// The routes, which are the same in each world.
    pub(super) fn routes() -> RouteTable {
        static ROUTES_PARSED: std::sync::OnceLock<RouteTable> = std::sync::OnceLock::new();
        ROUTES_PARSED.get_or_init(|| RouteTable::parse(ROUTES).expect("the simulation's routes are valid")).clone()
    }

    /// Makes a topic whose partitions begin at an offset.
    pub(super) fn create(&mut self, partitions: i32, spread: bool, beginning: i64, now_ms: Option<u64>) {
        let number = self.topics.len();
        let name = format!("{}.t{number}", if spread { "spread" } else { "keyed" }).into();
        self.topics.push(SimulatedTopic {
            name,
            id: "".into(),
            parts: Vec::new(),
            spread,
            is_remade: false,
            widened_ms: None,
            is_hidden: false,
        });
        self.fill_topic(number, partitions, beginning, now_ms);
    }

    /// Deletes a topic and makes another of its name.
    pub(super) fn remake(&mut self, topic: usize, now_ms: u64) {
        let Some(old) = self.topics.get_mut(topic) else { return };
        let parts = std::mem::take(&mut old.parts);
        old.is_remade = true;
        parts.iter().for_each(|&part| self.parts[part].is_gone = true);
        self.fill_topic(topic, i32::try_from(parts.len()).expect("few partitions"), 0, Some(now_ms));
    }

    fn fill_topic(&mut self, topic: usize, partitions: i32, beginning: i64, now_ms: Option<u64>) {
        self.topics[topic].widened_ms = now_ms;
        self.incarnations += 1;
        self.topics[topic].id = format!("id{}", self.incarnations).into();
        (0..partitions).for_each(|_| self.add_partition(topic, beginning));
    }

    /// Hides a topic from those who look, or shows it again.
    pub(super) fn hide(&mut self, topic: usize, is_hidden: bool) {
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.is_hidden = is_hidden;
            self.version += 1;
        }
    }

    /// Gives a topic a partition more. Not twice so soon that a pod may see both at once: of records that were placed
    /// by the number between them it would think that they are misplaced, and say so.
    pub(super) fn widen(&mut self, topic: usize, now_ms: u64) {
        let Some(widened) = self.topics.get_mut(topic) else { return };
        if widened.widened_ms.is_none_or(|before| before + NOTICED_MS < now_ms) {
            widened.widened_ms = Some(now_ms);
            self.add_partition(topic, 0);
        }
    }

    fn add_partition(&mut self, topic: usize, beginning: i64) {
        let known = self.topics[topic].parts.len();
        let assessments = self.assessments.len();
        self.topics[topic].parts.push(self.parts.len());
        self.parts.push(SimulatedPartition {
            topic,
            number: i32::try_from(known).expect("few partitions"),
            beginning,
            end: beginning,
            records: Vec::new(),
            lists: vec![Vec::new(); assessments],
            is_gone: false,
            strays: vec![false; assessments],
        });
        self.version += 1;
    }

    /// Writes an event of an assessment behind `hole` offsets that nobody is handed: control records, aborted records.
    /// `dice` says where it goes that may go anywhere; `stray` puts it where its partitioner would not.
    pub(super) fn produce(
        &mut self,
        topic: usize,
        assessment: usize,
        hole: i64,
        dice: usize,
        stray: bool,
        now_ms: u64,
    ) {
        let Some(SimulatedTopic { parts, spread, .. }) = self.topics.get(topic) else { return };
        let home = if *spread { dice } else { placed(self.assessments[assessment].as_str(), parts.len()) };
        let part = parts[(home + usize::from(stray)) % parts.len()];
        let is_misplaced = stray && !*spread && parts.len() > 1;
        let number = self.events.len();
        let (id, padding) = (self.assessments[assessment].as_str(), self.padding);
        let payload = format!(r#"{{"assessmentId":"{id}","n":{number},"padding":"{:padding$}"}}"#, "").into();
        let SimulatedPartition { end, records, lists, strays, .. } = &mut self.parts[part];
        let offset = *end + hole;
        *end = offset + 1;
        strays[assessment] |= is_misplaced;
        self.events.push(LoggedEvent { part, offset, assessment, index: lists[assessment].len() });
        records.push(LoggedRecord { offset, at_ms: now_ms, payload });
        lists[assessment].push(number);
    }

    /// Writes control records, or aborted ones, to the ends of a topic's partitions.
    pub(super) fn pad(&mut self, topic: usize, offsets: i64) {
        let Some(topic) = self.topics.get(topic) else { return };
        topic.parts.iter().for_each(|&part| self.parts[part].end += offsets);
    }

    /// Deletes all but the last few records of a topic's partitions.
    pub(super) fn trim(&mut self, topic: usize, kept: usize) {
        let Some(topic) = self.topics.get(topic) else { return };
        for &part in &topic.parts {
            let part = &mut self.parts[part];
            let first = part.records.len().saturating_sub(kept);
            part.beginning = part.beginning.max(part.records.get(first).map_or(part.end, |record| record.offset));
        }
    }
}

impl SimulatedPartition {
    /// The place of the first record at or behind an offset.
    pub(super) fn decide(&self, offset: i64) -> usize {
        self.records.partition_point(|record| record.offset < offset)
    }

    /// The offset of the first record that is as young as `since_ms`.
    pub(super) fn since(&self, since_ms: u64) -> Option<i64> {
        let place = self.records.partition_point(|record| record.at_ms < since_ms);
        self.records.get(place).map(|record| record.offset)
    }
}

/// The partition of a key, as Kafka's Java client has it (`Utils.toPositive(Utils.murmur2(key)) % partitions`). Written
/// here a second time, so that the gateway's is not tried by itself.
pub(super) fn placed(key: &str, partitions: usize) -> usize {
    const M: u32 = 0x5bd1_e995;
    let mut hash: u32 = 0x9747_b28c ^ u32::try_from(key.len()).expect("a short key");
    let mut words = key.as_bytes().chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (at, &byte) in rest.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^= hash >> 15;
    (hash & 0x7fff_ffff) as usize % partitions
}
