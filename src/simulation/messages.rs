//! What a pod sends, as a client reads it. Picked out by hand: there are thousands of worlds, and a JSON value for each
//! message would cost more than all the rest.

use memchr::memmem;

/// A frame's opcode.
pub(super) const TEXT: u8 = 1;
pub(super) const CLOSE: u8 = 8;

/// What a text says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
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
pub(super) fn read(text: &[u8]) -> Message<'_> {
    if let Some(number) = after(text, br#""n":"#) {
        let digits = number.iter().take_while(|byte| byte.is_ascii_digit());
        return Message::Event { number: digits.fold(0, |sum, &digit| sum * 10 + usize::from(digit - b'0')) };
    }
    if let Some(url) = after(text, br#""url":"ws://p"#) {
        return url.first().map_or(Message::Other, |&digit| Message::Redirect { to: usize::from(digit - b'0') });
    }
    if text.starts_with(br#"{"type":"ping""#) {
        return Message::Ping;
    }
    if text.starts_with(br#"{"type":"connected""#) {
        return Message::Connected { resumed: memmem::find(text, br#""resumed":true"#).is_some() };
    }
    if text.starts_with(br#"{"type":"reset""#) {
        return Message::Reset { reason: string(text, br#""reason":""#).unwrap_or_default() };
    }
    Message::Other
}

/// The cursor that a text carries.
pub(super) fn cursor(text: &[u8]) -> Option<&str> {
    string(text, br#""cursor":""#)
}

/// The string that a pattern begins; none of ours has an escape.
fn string<'a>(text: &'a [u8], pattern: &[u8]) -> Option<&'a str> {
    let value = after(text, pattern)?.split(|&byte| byte == b'"').next()?;
    std::str::from_utf8(value).ok()
}

/// What follows the first place of a pattern.
fn after<'a>(text: &'a [u8], pattern: &[u8]) -> Option<&'a [u8]> {
    memmem::find(text, pattern).map(|at| &text[at + pattern.len()..])
}
