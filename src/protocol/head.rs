//! The head of a client's request (PROTOCOL 1; RFC 9112, RFC 6455 section 4.2): parsed within limits, checked by rules,
//! and answered if it is refused before an upgrade. It owns the form of a request; [`super::auth`] verifies the token,
//! and the shard decides whether there is room for the client.
//!
//! - [`Scan`] first finds the head's end, within `MAX_HEAD_BYTES`, and scans each byte once however the head is split.
//!   It reports bad bytes (a lone LF, a control byte) before the head is complete, since its end may never arrive.
//! - A complete head is checked in this order: syntax and framing (400), path (404), method (405), and for `/ws` a body
//!   (400), the handshake's headers (426, 400) and the origin (403). The first fault is the answer.
//! - `head/query.rs` and `head/credentials.rs` parse what the client asks for; `head/answer.rs` writes the answer.
//!
//! The contract leaves these open: HTTP/1.0 can't upgrade (RFC 9110 section 7.8), so it gets 426; an operator's probe
//! may use it. A repeated `Sec-WebSocket-Version` counts as an unsupported version. Empty lines before the request are
//! skipped (RFC 9112 section 2.2) and count as part of the head. The path is compared as written.

mod answer;
mod credentials;
pub mod origin;
mod query;

use std::net::{IpAddr, Ipv4Addr};

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use httparse::{EMPTY_HEADER, Header, Request, Status};
use memchr::memmem;

use crate::ids::{AssessmentId, InvalidAssessmentId};
use crate::limits::REQUEST_HEADERS_MAX;
use crate::protocol::client_address::{self, Contradiction, ForwardedFields, TrustedProxies};
use crate::protocol::pages::Page;

use self::origin::OriginPattern;
pub(crate) use answer::{Allow, HttpRefusal, RequestFault, Unavailable};

/// The gateway's subprotocol, for clients that can send a token only as a subprotocol.
const SUBPROTOCOL: &str = "shardgate.v1";

/// Base64 as clients write it: the last two characters of a key may carry unused bits, as in keys that were made up by
/// hand.
const KEY_ENCODING: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// Bytes of a decoded `Sec-WebSocket-Key` (RFC 6455 section 4.1).
const KEY_BYTES: usize = 16;

/// Settings and facts of the pod that the rules use.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Allowed origins of browsers; `None` stands for `*`, any origin.
    pub allowed_origins: Option<Vec<OriginPattern>>,
    /// The longest head with its last CRLF, in bytes.
    pub head_bytes_max: usize,
    /// Proxies whose `X-Forwarded-For` and `Forwarded` are trusted.
    pub trusted_proxies: TrustedProxies,
    /// Whether the operators' pages are served on this port.
    pub operators: bool,
}

/// Any origin, operators' pages, 8 KiB, no proxy.
impl Default for Rules {
    fn default() -> Self {
        let trusted_proxies = TrustedProxies::default();
        Self { allowed_origins: None, operators: true, head_bytes_max: 8 * 1024, trusted_proxies }
    }
}

/// Result of parsing the bytes read so far.
#[derive(Debug)]
pub enum Parsed {
    /// The head's end has not arrived.
    Incomplete,
    /// A good WebSocket handshake; bytes past `head_len` are the client's first frames.
    Upgrade {
        /// The client's request.
        upgrade: Upgrade,
        /// The head's bytes, its last CRLF included.
        head_len: usize,
    },
    /// A GET or HEAD of an operators' page; the HTTP library gets all bytes read so far.
    Operators,
    /// Refused: write [`HttpRefusal::response`], discard further input, close.
    Refused(HttpRefusal),
}

/// A good handshake.
#[derive(Debug)]
pub struct Upgrade {
    /// The answer's `Sec-WebSocket-Accept`.
    pub(crate) accept: Box<str>,
    /// Whether the client offered `shardgate.v1`; if so, the answer names it.
    pub(crate) subprotocol: bool,
    /// The assessment to subscribe to; `None` for market data only.
    pub assessment: Result<Option<AssessmentId>, BadAssessment>,
    /// The first token that the request gives.
    pub(crate) token: Option<BearerToken>,
    /// The cursor to resume from; `None` without an assessment.
    pub cursor: Option<Box<str>>,
    /// Name of the pod that the client was redirected to, and does not reach.
    pub(crate) unreachable: Option<Box<str>>,
    /// The client's address.
    pub(crate) client: IpAddr,
}

/// Why the request's `assessmentId` is invalid: `BadRequest`, after the upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAssessment {
    /// The id breaks its rule.
    #[error(transparent)]
    Invalid(#[from] InvalidAssessmentId),
    /// The parameter is given twice.
    #[error("assessmentId is given twice; it takes one")]
    Twice,
    /// A percent sign lacks its two hex digits, or the bytes are not UTF-8.
    #[error("assessmentId is not percent-encoded UTF-8")]
    BrokenEscape,
}

/// A token as the client sent it. `Debug` hides it, so that it can't reach a log.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken(pub Box<str>);

impl std::fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Parses a request from an unknown address.
#[must_use]
pub fn parse(read: &[u8], rules: &Rules) -> Parsed {
    Scan::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).parse(read, rules)
}

/// Parsing state of a head that arrives in pieces: each byte is scanned once, however small the pieces are.
#[derive(Debug, Clone, Copy)]
pub struct Scan {
    /// The address that connected, or the one in a proxy's header.
    peer: IpAddr,
    /// Start of the request, behind leading empty lines.
    start: usize,
    /// Bytes before this index hold neither a fault nor the head's end.
    seen: usize,
}

impl Scan {
    /// Starts a head from `peer`.
    #[must_use]
    pub fn new(peer: IpAddr) -> Self {
        Self { peer, start: 0, seen: 0 }
    }

    /// Parses all bytes read of a request so far; they begin with the bytes of the previous call.
    pub fn parse(&mut self, read: &[u8], rules: &Rules) -> Parsed {
        let within = &read[..read.len().min(rules.head_bytes_max)];
        while self.seen <= self.start && within[self.start..].starts_with(b"\r\n") {
            self.start += 2;
        }
        // A CRLF, or the head's end, may begin in bytes that were scanned before.
        let from = self.seen.saturating_sub(3).max(self.start);
        let end = memmem::find(&within[from..], b"\r\n\r\n").map(|at| from + at + 4);
        let head = &within[self.start..end.unwrap_or(within.len())];
        if let Some(fault) = fault_in_bytes(head, from - self.start) {
            return Parsed::Refused(HttpRefusal::Malformed(fault));
        }
        match end {
            Some(head_len) => judge(head, head_len, self.peer, rules).unwrap_or_else(Parsed::Refused),
            None if within.len() == rules.head_bytes_max => Parsed::Refused(HttpRefusal::TooLarge),
            None => {
                // A lone CR at the start may begin an empty line.
                self.seen = if head == b"\r" { self.start } else { within.len() };
                Parsed::Incomplete
            }
        }
    }
}

/// Finds bytes that no head may contain, at `from` or behind. httparse alone is not enough: it accepts a lone LF as a
/// line's end.
fn fault_in_bytes(head: &[u8], from: usize) -> Option<RequestFault> {
    let new = &head[from..];
    let lone_lf = memchr::memchr_iter(b'\n', new).any(|at| from + at == 0 || head[from + at - 1] != b'\r');
    // The LF of a CR at the end may still arrive.
    let lone_cr = memchr::memchr_iter(b'\r', new).any(|at| new.get(at + 1).is_some_and(|&next| next != b'\n'));
    if lone_lf || lone_cr {
        return Some(RequestFault::LineEnding);
    }
    let control = |byte: &u8| byte.is_ascii_control() && !matches!(byte, b'\r' | b'\n' | b'\t');
    new.iter().any(control).then_some(RequestFault::ControlByte)
}

/// Checks a complete head.
fn judge(head: &[u8], head_len: usize, peer: IpAddr, rules: &Rules) -> Result<Parsed, HttpRefusal> {
    let mut table = [EMPTY_HEADER; REQUEST_HEADERS_MAX];
    let mut request = Request::new(&mut table);
    match request.parse(head) {
        Ok(Status::Complete(len)) if len == head.len() => {}
        Ok(_) => return Err(HttpRefusal::Malformed(RequestFault::Syntax)),
        Err(httparse::Error::TooManyHeaders) => return Err(HttpRefusal::TooLarge),
        Err(_) => return Err(HttpRefusal::Malformed(RequestFault::Syntax)),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(HttpRefusal::Malformed(RequestFault::Syntax));
    };
    let fields = HeaderFields(request.headers);
    let has_body = check_framing(&fields, version)?;
    let target = RequestTarget::parse(target)?;

    if rules.operators && Page::of(target.path).is_some() {
        return match method {
            "GET" | "HEAD" if !has_body => Ok(Parsed::Operators),
            "GET" | "HEAD" => Err(HttpRefusal::Malformed(RequestFault::Body)),
            _ => Err(HttpRefusal::Method(Allow::GetAndHead)),
        };
    }
    if target.path != "/ws" {
        return Err(HttpRefusal::Path);
    }
    if method != "GET" {
        return Err(HttpRefusal::Method(Allow::Get));
    }
    if has_body {
        return Err(HttpRefusal::Malformed(RequestFault::Body));
    }
    if version == 0 || !asks_for_upgrade(&fields) {
        return Err(HttpRefusal::UpgradeRequired);
    }
    let accept = accept_of(&fields).ok_or(HttpRefusal::Malformed(RequestFault::Key))?;
    if !origin_is_allowed(&fields, rules) {
        return Err(HttpRefusal::Origin);
    }
    let client = client_address(&fields, peer, rules).map_err(|_| HttpRefusal::Malformed(RequestFault::Forwarded))?;
    let asked = query::parse(target.query);
    let offered = credentials::subprotocols(&fields);
    let token = credentials::authorization(&fields).or(offered.token).or(asked.token);
    let cursor = asked.cursor.filter(|_| matches!(asked.assessment, Ok(Some(_))));
    let (assessment, token) = (asked.assessment, token.map(BearerToken));
    let unreachable = asked.unreachable;
    let upgrade = Upgrade { accept, subprotocol: offered.ours, assessment, token, cursor, unreachable, client };
    Ok(Parsed::Upgrade { upgrade, head_len })
}

/// Refuses a head that two servers could read differently (RFC 9112 sections 3.2 and 6.3); returns whether a body
/// follows.
fn check_framing(fields: &HeaderFields<'_>, version: u8) -> Result<bool, HttpRefusal> {
    let hosts = fields.all("host").count();
    let host_is_sound = fields.all("host").all(|host| host.iter().all(|byte| is_host_byte(*byte)));
    if hosts > 1 || (hosts == 0 && version > 0) || !host_is_sound {
        return Err(HttpRefusal::Malformed(RequestFault::Host));
    }
    let lengths = fields.all("content-length").count();
    let encodings = fields.all("transfer-encoding").count();
    if lengths + encodings > 1 {
        return Err(HttpRefusal::Malformed(RequestFault::Framing));
    }
    match fields.only("content-length") {
        Some(length) if length.is_empty() || !length.iter().all(u8::is_ascii_digit) => {
            Err(HttpRefusal::Malformed(RequestFault::Framing))
        }
        Some(length) => Ok(length.iter().any(|&digit| digit != b'0')),
        None => Ok(encodings > 0),
    }
}

/// Whether a host or port may contain this byte (RFC 3986).
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:[]".contains(&byte)
}

fn asks_for_upgrade(fields: &HeaderFields<'_>) -> bool {
    let has_token = |name, token: &str| fields.list(name).any(|item| item.eq_ignore_ascii_case(token.as_bytes()));
    has_token("connection", "upgrade")
        && has_token("upgrade", "websocket")
        && fields.only("sec-websocket-version") == Some(b"13")
}

/// Returns the answer to the request's `Sec-WebSocket-Key`, if there is exactly one and it is valid.
fn accept_of(fields: &HeaderFields<'_>) -> Option<Box<str>> {
    let key = fields.only("sec-websocket-key")?;
    let is_good = KEY_ENCODING.decode(key).is_ok_and(|bytes| bytes.len() == KEY_BYTES);
    is_good.then(|| tungstenite::handshake::derive_accept_key(key).into())
}

/// Whether the origin is missing or allowed. Two `Origin` headers are not allowed.
fn origin_is_allowed(fields: &HeaderFields<'_>, rules: &Rules) -> bool {
    let Some(allowed) = &rules.allowed_origins else { return true };
    let mut origins = fields.all("origin");
    match (origins.next(), origins.next()) {
        (None, _) => true,
        (Some(origin), None) => allowed.iter().any(|pattern| pattern.matches(origin)),
        (Some(_), Some(_)) => false,
    }
}

fn client_address(fields: &HeaderFields<'_>, peer: IpAddr, rules: &Rules) -> Result<IpAddr, Contradiction> {
    let all = |name| fields.all(name).collect::<Vec<_>>();
    let (x_forwarded_for, forwarded) = (all("x-forwarded-for"), all("forwarded"));
    let fields = ForwardedFields { x_forwarded_for: &x_forwarded_for, forwarded: &forwarded };
    client_address::client_of(peer, &rules.trusted_proxies, fields)
}

/// A request's target.
struct RequestTarget<'a> {
    path: &'a str,
    query: &'a str,
}

impl<'a> RequestTarget<'a> {
    /// Parses a target in origin form or absolute form (RFC 9112 section 3.2).
    fn parse(target: &'a str) -> Result<Self, HttpRefusal> {
        const MALFORMED: HttpRefusal = HttpRefusal::Malformed(RequestFault::RequestTarget);
        if target.contains('#') {
            return Err(MALFORMED);
        }
        if target == "*" {
            return Err(HttpRefusal::Path);
        }
        let from_path = if target.starts_with('/') {
            target
        } else {
            let (scheme, rest) = target.split_once("://").ok_or(MALFORMED)?;
            let is_ours = ["http", "https", "ws", "wss"].iter().any(|ours| scheme.eq_ignore_ascii_case(ours));
            let authority_len = rest.find(['/', '?']).unwrap_or(rest.len());
            if !is_ours || authority_len == 0 {
                return Err(MALFORMED);
            }
            &rest[authority_len..]
        };
        let (path, query) = from_path.split_once('?').unwrap_or((from_path, ""));
        Ok(Self { path: if path.is_empty() { "/" } else { path }, query })
    }
}

/// A head's header fields. Names are given in lower case and match in any.
struct HeaderFields<'a>(&'a [Header<'a>]);

impl<'a> HeaderFields<'a> {
    /// The values of every field of this name.
    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// The value of the field of this name, if there is exactly one.
    fn only(&self, name: &str) -> Option<&'a [u8]> {
        let mut all = self.all(name);
        all.next().filter(|_| all.next().is_none())
    }

    /// The items of a comma list, which may be spread over several fields (RFC 9110 section 5.6.1).
    fn list(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.all(name).flat_map(|value| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
    }
}

#[cfg(test)]
mod tests;
