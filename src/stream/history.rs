//! The bounded window of the assessments' events that one shard keeps, and positions in it.
//!
//! A batch becomes a [`Segment`] unchanged (a small one is copied into the previous segment). The entries of one
//! assessment are linked into its *assessment log*, across segments. A connection's [`Position`] is the number of the
//! next entry that it is sent, and all that a live connection owns of the stream.
//!
//! An entry is parsed, mapped and framed once: on arrival if its assessment has subscribers, else when the first
//! connection needs it. Without subscribers it stays raw. Each frame carries the cursor *as of its entry*: ingest's
//! read offsets at that entry, whenever it is framed.
//!
//! - `assessment_logs`: the entries of each assessment, its subscribers, and which entries are undispatched;
//! - `blocks`: a long log's entries by number, and which of them a cursor covers;
//! - `misplaced`: on which partitions each assessment log has misplaced records;
//! - `positions`: what is due from a position on, and how far a write got;
//! - `cursors`: where a returning client continues, and the cursor of a position;
//! - `index`: from an assessment's id to its log;
//! - `findings`: findings about records, for the log and the metrics;
//! - `held_frames`: half-written frames, kept until they are written;
//! - `segments`, `segment`: the window in pieces, and the only access to its entries;
//! - `offset_timeline`: the read offsets at each entry of a segment.
//!
//! The shard owns the connections, and decides when they are written to.

mod assessment_logs;
mod blocks;
mod cursors;
mod findings;
mod held_frames;
mod index;
mod misplaced;
mod offset_timeline;
mod positions;
mod segment;
mod segments;
#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use slotmap::{SlotMap, SparseSecondaryMap};

pub(crate) use self::assessment_logs::AssessmentLogKey;
use self::assessment_logs::{AssessmentLog, LINK_GROUP};
use self::blocks::Blocks;
pub(crate) use self::cursors::CatchUpFrames;
pub(crate) use self::findings::{FindingKind, RecordFindings, TopicFinding};
use self::held_frames::HeldFrames;
use self::index::Index;
pub(crate) use self::index::IndexKey;
use self::misplaced::MisplacedRecords;
pub(crate) use self::positions::{DueFrames, FrameRef, Position, PositionStatus, WriteProgress};
use self::segment::{Entry, EntryFrame, EntryRef, LostEntries, Segment, WINDOW_PARTS};
use self::segments::Segments;
use crate::ids::TopicIndex;
use crate::limits::{GROWTH_NOTICED_MAX, MESSAGE_BYTES_COMMON, UNDISPATCHED_BYTES_MAX};
use crate::routing::table::Topic;
use crate::stream::batch::{Batch, LogTruncation, NextOffset};
use crate::stream::offsets::{Offsets, PartitionId};

/// The window.
#[derive(Debug)]
pub struct History {
    limits: HistoryLimits,
    /// As of the newest record.
    offsets: Offsets,
    segments: Segments,
    /// Memory of `segments`, `logs` and the copies in `held_frames`.
    bytes: usize,
    held: HeldFrames,
    logs: SlotMap<AssessmentLogKey, AssessmentLog>,
    /// Partitions whose offset moved without a record since the last segment or batch; noted at the next one's start.
    moved: Vec<PartitionId>,
    index: Index,
    misplaced: MisplacedRecords,
    /// Of long logs.
    blocks: SparseSecondaryMap<AssessmentLogKey, Blocks>,
    /// Subscribed logs with undispatched entries, oldest first.
    undispatched: VecDeque<AssessmentLogKey>,
    /// A buffer for a message whose length is not known yet.
    scratch: Vec<u8>,
    /// Partitions with a loss that no client was notified of yet.
    losses: Vec<Loss>,
    /// The few assessment logs with events that are never sent, because they are too large or of a dropped topic, each
    /// with a number above all of these.
    unsent_below: SparseSecondaryMap<AssessmentLogKey, u64>,
    /// Subscribed assessments with an event that can't be sent, each with the position after it.
    unsent: Vec<(AssessmentLogKey, Position)>,
    /// Topics whose indexes other topics got. No cursor in use may name them any more.
    reused: Vec<TopicIndex>,
    findings: RecordFindings,
}

/// The bounds of the window: the oldest segments over either of them are dropped.
#[derive(Debug, Clone, Copy)]
pub struct HistoryLimits {
    /// Bytes of memory: arenas, entries, frames and assessment logs.
    pub bytes_max: usize,
    /// For how long after its arrival an entry is kept.
    pub window: Duration,
}

impl HistoryLimits {
    /// Bytes of one event's payload, and of its frame: each may take half of the window. Over it, the event is counted,
    /// and its subscribers get a reset ([`History::take_unsent`]).
    fn event_bytes_max(&self) -> usize {
        self.bytes_max / 2
    }
}

/// A partition lost records that clients have, or should have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loss {
    /// The partition that lost records.
    pub(crate) partition_id: PartitionId,
    /// How the log lost its end; `None` if records were deleted before they were read, or compaction removed them.
    pub(crate) end: Option<LostEnd>,
}

/// The lost end of a log. Clients that have more of the log than this pod has read are affected, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LostEnd {
    /// The offset at which the log continues.
    pub(crate) from: i64,
    /// The leader epoch of the last record that was read of it, if known. A client with a later leader's log lost
    /// nothing.
    pub(crate) epoch: Option<i32>,
}

impl History {
    /// An empty window.
    #[must_use]
    pub fn new(limits: HistoryLimits) -> Self {
        Self {
            limits,
            offsets: Offsets::default(),
            segments: Segments::default(),
            bytes: 0,
            held: HeldFrames::default(),
            logs: SlotMap::with_key(),
            moved: Vec::new(),
            index: Index::new(IndexKey::default()),
            misplaced: MisplacedRecords::default(),
            blocks: SparseSecondaryMap::new(),
            undispatched: VecDeque::new(),
            scratch: Vec::new(),
            losses: Vec::new(),
            unsent_below: SparseSecondaryMap::new(),
            unsent: Vec::new(),
            reused: Vec::new(),
            findings: RecordFindings::default(),
        }
    }

    /// Sets a secret key of this process for the index, so that no client can choose ids that are slow to find.
    #[must_use]
    pub(crate) fn with_index_key(mut self, key: IndexKey) -> Self {
        debug_assert!(self.logs.is_empty());
        self.index = Index::new(key);
        self
    }

    /// Appends a batch that arrived at `now`, and drops what is over the limits.
    pub fn append(&mut self, batch: Batch, now: Instant) {
        self.take_offsets(&batch, now);
        if batch.records.is_empty() {
            return;
        }
        let added = match self.segments.newest_mut() {
            Some(last) if last.can_take(&batch, now, self.limits.window) => {
                last.record_moves(
                    self.moved.drain(..).map(|partition_id| (partition_id, self.offsets.next(partition_id))),
                );
                last.copy_batch(&batch, self.limits.event_bytes_max(), now)
            }
            _ => {
                self.moved.clear();
                let segment = Segment::new(batch, self.offsets.all_next().into(), self.limits.event_bytes_max(), now);
                let added = 0..segment.entries().len();
                self.bytes += segment.counted_bytes;
                self.segments.push(segment);
                added
            }
        };
        let number = self.segments.numbers().end - 1;
        self.link_all(number, added);
        self.update_cost(number);
        self.evict(now);
    }

    /// Takes in a batch's topics and partitions, and the read offsets at its first record.
    fn take_offsets(&mut self, batch: &Batch, now: Instant) {
        self.drop_topics(&batch.dropped);
        self.make_way_for(&batch.topics);
        batch.reading.iter().for_each(|&(topic, is_read)| self.offsets.set_reading(topic, is_read, now));
        self.offsets.add_topics(&batch.topics);
        let deleted = batch.deleted.iter().filter_map(|at| self.offsets.missing_below(at));
        self.losses.extend(deleted.map(|partition_id| Loss { partition_id, end: None }));
        self.truncate(&batch.truncations);
        let is_old = |segment: &&Segment| segment.first_arrived + GROWTH_NOTICED_MAX <= now;
        let timeline = || self.segments.iter().rev().find(is_old).map(|segment| &*segment.base_offsets);
        let mut begun_late = Vec::new();
        self.offsets.apply_next_offsets(&batch.starts, timeline, now, &mut self.moved, &mut begun_late);
        self.losses.extend(begun_late.into_iter().map(|partition_id| Loss { partition_id, end: None }));
        self.offsets.recent_from(&batch.recent);
        batch.epochs.iter().for_each(|start| self.offsets.epoch_starts(start));
        let missing = batch.complete_from.iter().filter_map(|from| self.offsets.missing_below(from));
        self.losses.extend(missing.map(|partition_id| Loss { partition_id, end: None }));
        if self.moved.len() > 2 * self.offsets.all_next().len() {
            self.moved.sort_unstable();
            self.moved.dedup();
        }
    }

    /// Kafka logs lost their ends. The window continues as if these had never been read. Takes one pass, from the
    /// newest entry back to the segment with the first lost entry.
    fn truncate(&mut self, truncations: &[LogTruncation]) {
        let mut lost = LostEntries::new();
        for truncation in truncations {
            let Some((partition_id, epoch)) = self.offsets.truncate(truncation) else { continue };
            let NextOffset { topic, partition, offset: from } = truncation.next;
            lost.entry((topic, partition))
                .and_modify(|(_, first)| *first = from.min(*first))
                .or_insert((partition_id, from));
            self.losses.push(Loss { partition_id, end: Some(LostEnd { from, epoch }) });
        }
        for number in self.segments.numbers().rev() {
            if lost.is_empty() {
                break;
            }
            let Some(segment) = self.segments.segment_mut(number) else { break };
            let misplaced = segment.truncate(&mut lost);
            self.update_cost(number);
            self.truncate_misplaced(&misplaced);
        }
    }

    /// No route takes these topics any more as it did: what the window has of them is sent to no client, and clients that
    /// lack it are sent a reset, now or when they return. Takes as long as the window is.
    fn drop_topics(&mut self, topics: &[TopicIndex]) {
        if topics.is_empty() {
            return;
        }
        let topics: HashSet<TopicIndex> = topics.iter().copied().collect();
        let logs: HashSet<AssessmentLogKey> =
            self.segments.iter_mut().flat_map(|segment| segment.drop_topics(&topics)).collect();
        for key in logs {
            let Some(after) = self.after_last_of(key, &topics) else { continue };
            if let Some(entry) = self.unsent_below.entry(key) {
                let below = entry.or_default();
                *below = after.number.max(*below);
            }
            if self.logs.get(key).is_some_and(|log| log.subscribers > 0) {
                self.unsent.push((key, after));
            }
        }
    }

    /// New topics may have the indexes of others, which were last read longer ago than the window is. If the shard is so
    /// far behind that it still has records of them, it drops these and everything older. Takes as long as the window
    /// is.
    fn make_way_for(&mut self, topics: &[Arc<Topic>]) {
        let reused: HashSet<TopicIndex> =
            topics.iter().filter(|topic| self.offsets.is_reused_by(topic)).map(|topic| topic.index).collect();
        if reused.is_empty() {
            return;
        }
        let is_of = |entry: &Entry| reused.contains(&entry.record.origin.topic);
        let last = self.segments.iter().rposition(|segment| segment.entries().iter().any(is_of));
        (0..last.map_or(0, |last| last + 1)).for_each(|_| self.drop_oldest());
        let partition_ids: HashSet<PartitionId> =
            reused.iter().flat_map(|&topic| self.offsets.partitions_of(topic)).collect();
        self.segments.iter_mut().for_each(|segment| segment.forget(&partition_ids));
        self.reused.extend(reused);
    }

    /// The topics whose indexes others got since this was last asked.
    pub(crate) fn take_reused(&mut self) -> Vec<TopicIndex> {
        std::mem::take(&mut self.reused)
    }

    /// Drops what is over the limits at `now`. Undispatched entries are dropped by age alone: what a turn takes in
    /// cannot overtake up-to-date clients, however small the window and however large the events.
    pub(crate) fn evict(&mut self, now: Instant) {
        let undispatched =
            self.undispatched.iter().find_map(|&key| self.logs.get(key)?.undispatched).map(|(_, at)| at.segment());
        let bytes_most = 2 * self.limits.bytes_max + UNDISPATCHED_BYTES_MAX;
        while let Some(oldest) = self.segments.oldest() {
            let aged = now.saturating_duration_since(oldest.last_arrived) > self.limits.window;
            let is_undispatched = undispatched.is_some_and(|number| number <= self.segments.numbers().start);
            let is_over = self.bytes > if is_undispatched { bytes_most } else { self.limits.bytes_max };
            if !aged && !is_over {
                break;
            }
            self.drop_oldest();
        }
        // A segment's oldest entry may outlive the window by a part of it.
        self.offsets.forget_old_counts(self.limits.window + self.limits.window / WINDOW_PARTS, now);
    }

    /// What the window costs, in bytes of memory.
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the findings since the last call.
    pub(crate) fn take_findings(&mut self) -> RecordFindings {
        std::mem::take(&mut self.findings)
    }

    /// Takes the losses of partitions since the last call.
    pub(crate) fn take_losses(&mut self) -> Vec<Loss> {
        std::mem::take(&mut self.losses)
    }

    /// The subscribed assessments with an event that can't be sent, found since the last call: it is too large for the
    /// window, or its topic was dropped. Clients before the position lack it.
    pub(crate) fn take_unsent(&mut self) -> Vec<(AssessmentLogKey, Position)> {
        std::mem::take(&mut self.unsent)
    }

    /// Notes that an entry of a log is too large.
    fn note_too_large(&mut self, key: AssessmentLogKey, at: EntryRef) {
        let topic = self.segments.entry(at).and_then(|(_, entry)| self.offsets.topic(entry.record.origin.topic));
        self.findings.add(FindingKind::TooLarge, topic);
        let Some(log) = self.logs.get(key) else { return };
        self.unsent_below.insert(key, log.end);
        if log.subscribers > 0 && self.unsent.last().is_none_or(|(last, _)| *last != key) {
            // Clients past the entry were sent nothing for it.
            self.unsent.push((key, Position { number: u64::MAX, at: None }));
        }
    }

    fn drop_oldest(&mut self) {
        let Some((number, segment)) = self.segments.pop_oldest() else { return };
        self.bytes -= segment.counted_bytes;
        self.keep_held(number, &segment);
        self.forget_misplaced(&segment);
        for group in segment.entries().chunks(LINK_GROUP) {
            self.fetch_logs(group.iter().map(|entry| entry.log));
            for entry in group {
                self.offsets.record_evicted(entry.record.origin);
                self.unlink_first(entry.log, entry.next);
            }
        }
    }

    /// The frame of an entry, made on first use. `None` if the entry has left the window.
    fn frame(&mut self, key: AssessmentLogKey, at: EntryRef) -> Option<EntryFrame> {
        match self.segments.entry(at)?.1.frame {
            EntryFrame::NotYet => {}
            frame => return Some(frame),
        }
        self.refresh_listed(key);
        self.prepare_timeline(at);
        let frame = self.make_frame(key, at, CursorPoint::AsOfEntry);
        self.update_cost(at.segment());
        frame
    }

    /// The steps that it takes to frame an entry; 0 if its frame is ready.
    fn steps_to_frame(&self, at: EntryRef) -> usize {
        /// A message takes about 1 ns a byte to be made, and a step 10 ns.
        const BYTES_A_STEP: usize = 10;
        let Some((_, entry)) = self.segments.entry(at) else { return 1 };
        match entry.frame {
            EntryFrame::NotYet => 1 + entry.record.payload.len as usize / BYTES_A_STEP + self.steps_to_prepare(at),
            EntryFrame::Ready { .. } => 0,
            EntryFrame::Unusable | EntryFrame::TooLarge | EntryFrame::Lost { .. } => 1,
        }
    }

    /// The steps that it takes to prepare the timeline of an entry's segment.
    fn steps_to_prepare(&self, at: EntryRef) -> usize {
        self.segments
            .entry(at)
            .map_or(0, |(segment, _)| if segment.is_timeline_prepared() { 0 } else { segment.entries().len() })
    }

    /// Makes an entry's frame, with the cursor as of the entry: from the read offsets at that entry, which its segment
    /// has, or from the present ones while the entry is the newest.
    fn make_frame(&mut self, key: AssessmentLogKey, at: EntryRef, cursor_point: CursorPoint) -> Option<EntryFrame> {
        let event_bytes_max = self.limits.event_bytes_max();
        let Self { segments, offsets, logs, scratch, findings, .. } = self;
        let record = segments.entry(at)?.1.record;
        let (segment, log) = (segments.segment_mut(at.segment())?, logs.get(key)?);
        let topic = offsets.topic_of(record.origin);
        let frame = topic.filter(|topic| segment.map(&record, topic, scratch)).and_then(|_| {
            let start = scratch.len();
            let stands = cursors::offset_lookup(segment, offsets, at.index(), true);
            let has_cursor = match cursor_point {
                CursorPoint::AsOfEntry => offsets.write_cursor(log.hash, &log.listed, stands, scratch),
                CursorPoint::Head => offsets.write_cursor(log.hash, &log.listed, |at| offsets.next(at), scratch),
            };
            findings.without_cursor += u64::from(!has_cursor);
            if scratch.len() > MESSAGE_BYTES_COMMON {
                findings.add(FindingKind::Long, topic);
            }
            if scratch.len() > event_bytes_max {
                // Releases the oversized buffer.
                *scratch = Vec::new();
                return Some(EntryFrame::TooLarge);
            }
            segment.close_frame(start, scratch)
        });
        let frame = frame.unwrap_or(EntryFrame::Unusable);
        segment.entry_mut(at.index())?.frame = frame;
        findings.unusable += u64::from(frame == EntryFrame::Unusable);
        if frame == EntryFrame::TooLarge {
            self.note_too_large(key, at);
        }
        Some(frame)
    }

    /// The next entry of the same log.
    fn next_entry(&self, at: EntryRef) -> Option<EntryRef> {
        self.segments.entry(at)?.1.next
    }

    /// Brings `bytes` up to date with a segment's cost.
    fn update_cost(&mut self, number: u64) {
        let Some(segment) = self.segments.segment_mut(number) else { return };
        let cost = segment.cost();
        let before = std::mem::replace(&mut segment.counted_bytes, cost);
        self.bytes = self.bytes - before + cost;
    }
}

/// Which offsets are used for a frame's cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CursorPoint {
    /// Those of the entry, from its segment.
    AsOfEntry,
    /// Those of now: for the newest entry they are its own.
    Head,
}
