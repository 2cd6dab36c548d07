//! The bounded window of the assessments' events that one shard keeps, and positions in it.
//!
//! A batch from ingest becomes a [`Segment`] as it is (a small one is copied into the segment before it). Through the
//! segments run *chains*: the events of one assessment, each entry knowing the next. A connection's [`Position`] is the
//! number of the chain's entry that it is to be sent next; that is all that a connection owns of the stream.
//!
//! An entry is parsed, mapped and framed when the first connection comes to it, once; what nobody watches stays raw.
//! Who the connections are, and what is written to them when, is left to the shard.

mod segment;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashTable;
use slotmap::{SlotMap, new_key_type};

use self::segment::{EntryRef, Frame, Segment};
use crate::ids::{AssessmentHash, AssessmentId, TopicIndex};
use crate::routing::table::Topic;
use crate::stream::batch::{Batch, NextOffset};

new_key_type! {
    /// An assessment's chain of entries. A key that outlives its chain matches no other.
    pub struct ChainKey;
}

/// The window.
#[derive(Debug)]
pub struct History {
    limits: Limits,
    topics: Vec<Option<Arc<Topic>>>,
    /// Oldest first; the number of the first is `first_segment`.
    segments: VecDeque<Segment>,
    first_segment: u64,
    /// What `segments` and `chains` cost.
    bytes: usize,
    chains: SlotMap<ChainKey, Chain>,
    /// Where ingest stood, told without records since the last segment or batch: for the next one's start.
    starts_ahead: Vec<NextOffset>,
    /// From an assessment's hash and id to its chain.
    index: HashTable<ChainKey>,
    /// Watched chains with entries that were not dispatched yet.
    fresh: Vec<ChainKey>,
    /// Where a message is mapped before its length is known.
    scratch: Vec<u8>,
    unusable: u64,
}

/// The bounds of the window: what is over either of them goes, oldest first.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of memory: arenas, entries, frames and chains.
    pub bytes_max: usize,
    /// For how long after its arrival an entry is kept.
    pub window: Duration,
}

/// The entries of one assessment that are in the window.
#[derive(Debug)]
struct Chain {
    hash: AssessmentHash,
    id: Box<str>,
    /// The number of the oldest entry in the window.
    start: u64,
    /// The number that the next entry will get.
    end: u64,
    first: Option<EntryRef>,
    last: Option<EntryRef>,
    /// The oldest entry that was not dispatched yet, with its number; where the chain is watched.
    fresh: Option<(u64, EntryRef)>,
    /// Connections that hold the chain's key.
    watchers: u32,
}

/// How far a connection is in its assessment's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The chain's entry that comes next.
    number: u64,
    /// That entry, once it is known to be there.
    at: Option<EntryRef>,
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
    /// An empty window.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            topics: Vec::new(),
            segments: VecDeque::new(),
            first_segment: 0,
            bytes: 0,
            chains: SlotMap::with_key(),
            starts_ahead: Vec::new(),
            index: HashTable::new(),
            fresh: Vec::new(),
            scratch: Vec::new(),
            unusable: 0,
        }
    }

    // ---- the window -------------------------------------------------------------------------------------------------

    /// Learns of topics. Their records come after them.
    pub fn learn(&mut self, topics: &[Arc<Topic>]) {
        for topic in topics {
            let index = usize::from(topic.index.0);
            if self.topics.len() <= index {
                self.topics.resize(index + 1, None);
            }
            self.topics[index] = Some(Arc::clone(topic));
        }
    }

    /// Takes the records of a batch that arrived at `now`, and drops what is over the limits.
    pub fn append(&mut self, mut batch: Batch, now: Instant) {
        self.note_starts(&batch.starts);
        if batch.records.is_empty() {
            return;
        }
        batch.starts = std::mem::take(&mut self.starts_ahead);
        let added = match self.segments.back_mut() {
            Some(last) if last.absorbs(&batch, now, self.limits.window) => last.absorb(&batch, now),
            _ => {
                let segment = Segment::new(batch, now);
                let added = 0..segment.entries.len();
                self.bytes += segment.cost();
                self.segments.push_back(segment);
                added
            }
        };
        let number = self.first_segment + self.segments.len() as u64 - 1;
        for index in added {
            self.link(EntryRef::new(number, index));
        }
        self.recount_last();
        self.evict(now);
    }

    /// Keeps the latest offset of each partition until there is a record that it stands ahead of.
    fn note_starts(&mut self, starts: &[NextOffset]) {
        for start in starts {
            let same = |known: &&mut NextOffset| (known.topic, known.partition) == (start.topic, start.partition);
            match self.starts_ahead.iter_mut().find(same) {
                Some(known) => *known = *start,
                None => self.starts_ahead.push(*start),
            }
        }
    }

    /// Drops what is over the limits at `now`.
    pub fn evict(&mut self, now: Instant) {
        while let Some(oldest) = self.segments.front() {
            let aged = now.saturating_duration_since(oldest.arrived) > self.limits.window;
            if !aged && self.bytes <= self.limits.bytes_max {
                break;
            }
            self.drop_oldest();
        }
    }

    /// What the window costs, in bytes of memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Records that turned out to be unusable when they were to be framed, since this was last asked.
    pub fn take_unusable(&mut self) -> u64 {
        std::mem::take(&mut self.unusable)
    }

    /// Appends an entry to its assessment's chain.
    fn link(&mut self, at: EntryRef) {
        let segment = &self.segments[slot(self.first_segment, at)];
        let record = segment.entries[at.index()].record;
        let id = segment.id(at.index());
        let key = match find(&self.index, &self.chains, record.hash, id) {
            Some(key) => key,
            None => {
                let id = id.into();
                self.insert_chain(record.hash, id)
            }
        };
        let chain = &mut self.chains[key];
        let number = chain.end;
        chain.end += 1;
        let before = chain.last.replace(at);
        chain.first.get_or_insert(at);
        if chain.watchers > 0 && chain.fresh.is_none() {
            chain.fresh = Some((number, at));
            self.fresh.push(key);
        }
        if let Some(before) = before {
            self.segments[slot(self.first_segment, before)].entries[before.index()].next = Some(at);
        }
        self.segments[slot(self.first_segment, at)].entries[at.index()].chain = key;
    }

    fn drop_oldest(&mut self) {
        let Some(segment) = self.segments.pop_front() else { return };
        self.first_segment += 1;
        self.bytes -= segment.counted;
        for entry in &segment.entries {
            let Some(chain) = self.chains.get_mut(entry.chain) else { continue };
            if let Some((number, _)) = chain.fresh
                && number == chain.start
            {
                chain.fresh = entry.next.map(|next| (number + 1, next));
            }
            chain.start += 1;
            chain.first = entry.next;
            if entry.next.is_none() {
                chain.last = None;
                self.forget_if_unused(entry.chain);
            }
        }
    }

    /// Brings `bytes` up to date with the newest segment's cost.
    fn recount_last(&mut self) {
        if let Some(last) = self.segments.back_mut() {
            self.bytes = self.bytes - last.counted + last.cost();
            last.counted = last.cost();
        }
    }

    // ---- chains -----------------------------------------------------------------------------------------------------

    /// The chain of an assessment, kept until [`History::unwatch`] even while it is empty.
    pub fn watch(&mut self, id: &AssessmentId) -> ChainKey {
        let hash = id.hash();
        let key = find(&self.index, &self.chains, hash, id.as_str())
            .unwrap_or_else(|| self.insert_chain(hash, id.as_str().into()));
        self.chains[key].watchers += 1;
        key
    }

    /// Takes back one [`History::watch`].
    pub fn unwatch(&mut self, key: ChainKey) {
        let Some(chain) = self.chains.get_mut(key) else { return };
        chain.watchers = chain.watchers.saturating_sub(1);
        if chain.watchers == 0 {
            chain.fresh = None;
        }
        self.forget_if_unused(key);
    }

    /// The position of a client that is live from now on.
    #[must_use]
    pub fn end(&self, key: ChainKey) -> Position {
        Position { number: self.chains.get(key).map_or(0, |chain| chain.end), at: None }
    }

    /// A chain with entries that were not dispatched yet. It stays fresh until [`History::dispatched`].
    #[must_use]
    pub fn next_fresh(&self) -> Option<ChainKey> {
        self.fresh.last().copied()
    }

    /// The position of those who are up to date with a fresh chain but for its fresh entries.
    #[must_use]
    pub fn fresh_position(&self, key: ChainKey) -> Option<Position> {
        let (number, at) = self.chains.get(key)?.fresh?;
        Some(Position { number, at: Some(at) })
    }

    /// All watchers of the chain that [`History::next_fresh`] named have been told, or know that they are behind.
    pub fn dispatched(&mut self, key: ChainKey) {
        if let Some(chain) = self.chains.get_mut(key) {
            chain.fresh = None;
        }
        if self.fresh.last() == Some(&key) {
            self.fresh.pop();
        }
    }

    fn insert_chain(&mut self, hash: AssessmentHash, id: Box<str>) -> ChainKey {
        self.bytes += chain_cost(&id);
        let key =
            self.chains.insert(Chain { hash, id, start: 0, end: 0, first: None, last: None, fresh: None, watchers: 0 });
        let chains = &self.chains;
        self.index.insert_unique(hash.0, key, |&key| chains[key].hash.0);
        key
    }

    fn forget_if_unused(&mut self, key: ChainKey) {
        let Some(chain) = self.chains.get(key) else { return };
        if chain.watchers > 0 || chain.first.is_some() {
            return;
        }
        if let Ok(indexed) = self.index.find_entry(chain.hash.0, |&other| other == key) {
            indexed.remove();
        }
        self.bytes -= chain_cost(&chain.id);
        self.chains.remove(key);
    }

    // ---- positions --------------------------------------------------------------------------------------------------

    /// How a position stands to the window now. It learns its entry while the chain is fresh; whoever is told of each
    /// fresh chain is therefore never at a loss.
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
                Some((number, at)) if number == position.number => Some(at),
                _ if position.number == chain.start => chain.first,
                _ => self.seek(chain, position.number),
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
            let len = self.frame(at).len();
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
            let Frame::Ready { start, len } = entry.frame else { continue };
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
            Frame::Ready { start, len } => segment.frames.get(start as usize + sent..(start + len) as usize),
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

    /// Walks a chain to its entry of a number: for a position that missed being told, which costs time, not events.
    fn seek(&self, chain: &Chain, number: u64) -> Option<EntryRef> {
        let mut at = chain.first;
        for _ in chain.start..number {
            at = self.segments[slot(self.first_segment, at?)].entries[at?.index()].next;
        }
        at
    }

    /// The frame of an entry, made when it is first asked for.
    fn frame(&mut self, at: EntryRef) -> Frame {
        let segment = &mut self.segments[slot(self.first_segment, at)];
        let entry = segment.entries[at.index()];
        if !matches!(entry.frame, Frame::NotYet) {
            return entry.frame;
        }
        let frame = match topic(&self.topics, entry.record.origin.topic) {
            Some(topic) => segment.frame(at.index(), topic, &mut self.scratch),
            None => Frame::Unusable,
        };
        segment.entries[at.index()].frame = frame;
        self.unusable += u64::from(matches!(frame, Frame::Unusable));
        let cost = segment.cost();
        self.bytes = self.bytes - segment.counted + cost;
        segment.counted = cost;
        frame
    }
}

/// What a chain costs beside its entries: itself, its place in the index, and its id.
fn chain_cost(id: &str) -> usize {
    size_of::<Chain>() + 2 * size_of::<ChainKey>() + id.len()
}

fn slot(first_segment: u64, at: EntryRef) -> usize {
    usize::try_from(at.segment() - first_segment).expect("as many segments as fit in memory")
}

fn topic(topics: &[Option<Arc<Topic>>], index: TopicIndex) -> Option<&Topic> {
    topics.get(usize::from(index.0))?.as_deref()
}

fn find(
    index: &HashTable<ChainKey>,
    chains: &SlotMap<ChainKey, Chain>,
    hash: AssessmentHash,
    id: &str,
) -> Option<ChainKey> {
    index.find(hash.0, |&key| *chains[key].id == *id).copied()
}
