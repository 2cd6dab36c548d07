//! What a client has that came back with a cursor, until it has been sent as much as this shard has read. Two pods
//! interleave topics differently, and one may be behind the other: so what a client lacks is told entry by entry.

use super::{Listed, Offsets, PlaceId};
use crate::ids::AssessmentHash;
use crate::protocol::messages::ResetReason;
use crate::stream::cursor::{self, Cursor, Place};

/// What a client's cursor covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cover {
    places: Vec<Covered>,
    /// Places of topics whose names others have by now, each with where it ended: the client has all of them.
    over: Vec<(PlaceId, i64)>,
    /// The layout by which `known` was looked up.
    layout: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Covered {
    place: Place,
    /// Where that is here; `None` where this shard was not told of the partition, or of the topic.
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
        cursor: &Cursor,
        id: &str,
        listed: &Listed,
        newest: impl Fn(PlaceId) -> Option<i64>,
    ) -> Result<Cover, ResetReason> {
        if cursor.assessment != AssessmentHash::of(id) {
            return Err(ResetReason::Invalid);
        }
        let is_another = |place: &Place| {
            let current = self.current(place.topic.name);
            current.is_some_and(|known| known.topic.fingerprint != place.topic)
        };
        if cursor.places.iter().any(is_another) {
            return Err(ResetReason::Invalid);
        }
        let mut cover = Cover {
            places: cursor.places.iter().map(|&place| Covered { place, known: None, replaced: false }).collect(),
            over: Vec::new(),
            layout: self.layout.wrapping_sub(1),
        };
        cover.follow(self);
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
        let is_below = |covered: &Covered| covered.known.is_some_and(|place| covered.place.next < self.low(place));
        let lacks_more =
            |&place: &PlaceId| cover.is_lacking(self, id, place).is_some_and(|from| from < self.low(place));
        if cover.places.iter().any(is_below) || listed.places.iter().any(lacks_more) {
            return Err(ResetReason::Expired);
        }
        Ok(cover)
    }

    /// From where on the window is whole at a place.
    fn low(&self, place: PlaceId) -> i64 {
        self.low[place.0 as usize]
    }
}

impl Cover {
    /// Finds its places anew, if topics or partitions changed.
    pub fn follow(&mut self, offsets: &Offsets) {
        if self.layout == offsets.layout {
            return;
        }
        self.layout = offsets.layout;
        let places = (0..offsets.places.len()).filter_map(|place| u32::try_from(place).ok()).map(PlaceId);
        self.over.clear();
        self.over.extend(places.filter(|&place| offsets.is_replaced(place)).map(|place| (place, offsets.next(place))));
        for Covered { place, known, replaced } in &mut self.places {
            let Some(topic) = offsets.current(place.topic.name) else { continue };
            *replaced = topic.topic.fingerprint != place.topic;
            if !*replaced {
                let partition = usize::try_from(place.partition).ok();
                *known = partition.and_then(|partition| *topic.places.get(partition)?);
            }
        }
    }

    /// Whether the client has the record at an offset of a place.
    #[must_use]
    pub fn has(&self, offsets: &Offsets, id: &str, place: PlaceId, offset: i64) -> bool {
        match self.next(place) {
            Some(next) => offset < next,
            None => self.is_lacking(offsets, id, place).is_none(),
        }
    }

    /// Whether all of it has been sent or read, where the places stand at `next`: nothing that comes is covered any more.
    #[must_use]
    pub fn is_passed(&self, next: impl Fn(PlaceId) -> i64) -> bool {
        let is_behind = |&(place, end): &(PlaceId, i64)| next(place) >= end;
        let is_passed = |covered: &Covered| {
            covered.replaced || covered.known.is_some_and(|place| next(place) >= covered.place.next)
        };
        self.places.iter().all(is_passed) && self.over.iter().all(is_behind)
    }

    /// Whether it says where the client stands at a place, at or beyond an offset.
    #[must_use]
    pub fn reaches(&self, place: PlaceId, offset: i64) -> bool {
        self.next(place).is_some_and(|next| next >= offset)
    }

    /// Appends the cursor of a client that has this, and all that the places had when they stood at `next`: at each, the
    /// larger of the two. `false` where it would be too long.
    pub fn write_cursor(
        &self,
        offsets: &Offsets,
        assessment: AssessmentHash,
        listed: &Listed,
        next: impl Fn(PlaceId) -> i64,
        out: &mut Vec<u8>,
    ) -> bool {
        let mut places: Vec<Place> = Vec::with_capacity(listed.places.len() + self.places.len());
        for &place in &listed.places {
            let own = offsets.place_at(place, next(place));
            places.push(Place { next: own.next.max(self.next(place).unwrap_or(0)), ..own });
        }
        let is_unlisted = |covered: &&Covered| !covered.known.is_some_and(|known| listed.has(known));
        for covered in self.places.iter().filter(|covered| !covered.replaced).filter(is_unlisted) {
            let at = covered.known.map_or(0, &next);
            places.push(Place { next: covered.place.next.max(at), ..covered.place });
        }
        places.sort_by_key(|place| (place.topic.name, place.topic.incarnation));
        cursor::encode(assessment, places.into_iter(), out)
    }

    /// Whether whoever made the cursor knew of a place's topic.
    fn has_topic_of(&self, offsets: &Offsets, place: PlaceId) -> bool {
        let name = offsets.places[place.0 as usize].fingerprint.name;
        self.places.iter().any(|covered| covered.place.topic.name == name)
    }

    fn next(&self, place: PlaceId) -> Option<i64> {
        self.places.iter().find(|covered| covered.known == Some(place)).map(|covered| covered.place.next)
    }

    /// From which offset on the client lacks what lies at a place that the cursor does not list; `None` where it lacks
    /// nothing there, and for a place that it lists.
    fn is_lacking(&self, offsets: &Offsets, id: &str, place: PlaceId) -> Option<i64> {
        if self.next(place).is_some() {
            return None;
        }
        let spot = offsets.places[place.0 as usize];
        let known = offsets.known(spot.topic)?;
        let of_topic = |covered: &&Covered| covered.place.topic.name == spot.fingerprint.name;
        let Some(partitions) = self.places.iter().filter(of_topic).map(|covered| covered.place.partitions).max() else {
            // The topic was not known to whoever made the cursor: from its beginning on.
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
