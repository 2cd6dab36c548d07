//! Where reading starts, and when the history is filled. These are rules on offsets that [`super::watcher`] queries, in
//! this order: the end offsets, the offsets of `HISTORY_SECONDS` ago, the start offsets.

use crate::ids::TopicIndex;
use crate::limits::START_RECORDS_MIN;

use super::read_offsets::ReadOffsets;

/// The offsets of one partition. The end is that of `read_committed`: no open transaction lies below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StartOffsets {
    /// The first offset that is still there.
    pub(super) beginning: i64,
    /// The first record that is young enough for the history; `None` if there is none, or if the brokers don't answer.
    pub(super) since: Option<i64>,
    /// The offset behind the last record.
    pub(super) end: i64,
}

impl StartOffsets {
    /// The start offset: at the history's time, but at least the last hundred records, since the end of a quiet topic
    /// may be control records only, which must not expire its cursors.
    pub(super) fn start(self) -> i64 {
        let records_min = self.end.saturating_sub(START_RECORDS_MIN);
        // Retention may have passed the end by now. Then the next record comes at the beginning.
        self.since.map_or(records_min, |since| since.min(records_min)).max(self.beginning)
    }

    /// The offset from which on records are young enough for the history.
    pub(super) fn recent(self) -> i64 {
        self.since.unwrap_or(self.end).max(self.start())
    }
}

/// A partition to be read, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartitionStart {
    pub(super) topic: TopicIndex,
    pub(super) partition: i32,
    /// The first offset to read.
    pub(super) offset: i64,
    /// The offset from which on records are young enough for the history. Older ones are read, too.
    pub(super) recent: i64,
    /// Where the partition ended when it was found.
    pub(super) end: i64,
}

/// What a partition holds whose read offset was out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogRange {
    /// The first offset that is still there.
    pub(super) beginning: i64,
    /// The offset behind the last record.
    pub(super) end: i64,
}

impl LogRange {
    /// Where reading continues if `next` is out of range. It is above the end only if the elected leader lacked the
    /// log's last records; to start again from the beginning would duplicate the others.
    pub(super) fn resume_from(self, next: i64) -> i64 {
        next.min(self.end).max(self.beginning)
    }
}

/// The partitions found at start that are not yet read to the ends that they had then. Later partitions don't count.
#[derive(Debug)]
pub(super) struct Filling {
    left: Vec<PartitionStart>,
}

impl Filling {
    /// With all partitions found at start.
    pub(super) fn new(starts: &[PartitionStart]) -> Self {
        Self { left: starts.to_vec() }
    }

    /// The consumer reported that a partition is read to its end. Only this is certain to happen: control records and
    /// aborted records, which are never delivered, may follow the last record.
    pub(super) fn end_seen(&mut self, topic: TopicIndex, partition: i32) {
        self.left.retain(|start| (start.topic, start.partition) != (topic, partition));
    }

    /// Stops waiting for the partitions that can't be read, and returns them.
    pub(super) fn give_up(&mut self, mut is_silent: impl FnMut(&PartitionStart) -> bool) -> Vec<PartitionStart> {
        let (given_up, left) = self.left.iter().partition(|start| is_silent(start));
        self.left = left;
        given_up
    }

    /// Stops waiting for a topic that is gone.
    pub(super) fn retired(&mut self, topic: TopicIndex) {
        self.left.retain(|start| start.topic != topic);
    }

    /// Stops waiting for partitions that are read to the ends that they had at start. Of a partition that is written
    /// without a pause, the consumer never reports the end.
    pub(super) fn check(&mut self, read_offsets: &ReadOffsets) {
        self.left.retain(|start| read_offsets.next(start.topic, start.partition).is_none_or(|next| next < start.end));
    }

    /// Whether all were read.
    pub(super) fn is_done(&self) -> bool {
        self.left.is_empty()
    }

    /// Offsets still to be read, for the log: an upper bound of the records.
    pub(super) fn offsets_left(&self, read_offsets: &ReadOffsets) -> i64 {
        let left = |start: &PartitionStart| {
            start.end - read_offsets.next(start.topic, start.partition).unwrap_or(start.offset)
        };
        self.left.iter().map(|start| left(start).max(0)).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reading_starts_at_the_historys_time_or_a_hundred_records_back_but_never_below_the_beginning() {
        let start = |beginning, since, end| StartOffsets { beginning, since, end }.start();
        assert_eq!(start(0, Some(5_000), 9_000), 5_000, "busy: the time decides");
        assert_eq!(start(0, Some(8_990), 9_000), 8_900, "nearly quiet: at least the last hundred");
        assert_eq!(start(0, None, 9_000), 8_900, "quiet: nothing is younger");
        assert_eq!(start(0, None, 30), 0, "fewer than a hundred in all");
        assert_eq!(start(8_950, None, 9_000), 8_950, "retention left fewer");
        assert_eq!(start(7_000, Some(6_000), 9_000), 7_000, "retention passed the time between the questions");
        assert_eq!(start(9_000, None, 9_000), 9_000, "all was deleted");
        assert_eq!(start(0, None, 0), 0, "never written");
        let recent = |beginning, since, end| StartOffsets { beginning, since, end }.recent();
        assert_eq!(recent(0, Some(8_990), 9_000), 8_990, "what comes before is there besides");
        assert_eq!((recent(0, None, 9_000), recent(7_000, Some(6_000), 9_000)), (9_000, 7_000));
    }

    proptest! {
        #[test]
        fn a_start_is_never_deleted_and_leaves_out_no_record_of_the_window(
            beginning in 0i64..10_000, length in 0i64..10_000, since in proptest::option::of(0i64..20_000),
        ) {
            let end = beginning + length;
            let start = StartOffsets { beginning, since, end }.start();
            prop_assert!((beginning..=end).contains(&start));
            prop_assert!(since.is_none_or(|since| start <= since.max(beginning)));
            prop_assert!(end - start >= length.min(START_RECORDS_MIN));
        }
    }

    #[test]
    fn filled_is_when_each_partition_was_read_to_its_end_as_it_was_or_was_told_to_be_at_its_end() {
        let topic = TopicIndex(0);
        let starts = [0, 1, 2].map(|partition| PartitionStart { topic, partition, offset: 10, recent: 10, end: 20 });
        let mut read_offsets = ReadOffsets::default();
        for start in starts {
            read_offsets.set(topic, start.partition, start.offset);
        }
        let mut filling = Filling::new(&starts);
        filling.check(&read_offsets);
        assert_eq!(filling.offsets_left(&read_offsets), 30);

        // One is written too fast for its end to be reported: its offset passes the end that it had at start.
        read_offsets.set(topic, 0, 25);
        // One ends in control records: its last record is below, and the consumer reports the end.
        read_offsets.set(topic, 1, 18);
        filling.end_seen(topic, 1);
        filling.check(&read_offsets);
        assert!(!filling.is_done());
        assert_eq!(filling.offsets_left(&read_offsets), 10);

        // The last one is read record by record. A later partition does not count.
        filling.end_seen(topic, 7);
        read_offsets.set(topic, 2, 19);
        filling.check(&read_offsets);
        assert!(!filling.is_done());
        read_offsets.set(topic, 2, 20);
        filling.check(&read_offsets);
        assert!(filling.is_done());
    }

    #[test]
    fn a_topic_that_is_deleted_meanwhile_holds_nothing_back() {
        let start =
            |topic, partition| PartitionStart { topic: TopicIndex(topic), partition, offset: 10, recent: 10, end: 20 };
        let mut filling = Filling::new(&[start(0, 0), start(0, 1), start(1, 0)]);
        filling.retired(TopicIndex(0));
        assert!(!filling.is_done());
        filling.end_seen(TopicIndex(1), 0);
        assert!(filling.is_done());
    }

    #[test]
    fn where_a_partition_goes_on_that_is_out_of_range() {
        let outside = |next| LogRange { beginning: 100, end: 200 }.resume_from(next);
        assert_eq!(outside(40), 100, "deleted before they were read");
        assert_eq!(outside(250), 200, "the log lost its end");
        assert_eq!(outside(150), 150, "by the time of the question it is within range: nothing is skipped");
    }

    #[test]
    fn a_cluster_without_a_topic_to_read_is_filled_at_once() {
        assert!(Filling::new(&[]).is_done());
    }
}
