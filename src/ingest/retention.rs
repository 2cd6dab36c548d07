//! Which topics are compacted, and whose settings to query next: those of new topics, and a few of the others in turn,
//! because settings change. This is a rule without I/O: [`super::watcher`] queries the brokers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ids::TopicIndex;
use crate::limits::SETTINGS_ASKED_MAX;
use crate::routing::table::Topic;

/// What becomes of a topic's old records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retention {
    /// They are deleted from the start of the log.
    Plain,
    /// A record is deleted when a later one has its key, but not before it is this old (`min.compaction.lag.ms`).
    Compacted { kept_for: Duration },
}

/// A broker's answer about a topic's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settings {
    /// These settings.
    Of(Retention),
    /// The pod's user may not read them.
    Refused,
    /// None: the topic may have been deleted meanwhile.
    Unknown,
}

impl Settings {
    pub(super) fn retention(self) -> Option<Retention> {
        match self {
            Self::Of(retention) => Some(retention),
            Self::Refused | Self::Unknown => None,
        }
    }
}

/// A compacted topic that the reader does not know as such, or not with this age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CompactedTopic {
    pub(super) topic: TopicIndex,
    /// No record is removed before it is this old.
    pub(super) kept_for: Duration,
    /// When the topic was last known not to be compacted.
    pub(super) unchanged: Option<Instant>,
}

/// The settings of topics as last answered, and when they were queried.
#[derive(Debug, Clone, Default)]
pub(super) struct Retentions {
    known: HashMap<TopicIndex, (Retention, Instant)>,
    /// Where the next query continues among the topics.
    next: usize,
}

impl Retentions {
    /// The topics to query now: the `new` ones, and the next few of the others. Markets' topics don't matter. Of a
    /// deleted and recreated topic only the one that `is_current` counts: a query goes by name.
    pub(super) fn due<'a>(
        &mut self,
        topics: &'a [Arc<Topic>],
        new: &[TopicIndex],
        is_current: impl Fn(TopicIndex) -> bool,
    ) -> Vec<&'a Arc<Topic>> {
        let new: HashSet<TopicIndex> = new.iter().copied().collect();
        let (new, known): (Vec<_>, Vec<_>) = topics.iter().partition(|topic| new.contains(&topic.index));
        let first = if self.next < known.len() { self.next } else { 0 };
        self.next = known.len().min(first + SETTINGS_ASKED_MAX);
        let due = known[first..self.next].iter().copied().chain(new);
        due.filter(|topic| topic.market().is_none() && is_current(topic.index)).collect()
    }

    /// Records the answers to a query at this time, one for each topic that was due. Returns what the reader does not
    /// know.
    pub(super) fn handle_answers(
        &mut self,
        due: &[&Arc<Topic>],
        answers: impl IntoIterator<Item = Option<Retention>>,
        queried: Instant,
    ) -> Vec<CompactedTopic> {
        let mut changed = Vec::new();
        for (topic, answer) in due.iter().map(|topic| topic.index).zip(answers) {
            let Some(retention) = answer else { continue };
            let before = self.known.insert(topic, (retention, queried));
            let Retention::Compacted { kept_for } = retention else { continue };
            if before.is_none_or(|(before, _)| before != retention) {
                let unchanged = before.filter(|(before, _)| *before == Retention::Plain).map(|(_, at)| at);
                changed.push(CompactedTopic { topic, kept_for, unchanged });
            }
        }
        changed
    }

    /// These indexes have new topics.
    pub(super) fn forget(&mut self, topics: &[TopicIndex]) {
        for topic in topics {
            self.known.remove(topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::table::RouteTable;

    fn topic(index: u16, name: &str) -> Arc<Topic> {
        Arc::new(RouteTable::built_in().resolve(TopicIndex(index), name).unwrap())
    }

    #[test]
    fn a_topic_is_reported_when_it_becomes_compacted_and_when_it_keeps_records_for_another_time() {
        let start = Instant::now();
        let compacted = |seconds| Retention::Compacted { kept_for: Duration::from_secs(seconds) };
        let topic = topic(3, "assessment.created");
        let mut retentions = Retentions::default();
        let mut answer = |retention, seconds| {
            let queried = start + Duration::from_secs(seconds);
            let changed = retentions.handle_answers(&[&topic], [Some(retention)], queried);
            changed.first().map(|of| (of.kept_for.as_secs(), of.unchanged.map(|at| (at - start).as_secs())))
        };
        assert_eq!(answer(Retention::Plain, 0), None);
        assert_eq!(answer(Retention::Plain, 10), None);
        assert_eq!(answer(compacted(0), 20), Some((0, Some(10))));
        assert_eq!(answer(compacted(0), 30), None);
        assert_eq!(answer(compacted(60), 40), Some((60, None)));
        assert_eq!(Retentions::default().handle_answers(&[&topic], [Some(compacted(5))], start).len(), 1);
        assert_eq!(Retentions::default().handle_answers(&[&topic], [None], start), []);
    }

    #[test]
    fn new_topics_are_due_at_once_and_the_others_in_turn() {
        let topics: Vec<_> = (0..200)
            .map(|index| topic(index, if index == 199 { "market-data.btc-ticks" } else { "assessment.created" }))
            .collect();
        let mut retentions = Retentions::default();
        let mut ask = |known: usize, total: usize| {
            let new: Vec<_> = topics[known..total].iter().map(|topic| topic.index).collect();
            let due = retentions.due(&topics[..total], &new, |topic| topic.0 != 7);
            due.iter().map(|topic| topic.index.0).collect::<Vec<_>>()
        };
        let but_seven = |range: std::ops::Range<u16>| range.filter(|&index| index != 7).collect::<Vec<_>>();
        assert_eq!(ask(0, 120), but_seven(0..120));
        assert_eq!(ask(120, 120), but_seven(0..50));
        assert_eq!(ask(120, 121), (50..100).chain([120]).collect::<Vec<_>>());
        assert_eq!(ask(121, 200), (100..199).collect::<Vec<_>>(), "but no market's");
        assert_eq!(ask(200, 200), (121..171).collect::<Vec<_>>());
        assert_eq!(ask(200, 200), (171..199).collect::<Vec<_>>());
        assert_eq!(ask(200, 200), but_seven(0..50));
    }
}
