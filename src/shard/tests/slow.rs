//! Clients whose sockets take less than is due.

use super::*;
use crate::limits::CLOSE_STALL_MAX;
use crate::limits::TURN_BYTES_MAX;
use crate::stream::history::{FindingKind, TopicFinding};
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

/// Fills the window with other events, so that all earlier ones are gone.
fn overtake(world: &mut World) {
    for number in 0..8 {
        world.turn([large_event("other", number, 1_000_000)]);
    }
}

/// Half writes an event of `a`, and lets the window overtake it and the next one.
fn half_written(world: &mut World, socket: &Scripted) {
    socket.texts();
    socket.takes(100_000);
    world.turn([large_event("a", 1, 300_000)]);
    world.turn([events(&[("a", 2)])]);
    overtake(world);
}

/// Takes the close frame off the end of what a socket was sent; returns its code.
fn close_code(socket: &Scripted) -> Option<u16> {
    let got = &mut socket.0.borrow_mut().got;
    let at = got.windows(2).rposition(|pair| pair[0] == 0x88 && usize::from(pair[1]) >= 2)?;
    let frame = got.split_off(at);
    assert_eq!(frame.len(), 2 + usize::from(frame[1]), "nothing follows it");
    Some(u16::from_be_bytes([frame[2], frame[3]]))
}

#[test]
fn a_live_client_that_the_window_overtakes_gets_the_rest_of_its_event_and_a_close_frame() {
    let mut world = World::new();
    let (key, socket) = world.connect(Some("a"));
    half_written(&mut world, &socket);
    let mut sweeper = Sweeper::new(&config(), world.now.instant);
    for _ in 0..30 {
        world.pass(Duration::from_secs(1));
        world.sweep(&mut sweeper);
        socket.takes(10_000);
        world.run_task(key, &socket);
    }
    assert_eq!(world.state.ended(key), Some(CloseReason::TooSlow));
    assert_eq!(close_code(&socket), Some(1013));
    assert_eq!(socket.numbers(), [1], "it is complete, and nothing is skipped before the close");
    assert!(world.state.detach(key, CloseReason::ClientGone).is_some_and(|ended| ended.close_sent));
    assert_eq!(world.state.history.held(), 0);
}

#[test]
fn a_client_overtaken_while_catching_up_gets_the_rest_of_its_event_and_continues_live() {
    let mut world = returns::world();
    let (_, live) = world.connect(Some("a"));
    let start = live.texts().remove(0);
    world.turn((1..9).map(|number| large_event("a", number, 100_000)));
    let socket = Scripted::default();
    let key = world.enter(&socket, Some("a"), Some(returns::cursor_in(&start)), None);
    world.turn([]);
    for _ in 0..4 {
        socket.takes(50_000);
        world.run_task(key, &socket);
    }
    overtake(&mut world);
    socket.takes(usize::MAX);
    world.run_task(key, &socket);
    world.turn([events(&[("a", 9)])]);
    let texts = socket.texts();
    let kinds: Vec<_> = texts.iter().map(|text| text.get(..30).unwrap_or_default()).collect();
    let reset = texts
        .iter()
        .position(|text| text.contains(r#""reason":"lagged""#))
        .unwrap_or_else(|| panic!("a reset: {kinds:?}"));
    let number_at = |at: usize| number(&texts[at]);
    assert!((1..8).contains(&number_at(reset - 1)), "{kinds:?}");
    assert_eq!((number_at(reset + 1), texts.len()), (9, reset + 2), "{kinds:?}");
    assert_eq!(world.state.ended(key), None);
    assert_eq!(world.state.history.held(), 0);
}

#[test]
fn a_closing_client_that_reads_nothing_is_aborted() {
    let mut world = World::new();
    let (key, socket) = world.connect(Some("a"));
    half_written(&mut world, &socket);
    let mut sweeper = Sweeper::new(&config(), world.now.instant);
    world.sweep(&mut sweeper);
    let mut waited = Duration::ZERO;
    while world.state.ended(key).is_none() {
        waited += Duration::from_secs(1);
        world.pass(Duration::from_secs(1));
        world.sweep(&mut sweeper);
        assert!(waited <= CLOSE_STALL_MAX + Duration::from_secs(2), "{waited:?}");
    }
    assert!(world.state.detach(key, CloseReason::ClientGone).is_some_and(|ended| !ended.close_sent));
    assert_eq!(world.state.history.held(), 0);
}

#[test]
fn a_client_that_reads_too_slowly_is_aborted_in_the_end() {
    let mut world = World::new();
    let (key, socket) = world.connect(Some("a"));
    half_written(&mut world, &socket);
    let mut sweeper = Sweeper::new(&config(), world.now.instant);
    let mut waited = 0;
    while world.state.ended(key).is_none() {
        waited += 1;
        assert!(waited < 70, "a second each");
        world.pass(Duration::from_secs(1));
        world.state.inbound(key, Inbound::Pong, world.now);
        world.sweep(&mut sweeper);
        socket.takes(1);
        world.run_task(key, &socket);
    }
    assert!(waited > 60, "{waited}");
}

#[test]
fn memory_of_partially_written_events_is_bounded() {
    let mut world = World::new();
    let clients: Vec<_> = (0..20).map(|index| (index, world.connect(Some(&format!("a-{index}"))))).collect();
    for (index, (_, socket)) in &clients {
        socket.texts();
        socket.takes(1000);
        world.turn([large_event(&format!("a-{index}"), *index, 200_000)]);
    }
    overtake(&mut world);
    let (.., history_bytes) = world.state.end_turn(world.now.instant);
    assert!(history_bytes <= 4 << 20, "{history_bytes}");
    let kept = world.state.history.held();
    assert!((9..=10).contains(&kept), "half of 4 MiB holds ten of them: {kept}");
    for (_, (key, socket)) in &clients {
        socket.takes(usize::MAX);
        world.run_task(*key, socket);
    }
    let whole =
        clients.iter().filter(|(_, (_, socket))| close_code(socket).is_some() || socket.0.borrow().got.len() > 200_000);
    assert_eq!(whole.count(), kept, "the newest are complete, the oldest are aborted");
}

// ---- events as large as a window ----------------------------------------------------------------------------------

/// A world whose window holds one event of 1 MiB.
fn narrow_world() -> World {
    let mut world = World::with(ShardConfig { history_bytes: 2 * (1024 + 16) * 1024, ..config() });
    world.turn([returns::told(0)]);
    world
}

#[test]
fn up_to_date_clients_get_a_whole_turn_even_with_a_small_window() {
    let mut world = narrow_world();
    let (key, socket) = world.connect(Some("a"));
    socket.texts();
    for turn in 0..5 {
        let numbers: Vec<u64> = (0..4).map(|index| turn * 4 + index).collect();
        world.turn(numbers.iter().map(|&number| large_event("a", number, 1_000_000)));
        assert_eq!(socket.numbers(), numbers);
        let (.., history_bytes) = world.state.end_turn(world.now.instant);
        assert!(history_bytes <= 2 * (1024 + 16) * 1024, "{history_bytes}");
    }
    assert_eq!(world.state.ended(key), None);
}

#[test]
fn an_event_too_large_for_the_window_is_counted_and_its_clients_get_a_reset() {
    let mut world = narrow_world();
    let (key, live) = world.connect(Some("a"));
    let (_, other) = world.connect(Some("b"));
    let start = live.texts().remove(0);
    other.texts();
    world.turn([events(&[("a", 1)]), large_event("a", 2, 1_200_000), events(&[("a", 3), ("b", 4)])]);
    world.turn([]);
    let texts = live.texts();
    let kinds: Vec<_> = texts.iter().map(|text| text.get(..36).unwrap_or_default()).collect();
    assert_eq!(texts.len(), 3, "{kinds:?}");
    assert_eq!(
        texts.iter().filter(|text| text.contains(r#""type":"reset","reason":"expired""#)).count(),
        1,
        "{kinds:?}"
    );
    assert_eq!(other.numbers(), [4]);
    assert_eq!(world.state.ended(key), None);
    let (_, findings, _) = world.state.end_turn(world.now.instant);
    assert_eq!(findings.unusable, 0);
    let found = |found: &TopicFinding| {
        let topic = found.topic.as_ref().map(|topic| topic.name.to_string());
        (found.kind == FindingKind::TooLarge).then_some((topic, found.records))
    };
    let found: Vec<_> = findings.of_topics.iter().filter_map(found).collect();
    assert_eq!(found, [(Some("assessment.balance-updated".to_owned()), 1)]);

    // A client that was away lacks it, too. One with a later cursor resumes.
    let (_, back) = world.come_back(returns::cursor_in(&start));
    assert!(back.texts()[1].contains(r#""reason":"expired""#));
    let (_, after) = world.come_back(returns::cursor_in(texts.last().unwrap()));
    world.turn([events(&[("a", 5)])]);
    assert!(after.texts()[0].contains(r#""resumed":true"#));
    assert_eq!(back.numbers(), [5]);
}

#[test]
fn a_message_found_too_large_when_a_client_resumes_is_a_reset() {
    let mut world = narrow_world();
    let (key, live) = world.connect(Some("a"));
    let start = live.texts().remove(0);
    world.state.detach(key, CloseReason::ClientGone);
    // Its payload fits. Its message is a few bytes too large.
    world.turn([large_event("a", 1, (1024 + 16) * 1024 - 100)]);
    let (key, back) = world.come_back(returns::cursor_in(&start));
    world.state.end_turn(world.now.instant);
    world.turn([events(&[("a", 2)])]);
    let texts = back.texts();
    assert!(texts.iter().any(|text| text.contains(r#""reason":"expired""#)), "{} texts", texts.len());
    assert_eq!(number(texts.last().unwrap()), 2);
    assert_eq!(world.state.ended(key), None);
}

#[test]
fn bytes_and_writes_are_counted_for_shared_and_for_own_writes() {
    let mut world = World::new();
    let (slow_key, slow) = world.connect(Some("a"));
    let others: Vec<_> = [Some("a"), Some("a"), None].map(|id| world.connect(id).1).into();
    slow.takes(70);
    // Shared: events to subscribers at one position, ticks to all. Its own: what the slow one lacks, and a pong.
    world.turn((0..5).map(|number| events(&[("a", number)])).chain([tick(BTC, 0, 1, 0, 100)]));
    world.pass(Duration::from_millis(100));
    world.turn([]);
    for takes in [100, usize::MAX] {
        slow.takes(takes);
        world.run_task(slow_key, &slow);
    }
    world.state.inbound(slow_key, Inbound::Ping, world.now);
    world.state.flush(slow_key, world.now);
    let sockets = || others.iter().chain([&slow]);
    let taken: usize = sockets().map(|socket| socket.0.borrow().got.len()).sum();
    let counts = world.state.end_turn(world.now.instant).0;
    assert_eq!(counts.bytes, taken as u64);
    assert!(counts.writes >= sockets().map(|socket| socket.writes() as u64).sum(), "with those of the slow one's task");
    assert!(sockets().all(|socket| !socket.texts().is_empty()), "whole frames");
    assert!(counts.blocked >= 1);
}

#[test]
fn a_connection_is_queued_once_and_one_that_is_gone_is_skipped() {
    let mut world = World::new();
    let keys: Vec<_> = (0..3).map(|_| world.connect(None).0).collect();
    let state = &mut world.state;
    for _ in 0..2 {
        keys.iter().for_each(|&key| state.connections.push_due(key));
    }
    state.detach(keys[1], CloseReason::ClientGone);
    let mut pop = || state.connections.pop_due();
    assert_eq!([pop(), pop(), pop()], [Some(keys[0]), Some(keys[2]), None]);
    assert!(!state.connections[keys[0]].is_queued());
}
