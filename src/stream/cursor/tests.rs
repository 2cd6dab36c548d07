use proptest::prelude::*;

use super::*;

const OWN: AssessmentHash = AssessmentHash(7);

fn fingerprint(topic: u32) -> Fingerprint {
    Fingerprint { name: topic.wrapping_mul(0x9e37_79b9), incarnation: topic.wrapping_mul(0x85eb_ca6b) }
}

/// A cursor's text in a form; what does not fit leaves nothing.
fn text_in(form: Form, topics: &[(Fingerprint, u32, Vec<PartitionOffset>)]) -> Option<String> {
    let mut encoder = Encoder::new(form);
    for (topic, partitions, offsets) in topics {
        if !encoder.topic(Tag::of(*topic), TopicSum::of(*topic), *partitions, offsets.iter().copied()) {
            return None;
        }
    }
    let mut out = b"before".to_vec();
    encoder.finish(OWN, TopicSum::default(), &mut out);
    Some(String::from_utf8(out).unwrap().strip_prefix("before").unwrap().to_owned())
}

fn text(topics: &[(Fingerprint, u32, Vec<PartitionOffset>)]) -> Option<String> {
    Form::ALL.into_iter().find_map(|form| text_in(form, topics))
}

fn listing(topics: &[(Fingerprint, u32, Vec<PartitionOffset>)]) -> Cursor {
    let sum = topics.iter().fold(TopicSum::default(), |sum, (topic, ..)| sum.plus(TopicSum::of(*topic)));
    let topics = topics
        .iter()
        .map(|(topic, partitions, offsets)| ListedTopic {
            tag: Tag::of(*topic),
            partitions: *partitions,
            offsets: offsets.clone(),
        })
        .collect();
    Cursor::Of(CursorContents { sum, topics })
}

/// This many topics with six partitions, one place each, whose leaders changed as often as its number says.
fn topics(count: u32, next: i64, elections: impl Fn(u32) -> i32) -> Vec<(Fingerprint, u32, Vec<PartitionOffset>)> {
    (0..count)
        .map(|topic| {
            let place = PartitionOffset { partition: 3, next: next + i64::from(topic), epoch: Some(elections(topic)) };
            (fingerprint(topic), 6, vec![place])
        })
        .collect()
}

#[test]
fn a_cursor_over_the_ten_built_in_topics_has_at_most_120_characters() {
    for (next, epochs) in [(3_000_000, 0), (900_000_000, 0), (900_000_000, 1)] {
        // At worst the leaders of no two partitions changed as often.
        let text = text(&topics(10, next, |topic| epochs * topic.cast_signed())).unwrap();
        assert!(text.len() <= 120, "{} characters: {text}", text.len());
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
    }
}

#[test]
fn sixty_four_topics_fit_and_what_is_left_out_where_they_hardly_do_is_the_marks_and_then_the_epochs() {
    let small = topics(64, 5_000, |_| 0);
    assert_eq!(decode(&text_in(Form::Full, &small).unwrap(), OWN), Ok(listing(&small)));
    let quiet = topics(64, 9_000_000, |_| 3);
    let Ok(Cursor::Of(read)) = decode(&text(&quiet).unwrap(), OWN) else { panic!("a cursor") };
    assert!(read.topics.iter().all(|topic| topic.tag.mark.is_none() && topic.offsets[0].epoch == Some(3)));
    let millions = topics(64, 9_000_000, |topic| topic.cast_signed() % 7);
    let text = text(&millions).unwrap();
    assert!(text.len() <= CURSOR_CHARS_MAX);
    let Ok(Cursor::Of(read)) = decode(&text, OWN) else { panic!("a cursor") };
    assert_eq!(read.topics.len(), 64);
    assert!(read.topics.iter().all(|topic| topic.tag.mark.is_none() && topic.offsets[0].epoch.is_none()));
    assert!(read.topics.iter().zip(&millions).all(|(read, (.., offsets))| read.offsets[0].next == offsets[0].next));
    assert!(text_in(Form::WithoutEpochs, &topics(55, 9_000_000, |topic| topic.cast_signed())).is_some());
}

#[test]
fn there_is_room_for_as_many_topics_and_partitions_as_is_said() {
    // Offsets of four bytes.
    let next = 4_000_000_000;
    assert!(text(&topics(u32::try_from(topics_max()).unwrap(), next, |_| 0)).is_some());
    let spread = |partitions: usize| {
        let offsets =
            (0..partitions).map(|partition| PartitionOffset { partition: partition as u32, next, epoch: None });
        vec![(fingerprint(1), partitions as u32, offsets.collect())]
    };
    assert!(text(&spread(places_max())).is_some());
    assert_eq!(text(&spread(400)), None);
    let with_epochs = (1..).take_while(|topics| has_room_for_epochs(*topics, 0)).last().unwrap();
    let alternating = topics(u32::try_from(with_epochs).unwrap(), next, |topic| 200 + topic.cast_signed() % 2);
    let Ok(Cursor::Of(read)) = decode(&text(&alternating).unwrap(), OWN) else { panic!("a cursor") };
    assert!((40..topics_max()).contains(&with_epochs), "{with_epochs}");
    assert!(read.topics.iter().all(|topic| topic.offsets[0].epoch.is_some()));
    assert!(has_room_for_epochs(10, 30) && !has_room_for_epochs(10, 50));
    assert!(has_room_for(topics_max(), 0) && !has_room_for(topics_max() + 1, 0) && has_room_for(10, 50));
}

#[test]
fn a_change_of_any_character_is_told() {
    let topics = topics(10, 1_000_000, |topic| topic.cast_signed());
    let text = text(&topics).unwrap();
    assert_eq!(decode(&text, OWN), Ok(listing(&topics)));
    for place in 0..text.len() {
        let mut other = text.clone().into_bytes();
        other[place] = if other[place] == b'A' { b'B' } else { b'A' };
        assert_eq!(decode(std::str::from_utf8(&other).unwrap(), OWN), Err(InvalidCursor), "character {place}");
        assert_eq!(decode(&text[..place], OWN), Err(InvalidCursor), "cut after {place}");
    }
    assert_eq!(decode(&text, AssessmentHash(8)), Err(InvalidCursor), "another assessment's");
    assert_eq!(decode(&(text + "A"), OWN), Err(InvalidCursor));
}

#[test]
fn one_that_could_not_be_made_says_so_to_its_assessment_alone() {
    let mut out = Vec::new();
    encode_unresumable(OWN, &mut out);
    let text = String::from_utf8(out).unwrap();
    assert_eq!((decode(&text, OWN), decode(&text, AssessmentHash(8))), (Ok(Cursor::None), Err(InvalidCursor)));
    assert_eq!(decode(&add_draining_flag(&text).unwrap(), OWN), Ok(Cursor::None));
}

#[test]
fn a_mark_is_set_once_and_says_nothing_of_what_the_client_has() {
    let topics = topics(10, 1_000_000, |_| 0);
    let text = text(&topics).unwrap();
    let marked = add_draining_flag(&text).unwrap();
    assert!(has_draining_flag(&marked) && !has_draining_flag(&text));
    assert_eq!((add_draining_flag(&marked).unwrap(), decode(&marked, OWN)), (marked.clone(), Ok(listing(&topics))));
    assert_eq!(decode(&format!("~{marked}"), OWN), Err(InvalidCursor));
    assert_eq!((add_draining_flag(&"A".repeat(CURSOR_CHARS_MAX)), decode("~", OWN)), (None, Err(InvalidCursor)));
}

fn any_place() -> impl Strategy<Value = (u32, i64, Option<i32>)> {
    let next = prop_oneof![0..200_000i64, 0..5_000_000_000i64, Just(i64::MAX)];
    (0u32..4, next, prop::option::weighted(0.8, 0..300i32))
}

fn any_topics() -> impl Strategy<Value = Vec<(Fingerprint, u32, Vec<PartitionOffset>)>> {
    let topic = (any::<u32>(), any::<u32>(), 1..9u32, prop::collection::vec(any_place(), 1..4));
    prop::collection::vec(topic, 0..9).prop_map(|topics| {
        topics
            .into_iter()
            .map(|(name, incarnation, partitions, offsets)| {
                let mut partition = 0;
                let offsets = offsets.into_iter().map(|(gap, next, epoch)| {
                    partition += 1 + gap;
                    PartitionOffset { partition, next, epoch }
                });
                (Fingerprint { name, incarnation }, partitions, offsets.collect())
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn what_is_made_is_read_again(topics in any_topics()) {
        prop_assert_eq!(decode(&text_in(Form::Full, &topics).unwrap(), OWN), Ok(listing(&topics)));
    }

    #[test]
    fn whatever_comes_is_read_without_a_panic(text in ".{0,40}", bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(decode(&text, OWN).is_err());
        // With a good check, so that what comes behind it is reached.
        for form in [WIDE, NARROW, NONE] {
            let mut whole = bytes.clone();
            whole.truncate(BYTES_MAX);
            whole.resize(whole.len().max(HEADER_BYTES), 0);
            whole[0] = form;
            whole[1..=CHECK_BYTES].fill(0);
            let sum = check(&whole, OWN).to_le_bytes();
            whole[1..=CHECK_BYTES].copy_from_slice(&sum);
            if let Ok(Cursor::Of(read)) = decode(&BASE64_URL_SAFE_NO_PAD.encode(&whole), OWN) {
                let offsets: usize = read.topics.iter().map(|topic| topic.offsets.len()).sum();
                prop_assert!(offsets <= BYTES_MAX / 3);
            }
        }
    }
}
