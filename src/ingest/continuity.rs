//! Decides whether a record continues what was read of its partition, or is a duplicate, follows a gap, or belongs to a
//! truncated and rewritten log. Owns the leader epochs of what was read ([`EpochTimeline`]); [`super::reader`] acts on
//! the result.
//!
//! librdkafka reports that an offset is not on the leader's log any more (KIP-320), but neither where the logs diverge
//! nor always in time: a new client knows no epochs. So reading goes back some way, and the repeated records are
//! compared with what was read.

use std::collections::HashMap;

use crate::ids::TopicIndex;
use crate::limits::REREAD_OFFSETS_MAX;
use crate::stream::batch::{NextOffset, Origin};
use crate::stream::epochs::{EpochOrder, EpochTimeline};

use super::read_offsets::ReadOffsets;
use super::startup::LogRange;

/// What is known of the partitions' logs besides the read offsets.
#[derive(Debug, Default)]
pub(super) struct Continuity {
    /// By the partition's index in [`ReadOffsets`].
    timelines: Vec<EpochTimeline>,
    /// Partitions whose log may have been replaced. The records read again decide it.
    suspects: HashMap<(TopicIndex, i32), SuspectLog>,
    /// By the partition's index: the last range of offsets without a record, such as control records, aborted records, or
    /// a skipped batch.
    quiet: Vec<(i64, i64)>,
}

#[derive(Debug, Default, Clone, Copy)]
struct SuspectLog {
    /// The offset after the last record that was read again unchanged.
    same_below: Option<i64>,
    /// A batch after that was skipped. The logs may diverge in it.
    is_skipped: bool,
}

impl SuspectLog {
    /// The offset below which the log is known to be the one that was read, if it is not the whole log.
    fn diverges_at(self) -> Option<i64> {
        self.same_below.filter(|_| !self.is_skipped)
    }
}

/// How a record relates to those that were read before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordContinuity {
    /// It follows them.
    Next,
    /// It follows them, with these notes.
    Noted(RecordNotes),
    /// It was read before.
    Duplicate,
    /// It does not belong to the log that was read before.
    Replaced(Truncation),
}

/// What a record that follows reveals about its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct RecordNotes {
    /// It is the first of a leader epoch.
    pub(super) epoch: Option<i32>,
    /// The offsets before it have no record.
    pub(super) is_behind_gap: bool,
}

/// Where a truncated log continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Truncation {
    /// The next offset to read. It is not above the read offset.
    pub(super) next: i64,
    /// Records below it may have been replaced as well.
    pub(super) is_below_unknown: bool,
}

/// How reading of a partition continues after its read offset was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Restart {
    /// The offset to read from.
    pub(super) from: i64,
    /// What is certainly lost; `None` if that is not known yet.
    pub(super) lost: Option<LossKind>,
}

/// What a partition lost before it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LossKind {
    /// Records below the offset, which were deleted.
    Deleted(i64),
    /// The end of the log.
    Truncated(Truncation),
}

impl Continuity {
    /// Forgets the partition at this index.
    pub(super) fn forget(&mut self, topic: TopicIndex, index: usize) {
        self.suspects.retain(|&(suspect, _), _| suspect != topic);
        if let Some(timeline) = self.timelines.get_mut(index) {
            timeline.clear();
        }
        if let Some(quiet) = self.quiet.get_mut(index) {
            *quiet = (0, 0);
        }
    }

    /// The epoch of the last record before a partition's read offset.
    pub(super) fn epoch(&self, read_offsets: &ReadOffsets, at: &NextOffset) -> Option<i32> {
        self.timelines.get(read_offsets.index_of(at.topic, at.partition)?)?.before(at.offset)
    }

    /// Judges the next record of a partition. The caller then moves the read offset behind it, unless it is a
    /// [`RecordContinuity::Duplicate`].
    #[inline]
    pub(super) fn record(&mut self, read_offsets: &ReadOffsets, origin: Origin, epoch: i32) -> RecordContinuity {
        let Some(index) = read_offsets.index_of(origin.topic, origin.partition) else { return RecordContinuity::Next };
        let next = read_offsets.all()[index].offset;
        if self.timelines.len() <= index {
            self.timelines.resize_with(read_offsets.all().len(), EpochTimeline::default);
        }
        if origin.offset < next {
            return self.check_duplicate(index, origin, epoch);
        }
        if !self.suspects.is_empty()
            && let Some(truncation) = self.clear(index, (origin.topic, origin.partition), next)
        {
            self.go_on_after(index, truncation, origin.offset, epoch);
            return RecordContinuity::Replaced(truncation);
        }
        let mut notes = RecordNotes::default();
        match self.timelines[index].record(origin.offset, epoch) {
            EpochOrder::Same => {}
            EpochOrder::Later => notes.epoch = Some(epoch),
            EpochOrder::Earlier => {
                let truncation = Truncation { next, is_below_unknown: true };
                self.go_on_after(index, truncation, origin.offset, epoch);
                return RecordContinuity::Replaced(truncation);
            }
        }
        notes.is_behind_gap = origin.offset > next;
        if notes == RecordNotes::default() { RecordContinuity::Next } else { RecordContinuity::Noted(notes) }
    }

    /// Judges a record below the read offset.
    fn check_duplicate(&mut self, index: usize, origin: Origin, epoch: i32) -> RecordContinuity {
        let partition = (origin.topic, origin.partition);
        let own = self.timelines[index].before(origin.offset + 1);
        if epoch < 0 || own.is_none_or(|own| own == epoch) {
            if let Some(suspect) = self.suspects.get_mut(&partition).filter(|_| own.is_some()) {
                *suspect = SuspectLog { same_below: Some(origin.offset + 1), is_skipped: false };
            }
            return RecordContinuity::Duplicate;
        }
        let same_below = self.suspects.remove(&partition).and_then(SuspectLog::diverges_at);
        let truncation =
            Truncation { next: same_below.unwrap_or(origin.offset), is_below_unknown: same_below.is_none() };
        self.go_on_after(index, truncation, origin.offset, epoch);
        RecordContinuity::Replaced(truncation)
    }

    /// Applies a truncation after which the log continues with a record of this epoch.
    fn go_on_after(&mut self, index: usize, truncation: Truncation, offset: i64, epoch: i32) {
        let timeline = &mut self.timelines[index];
        if truncation.is_below_unknown {
            timeline.clear();
        } else {
            timeline.truncate(truncation.next);
        }
        if timeline.record(offset, epoch) == EpochOrder::Earlier {
            timeline.begin_at(offset, epoch);
        }
    }

    /// Judges the end of a partition that was read to its end: returns the truncation that it reveals, if any.
    pub(super) fn end(
        &mut self,
        read_offsets: &ReadOffsets,
        topic: TopicIndex,
        partition: i32,
        end: i64,
    ) -> Option<Truncation> {
        let index = read_offsets.index_of(topic, partition)?;
        let next = read_offsets.all()[index].offset;
        if end >= next {
            if end > next {
                self.note_quiet(read_offsets, index, end);
            }
            return self.clear(index, (topic, partition), next);
        }
        let last = self.behind_last(index, next);
        let same_below = self.suspects.remove(&(topic, partition)).and_then(SuspectLog::diverges_at);
        let truncation = Truncation {
            next: same_below.filter(|&same| same < last).unwrap_or(end),
            is_below_unknown: same_below.is_none(),
        };
        if let Some(timeline) = self.timelines.get_mut(index) {
            timeline.truncate(truncation.next);
        }
        Some(truncation)
    }

    /// The offset behind the last record that was read of a partition whose read offset is `next`, or a higher one up
    /// to `next`.
    fn behind_last(&self, index: usize, next: i64) -> i64 {
        self.quiet.get(index).filter(|(_, to)| *to == next).map_or(next, |(from, _)| *from)
    }

    /// Clears a suspicion once all records below the read offset were read again. If the last of them is the record
    /// that was read there before, nothing was replaced.
    fn clear(&mut self, index: usize, partition: (TopicIndex, i32), next: i64) -> Option<Truncation> {
        let suspect = self.suspects.remove(&partition)?;
        if suspect.same_below.is_some_and(|same| same >= self.behind_last(index, next)) {
            return None;
        }
        let diverges_at = suspect.diverges_at();
        Some(Truncation { next: diverges_at.unwrap_or(next), is_below_unknown: diverges_at.is_none() })
    }

    /// Whether a partition's records below its read offset are being read again.
    pub(super) fn is_rereading(&self, topic: TopicIndex, partition: i32) -> bool {
        self.suspects.contains_key(&(topic, partition))
    }

    /// A batch among the records that are read again was skipped.
    pub(super) fn skipped_below(&mut self, topic: TopicIndex, partition: i32) {
        if let Some(suspect) = self.suspects.get_mut(&(topic, partition)) {
            suspect.is_skipped = true;
        }
    }

    /// A partition's read offset moves to this offset without a record.
    pub(super) fn skipped(&mut self, read_offsets: &ReadOffsets, topic: TopicIndex, partition: i32, to: i64) {
        if let Some(index) = read_offsets.index_of(topic, partition) {
            self.note_quiet(read_offsets, index, to);
        }
    }

    fn note_quiet(&mut self, read_offsets: &ReadOffsets, index: usize, to: i64) {
        let from = self.behind_last(index, read_offsets.all()[index].offset);
        if self.quiet.len() <= index {
            self.quiet.resize(read_offsets.all().len(), (0, 0));
        }
        self.quiet[index] = (from, to);
    }

    /// Decides how reading continues in a partition whose read offset was refused and whose log has this range.
    pub(super) fn restart(
        &mut self,
        read_offsets: &ReadOffsets,
        topic: TopicIndex,
        partition: i32,
        range: LogRange,
    ) -> Option<Restart> {
        let index = read_offsets.index_of(topic, partition)?;
        let next = read_offsets.all()[index].offset;
        self.suspects.remove(&(topic, partition));
        if next < range.beginning {
            return Some(Restart { from: range.beginning, lost: Some(LossKind::Deleted(range.beginning)) });
        }
        let timeline = self.timelines.get_mut(index);
        let first = timeline.as_ref().and_then(|timeline| timeline.first());
        if let Some(first) = first.filter(|&first| first < next.min(range.end)) {
            let back = first.max(next.saturating_sub(REREAD_OFFSETS_MAX));
            self.suspects.insert((topic, partition), SuspectLog::default());
            return Some(Restart { from: back.min(range.end).max(range.beginning), lost: None });
        }
        // No record is left whose leader is known, so any record below may have been replaced.
        if let Some(timeline) = timeline {
            timeline.clear();
        }
        let from = range.resume_from(next);
        Some(Restart { from, lost: Some(LossKind::Truncated(Truncation { next: from, is_below_unknown: true })) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: TopicIndex = TopicIndex(0);

    /// One partition, as the reader goes through it.
    #[derive(Default)]
    struct Story {
        continuity: Continuity,
        read_offsets: ReadOffsets,
    }

    impl Story {
        /// Has read a log up to its end.
        fn of(log: &[(i64, i32)]) -> Self {
            let mut story = Self::default();
            story.read_offsets.set(EVENTS, 0, log.first().map_or(0, |&(offset, _)| offset));
            for &(offset, epoch) in log {
                assert!(matches!(story.record(offset, epoch), RecordContinuity::Next | RecordContinuity::Noted(_)));
            }
            story
        }

        fn record(&mut self, offset: i64, epoch: i32) -> RecordContinuity {
            let origin = Origin { topic: EVENTS, partition: 0, offset };
            let course = self.continuity.record(&self.read_offsets, origin, epoch);
            if course != RecordContinuity::Duplicate {
                self.read_offsets.set(EVENTS, 0, offset + 1);
            }
            course
        }

        fn end(&mut self, end: i64) -> Option<Truncation> {
            let truncation = self.continuity.end(&self.read_offsets, EVENTS, 0, end);
            self.read_offsets.set(EVENTS, 0, end);
            truncation
        }

        fn restart(&mut self, beginning: i64, end: i64) -> Restart {
            self.continuity.restart(&self.read_offsets, EVENTS, 0, LogRange { beginning, end }).unwrap()
        }
    }

    /// Offsets that one leader wrote.
    fn written(offsets: std::ops::Range<i64>, epoch: i32) -> Vec<(i64, i32)> {
        offsets.map(|offset| (offset, epoch)).collect()
    }

    #[test]
    fn a_leaders_first_record_is_noted_and_no_other() {
        let mut story = Story::default();
        story.read_offsets.set(EVENTS, 0, 0);
        let epoch = |epoch| RecordContinuity::Noted(RecordNotes { epoch: Some(epoch), ..RecordNotes::default() });
        let behind_gap = RecordContinuity::Noted(RecordNotes { is_behind_gap: true, ..RecordNotes::default() });
        let courses =
            [(0, 2), (1, 2), (4, 2), (5, 3), (6, -1), (7, 3)].map(|(offset, epoch)| story.record(offset, epoch));
        assert_eq!(
            courses,
            [epoch(2), RecordContinuity::Next, behind_gap, epoch(3), RecordContinuity::Next, RecordContinuity::Next]
        );
    }

    #[test]
    fn a_log_that_parts_from_what_was_read_is_found_by_reading_again() {
        let mut story = Story::of(&written(0..100, 0));
        assert_eq!(story.restart(0, 150), Restart { from: 0, lost: None });
        assert!((0..50).all(|offset| story.record(offset, 0) == RecordContinuity::Duplicate));
        let truncation = Truncation { next: 50, is_below_unknown: false };
        assert_eq!(story.record(50, 1), RecordContinuity::Replaced(truncation));
        assert_eq!(story.record(51, 1), RecordContinuity::Next);
    }

    #[test]
    fn a_log_that_ends_below_what_was_read_goes_on_there() {
        let mut story = Story::of(&written(0..100, 0));
        assert_eq!(story.restart(0, 50), Restart { from: 0, lost: None });
        assert!((0..50).all(|offset| story.record(offset, 0) == RecordContinuity::Duplicate));
        assert_eq!(story.end(50), Some(Truncation { next: 50, is_below_unknown: false }));
        assert_eq!(
            story.record(50, 1),
            RecordContinuity::Noted(RecordNotes { epoch: Some(1), ..RecordNotes::default() })
        );
    }

    #[test]
    fn what_lies_below_the_records_that_are_read_again_stays_unknown() {
        let mut story = Story::of(&written(0..20_000, 0));
        assert_eq!(story.restart(0, 30_000).from, 10_000);
        assert_eq!(
            story.record(10_000, 1),
            RecordContinuity::Replaced(Truncation { next: 10_000, is_below_unknown: true })
        );
        // All that was read is gone.
        let mut story = Story::of(&written(500..600, 0));
        let truncation = Truncation { next: 90, is_below_unknown: true };
        assert_eq!(story.restart(0, 90), Restart { from: 90, lost: Some(LossKind::Truncated(truncation)) });
        story.read_offsets.set(EVENTS, 0, 90);
        assert_eq!(
            (story.end(90), story.record(90, 1)),
            (None, { RecordContinuity::Noted(RecordNotes { epoch: Some(1), ..RecordNotes::default() }) })
        );
    }

    #[test]
    fn a_refused_position_whose_last_record_is_still_there_lost_nothing() {
        let mut story = Story::of(&written(0..100, 0));
        story.restart(0, 100);
        assert!((0..100).all(|offset| story.record(offset, 0) == RecordContinuity::Duplicate));
        assert_eq!(story.end(100), None);
        story.restart(0, 100);
        assert!((0..99).all(|offset| story.record(offset, 0) == RecordContinuity::Duplicate));
        let last = Truncation { next: 99, is_below_unknown: false };
        assert_eq!(story.record(100, 0), RecordContinuity::Replaced(last), "the last one did not come again");
        story.restart(0, 101);
        let unknown = Truncation { next: 101, is_below_unknown: true };
        assert_eq!(story.record(101, 0), RecordContinuity::Replaced(unknown), "none did");
    }

    #[test]
    fn control_records_at_the_end_of_a_log_are_nothing_that_it_lost() {
        let mut story = Story::of(&written(0..100, 0));
        assert_eq!([story.end(100), story.end(103), story.end(110)], [None; 3]);
        for again in [true, false] {
            assert_eq!(story.restart(0, 110).from, 0);
            assert!((0..100).all(|offset| story.record(offset, 0) == RecordContinuity::Duplicate));
            if again {
                assert_eq!(story.end(110), None);
            } else {
                assert_eq!(story.record(110, 0), RecordContinuity::Next);
            }
        }
        // Behind the last record that is still there the log was truncation, and all that it has there is such.
        story.end(120);
        story.restart(0, 115);
        assert!((0..105).all(|offset| story.record(offset, 0) == RecordContinuity::Duplicate));
        assert_eq!(story.end(115), Some(Truncation { next: 105, is_below_unknown: false }));
        // And here the records are all there.
        let mut story = Story::of(&written(0..100, 0));
        story.end(120);
        story.restart(0, 110);
        assert!((0..100).all(|offset| story.record(offset, 0) == RecordContinuity::Duplicate));
        assert_eq!(story.end(110), Some(Truncation { next: 110, is_below_unknown: false }));
    }

    #[test]
    fn records_that_were_deleted_unread_are_passed_over() {
        let mut story = Story::of(&written(0..10, 0));
        assert_eq!(story.restart(50, 90), Restart { from: 50, lost: Some(LossKind::Deleted(50)) });
        let mut unknown = Story::of(&written(0..10, -1));
        let truncated = |next| Some(LossKind::Truncated(Truncation { next, is_below_unknown: true }));
        assert_eq!(
            unknown.restart(0, 90),
            Restart { from: 10, lost: truncated(10) },
            "it may have been truncation and have grown again"
        );
        assert_eq!(unknown.restart(0, 5), Restart { from: 5, lost: truncated(5) });
    }

    #[test]
    fn an_earlier_leaders_record_is_of_another_log() {
        let mut story = Story::of(&written(0..10, 7));
        assert_eq!(story.record(10, 2), RecordContinuity::Replaced(Truncation { next: 10, is_below_unknown: true }));
        assert_eq!(story.record(11, 2), RecordContinuity::Next, "from there on it is this one");
    }

    #[test]
    fn a_client_made_anew_that_begins_at_a_record_that_was_read_proves_the_log() {
        let mut story = Story::of(&written(0..10, 0));
        assert_eq!((story.record(9, 0), story.record(10, 0)), (RecordContinuity::Duplicate, RecordContinuity::Next));
        assert_eq!(story.record(10, 1), RecordContinuity::Replaced(Truncation { next: 10, is_below_unknown: true }));
    }
}
