//! The read offsets: for each partition that ingest reads, the next offset. It gives each partition an index, by which
//! the batcher and the lag keep what they know of it. [`super::startup`] decides where a partition starts.

use crate::ids::TopicIndex;
use crate::stream::batch::NextOffset;

/// The next offset of each partition that is read, in the order in which ingest came to know them.
#[derive(Debug, Default)]
pub(super) struct ReadOffsets {
    /// By topic, then by partition: the index in `entries`.
    indexes: Vec<Vec<Option<usize>>>,
    entries: Vec<NextOffset>,
    /// Indexes of partitions that were forgotten.
    free: Vec<usize>,
}

/// The entry at an index whose partition was forgotten.
const FORGOTTEN: NextOffset = NextOffset { topic: TopicIndex::NONE, partition: -1, offset: i64::MAX };

impl ReadOffsets {
    /// Sets a partition's next offset; adds the partition if it is not known. The offset may go back: a log that lost
    /// its end continues from its new end.
    pub(super) fn set(&mut self, topic: TopicIndex, partition: i32, next: i64) {
        let Some(column) = column(partition) else { return };
        let row = usize::from(topic.0);
        if self.indexes.len() <= row {
            self.indexes.resize_with(row + 1, Vec::new);
        }
        let indexes = &mut self.indexes[row];
        if indexes.len() <= column {
            indexes.resize(column + 1, None);
        }
        match indexes[column] {
            Some(index) => self.entries[index].offset = next,
            None => {
                let index = self.free.pop().unwrap_or_else(|| {
                    self.entries.push(FORGOTTEN);
                    self.entries.len() - 1
                });
                indexes[column] = Some(index);
                self.entries[index] = NextOffset { topic, partition, offset: next };
            }
        }
    }

    /// Forgets a topic's partitions. Returns their indexes, which other partitions get.
    pub(super) fn forget(&mut self, topic: TopicIndex) -> Vec<usize> {
        let Some(indexes) = self.indexes.get_mut(usize::from(topic.0)) else { return Vec::new() };
        let indexes: Vec<usize> = std::mem::take(indexes).into_iter().flatten().collect();
        for &index in &indexes {
            self.entries[index] = FORGOTTEN;
        }
        self.free.extend_from_slice(&indexes);
        indexes
    }

    /// The partition's index in [`Self::all`], which it keeps until it is forgotten.
    pub(super) fn index_of(&self, topic: TopicIndex, partition: i32) -> Option<usize> {
        *self.indexes.get(usize::from(topic.0))?.get(column(partition)?)?
    }

    /// The next offset, if the partition is read.
    pub(super) fn next(&self, topic: TopicIndex, partition: i32) -> Option<i64> {
        Some(self.entries[self.index_of(topic, partition)?].offset)
    }

    /// How many partitions a topic has, as far as is known.
    pub(super) fn partitions(&self, topic: TopicIndex) -> u32 {
        let known = self.indexes.get(usize::from(topic.0)).map_or(0, Vec::len);
        u32::try_from(known).expect("Kafka numbers partitions with 31 bits")
    }

    /// The partitions of a topic.
    pub(super) fn of(&self, topic: TopicIndex) -> impl Iterator<Item = NextOffset> {
        self.entries.iter().copied().filter(move |at| at.topic == topic)
    }

    /// All partitions, by index; also those of topics that are no longer read. The entry of a forgotten partition has
    /// the topic [`TopicIndex::NONE`].
    pub(super) fn all(&self) -> &[NextOffset] {
        &self.entries
    }
}

/// A partition's number as an index; `None` if it is negative, since Kafka numbers partitions from 0.
fn column(partition: i32) -> Option<usize> {
    usize::try_from(partition).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_of_a_forgotten_topic_are_given_to_others() {
        let (first, second) = (TopicIndex(0), TopicIndex(1));
        let mut read_offsets = ReadOffsets::default();
        (0..3).for_each(|partition| read_offsets.set(first, partition, 7));
        read_offsets.set(second, 0, 8);
        assert_eq!(read_offsets.forget(first), [0, 1, 2]);
        assert_eq!(
            (read_offsets.next(first, 0), read_offsets.partitions(first), read_offsets.of(first).count()),
            (None, 0, 0)
        );
        read_offsets.set(first, 1, 9);
        assert_eq!((read_offsets.index_of(first, 1), read_offsets.next(second, 0)), (Some(2), Some(8)));
        assert_eq!(read_offsets.all().iter().filter(|at| at.topic == TopicIndex::NONE).count(), 2);
        assert_eq!(read_offsets.all().len(), 4);
    }

    #[test]
    fn a_partition_keeps_its_index_while_others_come_and_its_offset_moves_both_ways() {
        let (ticks, orders) = (TopicIndex(0), TopicIndex(1));
        let mut read_offsets = ReadOffsets::default();
        read_offsets.set(orders, 2, 40);
        read_offsets.set(ticks, 0, 7);
        assert_eq!(read_offsets.index_of(orders, 2), Some(0));
        assert_eq!([ticks, orders, TopicIndex(2)].map(|topic| read_offsets.partitions(topic)), [1, 3, 0]);

        read_offsets.set(orders, 0, 3);
        read_offsets.set(orders, 2, 41);
        assert_eq!(read_offsets.index_of(orders, 2), Some(0));
        assert_eq!(read_offsets.next(orders, 2), Some(41));
        read_offsets.set(orders, 2, 0);
        assert_eq!(read_offsets.next(orders, 2), Some(0));
        assert_eq!(read_offsets.of(orders).map(|at| at.partition).collect::<Vec<_>>(), [2, 0]);

        assert_eq!(read_offsets.next(orders, 1), None, "between two that are read, but not read itself");
        assert_eq!(read_offsets.next(TopicIndex(9), 0), None);
        assert_eq!(read_offsets.next(ticks, -1), None);
        let all: Vec<_> = read_offsets.all().iter().map(|at| (at.topic, at.partition, at.offset)).collect();
        assert_eq!(all, [(orders, 2, 0), (ticks, 0, 7), (orders, 0, 3)]);
    }
}
