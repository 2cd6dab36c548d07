//! Clients that return with a cursor, and the cursors that they are sent.

use std::sync::Arc;

use super::*;
use crate::ids::TopicIndex;
use crate::routing::placement::Pod;
use crate::routing::table::RouteTable;
use crate::shard::client_identity::ClientIdentity;
use crate::shard::redirect::Redirect;
use crate::stream::batch::{LogEnd, NextOffset, PartitionEnds};
use crate::stream::cursor;
use crate::stream::testing::EVENTS;

/// The cursor in a message; empty where it has none.
pub(super) fn cursor_in(text: &str) -> &str {
    text.split_once(r#""cursor":""#).map_or("", |(_, rest)| rest.split_once('"').map_or("", |(cursor, _)| cursor))
}

fn redirect_for(from_draining: bool) -> Redirect {
    Redirect { to: Pod { node: NodeId("other".into()), url: "ws://other/ws".into() }, from_draining }
}

/// A world whose one topic is read from its beginning.
pub(super) fn world() -> World {
    let mut world = World::new();
    world.turn([told(0)]);
    world
}

pub(super) fn told(offset: i64) -> Batch {
    Batch { starts: vec![NextOffset { topic: EVENTS, partition: 0, offset }], ..Batch::default() }
}

impl World {
    pub(super) fn enter(
        &mut self,
        socket: &Scripted,
        assessment: Option<&str>,
        cursor: Option<&str>,
        expires: Option<UnixMs>,
    ) -> ConnectionKey {
        let new_connection = NewConnection {
            socket: socket.clone(),
            assessment: assessment.map(|id| AssessmentId::parse(id).unwrap()),
            cursor: cursor.map(Into::into),
            client: ClientIdentity::of_user("u", expires),
            owner_doubt: OwnerDoubt::None,
            accept: Vec::new(),
            id: "c".into(),
        };
        let key = self.state.attach(new_connection, self.now);
        self.state.flush(key, self.now);
        key
    }

    pub(super) fn come_back(&mut self, cursor: &str) -> (ConnectionKey, Scripted) {
        let socket = Scripted::open();
        let key = self.come_back_to(&socket, cursor);
        (key, socket)
    }

    fn come_back_to(&mut self, socket: &Scripted, cursor: &str) -> ConnectionKey {
        let key = self.enter(socket, Some("a"), Some(cursor), None);
        self.turn([]);
        key
    }
}

#[test]
fn a_resumed_client_gets_the_missed_events_and_then_live_ones() {
    let mut world = world();
    let (_, live) = world.connect(Some("a"));
    world.turn((1..5).map(|number| events(&[("a", number)])));
    let seen = live.texts();
    let (_, back) = world.come_back(cursor_in(&seen[2]));
    let texts = back.texts();
    assert!(texts[0].contains(r#""resumed":true"#), "{}", texts[0]);
    assert_eq!(texts[1..].iter().map(|text| number(text)).collect::<Vec<_>>(), [3, 4]);
    world.turn([events(&[("a", 5)])]);
    assert_eq!((back.numbers(), live.numbers()), (vec![5], vec![5]));
    let (counts, ..) = world.state.end_turn(world.now.instant);
    assert_eq!((counts.resumed, counts.resets), (1, [0; 4]));
}

#[test]
fn every_cursor_resumes_at_the_same_position() {
    let mut world = world();
    let mut sweeper = Sweeper::new(&world.state.config, world.now.instant);
    let (key, live) = world.connect(Some("a"));
    let connected = live.texts().remove(0);
    world.turn([events(&[("a", 1)])]);
    let event = live.texts().remove(0);
    for _ in 0..31 {
        world.pass(Duration::from_secs(1));
        world.sweep(&mut sweeper);
    }
    let ping = live.texts().remove(0);
    world.state.close(key, CloseReason::Moved, Some(redirect_for(false)), world.now);
    let redirect = live.texts().remove(0);
    assert!(ping.contains(r#""type":"ping""#) && redirect.contains(r#""error":"Redirect""#), "{ping} {redirect}");
    let (key, last) = world.connect(Some("a"));
    world.state.close(key, CloseReason::Moved, Some(redirect_for(true)), world.now);
    let drained = last.texts().remove(1);
    let is_marked = |message: &str| cursor::has_draining_flag(cursor_in(message));
    assert!(is_marked(&drained) && !is_marked(&redirect), "{drained} {redirect}");
    world.turn([events(&[("a", 2)])]);
    let all = [(connected, vec![1, 2]), (event, vec![2]), (ping, vec![2]), (redirect, vec![2]), (drained, vec![2])];
    for (message, lacks) in all {
        let (_, back) = world.come_back(cursor_in(&message));
        assert_eq!(back.numbers(), lacks, "from {message}");
    }
}

#[test]
fn a_client_that_lags_is_sent_the_cursor_of_its_own_position() {
    let mut world = world();
    let mut sweeper = Sweeper::new(&world.state.config, world.now.instant);
    let socket = Scripted::default();
    let key = world.connect_to(&socket, Some("a"), None);
    world.turn([events(&[("a", 1)]), events(&[("a", 2)])]);
    for _ in 0..31 {
        world.pass(Duration::from_secs(1));
        world.sweep(&mut sweeper);
    }
    // Its socket takes all but a part of the second event.
    socket.takes(usize::MAX);
    world.run_task(key, &socket);
    let texts = socket.texts();
    let ping = texts.iter().find(|text| text.contains(r#""type":"ping""#)).unwrap();
    let (_, back) = world.come_back(cursor_in(ping));
    assert_eq!(back.numbers(), [1, 2], "the ping went before both: {texts:?}");
}

#[test]
fn a_client_that_cannot_resume_gets_a_reset_first_and_is_live() {
    let mut world = world();
    let (_, live) = world.connect(Some("a"));
    world.turn([tick(BTC, 0, 1, 0, 100), events(&[("a", 1)])]);
    world.turn([events(&[("a", 2)])]);
    let old = live.texts().into_iter().find(|text| text.contains("currentBalance")).unwrap();
    world.pass(Duration::from_secs(1000));
    world.state.end_turn(world.now.instant);
    for (cursor, reason) in [(cursor_in(&old), "expired"), ("damaged", "invalid")] {
        let (_, back) = world.come_back(cursor);
        let texts = back.texts();
        assert!(texts[0].contains(r#""resumed":false"#), "{}", texts[0]);
        assert!(texts[1].starts_with(&format!(r#"{{"type":"reset","reason":"{reason}","cursor":"A"#)), "{}", texts[1]);
        let (_, again) = world.come_back(cursor_in(&texts[1]));
        world.turn([events(&[("a", 3)])]);
        assert_eq!((back.numbers(), again.numbers()), (vec![3], vec![3]), "the reset's cursor is a good one");
        world.turn([events(&[("a", 4)])]);
        world.pass(Duration::from_secs(1000));
        world.state.end_turn(world.now.instant);
    }
}

#[test]
fn overtaken_while_catching_up_is_a_reset_and_overtaken_while_live_is_a_close() {
    let mut world = world();
    let (_, live) = world.connect(Some("a"));
    let start = live.texts().remove(0);
    world.turn([events(&[("a", 1)])]);
    let (slow, stuck) = (Scripted::default(), Scripted::default());
    let key = world.come_back_to(&slow, cursor_in(&start));
    let was_live = world.connect_to(&stuck, Some("a"), None);
    world.turn([events(&[("a", 2)])]);
    world.pass(Duration::from_secs(1000));
    world.state.end_turn(world.now.instant);
    world.turn([events(&[("a", 3)])]);
    for (key, socket) in [(key, &slow), (was_live, &stuck)] {
        socket.takes(usize::MAX);
        world.run_task(key, socket);
    }
    world.turn([events(&[("a", 4)])]);
    let texts = slow.texts();
    assert!(texts[0].contains(r#""resumed":true"#) && texts[1].contains(r#""reason":"lagged""#), "{texts:?}");
    let numbers: Vec<_> =
        texts.iter().filter(|text| text.contains("currentBalance")).map(|text| number(text)).collect();
    assert_eq!(numbers, [4]);
    let (_, again) = world.come_back(cursor_in(&texts[1]));
    assert_eq!(again.numbers(), [4], "from the reset on it lacks nothing");
    assert_eq!(world.state.ended(was_live), Some(CloseReason::TooSlow));
}

#[test]
fn only_subscribers_of_deleted_records_get_a_reset() {
    let mut world = world();
    let (_, watcher) = world.connect(Some("a"));
    let (_, market) = world.connect(None);
    world.turn([events(&[("a", 5)])]);
    let ahead = watcher.texts().pop().unwrap();
    let deleted = vec![NextOffset { topic: EVENTS, partition: 0, offset: 90 }];
    world.turn([Batch { deleted, ..told(90) }]);
    world.turn([events(&[("a", 90)])]);
    let texts = watcher.texts();
    assert!(texts[0].contains(r#""type":"reset","reason":"expired""#), "{texts:?}");
    assert_eq!(number(&texts[1]), 90);
    assert!(market.texts().iter().all(|text| !text.contains("reset")));
    let (_, back) = world.come_back(cursor_in(&ahead));
    assert!(back.texts()[1].contains("expired"));
    let (_, back) = world.come_back(cursor_in(&texts[0]));
    assert_eq!(back.numbers(), [90]);
}

#[test]
fn catching_up_is_limited_per_turn_and_does_not_delay_live_clients() {
    let mut world = world();
    let (_, live) = world.connect(Some("a"));
    let start = live.texts().remove(0);
    world.turn((0..50).map(|number| events(&[("a", number)])));
    live.texts();
    let sockets: Vec<_> = (0..20).map(|_| Scripted::open()).collect();
    for socket in &sockets {
        world.enter(socket, Some("a"), Some(cursor_in(&start)), None);
    }
    let mut bytes = 20_000;
    world.state.take(events(&[("a", 50)]), world.now.instant);
    assert_eq!(world.state.dispatch(64, world.now), Pass::Done);
    assert_eq!(live.numbers(), [50], "before anyone catches up");
    assert_eq!(world.state.catch_up(64, &mut bytes, world.now), Pass::Done);
    let served = |sockets: &[Scripted]| sockets.iter().filter(|socket| !socket.0.borrow().got.is_empty()).count();
    let first = served(&sockets);
    assert!((1..20).contains(&first), "{first} of 20");
    assert!(world.state.has_queued());
    world.turn([]);
    for socket in sockets {
        assert_eq!(socket.numbers(), (0..51).collect::<Vec<_>>());
    }
}

#[test]
fn a_redirected_client_gets_its_pending_reset_first() {
    for is_closing in [false, true] {
        let mut world = self::world();
        let socket = Scripted::default();
        let key = world.connect_to(&socket, Some("a"), None);
        let close = |world: &mut World| {
            world.state.close(key, CloseReason::Moved, Some(redirect_for(false)), world.now);
        };
        if is_closing {
            close(&mut world);
        }
        world.turn([Batch { deleted: vec![NextOffset { topic: EVENTS, partition: 0, offset: 90 }], ..told(90) }]);
        if !is_closing {
            close(&mut world);
        }
        socket.takes(usize::MAX);
        world.run_task(key, &socket);
        let texts = socket.texts();
        assert!(texts[1].contains("expired") && texts[2].contains("Redirect"), "{is_closing}: {texts:?}");
        assert_eq!(cursor_in(&texts[1]), cursor_in(&texts[2]));
    }
}

#[test]
fn a_client_that_lacks_compacted_records_gets_one_reset_and_older_cursors_expire() {
    let mut other = world();
    let (_, there) = other.connect(Some("a"));
    other.turn([events(&[("a", 70)]), events(&[("a", 95)])]);
    let [below, above] = <[String; 2]>::try_from(there.texts().split_off(1)).unwrap();
    let mut world = world();
    let (_, live) = world.connect(Some("a"));
    let (_, ahead) = world.come_back(cursor_in(&above));
    let (_, not_far_ahead) = world.come_back(cursor_in(&below));
    for socket in [&live, &ahead, &not_far_ahead] {
        socket.texts();
    }
    let mut batch = events(&[("a", 40)]);
    batch.complete_from.push(NextOffset { topic: EVENTS, partition: 0, offset: 90 });
    world.turn([batch]);
    let resets = |socket: &Scripted| socket.texts().iter().filter(|text| text.contains("expired")).count();
    assert_eq!([&live, &ahead, &not_far_ahead].map(resets), [1, 0, 1]);
    let (_, late) = world.come_back(cursor_in(&below));
    assert_eq!(resets(&late), 1, "its pod may have had them, and this one does not");
    world.turn([events(&[("a", 89), ("a", 94), ("a", 96)])]);
    assert_eq!([&live, &ahead].map(Scripted::numbers), [vec![89, 94, 96], vec![96]]);
    let (_, back) = world.come_back(cursor_in(&above));
    assert_eq!(back.numbers(), [96]);
}

#[test]
fn subscribers_of_a_new_partition_whose_first_records_were_deleted_get_a_reset() {
    let mut world = World::new();
    let (_, live) = world.connect(Some("a"));
    live.texts();
    world.turn([told(0)]);
    assert_eq!(live.texts(), [""; 0], "a partition that begins at 0 lacks nothing");
    let mut world = World::new();
    let (_, live) = world.connect(Some("a"));
    live.texts();
    world.turn([told(7)]);
    assert!(live.texts()[0].contains("expired"));
}

#[test]
fn a_cursor_past_the_log_end_is_reset_and_one_ahead_of_this_pod_is_not() {
    let mut other = world();
    let (_, there) = other.connect(Some("a"));
    other.turn([events(&[("a", 50)])]);
    let ahead = there.texts().pop().unwrap();
    let ends = |world: &World, offset| {
        let at = NextOffset { topic: EVENTS, partition: 0, offset };
        let ends = vec![LogEnd { at, leader_epoch: None }];
        Batch { ends: Some(Arc::new(PartitionEnds { asked: world.now.instant, ends })), ..Batch::default() }
    };
    for (end, is_invalid) in [(51, false), (50, true)] {
        let mut world = world();
        let early = ends(&world, 0);
        world.pass(Duration::from_millis(1));
        let (_, back) = world.come_back(cursor_in(&ahead));
        assert!(back.texts()[0].contains(r#""resumed":true"#) && world.state.needs_ends());
        world.turn([early]);
        world.turn([ends(&world, end)]);
        assert_eq!(back.texts(), [""; 0], "one that was asked before it came says nothing, and one answer is none");
        world.turn([ends(&world, end)]);
        let told = back.texts().iter().any(|text| text.contains(r#""reason":"invalid""#));
        assert_eq!(told, is_invalid, "where the log ends at {end}");
        world.turn([events(&[("a", 10)]), events(&[("a", 51)])]);
        assert_eq!(back.numbers(), if is_invalid { vec![10, 51] } else { vec![51] });
        world.turn([ends(&world, end)]);
        assert!(!world.state.needs_ends());
    }
}

#[test]
fn thousands_of_clients_ahead_are_judged_over_several_turns_once_per_answer() {
    const CLIENTS: usize = 3_000;
    let mut other = world();
    let (_, there) = other.connect(Some("a"));
    other.turn([events(&[("a", 50)])]);
    let ahead = there.texts().pop().unwrap();
    let mut world = world();
    let come = |world: &mut World| world.enter(&Scripted::open(), Some("a"), Some(cursor_in(&ahead)), None);
    let clients: Vec<_> = (0..CLIENTS).map(|_| come(&mut world)).collect();
    world.pass(Duration::from_millis(1));
    let at = NextOffset { topic: EVENTS, partition: 0, offset: 50 };
    let ends = Arc::new(PartitionEnds { asked: world.now.instant, ends: vec![LogEnd { at, leader_epoch: None }] });
    let answer = || Batch { ends: Some(Arc::clone(&ends)), ..Batch::default() };
    for answers in 1..=2 {
        world.state.take(answer(), world.now.instant);
        let mut turns = 1;
        while world.state.recheck_ahead(50) == Pass::More {
            turns += 1;
            // Meanwhile one leaves, and another answer arrives.
            world.state.detach(clients[turns], CloseReason::ClientGone);
            world.state.take(answer(), world.now.instant);
        }
        assert!(turns > 10, "{turns} turns");
        assert_eq!(world.state.counts.resets.iter().sum::<u64>() > 0, answers == 2, "after {answers} answers");
    }
    assert!(world.state.ahead.keys.is_empty());
}

#[test]
fn a_cursor_with_a_topic_that_is_not_read_here_does_not_keep_its_client_catching_up() {
    let topic = RouteTable::built_in().resolve(TopicIndex(3), "assessment.completed").unwrap();
    let mut other = world();
    let starts = vec![NextOffset { topic: topic.index, partition: 0, offset: 30 }];
    other.turn([Batch { topics: vec![Arc::new(topic)], starts, ..Batch::default() }, events(&[("a", 1)])]);
    let (_, there) = other.connect(Some("a"));
    let listing = there.texts().remove(0);
    let mut world = world();
    world.turn([events(&[("a", 1)])]);
    let (key, back) = world.come_back(cursor_in(&listing));
    assert!(back.texts()[0].contains(r#""resumed":true"#));
    let at = NextOffset { topic: EVENTS, partition: 0, offset: 2 };
    let ends = |world: &World| {
        let ends = PartitionEnds { asked: world.now.instant, ends: vec![LogEnd { at, leader_epoch: None }] };
        Batch { ends: Some(Arc::new(ends)), ..Batch::default() }
    };
    world.pass(Duration::from_secs(300));
    world.turn([ends(&world), events(&[("a", 2)])]);
    let own = back.texts().remove(0);
    assert_eq!(number(&own), 2);
    assert!(world.state.needs_ends() && !world.state.connections[key].is_plain(), "another pod may read the topic");
    world.pass(Duration::from_secs(31));
    world.turn([ends(&world)]);
    assert!(!world.state.needs_ends() && world.state.connections[key].is_plain());
    let (_, live) = world.connect(Some("a"));
    live.texts();
    world.turn([events(&[("a", 3)])]);
    let shared = back.texts();
    assert_eq!(shared, live.texts());
    let (_, resumed) = other.come_back(cursor_in(&own));
    let (_, reset) = other.come_back(cursor_in(&shared[0]));
    assert!(resumed.texts()[0].contains(r#""resumed":true"#));
    assert!(reset.texts()[1].contains("expired"), "a pod that reads the topic nevertheless does not pass over it");
}

#[test]
fn thousands_of_clients_that_lack_lost_records_get_resets_over_several_turns_and_nothing_before() {
    const CLIENTS: usize = 3_000;
    let deleted = || vec![NextOffset { topic: EVENTS, partition: 0, offset: 90 }];
    let dropped = || Batch { dropped: vec![EVENTS], ..Batch::default() };
    for loss in [Batch { deleted: deleted(), ..told(90) }, dropped()] {
        let mut world = world();
        let is_drop = !loss.dropped.is_empty();
        let clients: Vec<_> = (0..CLIENTS).map(|_| world.connect(Some("a"))).collect();
        clients.iter().for_each(|(_, client)| drop(client.texts()));
        if is_drop {
            world.state.take(events(&[("a", 1)]), world.now.instant);
        }
        world.state.take(loss, world.now.instant);
        if !is_drop {
            world.state.take(events(&[("a", 90)]), world.now.instant);
        }
        let mut turns = 0;
        while world.state.dispatch(50, world.now) == Pass::More {
            turns += 1;
            if turns < CLIENTS / 50 {
                // No client gets anything before its reset, even if another one leaves or sends a message.
                let (asks, _) = clients[CLIENTS / 50 + turns];
                world.state.inbound(asks, Inbound::Ping, world.now);
                world.state.flush(asks, world.now);
                world.state.detach(clients[turns].0, CloseReason::ClientGone);
                assert!(clients.iter().all(|(_, client)| client.0.borrow().got.is_empty()), "{turns} turns");
            }
        }
        assert!(turns >= CLIENTS / 50, "{turns} turns");
        world.turn([]);
        let left = clients.iter().filter(|(key, _)| world.state.connections.contains_key(*key));
        let texts: Vec<_> = left.map(|(_, client)| client.texts()).collect();
        assert_eq!(texts.len(), CLIENTS - (CLIENTS / 50 - 1));
        for texts in texts {
            let resets = texts.iter().filter(|text| text.contains("expired")).count();
            assert!(resets == 1 && texts[0].contains("expired"), "{texts:?}");
        }
    }
}

#[test]
fn disconnected_ahead_clients_are_forgotten_without_ends() {
    let mut other = world();
    let (_, there) = other.connect(Some("a"));
    other.turn([events(&[("a", 50)])]);
    let ahead = there.texts().pop().unwrap();
    let mut world = world();
    for _ in 0..1_000 {
        let (key, _) = world.come_back(cursor_in(&ahead));
        world.state.detach(key, CloseReason::ClientGone);
    }
    assert!((1..200).contains(&world.state.ahead.keys.len()), "{} are remembered", world.state.ahead.keys.len());
}

#[test]
fn a_client_that_resumes_in_a_long_window_takes_several_turns_delays_no_other_and_gets_each_event_once() {
    const LONG: u64 = 100_000;
    let mut world = World::with(ShardConfig { history_bytes: 256 << 20, ..config() });
    world.turn([told(0)]);
    for first in (0..LONG).step_by(500) {
        world.turn([events(&(first..first + 500).map(|number| ("a", number)).collect::<Vec<_>>())]);
    }
    let (_, other) = world.connect(Some("b"));
    let (_, live) = world.connect(Some("a"));
    // A cursor from a pod that has read as much, of a client that lacks the last three.
    let mut elsewhere = self::world();
    let (_, there) = elsewhere.connect(Some("a"));
    elsewhere.turn([events(&[("a", LONG - 4)])]);
    let socket = Scripted::open();
    world.enter(&socket, Some("a"), Some(cursor_in(&there.texts()[1])), None);
    let (mut next, mut turns) = (LONG, 0);
    while world.state.has_queued() {
        world.state.take(events(&[("a", next), ("b", next + 1)]), world.now.instant);
        while world.state.dispatch(3, world.now) == Pass::More {}
        assert_eq!((other.numbers(), live.numbers()), (vec![next + 1], vec![next]), "no client waits for it");
        let mut bytes = 1;
        world.state.catch_up(1, &mut bytes, world.now);
        (next, turns) = (next + 2, turns + 1);
        assert!(turns < 200, "it gets nowhere");
    }
    let all: Vec<_> = (LONG - 3..LONG).chain((LONG..next).step_by(2)).collect();
    assert_eq!(socket.numbers(), all);
    assert!(turns > 20, "{turns} turns for {LONG} entries");
}
