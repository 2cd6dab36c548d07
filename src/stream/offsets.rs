//! Where a shard stands on each partition of the assessments' topics, from where on its window is whole, and what follows
//! from both for a cursor: what it covers, and whether what it lacks is all here. Whose entry lies where is
//! [`super::history`]'s part.
//!
//! A *place* is a partition of a topic, numbered densely. An assessment's cursor lists the places where its records may
//! lie: by its topics' partitioners, for each number of partitions that a topic had of late, and besides where a record
//! of it was found against expectation.

mod cover;
mod names;
#[cfg(test)]
mod tests;
mod topics;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::cover::Cover;
use self::names::Candidate;
use self::topics::Known;
use crate::ids::{AssessmentHash, TopicIndex};
use crate::limits::GROWTH_NOTICED_MAX;
use crate::routing::partitioner::{KeyHash, Partitioner};
use crate::routing::table::Topic;
use crate::stream::batch::{EpochStart, LogCut, NextOffset, Origin};
use crate::stream::cursor::{self, Encoder, Form, Place, Tag, TopicSum};
use crate::stream::epochs::{Branch, EpochTimeline, Met};
use crate::stream::planted::{Mistake, is_planted};

/// A partition of an assessments' topic: its place in the order in which the shard heard of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceId(u32);

impl PlaceId {
    /// None is before it.
    pub const FIRST: Self = Self(0);

    /// Its place in [`Offsets::all_next`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What stands for the offset of a place whose topic was forgotten. Another one gets it, and had none there before.
pub const FORGOTTEN: i64 = i64::MIN;

/// All partitions' offsets, as of the newest record.
#[derive(Debug, Default)]
pub struct Offsets {
    topics: Vec<Option<Known>>,
    /// By name, the topic that has it now.
    current: HashMap<Box<str>, TopicIndex>,
    /// By the name in their tags, the topics that have their names now, in the order of these.
    tagged: HashMap<u16, Vec<Candidate>>,
    /// Topics whose names others have by now, and since when that is known: the window may have records of them.
    lately_replaced: Vec<(TopicIndex, Option<Instant>)>,
    /// The places of topics whose names others have by now.
    replaced: Vec<PlaceId>,
    places: Vec<Spot>,
    next: Vec<i64>,
    low: Vec<i64>,
    first: Vec<i64>,
    /// Which leaders wrote what was read, and what logs lost of that.
    epochs: Vec<EpochTimeline>,
    /// Records below these are older than the history's time: whoever was away for longer knows it by other places.
    recent: Vec<i64>,
    /// Where each place stood when somebody first watched.
    settled: Option<Box<[i64]>>,
    /// Grows with each change of topics or partitions.
    layout: u32,
    /// Places of topics that were forgotten.
    free: Vec<PlaceId>,
}

/// A number of partitions that a topic has or had.
#[derive(Debug)]
struct Count {
    partitions: u32,
    since: Instant,
    /// By partition: the records that its producers placed by this number are not below these. Empty for the first one.
    from: Vec<i64>,
}

/// What is asked of a place most.
#[derive(Debug, Clone, Copy)]
struct Spot {
    tag: Tag,
    sum: TopicSum,
    topic: TopicIndex,
    partition: u32,
    /// How many partitions the topic has.
    partitions: u32,
}

/// The places of one assessment, those of one topic side by side.
#[derive(Debug, Default)]
pub struct Listed {
    places: Box<[PlaceId]>,
    layout: u32,
    /// How many of them are there only because a record was found there.
    strays: u32,
}

impl Listed {
    /// Whether all of them are where the topics' partitioners put the assessment: nearly always so.
    #[must_use]
    pub fn is_as_expected(&self) -> bool {
        self.strays == 0
    }

    /// Whether the place is one of them.
    #[must_use]
    pub fn has(&self, place: PlaceId) -> bool {
        self.places.contains(&place)
    }

    /// All of them.
    #[must_use]
    pub fn places(&self) -> &[PlaceId] {
        &self.places
    }
}

impl Offsets {
    // ---- what the shard is told -------------------------------------------------------------------------------------

    /// Takes in where ingest stands; those that changed are appended to `changed`, and those that are new and begin above
    /// 0, so that something was deleted before it was read, to `cut`. `past` tells where it stood [`GROWTH_NOTICED_MAX`]
    /// ago, if that is known; it is asked where a partition is new.
    pub fn told<'a>(
        &mut self,
        starts: &[NextOffset],
        past: impl FnOnce() -> Option<&'a [i64]>,
        now: Instant,
        changed: &mut Vec<PlaceId>,
        cut: &mut Vec<PlaceId>,
    ) {
        let mut grown = Vec::new();
        for start in starts {
            let Some((topic, partition)) = self.known(start.topic).zip(u32::try_from(start.partition).ok()) else {
                continue;
            };
            let place = match topic.places.get(partition as usize) {
                Some(&Some(place)) => place,
                _ => {
                    grown.push(start.topic);
                    let place = self.add_place(start.topic, partition, start.offset);
                    cut.extend((start.offset > 0).then_some(place));
                    place
                }
            };
            self.next[place.0 as usize] = start.offset;
            changed.push(place);
            if start.offset > 0
                && let Some(Some(known)) = self.topics.get_mut(usize::from(start.topic.0))
            {
                known.is_empty = false;
            }
        }
        if grown.is_empty() {
            return;
        }
        grown.dedup();
        let past = past();
        for topic in grown {
            self.count_partitions(topic, past, now);
        }
    }

    fn add_place(&mut self, topic: TopicIndex, partition: u32, offset: i64) -> PlaceId {
        let place = self.free_place();
        let known = self.topics[usize::from(topic.0)].as_mut().expect("looked up before");
        let fingerprint = known.topic.fingerprint;
        let (tag, sum) = (Tag::of(fingerprint), TopicSum::of(fingerprint));
        if known.places.len() <= partition as usize {
            known.places.resize(partition as usize + 1, None);
        }
        known.places[partition as usize] = Some(place);
        self.replaced.extend(known.replaced.then_some(place));
        let at = place.index();
        self.places[at] = Spot { tag, sum, topic, partition, partitions: 0 };
        (self.next[at], self.low[at], self.first[at], self.recent[at]) = (offset, offset, offset, offset);
        self.layout += 1;
        place
    }

    /// Records below these offsets are older than the history's time. After the places were told.
    pub fn recent_from(&mut self, recent: &[NextOffset]) {
        for from in recent {
            if let Some(place) = self.place(from.topic, from.partition) {
                self.recent[place.index()] = from.offset;
            }
        }
    }

    /// A topic has more partitions than before: its producers place by the new number from some moment on, at most
    /// [`GROWTH_NOTICED_MAX`] ago.
    fn count_partitions(&mut self, topic: TopicIndex, past: Option<&[i64]>, now: Instant) {
        let Self { topics, places, first, .. } = self;
        let Some(Some(known)) = topics.get_mut(usize::from(topic.0)) else { return };
        let partitions = u32::try_from(known.places.len()).unwrap_or(u32::MAX);
        let from = |place: &Option<PlaceId>| {
            let place = place.map(|place| place.0 as usize);
            let past = |place: usize| past?.get(place).copied().filter(|&next| next != FORGOTTEN);
            place.map_or(0, |place| past(place).unwrap_or(first[place]))
        };
        match known.counts.last() {
            Some(last) if last.partitions >= partitions => {}
            Some(_) => {
                let from = known.places.iter().map(from).collect();
                known.counts.push(Count { partitions, since: now, from });
            }
            None => known.counts.push(Count { partitions, since: now, from: Vec::new() }),
        }
        for place in known.places.iter().flatten() {
            places[place.0 as usize].partitions = partitions;
        }
    }

    /// Forgets numbers of partitions by which no record of the window was placed.
    pub fn forget_old_counts(&mut self, window: Duration, now: Instant) {
        for known in self.topics.iter_mut().flatten() {
            known.forget_old_mappings(window, now);
            if known.counts.len() < 2 {
                continue;
            }
            let old = |count: &Count| now.saturating_duration_since(count.since) > window + GROWTH_NOTICED_MAX;
            if old(&known.counts[1]) {
                known.counts.remove(0);
                self.layout += 1;
            }
        }
        self.lately_replaced.retain_mut(|(_, since)| {
            let since = *since.get_or_insert(now);
            now.saturating_duration_since(since) <= window + GROWTH_NOTICED_MAX
        });
    }

    /// The record at an offset was read.
    pub fn advance(&mut self, origin: Origin) -> Option<PlaceId> {
        let known = self.topics.get_mut(usize::from(origin.topic.0))?.as_mut()?;
        let place = (*known.places.get(usize::try_from(origin.partition).ok()?)?)?;
        known.is_empty = false;
        self.next[place.0 as usize] = origin.offset.saturating_add(1);
        Some(place)
    }

    /// The record at an offset left the window: so far, it is not whole any more.
    pub fn evicted(&mut self, origin: Origin) {
        if let Some(place) = self.place(origin.topic, origin.partition) {
            let low = &mut self.low[place.0 as usize];
            *low = origin.offset.saturating_add(1).max(*low);
        }
    }

    /// Records below this offset are missing that were not read: nobody can be sent them.
    pub fn missing_below(&mut self, at: &NextOffset) -> Option<PlaceId> {
        let place = self.place(at.topic, at.partition)?;
        let low = &mut self.low[place.0 as usize];
        *low = at.offset.max(*low);
        Some(place)
    }

    /// The log lost its end. Before it is told to stand there. Comes back with the epoch of the last record that was read of
    /// it, as far as that is known.
    pub fn cut(&mut self, cut: &LogCut) -> Option<(PlaceId, Option<i32>)> {
        let place = self.place(cut.next.topic, cut.next.partition)?;
        let index = place.index();
        let (from, read, low, epochs) = (cut.next.offset, self.next[index], self.low[index], &mut self.epochs[index]);
        let epoch = epochs.last();
        epochs.lose_end(from, read, cut.is_below_unknown, low);
        // What it holds from there on is all read again.
        self.low[index] = if cut.is_below_unknown { from } else { from.min(low) };
        self.next[index] = from.min(read);
        Some((place, epoch))
    }

    /// Another leader began to write a partition.
    pub fn epoch_starts(&mut self, start: &EpochStart) {
        let Origin { topic, partition, offset } = start.first;
        let Some(place) = self.place(topic, partition) else { return };
        let epochs = &mut self.epochs[place.0 as usize];
        if epochs.note(offset, start.epoch) == Met::Earlier {
            // Ingest tells of a cut first: what it says last is so.
            epochs.clear();
            epochs.note(offset, start.epoch);
        }
    }

    /// Somebody watches: from now on the shard sees for itself how many partitions its topics have.
    pub fn settle(&mut self) {
        if self.settled.is_none() {
            self.settled = Some(self.next.as_slice().into());
        }
    }

    // ---- what is asked ----------------------------------------------------------------------------------------------

    /// A topic, by its index.
    #[must_use]
    pub fn topic(&self, index: TopicIndex) -> Option<&Arc<Topic>> {
        Some(&self.topics.get(usize::from(index.0))?.as_ref()?.topic)
    }

    /// The topic of a record, with the route that it was read by.
    #[must_use]
    pub fn topic_of(&self, origin: Origin) -> Option<&Arc<Topic>> {
        Some(self.topics.get(usize::from(origin.topic.0))?.as_ref()?.of(origin))
    }

    /// The place of a partition; `None` for a market's, and one that was not told of.
    #[must_use]
    pub fn place(&self, topic: TopicIndex, partition: i32) -> Option<PlaceId> {
        *self.topics.get(usize::from(topic.0))?.as_ref()?.places.get(usize::try_from(partition).ok()?)?
    }

    /// The next offset of a place.
    #[must_use]
    pub fn next(&self, place: PlaceId) -> i64 {
        self.next[place.0 as usize]
    }

    /// The first offset that the shard was told of a place.
    #[must_use]
    pub fn first(&self, place: PlaceId) -> i64 {
        self.first[place.0 as usize]
    }

    /// The places of a topic.
    pub fn places_of(&self, topic: TopicIndex) -> impl Iterator<Item = PlaceId> + '_ {
        let known = self.topics.get(usize::from(topic.0)).and_then(Option::as_ref);
        known.into_iter().flat_map(|known| known.places.iter().flatten().copied())
    }

    /// The next offset of each place; [`FORGOTTEN`] where it is no topic's.
    #[must_use]
    pub fn all_next(&self) -> &[i64] {
        &self.next
    }

    /// Whether topics or partitions changed since the places were listed.
    #[must_use]
    pub fn is_outdated(&self, listed: &Listed) -> bool {
        listed.layout != self.layout
    }

    /// The places of an assessment: where its records are expected, and where they were `found`.
    #[must_use]
    pub fn list(&self, id: &str, found: impl IntoIterator<Item = PlaceId>) -> Listed {
        let hashes = Hashes::of(id);
        let mut places = Vec::new();
        for known in self.topics.iter().flatten().filter(|known| !known.replaced) {
            let Some(partitioner) = known.partitioner else { continue };
            match hashes.by(partitioner) {
                Some(hash) => {
                    let expected = known.counts.iter().map(|count| hash.of(count.partitions) as usize);
                    places.extend(expected.filter_map(|partition| *known.places.get(partition)?));
                }
                None => places.extend(known.places.iter().flatten()),
            }
        }
        let expected = places.len();
        for place in found {
            if !self.is_replaced(place) && !places.contains(&place) {
                places.push(place);
            }
        }
        let strays = u32::try_from(places.len() - expected).expect("Kafka has far fewer partitions than 2^32");
        let spot = |place: &PlaceId| &self.places[place.0 as usize];
        places.sort_unstable_by(|a, b| {
            let (a, b) = (spot(a), spot(b));
            self.order(a.topic, b.topic).then(a.partition.cmp(&b.partition))
        });
        places.dedup();
        Listed { places: places.into(), layout: self.layout, strays }
    }

    /// Whether the topic's partitioner would put the assessment's records there, by some number of partitions that the
    /// topic had of late.
    #[must_use]
    pub fn is_expected(&self, id: &str, place: PlaceId) -> bool {
        let spot = self.places[place.0 as usize];
        let Some(known) = self.known(spot.topic) else { return false };
        match known.partitioner.and_then(|partitioner| partitioner.hash(id)) {
            Some(hash) => known.counts.iter().any(|count| hash.of(count.partitions) == spot.partition),
            None => true,
        }
    }

    /// Whether a record may lie there because the topic once had fewer partitions: one that was there before anyone
    /// watched.
    fn may_be_of_old(&self, id: &str, place: PlaceId, offset: i64) -> bool {
        let spot = self.places[place.0 as usize];
        let was_there = |settled: &[i64]| settled.get(place.0 as usize).is_some_and(|&next| offset < next);
        let partitioner = self.known(spot.topic).and_then(|known| known.partitioner);
        let hash = partitioner.and_then(|partitioner| partitioner.hash(id));
        self.settled.as_deref().is_some_and(was_there)
            && hash.is_some_and(|hash| (1..=spot.partitions).any(|partitions| hash.of(partitions) == spot.partition))
    }

    /// Whether another topic has the name of this place's by now.
    #[must_use]
    pub fn is_replaced(&self, place: PlaceId) -> bool {
        let topic = self.places[place.0 as usize].topic;
        self.known(topic).is_none_or(|known| known.replaced)
    }

    /// Appends the cursor of an assessment, from where each of its places stands. `false` where it would be too long, and
    /// what stands for that is appended.
    pub fn write_cursor(
        &self,
        assessment: AssessmentHash,
        listed: &Listed,
        next: impl Fn(PlaceId) -> i64,
        out: &mut Vec<u8>,
    ) -> bool {
        for form in Form::ALL {
            let mut encoder = Encoder::new(form);
            if self.encode(&mut encoder, listed, &next) {
                encoder.finish(assessment, TopicSum::default(), out);
                return true;
            }
        }
        cursor::encode_none(assessment, out);
        false
    }

    fn encode(&self, encoder: &mut Encoder, listed: &Listed, next: &impl Fn(PlaceId) -> i64) -> bool {
        let mut rest = &*listed.places;
        while let Some((&first, behind)) = rest.split_first() {
            let Spot { tag, sum, topic, partitions, .. } = *self.spot(first);
            // One alone is what nearly all topics have.
            let further = behind.iter().take_while(|&&place| self.spot(place).topic == topic).count();
            rest = &behind[further..];
            let place =
                |place| Some(self.place_at(place, next(place))).filter(|at| self.is_worth_listing(topic, at.next));
            let places = std::iter::once(first).chain(behind[..further].iter().copied()).filter_map(place);
            if !encoder.topic(tag, sum, partitions, places) {
                return false;
            }
        }
        true
    }

    /// Whether a cursor must list a place that stands there. A topic that it does not list is one that was empty: the client
    /// lacks all of it. So is a partition where an assessment's records lie on any.
    fn is_worth_listing(&self, topic: TopicIndex, next: i64) -> bool {
        if next > 0 {
            return true;
        }
        self.known(topic).is_some_and(|known| {
            known.is_always_listed || !known.is_empty && known.partitioner != Some(Partitioner::None)
        })
    }

    fn place_at(&self, place: PlaceId, next: i64) -> Place {
        let epoch = self.epochs[place.0 as usize].before(next);
        Place { partition: self.spot(place).partition, next, epoch }
    }

    fn spot(&self, place: PlaceId) -> &Spot {
        &self.places[place.0 as usize]
    }

    /// The order in which a cursor lists topics: those that share a tag by their names, so that every pod reads it alike.
    fn order(&self, a: TopicIndex, b: TopicIndex) -> Ordering {
        let key = |topic: TopicIndex| {
            self.known(topic).map(|known| (Tag::of(known.topic.fingerprint).name, &*known.topic.name, topic))
        };
        key(a).cmp(&key(b))
    }

    /// How the log in which a client stands at a place stands to the one that was read here.
    fn branch(&self, place: PlaceId, at: &Place) -> Branch {
        self.epochs[place.index()].judge(at.next, at.epoch, self.next(place))
    }

    /// Whether a client has a newer log of a place than the one that was read here, which is lost: it is sent nothing of it.
    fn is_outdated_at(&self, place: PlaceId, at: &Place) -> bool {
        self.epochs[place.index()].is_older_than(at.next, at.epoch, self.next(place))
            && !is_planted(Mistake::OldLogToANewerCursor)
    }

    /// The topics whose tags have this name.
    fn tagged(&self, name: u16) -> &[Candidate] {
        self.tagged.get(&name).map_or(&[], Vec::as_slice)
    }

    fn known(&self, topic: TopicIndex) -> Option<&Known> {
        self.topics.get(usize::from(topic.0))?.as_ref().filter(|known| known.partitioner.is_some())
    }

    /// The topic that has a name now.
    fn current(&self, name: &str) -> Option<TopicIndex> {
        self.current.get(name).copied()
    }
}

/// What an assessment's id comes to for each partitioner: hashed once, whatever the number of topics.
struct Hashes {
    murmur2: Option<KeyHash>,
    crc32: Option<KeyHash>,
}

impl Hashes {
    fn of(id: &str) -> Self {
        Self { murmur2: Partitioner::Murmur2.hash(id), crc32: Partitioner::Crc32.hash(id) }
    }

    fn by(&self, partitioner: Partitioner) -> Option<KeyHash> {
        match partitioner {
            Partitioner::Murmur2 => self.murmur2,
            Partitioner::Crc32 => self.crc32,
            Partitioner::None => None,
        }
    }
}
