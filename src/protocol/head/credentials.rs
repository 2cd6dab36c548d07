//! Finds the token in a request's headers, and whether the client offers the gateway's subprotocol (PROTOCOL 1).
//!
//! The first token found counts, good or bad: an empty token, or one of bytes that no token has, is a bad token. It
//! does not give way to another header or to the query.

use super::{HeaderFields, SUBPROTOCOL};

/// Prefix of a token among the subprotocols.
const BEARER_SUBPROTOCOL: &[u8] = b"bearer.";

/// Subprotocols that the client offers.
pub(super) struct Offered {
    /// Whether `shardgate.v1` is offered.
    pub(super) ours: bool,
    /// The token, if one is offered.
    pub(super) token: Option<Box<str>>,
}

/// Returns the token of `Authorization: Bearer`, the scheme in any case. Other schemes are ignored.
pub(super) fn authorization(fields: &HeaderFields<'_>) -> Option<Box<str>> {
    fields.all("authorization").find_map(|value| {
        let scheme_len = value.iter().position(|&byte| byte == b' ').unwrap_or(value.len());
        let (scheme, token) = value.split_at(scheme_len);
        scheme.eq_ignore_ascii_case(b"bearer").then(|| as_text(token.trim_ascii()))
    })
}

/// Parses `Sec-WebSocket-Protocol: shardgate.v1, bearer.<jwt>`, in any order and over any number of headers.
pub(super) fn subprotocols(fields: &HeaderFields<'_>) -> Offered {
    let offered = || fields.list("sec-websocket-protocol");
    Offered {
        ours: offered().any(|name| name == SUBPROTOCOL.as_bytes()),
        token: offered().find_map(|name| name.strip_prefix(BEARER_SUBPROTOCOL)).map(as_text),
    }
}

/// Replaces bytes that are not UTF-8, which no valid token has, by a character that no valid token has.
fn as_text(token: &[u8]) -> Box<str> {
    String::from_utf8_lossy(token).into()
}
