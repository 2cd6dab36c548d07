//! Positions: what is due from one on, in which slices it is written, and how far a write came.

use std::io::IoSlice;

use super::segment::{EntryRef, Frame, Segment};
use super::{ChainKey, History, slot};

/// How far a connection is in its assessment's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The chain's entry that comes next.
    pub(super) number: u64,
    /// That entry, once it is known to be there.
    pub(super) at: Option<EntryRef>,
}

/// How a position stands to the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lag {
    /// Nothing is due.
    Current,
    /// Entries are due, and all of them are in the window.
    Behind,
    /// Entries that were due have left the window.
    Lost,
}

/// Entries that are due from one position on, framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    first: EntryRef,
    /// How many entries.
    entries: u64,
    /// How many bytes their frames have.
    pub bytes: usize,
}

/// How far a write came in what was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// After the last entry that was written whole.
    pub position: Position,
    /// Frames that were written whole.
    pub frames: u64,
    /// Bytes of the next frame that were written.
    pub partial: usize,
}

impl Position {
    /// Whether both wait for the same entry.
    #[must_use]
    pub fn is_at(self, other: Self) -> bool {
        self.number == other.number
    }
}

impl History {
    /// How a position stands to the window now. It learns its entry; while the chain is fresh, whoever was up to date
    /// before has few steps to it.
    pub fn lag(&self, key: ChainKey, position: &mut Position) -> Lag {
        let Some(chain) = self.chains.get(key) else { return Lag::Current };
        if position.number >= chain.end {
            return Lag::Current;
        }
        if position.number < chain.start {
            return Lag::Lost;
        }
        if position.at.is_none() {
            position.at = match chain.fresh {
                Some((number, at)) if number <= position.number => self.seek((number, Some(at)), position.number),
                _ => self.seek((chain.start, chain.first), position.number),
            };
        }
        Lag::Behind
    }

    /// Frames what is due from a position on, up to a number of bytes (at least one entry). `None` where nothing is due
    /// or what is due is lost.
    pub fn due(&mut self, key: ChainKey, mut position: Position, bytes_max: usize) -> Option<Due> {
        if self.lag(key, &mut position) != Lag::Behind {
            return None;
        }
        let first = position.at?;
        let mut due = Due { first, entries: 0, bytes: 0 };
        let mut next = Some(first);
        while let Some(at) = next {
            let len = self.frame(key, at).len();
            if due.entries > 0 && due.bytes + len > bytes_max {
                break;
            }
            due.entries += 1;
            due.bytes += len;
            next = self.segments[slot(self.first_segment, at)].entries[at.index()].next;
        }
        Some(due)
    }

    /// The slices of what is due; frames that lie side by side share one. Returns how many slices were filled and how
    /// many bytes they hold, which is less than all where the slices did not suffice.
    pub fn slices<'a>(&'a self, due: &Due, slices: &mut [IoSlice<'a>]) -> (usize, usize) {
        let mut filled = 0;
        let mut bytes = 0;
        let mut open: Option<(&Segment, u32, u32)> = None;
        let mut next = Some(due.first);
        for _ in 0..due.entries {
            let Some(at) = next else { break };
            let segment = &self.segments[slot(self.first_segment, at)];
            let entry = &segment.entries[at.index()];
            next = entry.next;
            let Frame::Ready { start, len, .. } = entry.frame else { continue };
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
    pub fn progress(&self, position: Position, due: &Due, written: usize) -> Progress {
        let mut progress = Progress { position: Position { at: Some(due.first), ..position }, frames: 0, partial: 0 };
        let mut left = written;
        for _ in 0..due.entries {
            let Some(at) = progress.position.at else { break };
            let entry = &self.segments[slot(self.first_segment, at)].entries[at.index()];
            let len = entry.frame.len();
            if left < len {
                progress.partial = left;
                break;
            }
            left -= len;
            progress.frames += u64::from(len > 0);
            progress.position = Position { number: progress.position.number + 1, at: entry.next };
        }
        progress
    }

    /// The rest of the frame at a position, of which `sent` bytes are written. `None` where it has left the window.
    #[must_use]
    pub fn rest_of_frame(&self, position: Position, sent: usize) -> Option<&[u8]> {
        let at = position.at?;
        let segment = self.segments.get(usize::try_from(at.segment().checked_sub(self.first_segment)?).ok()?)?;
        match segment.entries[at.index()].frame {
            Frame::Ready { start, len, .. } => segment.frames.get(start as usize + sent..(start + len) as usize),
            Frame::NotYet | Frame::Unusable => None,
        }
    }

    /// A position after the entry that it is at.
    #[must_use]
    pub fn after(&self, position: Position) -> Position {
        let next = position.at.and_then(|at| {
            let slot = usize::try_from(at.segment().checked_sub(self.first_segment)?).ok()?;
            self.segments.get(slot)?.entries[at.index()].next
        });
        Position { number: position.number + 1, at: next }
    }

    /// Walks a chain to an entry by its number, from an earlier one. From the chain's first, for a position that missed being
    /// told, it costs time, not events.
    fn seek(&self, (start, mut at): (u64, Option<EntryRef>), number: u64) -> Option<EntryRef> {
        for _ in start..number {
            at = self.segments[slot(self.first_segment, at?)].entries[at?.index()].next;
        }
        at
    }
}
