//! Finds the frames of a WebSocket server in its bytes, wherever reads split them. It copies only frames that are split
//! and parses no JSON, so that thousands of clients stay cheap beside what is measured. [`MessageKind`] tells messages
//! apart by their first bytes.

use std::fmt;

use crate::client::raw::opcode;

/// Longest accepted payload. A record has at most a mebibyte.
const PAYLOAD_BYTES_MAX: u64 = 4 << 20;

/// Longest response to a handshake.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The incomplete frame of a connection.
#[derive(Debug, Default)]
pub struct Frames {
    is_upgraded: bool,
    /// The start of the handshake's response, or of a frame.
    partial: Vec<u8>,
}

/// A complete frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The opcode (RFC 6455 section 5.2).
    pub opcode: u8,
    /// The payload.
    pub payload: &'a [u8],
}

/// Kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// An assessment's event.
    Event,
    /// A market's tick.
    Market,
    /// `connected`.
    Connected,
    /// A heartbeat message, or its answer.
    Heartbeat,
    /// A `reset`.
    Reset,
    /// An `error`: a refusal, or a redirect.
    Refusal,
}

/// An invalid frame, or a response that is not an upgrade. The connection is unusable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The handshake's response, if it is not 101.
    Refused(String),
    /// The handshake's response exceeds the limit.
    EndlessHead,
    /// The first two bytes of a frame that is masked, fragmented or has a reserved bit.
    Malformed([u8; 2]),
    /// A payload of this many bytes.
    TooLong(u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(answer) => write!(f, "refused: {answer}"),
            Self::EndlessHead => write!(f, "a handshake response of over {HEAD_BYTES_MAX} bytes"),
            Self::Malformed(start) => write!(f, "an invalid frame header {start:02x?}"),
            Self::TooLong(bytes) => write!(f, "a frame of {bytes} bytes"),
        }
    }
}

impl std::error::Error for Fault {}

/// Opcode of a frame, and the range of its payload.
struct FrameHeader {
    opcode: u8,
    start: usize,
    end: usize,
}

impl FrameHeader {
    /// Parses the header at the start of `bytes`, if it is complete.
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
        let length = usize::try_from(length).expect("the length is below the limit");
        Ok(Some(Self { opcode: first & 0x0f, start, end: start + length }))
    }

    fn frame<'a>(&self, bytes: &'a [u8]) -> Frame<'a> {
        Frame { opcode: self.opcode, payload: &bytes[self.start..self.end] }
    }
}

impl Frames {
    /// Whether the handshake is complete.
    #[must_use]
    pub fn is_upgraded(&self) -> bool {
        self.is_upgraded
    }

    /// Takes bytes that were read and calls `each` for every complete frame, in order.
    ///
    /// # Errors
    /// The first invalid frame. Frames before it were passed to `each`.
    pub fn take(&mut self, bytes: &[u8], mut each: impl FnMut(Frame<'_>)) -> Result<(), Fault> {
        let mut rest = if self.is_upgraded { bytes } else { self.take_head(bytes)? };
        if self.is_upgraded && !self.partial.is_empty() {
            rest = self.complete(rest, &mut each)?;
        }
        while let Some(header) = FrameHeader::of(rest)?
            && rest.len() >= header.end
        {
            each(header.frame(rest));
            rest = &rest[header.end..];
        }
        self.partial.extend_from_slice(rest);
        Ok(())
    }

    /// Reads the handshake's response and returns the bytes behind it.
    fn take_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Fault> {
        for (index, byte) in bytes.iter().enumerate() {
            self.partial.push(*byte);
            if self.partial.ends_with(b"\r\n\r\n") {
                if !self.partial.starts_with(b"HTTP/1.1 101 ") {
                    // Includes what was read of the body, which says why.
                    self.partial.extend_from_slice(&bytes[index + 1..]);
                    return Err(Fault::Refused(String::from_utf8_lossy(&self.partial).trim().to_owned()));
                }
                self.is_upgraded = true;
                self.partial.clear();
                return Ok(&bytes[index + 1..]);
            }
        }
        if self.partial.len() > HEAD_BYTES_MAX { Err(Fault::EndlessHead) } else { Ok(&[]) }
    }

    /// Completes the partial frame and returns the bytes behind it.
    fn complete<'a>(&mut self, bytes: &'a [u8], each: &mut impl FnMut(Frame<'_>)) -> Result<&'a [u8], Fault> {
        let mut rest = bytes;
        let header = loop {
            if let Some(header) = FrameHeader::of(&self.partial)? {
                break header;
            }
            let Some((byte, after)) = rest.split_first() else { return Ok(rest) };
            self.partial.push(*byte);
            rest = after;
        };
        let missing = header.end - self.partial.len();
        let (part, after) = rest.split_at(missing.min(rest.len()));
        self.partial.extend_from_slice(part);
        if self.partial.len() == header.end {
            each(header.frame(&self.partial));
            self.partial.clear();
        }
        Ok(after)
    }
}

impl Frame<'_> {
    /// The kind of the message, if it is a text frame.
    #[must_use]
    pub fn kind(&self) -> Option<MessageKind> {
        if self.opcode != opcode::TEXT {
            return None;
        }
        let Some(name) = self.payload.strip_prefix(br#"{"type":""#) else { return Some(MessageKind::Refusal) };
        let own = [
            (&br#"market_price""#[..], MessageKind::Market),
            (br#"ping""#, MessageKind::Heartbeat),
            (br#"pong""#, MessageKind::Heartbeat),
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

    fn parse(parts: &[&[u8]]) -> Vec<(u8, Vec<u8>)> {
        let (mut frames, mut seen) = (Frames::default(), Vec::new());
        for part in parts {
            frames.take(part, |frame| seen.push((frame.opcode, frame.payload.to_vec()))).unwrap();
        }
        assert!(frames.partial.is_empty(), "all frames were complete");
        seen
    }

    #[test]
    fn frames_of_every_length_are_found_wherever_a_read_splits_them() {
        let payloads: Vec<Vec<u8>> = [0, 1, 125, 126, 300, 0].map(|len| vec![b'x'; len]).into();
        let mut bytes = ANSWER.to_vec();
        payloads.iter().for_each(|payload| bytes.extend(text(payload)));
        bytes.extend([0x89, 1, b'p']);
        let mut expected: Vec<_> = payloads.into_iter().map(|payload| (opcode::TEXT, payload)).collect();
        expected.push((opcode::PING, b"p".to_vec()));
        for cut in 0..=bytes.len() {
            assert_eq!(parse(&[&bytes[..cut], &bytes[cut..]]), expected, "cut at {cut}");
        }
        let each_byte: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(parse(&each_byte), expected);
    }

    #[test]
    fn a_frame_with_a_64_bit_length_is_found_wherever_its_header_is_split() {
        let bytes = [ANSWER, &text(&vec![b'x'; 70_000]), &text(b"after")].concat();
        for cut in ANSWER.len()..ANSWER.len() + 12 {
            let seen = parse(&[&bytes[..cut], &bytes[cut..]]);
            assert_eq!(seen.iter().map(|(_, payload)| payload.len()).collect::<Vec<_>>(), [70_000, 5], "cut at {cut}");
        }
    }

    #[test]
    fn invalid_frames_are_reported() {
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
    fn the_kind_of_a_message_is_known_by_its_first_bytes() {
        let kind = |payload: &str| Frame { opcode: opcode::TEXT, payload: payload.as_bytes() }.kind();
        assert_eq!(kind(r#"{"type":"pnl_update","assessmentId":"a"}"#), Some(MessageKind::Event));
        assert_eq!(kind(r#"{"type":"rule_status"}"#), Some(MessageKind::Event));
        assert_eq!(kind(r#"{"type":"market_price","market":"gold"}"#), Some(MessageKind::Market));
        assert_eq!(kind(r#"{"type":"ping","timestamp":1}"#), Some(MessageKind::Heartbeat));
        assert_eq!(kind(r#"{"type":"connected"}"#), Some(MessageKind::Connected));
        assert_eq!(kind(r#"{"type":"reset","reason":"expired"}"#), Some(MessageKind::Reset));
        assert_eq!(kind(r#"{"error":"Redirect"}"#), Some(MessageKind::Refusal));
        assert_eq!(Frame { opcode: opcode::PING, payload: b"" }.kind(), None);
    }
}
