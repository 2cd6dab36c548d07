//! Verifies a token and reads from it the user and the assessments it allows (PROTOCOL 1). Owns the claims, their rules
//! and the signature (HS256); [`super::head`] finds the token in a request.
//!
//! The contract leaves these open:
//! - A `userId` or `sub` that is neither a non-empty string nor a number counts as missing: `"userId":null` or `""`
//!   falls back to `sub`.
//! - A present `exp` or `nbf` that is not a number (null, too) makes the token malformed: a time that can't be read
//!   must not mean 'no limit'. The same holds for a claim that is given twice, and for `crit` in the header (RFC 7515
//!   section 4.1.11), since we understand no extension.
//! - An item of `assessments` that is not a string is ignored; the others count.
//! - A numeric user is kept as written, digit by digit: `42`, `1.0`, a hundred digits.

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::Sha256;

use crate::clock::UnixMs;
use crate::ids::AssessmentId;
use crate::limits::TOKEN_LEEWAY;
use crate::protocol::head::BearerToken;

/// Settings of token verification.
#[derive(Clone)]
pub struct AuthConfig {
    /// `JWT_SECRET`: the HS256 key.
    pub secret: Box<[u8]>,
    /// `JWT_REQUIRE_ASSESSMENTS`: a token without the claim allows no assessment.
    pub require_assessments: bool,
}

/// The secret never prints.
impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig").field("require_assessments", &self.require_assessments).finish_non_exhaustive()
    }
}

/// Checks tokens. Each shard has one.
pub struct Verifier {
    /// Keyed with the secret; each check starts from a copy.
    hmac: Hmac<Sha256>,
    require_assessments: bool,
}

/// The key never prints.
impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("require_assessments", &self.require_assessments).finish_non_exhaustive()
    }
}

/// The grant of a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The user, from `userId`, else `sub`.
    pub user: Box<str>,
    /// Expiry of the token, with the leeway added.
    pub expires: Option<UnixMs>,
    /// The assessments that it allows.
    pub allowed: Allowed,
}

/// Assessments that a token allows. Market data is allowed with any token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// Any assessment.
    Any,
    /// The listed assessments.
    Only(Box<[Box<str>]>),
}

impl Allowed {
    /// Whether an assessment is allowed.
    #[must_use]
    pub(crate) fn covers(&self, assessment: &AssessmentId) -> bool {
        match self {
            Self::Any => true,
            Self::Only(ids) => ids.iter().any(|id| **id == *assessment.as_str()),
        }
    }
}

/// Why a token is rejected. The text is meant for the client and never holds any part of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unauthorized {
    /// The request has no token.
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
    /// `exp` has passed, and the leeway too.
    #[error("the token has expired")]
    Expired,
    /// `nbf` lies in the future.
    #[error("the token is not valid yet")]
    NotYet,
    /// Neither `userId` nor `sub`.
    #[error("the token names no user: it takes userId or sub")]
    NoUser,
}

/// The fields of a token's header that verification reads.
#[derive(Deserialize)]
struct JoseHeader<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(default, deserialize_with = "present")]
    crit: Option<Value>,
}

/// The claims that verification reads. A claim that is present is `Some`, even if it is null.
#[derive(Deserialize)]
struct Claims<'a> {
    #[serde(borrow, default, rename = "userId", deserialize_with = "present")]
    user_id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    sub: Option<&'a RawValue>,
    /// Unix time in seconds.
    #[serde(default, deserialize_with = "present")]
    exp: Option<f64>,
    /// Unix time in seconds.
    #[serde(default, deserialize_with = "present")]
    nbf: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    assessments: Option<Value>,
}

impl Verifier {
    /// Makes a verifier for these settings.
    #[must_use]
    pub fn new(config: &AuthConfig) -> Self {
        Self { hmac: keyed(&config.secret), require_assessments: config.require_assessments }
    }

    /// Returns what a token grants at `now`.
    ///
    /// # Errors
    /// Why the token is rejected.
    pub fn verify(&self, token: Option<&BearerToken>, now: UnixMs) -> Result<Grant, Unauthorized> {
        let token = &*token.ok_or(Unauthorized::Missing)?.0;
        let json = self.signed_claims(token)?;
        // serde would take an array for the struct, too.
        if !json.trim_ascii_start().starts_with(b"{") {
            return Err(Unauthorized::Malformed);
        }
        let claims: Claims<'_> = serde_json::from_slice(&json).map_err(|_| Unauthorized::Malformed)?;
        let leeway_ms = TOKEN_LEEWAY.as_secs_f64() * 1000.0;
        let expires = claims.exp.map(|exp| unix_ms(exp * 1000.0 + leeway_ms));
        if expires.is_some_and(|expires| now >= expires) {
            return Err(Unauthorized::Expired);
        }
        if claims.nbf.is_some_and(|nbf| now < unix_ms(nbf * 1000.0 - leeway_ms)) {
            return Err(Unauthorized::NotYet);
        }
        let user = claims.user_id.and_then(user_of).or_else(|| claims.sub.and_then(user_of));
        let allowed = match claims.assessments {
            None if self.require_assessments => Allowed::Only(Box::default()),
            None => Allowed::Any,
            Some(claim) => Allowed::Only(strings_of(claim)),
        };
        Ok(Grant { user: user.ok_or(Unauthorized::NoUser)?, expires, allowed })
    }

    /// Returns the claims' JSON after checking the algorithm and the signature.
    fn signed_claims(&self, token: &str) -> Result<Vec<u8>, Unauthorized> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Unauthorized::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Unauthorized::Malformed)?;
        let header = decode(header)?;
        let header: JoseHeader<'_> = serde_json::from_slice(&header).map_err(|_| Unauthorized::Malformed)?;
        if header.alg != "HS256" {
            return Err(Unauthorized::Algorithm);
        }
        let (claims, signature) = (decode(claims)?, decode(signature)?);
        // This comparison takes constant time.
        let verdict = self.hmac.clone().chain_update(signed).verify_slice(&signature);
        verdict.map_err(|_| Unauthorized::Signature)?;
        // `crit` demands extensions, and we understand none.
        if header.crit.is_some() { Err(Unauthorized::Malformed) } else { Ok(claims) }
    }
}

/// Signs a token with these claims.
#[must_use]
pub fn mint(secret: &[u8], claims: &Value) -> String {
    sign(secret, r#"{"alg":"HS256","typ":"JWT"}"#, &claims.to_string())
}

fn sign(secret: &[u8], header: &str, claims: &str) -> String {
    let signed = [header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).join(".");
    let signature = keyed(secret).chain_update(&signed).finalize().into_bytes();
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

fn keyed(secret: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret).expect("HMAC takes keys of any length")
}

fn decode(part: &str) -> Result<Vec<u8>, Unauthorized> {
    BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| Unauthorized::Malformed)
}

/// Keeps null apart from a missing claim: serde's `Option` reads both as `None`.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Converts to the nearest time that `UnixMs` holds: a claim may lie before 1970, or beyond the last `u64`. The cast of
/// a float saturates, which is what we want.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of a float saturates")]
fn unix_ms(ms: f64) -> UnixMs {
    UnixMs(ms as u64)
}

/// Reads a non-empty string, or a number as written.
fn user_of(claim: &RawValue) -> Option<Box<str>> {
    let json = claim.get();
    let user: Box<str> = match json.bytes().next()? {
        b'"' => serde_json::from_str(json).ok()?,
        b'-' | b'0'..=b'9' => json.into(),
        _ => return None,
    };
    (!user.is_empty()).then_some(user)
}

fn strings_of(claim: Value) -> Box<[Box<str>]> {
    let Value::Array(items) = claim else { return Box::default() };
    let string_of = |item| if let Value::String(id) = item { Some(id.into_boxed_str()) } else { None };
    items.into_iter().filter_map(string_of).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const SECRET: &[u8] = b"a secret for the tests, 32 bytes";
    /// 2026-09-21.
    const NOW: UnixMs = UnixMs(1_790_000_000_000);
    const NOW_SECONDS: f64 = 1_790_000_000.0;

    fn verify(token: &str) -> Result<Grant, Unauthorized> {
        verifier(false).verify(Some(&BearerToken(token.into())), NOW)
    }

    fn verifier(require_assessments: bool) -> Verifier {
        Verifier::new(&AuthConfig { secret: SECRET.into(), require_assessments })
    }

    /// Signs any header and claims, also such as no JSON library writes.
    fn signed(header: &str, claims: &str) -> String {
        sign(SECRET, header, claims)
    }

    fn with_claims(claims: &str) -> Result<Grant, Unauthorized> {
        verify(&signed(r#"{"alg":"HS256","typ":"JWT"}"#, claims))
    }

    #[test]
    fn a_minted_token_grants_what_it_says() {
        let token = mint(SECRET, &json!({ "userId": "u-1", "sub": "s-1", "exp": 1_790_000_060, "assessments": ["a"] }));
        let grant = verify(&token).unwrap();
        let allowed = Allowed::Only(["a".into()].into());
        assert_eq!(grant, Grant { user: "u-1".into(), expires: Some(UnixMs(1_790_000_090_000)), allowed });
    }

    #[test]
    fn a_token_of_another_library_is_accepted() {
        // The example of RFC 7515, appendix A.1: its header has line breaks, its claims a URL for a name.
        let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9\
                     .eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ\
                     .dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let secret = BASE64_URL_SAFE_NO_PAD.decode(key).unwrap().into();
        let verifier = Verifier::new(&AuthConfig { secret, require_assessments: false });
        let verify_at = |seconds: u64| verifier.verify(Some(&BearerToken(token.into())), UnixMs(seconds * 1000));
        assert_eq!(verify_at(1_300_819_380), Err(Unauthorized::NoUser), "the signature and the time are good");
        assert_eq!(verify_at(1_300_819_380 + 30), Err(Unauthorized::Expired));
    }

    #[test]
    fn the_user_is_user_id_else_sub_a_string_or_a_number() {
        for (claims, user) in [
            (r#"{"sub":"s"}"#, Some("s")),
            (r#"{"userId":"u","sub":"s"}"#, Some("u")),
            (r#"{"userId":42}"#, Some("42")),
            (r#"{"userId":0,"sub":"s"}"#, Some("0")),
            (r#"{"sub":123456789012345678901234567890}"#, Some("123456789012345678901234567890")),
            (r#"{"sub":-1.50e3}"#, Some("-1.50e3")),
            (r#"{"sub":"\u00fc\n"}"#, Some("ü\n")),
            (r#"{"userId":"","sub":"s"}"#, Some("s")),
            (r#"{"userId":null,"sub":"s"}"#, Some("s")),
            (r#"{"userId":{"id":1},"sub":7}"#, Some("7")),
            (r#"{"userId":true}"#, None),
            (r#"{"userId":["u"],"sub":""}"#, None),
            (r#"{"sub":null}"#, None),
            (r#"{"sub":"\ud800"}"#, None),
            (r#"{"name":"x"}"#, None),
        ] {
            let got = with_claims(claims).map(|grant| grant.user);
            assert_eq!(got, user.map(Into::into).ok_or(Unauthorized::NoUser), "{claims}");
        }
    }

    #[test]
    fn exp_counts_with_its_leeway_and_its_fraction() {
        for (exp, left_ms) in [(NOW_SECONDS, Some(30_000)), (NOW_SECONDS - 29.5, Some(500)), (NOW_SECONDS - 30.0, None)]
        {
            let expires = with_claims(&json!({ "sub": "s", "exp": exp }).to_string()).map(|grant| grant.expires);
            let expected = left_ms.map(|ms| Some(UnixMs(NOW.0 + ms))).ok_or(Unauthorized::Expired);
            assert_eq!(expires, expected, "exp {exp}");
        }
        assert_eq!(with_claims(r#"{"sub":"s"}"#).unwrap().expires, None);
    }

    #[test]
    fn nbf_counts_with_its_leeway_and_its_fraction() {
        for (nbf, good) in [(NOW_SECONDS + 30.0, true), (NOW_SECONDS + 30.5, false), (0.0, true), (-1.0, true)] {
            let verdict = with_claims(&json!({ "sub": "s", "nbf": nbf }).to_string()).map(|_| ());
            assert_eq!(verdict, if good { Ok(()) } else { Err(Unauthorized::NotYet) }, "nbf {nbf}");
        }
    }

    #[test]
    fn absurd_times_do_not_panic() {
        for (claims, verdict) in [
            (r#"{"sub":"s","exp":1e300}"#, Ok(Some(UnixMs(u64::MAX)))),
            (r#"{"sub":"s","exp":-1e300}"#, Err(Unauthorized::Expired)),
            (r#"{"sub":"s","exp":-0}"#, Err(Unauthorized::Expired)),
            (r#"{"sub":"s","nbf":-1e300}"#, Ok(None)),
            (r#"{"sub":"s","nbf":1e300}"#, Err(Unauthorized::NotYet)),
            (r#"{"sub":"s","exp":1e400}"#, Err(Unauthorized::Malformed)),
            (r#"{"sub":"s","exp":NaN}"#, Err(Unauthorized::Malformed)),
            (r#"{"sub":"s","exp":"1790000060"}"#, Err(Unauthorized::Malformed)),
            (r#"{"sub":"s","exp":null}"#, Err(Unauthorized::Malformed)),
            (r#"{"sub":"s","nbf":null}"#, Err(Unauthorized::Malformed)),
            (r#"{"sub":"s","nbf":[1]}"#, Err(Unauthorized::Malformed)),
            (r#"{"sub":"s","exp":1790000060,"exp":1e300}"#, Err(Unauthorized::Malformed)),
        ] {
            assert_eq!(with_claims(claims).map(|grant| grant.expires), verdict, "{claims}");
        }
    }

    #[test]
    fn assessments_allow_only_the_strings_of_an_array() {
        let [a, b] = ["a", "b"].map(|id| AssessmentId::parse(id).unwrap());
        for (claim, may_a, may_b) in [
            (json!(["a", "b"]), true, true),
            (json!(["a", 1, null, ["b"]]), true, false),
            (json!([]), false, false),
            (json!("a"), false, false),
            (json!({ "a": true }), false, false),
            (json!(null), false, false),
        ] {
            let allowed = verify(&mint(SECRET, &json!({ "sub": "s", "assessments": claim }))).unwrap().allowed;
            assert_eq!((allowed.covers(&a), allowed.covers(&b)), (may_a, may_b), "{claim}");
        }
    }

    #[test]
    fn without_the_claim_any_assessment_is_allowed_unless_the_claim_is_required() {
        let token = BearerToken(mint(SECRET, &json!({ "sub": "s" })).into());
        let a = AssessmentId::parse("a").unwrap();
        for require in [false, true] {
            let allowed = verifier(require).verify(Some(&token), NOW).unwrap().allowed;
            assert_eq!(allowed.covers(&a), !require);
        }
    }

    #[test]
    fn only_hs256_with_the_right_secret_counts() {
        let good = mint(SECRET, &json!({ "sub": "s" }));
        let claims = good.split('.').nth(1).unwrap();
        let none = format!("{}.{claims}.", BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#));
        for (token, fault) in [
            (none, Unauthorized::Algorithm),
            (signed(r#"{"alg":"HS512"}"#, r#"{"sub":"s"}"#), Unauthorized::Algorithm),
            (signed(r#"{"alg":"RS256"}"#, r#"{"sub":"s"}"#), Unauthorized::Algorithm),
            (signed(r#"{"alg":"hs256"}"#, r#"{"sub":"s"}"#), Unauthorized::Algorithm),
            (signed(r#"{"typ":"JWT"}"#, r#"{"sub":"s"}"#), Unauthorized::Malformed),
            (signed(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, r#"{"sub":"s"}"#), Unauthorized::Malformed),
            (signed(r#"{"alg":"HS256"}"#, "not JSON"), Unauthorized::Malformed),
            (signed(r#"{"alg":"HS256"}"#, r#"["u","s"]"#), Unauthorized::Malformed),
            (mint(b"another secret", &json!({ "sub": "s" })), Unauthorized::Signature),
            (format!("{}.", good.rsplit_once('.').unwrap().0), Unauthorized::Signature),
            (format!("{good}="), Unauthorized::Malformed),
            (format!("{good}.x"), Unauthorized::Malformed),
            (format!("x.{good}"), Unauthorized::Malformed),
            (good.replace('.', ""), Unauthorized::Malformed),
            (String::new(), Unauthorized::Malformed),
            ("..".into(), Unauthorized::Malformed),
            ("ü.\u{0}.…".into(), Unauthorized::Malformed),
        ] {
            assert_eq!(verify(&token), Err(fault), "{token}");
        }
        assert_eq!(verifier(false).verify(None, NOW), Err(Unauthorized::Missing));
    }

    #[test]
    fn no_secret_and_no_token_is_ever_printed() {
        let config = AuthConfig { secret: SECRET.into(), require_assessments: false };
        let token = BearerToken(mint(SECRET, &json!({ "sub": "s" })).into());
        let printed = format!("{config:?} {:?} {token:?}", Verifier::new(&config));
        for secret in ["a secret", "97, 32, 115", &*token.0] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }

    proptest! {
        #[test]
        fn a_token_changed_anywhere_grants_nothing(at in any::<prop::sample::Index>(), byte in b' '..=b'~') {
            let good = mint(SECRET, &json!({ "sub": "s" }));
            let mut changed = good.clone().into_bytes();
            let at = at.index(changed.len());
            changed[at] = byte;
            let changed = String::from_utf8(changed).unwrap();
            prop_assert_eq!(verify(&changed).is_ok(), changed == good);
        }

        #[test]
        fn whatever_is_signed_grants_to_a_user_or_not_at_all(
            claims in "\\PC*",
            key in "userId|sub|exp|nbf|assessments",
            value in "\\PC{0,20}",
        ) {
            for claims in [claims, format!(r#"{{"userId":"u","{key}":{value}}}"#)] {
                if let Ok(grant) = with_claims(&claims) {
                    prop_assert!(!grant.user.is_empty());
                }
            }
        }
    }
}
