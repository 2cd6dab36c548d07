//! A routes file that changes under running pods (SIGHUP): what is read and sent from then on, which clients get a reset,
//! and that cursors lose nothing between a pod with the old file and one with the new.

use loadtest::client::{Client, Message, WITHIN, read_until};
use loadtest::events::Producer;
use loadtest::pods::{Plan, Pod, World};
use loadtest::process::{Signal, TempDir, eventually};
use sha2::{Digest, Sha256};

/// What a pod logs when its reader goes by other routes.
const IN_FORCE: &str = "new routes in force";

/// A routes file, and the pods that go by it.
struct Routes(TempDir);

impl Routes {
    fn new(routes: &[String]) -> Self {
        let dir = TempDir::new("routes");
        dir.file("routes.toml", &routes.concat());
        Self(dir)
    }

    /// A pod to be that goes by them, and serves all, whichever others there are.
    fn pod(&self, world: &World, name: &str) -> Plan {
        let file = self.0.path().join("routes.toml");
        world.pod(name).set("PLACEMENT", "any").set("ROUTES_FILE", file.to_str().unwrap())
    }

    /// Changes the file, and returns when a pod goes by it.
    #[track_caller]
    fn change(&self, pod: &Pod, routes: &[String]) {
        let before = count(pod, IN_FORCE);
        self.0.file("routes.toml", &routes.concat());
        pod.signal(Signal::Hup);
        eventually(IN_FORCE, WITHIN, || (count(pod, IN_FORCE) > before).then_some(()));
        let digest: String = Sha256::digest(routes.concat()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(pod.metrics().of("shardgate_routes_info", &[("sha256", &digest[..16])]), 1.0);
    }
}

fn count(pod: &Pod, line: &str) -> usize {
    pod.log().matches(line).count()
}

#[track_caller]
fn awaits_line(pod: &Pod, line: &str) {
    eventually(line, WITHIN, || pod.log().contains(line).then_some(()));
}

/// A route whose messages have the event's number.
fn events(topic: &str, kind: &str) -> String {
    route(topic, "scope = \"assessment\"\nassessment = \"payload\"\npartitioner = \"murmur2\"", kind)
}

/// The same, by the record's key.
fn by_key(topic: &str, kind: &str) -> String {
    events(topic, kind).replace("\"payload\"", "\"key\"")
}

/// A route of markets.
fn ticks(topic: &str, kind: &str) -> String {
    route(topic, "scope = \"market\"", kind)
}

fn route(topic: &str, scope: &str, kind: &str) -> String {
    format!("[[route]]\ntopic = {topic:?}\n{scope}\ntype = {kind:?}\nfields = [\"n\"]\n\n")
}

/// Sends an event of a, which has the key k.
fn send(producer: &Producer, topic: &str, number: u64) {
    let payload = format!(r#"{{"assessmentId":"a","n":{number}}}"#);
    producer.send(topic, Some("k"), Some(payload.as_bytes()));
    producer.flush();
}

/// The events and ticks that a client received: type and number of each.
fn received(client: &Client) -> Vec<(String, u64)> {
    let numbered = |message: &Message| {
        let message = message.json();
        Some((message["type"].as_str()?.to_owned(), message["n"].as_u64()?))
    };
    client.messages().iter().filter_map(numbered).collect()
}

fn resets(client: &Client) -> usize {
    client.of_type("reset").count()
}

/// Waits until a client has received these events alone, in this order, and this many resets.
#[track_caller]
fn expect(client: &mut Client, expected: &[(&str, u64)], resets_expected: usize) {
    read_until(std::slice::from_mut(client), "its events and resets", WITHIN, |clients| {
        received(&clients[0]).len() >= expected.len() && resets(&clients[0]) >= resets_expected
    });
    client.catch_up();
    let told = received(client);
    let told: Vec<_> = told.iter().map(|(kind, number)| (kind.as_str(), *number)).collect();
    assert_eq!((&*told, resets(client)), (expected, resets_expected), "{:?}", client.messages());
}

#[track_caller]
fn watching(pod: &Pod, assessment: &str) -> Client {
    let mut client = pod.client(assessment);
    client.expect_type("connected");
    client
}

/// A client that comes to a pod with this cursor, and whether it is resumed.
#[track_caller]
fn back(pod: &Pod, cursor: &str) -> (bool, Client) {
    let mut client = pod.ask().assessment("a").parameter(&format!("cursor={cursor}")).open();
    let connected = client.expect_type("connected").json();
    (connected["resumed"].as_bool().expect("a verdict"), client)
}

/// Comes to a pod with this cursor, and is sent what it lacks, and no reset.
#[track_caller]
fn goes_on(pod: &Pod, cursor: &str, expected: &[(&str, u64)]) -> Client {
    let (is_resumed, mut client) = back(pod, cursor);
    assert!(is_resumed, "{:?}", client.messages());
    expect(&mut client, expected, 0);
    client
}

/// Comes to a pod with this cursor, and is told to fetch its state anew.
#[track_caller]
fn is_reset(pod: &Pod, cursor: &str, reason: &str) {
    let (is_resumed, mut client) = back(pod, cursor);
    assert!(!is_resumed, "{:?}", client.messages());
    assert_eq!(client.expect_type("reset").json()["reason"], reason);
    expect(&mut client, &[], 1);
}

#[test]
fn a_route_that_is_added_is_read_from_now_on_and_those_who_may_lack_something_are_told() {
    let world = World::without_topics();
    world.kafka.create_all(&[("old", 1), ("filled", 1), ("empty", 1)]);
    let producer = world.producer();
    (0..3).for_each(|number| send(&producer, "filled", number));
    let routes = Routes::new(&[events("old", "old")]);
    let pod = routes.pod(&world, "pod-0").start();
    let mut client = watching(&pod, "a");
    send(&producer, "old", 0);
    expect(&mut client, &[("old", 0)], 0);
    let before = client.last_cursor();

    // Nothing of an empty topic, and of one that is not there, was missed.
    routes.change(&pod, &[events("old", "old"), events("empty", "empty"), events("later.{x}", "later")]);
    send(&producer, "empty", 1);
    expect(&mut client, &[("old", 0), ("empty", 1)], 0);
    world.kafka.create("later.on", 1);
    send(&producer, "later.on", 2);
    let all = [("old", 0), ("empty", 1), ("later", 2)];
    expect(&mut client, &all, 0);
    goes_on(&pod, &before, &all[1..]);
    let between = client.last_cursor();

    // What lies in this one was never sent, and is not sent late.
    let mut quiet = pod.ask().open();
    quiet.expect_type("connected");
    let whole = [events("old", "old"), events("empty", "empty"), events("later.{x}", "later"), events("filled", "new")];
    routes.change(&pod, &whole);
    expect(&mut client, &all, 1);
    assert_eq!(client.of_type("reset").next().unwrap().json()["reason"], "expired");
    send(&producer, "filled", 3);
    let with_new = [&all[..], &[("new", 3)]].concat();
    expect(&mut client, &with_new, 1);
    goes_on(&pod, &client.last_cursor(), &[]);
    is_reset(&pod, &between, "expired");
    expect(&mut quiet, &[], 0);
}

#[test]
fn a_route_that_is_removed_is_sent_no_more_and_nobody_else_notices() {
    let world = World::without_topics();
    world.kafka.create_all(&[("kept", 1), ("gone", 1)]);
    let producer = world.producer();
    let (both, kept) = ([events("kept", "kept"), events("gone", "gone")], [events("kept", "kept")]);
    let (routes, old_routes) = (Routes::new(&both), Routes::new(&both));
    let pod = routes.pod(&world, "pod-0").start();
    let old_pod = old_routes.pod(&world, "pod-1").start();
    let mut client = watching(&pod, "a");
    send(&producer, "kept", 0);
    expect(&mut client, &[("kept", 0)], 0);
    let behind = client.last_cursor();
    send(&producer, "gone", 1);
    let seen = [("kept", 0), ("gone", 1)];
    expect(&mut client, &seen, 0);
    let at = client.last_cursor();

    routes.change(&pod, &kept);
    send(&producer, "gone", 2);
    send(&producer, "kept", 3);
    let all = [("kept", 0), ("gone", 1), ("kept", 3)];
    expect(&mut client, &all, 0);
    // What was read before is no longer sent: a client that lacks it gets a reset.
    is_reset(&pod, &behind, "expired");
    goes_on(&pod, &at, &[("kept", 3)]);
    // A pod that goes by the old file has the rest, once, and back here nothing is lost.
    let mut there = goes_on(&old_pod, &client.last_cursor(), &[("gone", 2)]);
    send(&producer, "kept", 4);
    expect(&mut there, &[("gone", 2), ("kept", 4)], 0);
    let mut here = goes_on(&pod, &there.last_cursor(), &[]);
    send(&producer, "gone", 5);
    send(&producer, "kept", 6);
    expect(&mut here, &[("kept", 6)], 0);
    goes_on(&old_pod, &here.last_cursor(), &[("gone", 5)]);

    // It comes again: those who may have missed something are told.
    routes.change(&pod, &both);
    let mut again = [&all[..], &[("kept", 4), ("kept", 6)]].concat();
    expect(&mut client, &again, 1);
    send(&producer, "gone", 7);
    again.push(("gone", 7));
    expect(&mut client, &again, 1);
}

#[test]
fn other_messages_of_a_topic_begin_at_one_record_and_nobody_is_told_of_more() {
    let world = World::without_topics();
    world.kafka.create("topic", 1);
    let producer = world.producer();
    let (one, other) = ([events("topic", "one")], [events("top{x}", "other")]);
    let (routes, old_routes) = (Routes::new(&one), Routes::new(&one));
    let pod = routes.pod(&world, "pod-0").start();
    let old_pod = old_routes.pod(&world, "pod-1").start();
    let mut client = watching(&pod, "a");
    let begin = client.last_cursor();
    send(&producer, "topic", 0);
    expect(&mut client, &[("one", 0)], 0);
    // No client has subscribed to this one.
    producer.send("topic", Some("b"), Some(br#"{"assessmentId":"b","n":9}"#));
    send(&producer, "topic", 1);
    expect(&mut client, &[("one", 0), ("one", 1)], 0);
    let mid = client.last_cursor();

    routes.change(&pod, &other);
    send(&producer, "topic", 2);
    let all = [("one", 0), ("one", 1), ("other", 2)];
    expect(&mut client, &all, 0);
    goes_on(&pod, &begin, &all);
    let mut there = goes_on(&old_pod, &mid, &[("one", 2)]);
    send(&producer, "topic", 3);
    expect(&mut there, &[("one", 2), ("one", 3)], 0);
    goes_on(&pod, &there.last_cursor(), &[]);
    goes_on(&pod, &mid, &[("other", 2), ("other", 3)]);
    goes_on(&old_pod, &mid, &[("one", 2), ("one", 3)]);
}

#[test]
fn a_topic_whose_assessments_are_found_otherwise_is_another_one_to_every_cursor() {
    let world = World::without_topics();
    world.kafka.create_all(&[("topic", 1), ("beside", 1)]);
    let producer = world.producer();
    let old = [events("topic", "topic"), events("beside", "beside")];
    let new = [by_key("topic", "topic"), events("beside", "beside")];
    let (routes, old_routes) = (Routes::new(&old), Routes::new(&old));
    let pod = routes.pod(&world, "pod-0").start();
    let old_pod = old_routes.pod(&world, "pod-1").start();
    let (mut by_payload, mut by_the_key) = (watching(&pod, "a"), watching(&pod, "k"));
    send(&producer, "topic", 0);
    send(&producer, "beside", 1);
    expect(&mut by_payload, &[("topic", 0), ("beside", 1)], 0);
    let before = by_payload.last_cursor();

    routes.change(&pod, &new);
    expect(&mut by_payload, &[("topic", 0), ("beside", 1)], 1);
    expect(&mut by_the_key, &[], 1);
    send(&producer, "topic", 2);
    send(&producer, "beside", 3);
    expect(&mut by_the_key, &[("topic", 2)], 1);
    expect(&mut by_payload, &[("topic", 0), ("beside", 1), ("beside", 3)], 1);
    // Here and there the cursors speak of other records.
    is_reset(&pod, &before, "invalid");
    is_reset(&old_pod, &by_payload.last_cursor(), "invalid");
    goes_on(&pod, &by_payload.last_cursor(), &[]);
    goes_on(&old_pod, &before, &[("topic", 2), ("beside", 3)]);
}

#[test]
fn a_topic_becomes_a_markets_and_an_assessments_again() {
    let world = World::without_topics();
    world.kafka.create_all(&[("topic.x", 1), ("beside", 1)]);
    let producer = world.producer();
    let as_events = [events("topic.{market}", "event"), events("beside", "beside")];
    let as_ticks = [ticks("topic.{market}", "price"), events("beside", "beside")];
    let routes = Routes::new(&as_events);
    let pod = routes.pod(&world, "pod-0").start();
    let mut client = watching(&pod, "a");
    send(&producer, "topic.x", 0);
    expect(&mut client, &[("event", 0)], 0);
    let cursor = client.last_cursor();

    // The board begins with the last value, as after a start.
    routes.change(&pod, &as_ticks);
    expect(&mut client, &[("event", 0), ("price", 0)], 0);
    send(&producer, "topic.x", 1);
    expect(&mut client, &[("event", 0), ("price", 0), ("price", 1)], 0);
    goes_on(&pod, &cursor, &[("price", 1)]);

    routes.change(&pod, &as_events);
    expect(&mut client, &[("event", 0), ("price", 0), ("price", 1)], 1);
    send(&producer, "topic.x", 2);
    expect(&mut client, &[("event", 0), ("price", 0), ("price", 1), ("event", 2)], 1);
    expect(&mut watching(&pod, "a"), &[], 0);
    is_reset(&pod, &cursor, "expired");
}

#[test]
fn a_market_that_is_mapped_otherwise_shows_so_without_a_new_tick_and_one_that_is_removed_leaves_the_board() {
    let world = World::without_topics();
    world.kafka.create_all(&[("rates.eur", 1), ("rates.usd", 1)]);
    let producer = world.producer();
    let routes = Routes::new(&[ticks("rates.{market}", "rate")]);
    let pod = routes.pod(&world, "pod-0").start();
    let mut client = watching(&pod, "a");
    send(&producer, "rates.eur", 1);
    expect(&mut client, &[("rate", 1)], 0);
    send(&producer, "rates.usd", 2);
    expect(&mut client, &[("rate", 1), ("rate", 2)], 0);

    routes.change(&pod, &[ticks("rates.eur{market}", "none"), ticks("rates.{market}", "price")]);
    read_until(std::slice::from_mut(&mut client), "both", WITHIN, |clients| received(&clients[0]).len() == 4);
    let mut shown = received(&client).split_off(2);
    shown.sort();
    assert_eq!(shown, [("price".to_owned(), 1), ("price".to_owned(), 2)]);

    routes.change(&pod, &[ticks("rates.{market}r", "price")]);
    expect(&mut watching(&pod, "a"), &[("price", 1)], 0);
    send(&producer, "rates.usd", 3);
    send(&producer, "rates.eur", 4);
    client.expect("the tick", |message| message.json()["n"] == 4);
    expect(&mut watching(&pod, "a"), &[("price", 4)], 0);
    assert_eq!(resets(&client), 0);
}

#[test]
fn a_file_with_faults_changes_nothing_and_all_of_them_are_logged() {
    let world = World::without_topics();
    world.kafka.create("topic", 1);
    let producer = world.producer();
    let routes = Routes::new(&[events("topic", "topic")]);
    let pod = routes.pod(&world, "pod-0").start();
    let mut client = watching(&pod, "a");
    routes.0.file("routes.toml", &[events("topic", "other"), events("x{", "x"), ticks("y", "y")].concat());
    pod.signal(Signal::Hup);
    awaits_line(&pod, "invalid routes");
    let log = pod.log();
    let line = log.lines().find(|line| line.contains("invalid routes")).unwrap();
    assert!(line.contains("ERROR") && line.matches("ROUTES_FILE (environment)").count() == 2, "{line}");
    send(&producer, "topic", 0);
    expect(&mut client, &[("topic", 0)], 0);
    assert_eq!(count(&pod, IN_FORCE), 0);
}

#[test]
fn topics_that_come_and_go_are_read_whatever_their_number_and_take_no_more_room() {
    const TURNS: u64 = 12;
    let world = World::without_topics();
    world.kafka.create("stays", 1);
    let producer = world.producer();
    let routes =
        Routes::new(&[events("stays", "stays"), events("events-{x}", "event"), ticks("{market}-ticks", "tick")]);
    let pod = routes.pod(&world, "pod-0").set("HISTORY_SECONDS", "3").start();
    let mut client = watching(&pod, "a");
    let mut expected = Vec::new();
    let mut at_most = 0;
    for turn in 0..TURNS {
        // Of as many partitions as those before, of more, and of fewer.
        let [events_topic, ticks_topic] = [format!("events-{turn}"), format!("{turn}-ticks")];
        let partitions = i32::try_from(1 + turn % 3).unwrap();
        world.kafka.create_all(&[(&events_topic, partitions), (&ticks_topic, partitions)]);
        for number in [2 * turn, 2 * turn + 1] {
            let before = client.last_cursor();
            let event = format!(r#"{{"assessmentId":"a","n":{number}}}"#);
            producer.send(&events_topic, Some("a"), Some(event.as_bytes()));
            producer.send(&ticks_topic, None, Some(format!(r#"{{"n":{number}}}"#).as_bytes()));
            producer.flush();
            read_until(std::slice::from_mut(&mut client), "both", WITHIN, |clients| {
                let told = received(&clients[0]);
                ["event", "tick"].iter().all(|kind| told.contains(&((*kind).to_owned(), number)))
            });
            expected.push(number);
            let (is_resumed, mut back) = back(&pod, &before);
            assert!(is_resumed, "{:?}", back.messages());
            back.expect("the event", |message| message.kind == "event" && message.json()["n"] == number);
        }
        send(&producer, "stays", turn);
        client.expect("an event", |message| message.kind == "stays" && message.json()["n"] == turn);
        world.kafka.delete(&events_topic);
        world.kafka.delete(&ticks_topic);
        eventually("they are gone", WITHIN, || (pod.metrics().sum("shardgate_ingest_topics") == 1.0).then_some(()));
        at_most = at_most.max(pod.metrics().sum("shardgate_ingest_topic_indexes") as u64);
    }
    let events = client.of_type("event").map(|message| message.json()["n"].as_u64().unwrap());
    assert_eq!(events.collect::<Vec<_>>(), expected);
    assert_eq!(resets(&client), 0);
    assert!(at_most < TURNS, "{at_most} indexes for {} topics", 2 * TURNS + 1);
    assert_eq!(pod.metrics().sum("shardgate_ingest_unread_topics"), 0.0);
}

/// The type of the next message with this number.
#[track_caller]
fn next_type(client: &mut Client, number: u64) -> String {
    let message = client.expect("the event", |message| message.json()["n"] == number);
    message.json()["type"].as_str().expect("it has a type").to_owned()
}

/// Waits until events of this number become messages of this type.
#[track_caller]
fn becomes(client: &mut Client, producer: &Producer, number: u64, kind: &str) {
    eventually(kind, WITHIN, || {
        send(producer, "topic", number);
        (next_type(client, number) == kind).then_some(())
    });
}

#[test]
fn hang_ups_at_any_moment_do_no_harm() {
    let mut world = World::without_topics();
    world.kafka.create("topic", 1);
    let producer = world.producer();
    let routes = Routes::new(&[events("topic", "0")]);
    let write = |kind: &str| _ = routes.0.file("routes.toml", &events("topic", kind));

    // While it starts: it ends up with the last file.
    let mut pod = routes.pod(&world, "pod-0").set("DRAIN_DELAY_MS", "60000").spawn();
    awaits_line(&pod, "shardgate starts");
    for kind in 1..20 {
        write(&kind.to_string());
        pod.signal(Signal::Hup);
    }
    pod.ready();
    let mut client = watching(&pod, "a");
    send(&producer, "topic", 0);
    assert_eq!(next_type(&mut client, 0), "19");

    // Quickly, while clients are served.
    for kind in 20..40 {
        write(&kind.to_string());
        pod.signal(Signal::Hup);
    }
    awaits_line(&pod, IN_FORCE);
    becomes(&mut client, &producer, 1, "39");

    // While Kafka is away: it takes effect when that is back.
    world.kafka.broker(0).kill();
    eventually("it shows", WITHIN, || (pod.get("/ready").json()["kafka"] == "disconnected").then_some(()));
    routes.0.file("routes.toml", &events("topic", "40"));
    pod.signal(Signal::Hup);
    world.kafka.broker(0).start();
    pod.ready();
    becomes(&mut client, &producer, 2, "40");

    // While it drains.
    pod.signal(Signal::Term);
    eventually("it drains", WITHIN, || (pod.get("/ready").json()["draining"] == true).then_some(()));
    routes.0.file("routes.toml", &events("topic", "41"));
    pod.signal(Signal::Hup);
    send(&producer, "topic", 3);
    assert_eq!(next_type(&mut client, 3), "40");
    assert_eq!(resets(&client), 0);
    client.close();
    assert_eq!(pod.wait_exit(WITHIN).code(), Some(0));
}
