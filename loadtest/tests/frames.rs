//! Violations of RFC 6455, and the limits on what a client sends.

use std::time::{Duration, Instant};

use loadtest::client::WITHIN;
use loadtest::client::raw::{Raw, RawFrame, Sent, opcode};
use loadtest::pods::{Pod, World};
use loadtest::process::eventually;
use opcode::{BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT};

/// MAX_MESSAGE_BYTES by default.
const MESSAGE_BYTES_MAX: usize = 4096;

fn upgraded(pod: &Pod) -> Raw {
    Raw::upgraded(&pod.ask().assessment("frames"))
}

fn text(payload: &str) -> RawFrame {
    RawFrame::new(TEXT, payload)
}

#[test]
fn each_violation_has_its_close_code() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let bad_utf8: &[&[u8]] = &[b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"];
    let mut rules: Vec<(String, Vec<RawFrame>, u16)> = vec![
        ("an unmasked frame".into(), vec![RawFrame { masked: false, ..text("{}") }], 1002),
        ("a ping that is fragmented".into(), vec![RawFrame::new(PING, "").unfinished()], 1002),
        ("a close that is fragmented".into(), vec![RawFrame::close(1000, b"").unfinished()], 1002),
        ("a ping of 126 bytes".into(), vec![RawFrame::new(PING, vec![0; 126])], 1002),
        ("a close of 126 bytes".into(), vec![RawFrame::close(1000, &[b'x'; 124])], 1002),
        ("a continuation without a message".into(), vec![RawFrame::new(CONTINUATION, "x")], 1002),
        ("a text within a text".into(), vec![text("{").unfinished(), text("}")], 1002),
        ("binary data".into(), vec![RawFrame::new(BINARY, "x")], 1003),
        (
            "binary data in parts".into(),
            vec![RawFrame::new(BINARY, "x").unfinished(), RawFrame::new(CONTINUATION, "")],
            1003,
        ),
        ("a close of one byte".into(), vec![RawFrame::new(CLOSE, "x")], 1002),
        ("a close with a text that is not UTF-8".into(), vec![RawFrame::close(1000, b"\xff")], 1007),
        ("a text that ends within a character".into(), vec![RawFrame::new(TEXT, &b"\xe2\x82"[..])], 1007),
        (
            "a split character that the next part does not complete".into(),
            vec![RawFrame::new(TEXT, &b"\xe2\x82"[..]).unfinished(), RawFrame::new(CONTINUATION, "x")],
            1007,
        ),
        ("a message too large".into(), vec![text(&"x".repeat(MESSAGE_BYTES_MAX + 1))], 1009),
        (
            "parts that are too large together".into(),
            vec![text(&"x".repeat(MESSAGE_BYTES_MAX)).unfinished(), RawFrame::new(CONTINUATION, "x")],
            1009,
        ),
    ];
    for bytes in bad_utf8 {
        rules.push((format!("{bytes:x?}, invalid UTF-8"), vec![RawFrame::new(TEXT, *bytes)], 1007));
    }
    for rsv in [1, 2, 4] {
        rules.push((format!("the reserved bits {rsv}"), vec![RawFrame { rsv, ..text("{}") }], 1002));
    }
    for opcode in (3..8).chain(11..16) {
        rules.push((format!("the reserved opcode {opcode}"), vec![RawFrame::new(opcode, "")], 1002));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        rules.push((format!("the close code {code}, which must not be sent"), vec![RawFrame::close(code, b"")], 1002));
    }
    for (rule, frames, code) in rules {
        let mut raw = upgraded(&pod);
        raw.send_frames(&frames);
        assert_eq!(raw.next_answer(), Sent::Close(code), "{rule}");
        assert_eq!(raw.receive(), Sent::End, "{rule}: nothing follows a close");
    }
    pod.await_metric("websocket_connections_total", 0.0);
}

#[test]
fn an_excessive_length_is_refused_by_the_frame_header_alone() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    for (length, codes) in [(u64::MAX, &[1002, 1009]), (1 << 40, &[1009, 1009]), (65_536, &[1009, 1009])] {
        let mut raw = upgraded(&pod);
        raw.send(&[&[0x81, 0xff][..], &length.to_be_bytes(), &[1, 2, 3, 4]].concat());
        let answer = raw.next_answer();
        assert!(codes.iter().any(|code| answer == Sent::Close(*code)), "{length} bytes: {answer:?}");
    }
}

#[test]
fn a_close_frame_is_answered_with_its_own_code() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    for code in [1000, 1001, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 4999] {
        let mut raw = upgraded(&pod);
        raw.send_frames(&[RawFrame::close(code, "goodbye é".as_bytes())]);
        assert_eq!(raw.next_answer(), Sent::Close(code));
        assert_eq!(raw.receive(), Sent::End);
    }
    let mut raw = upgraded(&pod);
    raw.send_frames(&[RawFrame::new(CLOSE, "")]);
    let answer = raw.next_answer();
    assert!(matches!(answer, Sent::Close(1005 | 1000)), "{answer:?}");
    assert_eq!(raw.receive(), Sent::End);
}

#[test]
fn control_frames_may_come_between_the_parts_of_a_message() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let mut raw = upgraded(&pod);
    let largest = vec![b'p'; 125];
    raw.send_frames(&[
        text("{\"type\"").unfinished(),
        RawFrame::new(PING, ""),
        RawFrame::new(CONTINUATION, ":").unfinished(),
        RawFrame::new(PONG, "unsolicited"),
        RawFrame::new(CONTINUATION, "").unfinished(),
        RawFrame::new(PING, largest.clone()),
        RawFrame::new(CONTINUATION, "\"ping\"}"),
    ]);
    assert_eq!(raw.next_answer(), Sent::Pong(largest), "the newest ping is answered");
    let Sent::Text(pong) = raw.next_answer() else { panic!("the message counts when it is complete") };
    assert!(pong.contains(r#""type":"pong""#), "{pong}");

    // A fragment may end within a character, and everything may arrive a byte at a time.
    let message = r#"{"type":"é"}"#.as_bytes();
    let within = message.iter().position(|byte| *byte == 0xc3).unwrap() + 1;
    let (first, rest) = message.split_at(within);
    let frames =
        [RawFrame::new(TEXT, first).unfinished(), RawFrame::new(CONTINUATION, rest), RawFrame::new(PING, "end")];
    for byte in frames.iter().flat_map(RawFrame::bytes) {
        raw.send(&[byte]);
    }
    assert_eq!(raw.next_answer(), Sent::Pong(b"end".to_vec()));
    // A message of the maximum size is accepted.
    let fill = MESSAGE_BYTES_MAX - r#"{"type":"x","fill":""}"#.len();
    raw.send_frames(&[
        text(&format!(r#"{{"type":"x","fill":"{}"}}"#, "f".repeat(fill))),
        RawFrame::new(PING, "accepted"),
    ]);
    assert_eq!(raw.next_answer(), Sent::Pong(b"accepted".to_vec()));
    pod.await_metric("websocket_messages_received_total", 3.0);
}

#[test]
fn bad_messages_are_answered_once_a_second_and_unknown_types_are_ignored() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    for bad in ["", "no JSON", "[]", "\"type\"", "{}", r#"{"type":1}"#, r#"{"type":null}"#, r#"{"type":"ping""#] {
        let mut raw = upgraded(&pod);
        raw.send_frames(&[text(bad), text(bad), text(bad), text(r#"{"type":"ping"}"#)]);
        let mut answers = [raw.next_answer(), raw.next_answer()].map(|answer| match answer {
            Sent::Text(text) => serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            other => panic!("{bad:?} is answered, and the connection stays open: {other:?}"),
        });
        answers.sort_by_key(|answer| answer["type"] == "pong");
        assert_eq!(
            (&answers[0]["error"], &answers[1]["type"]),
            (&"BadMessage".into(), &"pong".into()),
            "{bad:?}, once"
        );
        assert!(answers[0]["message"].is_string());
    }
    let mut raw = upgraded(&pod);
    raw.send_frames(&[text(r#"{"more":{"a":[1]},"type":"subscribe"}"#), RawFrame::new(PING, "x")]);
    assert_eq!(raw.next_answer(), Sent::Pong(b"x".to_vec()), "ignored");
}

#[test]
fn a_client_over_the_message_rate_is_closed() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").set("INBOUND_PER_SECOND", "5").start();
    let message = text(r#"{"type":"pong"}"#);
    let mut keeps_the_burst = upgraded(&pod);
    keeps_the_burst.send_frames(&vec![message.clone(); 9]);
    keeps_the_burst.send_frames(&[RawFrame::new(PING, "still here")]);
    assert_eq!(keeps_the_burst.next_answer(), Sent::Pong(b"still here".to_vec()), "a burst of twice the rate");

    let mut over = upgraded(&pod);
    over.send_frames(&vec![message; 30]);
    assert_eq!(over.next_answer(), Sent::Close(1008));
    assert_eq!(over.receive(), Sent::End);
}

#[test]
fn frames_of_one_packet_are_answered_in_one_write() {
    const ROUNDS: usize = 20;
    let world = World::without_topics();
    let pod = world.pod("pod-0").set("INBOUND_PER_SECOND", "1000").start();
    let mut raw = upgraded(&pod);
    raw.send_frames(&[RawFrame::new(PING, "begin")]);
    assert_eq!(raw.next_answer(), Sent::Pong(b"begin".to_vec()));
    let writes = || pod.metrics().sum("shardgate_socket_writes_total");
    let before = writes();
    for round in 0..ROUNDS {
        let mut frames = vec![RawFrame::new(PING, ""); 60];
        frames.extend([text(r#"{"type":"ping"}"#), text("no message"), text(r#"{"type":"ping"}"#)]);
        frames.push(RawFrame::new(PING, round.to_string()));
        raw.send_frames(&frames);
        let mut next = || loop {
            match raw.next_answer() {
                // Sent once per second.
                Sent::Text(text) if text.contains("BadMessage") => {}
                answer => return answer,
            }
        };
        assert_eq!(next(), Sent::Pong(round.to_string().into_bytes()));
        let Sent::Text(pong) = next() else { panic!("one pong") };
        assert!(pong.contains(r#""type":"pong""#), "{pong}");
    }
    let eventually_same = || (writes() - before >= ROUNDS as f64).then(|| writes() - before);
    let writes = eventually("the writes are counted", WITHIN, eventually_same);
    assert!(writes <= 2.0 * ROUNDS as f64, "{writes} writes for {ROUNDS} packets of 64 frames");
}

#[test]
fn a_vanished_client_is_closed_by_heartbeat_timeout() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let started = Instant::now();
    let clients: Vec<_> = (0..20).map(|_| upgraded(&pod)).collect();
    pod.await_metric("websocket_connections_total", 20.0);
    drop(clients);
    pod.await_metric("websocket_connections_total", 0.0);
    assert!(started.elapsed() < Duration::from_secs(10), "by its socket, not by the heartbeat");
}
