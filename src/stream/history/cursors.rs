//! Cursors and positions: where a client goes on that comes back with one, what it is sent until it has passed it, and
//! the cursor of any position.

use super::chains::Chain;
use super::positions::{Lag, Position};
use super::segment::{CURSOR_CLOSE, CURSOR_OPEN, EntryRef, Frame, Segment};
use super::{ChainKey, History, LostEnd, slot};
use crate::protocol::messages::{ResetReason, text_header};
use crate::stream::batch::LogEnd;
use crate::stream::cursor;
use crate::stream::epochs::AtEnd;
use crate::stream::offsets::{Cover, Offsets, PlaceId};
use crate::stream::planted::{Mistake, is_planted};

/// Frames for one client alone, which is not past its cursor yet: each with the larger of the entry's cursor and its own.
#[derive(Debug, Default)]
pub struct Apart {
    /// One after the other.
    pub bytes: Vec<u8>,
    /// Where each ends in `bytes`, and the position after it.
    pub frames: Vec<(usize, Position)>,
    /// Whether the client is past its cursor when it has these: from there on it is sent what all are sent.
    pub passed: bool,
    /// Why the client can't go on from its cursor after all: an event that it lacks is sent to nobody, or it is past its
    /// cursor, and that is not of the log that was read.
    pub refuted: Option<ResetReason>,
    /// Whether the steps were used up before it was clear what comes behind these.
    pub is_unfinished: bool,
    /// The position before the first of them: what the cursor covers is skipped.
    pub from: Position,
    /// Where a cursor is made.
    text: Vec<u8>,
}

/// Where ingest stood at an entry of a segment whose past is prepared.
pub(super) fn stands<'a>(
    segment: &'a Segment,
    offsets: &'a Offsets,
    index: usize,
    after: bool,
) -> impl Fn(PlaceId) -> i64 + Copy + 'a {
    move |place| {
        if is_planted(Mistake::CursorFromHead) {
            return offsets.next(place);
        }
        // Of a partition that was not known then, nothing had been read.
        segment.past(place, index, after).unwrap_or_else(|| offsets.first(place))
    }
}

impl History {
    /// Judges the cursor of a client that comes back to a chain that it watches: what it has, and where it goes on. That is
    /// the next entry that it lacks, or before it, where so many steps do not lead there.
    ///
    /// # Errors
    /// Why it can't go on from there.
    pub fn resume(&mut self, key: ChainKey, cursor: &str, mut steps: usize) -> Result<(Cover, Position), ResetReason> {
        self.list_anew(key);
        let chain = self.chains.get(key).ok_or(ResetReason::Invalid)?;
        let cursor = cursor::decode(cursor, chain.hash).map_err(|_| ResetReason::Invalid)?;
        let newest = |place| self.strays.newest(key, place);
        let mut cover = self.offsets.judge(cursor, &chain.id, &chain.listed, newest)?;
        if chain.listed.places().iter().all(|&place| cover.reaches(place, self.offsets.next(place))) {
            return Ok((cover, self.end(key)));
        }
        let start = Position { number: chain.start, at: chain.first };
        let position = self.skip(key, start, &cover, &mut steps);
        cover.is_sought = steps == 0;
        if !cover.is_sought && self.lacks_unsent(key, position) {
            return Err(ResetReason::Expired);
        }
        Ok((cover, position))
    }

    /// Why a client can't go on from its cursor after all, by what was read since.
    pub fn refuted(&self, cover: &mut Cover) -> Option<ResetReason> {
        cover.follow(&self.offsets);
        cover.refuted(&self.offsets)
    }

    /// Whether a client that comes back has nothing ahead of what was read here: it is like all others when it has been
    /// sent what is due.
    #[must_use]
    pub fn is_past(&self, cover: &Cover) -> bool {
        cover.is_passed(&self.offsets, |place| self.offsets.next(place))
    }

    /// Whether a client's cursor says that it has all that is missing at a place.
    pub fn is_ahead(&self, cover: &mut Cover, place: PlaceId) -> bool {
        // The place may be new here, and known to the cursor.
        cover.follow(&self.offsets);
        cover.reaches(place, self.offsets.low(place))
    }

    /// What the ends of some logs say of a client's cursor; `None` where they are of other partitions.
    pub fn judge_ends(&self, cover: &mut Cover, ends: &[LogEnd]) -> Option<AtEnd> {
        cover.judge_ends(&self.offsets, ends)
    }

    /// What a client has of logs that lost it, it has not from now on; what it has of others stays.
    pub fn let_go_of_lost(&self, cover: &mut Cover) {
        cover.let_go_of_lost(&self.offsets);
    }

    /// A log lost its end: whether a client's cursor is of the log that goes on, and the client lacks nothing of that.
    pub fn outlives(&self, cover: &mut Cover, place: PlaceId, end: LostEnd) -> bool {
        cover.cut(&self.offsets, place, end.from, end.epoch)
    }

    /// Whether a client at a position lacks an event that is sent to nobody.
    fn lacks_unsent(&self, key: ChainKey, position: Position) -> bool {
        self.unsent_below.get(key).is_some_and(|&below| position.number < below)
    }

    /// The window's first entry of a chain, where a client lacks nothing of what has left the window.
    fn behind_the_gone(&mut self, key: ChainKey, cover: &Cover) -> Option<Position> {
        self.list_anew(key);
        let Chain { id, listed, start, first, .. } = self.chains.get(key)?;
        self.offsets.is_whole_for(cover, id, listed).then_some(Position { number: *start, at: *first })
    }

    pub(super) fn is_covered(&self, key: ChainKey, at: EntryRef, cover: &Cover) -> bool {
        let has = || {
            let (origin, chain) = (self.entry(at)?.1.record.origin, self.chains.get(key)?);
            // What its log has lost is of no place, and nobody lacks it.
            let place = self.offsets.place(origin.topic, origin.partition);
            Some(place.is_none_or(|place| cover.has(&self.offsets, &chain.id, place, origin.offset)))
        };
        has().unwrap_or(false)
    }

    /// Makes the frames that are due to a client from its position on, until it is past its cursor, up to a number of bytes
    /// (at least one frame), and in so many steps, which are used up.
    pub fn make_apart(
        &mut self,
        key: ChainKey,
        mut position: Position,
        cover: &mut Cover,
        (bytes_max, steps): (usize, &mut usize),
        out: &mut Apart,
    ) {
        self.list_anew(key);
        cover.follow(&self.offsets);
        out.bytes.clear();
        out.frames.clear();
        out.passed = false;
        (out.refuted, out.is_unfinished) = (None, false);
        if self.lag(key, &mut position) == Lag::Lost {
            position = self.behind_the_gone(key, cover).unwrap_or(position);
        }
        out.from = position;
        if self.lag(key, &mut position) == Lag::Lost {
            return;
        }
        loop {
            position = self.skip(key, position, cover, steps);
            // Whoever has the frame before is past what it need not be sent.
            match out.frames.last_mut() {
                Some((_, after)) => *after = position,
                None => out.from = position,
            }
            let Some(at) = position.at else { break };
            if *steps == 0 {
                out.is_unfinished = true;
                return;
            }
            if std::mem::take(&mut cover.is_sought) && self.lacks_unsent(key, position) {
                out.refuted = Some(ResetReason::Expired);
                return;
            }
            if out.bytes.len() >= bytes_max {
                return;
            }
            *steps = steps.saturating_sub(self.steps_to_frame(at) + self.steps_to_prepare(at) + 1 + cover.places());
            let Some(frame) = self.frame(key, at) else { return };
            self.prepare_past(at);
            let Some((segment, _)) = self.entry(at) else { return };
            if cover.is_passed(&self.offsets, stands(segment, &self.offsets, at.index(), true)) {
                (out.passed, out.refuted) = (true, cover.refuted(&self.offsets));
                return;
            }
            position = self.after(position);
            self.push_apart(key, at, frame, cover, out);
            out.frames.push((out.bytes.len(), position));
        }
        out.passed = self.is_past(cover);
        out.refuted = out.passed.then(|| cover.refuted(&self.offsets)).flatten();
    }

    fn push_apart(&mut self, key: ChainKey, at: EntryRef, frame: Frame, cover: &Cover, out: &mut Apart) {
        let Some(((segment, _), chain)) = self.entry(at).zip(self.chains.get(key)) else { return };
        let Some(message) = segment.open_message(frame) else { return };
        let stands = stands(segment, &self.offsets, at.index(), true);
        let text = &mut out.text;
        text.clear();
        text.extend_from_slice(CURSOR_OPEN);
        let fits = if is_planted(Mistake::EntryCursorWhileCatchingUp) {
            self.offsets.write_cursor(chain.hash, &chain.listed, stands, text)
        } else {
            cover.write_cursor(&self.offsets, chain.hash, &chain.listed, stands, text)
        };
        text.extend_from_slice(CURSOR_CLOSE);
        let (header, header_len) = text_header(message.len() + text.len());
        out.bytes.extend_from_slice(&header[..header_len]);
        out.bytes.extend_from_slice(message);
        out.bytes.extend_from_slice(text);
        self.findings.without_cursor += u64::from(!fits);
    }

    /// Appends the cursor of a position: of a client that has all before it, and what its own cursor covers; where that
    /// would be too long, what stands for it. `false`, and nothing appended, where the position is lost.
    pub fn write_cursor(
        &mut self,
        key: ChainKey,
        mut position: Position,
        cover: Option<&mut Cover>,
        out: &mut Vec<u8>,
    ) -> bool {
        let at = match self.lag(key, &mut position) {
            Lag::Lost => return false,
            Lag::Current => None,
            Lag::Behind => position.at.filter(|_| !is_planted(Mistake::PingFromHead)),
        };
        self.list_anew(key);
        if let Some(at) = at {
            self.prepare_past(at);
        }
        let Some(chain) = self.chains.get(key) else { return false };
        let at = at.and_then(|at| Some((self.entry(at)?.0, at.index())));
        let stands = |place: PlaceId| match at {
            Some((segment, index)) => stands(segment, &self.offsets, index, false)(place),
            None => self.offsets.next(place),
        };
        let fits = match cover {
            Some(cover) => {
                cover.follow(&self.offsets);
                cover.write_cursor(&self.offsets, chain.hash, &chain.listed, stands, out)
            }
            None => self.offsets.write_cursor(chain.hash, &chain.listed, stands, out),
        };
        self.findings.without_cursor += u64::from(!fits);
        true
    }

    /// Readies an entry's segment for being asked where ingest stood.
    pub(super) fn prepare_past(&mut self, at: EntryRef) {
        let Self { segments, offsets, first_segment, .. } = self;
        let Some(segment) = slot(*first_segment, at).and_then(|slot| segments.get_mut(slot)) else { return };
        segment.prepare_past(offsets);
        self.recount(at.segment());
    }
}
