//! What a client's frames mean: tungstenite without I/O, fed the bytes that were read. It sends nothing itself: what is
//! to be answered comes back as a value, so that a control frame never splits a frame that is half written.

use crate::protocol::close::CloseReason;

/// One connection's reading side.
pub struct Session {
    _private: (),
}

/// What a client did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound {
    /// The text `{"type":"ping"}`: answer with `pong`.
    Ping,
    /// The text `{"type":"pong"}`.
    Pong,
    /// A JSON object of another type: counted and ignored.
    Other,
    /// A text that is not a JSON object with a string `type`.
    BadMessage,
    /// A WebSocket ping frame: answer with a pong frame of the same payload.
    ControlPing(Box<[u8]>),
    /// A WebSocket pong frame.
    ControlPong,
}

impl Inbound {
    /// Whether it is a text message, which the metric and the rate limit count.
    #[must_use]
    pub fn is_text(&self) -> bool {
        matches!(self, Self::Ping | Self::Pong | Self::Other | Self::BadMessage)
    }
}

impl Session {
    /// A session for messages of at most this size (`MAX_MESSAGE_BYTES`).
    #[must_use]
    pub fn new(_message_bytes_max: usize) -> Self {
        unimplemented!()
    }

    /// Takes bytes as they were read and tells `on` of each whole frame that is a sign of life.
    ///
    /// # Errors
    /// Why the connection must be closed: [`CloseReason::ClientClosed`] after the client's close frame (answer it), or
    /// the client's fault. Nothing may be fed after that.
    pub fn receive(&mut self, _input: &[u8], _on: &mut dyn FnMut(Inbound)) -> Result<(), CloseReason> {
        unimplemented!()
    }
}
