//! The gateway's own messages (PROTOCOL 2) and the frames around them. Each function appends one whole frame of a
//! server, unmasked, to `out`.

use crate::clock::UnixMs;
use crate::protocol::close::CloseReason;
use crate::routing::placement::Pod;

/// The longest header of a server's frame, in bytes (RFC 6455 section 5.2).
pub const HEADER_BYTES_MAX: usize = 10;

/// What `connected` says.
#[derive(Debug)]
pub struct Connected<'a> {
    /// Of this connection, unique in the cluster for practical purposes.
    pub connection_id: &'a str,
    /// From the token.
    pub user_id: &'a str,
    /// Now.
    pub timestamp: UnixMs,
    /// This pod.
    pub node: &'a str,
    /// The assessment that is watched.
    pub assessment_id: Option<&'a str>,
    /// `HEARTBEAT_INTERVAL`.
    pub heartbeat_interval_ms: u64,
    /// Whether it goes on from the client's cursor.
    pub resumed: bool,
    /// The position to resume from.
    pub cursor: Option<&'a str>,
}

/// Why a client has to fetch its state anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResetReason {
    /// The window no longer reaches back so far, or records were deleted before they were read.
    Expired,
    /// The cursor is no good here.
    Invalid,
    /// Overtaken by the window while catching up.
    Lagged,
    /// Records lie on partitions where the route's partitioner would not have put them.
    Misplaced,
}

/// Writes the header of a text frame for `len` bytes of payload to the front of a buffer; returns its length.
#[must_use]
pub fn text_header(_len: usize) -> ([u8; HEADER_BYTES_MAX], usize) {
    unimplemented!()
}

/// `connected`.
pub fn connected(_out: &mut Vec<u8>, _message: &Connected<'_>) {
    unimplemented!()
}

/// The heartbeat: a WebSocket ping frame, then the text `ping`.
pub fn heartbeat(_out: &mut Vec<u8>, _timestamp: UnixMs, _cursor: Option<&str>) {
    unimplemented!()
}

/// The answer to the client's text `ping`.
pub fn pong(_out: &mut Vec<u8>, _timestamp: UnixMs) {
    unimplemented!()
}

/// `reset`.
pub fn reset(_out: &mut Vec<u8>, _reason: ResetReason, _cursor: &str) {
    unimplemented!()
}

/// An error that refuses: `Unauthorized`, `BadRequest`, `Forbidden`, `BadMessage`.
pub fn error(_out: &mut Vec<u8>, _error: &str, _message: &str) {
    unimplemented!()
}

/// The redirect to the pod that owns the assessment.
pub fn redirect(_out: &mut Vec<u8>, _message: &str, _to: &Pod, _cursor: Option<&str>) {
    unimplemented!()
}

/// A close frame; nothing for a reason that sends none.
pub fn close(_out: &mut Vec<u8>, _reason: CloseReason) {
    unimplemented!()
}

/// A WebSocket pong frame with the ping's payload (RFC 6455 section 5.5.3).
pub fn control_pong(_out: &mut Vec<u8>, _payload: &[u8]) {
    unimplemented!()
}
