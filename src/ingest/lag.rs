//! The consumer lag per topic: the sum over its partitions up to the high watermark. End offsets are queried on another
//! thread, so that the lag grows while ingest waits for a shard. Also finds partitions held back by an open
//! transaction.

use std::time::{Duration, Instant};

use crate::ids::TopicIndex;
use crate::limits::OPEN_TRANSACTION_MIN;
use crate::stream::batch::NextOffset;

use super::read_offsets::ReadOffsets;

/// The partitions' ends, as last reported, by the partition's index in [`ReadOffsets`]; 0 if none was reported.
#[derive(Debug, Default)]
pub(super) struct ConsumerLag {
    /// The last stable offsets: behind each lies an open transaction, or nothing.
    stable: Vec<i64>,
    /// The high watermarks.
    high: Vec<i64>,
    /// The last stable offsets at which partitions stand that have more, and since when.
    held: Vec<Option<(i64, Instant)>>,
}

/// What an open transaction holds back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeldBackPartition {
    /// The partition, and its last stable offset.
    pub(super) at: NextOffset,
    pub(super) high_watermark: i64,
    /// For how long no record of it was read.
    pub(super) for_time: Duration,
}

impl ConsumerLag {
    /// Takes in the last stable offsets that the brokers reported. A partition that is not among them keeps its last one.
    pub(super) fn update_ends(&mut self, ends: &[NextOffset], read_offsets: &ReadOffsets) {
        self.stable.resize(read_offsets.all().len(), 0);
        for end in ends {
            if let Some(index) = read_offsets.index_of(end.topic, end.partition) {
                self.stable[index] = end.offset;
            }
        }
    }

    /// The end of the partition with this index, as last reported; 0 if none was reported.
    pub(super) fn end(&self, index: usize) -> i64 {
        let of = |ends: &[i64]| ends.get(index).copied().unwrap_or(0);
        of(&self.stable).max(of(&self.high))
    }

    /// Forgets the partition with this index.
    pub(super) fn forget(&mut self, index: usize) {
        self.stable.get_mut(index).into_iter().chain(self.high.get_mut(index)).for_each(|end| *end = 0);
        if let Some(held) = self.held.get_mut(index) {
            *held = None;
        }
    }

    /// Takes in the high watermarks, as of `asked` or later.
    pub(super) fn update_watermarks(&mut self, asked: Instant, high: &[NextOffset], read_offsets: &ReadOffsets) {
        self.stable.resize(read_offsets.all().len(), 0);
        self.high.resize(read_offsets.all().len(), 0);
        self.held.resize(read_offsets.all().len(), None);
        for end in high {
            let Some(index) = read_offsets.index_of(end.topic, end.partition) else { continue };
            self.high[index] = end.offset;
            let stable = self.stable[index];
            let is_held = stable < end.offset && stable <= read_offsets.all()[index].offset;
            let before = self.held[index].filter(|(before, _)| *before == stable);
            self.held[index] = is_held.then(|| before.unwrap_or((stable, asked)));
        }
    }

    /// A partition was read to its end: here, at `end`. Without it a recreated topic that is shorter now would
    /// seem to lag until the ends are reported again.
    pub(super) fn end_seen(&mut self, topic: TopicIndex, partition: i32, end: i64, read_offsets: &ReadOffsets) {
        if let Some(index) = read_offsets.index_of(topic, partition).filter(|&index| index < self.stable.len()) {
            self.stable[index] = end;
        }
    }

    /// Adds up each topic's lag in records: `by_topic` has a place for each topic.
    pub(super) fn sum_up(&self, read_offsets: &ReadOffsets, by_topic: &mut [i64]) {
        by_topic.fill(0);
        for (index, (at, stable)) in read_offsets.all().iter().zip(&self.stable).enumerate() {
            let end = self.high.get(index).map_or(*stable, |high| *high.max(stable));
            if let Some(sum) = by_topic.get_mut(usize::from(at.topic.0)) {
                *sum += (end - at.offset).max(0);
            }
        }
    }

    /// The partitions that have stood behind an open transaction for [`OPEN_TRANSACTION_MIN`]: it is more than one that
    /// is just being committed.
    pub(super) fn held<'a>(
        &'a self,
        read_offsets: &'a ReadOffsets,
        now: Instant,
    ) -> impl Iterator<Item = HeldBackPartition> + 'a {
        read_offsets.all().iter().enumerate().filter_map(move |(index, at)| {
            let (stable, since) = (*self.held.get(index)?)?;
            let for_time = now.saturating_duration_since(since);
            let at = NextOffset { offset: stable, ..*at };
            let held = HeldBackPartition { at, high_watermark: self.high[index], for_time };
            (for_time >= OPEN_TRANSACTION_MIN).then_some(held)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_grows_with_the_ends_shrinks_with_reading_and_is_none_at_the_end() {
        let (quiet, busy) = (TopicIndex(0), TopicIndex(1));
        let mut read_offsets = ReadOffsets::default();
        read_offsets.set(quiet, 0, 5);
        read_offsets.set(busy, 0, 100);
        read_offsets.set(busy, 1, 200);
        let mut lag = ConsumerLag::default();
        let mut by_topic = [0; 2];

        lag.sum_up(&read_offsets, &mut by_topic);
        assert_eq!(by_topic, [0, 0], "nothing is known of the ends yet");

        let end = |topic, partition, offset| NextOffset { topic, partition, offset };
        lag.update_ends(
            &[end(quiet, 0, 6), end(busy, 0, 150), end(busy, 1, 210), end(TopicIndex(7), 0, 9)],
            &read_offsets,
        );
        lag.sum_up(&read_offsets, &mut by_topic);
        assert_eq!(by_topic, [1, 60]);

        // The quiet topic's last offset is a transaction's marker: no record comes, but its end is reported.
        read_offsets.set(quiet, 0, 6);
        lag.end_seen(quiet, 0, 6, &read_offsets);
        read_offsets.set(busy, 0, 160);
        lag.sum_up(&read_offsets, &mut by_topic);
        assert_eq!(by_topic, [0, 10], "what was read beyond the known end does not offset another partition's lag");

        // Recreated, and shorter.
        read_offsets.set(busy, 1, 3);
        lag.end_seen(busy, 1, 3, &read_offsets);
        lag.sum_up(&read_offsets, &mut by_topic);
        assert_eq!(by_topic, [0, 0]);
    }

    #[test]
    fn what_lies_behind_an_open_transaction_is_lag_and_its_partition_is_told_after_a_while() {
        let (topic, start) = (TopicIndex(0), Instant::now());
        let at = |offset| [NextOffset { topic, partition: 0, offset }];
        let mut read_offsets = ReadOffsets::default();
        read_offsets.set(topic, 0, 100);
        let mut lag = ConsumerLag::default();
        let mut look = |read, stable, high, seconds| {
            read_offsets.set(topic, 0, read);
            let now = start + Duration::from_secs(seconds);
            lag.update_ends(&at(stable), &read_offsets);
            lag.update_watermarks(now, &at(high), &read_offsets);
            let mut by_topic = [0];
            lag.sum_up(&read_offsets, &mut by_topic);
            (by_topic[0], lag.held(&read_offsets, now).map(|held| (held.at.offset, held.high_watermark)).next())
        };
        assert_eq!(look(100, 100, 101, 0), (1, None), "it may be committed at once");
        assert_eq!(look(100, 100, 1_101, 4), (1_001, None));
        assert_eq!(look(100, 100, 1_101, 5), (1_001, Some((100, 1_101))));
        assert_eq!(look(100, 1_102, 1_102, 6), (1_002, None), "committed");
        assert_eq!(look(1_102, 1_102, 1_102, 7), (0, None));
        assert_eq!(look(1_102, 1_103, 1_110, 8), (8, None), "there is something to read yet");
        assert_eq!(look(1_103, 1_103, 1_110, 9), (7, None));
        assert_eq!(look(1_105, 1_105, 1_110, 20), (5, None), "it goes on, if slowly");
    }
}
