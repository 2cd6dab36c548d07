//! Answers in JSON, and those of requests that get nothing: what was wrong, and what would be right.

use hyper::StatusCode;
use hyper::header::{ALLOW, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde::Serialize;
use tracing::Level;

use crate::clock::UnixMs;
use crate::config::EffectiveSetting;
use crate::ids::NodeId;
use crate::limits::{ADMIN_REQUESTS_MAX, REVOCATIONS_MAX};
use crate::operations::pages::{JSON, PageResponse, whole};

/// Why a request gets nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 400: the query or the body breaks a rule.
    BadRequest(String),
    /// 401: no token, or a wrong one.
    Unauthorized,
    /// 405: the page takes these methods.
    Method(&'static str),
    /// 503: other requests are being answered.
    Busy,
    /// 507: too many tokens are revoked.
    Full,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'static str,
    message: &'a str,
}

/// The answer to `GET /settings`.
#[derive(Debug, Serialize)]
pub(super) struct SettingsBody<'a> {
    pub(super) node: &'a str,
    pub(super) settings: &'a [EffectiveSetting],
}

/// The answer to `PUT /log`.
#[derive(Debug, Serialize)]
pub(super) struct LogLevelAnswer<'a> {
    node: &'a str,
    level: String,
    /// The level that comes back.
    setting: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

impl<'a> LogLevelAnswer<'a> {
    pub(super) fn new(node: &'a NodeId, level: Level, setting: Level, until: Option<UnixMs>) -> Self {
        let name = |level: Level| level.as_str().to_ascii_lowercase();
        Self { node: &node.0, level: name(level), setting: name(setting), until: until.map(|until| until.to_string()) }
    }
}

/// The answer to a request that gets nothing.
pub(super) fn refuse(refusal: Refusal) -> PageResponse {
    let (status, error, message) = match &refusal {
        Refusal::BadRequest(message) => (StatusCode::BAD_REQUEST, "BadRequest", message.clone()),
        Refusal::Unauthorized => (
            StatusCode::UNAUTHORIZED,
            "Unauthorized",
            "send Authorization: Bearer with a token of ADMIN_TOKEN".to_owned(),
        ),
        Refusal::Method(methods) => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", format!("use {methods}")),
        Refusal::Busy => (
            StatusCode::SERVICE_UNAVAILABLE,
            "Busy",
            format!("{ADMIN_REQUESTS_MAX} other requests of operators are being answered"),
        ),
        Refusal::Full => (
            StatusCode::INSUFFICIENT_STORAGE,
            "Full",
            format!("{REVOCATIONS_MAX} revocations are in force, and none is over"),
        ),
    };
    let mut answer = json(status, &ErrorBody { error, message: &message });
    let header = match refusal {
        Refusal::Unauthorized => Some((WWW_AUTHENTICATE, "Bearer")),
        Refusal::Method(methods) => Some((ALLOW, methods)),
        Refusal::Busy => Some((RETRY_AFTER, "1")),
        Refusal::BadRequest(_) | Refusal::Full => None,
    };
    if let Some((name, value)) = header {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// An answer with a JSON body and a line end.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> PageResponse {
    let mut text = serde_json::to_vec(body).expect("structs of strings, numbers and flags are always JSON");
    text.push(b'\n');
    whole(status, JSON, text)
}
