//! Ingest's read offsets at each entry of a segment, for entries framed late and for the cursor of a position. Built on
//! first use, since most segments never need it.

use crate::stream::offsets::PartitionId;

/// By place, how it moved along a segment's entries.
#[derive(Debug, Default)]
pub(super) struct OffsetTimeline {
    /// Ordered by place, then by step.
    moves: Vec<OffsetStep>,
    /// Of how many entries it knows.
    entries: usize,
}

#[derive(Debug, Clone, Copy)]
struct OffsetStep {
    partition_id: PartitionId,
    /// Twice the entry's index for what moved before the entry, and one more for the entry's own record.
    step: u32,
    next: i64,
}

impl OffsetTimeline {
    /// From a segment's moves without a record, and each entry's place and offset.
    pub(super) fn new(
        moves: &[(u32, PartitionId, i64)],
        entries: impl ExactSizeIterator<Item = Option<(PartitionId, i64)>>,
    ) -> Self {
        let count = entries.len();
        let mut all = Vec::with_capacity(moves.len() + count);
        all.extend(moves.iter().map(|&(index, partition_id, next)| OffsetStep { partition_id, step: 2 * index, next }));
        all.extend((0u32..).zip(entries).filter_map(|(index, entry)| {
            let (partition_id, offset) = entry?;
            Some(OffsetStep { partition_id, step: 2 * index + 1, next: offset.saturating_add(1) })
        }));
        // Stable: of two moves at one step the later counts.
        all.sort_by_key(|step| (step.partition_id, step.step));
        Self { moves: all, entries: count }
    }

    /// Whether it knows all of so many entries.
    pub(super) fn is_of(&self, entries: usize) -> bool {
        self.entries == entries
    }

    /// Where a place stood just before an entry, or just after it; `None` where it had not moved since the segment's
    /// start.
    pub(super) fn next(&self, partition_id: PartitionId, index: usize, after: bool) -> Option<i64> {
        let step = 2 * u32::try_from(index).ok()? + u32::from(after);
        let until = self.moves.partition_point(|known| (known.partition_id, known.step) <= (partition_id, step));
        self.moves[..until].last().filter(|known| known.partition_id == partition_id).map(|known| known.next)
    }

    /// In bytes of memory, beside itself.
    pub(super) fn cost(&self) -> usize {
        self.moves.capacity() * size_of::<OffsetStep>()
    }
}
