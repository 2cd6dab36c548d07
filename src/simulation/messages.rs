//! A pod's messages, as a client reads them. Parsed by hand: there are thousands of worlds, and a JSON value for each
//! message would cost more than everything else.

use memchr::memrchr;

/// Opcodes of frames.
pub(super) const TEXT: u8 = 1;
pub(super) const CLOSE: u8 = 8;

/// A text message.
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
    /// Redirect to this pod.
    Redirect {
        to: usize,
    },
    /// A message that no client of the simulation may get.
    Other,
}

/// Returns opcode and payload of the first frame, and the bytes behind it; `None` if it is incomplete.
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
    // This relies on the gateway's order of fields. A search in the whole text would cost as much as everything else
    // that a client does.
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

/// Returns the cursor in a text: its last field.
pub(super) fn cursor(text: &[u8]) -> Option<&str> {
    let value = text.strip_suffix(br#""}"#)?;
    let begins = memrchr(b'"', value)? + 1;
    let is_cursor = value[..begins].ends_with(br#""cursor":""#);
    std::str::from_utf8(&value[begins..]).ok().filter(|_| is_cursor)
}

/// Returns the bytes behind the first occurrence of a pattern.
fn after<'a>(text: &'a [u8], pattern: &[u8]) -> Option<&'a [u8]> {
    let at = text.windows(pattern.len()).position(|window| window == pattern)?;
    Some(&text[at + pattern.len()..])
}
