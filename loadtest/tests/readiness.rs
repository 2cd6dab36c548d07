//! `/ready` without a broker or a Redis, after one stopped, and after one was paused: it reports the outage in the
//! contract's time, only for the part concerned, and no longer than it lasts.

use std::time::{Duration, Instant};

use loadtest::client::{Client, read_for};
use loadtest::events::{Kind, assert_saw, event, seen};
use loadtest::http::HttpResponse;
use loadtest::kafka::Kafka;
use loadtest::pods::{Pod, World};
use loadtest::process::{always, eventually, free_port, loopback};
use serde_json::Value;

/// A stopped broker or Redis is reported within 5 s, a hung one within 15 s (PROTOCOL 5). A second is added for
/// polling.
const STOPPED_WITHIN: Duration = Duration::from_secs(5 + 1);
const HUNG_WITHIN: Duration = Duration::from_secs(15 + 1);
/// Time limit for a return to be reported. The contract has none; librdkafka backs off for at most 10 s.
const BACK_WITHIN: Duration = Duration::from_secs(20);

/// Checks the invariants of every answer of `/ready` and returns it.
fn ready(pod: &Pod) -> (u16, Value) {
    let answer = pod.get("/ready");
    let body = answer.json();
    let all = body["redis"] == "connected"
        && body["kafka"] == "connected"
        && body["history"] == "complete"
        && body["draining"] == false;
    assert_eq!(answer.status, if all { 200 } else { 503 }, "{body}");
    assert_eq!(body["status"], if all { "ready" } else { "not_ready" }, "{body}");
    assert_eq!(body["node"], pod.name());
    assert_is_timestamp(&body["timestamp"]);
    (answer.status, body)
}

fn assert_is_timestamp(value: &Value) {
    let text = value.as_str().unwrap_or_default();
    let shape: String = text.chars().map(|char| if char.is_ascii_digit() { '0' } else { char }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z");
}

fn await_part(pod: &Pod, part: &str, value: &str, within: Duration) -> Value {
    eventually(&format!("{part} is {value}"), within, || {
        let (_, body) = ready(pod);
        (body[part] == value).then_some(body)
    })
}

/// Sends an event and checks that it reaches the client after all earlier ones.
fn still_delivers(world: &World, client: &mut Client, numbers: &mut u64) {
    let producer = world.producer();
    producer.event(&event("a", *numbers));
    producer.flush();
    *numbers += 1;
    let expected = usize::try_from(*numbers).unwrap();
    let clients = std::slice::from_mut(client);
    loadtest::client::read_until(clients, "the event arrives", BACK_WITHIN, |clients| {
        seen(&clients[0]).count() == expected
    });
    assert_saw(client, "a", 0..*numbers);
}

#[test]
fn a_pod_without_a_broker_waits_for_it_without_clients_and_without_a_slot() {
    let mut world = World::start();
    world.kafka.broker(0).stop();
    let pod = world.pod("pod-0").spawn();
    eventually("the pod answers", Duration::from_secs(10), || pod.try_get("/health"));
    always("the pod is not ready", Duration::from_secs(2), || {
        let (status, body) = ready(&pod);
        status == 503 && body["kafka"] == "disconnected" && body["history"] == "filling"
    });
    let body = await_part(&pod, "redis", "connected", STOPPED_WITHIN);
    assert_eq!((&body["kafka"], &body["draining"]), (&"disconnected".into(), &false.into()));
    assert!(world.redis.live().is_empty(), "no slot before the history is complete");
    let refusal = pod.ask().try_open().expect_err("a pod that was never ready accepts no client");
    assert_eq!(refusal.status, 503);
    assert!(refusal.header("retry-after").is_some());
    assert_eq!(pod.get("/health").status, 200);

    world.kafka.broker(0).start();
    pod.ready();
    eventually("the pod has a slot", STOPPED_WITHIN, || (world.redis.live().len() == 1).then_some(()));
    let mut client = pod.client("a");
    still_delivers(&world, &mut client, &mut 0);
}

#[test]
fn a_stopped_or_hung_broker_is_reported_and_clients_stay_and_catch_up() {
    let mut world = World::start();
    let pod = world.pod("pod-0").start();
    let mut client = pod.client("a");
    let mut numbers = 0;
    still_delivers(&world, &mut client, &mut numbers);

    world.kafka.broker(0).stop();
    let body = await_part(&pod, "kafka", "disconnected", STOPPED_WITHIN);
    assert_eq!(
        (&body["redis"], &body["history"]),
        (&"connected".into(), &"complete".into()),
        "only this part is reported"
    );
    drop(pod.client("accepted because the pod was ready before"));
    world.kafka.broker(0).start();
    await_part(&pod, "kafka", "connected", BACK_WITHIN);
    still_delivers(&world, &mut client, &mut numbers);

    world.kafka.broker(0).pause();
    let body = await_part(&pod, "kafka", "disconnected", HUNG_WITHIN);
    assert_eq!(body["redis"], "connected");
    world.kafka.broker(0).resume();
    await_part(&pod, "kafka", "connected", BACK_WITHIN);
    still_delivers(&world, &mut client, &mut numbers);
    assert_eq!(ready(&pod).0, 200);
    assert_eq!(client.ended(), None);
}

#[test]
fn a_pod_without_a_redis_waits_for_it() {
    let mut world = World::start();
    world.redis.kill();
    let pod = world.pod("pod-0").spawn();
    eventually("the pod answers", Duration::from_secs(10), || pod.try_get("/health"));
    let body = await_part(&pod, "history", "complete", BACK_WITHIN);
    assert_eq!((&body["redis"], &body["kafka"]), (&"disconnected".into(), &"connected".into()));
    assert_eq!(pod.ask().try_open().expect_err("a pod that was never ready accepts no client").status, 503);
    world.redis.start_again();
    pod.ready();
    assert_eq!(world.redis.live().len(), 1);
}

#[test]
fn a_stopped_or_hung_redis_is_reported_and_clients_are_still_served() {
    let mut world = World::start();
    let pod = world.pod("pod-0").start();
    let mut client = pod.client("a");
    let mut numbers = 0;

    world.redis.kill();
    let body = await_part(&pod, "redis", "disconnected", STOPPED_WITHIN);
    assert_eq!((&body["kafka"], &body["history"]), (&"connected".into(), &"complete".into()));
    still_delivers(&world, &mut client, &mut numbers);
    drop(pod.client("accepted"));
    world.redis.start_again();
    await_part(&pod, "redis", "connected", BACK_WITHIN);
    pod.ready();

    world.redis.pause();
    await_part(&pod, "redis", "disconnected", HUNG_WITHIN);
    still_delivers(&world, &mut client, &mut numbers);
    world.redis.resume();
    await_part(&pod, "redis", "connected", BACK_WITHIN);
    pod.ready();
    still_delivers(&world, &mut client, &mut numbers);
    assert_eq!(client.ended(), None);
}

#[test]
fn missing_topics_delay_nothing_and_a_pod_starts_within_seconds() {
    let world = World::without_topics();
    // The best of three, because of other work on the machine.
    let (mut listens, mut ready) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        let start = Instant::now();
        let pod = world.pod("pod-0").spawn();
        eventually("the pod answers", Duration::from_secs(10), || pod.try_get("/health"));
        listens = listens.min(start.elapsed());
        pod.ready();
        ready = ready.min(start.elapsed());
        let log = pod.log();
        assert!((1..=25).contains(&log.lines().count()), "a few readable lines:\n{log}");
    }
    assert!(listens < Duration::from_secs(1), "it listens after {listens:?}");
    // The history is empty. Filling it takes a few responses of the broker.
    assert!(ready < Duration::from_secs(3), "it is ready after {ready:?}");
}

#[test]
fn operators_endpoints_are_on_the_port_or_on_admin_port() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let health = pod.get("/health");
    assert_eq!((health.status, &health.json()["status"]), (200, &"ok".into()));
    assert_is_timestamp(&health.json()["timestamp"]);
    let page = pod.get("/");
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").unwrap_or_default().starts_with("text/html"));
    assert!(page.text().contains("<html"));
    assert_eq!(pod.get("/nothing").status, 404);
    for (path, status) in [("/health", 200), ("/ready", 200), ("/accepting", 200), ("/metrics", 200)] {
        assert_eq!(head(&pod, path).0, status, "HEAD of {path}");
        assert_eq!(head(&pod, path).1, 0, "HEAD of {path} has no body");
        let refused = request(&pod, "DELETE", path);
        assert_eq!(refused.status, 405, "DELETE of {path}");
        assert!(refused.header("allow").is_some_and(|allow| allow.contains("GET") && allow.contains("HEAD")));
    }

    let host = loopback();
    let admin = free_port(host);
    let plan = world.pod("pod-1").set("HOST", &host.to_string()).set("PUBLIC_URL", &format!("ws://{host}:1/ws"));
    let port = free_port(host);
    let pod = plan.set("PORT", &port.to_string()).set("ADMIN_PORT", &admin.to_string()).spawn();
    let get = |port: u16, path: &str| loadtest::http::get((host, port).into(), path, Duration::from_secs(5));
    eventually("the pod is ready", BACK_WITHIN, || {
        get(admin, "/ready").is_ok_and(|answer| answer.status == 200).then_some(())
    });
    for path in ["/health", "/ready", "/accepting", "/metrics", "/"] {
        assert_eq!(get(admin, path).unwrap().status, 200, "{path} on ADMIN_PORT");
        assert_eq!(get(port, path).unwrap().status, 404, "{path} on PORT");
    }
    assert!(pod.log().contains(&admin.to_string()), "the log names the port");
}

/// The status of a HEAD request and the length of its body.
fn head(pod: &Pod, path: &str) -> (u16, usize) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(pod.address()).unwrap();
    write!(stream, "HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head["HTTP/1.1 ".len()..][..3].parse().unwrap(), body.len())
}

fn request(pod: &Pod, method: &str, path: &str) -> HttpResponse {
    use std::io::Write as _;
    let mut stream = std::net::TcpStream::connect(pod.address()).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    HttpResponse::read(&mut stream).unwrap()
}

#[test]
fn the_loss_of_one_broker_of_three_is_not_reported() {
    let mut kafka = Kafka::start_with(3, &[]);
    let topics = Kind::ALL.map(|kind| (kind.topic(), 3));
    kafka.create_all(&topics);
    let redis = loadtest::redis::Redis::start();
    let pod = loadtest::pods::Plan::new("pod-0", kafka.bootstrap(), redis.port()).start();
    let mut client = pod.client("a");
    let producer = loadtest::events::Producer::to(kafka.bootstrap());
    for number in 0..10 {
        producer.event(&event("a", number));
    }
    producer.flush();
    kafka.broker(1).kill();
    for number in 10..20 {
        producer.event(&event("a", number));
    }
    producer.flush();
    let clients = std::slice::from_mut(&mut client);
    loadtest::client::read_until(clients, "all arrive", BACK_WITHIN * 2, |clients| seen(&clients[0]).count() == 20);
    read_for(clients, Duration::from_millis(200));
    assert_saw(&client, "a", 0..20);
    assert_eq!(ready(&pod).1["kafka"], "connected", "the cluster still serves");
}

#[test]
fn a_pod_that_is_not_ready_logs_what_it_waits_for_every_half_minute() {
    let pod = loadtest::pods::Plan::new("pod-0", "127.0.0.1:1", 1).spawn();
    let line = eventually("the pod logs what it waits for", Duration::from_secs(45), || {
        pod.log().lines().find(|line| line.contains("still not ready")).map(str::to_owned)
    });
    assert!(
        line.contains("WARN") && line.contains("Redis, Kafka, the history, a slot") && line.contains("elapsed_ms=30"),
        "{line}"
    );
}

#[test]
fn an_outage_of_kafka_is_logged_at_its_start_every_half_minute_and_at_its_end() {
    let mut world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let line = |what: &str| pod.log().lines().find(|line| line.contains(what)).map(str::to_owned);
    let brokers = world.kafka.bootstrap().to_owned();
    world.kafka.broker(0).kill();
    let began = eventually("the outage is logged", STOPPED_WITHIN, || line("Kafka unreachable"));
    assert!(began.contains(&brokers) && began.contains("error="), "{began}");
    let goes_on = eventually("it is logged again", Duration::from_secs(45), || line("Kafka still unreachable"));
    assert!(goes_on.contains(&brokers) && goes_on.contains("since=2") && goes_on.contains("error="), "{goes_on}");
    world.kafka.broker(0).start();
    let restored = eventually("its end is logged", Duration::from_secs(60), || line("Kafka connection restored"));
    assert!(restored.contains("elapsed_ms="), "{restored}");
    assert_eq!(pod.log().matches("Kafka unreachable").count(), 1);
}
