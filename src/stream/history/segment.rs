//! A segment of the history: the records of one large batch or several small ones, and their frames.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU64;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::AssessmentLogKey;
use super::offset_timeline::OffsetTimeline;
use crate::ids::TopicIndex;
use crate::protocol::messages::{HEADER_BYTES_MAX, text_header};
use crate::routing::mapping;
use crate::routing::table::Topic;
use crate::stream::batch::{ArenaRange, Batch, Origin, Record};
use crate::stream::offsets::{FORGOTTEN, Offsets, PartitionId};

/// The text before and after a message's cursor.
pub(super) const CURSOR_OPEN: &[u8] = br#","cursor":""#;
pub(super) const CURSOR_CLOSE: &[u8] = br#""}"#;

/// Up to this size a segment takes in the batches that follow: at a low rate each batch has one record, and a segment
/// of its own would cost more than the record.
const SEGMENT_BYTES: usize = 64 * 1024;

/// Entries in one segment, at most: [`EntryRef`] counts them with [`INDEX_BITS`] bits.
const SEGMENT_ENTRIES: usize = 4 * 1024;

/// A segment accepts batches for one part, of this many, of the window's time. Its oldest entries may stay for as much
/// longer than the window, because a segment is dropped as a whole.
pub(super) const WINDOW_PARTS: u32 = 32;

const INDEX_BITS: u32 = 20;

/// Stands for the partition of a record that its log has lost. It is no partition: Kafka numbers them from 0.
const NO_PARTITION: i32 = -1;

const _: () = assert!(crate::limits::BATCH_RECORDS_MAX + SEGMENT_ENTRIES < 1 << INDEX_BITS);

/// By topic and partition: the offset from which on a truncated log lost its records.
pub(super) type LostEntries = HashMap<(TopicIndex, i32), (PartitionId, i64)>;

/// Refers to an entry: the number of its segment, which no other segment ever has, and its index there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryRef(NonZeroU64);

impl EntryRef {
    pub(super) fn new(segment: u64, index: usize) -> Self {
        // One more than the number: it is never 0, so that an Option of it takes no more memory.
        let packed = ((segment + 1) << INDEX_BITS) | index as u64;
        Self(NonZeroU64::new(packed).expect("the segment's part is at least one"))
    }

    pub(super) fn segment(self) -> u64 {
        (self.0.get() >> INDEX_BITS) - 1
    }

    pub(super) fn index(self) -> usize {
        (self.0.get() & ((1 << INDEX_BITS) - 1)) as usize
    }
}

/// An entry's frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryFrame {
    /// Not made yet: no client needed it.
    NotYet,
    /// In the segment's `frames`. `cursor` is the length of the cursor in it, 0 if it has none.
    Ready { start: u32, len: u32, cursor: u16 },
    /// Nothing is sent: the record can't be mapped, its log has lost it, or its topic has no route any more.
    Unusable,
    /// The event is too large for the window: nothing is sent, and its subscribers get a reset.
    TooLarge,
    /// Withdrawn: its log has lost it, or its topic has no route any more. Clients that were sent a part of it are sent
    /// the rest; no other client gets it.
    Lost { start: u32, len: u32 },
}

impl EntryFrame {
    /// The frame's state once its entry is withdrawn.
    fn withdrawn(self) -> Self {
        match self {
            Self::Ready { start, len, .. } => Self::Lost { start, len },
            Self::NotYet | Self::Unusable | Self::TooLarge => Self::Unusable,
            lost @ Self::Lost { .. } => lost,
        }
    }

    pub(super) fn len(self) -> usize {
        match self {
            Self::Ready { len, .. } => len as usize,
            Self::NotYet | Self::Unusable | Self::TooLarge | Self::Lost { .. } => 0,
        }
    }
}

/// A record in its assessment log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) log: AssessmentLogKey,
    pub(super) next: Option<EntryRef>,
    pub(super) frame: EntryFrame,
}

impl Entry {
    fn new(record: Record) -> Self {
        Self { record, log: AssessmentLogKey::default(), next: None, frame: EntryFrame::NotYet }
    }
}

#[derive(Debug)]
pub(super) struct Segment {
    /// Ids and payloads.
    arena: Vec<u8>,
    entries: Vec<Entry>,
    /// Indices of the misplaced entries, in order.
    misplaced: Vec<u32>,
    pub(super) frames: Vec<u8>,
    /// The read offsets before the first entry, by partition id.
    pub(super) base_offsets: Box<[i64]>,
    /// Read offsets that moved without a record: the index of the next entry, the partition and its new offset.
    moves: Vec<(u32, PartitionId, i64)>,
    /// The read offsets at each entry, built when they are first needed.
    timeline: OffsetTimeline,
    /// When its first record last_arrived.
    pub(super) first_arrived: Instant,
    /// When its newest record last_arrived.
    pub(super) last_arrived: Instant,
    /// Its cost as included in the history's sum.
    pub(super) counted_bytes: usize,
}

impl Segment {
    /// A segment of one batch. Payloads over `payload_bytes_max` are left out.
    pub(super) fn new(batch: Batch, base_offsets: Box<[i64]>, payload_bytes_max: usize, now: Instant) -> Self {
        let mut segment = Self {
            arena: Vec::new(),
            entries: Vec::with_capacity(batch.records.len()),
            misplaced: Vec::new(),
            frames: Vec::new(),
            base_offsets,
            moves: Vec::new(),
            timeline: OffsetTimeline::default(),
            first_arrived: now,
            last_arrived: now,
            counted_bytes: 0,
        };
        let is_too_large = |record: &Record| record.payload.len as usize > payload_bytes_max;
        let has_too_large = batch.arena.len() > payload_bytes_max && batch.records.iter().any(is_too_large);
        // The board keeps ticks, so an arena with ticks is not kept: its records are copied out.
        if batch.ticks.is_empty() && batch.arena.len() > SEGMENT_BYTES / 2 && !has_too_large {
            segment.entries.extend(batch.records.iter().map(|&record| Entry::new(record)));
            segment.arena = batch.arena;
            segment.misplaced = batch.misplaced;
        } else {
            segment.copy_batch(&batch, payload_bytes_max, now);
        }
        segment.counted_bytes = segment.cost();
        segment
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn entry_mut(&mut self, index: usize) -> Option<&mut Entry> {
        self.entries.get_mut(index)
    }

    /// Whether a batch is to be copied into this segment: both are small, and the segment's part of the window's time
    /// is not over. A segment is dropped as a whole.
    pub(super) fn can_take(&self, batch: &Batch, now: Instant, window: Duration) -> bool {
        self.arena.len() + batch.arena.len() <= SEGMENT_BYTES
            && self.entries.len() + batch.records.len() <= SEGMENT_ENTRIES
            && now.saturating_duration_since(self.first_arrived) <= window / WINDOW_PARTS
    }

    /// Copies a batch in; returns the indices of its entries.
    pub(super) fn copy_batch(&mut self, batch: &Batch, payload_bytes_max: usize, now: Instant) -> Range<usize> {
        let first = self.entries.len();
        self.last_arrived = now;
        let before = index_of(first);
        self.misplaced.extend(batch.misplaced.iter().map(|index| before + index));
        for record in &batch.records {
            if record.payload.len as usize > payload_bytes_max {
                let (id, payload) = (self.copy(record.id.of(&batch.arena)), ArenaRange { start: 0, len: 0 });
                let entry = Entry::new(Record { id, payload, ..*record });
                self.entries.push(Entry { frame: EntryFrame::TooLarge, ..entry });
                continue;
            }
            let payload = self.copy(record.payload.of(&batch.arena));
            // An id that lies in the payload is not copied twice.
            let within = record.id.start.checked_sub(record.payload.start);
            let id = match within {
                Some(offset) if offset + record.id.len <= payload.len => {
                    ArenaRange { start: payload.start + offset, len: record.id.len }
                }
                _ => self.copy(record.id.of(&batch.arena)),
            };
            self.entries.push(Entry::new(Record { id, payload, ..*record }));
        }
        first..self.entries.len()
    }

    fn copy(&mut self, bytes: &[u8]) -> ArenaRange {
        let start = u32::try_from(self.arena.len()).expect("a segment's arena is bounded far below 4 GiB");
        self.arena.extend_from_slice(bytes);
        ArenaRange { start, len: u32::try_from(bytes.len()).expect("a span of a batch's arena fits in 32 bits") }
    }

    /// Records partitions whose read offset moved without a record, before the next entries.
    pub(super) fn record_moves(&mut self, moves: impl Iterator<Item = (PartitionId, i64)>) {
        let index = index_of(self.entries.len());
        self.moves.extend(moves.map(|(partition_id, next)| (index, partition_id, next)));
    }

    /// Withdraws the entries that truncated logs lost. Removes from `lost` the logs of which earlier segments lost
    /// nothing, because their read offset before this segment was at or below the truncation. Returns the misplaced
    /// entries among the withdrawn: the assessment log of each, and the truncation.
    pub(super) fn truncate(&mut self, lost: &mut LostEntries) -> Vec<(AssessmentLogKey, (PartitionId, i64))> {
        let Self { misplaced, entries, moves, base_offsets, .. } = self;
        let lost_end = |origin: &Origin| {
            lost.get(&(origin.topic, origin.partition)).copied().filter(|&(_, from)| origin.offset >= from)
        };
        let mut lost_misplaced = Vec::new();
        misplaced.retain(|&index| {
            let entry = &entries[index as usize];
            let end = lost_end(&entry.record.origin);
            lost_misplaced.extend(end.map(|end| (entry.log, end)));
            end.is_none()
        });
        for entry in entries.iter_mut().filter(|entry| lost_end(&entry.record.origin).is_some()) {
            entry.record.origin.partition = NO_PARTITION;
            entry.frame = entry.frame.withdrawn();
        }
        for (_, at, next) in moves {
            if let Some((_, from)) = lost.values().find(|(partition_id, _)| partition_id == at) {
                *next = (*from).min(*next);
            }
        }
        self.timeline = OffsetTimeline::default();
        lost.retain(|_, (partition_id, from)| {
            let Some(base_offset) = base_offsets.get_mut(partition_id.index()) else { return false };
            let is_before = *base_offset <= *from;
            *base_offset = (*from).min(*base_offset);
            !is_before
        });
        lost_misplaced
    }

    /// Whether the timeline covers all entries.
    pub(super) fn is_timeline_prepared(&self) -> bool {
        self.timeline.covers(self.entries.len())
    }

    /// Forgets the offsets of these ids, which other partitions get. The segment has no entries of theirs.
    pub(super) fn forget(&mut self, partition_ids: &HashSet<PartitionId>) {
        for partition_id in partition_ids {
            if let Some(base_offset) = self.base_offsets.get_mut(partition_id.index()) {
                *base_offset = FORGOTTEN;
            }
        }
        self.moves.retain(|(_, moved, _)| !partition_ids.contains(moved));
        self.timeline = OffsetTimeline::default();
    }

    /// Withdraws all entries of these topics. Returns the assessment logs that they are in.
    pub(super) fn drop_topics(&mut self, topics: &HashSet<TopicIndex>) -> impl Iterator<Item = AssessmentLogKey> {
        let entries = self.entries.iter_mut().filter(|entry| topics.contains(&entry.record.origin.topic));
        entries.map(|entry| {
            entry.frame = entry.frame.withdrawn();
            entry.log
        })
    }

    /// Makes the timeline cover all entries.
    pub(super) fn prepare_timeline(&mut self, offsets: &Offsets) {
        if !self.is_timeline_prepared() {
            let origins = self.entries.iter().map(|entry| entry.record.origin);
            let partition_ids =
                origins.map(|origin| Some((offsets.partition_id(origin.topic, origin.partition)?, origin.offset)));
            self.timeline = OffsetTimeline::new(&self.moves, partition_ids);
        }
    }

    /// The read offset of a partition just before an entry, or just after it; `None` if it was not known then.
    pub(super) fn offset_at(&self, partition_id: PartitionId, index: usize, after: bool) -> Option<i64> {
        let timeline = self
            .timeline
            .next(partition_id, index, after)
            .or_else(|| self.base_offsets.get(partition_id.index()).copied());
        timeline.filter(|&next| next != FORGOTTEN)
    }

    /// The misplaced entries.
    pub(super) fn misplaced(&self) -> impl Iterator<Item = &Entry> {
        self.misplaced.iter().filter_map(|&index| self.entries.get(index as usize))
    }

    /// Whether an entry is misplaced.
    pub(super) fn is_misplaced(&self, index: usize) -> bool {
        !self.misplaced.is_empty() && self.misplaced.binary_search(&index_of(index)).is_ok()
    }

    /// The assessment id of one of its entries.
    pub(super) fn id(&self, entry: &Entry) -> &[u8] {
        entry.record.id.of(&self.arena)
    }

    /// In bytes of memory.
    pub(super) fn cost(&self) -> usize {
        size_of::<Self>()
            + self.arena.capacity()
            + self.entries.capacity() * size_of::<Entry>()
            + self.misplaced.capacity() * size_of::<u32>()
            + self.frames.capacity()
            + self.base_offsets.len() * size_of::<i64>()
            + self.moves.capacity() * size_of::<(u32, PartitionId, i64)>()
            + self.timeline.cost()
    }

    /// Writes the message of one of its records to `out`, up to where the cursor goes. `false` if it can't be mapped.
    pub(super) fn map(&self, record: &Record, topic: &Topic, out: &mut Vec<u8>) -> bool {
        out.clear();
        let payload = record.payload.of(&self.arena);
        let mapped = mapping::map_open(topic, payload, out).is_ok();
        out.extend_from_slice(CURSOR_OPEN);
        mapped
    }

    /// Completes a message that [`Segment::map`] began, and keeps its frame. The caller has appended the cursor, if
    /// there is one, at `start`.
    pub(super) fn close_frame(&mut self, start: usize, message: &mut Vec<u8>) -> Option<EntryFrame> {
        let cursor = u16::try_from(message.len() - start).ok()?;
        if cursor == 0 {
            message.truncate(start - CURSOR_OPEN.len());
            message.push(b'}');
        } else {
            message.extend_from_slice(CURSOR_CLOSE);
        }
        let (header, header_len) = text_header(message.len());
        debug_assert!(header_len <= HEADER_BYTES_MAX);
        let start = u32::try_from(self.frames.len()).ok()?;
        let len = u32::try_from(header_len + message.len()).ok()?;
        start.checked_add(len)?;
        self.frames.extend_from_slice(&header[..header_len]);
        self.frames.extend_from_slice(message);
        Some(EntryFrame::Ready { start, len, cursor })
    }

    /// The bytes of a frame, if it has any.
    pub(super) fn frame(&self, frame: EntryFrame) -> Option<&[u8]> {
        let (EntryFrame::Ready { start, len, .. } | EntryFrame::Lost { start, len }) = frame else { return None };
        self.frames.get(start as usize..start as usize + len as usize)
    }

    /// A frame's message up to where its cursor goes, without the header. A frame with another cursor is made of it.
    pub(super) fn open_message(&self, frame: EntryFrame) -> Option<&[u8]> {
        let EntryFrame::Ready { cursor, .. } = frame else { return None };
        let frame = self.frame(frame)?;
        let header_len = match frame.get(1)? {
            126 => 4,
            127 => HEADER_BYTES_MAX,
            _ => 2,
        };
        let tail = if cursor == 0 { 1 } else { CURSOR_OPEN.len() + usize::from(cursor) + CURSOR_CLOSE.len() };
        frame.get(header_len..frame.len() - tail)
    }
}

fn index_of(index: usize) -> u32 {
    u32::try_from(index).expect("a segment's entries are bounded")
}
