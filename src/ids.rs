//! Identifiers as types. Owns their validity rules, not their meaning.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::clock::UnixMs;
use crate::limits::ASSESSMENT_ID_BYTES_MAX;

/// An assessment's id, the routing key: 1 to 128 bytes of UTF-8 without control characters (PROTOCOL 1), compared byte
/// by byte.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssessmentId(Box<str>);

/// Why a string is not a valid [`AssessmentId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAssessmentId {
    /// It is empty.
    #[error("assessmentId is empty; it takes 1 to {ASSESSMENT_ID_BYTES_MAX} bytes")]
    Empty,
    /// It is longer than [`ASSESSMENT_ID_BYTES_MAX`].
    #[error("assessmentId has {0} bytes; it takes 1 to {ASSESSMENT_ID_BYTES_MAX}")]
    TooLong(usize),
    /// It has a character of Unicode's class Cc.
    #[error("assessmentId has a control character")]
    ControlCharacter,
}

impl AssessmentId {
    /// Checks an id without storing it.
    ///
    /// # Errors
    /// If `id` breaks the rule.
    pub fn check(id: &str) -> Result<(), InvalidAssessmentId> {
        if id.is_empty() {
            return Err(InvalidAssessmentId::Empty);
        }
        if id.len() > ASSESSMENT_ID_BYTES_MAX {
            return Err(InvalidAssessmentId::TooLong(id.len()));
        }
        if id.chars().any(char::is_control) {
            return Err(InvalidAssessmentId::ControlCharacter);
        }
        Ok(())
    }

    /// Parses an id.
    ///
    /// # Errors
    /// If `id` breaks the rule.
    pub fn parse(id: &str) -> Result<Self, InvalidAssessmentId> {
        Self::check(id)?;
        Ok(Self(id.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hash that placement uses.
    #[must_use]
    pub(crate) fn hash(&self) -> AssessmentHash {
        AssessmentHash::of(&self.0)
    }
}

impl Borrow<str> for AssessmentId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AssessmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The hash that decides which shard and which pod serve an assessment: xxh3-64 of the id's bytes, the same on every
/// pod and in every version of the gateway. It does not identify an assessment, because two ids may have the same hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssessmentHash(pub u64);

impl AssessmentHash {
    /// The hash of an id.
    #[must_use]
    pub fn of(id: &str) -> Self {
        Self(xxh3_64(id.as_bytes()))
    }
}

/// Index of a shard of this pod: 0 to `SHARDS` less one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardIndex(pub u16);

/// The ids of a pod's connections: `<node>-<start of the process, in hexadecimal ms>-<shard>-<number>`. No two
/// connections have the same, also of pods with the same name, unless these start in the same millisecond.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionIds(Arc<str>);

impl ConnectionIds {
    /// The ids of a process.
    #[must_use]
    pub(crate) fn new(node: &NodeId, started: UnixMs) -> Self {
        Self(format!("{node}-{:x}-", started.0).into())
    }

    /// The id of a connection: of the n-th of a shard.
    #[must_use]
    pub(crate) fn id(&self, ShardIndex(shard): ShardIndex, number: u64) -> String {
        format!("{}{shard}-{number}", self.0)
    }

    /// A name of the process, which no other has.
    #[must_use]
    pub(crate) fn process(&self) -> &str {
        &self.0
    }

    /// A connection's shard and number, if the id is one of these.
    #[must_use]
    pub(crate) fn parse(&self, id: &str) -> Option<(ShardIndex, u64)> {
        let (shard, number) = id.strip_prefix(&*self.0)?.split_once('-')?;
        let parsed = (ShardIndex(shard.parse().ok()?), number.parse().ok()?);
        // One id has one spelling.
        (self.id(parsed.0, parsed.1) == id).then_some(parsed)
    }
}

/// A slot of the cluster: the number by which a pod owns its share of the assessments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotNumber(pub u32);

impl fmt::Display for SlotNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A pod's name in the cluster (`POD_NAME`, else `NODE_ID`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub Arc<str>);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Index of a topic that ingest reads. Dense; the index of a topic that is no longer read is reused once nothing in the
/// window can refer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicIndex(pub u16);

impl TopicIndex {
    /// Stands for no topic.
    pub(crate) const NONE: Self = Self(u16::MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_id_is_parsed_by_the_process_that_made_it() {
        let ids = ConnectionIds::new(&NodeId("pod-1".into()), UnixMs(0x19a));
        assert_eq!(ids.id(ShardIndex(3), 17), "pod-1-19a-3-17");
        assert_eq!(ids.parse("pod-1-19a-3-17"), Some((ShardIndex(3), 17)));
        for other in ["", "pod-1-19a-3", "pod-1-19b-3-17", "pod-1-19a-3-+17", "pod-1-19a-03-17", "pod-1-19a-70000-1"] {
            assert_eq!(ids.parse(other), None, "{other}");
        }
    }
}
