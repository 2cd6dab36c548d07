//! A request's query (PROTOCOL 1): `assessmentId`, `token`, `cursor` and `unreachable`; others are ignored.
//!
//! Names are percent-decoded before they are compared, like values, because a client's library may encode any
//! character; so a repeated id can't hide behind an escape. `+` stays a plus. Of several `token` or `cursor` parameters
//! the first counts, good or bad. A broken escape makes a token or cursor invalid, which is reported when it is
//! verified.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::BadAssessment;
use crate::ids::AssessmentId;

/// The parameters of a query.
pub(super) struct Query {
    pub(super) assessment: Result<Option<AssessmentId>, BadAssessment>,
    pub(super) token: Option<Box<str>>,
    /// `None` also if the parameter is empty.
    pub(super) cursor: Option<Box<str>>,
    pub(super) unreachable: Option<Box<str>>,
}

/// Parses a query.
pub(super) fn parse(query: &str) -> Query {
    let parameters = || query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let values = |wanted: &'static [u8]| {
        let is_wanted = move |name: &str| Cow::from(percent_decode_str(name)) == wanted;
        parameters().filter(move |(name, _)| is_wanted(name)).map(|(_, value)| value)
    };
    let first = |name| values(name).next().map(|value| percent_decode_str(value).decode_utf8_lossy());
    Query {
        assessment: assessment_of(values(b"assessmentId")),
        token: first(b"token").map(Into::into),
        cursor: first(b"cursor").filter(|cursor| !cursor.is_empty()).map(Into::into),
        unreachable: first(b"unreachable").map(Into::into),
    }
}

fn assessment_of<'a>(mut values: impl Iterator<Item = &'a str>) -> Result<Option<AssessmentId>, BadAssessment> {
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(BadAssessment::Twice);
    }
    if !escapes_are_whole(value) {
        return Err(BadAssessment::BrokenEscape);
    }
    let id = percent_decode_str(value).decode_utf8().map_err(|_| BadAssessment::BrokenEscape)?;
    Ok(Some(AssessmentId::parse(&id)?))
}

/// Whether each percent sign has its two hex digits; the decoder would keep a broken escape as it is.
fn escapes_are_whole(value: &str) -> bool {
    value
        .split('%')
        .skip(1)
        .all(|rest| matches!(rest.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()))
}
