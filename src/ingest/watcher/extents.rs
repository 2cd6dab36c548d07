//! Queries the offsets of partitions that are new, or whose read offsets are out of range.
//! [`super::super::startup`] decides where reading starts.

use std::sync::Arc;

use rdkafka::error::KafkaError;
use tracing::warn;

use super::WatcherThread;
use crate::clock::{Now, whole_ms};
use crate::ids::TopicIndex;
use crate::ingest::catalogue::Changes;
use crate::ingest::metadata_client::{OffsetQuery, Partition};
use crate::ingest::startup::{LogRange, PartitionStart, StartOffsets};
use crate::limits::{METADATA_TIMEOUT, PROBE_TIMEOUT, START_QUERY_TIMEOUT};
use crate::routing::table::Topic;

/// From where on a partition is read that is new to the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beginning {
    /// With what it holds of the history's time.
    Window,
    /// With what comes from now on.
    End,
    /// With its first record: it came after the start, and all that it holds is new.
    First,
}

impl WatcherThread {
    /// Where new partitions are to be read from.
    pub(super) fn starts(
        &self,
        initial: bool,
        changes: &Changes,
        topics: &[Arc<Topic>],
    ) -> Result<Vec<PartitionStart>, KafkaError> {
        let is_market =
            |topic: TopicIndex| topics.get(usize::from(topic.0)).is_some_and(|topic| topic.market().is_some());
        let beginning = |topic| match (initial, changes.met_by_routes.contains(&topic)) {
            (true, _) => Beginning::Window,
            // The board is filled as at the start. Of events, no client was promised any so far.
            (false, true) if is_market(topic) => Beginning::Window,
            (false, true) => Beginning::End,
            (false, false) => Beginning::First,
        };
        let mut starts = Vec::with_capacity(changes.fresh.len());
        for kind in [Beginning::Window, Beginning::End, Beginning::First] {
            let fresh: Vec<_> = changes.fresh.iter().copied().filter(|&(topic, _)| beginning(topic) == kind).collect();
            let extents = self.extents(kind, &names_of(&fresh, topics))?;
            starts.extend(fresh.iter().zip(extents).map(|(&(topic, partition), extent)| PartitionStart {
                topic,
                partition,
                offset: extent.start(),
                recent: extent.recent(),
                end: extent.end,
            }));
        }
        Ok(starts)
    }

    /// What is left of the partitions that are out of range, as far as their leaders tell.
    pub(super) fn restarts(
        &self,
        led_partitions: &[(TopicIndex, i32)],
        topics: &[Arc<Topic>],
    ) -> Vec<((TopicIndex, i32), LogRange)> {
        let asked: Vec<_> =
            led_partitions.iter().copied().filter(|partition| self.out_of_range.contains(partition)).collect();
        let names = names_of(&asked, topics);
        let offsets = |index| self.cluster.offsets(&names, index, PROBE_TIMEOUT);
        // Those without an answer are queried again in the next turn.
        let (Ok(beginnings), Ok(ends)) = (offsets(OffsetQuery::Beginning), offsets(OffsetQuery::End)) else {
            return Vec::new();
        };
        let bounds = beginnings.into_iter().zip(ends);
        let range = |(beginning, end): (Option<i64>, Option<i64>)| Some(LogRange { beginning: beginning?, end: end? });
        asked.into_iter().zip(bounds).filter_map(|(partition, bounds)| Some((partition, range(bounds)?))).collect()
    }

    /// What there is to be read of these partitions.
    fn extents(&self, kind: Beginning, names: &[Partition<'_>]) -> Result<Vec<StartOffsets>, KafkaError> {
        let index = match kind {
            _ if names.is_empty() => return Ok(Vec::new()),
            Beginning::Window => return self.extents_of_window(names),
            Beginning::End => OffsetQuery::End,
            Beginning::First => OffsetQuery::Beginning,
        };
        let at = |offset: Option<i64>| {
            let offset = offset.unwrap_or(0);
            StartOffsets { beginning: offset, since: Some(offset), end: offset }
        };
        Ok(self.cluster.offsets(names, index, METADATA_TIMEOUT)?.into_iter().map(at).collect())
    }

    /// What the partitions hold of the history's time.
    fn extents_of_window(&self, names: &[Partition<'_>]) -> Result<Vec<StartOffsets>, KafkaError> {
        let ends = self.cluster.offsets(names, OffsetQuery::End, START_QUERY_TIMEOUT)?;
        let history_ms = whole_ms(self.config.history);
        let since = i64::try_from(Now::read().unix.0.saturating_sub(history_ms)).unwrap_or(i64::MAX);
        let times =
            self.cluster.offsets(names, OffsetQuery::Since(since), START_QUERY_TIMEOUT).unwrap_or_else(|error| {
                warn!(%error, "offsets by timestamp unavailable; the history starts at the last hundred records of each partition");
                vec![None; names.len()]
            });
        let beginnings = self.cluster.offsets(names, OffsetQuery::Beginning, START_QUERY_TIMEOUT)?;
        let extent = |((end, since), beginning): ((Option<i64>, Option<i64>), Option<i64>)| StartOffsets {
            beginning: beginning.unwrap_or(0),
            since,
            end: end.unwrap_or(0),
        };
        Ok(ends.into_iter().zip(times).zip(beginnings).map(extent).collect())
    }
}

/// The partitions by their topics' names.
pub(super) fn names_of<'a>(partitions: &[(TopicIndex, i32)], topics: &'a [Arc<Topic>]) -> Vec<Partition<'a>> {
    let name = |topic: TopicIndex| topics.get(usize::from(topic.0)).map_or("", |topic| &topic.name);
    partitions.iter().map(|&(topic, partition)| (name(topic), partition)).collect()
}
