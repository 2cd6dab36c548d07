use super::*;
use crate::protocol::messages::ResetReason;
use crate::routing::table::Fingerprint;
use crate::routing::table::Table;
use crate::stream::batch::LogEnd;
use crate::stream::cursor::{Cursor, ListedTopic, decode};
use crate::stream::epochs::AtEnd;

const CREATED: TopicIndex = TopicIndex(0);
const STARTED: TopicIndex = TopicIndex(1);

/// A shard's offsets, as an assessment sees them.
struct Story {
    offsets: Offsets,
    now: Instant,
    cluster: &'static str,
}

impl Story {
    /// Of two topics with so many partitions each, read from their beginnings.
    fn of(partitions: i32) -> Self {
        Self::of_cluster("cluster", partitions)
    }

    fn of_cluster(cluster: &'static str, partitions: i32) -> Self {
        let mut story = Self { offsets: Offsets::default(), now: Instant::now(), cluster };
        story.learn(CREATED, "assessment.created", "1");
        story.learn(STARTED, "assessment.started", "2");
        story.tell(
            &(0..partitions)
                .flat_map(|partition| [(CREATED, partition, 0), (STARTED, partition, 0)])
                .collect::<Vec<_>>(),
        );
        story
    }

    fn learn(&mut self, index: TopicIndex, name: &str, id: &str) {
        let topic = Table::built_in().resolve(index, name).expect("a built-in route matches");
        let fingerprint = Fingerprint::new(name, self.cluster, id);
        self.offsets.learn(&[Arc::new(Topic { fingerprint, ..topic })]);
    }

    fn tell(&mut self, starts: &[(TopicIndex, i32, i64)]) {
        let next = |&(topic, partition, offset): &(TopicIndex, i32, i64)| NextOffset { topic, partition, offset };
        let starts: Vec<_> = starts.iter().map(next).collect();
        self.offsets.told(&starts, || None, self.now, &mut Vec::new(), &mut Vec::new());
    }

    fn read(&mut self, topic: TopicIndex, partition: i32, offset: i64) {
        self.offsets.advance(Origin { topic, partition, offset });
    }

    fn evict(&mut self, topic: TopicIndex, partition: i32, offset: i64) {
        self.offsets.evicted(Origin { topic, partition, offset });
    }

    fn delete_until(&mut self, topic: TopicIndex, partition: i32, offset: i64) {
        self.offsets.missing_below(&NextOffset { topic, partition, offset });
        self.tell(&[(topic, partition, offset)]);
    }

    fn cut(&mut self, topic: TopicIndex, partition: i32, offset: i64) {
        let next = NextOffset { topic, partition, offset };
        self.offsets.cut(&LogCut { next, is_below_unknown: false });
        self.tell(&[(topic, partition, offset)]);
    }

    /// The cursor of a client of this shard that has all that was read.
    fn cursor(&self, id: &str) -> Cursor {
        let mut text = Vec::new();
        let listed = self.offsets.list(id, []);
        assert!(self.offsets.write_cursor(
            AssessmentHash::of(id),
            &listed,
            |place| self.offsets.next(place),
            &mut text
        ));
        read(&text, id)
    }

    fn judge(&self, id: &str, cursor: &Cursor) -> Result<Cover, ResetReason> {
        self.offsets.judge(cursor.clone(), id, &self.offsets.list(id, []), |_| None)
    }

    fn has(&self, cover: &Cover, id: &str, topic: TopicIndex, partition: i32, offset: i64) -> bool {
        cover.has(&self.offsets, id, self.offsets.place(topic, partition).unwrap(), offset)
    }
}

fn read(text: &[u8], id: &str) -> Cursor {
    decode(std::str::from_utf8(text).unwrap(), AssessmentHash::of(id)).unwrap()
}

fn topics(cursor: &Cursor) -> &[ListedTopic] {
    match cursor {
        Cursor::Of(listing) => &listing.topics,
        Cursor::None => &[],
    }
}

/// What a cursor lists: how many partitions the topic has, the partition, and the offset; the largest first.
fn places(cursor: &Cursor) -> Vec<(u32, u32, i64)> {
    let of = |topic: &ListedTopic| {
        let partitions = topic.partitions;
        topic.places.iter().map(move |place| (partitions, place.partition, place.next)).collect::<Vec<_>>()
    };
    let mut places: Vec<_> = topics(cursor).iter().flat_map(of).collect();
    places.sort_by_key(|&(.., next)| std::cmp::Reverse(next));
    places
}

/// An id whose records go to this partition where there are so many.
fn id_on(partition: u32, of: u32) -> String {
    ids_where(|id| Partitioner::Murmur2.hash(id).unwrap().of(of) == partition)
}

fn ids_where(is: impl Fn(&str) -> bool) -> String {
    (0..).map(|number| format!("a-{number}")).find(|id| is(id)).unwrap()
}

#[test]
fn a_cursor_lists_one_partition_a_topic_and_covers_what_lies_below() {
    let mut story = Story::of(3);
    let id = id_on(2, 3);
    story.read(CREATED, 2, 6);
    story.read(CREATED, 1, 40);
    let cursor = story.cursor(&id);
    assert_eq!(places(&cursor), [(3, 2, 7)], "and a topic that has nothing there is not listed");
    let cover = story.judge(&id, &cursor).unwrap();
    assert!(story.has(&cover, &id, CREATED, 2, 6) && !story.has(&cover, &id, CREATED, 2, 7));
    assert!(!story.has(&cover, &id, STARTED, 2, 0));
    assert!(cover.is_passed(&story.offsets, |place| story.offsets.next(place)));
}

#[test]
fn a_cursor_of_another_assessment_another_cluster_or_a_topic_made_anew_is_invalid() {
    let mut story = Story::of(1);
    story.read(CREATED, 0, 4);
    let cursor = story.cursor("a");
    let mut foreign = Story::of_cluster("another", 1);
    foreign.read(CREATED, 0, 4);
    assert_eq!(foreign.judge("a", &cursor), Err(ResetReason::Invalid));

    assert!(story.judge("a", &cursor).is_ok());
    let anew = TopicIndex(2);
    story.learn(anew, "assessment.created", "3");
    assert_eq!(story.judge("a", &cursor), Err(ResetReason::Invalid));
    story.tell(&[(anew, 0, 0)]);
    assert!(story.judge("a", &story.cursor("a")).is_ok(), "the new one's is good");
}

#[test]
fn what_was_evicted_or_deleted_expires_the_cursors_below_it_and_no_other() {
    let mut story = Story::of(2);
    let (id, other) = (id_on(0, 2), id_on(1, 2));
    let (old, others) = (story.cursor(&id), story.cursor(&other));
    story.read(CREATED, 0, 0);
    story.evict(CREATED, 0, 0);
    assert_eq!(story.judge(&id, &old), Err(ResetReason::Expired));
    let newer = story.cursor(&id);
    assert!(story.judge(&id, &newer).is_ok() && story.judge(&other, &others).is_ok());

    story.delete_until(STARTED, 0, 500);
    assert_eq!(story.judge(&id, &newer), Err(ResetReason::Expired));
    assert!(story.judge(&id, &story.cursor(&id)).is_ok());
}

#[test]
fn a_log_that_lost_its_end_expires_the_cursors_that_may_count_what_was_lost() {
    let mut story = Story::of(1);
    story.read(CREATED, 0, 99);
    let cursor = story.cursor("a");
    story.cut(CREATED, 0, 60);
    assert_eq!(
        story.judge("a", &cursor),
        Err(ResetReason::Expired),
        "whether it has the old 60 to 99 or the new, nobody knows"
    );
    story.read(CREATED, 0, 100);
    assert!(story.judge("a", &story.cursor("a")).is_ok());
}

#[test]
fn a_topic_that_the_cursor_does_not_know_starts_at_its_beginning_if_that_is_here() {
    let mut story = Story::of(1);
    let cursor = story.cursor("a");
    let later = TopicIndex(2);
    story.learn(later, "assessment.completed", "3");
    story.tell(&[(later, 0, 0)]);
    story.read(later, 0, 0);
    let cover = story.judge("a", &cursor).unwrap();
    assert!(!story.has(&cover, "a", later, 0, 0));
    story.evict(later, 0, 0);
    assert_eq!(story.judge("a", &cursor), Err(ResetReason::Expired));
}

#[test]
fn a_cursor_may_know_more_topics_and_be_ahead_and_both_are_kept() {
    let (mut here, mut there) = (Story::of(1), Story::of(1));
    there.learn(TopicIndex(2), "assessment.completed", "3");
    there.tell(&[(TopicIndex(2), 0, 30)]);
    there.read(CREATED, 0, 50);
    let mut cover = here.judge("a", &there.cursor("a")).unwrap();
    here.read(CREATED, 0, 20);
    here.read(STARTED, 0, 8);
    let merged = |here: &Story, cover: &Cover| {
        let mut text = Vec::new();
        let listed = here.offsets.list("a", []);
        assert!(cover.write_cursor(
            &here.offsets,
            AssessmentHash::of("a"),
            &listed,
            |at| here.offsets.next(at),
            &mut text
        ));
        places(&read(&text, "a")).iter().map(|place| place.2).collect::<Vec<_>>()
    };
    assert_eq!(merged(&here, &cover), [51, 30, 9], "of each the larger");

    // The topic is found here, too, and is read from further back.
    here.learn(TopicIndex(9), "assessment.completed", "3");
    here.tell(&[(TopicIndex(9), 0, 10)]);
    cover.follow(&here.offsets);
    assert!(here.has(&cover, "a", TopicIndex(9), 0, 29) && !here.has(&cover, "a", TopicIndex(9), 0, 30));
    assert!(!cover.is_passed(&here.offsets, |place| here.offsets.next(place)));
    here.read(CREATED, 0, 50);
    here.read(TopicIndex(9), 0, 29);
    assert!(cover.is_passed(&here.offsets, |place| here.offsets.next(place)));
}

#[test]
fn after_more_partitions_the_old_one_stays_covered_and_the_new_one_starts_at_its_beginning() {
    let mut story = Story::of(2);
    // From partition 1 of two to partition 3 of four.
    let id = ids_where(|id| Partitioner::Murmur2.hash(id).is_some_and(|hash| hash.of(2) == 1 && hash.of(4) == 3));
    story.read(CREATED, 1, 7);
    let before = story.cursor(&id);
    story.tell(&[(CREATED, 2, 0), (CREATED, 3, 0)]);
    story.read(CREATED, 3, 0);
    let cover = story.judge(&id, &before).unwrap();
    assert!(story.has(&cover, &id, CREATED, 1, 7) && !story.has(&cover, &id, CREATED, 3, 0));
    let after = story.cursor(&id);
    assert_eq!(places(&after), [(4, 1, 8), (4, 3, 1)], "both, as long as the window may have records of both");

    // A pod that came later knows of four alone: what it does not list was before its time.
    let mut young = Story::of(2);
    young.offsets = Offsets::default();
    young.learn(CREATED, "assessment.created", "1");
    young.learn(STARTED, "assessment.started", "2");
    young.tell(&[0, 1, 2, 3].map(|partition| (CREATED, partition, 0)));
    young.tell(&[(STARTED, 0, 0), (STARTED, 1, 0)]);
    young.read(CREATED, 3, 0);
    let cover = story.judge(&id, &young.cursor(&id)).unwrap();
    assert!(story.has(&cover, &id, CREATED, 1, 7) && story.has(&cover, &id, CREATED, 3, 0));

    story.offsets.forget_old_counts(Duration::from_secs(60), story.now + Duration::from_secs(600));
    assert_eq!(places(&story.cursor(&id)), [(4, 3, 1)], "the old number is of no use any more");
}

#[test]
fn where_an_assessment_moves_to_a_partition_that_was_there_the_window_must_reach_back_to_the_growth() {
    let mut story = Story::of(2);
    // From partition 1 of two to partition 0 of three, which holds others' records.
    let id = ids_where(|id| Partitioner::Murmur2.hash(id).is_some_and(|hash| hash.of(2) == 1 && hash.of(3) == 0));
    (0..100).for_each(|offset| story.read(CREATED, 0, offset));
    let (cursor, past) = (story.cursor(&id), story.offsets.all_next().to_vec());
    (100..120).for_each(|offset| story.read(CREATED, 0, offset));
    (0..90).for_each(|offset| story.evict(CREATED, 0, offset));
    let more = [NextOffset { topic: CREATED, partition: 2, offset: 0 }];
    story.offsets.told(&more, || Some(&past), story.now, &mut Vec::new(), &mut Vec::new());
    assert!(story.judge(&id, &cursor).is_ok(), "what was evicted is from before");
    (90..101).for_each(|offset| story.evict(CREATED, 0, offset));
    assert_eq!(story.judge(&id, &cursor), Err(ResetReason::Expired));
}

#[test]
fn records_where_the_partitioner_would_not_put_them_make_a_resume_misplaced() {
    let story = Story::of(3);
    let id = id_on(0, 3);
    let stray = story.offsets.place(CREATED, 1).unwrap();
    assert!(!story.offsets.is_expected(&id, stray));
    let listed = story.offsets.list(&id, [stray]);
    assert_eq!(listed.places().len(), 3);
    let cursor = story.cursor(&id);
    assert_eq!(story.offsets.judge(cursor.clone(), &id, &listed, |_| Some(4)), Err(ResetReason::Misplaced));
    assert!(story.offsets.judge(cursor, &id, &listed, |_| None).is_ok(), "it has left the window");
}

#[test]
fn what_was_placed_by_fewer_partitions_before_a_pods_start_is_no_stray_where_the_cursor_tells_of_it() {
    let mut story = Story::of(4);
    let id = ids_where(|id| Partitioner::Murmur2.hash(id).is_some_and(|hash| hash.of(2) == 1 && hash.of(4) == 3));
    (0..5).for_each(|offset| story.read(CREATED, 1, offset));
    story.offsets.settle();
    let place = story.offsets.place(CREATED, 1).unwrap();
    let listed = story.offsets.list(&id, [place]);
    let mut text = Vec::new();
    assert!(story.offsets.write_cursor(AssessmentHash::of(&id), &listed, |at| story.offsets.next(at), &mut text));
    let lists_it = read(&text, &id);
    let judge =
        |story: &Story, cursor: &Cursor, newest| story.offsets.judge(cursor.clone(), &id, &listed, |_| Some(newest));
    assert!(judge(&story, &lists_it, 4).is_ok());
    assert_eq!(judge(&story, &story.cursor(&id), 4), Err(ResetReason::Misplaced), "who knows what it has of them?");
    story.read(CREATED, 1, 5);
    assert_eq!(judge(&story, &lists_it, 5), Err(ResetReason::Misplaced), "by now there are four, and seen to be");
}

#[test]
fn what_was_placed_by_fewer_partitions_is_no_stray_to_who_has_nothing_of_the_topic() {
    let mut story = Story::of(4);
    let id = ids_where(|id| Partitioner::Murmur2.hash(id).is_some_and(|hash| hash.of(2) == 1 && hash.of(4) == 3));
    story.read(CREATED, 1, 0);
    story.offsets.settle();
    let listed = story.offsets.list(&id, story.offsets.place(CREATED, 1));
    let cursor = Story::of(4).cursor(&id);
    let cover = story.offsets.judge(cursor, &id, &listed, |_| Some(0)).unwrap();
    assert!(!story.has(&cover, &id, CREATED, 1, 0), "it lacks all of it");
}

/// The topic of the index is deleted, and another of its name is read from its beginning.
fn remake(story: &mut Story) -> TopicIndex {
    let anew = TopicIndex(2);
    story.learn(anew, "assessment.created", "3");
    story.tell(&[(anew, 0, 0)]);
    anew
}

#[test]
fn a_topic_that_is_made_anew_while_a_client_catches_up_comes_to_it_from_where_its_cursor_stood() {
    let mut story = Story::of(1);
    story.read(CREATED, 0, 4);
    let cursor = story.cursor("a");
    (5..8).for_each(|offset| story.read(CREATED, 0, offset));
    let mut cover = story.judge("a", &cursor).unwrap();
    let anew = remake(&mut story);
    cover.follow(&story.offsets);
    assert!(story.has(&cover, "a", CREATED, 0, 4) && !story.has(&cover, "a", CREATED, 0, 5));
    assert!(!story.has(&cover, "a", anew, 0, 0));
    let mut text = Vec::new();
    let listed = story.offsets.list("a", []);
    let next = |place| story.offsets.next(place);
    assert!(cover.write_cursor(&story.offsets, AssessmentHash::of("a"), &listed, next, &mut text));
    assert_eq!(places(&read(&text, "a")), [(1, 0, 0)], "what is deleted goes into no cursor");
}

#[test]
fn who_has_a_cursor_of_the_new_topic_is_not_past_it_before_the_old_ones_end() {
    let mut story = Story::of(1);
    (0..3).for_each(|offset| story.read(CREATED, 0, offset));
    remake(&mut story);
    let mut cover = story.judge("a", &story.cursor("a")).unwrap();
    cover.follow(&story.offsets);
    assert!((0..3).all(|offset| story.has(&cover, "a", CREATED, 0, offset)));
    let old = story.offsets.place(CREATED, 0).unwrap();
    let at = |end| move |story: &Story, place| if place == old { end } else { story.offsets.next(place) };
    assert!(
        !cover.is_passed(&story.offsets, |place| at(2)(&story, place)),
        "one of the old topic's is still to be skipped"
    );
    assert!(cover.is_passed(&story.offsets, |place| at(3)(&story, place)));
}

#[test]
fn a_record_older_than_the_historys_time_makes_nothing_misplaced_wherever_it_lies() {
    let mut story = Story::of(4);
    let id = ids_where(|id| Partitioner::Murmur2.hash(id).is_some_and(|hash| hash.of(2) == 1 && hash.of(4) == 3));
    story.offsets.recent_from(&[NextOffset { topic: CREATED, partition: 1, offset: 5 }]);
    (0..9).for_each(|offset| story.read(CREATED, 1, offset));
    story.offsets.settle();
    let listed = story.offsets.list(&id, [story.offsets.place(CREATED, 1).unwrap()]);
    let judge = |newest| story.offsets.judge(story.cursor(&id), &id, &listed, |_| Some(newest));
    let cover = judge(4).unwrap();
    assert!(story.has(&cover, &id, CREATED, 1, 4), "whoever made the cursor was past it");
    assert_eq!(judge(5), Err(ResetReason::Misplaced));
}

// ---- leader epochs ------------------------------------------------------------------------------------------------------

impl Story {
    /// Reads records of the first topic that one leader wrote.
    fn written(&mut self, offsets: std::ops::Range<i64>, epoch: i32) {
        let first = Origin { topic: CREATED, partition: 0, offset: offsets.start };
        self.offsets.epoch_starts(&EpochStart { first, epoch });
        offsets.for_each(|offset| self.read(CREATED, 0, offset));
    }
}

#[test]
fn a_cursor_of_a_log_that_lost_its_end_is_expired_on_a_pod_that_only_knows_the_new_one() {
    let mut lived = Story::of(1);
    lived.written(0..50, 0);
    let early = lived.cursor("a");
    lived.written(50..100, 0);
    let lost = lived.cursor("a");

    let mut young = Story::of(1);
    young.written(0..50, 0);
    young.written(50..150, 1);
    assert_eq!(young.judge("a", &lost), Err(ResetReason::Expired), "the new log has grown past it");
    assert!(young.judge("a", &early).is_ok(), "both logs have all that it counts");
    let anew = young.cursor("a");
    assert!(young.judge("a", &anew).is_ok());
    assert_eq!(lived.judge("a", &anew).map(|_| ()), Ok(()), "a pod that is behind can't know yet");

    // The pod that lived through it answers the same.
    lived.cut(CREATED, 0, 50);
    lived.written(50..150, 1);
    assert_eq!(lived.judge("a", &lost), Err(ResetReason::Expired));
    assert!(lived.judge("a", &anew).is_ok());
}

#[test]
fn a_cursor_that_is_ahead_is_refuted_when_the_log_turns_out_to_be_another() {
    let mut ahead = Story::of(1);
    ahead.written(0..100, 0);
    let mut story = Story::of(1);
    story.written(0..50, 0);
    let cover = story.judge("a", &ahead.cursor("a")).unwrap();
    assert_eq!(cover.refuted(&story.offsets), None);
    story.written(50..51, 1);
    assert_eq!(cover.refuted(&story.offsets), Some(ResetReason::Expired));
}

#[test]
fn a_client_that_is_ahead_and_whose_log_lost_its_end_keeps_what_it_has_of_others() {
    let end = |offset, epoch| {
        let at = NextOffset { topic: CREATED, partition: 0, offset };
        [LogEnd { at, leader_epoch: Some(epoch) }]
    };
    let mut ahead = Story::of(1);
    ahead.written(0..100, 0);
    (0..10).for_each(|offset| ahead.read(STARTED, 0, offset));
    let cursor = ahead.cursor("a");
    let has_other = |cover: &Cover, story: &Story| story.has(cover, "a", STARTED, 0, 9);
    let mut behind = Story::of(1);
    behind.written(0..50, 0);
    (0..5).for_each(|offset| behind.read(STARTED, 0, offset));

    let mut by_end = behind.judge("a", &cursor).unwrap();
    assert_eq!(by_end.judge_ends(&behind.offsets, &end(50, 1)), Some(AtEnd::Lost));
    assert!(!behind.has(&by_end, "a", CREATED, 0, 50) && has_other(&by_end, &behind));
    let mut astray = behind.judge("a", &cursor).unwrap();
    assert_eq!(astray.judge_ends(&behind.offsets, &end(49, 1)), None, "this pod's own log is the lost one");
    assert!(behind.has(&astray, "a", CREATED, 0, 99));

    let mut by_record = behind.judge("a", &cursor).unwrap();
    behind.written(50..51, 1);
    assert_eq!(by_record.refuted(&behind.offsets), Some(ResetReason::Expired));
    by_record.let_go_of_lost(&behind.offsets);
    assert_eq!(by_record.refuted(&behind.offsets), None);
    assert!(!behind.has(&by_record, "a", CREATED, 0, 51) && has_other(&by_record, &behind));
}

// ---- topics' names ------------------------------------------------------------------------------------------------------

/// A shard that knows topics of these names, in a cluster that gives topics no ids.
fn named(names: &[&str]) -> Story {
    let route = "[[route]]\ntopic = \"pl.{x}\"\nscope = \"assessment\"\ntype = \"t\"\nfields = \"*\"\n";
    let table = Table::parse(route).unwrap();
    let mut story = Story { offsets: Offsets::default(), now: Instant::now(), cluster: "" };
    for (index, name) in (0..).map(TopicIndex).zip(names) {
        story.offsets.learn(&[Arc::new(table.resolve(index, name).unwrap())]);
        story.tell(&[(index, 0, 0)]);
    }
    story
}

#[test]
fn topics_whose_names_share_a_hash_are_told_apart_in_whatever_order_pods_learn_of_them() {
    let names = ["pl.t74753", "pl.t80385"];
    assert_eq!(Fingerprint::new(names[0], "", ""), Fingerprint::new(names[1], "", ""));
    for read_to in [[5, 0], [0, 9], [5, 9]] {
        let mut maker = named(&names);
        for (topic, next) in (0..).map(TopicIndex).zip(read_to) {
            (0..next).for_each(|offset| maker.read(topic, 0, offset));
        }
        let mut judge = named(&[names[1], names[0]]);
        let cover = judge.judge("a", &maker.cursor("a")).unwrap();
        for (topic, next) in [(TopicIndex(1), read_to[0]), (TopicIndex(0), read_to[1])] {
            assert!(next == 0 || judge.has(&cover, "a", topic, 0, next - 1));
            assert!(!judge.has(&cover, "a", topic, 0, next), "what it lacks of each is told by its own offset");
        }
        // What the window lost of either expires it.
        judge.read(TopicIndex(0), 0, read_to[1]);
        judge.evict(TopicIndex(0), 0, read_to[1]);
        assert_eq!(judge.judge("a", &maker.cursor("a")), Err(ResetReason::Expired));
    }
}

#[test]
fn topics_that_share_a_tag_are_told_apart_by_the_sum_where_a_cursor_lists_some_of_them() {
    use crate::stream::cursor::Tag;
    let of = |name: &str| Tag::of(Fingerprint::new(name, "", "")).name;
    let name = |number: u32| format!("pl.n{number}");
    let first = name(0);
    let sharing: Vec<_> = (1..).map(name).filter(|name| of(name) == of(&first)).take(2).collect();
    let names = [&*first, &*sharing[0], &*sharing[1]];
    for listed in 0..3 {
        let mut maker = named(&names);
        (0..4).for_each(|offset| maker.read(TopicIndex(listed), 0, offset));
        let judge = named(&names);
        let cover = judge.judge("a", &maker.cursor("a")).unwrap();
        for topic in (0..3).map(TopicIndex) {
            assert_eq!(judge.has(&cover, "a", topic, 0, 3), topic.0 == listed);
        }
    }
}

#[test]
fn a_cursor_of_version_1_is_good_for_one_release_more() {
    let mut story = Story::of(3);
    let id = "assessment-4711";
    let places = |story: &Story| story.offsets.list(id, []).places().to_vec();
    let origin = |story: &Story, place: PlaceId| {
        let spot = story.offsets.spot(place);
        (spot.topic, i32::try_from(spot.partition).unwrap())
    };
    for place in places(&story) {
        let (topic, partition) = origin(&story, place);
        (0..20).for_each(|offset| story.read(topic, partition, offset));
    }
    // As the release before made it, with 12 of the one and 7 of the other.
    let text = "ARqAL0YuxX1Nc8wkfXirgtMDAAz4RbY4gOKcewMABzoBliU";
    let cursor = decode(text, AssessmentHash::of(id)).unwrap();
    let cover = story.judge(id, &cursor).unwrap();
    for place in places(&story) {
        let (topic, partition) = origin(&story, place);
        let next = if topic == CREATED { 12 } else { 7 };
        assert!(story.has(&cover, id, topic, partition, next - 1) && !story.has(&cover, id, topic, partition, next));
    }
    assert!(decode(text, AssessmentHash::of("b")).is_err(), "another assessment's");
    assert!(decode(&text[1..], AssessmentHash::of(id)).is_err());
}
