//! From a record's payload to a message's JSON (PROTOCOL 3): values pass byte for byte, an absent field is left out.
//! It owns the finding of a record's assessment, too, for both read the payload the same way.

use std::borrow::Cow;

use super::table::Topic;

/// Why a record can't be used. Each is counted under its label, and harms nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// A tombstone: no payload.
    #[error("the record has no payload")]
    NoPayload,
    /// Not UTF-8, not JSON, or not an object.
    #[error("the payload is not a JSON object")]
    NotAnObject,
    /// `assessmentId` (or the key) is missing, given twice, no string, or outside of its rule.
    #[error("the record has not exactly one valid assessmentId")]
    NoAssessment,
}

/// Checks that a payload is a JSON object in UTF-8 and finds its one `assessmentId`, copying nothing unless the id is
/// written with escapes.
///
/// # Errors
/// What makes the record unusable.
pub fn assessment_of(_payload: &[u8]) -> Result<Cow<'_, str>, Malformed> {
    unimplemented!()
}

/// Checks that a payload is a JSON object in UTF-8.
///
/// # Errors
/// [`Malformed::NotAnObject`].
pub fn check_object(_payload: &[u8]) -> Result<(), Malformed> {
    unimplemented!()
}

/// Appends the message's JSON to `out` without its closing brace, so that the caller can add a cursor. The result is
/// never empty: it has at least `{"type":"…"`. On an error `out` is as it was.
///
/// # Errors
/// [`Malformed::NotAnObject`] where the payload is none.
pub fn map_open(_topic: &Topic, _payload: &[u8], _out: &mut Vec<u8>) -> Result<(), Malformed> {
    unimplemented!()
}
