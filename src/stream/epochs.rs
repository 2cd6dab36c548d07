//! The leader epochs under which the records of a partition were written, as far as they were read.
//!
//! Kafka raises the epoch with each election, and stamps each record with the epoch of the leader that wrote it. A leader
//! that is elected without having all records (an unclean election) writes other records at the same offsets, under a higher
//! epoch. So an offset alone does not say which log it belongs to; an offset with the epoch of the last record before it
//! does (KIP-320), since one leader writes one log.

/// Runs of one epoch that are kept for a partition. A partition with more elections than that within one window has
/// other troubles; cursors from before the oldest run are expired then.
const RUNS_MAX: usize = 32;

/// Which epoch the records of one partition have, by offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EpochTimeline {
    /// Ordered by offset, and by epoch.
    runs: Vec<Run>,
}

/// Records of one epoch, up to where the next run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first: i64,
    epoch: i32,
}

/// What a record's epoch says of the records before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// The epoch is that of the record before, or unknown.
    Same,
    /// A later leader wrote it, or it is the first one whose epoch is known.
    Later,
    /// An earlier leader wrote it: what was read before it is not in the same log.
    Earlier,
}

impl EpochTimeline {
    /// Takes in the epoch of the record at an offset, which is above all offsets before. An epoch below 0 is unknown. One
    /// that is [`Met::Earlier`] changes nothing.
    #[inline]
    pub fn note(&mut self, offset: i64, epoch: i32) -> Met {
        match self.runs.last() {
            _ if epoch < 0 => Met::Same,
            Some(last) if last.epoch == epoch => Met::Same,
            Some(last) if last.epoch > epoch => Met::Earlier,
            _ => {
                if self.runs.len() == RUNS_MAX {
                    self.runs.remove(0);
                }
                self.runs.push(Run { first: offset, epoch });
                Met::Later
            }
        }
    }

    /// Forgets all runs that begin at or past an offset: the log was cut there.
    pub fn cut(&mut self, from: i64) {
        self.runs.truncate(self.runs.partition_point(|run| run.first < from));
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.runs.clear();
    }

    /// The epoch of the last record before an offset; `None` where none is known.
    #[must_use]
    #[inline]
    pub fn before(&self, next: i64) -> Option<i32> {
        match self.runs.last() {
            Some(last) if last.first < next => Some(last.epoch),
            Some(_) => self.runs[..self.runs.partition_point(|run| run.first < next)].last().map(|run| run.epoch),
            None => None,
        }
    }

    /// The offset of the first record whose epoch is known.
    #[must_use]
    pub fn first(&self) -> Option<i64> {
        self.runs.first().map(|run| run.first)
    }

    /// Whether a client that has all below `next`, the last of it under `epoch`, has the log that was read here up to
    /// `read`.
    ///
    /// Up to there the epochs before `next` must be the same. Further on, those here must not be higher: records below
    /// `next` would have been replaced. Where nothing before `next` was read here, the first record tells: one leader
    /// writes one log; whether another one had all of it, nobody here knows.
    #[must_use]
    pub fn is_same_log(&self, next: i64, epoch: i32, read: i64) -> bool {
        match self.before(next.min(read)) {
            Some(own) if next <= read => own == epoch,
            Some(own) => own <= epoch,
            None => self.runs.first().is_none_or(|run| run.epoch == epoch),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timeline(runs: &[(i64, i32)]) -> EpochTimeline {
        let mut timeline = EpochTimeline::default();
        for &(first, epoch) in runs {
            assert_eq!(timeline.note(first, epoch), Met::Later);
        }
        timeline
    }

    #[test]
    fn a_record_is_of_the_epoch_before_it_or_of_a_later_one() {
        let mut timeline = timeline(&[(10, 3), (20, 5)]);
        assert_eq!(
            (timeline.note(21, 5), timeline.note(22, -1), timeline.note(23, 4)),
            (Met::Same, Met::Same, Met::Earlier)
        );
        let before = [10, 11, 20, 21, 99].map(|next| timeline.before(next));
        assert_eq!(before, [None, Some(3), Some(3), Some(5), Some(5)]);
        timeline.cut(20);
        assert_eq!((timeline.before(99), timeline.note(20, 7), timeline.before(99)), (Some(3), Met::Later, Some(7)));
    }

    #[test]
    fn of_many_elections_the_last_ones_are_known() {
        let mut timeline = EpochTimeline::default();
        (0..100).for_each(|epoch| _ = timeline.note(i64::from(epoch), epoch));
        assert_eq!((timeline.before(50), timeline.before(90)), (None, Some(89)));
        assert!(!timeline.is_same_log(50, 49, 100), "it may be, but nobody here can tell");
        assert!(timeline.is_same_log(90, 89, 100));
    }

    #[test]
    fn a_log_that_was_cut_and_written_anew_is_told_from_one_that_was_not() {
        // Fifty records of one leader, then another one's, which had them all, or had lost what came behind them.
        let cut = timeline(&[(0, 0), (50, 1)]);
        let same = |next, epoch| cut.is_same_log(next, epoch, 150);
        assert!(!same(100, 0), "also where the log has grown past the cursor");
        assert!(!cut.is_same_log(100, 0, 60), "and where it has not");
        assert!(same(50, 0) && same(20, 0) && same(51, 1) && same(150, 1));
        assert!(!same(51, 0) && !same(50, 1) && !same(20, 1));
        let ahead = |epoch| cut.is_same_log(200, epoch, 150);
        assert!(ahead(1) && ahead(2), "a cursor from a pod that has read more");
        assert!(!ahead(0));
        // A log from a backup, in a cluster whose epochs start anew.
        assert!(!timeline(&[(0, 0)]).is_same_log(100, 4, 150));
    }

    #[test]
    fn a_window_that_begins_at_the_cursor_proves_it_only_by_the_same_leaders_record() {
        let window = timeline(&[(60, 1)]);
        assert!(window.is_same_log(60, 1, 150));
        assert!(!window.is_same_log(60, 0, 150), "the records before it may have been replaced");
        assert!(timeline(&[]).is_same_log(60, 0, 60), "nothing was read that speaks against it");
    }

    /// A log, as what each record was written under; some offsets hold none.
    fn log() -> impl Strategy<Value = Vec<(i64, i32)>> {
        prop::collection::vec((1..4i64, prop::bool::weighted(0.2)), 0..40).prop_map(|steps| {
            let (mut offset, mut epoch) = (-1, 0);
            steps
                .into_iter()
                .map(|(step, elected)| {
                    offset += step;
                    epoch += i32::from(elected);
                    (offset, epoch)
                })
                .collect()
        })
    }

    /// What a pod knows that began at one record and has read so many.
    fn read(log: &[(i64, i32)], begin: usize, count: usize) -> (EpochTimeline, i64, i64) {
        let begin = begin.min(log.len());
        let seen = &log[begin..log.len().min(begin + count)];
        let mut timeline = EpochTimeline::default();
        seen.iter().for_each(|&(offset, epoch)| assert_ne!(timeline.note(offset, epoch), Met::Earlier));
        let low = if begin == 0 { 0 } else { log[begin - 1].0 + 1 };
        (timeline, low, seen.last().map_or(low, |last| last.0 + 1))
    }

    proptest! {
        #[test]
        fn whoever_reads_the_same_log_agrees_whatever_each_has_read(
            log in log(), begins in [0..20usize, 0..20], counts in [0..40usize, 0..40],
        ) {
            let (maker, _, next) = read(&log, begins[0], counts[0]);
            let (judge, low, end) = read(&log, begins[1], counts[1]);
            if let Some(epoch) = maker.before(next) && next > low {
                prop_assert!(judge.is_same_log(next, epoch, end), "{maker:?} {judge:?} {next} {epoch}");
            }
        }

        #[test]
        fn a_cursor_from_a_branch_that_was_lost_is_never_taken_for_one_of_the_log(
            log in log(), kept in 0..40usize, lost in 1..10i64, after in prop::collection::vec(1..4i64, 1..40),
            begin in 0..40usize, count in 0..60usize,
        ) {
            let kept = &log[..kept.min(log.len())];
            let (end, epoch) = kept.last().map_or((0, 0), |&(offset, epoch)| (offset + 1, epoch));
            // The leader went on for some records that its successor never got.
            let (cursor, of) = (end + lost, epoch);
            let mut offset = end - 1;
            let anew = after.iter().map(|step| { offset += step; (offset, epoch + 1) });
            let log: Vec<_> = kept.iter().copied().chain(anew).collect();
            let (judge, low, read) = read(&log, begin, count);
            // A client that lacks nothing of the new log has lost nothing. One that has read nothing past the cut yet decides
            // when it has; one whose window begins later has expired the cursor.
            let lacks_some = end - 1 + after[0] < cursor;
            if lacks_some && cursor >= low && judge.before(read).is_some_and(|last| last > epoch) {
                prop_assert!(!judge.is_same_log(cursor, of, read), "{judge:?} {cursor} {of} {read}");
            }
        }
    }
}
