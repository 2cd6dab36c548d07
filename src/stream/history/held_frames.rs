//! Frames that are partially written. Each is kept until the last of its sockets has the rest, also when its entry
//! leaves the window; only then is it copied, once for all sockets. Copies count in the history's bytes.

use std::collections::BTreeMap;

use super::History;
use super::positions::FrameRef;
use super::segment::{EntryRef, Segment};

/// Copies may take this fraction, one in this many bytes, of the window's budget. Beyond it the oldest are given up.
const COPIES_PART: usize = 2;

/// Frames that are held, by entry.
#[derive(Debug, Default)]
pub(super) struct HeldFrames {
    frames: BTreeMap<EntryRef, HeldFrame>,
    /// What the copies take.
    bytes: usize,
}

#[derive(Debug)]
struct HeldFrame {
    /// How many hold it.
    holders: u32,
    /// The frame, once its entry has left the window.
    copy: Option<Box<[u8]>>,
}

impl HeldFrames {
    /// The copy of a frame whose entry has left the window.
    pub(super) fn copy(&self, at: EntryRef) -> Option<&[u8]> {
        self.frames.get(&at)?.copy.as_deref()
    }

    /// Copies what is held of a segment that leaves the window.
    fn copy_from(&mut self, number: u64, segment: &Segment) {
        for (at, held) in self.frames.range_mut(EntryRef::new(number, 0)..EntryRef::new(number + 1, 0)) {
            held.copy = segment.entries().get(at.index()).and_then(|entry| segment.frame(entry.frame)).map(Into::into);
            self.bytes += held.len();
        }
    }

    /// Gives up the oldest copies until all take at most this many bytes.
    fn shrink_to(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max
            && let Some((_, oldest)) = self.frames.pop_first()
        {
            self.bytes -= oldest.len();
        }
    }
}

impl HeldFrame {
    fn len(&self) -> usize {
        self.copy.as_ref().map_or(0, |copy| copy.len())
    }
}

impl History {
    /// Keeps a frame in the window or beside it until [`History::release`]. As many may hold it as like.
    pub(crate) fn hold(&mut self, FrameRef(at): FrameRef) {
        self.held.frames.entry(at).or_insert(HeldFrame { holders: 0, copy: None }).holders += 1;
    }

    /// Takes back one [`History::hold`].
    pub(crate) fn release(&mut self, FrameRef(at): FrameRef) {
        let Some(held) = self.held.frames.get_mut(&at) else { return };
        held.holders -= 1;
        if held.holders == 0
            && let Some(held) = self.held.frames.remove(&at)
        {
            self.held.bytes -= held.len();
            self.bytes -= held.len();
        }
    }

    /// How many frames are held.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held.frames.len()
    }

    /// Keeps what is held of a segment that leaves the window.
    pub(super) fn keep_held(&mut self, number: u64, segment: &Segment) {
        let before = self.held.bytes;
        self.held.copy_from(number, segment);
        self.held.shrink_to(self.limits.bytes_max / COPIES_PART);
        self.bytes = self.bytes - before + self.held.bytes;
    }
}
