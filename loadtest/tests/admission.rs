//! Admission: how much of a pod's resources unauthenticated clients and silent sockets can take from authenticated
//! clients.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use loadtest::client::raw::Raw;
use loadtest::client::{Ask, Client, WITHIN};
use loadtest::http::{self, HttpResponse};
use loadtest::pods::{Pod, READY_WITHIN, World};
use loadtest::process::{allow_descriptors, always, eventually, leave_descriptors};

/// Sends a request with an invalid token and leaves the socket open, whatever the response.
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
    assert!(statuses.contains(&101), "within their own rate they get a refusal after the upgrade: {statuses:?}");
    assert!(statuses.contains(&503), "over it they get a 503: {statuses:?}");
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
    // The same holds for a valid token without the required claim.
    let forbidden = pod.ask().assessment("").open();
    drop(pod.ask().try_open().unwrap_or_else(|answer| panic!("the last permit: {}", answer.text())));
    drop((intruders, forbidden));
}

/// The response of an operators' port, with a time limit of a minute, and its duration.
fn get(address: SocketAddr, path: &str) -> (HttpResponse, Duration) {
    let started = Instant::now();
    let answer = http::get(address, path, Duration::from_secs(60)).unwrap_or_else(|error| panic!("{path}: {error:#}"));
    (answer, started.elapsed())
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
    eventually("the pod is ready", READY_WITHIN, || is_ready().then_some(()));
    let mut clients: Vec<Client> = Vec::new();
    let refusal = loop {
        match pod.ask().try_open() {
            Ok(client) => clients.push(client),
            Err(answer) => break answer,
        }
    };
    assert_eq!(refusal.status, 503, "{}", refusal.text());
    assert!(clients.len() > 400, "{} of {DESCRIPTORS} descriptors are for clients", clients.len());
    let silent: Vec<Raw> = (0..600).map(|_| Raw::connect(&pod.ask())).collect();

    // A connection lost meanwhile can be reopened.
    world.redis.kill();
    let redis = || get(admin, "/ready").0.json()["redis"].clone();
    eventually("Redis is down", READY_WITHIN, || (redis() == "disconnected").then_some(()));
    world.redis.start_again();
    eventually("Redis is up again", READY_WITHIN, || (redis() == "connected").then_some(()));
    let (health, after) = get(admin, "/health");
    assert!(health.status == 200 && after < Duration::from_secs(2), "{} after {after:?}", health.status);
    assert!(!pod.log().contains("cannot accept"), "descriptors are left");

    // A freed permit goes to the next client, ahead of the sockets in the kernel's queue.
    drop(clients.pop());
    let (answer, after) = eventually("one client is accepted", READY_WITHIN, || {
        let started = Instant::now();
        pod.ask().try_open().ok().map(|client| (client, started.elapsed()))
    });
    println!("{} clients; a new one is served after {after:?}", clients.len());
    drop((answer, silent));
}

#[test]
fn silent_sockets_are_closed_soon_when_descriptors_are_scarce() {
    allow_descriptors(20_000);
    let world = World::without_topics();
    let plan = world.pod("pod-0").set_all(&[("SHARDS", "1"), ("HANDSHAKE_TIMEOUT_MS", "60000")]);
    let pod = plan.descriptors(1_000).start();
    let silent: Vec<Raw> = (0..300).map(|_| Raw::connect(&pod.ask())).collect();
    let (health, after) = get(pod.address(), "/health");
    assert_eq!(health.status, 200);
    // About 60 handshakes are read at a time, each for a second.
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
    eventually("the pod is ready", READY_WITHIN, || is_ready().then_some(()));
    leave_descriptors(pod.pid(), 10);
    let many: Vec<_> = (0..30).map(|_| Raw::connect(&pod.ask())).collect();
    let logged = |port: &str| pod.log().matches(&format!("{port} cannot accept")).count();
    eventually("PORT logs it", READY_WITHIN, || (logged(" PORT") > 0).then_some(()));
    let waiting: Vec<_> = (0..30).map(|_| TcpStream::connect(admin).unwrap()).collect();
    eventually("ADMIN_PORT logs it", READY_WITHIN, || (logged("ADMIN_PORT") > 0).then_some(()));
    always("each logs it once", Duration::from_secs(2), || (logged(" PORT"), logged("ADMIN_PORT")) == (1, 1));
    drop((many, waiting));
    eventually("operators can connect again", READY_WITHIN, || is_ready().then_some(()));
}

#[test]
fn null_origins_file_origins_and_subdomains_can_be_allowed() {
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
fn max_head_bytes_limits_the_request_head() {
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
    // The head of a probe is read by another library.
    assert_eq!(status(&sized(pod.ask().path("/health").without_token(), 65_000)), 200);
}
