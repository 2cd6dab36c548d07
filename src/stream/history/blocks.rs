//! A long log in blocks of some hundred entries: an entry is found by its number, and what a cursor covers is skipped,
//! without a step for each entry before it. A log that is shorter than a block has none.

#![cfg_attr(not(test), expect(clippy::cast_possible_truncation, reason = "a block is 256"))]

use std::collections::VecDeque;

use super::positions::Position;
use super::segment::EntryRef;
use super::{AssessmentLogKey, History};
use crate::limits::STEPS_MAX;
use crate::stream::offsets::{PartitionId, ResumeFilter};

/// Entries of one block. Its first one has a number that this divides.
const BLOCK: u64 = 256;

/// Partitions of which a block knows the newest record. A block with records of more is visited entry by entry.
const PARTITIONS_MAX: usize = 64;

const _: () = assert!(STEPS_MAX > 2 * (BLOCK as usize + PARTITIONS_MAX), "each turn leads past a block at least");

/// A log's blocks.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// Oldest first, side by side.
    blocks: VecDeque<Block>,
    /// The number of the first one's first entry.
    start: u64,
}

#[derive(Debug)]
struct Block {
    first: EntryRef,
    newest: Newest,
}

/// The newest record of each partition of which a block has records.
#[derive(Debug)]
enum Newest {
    /// It was not needed yet.
    NotYet,
    /// The offset may be above that of the newest record, where the log lost that one.
    Of(Box<[(PartitionId, i64)]>),
    TooMany,
}

impl Block {
    /// In bytes of memory.
    fn cost(&self) -> usize {
        let newest = if let Newest::Of(newest) = &self.newest { size_of_val(&**newest) } else { 0 };
        size_of::<Self>() + newest
    }
}

impl Blocks {
    /// Whether an entry with this number begins a block. The very first entry begins none: most logs stay short.
    pub(super) fn begins(number: u64) -> bool {
        number > 0 && number.is_multiple_of(BLOCK)
    }

    /// Adds a block that begins with the log's newest entry. Returns its cost.
    pub(super) fn push(&mut self, number: u64, first: EntryRef) -> usize {
        if self.blocks.is_empty() {
            self.start = number;
        }
        let block = Block { first, newest: Newest::NotYet };
        let cost = block.cost();
        self.blocks.push_back(block);
        cost
    }

    /// The first entry of the oldest block has left the window. Returns what the block cost.
    pub(super) fn pop(&mut self) -> usize {
        self.start += BLOCK;
        self.blocks.pop_front().map_or(0, |block| block.cost())
    }

    /// The last entry that begins a block and has this number or a lower one.
    fn before(&self, number: u64) -> Option<(u64, EntryRef)> {
        let index = usize::try_from(number.checked_sub(self.start)? / BLOCK).ok()?;
        let index = index.min(self.blocks.len().checked_sub(1)?);
        Some((self.start + index as u64 * BLOCK, self.blocks.get(index)?.first))
    }
}

impl History {
    /// A log's newest entry begins a block.
    pub(super) fn begin_block(&mut self, key: AssessmentLogKey, number: u64, first: EntryRef) {
        if let Some(entry) = self.blocks.entry(key) {
            self.bytes += entry.or_default().push(number, first);
        }
    }

    /// The entry that begins a log's oldest block leaves the window.
    pub(super) fn end_block(&mut self, key: AssessmentLogKey) {
        if let Some(blocks) = self.blocks.get_mut(key) {
            self.bytes -= blocks.pop();
        }
    }

    /// An entry of a log at or before this number, with its own number, if the blocks know one.
    pub(super) fn block_before(&self, key: AssessmentLogKey, number: u64) -> Option<(u64, EntryRef)> {
        self.blocks.get(key)?.before(number)
    }

    /// The position of the next entry that a client lacks, or as far as `steps` lead, which are used up: where none is
    /// left, it goes on from there another time.
    pub(super) fn skip(
        &mut self,
        key: AssessmentLogKey,
        mut position: Position,
        resume_filter: &ResumeFilter,
        steps: &mut usize,
    ) -> Position {
        while let Some(at) = position.at
            && *steps > 0
        {
            if Blocks::begins(position.number) {
                let behind = self.skip_blocks(key, position, resume_filter, steps);
                if behind != position {
                    position = behind;
                    continue;
                }
            }
            *steps = steps.saturating_sub(1);
            if !self.is_covered(at, resume_filter) {
                break;
            }
            position = self.after(position);
        }
        position
    }

    /// The position behind the blocks, from one on that begins with this position, of which a client lacks nothing.
    fn skip_blocks(
        &mut self,
        key: AssessmentLogKey,
        mut position: Position,
        resume_filter: &ResumeFilter,
        steps: &mut usize,
    ) -> Position {
        let Some(mut blocks) = self.blocks.remove(key) else { return position };
        while *steps > 0
            && let Some(next) = self.behind_block(&mut blocks, position.number, resume_filter, steps)
        {
            position = Position { number: position.number + BLOCK, at: Some(next) };
        }
        self.blocks.insert(key, blocks);
        position
    }

    /// The first entry behind a block of which a client lacks nothing.
    fn behind_block(
        &mut self,
        Blocks { blocks, start }: &mut Blocks,
        number: u64,
        resume_filter: &ResumeFilter,
        steps: &mut usize,
    ) -> Option<EntryRef> {
        let index = usize::try_from(number.checked_sub(*start)? / BLOCK).ok()?;
        // The newest block is still growing.
        let next = blocks.get(index + 1)?.first;
        let block = blocks.get_mut(index)?;
        if matches!(block.newest, Newest::NotYet) {
            let before = block.cost();
            block.newest = self.newest_from(block.first);
            self.bytes += block.cost() - before;
            *steps = steps.saturating_sub(BLOCK as usize);
        }
        let Newest::Of(newest) = &block.newest else { return None };
        *steps = steps.saturating_sub(1 + newest.len());
        newest
            .iter()
            .all(|&(partition_id, offset)| resume_filter.contains(&self.offsets, partition_id, offset))
            .then_some(next)
    }

    fn newest_from(&self, first: EntryRef) -> Newest {
        let mut newest: Vec<(PartitionId, i64)> = Vec::new();
        let mut next = Some(first);
        for _ in 0..BLOCK {
            let Some(at) = next else { break };
            let Some((_, entry)) = self.segments.entry(at) else { break };
            next = entry.next;
            let origin = entry.record.origin;
            let Some(partition_id) = self.offsets.partition_id(origin.topic, origin.partition) else { continue };
            if let Some((_, offset)) = newest.iter_mut().find(|(known, _)| *known == partition_id) {
                *offset = origin.offset.max(*offset);
                continue;
            }
            if newest.len() == PARTITIONS_MAX {
                return Newest::TooMany;
            }
            newest.push((partition_id, origin.offset));
        }
        Newest::Of(newest.into())
    }
}
