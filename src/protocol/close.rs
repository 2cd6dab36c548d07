//! Why a connection ends: one table of codes, texts, metric labels and advice (PROTOCOL 4).

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client closed, with a close frame.
    ClientClosed,
    /// The client's connection is gone without a close frame.
    ClientGone,
    /// 1001: this pod goes away and knows no other.
    GoingAway,
    /// 1002.
    ProtocolError,
    /// 1003: binary data.
    Unsupported,
    /// 1007: a text that is not UTF-8.
    InvalidText,
    /// 1009: a message over `MAX_MESSAGE_BYTES`.
    MessageTooBig,
    /// 1008: no good token.
    Unauthorized,
    /// 1008: an assessmentId outside its rule.
    BadRequest,
    /// 1008: the token doesn't allow this assessment.
    Forbidden,
    /// 1008: another pod owns the assessment.
    Redirect,
    /// 1008: over the inbound message rate.
    RateLimited,
    /// 1011: our fault.
    Internal,
    /// 1012: moved to another pod, or drained.
    Moved,
    /// 1013: a live client fell out of the history, or took nothing for `STALL_TIMEOUT_MS`.
    TooSlow,
    /// 4401: the token ran out.
    TokenExpired,
    /// 4408: no sign of life.
    Silent,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The status code of RFC 6455 section 7.4; `None` where no close frame is sent.
    pub code: Option<u16>,
    /// The close frame's text.
    pub text: &'static str,
    /// The metric's label.
    pub label: &'static str,
}

impl CloseReason {
    /// The reason's row.
    #[must_use]
    pub fn row(self) -> Row {
        unimplemented!()
    }
}
