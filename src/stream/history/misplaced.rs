//! The misplaced records of the window, counted by assessment log and partition. So a log's partitions are listed
//! without visiting its entries.

use std::collections::BTreeMap;

use slotmap::Key;

use super::segment::Segment;
use super::{AssessmentLogKey, History};
use crate::stream::offsets::PartitionId;

/// Logs with misplaced records in the window.
#[derive(Debug, Default)]
pub(super) struct MisplacedRecords {
    by_log: BTreeMap<(u64, PartitionId), MisplacedOnPartition>,
}

#[derive(Debug)]
struct MisplacedOnPartition {
    /// Number of its entries in the window.
    entries: u32,
    /// The offset of the newest one. If the Kafka log has lost that one: the last offset that the log kept.
    newest: i64,
}

/// Memory for one partition of a log, in bytes.
const COST: usize = size_of::<((u64, PartitionId), MisplacedOnPartition)>();

impl MisplacedRecords {
    /// The partitions on which a log has misplaced records.
    pub(super) fn of(&self, log: AssessmentLogKey) -> impl Iterator<Item = PartitionId> + '_ {
        let log = log.data().as_ffi();
        let all = self.by_log.range((log, PartitionId::FIRST)..);
        all.take_while(move |((of, _), _)| *of == log).map(|((_, partition_id), _)| *partition_id)
    }

    /// The offset of a log's newest misplaced record on a partition.
    pub(super) fn newest(&self, log: AssessmentLogKey, partition_id: PartitionId) -> Option<i64> {
        self.by_log.get(&(log.data().as_ffi(), partition_id)).map(|on_partition| on_partition.newest)
    }
}

impl History {
    /// A misplaced record was added to the window.
    pub(super) fn add_misplaced(&mut self, log: AssessmentLogKey, partition_id: PartitionId, offset: i64) {
        let key = (log.data().as_ffi(), partition_id);
        let bytes = &mut self.bytes;
        let on_partition = self.misplaced.by_log.entry(key).or_insert_with(|| {
            *bytes += COST;
            MisplacedOnPartition { entries: 0, newest: offset }
        });
        on_partition.entries += 1;
        on_partition.newest = offset.max(on_partition.newest);
    }

    /// One of a log's misplaced records left the window, or the Kafka log.
    pub(super) fn remove_misplaced(&mut self, log: AssessmentLogKey, partition_id: PartitionId) {
        let key = (log.data().as_ffi(), partition_id);
        let Some(on_partition) = self.misplaced.by_log.get_mut(&key) else { return };
        on_partition.entries -= 1;
        if on_partition.entries == 0 {
            self.misplaced.by_log.remove(&key);
            self.bytes -= COST;
        }
    }

    /// The misplaced records of a segment leave the window with it.
    pub(super) fn forget_misplaced(&mut self, segment: &Segment) {
        for entry in segment.misplaced() {
            let origin = entry.record.origin;
            if let Some(partition_id) = self.offsets.partition_id(origin.topic, origin.partition) {
                self.remove_misplaced(entry.log, partition_id);
            }
        }
    }

    /// Truncated Kafka logs lost these misplaced records: the assessment log of each, and the truncation.
    pub(super) fn truncate_misplaced(&mut self, lost: &[(AssessmentLogKey, (PartitionId, i64))]) {
        for &(log, (partition_id, from)) in lost {
            if let Some(on_partition) = self.misplaced.by_log.get_mut(&(log.data().as_ffi(), partition_id)) {
                on_partition.newest = on_partition.newest.min(from - 1);
            }
            self.remove_misplaced(log, partition_id);
        }
    }
}
