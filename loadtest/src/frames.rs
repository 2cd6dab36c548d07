//! The frames that a WebSocket server sends, found in its bytes as they come, wherever a read cuts them. Nothing is
//! copied but what a read's end cuts, and nothing is parsed: thousands of clients must not be what is measured. Who
//! wants to know what a message says reads its payload; [`MessageKind`] tells by its first bytes what it is.

use std::fmt;

use crate::client::raw::opcode;

/// The longest payload that is taken for one: a record has a mebibyte at most.
const PAYLOAD_BYTES_MAX: u64 = 4 << 20;

/// The longest answer to a handshake.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What a connection has read so far that is no whole frame yet.
#[derive(Debug, Default)]
pub struct Frames {
    is_upgraded: bool,
    /// The start of the answer to the handshake, or of a frame.
    cut: Vec<u8>,
}

/// A whole frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is (RFC 6455 section 5.2).
    pub opcode: u8,
    /// What it carries.
    pub payload: &'a [u8],
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// An assessment's event.
    Event,
    /// A market's price.
    Market,
    /// The first message.
    Connected,
    /// The heartbeat's text, and the answer to one.
    Beat,
    /// Events were lost to this client, and it is told so.
    Reset,
    /// An `error`: a refusal, or a redirect.
    Refusal,
}

/// Bytes that no server sends, or an answer that is no upgrade. The connection is of no more use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The answer to the handshake, where it is not 101.
    Refused(String),
    /// The answer to the handshake has no end.
    EndlessHead,
    /// A frame that is masked, in fragments, or has a reserved bit: its first two bytes.
    Malformed([u8; 2]),
    /// A payload of so many bytes.
    TooLong(u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(answer) => write!(f, "refused: {answer}"),
            Self::EndlessHead => write!(f, "an answer of over {HEAD_BYTES_MAX} bytes to the handshake"),
            Self::Malformed(start) => write!(f, "no server's frame begins with {start:02x?}"),
            Self::TooLong(bytes) => write!(f, "a frame of {bytes} bytes"),
        }
    }
}

impl std::error::Error for Fault {}

/// Where a frame's payload lies.
struct FrameHeader {
    opcode: u8,
    start: usize,
    end: usize,
}

impl FrameHeader {
    /// The header that bytes begin with, where it is whole.
    fn of(bytes: &[u8]) -> Result<Option<Self>, Fault> {
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        if first & 0xf0 != 0x80 || second & 0x80 != 0 {
            return Err(Fault::Malformed([*first, *second]));
        }
        let (start, length) = match second {
            126 => match rest.first_chunk() {
                Some(length) => (4, u64::from(u16::from_be_bytes(*length))),
                None => return Ok(None),
            },
            127 => match rest.first_chunk() {
                Some(length) => (10, u64::from_be_bytes(*length)),
                None => return Ok(None),
            },
            short => (2, u64::from(*short)),
        };
        if length > PAYLOAD_BYTES_MAX {
            return Err(Fault::TooLong(length));
        }
        let length = usize::try_from(length).expect("it is below the bound");
        Ok(Some(Self { opcode: first & 0x0f, start, end: start + length }))
    }

    fn frame<'a>(&self, bytes: &'a [u8]) -> Frame<'a> {
        Frame { opcode: self.opcode, payload: &bytes[self.start..self.end] }
    }
}

impl Frames {
    /// Whether the server has answered with an upgrade.
    #[must_use]
    pub fn is_upgraded(&self) -> bool {
        self.is_upgraded
    }

    /// Takes what was read, and hands over each frame that is whole by then, in order.
    ///
    /// # Errors
    /// The first thing that no server may send; frames before it were handed over.
    pub fn take(&mut self, bytes: &[u8], mut each: impl FnMut(Frame<'_>)) -> Result<(), Fault> {
        let mut rest = if self.is_upgraded { bytes } else { self.take_head(bytes)? };
        if self.is_upgraded && !self.cut.is_empty() {
            rest = self.complete(rest, &mut each)?;
        }
        while let Some(header) = FrameHeader::of(rest)?
            && rest.len() >= header.end
        {
            each(header.frame(rest));
            rest = &rest[header.end..];
        }
        self.cut.extend_from_slice(rest);
        Ok(())
    }

    /// Reads the answer to the handshake, and returns what follows it.
    fn take_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Fault> {
        for (place, byte) in bytes.iter().enumerate() {
            self.cut.push(*byte);
            if self.cut.ends_with(b"\r\n\r\n") {
                if !self.cut.starts_with(b"HTTP/1.1 101 ") {
                    // With what there is of its body, for that says why.
                    self.cut.extend_from_slice(&bytes[place + 1..]);
                    return Err(Fault::Refused(String::from_utf8_lossy(&self.cut).trim().to_owned()));
                }
                self.is_upgraded = true;
                self.cut.clear();
                return Ok(&bytes[place + 1..]);
            }
        }
        if self.cut.len() > HEAD_BYTES_MAX { Err(Fault::EndlessHead) } else { Ok(&[]) }
    }

    /// Completes the frame that the last read cut, and returns what follows it.
    fn complete<'a>(&mut self, bytes: &'a [u8], each: &mut impl FnMut(Frame<'_>)) -> Result<&'a [u8], Fault> {
        let mut rest = bytes;
        let header = loop {
            if let Some(header) = FrameHeader::of(&self.cut)? {
                break header;
            }
            let Some((byte, after)) = rest.split_first() else { return Ok(rest) };
            self.cut.push(*byte);
            rest = after;
        };
        let missing = header.end - self.cut.len();
        let (part, after) = rest.split_at(missing.min(rest.len()));
        self.cut.extend_from_slice(part);
        if self.cut.len() == header.end {
            each(header.frame(&self.cut));
            self.cut.clear();
        }
        Ok(after)
    }
}

impl Frame<'_> {
    /// What the message is, where it is a text.
    #[must_use]
    pub fn kind(&self) -> Option<MessageKind> {
        if self.opcode != opcode::TEXT {
            return None;
        }
        let Some(name) = self.payload.strip_prefix(br#"{"type":""#) else { return Some(MessageKind::Refusal) };
        let own = [
            (&br#"market_price""#[..], MessageKind::Market),
            (br#"ping""#, MessageKind::Beat),
            (br#"pong""#, MessageKind::Beat),
            (br#"connected""#, MessageKind::Connected),
            (br#"reset""#, MessageKind::Reset),
        ];
        Some(own.iter().find(|(own, _)| name.starts_with(own)).map_or(MessageKind::Event, |(_, kind)| *kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";

    fn text(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x81];
        match payload.len() {
            short @ 0..=125 => bytes.push(short.try_into().unwrap()),
            middle @ 126..=65_535 => {
                bytes.push(126);
                bytes.extend(u16::try_from(middle).unwrap().to_be_bytes());
            }
            long => {
                bytes.push(127);
                bytes.extend((long as u64).to_be_bytes());
            }
        }
        bytes.extend(payload);
        bytes
    }

    fn taken(parts: &[&[u8]]) -> Vec<(u8, Vec<u8>)> {
        let (mut frames, mut seen) = (Frames::default(), Vec::new());
        for part in parts {
            frames.take(part, |frame| seen.push((frame.opcode, frame.payload.to_vec()))).unwrap();
        }
        assert!(frames.cut.is_empty(), "all was whole");
        seen
    }

    #[test]
    fn frames_of_every_length_are_found_wherever_a_read_cuts_them() {
        let payloads: Vec<Vec<u8>> = [0, 1, 125, 126, 300, 0].map(|len| vec![b'x'; len]).into();
        let mut bytes = ANSWER.to_vec();
        payloads.iter().for_each(|payload| bytes.extend(text(payload)));
        bytes.extend([0x89, 1, b'p']);
        let mut expected: Vec<_> = payloads.into_iter().map(|payload| (opcode::TEXT, payload)).collect();
        expected.push((opcode::PING, b"p".to_vec()));
        for cut in 0..=bytes.len() {
            assert_eq!(taken(&[&bytes[..cut], &bytes[cut..]]), expected, "cut at {cut}");
        }
        let each_byte: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(taken(&each_byte), expected);
    }

    #[test]
    fn a_frame_of_the_longest_form_is_found_wherever_its_header_is_cut() {
        let bytes = [ANSWER, &text(&vec![b'x'; 70_000]), &text(b"after")].concat();
        for cut in ANSWER.len()..ANSWER.len() + 12 {
            let seen = taken(&[&bytes[..cut], &bytes[cut..]]);
            assert_eq!(seen.iter().map(|(_, payload)| payload.len()).collect::<Vec<_>>(), [70_000, 5], "cut at {cut}");
        }
    }

    #[test]
    fn what_no_server_sends_is_told() {
        let fault = |bytes: &[u8]| {
            let mut frames = Frames::default();
            frames.take(bytes, |_| {}).unwrap_err()
        };
        let after = |bytes: &[u8]| fault(&[ANSWER, bytes].concat());
        assert_eq!(after(&[0x81, 0x80]), Fault::Malformed([0x81, 0x80]), "masked");
        assert_eq!(after(&[0x01, 0]), Fault::Malformed([1, 0]), "a fragment");
        assert_eq!(after(&[0xc1, 0]), Fault::Malformed([0xc1, 0]), "a reserved bit");
        assert_eq!(after(&[0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 0]), Fault::TooLong(0xff << 56));
        assert_eq!(fault(&vec![b'x'; HEAD_BYTES_MAX + 1]), Fault::EndlessHead);
        let refused = fault(b"HTTP/1.1 503 Busy\r\n\r\nlater");
        assert_eq!(refused, Fault::Refused("HTTP/1.1 503 Busy\r\n\r\nlater".into()));
    }

    #[test]
    fn messages_are_known_by_their_first_bytes() {
        let kind = |payload: &str| Frame { opcode: opcode::TEXT, payload: payload.as_bytes() }.kind();
        assert_eq!(kind(r#"{"type":"pnl_update","assessmentId":"a"}"#), Some(MessageKind::Event));
        assert_eq!(kind(r#"{"type":"rule_status"}"#), Some(MessageKind::Event));
        assert_eq!(kind(r#"{"type":"market_price","market":"gold"}"#), Some(MessageKind::Market));
        assert_eq!(kind(r#"{"type":"ping","timestamp":1}"#), Some(MessageKind::Beat));
        assert_eq!(kind(r#"{"type":"connected"}"#), Some(MessageKind::Connected));
        assert_eq!(kind(r#"{"type":"reset","reason":"expired"}"#), Some(MessageKind::Reset));
        assert_eq!(kind(r#"{"error":"Redirect"}"#), Some(MessageKind::Refusal));
        assert_eq!(Frame { opcode: opcode::PING, payload: b"" }.kind(), None);
    }
}
