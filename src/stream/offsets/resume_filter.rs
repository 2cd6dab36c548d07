//! The resume filter: it says of each entry whether a resumed client has it already. It is dropped once the client was
//! sent everything this shard has read. Pods interleave topics differently and one may be behind the other, so one
//! position in the window can't say what a client missed.

use std::time::Instant;

use super::names::{self, Named};
use super::topics::Reading;
use super::{Hashes, ListedPartitions, Offsets, PartitionId, PartitionInfo};
use crate::ids::{AssessmentHash, TopicIndex};
use crate::protocol::messages::ResetReason;
use crate::stream::batch::PartitionEnds;
use crate::stream::cursor::{self, Cursor, CursorContents, Encoder, Form, ListedTopic, PartitionOffset, Tag, TopicSum};
use crate::stream::epochs::{AtEnd, Branch, judge_end};
use crate::stream::fault_injection::{InjectedFault, is_injected};

/// Answers that must confirm that a cursor lies past the end of one log; the first may come from a deposed leader.
const ANSWERS_MIN: u8 = 2;

/// What a client's cursor covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeFilter {
    /// Sorted by their id here; partitions that are not known here come last. Looked up for each entry.
    partitions: Vec<CoveredPartition>,
    /// The topics that it lists, with how many partitions each had, by index.
    topics: Vec<(TopicIndex, u32)>,
    /// Topics that this shard does not know.
    unknown: Vec<ListedTopic>,
    /// The sum over the fingerprints of those.
    unknown_sum: TopicSum,
    /// A new topic fits the tag of an unknown one, and the sum shows that it is another.
    is_misread: bool,
    /// Partitions of replaced topics, each with where it ended. The client has all of their records.
    replaced_ends: Vec<(PartitionId, i64)>,
    /// The layout for which `known` was looked up.
    layout: u32,
    /// Of the assessment's id.
    hashes: Hashes,
    /// The first entry that the client lacks has not been found yet.
    pub(in crate::stream) is_sought: bool,
}

/// What a client has of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CoveredPartition {
    topic: TopicIndex,
    offset: PartitionOffset,
    /// Its id here; `None` if this shard does not know the partition.
    known: Option<PartitionId>,
    /// A recreated topic has taken the name of its topic. No more records arrive on it, but it still says what the
    /// client has.
    replaced: bool,
    /// Its topic is not read any more, and other pods have had time to learn that: nothing more comes on it.
    is_over: bool,
    /// In this many answers in a row the log ended below `offset`.
    beyond: u8,
    /// The client was sent a reset for what the log lost. From `offset` on, which this shard had read by then, it is
    /// sent what this shard reads: nothing older speaks against it any more.
    is_reset: bool,
}

/// What is known by now of a cursor that was ahead.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CursorVerdict {
    /// Nothing speaks against it.
    #[default]
    Open,
    /// The log lost some of what the client has, which the filter no longer covers. The client needs a reset; the rest
    /// of the cursor holds.
    Lost,
    /// The client can't continue from it, for this reason.
    Refuted(ResetReason),
}

/// The ends of some logs, by partition.
#[derive(Debug)]
pub(crate) struct LogEnds {
    /// Before the leaders were asked.
    pub(crate) asked: Instant,
    /// By [`PartitionId`]: the end, and the epoch of the leader that reported it.
    ends: Vec<Option<(i64, Option<i32>)>>,
}

impl LogEnds {
    fn of(&self, partition_id: PartitionId) -> Option<(i64, Option<i32>)> {
        *self.ends.get(partition_id.index())?
    }
}

impl Offsets {
    /// Judges a client's cursor: what it covers, if the window has everything else. `newest` is the offset of the newest
    /// entry of the assessment that the window has on a partition.
    ///
    /// # Errors
    /// Why the client can't continue from it.
    pub fn judge(
        &self,
        cursor: Cursor,
        id: &str,
        listed: &ListedPartitions,
        newest: impl Fn(PartitionId) -> Option<i64>,
    ) -> Result<ResumeFilter, ResetReason> {
        let Cursor::Of(listing) = cursor else { return Err(ResetReason::Expired) };
        let resume_filter = ResumeFilter::read(self, id, listing)?;
        if self.lately_replaced.iter().any(|&(topic, _)| {
            self.known(topic).is_some_and(|known| !known.is_empty) && !resume_filter.has_name_of(self, topic)
        }) {
            // Unknown whether it predates the topic's recreation, and so lacks what the old topic had.
            return Err(ResetReason::Invalid);
        }
        let is_misplaced = |&partition_id: &PartitionId| {
            // Records from before the first subscriber may be placed by a partition count that this shard never saw.
            // They do no harm if the cursor says how many of them the client has, or that it has none of the topic.
            let says_how_much =
                || resume_filter.next(partition_id).is_some() || !resume_filter.has_topic_of(self, partition_id);
            let may_be_older = |offset| self.may_predate_growth(id, partition_id, offset) && says_how_much();
            // No client resumes from before the history's time.
            let is_recent = |&offset: &i64| offset >= self.recent[partition_id.index()];
            !self.is_expected(id, partition_id)
                && newest(partition_id).filter(is_recent).is_some_and(|offset| !may_be_older(offset))
        };
        if !listed.is_as_expected() && listed.partition_ids.iter().any(is_misplaced) {
            return Err(ResetReason::Misplaced);
        }
        if let Some(reason) = resume_filter.contradiction(self) {
            return Err(reason);
        }
        if self.is_complete_for(&resume_filter, listed) { Ok(resume_filter) } else { Err(ResetReason::Expired) }
    }

    /// Whether the window still has everything that a client lacks.
    #[must_use]
    pub(crate) fn is_complete_for(&self, resume_filter: &ResumeFilter, listed: &ListedPartitions) -> bool {
        let is_below = |covered: &CoveredPartition| {
            covered.known.is_some_and(|partition_id| covered.offset.next < self.complete_from(partition_id))
        };
        let lacks_more = |&partition_id: &PartitionId| {
            resume_filter.lacks_from(self, partition_id).is_some_and(|from| from < self.complete_from(partition_id))
        };
        !(resume_filter.partitions.iter().any(is_below) || listed.partition_ids.iter().any(lacks_more))
    }

    /// Looks up the partitions of reported ends, once for all clients that are judged by them.
    #[must_use]
    pub(crate) fn index_ends(&self, reported: &PartitionEnds) -> LogEnds {
        let mut ends = vec![None; self.partition_ids.len()];
        for end in &reported.ends {
            if let Some(partition_id) = self.partition_id(end.at.topic, end.at.partition) {
                ends[partition_id.index()] = Some((end.at.offset, end.leader_epoch));
            }
        }
        LogEnds { asked: reported.asked, ends }
    }

    /// The complete-from offset of a partition.
    pub(in crate::stream) fn complete_from(&self, partition_id: PartitionId) -> i64 {
        self.complete_from[partition_id.0 as usize]
    }
}

impl CoveredPartition {
    /// Whether the client has records that the log lost.
    fn is_lost(&self, offsets: &Offsets) -> bool {
        let known = self.known.filter(|_| !self.replaced && !self.is_reset);
        known.is_some_and(|partition_id| offsets.branch(partition_id, &self.offset) == Branch::Lost)
            && !is_injected(InjectedFault::LostCountsAsHad)
    }

    /// The client gets a reset, and is sent what this shard reads from an offset on.
    fn restart(&mut self, at: PartitionOffset) {
        (self.offset, self.is_reset) = (at, true);
    }

    /// Judges it by the end of its log. If records that this shard has read are lost as well, that waits until this pod
    /// finds it, and where the logs diverge.
    fn judge_end(
        &mut self,
        offsets: &Offsets,
        partition_id: PartitionId,
        (end, leader_epoch): (i64, Option<i32>),
    ) -> CursorVerdict {
        let reason = match judge_end(self.offset.next, self.offset.epoch, end, leader_epoch) {
            AtEnd::Within => {
                self.beyond = 0;
                return CursorVerdict::Open;
            }
            AtEnd::Lost if offsets.next(partition_id) > end => return CursorVerdict::Open,
            AtEnd::Beyond if offsets.next(partition_id) >= self.offset.next => return CursorVerdict::Open,
            AtEnd::Lost => {
                self.restart(offsets.offset_at(partition_id, offsets.next(partition_id)));
                return CursorVerdict::Lost;
            }
            AtEnd::Earlier => ResetReason::Expired,
            AtEnd::Beyond => ResetReason::Invalid,
        };
        self.beyond = self.beyond.saturating_add(1);
        if self.beyond < ANSWERS_MIN { CursorVerdict::Open } else { CursorVerdict::Refuted(reason) }
    }
}

/// Sorts partitions that are not known here last.
fn by_id(covered: &CoveredPartition) -> (bool, Option<PartitionId>) {
    (covered.known.is_none(), covered.known)
}

impl ResumeFilter {
    /// Resolves a cursor's topics and partitions.
    fn read(offsets: &Offsets, id: &str, listing: CursorContents) -> Result<Self, ResetReason> {
        let Named { topics, unknown } = names::name(&listing, |name| offsets.tagged(name))?;
        let mut resume_filter = Self {
            partitions: Vec::new(),
            topics: Vec::with_capacity(topics.len()),
            unknown: Vec::new(),
            unknown_sum: unknown,
            is_misread: false,
            replaced_ends: Vec::new(),
            layout: offsets.layout.wrapping_sub(1),
            hashes: Hashes::of(id),
            is_sought: false,
        };
        for (listed, topic) in listing.topics.into_iter().zip(topics) {
            match topic {
                Some(topic) => resume_filter.add(topic, &listed),
                None => resume_filter.unknown.push(listed),
            }
        }
        resume_filter.topics.sort_unstable();
        resume_filter.refresh(offsets);
        Ok(resume_filter)
    }

    #[cfg(test)]
    pub(crate) fn of(offsets: &Offsets, id: &str, listing: CursorContents) -> Result<Self, ResetReason> {
        Self::read(offsets, id, listing)
    }

    fn add(&mut self, topic: TopicIndex, listed: &ListedTopic) {
        self.topics.push((topic, listed.partitions));
        let covered = |&offset: &PartitionOffset| CoveredPartition {
            topic,
            offset,
            known: None,
            replaced: false,
            is_over: false,
            beyond: 0,
            is_reset: false,
        };
        self.partitions.extend(listed.offsets.iter().map(covered));
    }

    /// Looks its partitions up again if topics or partitions changed.
    pub(crate) fn refresh(&mut self, offsets: &Offsets) {
        if self.layout == offsets.layout {
            return;
        }
        self.layout = offsets.layout;
        self.replaced_ends.clear();
        let ends = offsets.replaced.iter().map(|&partition_id| (partition_id, offsets.next(partition_id)));
        self.replaced_ends.extend(ends);
        self.resolve_unknown_topics(offsets);
        for CoveredPartition { topic, offset, known, replaced, .. } in &mut self.partitions {
            let Some(topic) = offsets.known(*topic) else { continue };
            *replaced = topic.replaced;
            if !*replaced {
                let partition = usize::try_from(offset.partition).ok();
                *known = partition.and_then(|partition| *topic.partition_ids.get(partition)?);
            }
        }
        self.partitions.sort_unstable_by_key(by_id);
    }

    /// Unknown topics may be known by now: all of them or none. One alone has too short a tag to be sure.
    fn resolve_unknown_topics(&mut self, offsets: &Offsets) {
        if self.unknown.iter().all(|topic| offsets.tagged(topic.tag.name).is_empty()) {
            return;
        }
        let listing = CursorContents { sum: self.unknown_sum, topics: std::mem::take(&mut self.unknown) };
        let named = names::name(&listing, |name| offsets.tagged(name)).ok();
        match named.and_then(|named| named.topics.into_iter().collect::<Option<Vec<_>>>()) {
            Some(topics) => {
                topics.iter().zip(&listing.topics).for_each(|(&topic, listed)| self.add(topic, listed));
                self.topics.sort_unstable();
                self.unknown_sum = TopicSum::default();
            }
            None => {
                self.is_misread = true;
                self.unknown = listing.topics;
            }
        }
    }

    /// Removes a topic whose index another topic gets.
    pub(crate) fn forget(&mut self, topic: TopicIndex) {
        self.partitions.retain(|covered| covered.topic != topic);
        self.topics.retain(|(listed, _)| *listed != topic);
    }

    /// Waits no longer for topics that this pod does not read: those that it does not know, and those that it has not
    /// read for longer than the window. For a client that has been here for as long: by now every pod has looked at the
    /// topics, and what the client had of them has left the windows. A pod that reads one nevertheless finds that the
    /// client's next cursor does not list it, and answers `expired` unless its window has the topic from the beginning.
    pub(crate) fn forget_unread_topics(&mut self, offsets: &Offsets) {
        self.refresh(offsets);
        self.unknown.clear();
        self.unknown_sum = TopicSum::default();
        for covered in &mut self.partitions {
            covered.is_over = offsets.known(covered.topic).is_none_or(|topic| topic.reading == Reading::Over);
        }
    }

    /// Why the client can't continue from it after all, by what is known now.
    #[must_use]
    pub(crate) fn contradiction(&self, offsets: &Offsets) -> Option<ResetReason> {
        if self.is_misread {
            return Some(ResetReason::Invalid);
        }
        self.partitions.iter().any(|covered| covered.is_lost(offsets)).then_some(ResetReason::Expired)
    }

    /// Judges it again by what was read since, and by the ends of some logs. What the client has of logs that lost it
    /// is no longer covered; what it has of others stays.
    pub(crate) fn recheck(&mut self, offsets: &Offsets, ends: Option<&LogEnds>) -> CursorVerdict {
        self.refresh(offsets);
        match self.contradiction(offsets) {
            None => {}
            Some(ResetReason::Expired) => {
                self.let_go_of_lost(offsets);
                return CursorVerdict::Lost;
            }
            Some(reason) => return CursorVerdict::Refuted(reason),
        }
        let mut verdict = CursorVerdict::Open;
        for covered in self.partitions.iter_mut().filter(|covered| !covered.replaced) {
            let Some(partition_id) = covered.known else { continue };
            let Some(end) = ends.and_then(|ends| ends.of(partition_id)) else { continue };
            match (covered.judge_end(offsets, partition_id, end), verdict) {
                (CursorVerdict::Open, _) | (_, CursorVerdict::Lost) => {}
                (judged, _) => verdict = judged,
            }
        }
        verdict
    }

    /// The log that was read here, up to records of `epoch`, lost its end on a partition, from an offset on. Returns
    /// whether the client's cursor is of a later leader's log, and the window is complete from there on. Otherwise the
    /// client lacks everything from that offset on.
    pub(crate) fn truncate(
        &mut self,
        offsets: &Offsets,
        partition_id: PartitionId,
        offset: i64,
        epoch: Option<i32>,
    ) -> bool {
        self.refresh(offsets);
        let Some(covered) = self.at_mut(partition_id) else { return false };
        let at = covered.offset;
        let is_of_later = at.epoch.zip(epoch).is_some_and(|(own, lost)| own > lost);
        if is_of_later && at.next >= offsets.complete_from(partition_id) && !is_injected(InjectedFault::CutConcernsAll)
        {
            return true;
        }
        covered.restart(offsets.offset_at(partition_id, offset.min(at.next)));
        false
    }

    /// Stops covering records that logs lost.
    fn let_go_of_lost(&mut self, offsets: &Offsets) {
        for covered in self.partitions.iter_mut().filter(|covered| covered.is_lost(offsets)) {
            if let Some(partition_id) = covered.known {
                covered.restart(offsets.offset_at(partition_id, offsets.next(partition_id)));
            }
        }
    }

    /// How many partitions it lists.
    #[must_use]
    pub(crate) fn listed_count(&self) -> usize {
        self.partitions.len()
    }

    /// Whether the client has the record at an offset of a partition.
    #[must_use]
    pub(crate) fn contains(&self, offsets: &Offsets, partition_id: PartitionId, offset: i64) -> bool {
        match self.at(partition_id) {
            Some(covered) => offset < covered.offset.next || offsets.is_outdated_at(partition_id, &covered.offset),
            None => self.lacks_from(offsets, partition_id).is_none(),
        }
    }

    /// Whether everything that it covers has been sent or read when the partitions are at `next`: it covers nothing that
    /// follows.
    #[must_use]
    pub(crate) fn is_exhausted(&self, offsets: &Offsets, next: impl Fn(PartitionId) -> i64) -> bool {
        let is_behind = |&(partition_id, end): &(PartitionId, i64)| next(partition_id) >= end;
        let is_passed = |covered: &CoveredPartition| {
            let is_read = |partition_id| {
                next(partition_id) >= covered.offset.next && !offsets.is_outdated_at(partition_id, &covered.offset)
            };
            covered.replaced || covered.is_over || covered.known.is_some_and(is_read)
        };
        self.unknown.is_empty() && self.partitions.iter().all(is_passed) && self.replaced_ends.iter().all(is_behind)
    }

    /// Whether it lists a partition at or beyond an offset.
    #[must_use]
    pub(crate) fn reaches(&self, partition_id: PartitionId, offset: i64) -> bool {
        self.next(partition_id).is_some_and(|next| next >= offset)
    }

    /// Appends the cursor of a client that has what this covers and everything below `next`: of each partition, the
    /// further of the two. `false` if it would be too long; an unresumable one is appended then.
    pub fn write_cursor(
        &self,
        offsets: &Offsets,
        assessment: AssessmentHash,
        listed: &ListedPartitions,
        next: impl Fn(PartitionId) -> i64,
        out: &mut Vec<u8>,
    ) -> bool {
        let mut merged: Vec<(TopicIndex, PartitionOffset)> =
            Vec::with_capacity(listed.partition_ids.len() + self.partitions.len());
        for &partition_id in &listed.partition_ids {
            let own = offsets.offset_at(partition_id, next(partition_id));
            let covered = self.at(partition_id).map(|covered| covered.offset).filter(|covered| covered.is_beyond(&own));
            merged.push((offsets.info(partition_id).topic, covered.unwrap_or(own)));
        }
        let is_unlisted = |covered: &&CoveredPartition| !covered.known.is_some_and(|known| listed.contains(known));
        for covered in self.partitions.iter().filter(|covered| !covered.replaced).filter(is_unlisted) {
            let own = covered.known.map(|partition_id| offsets.offset_at(partition_id, next(partition_id)));
            let own = own.filter(|own| own.is_beyond(&covered.offset));
            merged.push((covered.topic, own.unwrap_or(covered.offset)));
        }
        merged.sort_by(|(a, of_a), (b, of_b)| offsets.topic_order(*a, *b).then(of_a.partition.cmp(&of_b.partition)));
        for form in Form::ALL {
            let mut encoder = Encoder::new(form);
            if self.encode(offsets, &mut encoder, &merged) {
                encoder.finish(assessment, self.unknown_sum, out);
                return true;
            }
        }
        cursor::encode_unresumable(assessment, out);
        false
    }

    fn encode(&self, offsets: &Offsets, encoder: &mut Encoder, merged: &[(TopicIndex, PartitionOffset)]) -> bool {
        for topic in merged.chunk_by(|(a, _), (b, _)| a == b) {
            let index = topic[0].0;
            let Some(known) = offsets.known(index) else { continue };
            let listed = self.topics.binary_search_by_key(&index, |(topic, _)| *topic);
            // The pod that made the cursor may know partitions that this shard has not seen.
            let listed = listed.map_or(0, |at| self.topics[at].1);
            let partitions = listed.max(u32::try_from(known.partition_ids.len()).unwrap_or(u32::MAX));
            let fingerprint = known.topic.fingerprint;
            let at = topic.iter().map(|(_, at)| *at).filter(|at| offsets.must_list(index, at.next));
            if !encoder.topic(Tag::of(fingerprint), TopicSum::of(fingerprint), partitions, at) {
                return false;
            }
        }
        // Without its mark, other pods could not tell an unknown topic from others.
        let mut unknown = self.unknown.iter();
        (self.unknown.is_empty() || encoder.has_marks())
            && unknown.all(|topic| {
                encoder.topic(topic.tag, TopicSum::default(), topic.partitions, topic.offsets.iter().copied())
            })
    }

    /// Whether the pod that made the cursor knew a partition's topic.
    fn has_topic_of(&self, offsets: &Offsets, partition_id: PartitionId) -> bool {
        self.partitions_of(offsets, offsets.info(partition_id)).is_some()
    }

    /// Whether it lists a topic, or the one that has taken its name.
    fn has_name_of(&self, offsets: &Offsets, topic: TopicIndex) -> bool {
        let current = offsets.known(topic).and_then(|known| offsets.current(&known.topic.name));
        let is_listed = |topic: TopicIndex| self.topics.binary_search_by_key(&topic, |(topic, _)| *topic).is_ok();
        is_listed(topic) || current.is_some_and(is_listed)
    }

    /// How many partitions a topic had for the pod that made the cursor; of a recreated topic, the one that has its name
    /// now.
    fn partitions_of(&self, offsets: &Offsets, info: &PartitionInfo) -> Option<u32> {
        let of = |topic: TopicIndex| {
            let at = self.topics.binary_search_by_key(&topic, |(topic, _)| *topic).ok()?;
            Some(self.topics[at].1)
        };
        of(info.topic).or_else(|| {
            let known = offsets.known(info.topic).filter(|known| known.replaced)?;
            of(offsets.current(&known.topic.name)?)
        })
    }

    fn at_mut(&mut self, partition_id: PartitionId) -> Option<&mut CoveredPartition> {
        let at = self.partitions.binary_search_by_key(&(false, Some(partition_id)), by_id).ok()?;
        Some(&mut self.partitions[at])
    }

    fn at(&self, partition_id: PartitionId) -> Option<&CoveredPartition> {
        let at = self.partitions.binary_search_by_key(&(false, Some(partition_id)), by_id).ok()?;
        Some(&self.partitions[at])
    }

    fn next(&self, partition_id: PartitionId) -> Option<i64> {
        self.at(partition_id).map(|covered| covered.offset.next)
    }

    /// From which offset on the client lacks the records of a partition that the cursor does not list; `None` if it lacks
    /// none, and for a partition that it lists.
    fn lacks_from(&self, offsets: &Offsets, partition_id: PartitionId) -> Option<i64> {
        if self.next(partition_id).is_some() {
            return None;
        }
        let info = offsets.info(partition_id);
        let known = offsets.known(info.topic)?;
        let Some(partitions) = self.partitions_of(offsets, info) else {
            // The pod that made the cursor did not know the topic, or knew it empty.
            return Some(0);
        };
        if known.replaced {
            // The cursor is of the topic that replaced it, and so younger than all of its records.
            return None;
        }
        if info.partition >= partitions {
            return Some(0);
        }
        let Some(hash) = self.hashes.by(known.partitioner?) else { return Some(0) };
        // The partition is expected by a count that came after the cursor was made. Of earlier counts, the pod that made
        // it had read everything.
        let later = known
            .counts
            .iter()
            .find(|count| count.partitions >= partitions && hash.of(count.partitions) == info.partition)?;
        let from = later.from.get(info.partition as usize).copied().unwrap_or(0);
        Some(if later.partitions == partitions { 0 } else { from })
    }
}
