//! Interprets a client's frames with tungstenite, without I/O. Sends nothing: it returns what to answer as a value, so
//! that a control frame never splits a partially written frame.
//!
//! This module splits the input into frames; tungstenite interprets them. A frame's header is parsed by tungstenite and
//! checked here at once, before the payload arrives. So a fault is reported as early as possible, with the code of
//! PROTOCOL 4, and faults that tungstenite accepts or reports late are refused too: an unmasked frame, a long ping, a
//! binary message, a length that is not in its shortest form. Unmasking, reassembly, UTF-8 and close frames are left to
//! tungstenite's [`WebSocketContext`].
//!
//! A context lives only while a frame or a fragmented message is incomplete, because between messages it holds nothing
//! that matters. So an idle session uses no heap, and the memory of a large message is freed.

use std::borrow::Cow;
use std::io::{self, Cursor, Read, Write};

use serde::Deserialize;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message};

use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;
use crate::protocol::close::CloseReason;
use crate::protocol::head::BearerToken;

/// The longest header of a client's frame, in bytes: two, eight of length, four of mask (RFC 6455 section 5.2).
const HEADER_BYTES_MAX: usize = 14;

/// Reading side of one connection.
pub struct Session {
    /// `MAX_MESSAGE_BYTES`.
    message_bytes_max: u32,
    /// Bytes of the fragments received so far of an incomplete message.
    message_bytes: u32,
    /// Whether a fragmented message is incomplete: the next data frame must continue it.
    fragmented: bool,
    /// Bytes in `header` that the context has not read yet.
    header_len: u8,
    header: [u8; HEADER_BYTES_MAX],
    /// Bytes of payload still to arrive, once the frame's header is accepted.
    left: Option<u32>,
    /// Code of the client's close frame, if it had one.
    close_code: Option<u16>,
    /// Present while a frame or a fragmented message is incomplete.
    context: Option<Box<WebSocketContext>>,
}

/// What a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound {
    /// The text `{"type":"ping"}`: answer with `pong`.
    Ping,
    /// The text `{"type":"pong"}`.
    Pong,
    /// The text `{"type":"refresh","token":…}`.
    Refresh(BearerToken),
    /// A JSON object of another type: counted and ignored.
    Other,
    /// A text that is not a JSON object with a string `type`.
    BadMessage,
    /// A whole frame of an incomplete message. It only shows that the client is alive.
    Fragment,
    /// A WebSocket ping frame: answer with a pong frame of the same payload. After several pings, an answer to the
    /// latest is enough (RFC 6455 section 5.5.3).
    ControlPing(Box<[u8]>),
    /// A WebSocket pong frame.
    ControlPong,
}

impl Inbound {
    /// Whether it is a text message, which the metric and the rate limit count.
    #[must_use]
    pub(crate) fn is_text(&self) -> bool {
        matches!(self, Self::Ping | Self::Pong | Self::Refresh(_) | Self::Other | Self::BadMessage)
    }
}

impl Session {
    /// A session for messages up to this size (`MAX_MESSAGE_BYTES`; more than 4 GiB counts as 4 GiB).
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max: u32::try_from(message_bytes_max).unwrap_or(u32::MAX),
            message_bytes: 0,
            fragmented: false,
            header_len: 0,
            header: [0; HEADER_BYTES_MAX],
            left: None,
            close_code: None,
            context: None,
        }
    }

    /// Takes bytes as they were read and calls `on` for each whole frame. A frame that only trickles in does not show
    /// that the client is alive until it is complete.
    ///
    /// # Errors
    /// Why the connection must be closed: [`CloseReason::ClientClosed`] after the client's close frame (answer it with
    /// [`Session::close_code`]), or the client's fault. Input behind it is ignored; do not call this again.
    pub fn receive(&mut self, mut input: &[u8], on: &mut dyn FnMut(Inbound)) -> Result<(), CloseReason> {
        while !input.is_empty() {
            let left = match self.left {
                Some(left) => left,
                None => match self.read_header(&mut input)? {
                    Some(payload_bytes) => payload_bytes,
                    None => break,
                },
            };
            let (payload, rest) = input.split_at(input.len().min(left as usize));
            input = rest;
            let left = left.saturating_sub(u32::try_from(payload.len()).unwrap_or(u32::MAX));
            self.left = (left > 0).then_some(left);
            if let Some(inbound) = self.feed(payload)? {
                on(inbound);
            }
        }
        Ok(())
    }

    /// Code of the client's close frame, if it had one: the answer repeats it (RFC 6455 section 5.5.1).
    #[must_use]
    pub fn close_code(&self) -> Option<u16> {
        self.close_code
    }

    /// Reads a frame's header from the front of the input and checks it. Returns the payload's length, or `None` while
    /// the header is incomplete.
    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<u32>, CloseReason> {
        let had = usize::from(self.header_len);
        let taken = input.len().min(HEADER_BYTES_MAX - had);
        self.header[had..had + taken].copy_from_slice(&input[..taken]);
        let mut cursor = Cursor::new(&self.header[..had + taken]);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|error| reason_of(&error))?;
        let Some((header, payload_bytes)) = parsed else {
            *input = &input[taken..];
            self.header_len = byte_count(had + taken);
            return Ok(None);
        };
        // Bytes beyond the header stay in the input. A header that was incomplete before ends in this input.
        let header_len = usize::try_from(cursor.position()).unwrap_or(HEADER_BYTES_MAX);
        *input = &input[header_len.saturating_sub(had)..];
        self.header_len = byte_count(header_len);
        let payload_bytes = self.judge(&header, header_len, payload_bytes)?;
        self.context.get_or_insert_with(|| {
            Box::new(WebSocketContext::new(Role::Server, Some(config(self.message_bytes_max, payload_bytes))))
        });
        Ok(Some(payload_bytes))
    }

    /// Checks a frame by its header alone, and updates the state of the incomplete message.
    fn judge(&mut self, header: &FrameHeader, header_len: usize, payload_bytes: u64) -> Result<u32, CloseReason> {
        let reserved = header.rsv1 || header.rsv2 || header.rsv3;
        // Both lengths include the mask's four bytes. RFC 6455 section 5.2 requires the shortest form.
        if reserved || header.mask.is_none() || header_len != header.len(payload_bytes) {
            return Err(CloseReason::ProtocolError);
        }
        let data = match header.opcode {
            OpCode::Control(_) if !header.is_final || payload_bytes > CONTROL_PAYLOAD_BYTES_MAX as u64 => {
                return Err(CloseReason::ProtocolError);
            }
            // The arm above has bounded it.
            OpCode::Control(_) => return u32::try_from(payload_bytes).map_err(|_| CloseReason::ProtocolError),
            OpCode::Data(data) => data,
        };
        if (data == Data::Continue) != self.fragmented {
            return Err(CloseReason::ProtocolError);
        }
        if data == Data::Binary {
            return Err(CloseReason::Unsupported);
        }
        let payload_bytes = u32::try_from(payload_bytes).map_err(|_| CloseReason::MessageTooBig)?;
        let message_bytes = self.message_bytes.saturating_add(payload_bytes);
        if message_bytes > self.message_bytes_max {
            return Err(CloseReason::MessageTooBig);
        }
        self.fragmented = !header.is_final;
        self.message_bytes = if self.fragmented { message_bytes } else { 0 };
        Ok(payload_bytes)
    }

    /// Passes the incomplete frame to the context, its header first; returns the frame once it is complete.
    fn feed(&mut self, payload: &[u8]) -> Result<Option<Inbound>, CloseReason> {
        let Some(context) = &mut self.context else { return Err(CloseReason::Internal) };
        let mut wire = FrameBuffer { header: &self.header[..usize::from(self.header_len)], payload };
        self.header_len = 0;
        let whole = self.left.is_none();
        let read = context.read(&mut wire);
        if whole && !self.fragmented {
            self.context = None;
        }
        match read {
            Ok(Message::Close(Some(frame))) if !replaces_a_bad_code(&frame) => {
                self.close_code = Some(frame.code.into());
                Err(CloseReason::ClientClosed)
            }
            Ok(message) => inbound_of(message).map(Some),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(whole.then_some(Inbound::Fragment))
            }
            Err(error) => Err(reason_of(&error)),
        }
    }
}

fn byte_count(len: usize) -> u8 {
    u8::try_from(len).expect("a header has at most 14 bytes")
}

/// Sizes the read buffer for the first frame; the default is 128 KiB for each connection.
fn config(message_bytes_max: u32, payload_bytes: u32) -> WebSocketConfig {
    let message_bytes_max = message_bytes_max as usize;
    WebSocketConfig::default()
        .read_buffer_size(HEADER_BYTES_MAX + payload_bytes as usize)
        .write_buffer_size(0)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max.max(CONTROL_PAYLOAD_BYTES_MAX)))
}

/// Classifies a whole message.
fn inbound_of(message: Message) -> Result<Inbound, CloseReason> {
    match message {
        Message::Text(text) => Ok(classify(&text)),
        Message::Ping(payload) => Ok(Inbound::ControlPing(payload.as_ref().into())),
        Message::Pong(_) => Ok(Inbound::ControlPong),
        Message::Close(Some(_)) => Err(CloseReason::ProtocolError),
        Message::Close(None) => Err(CloseReason::ClientClosed),
        Message::Binary(_) => Err(CloseReason::Unsupported),
        // Only ever written, never read.
        Message::Frame(_) => Err(CloseReason::Internal),
    }
}

/// tungstenite answers a close code that must not be sent (RFC 6455 section 7.4) with this frame, and returns its
/// answer instead of the client's frame. A client that sends exactly this frame gets the same answer.
fn replaces_a_bad_code(frame: &CloseFrame) -> bool {
    frame.code == CloseCode::Protocol && frame.reason.as_str() == "Protocol violation"
}

fn reason_of(error: &Error) -> CloseReason {
    match error {
        Error::Protocol(_) => CloseReason::ProtocolError,
        Error::Utf8(_) => CloseReason::InvalidText,
        Error::Capacity(_) => CloseReason::MessageTooBig,
        _ => CloseReason::Internal,
    }
}

/// The part that all messages from a client have (PROTOCOL 2). A repeated `type` is an error.
#[derive(Deserialize)]
struct Typed<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Refresh<'a> {
    #[serde(borrow)]
    token: Cow<'a, str>,
}

fn classify(text: &str) -> Inbound {
    // serde would take an array for the struct, too.
    let is_object = text.trim_ascii_start().starts_with('{');
    match serde_json::from_str::<Typed<'_>>(text) {
        Ok(message) if is_object => match &*message.r#type {
            "ping" => Inbound::Ping,
            "pong" => Inbound::Pong,
            "refresh" => serde_json::from_str::<Refresh<'_>>(text)
                .map_or(Inbound::BadMessage, |refresh| Inbound::Refresh(BearerToken(refresh.token.into()))),
            _ => Inbound::Other,
        },
        _ => Inbound::BadMessage,
    }
}

/// The socket that tungstenite sees. It reads the part of the current frame that has arrived. What it writes (its own
/// pongs and close frames) is discarded, because the shard answers.
struct FrameBuffer<'a> {
    header: &'a [u8],
    payload: &'a [u8],
}

impl Read for FrameBuffer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let part = if self.header.is_empty() { &mut self.payload } else { &mut self.header };
        match part.read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }
}

impl Write for FrameBuffer<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
