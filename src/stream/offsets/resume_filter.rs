//! What a resumed client already has, until it has been sent everything this shard has read. Pods interleave topics
//! differently and one may be behind the other, so missed events are determined entry by entry.

use super::names::{self, Named};
use super::{ListedPartitions, Offsets, PartitionId, PartitionInfo};
use crate::ids::{AssessmentHash, TopicIndex};
use crate::protocol::messages::ResetReason;
use crate::stream::batch::LogEnd;
use crate::stream::cursor::{self, Cursor, CursorContents, Encoder, Form, ListedTopic, PartitionOffset, Tag, TopicSum};
use crate::stream::epochs::{AtEnd, Branch, judge_end};
use crate::stream::fault_injection::{InjectedFault, is_injected};

/// What a client's cursor covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeFilter {
    /// By the place here, those that are not known at the end: looked up for each entry.
    partition_ids: Vec<CoveredPartition>,
    /// The topics that it lists, with how many partitions each had, by index.
    topics: Vec<(TopicIndex, u32)>,
    /// Topics that this shard was not told of.
    unknown: Vec<ListedTopic>,
    /// Over the fingerprints of those.
    unknown_sum: TopicSum,
    /// A topic came that may be one of those, and is not for certain.
    is_misread: bool,
    /// Places of topics whose names others have by now, each with where it ended: the client has all of them.
    over: Vec<(PartitionId, i64)>,
    /// The layout by which `known` was looked up.
    layout: u32,
    /// The first entry that the client lacks is yet to be found.
    pub(in crate::stream) is_sought: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CoveredPartition {
    topic: TopicIndex,
    partition_id: PartitionOffset,
    /// Where that is here; `None` where this shard was not told of the partition.
    known: Option<PartitionId>,
    /// Another topic has the name of its one by now: nothing comes there any more, and yet it says what the client has.
    replaced: bool,
}

impl Offsets {
    /// Judges a client's cursor: what it covers, where all that it lacks is to be had here. `newest` is the offset of
    /// the newest entry of the assessment that the window has at a place.
    ///
    /// # Errors
    /// Why it is no good, as the client is told.
    pub fn judge(
        &self,
        cursor: Cursor,
        id: &str,
        listed: &ListedPartitions,
        newest: impl Fn(PartitionId) -> Option<i64>,
    ) -> Result<ResumeFilter, ResetReason> {
        let Cursor::Of(listing) = cursor else { return Err(ResetReason::Expired) };
        let resume_filter = ResumeFilter::read(self, listing)?;
        if self
            .lately_replaced
            .iter()
            .any(|&(topic, _)| self.has_had_records(topic) && !resume_filter.has_name_of(self, topic))
        {
            // Unknown whether it predates the topic's recreation, and so lacks what the old topic had.
            return Err(ResetReason::Invalid);
        }
        let is_stray = |&partition_id: &PartitionId| {
            // What was there before anyone watched may be placed by a number of partitions that nobody here knows of.
            // It does no harm where the cursor says how much of it the client has, or that it has nothing of the topic.
            let says_how_much =
                || resume_filter.next(partition_id).is_some() || !resume_filter.has_topic_of(self, partition_id);
            let may_be_older = |offset| self.may_predate_growth(id, partition_id, offset) && says_how_much();
            // What is older than the history's time is there for the markets' sake: nobody resumes from before it.
            let is_recent = |&offset: &i64| offset >= self.recent[partition_id.index()];
            !self.is_expected(id, partition_id)
                && newest(partition_id).filter(is_recent).is_some_and(|offset| !may_be_older(offset))
        };
        if !listed.is_as_expected() && listed.partition_ids.iter().any(is_stray) {
            return Err(ResetReason::Misplaced);
        }
        if let Some(reason) = resume_filter.contradiction(self) {
            return Err(reason);
        }
        if self.is_whole_for(&resume_filter, id, listed) { Ok(resume_filter) } else { Err(ResetReason::Expired) }
    }

    /// Whether all that a client lacks is in the window still.
    #[must_use]
    pub fn is_whole_for(&self, resume_filter: &ResumeFilter, id: &str, listed: &ListedPartitions) -> bool {
        let is_below = |covered: &CoveredPartition| {
            covered.known.is_some_and(|partition_id| covered.partition_id.next < self.low(partition_id))
        };
        let lacks_more = |&partition_id: &PartitionId| {
            resume_filter.lacks_from(self, id, partition_id).is_some_and(|from| from < self.low(partition_id))
        };
        !(resume_filter.partition_ids.iter().any(is_below) || listed.partition_ids.iter().any(lacks_more))
    }

    fn has_had_records(&self, topic: TopicIndex) -> bool {
        let partition_ids = self.known(topic).map(|known| &known.partition_ids);
        partition_ids
            .into_iter()
            .flatten()
            .flatten()
            .any(|&partition_id| self.next(partition_id) > self.low(partition_id))
    }

    /// From where on the window is whole at a place.
    pub(in crate::stream) fn low(&self, partition_id: PartitionId) -> i64 {
        self.low_watermark[partition_id.0 as usize]
    }
}

impl CoveredPartition {
    /// Whether the log that the client has lost its end, and it has some of that.
    fn is_lost(&self, offsets: &Offsets) -> bool {
        let known = self.known.filter(|_| !self.replaced);
        known.is_some_and(|partition_id| offsets.branch(partition_id, &self.partition_id) == Branch::Lost)
            && !is_injected(InjectedFault::LostCountsAsHad)
    }

    /// The client has nothing from this offset on.
    fn lose(&mut self, from: i64) {
        self.partition_id =
            PartitionOffset { next: from.min(self.partition_id.next), epoch: None, ..self.partition_id };
    }
}

/// Those that are not known here come last.
fn by_place(covered: &CoveredPartition) -> (bool, Option<PartitionId>) {
    (covered.known.is_none(), covered.known)
}

impl ResumeFilter {
    /// Finds a cursor's topics and places.
    fn read(offsets: &Offsets, listing: CursorContents) -> Result<Self, ResetReason> {
        let Named { topics, unknown } = names::name(&listing, |name| offsets.tagged(name))?;
        let mut resume_filter = Self {
            partition_ids: Vec::new(),
            topics: Vec::with_capacity(topics.len()),
            unknown: Vec::new(),
            unknown_sum: unknown,
            is_misread: false,
            over: Vec::new(),
            layout: offsets.layout.wrapping_sub(1),
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
    pub(crate) fn of(offsets: &Offsets, listing: CursorContents) -> Result<Self, ResetReason> {
        Self::read(offsets, listing)
    }

    fn add(&mut self, topic: TopicIndex, listed: &ListedTopic) {
        self.topics.push((topic, listed.partitions));
        let covered =
            |&partition_id: &PartitionOffset| CoveredPartition { topic, partition_id, known: None, replaced: false };
        self.partition_ids.extend(listed.offsets.iter().map(covered));
    }

    /// Finds its places anew, if topics or partitions changed.
    pub fn refresh(&mut self, offsets: &Offsets) {
        if self.layout == offsets.layout {
            return;
        }
        self.layout = offsets.layout;
        self.over.clear();
        self.over.extend(offsets.replaced.iter().map(|&partition_id| (partition_id, offsets.next(partition_id))));
        self.resolve_unknown_topics(offsets);
        for CoveredPartition { topic, partition_id, known, replaced } in &mut self.partition_ids {
            let Some(topic) = offsets.known(*topic) else { continue };
            *replaced = topic.replaced;
            if !*replaced {
                let partition = usize::try_from(partition_id.partition).ok();
                *known = partition.and_then(|partition| *topic.partition_ids.get(partition)?);
            }
        }
        self.partition_ids.sort_unstable_by_key(by_place);
    }

    /// Topics that were not known may be by now. All of them, or none: one alone has too short a tag to be sure of it.
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

    /// Another topic gets this one's index: nothing of it comes any more, and nobody asks a cursor for it.
    pub fn forget(&mut self, topic: TopicIndex) {
        self.partition_ids.retain(|covered| covered.topic != topic);
        self.topics.retain(|(listed, _)| *listed != topic);
    }

    /// Why the client can't go on from it after all, by what is known now.
    #[must_use]
    pub fn contradiction(&self, offsets: &Offsets) -> Option<ResetReason> {
        if self.is_misread {
            return Some(ResetReason::Invalid);
        }
        self.partition_ids.iter().any(|covered| covered.is_lost(offsets)).then_some(ResetReason::Expired)
    }

    /// The log that was read here, up to records of `epoch`, lost its end at a place, from an offset on. Whether what
    /// the client has is of a log that a later leader wrote, and this one is whole from there on; else it lacks all
    /// that comes there.
    pub fn truncate(&mut self, offsets: &Offsets, partition_id: PartitionId, offset: i64, epoch: Option<i32>) -> bool {
        self.refresh(offsets);
        let Some(covered) = self.at_mut(partition_id) else { return false };
        let at = covered.partition_id;
        let is_of_later = at.epoch.zip(epoch).is_some_and(|(own, lost)| own > lost);
        if is_of_later && at.next >= offsets.low(partition_id) && !is_injected(InjectedFault::CutConcernsAll) {
            return true;
        }
        if at.next > offset {
            covered.lose(offset);
        }
        false
    }

    /// What the ends of some logs say of the client, at the worst; `None` where they are of other partitions. Where the
    /// log lost what it has, it has nothing beyond what was read here from now on. If some of what was read is lost as
    /// well, that is left until this pod finds where.
    pub fn judge_ends(&mut self, offsets: &Offsets, ends: &[LogEnd]) -> Option<AtEnd> {
        self.refresh(offsets);
        let mut worst = None;
        for end in ends {
            let Some(partition_id) = offsets.partition_id(end.at.topic, end.at.partition) else { continue };
            let Some(covered) = self.at_mut(partition_id) else { continue };
            let judged =
                judge_end(covered.partition_id.next, covered.partition_id.epoch, end.at.offset, end.leader_epoch);
            if judged == AtEnd::Lost {
                if offsets.next(partition_id) > end.at.offset {
                    continue;
                }
                covered.lose(offsets.next(partition_id));
            }
            worst = worst.max(Some(judged));
        }
        worst
    }

    /// What the client has of logs that lost it, it has not from now on.
    pub fn let_go_of_lost(&mut self, offsets: &Offsets) {
        for covered in self.partition_ids.iter_mut().filter(|covered| covered.is_lost(offsets)) {
            if let Some(partition_id) = covered.known {
                covered.lose(offsets.next(partition_id));
            }
        }
    }

    /// How many partitions it lists.
    #[must_use]
    pub fn partition_ids(&self) -> usize {
        self.partition_ids.len()
    }

    /// Whether the client has the record at an offset of a place.
    #[must_use]
    pub fn contains(&self, offsets: &Offsets, id: &str, partition_id: PartitionId, offset: i64) -> bool {
        match self.at(partition_id) {
            Some(covered) => {
                offset < covered.partition_id.next || offsets.is_outdated_at(partition_id, &covered.partition_id)
            }
            None => self.lacks_from(offsets, id, partition_id).is_none(),
        }
    }

    /// Whether all of it has been sent or read, where the places stand at `next`: nothing that comes is covered any
    /// more.
    #[must_use]
    pub fn is_exhausted(&self, offsets: &Offsets, next: impl Fn(PartitionId) -> i64) -> bool {
        let is_behind = |&(partition_id, end): &(PartitionId, i64)| next(partition_id) >= end;
        let is_passed = |covered: &CoveredPartition| {
            let is_read = |partition_id| {
                next(partition_id) >= covered.partition_id.next
                    && !offsets.is_outdated_at(partition_id, &covered.partition_id)
            };
            covered.replaced || covered.known.is_some_and(is_read)
        };
        self.unknown.is_empty() && self.partition_ids.iter().all(is_passed) && self.over.iter().all(is_behind)
    }

    /// Whether it says where the client stands at a place, at or beyond an offset.
    #[must_use]
    pub fn reaches(&self, partition_id: PartitionId, offset: i64) -> bool {
        self.next(partition_id).is_some_and(|next| next >= offset)
    }

    /// Appends the cursor of a client that has this, and all that the places had when they stood at `next`: at each,
    /// the larger of the two. `false` where it would be too long, and what stands for that is appended.
    pub fn write_cursor(
        &self,
        offsets: &Offsets,
        assessment: AssessmentHash,
        listed: &ListedPartitions,
        next: impl Fn(PartitionId) -> i64,
        out: &mut Vec<u8>,
    ) -> bool {
        let mut partition_ids: Vec<(TopicIndex, PartitionOffset)> =
            Vec::with_capacity(listed.partition_ids.len() + self.partition_ids.len());
        for &partition_id in &listed.partition_ids {
            let own = offsets.offset_at(partition_id, next(partition_id));
            let covered =
                self.at(partition_id).map(|covered| covered.partition_id).filter(|covered| covered.is_past_end(&own));
            partition_ids.push((offsets.info(partition_id).topic, covered.unwrap_or(own)));
        }
        let is_unlisted = |covered: &&CoveredPartition| !covered.known.is_some_and(|known| listed.contains(known));
        for covered in self.partition_ids.iter().filter(|covered| !covered.replaced).filter(is_unlisted) {
            let own = covered.known.map(|partition_id| offsets.offset_at(partition_id, next(partition_id)));
            let own = own.filter(|own| own.is_past_end(&covered.partition_id));
            partition_ids.push((covered.topic, own.unwrap_or(covered.partition_id)));
        }
        partition_ids
            .sort_by(|(a, of_a), (b, of_b)| offsets.topic_order(*a, *b).then(of_a.partition.cmp(&of_b.partition)));
        for form in Form::ALL {
            let mut encoder = Encoder::new(form);
            if self.encode(offsets, &mut encoder, &partition_ids) {
                encoder.finish(assessment, self.unknown_sum, out);
                return true;
            }
        }
        cursor::encode_unresumable(assessment, out);
        false
    }

    fn encode(
        &self,
        offsets: &Offsets,
        encoder: &mut Encoder,
        partition_ids: &[(TopicIndex, PartitionOffset)],
    ) -> bool {
        for topic in partition_ids.chunk_by(|(a, _), (b, _)| a == b) {
            let index = topic[0].0;
            let Some(known) = offsets.known(index) else { continue };
            let listed = self.topics.binary_search_by_key(&index, |(topic, _)| *topic);
            // The pod that made the cursor may know partitions that this shard has not seen.
            let listed = listed.map_or(0, |at| self.topics[at].1);
            let partitions = listed.max(u32::try_from(known.partition_ids.len()).unwrap_or(u32::MAX));
            let fingerprint = known.topic.fingerprint;
            let partition_ids =
                topic.iter().map(|(_, partition_id)| *partition_id).filter(|at| offsets.must_list(index, at.next));
            if !encoder.topic(Tag::of(fingerprint), TopicSum::of(fingerprint), partitions, partition_ids) {
                return false;
            }
        }
        // Without its mark, a topic that is not known here could not be told from others elsewhere.
        let mut unknown = self.unknown.iter();
        (self.unknown.is_empty() || encoder.has_marks())
            && unknown.all(|topic| {
                encoder.topic(topic.tag, TopicSum::default(), topic.partitions, topic.offsets.iter().copied())
            })
    }

    /// Whether whoever made the cursor knew of a place's topic.
    fn has_topic_of(&self, offsets: &Offsets, partition_id: PartitionId) -> bool {
        self.partitions_of(offsets, offsets.info(partition_id)).is_some()
    }

    /// Whether it lists a topic, or the one that has its name now.
    fn has_name_of(&self, offsets: &Offsets, topic: TopicIndex) -> bool {
        let current = offsets.known(topic).and_then(|known| offsets.current(&known.topic.name));
        let is_listed = |topic: TopicIndex| self.topics.binary_search_by_key(&topic, |(topic, _)| *topic).is_ok();
        is_listed(topic) || current.is_some_and(is_listed)
    }

    /// How many partitions a place's topic had for whoever made the cursor; where the topic was made anew, the one that
    /// has its name now.
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
        let at = self.partition_ids.binary_search_by_key(&(false, Some(partition_id)), by_place).ok()?;
        Some(&mut self.partition_ids[at])
    }

    fn at(&self, partition_id: PartitionId) -> Option<&CoveredPartition> {
        let at = self.partition_ids.binary_search_by_key(&(false, Some(partition_id)), by_place).ok()?;
        Some(&self.partition_ids[at])
    }

    fn next(&self, partition_id: PartitionId) -> Option<i64> {
        self.at(partition_id).map(|covered| covered.partition_id.next)
    }

    /// From which offset on the client lacks what lies at a place that the cursor does not list; `None` where it lacks
    /// nothing there, and for a place that it lists.
    fn lacks_from(&self, offsets: &Offsets, id: &str, partition_id: PartitionId) -> Option<i64> {
        if self.next(partition_id).is_some() {
            return None;
        }
        let info = offsets.info(partition_id);
        let known = offsets.known(info.topic)?;
        let Some(partitions) = self.partitions_of(offsets, info) else {
            // Whoever made the cursor did not know the topic, or knew it empty: from its beginning on.
            return Some(0);
        };
        if known.replaced {
            // The cursor is of the topic that took its place, and so younger than all that it had.
            return None;
        }
        if info.partition >= partitions {
            return Some(0);
        }
        let Some(hash) = known.partitioner?.hash(id) else { return Some(0) };
        // Where it lies by the numbers of partitions that came after the cursor was made; by those from before, whoever
        // made it was past all of them.
        let later = known
            .counts
            .iter()
            .find(|count| count.partitions >= partitions && hash.of(count.partitions) == info.partition)?;
        let from = later.from.get(info.partition as usize).copied().unwrap_or(0);
        Some(if later.partitions == partitions { 0 } else { from })
    }
}
