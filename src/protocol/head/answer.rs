//! The answers to a request's head: the upgrade, and the refusals that protect the pod (PROTOCOL 1). Each refusal says
//! what was wrong and what would be right.

use super::{SUBPROTOCOL, Upgrade};
use crate::limits::REQUEST_HEADERS_MAX;

/// `Retry-After` of a refused client, in seconds: long enough that retries stay a trickle.
const RETRY_AFTER_SECONDS: u32 = 5;

/// A refusal that protects the pod: an HTTP answer without an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HttpRefusal {
    /// 400: the head breaks a rule.
    #[error("bad request: {0}")]
    Malformed(RequestFault),
    /// 403: the page's origin is not allowed.
    #[error("forbidden: the Origin of this page is not among those that may connect (ALLOWED_ORIGINS)")]
    Origin,
    /// 404: no such path.
    #[error("not found: WebSocket clients connect to /ws")]
    Path,
    /// 405: the path takes other methods.
    #[error("method not allowed: use {}", .0.methods())]
    Method(Allow),
    /// 408: the head did not arrive in time.
    #[error("request timeout: the request's head did not come in whole in time (HANDSHAKE_TIMEOUT_MS)")]
    Timeout,
    /// 426: the request is no WebSocket handshake.
    #[error(
        "upgrade required: this is a WebSocket endpoint (RFC 6455); it takes HTTP/1.1 with Connection: Upgrade, \
         Upgrade: websocket and Sec-WebSocket-Version: 13"
    )]
    UpgradeRequired,
    /// 431: the head has too many bytes or headers.
    #[error(
        "request header fields too large: the request's head has more bytes than this pod takes (MAX_HEAD_BYTES), or more than \
         {REQUEST_HEADERS_MAX} headers"
    )]
    TooLarge,
    /// 503: the pod takes no client now.
    #[error("service unavailable: {0}; try again in a few seconds")]
    Unavailable(Unavailable),
}

/// Why a pod takes no client now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unavailable {
    /// It has not been ready yet, or it drains and no other pod lives.
    #[error("this pod takes no clients at the moment")]
    NotServing,
    /// The limit of the pod is reached (`MAX_CONNECTIONS`).
    #[error("this pod has as many clients as it may have")]
    Capacity,
    /// The limit of the client's address is reached (`MAX_CONNECTIONS_PER_ADDRESS`).
    #[error("as many connections as may be come from this address")]
    Address,
    /// The limit of the user is reached (`MAX_CONNECTIONS_PER_USER`).
    #[error("this user has as many connections as may be")]
    User,
    /// Clients arrive faster than `ACCEPTS_PER_SECOND`.
    #[error("clients come too fast at the moment")]
    Rate,
    /// A thread of the pod is too far behind.
    #[error("this pod is busy")]
    Busy,
}

/// Why a request is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RequestFault {
    /// A lone LF or CR is in the head.
    #[error("a line ends in CRLF, never in a lone LF or CR")]
    LineEnding,
    /// NUL or another control byte: not HTTP, or an attack.
    #[error("a control byte in the request's head (is this TLS? this port speaks plain HTTP)")]
    ControlByte,
    /// The head is not a request line and header fields by RFC 9112; a folded header, for example.
    #[error("the head is no HTTP/1.1 request line and header fields (a folded header is none)")]
    Syntax,
    /// The request's target is neither a path nor a URL of http or ws.
    #[error("the request's target is neither a path nor an http or ws URL without a fragment")]
    RequestTarget,
    /// `Host` is missing, repeated or invalid.
    #[error("HTTP/1.1 takes exactly one valid Host header")]
    Host,
    /// `Content-Length` or `Transfer-Encoding` twice, or both, or no number.
    #[error("at most one Content-Length, a number, or one Transfer-Encoding is taken")]
    Framing,
    /// The request has a body.
    #[error("a body is not taken here")]
    Body,
    /// A connection of a trusted proxy that doesn't begin with the PROXY protocol's header.
    #[error("a connection from a trusted proxy begins with the PROXY protocol's header (PROXY_PROTOCOL)")]
    ProxyHeader,
    /// `X-Forwarded-For` and `Forwarded` name different clients.
    #[error("X-Forwarded-For and Forwarded tell of different clients: a proxy has to set both, or to remove the other")]
    Forwarded,
    /// `Sec-WebSocket-Key` is missing, repeated or invalid.
    #[error("a handshake takes exactly one Sec-WebSocket-Key, the base64 of 16 bytes")]
    Key,
}

/// The methods that a path takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Allow {
    /// GET: `/ws`.
    Get,
    /// GET and HEAD: operators' pages.
    GetAndHead,
}

impl Allow {
    /// The value of the `Allow` header.
    #[must_use]
    pub(crate) fn methods(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::GetAndHead => "GET, HEAD",
        }
    }
}

impl HttpRefusal {
    /// The status code and its phrase.
    #[must_use]
    pub fn status(self) -> (u16, &'static str) {
        match self {
            Self::Malformed(_) => (400, "Bad Request"),
            Self::Origin => (403, "Forbidden"),
            Self::Path => (404, "Not Found"),
            Self::Method(_) => (405, "Method Not Allowed"),
            Self::Timeout => (408, "Request Timeout"),
            Self::UpgradeRequired => (426, "Upgrade Required"),
            Self::TooLarge => (431, "Request Header Fields Too Large"),
            Self::Unavailable(_) => (503, "Service Unavailable"),
        }
    }

    /// The label in metrics.
    #[must_use]
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Malformed(RequestFault::ProxyHeader) => "proxy_header",
            Self::Malformed(_) => "malformed",
            Self::Origin => "origin",
            Self::Path => "path",
            Self::Method(_) => "method",
            Self::Timeout => "timeout",
            Self::UpgradeRequired => "upgrade_required",
            Self::TooLarge => "too_large",
            Self::Unavailable(Unavailable::NotServing) => "not_serving",
            Self::Unavailable(Unavailable::Capacity) => "capacity",
            Self::Unavailable(Unavailable::Address) => "address",
            Self::Unavailable(Unavailable::User) => "user",
            Self::Unavailable(Unavailable::Rate) => "rate",
            Self::Unavailable(Unavailable::Busy) => "busy",
        }
    }

    /// Writes the whole answer: status line, headers, a short text, `Connection: close`.
    #[must_use]
    pub fn response(self) -> Vec<u8> {
        let (code, phrase) = self.status();
        // RFC 9110 section 7.8 requires `Upgrade` in `Connection`, too.
        let (connection, more) = match self {
            Self::Method(allow) => ("close", format!("Allow: {}\r\n", allow.methods())),
            Self::UpgradeRequired => {
                ("close, Upgrade", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n".to_owned())
            }
            Self::Unavailable(_) => ("close", format!("Retry-After: {RETRY_AFTER_SECONDS}\r\n")),
            _ => ("close", String::new()),
        };
        let text = format!("{self}\n");
        let len = text.len();
        format!(
            "HTTP/1.1 {code} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len}\r\n\
             Connection: {connection}\r\n{more}\r\n{text}"
        )
        .into_bytes()
    }
}

impl Upgrade {
    /// Appends the 101 answer.
    pub fn accept_response(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
        let mut field = |name: &str, value: &str| {
            [name, ": ", value, "\r\n"].iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        };
        field("Sec-WebSocket-Accept", &self.accept);
        if self.subprotocol {
            field("Sec-WebSocket-Protocol", SUBPROTOCOL);
        }
        out.extend_from_slice(b"\r\n");
    }
}
