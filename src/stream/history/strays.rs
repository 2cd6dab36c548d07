//! Misplaced records: of each log that has some, on which partitions. So the partitions of a log are listed without
//! visiting its entries.

use std::collections::BTreeMap;

use slotmap::Key;

use super::segment::Segment;
use super::{AssessmentLogKey, History};
use crate::stream::offsets::PartitionId;

/// Logs with misplaced records in the window.
#[derive(Debug, Default)]
pub(super) struct Strays {
    by_log: BTreeMap<(u64, PartitionId), Stray>,
}

#[derive(Debug)]
struct Stray {
    /// How many are in the window.
    entries: u32,
    /// The offset of the newest one; where the log lost that, the last that it has.
    newest: i64,
}

/// What one partition of a log costs, in bytes of memory.
const COST: usize = size_of::<((u64, PartitionId), Stray)>();

impl Strays {
    /// The partitions on which a log has misplaced records.
    pub(super) fn of(&self, log: AssessmentLogKey) -> impl Iterator<Item = PartitionId> + '_ {
        let log = log.data().as_ffi();
        let all = self.by_log.range((log, PartitionId::FIRST)..);
        all.take_while(move |((of, _), _)| *of == log).map(|((_, partition_id), _)| *partition_id)
    }

    /// The offset of a log's newest misplaced record on a partition.
    pub(super) fn newest(&self, log: AssessmentLogKey, partition_id: PartitionId) -> Option<i64> {
        self.by_log.get(&(log.data().as_ffi(), partition_id)).map(|stray| stray.newest)
    }
}

impl History {
    /// A misplaced record came.
    pub(super) fn stray_comes(&mut self, log: AssessmentLogKey, partition_id: PartitionId, offset: i64) {
        let key = (log.data().as_ffi(), partition_id);
        let bytes = &mut self.bytes;
        let stray = self.strays.by_log.entry(key).or_insert_with(|| {
            *bytes += COST;
            Stray { entries: 0, newest: offset }
        });
        stray.entries += 1;
        stray.newest = offset.max(stray.newest);
    }

    /// One of a log's misplaced records left the window, or the Kafka log.
    pub(super) fn stray_goes(&mut self, log: AssessmentLogKey, partition_id: PartitionId) {
        let key = (log.data().as_ffi(), partition_id);
        let Some(stray) = self.strays.by_log.get_mut(&key) else { return };
        stray.entries -= 1;
        if stray.entries == 0 {
            self.strays.by_log.remove(&key);
            self.bytes -= COST;
        }
    }

    /// The misplaced records of a segment leave the window with it.
    pub(super) fn forget_strays(&mut self, segment: &Segment) {
        for entry in segment.strays() {
            let origin = entry.record.origin;
            if let Some(partition_id) = self.offsets.partition_id(origin.topic, origin.partition) {
                self.stray_goes(entry.log, partition_id);
            }
        }
    }

    /// Truncated logs lost these, each of an assessment log, with what the truncated log lost.
    pub(super) fn strays_are_cut(&mut self, lost: &[(AssessmentLogKey, (PartitionId, i64))]) {
        for &(log, (partition_id, from)) in lost {
            if let Some(stray) = self.strays.by_log.get_mut(&(log.data().as_ffi(), partition_id)) {
                stray.newest = stray.newest.min(from - 1);
            }
            self.stray_goes(log, partition_id);
        }
    }
}
