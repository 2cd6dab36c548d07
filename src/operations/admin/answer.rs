//! Answers in JSON, and those of requests that get nothing: what was wrong, and what would be right.

use hyper::StatusCode;
use hyper::header::{ALLOW, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde::Serialize;

use super::shards::LateShard;
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
    /// 421: the request is for another pod.
    OtherPod(String),
    /// 503: other requests are being answered.
    Busy,
    /// 503: a shard did not answer in time.
    Late(LateShard),
    /// 507: too many tokens are revoked.
    Full,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'static str,
    message: &'a str,
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
        Refusal::OtherPod(node) => (
            StatusCode::MISDIRECTED_REQUEST,
            "OtherPod",
            format!("this is {node}: ask the ADMIN_PORT of the other pod"),
        ),
        Refusal::Late(late) => (StatusCode::SERVICE_UNAVAILABLE, "Busy", late.to_string()),
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
        Refusal::Busy | Refusal::Late(_) => Some((RETRY_AFTER, "1")),
        Refusal::BadRequest(_) | Refusal::OtherPod(_) | Refusal::Full => None,
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
