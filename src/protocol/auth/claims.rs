//! Reads a token's claims by the operator's rules (PROTOCOL 1): its time, its issuer and audience, its user, and the
//! assessments that it allows.
//!
//! The contract leaves these open:
//! - A claim of the user that is neither a non-empty string nor a number counts as missing: `"userId":null` or `""`
//!   falls back to `sub`.
//! - A present `exp`, `nbf` or `iat` that is not a number (null, too) makes the token malformed: a time that can't be read
//!   must not mean 'no limit'. The same holds for a claim that is given twice (RFC 7519 section 4).
//! - An item of `assessments` that is neither a string nor a number is ignored; the others count.
//! - A number is kept as written, digit by digit: `42`, `1.0`, a hundred digits.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use super::{Allowed, Grant, Unauthorized};
use crate::clock::UnixMs;
use crate::limits::TOKEN_LEEWAY;

/// Which claims a token must have, and what they are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRules {
    /// `JWT_ISSUER`: one of these is the token's `iss`, unless there is none.
    pub(crate) issuers: Box<[Box<str>]>,
    /// `JWT_AUDIENCE`: one of these is in the token's `aud`, unless there is none.
    pub(crate) audiences: Box<[Box<str>]>,
    /// `JWT_USER_CLAIM`: the first that is there names the user.
    pub(crate) user: Box<[ClaimPath]>,
    /// `JWT_ASSESSMENTS_CLAIM`.
    pub(crate) assessments: ClaimPath,
    /// `JWT_REQUIRE_ASSESSMENTS`: a token without the claim allows no assessment.
    pub(crate) require_assessments: bool,
}

impl Default for ClaimRules {
    fn default() -> Self {
        Self {
            issuers: Box::default(),
            audiences: Box::default(),
            user: ["userId", "sub"].map(ClaimPath::member).into(),
            assessments: ClaimPath::member("assessments"),
            require_assessments: false,
        }
    }
}

/// Where a claim stands: a name, or names within each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimPath(Box<[Box<str>]>);

impl ClaimPath {
    fn member(name: &str) -> Self {
        Self([name.into()].into())
    }

    /// Reads a name as it is (a URL, too), or a JSON pointer (RFC 6901), which begins with a slash. `None` if it is
    /// empty, has a control character, or is a pointer with an escape that there is not.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text.contains(char::is_control) {
            return None;
        }
        let Some(pointer) = text.strip_prefix('/') else { return Some(Self::member(text)) };
        let name = |part: &str| {
            let has_other_escape = part.split('~').skip(1).any(|rest| !rest.starts_with(['0', '1']));
            (!has_other_escape).then(|| part.replace("~1", "/").replace("~0", "~").into_boxed_str())
        };
        pointer.split('/').map(name).collect::<Option<_>>().map(Self)
    }

    fn find<'a>(&self, claims: &Members<'a>) -> Result<Option<&'a RawValue>, Unauthorized> {
        let Some((first, rest)) = self.0.split_first() else { return Ok(None) };
        let mut found = claims.0.get(&**first).copied();
        for name in rest {
            let Some(inner) = found.filter(|value| value.get().starts_with('{')) else { return Ok(None) };
            found = Members::of(inner.get().as_bytes())?.0.get(&**name).copied();
        }
        Ok(found)
    }
}

/// The members of a JSON object, each once.
struct Members<'a>(BTreeMap<Cow<'a, str>, &'a RawValue>);

impl<'a> Members<'a> {
    fn of(json: &'a [u8]) -> Result<Self, Unauthorized> {
        serde_json::from_slice(json).map_err(|_| Unauthorized::Malformed)
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a member is given twice"));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

/// A name, borrowed where it has no escape.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl ClaimRules {
    /// Returns what claims grant at `now`; their signature is the caller's to check.
    ///
    /// # Errors
    /// Why they grant nothing.
    pub(super) fn grant(&self, json: &[u8], now: UnixMs) -> Result<Grant, Unauthorized> {
        let claims = Members::of(json)?;
        let leeway_ms = TOKEN_LEEWAY.as_secs_f64() * 1_000.0;
        let expires = time(&claims, "exp")?.map(|exp| unix_ms(exp * 1_000.0 + leeway_ms));
        if expires.is_some_and(|expires| now >= expires) {
            return Err(Unauthorized::Expired);
        }
        if time(&claims, "nbf")?.is_some_and(|nbf| now < unix_ms(nbf * 1_000.0 - leeway_ms)) {
            return Err(Unauthorized::NotYet);
        }
        let of = |name: &str| claims.0.get(name).map_or_else(Vec::new, |value| strings(value));
        if !self.issuers.is_empty() && !is_one_of(&of("iss"), &self.issuers) {
            return Err(Unauthorized::Issuer);
        }
        if !self.audiences.is_empty() && !is_one_of(&of("aud"), &self.audiences) {
            return Err(Unauthorized::Audience);
        }
        let (user, allowed) = (self.user_of(&claims)?, self.allowed_by(&claims)?);
        let issued = time(&claims, "iat")?.map(|iat| unix_ms(iat * 1_000.0));
        let token_id = claims.0.get("jti").and_then(|id| text_of(id)).map(|id| token_id(&id));
        Ok(Grant { user, expires, allowed, issued, token_id })
    }

    fn user_of(&self, claims: &Members<'_>) -> Result<Box<str>, Unauthorized> {
        for path in &self.user {
            if let Some(user) = path.find(claims)?.and_then(text_of).filter(|user| !user.is_empty()) {
                return Ok(user);
            }
        }
        Err(Unauthorized::NoUser)
    }

    fn allowed_by(&self, claims: &Members<'_>) -> Result<Allowed, Unauthorized> {
        Ok(match self.assessments.find(claims)? {
            None if self.require_assessments => Allowed::Only(Box::default()),
            None => Allowed::Any,
            Some(claim) if claim.get().starts_with('[') => Allowed::Only(texts(claim).into()),
            Some(_) => Allowed::Only(Box::default()),
        })
    }
}

fn is_one_of(given: &[Box<str>], wanted: &[Box<str>]) -> bool {
    given.iter().any(|text| wanted.contains(text))
}

/// The hash by which a token's id (`jti`) is known. Two ids in 2^64 share one.
pub(crate) fn token_id(id: &str) -> u64 {
    xxh3_64(id.as_bytes())
}

/// The issuer that claims name, before anything confirms them.
pub(super) fn issuer(json: &[u8]) -> Result<Option<Box<str>>, Unauthorized> {
    let claims = Members::of(json)?;
    Ok(claims.0.get("iss").filter(|value| value.get().starts_with('"')).and_then(|value| text_of(value)))
}

/// A time in seconds since 1970.
fn time(claims: &Members<'_>, name: &str) -> Result<Option<f64>, Unauthorized> {
    let seconds = |value: &&RawValue| serde_json::from_str(value.get()).map_err(|_| Unauthorized::Malformed);
    claims.0.get(name).map(seconds).transpose()
}

/// Converts to the nearest time that `UnixMs` holds: a claim may lie before 1970, or beyond the last `u64`. The cast of
/// a float saturates, which is what we want.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of a float saturates")]
fn unix_ms(ms: f64) -> UnixMs {
    UnixMs(ms as u64)
}

/// Reads a string, or a number as written.
fn text_of(claim: &RawValue) -> Option<Box<str>> {
    let json = claim.get();
    match json.bytes().next()? {
        b'"' => serde_json::from_str(json).ok(),
        b'-' | b'0'..=b'9' => Some(json.into()),
        _ => None,
    }
}

/// The strings and numbers of an array.
fn texts(claim: &RawValue) -> Vec<Box<str>> {
    let items: Vec<&RawValue> = serde_json::from_str(claim.get()).unwrap_or_default();
    items.into_iter().filter_map(text_of).collect()
}

/// A string, or the strings of an array (RFC 7519 section 4.1.3).
fn strings(claim: &RawValue) -> Vec<Box<str>> {
    let is_string = |value: &&RawValue| value.get().starts_with('"');
    if is_string(&claim) {
        return text_of(claim).into_iter().collect();
    }
    let items: Vec<&RawValue> = serde_json::from_str(claim.get()).unwrap_or_default();
    items.into_iter().filter(is_string).filter_map(text_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-09-21.
    const NOW: UnixMs = UnixMs(1_790_000_000_000);

    fn rules(change: impl FnOnce(&mut ClaimRules)) -> ClaimRules {
        let mut rules = ClaimRules::default();
        change(&mut rules);
        rules
    }

    fn path(text: &str) -> ClaimPath {
        ClaimPath::parse(text).unwrap()
    }

    #[test]
    fn a_claim_path_is_a_name_or_a_pointer() {
        for (text, names) in [
            ("sub", Some(&["sub"][..])),
            ("https://example.com/user", Some(&["https://example.com/user"])),
            ("a~b", Some(&["a~b"])),
            ("/realm_access/assessments", Some(&["realm_access", "assessments"])),
            ("/https:~1~1example.com~1x/a~0b", Some(&["https://example.com/x", "a~b"])),
            ("/", Some(&[""])),
            ("/~01", Some(&["~1"])),
            ("/a~2", None),
            ("/a~", None),
            ("", None),
            ("a\n", None),
        ] {
            let parsed = ClaimPath::parse(text).map(|path| path.0.into_vec());
            assert_eq!(parsed, names.map(|names| names.iter().map(|name| (*name).into()).collect()), "{text}");
        }
    }

    #[test]
    fn the_user_and_the_assessments_are_found_where_the_rules_say() {
        let rules = rules(|rules| {
            rules.user = ["/user/id", "https://example.com/user"].map(path).into();
            rules.assessments = path("/realm_access/assessments");
        });
        for (claims, user, allowed) in [
            (
                r#"{"user":{"id":"u"},"realm_access":{"assessments":["a",7,1.50,null,["b"]]}}"#,
                "u",
                Some(&["a", "7", "1.50"][..]),
            ),
            (r#"{"user":{"id":""},"https://example.com/user":5,"realm_access":{}}"#, "5", None),
            (r#"{"user":"u","https:\/\/example.com\/user":"v","realm_access":{"assessments":"a"}}"#, "v", Some(&[])),
            (r#"{"user":[{"id":"u"}],"https://example.com/user":"v","realm_access":["assessments"]}"#, "v", None),
            (r#"{"https://example.com/user":"v","realm_access":{"assessments":null}}"#, "v", Some(&[])),
        ] {
            let grant = rules.grant(claims.as_bytes(), NOW).unwrap();
            let only = |ids: &[&str]| Allowed::Only(ids.iter().map(|id| (*id).into()).collect());
            assert_eq!((&*grant.user, grant.allowed), (user, allowed.map_or(Allowed::Any, only)), "{claims}");
        }
        for (claims, fault) in [
            (r#"{"sub":"s"}"#, Unauthorized::NoUser),
            (r#"{"user":{"id":"u","id":"v"}}"#, Unauthorized::Malformed),
            (r#"{"user":{"id":"u"},"more":1,"more":1}"#, Unauthorized::Malformed),
            (r#"["user"]"#, Unauthorized::Malformed),
            ("\"user\"", Unauthorized::Malformed),
        ] {
            assert_eq!(rules.grant(claims.as_bytes(), NOW), Err(fault), "{claims}");
        }
    }

    #[test]
    fn an_issuer_and_an_audience_that_are_asked_for_must_be_there() {
        let rules = rules(|rules| {
            rules.issuers = ["https://a/", "b"].map(Into::into).into();
            rules.audiences = ["x", "y"].map(Into::into).into();
        });
        for (claims, fault) in [
            (r#"{"sub":"s","iss":"b","aud":"x"}"#, None),
            (r#"{"sub":"s","iss":"https://a/","aud":["z","y"]}"#, None),
            (r#"{"sub":"s","iss":"https://a","aud":"x"}"#, Some(Unauthorized::Issuer)),
            (r#"{"sub":"s","iss":"B","aud":"x"}"#, Some(Unauthorized::Issuer)),
            (r#"{"sub":"s","iss":null,"aud":"x"}"#, Some(Unauthorized::Issuer)),
            (r#"{"sub":"s","aud":"x"}"#, Some(Unauthorized::Issuer)),
            (r#"{"sub":"s","iss":"b"}"#, Some(Unauthorized::Audience)),
            (r#"{"sub":"s","iss":"b","aud":"xy"}"#, Some(Unauthorized::Audience)),
            (r#"{"sub":"s","iss":"b","aud":[["x"]]}"#, Some(Unauthorized::Audience)),
            (r#"{"sub":"s","iss":"b","aud":{"x":1}}"#, Some(Unauthorized::Audience)),
        ] {
            assert_eq!(rules.grant(claims.as_bytes(), NOW).err(), fault, "{claims}");
        }
    }
}
