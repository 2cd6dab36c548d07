//! WebSocket frames from a client.

use shardgate::limits::CONTROL_PAYLOAD_BYTES_MAX;
use shardgate::protocol::close::CloseReason;
use shardgate::protocol::session::{Inbound, Session};

/// A session's outcome for some bytes.
type Outcome = (Vec<Inbound>, Result<(), CloseReason>, Option<u16>);

/// The first byte chooses the limit of a message, the second how the bytes are split into reads. If the lowest bit of
/// the first byte is set, the rest is not the bytes on the wire but chooses valid frames for the wire.
pub fn frames(data: &[u8]) {
    let [mode, cut, rest @ ..] = data else { return };
    let message_bytes_max = 1 << (mode >> 4);
    if mode & 1 == 1 {
        return valid_frames(rest, *cut);
    }
    let whole = receive(message_bytes_max, rest, rest.len());
    assert_eq!(receive(message_bytes_max, rest, usize::from(*cut)), whole, "the split into reads does not matter");
    let (inbound_frames, result, close_code) = whole;
    assert!(!matches!(result, Err(CloseReason::Internal)), "no input of a client is an internal error");
    assert!(close_code.is_none() || result == Err(CloseReason::ClientClosed));
    // 1005, 1006 and 1015 are never on the wire, others are reserved (RFC 6455 section 7.4).
    let may_be_sent = |code| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    assert!(close_code.is_none_or(may_be_sent), "{close_code:?} would be echoed");
    for inbound in inbound_frames {
        if let Inbound::ControlPing(payload) = inbound {
            assert!(payload.len() <= CONTROL_PAYLOAD_BYTES_MAX);
        }
    }
}

/// Valid frames are parsed as what they are.
fn valid_frames(plan: &[u8], cut: u8) {
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
    let (inbound_frames, result, close_code) = receive(4096, &wire, usize::from(cut));
    assert_eq!((inbound_frames, result, close_code), (expected, Ok(()), None));
}

/// A masked frame of fewer than 126 bytes.
fn push(wire: &mut Vec<u8>, first: u8, payload: &[u8], key: [u8; 4]) {
    let len = u8::try_from(payload.len()).expect("a short frame");
    wire.extend([first, 0x80 | len]);
    wire.extend(key);
    wire.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
}

fn receive(message_bytes_max: usize, wire: &[u8], step: usize) -> Outcome {
    let (mut session, mut inbound_frames) = (Session::new(message_bytes_max), Vec::new());
    let result = wire
        .chunks(step.max(1))
        .try_for_each(|read| session.receive(read, &mut |inbound| inbound_frames.push(inbound)));
    (inbound_frames, result, session.close_code())
}
