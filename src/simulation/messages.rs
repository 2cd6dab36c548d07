//! What a pod sends, as a client reads it. Picked out by hand: there are thousands of worlds, and a JSON value for each
//! message would cost more than all the rest.

use memchr::memrchr;

/// A frame's opcode.
pub(super) const TEXT: u8 = 1;
pub(super) const CLOSE: u8 = 8;

/// What a text says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ServerMessage<'a> {
    Connected {
        resumed: bool,
    },
    Event {
        number: usize,
    },
    Ping,
    Reset {
        reason: &'a str,
    },
    /// To this pod.
    Redirect {
        to: usize,
    },
    /// What no client of the simulation is to get.
    Other,
}

/// The first frame's opcode and payload, and what comes behind it; `None` while it is not whole.
pub(super) fn frame(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[first, len], rest) = bytes.split_first_chunk()?;
    let (len, rest) = match len {
        126 => rest.split_first_chunk().map(|(&len, rest)| (usize::from(u16::from_be_bytes(len)), rest))?,
        len => (usize::from(len), rest),
    };
    let (payload, rest) = rest.split_at_checked(len)?;
    Some((first & 0x0f, payload, rest))
}

/// Reads a text.
pub(super) fn read(text: &[u8]) -> ServerMessage<'_> {
    // The fields' order is the gateway's own; and a search in the whole text costs as much as all else that a client
    // does.
    if let Some(number) = text.strip_prefix(br#"{"type":"event","n":"#) {
        let digits = number.iter().take_while(|byte| byte.is_ascii_digit());
        return ServerMessage::Event { number: digits.fold(0, |sum, &digit| sum * 10 + usize::from(digit - b'0')) };
    }
    if text.starts_with(br#"{"type":"ping""#) {
        return ServerMessage::Ping;
    }
    if text.starts_with(br#"{"type":"connected""#) {
        return ServerMessage::Connected { resumed: after(text, br#""resumed":true"#).is_some() };
    }
    if let Some(rest) = text.strip_prefix(br#"{"type":"reset","reason":""#) {
        let reason = rest.split(|&byte| byte == b'"').next().unwrap_or_default();
        return ServerMessage::Reset { reason: std::str::from_utf8(reason).unwrap_or_default() };
    }
    let url = text.starts_with(br#"{"error":"Redirect""#).then(|| after(text, br#""url":"ws://p"#)).flatten();
    url.and_then(|url| url.first())
        .map_or(ServerMessage::Other, |&digit| ServerMessage::Redirect { to: usize::from(digit - b'0') })
}

/// The cursor that a text carries: its last field.
pub(super) fn cursor(text: &[u8]) -> Option<&str> {
    let value = text.strip_suffix(br#""}"#)?;
    let begins = memrchr(b'"', value)? + 1;
    let is_cursor = value[..begins].ends_with(br#""cursor":""#);
    std::str::from_utf8(&value[begins..]).ok().filter(|_| is_cursor)
}

/// What follows the first place of a pattern.
fn after<'a>(text: &'a [u8], pattern: &[u8]) -> Option<&'a [u8]> {
    let at = text.windows(pattern.len()).position(|window| window == pattern)?;
    Some(&text[at + pattern.len()..])
}
