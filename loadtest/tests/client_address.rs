//! Limits per address and per user, and a client's address behind proxies.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use loadtest::client::raw::Raw;
use loadtest::client::{Ask, Client};
use loadtest::http::HttpResponse;
use loadtest::pods::{Plan, Pod, World};
use loadtest::process::{Process, TempDir, allow_descriptors, eventually, free_port, loopback, tool};
use loadtest::token::signed;
use serde_json::json;

/// Refused with 503 and Retry-After.
#[track_caller]
fn refused(opened: Result<Client, HttpResponse>, why: &str) {
    let answer = opened.expect_err("the request is refused");
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()));
    assert!(answer.text().contains(why), "{}", answer.text());
}

#[track_caller]
fn accepted(opened: Result<Client, HttpResponse>) -> Client {
    opened.unwrap_or_else(|answer| panic!("{} {}", answer.status, answer.text()))
}

#[test]
fn limits_per_address_and_user_apply_to_all_shards_together() {
    let world = World::without_topics();
    let settings = [("MAX_CONNECTIONS_PER_ADDRESS", "3"), ("MAX_CONNECTIONS_PER_USER", "2"), ("SHARDS", "2")];
    let pod = world.pod("pod-0").set_all(&settings).start();
    let (here, there) = (loopback(), loopback());
    // Assessments on both shards.
    let ask = |number: u32, user: &str, from: Ipv4Addr| {
        let token = signed(&json!({ "userId": user }));
        pod.ask().assessment(&format!("a-{number}")).token(&token).from(from).try_open()
    };
    let first = accepted(ask(1, "u", here));
    let _second = accepted(ask(2, "u", here));
    for number in 3..9 {
        refused(ask(number, "u", there), "user");
    }
    let _third = accepted(ask(9, "v", here));
    for number in 10..16 {
        refused(ask(number, "w", here), "address");
    }
    let _elsewhere = accepted(ask(16, "w", there));
    let refusals = pod.metrics();
    assert_eq!(refusals.sum("shardgate_refusals_total"), 12.0);
    // A permit is free as soon as its connection is closed.
    first.close();
    eventually("the user may connect again", Duration::from_secs(10), || ask(17, "u", there).ok());
    eventually("the address may connect again", Duration::from_secs(10), || ask(18, "x", here).ok());
}

#[test]
fn silent_sockets_of_one_address_get_no_more_than_its_share_of_handshakes() {
    /// Handshakes that one address may have in progress.
    const SHARE: usize = 64;
    allow_descriptors(20_000);
    let world = World::without_topics();
    let settings = [("MAX_CONNECTIONS_PER_ADDRESS", "5"), ("SHARDS", "2"), ("HANDSHAKE_TIMEOUT_MS", "60000")];
    let pod = world.pod("pod-0").set_all(&settings).start();
    let (here, there) = (loopback(), loopback());
    let mut silent: Vec<_> = (0..SHARE + 40).map(|_| Raw::connect(&pod.ask().from(here))).collect();
    eventually("sockets over the limit are refused", Duration::from_secs(20), || {
        (pod.metrics().of("shardgate_refusals_total", &[("reason", "address")]) == 40.0).then_some(())
    });
    let answered = silent.iter_mut().filter_map(|raw| raw.is_answered(Duration::from_millis(1)).then(|| raw.answer()));
    let statuses: Vec<u16> = answered.map(|answer| answer.status).collect();
    assert_eq!(statuses, [503; 40]);
    let _other = accepted(pod.ask().from(there).try_open());
    let logged = pod.log().matches("MAX_CONNECTIONS_PER_ADDRESS").count();
    assert!((1..=2).contains(&logged), "each shard logs it once: {logged}");
    drop(silent);
    eventually("there is room again", Duration::from_secs(20), || pod.ask().from(here).try_open().ok());
}

/// A pod that trusts one address as a proxy and allows each client one connection.
fn behind_a_proxy(world: &World, proxy: Ipv4Addr) -> Plan {
    world
        .pod("pod-0")
        .set_all(&[("MAX_CONNECTIONS_PER_ADDRESS", "1"), ("TRUSTED_PROXIES", &format!("{proxy}, 10.0.0.0/8"))])
}

/// Opens a connection with a header that names the client's address.
fn opens(ask: &Ask, header: &str, value: &str) -> Result<Client, HttpResponse> {
    ask.clone().header(header, value).try_open()
}

#[test]
fn only_a_trusted_proxy_may_forward_the_clients_address() {
    let world = World::without_topics();
    let (proxy, stranger) = (loopback(), loopback());
    let pod = behind_a_proxy(&world, proxy).start();
    let by_proxy = pod.ask().from(proxy);
    let _first = accepted(opens(&by_proxy, "X-Forwarded-For", "203.0.113.1"));
    refused(opens(&by_proxy, "X-Forwarded-For", "6.6.6.6, 203.0.113.1, 10.1.2.3"), "address");
    refused(opens(&by_proxy, "Forwarded", "for=6.6.6.6, for=\"203.0.113.1:4711\";proto=https"), "address");
    let _second = accepted(opens(&by_proxy, "Forwarded", "for=\"[2001:db8::1]\""));
    refused(opens(&by_proxy, "X-Forwarded-For", "2001:db8::2"), "address");
    let both = by_proxy.clone().header("Forwarded", "for=203.0.113.8");
    assert_eq!(opens(&both, "X-Forwarded-For", "203.0.113.9").err().map(|answer| answer.status), Some(400));

    let by_stranger = pod.ask().from(stranger);
    let _third = accepted(opens(&by_stranger, "X-Forwarded-For", "203.0.113.2"));
    refused(opens(&by_stranger, "X-Forwarded-For", "203.0.113.3"), "address");
    let _fourth = accepted(opens(&by_proxy, "X-Forwarded-For", "203.0.113.2"));
}

/// Sends a PROXY protocol header and the request. Returns the response's status.
fn status_behind(ask: &Ask, header: &[u8]) -> (u16, Raw) {
    let mut raw = Raw::connect(ask);
    raw.send(header);
    raw.send(ask.head().as_bytes());
    (raw.answer().status, raw)
}

#[test]
fn only_trusted_proxies_may_use_the_proxy_protocol() {
    let world = World::without_topics();
    let (proxy, stranger) = (loopback(), loopback());
    let plan = behind_a_proxy(&world, proxy).set("PROXY_PROTOCOL", "true");
    let pod = plan.start();
    let by_proxy = pod.ask().from(proxy);
    let v1 = |client: &str| format!("PROXY TCP4 {client} 10.0.0.1 56324 443\r\n").into_bytes();
    let v2 =
        |last: u8| [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", &[203, 0, 113, last, 10, 0, 0, 1, 1, 2, 3, 4][..]].concat();
    let (status, _first) = status_behind(&by_proxy, &v1("203.0.113.1"));
    assert_eq!(status, 101);
    assert_eq!(status_behind(&by_proxy, &v2(1)).0, 503, "from the same client");
    let (status, _second) = status_behind(&by_proxy, &v2(2));
    assert_eq!(status, 101);
    // The proxy's own health check.
    for local in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        assert_eq!(status_behind(&by_proxy.clone().path("/health"), local).0, 200);
    }
    // A proxy behind another: the header names a trusted proxy, whose forwarded address counts.
    let chained = by_proxy.clone().header("X-Forwarded-For", "203.0.113.2");
    assert_eq!(status_behind(&chained, &v1("10.9.9.9")).0, 503);

    let bad: [&[u8]; 4] =
        [b"", b"PROXY TCP4 203.0.113.7\r\n", b"PROXY TCP9 ::1 ::1 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n\x91\0\0\0"];
    for header in bad {
        assert_eq!(status_behind(&by_proxy, header).0, 400, "{header:?}");
    }
    assert_eq!(pod.metrics().of("shardgate_refusals_total", &[("reason", "proxy_header")]), 4.0);
    let addressed = |what: &str| {
        let log = pod.log();
        let line = log.lines().find(|line| line.contains(what)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no line has {what:?}: {log}"))
    };
    assert!(addressed("MAX_CONNECTIONS_PER_ADDRESS").contains("client=203.0.113.1 "), "the client's, not the proxy's");
    assert!(addressed("PROXY protocol's header").contains(&format!("client={proxy} ")), "it named no client");
    // Headers may arrive in pieces.
    let mut raw = Raw::connect(&by_proxy);
    for byte in v2(9).chunks(5) {
        raw.send(byte);
        assert!(!raw.is_answered(Duration::from_millis(30)));
    }
    raw.send(by_proxy.head().as_bytes());
    raw.expect_upgrade();

    let by_stranger = pod.ask().from(stranger);
    assert_eq!(status_behind(&by_stranger, &v1("203.0.113.4")).0, 400, "a stranger's header is not accepted");
    assert_eq!(status_behind(&by_stranger, &v2(4)).0, 400);
    accepted(by_stranger.try_open());
}

/// A real proxy in front of a pod.
struct Haproxy {
    address: SocketAddr,
    _process: Process,
    _dir: TempDir,
}

impl Haproxy {
    /// Listens on its own address and connects to the pod from `from`. `mode` and `server` are parts of its
    /// configuration.
    fn start(pod: &Pod, from: Ipv4Addr, mode: &str, server: &str) -> Self {
        let program = tool("haproxy", "haproxy");
        let host = loopback();
        let address = SocketAddr::new(IpAddr::V4(host), free_port(host));
        let dir = TempDir::new("haproxy");
        let config = dir.file(
            "haproxy.cfg",
            &format!(
                "global\n  maxconn 100\ndefaults\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  \
                 timeout tunnel 60s\n  {mode}\nlisten pods\n  bind {address}\n  source {from}\n  \
                 server pod {} {server}\n",
                pod.address()
            ),
        );
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(config);
        let process = Process::start("haproxy", command, &dir.path().join("log"));
        let proxy = Self { address, _process: process, _dir: dir };
        eventually("haproxy listens", Duration::from_secs(20), || std::net::TcpStream::connect(address).ok());
        proxy
    }

    fn ask(&self, from: Ipv4Addr) -> Ask {
        Ask::to(&format!("ws://{}/ws", self.address)).from(from)
    }
}

#[test]
fn every_mode_of_a_real_proxy_is_understood() {
    let world = World::without_topics();
    for (mode, server, setting) in [
        ("mode tcp", "send-proxy", "true"),
        ("mode tcp", "send-proxy-v2", "true"),
        ("mode http\n  option forwardfor", "", "false"),
    ] {
        let (proxy, one, other) = (loopback(), loopback(), loopback());
        let pod = behind_a_proxy(&world, proxy).set("PROXY_PROTOCOL", setting).start();
        let haproxy = Haproxy::start(&pod, proxy, mode, server);
        let mut first = accepted(haproxy.ask(one).assessment("a").try_open());
        first.expect_type("connected");
        refused(haproxy.ask(one).try_open(), "address");
        let _second = accepted(haproxy.ask(other).try_open());
        first.close();
        eventually("the client may connect again", Duration::from_secs(10), || haproxy.ask(one).try_open().ok());
    }
}
