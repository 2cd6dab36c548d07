//! An identity provider's key set (RFC 7517 section 5): which keys it has, what each may verify, and whether a
//! signature is by one of them. Keys that can't verify a token are skipped, with the reason; the others count.

use std::collections::BTreeSet;
use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::rsa::{Padding, Rsa};
use openssl::sign::{RsaPssSaltlen, Verifier};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::algorithm::{Algorithm, Curve, Digest, PublicKeyAlgorithm};

/// Most keys that a set may have. Without a `kid` in its token, each that fits is tried.
pub(crate) const KEYS_MAX: usize = 100;

/// Bits of an RSA modulus. RFC 7518 section 3.3 asks for the lower bound; the upper one bounds the time of a check.
const RSA_BITS: std::ops::RangeInclusive<i32> = 2_048..=8_192;

/// Most bits of an RSA exponent: 65537 has 17, and a check takes as long as it has bits.
const RSA_EXPONENT_BITS_MAX: i32 = 32;

/// The keys of a set that can verify tokens.
#[derive(Debug, Default)]
pub(crate) struct KeySet {
    keys: Vec<Key>,
}

struct Key {
    /// `kid`.
    id: Option<Box<str>>,
    kind: Kind,
    /// `alg`, if the key is for one algorithm only.
    only: Option<PublicKeyAlgorithm>,
    public: PKey<Public>,
}

/// What a key can be used for by its type and curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    Ec(Curve),
    Ed25519,
}

/// A key that is not used, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SkippedKey {
    /// Its index in the set.
    pub(crate) index: usize,
    /// Why it is not used.
    pub(crate) why: SkipReason,
}

/// Why a key of a set can't verify tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SkipReason {
    /// A member is missing, of a wrong type or given twice.
    #[error("not a JWK: a member is missing, of a wrong type, or given twice")]
    Malformed,
    /// `use` or `key_ops`.
    #[error("not for signatures: \"use\" is not \"sig\", or \"key_ops\" has no \"verify\"")]
    Use,
    /// `kty` or `crv`.
    #[error("of a type that no supported algorithm uses: takes RSA, EC on P-256 or P-384, OKP on Ed25519")]
    Type,
    /// `alg`.
    #[error("for an algorithm that is not supported, or not for a key of its type")]
    Algorithm,
    /// Numbers that are no key.
    #[error("not a key: its numbers are out of range, of a wrong length, or no point of its curve")]
    Numbers,
    /// A modulus out of range.
    #[error("an RSA modulus of fewer than 2,048 or more than 8,192 bits, or an exponent over 32 bits")]
    RsaSize,
}

/// Why a text is no key set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetFault {
    /// Its shape.
    #[error("not a JSON object with an array \"keys\" (RFC 7517 section 5)")]
    Malformed,
    /// Too many keys.
    #[error("{0} keys: takes at most {KEYS_MAX}")]
    TooMany(usize),
}

/// Why a set does not confirm a signature, the lesser reason first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unconfirmed {
    /// It has no key of this `kid` for this algorithm. A newer set may have.
    NoKey,
    /// None of its keys that fit made the signature.
    Signature,
}

/// A key of a set, as it is written: members that decide what it can verify (RFC 7517 section 4, RFC 7518 section 6).
#[derive(Deserialize)]
struct Jwk {
    kty: Box<str>,
    kid: Option<Box<str>>,
    #[serde(rename = "use")]
    usage: Option<Box<str>>,
    key_ops: Option<Vec<Box<str>>>,
    alg: Option<Box<str>>,
    crv: Option<Box<str>>,
    n: Option<Box<str>>,
    e: Option<Box<str>>,
    x: Option<Box<str>>,
    y: Option<Box<str>>,
}

impl KeySet {
    /// Reads a set, and the keys that it skips.
    ///
    /// # Errors
    /// If it is no set, or has more than [`KEYS_MAX`] keys.
    pub(crate) fn parse(json: &[u8]) -> Result<(Self, Vec<SkippedKey>), KeySetFault> {
        #[derive(Deserialize)]
        struct Set<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        // serde would take an array for the struct, too.
        let is_object = json.trim_ascii_start().starts_with(b"{");
        let set: Set<'_> =
            is_object.then(|| serde_json::from_slice(json).ok()).flatten().ok_or(KeySetFault::Malformed)?;
        if set.keys.len() > KEYS_MAX {
            return Err(KeySetFault::TooMany(set.keys.len()));
        }
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        for (index, jwk) in set.keys.into_iter().enumerate() {
            match Key::parse(jwk.get()) {
                Ok(key) => keys.push(key),
                Err(why) => skipped.push(SkippedKey { index, why }),
            }
        }
        Ok((Self { keys }, skipped))
    }

    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it has none.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The ids of its keys, in order.
    pub(crate) fn ids(&self) -> BTreeSet<&str> {
        self.keys.iter().filter_map(|key| key.id.as_deref()).collect()
    }

    /// Checks a signature over `signed`. A `kid` picks the keys; without one, each that fits is tried.
    ///
    /// # Errors
    /// If no key fits, or none confirms the signature.
    pub(crate) fn verify(
        &self,
        algorithm: PublicKeyAlgorithm,
        kid: Option<&str>,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<(), Unconfirmed> {
        let is_named = |key: &&Key| kid.is_none() || key.id.as_deref() == kid;
        let mut fitting = self.keys.iter().filter(is_named).filter(|key| key.fits(algorithm)).peekable();
        fitting.peek().ok_or(Unconfirmed::NoKey)?;
        // OpenSSL's errors say that a signature is not even of the right form.
        let is_by = |key: &Key| key.confirms(algorithm, signed, signature).unwrap_or(false);
        if fitting.any(is_by) { Ok(()) } else { Err(Unconfirmed::Signature) }
    }
}

impl Key {
    fn parse(json: &str) -> Result<Self, SkipReason> {
        if !json.starts_with('{') {
            return Err(SkipReason::Malformed);
        }
        let jwk: Jwk = serde_json::from_str(json).map_err(|_| SkipReason::Malformed)?;
        let is_for_verifying = |operations: &Vec<Box<str>>| operations.iter().any(|operation| &**operation == "verify");
        if jwk.usage.as_deref().is_some_and(|usage| usage != "sig")
            || jwk.key_ops.as_ref().is_some_and(|operations| !is_for_verifying(operations))
        {
            return Err(SkipReason::Use);
        }
        let kind = match (&*jwk.kty, jwk.crv.as_deref()) {
            ("RSA", _) => Kind::Rsa,
            ("EC", Some("P-256")) => Kind::Ec(Curve::P256),
            ("EC", Some("P-384")) => Kind::Ec(Curve::P384),
            ("OKP", Some("Ed25519")) => Kind::Ed25519,
            // A symmetric key (`oct`) among them: a set that others may read holds no secret.
            _ => return Err(SkipReason::Type),
        };
        let only = match jwk.alg.as_deref().map(Algorithm::of) {
            None => None,
            Some(Some(Algorithm::PublicKey(only))) if kind.can(only) => Some(only),
            Some(_) => return Err(SkipReason::Algorithm),
        };
        let public = match kind {
            Kind::Rsa => rsa(number(jwk.n.as_deref())?, number(jwk.e.as_deref())?)?,
            Kind::Ec(curve) => ec(curve, &bytes(jwk.x.as_deref())?, &bytes(jwk.y.as_deref())?)?,
            Kind::Ed25519 => ed25519(&bytes(jwk.x.as_deref())?)?,
        };
        Ok(Self { id: jwk.kid, kind, only, public })
    }

    fn fits(&self, algorithm: PublicKeyAlgorithm) -> bool {
        self.kind.can(algorithm) && self.only.is_none_or(|only| only == algorithm)
    }

    fn confirms(&self, algorithm: PublicKeyAlgorithm, signed: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
        let by = |digest: Digest| Verifier::new(digest.openssl(), &self.public);
        match algorithm {
            PublicKeyAlgorithm::Rsa(digest) => by(digest)?.verify_oneshot(signature, signed),
            PublicKeyAlgorithm::RsaPss(digest) => {
                let mut verifier = by(digest)?;
                verifier.set_rsa_padding(Padding::PKCS1_PSS)?;
                verifier.set_rsa_mgf1_md(digest.openssl())?;
                // As long as the digest: RFC 7518 section 3.5.
                verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
                verifier.verify_oneshot(signature, signed)
            }
            PublicKeyAlgorithm::Ecdsa(curve) => {
                // Two numbers of fixed length (RFC 7518 section 3.4), which OpenSSL takes as DER.
                if signature.len() != 2 * curve.bytes() {
                    return Ok(false);
                }
                let (r, s) = signature.split_at(curve.bytes());
                let signature = EcdsaSig::from_private_components(BigNum::from_slice(r)?, BigNum::from_slice(s)?)?;
                by(curve.digest())?.verify_oneshot(&signature.to_der()?, signed)
            }
            PublicKeyAlgorithm::Ed25519 => {
                Verifier::new_without_digest(&self.public)?.verify_oneshot(signature, signed)
            }
        }
    }
}

impl Kind {
    fn can(self, algorithm: PublicKeyAlgorithm) -> bool {
        match algorithm {
            PublicKeyAlgorithm::Rsa(_) | PublicKeyAlgorithm::RsaPss(_) => self == Self::Rsa,
            PublicKeyAlgorithm::Ecdsa(curve) => self == Self::Ec(curve),
            PublicKeyAlgorithm::Ed25519 => self == Self::Ed25519,
        }
    }
}

/// Public, but of no use in a log.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

// ---- the numbers of a key (RFC 7518 section 6, RFC 8037 section 2) ---------------------------------------------------

fn bytes(member: Option<&str>) -> Result<Vec<u8>, SkipReason> {
    BASE64_URL_SAFE_NO_PAD.decode(member.ok_or(SkipReason::Malformed)?).map_err(|_| SkipReason::Malformed)
}

fn number(member: Option<&str>) -> Result<BigNum, SkipReason> {
    BigNum::from_slice(&bytes(member)?).map_err(no_key)
}

fn rsa(modulus: BigNum, exponent: BigNum) -> Result<PKey<Public>, SkipReason> {
    if !RSA_BITS.contains(&modulus.num_bits()) || exponent.num_bits() > RSA_EXPONENT_BITS_MAX {
        return Err(SkipReason::RsaSize);
    }
    // One, or an even one, confirms anything or nothing.
    if !modulus.is_odd() || !exponent.is_odd() || exponent.num_bits() < 2 {
        return Err(SkipReason::Numbers);
    }
    PKey::from_rsa(Rsa::from_public_components(modulus, exponent).map_err(no_key)?).map_err(no_key)
}

fn ec(curve: Curve, x: &[u8], y: &[u8]) -> Result<PKey<Public>, SkipReason> {
    if [x, y].iter().any(|coordinate| coordinate.len() != curve.bytes()) {
        return Err(SkipReason::Numbers);
    }
    let nid = match curve {
        Curve::P256 => Nid::X9_62_PRIME256V1,
        Curve::P384 => Nid::SECP384R1,
    };
    let key = || {
        let group = EcGroup::from_curve_name(nid)?;
        // It fails for a point that is not on the curve.
        let key =
            EcKey::from_public_key_affine_coordinates(&group, &*BigNum::from_slice(x)?, &*BigNum::from_slice(y)?)?;
        PKey::from_ec_key(key)
    };
    key().map_err(no_key)
}

fn ed25519(x: &[u8]) -> Result<PKey<Public>, SkipReason> {
    PKey::public_key_from_raw_bytes(x, Id::ED25519).map_err(no_key)
}

fn no_key(_: ErrorStack) -> SkipReason {
    SkipReason::Numbers
}

#[cfg(test)]
mod tests;
