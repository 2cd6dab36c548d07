//! Where ingest stands: for each partition that it reads, the next offset. It owns the dense numbering of the
//! partitions, by which the batcher and the lag keep what they know of each; where a partition starts is
//! [`super::startup`]'s.

use crate::ids::TopicIndex;
use crate::stream::batch::NextOffset;

/// The next offset of each partition that is read, in the order in which ingest came to know them.
#[derive(Debug, Default)]
pub(super) struct Positions {
    /// By topic, then by partition: the place in `entries`.
    places: Vec<Vec<Option<usize>>>,
    entries: Vec<NextOffset>,
    /// Places of partitions that were forgotten.
    free: Vec<usize>,
}

/// What stands at the place of a partition that was forgotten.
const FORGOTTEN: NextOffset = NextOffset { topic: TopicIndex::NONE, partition: -1, offset: i64::MAX };

impl Positions {
    /// Everything below `next` is read or will never be, whether the partition was known before or not. It may go
    /// back: a log that lost its end goes on where it ends now.
    pub(super) fn set(&mut self, topic: TopicIndex, partition: i32, next: i64) {
        let Some(column) = column(partition) else { return };
        let row = usize::from(topic.0);
        if self.places.len() <= row {
            self.places.resize_with(row + 1, Vec::new);
        }
        let places = &mut self.places[row];
        if places.len() <= column {
            places.resize(column + 1, None);
        }
        match places[column] {
            Some(place) => self.entries[place].offset = next,
            None => {
                let place = self.free.pop().unwrap_or_else(|| {
                    self.entries.push(FORGOTTEN);
                    self.entries.len() - 1
                });
                places[column] = Some(place);
                self.entries[place] = NextOffset { topic, partition, offset: next };
            }
        }
    }

    /// Forgets a topic's partitions: others get their places, which are returned.
    pub(super) fn forget(&mut self, topic: TopicIndex) -> Vec<usize> {
        let Some(places) = self.places.get_mut(usize::from(topic.0)) else { return Vec::new() };
        let places: Vec<usize> = std::mem::take(places).into_iter().flatten().collect();
        for &place in &places {
            self.entries[place] = FORGOTTEN;
        }
        self.free.extend_from_slice(&places);
        places
    }

    /// The partition's place in [`Self::all`], which it keeps until it is forgotten.
    pub(super) fn place(&self, topic: TopicIndex, partition: i32) -> Option<usize> {
        *self.places.get(usize::from(topic.0))?.get(column(partition)?)?
    }

    /// The next offset, if the partition is read.
    pub(super) fn next(&self, topic: TopicIndex, partition: i32) -> Option<i64> {
        Some(self.entries[self.place(topic, partition)?].offset)
    }

    /// How many partitions a topic has, as far as is known.
    pub(super) fn partitions(&self, topic: TopicIndex) -> u32 {
        let known = self.places.get(usize::from(topic.0)).map_or(0, Vec::len);
        u32::try_from(known).expect("Kafka numbers partitions with 31 bits")
    }

    /// The partitions of a topic.
    pub(super) fn of(&self, topic: TopicIndex) -> impl Iterator<Item = NextOffset> {
        self.entries.iter().copied().filter(move |at| at.topic == topic)
    }

    /// All partitions, each always in the same place; those of topics that are not read any more included. Where one was
    /// forgotten stands [`TopicIndex::NONE`].
    pub(super) fn all(&self) -> &[NextOffset] {
        &self.entries
    }
}

/// Kafka numbers partitions from 0; what is negative is none.
fn column(partition: i32) -> Option<usize> {
    usize::try_from(partition).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_a_topic_that_is_forgotten_are_given_to_others() {
        let (first, second) = (TopicIndex(0), TopicIndex(1));
        let mut positions = Positions::default();
        (0..3).for_each(|partition| positions.set(first, partition, 7));
        positions.set(second, 0, 8);
        assert_eq!(positions.forget(first), [0, 1, 2]);
        assert_eq!((positions.next(first, 0), positions.partitions(first), positions.of(first).count()), (None, 0, 0));
        positions.set(first, 1, 9);
        assert_eq!((positions.place(first, 1), positions.next(second, 0)), (Some(2), Some(8)));
        assert_eq!(positions.all().iter().filter(|at| at.topic == TopicIndex::NONE).count(), 2);
        assert_eq!(positions.all().len(), 4);
    }

    #[test]
    fn a_partition_keeps_its_place_while_others_come_and_its_offset_moves_both_ways() {
        let (ticks, orders) = (TopicIndex(0), TopicIndex(1));
        let mut positions = Positions::default();
        positions.set(orders, 2, 40);
        positions.set(ticks, 0, 7);
        assert_eq!(positions.place(orders, 2), Some(0));
        assert_eq!([ticks, orders, TopicIndex(2)].map(|topic| positions.partitions(topic)), [1, 3, 0]);

        positions.set(orders, 0, 3);
        positions.set(orders, 2, 41);
        assert_eq!(positions.place(orders, 2), Some(0));
        assert_eq!(positions.next(orders, 2), Some(41));
        positions.set(orders, 2, 0);
        assert_eq!(positions.next(orders, 2), Some(0));
        assert_eq!(positions.of(orders).map(|at| at.partition).collect::<Vec<_>>(), [2, 0]);

        assert_eq!(positions.next(orders, 1), None, "between two that are read, but not read itself");
        assert_eq!(positions.next(TopicIndex(9), 0), None);
        assert_eq!(positions.next(ticks, -1), None);
        let all: Vec<_> = positions.all().iter().map(|at| (at.topic, at.partition, at.offset)).collect();
        assert_eq!(all, [(orders, 2, 0), (ticks, 0, 7), (orders, 0, 3)]);
    }
}
