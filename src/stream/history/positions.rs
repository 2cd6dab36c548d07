//! Positions: what is due from one on, in which slices it is written, and how far a write came.

use std::io::IoSlice;

use super::segment::{EntryFrame, EntryRef, Segment};
use super::{AssessmentLogKey, History};

/// How far a connection is in its assessment log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The number of the next entry.
    pub(super) number: u64,
    /// That entry, once it is known to be there.
    pub(super) at: Option<EntryRef>,
}

/// The state of a position relative to the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PositionStatus {
    /// Nothing is due.
    Current,
    /// Entries are due, and all of them are in the window.
    Behind,
    /// Entries that were due have left the window.
    Lost,
}

/// Entries that are due from one position on, framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueFrames {
    first: EntryRef,
    /// How many entries.
    entries: u64,
    /// How many bytes their frames have.
    pub bytes: usize,
}

/// How far a write came in what was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteProgress {
    /// After the last entry of which anything was written.
    pub(crate) position: Position,
    /// Frames that were written whole.
    pub(crate) frames: u64,
    /// The frame that was written in part, and how many bytes of it.
    pub(crate) partial: Option<(FrameRef, u32)>,
}

/// The frame of one entry. It names the entry itself, so it stays right wherever a position moves meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameRef(pub(super) EntryRef);

impl Position {
    /// Whether an entry before the other one's is still to be sent.
    #[must_use]
    pub(crate) fn is_before(self, other: Self) -> bool {
        self.number < other.number
    }

    /// Whether both wait for the same entry.
    #[must_use]
    pub(crate) fn is_at(self, other: Self) -> bool {
        self.number == other.number
    }
}

impl History {
    /// Locates a position in the window and caches its entry. While the log is undispatched, a position that was up to
    /// date has few steps to it.
    pub(crate) fn locate(&self, key: AssessmentLogKey, position: &mut Position) -> PositionStatus {
        let Some(log) = self.logs.get(key) else { return PositionStatus::Current };
        if position.number >= log.end {
            return PositionStatus::Current;
        }
        if position.number < log.start {
            return PositionStatus::Lost;
        }
        if position.at.is_none() {
            position.at = match log.undispatched {
                Some((number, at)) if number <= position.number => self.seek(key, (number, Some(at)), position.number),
                _ => self.seek(key, (log.start, log.first), position.number),
            };
        }
        // A position whose entry cannot be found cannot be served; its client gets a reset.
        if position.at.is_some() { PositionStatus::Behind } else { PositionStatus::Lost }
    }

    /// Makes the frames that are due from a position on: at least one, and up to `bytes_max` bytes. Uses up
    /// `steps`. `None` if nothing is due, or what is due is lost.
    pub fn due(
        &mut self,
        key: AssessmentLogKey,
        mut position: Position,
        (bytes_max, steps): (usize, &mut usize),
    ) -> Option<DueFrames> {
        if self.locate(key, &mut position) != PositionStatus::Behind {
            return None;
        }
        let first = position.at?;
        let mut due = DueFrames { first, entries: 0, bytes: 0 };
        let mut next = Some(first);
        while let Some(at) = next.filter(|_| due.entries == 0 || *steps > 0) {
            *steps = steps.saturating_sub(self.steps_to_frame(at));
            let Some(frame) = self.frame(key, at) else { break };
            let len = frame.len();
            if due.entries > 0 && due.bytes + len > bytes_max {
                break;
            }
            due.entries += 1;
            due.bytes += len;
            next = self.next_entry(at);
        }
        (due.entries > 0).then_some(due)
    }

    /// The slices of what is due; frames that lie side by side share one. Returns how many slices were filled and how
    /// many bytes they hold, which is less than all where the slices did not suffice.
    pub fn slices<'a>(&'a self, due: &DueFrames, slices: &mut [IoSlice<'a>]) -> (usize, usize) {
        let mut filled = 0;
        let mut bytes = 0;
        let mut open: Option<(&Segment, u32, u32)> = None;
        let mut next = Some(due.first);
        for _ in 0..due.entries {
            let Some(at) = next else { break };
            let Some((segment, entry)) = self.segments.entry(at) else { break };
            next = entry.next;
            let EntryFrame::Ready { start, len, .. } = entry.frame else { continue };
            match &mut open {
                Some((of, _, end)) if std::ptr::eq(*of, segment) && *end == start => *end = start + len,
                _ => {
                    if let Some((of, start, end)) = open.take() {
                        slices[filled] = IoSlice::new(&of.frames[start as usize..end as usize]);
                        bytes += (end - start) as usize;
                        filled += 1;
                    }
                    if filled == slices.len() {
                        return (filled, bytes);
                    }
                    open = Some((segment, start, start + len));
                }
            }
        }
        if let Some((of, start, end)) = open {
            slices[filled] = IoSlice::new(&of.frames[start as usize..end as usize]);
            bytes += (end - start) as usize;
            filled += 1;
        }
        (filled, bytes)
    }

    /// Where a position stands after `written` bytes of what was due.
    #[must_use]
    pub fn progress(&self, position: Position, due: &DueFrames, written: usize) -> WriteProgress {
        let mut progress =
            WriteProgress { position: Position { at: Some(due.first), ..position }, frames: 0, partial: None };
        let mut left = written;
        for _ in 0..due.entries {
            let Some(at) = progress.position.at else { break };
            let Some((_, entry)) = self.segments.entry(at) else { break };
            let len = entry.frame.len();
            if left == 0 && len > 0 {
                break;
            }
            progress.position = Position { number: progress.position.number + 1, at: entry.next };
            if left < len {
                let sent = u32::try_from(left).expect("less than a frame's length, which has 32 bits");
                progress.partial = Some((FrameRef(at), sent));
                break;
            }
            left -= len;
            progress.frames += u64::from(len > 0);
        }
        progress
    }

    /// What is left of a frame of which `sent` bytes are written. `None` if its entry has left the window and the frame
    /// was not held, or too much is held.
    #[must_use]
    pub(crate) fn rest_of_frame(&self, FrameRef(at): FrameRef, sent: u32) -> Option<&[u8]> {
        let frame = match self.segments.entry(at) {
            Some((segment, entry)) => segment.frame(entry.frame)?,
            None => self.held.copy(at)?,
        };
        frame.get(sent as usize..)
    }

    /// A position after the entry that it is at.
    #[must_use]
    pub(crate) fn after(&self, position: Position) -> Position {
        Position { number: position.number + 1, at: position.at.and_then(|at| self.next_entry(at)) }
    }

    /// Finds a log's entry by its number, from an earlier entry or from the first one of its block.
    fn seek(&self, key: AssessmentLogKey, from: (u64, Option<EntryRef>), number: u64) -> Option<EntryRef> {
        let block = self.block_before(key, number).filter(|&(start, _)| start > from.0);
        let (start, mut at) = block.map_or(from, |(start, first)| (start, Some(first)));
        for _ in start..number {
            at = self.next_entry(at?);
        }
        at
    }
}
