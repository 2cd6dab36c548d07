//! Chains: the entries of one assessment, who watches it, which of its entries are fresh, and where they lie.

use std::ops::Range;

use slotmap::new_key_type;

use super::blocks::Blocks;
use super::segment::{EntryRef, Frame};
use super::{History, Position, Stand};
use crate::ids::{AssessmentHash, AssessmentId, TopicIndex};
use crate::prefetch::{prefetch, prefetch_all};
use crate::stream::offsets::{Listed, PlaceId};

/// How many entries are linked to their chains, or taken off them, together.
pub(super) const LINKED_TOGETHER: usize = 32;

new_key_type! {
    /// An assessment's chain of entries. A key that outlives its chain matches no other.
    pub struct ChainKey;
}

/// The entries of one assessment that are in the window. Each idle connection may have one of its own: what few chains
/// have lies elsewhere.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) hash: AssessmentHash,
    pub(super) id: Box<str>,
    /// The number of the oldest entry in the window.
    pub(super) start: u64,
    /// The number that the next entry will get.
    pub(super) end: u64,
    pub(super) first: Option<EntryRef>,
    pub(super) last: Option<EntryRef>,
    /// The oldest entry that was not dispatched yet, with its number; where the chain is watched.
    pub(super) fresh: Option<(u64, EntryRef)>,
    /// Connections that hold the chain's key.
    pub(super) watchers: u32,
    /// Where its records may lie; while it is watched.
    pub(super) listed: Listed,
}

const _: () = assert!(size_of::<Chain>() <= 104);

impl History {
    // ---- watchers ---------------------------------------------------------------------------------------------------

    /// The chain of an assessment, kept until [`History::unwatch`] even while it is empty.
    pub fn watch(&mut self, id: &AssessmentId) -> ChainKey {
        let hash = id.hash();
        let found = self.index.find(&self.chains, hash, id.as_str().as_bytes());
        let key = found.unwrap_or_else(|| self.insert_chain(hash, id.as_str().into()));
        self.chains[key].watchers += 1;
        self.offsets.settle();
        self.list_anew(key);
        key
    }

    /// Takes back one [`History::watch`].
    pub fn unwatch(&mut self, key: ChainKey) {
        let Some(chain) = self.chains.get_mut(key) else { return };
        chain.watchers = chain.watchers.saturating_sub(1);
        if chain.watchers == 0 {
            chain.fresh = None;
            chain.listed = Listed::default();
        }
        self.forget_if_unused(key);
    }

    /// The position of a client that is live from now on.
    #[must_use]
    pub fn end(&self, key: ChainKey) -> Position {
        Position { number: self.chains.get(key).map_or(0, |chain| chain.end), at: None }
    }

    /// The chain that has had entries that were not dispatched for longest. It stays fresh until [`History::dispatched`].
    #[must_use]
    pub fn next_fresh(&self) -> Option<ChainKey> {
        self.fresh.front().copied()
    }

    /// All watchers of the chain that [`History::next_fresh`] named have been told, or know that they are behind.
    pub fn dispatched(&mut self, key: ChainKey) {
        if let Some(chain) = self.chains.get_mut(key) {
            chain.fresh = None;
        }
        if self.fresh.front() == Some(&key) {
            self.fresh.pop_front();
        }
    }

    fn insert_chain(&mut self, hash: AssessmentHash, id: Box<str>) -> ChainKey {
        self.bytes += chain_cost(&id);
        let key = self.chains.insert(Chain {
            hash,
            id,
            start: 0,
            end: 0,
            first: None,
            last: None,
            fresh: None,
            watchers: 0,
            listed: Listed::default(),
        });
        self.index.insert(&self.chains, key);
        key
    }

    pub(super) fn forget_if_unused(&mut self, key: ChainKey) {
        let Some(chain) = self.chains.get(key) else { return };
        if chain.watchers > 0 || chain.first.is_some() {
            return;
        }
        self.index.remove(&self.chains, key);
        self.bytes -= chain_cost(&chain.id);
        self.chains.remove(key);
        self.unsent_below.remove(key);
        self.blocks.remove(key);
    }

    // ---- links ------------------------------------------------------------------------------------------------------

    /// Appends a segment's new entries to their assessments' chains.
    ///
    /// Of thousands of assessments few chains are in the processor's caches, and one after the other the misses were a third
    /// of what a shard does for an entry that nobody watches. So the entries are gone through in groups, once for each
    /// thing that is to be fetched: the misses of a group overlap.
    pub(super) fn link_all(&mut self, segment: u64, added: Range<usize>) {
        let mut likely = [ChainKey::default(); LINKED_TOGETHER];
        for first in added.clone().step_by(LINKED_TOGETHER) {
            let group = first..added.end.min(first + LINKED_TOGETHER);
            let entries = self.entry(EntryRef::new(segment, first)).and_then(|(of, _)| of.entries.get(group.clone()));
            let entries = entries.unwrap_or_default();
            for (key, entry) in likely.iter_mut().zip(entries) {
                *key = self.index.likely(entry.record.hash).unwrap_or_default();
            }
            self.fetch_chains(likely[..group.len()].iter().copied());
            for (index, &key) in group.clone().zip(&likely) {
                if let Some((of, entry)) = self.entry(EntryRef::new(segment, index)) {
                    prefetch(of.id(entry).as_ptr());
                }
                if let Some(chain) = self.chains.get(key) {
                    prefetch(chain.id.as_ptr());
                }
            }
            for (index, &key) in group.zip(&likely) {
                self.link(EntryRef::new(segment, index), key);
            }
        }
    }

    /// Has the chains fetched, all at a time.
    pub(super) fn fetch_chains(&self, keys: impl Iterator<Item = ChainKey>) {
        for chain in keys.filter_map(|key| self.chains.get(key)) {
            prefetch_all(chain);
        }
    }

    /// Appends an entry to its assessment's chain, which is likely this one. Where somebody watches it, the entry is framed:
    /// just now the offsets stand at it.
    fn link(&mut self, at: EntryRef, likely: ChainKey) {
        let Some((segment, entry)) = self.entry(at) else { return };
        let (record, id) = (entry.record, segment.id(entry));
        let found = match self.chains.get(likely) {
            Some(chain) if chain.id.as_bytes() == id => Some(likely),
            _ => self.index.find(&self.chains, record.hash, id),
        };
        let key = match found {
            Some(key) => key,
            None => {
                // Ingest takes ids from text; one that isn't would be a chain that nobody can watch.
                let id = std::str::from_utf8(id).unwrap_or_default().into();
                self.insert_chain(record.hash, id)
            }
        };
        let place = self.offsets.advance(record.origin);
        let chain = &mut self.chains[key];
        let number = chain.end;
        chain.end += 1;
        let before = chain.last.replace(at);
        chain.first.get_or_insert(at);
        let is_watched = chain.watchers > 0;
        if is_watched && chain.fresh.is_none() {
            chain.fresh = Some((number, at));
            self.fresh.push_back(key);
        }
        if Blocks::begins(number) {
            self.begin_block(key, number, at);
        }
        if let Some(before) = before.and_then(|before| self.entry_mut(before)) {
            before.next = Some(at);
        }
        if let Some(entry) = self.entry_mut(at) {
            entry.chain = key;
        }
        let found = self.entry(at);
        let is_too_large = found.is_some_and(|(_, entry)| entry.frame == Frame::TooLarge);
        let is_stray = found.is_some_and(|(segment, _)| segment.is_stray(at.index()));
        if let Some(place) = place.filter(|_| is_stray) {
            self.stray_comes(key, place, record.origin.offset);
        }
        if is_watched {
            self.list_anew(key);
            self.check_place(key, place, record.origin.topic);
        }
        if is_too_large {
            self.note_too_large(key, at);
        } else if is_watched {
            self.make_frame(key, at, Stand::Head);
        }
    }

    /// Takes the oldest entry off a chain; `next` is the one after it.
    pub(super) fn unlink_first(&mut self, key: ChainKey, next: Option<EntryRef>) {
        let Some(chain) = self.chains.get_mut(key) else { return };
        if let Some((number, _)) = chain.fresh
            && number == chain.start
        {
            chain.fresh = next.map(|next| (number + 1, next));
        }
        let number = chain.start;
        chain.start += 1;
        chain.first = next;
        if Blocks::begins(number) {
            self.end_block(key);
        }
        if next.is_none() {
            self.chains[key].last = None;
            self.forget_if_unused(key);
        }
    }

    // ---- places -----------------------------------------------------------------------------------------------------

    /// Lists a watched chain's places again, if topics or partitions changed since.
    pub(super) fn list_anew(&mut self, key: ChainKey) {
        let Some(chain) = self.chains.get(key) else { return };
        if !self.offsets.is_outdated(&chain.listed) {
            return;
        }
        let listed = self.offsets.list(&chain.id, self.strays.of(key));
        self.chains[key].listed = listed;
    }

    /// A watched chain's new entry: is it where it should be?
    fn check_place(&mut self, key: ChainKey, place: Option<PlaceId>, topic: TopicIndex) {
        let (chain, Some(place)) = (&mut self.chains[key], place) else { return };
        if chain.listed.is_as_expected() && chain.listed.has(place) || self.offsets.is_replaced(place) {
            return;
        }
        if self.offsets.is_expected(&chain.id, place) {
            return;
        }
        self.findings.misplaced += 1;
        self.findings.misplaced_on = self.offsets.topic(topic).cloned();
        if !chain.listed.has(place) {
            let found: Vec<_> = chain.listed.places().iter().copied().chain([place]).collect();
            chain.listed = self.offsets.list(&chain.id, found);
        }
    }

    /// The position after a chain's last entry of a topic.
    pub(super) fn after_last_of(&self, key: ChainKey, topic: TopicIndex) -> Option<Position> {
        let chain = self.chains.get(key)?;
        let entries = std::iter::successors(chain.first, |&at| self.next_entry(at));
        let is_of = |at| self.entry(at).is_some_and(|(_, entry)| entry.record.origin.topic == topic);
        let (number, _) = (chain.start..).zip(entries).filter(|&(_, at)| is_of(at)).last()?;
        Some(Position { number: number + 1, at: None })
    }

    /// Whether a watched chain's records may lie at a place.
    pub fn lists(&mut self, key: ChainKey, place: PlaceId) -> bool {
        self.list_anew(key);
        self.chains.get(key).is_some_and(|chain| chain.listed.has(place))
    }
}

/// What a chain costs beside its entries: itself, its place in the index, and its id.
fn chain_cost(id: &str) -> usize {
    size_of::<Chain>() + 2 * size_of::<ChainKey>() + id.len()
}
