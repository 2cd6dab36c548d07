//! Probes are answered however many other connections there are: idle, slow, or without reading responses.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use loadtest::http::{self, HttpResponse};
use loadtest::pods::{Pod, READY_WITHIN, World};
use loadtest::process::{allow_descriptors, eventually, free_port};

/// Timeout of the manifests' probes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Longer than three of the manifests' probes, after which a pod would be restarted, and longer than the timeout of a
/// request head.
const HELD_FOR: Duration = Duration::from_secs(6);

const PATHS: &[&str] = &["/health", "/ready", "/accepting", "/metrics"];

const SCRAPE: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";

/// A pod with its operators' endpoints on a separate port, and that address.
fn with_admin_port(world: &World) -> (Pod, SocketAddr) {
    let plan = world.pod("pod-0");
    let admin = SocketAddr::new(plan.address().ip(), free_port([127, 0, 0, 1].into()));
    let pod = plan.set("ADMIN_PORT", &admin.port().to_string()).spawn();
    eventually("the pod is ready", READY_WITHIN, || {
        http::get(admin, "/ready", PROBE_TIMEOUT).is_ok_and(|answer| answer.status == 200).then_some(())
    });
    (pod, admin)
}

/// An action on a connection every 100 ms. Returns false if it is closed.
type Hold = fn(&mut TcpStream) -> bool;

fn is_open(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    matches!(stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

fn trickle(stream: &mut TcpStream) -> bool {
    is_open(stream) && stream.write_all(b"G").is_ok()
}

/// A response arrives and is not read.
fn ask_and_do_not_read(stream: &mut TcpStream) -> bool {
    let is_unanswered = is_open(stream);
    !is_unanswered || stream.write_all(SCRAPE).is_ok()
}

/// A new connection each time.
fn ask_and_leave(stream: &mut TcpStream) -> bool {
    is_open(stream) && stream.write_all(SCRAPE).is_ok()
}

/// `ADMIN_TOKEN` of a pod whose operators ask too much.
const TOKEN: &str = "0123456789abcdef";

/// The next request on a new connection: lists of all clients.
fn ask_as_operator(stream: &mut TcpStream) -> bool {
    let request = format!("GET /connections HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    is_open(stream) && stream.write_all(request.as_bytes()).is_ok()
}

/// `/ready` also depends on Redis, which may not answer on a busy machine.
fn is_answered(path: &str, answer: &HttpResponse) -> bool {
    answer.status == 200 || path == "/ready" && answer.json()["redis"] == "disconnected"
}

/// Holds this many connections and replaces closed ones. Meanwhile every probe must be answered.
fn all_are_answered(paths: &[&str], address: SocketAddr, held: usize, hold: Hold, what: &str) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (opened, all_opened) = std::sync::mpsc::channel();
        scope.spawn(|| {
            let opened = opened;
            let (mut connections, mut begun) = (Vec::<TcpStream>::new(), false);
            while !stop.load(Ordering::Relaxed) {
                connections.retain_mut(&hold);
                let lacking = held - connections.len();
                // A thousand per second after the first.
                let opens = if begun { lacking.min(100) } else { lacking };
                begun = true;
                connections.extend((0..opens).map(|_| TcpStream::connect(address).unwrap()));
                let _ = opened.send(());
                // This sets the rate. It does not wait for an event.
                thread::sleep(Duration::from_millis(100));
            }
        });
        all_opened.recv().unwrap();
        let since = Instant::now();
        let mut answered = Ok(());
        while since.elapsed() < HELD_FOR && answered.is_ok() {
            answered = paths.iter().try_for_each(|path| match http::get(address, path, PROBE_TIMEOUT) {
                Ok(answer) if is_answered(path, &answer) => Ok(()),
                Ok(answer) => Err(format!("{path}: {} {}", answer.status, answer.text())),
                Err(error) => Err(format!("{path}: {error:#}")),
            });
        }
        stop.store(true, Ordering::Relaxed);
        answered.unwrap_or_else(|fault| panic!("{held} {what}: {fault} after {:?}", since.elapsed()));
    });
}

fn on_both_ports(paths: &[&str], held: usize, hold: Hold, what: &str) {
    // Both ends of each connection are on this machine.
    allow_descriptors(4096);
    let world = World::without_topics();
    let (_pod, admin) = with_admin_port(&world);
    all_are_answered(paths, admin, held, hold, what);
    let pod = world.pod("pod-1").start();
    all_are_answered(paths, pod.address(), held, hold, what);
}

#[test]
fn probes_are_answered_beside_silent_connections() {
    on_both_ports(PATHS, 64, is_open, "silent connections");
    on_both_ports(PATHS, 1000, is_open, "silent connections");
}

#[test]
fn probes_are_answered_beside_requests_that_trickle_in() {
    on_both_ports(PATHS, 1000, trickle, "trickling requests");
}

#[test]
fn probes_are_answered_beside_unread_responses() {
    on_both_ports(PATHS, 300, ask_and_do_not_read, "unread responses");
}

#[test]
fn probes_are_answered_beside_a_flood_of_scrapes() {
    on_both_ports(&["/health", "/ready", "/accepting"], 200, ask_and_leave, "scrapes");
}

#[test]
fn probes_are_answered_beside_a_flood_of_operators_requests() {
    allow_descriptors(4096);
    let world = World::without_topics();
    let pod = world.pod("pod-0").with_admin(TOKEN).set("LOG", "warn").start();
    let _clients: Vec<_> = (0..200).map(|_| pod.market_client()).collect();
    let operators = pod.plan().operators();
    all_are_answered(PATHS, operators, 200, ask_as_operator, "operators' requests");
    let answer = eventually("an operator is answered", READY_WITHIN, || {
        Some(pod.operator(TOKEN, "GET", "/connections", "")).filter(|answer| answer.status == 200)
    });
    assert_eq!(answer.json()["connections"].as_array().map(Vec::len), Some(100));
}
