//! RFC 6455 conformance as a table: bytes in, answers out. The groups are those of Autobahn's test suite that apply to
//! a gateway that accepts only JSON texts (its sections 2 to 7). `frames.rs` tests our own limits. Within a frame, which
//! has at most `MAX_MESSAGE_BYTES`, bad UTF-8 is found at the frame's end: Autobahn's cases 6.4.3 and 6.4.4 call that
//! "non-strict".

use loadtest::client::raw::{Raw, RawFrame, Sent, opcode};
use loadtest::pods::{Pod, World};
use opcode::{BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT};

/// An answer of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected {
    /// A pong frame with this payload.
    Pong(Vec<u8>),
    /// The text `{"type":"pong"}`.
    TextPong,
    /// The text with `BadMessage`.
    Bad,
    /// A close frame with this code and the end of the connection.
    Close(u16),
}
use Expected::{Bad, Close, Pong, TextPong};

/// One line of the table.
struct Case {
    about: String,
    /// The bytes to send, each part in its own write.
    sent: Vec<Vec<u8>>,
    /// All answers. If they don't end with a close, the connection must still work.
    answers: Vec<Expected>,
}

const PING_TEXT: &str = r#"{"type":"ping"}"#;

fn text(payload: &str) -> RawFrame {
    RawFrame::new(TEXT, payload)
}

fn ping(payload: &[u8]) -> RawFrame {
    RawFrame::new(PING, payload)
}

/// In one write.
fn case(about: impl Into<String>, frames: &[RawFrame], answers: &[Expected]) -> Case {
    let bytes = frames.iter().flat_map(RawFrame::bytes).collect();
    Case { about: about.into(), sent: vec![bytes], answers: answers.to_vec() }
}

/// A byte at a time.
fn dribbled(about: impl Into<String>, frames: &[RawFrame], answers: &[Expected]) -> Case {
    let sent = frames.iter().flat_map(RawFrame::bytes).map(|byte| vec![byte]).collect();
    Case { about: about.into(), sent, answers: answers.to_vec() }
}

/// A JSON object with these bytes as its type. It is valid if they are UTF-8.
fn object(inner: &[u8]) -> Vec<u8> {
    [br#"{"type":""#, inner, br#""}"#].concat()
}

#[track_caller]
fn check(pod: &Pod, case: &Case) {
    let about = &case.about;
    let mut raw = Raw::upgraded(&pod.ask().assessment("conformance"));
    for part in &case.sent {
        raw.send(part);
    }
    for answer in &case.answers {
        let got = match raw.next_answer() {
            Sent::Pong(payload) => Pong(payload),
            Sent::Close(code) => Close(code),
            Sent::Text(text) if text.contains("BadMessage") => Bad,
            Sent::Text(text) if text.contains(r#""type":"pong""#) => TextPong,
            other => panic!("{about}: {other:?} instead of {answer:?}"),
        };
        assert_eq!(got, *answer, "{about}");
    }
    if !matches!(case.answers.last(), Some(Close(_))) {
        raw.send_frames(&[ping(b"still there")]);
        assert_eq!(raw.next_answer(), Sent::Pong(b"still there".to_vec()), "{about}: the connection still works");
        raw.send_frames(&[RawFrame::close(1000, b"")]);
        assert_eq!(raw.next_answer(), Sent::Close(1000), "{about}: and closes normally");
    }
    assert_eq!(raw.receive(), Sent::End, "{about}: nothing follows a close");
}

fn check_all(cases: Vec<Case>) {
    let world = World::without_topics();
    let pod = world.pod("pod-0").set("INBOUND_PER_SECOND", "1000").start();
    for case in cases {
        check(&pod, &case);
    }
    pod.await_metric("websocket_connections_total", 0.0);
}

#[test]
fn pings_and_pongs() {
    let largest = vec![0xfe; 125];
    let ten: Vec<_> = (0..10).map(|number: u8| ping(&[number])).collect();
    check_all(vec![
        case("an empty ping", &[ping(b"")], &[Pong(Vec::new())]),
        case("a ping with a text", &[ping(b"Hello, world!")], &[Pong(b"Hello, world!".to_vec())]),
        case("a ping whose payload is not a text", &[ping(b"\x00\xff\xfe\xfd")], &[Pong(b"\x00\xff\xfe\xfd".to_vec())]),
        case("the largest ping", &[ping(&largest)], &[Pong(largest.clone())]),
        case("a ping that is too long", &[ping(&[0xfe; 126])], &[Close(1002)]),
        dribbled("the largest ping, a byte at a time", &[ping(&largest)], &[Pong(largest.clone())]),
        case("an unsolicited pong", &[RawFrame::new(PONG, "")], &[]),
        case("an unsolicited pong with a payload", &[RawFrame::new(PONG, "unsolicited")], &[]),
        case("a pong, and then a ping", &[RawFrame::new(PONG, "pong"), ping(b"ping")], &[Pong(b"ping".to_vec())]),
        case("ten pings at once: the newest is answered", &ten, &[Pong(vec![9])]),
    ]);
}

/// Autobahn's case 2.11. How many are answered depends on how many the pod reads at a time (RFC 6455 section 5.5.3).
#[test]
fn ten_pings_a_byte_at_a_time_are_answered_in_order_the_last_one_in_any_case() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let mut raw = Raw::upgraded(&pod.ask());
    for byte in (0..10).flat_map(|number: u8| ping(&[number]).bytes()) {
        raw.send(&[byte]);
    }
    let mut answered = Vec::new();
    while answered.last() != Some(&9) {
        match raw.next_answer() {
            Sent::Pong(payload) => answered.push(payload[0]),
            other => panic!("{other:?}"),
        }
    }
    assert!(answered.is_sorted_by(|a, b| a < b), "{answered:?}");
}

#[test]
fn reserved_bits_and_opcodes() {
    let mut cases = Vec::new();
    for rsv in 1..8 {
        for (kind, frame) in [("text", text(PING_TEXT)), ("ping", ping(b"")), ("close", RawFrame::close(1000, b""))] {
            let frame = RawFrame { rsv, ..frame };
            cases.push(case(format!("a {kind} with the reserved bits {rsv}"), &[frame], &[Close(1002)]));
        }
        let frames = [text(PING_TEXT), RawFrame { rsv, ..text(PING_TEXT) }, ping(b"")];
        cases.push(case(format!("a valid text, then reserved bits {rsv}"), &frames, &[Close(1002)]));
        let last = frames.iter().take(2).map(RawFrame::bytes).collect::<Vec<_>>().concat();
        cases.push(Case {
            about: format!("the same with bits {rsv} and nothing behind"),
            sent: vec![last],
            answers: vec![Close(1002)],
        });
    }
    for opcode in (3..8).chain(11..16) {
        for payload in ["", "reserved"] {
            let frame = RawFrame::new(opcode, payload);
            cases.push(case(format!("opcode {opcode} with {payload:?}"), std::slice::from_ref(&frame), &[Close(1002)]));
            cases.push(dribbled(
                format!("opcode {opcode}, a byte at a time"),
                std::slice::from_ref(&frame),
                &[Close(1002)],
            ));
            let behind = [text(PING_TEXT), frame, ping(b"")];
            cases.push(case(format!("a text, then opcode {opcode} with {payload:?}"), &behind, &[Close(1002)]));
        }
    }
    check_all(cases);
}

#[test]
fn fragments() {
    let (begin, end) = (text(r#"{"type""#).unfinished(), RawFrame::new(CONTINUATION, r#":"ping"}"#));
    let middle = RawFrame::new(CONTINUATION, "").unfinished();
    let lone = RawFrame::new(CONTINUATION, "non-continuation");
    let pongs = &[Pong(b"between".to_vec()), TextPong];
    check_all(vec![
        case("a ping in parts", &[ping(b"a").unfinished(), RawFrame::new(CONTINUATION, "b")], &[Close(1002)]),
        case(
            "a pong in parts",
            &[RawFrame::new(PONG, "a").unfinished(), RawFrame::new(CONTINUATION, "b")],
            &[Close(1002)],
        ),
        case("a text in two parts", &[begin.clone(), end.clone()], &[TextPong]),
        dribbled("the same, a byte at a time", &[begin.clone(), end.clone()], &[TextPong]),
        case("a text in three, one of them empty", &[begin.clone(), middle.clone(), end.clone()], &[TextPong]),
        case("a ping between two parts", &[begin.clone(), ping(b"between"), end.clone()], pongs),
        dribbled("the same, a byte at a time", &[begin.clone(), ping(b"between"), end.clone()], pongs),
        case("a continuation without a message", &[lone.clone(), text(PING_TEXT)], &[Close(1002)]),
        case(
            "an unfinished continuation without a message",
            &[lone.clone().unfinished(), text(PING_TEXT)],
            &[Close(1002)],
        ),
        case("a text, then a continuation without a message", &[text("{}"), lone.clone()], &[Close(1002)]),
        case("a text in parts, then one more part", &[begin.clone(), end.clone(), lone], &[Close(1002)]),
        case("a text within a text", &[begin.clone(), text(PING_TEXT)], &[Close(1002)]),
        case("an unfinished text within a text", &[begin.clone(), begin.clone()], &[Close(1002)]),
        case("binary data within a text", &[begin, RawFrame::new(BINARY, "x")], &[Close(1002)]),
    ]);
}

/// Autobahn's cases 5.19 and 5.20.
#[test]
fn pings_between_the_parts_of_a_text_are_answered_before_it_is_complete() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let part = |payload: &str| RawFrame::new(CONTINUATION, payload).unfinished();
    let halves = [
        vec![text(r#"{"type""#).unfinished(), part(":"), ping(b"first")],
        vec![part("\"pi"), part("ng"), ping(b"second"), RawFrame::new(CONTINUATION, "\"}")],
    ];
    for chunk in [usize::MAX, 1] {
        let mut raw = Raw::upgraded(&pod.ask());
        for (half, payload) in halves.iter().zip(["first", "second"]) {
            let bytes: Vec<u8> = half.iter().flat_map(RawFrame::bytes).collect();
            bytes.chunks(chunk.min(bytes.len())).for_each(|part| raw.send(part));
            assert_eq!(raw.next_answer(), Sent::Pong(payload.into()));
        }
        assert!(matches!(raw.next_answer(), Sent::Text(text) if text.contains(r#""type":"pong""#)));
    }
}

/// Texts that are UTF-8.
const GOOD: [&[u8]; 14] = [
    b"plain",
    "Hello-µ@ßöäüàá-UTF-8!!".as_bytes(),
    "κόσμε".as_bytes(),
    b"\x7f",
    b"\xc2\x80",
    b"\xdf\xbf",
    b"\xe0\xa0\x80",
    b"\xed\x9f\xbf",
    b"\xee\x80\x80",
    b"\xef\xbf\xbd",
    b"\xef\xbf\xbf",
    b"\xf0\x90\x80\x80",
    b"\xf4\x8f\xbf\xbf",
    b"\xf0\x9f\xbf\xbe",
];

/// Bytes that are not.
const BAD: [&[u8]; 22] = [
    b"\x80",
    b"\xbf",
    b"\x80\xbf\x80\xbf\x80\xbf\x80",
    b"\xc0 \xc1 ",
    b"\xc0\x80",
    b"\xc1\xbf",
    b"\xce",
    b"\xce\xba\xe1",
    b"\xe0\x80\x80",
    b"\xe0\x9f\xbf",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    b"\xed\xa0\x80\xed\xb0\x80",
    b"\xf0\x80\x80\x80",
    b"\xf0\x8f\xbf\xbf",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
    b"\xfe",
    b"\xff",
    b"\xfe\xfe\xff\xff",
];

#[test]
fn a_text_that_is_not_utf_8_fails_at_once() {
    let mut cases = vec![
        case("an empty text", &[text("")], &[Bad]),
        case("an empty text in parts", &[text("").unfinished(), RawFrame::new(CONTINUATION, "")], &[Bad]),
        case(
            "a text between two empty parts",
            &[
                text("").unfinished(),
                RawFrame::new(CONTINUATION, PING_TEXT).unfinished(),
                RawFrame::new(CONTINUATION, ""),
            ],
            &[TextPong],
        ),
    ];
    for inner in GOOD {
        let (message, about) = (object(inner), format!("{}", inner.escape_ascii()));
        cases.push(case(&about, &[RawFrame::new(TEXT, message.clone())], &[]));
        cases.push(dribbled(format!("{about}, a byte at a time"), &[RawFrame::new(TEXT, message.clone())], &[]));
        let last = message.len() - 1;
        let parts = message.iter().enumerate().map(|(at, byte)| {
            let frame = RawFrame::new(if at == 0 { TEXT } else { CONTINUATION }, [*byte]);
            if at == last { frame } else { frame.unfinished() }
        });
        cases.push(case(format!("{about}, a part for each byte"), &parts.collect::<Vec<_>>(), &[]));
    }
    for inner in BAD {
        let (message, about) = (object(inner), format!("{}", inner.escape_ascii()));
        cases.push(case(&about, &[RawFrame::new(TEXT, message.clone())], &[Close(1007)]));
        cases.push(dribbled(
            format!("{about}, a byte at a time"),
            &[RawFrame::new(TEXT, message.clone())],
            &[Close(1007)],
        ));
        // Only this part is sent: the pod must not wait for the rest of the message.
        let unfinished = RawFrame::new(TEXT, message).unfinished();
        cases.push(case(format!("{about}, with more to come"), &[unfinished], &[Close(1007)]));
    }
    check_all(cases);
}

#[test]
fn closing() {
    let reason = |length: usize| vec![b'*'; length];
    let unfinished = text("{").unfinished();
    let close = RawFrame::close(1000, b"");
    let mut cases = vec![
        case("a message, then a close", &[text("{}"), close.clone()], &[Close(1000)]),
        case("two closes", &[close.clone(), close.clone()], &[Close(1000)]),
        case("a ping behind a close", &[close.clone(), ping(b"late")], &[Close(1000)]),
        case("a text behind a close", &[close.clone(), text(PING_TEXT)], &[Close(1000)]),
        case("a close within a text", &[unfinished.clone(), close, RawFrame::new(CONTINUATION, "}")], &[Close(1000)]),
        case("a close without a code", &[RawFrame::new(CLOSE, "")], &[Close(1000)]),
        case("half a code", &[RawFrame::new(CLOSE, [0x03])], &[Close(1002)]),
        case("a reason", &[RawFrame::close(1000, b"Hello World!")], &[Close(1000)]),
        case("the longest reason", &[RawFrame::close(1000, &reason(123))], &[Close(1000)]),
        case("a reason that is too long", &[RawFrame::close(1000, &reason(124))], &[Close(1002)]),
        case(
            "a reason that is not UTF-8",
            &[RawFrame::close(1000, b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80")],
            &[Close(1007)],
        ),
        case("a close in parts", &[RawFrame::close(1000, b"").unfinished()], &[Close(1002)]),
        case("binary data", &[RawFrame::new(BINARY, "x")], &[Close(1003)]),
        case("an unmasked frame", &[RawFrame { masked: false, ..text(PING_TEXT) }], &[Close(1002)]),
    ];
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
        cases.push(case(format!("the code {code}"), &[RawFrame::close(code, b"")], &[Close(code)]));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
        cases.push(case(format!("the code {code}"), &[RawFrame::close(code, b"")], &[Close(1002)]));
    }
    check_all(cases);
}
