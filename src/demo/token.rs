//! Tokens for trying things out: HS256, as the gateway checks them (PROTOCOL 1).

use jsonwebtoken::{EncodingKey, Header, encode};
use serde::Serialize;

use crate::clock::UnixMs;

/// What a token claims.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Claims {
    /// The user.
    pub user_id: String,
    /// The assessments that it may watch; without it, any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assessments: Option<Vec<String>>,
    /// When it was made, in s since the Unix epoch.
    pub iat: u64,
    /// When it runs out, in s since the Unix epoch.
    pub exp: u64,
}

impl Claims {
    /// Claims that hold for `seconds` from `now` on.
    #[must_use]
    pub fn new(user_id: &str, assessments: Option<Vec<String>>, now: UnixMs, seconds: u64) -> Self {
        let iat = now.0 / 1000;
        Self { user_id: user_id.to_owned(), assessments, iat, exp: iat.saturating_add(seconds) }
    }

    /// The token.
    ///
    /// # Errors
    /// Where the JWT library refuses; it has no reason to.
    pub fn mint(&self, secret: &[u8]) -> Result<String, jsonwebtoken::errors::Error> {
        encode(&Header::default(), self, &EncodingKey::from_secret(secret))
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation, decode};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_token_says_who_may_watch_what_and_until_when() {
        let now = UnixMs(4_000_000_000_999);
        let read = |claims: Claims| {
            let token = claims.mint(b"secret").unwrap();
            decode::<Value>(token, &DecodingKey::from_secret(b"secret"), &Validation::default()).unwrap().claims
        };
        assert_eq!(
            read(Claims::new("u", None, now, 60)),
            json!({"userId": "u", "iat": 4_000_000_000_u64, "exp": 4_000_000_060_u64})
        );
        assert_eq!(read(Claims::new("u", Some(vec!["a".into()]), now, 60))["assessments"], json!(["a"]));
    }
}
