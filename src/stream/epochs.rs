//! The leader epochs under which the records of a partition were written, as far as they were read; and the rule by
//! which a cursor is judged by them.
//!
//! Kafka raises the epoch with each election, and stamps each record with the epoch of the leader that wrote it. A
//! leader that is elected without having all records (an unclean election) writes other records at the same offsets,
//! under a higher epoch. So an offset alone does not say which log it belongs to; an offset with the epoch of the last
//! record before it does (KIP-320), since one leader writes one log.
//!
//! A client stands at `next`, behind a record of `epoch`. This pod has read up to `read`; `own` is the epoch of the
//! last record that it knows before `next`, and `last` that of the last one that it knows at all.
//!
//! | what is known here | the client's `next` | it is | and so |
//! |---|---|---|---|
//! | no epoch | any | [`Branch::Same`], [`Branch::Ahead`] | nothing speaks against it |
//! | `own` = `epoch` | up to `read` | [`Branch::Same`] | it is sent what lies behind `next` |
//! | `own` = `epoch` | past `read` | [`Branch::Ahead`] | this pod reads up to it, or finds that the log ends below it |
//! | nothing before `next`; what comes first is of `epoch` | any | as if `own` = `epoch` | |
//! | `last` < `epoch` | past `read` | [`Branch::Ahead`] | likewise |
//! | `last` < `epoch` | up to `read` | [`Branch::Newer`] | this pod has read a log that lost its end since, and does not know so yet: the client is sent none of it, until it does |
//! | anything else | any | [`Branch::Lost`] | `reset: expired` |
//! | the log lost its end, and the client counts what is lost; its `epoch` is none, or not above those of what is lost | any | [`Branch::Lost`] | `reset: expired` |
//!
//! The leader reports where its log ends. While this pod knows no more, that decides about cursors that are ahead or of
//! a newer log ([`judge_end`]). A pod that ran during the election and one that started later follow the same rule;
//! they differ in what they know.

/// Runs of one epoch that are kept for a partition. A partition with more elections than that within one window has
/// other troubles; cursors from before the oldest run are expired then.
const RUNS_MAX: usize = 32;

/// Lost ends that are kept apart. Of more than these, the oldest count as one.
const LOST_MAX: usize = 32;

/// Which epoch the records of one partition have, by offset, and what ends its log lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EpochTimeline {
    /// Ordered by offset, and by epoch.
    runs: Vec<EpochRun>,
    /// In the order in which they were found.
    lost: Vec<LostEnd>,
}

/// Records of one epoch, up to where the next run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EpochRun {
    first: i64,
    epoch: i32,
}

/// Offsets that were written twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LostEnd {
    /// A client whose next offset is above `from`, and not above `to`, has some of them.
    from: i64,
    to: i64,
    /// Those that are lost are of this epoch or lower ones; `None` where that is not known.
    epoch: Option<i32>,
}

/// What a record's epoch says of the records before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EpochOrder {
    /// The epoch is that of the record before, or unknown.
    Same,
    /// A later leader wrote it, or it is the first one whose epoch is known.
    Later,
    /// An earlier leader wrote it: what was read before it is not in the same log.
    Earlier,
}

/// How the log that a client has stands to the one that was read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Branch {
    /// It is the same log, and was read here as far as the client has it.
    Same,
    /// Nothing speaks against it, and it was not read so far here.
    Ahead,
    /// A leader wrote it that is later than all that were read here, at offsets that were read here: what was read
    /// there is lost, which this pod has not learned yet.
    Newer,
    /// It lost its end, and the client has some of that.
    Lost,
}

/// What the end of a log, as its leader reported it, says of a cursor from before the query. The worst comes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AtEnd {
    /// The log has all that the client has.
    Within,
    /// The log ends below what the client has, of the same leader epoch, or of an unknown one.
    Beyond,
    /// An earlier leader reported it: it has not learned of the election yet. Or the topic's epochs started again.
    Earlier,
    /// A later leader's log ends below what the client has: that is certain.
    Lost,
}

/// Judges a client whose next offset is `next`, after a record of `epoch`, by the end of a log that the leader of
/// `leader_epoch` reported.
#[must_use]
pub(crate) fn judge_end(next: i64, epoch: Option<i32>, end: i64, leader_epoch: Option<i32>) -> AtEnd {
    match epoch.zip(leader_epoch) {
        Some((epoch, leader)) if leader < epoch => AtEnd::Earlier,
        _ if next <= end => AtEnd::Within,
        Some((epoch, leader)) if leader > epoch => AtEnd::Lost,
        _ => AtEnd::Beyond,
    }
}

impl LostEnd {
    fn is_counted_by(&self, next: i64, epoch: Option<i32>) -> bool {
        let is_later = epoch.zip(self.epoch).is_some_and(|(epoch, lost)| epoch > lost);
        self.from < next && next <= self.to && !is_later
    }
}

impl EpochTimeline {
    /// Takes in the epoch of the record at an offset, which is above all offsets before. An epoch below 0 is unknown.
    /// One that is [`EpochOrder::Earlier`] changes nothing.
    #[inline]
    pub(crate) fn record(&mut self, offset: i64, epoch: i32) -> EpochOrder {
        match self.runs.last() {
            _ if epoch < 0 => EpochOrder::Same,
            Some(last) if last.epoch == epoch => EpochOrder::Same,
            Some(last) if last.epoch > epoch => EpochOrder::Earlier,
            _ => {
                debug_assert!(
                    self.runs.last().is_none_or(|last| last.first < offset),
                    "{offset} after {:?}: a truncation precedes what follows it",
                    self.runs
                );
                if self.runs.len() == RUNS_MAX {
                    self.runs.remove(0);
                }
                self.runs.push(EpochRun { first: offset, epoch });
                EpochOrder::Later
            }
        }
    }

    /// Begins anew with the record at an offset: its epoch is lower than those of the records before it, which are
    /// therefore of another log.
    pub(crate) fn begin_at(&mut self, offset: i64, epoch: i32) {
        self.runs.clear();
        self.record(offset, epoch);
    }

    /// Forgets all runs that begin at or after an offset: the log was truncated there.
    pub(crate) fn truncate(&mut self, from: i64) {
        self.runs.truncate(self.runs.partition_point(|run| run.first < from));
    }

    /// Forgets all runs.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }

    /// The log lost what was read from an offset on, up to `read`; what lies below may be replaced, too, where
    /// `is_below_unknown`. What was read below `low` is not in the window any more.
    pub(crate) fn lose_end(&mut self, from: i64, read: i64, is_below_unknown: bool, low: i64) {
        self.lost.retain(|lost| lost.to >= low);
        let epoch = self.last();
        if is_below_unknown {
            self.clear();
        } else {
            self.truncate(from);
        }
        // Who stands where the logs part counts nothing of what is lost, if that is where they part.
        let from = if is_below_unknown { from.saturating_sub(1) } else { from };
        self.lost.push(LostEnd { from, to: read, epoch });
        if self.lost.len() > LOST_MAX {
            let oldest = self.lost.remove(0);
            let next = &mut self.lost[0];
            (next.from, next.to) = (next.from.min(oldest.from), next.to.max(oldest.to));
            next.epoch = next.epoch.zip(oldest.epoch).map(|(a, b)| a.max(b));
        }
    }

    /// The epoch of the last record before an offset; `None` where none is known.
    #[must_use]
    #[inline]
    pub(crate) fn before(&self, next: i64) -> Option<i32> {
        match self.runs.last() {
            Some(last) if last.first < next => Some(last.epoch),
            Some(_) => self.runs[..self.runs.partition_point(|run| run.first < next)].last().map(|run| run.epoch),
            None => None,
        }
    }

    /// The offset of the first record whose epoch is known.
    #[must_use]
    pub(crate) fn first(&self) -> Option<i64> {
        self.runs.first().map(|run| run.first)
    }

    /// The epoch of the last leader that is known.
    #[must_use]
    #[inline]
    pub(crate) fn last(&self) -> Option<i32> {
        self.runs.last().map(|run| run.epoch)
    }

    /// Judges a client that stands at `next`, behind a record of `epoch`, by what was read here, up to `read`: the
    /// table above.
    #[must_use]
    pub(crate) fn judge(&self, next: i64, epoch: Option<i32>, read: i64) -> Branch {
        // Where of what is lost no leader was known, the same leader's record proves that a client counts none of it.
        let is_proven = |lost: &LostEnd| lost.epoch.is_none() && epoch.is_some() && self.before(next) == epoch;
        if self.lost.iter().any(|lost| lost.is_counted_by(next, epoch) && !is_proven(lost)) {
            return Branch::Lost;
        }
        let in_this_log = if next > read { Branch::Ahead } else { Branch::Same };
        let Some((epoch, (first, last))) = epoch.zip(self.runs.first().zip(self.runs.last())) else {
            return in_this_log;
        };
        // Where nothing before `next` was read, the first record tells: one leader writes one log. Whether another one
        // had all of it is unknown here.
        match self.before(next).unwrap_or(first.epoch) {
            own if own == epoch => in_this_log,
            _ if last.epoch >= epoch => Branch::Lost,
            _ if next > read => Branch::Ahead,
            _ => Branch::Newer,
        }
    }

    /// Whether that is [`Branch::Newer`], for one that is not [`Branch::Lost`].
    #[must_use]
    #[inline]
    pub(crate) fn is_older_than(&self, next: i64, epoch: Option<i32>, read: i64) -> bool {
        next <= read && epoch.zip(self.last()).is_some_and(|(epoch, last)| epoch > last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timeline(runs: &[(i64, i32)]) -> EpochTimeline {
        let mut timeline = EpochTimeline::default();
        for &(first, epoch) in runs {
            assert_eq!(timeline.record(first, epoch), EpochOrder::Later);
        }
        timeline
    }

    #[test]
    fn a_record_is_of_the_epoch_before_it_or_of_a_later_one() {
        let mut timeline = timeline(&[(10, 3), (20, 5)]);
        assert_eq!(
            (timeline.record(21, 5), timeline.record(22, -1), timeline.record(23, 4)),
            (EpochOrder::Same, EpochOrder::Same, EpochOrder::Earlier)
        );
        let before = [10, 11, 20, 21, 99].map(|next| timeline.before(next));
        assert_eq!(before, [None, Some(3), Some(3), Some(5), Some(5)]);
        timeline.truncate(20);
        assert_eq!(
            (timeline.before(99), timeline.record(20, 7), timeline.before(99)),
            (Some(3), EpochOrder::Later, Some(7))
        );
    }

    #[test]
    fn of_many_elections_the_last_ones_are_known() {
        let mut timeline = EpochTimeline::default();
        (0..100).for_each(|epoch| _ = timeline.record(i64::from(epoch), epoch));
        assert_eq!((timeline.before(50), timeline.before(90)), (None, Some(89)));
        assert_eq!(timeline.judge(50, Some(49), 100), Branch::Lost, "it may be the same log, but this pod cannot tell");
        assert_eq!(timeline.judge(90, Some(89), 100), Branch::Same);
    }

    /// The table of this module, on fifty records of one leader, and then another one's, which had them all, or had
    /// lost what came behind them.
    #[test]
    fn a_log_that_was_cut_and_written_anew_is_told_from_one_that_was_not() {
        let log = timeline(&[(0, 0), (50, 2)]);
        let judge = |next, epoch| log.judge(next, Some(epoch), 60);
        for (next, epoch, is) in [
            (20, 0, Branch::Same),
            (50, 0, Branch::Same),
            (51, 2, Branch::Same),
            (60, 2, Branch::Same),
            (61, 2, Branch::Ahead),
            (61, 3, Branch::Ahead),
            (60, 3, Branch::Newer),
            (20, 3, Branch::Newer),
            (51, 0, Branch::Lost),
            (100, 0, Branch::Lost),
            (50, 2, Branch::Lost),
            (20, 2, Branch::Lost),
            (55, 1, Branch::Lost),
            (100, 1, Branch::Lost),
        ] {
            assert_eq!(judge(next, epoch), is, "{next} behind a record of {epoch}");
            assert_eq!(is == Branch::Newer, is != Branch::Lost && log.is_older_than(next, Some(epoch), 60));
        }
        assert_eq!([60, 61].map(|next| log.judge(next, None, 60)), [Branch::Same, Branch::Ahead]);
        let nothing = EpochTimeline::default();
        assert_eq!([60, 61].map(|next| nothing.judge(next, Some(0), 60)), [Branch::Same, Branch::Ahead]);
        assert_eq!(log.judge(101, Some(0), 100), Branch::Lost, "also where the log has grown past the cursor");
    }

    #[test]
    fn a_shard_that_knows_of_a_leader_whose_records_it_has_not_taken_in_yet_judges_by_what_it_knows() {
        let log = timeline(&[(0, 0), (50, 1)]);
        assert_eq!([49, 50].map(|next| log.judge(next, Some(0), 48)), [Branch::Ahead; 2]);
        assert_eq!(log.judge(51, Some(0), 48), Branch::Lost);
        assert_eq!(log.judge(51, Some(1), 48), Branch::Ahead);
    }

    #[test]
    fn a_window_that_begins_at_the_cursor_proves_it_only_by_the_same_leaders_record() {
        let window = timeline(&[(60, 1)]);
        assert_eq!(window.judge(60, Some(1), 150), Branch::Same);
        assert_eq!(window.judge(60, Some(0), 150), Branch::Lost, "the records before it may have been replaced");
        assert_eq!(window.judge(60, Some(2), 150), Branch::Newer);
    }

    #[test]
    fn whoever_counts_what_a_log_lost_is_known_by_an_epoch_or_without() {
        let mut log = timeline(&[(0, 0)]);
        log.lose_end(50, 100, false, 0);
        for next in [51, 70, 100] {
            assert_eq!([None, Some(0)].map(|epoch| log.judge(next, epoch, 50)), [Branch::Lost; 2], "{next}");
            assert_eq!(log.judge(next, Some(1), 50), Branch::Ahead);
        }
        assert_eq!([None, Some(0)].map(|epoch| log.judge(50, epoch, 50)), [Branch::Same; 2]);
        assert_eq!(log.judge(101, Some(0), 50), Branch::Ahead, "its leader says where it ends");
        log.record(50, 1);
        assert_eq!(log.judge(101, Some(0), 51), Branch::Lost);
        assert_eq!([None, Some(0), Some(1)].map(|epoch| log.judge(70, epoch, 150)), {
            [Branch::Lost, Branch::Lost, Branch::Same]
        });
    }

    #[test]
    fn where_nobody_knows_where_the_logs_part_all_that_was_read_counts_as_lost_but_what_later_leaders_wrote() {
        let mut log = timeline(&[(0, 0), (20, 3)]);
        log.lose_end(50, 100, true, 0);
        assert_eq!([None, Some(3)].map(|epoch| log.judge(50, epoch, 50)), [Branch::Lost; 2]);
        assert_eq!(log.judge(60, Some(4), 50), Branch::Ahead);
        log.record(50, 4);
        assert_eq!([60, 120].map(|next| log.judge(next, Some(4), 150)), [Branch::Same; 2]);
        let mut unknown = EpochTimeline::default();
        unknown.lose_end(50, 100, true, 0);
        assert_eq!(unknown.judge(60, Some(4), 50), Branch::Lost, "their epoch is unknown");
        unknown.record(50, 4);
        assert_eq!(unknown.judge(60, Some(4), 70), Branch::Same, "and these are of this log, whatever was lost");
    }

    #[test]
    fn of_many_lost_ends_the_oldest_count_as_one_and_what_left_the_window_counts_no_more() {
        let mut log = EpochTimeline::default();
        for epoch in 0..100 {
            let at = i64::from(epoch) * 10;
            log.record(at, epoch);
            log.lose_end(at + 5, at + 10, false, 0);
        }
        assert_eq!(log.lost.len(), LOST_MAX);
        assert_eq!(log.judge(7, None, 2_000), Branch::Lost);
        assert_eq!(log.judge(7, Some(0), 2_000), Branch::Lost);
        log.lose_end(1_000, 1_010, false, 991);
        assert_eq!(log.lost.len(), 2);
    }

    #[test]
    fn the_leaders_word_on_the_end_is_as_good_as_the_leader_is_new() {
        use AtEnd::{Beyond, Earlier, Lost, Within};
        let judge = |next, epoch, leader| judge_end(next, epoch, 50, leader);
        assert_eq!([49, 50, 51].map(|next| judge(next, Some(1), Some(1))), [Within, Within, Beyond]);
        assert_eq!([49, 50, 51].map(|next| judge(next, Some(1), Some(2))), [Within, Within, Lost]);
        assert_eq!([49, 50, 51].map(|next| judge(next, Some(1), Some(0))), [Earlier; 3]);
        assert_eq!(
            [judge(51, None, Some(2)), judge(51, Some(1), None), judge(50, None, None)],
            [Beyond, Beyond, Within]
        );
    }

    // ---- all cases ------------------------------------------------------------------------------------------------

    /// A record is known by its number; the same number is the same record.
    type Record = (i64, i32, u32);

    /// A partition through some elections: its log after each.
    fn logs() -> impl Strategy<Value = Vec<Vec<Record>>> {
        let era = (0..30usize, 1..3i32, prop::collection::vec(1..3i64, 0..12));
        prop::collection::vec(era, 1..5).prop_map(|eras| {
            let (mut logs, mut log, mut epoch, mut number) = (Vec::new(), Vec::<Record>::new(), 0, 0);
            for (kept, elections, steps) in eras {
                // A clean election about as often as one that loses the end.
                log.truncate(kept.max(if kept % 2 == 0 { log.len() } else { 0 }));
                epoch += elections;
                for step in steps {
                    let offset = log.last().map_or(-1, |last| last.0) + step;
                    number += 1;
                    log.push((offset, epoch, number));
                }
                logs.push(log.clone());
            }
            logs
        })
    }

    /// What a pod knows that began to read a log at one of its records and has read this many of them.
    struct Pod {
        timeline: EpochTimeline,
        low: i64,
        read: i64,
        /// It learned of a lost end, and knew of no leader by then.
        knew_none: bool,
    }

    impl Pod {
        fn of(log: &[Record], begin: usize, count: usize) -> Self {
            let begin = begin.min(log.len());
            let low = if begin == 0 { 0 } else { log[begin - 1].0 + 1 };
            let mut pod = Self { timeline: EpochTimeline::default(), low, read: low, knew_none: false };
            pod.read_on(&log[begin..log.len().min(begin + count)]);
            pod
        }

        fn read_on(&mut self, records: &[Record]) {
            for &(offset, epoch, _) in records {
                assert_ne!(self.timeline.record(offset, epoch), EpochOrder::Earlier);
                self.read = offset + 1;
            }
        }

        /// Learns that the log is another one, as ingest tells it: by where they part, or by where it was read again.
        fn learn(&mut self, old: &[Record], new: &[Record], is_below_unknown: bool) {
            let parts = old.iter().zip(new).take_while(|(old, new)| old.2 == new.2).count();
            let from = new.get(parts).map_or_else(|| new.last().map_or(0, |last| last.0 + 1), |first| first.0);
            if from < self.read || old.get(parts).is_some_and(|lost| lost.0 < self.read) {
                let is_below_unknown = is_below_unknown || from < self.low;
                let from = from.min(self.read);
                self.knew_none = self.timeline.last().is_none();
                self.timeline.lose_end(from, self.read, is_below_unknown, 0);
                self.low = if is_below_unknown { from } else { self.low.min(from) };
                self.read = from;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// The client's cursor is of any time, from before or after the log that the pod reads.
        #[test]
        fn whatever_a_pod_has_read_and_whenever_a_cursor_was_made_the_rule_is_right(
            logs in logs(), times in [0..5usize, 0..5], begin in 0..20usize, counts in [0..40usize, 0..40],
            lived in prop::option::of((0..5usize, any::<bool>(), 0..40usize)),
        ) {
            let log = &logs[times[0] % logs.len()];
            let mut pod = Pod::of(log, begin, counts[0]);
            let mut at = times[0] % logs.len();
            if let Some((later, is_below_unknown, more)) = lived {
                // It lives through some elections.
                at += later % (logs.len() - at);
                let new = &logs[at];
                pod.learn(log, new, is_below_unknown);
                let from = new.partition_point(|record| record.0 < pod.read);
                pod.read_on(&new[from..new.len().min(from + more)]);
            }
            let log = &logs[at];
            let made = times[1] % logs.len();
            let Some(&(offset, epoch, number)) = logs[made].get(counts[1]) else { return Ok(()) };
            let next = offset + 1;
            if next < pod.low {
                return Ok(());
            }
            let verdict = pod.timeline.judge(next, Some(epoch), pod.read);
            let is_in = |log: &[Record]| log.iter().any(|record| record.2 == number);
            let knows_before = pod.timeline.before(next).is_some();
            let told = format!("{:?} read {} low {}: {next} of {epoch}", pod.timeline, pod.read, pod.low);
            let place = if next > pod.read { Branch::Ahead } else { Branch::Same };
            if is_in(log) {
                let is_unproven = verdict == Branch::Lost && (!knows_before || pod.knew_none && next > pod.read);
                prop_assert!(verdict == place || is_unproven, "{verdict:?} {told}");
            } else if logs[at + 1..].iter().any(|later| is_in(later)) {
                // It is of a log that the pod has not heard of.
                let newer = if next > pod.read { Branch::Ahead } else { Branch::Newer };
                let is_blank = pod.timeline.last().is_none();
                let is_blind = is_blank || lived.is_some() && pod.knew_none;
                prop_assert!(verdict == newer || is_blank && verdict == place || is_blind && verdict == Branch::Lost, "{verdict:?} {told}");
            } else if pod.timeline.last().is_some()
                && log.iter().any(|record| record.0 < next && record.1 > epoch && record.0 < pod.read)
            {
                prop_assert_eq!(verdict, Branch::Lost, "{}", told);
            } else {
                // It lacks nothing that was read here, or that was not read yet.
                prop_assert_ne!(verdict, Branch::Newer, "{}", told);
            }

            // And where the log that the pod reads ends.
            let (end, leader) = log.last().map_or((0, 0), |last| (last.0 + 1, log.iter().map(|record| record.1).max().unwrap()));
            let by_end = judge_end(next, Some(epoch), end, Some(leader));
            if is_in(log) {
                prop_assert_eq!(by_end, AtEnd::Within, "{}", told);
            } else if made > at && epoch > leader {
                prop_assert_eq!(by_end, AtEnd::Earlier, "{}", told);
            } else if made < at && next > end && epoch < leader {
                prop_assert_eq!(by_end, AtEnd::Lost, "{}", told);
            }
        }
    }
}
