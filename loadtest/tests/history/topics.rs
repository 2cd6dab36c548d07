//! An assessment's events on many topics: its cursor lists where it stands on each.

use std::fmt::Write as _;

use loadtest::client::{Client, WITHIN, read_until};
use loadtest::events::{FIRST_TIMESTAMP, Producer, number_of, seen};
use loadtest::pods::World;
use loadtest::process::TempDir;

use crate::away::{comes_back, cursor_of};
use crate::pod;

/// Topics, all written.
const TOPICS: u64 = 40;

/// More than an offset of one byte is in a cursor.
const SENT: u64 = 40 * 200;

/// Has the events of these numbers sent to the topics in turn.
fn send(producer: &Producer, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let payload = format!(r#"{{"assessmentId":"a","timestamp":{}}}"#, FIRST_TIMESTAMP + number);
        producer.send(&format!("many.{}", number % TOPICS), Some("a"), Some(payload.as_bytes()));
    }
    producer.flush();
}

/// Waits until a client has these events, and checks that it has no others, none twice, and those of each topic in
/// their order.
#[track_caller]
fn expect(client: &mut Client, numbers: std::ops::Range<u64>) {
    let count = usize::try_from(numbers.end - numbers.start).unwrap();
    read_until(std::slice::from_mut(client), "the events", WITHIN, |clients| seen(&clients[0]).count() >= count);
    assert_eq!(client.of_type("reset").count(), 0);
    for topic in 0..TOPICS {
        let of_topic = |number: &u64| number % TOPICS == topic;
        let saw: Vec<u64> = seen(client).map(number_of).filter(of_topic).collect();
        assert!(saw.iter().copied().eq(numbers.clone().filter(of_topic)), "topic {topic}: {saw:?}");
    }
}

#[test]
fn a_client_of_forty_topics_goes_on_with_its_cursor_on_another_pod() {
    let (world, dir) = (World::without_topics(), TempDir::new("routes"));
    let mut routes = String::new();
    for topic in 0..TOPICS {
        let route =
            ["scope = \"assessment\"", "assessment = \"payload\"", "type = \"note\"", "fields = [\"timestamp\"]"];
        writeln!(routes, "[[route]]\ntopic = \"many.{topic}\"\n{}\n", route.join("\n")).unwrap();
    }
    let routes = dir.file("routes.toml", &routes);
    let names: Vec<_> = (0..TOPICS).map(|topic| format!("many.{topic}")).collect();
    world.kafka.create_all(&names.iter().map(|name| (name.as_str(), 3)).collect::<Vec<_>>());
    let start = |name| pod(&world, name).set("ROUTES_FILE", routes.to_str().unwrap()).start();
    let producer = Producer::with(world.kafka.bootstrap(), &[("linger.ms", "5")]);

    let first = start("pod-0");
    let mut client = first.client("a");
    send(&producer, 0..SENT);
    expect(&mut client, 0..SENT);
    let all: Vec<_> = seen(&client).map(|message| (number_of(message), cursor_of(message))).collect();
    assert!(all.iter().all(|(_, cursor)| cursor.len() <= 512), "{}", all.last().unwrap().1);
    let second = start("pod-1");
    let mut sent = SENT;
    for pod in [&first, &second] {
        assert!(!pod.log().contains("too many topics and partitions per assessment"), "{}", pod.log());
        // One that has all of these, and one that was cut off in the middle, where each topic stood wherever it did
        // then.
        let [(is_resumed, mut had_all), (is_resumed_too, mut had_half)] =
            [all.len() - 1, all.len() / 2].map(|at| comes_back(pod, "a", &all[at].1));
        assert!(is_resumed && is_resumed_too, "{:?}", had_half.messages());
        send(&producer, sent..sent + TOPICS);
        sent += TOPICS;
        expect(&mut had_all, SENT..sent);
        let had: Vec<u64> = all[..=all.len() / 2].iter().map(|(number, _)| *number).collect();
        let lacked = usize::try_from(sent).unwrap() - had.len();
        read_until(std::slice::from_mut(&mut had_half), "the rest", WITHIN, |clients| {
            seen(&clients[0]).count() >= lacked
        });
        let mut numbers: Vec<u64> = had.into_iter().chain(seen(&had_half).map(number_of)).collect();
        numbers.sort_unstable();
        assert!(numbers.iter().copied().eq(0..sent), "{}: something is lost or doubled", pod.name());
    }
}

#[test]
fn where_a_cursor_can_not_list_all_partitions_a_line_says_so_and_its_client_is_reset_when_it_returns() {
    const PARTITIONS: i32 = 400;
    let (world, dir) = (World::without_topics(), TempDir::new("routes"));
    let routes = "[[route]]\ntopic = \"wide\"\nscope = \"assessment\"\nassessment = \"payload\"\npartitioner = \"none\"\n\
                  type = \"note\"\nfields = [\"timestamp\"]\n";
    let routes = dir.file("routes.toml", routes);
    world.kafka.create("wide", PARTITIONS);
    let pod = pod(&world, "pod-0").set("ROUTES_FILE", routes.to_str().unwrap()).start();
    let log = pod.log();
    let line = log.lines().find(|line| line.contains("too many topics and partitions per assessment"));
    let line = line.unwrap_or_else(|| panic!("it is warned of: {log}"));
    assert!(line.contains("WARN") && line.contains("topics=1") && line.contains("further_partitions=399"), "{line}");

    let producer = world.producer();
    let mut client = pod.client("a");
    client.expect_type("connected");
    // On each partition there is one of its events.
    for partition in 0..PARTITIONS {
        let timestamp = FIRST_TIMESTAMP + u64::from(partition.unsigned_abs());
        let payload = format!(r#"{{"assessmentId":"a","timestamp":{timestamp}}}"#);
        producer.send("wide", Some(&partition.to_string()), Some(payload.as_bytes()));
    }
    producer.flush();
    let count = usize::try_from(PARTITIONS).unwrap();
    read_until(std::slice::from_mut(&mut client), "the events", WITHIN, |clients| seen(&clients[0]).count() == count);
    let last = seen(&client).last().map(cursor_of).expect("an event");
    let (is_resumed, mut back) = comes_back(&pod, "a", &last);
    assert!(!is_resumed);
    assert_eq!(back.expect_type("reset").json()["reason"], "expired");
    let lacking = pod.metrics().sum("shardgate_messages_without_cursor_total");
    assert!(lacking > 0.0, "messages without a cursor are counted");
}
