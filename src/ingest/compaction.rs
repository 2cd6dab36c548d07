//! Gaps in a partition's offsets, and which of them compaction may have left. These are rules on offsets and times:
//! [`super::watcher`] reads the topics' settings, and [`super::reader`] reports the losses.
//!
//! Markers of transactions leave gaps, too, and a reader can't tell them from records that compaction removed. So:
//!
//! - A gap on a topic that is not compacted means nothing.
//! - On a compacted topic a gap counts as lost records, unless all its records were written less than
//!   `min.compaction.lag.ms` ago: compaction does not touch such records.
//! - A gap that counts expires cursors from before it, and connected clients are sent a reset. A pod that read the
//!   records before compaction removed them sees no gap, and resumes those cursors.
//!
//! So on every pod, a client gets every record or a reset. If `min.compaction.lag.ms` is above `HISTORY_SECONDS`, no gap
//! in the window counts, and all pods give the same answer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ids::TopicIndex;
use crate::limits::COMPACTION_CLOCKS_MAX;
use crate::stream::batch::NextOffset;

use super::read_offsets::ReadOffsets;

/// What is known of compacted topics, and of how young the partitions' records are.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    /// Topics that are or were compacted, each with its `min.compaction.lag.ms`: removed records stay missing.
    kept_for: HashMap<TopicIndex, Duration>,
    /// By the partition's index in [`ReadOffsets`].
    entries: Vec<PartitionGaps>,
}

#[derive(Debug, Clone, Copy, Default)]
struct PartitionGaps {
    /// The newest bound on the records' age at or below the read offset.
    young: Option<Young>,
    /// The oldest one above it.
    next_young: Option<Young>,
    /// The partition's last stable offset, as last queried.
    end: i64,
    /// From here on no record is known to be missing. For records missing below, clients got a reset.
    complete_from: i64,
    /// All gaps, as one, from a time when the topic was not known to be compacted.
    unjudged: Option<Gap>,
    /// When the log was last found truncated. Answers to earlier queries are about another log.
    truncated: Option<Instant>,
}

/// Records from this offset on were written after this time.
#[derive(Debug, Clone, Copy)]
struct Young {
    from: i64,
    after: Instant,
}

/// Offsets without a record.
#[derive(Debug, Clone, Copy)]
struct Gap {
    /// The offset after it.
    end: i64,
    met: Instant,
    /// All its records were written after this; `None` if that is not known.
    younger_than: Option<Duration>,
}

impl Compaction {
    /// Forgets the partition with this index.
    pub(super) fn forget(&mut self, topic: TopicIndex, index: usize) {
        self.kept_for.remove(&topic);
        if let Some(entry) = self.entries.get_mut(index) {
            *entry = PartitionGaps::default();
        }
    }

    /// The topic is compacted, and keeps records for this time at least. At `unchanged`, when its settings were last
    /// queried, it was not. For each partition with a gap since, returns the offset from which on it is complete.
    pub(super) fn is_compacted(
        &mut self,
        read_offsets: &ReadOffsets,
        topic: TopicIndex,
        kept_for: Duration,
        unchanged: Option<Instant>,
    ) -> Vec<NextOffset> {
        self.kept_for.insert(topic, kept_for);
        let counts = |gap: &Gap| unchanged.is_none_or(|unchanged| gap.met >= unchanged) && gap.counts(kept_for);
        let complete_from = |at: NextOffset| {
            let entry = self.entries.get_mut(read_offsets.index_of(at.topic, at.partition)?)?;
            let gap = entry.unjudged.take().filter(counts)?;
            entry.complete_from = gap.end;
            Some(NextOffset { offset: gap.end, ..at })
        };
        read_offsets.of(topic).filter_map(complete_from).collect()
    }

    /// The ends of partitions, in answer to a query sent at `asked`: records behind them are younger than that.
    pub(super) fn update_ends(
        &mut self,
        read_offsets: &ReadOffsets,
        asked: Instant,
        stable: &[NextOffset],
        high: &[NextOffset],
    ) {
        for end in stable {
            if let Some((entry, _)) = self.entry(read_offsets, end)
                && !entry.was_truncated_since(asked)
            {
                entry.end = end.offset;
            }
        }
        // Last stable offsets don't qualify: records that an open transaction holds back may be old.
        for end in high {
            self.younger_from(read_offsets, *end, asked);
        }
    }

    /// Records of a partition from this offset on were written after this time.
    pub(super) fn younger_from(&mut self, read_offsets: &ReadOffsets, from: NextOffset, after: Instant) {
        let Some((entry, read_offset)) = self.entry(read_offsets, &from) else { return };
        if entry.was_truncated_since(after) {
            return;
        }
        entry.advance(read_offset);
        let young = Young { from: from.offset, after };
        match young.from <= read_offset {
            true => entry.young = Some(young),
            false => entry.next_young = entry.next_young.or(Some(young)),
        }
    }

    /// A partition's log lost its end and continues at this offset with other records, as was found at `now`. Gaps
    /// among these are new, and their age is unknown: they may have been written before those that are gone.
    pub(super) fn truncate(&mut self, read_offsets: &ReadOffsets, at: NextOffset, now: Instant) {
        let Some((entry, _)) = self.entry(read_offsets, &at) else { return };
        (entry.young, entry.next_young, entry.truncated) = (None, None, Some(now));
        entry.end = entry.end.min(at.offset);
        entry.complete_from = entry.complete_from.min(at.offset);
        if let Some(gap) = &mut entry.unjudged {
            gap.end = gap.end.min(at.offset);
        }
    }

    /// Records a gap: the next record or the end is at `end`, above the read offset. If the gap counts, and clients got
    /// no reset for it yet, returns the offset from which on the partition is complete. If there may be clients
    /// (`is_watched`), this is the partition's end as last queried, so that one compaction causes one reset.
    pub(super) fn gap(
        &mut self,
        read_offsets: &ReadOffsets,
        end: NextOffset,
        is_watched: bool,
        now: Instant,
    ) -> Option<i64> {
        let kept_for = self.kept_for.get(&end.topic).copied();
        let (entry, read_offset) = self.entry(read_offsets, &end)?;
        entry.advance(read_offset);
        let younger_than = entry.young.map(|young| now.saturating_duration_since(young.after));
        let gap = Gap { end: end.offset, met: now, younger_than };
        let Some(kept_for) = kept_for else {
            entry.unjudged = Some(entry.unjudged.map_or(gap, |earlier| earlier.merge(gap)));
            return None;
        };
        if !gap.counts(kept_for) || gap.end <= entry.complete_from {
            return None;
        }
        entry.complete_from = if is_watched { gap.end.max(entry.end) } else { gap.end };
        Some(entry.complete_from)
    }

    /// What is known of a partition, and its read offset.
    fn entry(&mut self, read_offsets: &ReadOffsets, at: &NextOffset) -> Option<(&mut PartitionGaps, i64)> {
        let index = read_offsets.index_of(at.topic, at.partition)?;
        if self.entries.len() <= index {
            self.entries.resize(read_offsets.all().len(), PartitionGaps::default());
        }
        Some((&mut self.entries[index], read_offsets.all()[index].offset))
    }
}

impl PartitionGaps {
    fn advance(&mut self, read_offset: i64) {
        if let Some(young) = self.next_young.take_if(|young| young.from <= read_offset) {
            self.young = Some(young);
        }
    }

    fn was_truncated_since(&self, asked: Instant) -> bool {
        self.truncated.is_some_and(|truncated| asked < truncated)
    }
}

impl Gap {
    /// Merges two gaps: a later one that compaction can't have left must not hide an earlier one.
    fn merge(self, later: Gap) -> Gap {
        let younger_than = self.younger_than.zip(later.younger_than).map(|(age, later_age)| age.max(later_age));
        Gap { younger_than, ..later }
    }

    /// Whether compaction may have left it, if it does not touch records younger than this.
    fn counts(&self, kept_for: Duration) -> bool {
        self.younger_than.is_none_or(|age| age + COMPACTION_CLOCKS_MAX > kept_for)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: TopicIndex = TopicIndex(0);
    const MINUTE: Duration = Duration::from_secs(60);

    /// One partition.
    struct Story {
        compaction: Compaction,
        read_offsets: ReadOffsets,
        start: Instant,
    }

    fn at(offset: i64) -> NextOffset {
        NextOffset { topic: EVENTS, partition: 0, offset }
    }

    impl Story {
        fn read_to(next: i64) -> Self {
            let mut read_offsets = ReadOffsets::default();
            read_offsets.set(EVENTS, 0, next);
            Self { compaction: Compaction::default(), read_offsets, start: Instant::now() }
        }

        fn compacted(mut self, kept_for: Duration) -> Self {
            assert_eq!(self.compaction.is_compacted(&self.read_offsets, EVENTS, kept_for, None), []);
            self
        }

        fn now(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        /// The partition ends here.
        fn end(&mut self, seconds: u64, stable: i64, high: i64) {
            let asked = self.now(seconds);
            self.compaction.update_ends(&self.read_offsets, asked, &[at(stable)], &[at(high)]);
        }

        /// The record at an offset is read next.
        fn record(&mut self, seconds: u64, offset: i64, is_watched: bool) -> Option<i64> {
            let now = self.now(seconds);
            let is_gap = self.read_offsets.next(EVENTS, 0).unwrap() < offset;
            let gap = is_gap.then(|| self.compaction.gap(&self.read_offsets, at(offset), is_watched, now)).flatten();
            self.read_offsets.set(EVENTS, 0, offset + 1);
            gap
        }
    }

    #[test]
    fn on_a_topic_that_is_not_compacted_a_gap_means_nothing() {
        let mut story = Story::read_to(10);
        story.end(0, 10, 10);
        assert_eq!(story.record(1, 12, true), None);
        assert_eq!(story.record(2, 90, true), None);
    }

    #[test]
    fn a_gap_counts_where_compaction_may_be_as_fast_as_the_reader() {
        let mut story = Story::read_to(10).compacted(Duration::ZERO);
        story.end(0, 10, 10);
        assert_eq!(story.record(1, 10, false), None, "no gap");
        assert_eq!(story.record(1, 12, false), Some(12));
        assert_eq!(story.record(1, 13, false), None);
        assert_eq!(story.record(1, 15, false), Some(15));
    }

    #[test]
    fn clients_are_told_once_of_what_lay_there_when_the_end_was_last_asked() {
        let mut story = Story::read_to(10).compacted(Duration::ZERO);
        story.end(0, 100, 100);
        assert_eq!(story.record(1, 12, true), Some(100));
        assert_eq!(story.record(1, 50, true), None, "they were told");
        assert_eq!(story.record(1, 99, true), None);
        assert_eq!(story.record(1, 101, true), Some(101), "another one");
    }

    #[test]
    fn a_gap_that_is_younger_than_compaction_begins_to_act_is_a_transactions_marker() {
        let mut story = Story::read_to(10).compacted(MINUTE);
        story.end(0, 10, 10);
        assert_eq!(story.record(50, 12, true), None, "written since");
        assert_eq!(story.record(58, 14, true), Some(14), "by clocks that differ it may be older");
        story.end(59, 15, 15);
        assert_eq!(story.record(100, 17, true), None);
    }

    #[test]
    fn a_reader_that_lags_goes_by_an_end_that_it_has_reached() {
        let mut story = Story::read_to(10).compacted(MINUTE);
        story.end(0, 20, 20);
        story.end(100, 30, 30);
        assert_eq!(story.record(100, 12, true), Some(30), "nothing is known of what came before the first end");
        assert_eq!((story.record(100, 19, true), story.record(100, 20, true)), (None, None));
        assert_eq!(story.record(100, 40, true), Some(40), "of the time between the two ends");
        story.end(101, 41, 41);
        assert_eq!(story.record(130, 43, true), None);
    }

    #[test]
    fn what_an_open_transaction_held_back_is_as_old_as_it_is() {
        let mut story = Story::read_to(10).compacted(MINUTE);
        story.end(0, 10, 10);
        story.end(100, 10, 50);
        assert_eq!(story.record(101, 12, true), Some(12), "the last stable offset says nothing of its age");
    }

    #[test]
    fn the_window_of_a_start_is_younger_than_its_time() {
        let mut story = Story::read_to(10).compacted(10 * MINUTE);
        story.compaction.younger_from(&story.read_offsets, at(20), story.now(0));
        assert_eq!(story.record(5, 15, false), Some(15), "before the window");
        assert_eq!((story.record(5, 19, false), story.record(5, 25, false)), (Some(19), None));
    }

    #[test]
    fn a_later_gap_that_does_not_count_hides_no_earlier_one_that_does() {
        let compacted = |mut story: Story| story.compaction.is_compacted(&story.read_offsets, EVENTS, MINUTE, None);
        let mut story = Story::read_to(10);
        assert_eq!(story.record(1, 20, true), None, "of unknown age");
        story.end(2, 21, 21);
        assert_eq!(story.record(3, 25, true), None, "young");
        assert_eq!(compacted(story), [at(25)]);
        let mut story = Story::read_to(10);
        story.end(0, 10, 10);
        assert_eq!(story.record(100, 20, true), None, "old");
        story.end(101, 21, 21);
        assert_eq!(story.record(102, 25, true), None, "young");
        assert_eq!(compacted(story), [at(25)]);
    }

    #[test]
    fn gaps_of_a_log_that_was_truncated_are_judged_anew() {
        let truncated = |kept_for| {
            let mut story = Story::read_to(10).compacted(kept_for);
            story.end(0, 100, 100);
            assert_eq!(story.record(1, 12, true), Some(100));
            story.end(2, 80, 80);
            story.read_offsets.set(EVENTS, 0, 100);
            story.compaction.truncate(&story.read_offsets, at(50), story.now(3));
            story.read_offsets.set(EVENTS, 0, 50);
            story
        };
        let mut story = truncated(Duration::ZERO);
        assert_eq!(story.record(4, 70, true), Some(70), "clients got a reset for a gap in the old log alone");
        let mut story = truncated(MINUTE);
        assert_eq!(story.record(4, 90, true), Some(90), "the age of the old log's records says nothing");
        let mut story = truncated(MINUTE);
        story.end(2, 85, 50);
        assert_eq!(story.record(4, 70, true), Some(70), "these ends are the old log's, too");
        story.end(5, 71, 71);
        assert_eq!(story.record(6, 73, true), None, "these are not");
    }

    #[test]
    fn a_gap_that_was_not_judged_before_a_truncation_ends_at_it() {
        let mut story = Story::read_to(10);
        assert_eq!(story.record(1, 90, true), None);
        story.compaction.truncate(&story.read_offsets, at(50), story.now(2));
        assert_eq!(story.compaction.is_compacted(&story.read_offsets, EVENTS, Duration::ZERO, None), [at(50)]);
    }

    #[test]
    fn a_topic_that_is_compacted_later_counts_the_gaps_since_it_was_not() {
        let gap = |met| {
            let mut story = Story::read_to(10);
            assert_eq!(story.record(met, 20, true), None);
            story
        };
        let later = |mut story: Story, unchanged| {
            let unchanged = story.now(unchanged);
            story.compaction.is_compacted(&story.read_offsets, EVENTS, Duration::ZERO, Some(unchanged))
        };
        assert_eq!(later(gap(5), 10), [], "a marker");
        assert_eq!(later(gap(15), 10), [at(20)]);
        let mut known = gap(15);
        assert_eq!(known.compaction.is_compacted(&known.read_offsets, EVENTS, Duration::ZERO, None), [at(20)]);
        assert_eq!(known.compaction.is_compacted(&known.read_offsets, EVENTS, MINUTE, None), [], "once");
        let mut young = Story::read_to(10);
        young.end(0, 10, 10);
        young.record(5, 12, true);
        assert_eq!(young.compaction.is_compacted(&young.read_offsets, EVENTS, MINUTE, None), [], "it was too young");
    }
}
