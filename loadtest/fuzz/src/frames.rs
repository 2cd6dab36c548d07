//! WebSocket frames from a client.

use shardgate::limits::CONTROL_PAYLOAD_BYTES_MAX;
use shardgate::protocol::close::CloseReason;
use shardgate::protocol::session::{Inbound, Session};

/// What a session tells of some bytes.
type Told = (Vec<Inbound>, Result<(), CloseReason>, Option<u16>);

/// The first byte chooses the bound of a message, the second one how the bytes are cut into reads. With the lowest bit
/// of the first one set, the rest is not the wire's bytes but says which good frames are on the wire.
pub fn frames(data: &[u8]) {
    let [mode, cut, rest @ ..] = data else { return };
    let message_bytes_max = 1 << (mode >> 4);
    if mode & 1 == 1 {
        return good_frames(rest, *cut);
    }
    let whole = receive(message_bytes_max, rest, rest.len());
    assert_eq!(receive(message_bytes_max, rest, usize::from(*cut)), whole, "however it is cut into reads");
    let (told, result, goodbye) = whole;
    assert!(!matches!(result, Err(CloseReason::Internal)), "no client's bytes are our fault");
    assert!(goodbye.is_none() || result == Err(CloseReason::ClientClosed));
    // 1005, 1006 and 1015 are never on the wire, others are reserved (RFC 6455 section 7.4).
    let may_be_sent = |code| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    assert!(goodbye.is_none_or(may_be_sent), "{goodbye:?} would be echoed");
    for inbound in told {
        if let Inbound::ControlPing(payload) = inbound {
            assert!(payload.len() <= CONTROL_PAYLOAD_BYTES_MAX);
        }
    }
}

/// Frames that keep every rule are understood, and told as what they are.
fn good_frames(plan: &[u8], cut: u8) {
    let (mut wire, mut expected) = (Vec::new(), Vec::new());
    for chunk in plan.chunks(4).take(64) {
        let [kind, len, mask @ ..] = chunk else { break };
        let key = [mask.first().copied().unwrap_or(0), mask.get(1).copied().unwrap_or(0), *kind, *len];
        let payload = vec![b'x'; usize::from(*len) % (CONTROL_PAYLOAD_BYTES_MAX + 1)];
        match kind % 6 {
            0 => (push(&mut wire, 0x81, br#"{"type":"ping"}"#, key), expected.push(Inbound::Ping)),
            1 => (push(&mut wire, 0x81, br#"{"type":"pong"}"#, key), expected.push(Inbound::Pong)),
            2 => (push(&mut wire, 0x81, &payload, key), expected.push(Inbound::BadMessage)),
            3 => (push(&mut wire, 0x89, &payload, key), expected.push(Inbound::ControlPing(payload.into()))),
            4 => (push(&mut wire, 0x8a, &payload, key), expected.push(Inbound::ControlPong)),
            _ => {
                push(&mut wire, 0x01, br#"{"type":"#, key);
                push(&mut wire, 0x89, &payload, key);
                push(&mut wire, 0x80, br#""ping"}"#, key);
                let ping = Inbound::ControlPing(payload.into());
                ((), expected.extend([Inbound::Fragment, ping, Inbound::Ping]))
            }
        };
    }
    let (told, result, goodbye) = receive(4096, &wire, usize::from(cut));
    assert_eq!((told, result, goodbye), (expected, Ok(()), None));
}

/// A masked frame of fewer than 126 bytes.
fn push(wire: &mut Vec<u8>, first: u8, payload: &[u8], key: [u8; 4]) {
    let len = u8::try_from(payload.len()).expect("a short frame");
    wire.extend([first, 0x80 | len]);
    wire.extend(key);
    wire.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
}

fn receive(message_bytes_max: usize, wire: &[u8], step: usize) -> Told {
    let (mut session, mut told) = (Session::new(message_bytes_max), Vec::new());
    let result = wire.chunks(step.max(1)).try_for_each(|read| session.receive(read, &mut |inbound| told.push(inbound)));
    (told, result, session.close_code())
}
