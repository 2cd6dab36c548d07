//! The market board: the latest tick of each market, versioned. It is state, not a log: a lagging client gets fewer and
//! newer values, never a backlog.
//!
//! A flush (or a new client) has an *image* published: the frames of all markets, those that changed last at its end.
//! What changed since a version is therefore a suffix of the image, built once and shared by all connections, wherever
//! each of them stands.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ids::TopicIndex;
use crate::limits::{MARKET_NAME_BYTES_MAX, MARKETS_MAX};
use crate::protocol::messages::text_header;
use crate::routing::mapping;
use crate::routing::table::Topic;
use crate::stream::batch::{Batch, Origin, Tick, TickTime};

/// The maximum age of the image that a new client gets while ticks arrive. Rebuilding it per client would cost a burst
/// of clients a pass over all markets each.
const NEWCOMERS_IMAGE_AGE: Duration = Duration::from_millis(5);

/// Bytes that a buffer of a market, or of the image, may keep free beyond a multiple of its contents.
const TICK_SPARE_BYTES: usize = 1024;
const IMAGE_SPARE_BYTES: usize = 64 * 1024;

/// How far a connection has seen the board. A new one has seen nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct BoardVersion(u64);

/// The latest tick of each market.
#[derive(Debug)]
pub struct Board {
    window: Duration,
    bytes_max: usize,
    /// The total size of all markets' ticks.
    bytes: usize,
    topics: Vec<Option<Arc<Topic>>>,
    markets: Vec<Market>,
    by_name: HashMap<Box<str>, usize>,
    /// The version of the newest change.
    version: u64,
    /// The frames of all markets when it was made, in the order of their versions.
    image: Vec<u8>,
    /// For each frame in the image: the market's version, and where the frame ends.
    marks: Vec<(u64, usize)>,
    /// Whether a market changed since the image was made.
    changed: bool,
    /// Whether a market is missing from the image.
    grown: bool,
    /// When the image was made.
    published: Option<Instant>,
    /// No tick on the board is older than this. While this is within the window, none has expired.
    oldest: Option<Instant>,
    /// A buffer for a message whose length is not known yet.
    scratch: Vec<u8>,
    unusable: u64,
    refused: u64,
}

#[derive(Debug)]
struct Market {
    name: Box<str>,
    topic: TopicIndex,
    origin: Origin,
    made: TickTime,
    /// The tick's payload until a flush needs its frame, which takes its place.
    tick: Vec<u8>,
    is_framed: bool,
    /// When it was made by this process' clock: by its own time where that is known, else when it arrived.
    since: Instant,
    version: u64,
}

/// The outcome of applying a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TickResult {
    /// It is on the board, or older than the one there.
    Taken,
    /// Its topic is no market's.
    Unusable,
    /// The board is full.
    Refused,
}

/// What a connection has not seen of the board's image.
#[derive(Debug, Clone, Copy)]
pub struct BoardChanges<'a> {
    /// Whole frames.
    pub bytes: &'a [u8],
    /// For each of the frames: the market's version, and where the frame ends in the image.
    marks: &'a [(u64, usize)],
    /// Where `bytes` begins in the image.
    start: usize,
}

/// How far a write got in the unseen changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoardProgress {
    /// Of the last frame that was written whole, or cut: the rest of that one is still to be sent.
    pub(crate) version: Option<BoardVersion>,
    /// Frames that were written whole.
    pub frames: u64,
    /// The end of the frame that was cut, in `bytes`; what was written of it is before.
    pub cut_until: Option<usize>,
}

impl Board {
    /// An empty board, which forgets a market whose last tick was made longer than `window` ago, and holds
    /// ticks of at most `bytes_max`.
    #[must_use]
    pub fn new(window: Duration, bytes_max: usize) -> Self {
        Self {
            window,
            bytes_max,
            bytes: 0,
            topics: Vec::new(),
            markets: Vec::new(),
            by_name: HashMap::new(),
            version: 0,
            image: Vec::new(),
            marks: Vec::new(),
            changed: false,
            grown: false,
            published: None,
            oldest: None,
            scratch: Vec::new(),
            unusable: 0,
            refused: 0,
        }
    }

    /// Applies a batch's ticks, which arrived at `now`.
    pub fn apply(&mut self, batch: &Batch, now: Instant) {
        batch.dropped.iter().for_each(|&topic| self.drop_topic(topic));
        for topic in &batch.topics {
            let index = usize::from(topic.index.0);
            if self.topics.len() <= index {
                self.topics.resize(index + 1, None);
            }
            if self.topics[index].is_some() {
                // The tick of the topic that had this index before.
                self.drop_topic(topic.index);
            }
            self.topics[index] = topic.market().map(|_| Arc::clone(topic));
        }
        for tick in &batch.ticks {
            match self.apply_tick(tick, tick.payload.of(&batch.arena), now) {
                TickResult::Taken => {}
                TickResult::Unusable => self.unusable += 1,
                TickResult::Refused => self.refused += 1,
            }
        }
    }

    /// Applies a tick unless a newer one is there. If it does not fit, its market leaves the board: an older price
    /// would pass for the latest.
    fn apply_tick(&mut self, tick: &Tick, payload: &[u8], now: Instant) -> TickResult {
        let Some(topic) = self.topics.get(usize::from(tick.origin.topic.0)).and_then(Option::as_ref) else {
            return TickResult::Unusable;
        };
        let Some(name) = topic.market() else { return TickResult::Unusable };
        self.version += 1;
        let since = now.checked_sub(Duration::from_millis(tick.age_ms.into())).unwrap_or(now);
        if let Some(&index) = self.by_name.get(name) {
            let market = &mut self.markets[index];
            // A tick older than the window counts as forgotten.
            let forgotten = now.saturating_duration_since(market.since) > self.window;
            if forgotten || market.is_older_than(tick) {
                let others = self.bytes - market.tick.len();
                if others + payload.len() > self.bytes_max {
                    self.remove(index);
                    return TickResult::Refused;
                }
                self.bytes = others + payload.len();
                market.take(tick, payload, since, self.version);
                self.oldest = Some(self.oldest.map_or(since, |oldest| oldest.min(since)));
                self.changed = true;
            }
            return TickResult::Taken;
        }
        let has_room = self.markets.len() < MARKETS_MAX && self.bytes + payload.len() <= self.bytes_max;
        if !has_room || name.len() > MARKET_NAME_BYTES_MAX {
            return TickResult::Refused;
        }
        self.bytes += payload.len();
        self.by_name.insert(name.into(), self.markets.len());
        self.markets.push(Market {
            name: name.into(),
            topic: tick.origin.topic,
            origin: tick.origin,
            made: tick.made,
            tick: payload.to_vec(),
            is_framed: false,
            since,
            version: self.version,
        });
        self.oldest = Some(self.oldest.map_or(since, |oldest| oldest.min(since)));
        self.changed = true;
        self.grown = true;
        TickResult::Taken
    }

    /// Takes the markets off the board whose last ticks are of this topic.
    fn drop_topic(&mut self, topic: TopicIndex) {
        while let Some(index) = self.markets.iter().position(|market| market.topic == topic) {
            self.remove(index);
        }
    }

    /// Takes a market off the board.
    fn remove(&mut self, index: usize) {
        let market = self.markets.swap_remove(index);
        self.bytes -= market.tick.len();
        self.by_name.remove(&market.name);
        if let Some(moved) = self.markets.get(index)
            && let Some(place) = self.by_name.get_mut(&moved.name)
        {
            *place = index;
        }
        // The image still has it.
        self.changed = true;
        self.grown = true;
    }

    /// Whether the image is wrong for a client that has seen nothing: it lacks a market, has one that is older than the
    /// window, or newer ticks came and it was not made within [`NEWCOMERS_IMAGE_AGE`].
    #[must_use]
    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        let recent = |published: Instant| now.saturating_duration_since(published) < NEWCOMERS_IMAGE_AGE;
        self.grown || self.has_expired(now) || (self.changed && !self.published.is_some_and(recent))
    }

    /// The version of the image.
    #[must_use]
    pub fn image_version(&self) -> BoardVersion {
        BoardVersion(self.marks.last().map_or(0, |&(version, _)| version))
    }

    /// Whether a flush would publish anything new.
    #[must_use]
    pub(crate) fn has_unpublished(&self) -> bool {
        self.changed
    }

    /// Ticks that could not be used since this was last asked: they can't be mapped.
    pub(crate) fn take_unusable(&mut self) -> u64 {
        std::mem::take(&mut self.unusable)
    }

    /// Ticks for which the board had no room since this was last asked.
    pub(crate) fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    /// Rebuilds the image at `now`: the latest tick of each market.
    pub fn publish(&mut self, now: Instant) {
        self.forget_old(now);
        self.frame_all();
        self.changed = false;
        self.grown = false;
        self.published = Some(now);
        self.markets.sort_unstable_by_key(|market| market.version);
        self.image.clear();
        self.marks.clear();
        for (index, market) in self.markets.iter_mut().enumerate() {
            if let Some(place) = self.by_name.get_mut(&market.name) {
                *place = index;
            }
            self.image.extend_from_slice(&market.tick);
            self.marks.push((market.version, self.image.len()));
        }
        give_back(&mut self.image, IMAGE_SPARE_BYTES);
        give_back(&mut self.scratch, IMAGE_SPARE_BYTES);
    }

    /// Makes the frames that are not made yet. A market whose tick can't be mapped, or whose frame is one too many,
    /// leaves the board.
    fn frame_all(&mut self) {
        let Self { markets, by_name, topics, scratch, bytes, bytes_max, unusable, refused, .. } = self;
        markets.retain_mut(|market| {
            if market.is_framed {
                return true;
            }
            *bytes -= market.tick.len();
            let topic = topics.get(usize::from(market.topic.0)).and_then(Option::as_ref);
            let is_made = topic.is_some_and(|topic| market.make_frame(topic, scratch));
            let kept = is_made && *bytes + market.tick.len() <= *bytes_max;
            if kept {
                *bytes += market.tick.len();
            } else {
                by_name.remove(&market.name);
                *if is_made { &mut *refused } else { &mut *unusable } += 1;
            }
            kept
        });
    }

    /// Drops what is older than the window from the board and its image, whether or not ticks come.
    pub(crate) fn evict(&mut self, now: Instant) {
        if self.has_expired(now) {
            self.publish(now);
        }
    }

    fn has_expired(&self, now: Instant) -> bool {
        self.oldest.is_some_and(|oldest| now.saturating_duration_since(oldest) > self.window)
    }

    /// What the image has that `seen` has not.
    #[must_use]
    pub fn changes_since(&self, seen: BoardVersion) -> BoardChanges<'_> {
        let first = self.marks.partition_point(|&(version, _)| version <= seen.0);
        let start = first.checked_sub(1).map_or(0, |before| self.marks[before].1);
        BoardChanges { bytes: &self.image[start..], marks: &self.marks[first..], start }
    }

    fn forget_old(&mut self, now: Instant) {
        let Self { markets, by_name, bytes, window, .. } = self;
        markets.retain(|market| {
            let kept = now.saturating_duration_since(market.since) <= *window;
            if !kept {
                *bytes -= market.tick.len();
                by_name.remove(&market.name);
            }
            kept
        });
        self.oldest = markets.iter().map(|market| market.since).min();
    }
}

impl Market {
    /// On one partition the offset decides; between partitions the time when they were made does, and between a topic
    /// and its recreated successor, which has another index. Of two ticks without a known time, the one
    /// that came last is the newer one.
    fn is_older_than(&self, tick: &Tick) -> bool {
        match self.shares_partition(tick.origin) {
            true => self.origin.offset < tick.origin.offset,
            false => self.made <= tick.made,
        }
    }

    fn shares_partition(&self, origin: Origin) -> bool {
        (self.origin.topic, self.origin.partition) == (origin.topic, origin.partition)
    }

    fn take(&mut self, tick: &Tick, payload: &[u8], since: Instant, version: u64) {
        // Behind a tick of a known time on its partition, one of an unknown time is at least as new.
        if !self.shares_partition(tick.origin) || tick.made != TickTime::UNKNOWN {
            self.made = tick.made;
        }
        self.topic = tick.origin.topic;
        self.origin = tick.origin;
        refill(&mut self.tick, payload);
        self.is_framed = false;
        self.since = since;
        self.version = version;
    }

    fn make_frame(&mut self, topic: &Topic, scratch: &mut Vec<u8>) -> bool {
        scratch.clear();
        if mapping::map_open(topic, &self.tick, scratch).is_err() {
            return false;
        }
        scratch.push(b'}');
        let (header, header_len) = text_header(scratch.len());
        refill(&mut self.tick, &header[..header_len]);
        self.tick.extend_from_slice(scratch);
        self.is_framed = true;
        true
    }
}

/// Replaces the contents of a buffer.
fn refill(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
    give_back(buffer, TICK_SPARE_BYTES);
}

/// Gives back what a buffer keeps from when it was much fuller, beyond `spare` bytes.
fn give_back(buffer: &mut Vec<u8>, spare: usize) {
    if buffer.capacity() > 4 * buffer.len() + spare {
        buffer.shrink_to(2 * buffer.len());
    }
}

impl BoardChanges<'_> {
    /// Whether everything was seen.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How far `written` bytes come.
    #[must_use]
    pub fn progress(&self, written: usize) -> BoardProgress {
        let until = self.start + written;
        let whole = self.marks.partition_point(|&(_, end)| end <= until);
        let whole_end = whole.checked_sub(1).map_or(self.start, |last| self.marks[last].1);
        let cut = (until > whole_end).then(|| self.marks.get(whole)).flatten();
        let last = cut.or_else(|| self.marks.get(whole.checked_sub(1)?));
        BoardProgress {
            version: last.map(|&(version, _)| BoardVersion(version)),
            frames: whole as u64,
            cut_until: cut.map(|&(_, end)| end - self.start),
        }
    }
}
