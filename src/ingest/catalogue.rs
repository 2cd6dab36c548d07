//! Which topics of the cluster are read: their indexes, and what changed from one metadata refresh to the next. A topic
//! and its recreated successor have different fingerprints; the successor gets its own index, so that its offsets are not
//! taken for those of the old one. This is a rule without I/O: [`super::watcher`] queries the brokers.
//!
//! It owns the routes, too. After they change, the next refresh resolves all topics again:
//!
//! ```text
//!   the new routes read the topic...         it is
//!   as before, to the same messages          left alone
//!   as before, to other messages             remapped: it keeps its index and its offsets
//!   not at all                               dropped
//!   as another scope, assessment or placing  dropped, and read as a new topic from its end
//! ```
//!
//! One case remains: librdkafka continues at the old offset in a recreated topic if the new log is already longer.
//! Records delivered before the next refresh then arrive twice. On a running pod the new log would have to outgrow the
//! old one within a tenth of a second; a pod that was paused refreshes first ([`super::reader`]); a pod cut off from
//! all brokers meanwhile is the exception.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ids::TopicIndex;
use crate::limits::{TOPIC_REST_REFRESHES, TOPICS_MAX};
use crate::routing::table::{Fingerprint, RouteTable, Topic};

/// A topic of the cluster in one metadata refresh.
#[derive(Debug)]
pub(super) struct SeenTopic {
    pub(super) name: Box<str>,
    /// As Kafka writes it (KIP-516); empty where the broker has none.
    pub(super) id: Box<str>,
    /// Its partitions that have a leader.
    pub(super) led_partitions: Vec<i32>,
    /// Those that have none.
    pub(super) leaderless: Vec<i32>,
}

/// How indexes are assigned to topics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexRules {
    /// How many indexes there are.
    pub(crate) indexes_max: usize,
    /// How long an index whose topic is no longer read stays unused, before another topic gets it.
    pub(crate) rest: Duration,
}

impl IndexRules {
    /// For a window of this length, and this time between two metadata refreshes.
    #[must_use]
    pub(crate) fn new(window: Duration, refresh: Duration) -> Self {
        Self { indexes_max: TOPICS_MAX, rest: window + refresh * TOPIC_REST_REFRESHES }
    }
}

/// The topics that are read, and those that were.
#[derive(Debug, Clone)]
pub(super) struct TopicCatalogue {
    routes: Arc<RouteTable>,
    /// The routes of the last refresh, if they have changed since.
    before: Option<Arc<RouteTable>>,
    /// By [`TopicIndex`], including topics that are no longer read.
    topics: Vec<Arc<Topic>>,
    entries: HashMap<Box<str>, TopicEntry>,
    rules: IndexRules,
    /// Indexes of deleted topics, and when these were found missing.
    resting: VecDeque<(Instant, TopicIndex)>,
    /// Indexes of dropped topics, which may still exist. Cursors may name them without a time limit, because a pod with
    /// other routes may read them.
    dropped: VecDeque<(Instant, TopicIndex)>,
}

#[derive(Debug, Clone)]
struct TopicEntry {
    topic: Arc<Topic>,
    /// Empty until a broker has sent it. During a rolling upgrade, some brokers send it and some don't.
    id: Box<str>,
    presence: Presence,
    /// Partitions that were announced to the reader.
    announced: HashSet<i32>,
}

/// ```text
///          not seen           not seen again
///   There ----------> Missing ---------------> Gone
///     ^      seen        |                       |
///     |<-----------------'    seen: read on      |
///     '------------------------------------------'
/// ```
/// One refresh proves nothing: a broker that has just started may know no topic yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    There,
    Missing,
    Gone,
}

/// What changed with a refresh.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Topics that were deleted, or recreated under the same name. They are no longer read.
    pub(super) retired: Vec<TopicIndex>,
    /// Topics that were missing and exist after all. Reading continues.
    pub(super) back: Vec<TopicIndex>,
    /// Whether the routes changed since the last refresh.
    pub(super) by_routes: bool,
    /// Topics that no route takes any more, or that another route takes differently. Nothing more of them is sent.
    pub(super) dropped: Vec<TopicIndex>,
    /// Topics whose records are now mapped to other messages.
    pub(super) remapped: Vec<TopicIndex>,
    /// Topics that are new, in the order of their indexes.
    pub(super) met: Vec<TopicIndex>,
    /// Those of them that existed before and are read because the routes changed.
    pub(super) met_by_routes: Vec<TopicIndex>,
    /// Partitions that the reader does not know.
    pub(super) fresh: Vec<(TopicIndex, i32)>,
    /// All partitions that have a leader.
    pub(super) led_partitions: Vec<(TopicIndex, i32)>,
    /// Partitions without a leader that the reader does not know.
    pub(super) leaderless: Vec<(TopicIndex, i32)>,
    /// Whether a topic was missing for the first time. The next refresh should follow soon.
    pub(super) doubtful: bool,
    /// How many topics are not read because no index is free.
    pub(super) unread: usize,
}

impl TopicCatalogue {
    /// Without topics.
    pub(super) fn new(routes: Arc<RouteTable>, rules: IndexRules) -> Self {
        Self {
            routes,
            before: None,
            topics: Vec::new(),
            entries: HashMap::new(),
            rules,
            resting: VecDeque::new(),
            dropped: VecDeque::new(),
        }
    }

    /// Sets the routes of the next refresh. Returns whether they changed.
    pub(super) fn go_by(&mut self, routes: Arc<RouteTable>) -> bool {
        if Arc::ptr_eq(&self.routes, &routes) {
            return false;
        }
        let before = std::mem::replace(&mut self.routes, routes);
        self.before.get_or_insert(before);
        true
    }

    /// Whether a topic of this name is read.
    pub(super) fn takes(&self, name: &str) -> bool {
        self.entries.contains_key(name) || self.routes.resolve(TopicIndex(0), name).is_some()
    }

    /// By [`TopicIndex`], including topics that are no longer read.
    pub(super) fn topics(&self) -> &[Arc<Topic>] {
        &self.topics
    }

    /// Whether this topic still has its name, and no recreated one.
    pub(super) fn is_current(&self, index: TopicIndex) -> bool {
        let topic = self.topics.get(usize::from(index.0));
        let entry = topic.and_then(|topic| self.entries.get(&topic.name));
        entry.is_some_and(|entry| entry.topic.index == index && entry.presence != Presence::Gone)
    }

    /// Applies a metadata refresh: all topics that a route takes, in the cluster with this id.
    pub(super) fn apply_metadata(&mut self, cluster_id: &str, seen: &[SeenTopic], now: Instant) -> Changes {
        let mut changes = Changes { by_routes: self.before.is_some(), ..Changes::default() };
        self.resolve_anew(&mut changes, now);
        for topic in seen {
            if let Some(index) = self.register(topic, (cluster_id, now), &mut changes) {
                changes.led_partitions.extend(topic.led_partitions.iter().map(|&partition| (index, partition)));
                let Some(announced) = self.entries.get_mut(&topic.name).map(|entry| &mut entry.announced) else {
                    continue;
                };
                let fresh = topic.led_partitions.iter().filter(|partition| announced.insert(**partition));
                changes.fresh.extend(fresh.map(|&partition| (index, partition)));
                let leaderless = topic.leaderless.iter().filter(|partition| !announced.contains(partition));
                changes.leaderless.extend(leaderless.map(|&partition| (index, partition)));
            }
        }
        self.mark_missing(seen, &mut changes, now);
        changes.met.sort_unstable();
        self.before = None;
        changes
    }

    /// Resolves all topics again, if the routes changed.
    fn resolve_anew(&mut self, changes: &mut Changes, now: Instant) {
        if !changes.by_routes {
            return;
        }
        let Self { routes, topics, entries, dropped, .. } = self;
        entries.retain(|name, entry| {
            let index = entry.topic.index;
            let Some(topic) = routes.resolve(index, name).filter(|topic| topic.is_read_alike(&entry.topic)) else {
                changes.dropped.push(index);
                if entry.presence != Presence::Gone {
                    dropped.push_back((now, index));
                }
                return false;
            };
            if !topic.is_mapped_alike(&entry.topic) {
                entry.topic = Arc::new(Topic { fingerprint: entry.topic.fingerprint, ..topic });
                topics[usize::from(index.0)] = Arc::clone(&entry.topic);
                changes.remapped.push(index);
            }
            true
        });
        changes.dropped.sort_unstable();
        changes.remapped.sort_unstable();
    }

    /// Notes that these partitions, which have no leader, were announced to the reader.
    pub(super) fn mark_announced(&mut self, partitions: &[(TopicIndex, i32)]) {
        for &(topic, partition) in partitions {
            let name = self.topics.get(usize::from(topic.0)).map(|topic| &topic.name);
            if let Some(entry) = name.and_then(|name| self.entries.get_mut(name)) {
                entry.announced.insert(partition);
            }
        }
    }

    /// The index of a topic in this refresh: its own, or a new one. `None` if no route takes it.
    fn register(
        &mut self,
        seen: &SeenTopic,
        (cluster_id, now): (&str, Instant),
        changes: &mut Changes,
    ) -> Option<TopicIndex> {
        let SeenTopic { name, id, .. } = seen;
        if let Some(entry) = self.entries.get_mut(name) {
            let index = entry.topic.index;
            let presence = std::mem::replace(&mut entry.presence, Presence::There);
            if entry.id.is_empty() || id.is_empty() || entry.id == *id {
                if entry.id.is_empty() {
                    entry.id.clone_from(id);
                }
                if presence == Presence::Gone {
                    changes.back.push(index);
                    self.resting.retain(|(_, resting)| *resting != index);
                }
                return Some(index);
            }
            if presence != Presence::Gone {
                changes.retired.push(index);
                self.resting.push_back((now, index));
            }
            self.entries.remove(name);
        }
        let resolved = self.routes.resolve(TopicIndex(0), name)?;
        let Some(index) = self.free_index(now) else {
            changes.unread += 1;
            return None;
        };
        let fingerprint = Fingerprint::new(name, cluster_id, id).read_by(&resolved.route);
        let before = self.before.as_ref().map(|before| before.resolve(index, name));
        if before.is_some_and(|before| before.is_none_or(|before| !before.is_read_alike(&resolved))) {
            changes.met_by_routes.push(index);
        }
        let topic = Arc::new(Topic { index, fingerprint, ..resolved });
        match self.topics.get_mut(usize::from(index.0)) {
            Some(past) => *past = Arc::clone(&topic),
            None => self.topics.push(Arc::clone(&topic)),
        }
        let entry = TopicEntry { topic, id: id.clone(), presence: Presence::There, announced: HashSet::new() };
        self.entries.insert(name.clone(), entry);
        changes.met.push(index);
        Some(index)
    }

    /// An index for a new topic: that of a topic which is long gone, else an unused one. Topics that were read recently
    /// keep theirs, because cursors, batches and histories still name them.
    fn free_index(&mut self, now: Instant) -> Option<TopicIndex> {
        let rest = self.rules.rest;
        let rested = |queue: &mut VecDeque<(Instant, TopicIndex)>| {
            let has_rested = queue.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= rest);
            if has_rested { queue.pop_front().map(|(_, index)| index) } else { None }
        };
        if let Some(index) = rested(&mut self.resting) {
            // It would be known if it came back.
            let name = &self.topics[usize::from(index.0)].name;
            if self.entries.get(name).is_some_and(|entry| entry.topic.index == index) {
                self.entries.remove(name);
            }
            return Some(index);
        }
        if self.topics.len() < self.rules.indexes_max {
            return u16::try_from(self.topics.len()).ok().map(TopicIndex);
        }
        rested(&mut self.dropped)
    }

    fn mark_missing(&mut self, seen: &[SeenTopic], changes: &mut Changes, now: Instant) {
        let seen: HashSet<&str> = seen.iter().map(|topic| &*topic.name).collect();
        for (_, entry) in self.entries.iter_mut().filter(|(name, _)| !seen.contains(&***name)) {
            match entry.presence {
                Presence::There => {
                    entry.presence = Presence::Missing;
                    changes.doubtful = true;
                }
                Presence::Missing => {
                    entry.presence = Presence::Gone;
                    changes.retired.push(entry.topic.index);
                    self.resting.push_back((now, entry.topic.index));
                }
                Presence::Gone => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATED: &str = "assessment.created";
    const STARTED: &str = "assessment.started";

    fn seen(name: &str, id: &str, partitions: i32) -> SeenTopic {
        SeenTopic {
            name: name.into(),
            id: id.into(),
            led_partitions: (0..partitions).collect(),
            leaderless: Vec::new(),
        }
    }

    const RULES: IndexRules = IndexRules { indexes_max: 8, rest: Duration::from_secs(60) };

    /// A look at a time when nothing has rested.
    fn apply_metadata(catalogue: &mut TopicCatalogue, cluster_id: &str, seen: &[SeenTopic]) -> Changes {
        catalogue.apply_metadata(cluster_id, seen, Instant::now())
    }

    fn catalogue() -> TopicCatalogue {
        TopicCatalogue::new(Arc::new(RouteTable::built_in()), RULES)
    }

    fn partitions(index: u16, partitions: std::ops::Range<i32>) -> Vec<(TopicIndex, i32)> {
        partitions.map(|partition| (TopicIndex(index), partition)).collect()
    }

    #[test]
    fn topics_and_partitions_are_new_once() {
        let mut catalogue = catalogue();
        assert!(catalogue.takes(CREATED) && !catalogue.takes("nobodys.business"));
        let changes = apply_metadata(&mut catalogue, "c", &[seen(CREATED, "1", 2), seen("nobodys.business", "2", 1)]);
        assert_eq!((&*changes.met, &changes.fresh), (&[TopicIndex(0)][..], &partitions(0, 0..2)));
        assert_eq!(catalogue.topics()[0].fingerprint, Fingerprint::new(CREATED, "c", "1"));

        let changes = apply_metadata(&mut catalogue, "c", &[seen(STARTED, "3", 1), seen(CREATED, "1", 3)]);
        let led_partitions = [partitions(1, 0..1), partitions(0, 0..3)].concat();
        let fresh = [partitions(1, 0..1), partitions(0, 2..3)].concat();
        assert_eq!(
            changes,
            Changes { met: vec![TopicIndex(1)], fresh, led_partitions: led_partitions.clone(), ..Changes::default() }
        );

        let changes = apply_metadata(&mut catalogue, "c", &[seen(STARTED, "3", 1), seen(CREATED, "1", 3)]);
        assert_eq!(changes, Changes { led_partitions, ..Changes::default() });
    }

    #[test]
    fn a_topic_made_anew_has_an_index_of_its_own_and_all_its_partitions_are_new() {
        let mut catalogue = catalogue();
        apply_metadata(&mut catalogue, "c", &[seen(CREATED, "1", 3)]);
        let changes = apply_metadata(&mut catalogue, "c", &[seen(CREATED, "2", 1)]);
        let fresh = partitions(1, 0..1);
        let met = vec![TopicIndex(1)];
        let expected =
            Changes { retired: vec![TopicIndex(0)], met, led_partitions: fresh.clone(), fresh, ..Changes::default() };
        assert_eq!(changes, expected);
        assert!(!catalogue.is_current(TopicIndex(0)) && catalogue.is_current(TopicIndex(1)));
        let names: Vec<_> = catalogue.topics().iter().map(|topic| &*topic.name).collect();
        assert_eq!(names, [CREATED, CREATED]);
        assert_ne!(catalogue.topics()[0].fingerprint, catalogue.topics()[1].fingerprint);
    }

    #[test]
    fn a_topic_is_gone_when_two_looks_miss_it_and_back_if_it_is_the_same() {
        let mut catalogue = catalogue();
        apply_metadata(&mut catalogue, "c", &[seen(CREATED, "1", 1)]);
        assert_eq!(apply_metadata(&mut catalogue, "c", &[]), Changes { doubtful: true, ..Changes::default() });
        let there = apply_metadata(&mut catalogue, "c", &[seen(CREATED, "1", 1)]);
        assert_eq!(
            there,
            Changes { led_partitions: partitions(0, 0..1), ..Changes::default() },
            "a broker that had just started"
        );

        assert!(apply_metadata(&mut catalogue, "c", &[]).doubtful);
        assert_eq!(
            apply_metadata(&mut catalogue, "c", &[]),
            Changes { retired: vec![TopicIndex(0)], ..Changes::default() }
        );
        assert!(!catalogue.is_current(TopicIndex(0)));
        assert_eq!(apply_metadata(&mut catalogue, "c", &[]), Changes::default(), "reported once");
        let back = apply_metadata(&mut catalogue, "c", &[seen(CREATED, "1", 2)]);
        assert_eq!((back.back, back.fresh, back.met), (vec![TopicIndex(0)], partitions(0, 1..2), vec![]));

        apply_metadata(&mut catalogue, "c", &[]);
        apply_metadata(&mut catalogue, "c", &[]);
        let anew = apply_metadata(&mut catalogue, "c", &[seen(CREATED, "2", 1)]);
        assert_eq!((anew.retired, anew.back, anew.met.len()), (vec![], vec![], 1), "the old one is retired already");
        assert!(catalogue.is_current(TopicIndex(1)));
    }

    #[test]
    fn topics_beyond_the_last_index_are_reported_while_they_exist() {
        let mut catalogue = catalogue();
        for id in 0..RULES.indexes_max {
            let changes = apply_metadata(&mut catalogue, "c", &[seen(CREATED, &id.to_string(), 1)]);
            assert_eq!((changes.met.len(), changes.unread), (1, 0));
        }
        let all = [seen(CREATED, "one more", 1), seen("nobodys.business", "another", 1)];
        for retired in [vec![TopicIndex(7)], vec![]] {
            let changes = apply_metadata(&mut catalogue, "c", &all);
            assert_eq!((changes.met.len(), changes.unread, changes.retired), (0, 1, retired));
        }
        let changes = catalogue.apply_metadata("c", &all, Instant::now() + RULES.rest);
        assert_eq!((&changes.met, changes.unread), (&indexes(&[0]), 0), "one has rested");
        assert_eq!(apply_metadata(&mut catalogue, "c", &[]).unread, 0);
    }

    #[test]
    fn topics_may_come_and_go_without_end() {
        let mut catalogue = catalogue();
        let start = Instant::now();
        let mut met = Vec::new();
        for turn in 0..200 {
            let now = start + RULES.rest * turn / 4;
            let id = turn.to_string();
            let one = catalogue.apply_metadata("c", &[seen(CREATED, &id, 2), seen("market-data.x-ticks", "x", 1)], now);
            assert_eq!((one.unread, one.retired.len()), (0, usize::from(turn > 0)));
            met.push(one.met[0]);
            assert!(catalogue.is_current(one.met[0]) && one.fresh.len() >= 2);
            assert_eq!(catalogue.topics()[usize::from(one.met[0].0)].fingerprint, Fingerprint::new(CREATED, "c", &id));
        }
        assert!(catalogue.topics().len() <= 7, "{}", catalogue.topics().len());
        let is_too_early = |turn: usize| met[turn.saturating_sub(4)..turn].contains(&met[turn]);
        assert!(!(1..met.len()).any(is_too_early), "each has rested: {met:?}");
    }

    #[test]
    fn a_deleted_topic_that_comes_back_is_another_one_when_its_index_was_given_away() {
        let mut catalogue = catalogue();
        let start = Instant::now();
        catalogue.apply_metadata("c", &[seen(CREATED, "1", 1)], start);
        catalogue.apply_metadata("c", &[], start);
        assert_eq!(catalogue.apply_metadata("c", &[], start).retired, indexes(&[0]));
        let later = start + RULES.rest;
        assert_eq!(
            catalogue.apply_metadata("c", &[seen(CREATED, "1", 1)], later).back,
            indexes(&[0]),
            "it did not rest on"
        );
        catalogue.apply_metadata("c", &[], later);
        catalogue.apply_metadata("c", &[], later);
        let last = later + RULES.rest;
        assert_eq!(catalogue.apply_metadata("c", &[seen(STARTED, "2", 1)], last).met, indexes(&[0]));
        let changes = catalogue.apply_metadata("c", &[seen(STARTED, "2", 1), seen(CREATED, "1", 1)], last);
        assert_eq!((changes.met, changes.back), (indexes(&[1]), vec![]));
    }

    #[test]
    fn without_ids_a_name_is_all_that_is_known_of_a_topic() {
        let mut catalogue = catalogue();
        apply_metadata(&mut catalogue, "", &[seen(CREATED, "", 1)]);
        assert_eq!(catalogue.topics()[0].fingerprint, Fingerprint::new(CREATED, "", ""));
        assert_eq!(apply_metadata(&mut catalogue, "", &[seen(CREATED, "", 1)]).met, []);
        // Brokers are upgraded, one after another: to learn of an id makes no topic another.
        for id in ["1", "", "1"] {
            assert_eq!(apply_metadata(&mut catalogue, "", &[seen(CREATED, id, 1)]).met, []);
        }
        assert_eq!(apply_metadata(&mut catalogue, "", &[seen(CREATED, "2", 1)]).met, [TopicIndex(1)]);
    }

    /// The built-in routes, otherwise.
    fn routes(changes: &[(&str, &str)]) -> Arc<RouteTable> {
        let mut text = RouteTable::BUILT_IN.to_owned();
        for (from, to) in changes {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        Arc::new(RouteTable::parse(&text).unwrap())
    }

    fn indexes(indexes: &[u16]) -> Vec<TopicIndex> {
        indexes.iter().copied().map(TopicIndex).collect()
    }

    #[test]
    fn other_routes_leave_alone_what_they_read_alike_and_meet_anew_what_they_read_otherwise() {
        let mut catalogue = catalogue();
        let all = [seen(CREATED, "1", 1), seen(STARTED, "2", 1), seen("market-data.x-ticks", "3", 1)];
        apply_metadata(&mut catalogue, "c", &all);
        let created = Arc::clone(&catalogue.topics()[0]);
        let same = catalogue.routes.clone();
        assert!(!catalogue.go_by(same) && catalogue.go_by(routes(&[])));
        let changes = apply_metadata(&mut catalogue, "c", &all);
        assert!(
            changes.by_routes && changes.dropped.is_empty() && changes.remapped.is_empty() && changes.met.is_empty()
        );

        assert!(catalogue.go_by(routes(&[("\"assessment_update\"", "\"changed\"")])));
        let changes = apply_metadata(&mut catalogue, "c", &all);
        assert_eq!((changes.remapped, changes.dropped, changes.fresh), (indexes(&[0, 1]), vec![], vec![]));
        assert_eq!(&*catalogue.topics()[0].route.message_type, "changed");
        assert_eq!(catalogue.topics()[0].fingerprint, created.fingerprint, "cursors go on");
        assert!(!apply_metadata(&mut catalogue, "c", &all).by_routes, "said once");

        // Of a market, another message is another board.
        let by_key = routes(&[
            ("scope = \"assessment\"", "scope = \"assessment\"\nassessment = \"key\""),
            ("\"market_price\"", "\"price\""),
        ]);
        assert!(catalogue.go_by(by_key));
        let changes = apply_metadata(&mut catalogue, "c", &all);
        assert_eq!((changes.dropped, changes.remapped), (indexes(&[0, 1, 2]), vec![]));
        assert_eq!((&changes.met, &changes.met_by_routes), (&indexes(&[3, 4, 5]), &indexes(&[3, 4, 5])));
        assert_eq!(changes.fresh, [partitions(3, 0..1), partitions(4, 0..1), partitions(5, 0..1)].concat());
        assert_ne!(catalogue.topics()[3].fingerprint, created.fingerprint, "no cursor of the one is one of the other");
        assert_eq!(catalogue.topics()[5].fingerprint, catalogue.topics()[2].fingerprint);
    }

    #[test]
    fn a_topic_that_is_made_when_the_routes_change_is_new_and_one_that_was_there_is_met_by_them() {
        let mut catalogue = TopicCatalogue::new(routes(&[("assessment.created", "nothing.yet")]), RULES);
        apply_metadata(&mut catalogue, "c", &[seen(STARTED, "1", 1)]);
        catalogue.go_by(routes(&[("assessment.created", "nothing.at-all")]));
        // Quickly one after the other: what counts is what the last look went by.
        catalogue.go_by(routes(&[]));
        let completed = "assessment.completed";
        let changes = apply_metadata(
            &mut catalogue,
            "c",
            &[seen(STARTED, "1", 1), seen(CREATED, "2", 1), seen(completed, "3", 1)],
        );
        assert_eq!((changes.met, changes.met_by_routes), (indexes(&[1, 2]), indexes(&[1])));

        catalogue.go_by(routes(&[("assessment.created", "nothing.yet"), ("assessment.started", "nothing.more")]));
        assert_eq!(apply_metadata(&mut catalogue, "c", &[seen(completed, "3", 1)]).dropped, indexes(&[0, 1]));
        assert!(apply_metadata(&mut catalogue, "c", &[]).doubtful);
        let gone = apply_metadata(&mut catalogue, "c", &[]);
        assert_eq!((gone.dropped, gone.retired), (vec![], vec![TopicIndex(2)]), "it forgot those that it dropped");
    }
}
