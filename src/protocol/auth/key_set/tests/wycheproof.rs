//! Project Wycheproof's signatures, each as a token's: edge cases of numbers, encodings and paddings, valid and not.

use serde_json::{Value, json};
use wycheproof::{TestResult, ecdsa, eddsa, rsa_pkcs1_verify, rsa_pss_verify};

use super::super::{BASE64_URL_SAFE_NO_PAD, Curve, Digest, Engine, KeySet, PublicKeyAlgorithm};

/// What was judged.
#[derive(Default)]
struct Verdicts {
    valid: usize,
    invalid: usize,
}

impl Verdicts {
    fn judge(&mut self, algorithm: PublicKeyAlgorithm, jwk: &Value, tests: &[(&[u8], &[u8], TestResult, String)]) {
        let (set, skipped) = KeySet::parse(json!({ "keys": [jwk] }).to_string().as_bytes()).unwrap();
        assert!(skipped.is_empty(), "{skipped:?}: {jwk}");
        for (signed, signature, expected, name) in tests {
            let is_confirmed = set.verify(algorithm, None, signed, signature).is_ok();
            match expected {
                TestResult::Valid => {
                    assert!(is_confirmed, "{algorithm:?} {name}");
                    self.valid += 1;
                }
                TestResult::Invalid => {
                    assert!(!is_confirmed, "{algorithm:?} {name}");
                    self.invalid += 1;
                }
                TestResult::Acceptable => {}
            }
        }
    }
}

fn encoded(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn rsa(n: &[u8], e: &[u8]) -> Value {
    json!({ "kty": "RSA", "n": encoded(n), "e": encoded(e) })
}

macro_rules! tests {
    ($group:expr) => {{
        let name = |test: &_| {
            let test: &_ = test;
            format!("{:?}", test)
        };
        let tests = $group.tests.iter();
        tests.map(|test| (&test.msg[..], &test.sig[..], test.result, name(test))).collect::<Vec<_>>()
    }};
}

#[test]
fn ecdsa_signatures_of_two_numbers_are_judged_right() {
    let mut verdicts = Verdicts::default();
    for (name, curve, crv) in [
        (ecdsa::TestName::EcdsaSecp256r1Sha256P1363, Curve::P256, "P-256"),
        (ecdsa::TestName::EcdsaSecp384r1Sha384P1363, Curve::P384, "P-384"),
    ] {
        for group in ecdsa::TestSet::load(name).unwrap().test_groups {
            // The point uncompressed: a byte, then both coordinates.
            let (x, y) = group.key.key[1..].split_at(curve.bytes());
            let jwk = json!({ "kty": "EC", "crv": crv, "x": encoded(x), "y": encoded(y) });
            verdicts.judge(PublicKeyAlgorithm::Ecdsa(curve), &jwk, &tests!(group));
        }
    }
    assert!(verdicts.valid > 200 && verdicts.invalid > 100, "{} and {}", verdicts.valid, verdicts.invalid);
}

#[test]
fn ed25519_signatures_are_judged_right() {
    let mut verdicts = Verdicts::default();
    for group in eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap().test_groups {
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": encoded(&group.key.pk) });
        verdicts.judge(PublicKeyAlgorithm::Ed25519, &jwk, &tests!(group));
    }
    assert!(verdicts.valid > 50 && verdicts.invalid > 50, "{} and {}", verdicts.valid, verdicts.invalid);
}

#[test]
fn rsa_signatures_are_judged_right() {
    use rsa_pkcs1_verify::TestName as Pkcs1;
    use rsa_pss_verify::TestName as Pss;
    let mut verdicts = Verdicts::default();
    for (name, digest) in [
        (Pkcs1::Rsa2048Sha256, Digest::Sha256),
        (Pkcs1::Rsa2048Sha384, Digest::Sha384),
        (Pkcs1::Rsa2048Sha512, Digest::Sha512),
    ] {
        for group in rsa_pkcs1_verify::TestSet::load(name).unwrap().test_groups {
            verdicts.judge(PublicKeyAlgorithm::Rsa(digest), &rsa(&group.key.n, &group.key.e), &tests!(group));
        }
    }
    for (name, digest) in [
        (Pss::RsaPss2048Sha256Mgf1SaltLen32, Digest::Sha256),
        (Pss::RsaPss2048Sha384Mgf1SaltLen48, Digest::Sha384),
        (Pss::RsaPss4096Sha512Mgf1SaltLen64, Digest::Sha512),
    ] {
        for group in rsa_pss_verify::TestSet::load(name).unwrap().test_groups {
            verdicts.judge(PublicKeyAlgorithm::RsaPss(digest), &rsa(&group.key.n, &group.key.e), &tests!(group));
        }
    }
    assert!(verdicts.valid > 100 && verdicts.invalid > 500, "{} and {}", verdicts.valid, verdicts.invalid);
}
