//! Signs tokens for trials, with each algorithm that a pod accepts.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::pkey::{Id, PKey};
use openssl::rsa::Padding;
use openssl::sign::{RsaPssSaltlen, Signer};
use serde_json::{Value, json};

use super::algorithm::{Algorithm, PublicKeyAlgorithm};

/// What a token is signed with.
#[derive(Clone, Copy)]
pub enum SigningKey<'a> {
    /// `JWT_SECRET`.
    Secret(&'a [u8]),
    /// A private key in PEM.
    Pem(&'a [u8]),
}

/// Why a token can't be signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningFault {
    /// No such algorithm.
    #[error(
        "--alg: got {0:?}; takes HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or EdDSA"
    )]
    Algorithm(String),
    /// The algorithm needs another kind of key.
    #[error("--alg {0}: takes {1}")]
    Key(String, &'static str),
    /// The key is none that OpenSSL reads.
    #[error("the key can't be used: {0}")]
    OpenSsl(#[from] ErrorStack),
}

/// A token with these claims; `kid` names the key in its header.
///
/// # Errors
/// If the key does not fit the algorithm.
pub fn sign(algorithm: &str, key: SigningKey<'_>, kid: Option<&str>, claims: &Value) -> Result<String, SigningFault> {
    let mut header = json!({ "alg": algorithm, "typ": "JWT" });
    if let Some(kid) = kid {
        header["kid"] = kid.into();
    }
    let signed = [&header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let signature = signature(algorithm, key, signed.as_bytes())?;
    Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
}

fn signature(name: &str, key: SigningKey<'_>, signed: &[u8]) -> Result<Vec<u8>, SigningFault> {
    let algorithm = Algorithm::of(name).ok_or_else(|| SigningFault::Algorithm(name.to_owned()))?;
    let mismatch = |takes| SigningFault::Key(name.to_owned(), takes);
    let (algorithm, key) = match (algorithm, key) {
        (Algorithm::Hmac(digest), SigningKey::Secret(secret)) => {
            let key = PKey::hmac(secret)?;
            return Ok(Signer::new(digest.openssl(), &key)?.sign_oneshot_to_vec(signed)?);
        }
        (Algorithm::Hmac(_), SigningKey::Pem(_)) => return Err(mismatch("JWT_SECRET, and no --key-file")),
        (Algorithm::PublicKey(_), SigningKey::Secret(_)) => return Err(mismatch("--key-file, a private key in PEM")),
        (Algorithm::PublicKey(algorithm), SigningKey::Pem(pem)) => (algorithm, PKey::private_key_from_pem(pem)?),
    };
    match (algorithm, key.id()) {
        (PublicKeyAlgorithm::Rsa(digest), Id::RSA) => {
            Ok(Signer::new(digest.openssl(), &key)?.sign_oneshot_to_vec(signed)?)
        }
        (PublicKeyAlgorithm::RsaPss(digest), Id::RSA) => {
            let mut signer = Signer::new(digest.openssl(), &key)?;
            signer.set_rsa_padding(Padding::PKCS1_PSS)?;
            signer.set_rsa_mgf1_md(digest.openssl())?;
            signer.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
            Ok(signer.sign_oneshot_to_vec(signed)?)
        }
        (PublicKeyAlgorithm::Ecdsa(curve), Id::EC) => {
            let bytes = i32::try_from(curve.bytes()).expect("at most 48");
            // The other curve's numbers are longer, or shorter.
            if key.bits() != 8 * u32::try_from(bytes).expect("at most 48") {
                return Err(mismatch("a key on its own curve: P-256 for ES256, P-384 for ES384"));
            }
            let der = Signer::new(curve.digest().openssl(), &key)?.sign_oneshot_to_vec(signed)?;
            let numbers = EcdsaSig::from_der(&der)?;
            Ok([numbers.r().to_vec_padded(bytes)?, numbers.s().to_vec_padded(bytes)?].concat())
        }
        (PublicKeyAlgorithm::Ed25519, Id::ED25519) => {
            Ok(Signer::new_without_digest(&key)?.sign_oneshot_to_vec(signed)?)
        }
        (PublicKeyAlgorithm::Rsa(_) | PublicKeyAlgorithm::RsaPss(_), _) => Err(mismatch("an RSA key")),
        (PublicKeyAlgorithm::Ecdsa(_), _) => Err(mismatch("an EC key")),
        (PublicKeyAlgorithm::Ed25519, _) => Err(mismatch("an Ed25519 key")),
    }
}
