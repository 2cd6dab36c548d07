//! From a token to who the client is and what it may watch (PROTOCOL 1).

use crate::clock::UnixMs;
use crate::ids::AssessmentId;
use crate::protocol::head::Token;

/// The settings that auth goes by.
#[derive(Clone)]
pub struct Config {
    /// `JWT_SECRET`: the HS256 key.
    pub secret: Box<[u8]>,
    /// `JWT_REQUIRE_ASSESSMENTS`: a token without the claim may watch none.
    pub require_assessments: bool,
}

/// The secret never prints.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("require_assessments", &self.require_assessments).finish_non_exhaustive()
    }
}

/// Checks tokens. One a shard.
pub struct Verifier {
    _private: (),
}

/// What a good token grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The user, from `userId`, else `sub`.
    pub user: Box<str>,
    /// When the token has run out, its leeway included.
    pub expires: Option<UnixMs>,
    /// What it may watch.
    pub allowed: Allowed,
}

/// What a token's holder may watch, beside market data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// Any assessment.
    Any,
    /// These.
    Only(Box<[Box<str>]>),
}

impl Allowed {
    /// Whether it covers an assessment.
    #[must_use]
    pub fn covers(&self, assessment: &AssessmentId) -> bool {
        match self {
            Self::Any => true,
            Self::Only(ids) => ids.iter().any(|id| **id == *assessment.as_str()),
        }
    }
}

/// Why a token is no good. The text is meant for the client and never holds any of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unauthorized {
    /// None was given.
    #[error("no token: send Authorization: Bearer, the subprotocol bearer.<jwt>, or token= in the query")]
    Missing,
    /// Not three parts of base64url JSON, or a claim of a wrong type.
    #[error("the token is not a valid JWT")]
    Malformed,
    /// `alg` is not HS256.
    #[error("the token's algorithm is not HS256")]
    Algorithm,
    /// The signature doesn't match.
    #[error("the token's signature does not match")]
    Signature,
    /// `exp` and its leeway have passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` has not come yet.
    #[error("the token is not valid yet")]
    NotYet,
    /// Neither `userId` nor `sub`.
    #[error("the token names no user: it takes userId or sub")]
    NoUser,
}

impl Verifier {
    /// A verifier for these settings.
    #[must_use]
    pub fn new(_config: &Config) -> Self {
        unimplemented!()
    }

    /// What a token grants at `now`.
    ///
    /// # Errors
    /// Why it grants nothing.
    pub fn verify(&self, _token: Option<&Token>, _now: UnixMs) -> Result<Grant, Unauthorized> {
        unimplemented!()
    }
}
