//! Who may come in: what those without a token, and sockets that say nothing, may take of those who have one.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use loadtest::client::raw::Raw;
use loadtest::client::{Ask, Client, WITHIN};
use loadtest::http::{self, HttpResponse};
use loadtest::pods::{Pod, READY_WITHIN, World};
use loadtest::process::{allow_descriptors, always, eventually, leave_descriptors};

/// Sends a request with a bad token, and leaves its socket open, whatever the answer.
fn intruder(pod: &Pod) -> Raw {
    let mut raw = Raw::connect(&pod.ask());
    raw.send(pod.ask().token("rubbish").head().as_bytes());
    raw
}

#[test]
fn unauthenticated_clients_do_not_use_up_the_accept_rate() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").set("ACCEPTS_PER_SECOND", "40").start();
    let mut statuses = Vec::new();
    let mut clients = Vec::new();
    for number in 0..400 {
        statuses.push(intruder(&pod).answer().status);
        if number % 20 == 19 {
            clients.push(pod.ask().try_open().unwrap_or_else(|answer| panic!("{number}: {}", answer.text())));
        }
    }
    assert!(statuses.contains(&101), "those at their own rate are told why: {statuses:?}");
    assert!(statuses.contains(&503), "those over it are not: {statuses:?}");
    let metrics = pod.metrics();
    let refused = metrics.sum("shardgate_refusals_total") + metrics.sum("shardgate_connections_closed_total");
    assert_eq!(refused, 400.0, "each is counted");
}

#[test]
fn unauthenticated_clients_hold_no_connection_permit() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").set("MAX_CONNECTIONS", "20").start();
    let mut intruders = Vec::new();
    let mut clients = Vec::new();
    for number in 0..19 {
        intruders.extend((0..10).map(|_| intruder(&pod)));
        assert_eq!(intruders.last_mut().map(|raw| raw.answer().status), Some(101));
        clients.push(pod.ask().try_open().unwrap_or_else(|answer| panic!("{number}: {}", answer.text())));
    }
    // Nor does one with a token that asks for what it may not have.
    let forbidden = pod.ask().assessment("").open();
    drop(pod.ask().try_open().unwrap_or_else(|answer| panic!("the last place: {}", answer.text())));
    drop((intruders, forbidden));
}

/// The answer of an operators' port, however long it takes within a minute, and how long it took.
fn get(address: SocketAddr, path: &str) -> (HttpResponse, Duration) {
    let asked = Instant::now();
    let answer = http::get(address, path, Duration::from_secs(60)).unwrap_or_else(|error| panic!("{path}: {error:#}"));
    (answer, asked.elapsed())
}

#[test]
fn silent_sockets_leave_descriptors_for_probes_and_redis() {
    const DESCRIPTORS: u64 = 1_000;
    allow_descriptors(20_000);
    let mut world = World::without_topics();
    let plan = world.pod("pod-0").set_all(&[("SHARDS", "1"), ("HANDSHAKE_TIMEOUT_MS", "60000")]);
    let admin = SocketAddr::new(plan.address().ip(), plan.address().port() + 1);
    let pod = plan.set("ADMIN_PORT", &admin.port().to_string()).descriptors(DESCRIPTORS).spawn();
    let is_ready = || http::get(admin, "/ready", WITHIN).is_ok_and(|answer| answer.status == 200);
    eventually("it is ready", READY_WITHIN, || is_ready().then_some(()));
    let mut clients: Vec<Client> = Vec::new();
    let refusal = loop {
        match pod.ask().try_open() {
            Ok(client) => clients.push(client),
            Err(answer) => break answer,
        }
    };
    assert_eq!(refusal.status, 503, "{}", refusal.text());
    assert!(clients.len() > 400, "{} of {DESCRIPTORS} are for clients", clients.len());
    let silent: Vec<Raw> = (0..600).map(|_| Raw::connect(&pod.ask())).collect();

    // What is lost meanwhile can be had again.
    world.redis.kill();
    let redis = || get(admin, "/ready").0.json()["redis"].clone();
    eventually("Redis is away", READY_WITHIN, || (redis() == "disconnected").then_some(()));
    world.redis.start_again();
    eventually("Redis is back", READY_WITHIN, || (redis() == "connected").then_some(()));
    let (health, after) = get(admin, "/health");
    assert!(health.status == 200 && after < Duration::from_secs(2), "{} after {after:?}", health.status);
    assert!(!pod.log().contains("cannot accept"), "descriptors are left");

    // A place that a client leaves is for the next one, past the sockets that wait in the kernel's queue.
    drop(clients.pop());
    let (answer, after) = eventually("there is room for one", READY_WITHIN, || {
        let asked = Instant::now();
        pod.ask().try_open().ok().map(|client| (client, asked.elapsed()))
    });
    println!("{} clients; a new one is served after {after:?}", clients.len());
    drop((answer, silent));
}

#[test]
fn silent_sockets_are_closed_soon_when_descriptors_are_few() {
    allow_descriptors(20_000);
    let world = World::without_topics();
    let plan = world.pod("pod-0").set_all(&[("SHARDS", "1"), ("HANDSHAKE_TIMEOUT_MS", "60000")]);
    let pod = plan.descriptors(1_000).start();
    let silent: Vec<Raw> = (0..300).map(|_| Raw::connect(&pod.ask())).collect();
    let (health, after) = get(pod.address(), "/health");
    assert_eq!(health.status, 200);
    // Some 60 are read at a time, each for a second.
    assert!(after < Duration::from_secs(12), "after {after:?}");
    assert!(!pod.log().contains("cannot accept"), "descriptors are left");
    drop(silent);
}

#[test]
fn a_lack_of_descriptors_is_logged_once_per_port() {
    let world = World::without_topics();
    let plan = world.pod("pod-0").set("SHARDS", "1");
    let admin = SocketAddr::new(plan.address().ip(), plan.address().port() + 1);
    let pod = plan.set("ADMIN_PORT", &admin.port().to_string()).spawn();
    let is_ready = || http::get(admin, "/ready", WITHIN).is_ok_and(|answer| answer.status == 200);
    eventually("it is ready", READY_WITHIN, || is_ready().then_some(()));
    leave_descriptors(pod.pid(), 10);
    let many: Vec<_> = (0..30).map(|_| Raw::connect(&pod.ask())).collect();
    let said = |port: &str| pod.log().matches(&format!("{port} cannot accept")).count();
    eventually("PORT says so", READY_WITHIN, || (said(" PORT") > 0).then_some(()));
    let waiting: Vec<_> = (0..30).map(|_| TcpStream::connect(admin).unwrap()).collect();
    eventually("ADMIN_PORT says so", READY_WITHIN, || (said("ADMIN_PORT") > 0).then_some(()));
    always("each says so once", Duration::from_secs(2), || (said(" PORT"), said("ADMIN_PORT")) == (1, 1));
    drop((many, waiting));
    eventually("operators are let in again", READY_WITHIN, || is_ready().then_some(()));
}

#[test]
fn origins_that_a_browser_sends_without_a_host_or_below_a_domain_can_be_let_in() {
    let world = World::without_topics();
    let origins = "https://*.example.com, null, file://";
    let pod = world.pod("pod-0").set("ALLOWED_ORIGINS", origins).start();
    for (origin, status) in [
        ("https://app.example.com", 101),
        ("https://a.b.example.com", 101),
        ("null", 101),
        ("file://", 101),
        ("https://example.com", 403),
        ("http://app.example.com", 403),
        ("https://app.example.com:8443", 403),
        ("https://app.example.com.evil.net", 403),
    ] {
        let opened = pod.ask().header("Origin", origin).try_open();
        assert_eq!(opened.map_or_else(|answer| answer.status, |_| 101), status, "{origin}");
    }
}

#[test]
fn a_head_may_be_as_large_as_the_setting_says() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").set("MAX_HEAD_BYTES", "64KiB").start();
    let sized = |ask: Ask, bytes: usize| {
        let empty = ask.clone().header("Cookie", "").head().len();
        ask.header("Cookie", &"c".repeat(bytes - empty))
    };
    let status = |ask: &Ask| {
        let mut raw = Raw::connect(ask);
        raw.send(ask.head().as_bytes());
        raw.answer().status
    };
    assert_eq!(status(&sized(pod.ask(), 65_536)), 101);
    assert_eq!(status(&sized(pod.ask(), 65_537)), 431);
    // A probe's head is another library's to read.
    assert_eq!(status(&sized(pod.ask().path("/health").without_token(), 65_000)), 200);
}
