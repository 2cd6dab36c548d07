//! A client that sends bytes chosen by its test and parses frames without a library.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::Ask;
use crate::http::HttpResponse;

/// A connection whose bytes a test sends and reads.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

/// A frame to send, valid unless its fields are changed.
#[derive(Debug, Clone)]
pub struct RawFrame {
    /// Whether it is the last of its message.
    pub fin: bool,
    /// The three reserved bits.
    pub rsv: u8,
    /// The opcode, 0 to 15.
    pub opcode: u8,
    /// Whether it is masked, as a client's must be.
    pub masked: bool,
    /// The payload.
    pub payload: Vec<u8>,
}

/// Something received from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// A text message.
    Text(String),
    /// A ping.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A close frame with its code, 1005 if it has none.
    Close(u16),
    /// The end of the connection.
    End,
    /// The end of the connection within a frame.
    Truncated,
}

/// Opcodes (RFC 6455 section 5.2).
pub mod opcode {
    /// Continuation frame (0).
    pub const CONTINUATION: u8 = 0;
    /// Text frame (1).
    pub const TEXT: u8 = 1;
    /// Binary frame (2).
    pub const BINARY: u8 = 2;
    /// Close frame (8).
    pub const CLOSE: u8 = 8;
    /// Ping frame (9).
    pub const PING: u8 = 9;
    /// Pong frame (10).
    pub const PONG: u8 = 10;
}

impl RawFrame {
    /// A valid frame.
    #[must_use]
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self { fin: true, rsv: 0, opcode, masked: true, payload: payload.into() }
    }

    /// A close frame with a code and a text.
    #[must_use]
    pub fn close(code: u16, text: &[u8]) -> Self {
        Self::new(opcode::CLOSE, [&code.to_be_bytes(), text].concat())
    }

    /// Clears the final bit, so that the message continues.
    #[must_use]
    pub fn unfinished(mut self) -> Self {
        self.fin = false;
        self
    }

    /// Its encoding, with the shortest form of its length.
    ///
    /// # Panics
    /// If the payload is over 65,535 bytes, which no test needs.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
        let mask_bit = u8::from(self.masked) << 7;
        let mut bytes = vec![u8::from(self.fin) << 7 | self.rsv << 4 | self.opcode];
        match u8::try_from(self.payload.len()) {
            Ok(short @ 0..=125) => bytes.push(mask_bit | short),
            _ => {
                bytes.push(mask_bit | 0x7e);
                bytes.extend(u16::try_from(self.payload.len()).expect("a small payload").to_be_bytes());
            }
        }
        if self.masked {
            bytes.extend(MASK);
            bytes.extend(self.payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        } else {
            bytes.extend(&self.payload);
        }
        bytes
    }
}

impl Raw {
    /// Opens a connection and sends nothing yet.
    #[must_use]
    #[track_caller]
    pub fn connect(ask: &Ask) -> Self {
        Self { stream: ask.connect(), read: Vec::new() }
    }

    /// Opens a connection and completes the handshake. `connected` is still to be read.
    ///
    /// # Panics
    /// If the pod refuses.
    #[must_use]
    #[track_caller]
    pub fn upgraded(ask: &Ask) -> Self {
        let mut raw = Self::connect(ask);
        raw.send(ask.head().as_bytes());
        raw.expect_upgrade();
        raw
    }

    /// Reads the response to a valid handshake.
    ///
    /// # Panics
    /// If the pod refuses.
    #[track_caller]
    pub fn expect_upgrade(&mut self) {
        let answer = self.answer();
        assert_eq!(answer.status, 101, "{answer:?}");
        self.read = answer.body;
    }

    /// Sends bytes. A pod that has closed may refuse them, which is no failure.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends frames, all in one write.
    pub fn send_frames(&mut self, frames: &[RawFrame]) {
        self.send(&frames.iter().flat_map(RawFrame::bytes).collect::<Vec<_>>());
    }

    /// The client's address.
    ///
    /// # Panics
    /// If the connection is broken.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.stream.local_addr().expect("a connected socket")
    }

    /// Shuts down the writing side, as a program does when it exits.
    ///
    /// # Panics
    /// If the connection is broken.
    pub fn finish(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("a connected socket");
    }

    /// Sends the same bytes repeatedly and reads nothing. Returns the number of bytes that the pod took before it
    /// closed, or took nothing for this time.
    ///
    /// # Panics
    /// If the socket is broken.
    pub fn flood(&mut self, bytes: &[u8], until_stuck: Duration) -> usize {
        self.stream.set_write_timeout(Some(until_stuck)).expect("a timeout above 0");
        let mut taken = 0;
        while let Ok(sent @ 1..) = self.stream.write(bytes) {
            taken += sent;
        }
        taken
    }

    /// Sends bytes. Returns false if the pod has closed the connection.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Reads an HTTP response.
    ///
    /// # Panics
    /// If none comes.
    #[must_use]
    #[track_caller]
    pub fn answer(&mut self) -> HttpResponse {
        HttpResponse::read(&mut self.stream).unwrap_or_else(|error| panic!("an answer: {error:#}"))
    }

    /// Whether a response or the end arrives `within` the time.
    ///
    /// # Panics
    /// If the socket is broken.
    #[must_use]
    pub fn is_answered(&mut self, within: Duration) -> bool {
        self.stream.set_read_timeout(Some(within)).expect("a timeout above 0");
        let answered = !matches!(self.stream.peek(&mut [0]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        self.stream.set_read_timeout(Some(super::WITHIN)).expect("a timeout above 0");
        answered
    }

    /// Reads what the pod sends next.
    ///
    /// # Panics
    /// If nothing comes, or an invalid frame.
    #[must_use]
    #[track_caller]
    pub fn receive(&mut self) -> Sent {
        let Some(header) = self.take(2) else { return Sent::End };
        let (first, second) = (header[0], header[1]);
        assert_eq!(first & 0xf0, 0x80, "the server's frame is final and has no reserved bit");
        assert_eq!(second & 0x80, 0, "the server's frame is not masked");
        let length = match second {
            126 => self.take(2).map(|bytes| u64::from(u16::from_be_bytes(bytes.try_into().expect("two")))),
            127 => self.take(8).map(|bytes| u64::from_be_bytes(bytes.try_into().expect("eight"))),
            short => Some(u64::from(short)),
        };
        let Some(length) = length else { return Sent::Truncated };
        let Some(payload) = self.take(usize::try_from(length).expect("a length fits usize")) else {
            return Sent::Truncated;
        };
        match first & 0x0f {
            opcode::TEXT => Sent::Text(String::from_utf8(payload).expect("a text is UTF-8")),
            opcode::PING => Sent::Ping(payload),
            opcode::PONG => Sent::Pong(payload),
            opcode::CLOSE => {
                Sent::Close(payload.first_chunk().map_or(1005, |code: &[u8; 2]| u16::from_be_bytes(*code)))
            }
            other => panic!("a pod sends no frame of opcode {other}"),
        }
    }

    /// Reads up to the answer to what was just sent. Skips `connected`, heartbeats and ticks.
    ///
    /// # Panics
    /// As [`Self::receive`].
    #[must_use]
    #[track_caller]
    pub fn next_answer(&mut self) -> Sent {
        loop {
            match self.receive() {
                Sent::Text(text) if text.contains(r#""type":"connected""#) => {}
                Sent::Text(text) if text.contains(r#""type":"ping""#) => {}
                Sent::Text(text) if text.contains(r#""type":"market_price""#) => {}
                Sent::Ping(_) => {}
                other => return other,
            }
        }
    }

    /// Takes `count` bytes off the connection. `None` if it ends before.
    fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.read.len() < count {
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(read) => self.read.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came: {error}"),
            }
        }
        let rest = self.read.split_off(count);
        Some(std::mem::replace(&mut self.read, rest))
    }
}
