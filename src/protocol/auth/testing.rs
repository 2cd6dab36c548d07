//! Keys and tokens of an identity provider, for tests.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::nid::Nid;
use openssl::pkey::Private;
use openssl::sha::sha256;

use super::key_set::KeySet;

/// A key on P-256 with its `kid`.
pub(crate) struct TestKey {
    id: &'static str,
    key: EcKey<Private>,
}

impl TestKey {
    pub(crate) fn new(id: &'static str) -> Self {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("OpenSSL works");
        Self { id, key: EcKey::generate(&group).expect("OpenSSL works") }
    }

    /// The set that has this key alone, in JSON.
    pub(crate) fn json(&self) -> String {
        let (mut x, mut y) = (BigNum::new().expect("OpenSSL works"), BigNum::new().expect("OpenSSL works"));
        let mut context = BigNumContext::new().expect("OpenSSL works");
        self.key
            .public_key()
            .affine_coordinates_gfp(self.key.group(), &mut x, &mut y, &mut context)
            .expect("OpenSSL works");
        let [x, y] =
            [x, y].map(|number| BASE64_URL_SAFE_NO_PAD.encode(number.to_vec_padded(32).expect("OpenSSL works")));
        let jwk = serde_json::json!({ "kty": "EC", "crv": "P-256", "kid": self.id, "x": x, "y": y });
        serde_json::json!({ "keys": [jwk] }).to_string()
    }

    pub(crate) fn set(&self) -> KeySet {
        KeySet::parse(self.json().as_bytes()).expect("OpenSSL works").0
    }

    /// A token by ES256, with the key's `kid`.
    pub(crate) fn sign(&self, claims: &str) -> String {
        self.sign_with(&serde_json::json!({ "alg": "ES256", "kid": self.id }).to_string(), claims)
    }

    pub(crate) fn sign_with(&self, header: &str, claims: &str) -> String {
        let signed = [header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).join(".");
        let signature = EcdsaSig::sign(&sha256(signed.as_bytes()), &self.key).expect("OpenSSL works");
        let halves = [signature.r(), signature.s()].map(|half| half.to_vec_padded(32).expect("OpenSSL works"));
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(halves.concat()))
    }
}
