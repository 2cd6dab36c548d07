//! Cursors and positions: where a client goes on that comes back with one, what it is sent until it has passed it, and
//! the cursor of any position.

use super::assessment_logs::AssessmentLog;
use super::positions::{Position, PositionStatus};
use super::segment::{CURSOR_CLOSE, CURSOR_OPEN, EntryFrame, EntryRef, Segment};
use super::{AssessmentLogKey, History, LostEnd};
use crate::protocol::messages::{ResetReason, text_header};
use crate::stream::batch::PartitionEnds;
use crate::stream::cursor;
use crate::stream::fault_injection::{InjectedFault, is_injected};
use crate::stream::offsets::{CursorVerdict, LogEnds, Offsets, PartitionId, ResumeFilter};

/// Frames for one client that has not passed its cursor yet, each with the larger of the entry's cursor and the
/// client's own.
#[derive(Debug, Default)]
pub(crate) struct CatchUpFrames {
    /// One after the other.
    pub(crate) bytes: Vec<u8>,
    /// Where each ends in `bytes`, and the position after it.
    pub(crate) frames: Vec<(usize, Position)>,
    /// Whether the client is past its cursor when it has these: from there on it is sent what all are sent.
    pub(crate) passed: bool,
    /// What speaks against the client's cursor after all: an event that it lacks can't be sent, or the client has passed
    /// its cursor, and that is not of the log that was read.
    pub(crate) verdict: CursorVerdict,
    /// Whether the steps were used up before it was clear what comes behind these.
    pub(crate) is_unfinished: bool,
    /// The position before the first frame; entries covered by the cursor are skipped.
    pub(crate) from: Position,
    /// Where a cursor is made.
    text: Vec<u8>,
}

/// The read offsets at an entry of a segment whose timeline is prepared.
pub(super) fn offset_lookup<'a>(
    segment: &'a Segment,
    offsets: &'a Offsets,
    index: usize,
    after: bool,
) -> impl Fn(PartitionId) -> i64 + Copy + 'a {
    move |partition_id| {
        if is_injected(InjectedFault::CursorFromHead) {
            return offsets.next(partition_id);
        }
        // A partition that was not known then: nothing of it had been read.
        segment.offset_at(partition_id, index, after).unwrap_or_else(|| offsets.first(partition_id))
    }
}

impl History {
    /// Judges a resume cursor: returns what the client has and where it continues.
    ///
    /// # Errors
    /// Why it can't go on from there.
    pub fn resume(
        &mut self,
        key: AssessmentLogKey,
        cursor: &str,
        mut steps: usize,
    ) -> Result<(ResumeFilter, Position), ResetReason> {
        self.refresh_listed(key);
        let log = self.logs.get(key).ok_or(ResetReason::Invalid)?;
        let cursor = cursor::decode(cursor, log.hash).map_err(|_| ResetReason::Invalid)?;
        let newest = |partition_id| self.misplaced.newest(key, partition_id);
        let mut resume_filter = self.offsets.judge(cursor, &log.id, &log.listed, newest)?;
        if log
            .listed
            .partition_ids()
            .iter()
            .all(|&partition_id| resume_filter.reaches(partition_id, self.offsets.next(partition_id)))
        {
            return Ok((resume_filter, self.end(key)));
        }
        let start = Position { number: log.start, at: log.first };
        let position = self.skip(key, start, &resume_filter, &mut steps);
        resume_filter.is_sought = steps == 0;
        if !resume_filter.is_sought && self.lacks_unsent(key, position) {
            return Err(ResetReason::Expired);
        }
        Ok((resume_filter, position))
    }

    /// Judges a client's cursor again by what was read since, and by the ends of some logs.
    pub(crate) fn recheck(&self, resume_filter: &mut ResumeFilter, ends: Option<&LogEnds>) -> CursorVerdict {
        resume_filter.recheck(&self.offsets, ends)
    }

    /// Looks up the partitions of reported ends.
    #[must_use]
    pub(crate) fn index_ends(&self, reported: &PartitionEnds) -> LogEnds {
        self.offsets.index_ends(reported)
    }

    /// A client's cursor waits no longer for topics that this pod does not read.
    pub(crate) fn forget_unread_topics(&self, resume_filter: &mut ResumeFilter) {
        resume_filter.forget_unread_topics(&self.offsets);
    }

    /// Whether a client that comes back has nothing ahead of what was read here: it is like all others when it has been
    /// sent what is due.
    #[must_use]
    pub(crate) fn is_caught_up(&self, resume_filter: &ResumeFilter) -> bool {
        resume_filter.is_exhausted(&self.offsets, |partition_id| self.offsets.next(partition_id))
    }

    /// Whether a client's cursor says that it has everything that a partition lacks.
    pub(crate) fn is_ahead(&self, resume_filter: &mut ResumeFilter, partition_id: PartitionId) -> bool {
        // The partition may be new here, and known to the cursor.
        resume_filter.refresh(&self.offsets);
        resume_filter.reaches(partition_id, self.offsets.complete_from(partition_id))
    }

    /// A log lost its end: whether a client's cursor is of the log that goes on, and the client lacks nothing of that.
    pub(crate) fn outlives(&self, resume_filter: &mut ResumeFilter, partition_id: PartitionId, end: LostEnd) -> bool {
        resume_filter.truncate(&self.offsets, partition_id, end.from, end.epoch)
    }

    /// Whether a client at a position lacks an event that can't be sent.
    fn lacks_unsent(&self, key: AssessmentLogKey, position: Position) -> bool {
        self.unsent_below.get(key).is_some_and(|&below| position.number < below)
    }

    /// A log's first entry in the window, if a client lacks nothing of what has left the window.
    fn behind_the_gone(&mut self, key: AssessmentLogKey, resume_filter: &ResumeFilter) -> Option<Position> {
        self.refresh_listed(key);
        let AssessmentLog { listed, start, first, .. } = self.logs.get(key)?;
        self.offsets.is_complete_for(resume_filter, listed).then_some(Position { number: *start, at: *first })
    }

    pub(super) fn is_covered(&self, at: EntryRef, resume_filter: &ResumeFilter) -> bool {
        let Some((_, entry)) = self.segments.entry(at) else { return false };
        let origin = entry.record.origin;
        // A record that its log lost has no partition; no client lacks it.
        let partition_id = self.offsets.partition_id(origin.topic, origin.partition);
        partition_id.is_none_or(|partition_id| resume_filter.contains(&self.offsets, partition_id, origin.offset))
    }

    /// Makes the frames that are due to a client from its position on, until it is past its cursor: at least one frame,
    /// up to a number of bytes. Uses up the steps.
    pub(crate) fn make_catch_up_frames(
        &mut self,
        key: AssessmentLogKey,
        mut position: Position,
        resume_filter: &mut ResumeFilter,
        (bytes_max, steps): (usize, &mut usize),
        out: &mut CatchUpFrames,
    ) {
        self.refresh_listed(key);
        resume_filter.refresh(&self.offsets);
        out.bytes.clear();
        out.frames.clear();
        out.passed = false;
        (out.verdict, out.is_unfinished) = (CursorVerdict::Open, false);
        if self.locate(key, &mut position) == PositionStatus::Lost {
            position = self.behind_the_gone(key, resume_filter).unwrap_or(position);
        }
        out.from = position;
        if self.locate(key, &mut position) == PositionStatus::Lost {
            return;
        }
        loop {
            position = self.skip(key, position, resume_filter, steps);
            // The client does not need this entry, so the previous frame's position moves past it.
            match out.frames.last_mut() {
                Some((_, after)) => *after = position,
                None => out.from = position,
            }
            let Some(at) = position.at else { break };
            if *steps == 0 {
                out.is_unfinished = true;
                return;
            }
            if std::mem::take(&mut resume_filter.is_sought) && self.lacks_unsent(key, position) {
                out.verdict = CursorVerdict::Lost;
                return;
            }
            if out.bytes.len() >= bytes_max {
                return;
            }
            *steps = steps
                .saturating_sub(self.steps_to_frame(at) + self.steps_to_prepare(at) + 1 + resume_filter.listed_count());
            let Some(frame) = self.frame(key, at) else { return };
            self.prepare_timeline(at);
            let Some((segment, _)) = self.segments.entry(at) else { return };
            if resume_filter.is_exhausted(&self.offsets, offset_lookup(segment, &self.offsets, at.index(), true)) {
                (out.passed, out.verdict) = (true, resume_filter.recheck(&self.offsets, None));
                return;
            }
            position = self.after(position);
            self.push_catch_up_frame(key, at, frame, resume_filter, out);
            out.frames.push((out.bytes.len(), position));
        }
        if self.is_caught_up(resume_filter) {
            (out.passed, out.verdict) = (true, resume_filter.recheck(&self.offsets, None));
        }
    }

    fn push_catch_up_frame(
        &mut self,
        key: AssessmentLogKey,
        at: EntryRef,
        frame: EntryFrame,
        resume_filter: &ResumeFilter,
        out: &mut CatchUpFrames,
    ) {
        let Some(((segment, _), log)) = self.segments.entry(at).zip(self.logs.get(key)) else { return };
        let Some(message) = segment.open_message(frame) else { return };
        let stands = offset_lookup(segment, &self.offsets, at.index(), true);
        let text = &mut out.text;
        text.clear();
        text.extend_from_slice(CURSOR_OPEN);
        let fits = if is_injected(InjectedFault::EntryCursorWhileCatchingUp) {
            self.offsets.write_cursor(log.hash, &log.listed, stands, text)
        } else {
            resume_filter.write_cursor(&self.offsets, log.hash, &log.listed, stands, text)
        };
        text.extend_from_slice(CURSOR_CLOSE);
        let (header, header_len) = text_header(message.len() + text.len());
        out.bytes.extend_from_slice(&header[..header_len]);
        out.bytes.extend_from_slice(message);
        out.bytes.extend_from_slice(text);
        self.findings.without_cursor += u64::from(!fits);
    }

    /// Appends the cursor of a position: of a client that has all before it, and what its own cursor covers; where that
    /// would be too long, what stands for it. `false`, and nothing appended, where the position is lost. Uses up the
    /// steps that it takes, though it takes them in any case.
    pub fn write_cursor(
        &mut self,
        key: AssessmentLogKey,
        mut position: Position,
        resume_filter: Option<&mut ResumeFilter>,
        steps: &mut usize,
        out: &mut Vec<u8>,
    ) -> bool {
        let at = match self.locate(key, &mut position) {
            PositionStatus::Lost => return false,
            PositionStatus::Current => None,
            PositionStatus::Behind => position.at.filter(|_| !is_injected(InjectedFault::PingFromHead)),
        };
        self.refresh_listed(key);
        if let Some(at) = at {
            *steps = steps.saturating_sub(self.steps_to_prepare(at));
            self.prepare_timeline(at);
        }
        let Some(log) = self.logs.get(key) else { return false };
        let at = at.and_then(|at| Some((self.segments.entry(at)?.0, at.index())));
        let stands = |partition_id: PartitionId| match at {
            Some((segment, index)) => offset_lookup(segment, &self.offsets, index, false)(partition_id),
            None => self.offsets.next(partition_id),
        };
        let fits = match resume_filter {
            Some(resume_filter) => {
                resume_filter.refresh(&self.offsets);
                resume_filter.write_cursor(&self.offsets, log.hash, &log.listed, stands, out)
            }
            None => self.offsets.write_cursor(log.hash, &log.listed, stands, out),
        };
        self.findings.without_cursor += u64::from(!fits);
        true
    }

    /// Readies an entry's segment for being asked where ingest stood.
    pub(super) fn prepare_timeline(&mut self, at: EntryRef) {
        let Some(segment) = self.segments.segment_mut(at.segment()) else { return };
        segment.prepare_timeline(&self.offsets);
        self.update_cost(at.segment());
    }
}
