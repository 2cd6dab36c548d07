//! Tokens for trials: the demo's own, and those of `shardgate token`.

use serde_json::{Value, json};

use crate::clock::UnixMs;
use crate::protocol::auth;

/// The claims of a token of `user` that allows `assessments`, or any if that is empty, for `seconds` from `now` on; it has
/// expired if they are negative.
#[must_use]
pub fn claims(user: &str, assessments: &[String], now: UnixMs, seconds: i64) -> Value {
    let issued = now.0 / 1000;
    let mut claims = json!({ "userId": user, "iat": issued, "exp": issued.saturating_add_signed(seconds) });
    if !assessments.is_empty() {
        claims["assessments"] = json!(assessments);
    }
    claims
}

/// Makes a token with these claims.
#[must_use]
pub fn mint(secret: &[u8], user: &str, assessments: &[String], now: UnixMs, seconds: i64) -> String {
    auth::mint(secret, &claims(user, assessments, now, seconds))
}

/// Parses a lifetime in seconds: such as `1h`, `90s` or `3600`, with a minus for one that is over.
///
/// # Errors
/// What it takes.
pub fn parse_lifetime(text: &str) -> Result<i64, String> {
    let (sign, amount) = text.strip_prefix('-').map_or((1, text), |amount| (-1, amount));
    let seconds = amount.parse().ok().or_else(|| Some(humantime::parse_duration(amount).ok()?.as_secs()));
    let seconds = seconds.and_then(|seconds| i64::try_from(seconds).ok());
    seconds.map(|seconds| sign * seconds).ok_or_else(|| "takes a time such as 1h, 90s or 3600, or -1h".to_owned())
}

/// Parses a claim, `NAME=VALUE`: a value that is no JSON is a text.
///
/// # Errors
/// What it takes.
pub fn parse_claim(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("takes NAME=VALUE")?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
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

    #[test]
    fn a_lifetime_has_a_unit_or_is_in_seconds_and_may_be_over() {
        let good = [("1h", 3600), ("90s", 90), ("3600", 3600), ("1h 30m", 5400), ("-1h", -3600), ("0", 0)];
        for (text, seconds) in good {
            assert_eq!(parse_lifetime(text), Ok(seconds), "{text}");
        }
        for wrong in ["", "-", "h", "1 parsec", "--1h", "1.5", &u64::MAX.to_string()] {
            assert!(parse_lifetime(wrong).is_err(), "{wrong}");
        }
        assert_eq!(claims("u", &[], UnixMs(10_000), -20)["exp"], 0);
    }

    #[test]
    fn a_claim_is_json_or_a_text() {
        for (text, name, value) in [
            ("role=admin", "role", json!("admin")),
            ("n=7", "n", json!(7)),
            ("aud=[\"a\",\"b\"]", "aud", json!(["a", "b"])),
            ("x==", "x", json!("=")),
        ] {
            assert_eq!(parse_claim(text), Ok((name.to_owned(), value)));
        }
        assert!(parse_claim("role").is_err() && parse_claim("=x").is_err());
    }
}
