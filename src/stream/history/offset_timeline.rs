//! The read offsets at each entry of a segment: cursors of late frames and of positions are made of them. A timeline is
//! built on first use, because most segments never need one.

use crate::stream::offsets::PartitionId;

/// How each partition's read offset moved along a segment's entries.
#[derive(Debug, Default)]
pub(super) struct OffsetTimeline {
    /// Ordered by partition id, then by step.
    moves: Vec<OffsetStep>,
    /// Number of entries that it covers.
    entries: usize,
}

#[derive(Debug, Clone, Copy)]
struct OffsetStep {
    partition_id: PartitionId,
    /// `2 * index` for a move before the entry at that index, `2 * index + 1` for the entry's own record.
    step: u32,
    next: i64,
}

impl OffsetTimeline {
    /// From a segment's moves without a record, and the partition and offset of each entry.
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

    /// Whether it covers exactly this many entries.
    pub(super) fn covers(&self, entries: usize) -> bool {
        self.entries == entries
    }

    /// A partition's read offset just before an entry, or just after it; `None` if it had not moved since the segment's
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
