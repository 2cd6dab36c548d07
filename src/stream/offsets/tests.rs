mod names;

use super::*;
use crate::protocol::messages::ResetReason;
use crate::routing::table::Fingerprint;
use crate::routing::table::RouteTable;
use crate::stream::batch::{LogEnd, PartitionEnds};
use crate::stream::cursor::{Cursor, ListedTopic, decode};

const CREATED: TopicIndex = TopicIndex(0);
const STARTED: TopicIndex = TopicIndex(1);

/// A shard's offsets, as an assessment sees them.
struct Story {
    offsets: Offsets,
    now: Instant,
    cluster: &'static str,
}

impl Story {
    /// Of two topics with this many partitions each, read from their beginnings.
    fn of(partitions: i32) -> Self {
        Self::of_cluster("cluster", partitions)
    }

    fn of_cluster(cluster: &'static str, partitions: i32) -> Self {
        let mut story = Self { offsets: Offsets::default(), now: Instant::now(), cluster };
        story.add_topics(CREATED, "assessment.created", "1");
        story.add_topics(STARTED, "assessment.started", "2");
        story.tell(
            &(0..partitions)
                .flat_map(|partition| [(CREATED, partition, 0), (STARTED, partition, 0)])
                .collect::<Vec<_>>(),
        );
        story
    }

    fn add_topics(&mut self, index: TopicIndex, name: &str, id: &str) {
        let topic = RouteTable::built_in().resolve(index, name).expect("a built-in route matches");
        let fingerprint = Fingerprint::new(name, self.cluster, id);
        self.offsets.add_topics(&[Arc::new(Topic { fingerprint, ..topic })]);
    }

    fn tell(&mut self, starts: &[(TopicIndex, i32, i64)]) {
        let next = |&(topic, partition, offset): &(TopicIndex, i32, i64)| NextOffset { topic, partition, offset };
        let starts: Vec<_> = starts.iter().map(next).collect();
        self.offsets.apply_next_offsets(&starts, || None, self.now, &mut Vec::new(), &mut Vec::new());
    }

    fn read(&mut self, topic: TopicIndex, partition: i32, offset: i64) {
        self.offsets.advance(Origin { topic, partition, offset });
    }

    fn evict(&mut self, topic: TopicIndex, partition: i32, offset: i64) {
        self.offsets.record_evicted(Origin { topic, partition, offset });
    }

    fn delete_until(&mut self, topic: TopicIndex, partition: i32, offset: i64) {
        self.offsets.missing_below(&NextOffset { topic, partition, offset });
        self.tell(&[(topic, partition, offset)]);
    }

    fn truncate(&mut self, topic: TopicIndex, partition: i32, offset: i64) {
        let next = NextOffset { topic, partition, offset };
        self.offsets.truncate(&LogTruncation { next, is_below_unknown: false });
        self.tell(&[(topic, partition, offset)]);
    }

    /// The cursor of a client of this shard that has all that was read.
    fn cursor(&self, id: &str) -> Cursor {
        let mut text = Vec::new();
        let listed = self.offsets.list_partitions(id, []);
        assert!(self.offsets.write_cursor(
            AssessmentHash::of(id),
            &listed,
            |partition_id| self.offsets.next(partition_id),
            &mut text
        ));
        read(&text, id)
    }

    fn judge(&self, id: &str, cursor: &Cursor) -> Result<ResumeFilter, ResetReason> {
        self.offsets.judge(cursor.clone(), id, &self.offsets.list_partitions(id, []), |_| None)
    }

    fn contains(&self, resume_filter: &ResumeFilter, topic: TopicIndex, partition: i32, offset: i64) -> bool {
        resume_filter.contains(&self.offsets, self.offsets.partition_id(topic, partition).unwrap(), offset)
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
fn partition_ids(cursor: &Cursor) -> Vec<(u32, u32, i64)> {
    let of = |topic: &ListedTopic| {
        let partitions = topic.partitions;
        topic
            .offsets
            .iter()
            .map(move |partition_id| (partitions, partition_id.partition, partition_id.next))
            .collect::<Vec<_>>()
    };
    let mut partition_ids: Vec<_> = topics(cursor).iter().flat_map(of).collect();
    partition_ids.sort_by_key(|&(.., next)| std::cmp::Reverse(next));
    partition_ids
}

/// An id whose records go to this partition of this many.
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
    assert_eq!(partition_ids(&cursor), [(3, 2, 7)], "and a topic that has nothing there is not listed");
    let resume_filter = story.judge(&id, &cursor).unwrap();
    assert!(story.contains(&resume_filter, CREATED, 2, 6) && !story.contains(&resume_filter, CREATED, 2, 7));
    assert!(!story.contains(&resume_filter, STARTED, 2, 0));
    assert!(resume_filter.is_exhausted(&story.offsets, |partition_id| story.offsets.next(partition_id)));
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
    story.add_topics(anew, "assessment.created", "3");
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
    story.truncate(CREATED, 0, 60);
    assert_eq!(
        story.judge("a", &cursor),
        Err(ResetReason::Expired),
        "whether it has the old 60 to 99 or the new is unknown"
    );
    story.read(CREATED, 0, 100);
    assert!(story.judge("a", &story.cursor("a")).is_ok());
}

#[test]
fn a_topic_that_the_cursor_does_not_know_starts_at_its_beginning_if_that_is_here() {
    let mut story = Story::of(1);
    let cursor = story.cursor("a");
    let later = TopicIndex(2);
    story.add_topics(later, "assessment.completed", "3");
    story.tell(&[(later, 0, 0)]);
    story.read(later, 0, 0);
    let resume_filter = story.judge("a", &cursor).unwrap();
    assert!(!story.contains(&resume_filter, later, 0, 0));
    story.evict(later, 0, 0);
    assert_eq!(story.judge("a", &cursor), Err(ResetReason::Expired));
}

#[test]
fn a_cursor_may_know_more_topics_and_be_ahead_and_both_are_kept() {
    let (mut here, mut there) = (Story::of(1), Story::of(1));
    there.add_topics(TopicIndex(2), "assessment.completed", "3");
    there.tell(&[(TopicIndex(2), 0, 30)]);
    there.read(CREATED, 0, 50);
    let mut resume_filter = here.judge("a", &there.cursor("a")).unwrap();
    here.read(CREATED, 0, 20);
    here.read(STARTED, 0, 8);
    let merged = |here: &Story, resume_filter: &ResumeFilter| {
        let mut text = Vec::new();
        let listed = here.offsets.list_partitions("a", []);
        assert!(resume_filter.write_cursor(
            &here.offsets,
            AssessmentHash::of("a"),
            &listed,
            |at| here.offsets.next(at),
            &mut text
        ));
        partition_ids(&read(&text, "a")).iter().map(|partition_id| partition_id.2).collect::<Vec<_>>()
    };
    assert_eq!(merged(&here, &resume_filter), [51, 30, 9], "of each the larger");

    // The topic is found here, too, and is read from further back.
    here.add_topics(TopicIndex(9), "assessment.completed", "3");
    here.tell(&[(TopicIndex(9), 0, 10)]);
    resume_filter.refresh(&here.offsets);
    assert!(
        here.contains(&resume_filter, TopicIndex(9), 0, 29) && !here.contains(&resume_filter, TopicIndex(9), 0, 30)
    );
    assert!(!resume_filter.is_exhausted(&here.offsets, |partition_id| here.offsets.next(partition_id)));
    here.read(CREATED, 0, 50);
    here.read(TopicIndex(9), 0, 29);
    assert!(resume_filter.is_exhausted(&here.offsets, |partition_id| here.offsets.next(partition_id)));
}

#[test]
fn a_cursor_waits_for_a_topic_that_is_not_read_here_only_until_all_pods_have_looked() {
    let window = Duration::from_secs(60);
    let (mut here, mut there) = (Story::of(1), Story::of(1));
    let unknown = TopicIndex(2);
    there.add_topics(unknown, "assessment.completed", "3");
    there.tell(&[(unknown, 0, 30)]);
    (0..6).for_each(|offset| there.read(STARTED, 0, offset));
    (0..5).for_each(|offset| here.read(STARTED, 0, offset));
    let is_exhausted = |here: &Story, resume_filter: &ResumeFilter| {
        resume_filter.is_exhausted(&here.offsets, |partition_id| here.offsets.next(partition_id))
    };
    let mut resume_filter = here.judge("a", &there.cursor("a")).unwrap();
    resume_filter.forget_unread_topics(&here.offsets);
    assert!(!is_exhausted(&here, &resume_filter), "STARTED is read, and the client is ahead");

    // It is deleted, or its route is removed: the other pod had read one record more.
    here.offsets.set_reading(STARTED, false, here.now);
    let mut early = resume_filter.clone();
    early.forget_unread_topics(&here.offsets);
    assert!(!is_exhausted(&here, &early), "other pods may still read it");
    here.offsets.forget_old_counts(window, here.now + window + GROWTH_NOTICED_MAX + Duration::from_millis(1));
    assert!(!is_exhausted(&here, &resume_filter), "the client has not been here for as long");
    resume_filter.forget_unread_topics(&here.offsets);
    assert!(is_exhausted(&here, &resume_filter));
    here.offsets.set_reading(STARTED, true, here.now);
    resume_filter.forget_unread_topics(&here.offsets);
    assert!(!is_exhausted(&here, &resume_filter), "it is back");
}

#[test]
fn each_log_is_judged_by_its_own_answers_however_they_are_split() {
    let mut there = Story::of(2);
    let id = ids_where(|id| Partitioner::Murmur2.hash(id).is_some_and(|hash| hash.of(2) == 0));
    (0..10).for_each(|offset| there.read(CREATED, 0, offset));
    (0..10).for_each(|offset| there.read(STARTED, 0, offset));
    let here = Story::of(2);
    let mut resume_filter = here.judge(&id, &there.cursor(&id)).unwrap();
    let mut answer = |topic, offset| {
        let at = NextOffset { topic, partition: 0, offset };
        let ends = PartitionEnds { asked: here.now, ends: vec![LogEnd { at, leader_epoch: None }] };
        resume_filter.recheck(&here.offsets, Some(&here.offsets.index_ends(&ends)))
    };
    assert_eq!(answer(CREATED, 9), CursorVerdict::Open, "one answer proves nothing");
    assert_eq!(answer(STARTED, 10), CursorVerdict::Open, "and this one is of another log");
    assert_eq!(answer(CREATED, 10), CursorVerdict::Open, "the first may come from a deposed leader");
    assert_eq!([answer(CREATED, 9), answer(STARTED, 10)], [CursorVerdict::Open; 2]);
    assert_eq!(answer(CREATED, 9), CursorVerdict::Refuted(ResetReason::Invalid));
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
    let resume_filter = story.judge(&id, &before).unwrap();
    assert!(story.contains(&resume_filter, CREATED, 1, 7) && !story.contains(&resume_filter, CREATED, 3, 0));
    let after = story.cursor(&id);
    assert_eq!(partition_ids(&after), [(4, 1, 8), (4, 3, 1)], "both, as long as the window may have records of both");

    // A pod that came later knows of four alone: what it does not list was before its time.
    let mut young = Story::of(2);
    young.offsets = Offsets::default();
    young.add_topics(CREATED, "assessment.created", "1");
    young.add_topics(STARTED, "assessment.started", "2");
    young.tell(&[0, 1, 2, 3].map(|partition| (CREATED, partition, 0)));
    young.tell(&[(STARTED, 0, 0), (STARTED, 1, 0)]);
    young.read(CREATED, 3, 0);
    let resume_filter = story.judge(&id, &young.cursor(&id)).unwrap();
    assert!(story.contains(&resume_filter, CREATED, 1, 7) && story.contains(&resume_filter, CREATED, 3, 0));

    story.offsets.forget_old_counts(Duration::from_secs(60), story.now + Duration::from_secs(600));
    assert_eq!(partition_ids(&story.cursor(&id)), [(4, 3, 1)], "the old number is of no use any more");
}

#[test]
fn where_an_assessment_moves_to_a_partition_that_was_there_the_window_must_reach_back_to_the_growth() {
    let mut story = Story::of(2);
    // From partition 1 of two to partition 0 of three, which holds others' records.
    let id = ids_where(|id| Partitioner::Murmur2.hash(id).is_some_and(|hash| hash.of(2) == 1 && hash.of(3) == 0));
    (0..100).for_each(|offset| story.read(CREATED, 0, offset));
    let (cursor, before_growth) = (story.cursor(&id), story.offsets.all_next().to_vec());
    (100..120).for_each(|offset| story.read(CREATED, 0, offset));
    (0..90).for_each(|offset| story.evict(CREATED, 0, offset));
    let more = [NextOffset { topic: CREATED, partition: 2, offset: 0 }];
    story.offsets.apply_next_offsets(&more, || Some(&before_growth), story.now, &mut Vec::new(), &mut Vec::new());
    assert!(story.judge(&id, &cursor).is_ok(), "what was evicted is from before");
    (90..101).for_each(|offset| story.evict(CREATED, 0, offset));
    assert_eq!(story.judge(&id, &cursor), Err(ResetReason::Expired));
}

#[test]
fn records_where_the_partitioner_would_not_put_them_make_a_resume_misplaced() {
    let story = Story::of(3);
    let id = id_on(0, 3);
    let misplaced = story.offsets.partition_id(CREATED, 1).unwrap();
    assert!(!story.offsets.is_expected(&id, misplaced));
    let listed = story.offsets.list_partitions(&id, [misplaced]);
    assert_eq!(listed.partition_ids().len(), 3);
    let cursor = story.cursor(&id);
    assert_eq!(story.offsets.judge(cursor.clone(), &id, &listed, |_| Some(4)), Err(ResetReason::Misplaced));
    assert!(story.offsets.judge(cursor, &id, &listed, |_| None).is_ok(), "it has left the window");
}

#[test]
fn records_placed_by_fewer_partitions_are_not_misplaced_if_the_cursor_covers_them() {
    let mut story = Story::of(4);
    let id = ids_where(|id| Partitioner::Murmur2.hash(id).is_some_and(|hash| hash.of(2) == 1 && hash.of(4) == 3));
    (0..5).for_each(|offset| story.read(CREATED, 1, offset));
    story.offsets.record_first_subscribe();
    let partition_id = story.offsets.partition_id(CREATED, 1).unwrap();
    let listed = story.offsets.list_partitions(&id, [partition_id]);
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
fn records_placed_by_fewer_partitions_are_not_misplaced_for_a_client_without_the_topic() {
    let mut story = Story::of(4);
    let id = ids_where(|id| Partitioner::Murmur2.hash(id).is_some_and(|hash| hash.of(2) == 1 && hash.of(4) == 3));
    story.read(CREATED, 1, 0);
    story.offsets.record_first_subscribe();
    let listed = story.offsets.list_partitions(&id, story.offsets.partition_id(CREATED, 1));
    let cursor = Story::of(4).cursor(&id);
    let resume_filter = story.offsets.judge(cursor, &id, &listed, |_| Some(0)).unwrap();
    assert!(!story.contains(&resume_filter, CREATED, 1, 0), "it lacks all of it");
}

/// The topic of the index is deleted, and another of its name is read from its beginning.
fn remake(story: &mut Story) -> TopicIndex {
    let anew = TopicIndex(2);
    story.add_topics(anew, "assessment.created", "3");
    story.tell(&[(anew, 0, 0)]);
    anew
}

#[test]
fn a_topic_that_is_made_anew_while_a_client_catches_up_comes_to_it_from_where_its_cursor_stood() {
    let mut story = Story::of(1);
    story.read(CREATED, 0, 4);
    let cursor = story.cursor("a");
    (5..8).for_each(|offset| story.read(CREATED, 0, offset));
    let mut resume_filter = story.judge("a", &cursor).unwrap();
    let anew = remake(&mut story);
    resume_filter.refresh(&story.offsets);
    assert!(story.contains(&resume_filter, CREATED, 0, 4) && !story.contains(&resume_filter, CREATED, 0, 5));
    assert!(!story.contains(&resume_filter, anew, 0, 0));
    let mut text = Vec::new();
    let listed = story.offsets.list_partitions("a", []);
    let next = |partition_id| story.offsets.next(partition_id);
    assert!(resume_filter.write_cursor(&story.offsets, AssessmentHash::of("a"), &listed, next, &mut text));
    assert_eq!(partition_ids(&read(&text, "a")), [(1, 0, 0)], "what is deleted goes into no cursor");
}

#[test]
fn a_cursor_that_may_lack_records_of_a_replaced_topic_is_invalid_wherever_its_window_begins() {
    for low in [0, 10] {
        let mut story = Story::of(1);
        story.read(STARTED, 0, 0);
        let without = story.cursor("a");
        (0..3).for_each(|offset| story.read(CREATED, 0, offset));
        story.offsets.missing_below(&NextOffset { topic: CREATED, partition: 0, offset: low });
        remake(&mut story);
        assert_eq!(story.judge("a", &without), Err(ResetReason::Invalid), "complete-from offset {low}");
    }
}

#[test]
fn a_cursor_of_a_recreated_topic_holds_until_the_old_topic_ends() {
    let mut story = Story::of(1);
    (0..3).for_each(|offset| story.read(CREATED, 0, offset));
    remake(&mut story);
    let mut resume_filter = story.judge("a", &story.cursor("a")).unwrap();
    resume_filter.refresh(&story.offsets);
    assert!((0..3).all(|offset| story.contains(&resume_filter, CREATED, 0, offset)));
    let old = story.offsets.partition_id(CREATED, 0).unwrap();
    let at = |end| {
        move |story: &Story, partition_id| if partition_id == old { end } else { story.offsets.next(partition_id) }
    };
    assert!(
        !resume_filter.is_exhausted(&story.offsets, |partition_id| at(2)(&story, partition_id)),
        "one of the old topic's is still to be skipped"
    );
    assert!(resume_filter.is_exhausted(&story.offsets, |partition_id| at(3)(&story, partition_id)));
}

#[test]
fn a_record_older_than_the_historys_time_makes_nothing_misplaced_wherever_it_lies() {
    let mut story = Story::of(4);
    let id = ids_where(|id| Partitioner::Murmur2.hash(id).is_some_and(|hash| hash.of(2) == 1 && hash.of(4) == 3));
    story.offsets.recent_from(&[NextOffset { topic: CREATED, partition: 1, offset: 5 }]);
    (0..9).for_each(|offset| story.read(CREATED, 1, offset));
    story.offsets.record_first_subscribe();
    let listed = story.offsets.list_partitions(&id, [story.offsets.partition_id(CREATED, 1).unwrap()]);
    let judge = |newest| story.offsets.judge(story.cursor(&id), &id, &listed, |_| Some(newest));
    let resume_filter = judge(4).unwrap();
    assert!(story.contains(&resume_filter, CREATED, 1, 4), "the pod that made the cursor was past it");
    assert_eq!(judge(5), Err(ResetReason::Misplaced));
}

// ---- leader epochs ------------------------------------------------------------------------------------------------

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
    lived.truncate(CREATED, 0, 50);
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
    let resume_filter = story.judge("a", &ahead.cursor("a")).unwrap();
    assert_eq!(resume_filter.contradiction(&story.offsets), None);
    story.written(50..51, 1);
    assert_eq!(resume_filter.contradiction(&story.offsets), Some(ResetReason::Expired));
}

#[test]
fn a_client_that_is_ahead_and_whose_log_lost_its_end_keeps_what_it_has_of_others() {
    let end = |offset, epoch| {
        let at = NextOffset { topic: CREATED, partition: 0, offset };
        PartitionEnds { asked: Instant::now(), ends: vec![LogEnd { at, leader_epoch: Some(epoch) }] }
    };
    let judge_ends = |resume_filter: &mut ResumeFilter, story: &Story, ends: PartitionEnds| {
        resume_filter.recheck(&story.offsets, Some(&story.offsets.index_ends(&ends)))
    };
    let mut ahead = Story::of(1);
    ahead.written(0..100, 0);
    (0..10).for_each(|offset| ahead.read(STARTED, 0, offset));
    let cursor = ahead.cursor("a");
    let has_other = |resume_filter: &ResumeFilter, story: &Story| story.contains(resume_filter, STARTED, 0, 9);
    let mut behind = Story::of(1);
    behind.written(0..50, 0);
    (0..5).for_each(|offset| behind.read(STARTED, 0, offset));

    let mut by_end = behind.judge("a", &cursor).unwrap();
    assert_eq!(judge_ends(&mut by_end, &behind, end(50, 1)), CursorVerdict::Lost);
    assert!(!behind.contains(&by_end, CREATED, 0, 50) && has_other(&by_end, &behind));
    let mut astray = behind.judge("a", &cursor).unwrap();
    assert_eq!(judge_ends(&mut astray, &behind, end(49, 1)), CursorVerdict::Open, "this pod's own log is the lost one");
    assert!(behind.contains(&astray, CREATED, 0, 99));

    let mut by_record = behind.judge("a", &cursor).unwrap();
    behind.written(50..51, 1);
    assert_eq!(by_record.recheck(&behind.offsets, None), CursorVerdict::Lost);
    assert_eq!(by_record.recheck(&behind.offsets, None), CursorVerdict::Open);
    assert!(!behind.contains(&by_record, CREATED, 0, 51) && has_other(&by_record, &behind));
}
