//! Clients whose sockets take less than there is.

use super::*;
use crate::limits::TURN_BYTES_MAX;
use crate::stream::testing::{large_event, malformed};

#[test]
fn a_malformed_record_behind_a_half_written_event_changes_nothing() {
    let mut world = World::new();
    let (key, socket) = world.connect(Some("a"));
    socket.texts();
    socket.takes(70);
    world.turn([large_event("a", 1, 400_000)]);
    world.turn([malformed("a", 2)]);
    socket.takes(100);
    world.run_task(key, &socket);
    socket.takes(usize::MAX);
    world.run_task(key, &socket);
    assert_eq!(socket.numbers(), [1]);
    world.turn([malformed("a", 3), events(&[("a", 4)])]);
    assert_eq!(socket.numbers(), [4]);
    assert_eq!(world.state.end_turn(world.now.instant).1.unusable, 2);
}

#[test]
fn an_event_behind_a_malformed_record_does_not_end_one_that_is_half_written() {
    let mut world = World::new();
    let (key, socket) = world.connect(Some("a"));
    socket.texts();
    socket.takes(70);
    world.turn([large_event("a", 1, 400_000)]);
    world.turn([malformed("a", 2), large_event("a", 3, TURN_BYTES_MAX + 1), events(&[("a", 4)])]);
    for takes in [100, 200_000, 200_000, usize::MAX] {
        socket.takes(takes);
        world.run_task(key, &socket);
    }
    world.turn([]);
    let texts = socket.texts();
    assert_eq!(texts.iter().map(|text| number(text)).collect::<Vec<_>>(), [1, 3, 4]);
    assert!(texts[0].len() > 400_000 && texts[1].len() > TURN_BYTES_MAX);
}
