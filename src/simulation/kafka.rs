//! The simulated Kafka: topics with partitions, records with holes between offsets, retention, topics that grow and
//! topics that are recreated. The checker takes it as the truth.

use crate::ids::AssessmentId;
use crate::routing::table::RouteTable;

/// The routes of the simulation: topics whose producers partition by key, and topics whose records lie on any
/// partition.
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

/// Time after which every pod has seen that a topic has more partitions, in ms; covers pods that are paused or cut off.
const NOTICED_MS: u64 = 6_000;

/// All topics, and every record that was ever written.
pub(super) struct SimulatedKafka {
    pub(super) topics: Vec<SimulatedTopic>,
    /// Partitions of all topics, deleted ones included.
    pub(super) parts: Vec<SimulatedPartition>,
    /// Every event, by number.
    pub(super) events: Vec<LoggedEvent>,
    pub(super) assessments: Vec<AssessmentId>,
    /// Grows with each change that a metadata refresh would show.
    pub(super) version: u64,
    /// Bytes of padding in each payload.
    padding: usize,
    incarnations: u32,
}

pub(super) struct SimulatedTopic {
    pub(super) name: Box<str>,
    /// Kafka's topic id, which another topic of the same name does not have.
    pub(super) id: Box<str>,
    /// Indexes of its partitions in [`SimulatedKafka::parts`].
    pub(super) parts: Vec<usize>,
    /// Whether its records lie on any partition.
    pub(super) spread: bool,
    /// Whether it replaced an earlier topic of its name.
    pub(super) is_recreated: bool,
    /// When it was created, or last got a partition; `None` if that was before all pods.
    widened_ms: Option<u64>,
    /// Metadata refreshes don't show it.
    pub(super) is_hidden: bool,
}

/// A partition.
pub(super) struct SimulatedPartition {
    pub(super) topic: usize,
    pub(super) number: i32,
    /// The first offset that still exists.
    pub(super) beginning: i64,
    /// The offset behind the last record, control records and aborted ones included.
    pub(super) end: i64,
    pub(super) records: Vec<LoggedRecord>,
    /// By assessment: numbers of its events, in order, trimmed ones included.
    pub(super) lists: Vec<Vec<usize>>,
    /// Its topic was recreated, so no pod must read it to its end.
    pub(super) is_gone: bool,
    /// By assessment: whether misplaced records lie here.
    pub(super) misplaced: Vec<bool>,
}

pub(super) struct LoggedRecord {
    pub(super) offset: i64,
    pub(super) at_ms: u64,
    pub(super) payload: Box<str>,
}

/// Location of an event.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoggedEvent {
    pub(super) part: usize,
    pub(super) offset: i64,
    pub(super) assessment: usize,
    /// Index in the partition's list of its assessment.
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

    /// Creates a topic whose partitions start at an offset.
    pub(super) fn create(&mut self, partitions: i32, spread: bool, beginning: i64, now_ms: Option<u64>) {
        let number = self.topics.len();
        let name = format!("{}.t{number}", if spread { "spread" } else { "keyed" }).into();
        self.topics.push(SimulatedTopic {
            name,
            id: "".into(),
            parts: Vec::new(),
            spread,
            is_recreated: false,
            widened_ms: None,
            is_hidden: false,
        });
        self.fill_topic(number, partitions, beginning, now_ms);
    }

    /// Deletes a topic and creates another of its name.
    pub(super) fn recreate(&mut self, topic: usize, now_ms: u64) {
        let Some(old) = self.topics.get_mut(topic) else { return };
        let parts = std::mem::take(&mut old.parts);
        old.is_recreated = true;
        parts.iter().for_each(|&part| self.parts[part].is_gone = true);
        self.fill_topic(topic, i32::try_from(parts.len()).expect("few partitions"), 0, Some(now_ms));
    }

    fn fill_topic(&mut self, topic: usize, partitions: i32, beginning: i64, now_ms: Option<u64>) {
        self.topics[topic].widened_ms = now_ms;
        self.incarnations += 1;
        self.topics[topic].id = format!("id{}", self.incarnations).into();
        (0..partitions).for_each(|_| self.add_partition(topic, beginning));
    }

    /// Hides a topic from metadata refreshes, or shows it again.
    pub(super) fn hide(&mut self, topic: usize, is_hidden: bool) {
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.is_hidden = is_hidden;
            self.version += 1;
        }
    }

    /// Adds a partition to a topic. Does nothing if it grew so recently that a pod may see both steps at once: records
    /// placed by the count in between would look misplaced to it.
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
            misplaced: vec![false; assessments],
        });
        self.version += 1;
    }

    /// Writes an event of an assessment behind `hole` offsets without records: control records, aborted records.
    /// `choice` selects the partition in a topic without a partitioner; `misplace` selects one where the partitioner
    /// would not put the event.
    pub(super) fn produce(
        &mut self,
        topic: usize,
        assessment: usize,
        hole: i64,
        choice: usize,
        misplace: bool,
        now_ms: u64,
    ) {
        let Some(SimulatedTopic { parts, spread, .. }) = self.topics.get(topic) else { return };
        let home = if *spread { choice } else { placed(self.assessments[assessment].as_str(), parts.len()) };
        let part = parts[(home + usize::from(misplace)) % parts.len()];
        let is_misplaced = misplace && !*spread && parts.len() > 1;
        let number = self.events.len();
        let (id, padding) = (self.assessments[assessment].as_str(), self.padding);
        let payload = format!(r#"{{"assessmentId":"{id}","n":{number},"padding":"{:padding$}"}}"#, "").into();
        let SimulatedPartition { end, records, lists, misplaced, .. } = &mut self.parts[part];
        let offset = *end + hole;
        *end = offset + 1;
        misplaced[assessment] |= is_misplaced;
        self.events.push(LoggedEvent { part, offset, assessment, index: lists[assessment].len() });
        records.push(LoggedRecord { offset, at_ms: now_ms, payload });
        lists[assessment].push(number);
    }

    /// Appends control records, or aborted ones, to a topic's partitions.
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
    /// Index of the first record at or behind an offset.
    pub(super) fn index_of(&self, offset: i64) -> usize {
        self.records.partition_point(|record| record.offset < offset)
    }

    /// Offset of the first record that is not older than `since_ms`.
    pub(super) fn since(&self, since_ms: u64) -> Option<i64> {
        let index = self.records.partition_point(|record| record.at_ms < since_ms);
        self.records.get(index).map(|record| record.offset)
    }
}

/// The partition of a key by Kafka's Java client (`Utils.toPositive(Utils.murmur2(key)) % partitions`). Written a
/// second time here, so that the gateway's version is not tested by itself.
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
