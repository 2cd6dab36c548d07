//! How connections end on the wire if the other side does not cooperate.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use loadtest::client::WITHIN;
use loadtest::client::raw::{Raw, RawFrame, Sent, opcode};
use loadtest::pods::{Pod, World};
use loadtest::process::{always, eventually};

/// A topic of the built-in routes.
const TOPIC: &str = "assessment.balance-updated";

/// Input after a close that a pod reads at most: its own limit and the buffers of both kernels.
const FLOOD_BYTES_MAX: usize = 64 << 20;

/// A world and a pod that aborts a connection after one stalled second.
fn impatient_pod() -> (World, Pod) {
    let world = World::without_topics();
    world.kafka.create(TOPIC, 1);
    let pod = world.pod("pod-0").set("STALL_TIMEOUT_MS", "1000").start();
    (world, pod)
}

/// A client with a small receive buffer. It gets one event of about this many bytes and reads none of it.
fn full_client(world: &World, pod: &Pod, bytes: usize) -> Raw {
    let client = Raw::upgraded(&pod.ask().assessment("a").receive_buffer(4096));
    let payload = format!(r#"{{"assessmentId":"a","currentBalance":1,"timestamp":"{}"}}"#, "f".repeat(bytes));
    let producer = world.producer();
    producer.send(TOPIC, Some("a"), Some(payload.as_bytes()));
    producer.flush();
    eventually("its socket is full", WITHIN, || is_unread(pod, &client).then_some(()));
    client
}

/// Lines of the kernel's table of TCP sockets for a pod's end of a connection, by column (proc_pid_net(5)).
fn sockets_to(pod: &Pod, client: SocketAddr) -> Vec<Vec<String>> {
    let hex = |address: SocketAddr| match address.ip() {
        std::net::IpAddr::V4(ip) => format!("{:08X}:{:04X}", u32::from_le_bytes(ip.octets()), address.port()),
        std::net::IpAddr::V6(_) => panic!("the tests use IPv4"),
    };
    let (local, remote) = (hex(pod.address()), hex(client));
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp exists");
    let lines = table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|columns| columns.get(1) == Some(&local) && columns.get(2) == Some(&remote)).collect()
}

/// Whether the pod's kernel holds bytes that the client's kernel has not accepted.
fn is_unread(pod: &Pod, client: &Raw) -> bool {
    sockets_to(pod, client.address()).iter().any(|columns| !columns[4].starts_with("00000000:"))
}

/// Waits until the kernel has no state of a connection whose other end is still open.
#[track_caller]
fn expect_forgotten(pod: &Pod, client: &Raw) {
    pod.await_metric("websocket_connections_total", 0.0);
    eventually("the kernel has no state of it", WITHIN, || sockets_to(pod, client.address()).is_empty().then_some(()));
}

#[test]
fn an_aborted_connection_leaves_no_kernel_state() {
    let (world, pod) = impatient_pod();
    let client = full_client(&world, &pod, 400_000);
    expect_forgotten(&pod, &client);
    assert_eq!(pod.metrics().sum("shardgate_connections_closed_total"), 1.0);
}

#[test]
fn a_closed_connection_that_reads_nothing_leaves_no_kernel_state() {
    let (world, pod) = impatient_pod();
    // All of it fits the kernel's buffers, with room for the close frame.
    let mut client = full_client(&world, &pod, 60_000);
    client.send_frames(&[RawFrame::new(opcode::BINARY, "x")]);
    expect_forgotten(&pod, &client);
}

#[test]
fn a_connection_dropped_by_its_client_leaves_no_kernel_state() {
    let (world, pod) = impatient_pod();
    let mut client = full_client(&world, &pod, 60_000);
    client.finish();
    expect_forgotten(&pod, &client);
}

#[test]
fn a_closed_connection_that_reads_slowly_gets_everything() {
    let (world, pod) = impatient_pod();
    let mut client = full_client(&world, &pod, 60_000);
    client.send_frames(&[RawFrame::new(opcode::BINARY, "x")]);
    pod.await_metric("websocket_connections_total", 0.0);
    always("the pod waits for it", Duration::from_millis(500), || is_unread(&pod, &client));
    let Sent::Text(text) = client.next_answer() else { panic!("the event") };
    assert!(text.len() > 60_000);
    assert_eq!((client.next_answer(), client.receive()), (Sent::Close(1003), Sent::End));
}

#[test]
fn input_after_close_is_read_within_a_limit() {
    let (world, pod) = impatient_pod();
    let noise = vec![0; 1 << 20];
    let mut refused = Raw::connect(&pod.ask().without_token());
    refused.send(pod.ask().without_token().head().as_bytes());
    refused.expect_upgrade();
    let taken = refused.flood(&noise, Duration::from_secs(1));
    assert!(taken < FLOOD_BYTES_MAX, "{taken} bytes of a refused client");
    // Its close frame waits behind an event that the client does not read.
    let mut broken = full_client(&world, &pod, 400_000);
    broken.send_frames(&[RawFrame::new(opcode::BINARY, "x")]);
    let taken = broken.flood(&noise, Duration::from_secs(1));
    assert!(taken < FLOOD_BYTES_MAX, "{taken} bytes of a client that broke the protocol");
}
