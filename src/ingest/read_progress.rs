//! How far each partition is read, and which batches follow from a record, the end of a log or an offset out of range.
//! It knows no client of Kafka, so the reader's thread and the simulation share it. [`super::reader`] sends the batches
//! and logs the notices.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::Now;
use crate::ids::TopicIndex;
use crate::routing::table::Topic;
use crate::stream::batch::{EpochStart, LogTruncation, NextOffset, Origin};

use super::batcher::{Batcher, ConsumedRecord, RecordFault, RecordOutcome};
use super::compaction::Compaction;
use super::continuity::{Continuity, LossKind, RecordContinuity, RecordNotes, Restart, Truncation};
use super::read_offsets::ReadOffsets;
use super::retention::CompactedTopic;
use super::startup::LogRange;

/// A batch of more records than this takes as many tries to skip.
const STEP_BITS_MAX: u32 = 40;

/// Read offsets, what is known of the logs, and the batches to send.
#[derive(Debug)]
pub(super) struct ReadProgress {
    pub(super) batcher: Batcher,
    pub(super) read_offsets: ReadOffsets,
    continuity: Continuity,
    compaction: Compaction,
    /// Partitions whose next batch can't be unpacked.
    unreadable: HashMap<(TopicIndex, i32), UnreadableBatch>,
    /// When the current records were fetched. They were written before that.
    fetched: Instant,
    /// Whether clients may have received what was read.
    has_clients: bool,
    notices: Vec<Notice>,
}

/// What operators should know of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) kind: NoticeKind,
    /// The read offset before.
    pub(super) expected: i64,
    pub(super) at: NextOffset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoticeKind {
    /// Records below the offset were deleted before they were read.
    Deleted,
    /// The log lost its end and continues at the offset.
    Truncated,
    /// Compaction may have removed what lay below the offset.
    Gap,
}

/// A batch that can't be unpacked.
#[derive(Debug, Clone, Copy, Default)]
struct UnreadableBatch {
    attempts: u32,
    /// From where the client has read since the last attempt.
    read_from: i64,
}

/// How reading continues behind a batch that can't be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Skip {
    pub(super) expected: i64,
    /// The offset to read from.
    pub(super) from: i64,
    /// Whether records are lost. Otherwise they were read, or given up, before.
    pub(super) is_lost: bool,
}

impl ReadProgress {
    /// For shards 0 to `shards` less one.
    pub(super) fn new(shards: u16, event_bytes_max: usize, window: Duration, now: Instant) -> Self {
        Self {
            batcher: Batcher::new(shards, event_bytes_max, window),
            read_offsets: ReadOffsets::default(),
            continuity: Continuity::default(),
            compaction: Compaction::default(),
            unreadable: HashMap::new(),
            fetched: now,
            has_clients: false,
            notices: Vec::new(),
        }
    }

    /// From now on clients may receive what is read.
    pub(super) fn set_filled(&mut self) {
        self.has_clients = true;
    }

    /// The records that come next were fetched at this time. A shard may block between two of them, so their age can't
    /// be taken from the turn.
    pub(super) fn set_fetched(&mut self, at: Now) {
        self.fetched = at.instant;
        self.batcher.set_time(at);
    }

    pub(super) fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// The notices since the last call.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    // ---- topics and partitions ------------------------------------------------------------------------------------

    /// Forgets the topic of this index; returns the indexes of its partitions.
    pub(super) fn forget(&mut self, topic: TopicIndex) -> Vec<usize> {
        let indexes = self.read_offsets.forget(topic);
        for &index in &indexes {
            self.continuity.forget(topic, index);
            self.compaction.forget(topic, index);
        }
        self.stop_reading(topic);
        self.batcher.forget(topic, &indexes);
        indexes
    }

    /// Nothing more is read of a topic for now.
    pub(super) fn stop_reading(&mut self, topic: TopicIndex) {
        self.unreadable.retain(|&(unreadable, _), _| unreadable != topic);
    }

    pub(super) fn add_topic(&mut self, topic: Arc<Topic>) {
        self.batcher.add_topic(topic);
    }

    /// Records of a partition from this offset on were written after this time.
    pub(super) fn younger_from(&mut self, from: NextOffset, after: Instant) {
        self.compaction.younger_from(&self.read_offsets, from, after);
    }

    /// Partitions were asked where they end, at `asked` or later.
    pub(super) fn update_ends(&mut self, asked: Instant, stable: &[NextOffset], high: &[NextOffset]) {
        self.compaction.update_ends(&self.read_offsets, asked, stable, high);
    }

    /// Records of a topic may be missing that were there: which, shows as gaps.
    pub(super) fn is_compacted(&mut self, topic: &CompactedTopic) {
        let &CompactedTopic { topic, kept_for, unchanged } = topic;
        let complete_from = self.compaction.is_compacted(&self.read_offsets, topic, kept_for, unchanged);
        complete_from.into_iter().for_each(|from| self.batcher.complete_from(from));
    }

    /// The epoch of the last record before a partition's read offset.
    pub(super) fn epoch(&self, at: &NextOffset) -> Option<i32> {
        self.continuity.epoch(&self.read_offsets, at)
    }

    // ---- what comes -----------------------------------------------------------------------------------------------

    /// Handles a record; `None` if it was read before.
    #[inline]
    pub(super) fn record(&mut self, incoming: &ConsumedRecord<'_>) -> Option<Result<RecordOutcome, RecordFault>> {
        let origin = incoming.origin;
        self.is_unpacked(origin.topic, origin.partition);
        match self.continuity.record(&self.read_offsets, origin, incoming.epoch) {
            RecordContinuity::Next => {}
            RecordContinuity::Noted(notes) => self.note(origin, notes),
            RecordContinuity::Duplicate => return None,
            RecordContinuity::Replaced(truncation) => {
                self.lose(origin.topic, origin.partition, LossKind::Truncated(truncation));
                let epoch = (incoming.epoch >= 0).then_some(incoming.epoch);
                self.note(origin, RecordNotes { epoch, ..RecordNotes::default() });
            }
        }
        let outcome = self.batcher.push(incoming, &self.read_offsets);
        self.read_offsets.set(origin.topic, origin.partition, origin.offset + 1);
        Some(outcome)
    }

    /// A partition is read to its end.
    pub(super) fn end(&mut self, topic: TopicIndex, partition: i32, offset: i64) {
        if let Some(truncation) = self.continuity.end(&self.read_offsets, topic, partition, offset) {
            self.lose(topic, partition, LossKind::Truncated(truncation));
        }
        if self.read_offsets.next(topic, partition).is_some_and(|next| next < offset) {
            self.gap(NextOffset { topic, partition, offset });
        }
        self.is_unpacked(topic, partition);
        self.read_offsets.set(topic, partition, offset);
    }

    /// Decides where reading continues in a partition whose offset was out of range, and which holds this.
    pub(super) fn restart(&mut self, topic: TopicIndex, partition: i32, range: LogRange) -> Option<Restart> {
        let restart = self.continuity.restart(&self.read_offsets, topic, partition, range)?;
        if let Some(loss) = restart.lost {
            self.lose(topic, partition, loss);
        }
        Some(restart)
    }

    /// Moves a partition's read offset to this one. The records between them are lost.
    pub(super) fn skip_to(&mut self, topic: TopicIndex, partition: i32, offset: i64) {
        self.batcher.deleted(NextOffset { topic, partition, offset });
        self.read_offsets.set(topic, partition, offset);
    }

    fn note(&mut self, origin: Origin, notes: RecordNotes) {
        if let Some(epoch) = notes.epoch {
            self.batcher.epoch_starts(EpochStart { first: origin, epoch });
        }
        if notes.is_behind_gap {
            let Origin { topic, partition, offset } = origin;
            self.gap(NextOffset { topic, partition, offset });
        }
    }

    /// Handles a gap: there is no record between a partition's read offset and `end`.
    fn gap(&mut self, end: NextOffset) {
        let complete_from = self.compaction.gap(&self.read_offsets, end, self.has_clients, self.fetched);
        let Some(offset) = complete_from else { return };
        self.batcher.complete_from(NextOffset { offset, ..end });
        if self.has_clients {
            self.notice(NoticeKind::Gap, end);
        }
    }

    fn lose(&mut self, topic: TopicIndex, partition: i32, loss: LossKind) {
        match loss {
            LossKind::Deleted(offset) => {
                self.notice(NoticeKind::Deleted, NextOffset { topic, partition, offset });
                self.skip_to(topic, partition, offset);
            }
            LossKind::Truncated(Truncation { next: offset, is_below_unknown }) => {
                let next = NextOffset { topic, partition, offset };
                self.notice(NoticeKind::Truncated, next);
                self.compaction.truncate(&self.read_offsets, next, self.fetched);
                self.batcher.truncate(LogTruncation { next, is_below_unknown }, &self.read_offsets);
                self.read_offsets.set(topic, partition, offset);
            }
        }
    }

    fn notice(&mut self, kind: NoticeKind, at: NextOffset) {
        let expected = self.read_offsets.next(at.topic, at.partition).unwrap_or(at.offset);
        self.notices.push(Notice { kind, expected, at });
    }

    // ---- batches that can't be unpacked ---------------------------------------------------------------------------

    /// A batch of a partition was unpacked.
    fn is_unpacked(&mut self, topic: TopicIndex, partition: i32) {
        // Nearly always so.
        if !self.unreadable.is_empty() {
            self.unreadable.remove(&(topic, partition));
        }
    }

    /// Skips a batch that begins at `base` and can't be unpacked; `None` if it should be fetched again first. Its end
    /// is unknown: reading continues one offset further, then two, then four, up to the end of the log. So a batch of
    /// many records takes few attempts, but records behind it may be skipped, too, at most as many as it has.
    pub(super) fn skip_batch(&mut self, topic: TopicIndex, partition: i32, base: i64, log_end: i64) -> Option<Skip> {
        let next = self.read_offsets.next(topic, partition)?;
        let batch = self.unreadable.entry((topic, partition)).or_default();
        batch.attempts += 1;
        // It may have been damaged on its way, or have exceeded the allowance together with the batches before it.
        let step = 1_i64 << batch.attempts.checked_sub(2)?.min(STEP_BITS_MAX);
        let at = base.max(batch.read_from);
        // A batch below the read offset was skipped before: its loss is known, and no record behind it is lost again.
        if at < next && self.continuity.is_rereading(topic, partition) {
            let from = at.saturating_add(step).min(next);
            batch.read_from = from;
            self.continuity.skipped_below(topic, partition);
            return Some(Skip { expected: next, from, is_lost: false });
        }
        let at = base.max(next);
        let from = at.saturating_add(step).min(log_end).max(at.saturating_add(1));
        batch.read_from = from;
        self.continuity.skipped(&self.read_offsets, topic, partition, from);
        self.skip_to(topic, partition, from);
        Some(Skip { expected: next, from, is_lost: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMs;
    use crate::ids::ShardIndex;
    use crate::routing::table::RouteTable;
    use crate::stream::batch::Batch;

    const EVENTS: TopicIndex = TopicIndex(0);
    const MINUTE: Duration = Duration::from_secs(60);

    /// One partition, and one shard.
    struct Story {
        progress: ReadProgress,
        start: Instant,
    }

    fn at(offset: i64) -> NextOffset {
        NextOffset { topic: EVENTS, partition: 0, offset }
    }

    impl Story {
        fn read_to(next: i64) -> Self {
            let start = Instant::now();
            let mut progress = ReadProgress::new(1, 1 << 20, 5 * MINUTE, start);
            progress.add_topic(Arc::new(RouteTable::built_in().resolve(EVENTS, "assessment.created").unwrap()));
            progress.read_offsets.set(EVENTS, 0, next);
            progress.set_filled();
            Self { progress, start }
        }

        fn fetch(&mut self, seconds: u64) {
            let instant = self.start + Duration::from_secs(seconds);
            self.progress.set_fetched(Now { instant, unix: UnixMs(1_000 * seconds) });
        }

        /// Whether a record is news.
        fn record(&mut self, offset: i64, epoch: i32) -> bool {
            let origin = Origin { topic: EVENTS, partition: 0, offset };
            let payload = br#"{"assessmentId":"a"}"#;
            let incoming =
                ConsumedRecord { origin, timestamp_ms: 0, epoch, key: None, payload: Some(payload), headers: &() };
            self.progress.record(&incoming).is_some_and(|outcome| outcome.is_ok())
        }

        fn next(&self) -> i64 {
            self.progress.read_offsets.next(EVENTS, 0).unwrap()
        }

        fn skip(&mut self, base: i64) -> Option<Skip> {
            self.progress.skip_batch(EVENTS, 0, base, i64::MAX)
        }

        /// What the shard is handed, in order.
        fn batches(&mut self) -> Vec<Batch> {
            let mut batches = Vec::new();
            while let Some((_, batch)) = self.progress.batcher.take_full() {
                batches.push(batch);
            }
            let now = self.start;
            batches.extend(self.progress.batcher.take(ShardIndex(0), &self.progress.read_offsets, now));
            batches
        }
    }

    #[test]
    fn a_gap_is_as_old_as_its_fetch_however_long_a_shard_blocked_before() {
        let gap = |seconds| {
            let mut story = Story::read_to(10);
            let compacted = CompactedTopic { topic: EVENTS, kept_for: MINUTE, unchanged: None };
            story.progress.is_compacted(&compacted);
            story.progress.update_ends(story.start, &[at(10)], &[at(10)]);
            // The turn begins, a shard blocks, and the turn fetches once more.
            story.fetch(10);
            assert!(story.record(10, 0));
            story.fetch(seconds);
            assert!(story.record(12, 0));
            story.progress.take_notices()
        };
        assert_eq!(gap(20), []);
        assert_eq!(gap(70), [Notice { kind: NoticeKind::Gap, expected: 11, at: at(12) }]);
    }

    #[test]
    fn a_shard_has_what_was_read_before_a_loss_in_a_batch_of_its_own() {
        let mut story = Story::read_to(10);
        assert!(story.record(10, 1) && story.record(11, 1));
        story.progress.end(EVENTS, 0, 11);
        assert!(story.record(11, 2));
        let truncated = story.batches();
        assert_eq!(truncated.iter().map(|batch| batch.records.len()).collect::<Vec<_>>(), [2, 1]);
        assert!(truncated[0].truncations.is_empty() && truncated[1].truncations.len() == 1);
        assert!(story.record(12, 2));
        story.progress.restart(EVENTS, 0, LogRange { beginning: 20, end: 30 });
        let deleted = story.batches();
        assert_eq!(
            deleted.iter().map(|batch| (batch.records.len(), batch.deleted.len())).collect::<Vec<_>>(),
            [(1, 0), (0, 1)]
        );
    }

    #[test]
    fn a_batch_that_can_not_be_unpacked_is_skipped_from_where_it_begins() {
        let mut story = Story::read_to(10);
        assert_eq!(story.skip(500), None, "it is fetched again");
        let lost = |expected, from| Some(Skip { expected, from, is_lost: true });
        assert_eq!(story.skip(500), lost(10, 501), "nothing that can be read lies before it");
        assert_eq!([story.skip(500), story.skip(500)], [lost(501, 503), lost(503, 507)]);
        let batches = story.batches();
        assert_eq!(batches.last().unwrap().deleted.last(), Some(&at(507)));
        assert!(story.record(507, 0));
        assert_eq!(story.skip(508), None, "another one");
        assert_eq!(story.progress.skip_batch(EVENTS, 0, 508, 600), lost(508, 509));
        (0..20).for_each(|_| _ = story.progress.skip_batch(EVENTS, 0, 508, 600));
        assert!((600..620).contains(&story.next()), "not far beyond the end: {}", story.next());
    }

    /// Has read up to 100, gave up a batch at 40 to 50, and reads again from the beginning.
    fn rereading() -> Story {
        let mut story = Story::read_to(0);
        (0..40).for_each(|offset| assert!(story.record(offset, 1)));
        assert_eq!((story.skip(40), story.skip(40).map(|skip| skip.from)), (None, Some(41)));
        while story.next() < 50 {
            story.skip(40);
        }
        let next = story.next();
        (next..100).for_each(|offset| assert!(story.record(offset, 1)));
        assert_eq!(story.progress.restart(EVENTS, 0, LogRange { beginning: 0, end: 100 }).unwrap().from, 0);
        (0..40).for_each(|offset| assert!(!story.record(offset, 1)));
        story.batches();
        story
    }

    #[test]
    fn a_batch_that_was_given_up_before_costs_nothing_when_it_is_met_again() {
        let mut story = rereading();
        assert_eq!(story.skip(40), None);
        let again = |from| Some(Skip { expected: 100, from, is_lost: false });
        assert_eq!(
            [story.skip(40), story.skip(40), story.skip(40), story.skip(40)],
            [again(41), again(43), again(47), again(55)]
        );
        (55..100).for_each(|offset| assert!(!story.record(offset, 1), "it was read before"));
        assert!(story.record(100, 1));
        assert_eq!((story.next(), story.progress.take_notices()), (101, vec![]));
        let batches = story.batches();
        assert!(batches.iter().all(|batch| batch.deleted.is_empty() && batch.truncations.is_empty()));
    }

    #[test]
    fn a_batch_that_was_given_up_at_the_end_of_a_log_is_nothing_that_the_log_lost() {
        let mut story = Story::read_to(0);
        (0..40).for_each(|offset| assert!(story.record(offset, 1)));
        assert_eq!((story.skip(40), story.skip(40).map(|skip| skip.from)), (None, Some(41)));
        story.progress.restart(EVENTS, 0, LogRange { beginning: 0, end: 41 });
        (0..40).for_each(|offset| assert!(!story.record(offset, 1)));
        assert_eq!((story.skip(40), story.skip(40).map(|skip| (skip.from, skip.is_lost))), (None, Some((41, false))));
        assert!(story.record(41, 1));
        assert_eq!(story.progress.take_notices(), []);
    }

    #[test]
    fn a_log_that_diverges_in_a_batch_that_is_skipped_is_unknown_below_the_next_record() {
        let mut story = rereading();
        (0..3).for_each(|_| _ = story.skip(40));
        assert!(story.record(45, 2));
        assert_eq!(story.progress.take_notices(), [Notice { kind: NoticeKind::Truncated, expected: 100, at: at(45) }]);
        let batch = story.batches().pop().unwrap();
        assert_eq!(batch.truncations, [LogTruncation { next: at(45), is_below_unknown: true }]);
    }
}
