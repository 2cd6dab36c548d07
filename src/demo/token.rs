//! Tokens for trials: the demo's own, and those of `shardgate token`.

use serde_json::json;

use crate::clock::UnixMs;
use crate::protocol::auth;

/// Makes a token of `user` that allows `assessments`, or any if that is empty, for `seconds` from `now` on.
#[must_use]
pub fn mint(secret: &[u8], user: &str, assessments: &[String], now: UnixMs, seconds: u64) -> String {
    let issued = now.0 / 1000;
    let mut claims = json!({ "userId": user, "iat": issued, "exp": issued.saturating_add(seconds) });
    if !assessments.is_empty() {
        claims["assessments"] = json!(assessments);
    }
    auth::mint(secret, &claims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::TOKEN_LEEWAY;
    use crate::protocol::auth::{Allowed, Grant, Verifier};
    use crate::protocol::head::BearerToken;

    #[test]
    fn a_token_holds_user_assessments_and_expiry() {
        let now = UnixMs(4_000_000_000_999);
        let verifier = Verifier::of_secret(b"secret");
        for (assessments, allowed) in [(vec![], Allowed::Any), (vec!["a".into()], Allowed::Only(["a".into()].into()))] {
            let token = BearerToken(mint(b"secret", "u", &assessments, now, 60).into());
            let expires = Some(UnixMs(4_000_000_060_000).plus(TOKEN_LEEWAY));
            let issued = Some(UnixMs(4_000_000_000_000));
            let grant = Grant { user: "u".into(), expires, allowed, issued, token_id: None };
            assert_eq!(verifier.grant(Some(&token), now), Ok(grant));
        }
    }
}
