//! Which topics are compacted, and whose settings are asked for next: those of new ones, and now and then those of
//! others, because they may change. This is a rule without I/O: [`super::watcher`] asks the brokers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ids::TopicIndex;
use crate::limits::SETTINGS_ASKED_MAX;
use crate::routing::table::Topic;

/// What a topic's settings say of its old records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retention {
    /// They go all together.
    Plain,
    /// Those go to whose key there is a later one, but none before it is so old (`min.compaction.lag.ms`).
    Compacted { kept_for: Duration },
}

/// What a broker says of a topic's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settings {
    /// These settings.
    Of(Retention),
    /// The pod's user may not read them.
    Refused,
    /// Nothing now: it may have been deleted meanwhile.
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

/// A topic that is compacted, as the reader did not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CompactedTopic {
    pub(super) topic: TopicIndex,
    /// No record is removed before it is so old.
    pub(super) kept_for: Duration,
    /// When the topic was last known not to be compacted.
    pub(super) unchanged: Option<Instant>,
}

/// What is known of the topics' settings.
#[derive(Debug, Default)]
pub(super) struct Retentions {
    known: HashMap<TopicIndex, (Retention, Instant)>,
    /// The topic from whose index on it is asked next.
    next: usize,
}

/// An answer, to be remembered when the reader has taken what follows from it.
#[derive(Debug, Default)]
pub(super) struct Asked {
    answers: Vec<(TopicIndex, Retention)>,
    at: Option<Instant>,
    next: usize,
}

/// Whose settings are asked for.
#[derive(Debug)]
pub(super) struct Question<'a> {
    pub(super) topics: Vec<&'a Arc<Topic>>,
    next: usize,
}

impl Question<'_> {
    /// What came of it, asked at this time; an answer is missing where the brokers didn't give one.
    pub(super) fn handle_answer(&self, answers: impl IntoIterator<Item = Option<Retention>>, at: Instant) -> Asked {
        let answers = self.topics.iter().zip(answers).filter_map(|(topic, answer)| Some((topic.index, answer?)));
        Asked { answers: answers.collect(), at: Some(at), next: self.next }
    }
}

impl Retentions {
    /// Of these topics, the ones of the indexes `met` are new. Only topics of assessments' events matter, and no name
    /// is asked for twice: a recreated topic `is_current` in place of the old one.
    pub(super) fn question<'a>(
        &self,
        topics: &'a [Arc<Topic>],
        met: &[TopicIndex],
        is_current: impl Fn(TopicIndex) -> bool,
    ) -> Question<'a> {
        let met: HashSet<TopicIndex> = met.iter().copied().collect();
        let (new, known): (Vec<_>, Vec<_>) = topics.iter().partition(|topic| met.contains(&topic.index));
        let first = if self.next < known.len() { self.next } else { 0 };
        let next = known.len().min(first + SETTINGS_ASKED_MAX);
        let asked = known[first..next].iter().copied().chain(new);
        let matters = |topic: &&Arc<Topic>| topic.market().is_none() && is_current(topic.index);
        Question { topics: asked.filter(matters).collect(), next }
    }

    /// Others had these topics' indexes before.
    pub(super) fn forget(&mut self, met: &[TopicIndex]) {
        for topic in met {
            self.known.remove(topic);
        }
    }

    /// What the reader does not know.
    pub(super) fn news(&self, asked: &Asked) -> Vec<CompactedTopic> {
        let news = |&(topic, retention): &(TopicIndex, Retention)| {
            let Retention::Compacted { kept_for } = retention else { return None };
            let known = self.known.get(&topic);
            let unchanged = known.filter(|(known, _)| *known == Retention::Plain).map(|(_, at)| *at);
            known.is_none_or(|(known, _)| *known != retention).then_some(CompactedTopic { topic, kept_for, unchanged })
        };
        asked.answers.iter().filter_map(news).collect()
    }

    pub(super) fn remember(&mut self, asked: &Asked) {
        let Some(at) = asked.at else { return };
        self.known.extend(asked.answers.iter().map(|&(topic, retention)| (topic, (retention, at))));
        self.next = asked.next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::table::RouteTable;

    #[test]
    fn a_topic_is_news_when_it_is_compacted_and_when_it_keeps_records_for_another_time() {
        let start = Instant::now();
        let compacted = |seconds| Retention::Compacted { kept_for: Duration::from_secs(seconds) };
        let mut retentions = Retentions::default();
        let mut answer = |retention, seconds| {
            let at = start + Duration::from_secs(seconds);
            let asked = Asked { answers: vec![(TopicIndex(3), retention)], at: Some(at), next: 4 };
            let news = retentions.news(&asked);
            assert_eq!(news, retentions.news(&asked), "until it is remembered");
            retentions.remember(&asked);
            news.first().map(|news| (news.kept_for.as_secs(), news.unchanged.map(|at| (at - start).as_secs())))
        };
        assert_eq!(answer(Retention::Plain, 0), None);
        assert_eq!(answer(Retention::Plain, 10), None);
        assert_eq!(answer(compacted(0), 20), Some((0, Some(10))));
        assert_eq!(answer(compacted(0), 30), None);
        assert_eq!(answer(compacted(60), 40), Some((60, None)));
        assert_eq!(
            Retentions::default()
                .news(&Asked { answers: vec![(TopicIndex(0), compacted(5))], ..Asked::default() })
                .len(),
            1
        );
    }

    #[test]
    fn new_topics_are_asked_for_at_once_and_the_others_by_turns() {
        let topics: Vec<_> = (0..200)
            .map(|index| {
                let name = if index == 199 { "market-data.btc-ticks" } else { "assessment.created" };
                Arc::new(RouteTable::built_in().resolve(TopicIndex(index), name).unwrap())
            })
            .collect();
        let mut retentions = Retentions::default();
        let mut ask = |known: usize, total: usize| {
            let met: Vec<_> = topics[known..total].iter().map(|topic| topic.index).collect();
            let question = retentions.question(&topics[..total], &met, |topic| topic.0 != 7);
            let asked: Vec<_> = question.topics.iter().map(|topic| topic.index.0).collect();
            let answers = vec![Some(Retention::Plain); asked.len()];
            retentions.remember(&question.handle_answer(answers, Instant::now()));
            asked
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
