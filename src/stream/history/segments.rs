//! The window's segments, by number, and the one access to their entries.
//!
//! References to entries are held across turns, and meanwhile the window moves on. So each access answers `None` for an
//! entry that has left the window, and the caller decides what that means.

use std::collections::VecDeque;
use std::ops::Range;

use super::segment::{Entry, EntryRef, Segment};

/// Segments side by side, oldest first.
#[derive(Debug, Default)]
pub(super) struct Segments {
    segments: VecDeque<Segment>,
    /// The number of the oldest.
    first: u64,
}

impl Segments {
    /// An entry, and the segment that it is in.
    pub(super) fn entry(&self, at: EntryRef) -> Option<(&Segment, &Entry)> {
        let segment = self.segments.get(self.index_of(at.segment())?)?;
        Some((segment, segment.entries().get(at.index())?))
    }

    pub(super) fn entry_mut(&mut self, at: EntryRef) -> Option<&mut Entry> {
        self.segment_mut(at.segment())?.entry_mut(at.index())
    }

    /// A segment's entries in a range of indices.
    pub(super) fn entries(&self, number: u64, range: Range<usize>) -> Option<&[Entry]> {
        self.segments.get(self.index_of(number)?)?.entries().get(range)
    }

    pub(super) fn segment_mut(&mut self, number: u64) -> Option<&mut Segment> {
        let index = self.index_of(number)?;
        self.segments.get_mut(index)
    }

    fn index_of(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }

    pub(super) fn oldest(&self) -> Option<&Segment> {
        self.segments.front()
    }

    pub(super) fn newest_mut(&mut self) -> Option<&mut Segment> {
        self.segments.back_mut()
    }

    /// The numbers of all segments.
    pub(super) fn numbers(&self) -> Range<u64> {
        self.first..self.first + self.segments.len() as u64
    }

    pub(super) fn push(&mut self, segment: Segment) {
        self.segments.push_back(segment);
    }

    /// Takes the oldest segment out, with its number.
    pub(super) fn pop_oldest(&mut self) -> Option<(u64, Segment)> {
        let segment = self.segments.pop_front()?;
        self.first += 1;
        Some((self.first - 1, segment))
    }

    /// Oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Segment> + ExactSizeIterator {
        self.segments.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Segment> {
        self.segments.iter_mut()
    }
}
