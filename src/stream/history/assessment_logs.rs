//! Assessment logs: the entries of one assessment, its subscribers, its undispatched entries and its partitions.

use std::collections::HashSet;
use std::ops::Range;

use slotmap::new_key_type;

use super::blocks::Blocks;
use super::segment::{EntryFrame, EntryRef};
use super::{CursorPoint, FindingKind, History, Position};
use crate::ids::{AssessmentHash, AssessmentId, TopicIndex};
use crate::prefetch::{prefetch, prefetch_all};
use crate::stream::offsets::{ListedPartitions, PartitionId};

/// Number of entries that are linked to their logs, or unlinked, in one group.
pub(super) const LINK_GROUP: usize = 32;

new_key_type! {
    /// An assessment's log. A key that outlives its log matches no other.
    pub struct AssessmentLogKey;
}

/// The entries of one assessment that are in the window. Each idle connection may have one of its own: what few logs
/// have lies elsewhere.
#[derive(Debug)]
pub(super) struct AssessmentLog {
    pub(super) hash: AssessmentHash,
    pub(super) id: Box<str>,
    /// The number of the oldest entry in the window.
    pub(super) start: u64,
    /// The number that the next entry will get.
    pub(super) end: u64,
    pub(super) first: Option<EntryRef>,
    pub(super) last: Option<EntryRef>,
    /// The oldest undispatched entry with its number, if the log has subscribers.
    pub(super) undispatched: Option<(u64, EntryRef)>,
    /// Connections that hold the log's key.
    pub(super) subscribers: u32,
    /// The partitions that may have its records, while it has subscribers.
    pub(super) listed: ListedPartitions,
}

const _: () = assert!(size_of::<AssessmentLog>() <= 104);

impl History {
    // ---- subscribers ------------------------------------------------------------------------------------------------

    /// The log of an assessment, kept until [`History::unsubscribe`] even while it is empty.
    pub fn subscribe(&mut self, id: &AssessmentId) -> AssessmentLogKey {
        let hash = id.hash();
        let found = self.index.find(&self.logs, hash, id.as_str().as_bytes());
        let key = found.unwrap_or_else(|| self.insert_log(hash, id.as_str().into()));
        self.logs[key].subscribers += 1;
        self.offsets.record_first_subscribe();
        self.refresh_listed(key);
        key
    }

    /// Reverts one [`History::subscribe`].
    pub fn unsubscribe(&mut self, key: AssessmentLogKey) {
        let Some(log) = self.logs.get_mut(key) else { return };
        log.subscribers = log.subscribers.saturating_sub(1);
        if log.subscribers == 0 {
            log.undispatched = None;
            log.listed = ListedPartitions::default();
        }
        self.forget_if_unused(key);
    }

    /// The id of a log's assessment, while it has subscribers.
    #[must_use]
    pub(crate) fn assessment_id(&self, key: AssessmentLogKey) -> Option<&str> {
        self.logs.get(key).map(|log| &*log.id)
    }

    /// The position of a client that is live from now on.
    #[must_use]
    pub fn end(&self, key: AssessmentLogKey) -> Position {
        Position { number: self.logs.get(key).map_or(0, |log| log.end), at: None }
    }

    /// Entries of a log from a position on, those that have left the window included.
    #[must_use]
    pub(crate) fn entries_after(&self, key: AssessmentLogKey, position: Position) -> u64 {
        self.logs.get(key).map_or(0, |log| log.end.saturating_sub(position.number))
    }

    /// The log that has had undispatched entries for longest. They stay undispatched until
    /// [`History::mark_dispatched`].
    #[must_use]
    pub(crate) fn next_undispatched(&self) -> Option<AssessmentLogKey> {
        self.undispatched.front().copied()
    }

    /// All subscribers of the log that [`History::next_undispatched`] named were sent its entries, or are catching up.
    pub fn mark_dispatched(&mut self, key: AssessmentLogKey) {
        if let Some(log) = self.logs.get_mut(key) {
            log.undispatched = None;
        }
        if self.undispatched.front() == Some(&key) {
            self.undispatched.pop_front();
        }
    }

    fn insert_log(&mut self, hash: AssessmentHash, id: Box<str>) -> AssessmentLogKey {
        self.bytes += log_cost(&id);
        let key = self.logs.insert(AssessmentLog {
            hash,
            id,
            start: 0,
            end: 0,
            first: None,
            last: None,
            undispatched: None,
            subscribers: 0,
            listed: ListedPartitions::default(),
        });
        self.index.insert(&self.logs, key);
        key
    }

    pub(super) fn forget_if_unused(&mut self, key: AssessmentLogKey) {
        let Some(log) = self.logs.get(key) else { return };
        if log.subscribers > 0 || log.first.is_some() {
            return;
        }
        self.index.remove(&self.logs, key);
        self.bytes -= log_cost(&log.id);
        self.logs.remove(key);
        self.unsent_below.remove(key);
        self.blocks.remove(key);
    }

    // ---- links ------------------------------------------------------------------------------------------------------

    /// Appends a segment's new entries to their assessment logs.
    ///
    /// Of thousands of assessment logs few are in the processor's caches. One after the other, the misses were a
    /// third of a shard's work for an entry without a subscriber. So the entries are visited in groups, once
    /// for each thing to fetch: the misses of a group overlap.
    pub(super) fn link_all(&mut self, segment: u64, added: Range<usize>) {
        let mut likely = [AssessmentLogKey::default(); LINK_GROUP];
        for first in added.clone().step_by(LINK_GROUP) {
            let group = first..added.end.min(first + LINK_GROUP);
            let entries = self.segments.entries(segment, group.clone()).unwrap_or_default();
            for (key, entry) in likely.iter_mut().zip(entries) {
                *key = self.index.likely(entry.record.hash).unwrap_or_default();
            }
            self.fetch_logs(likely[..group.len()].iter().copied());
            for (index, &key) in group.clone().zip(&likely) {
                if let Some((of, entry)) = self.segments.entry(EntryRef::new(segment, index)) {
                    prefetch(of.id(entry).as_ptr());
                }
                if let Some(log) = self.logs.get(key) {
                    prefetch(log.id.as_ptr());
                }
            }
            for (index, &key) in group.zip(&likely) {
                self.link(EntryRef::new(segment, index), key);
            }
        }
    }

    /// Prefetches all of these logs.
    pub(super) fn fetch_logs(&self, keys: impl Iterator<Item = AssessmentLogKey>) {
        for log in keys.filter_map(|key| self.logs.get(key)) {
            prefetch_all(log);
        }
    }

    /// Appends an entry to its assessment log, which is likely this one. If the log has a subscriber, the entry is
    /// framed now, because the offsets are at this entry.
    fn link(&mut self, at: EntryRef, likely: AssessmentLogKey) {
        let Some((segment, entry)) = self.segments.entry(at) else { return };
        let (record, id) = (entry.record, segment.id(entry));
        let found = match self.logs.get(likely) {
            Some(log) if log.id.as_bytes() == id => Some(likely),
            _ => self.index.find(&self.logs, record.hash, id),
        };
        let key = match found {
            Some(key) => key,
            None => {
                // Ingest takes ids from text; no client can subscribe to one that is no text.
                let id = std::str::from_utf8(id).unwrap_or_default().into();
                self.insert_log(record.hash, id)
            }
        };
        let partition_id = self.offsets.advance(record.origin);
        let log = &mut self.logs[key];
        let number = log.end;
        log.end += 1;
        let before = log.last.replace(at);
        log.first.get_or_insert(at);
        let is_subscribed = log.subscribers > 0;
        if is_subscribed && log.undispatched.is_none() {
            log.undispatched = Some((number, at));
            self.undispatched.push_back(key);
        }
        if Blocks::begins(number) {
            self.begin_block(key, number, at);
        }
        if let Some(before) = before.and_then(|before| self.segments.entry_mut(before)) {
            before.next = Some(at);
        }
        if let Some(entry) = self.segments.entry_mut(at) {
            entry.log = key;
        }
        let found = self.segments.entry(at);
        let is_too_large = found.is_some_and(|(_, entry)| entry.frame == EntryFrame::TooLarge);
        let is_misplaced = found.is_some_and(|(segment, _)| segment.is_misplaced(at.index()));
        if let Some(partition_id) = partition_id.filter(|_| is_misplaced) {
            self.add_misplaced(key, partition_id, record.origin.offset);
        }
        if is_subscribed {
            self.refresh_listed(key);
            self.check_partition(key, partition_id, record.origin.topic);
        }
        if is_too_large {
            self.note_too_large(key, at);
        } else if is_subscribed {
            self.make_frame(key, at, CursorPoint::Head);
        }
    }

    /// Unlinks the oldest entry of a log; `next` is the one after it.
    pub(super) fn unlink_first(&mut self, key: AssessmentLogKey, next: Option<EntryRef>) {
        let Some(log) = self.logs.get_mut(key) else { return };
        if let Some((number, _)) = log.undispatched
            && number == log.start
        {
            log.undispatched = next.map(|next| (number + 1, next));
        }
        let number = log.start;
        log.start += 1;
        log.first = next;
        if next.is_none() {
            log.last = None;
        }
        if Blocks::begins(number) {
            self.end_block(key);
        }
        if next.is_none() {
            self.forget_if_unused(key);
        }
    }

    // ---- partitions -------------------------------------------------------------------------------------------------

    /// Lists the partitions of a subscribed assessment again, if topics or partitions changed since.
    pub(crate) fn refresh_listed(&mut self, key: AssessmentLogKey) {
        let Some(log) = self.logs.get_mut(key) else { return };
        if self.offsets.is_outdated(&log.listed) {
            log.listed = self.offsets.list_partitions(&log.id, self.misplaced.of(key));
        }
    }

    /// Checks that a subscribed log's new entry is on an expected partition.
    fn check_partition(&mut self, key: AssessmentLogKey, partition_id: Option<PartitionId>, topic: TopicIndex) {
        let (Some(log), Some(partition_id)) = (self.logs.get_mut(key), partition_id) else { return };
        if log.listed.is_as_expected() && log.listed.contains(partition_id) || self.offsets.is_replaced(partition_id) {
            return;
        }
        if self.offsets.is_expected(&log.id, partition_id) {
            return;
        }
        self.findings.add(FindingKind::Misplaced, self.offsets.topic(topic));
        if !log.listed.contains(partition_id) {
            let found: Vec<_> = log.listed.partition_ids().iter().copied().chain([partition_id]).collect();
            log.listed = self.offsets.list_partitions(&log.id, found);
        }
    }

    /// The position after a log's last entry of these topics.
    pub(super) fn after_last_of(&self, key: AssessmentLogKey, topics: &HashSet<TopicIndex>) -> Option<Position> {
        let log = self.logs.get(key)?;
        let entries = std::iter::successors(log.first, |&at| self.next_entry(at));
        let is_of = |at| self.segments.entry(at).is_some_and(|(_, entry)| topics.contains(&entry.record.origin.topic));
        let (number, _) = (log.start..).zip(entries).filter(|&(_, at)| is_of(at)).last()?;
        Some(Position { number: number + 1, at: None })
    }

    /// The partitions where records of a subscribed assessment may lie, as of [`History::refresh_listed`].
    #[must_use]
    pub(crate) fn listed_partitions(&self, key: AssessmentLogKey) -> &[PartitionId] {
        self.logs.get(key).map_or(&[], |log| log.listed.partition_ids())
    }
}

/// What a log costs besides its entries: itself, its slot in the index, and its id.
fn log_cost(id: &str) -> usize {
    size_of::<AssessmentLog>() + 2 * size_of::<AssessmentLogKey>() + id.len()
}
