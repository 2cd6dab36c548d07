//! Placement, and delivery of each event to all its subscribers: with three pods, and with three shards.

use std::collections::BTreeMap;
use std::time::Duration;

use loadtest::client::{Ask, Client, WITHIN, read_for, read_until};
use loadtest::events::{MARKETS, assert_saw, assert_saw_ticks, event, seen, tick};
use loadtest::pods::{Pod, World};
use loadtest::process::{always, eventually};
use shardgate::ids::AssessmentHash;
use shardgate::routing::placement::shard_of;

const ASSESSMENTS: usize = 300;
const EVENTS_EACH: u64 = 20;
const TICKS_EACH: u64 = 40;

fn ids() -> Vec<String> {
    (0..ASSESSMENTS).map(|number| format!("assessment {number} é")).collect()
}

/// Opens a client for each id, following the redirect of the pod `first`.
fn open_at_their_owners(first: &Pod, ids: &[String]) -> Vec<Client> {
    ids.iter().map(|id| open_at_its_owner(first, id)).collect()
}

fn open_at_its_owner(first: &Pod, id: &str) -> Client {
    let url = first.owner_of(id);
    let mut client = Ask::to(&url).assessment(id).open();
    let connected = client.expect("a first message", |_| true);
    assert_eq!(connected.kind, "connected", "the redirect to {url} is correct: {}", connected.text);
    client
}

#[test]
fn each_assessment_is_served_by_one_pod_and_the_others_redirect_to_it() {
    let world = World::without_topics();
    let pods = world.three_pods(&[]);
    let mut served: BTreeMap<&str, usize> = BTreeMap::new();
    for id in ids() {
        let mut owners = Vec::new();
        let mut redirects = Vec::new();
        for pod in &pods {
            let mut client = pod.client(&id);
            let first = client.expect("a first message", |_| true);
            if first.kind == "connected" {
                owners.push(pod);
                client.close();
                continue;
            }
            let (refusal, code) = client.expect_refusal();
            assert_eq!((refusal["error"].as_str(), code), (Some("Redirect"), 1008));
            assert!(refusal["message"].is_string());
            redirects.push((refusal["node"].clone(), refusal["url"].clone()));
        }
        let [owner] = owners[..] else { panic!("{id} is served by {} pods", owners.len()) };
        assert_eq!(redirects, vec![(owner.name().into(), owner.url().into()); 2], "both others redirect to the owner");
        *served.entry(owner.name()).or_default() += 1;
    }
    assert_eq!(served.len(), 3);
    for (pod, count) in served {
        // A third of 300 with a standard deviation of 8.
        assert!((70..=130).contains(&count), "{pod} serves {count} of {ASSESSMENTS}");
    }
}

#[test]
fn every_pod_serves_market_data() {
    let world = World::start();
    let pods = world.three_pods(&[]);
    let mut clients: Vec<_> = pods.iter().map(Pod::market_client).collect();
    let producer = world.producer();
    for market in MARKETS {
        producer.event(&tick(market, 0));
    }
    read_until(&mut clients, "each sees five markets", WITHIN, |clients| {
        clients.iter().all(|client| client.of_type("market_price").count() == MARKETS.len())
    });
    for client in &clients {
        assert_saw_ticks(client, 0);
    }
}

/// Sends events of all ids on all ten topics and ticks on all markets, and checks that every client receives exactly
/// its own.
fn all_is_delivered(world: &World, pods: &[Pod]) {
    let ids = ids();
    let mut clients = open_at_their_owners(&pods[0], &ids);
    clients.extend(pods.iter().map(Pod::market_client));

    let producer = world.producer();
    for number in 0..EVENTS_EACH.max(TICKS_EACH) {
        for id in ids.iter().filter(|_| number < EVENTS_EACH) {
            producer.event(&event(id, number));
        }
        for market in MARKETS.iter().filter(|_| number < TICKS_EACH) {
            producer.event(&tick(market, number));
        }
    }
    producer.flush();

    let events = usize::try_from(EVENTS_EACH).unwrap();
    let last_price = format!("\"price\":{}.250", TICKS_EACH - 1);
    read_until(&mut clients, "each has its events and the last ticks", Duration::from_secs(60), |clients| {
        clients.iter().enumerate().all(|(index, client)| {
            let last_ticks = client.of_type("market_price").filter(|message| message.text.contains(&last_price));
            seen(client).count() >= if index < ids.len() { events } else { 0 } && last_ticks.count() == MARKETS.len()
        })
    });
    // Unexpected messages have time to arrive.
    read_for(&mut clients, Duration::from_millis(300));
    for (client, id) in clients.iter().zip(&ids) {
        assert_saw(client, id, 0..EVENTS_EACH);
        assert_saw_ticks(client, TICKS_EACH - 1);
    }
    for client in &clients[ids.len()..] {
        assert_eq!(seen(client).count(), 0, "market data only");
        assert_saw_ticks(client, TICKS_EACH - 1);
    }
    counters_add_up(pods);
}

/// Each event is processed by one pod and skipped by the others. Each tick is processed by all.
fn counters_add_up(pods: &[Pod]) {
    let others = (pods.len() - 1) as f64;
    let events = ASSESSMENTS as f64 * EVENTS_EACH as f64;
    let ticks = MARKETS.len() as f64 * TICKS_EACH as f64;
    let sum = |name: &str, labels: &[(&str, &str)]| pods.iter().map(|pod| pod.metrics().of(name, labels)).sum::<f64>();
    eventually("the pods' counters add up", WITHIN, || {
        let processed = sum("websocket_kafka_messages_processed_total", &[]);
        let skipped = sum("websocket_kafka_messages_skipped_total", &[("reason", "not_owner")]);
        let all_skipped = sum("websocket_kafka_messages_skipped_total", &[]);
        let right = (events + ticks * (others + 1.0), events * others, events * others);
        assert!(processed <= right.0 && skipped <= right.1, "too many: {processed}, {skipped} of {right:?}");
        ((processed, skipped, all_skipped) == right).then_some(())
    });
    for pod in pods {
        eventually("no topic has lag", WITHIN, || {
            let lags = pod.metrics().by("websocket_kafka_consumer_lag", "topic");
            (lags.len() == 10 + MARKETS.len() && lags.values().all(|lag| *lag == 0.0)).then_some(())
        });
    }
}

#[test]
fn every_client_of_three_pods_gets_all_its_events_in_order() {
    let world = World::start();
    let pods = world.three_pods(&[]);
    all_is_delivered(&world, &pods);
}

#[test]
fn every_client_of_three_shards_gets_all_its_events_in_order() {
    let world = World::start();
    let pods = [world.pod("pod-0").set("SHARDS", "3").start()];
    all_is_delivered(&world, &pods);
}

#[test]
fn a_connections_shard_is_the_hash_of_its_assessment() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").set("SHARDS", "3").start();
    let on_shards = || {
        let by_shard = pod.metrics().by("shardgate_shard_connections", "shard");
        by_shard.into_iter().filter(|(_, count)| *count != 0.0).collect::<BTreeMap<_, _>>()
    };
    let mut clients = Vec::new();
    let mut expected: BTreeMap<String, f64> = BTreeMap::new();
    for (number, id) in ids().iter().enumerate() {
        clients.push(open_at_its_owner(&pod, id));
        *expected.entry(shard_of(AssessmentHash::of(id), 3).0.to_string()).or_default() += 1.0;
        // Checked one by one at first, so that none is on a wrong shard.
        if number < 20 || number == ASSESSMENTS - 1 {
            eventually(&format!("{id} is on its shard"), WITHIN, || (on_shards() == expected).then_some(()));
        }
    }
    assert!(expected.values().all(|count| (70.0..=130.0).contains(count)), "an even spread: {expected:?}");
    let sum: f64 = expected.values().sum();
    pod.await_metric("websocket_connections_total", sum);
}

#[test]
fn when_a_pod_joins_only_clients_of_moved_assessments_are_redirected_to_it() {
    let world = World::start();
    let pods = [world.pod("pod-0").start(), world.pod("pod-1").start()];
    world.settled(&pods);
    let ids = ids();
    let mut clients = open_at_their_owners(&pods[0], &ids);
    let joined = world.pod("pod-2").start();
    let [first, second] = pods;
    let pods = [first, second, joined];
    world.settled(&pods);

    let moved: Vec<_> = ids.iter().map(|id| pods[0].owner_of(id) == pods[2].url()).collect();
    read_until(&mut clients, "clients of moved assessments are closed", WITHIN, |clients| {
        clients.iter().zip(&moved).all(|(client, moved)| client.ended().is_some() || !moved)
    });
    read_for(&mut clients, Duration::from_millis(500));
    for ((client, id), moved) in clients.iter().zip(&ids).zip(&moved) {
        if !moved {
            assert_eq!(client.close_frame(), None, "{id} stays");
            continue;
        }
        assert_eq!(client.close_frame().map(|(code, _)| *code), Some(1012), "{id} moves");
        let last = client.messages().last().expect("a redirect").json();
        assert_eq!((last["error"].as_str(), last["url"].as_str()), (Some("Redirect"), Some(&*pods[2].url())));
    }
    let count = moved.iter().filter(|moved| **moved).count();
    assert!((70..=130).contains(&count), "{count} of {ASSESSMENTS} moved to the third pod");
}

#[test]
fn two_pods_with_the_same_public_url_log_an_error_unless_a_balancer_places_clients() {
    for (placement, expected) in [("owner", 1), ("any", 0)] {
        let world = World::without_topics();
        let first = world.pod("first").set("PLACEMENT", placement).start();
        let second = world.pod("second").set("PLACEMENT", placement).set("PUBLIC_URL", &first.url()).start();
        let count = |pod: &Pod| {
            let log = pod.log();
            let lines = log.lines().filter(|line| line.contains("ERROR") && line.contains("this pod's PUBLIC_URL"));
            lines.inspect(|line| assert!(line.contains(&first.url()), "{line}")).count()
        };
        for pod in [&first, &second] {
            eventually("the error is logged", WITHIN, || (count(pod) == expected).then_some(()));
        }
        // Longer than a lease: it is not logged with each call to Redis.
        always("the error is logged rarely", Duration::from_secs(4), || [&first, &second].map(count) == [expected; 2]);
    }
}
