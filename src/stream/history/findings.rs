//! What turned out about records when they were linked or framed, by topic.

use std::sync::Arc;

use crate::ids::TopicIndex;
use crate::routing::table::Topic;

/// The findings since they were last taken.
#[derive(Debug, Default)]
pub(crate) struct RecordFindings {
    /// Records that can't be mapped.
    pub(crate) unusable: u64,
    /// Messages without a cursor, for it would have been too long.
    pub(crate) without_cursor: u64,
    /// Ticks for which the market board had no room.
    pub(crate) board_overflow: u64,
    /// The others, each kind and topic once.
    pub(crate) of_topics: Vec<TopicFinding>,
}

/// A kind of finding about a topic's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FindingKind {
    /// Records of subscribed assessments on partitions where the route's partitioner would not place them.
    Misplaced,
    /// Events that are too large for the window.
    TooLarge,
    /// Messages over [`MESSAGE_BYTES_COMMON`](crate::limits::MESSAGE_BYTES_COMMON).
    Long,
}

/// How many records of a topic there is something to say about.
#[derive(Debug, Clone)]
pub(crate) struct TopicFinding {
    pub(crate) kind: FindingKind,
    /// `None` if the topic is not known any more.
    pub(crate) topic: Option<Arc<Topic>>,
    pub(crate) records: u64,
}

impl RecordFindings {
    /// Adds a record of a topic.
    pub(super) fn add(&mut self, kind: FindingKind, topic: Option<&Arc<Topic>>) {
        let index = |topic: Option<&Arc<Topic>>| topic.map(|topic| topic.index);
        let is_same = |found: &&mut TopicFinding| found.kind == kind && index(found.topic.as_ref()) == index(topic);
        match self.of_topics.iter_mut().find(is_same) {
            Some(found) => found.records += 1,
            None => self.of_topics.push(TopicFinding { kind, topic: topic.cloned(), records: 1 }),
        }
    }
}

impl TopicFinding {
    /// Whose lines are one kind of line.
    pub(crate) fn key(&self) -> (FindingKind, Option<TopicIndex>) {
        (self.kind, self.topic.as_ref().map(|topic| topic.index))
    }
}
