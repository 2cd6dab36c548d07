//! The first messages to a client, on a socket that takes small parts.

use super::*;
use crate::stream::testing::ETH;

/// The kind of each message, by a word that only this kind has.
fn kinds(texts: &[String]) -> Vec<&'static str> {
    let words = ["connected", "btc", "eth", "currentBalance"];
    let kind = |text: &String| words.into_iter().find(|word| text.contains(word)).expect("a known kind");
    texts.iter().map(kind).collect()
}

#[test]
fn events_follow_the_whole_board_on_a_slow_socket() {
    for part in 1..200 {
        let mut world = World::new();
        world.turn([tick(BTC, 0, 1, 0, 100), tick(ETH, 0, 1, 0, 200)]);
        let socket = Scripted::default();
        let key = world.connect_to(&socket, Some("a"), None);
        for number in 1..4 {
            world.turn([events(&[("a", number)])]);
            socket.takes(part);
            world.run_task(key, &socket);
        }
        socket.takes(usize::MAX);
        world.run_task(key, &socket);
        let got = kinds(&socket.texts());
        let whole = ["connected", "btc", "eth", "currentBalance", "currentBalance", "currentBalance"];
        assert_eq!(got, whole, "{part} bytes at a time");
    }
}

#[test]
fn later_ticks_do_not_delay_events() {
    let mut world = World::new();
    world.turn([tick(BTC, 0, 1, 0, 100), tick(ETH, 0, 1, 0, 200)]);
    let socket = Scripted::default();
    let key = world.connect_to(&socket, Some("a"), None);
    // The greeting, whose header has four bytes, and a part of the first tick.
    let (_, other) = world.connect(Some("a"));
    socket.takes(4 + other.texts()[0].len() + 10);
    world.run_task(key, &socket);
    world.pass(Duration::from_millis(100));
    world.turn([tick(ETH, 0, 2, 0, 201), events(&[("a", 1)])]);
    world.pass(Duration::from_millis(100));
    world.turn([tick(BTC, 0, 2, 0, 101)]);
    socket.takes(usize::MAX);
    world.run_task(key, &socket);
    assert_eq!(kinds(&socket.texts()), ["connected", "btc", "eth", "btc", "currentBalance"]);
    world.pass(Duration::from_millis(100));
    world.turn([tick(BTC, 0, 3, 0, 102), events(&[("a", 2)])]);
    assert_eq!(kinds(&socket.texts()), ["currentBalance", "btc"]);
}
