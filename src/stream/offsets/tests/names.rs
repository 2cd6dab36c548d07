//! Topics that share a name's hash or a tag, and cursors of the previous version.

use super::*;

/// A shard that knows topics of these names, in a cluster that gives topics no ids.
fn named(names: &[&str]) -> Story {
    let route = "[[route]]\ntopic = \"pl.{x}\"\nscope = \"assessment\"\ntype = \"t\"\nfields = \"*\"\n";
    let table = RouteTable::parse(route).unwrap();
    let mut story = Story { offsets: Offsets::default(), now: Instant::now(), cluster: "" };
    for (index, name) in (0..).map(TopicIndex).zip(names) {
        story.offsets.add_topics(&[Arc::new(table.resolve(index, name).unwrap())]);
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
        let resume_filter = judge.judge("a", &maker.cursor("a")).unwrap();
        for (topic, next) in [(TopicIndex(1), read_to[0]), (TopicIndex(0), read_to[1])] {
            assert!(next == 0 || judge.contains(&resume_filter, topic, 0, next - 1));
            assert!(!judge.contains(&resume_filter, topic, 0, next), "what it lacks of each is told by its own offset");
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
        let resume_filter = judge.judge("a", &maker.cursor("a")).unwrap();
        for topic in (0..3).map(TopicIndex) {
            assert_eq!(judge.contains(&resume_filter, topic, 0, 3), topic.0 == listed);
        }
    }
}

#[test]
fn a_cursor_of_version_1_is_good_for_one_release_more() {
    let mut story = Story::of(3);
    let id = "assessment-4711";
    let partition_ids = |story: &Story| story.offsets.list_partitions(id, []).partition_ids().to_vec();
    let origin = |story: &Story, partition_id: PartitionId| {
        let info = story.offsets.info(partition_id);
        (info.topic, i32::try_from(info.partition).unwrap())
    };
    for partition_id in partition_ids(&story) {
        let (topic, partition) = origin(&story, partition_id);
        (0..20).for_each(|offset| story.read(topic, partition, offset));
    }
    // As the release before made it, with 12 of the one and 7 of the other.
    let text = "ARqAL0YuxX1Nc8wkfXirgtMDAAz4RbY4gOKcewMABzoBliU";
    let cursor = decode(text, AssessmentHash::of(id)).unwrap();
    let resume_filter = story.judge(id, &cursor).unwrap();
    for partition_id in partition_ids(&story) {
        let (topic, partition) = origin(&story, partition_id);
        let next = if topic == CREATED { 12 } else { 7 };
        assert!(
            story.contains(&resume_filter, topic, partition, next - 1)
                && !story.contains(&resume_filter, topic, partition, next)
        );
    }
    assert!(decode(text, AssessmentHash::of("b")).is_err(), "another assessment's");
    assert!(decode(&text[1..], AssessmentHash::of(id)).is_err());
}
