//! Detects a consumer that makes no progress, and decides when it is replaced. [`super::watcher`] reports where the
//! logs end, which the metadata client queries; [`super::reader`] replaces the consumer.
//!
//! No state of librdkafka may stop a pod. One such state is known: since 2.10 a client drops the brokers that a
//! metadata answer does not list. A broker that has just restarted may list none, and a client without brokers never
//! finds one again. So each partition is compared with its leader: if the log ends behind the read offset, records must
//! arrive.
//!
//! ```text
//!           the log ends behind the read offset,        for `bound`
//!   at end ----------------------------------> waits ----------------> stuck -> a new consumer
//!     ^     or the partition was just assigned   |                       |
//!     '------ a record, its end, an error -------'-----------------------'
//! ```

use std::time::{Duration, Instant};

use crate::limits::CLIENT_REPLACEMENT_PAUSE_MAX;
use crate::stream::batch::NextOffset;

use super::read_offsets::ReadOffsets;

/// The progress of the consumer, by partition.
#[derive(Debug)]
pub(super) struct StallDetector {
    /// The longest time that a partition may wait for records that its leader has (`KAFKA_STALL_MS`).
    bound: Duration,
    /// By the partition's index in [`ReadOffsets`].
    partitions: Vec<PartitionWait>,
    /// Whether any of them was stuck when the ends were last updated. Updated with the ends only, so that
    /// [`Self::stall`] usually visits no partition.
    has_stuck: bool,
    /// Waits count from this time on: before, the reader took nothing from the consumer.
    counts_from: Instant,
    /// When the consumer last gave anything.
    last_activity: Instant,
    /// The consumer is not replaced before this time.
    next_replacement_at: Instant,
    /// The pause after the next replacement.
    pause: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct PartitionWait {
    /// The next offset to read when the ends were last updated.
    next: i64,
    /// Whether the consumer has given nothing of it since it was assigned. The first event of each partition is a
    /// record, its end or an error.
    awaits_first_event: bool,
    /// Whether no event is expected. Either the pod's user may not read the partition, which a new consumer would not
    /// change; or it is no longer read.
    is_exempt: bool,
    /// When its wait began; `None` if it does not wait.
    waits_since: Option<Instant>,
    /// How long it had waited when the ends were last updated; zero while that is within the bound.
    stuck_for: Duration,
}

/// The finding that partitions have waited for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stall {
    /// Whether the consumer gives nothing of any partition.
    pub(super) is_client_silent: bool,
    /// Number of partitions that have waited for too long.
    pub(super) partitions: usize,
    /// The index of the first of them.
    pub(super) first: usize,
    /// The longest of their waits.
    pub(super) longest: Duration,
}

impl StallDetector {
    /// A detector without partitions.
    pub(super) fn new(bound: Duration, now: Instant) -> Self {
        Self {
            bound,
            partitions: Vec::new(),
            has_stuck: false,
            counts_from: now,
            last_activity: now,
            next_replacement_at: now,
            pause: bound,
        }
    }

    /// A partition was assigned to the consumer, from this offset on.
    pub(super) fn assigned(&mut self, index: usize, next: i64) {
        *self.entry(index) = PartitionWait { next, awaits_first_event: true, ..PartitionWait::default() };
    }

    /// A partition, whose next offset is this, is no longer read.
    pub(super) fn dropped(&mut self, index: usize, next: i64) {
        *self.entry(index) = PartitionWait { next, is_exempt: true, ..PartitionWait::default() };
    }

    /// Whether the consumer has given nothing of the partition since it was assigned, or reported that it may not be
    /// read.
    pub(super) fn has_no_events(&self, index: usize) -> bool {
        self.partitions.get(index).is_none_or(|entry| entry.awaits_first_event || entry.is_exempt)
    }

    /// The consumer reported an event that moves no offset: a partition's end, or an error.
    pub(super) fn record_event(&mut self, index: usize, is_refused: bool) {
        let entry = self.entry(index);
        *entry =
            PartitionWait { is_exempt: entry.is_exempt || is_refused, next: entry.next, ..PartitionWait::default() };
    }

    /// The consumer gave something.
    pub(super) fn record_activity(&mut self, now: Instant) {
        self.last_activity = now;
    }

    /// The reader took nothing from the consumer until now: the process was suspended, or the reader waited for a
    /// shard.
    pub(super) fn interrupted(&mut self, now: Instant) {
        self.counts_from = now;
        self.last_activity = now;
    }

    /// The leaders of these partitions reported where their logs end, in answer to a query sent at `asked`.
    pub(super) fn update_ends(&mut self, asked: Instant, ends: &[NextOffset], read_offsets: &ReadOffsets) {
        let (bound, counts_from) = (self.bound, self.counts_from);
        for end in ends {
            let Some(index) = read_offsets.index_of(end.topic, end.partition) else { continue };
            let next = read_offsets.all()[index].offset;
            let entry = self.entry(index);
            if entry.next != next {
                *entry = PartitionWait { next, ..PartitionWait::default() };
            }
            let waits = (entry.awaits_first_event || next < end.offset) && !entry.is_exempt;
            let since = waits.then(|| entry.waits_since.unwrap_or(asked));
            let waited = since.map_or(Duration::ZERO, |since| asked.saturating_duration_since(since.max(counts_from)));
            entry.waits_since = since;
            entry.stuck_for = if waited >= bound { waited } else { Duration::ZERO };
        }
        self.has_stuck = self.partitions.iter().any(|entry| !entry.stuck_for.is_zero());
        if self.partitions.iter().all(|entry| entry.waits_since.is_none()) {
            // All is well: the next replacement is not delayed.
            self.pause = self.bound;
        }
    }

    /// The partitions that have waited for too long, if any. While the consumer gives records of others, a partition
    /// may wait for twice the bound: in a flood, librdkafka fetches partitions in turns.
    pub(super) fn stall(&self, now: Instant) -> Option<Stall> {
        if !self.has_stuck {
            return None;
        }
        let is_client_silent = now.saturating_duration_since(self.last_activity) >= self.bound;
        let patience = if is_client_silent { self.bound } else { self.bound * 2 };
        let stalled = || self.partitions.iter().enumerate().filter(|(_, entry)| entry.stuck_for >= patience);
        let (first, _) = stalled().next()?;
        let longest = stalled().map(|(_, entry)| entry.stuck_for).max()?;
        Some(Stall { is_client_silent, partitions: stalled().count(), first, longest })
    }

    /// Whether to replace the consumer after a stall. Each replacement in a row doubles the pause before the next.
    pub(super) fn may_replace(&mut self, now: Instant) -> bool {
        if now < self.next_replacement_at {
            return false;
        }
        self.next_replacement_at = now + self.pause;
        self.pause = (self.pause * 2).min(CLIENT_REPLACEMENT_PAUSE_MAX);
        true
    }

    /// A new consumer has replaced the old one. Its partitions are assigned after this.
    pub(super) fn client_replaced(&mut self, now: Instant) {
        self.partitions.fill(PartitionWait::default());
        self.has_stuck = false;
        self.interrupted(now);
    }

    fn entry(&mut self, index: usize) -> &mut PartitionWait {
        if self.partitions.len() <= index {
            self.partitions.resize(index + 1, PartitionWait::default());
        }
        &mut self.partitions[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TopicIndex;

    const BOUND: Duration = Duration::from_secs(3);
    const TOPIC: TopicIndex = TopicIndex(0);

    /// Partitions that were read to offset 10, each of which has shown its end.
    struct Story {
        detector: StallDetector,
        read_offsets: ReadOffsets,
        start: Instant,
    }

    impl Story {
        fn new(partitions: i32) -> Self {
            let start = Instant::now();
            let (mut detector, mut read_offsets) = (StallDetector::new(BOUND, start), ReadOffsets::default());
            for partition in 0..partitions {
                read_offsets.set(TOPIC, partition, 10);
                let index = read_offsets.index_of(TOPIC, partition).unwrap();
                detector.assigned(index, 10);
                detector.record_event(index, false);
            }
            Self { detector, read_offsets, start }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        /// Updates the ends by a query that was answered at once; returns the stall that results.
        fn ends(&mut self, ms: u64, ends: &[(i32, i64)]) -> Option<Stall> {
            let end = |&(partition, offset): &(i32, i64)| NextOffset { topic: TOPIC, partition, offset };
            let ends: Vec<_> = ends.iter().map(end).collect();
            self.detector.update_ends(self.at(ms), &ends, &self.read_offsets);
            self.detector.stall(self.at(ms))
        }
    }

    #[test]
    fn a_client_without_progress_is_stalled_after_the_limit() {
        let mut story = Story::new(2);
        assert_eq!(story.ends(60_000, &[(0, 10), (1, 10)]), None, "nothing is there to be read");
        assert_eq!(story.ends(61_000, &[(0, 10), (1, 12)]), None, "it has just come");
        assert_eq!(story.ends(63_900, &[(0, 10), (1, 12)]), None);
        let stall = story.ends(64_000, &[(0, 10), (1, 12)]).unwrap();
        assert_eq!(stall, Stall { is_client_silent: true, partitions: 1, first: 1, longest: BOUND });
        story.read_offsets.set(TOPIC, 1, 11);
        story.detector.record_activity(story.at(64_500));
        assert_eq!(story.ends(65_000, &[(0, 10), (1, 12)]), None, "it goes on");
        assert_eq!(story.ends(67_000, &[(0, 10), (1, 12)]), None, "from then on it waits anew");
    }

    #[test]
    fn a_partition_that_stands_while_others_are_read_is_given_twice_the_time() {
        let mut story = Story::new(2);
        for second in 0..6 {
            story.read_offsets.set(TOPIC, 0, 11 + i64::try_from(second).unwrap());
            story.detector.record_activity(story.at(second * 1_000));
            assert_eq!(story.ends(second * 1_000, &[(0, 100), (1, 12)]), None, "{second}");
        }
        story.detector.record_activity(story.at(6_000));
        let stall = story.ends(6_000, &[(1, 12)]).unwrap();
        assert_eq!(stall, Stall { is_client_silent: false, partitions: 1, first: 1, longest: BOUND * 2 });
    }

    #[test]
    fn what_was_assigned_owes_a_sign_even_where_nothing_is_to_be_read() {
        let mut story = Story::new(2);
        story.detector.client_replaced(story.at(0));
        (0..2).for_each(|index| story.detector.assigned(index, 10));
        assert_eq!(story.ends(0, &[(0, 10), (1, 10)]), None);
        story.detector.record_event(0, false);
        let stall = story.ends(3_000, &[(0, 10), (1, 10)]).unwrap();
        assert_eq!((stall.partitions, stall.first), (1, 1), "the other one showed that it is at its end");
        story.detector.dropped(1, 10);
        assert_eq!(story.detector.stall(story.at(3_000)), None, "its topic was deleted");
    }

    #[test]
    fn no_wait_counts_in_which_the_leader_did_not_answer_or_nothing_could_be_taken() {
        let mut story = Story::new(1);
        assert_eq!(story.ends(0, &[(0, 12)]), None);
        assert_eq!(story.detector.stall(story.at(60_000)), None, "by its leader's word alone");
        story.detector.interrupted(story.at(60_000));
        assert_eq!(story.ends(62_000, &[(0, 12)]), None, "a shard took nothing until then");
        assert!(story.ends(63_000, &[(0, 12)]).is_some());
    }

    #[test]
    fn what_the_user_may_not_read_is_no_fault_of_the_clients_and_any_other_error_is_a_sign_of_life() {
        let mut story = Story::new(2);
        story.detector.record_event(0, true);
        assert_eq!(story.ends(0, &[(0, 12), (1, 12)]), None);
        story.detector.record_event(1, false);
        assert_eq!(story.ends(4_000, &[(0, 12), (1, 12)]), None, "the error came between the looks");
        let stall = story.ends(7_000, &[(0, 12), (1, 12)]).unwrap();
        assert_eq!((stall.partitions, stall.first), (1, 1));
        story.detector.client_replaced(story.at(7_000));
        assert_eq!(story.detector.stall(story.at(7_000)), None);
    }

    #[test]
    fn replacements_that_help_nothing_come_ever_more_slowly_until_all_is_well() {
        let mut story = Story::new(1);
        story.ends(0, &[(0, 12)]);
        let replacements = |story: &mut Story, seconds: std::ops::Range<u64>| {
            let at: Vec<_> = seconds.map(|second| story.at(second * 1_000)).collect();
            at.into_iter().filter(|&at| story.detector.may_replace(at)).count()
        };
        assert_eq!(replacements(&mut story, 0..22), 4, "at 0, 3, 9 and 21 s");
        story.ends(22_000, &[(0, 12)]);
        assert_eq!(replacements(&mut story, 22..44), 0, "it still waits");
        story.read_offsets.set(TOPIC, 0, 12);
        story.ends(44_000, &[(0, 12)]);
        assert_eq!(replacements(&mut story, 45..52), 2, "at 45 and 48 s");
    }
}
