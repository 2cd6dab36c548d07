//! A batch from ingest to a shard: records as raw bytes in one arena. It becomes a segment of the shard's history
//! unchanged. Owns the layout; ingest fills it, history and board read it.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use crate::ids::{AssessmentHash, TopicIndex};
use crate::routing::table::Topic;

/// A range of a batch's arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArenaRange {
    /// In bytes from the arena's start.
    pub(crate) start: u32,
    /// In bytes.
    pub(crate) len: u32,
}

impl ArenaRange {
    /// The bytes that it stands for.
    #[must_use]
    pub(crate) fn of(self, arena: &[u8]) -> &[u8] {
        &arena[self.start as usize..self.start as usize + self.len as usize]
    }
}

/// Where a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// The topic.
    pub topic: TopicIndex,
    /// The partition of the topic.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
}

/// An event of one assessment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Of the assessment's id.
    pub hash: AssessmentHash,
    /// Where it came from.
    pub origin: Origin,
    /// The assessment's id in the arena: UTF-8 within its rule.
    pub id: ArenaRange,
    /// The payload in the arena. Known to be a JSON object where the route takes the assessment from the payload.
    pub payload: ArenaRange,
}

/// When a tick was made, in Unix ms, by its record's timestamp. It decides between partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TickTime(pub i64);

impl TickTime {
    /// The timestamp is missing or implausible. Such a tick is older than every tick with a known time.
    pub const UNKNOWN: Self = Self(i64::MIN);
}

/// A tick of one market.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// Where it came from; the market is the topic's.
    pub origin: Origin,
    /// When it was made.
    pub made: TickTime,
    /// How old it was when ingest read it, in ms; 0 where its time is unknown. Never more than the window.
    pub age_ms: u32,
    /// The payload in the arena: a JSON object.
    pub payload: ArenaRange,
}

/// The next offset of a partition that ingest will read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextOffset {
    /// The topic.
    pub topic: TopicIndex,
    /// The partition of the topic.
    pub partition: i32,
    /// All records below it were read before the batch's first.
    pub offset: i64,
}

/// The first record of a new leader epoch in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochStart {
    /// The first record of that leader that was read.
    pub first: Origin,
    /// Its leader epoch, from 0.
    pub epoch: i32,
}

/// A truncated log: records that were read are no longer in it, and it continues with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogTruncation {
    /// Where it goes on; not above the offset that was last sent for the partition.
    pub(crate) next: NextOffset,
    /// Records below that may have been replaced as well: it is unknown where the two logs diverge.
    pub(crate) is_below_unknown: bool,
}

/// Where the log of a partition ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogEnd {
    /// Behind the last record.
    pub(crate) at: NextOffset,
    /// The epoch of the leader that said so, from 0; `None` where it did not say.
    pub(crate) leader_epoch: Option<i32>,
}

/// Where the logs of some partitions ended, for transactions that are committed (the offset behind the last record,
/// and behind no open transaction), as their leaders said when they were asked all at once.
///
/// Each end was correct at some time after `asked`. A cursor that a client held by then, and whose next offset lies
/// past the end, belongs to another log. One answer is one broker's word: a leader that was paused until another was
/// elected may report an old end until it learns of it. A caller that needs certainty queries again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionEnds {
    /// Before the question was sent.
    pub(crate) asked: Instant,
    /// The ends. Where there are more than [`crate::limits::ENDS_ASKED_MAX`] partitions, those of some of them: others
    /// are asked for next, by turns. A partition that had no leader is not among them.
    pub(crate) ends: Vec<LogEnd>,
}

/// Records for one shard, in the order consumed.
#[derive(Debug, Default)]
pub struct Batch {
    /// Topics without a route now, or with a different one: their records in the window are no longer sent. Before `topics`,
    /// which may have them with another index.
    pub dropped: Vec<TopicIndex>,
    /// Topics that are not read any more (deleted, recreated, or without a route), and those of them that are read
    /// again, with `true`. Topics in `topics` are read.
    pub reading: Vec<(TopicIndex, bool)>,
    /// Topics that the shard has not heard of before: they come ahead of their first record. One that was recreated
    /// under its name is among them, with an index and a fingerprint of its own; of the one before it nothing comes
    /// any more. One whose index and fingerprint are known has another route: its records from here on go by that.
    pub topics: Vec<Arc<Topic>>,
    /// Where the ingest stood at the batch's first record, or at its end where it has none: the offsets that changed
    /// since the shard's last batch. The first one that a shard hears of a partition is where reading began, and comes
    /// before any of the partition's records. A shard that gets no records still hears of what changed, in a batch
    /// without records, within [`crate::limits::OFFSETS_SENT_EVERY`].
    pub starts: Vec<NextOffset>,
    /// For partitions that are new, beside their `starts`: records below these offsets are older than the history's
    /// time. They are read besides, for a partition's last records are, however old.
    pub recent: Vec<NextOffset>,
    /// Records between the previously sent offsets and these were deleted before they were read. Precedes any record
    /// behind the gap; the `starts` of this batch begin there.
    pub deleted: Vec<NextOffset>,
    /// Logs that lost their ends. Precedes any record that replaced what they lost; the `starts` of this batch begin
    /// there.
    pub truncations: Vec<LogTruncation>,
    /// Where another leader began to write, among the records read since the shard's last batch.
    pub epochs: Vec<EpochStart>,
    /// Compaction may have removed records below these offsets; from them on, no record is known to be missing. They
    /// may be above the read offsets.
    pub complete_from: Vec<NextOffset>,
    /// The ends of partitions' logs, if the shard requested them
    /// ([`crate::exchange::ShardInbox::request_ends`]). They say nothing of the batch's records, nor these of them; all
    /// their topics and partitions are known to the shard, from this batch at the latest.
    pub ends: Option<Arc<PartitionEnds>>,
    /// Ids and payloads.
    pub arena: Vec<u8>,
    /// Assessments' events.
    pub records: Vec<Record>,
    /// The indices of the misplaced ones of `records`, in order.
    pub misplaced: Vec<u32>,
    /// Markets' ticks.
    pub ticks: Vec<Tick>,
}

impl Batch {
    /// What it holds of records, in bytes, with what each costs besides its payload.
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        let records = self.records.len() * mem::size_of::<Record>();
        self.arena.len() + records + self.ticks.len() * mem::size_of::<Tick>()
    }

    /// Copies bytes into the arena.
    ///
    /// # Panics
    /// Never: a batch is bounded far below 4 GiB ([`crate::limits::BATCH_BYTES_MAX`] and `MAX_EVENT_BYTES`).
    pub fn push_bytes(&mut self, bytes: &[u8]) -> ArenaRange {
        let start = u32::try_from(self.arena.len()).expect("a batch's arena is bounded far below 4 GiB");
        let len = u32::try_from(bytes.len()).expect("an event is bounded by MAX_EVENT_BYTES, far below 4 GiB");
        self.arena.extend_from_slice(bytes);
        ArenaRange { start, len }
    }
}
