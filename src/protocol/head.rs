//! The head of a client's request (PROTOCOL 1; RFC 9112, RFC 6455 section 4.2): read with limits, judged by rules, and
//! answered where it is refused before an upgrade.

use crate::ids::{AssessmentId, InvalidAssessmentId};

/// What the head's rules need to know of the pod.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Origins that browsers may come from; `None` stands for `*`, any.
    pub allowed_origins: Option<Vec<Box<str>>>,
    /// Whether `/health`, `/ready`, `/metrics` and `/` are served on this port.
    pub operators: bool,
}

/// What was read so far.
#[derive(Debug)]
pub enum Parsed {
    /// The head's end has not come yet.
    Incomplete,
    /// A good WebSocket handshake; what was read past `head_len` is the client's first frames.
    Upgrade {
        /// What it asks for.
        upgrade: Upgrade,
        /// The head's bytes, its last CRLF included.
        head_len: usize,
    },
    /// A GET or HEAD of an operators' page: for the HTTP library, with all that was read.
    Operators,
    /// Refused: write [`Refusal::response`], read and drop what still comes, close.
    Refused(Refusal),
}

/// A good handshake.
#[derive(Debug)]
pub struct Upgrade {
    /// The answer's `Sec-WebSocket-Accept`.
    pub accept: Box<str>,
    /// Whether the client offered `shardgate.v1`: then the answer names it.
    pub subprotocol: bool,
    /// The assessment to watch; `None` for market data only.
    pub assessment: Result<Option<AssessmentId>, BadAssessment>,
    /// The token that counts.
    pub token: Option<Token>,
    /// The cursor to resume from.
    pub cursor: Option<Box<str>>,
}

/// Why the request's `assessmentId` is outside of its rule: `BadRequest`, after the upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAssessment {
    /// As the id's rule says.
    #[error(transparent)]
    Invalid(#[from] InvalidAssessmentId),
    /// The parameter is there twice.
    #[error("assessmentId is given twice; it takes one")]
    Twice,
    /// A percent sign without two hex digits, or bytes that are not UTF-8.
    #[error("assessmentId is not percent-encoded UTF-8")]
    BrokenEscape,
}

/// A token as the client sent it. It prints as nothing, so that it can't reach a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub Box<str>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A refusal that protects the pod: an HTTP answer without an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// 400.
    Malformed,
    /// 403.
    Origin,
    /// 404.
    Path,
    /// 405.
    Method,
    /// 408.
    Timeout,
    /// 426.
    UpgradeRequired,
    /// 431.
    TooLarge,
    /// 503: at capacity, over the accept rate, never yet ready, or draining alone.
    Unavailable,
}

impl Refusal {
    /// The whole answer: status line, headers, a short text, `Connection: close`.
    #[must_use]
    pub fn response(self) -> Vec<u8> {
        unimplemented!()
    }
}

/// Looks at what was read of a request so far.
#[must_use]
pub fn parse(_read: &[u8], _rules: &Rules) -> Parsed {
    unimplemented!()
}

impl Upgrade {
    /// Appends the 101 answer.
    pub fn accept_response(&self, _out: &mut Vec<u8>) {
        unimplemented!()
    }
}
