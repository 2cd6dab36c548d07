//! Where a request's headers may carry a token, and in which the gateway's subprotocol is offered (PROTOCOL 1).
//!
//! What is there counts, good or bad: an empty token, or one of bytes that no token has, is a bad one and never gives
//! way to the next place. Of several, the first that is a token at all counts.

use super::{HeaderFields, SUBPROTOCOL};

/// How a token is named among the subprotocols.
const BEARER_SUBPROTOCOL: &[u8] = b"bearer.";

/// What the client offers as subprotocols.
pub(super) struct Offered {
    /// Whether `shardgate.v1` is among them.
    pub(super) ours: bool,
    /// The token among them.
    pub(super) token: Option<Box<str>>,
}

/// The token of `Authorization: Bearer`, the scheme in any case; another scheme is passed over.
pub(super) fn authorization(fields: &HeaderFields<'_>) -> Option<Box<str>> {
    fields.all("authorization").find_map(|value| {
        let scheme_len = value.iter().position(|&byte| byte == b' ').unwrap_or(value.len());
        let (scheme, token) = value.split_at(scheme_len);
        scheme.eq_ignore_ascii_case(b"bearer").then(|| as_text(token.trim_ascii()))
    })
}

/// `Sec-WebSocket-Protocol: shardgate.v1, bearer.<jwt>`, in any order and over any number of headers.
pub(super) fn subprotocols(fields: &HeaderFields<'_>) -> Offered {
    let offered = || fields.list("sec-websocket-protocol");
    Offered {
        ours: offered().any(|name| name == SUBPROTOCOL.as_bytes()),
        token: offered().find_map(|name| name.strip_prefix(BEARER_SUBPROTOCOL)).map(as_text),
    }
}

/// Bytes that are not UTF-8 are in no good token: they become a character that is in none, either.
fn as_text(token: &[u8]) -> Box<str> {
    String::from_utf8_lossy(token).into()
}
