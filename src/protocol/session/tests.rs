//! RFC 6455's rules as a table, and properties that hold for any bytes.

use proptest::prelude::*;

use super::*;

const MESSAGE_BYTES_MAX: usize = 1024;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// First bytes of frames.
const TEXT: u8 = 0x81;
const TEXT_MORE: u8 = 0x01;
const CONTINUE: u8 = 0x80;
const CONTINUE_MORE: u8 = 0x00;
const BINARY: u8 = 0x82;
const BINARY_MORE: u8 = 0x02;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// A client's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..=125 => bytes.push(0x80 | u8::try_from(len).unwrap()),
        len @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
        }
        len => {
            bytes.push(0x80 | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

fn close(code: u16, text: &[u8]) -> Vec<u8> {
    frame(CLOSE, &[&code.to_be_bytes(), text].concat())
}

/// Feeds a session these pieces; returns what it reports.
fn receive<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Inbound>, Result<(), CloseReason>) {
    let mut session = Session::new(MESSAGE_BYTES_MAX);
    let mut events = Vec::new();
    for piece in pieces {
        if let Err(reason) = session.receive(piece, &mut |inbound| events.push(inbound)) {
            return (events, Err(reason));
        }
    }
    (events, Ok(()))
}

/// The same, and checks that the result does not change if fed byte by byte.
fn receive_both_ways(bytes: &[u8]) -> (Vec<Inbound>, Result<(), CloseReason>) {
    let whole = receive([bytes]);
    assert_eq!(receive(bytes.chunks(1)), whole, "byte by byte the result is the same");
    whole
}

/// A row: name, input, events, result.
type Row = (&'static str, Vec<Vec<u8>>, Vec<Inbound>, Result<(), CloseReason>);

fn rows_of_good_frames() -> Vec<Row> {
    use Inbound::{ControlPing, ControlPong, Fragment, Other, Ping, Pong};
    let big = format!(r#"{{"type":"x","pad":"{}"}}"#, "p".repeat(MESSAGE_BYTES_MAX - 21));
    assert_eq!(big.len(), MESSAGE_BYTES_MAX);
    vec![
        ("a text", vec![frame(TEXT, br#"{"type":"ping"}"#)], vec![Ping], Ok(())),
        (
            "texts side by side",
            vec![frame(TEXT, br#"{"type":"pong"}"#), frame(TEXT, br#"{"type":"x"}"#)],
            vec![Pong, Other],
            Ok(()),
        ),
        ("a text of the largest size", vec![frame(TEXT, big.as_bytes())], vec![Other], Ok(())),
        (
            "a text in fragments with control frames between",
            vec![
                frame(TEXT_MORE, br#"{"type""#),
                frame(PING, b"1"),
                frame(CONTINUE_MORE, b""),
                frame(PONG, b""),
                frame(CONTINUE, br#":"ping"}"#),
                frame(TEXT, br#"{"type":"pong"}"#),
            ],
            vec![Fragment, ControlPing((*b"1").into()), Fragment, ControlPong, Ping, Pong],
            Ok(()),
        ),
        (
            "a character split by fragments",
            vec![frame(TEXT_MORE, b"{\"type\":\"\xe2"), frame(CONTINUE_MORE, b"\x82"), frame(CONTINUE, b"\xac\"}")],
            vec![Fragment, Fragment, Other],
            Ok(()),
        ),
        (
            "the longest ping",
            vec![frame(PING, &[b'p'; CONTROL_PAYLOAD_BYTES_MAX])],
            vec![ControlPing([b'p'; CONTROL_PAYLOAD_BYTES_MAX].into())],
            Ok(()),
        ),
        ("an unsolicited pong", vec![frame(PONG, b"hello")], vec![ControlPong], Ok(())),
        ("an empty ping", vec![frame(PING, b"")], vec![ControlPing([].into())], Ok(())),
    ]
}

fn rows_of_bad_frames() -> Vec<Row> {
    use CloseReason::ProtocolError;
    use Inbound::{Fragment, Ping};
    let unmasked = vec![TEXT, 2, b'{', b'}'];
    let long_form = [&[TEXT, 0x80 | 126, 0, 2][..], &MASK, &[0; 2]].concat();
    let longer_form = [&[TEXT, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 200][..], &MASK].concat();
    vec![
        ("an unmasked frame", vec![unmasked], vec![], Err(ProtocolError)),
        ("reserved bit 1", vec![frame(TEXT | 0x40, b"{}")], vec![], Err(ProtocolError)),
        ("reserved bit 2", vec![frame(TEXT | 0x20, b"{}")], vec![], Err(ProtocolError)),
        ("reserved bit 3", vec![frame(PING | 0x10, b"")], vec![], Err(ProtocolError)),
        ("a ping in fragments", vec![frame(PING & 0x7f, b"")], vec![], Err(ProtocolError)),
        ("a close in fragments", vec![frame(CLOSE & 0x7f, b"")], vec![], Err(ProtocolError)),
        ("a ping of 126 bytes", vec![frame(PING, &[0; 126])], vec![], Err(ProtocolError)),
        ("a close of 126 bytes", vec![close(1000, &[b'c'; 124])], vec![], Err(ProtocolError)),
        ("a ping over the message size", vec![frame(PING, &[0; 70_000])[..14].to_vec()], vec![], Err(ProtocolError)),
        ("nothing to continue", vec![frame(CONTINUE, b"{}")], vec![], Err(ProtocolError)),
        (
            "nothing to continue after a whole text",
            vec![frame(TEXT, br#"{"type":"ping"}"#), frame(CONTINUE_MORE, b"{}")],
            vec![Ping],
            Err(ProtocolError),
        ),
        ("a text within a text", vec![frame(TEXT_MORE, b"{"), frame(TEXT, b"{}")], vec![Fragment], Err(ProtocolError)),
        (
            "binary within a text",
            vec![frame(TEXT_MORE, b"{"), frame(BINARY, b"{}")],
            vec![Fragment],
            Err(ProtocolError),
        ),
        ("a length of 2 in two bytes", vec![long_form], vec![], Err(ProtocolError)),
        ("a length of 200 in eight bytes", vec![longer_form], vec![], Err(ProtocolError)),
    ]
}

fn rows_of_bad_messages() -> Vec<Row> {
    use CloseReason::{InvalidText, MessageTooBig, Unsupported};
    use Inbound::Fragment;
    let top_bit = [&[TEXT, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 0][..], &MASK].concat();
    vec![
        ("binary", vec![frame(BINARY, b"{}")], vec![], Err(Unsupported)),
        ("binary, its first fragment", vec![frame(BINARY_MORE, b"")], vec![], Err(Unsupported)),
        ("a text that is not UTF-8", vec![frame(TEXT, b"{\xff}")], vec![], Err(InvalidText)),
        ("a text that ends in a character", vec![frame(TEXT, b"{}\xe2\x82")], vec![], Err(InvalidText)),
        ("an overlong encoding", vec![frame(TEXT, b"\xc0\xaf")], vec![], Err(InvalidText)),
        ("a surrogate", vec![frame(TEXT, b"\xed\xa0\x80")], vec![], Err(InvalidText)),
        (
            "fragments that are not UTF-8: refused at the first",
            vec![frame(TEXT_MORE, b"\xff"), frame(CONTINUE, b"")],
            vec![],
            Err(InvalidText),
        ),
        (
            "fragments that end in a character",
            vec![frame(TEXT_MORE, b"{}\xe2"), frame(CONTINUE, b"\x82")],
            vec![Fragment],
            Err(InvalidText),
        ),
        ("a text too long", vec![frame(TEXT, &[b'x'; MESSAGE_BYTES_MAX + 1])], vec![], Err(MessageTooBig)),
        (
            "a text too long: refused by its header",
            vec![frame(TEXT, &[b'x'; MESSAGE_BYTES_MAX + 1])[..8].to_vec()],
            vec![],
            Err(MessageTooBig),
        ),
        ("a length with its top bit set", vec![top_bit], vec![], Err(MessageTooBig)),
        (
            "fragments too long: refused by the last one's header",
            vec![frame(TEXT_MORE, &[b'x'; MESSAGE_BYTES_MAX]), frame(CONTINUE, b"x")[..6].to_vec()],
            vec![Fragment],
            Err(MessageTooBig),
        ),
    ]
}

fn rows_of_closes() -> Vec<Row> {
    use CloseReason::{ClientClosed, InvalidText, ProtocolError};
    use Inbound::{Fragment, Ping};
    vec![
        ("a close without a code", vec![frame(CLOSE, b"")], vec![], Err(ClientClosed)),
        ("a close with half a code", vec![frame(CLOSE, b"\x03")], vec![], Err(ProtocolError)),
        ("a close with a text", vec![close(1000, "schön".as_bytes())], vec![], Err(ClientClosed)),
        ("the longest close", vec![close(1000, &[b'c'; 123])], vec![], Err(ClientClosed)),
        ("a close with a text that is not UTF-8", vec![close(1000, b"\xff")], vec![], Err(InvalidText)),
        ("a client that reports our protocol error", vec![close(1002, b"unmask!")], vec![], Err(ClientClosed)),
        (
            "bytes behind a close are ignored",
            vec![frame(TEXT, br#"{"type":"ping"}"#), frame(CLOSE, b""), frame(TEXT, br#"{"type":"ping"}"#)],
            vec![Ping],
            Err(ClientClosed),
        ),
        (
            "a close within a fragmented text",
            vec![frame(TEXT_MORE, b"{"), frame(CLOSE, b"")],
            vec![Fragment],
            Err(ClientClosed),
        ),
    ]
}

#[test]
fn frames_mean_what_rfc_6455_says() {
    let rows = [rows_of_good_frames(), rows_of_bad_frames(), rows_of_bad_messages(), rows_of_closes()];
    for (name, frames, events, end) in rows.concat() {
        assert_eq!(receive_both_ways(&frames.concat()), (events, end), "{name}");
    }
}

#[test]
fn every_reserved_opcode_is_refused() {
    for opcode in (0x3..=0x7).chain(0xb..=0xf) {
        let end = receive_both_ways(&frame(0x80 | opcode, b"")).1;
        assert_eq!(end, Err(CloseReason::ProtocolError), "opcode {opcode:#x}");
    }
}

#[test]
fn a_close_code_that_must_not_be_sent_is_refused() {
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999] {
        assert_eq!(receive_both_ways(&close(code, b"")).1, Err(CloseReason::ClientClosed), "code {code}");
    }
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        assert_eq!(receive_both_ways(&close(code, b"")).1, Err(CloseReason::ProtocolError), "code {code}");
    }
}

#[test]
fn a_control_frame_may_be_longer_than_a_message() {
    let mut session = Session::new(1);
    let mut events = Vec::new();
    let end = session.receive(&frame(PING, b"longer"), &mut |inbound| events.push(inbound));
    assert_eq!((events, end), (vec![Inbound::ControlPing((*b"longer").into())], Ok(())));
}

#[test]
fn a_text_is_classified_by_its_type() {
    for (text, meaning) in [
        (r#"{"type":"ping"}"#, Inbound::Ping),
        (r#" {"type":"pong", "more": [1, {"type": 2}]} "#, Inbound::Pong),
        (r#"{"\u0074ype":"\u0070ing"}"#, Inbound::Ping),
        (r#"{"more":1e999,"type":"Ping"}"#, Inbound::Other),
        (r#"{"type":""}"#, Inbound::Other),
        (r#"{"type":"refresh","token":"a.b.c"}"#, Inbound::Refresh(BearerToken("a.b.c".into()))),
        (r#"{"type":"refresh"}"#, Inbound::BadMessage),
        (r#"{"type":"refresh","token":["a.b.c"]}"#, Inbound::BadMessage),
        (r#"{"type":"refresh","token":"a","token":"b"}"#, Inbound::BadMessage),
        (r#"{"type":"ping","type":"ping"}"#, Inbound::BadMessage),
        (r#"{"type":1}"#, Inbound::BadMessage),
        (r#"{"type":null}"#, Inbound::BadMessage),
        (r#"{"Type":"ping"}"#, Inbound::BadMessage),
        (r#"["ping"]"#, Inbound::BadMessage),
        (r#""ping""#, Inbound::BadMessage),
        ("{}", Inbound::BadMessage),
        ("", Inbound::BadMessage),
        (r#"{"type":"ping"} {"type":"ping"}"#, Inbound::BadMessage),
        (r#"{"type":"ping""#, Inbound::BadMessage),
        ("\u{feff}{\"type\":\"ping\"}", Inbound::BadMessage),
    ] {
        assert_eq!(receive_both_ways(&frame(TEXT, text.as_bytes())), (vec![meaning], Ok(())), "{text}");
    }
    let deep = format!(r#"{{"type":"ping","a":{}"#, "[".repeat(900));
    assert_eq!(receive([&*frame(TEXT, deep.as_bytes())]), (vec![Inbound::BadMessage], Ok(())));
}

#[test]
fn a_frame_that_trickles_in_is_not_reported_until_it_is_complete() {
    let bytes = frame(TEXT_MORE, b"trickle");
    let (last, first) = bytes.split_last().unwrap();
    assert_eq!(receive(first.chunks(1)), (vec![], Ok(())));
    assert_eq!(receive([first, &[*last]]), (vec![Inbound::Fragment], Ok(())));
}

#[test]
fn an_idle_session_is_small_and_frees_the_memory_of_a_message() {
    assert!(size_of::<Session>() <= 48, "{} bytes", size_of::<Session>());
    let mut session = Session::new(1 << 20);
    let bytes = frame(TEXT, &vec![b' '; 1 << 20]);
    let (first, rest) = bytes.split_at(1000);
    assert_eq!(session.receive(first, &mut |_| ()), Ok(()));
    assert!(session.context.is_some(), "a message is incomplete");
    assert_eq!(session.receive(rest, &mut |_| ()), Ok(()));
    assert!(session.context.is_none(), "between messages the session uses no heap");
}

/// Frames of any kind, most of them valid, and some noise.
fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        4 => proptest::sample::select(vec![TEXT, TEXT_MORE, CONTINUE, CONTINUE_MORE, PING, PONG]),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        Just(br#"{"type":"ping"}"#.to_vec()),
        "\\PC{0,60}".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..200),
    ];
    let frames = proptest::collection::vec((first, payload).prop_map(|(first, payload)| frame(first, &payload)), 0..6);
    let noise = proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![(frames, noise.clone()).prop_map(|(frames, noise)| [frames.concat(), noise].concat()), noise]
}

/// A text, and where it is split.
fn a_split_text() -> impl Strategy<Value = (String, Vec<prop::sample::Index>)> {
    ("\\PC{0,100}", proptest::collection::vec(any::<prop::sample::Index>(), 0..6))
}

proptest! {
    #[test]
    fn any_bytes_mean_the_same_however_they_are_cut(
        bytes in some_bytes(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let whole = receive_both_ways(&bytes);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        prop_assert_eq!(receive(cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]])), whole);
    }

    #[test]
    fn a_fragmented_text_means_what_it_means_whole((pad, cuts) in a_split_text()) {
        let text = serde_json::json!({ "pad": pad, "type": "pong" }).to_string().into_bytes();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.sort_unstable();
        let mut bytes = Vec::new();
        let mut start = 0;
        for (nth, &cut) in cuts.iter().enumerate() {
            bytes.extend(frame(if nth == 0 { TEXT_MORE } else { CONTINUE_MORE }, &text[start..cut]));
            start = cut;
        }
        bytes.extend(frame(if cuts.is_empty() { TEXT } else { CONTINUE }, &text[start..]));
        let mut events = vec![Inbound::Fragment; cuts.len()];
        events.push(Inbound::Pong);
        prop_assert_eq!(receive([&*bytes]), (events, Ok(())));
    }
}
