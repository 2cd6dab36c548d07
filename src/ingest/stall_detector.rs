//! Detects a consuming client without progress and decides when it is replaced. [`super::watcher`] reports what is left
//! to read, through another librdkafka client; [`super::reader`] replaces the client.
//!
//! No state of librdkafka may stop a pod. One is known: since 2.10 a client drops the brokers that a metadata answer
//! does not list; a broker that has just restarted may list none, and a client without brokers never finds one again.
//! So a partition is judged by its leader: if the log goes on behind what was read, records must arrive.
//!
//! ```text
//!              its end lies behind what was read,             for the bound
//!   at its end ----------------------------------> waits -----------------> stuck -> a new client
//!       ^      or the client has just got it         |                        |
//!       '------- a record, its end, an error --------'------------------------'
//! ```

use std::time::{Duration, Instant};

use crate::limits::CLIENT_REPLACEMENT_PAUSE_MAX;
use crate::stream::batch::NextOffset;

use super::read_offsets::ReadOffsets;

/// What is known of the progress of the client that reads.
#[derive(Debug)]
pub(super) struct StallDetector {
    /// So long may a partition wait for what its leader says that there is (`KAFKA_STALL_MS`).
    bound: Duration,
    /// By the partition's place in [`ReadOffsets`].
    entries: Vec<PartitionProgress>,
    /// Whether one of them waited for too long at the last look: they are gone through at a look alone.
    some_stuck: bool,
    /// From when on waits count: before it, the client could not show what it does.
    counts_from: Instant,
    /// When the client last gave anything at all.
    heard: Instant,
    /// Before this time the client isn't replaced again.
    renewed_until: Instant,
    /// The pause after the next replacement.
    pause: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct PartitionProgress {
    /// The offset that was to be read next at the last look.
    next: i64,
    /// The client has given nothing of it since it was assigned: each partition begins with a record, its end or an
    /// error.
    is_owed: bool,
    /// Nothing is expected of it: the client said that the pod's user may not read it, which another client would say,
    /// too; or it is no longer read.
    is_exempt: bool,
    /// Since when it waits.
    waits_since: Option<Instant>,
    /// How long it has waited, by the last look; zero where that is within the bound.
    stuck_for: Duration,
}

/// Partitions wait for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stall {
    /// Whether the client as a whole gives nothing.
    pub(super) is_whole: bool,
    /// How many partitions wait.
    pub(super) partitions: usize,
    /// One of them, by its place.
    pub(super) first: usize,
    /// How long the one that waits longest has waited.
    pub(super) longest: Duration,
}

impl StallDetector {
    /// Before anything is read.
    pub(super) fn new(bound: Duration, now: Instant) -> Self {
        Self {
            bound,
            entries: Vec::new(),
            some_stuck: false,
            counts_from: now,
            heard: now,
            renewed_until: now,
            pause: bound,
        }
    }

    /// The client was told to read a partition, from this offset on.
    pub(super) fn assigned(&mut self, index: usize, next: i64) {
        *self.entry(index) = PartitionProgress { next, is_owed: true, ..PartitionProgress::default() };
    }

    /// Nothing is expected of the partition, which stands at this offset.
    pub(super) fn dropped(&mut self, index: usize, next: i64) {
        *self.entry(index) = PartitionProgress { next, is_exempt: true, ..PartitionProgress::default() };
    }

    /// Whether the client has given nothing of the partition since it was assigned, or said that it may not be read.
    pub(super) fn has_no_events(&self, index: usize) -> bool {
        self.entries.get(index).is_none_or(|entry| entry.is_owed || entry.is_exempt)
    }

    /// The client said something of a partition that moves no offset: its end, or an error.
    pub(super) fn record_event(&mut self, index: usize, is_refused: bool) {
        let entry = self.entry(index);
        *entry = PartitionProgress {
            is_exempt: entry.is_exempt || is_refused,
            next: entry.next,
            ..PartitionProgress::default()
        };
    }

    /// The client gave something.
    pub(super) fn record_activity(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Nothing could be taken from the client until now: the process stood still, or a shard was waited for.
    pub(super) fn interrupted(&mut self, now: Instant) {
        self.counts_from = now;
        self.heard = now;
    }

    /// The leaders of these partitions told, after `asked`, where their logs end.
    pub(super) fn update_ends(&mut self, asked: Instant, ends: &[NextOffset], read_offsets: &ReadOffsets) {
        let (bound, counts_from) = (self.bound, self.counts_from);
        for end in ends {
            let Some(index) = read_offsets.index_of(end.topic, end.partition) else { continue };
            let next = read_offsets.all()[index].offset;
            let entry = self.entry(index);
            if entry.next != next {
                *entry = PartitionProgress { next, ..PartitionProgress::default() };
            }
            let waits = (entry.is_owed || next < end.offset) && !entry.is_exempt;
            let since = waits.then(|| entry.waits_since.unwrap_or(asked));
            let waited = since.map_or(Duration::ZERO, |since| asked.saturating_duration_since(since.max(counts_from)));
            entry.waits_since = since;
            entry.stuck_for = if waited >= bound { waited } else { Duration::ZERO };
        }
        self.some_stuck = self.entries.iter().any(|entry| !entry.stuck_for.is_zero());
        if self.entries.iter().all(|entry| entry.waits_since.is_none()) {
            // The next replacement comes at once again.
            self.pause = self.bound;
        }
    }

    /// The partitions that wait for too long, if any. While others of the client's give records, one may wait for twice
    /// as long: in a flood, partitions are fetched by turns.
    pub(super) fn stall(&self, now: Instant) -> Option<Stall> {
        if !self.some_stuck {
            return None;
        }
        let is_whole = now.saturating_duration_since(self.heard) >= self.bound;
        let patience = if is_whole { self.bound } else { self.bound * 2 };
        let stalled = || self.entries.iter().enumerate().filter(|(_, entry)| entry.stuck_for >= patience);
        let (first, _) = stalled().next()?;
        let longest = stalled().map(|(_, entry)| entry.stuck_for).max()?;
        Some(Stall { is_whole, partitions: stalled().count(), first, longest })
    }

    /// Whether the client is to be replaced because of that. One replacement after the other comes ever more slowly.
    pub(super) fn may_replace(&mut self, now: Instant) -> bool {
        if now < self.renewed_until {
            return false;
        }
        self.renewed_until = now + self.pause;
        self.pause = (self.pause * 2).min(CLIENT_REPLACEMENT_PAUSE_MAX);
        true
    }

    /// A new client reads from now on. Its partitions are assigned after this.
    pub(super) fn client_replaced(&mut self, now: Instant) {
        self.entries.fill(PartitionProgress::default());
        self.some_stuck = false;
        self.interrupted(now);
    }

    fn entry(&mut self, index: usize) -> &mut PartitionProgress {
        if self.entries.len() <= index {
            self.entries.resize(index + 1, PartitionProgress::default());
        }
        &mut self.entries[index]
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
        progress: StallDetector,
        read_offsets: ReadOffsets,
        start: Instant,
    }

    impl Story {
        fn new(partitions: i32) -> Self {
            let start = Instant::now();
            let (mut progress, mut read_offsets) = (StallDetector::new(BOUND, start), ReadOffsets::default());
            for partition in 0..partitions {
                read_offsets.set(TOPIC, partition, 10);
                let index = read_offsets.index_of(TOPIC, partition).unwrap();
                progress.assigned(index, 10);
                progress.record_event(index, false);
            }
            Self { progress, read_offsets, start }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        /// A question at this time was answered at once, by these ends; what that makes of it.
        fn ends(&mut self, ms: u64, ends: &[(i32, i64)]) -> Option<Stall> {
            let end = |&(partition, offset): &(i32, i64)| NextOffset { topic: TOPIC, partition, offset };
            let ends: Vec<_> = ends.iter().map(end).collect();
            self.progress.update_ends(self.at(ms), &ends, &self.read_offsets);
            self.progress.stall(self.at(ms))
        }
    }

    #[test]
    fn a_client_without_progress_is_stalled_after_the_limit() {
        let mut story = Story::new(2);
        assert_eq!(story.ends(60_000, &[(0, 10), (1, 10)]), None, "nothing is there to be read");
        assert_eq!(story.ends(61_000, &[(0, 10), (1, 12)]), None, "it has just come");
        assert_eq!(story.ends(63_900, &[(0, 10), (1, 12)]), None);
        let reader_stalled = story.ends(64_000, &[(0, 10), (1, 12)]).unwrap();
        assert_eq!(reader_stalled, Stall { is_whole: true, partitions: 1, first: 1, longest: BOUND });
        story.read_offsets.set(TOPIC, 1, 11);
        story.progress.record_activity(story.at(64_500));
        assert_eq!(story.ends(65_000, &[(0, 10), (1, 12)]), None, "it goes on");
        assert_eq!(story.ends(67_000, &[(0, 10), (1, 12)]), None, "from then on it waits anew");
    }

    #[test]
    fn a_partition_that_stands_while_others_are_read_is_given_twice_the_time() {
        let mut story = Story::new(2);
        for second in 0..6 {
            story.read_offsets.set(TOPIC, 0, 11 + i64::try_from(second).unwrap());
            story.progress.record_activity(story.at(second * 1_000));
            assert_eq!(story.ends(second * 1_000, &[(0, 100), (1, 12)]), None, "{second}");
        }
        story.progress.record_activity(story.at(6_000));
        let reader_stalled = story.ends(6_000, &[(1, 12)]).unwrap();
        assert_eq!(reader_stalled, Stall { is_whole: false, partitions: 1, first: 1, longest: BOUND * 2 });
    }

    #[test]
    fn what_was_assigned_owes_a_sign_even_where_nothing_is_to_be_read() {
        let mut story = Story::new(2);
        story.progress.client_replaced(story.at(0));
        (0..2).for_each(|index| story.progress.assigned(index, 10));
        assert_eq!(story.ends(0, &[(0, 10), (1, 10)]), None);
        story.progress.record_event(0, false);
        let reader_stalled = story.ends(3_000, &[(0, 10), (1, 10)]).unwrap();
        assert_eq!(
            (reader_stalled.partitions, reader_stalled.first),
            (1, 1),
            "the other one showed that it is at its end"
        );
        story.progress.dropped(1, 10);
        assert_eq!(story.progress.stall(story.at(3_000)), None, "its topic was deleted");
    }

    #[test]
    fn no_wait_counts_in_which_the_leader_did_not_answer_or_nothing_could_be_taken() {
        let mut story = Story::new(1);
        assert_eq!(story.ends(0, &[(0, 12)]), None);
        assert_eq!(story.progress.stall(story.at(60_000)), None, "by its leader's word alone");
        story.progress.interrupted(story.at(60_000));
        assert_eq!(story.ends(62_000, &[(0, 12)]), None, "a shard took nothing until then");
        assert!(story.ends(63_000, &[(0, 12)]).is_some());
    }

    #[test]
    fn what_the_user_may_not_read_is_no_fault_of_the_clients_and_any_other_error_is_a_sign_of_life() {
        let mut story = Story::new(2);
        story.progress.record_event(0, true);
        assert_eq!(story.ends(0, &[(0, 12), (1, 12)]), None);
        story.progress.record_event(1, false);
        assert_eq!(story.ends(4_000, &[(0, 12), (1, 12)]), None, "the error came between the looks");
        let reader_stalled = story.ends(7_000, &[(0, 12), (1, 12)]).unwrap();
        assert_eq!((reader_stalled.partitions, reader_stalled.first), (1, 1));
        story.progress.client_replaced(story.at(7_000));
        assert_eq!(story.progress.stall(story.at(7_000)), None);
    }

    #[test]
    fn replacements_that_help_nothing_come_ever_more_slowly_until_all_is_well() {
        let mut story = Story::new(1);
        story.ends(0, &[(0, 12)]);
        let renewals = |story: &mut Story, seconds: std::ops::Range<u64>| {
            let at: Vec<_> = seconds.map(|second| story.at(second * 1_000)).collect();
            at.into_iter().filter(|&at| story.progress.may_replace(at)).count()
        };
        assert_eq!(renewals(&mut story, 0..22), 4, "at 0, 3, 9 and 21 s");
        story.ends(22_000, &[(0, 12)]);
        assert_eq!(renewals(&mut story, 22..44), 0, "it still waits");
        story.read_offsets.set(TOPIC, 0, 12);
        story.ends(44_000, &[(0, 12)]);
        assert_eq!(renewals(&mut story, 45..52), 2, "at 45 and 48 s");
    }
}
