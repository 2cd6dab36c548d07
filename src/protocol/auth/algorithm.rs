//! Algorithms that a token may be signed with (PROTOCOL 1): names of RFC 7518 section 3.1 and RFC 8037 section 3.1.

use openssl::hash::MessageDigest;

/// An algorithm, as `alg` of a token's header names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Algorithm {
    /// With a secret.
    Hmac(Digest),
    /// With a key of a key set.
    PublicKey(PublicKeyAlgorithm),
}

/// An algorithm with a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PublicKeyAlgorithm {
    /// RSASSA-PKCS1-v1_5.
    Rsa(Digest),
    /// RSASSA-PSS.
    RsaPss(Digest),
    /// ECDSA on a curve, which implies the digest.
    Ecdsa(Curve),
    /// EdDSA on edwards25519.
    Ed25519,
}

/// A hash function of the SHA-2 family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Digest {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// A NIST curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Curve {
    /// P-256, with SHA-256.
    P256,
    /// P-384, with SHA-384.
    P384,
}

/// Each algorithm with its name. Names are compared byte by byte (RFC 7515 section 4.1.1), and `none` is not here.
const NAMES: [(&str, Algorithm); 12] = {
    use Algorithm::{Hmac, PublicKey};
    use Digest::{Sha256, Sha384, Sha512};
    use PublicKeyAlgorithm::{Ecdsa, Ed25519, Rsa, RsaPss};
    [
        ("HS256", Hmac(Sha256)),
        ("HS384", Hmac(Sha384)),
        ("HS512", Hmac(Sha512)),
        ("RS256", PublicKey(Rsa(Sha256))),
        ("RS384", PublicKey(Rsa(Sha384))),
        ("RS512", PublicKey(Rsa(Sha512))),
        ("PS256", PublicKey(RsaPss(Sha256))),
        ("PS384", PublicKey(RsaPss(Sha384))),
        ("PS512", PublicKey(RsaPss(Sha512))),
        ("ES256", PublicKey(Ecdsa(Curve::P256))),
        ("ES384", PublicKey(Ecdsa(Curve::P384))),
        ("EdDSA", PublicKey(Ed25519)),
    ]
};

impl Algorithm {
    /// The algorithm of this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        NAMES.into_iter().find_map(|(other, algorithm)| (other == name).then_some(algorithm))
    }
}

impl Digest {
    /// The same, as OpenSSL names it.
    pub(crate) fn openssl(self) -> MessageDigest {
        match self {
            Self::Sha256 => MessageDigest::sha256(),
            Self::Sha384 => MessageDigest::sha384(),
            Self::Sha512 => MessageDigest::sha512(),
        }
    }
}

impl Curve {
    /// The digest that goes with it (RFC 7518 section 3.4).
    pub(crate) fn digest(self) -> Digest {
        match self {
            Self::P256 => Digest::Sha256,
            Self::P384 => Digest::Sha384,
        }
    }

    /// Bytes of a coordinate, and of each half of a signature.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}
