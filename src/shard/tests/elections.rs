//! Clients that return to a pod whose log was truncated, before the pod has noticed and after.

use std::sync::Arc;

use super::returns::{cursor_in, told, world};
use super::*;
use crate::stream::batch::{EpochStart, LogEnd, LogTruncation, NextOffset, Origin, PartitionEnds};
use crate::stream::testing::EVENTS;

/// A leader wrote from this offset on.
fn elected(offset: i64, epoch: i32) -> Batch {
    let first = Origin { topic: EVENTS, partition: 0, offset };
    Batch { epochs: vec![EpochStart { first, epoch }], ..Batch::default() }
}

/// The log was truncated to this offset and continues here.
fn abort(offset: i64) -> Batch {
    let next = NextOffset { topic: EVENTS, partition: 0, offset };
    Batch { truncations: vec![LogTruncation { next, is_below_unknown: false }], ..told(offset) }
}

/// The log continues here, and records below may have been replaced as well.
fn abort_somewhere_below(offset: i64) -> Batch {
    let next = NextOffset { topic: EVENTS, partition: 0, offset };
    Batch { truncations: vec![LogTruncation { next, is_below_unknown: true }], ..told(offset) }
}

/// The log ended here, as the leader of an epoch reports.
fn ends(world: &World, offset: i64, epoch: i32) -> Batch {
    let at = NextOffset { topic: EVENTS, partition: 0, offset };
    let ends = vec![LogEnd { at, leader_epoch: Some(epoch) }];
    Batch { ends: Some(Arc::new(PartitionEnds { asked: world.now.instant, ends })), ..Batch::default() }
}

/// A pod that has read these events of a leader.
fn read(numbers: std::ops::Range<u64>, epoch: i32) -> World {
    let mut world = world();
    world.turn([elected(i64::try_from(numbers.start).unwrap(), epoch)]);
    world.turn(numbers.map(|number| events(&[("a", number)])));
    world
}

/// The cursor of a client that has all that a pod has read.
fn cursor(world: &mut World) -> String {
    let (_, client) = world.connect(Some("a"));
    cursor_in(&client.texts()[0]).to_owned()
}

fn resets(texts: &[String]) -> Vec<&str> {
    let reasons = ["expired", "invalid", "lagged", "misplaced"];
    let reset = |text: &&String| text.contains(r#""type":"reset""#);
    texts.iter().filter(reset).flat_map(|text| reasons.into_iter().filter(|&reason| text.contains(reason))).collect()
}

#[test]
fn a_client_of_the_current_log_is_sent_no_truncated_record_and_no_reset() {
    // One pod has read the records from 3 on that are truncated, the other one those written in their place.
    for (new_end, old_end) in [(5, 5), (5, 9), (9, 5)] {
        let mut behind = read(1..old_end, 0);
        let mut knows = read(1..3, 0);
        knows.turn([elected(3, 1)]);
        knows.turn((3..new_end).map(|number| events(&[("a", number)])));

        let (_, live) = behind.connect(Some("a"));
        let (_, back) = behind.come_back(&cursor(&mut knows));
        assert!(back.texts()[0].contains(r#""resumed":true"#));
        // It reads some more of the truncated records.
        behind.turn((old_end..12).map(|number| events(&[("a", number)])));
        assert_eq!(back.texts(), [""; 0]);
        behind.turn([abort(3)]);
        behind.turn([elected(3, 1)]);
        behind.turn((3..new_end).map(|number| events(&[("a", number)])));
        assert_eq!(back.texts(), [""; 0], "it has all of that");
        behind.turn([events(&[("a", new_end)])]);
        assert_eq!(back.numbers(), [new_end]);
        let texts = live.texts();
        assert_eq!(resets(&texts), ["expired"], "who has the lost log is told");
        assert_eq!(number(texts.last().unwrap()), new_end);
    }
}

#[test]
fn a_client_ahead_of_an_unknown_divergence_is_reset_once_and_gets_what_follows() {
    let lost = cursor(&mut read(1..9, 0));
    // Of the client's log, this pod has read the records up to 5.
    let mut world = read(1..6, 0);
    let (key, back) = world.come_back(&lost);
    back.texts();
    world.turn([abort_somewhere_below(3), elected(3, 1), events(&[("a", 3)])]);
    world.turn([events(&[("a", 4)])]);
    world.turn([elected(5, 2), events(&[("a", 5)])]);
    let texts = back.texts();
    assert_eq!(resets(&texts), ["expired"], "{texts:?}");
    assert_eq!(texts[1..].iter().map(|text| number(text)).collect::<Vec<_>>(), [3, 4, 5]);
    assert!(world.state.connections[key].is_plain());

    // It connects after the truncation, which no record shows yet.
    let mut world = read(1..6, 0);
    world.turn([abort_somewhere_below(3)]);
    let (key, back) = world.come_back(&lost);
    assert!(back.texts()[0].contains(r#""resumed":true"#));
    world.pass(Duration::from_millis(1));
    world.turn([ends(&world, 3, 1)]);
    world.turn([ends(&world, 3, 1)]);
    world.turn([elected(3, 1), events(&[("a", 3)])]);
    let texts = back.texts();
    assert_eq!((resets(&texts), number(texts.last().unwrap())), (vec!["expired"], 3), "{texts:?}");
    assert!(world.state.connections[key].is_plain());
}

#[test]
fn a_client_of_the_current_log_keeps_its_cursor_on_a_pod_that_is_behind() {
    let mut behind = read(1..9, 0);
    let mut knows = read(1..3, 0);
    knows.turn([elected(3, 1)]);
    knows.turn([events(&[("a", 3)])]);
    let own = cursor(&mut knows);
    let (_, back) = behind.come_back(&own);
    assert_eq!(cursor_in(&back.texts()[0]), own);
}

#[test]
fn a_cursor_with_truncated_records_is_reset_by_the_leaders_first_answer_even_if_nothing_was_written_since() {
    let mut old = read(1..9, 0);
    let lost = cursor(&mut old);
    for (epoch, told) in [(1, [&["expired"][..], &[]]), (0, [&[], &["invalid"]])] {
        let mut young = read(1..3, 0);
        let (_, back) = young.come_back(&lost);
        assert!(back.texts()[0].contains(r#""resumed":true"#) && young.state.needs_ends());
        young.pass(Duration::from_millis(1));
        for told in told {
            young.turn([ends(&young, 3, epoch)]);
            assert_eq!(resets(&back.texts()), told, "of the leader of {epoch}");
        }
    }
    // A pod that has read the truncated records sends the reset when it notices the truncation, not before.
    let mut astray = read(1..6, 0);
    let (_, back) = astray.come_back(&lost);
    astray.pass(Duration::from_millis(1));
    astray.turn([ends(&astray, 3, 1)]);
    assert_eq!(resets(&back.texts()[1..]), [""; 0]);
    astray.turn([abort(3), elected(3, 1), events(&[("a", 3)])]);
    let texts = back.texts();
    assert_eq!((resets(&texts), number(texts.last().unwrap())), (vec!["expired"], 3));
    // Epochs restarted, as in a cluster restored from a backup.
    let mut anew = read(1..20, 0);
    let mut before = read(1..9, 4);
    let (_, back) = anew.come_back(&cursor(&mut before));
    assert!(back.texts()[0].contains(r#""resumed":true"#) && anew.state.needs_ends());
    anew.pass(Duration::from_millis(1));
    for told in [&[][..], &["expired"]] {
        anew.turn([ends(&anew, 20, 0)]);
        assert_eq!(resets(&back.texts()), told);
    }
    anew.turn([events(&[("a", 20)])]);
    assert_eq!(back.numbers(), [20]);
}
