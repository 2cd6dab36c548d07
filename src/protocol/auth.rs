//! Verifies a token, and says what it grants (PROTOCOL 1). It owns which algorithm, secret or key may confirm a
//! signature; `claims` reads what was signed, `key_set` knows an identity provider's keys, `key_sets` those of all, and
//! [`super::head`] finds the token in a request.
//!
//! A secret confirms in a few microseconds. A public key takes 20 to 600: that check is handed out
//! ([`Verdict::PublicKey`]), so that the caller can make it elsewhere. All cryptography is OpenSSL's, which librdkafka
//! has in any case: one library of it in the binary.
//!
//! `crit` in the header makes a token malformed (RFC 7515 section 4.1.11), since we understand no extension. Keys, and
//! places of keys, that a header holds (`jwk`, `jku`, `x5c`, `x5u`) are not looked at.

mod algorithm;
mod claims;
mod key_set;
mod key_sets;
mod revocations;
pub mod signing;
#[cfg(test)]
pub(crate) mod testing;

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use openssl::error::ErrorStack;
use openssl::memcmp;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use self::algorithm::{Algorithm, Digest};
pub use self::claims::{ClaimPath, ClaimRules};
pub use self::key_set::KeySetFault;
pub(crate) use self::key_set::{KeySet, SkippedKey};
pub use self::key_sets::{CheckFault, KeySets, PublicKeyCheck};
pub(crate) use self::revocations::{Revocation, RevocationSet, Rule, Subject};
use crate::clock::UnixMs;
use crate::protocol::head::BearerToken;

/// Settings of token verification.
#[derive(Clone, Default)]
pub struct AuthConfig {
    /// `JWT_SECRET`, then `JWT_SECRET_PREVIOUS`: the keys of HS256, HS384 and HS512.
    pub secrets: Vec<Box<[u8]>>,
    /// What the claims must hold.
    pub claims: ClaimRules,
}

impl AuthConfig {
    /// The secret that new tokens are signed with; empty without one.
    pub(crate) fn signing_secret(&self) -> &[u8] {
        self.secrets.first().map_or(&[], |secret| secret)
    }
}

/// A secret never prints.
impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig").field("claims", &self.claims).finish_non_exhaustive()
    }
}

/// Checks tokens. Each shard has one.
pub struct Verifier {
    secrets: Box<[Secret]>,
    keys: Arc<KeySets>,
    claims: Arc<ClaimRules>,
}

/// A secret, as OpenSSL takes it.
struct Secret(PKey<Private>);

/// A key never prints.
impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("claims", &self.claims).finish_non_exhaustive()
    }
}

/// The grant of a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The user, of the claim that `JWT_USER_CLAIM` names.
    pub user: Box<str>,
    /// Expiry of the token, with the leeway added.
    pub expires: Option<UnixMs>,
    /// The assessments that it allows.
    pub allowed: Allowed,
    /// When the token was issued (`iat`), if it says so.
    pub issued: Option<UnixMs>,
    /// A hash of the token's id (`jti`), if it has one.
    pub token_id: Option<u64>,
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
    pub(crate) fn covers(&self, assessment: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Only(ids) => ids.iter().any(|id| **id == *assessment),
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
    /// `alg` is none of those that this pod has a secret or a key set for.
    #[error("the token's algorithm is not accepted here")]
    Algorithm,
    /// No key has the token's `kid` and fits its algorithm.
    #[error("no key of the key set fits the token's kid and algorithm")]
    UnknownKey,
    /// The signature doesn't match.
    #[error("the token's signature does not match")]
    Signature,
    /// `exp` has passed, and the leeway too.
    #[error("the token has expired")]
    Expired,
    /// `nbf` lies in the future.
    #[error("the token is not valid yet")]
    NotYet,
    /// An operator revoked it.
    #[error("the token was revoked")]
    Revoked,
    /// `iss` is none of `JWT_ISSUER`.
    #[error("the token's issuer is not accepted here")]
    Issuer,
    /// `aud` has none of `JWT_AUDIENCE`.
    #[error("the token is for another audience")]
    Audience,
    /// None of the claims that may name the user does.
    #[error("the token names no user")]
    NoUser,
}

/// What is known of a token at once.
#[derive(Debug)]
pub enum Verdict {
    /// A secret confirms it.
    Granted(Grant),
    /// A public key has to.
    PublicKey(PublicKeyCheck),
}

/// The fields of a token's header that verification reads.
#[derive(Deserialize)]
struct JoseHeader<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    #[serde(default, deserialize_with = "present")]
    crit: Option<Value>,
}

/// A token's parts. What is signed is the text of the first two.
struct Parts<'a> {
    signed: &'a str,
    header: Vec<u8>,
    claims: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Result<Self, Unauthorized> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Unauthorized::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Unauthorized::Malformed)?;
        Ok(Self { signed, header: decode(header)?, claims: decode(claims)?, signature: decode(signature)? })
    }
}

impl Verifier {
    /// A verifier of one secret, without further rules.
    #[cfg(test)]
    pub(crate) fn of_secret(secret: &[u8]) -> Self {
        Self::new(&AuthConfig { secrets: vec![secret.into()], ..AuthConfig::default() }, Arc::default())
    }

    /// Makes a verifier for these settings, with the key sets that others replace.
    #[must_use]
    pub fn new(config: &AuthConfig, keys: Arc<KeySets>) -> Self {
        let secrets = config.secrets.iter().map(|secret| Secret::new(secret)).collect();
        Self { secrets, keys, claims: Arc::new(config.claims.clone()) }
    }

    /// Returns what a token grants at `now`, or the check that a public key has to make.
    ///
    /// # Errors
    /// Why the token is rejected.
    pub fn verify(&self, token: Option<&BearerToken>, now: UnixMs) -> Result<Verdict, Unauthorized> {
        let token = &*token.ok_or(Unauthorized::Missing)?.0;
        let parts = Parts::of(token)?;
        let header: JoseHeader<'_> = serde_json::from_slice(&parts.header).map_err(|_| Unauthorized::Malformed)?;
        // `crit` demands extensions, and we understand none.
        if header.crit.is_some() {
            return Err(Unauthorized::Malformed);
        }
        match Algorithm::of(&header.alg) {
            Some(Algorithm::Hmac(digest)) if !self.secrets.is_empty() => {
                let mut secrets = self.secrets.iter();
                if !secrets.any(|secret| secret.confirms(digest, parts.signed, &parts.signature)) {
                    return Err(Unauthorized::Signature);
                }
                self.claims.grant(&parts.claims, now).map(Verdict::Granted)
            }
            Some(Algorithm::PublicKey(algorithm)) if !self.keys.is_empty() => Ok(Verdict::PublicKey(PublicKeyCheck {
                algorithm,
                kid: header.kid.map(|kid| kid.into_owned().into_boxed_str()),
                token: token.into(),
                keys: Arc::clone(&self.keys),
                claims: Arc::clone(&self.claims),
            })),
            _ => Err(Unauthorized::Algorithm),
        }
    }

    /// What a token grants that a secret confirms.
    #[cfg(test)]
    pub(crate) fn grant(&self, token: Option<&BearerToken>, now: UnixMs) -> Result<Grant, Unauthorized> {
        match self.verify(token, now)? {
            Verdict::Granted(grant) => Ok(grant),
            Verdict::PublicKey(check) => panic!("{check:?}"),
        }
    }

    /// Whether it can confirm tokens: it has a secret, or a key set was read.
    pub(crate) fn is_ready(&self) -> bool {
        !self.secrets.is_empty() || !self.keys.lacks_all()
    }
}

impl Secret {
    fn new(secret: &[u8]) -> Self {
        Self(PKey::hmac(secret).expect("HMAC takes keys of any length"))
    }

    fn mac(&self, digest: Digest, signed: &str) -> Result<Vec<u8>, ErrorStack> {
        Signer::new(digest.openssl(), &self.0)?.sign_oneshot_to_vec(signed.as_bytes())
    }

    /// Whether it made the signature. The comparison takes constant time.
    fn confirms(&self, digest: Digest, signed: &str, signature: &[u8]) -> bool {
        self.mac(digest, signed).is_ok_and(|mac| mac.len() == signature.len() && memcmp::eq(&mac, signature))
    }
}

/// Signs a token with these claims, by HS256.
#[must_use]
pub fn mint(secret: &[u8], claims: &Value) -> String {
    sign(secret, r#"{"alg":"HS256","typ":"JWT"}"#, &claims.to_string())
}

fn sign(secret: &[u8], header: &str, claims: &str) -> String {
    let signed = [header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).join(".");
    let signature = Secret::new(secret).mac(Digest::Sha256, &signed).expect("SHA-256 is built in");
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

fn decode(part: &str) -> Result<Vec<u8>, Unauthorized> {
    BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| Unauthorized::Malformed)
}

/// Keeps null apart from a missing member: serde's `Option` reads both as `None`.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests;
