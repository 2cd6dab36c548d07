//! What a client has that came back with a cursor, until it has been sent as much as this shard has read. Two pods
//! interleave topics differently, and one may be behind the other: so what a client lacks is told entry by entry.

use super::names::{self, Named};
use super::{Listed, Offsets, PlaceId, Spot};
use crate::ids::{AssessmentHash, TopicIndex};
use crate::protocol::messages::ResetReason;
use crate::stream::batch::LogEnd;
use crate::stream::cursor::{self, Cursor, Encoder, Form, ListedTopic, Listing, Place, Tag, TopicSum};
use crate::stream::epochs::{AtEnd, Branch, judge_end};
use crate::stream::planted::{Mistake, is_planted};

/// What a client's cursor covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cover {
    /// By the place here, those that are not known at the end: looked up for each entry.
    places: Vec<Covered>,
    /// The topics that it lists, with how many partitions each had, by index.
    topics: Vec<(TopicIndex, u32)>,
    /// Topics that this shard was not told of.
    unknown: Vec<ListedTopic>,
    /// Over the fingerprints of those.
    unknown_sum: TopicSum,
    /// A topic came that may be one of those, and is not for certain.
    is_misread: bool,
    /// Places of topics whose names others have by now, each with where it ended: the client has all of them.
    over: Vec<(PlaceId, i64)>,
    /// The layout by which `known` was looked up.
    layout: u32,
    /// The first entry that the client lacks is yet to be found.
    pub(in crate::stream) is_sought: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Covered {
    topic: TopicIndex,
    place: Place,
    /// Where that is here; `None` where this shard was not told of the partition.
    known: Option<PlaceId>,
    /// Another topic has the name of its one by now: nothing comes there any more, and yet it says what the client has.
    replaced: bool,
}

impl Offsets {
    /// Judges a client's cursor: what it covers, where all that it lacks is to be had here. `newest` is the offset of the
    /// newest entry of the assessment that the window has at a place.
    ///
    /// # Errors
    /// Why it is no good, as the client is told.
    pub fn judge(
        &self,
        cursor: Cursor,
        id: &str,
        listed: &Listed,
        newest: impl Fn(PlaceId) -> Option<i64>,
    ) -> Result<Cover, ResetReason> {
        let Cursor::Of(listing) = cursor else { return Err(ResetReason::Expired) };
        let cover = Cover::read(self, listing)?;
        if self.lately_replaced.iter().any(|&(topic, _)| self.has_had_records(topic) && !cover.has_name_of(self, topic))
        {
            // Whether it is from before the topic was made anew, and lacks what the old one had, nobody knows.
            return Err(ResetReason::Invalid);
        }
        let is_stray = |&place: &PlaceId| {
            // What was there before anyone watched may be placed by a number of partitions that nobody here knows of.
            // It does no harm where the cursor says how much of it the client has, or that it has nothing of the topic.
            let says_how_much = || cover.next(place).is_some() || !cover.has_topic_of(self, place);
            let may_be_of_old = |offset| self.may_be_of_old(id, place, offset) && says_how_much();
            // What is older than the history's time is there for the markets' sake: nobody resumes from before it.
            let is_recent = |&offset: &i64| offset >= self.recent[place.index()];
            !self.is_expected(id, place) && newest(place).filter(is_recent).is_some_and(|offset| !may_be_of_old(offset))
        };
        if !listed.is_as_expected() && listed.places.iter().any(is_stray) {
            return Err(ResetReason::Misplaced);
        }
        if let Some(reason) = cover.refuted(self) {
            return Err(reason);
        }
        if self.is_whole_for(&cover, id, listed) { Ok(cover) } else { Err(ResetReason::Expired) }
    }

    /// Whether all that a client lacks is in the window still.
    #[must_use]
    pub fn is_whole_for(&self, cover: &Cover, id: &str, listed: &Listed) -> bool {
        let is_below = |covered: &Covered| covered.known.is_some_and(|place| covered.place.next < self.low(place));
        let lacks_more =
            |&place: &PlaceId| cover.is_lacking(self, id, place).is_some_and(|from| from < self.low(place));
        !(cover.places.iter().any(is_below) || listed.places.iter().any(lacks_more))
    }

    fn has_had_records(&self, topic: TopicIndex) -> bool {
        let places = self.known(topic).map(|known| &known.places);
        places.into_iter().flatten().flatten().any(|&place| self.next(place) > self.low(place))
    }

    /// From where on the window is whole at a place.
    pub(in crate::stream) fn low(&self, place: PlaceId) -> i64 {
        self.low[place.0 as usize]
    }
}

impl Covered {
    /// Whether the log that the client has lost its end, and it has some of that.
    fn is_lost(&self, offsets: &Offsets) -> bool {
        let known = self.known.filter(|_| !self.replaced);
        known.is_some_and(|place| offsets.branch(place, &self.place) == Branch::Lost)
            && !is_planted(Mistake::LostCountsAsHad)
    }

    /// The client has nothing from this offset on.
    fn lose(&mut self, from: i64) {
        self.place = Place { next: from.min(self.place.next), epoch: None, ..self.place };
    }
}

/// Those that are not known here come last.
fn by_place(covered: &Covered) -> (bool, Option<PlaceId>) {
    (covered.known.is_none(), covered.known)
}

impl Cover {
    /// Finds a cursor's topics and places.
    fn read(offsets: &Offsets, listing: Listing) -> Result<Self, ResetReason> {
        let Named { topics, unknown } = names::name(&listing, |name| offsets.tagged(name))?;
        let mut cover = Self {
            places: Vec::new(),
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
                Some(topic) => cover.add(topic, &listed),
                None => cover.unknown.push(listed),
            }
        }
        cover.topics.sort_unstable();
        cover.follow(offsets);
        Ok(cover)
    }

    #[cfg(test)]
    pub(crate) fn of(offsets: &Offsets, listing: Listing) -> Result<Self, ResetReason> {
        Self::read(offsets, listing)
    }

    fn add(&mut self, topic: TopicIndex, listed: &ListedTopic) {
        self.topics.push((topic, listed.partitions));
        let covered = |&place: &Place| Covered { topic, place, known: None, replaced: false };
        self.places.extend(listed.places.iter().map(covered));
    }

    /// Finds its places anew, if topics or partitions changed.
    pub fn follow(&mut self, offsets: &Offsets) {
        if self.layout == offsets.layout {
            return;
        }
        self.layout = offsets.layout;
        self.over.clear();
        self.over.extend(offsets.replaced.iter().map(|&place| (place, offsets.next(place))));
        self.meet_unknown(offsets);
        for Covered { topic, place, known, replaced } in &mut self.places {
            let Some(topic) = offsets.known(*topic) else { continue };
            *replaced = topic.replaced;
            if !*replaced {
                let partition = usize::try_from(place.partition).ok();
                *known = partition.and_then(|partition| *topic.places.get(partition)?);
            }
        }
        self.places.sort_unstable_by_key(by_place);
    }

    /// Topics that were not known may be by now. All of them, or none: one alone has too short a tag to be sure of it.
    fn meet_unknown(&mut self, offsets: &Offsets) {
        if self.unknown.iter().all(|topic| offsets.tagged(topic.tag.name).is_empty()) {
            return;
        }
        let listing = Listing { sum: self.unknown_sum, topics: std::mem::take(&mut self.unknown) };
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
        self.places.retain(|covered| covered.topic != topic);
        self.topics.retain(|(listed, _)| *listed != topic);
    }

    /// Why the client can't go on from it after all, by what is known now.
    #[must_use]
    pub fn refuted(&self, offsets: &Offsets) -> Option<ResetReason> {
        if self.is_misread {
            return Some(ResetReason::Invalid);
        }
        self.places.iter().any(|covered| covered.is_lost(offsets)).then_some(ResetReason::Expired)
    }

    /// The log that was read here, up to records of `epoch`, lost its end at a place, from an offset on. Whether what the
    /// client has is of a log that a later leader wrote, and this one is whole from there on; else it lacks all that comes
    /// there.
    pub fn cut(&mut self, offsets: &Offsets, place: PlaceId, offset: i64, epoch: Option<i32>) -> bool {
        self.follow(offsets);
        let Some(covered) = self.at_mut(place) else { return false };
        let at = covered.place;
        let is_of_later = at.epoch.zip(epoch).is_some_and(|(own, lost)| own > lost);
        if is_of_later && at.next >= offsets.low(place) && !is_planted(Mistake::CutConcernsAll) {
            return true;
        }
        if at.next > offset {
            covered.lose(offset);
        }
        false
    }

    /// What the ends of some logs say of the client, at the worst; `None` where they are of other partitions. Where the log
    /// lost what it has, it has nothing beyond what was read here from now on. If some of what was read is lost as well, that
    /// is left until this pod finds where.
    pub fn judge_ends(&mut self, offsets: &Offsets, ends: &[LogEnd]) -> Option<AtEnd> {
        self.follow(offsets);
        let mut worst = None;
        for end in ends {
            let Some(place) = offsets.place(end.at.topic, end.at.partition) else { continue };
            let Some(covered) = self.at_mut(place) else { continue };
            let judged = judge_end(covered.place.next, covered.place.epoch, end.at.offset, end.leader_epoch);
            if judged == AtEnd::Lost {
                if offsets.next(place) > end.at.offset {
                    continue;
                }
                covered.lose(offsets.next(place));
            }
            worst = worst.max(Some(judged));
        }
        worst
    }

    /// What the client has of logs that lost it, it has not from now on.
    pub fn let_go_of_lost(&mut self, offsets: &Offsets) {
        for covered in self.places.iter_mut().filter(|covered| covered.is_lost(offsets)) {
            if let Some(place) = covered.known {
                covered.lose(offsets.next(place));
            }
        }
    }

    /// How many partitions it lists.
    #[must_use]
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// Whether the client has the record at an offset of a place.
    #[must_use]
    pub fn has(&self, offsets: &Offsets, id: &str, place: PlaceId, offset: i64) -> bool {
        match self.at(place) {
            Some(covered) => offset < covered.place.next || offsets.is_outdated_at(place, &covered.place),
            None => self.is_lacking(offsets, id, place).is_none(),
        }
    }

    /// Whether all of it has been sent or read, where the places stand at `next`: nothing that comes is covered any more.
    #[must_use]
    pub fn is_passed(&self, offsets: &Offsets, next: impl Fn(PlaceId) -> i64) -> bool {
        let is_behind = |&(place, end): &(PlaceId, i64)| next(place) >= end;
        let is_passed = |covered: &Covered| {
            let is_read = |place| next(place) >= covered.place.next && !offsets.is_outdated_at(place, &covered.place);
            covered.replaced || covered.known.is_some_and(is_read)
        };
        self.unknown.is_empty() && self.places.iter().all(is_passed) && self.over.iter().all(is_behind)
    }

    /// Whether it says where the client stands at a place, at or beyond an offset.
    #[must_use]
    pub fn reaches(&self, place: PlaceId, offset: i64) -> bool {
        self.next(place).is_some_and(|next| next >= offset)
    }

    /// Appends the cursor of a client that has this, and all that the places had when they stood at `next`: at each, the
    /// larger of the two. `false` where it would be too long, and what stands for that is appended.
    pub fn write_cursor(
        &self,
        offsets: &Offsets,
        assessment: AssessmentHash,
        listed: &Listed,
        next: impl Fn(PlaceId) -> i64,
        out: &mut Vec<u8>,
    ) -> bool {
        let mut places: Vec<(TopicIndex, Place)> = Vec::with_capacity(listed.places.len() + self.places.len());
        for &place in &listed.places {
            let own = offsets.place_at(place, next(place));
            let covered = self.at(place).map(|covered| covered.place).filter(|covered| covered.is_beyond(&own));
            places.push((offsets.spot(place).topic, covered.unwrap_or(own)));
        }
        let is_unlisted = |covered: &&Covered| !covered.known.is_some_and(|known| listed.has(known));
        for covered in self.places.iter().filter(|covered| !covered.replaced).filter(is_unlisted) {
            let own = covered.known.map(|place| offsets.place_at(place, next(place)));
            let own = own.filter(|own| own.is_beyond(&covered.place));
            places.push((covered.topic, own.unwrap_or(covered.place)));
        }
        places.sort_by(|(a, of_a), (b, of_b)| offsets.order(*a, *b).then(of_a.partition.cmp(&of_b.partition)));
        for form in Form::ALL {
            let mut encoder = Encoder::new(form);
            if self.encode(offsets, &mut encoder, &places) {
                encoder.finish(assessment, self.unknown_sum, out);
                return true;
            }
        }
        cursor::encode_none(assessment, out);
        false
    }

    fn encode(&self, offsets: &Offsets, encoder: &mut Encoder, places: &[(TopicIndex, Place)]) -> bool {
        for topic in places.chunk_by(|(a, _), (b, _)| a == b) {
            let index = topic[0].0;
            let Some(known) = offsets.known(index) else { continue };
            let listed = self.topics.binary_search_by_key(&index, |(topic, _)| *topic);
            // Whoever made the cursor may know of partitions that were not seen here.
            let listed = listed.map_or(0, |at| self.topics[at].1);
            let partitions = listed.max(u32::try_from(known.places.len()).unwrap_or(u32::MAX));
            let fingerprint = known.topic.fingerprint;
            let places = topic.iter().map(|(_, place)| *place).filter(|at| offsets.is_worth_listing(index, at.next));
            if !encoder.topic(Tag::of(fingerprint), TopicSum::of(fingerprint), partitions, places) {
                return false;
            }
        }
        // Without its mark, a topic that is not known here could not be told from others elsewhere.
        let mut unknown = self.unknown.iter();
        (self.unknown.is_empty() || encoder.has_marks())
            && unknown.all(|topic| {
                encoder.topic(topic.tag, TopicSum::default(), topic.partitions, topic.places.iter().copied())
            })
    }

    /// Whether whoever made the cursor knew of a place's topic.
    fn has_topic_of(&self, offsets: &Offsets, place: PlaceId) -> bool {
        self.partitions_of(offsets, offsets.spot(place)).is_some()
    }

    /// Whether it lists a topic, or the one that has its name now.
    fn has_name_of(&self, offsets: &Offsets, topic: TopicIndex) -> bool {
        let current = offsets.known(topic).and_then(|known| offsets.current(&known.topic.name));
        let is_listed = |topic: TopicIndex| self.topics.binary_search_by_key(&topic, |(topic, _)| *topic).is_ok();
        is_listed(topic) || current.is_some_and(is_listed)
    }

    /// How many partitions a place's topic had for whoever made the cursor; where the topic was made anew, the one that has
    /// its name now.
    fn partitions_of(&self, offsets: &Offsets, spot: &Spot) -> Option<u32> {
        let of = |topic: TopicIndex| {
            let at = self.topics.binary_search_by_key(&topic, |(topic, _)| *topic).ok()?;
            Some(self.topics[at].1)
        };
        of(spot.topic).or_else(|| {
            let known = offsets.known(spot.topic).filter(|known| known.replaced)?;
            of(offsets.current(&known.topic.name)?)
        })
    }

    fn at_mut(&mut self, place: PlaceId) -> Option<&mut Covered> {
        let at = self.places.binary_search_by_key(&(false, Some(place)), by_place).ok()?;
        Some(&mut self.places[at])
    }

    fn at(&self, place: PlaceId) -> Option<&Covered> {
        let at = self.places.binary_search_by_key(&(false, Some(place)), by_place).ok()?;
        Some(&self.places[at])
    }

    fn next(&self, place: PlaceId) -> Option<i64> {
        self.at(place).map(|covered| covered.place.next)
    }

    /// From which offset on the client lacks what lies at a place that the cursor does not list; `None` where it lacks
    /// nothing there, and for a place that it lists.
    fn is_lacking(&self, offsets: &Offsets, id: &str, place: PlaceId) -> Option<i64> {
        if self.next(place).is_some() {
            return None;
        }
        let spot = offsets.spot(place);
        let known = offsets.known(spot.topic)?;
        let Some(partitions) = self.partitions_of(offsets, spot) else {
            // Whoever made the cursor did not know the topic, or knew it empty: from its beginning on.
            return Some(0);
        };
        if known.replaced {
            // The cursor is of the topic that took its place, and so younger than all that it had.
            return None;
        }
        if spot.partition >= partitions {
            return Some(0);
        }
        let Some(hash) = known.partitioner?.hash(id) else { return Some(0) };
        // Where it lies by the numbers of partitions that came after the cursor was made; by those from before, whoever
        // made it was past all of them.
        let later = known
            .counts
            .iter()
            .find(|count| count.partitions >= partitions && hash.of(count.partitions) == spot.partition)?;
        let from = later.from.get(spot.partition as usize).copied().unwrap_or(0);
        Some(if later.partitions == partitions { 0 } else { from })
    }
}
