//! How far ingest is behind each topic's end: the sum over the topic's partitions. The ends are asked for by a thread
//! of their own, so that the lag grows while ingest waits for a shard; a partition that is read to its end has none.

use crate::ids::TopicIndex;
use crate::stream::batch::NextOffset;

use super::positions::Positions;

/// The partitions' ends, as they were last told.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// By the partition's place in [`Positions`]; 0 where none was told.
    ends: Vec<i64>,
}

impl Lag {
    /// Takes the ends that the cluster told of. A partition that is not among them keeps its last one.
    pub(super) fn ends_are(&mut self, ends: &[NextOffset], positions: &Positions) {
        self.ends.resize(positions.all().len(), 0);
        for end in ends {
            if let Some(place) = positions.place(end.topic, end.partition) {
                self.ends[place] = end.offset;
            }
        }
    }

    /// A partition was read to its end: here, at `end`. Without it a topic that was made anew, and is shorter now,
    /// would look as if it lagged until the ends are told again.
    pub(super) fn end_seen(&mut self, topic: TopicIndex, partition: i32, end: i64, positions: &Positions) {
        if let Some(place) = positions.place(topic, partition).filter(|&place| place < self.ends.len()) {
            self.ends[place] = end;
        }
    }

    /// Adds up each topic's lag in records: `by_topic` has a place for each topic.
    pub(super) fn sum_up(&self, positions: &Positions, by_topic: &mut [i64]) {
        by_topic.fill(0);
        for (at, end) in positions.all().iter().zip(&self.ends) {
            if let Some(sum) = by_topic.get_mut(usize::from(at.topic.0)) {
                *sum += (end - at.offset).max(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_grows_with_the_ends_shrinks_with_reading_and_is_none_at_the_end() {
        let (quiet, busy) = (TopicIndex(0), TopicIndex(1));
        let mut positions = Positions::default();
        positions.set(quiet, 0, 5);
        positions.set(busy, 0, 100);
        positions.set(busy, 1, 200);
        let mut lag = Lag::default();
        let mut by_topic = [0; 2];

        lag.sum_up(&positions, &mut by_topic);
        assert_eq!(by_topic, [0, 0], "nothing is known of the ends yet");

        let end = |topic, partition, offset| NextOffset { topic, partition, offset };
        lag.ends_are(&[end(quiet, 0, 6), end(busy, 0, 150), end(busy, 1, 210), end(TopicIndex(7), 0, 9)], &positions);
        lag.sum_up(&positions, &mut by_topic);
        assert_eq!(by_topic, [1, 60]);

        // The quiet topic's last offset is a transaction's marker: no record comes, but its end is told of.
        positions.set(quiet, 0, 6);
        lag.end_seen(quiet, 0, 6, &positions);
        positions.set(busy, 0, 160);
        lag.sum_up(&positions, &mut by_topic);
        assert_eq!(by_topic, [0, 10], "what was read beyond the known end does not offset another partition's lag");

        // Made anew, and shorter.
        positions.set(busy, 1, 3);
        lag.end_seen(busy, 1, 3, &positions);
        lag.sum_up(&positions, &mut by_topic);
        assert_eq!(by_topic, [0, 0]);
    }
}
