use proptest::prelude::*;

use super::*;
use crate::clock::UnixMs;
use crate::ids::TopicIndex;
use crate::routing::table::{Fingerprint, MessageFields, Partitioner, PayloadForm, Piece, Route, TopicPattern};
use crate::stream::batch::LogEnd;

const EVENTS: TopicIndex = TopicIndex(0);
const TICKS: TopicIndex = TopicIndex(1);
const KEYED: TopicIndex = TopicIndex(2);
const EVENT_BYTES_MAX: usize = 1024;
const WINDOW: Duration = Duration::from_secs(300);
const NOW_MS: i64 = 1_790_000_000_000;

fn topic(index: TopicIndex, name: &str, scope: Scope) -> Arc<Topic> {
    let pattern = TopicPattern { pieces: vec![Piece::Literal(name.into())] };
    let route = Route {
        topic: pattern,
        scope,
        message_type: "event".into(),
        fields: MessageFields::Whole,
        payload: PayloadForm::Json,
        when: None,
        carried: Vec::new(),
    };
    Arc::new(Topic {
        index,
        name: name.into(),
        fingerprint: Fingerprint::default(),
        route: Arc::new(route),
        parts: Vec::new(),
    })
}

fn assessment(from: AssessmentFrom) -> Scope {
    Scope::Assessment { from, partitioner: Partitioner::Murmur2 }
}

/// A batcher, and the read offsets that the reader would keep beside it.
struct Story {
    batcher: Batcher,
    read_offsets: ReadOffsets,
    now: Instant,
}

impl Story {
    fn new(shards: u16) -> Self {
        let mut batcher = Batcher::new(shards, EVENT_BYTES_MAX, WINDOW);
        batcher.set_time(Now { instant: Instant::now(), unix: UnixMs(NOW_MS.unsigned_abs()) });
        batcher.add_topic(topic(EVENTS, "events", assessment(AssessmentFrom::Payload)));
        batcher.add_topic(topic(TICKS, "ticks", Scope::Market { part: "market".into() }));
        let mut read_offsets = ReadOffsets::default();
        read_offsets.set(EVENTS, 0, 0);
        read_offsets.set(TICKS, 0, 70);
        Self { batcher, read_offsets, now: Instant::now() }
    }

    fn record(
        &mut self,
        topic: TopicIndex,
        offset: i64,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
    ) -> Result<RecordOutcome, RecordFault> {
        let origin = Origin { topic, partition: 0, offset };
        let incoming = ConsumedRecord { origin, timestamp_ms: NOW_MS - offset, epoch: 0, key, payload, headers: &() };
        let taken = self.batcher.push(&incoming, &self.read_offsets);
        self.read_offsets.set(topic, 0, offset + 1);
        taken
    }

    fn event(&mut self, offset: i64, id: &str) -> Result<RecordOutcome, RecordFault> {
        self.record(EVENTS, offset, None, Some(format!(r#"{{"assessmentId":"{id}","n":{offset}}}"#).as_bytes()))
    }

    fn take(&mut self, shard: u16) -> Option<Batch> {
        self.batcher.take(ShardIndex(shard), &self.read_offsets, self.now)
    }
}

fn names(batch: &Batch) -> Vec<&str> {
    batch.topics.iter().map(|topic| &*topic.name).collect()
}

fn next(topic: TopicIndex, offset: i64) -> NextOffset {
    NextOffset { topic, partition: 0, offset }
}

#[test]
fn a_shard_hears_of_topics_once_and_of_offsets_as_they_stood_at_its_batchs_first_record() {
    let mut story = Story::new(1);
    story.event(5, "a").unwrap();
    story.event(6, "b").unwrap();
    let first = story.take(0).unwrap();
    assert_eq!(names(&first), ["events", "ticks"]);
    assert_eq!(first.starts, [next(EVENTS, 0), next(TICKS, 70)]);
    assert_eq!(first.records.len(), 2);
    assert!(story.take(0).is_none(), "nothing is left");

    // What came between two batches and was no use to the shard still moved the ingest on.
    story.record(EVENTS, 7, None, Some(b"not json")).unwrap_err();
    story.event(8, "a").unwrap();
    let second = story.take(0).unwrap();
    assert!(second.topics.is_empty());
    assert_eq!(second.starts, [next(EVENTS, 8)], "the ticks' offset did not change");

    story.batcher.add_topic(topic(KEYED, "keyed", assessment(AssessmentFrom::Key)));
    story.read_offsets.set(KEYED, 0, 30);
    let third = story.take(0).expect("a new topic is announced without waiting for a record");
    assert_eq!(names(&third), ["keyed"]);
    assert_eq!(third.starts, [next(EVENTS, 9), next(KEYED, 30)]);
    assert!(third.records.is_empty());
}

#[test]
fn before_a_truncation_a_quiet_shard_gets_what_was_read_of_the_log() {
    let mut story = Story::new(2);
    let quiet = (0..2).find(|&shard| shard != shard_of(AssessmentHash::of("a"), 2).0).unwrap();
    story.event(0, "a").unwrap();
    story.take(quiet).unwrap();
    // Another leader's records come, none of which is this shard's.
    let start = EpochStart { first: Origin { topic: EVENTS, partition: 0, offset: 1 }, epoch: 3 };
    story.batcher.epoch_starts(start);
    (1..8).for_each(|offset| _ = story.event(offset, "a").unwrap());
    assert!(story.take(quiet).is_none(), "that waits until it is time for offsets");
    story.take(1 - quiet).unwrap();
    let truncation = LogTruncation { next: next(EVENTS, 5), is_below_unknown: false };
    story.batcher.truncate(truncation, &story.read_offsets);
    story.read_offsets.set(EVENTS, 0, 5);
    let before = story.take(quiet).unwrap();
    assert_eq!((before.epochs, before.starts, before.truncations), (vec![start], vec![next(EVENTS, 8)], vec![]));
    let after = story.take(quiet).unwrap();
    assert_eq!((after.epochs, after.starts, after.truncations), (vec![], vec![next(EVENTS, 5)], vec![truncation]));
    assert!(story.take(quiet).is_none());
}

#[test]
fn an_event_goes_to_its_shard_alone_and_a_tick_to_every_shard() {
    let mut story = Story::new(3);
    let Ok(RecordOutcome::Event { hash, .. }) = story.event(0, "alice") else { panic!("an event") };
    assert_eq!(hash, AssessmentHash::of("alice"));
    assert_eq!(story.record(TICKS, 70, None, Some(br#"{"price":1}"#)), Ok(RecordOutcome::Tick(None)));
    let home = shard_of(hash, 3);
    for shard in 0..3 {
        let batch = story.take(shard).unwrap();
        assert_eq!(batch.records.len(), usize::from(ShardIndex(shard) == home));
        assert_eq!(batch.ticks.len(), 1);
        let tick = batch.ticks[0];
        assert_eq!((tick.origin.offset, tick.made, tick.age_ms), (70, TickTime(NOW_MS - 70), 70));
        assert_eq!(tick.payload.of(&batch.arena), br#"{"price":1}"#);
        let Some(record) = batch.records.first() else { continue };
        assert_eq!(record.id.of(&batch.arena), b"alice");
        assert_eq!(record.payload.of(&batch.arena), br#"{"assessmentId":"alice","n":0}"#);
        assert_eq!(record.origin, Origin { topic: EVENTS, partition: 0, offset: 0 });
    }
}

#[test]
fn an_id_that_the_payload_holds_as_it_is_takes_no_second_copy() {
    let mut story = Story::new(1);
    let plain: &[u8] = br#"{"assessmentId":"alice"}"#;
    let escaped: &[u8] = br#"{"assessmentId":"al\u0069ce"}"#;
    story.record(EVENTS, 0, None, Some(plain)).unwrap();
    story.record(EVENTS, 1, None, Some(escaped)).unwrap();
    let batch = story.take(0).unwrap();
    let ids: Vec<_> = batch.records.iter().map(|record| record.id.of(&batch.arena)).collect();
    assert_eq!(ids, [b"alice", b"alice"]);
    assert_eq!(batch.records[0].hash, batch.records[1].hash, "however it is written");
    assert_eq!(batch.arena.len(), plain.len() + escaped.len() + "alice".len());
    assert_eq!(batch.arena.capacity(), batch.arena.len(), "a shard keeps no more than it needs");
}

#[test]
fn a_record_outside_its_partitioners_partition_is_misplaced() {
    let mut story = Story::new(1);
    let is_misplaced = |taken| matches!(taken, Ok(RecordOutcome::Event { is_misplaced: true, .. }));
    assert!((0..10).all(|number| !is_misplaced(story.event(number, &number.to_string()))), "there is one partition");
    story.read_offsets.set(EVENTS, 1, 0);
    let misplaced = (10..30).filter(|&number| is_misplaced(story.event(number, &number.to_string()))).count();
    assert!((1..20).contains(&misplaced), "those that belong on the second: {misplaced} of 20");
}

#[test]
fn an_assessment_in_the_key_leaves_the_payload_unread_but_it_must_be_there() {
    let mut story = Story::new(1);
    story.batcher.add_topic(topic(KEYED, "keyed", assessment(AssessmentFrom::Key)));
    assert_eq!(
        story.record(KEYED, 0, Some(b"bob"), Some(b"not json")),
        Ok(RecordOutcome::Event { hash: AssessmentHash::of("bob"), is_misplaced: false }),
        "it is parsed where it is needed"
    );
    let batch = story.take(0).unwrap();
    assert_eq!(batch.records[0].id.of(&batch.arena), b"bob");

    let long = [b'x'; 129];
    for key in [None, Some(&b""[..]), Some(b"\xff"), Some(b"a\nb"), Some(&long)] {
        assert_eq!(story.record(KEYED, 1, key, Some(b"{}")), Err(Malformed::NoAssessment.into()), "{key:?}");
    }
    assert_eq!(story.record(KEYED, 2, Some(b"bob"), None), Err(Malformed::NoPayload.into()));
}

#[test]
fn a_record_that_cannot_be_used_names_its_fault_and_leaves_no_trace() {
    let mut story = Story::new(1);
    story.take(0).expect("the topics");
    let large = format!(r#"{{"assessmentId":"a","x":"{}"}}"#, "y".repeat(EVENT_BYTES_MAX));
    let cases: [(TopicIndex, Option<&[u8]>, RecordFault); 6] = [
        (EVENTS, None, Malformed::NoPayload.into()),
        (EVENTS, Some(b"[1]"), Malformed::NotAnObject.into()),
        (EVENTS, Some(br#"{"assessmentId":""}"#), Malformed::NoAssessment.into()),
        (EVENTS, Some(large.as_bytes()), RecordFault::TooLarge),
        (TICKS, None, Malformed::NoPayload.into()),
        (TICKS, Some(b"7"), Malformed::NotAnObject.into()),
    ];
    for (topic, payload, fault) in cases {
        assert_eq!(story.record(topic, 80, None, payload), Err(fault));
        assert!(story.take(0).is_none());
    }
}

#[test]
fn a_batch_at_its_limit_is_handed_over_before_the_others() {
    let mut story = Story::new(2);
    let mut offset = 0;
    let (shard, batch) = loop {
        story.event(offset, "alice").unwrap();
        offset += 1;
        if let Some(full) = story.batcher.take_full() {
            break full;
        }
    };
    assert_eq!(shard, shard_of(AssessmentHash::of("alice"), 2));
    assert!(batch.records.len() == BATCH_RECORDS_MAX || batch.arena.len() >= BATCH_BYTES_MAX);
    assert!(story.batcher.take_full().is_none());
    story.event(offset, "alice").unwrap();
    let rest = story.take(shard.0).unwrap();
    assert_eq!(rest.starts, [next(EVENTS, offset)]);

    // A batch that is taken before it is asked for as a full one is not full any more.
    for more in 0..BATCH_RECORDS_MAX as i64 {
        story.event(offset + 1 + more, "alice").unwrap();
    }
    assert!(story.take(shard.0).is_some());
    assert!(story.batcher.take_full().is_none());
}

#[test]
fn a_shard_without_records_hears_where_ingest_stands_once_in_a_while() {
    let mut story = Story::new(2);
    let first = story.take(1).unwrap();
    assert_eq!(first.starts, [next(EVENTS, 0), next(TICKS, 70)], "where reading began");
    story.take(0).unwrap();

    // Another shard's records, and ends behind transaction markers.
    story.read_offsets.set(EVENTS, 0, 9);
    assert!(story.take(1).is_none(), "not yet");
    story.now += OFFSETS_SENT_EVERY;
    let batch = story.take(1).unwrap();
    assert_eq!(batch.starts, [next(EVENTS, 9)]);
    assert!(batch.records.is_empty() && batch.topics.is_empty());
    story.read_offsets.set(TICKS, 0, 71);
    assert!(story.take(1).is_none(), "one in that time");
    story.now += OFFSETS_SENT_EVERY;
    assert_eq!(story.take(1).unwrap().starts, [next(TICKS, 71)]);
    story.now += OFFSETS_SENT_EVERY;
    assert!(story.take(1).is_none(), "nothing changed");

    // A new partition is announced at once.
    story.read_offsets.set(EVENTS, 1, 30);
    let starts = story.take(1).unwrap().starts;
    assert_eq!(starts, [NextOffset { topic: EVENTS, partition: 1, offset: 30 }]);
}

#[test]
fn each_shard_is_told_at_once_of_what_was_deleted_unread() {
    let mut story = Story::new(2);
    assert!(story.take(0).unwrap().deleted.is_empty(), "where reading began is no deletion");
    story.take(1).unwrap();
    story.batcher.deleted(next(EVENTS, 50));
    story.read_offsets.set(EVENTS, 0, 50);
    let home = shard_of(AssessmentHash::of("alice"), 2).0;
    let other = story.take(1 - home).unwrap();
    assert_eq!((&other.deleted[..], &other.starts[..]), (&[next(EVENTS, 50)][..], &[next(EVENTS, 50)][..]));
    assert!(other.records.is_empty());
    story.event(50, "alice").unwrap();
    let with_record = story.take(home).unwrap();
    assert_eq!((with_record.deleted, with_record.starts), (vec![next(EVENTS, 50)], vec![next(EVENTS, 50)]));
    story.event(51, "alice").unwrap();
    assert!(story.take(home).unwrap().deleted.is_empty(), "told once");
}

#[test]
fn each_shard_is_told_at_once_and_once_from_where_a_partition_is_whole() {
    let mut story = Story::new(2);
    (0..2).for_each(|shard| assert!(story.take(shard).unwrap().complete_from.is_empty()));
    // A log that is compacted has a gap before many a record.
    for offset in [50, 55, 70] {
        story.batcher.complete_from(next(EVENTS, offset));
    }
    for shard in 0..2 {
        assert_eq!(story.take(shard).unwrap().complete_from, [next(EVENTS, 70)], "the last one says it all");
        assert!(story.take(shard).is_none(), "told once");
    }
}

#[test]
fn requested_ends_are_sent_once_without_waiting_for_a_record() {
    let mut story = Story::new(2);
    (0..2).for_each(|shard| assert!(story.take(shard).unwrap().ends.is_none(), "no shard requested them"));
    let ends = |seconds, offset| {
        let asked = story.now + Duration::from_secs(seconds);
        Arc::new(PartitionEnds { asked, ends: vec![LogEnd { at: next(EVENTS, offset), leader_epoch: None }] })
    };
    let (early, late) = (ends(0, 40), ends(1, 50));
    story.batcher.update_ends(ShardIndex(1), &early);
    assert!(story.take(0).is_none());
    assert_eq!(story.take(1).unwrap().ends, Some(early.clone()));
    assert!(story.take(1).is_none(), "told once");

    // Newer ones come before the batch leaves, which has a record by then.
    story.batcher.update_ends(ShardIndex(0), &early);
    story.batcher.update_ends(ShardIndex(0), &late);
    story.batcher.update_ends(ShardIndex(1), &late);
    story.event(0, "alice").unwrap();
    let home = shard_of(AssessmentHash::of("alice"), 2).0;
    let batch = story.take(home).unwrap();
    assert_eq!((batch.records.len(), batch.ends), (1, Some(late)));
}

proptest! {
    /// Whatever comes in whichever order, and wherever batches are cut: each shard gets its own records in order,
    /// and the starts that it was told add up to where the ingest stood at each batch's first record.
    #[test]
    fn shards_get_their_own_in_order_and_know_where_the_ingest_stood(
        steps in proptest::collection::vec((0u8..8, proptest::bool::weighted(0.2)), 1..200),
    ) {
        let shards = 3;
        let mut story = Story::new(shards);
        let mut expected: Vec<Vec<i64>> = vec![Vec::new(); usize::from(shards)];
        let mut got = expected.clone();
        let mut sent_offsets = vec![i64::MIN; usize::from(shards)];
        for (offset, (id, cut)) in (0i64..).zip(steps) {
            let id = format!("id-{id}");
            story.event(offset, &id).unwrap();
            expected[usize::from(shard_of(AssessmentHash::of(&id), shards).0)].push(offset);
            for shard in (0..shards).filter(|_| cut) {
                let Some(batch) = story.take(shard) else { continue };
                let (got, sent_offsets) = (&mut got[usize::from(shard)], &mut sent_offsets[usize::from(shard)]);
                if let Some(start) = batch.starts.iter().find(|start| start.topic == EVENTS) {
                    *sent_offsets = start.offset;
                }
                if let Some(first) = batch.records.first() {
                    prop_assert_eq!(*sent_offsets, first.origin.offset, "all below it was read before it");
                }
                got.extend(batch.records.iter().map(|record| record.origin.offset));
            }
        }
        for shard in 0..shards {
            got[usize::from(shard)].extend(
                story.take(shard).iter().flat_map(|batch| &batch.records).map(|record| record.origin.offset),
            );
        }
        prop_assert_eq!(got, expected);
    }
}
