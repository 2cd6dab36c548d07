//! Sets and signatures of the RFCs, and of OpenSSL where they have none.

mod wycheproof;

use openssl::hash::MessageDigest;
use openssl::pkey::Private;
use openssl::sign::Signer;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const RS256: PublicKeyAlgorithm = PublicKeyAlgorithm::Rsa(Digest::Sha256);
const ES256: PublicKeyAlgorithm = PublicKeyAlgorithm::Ecdsa(Curve::P256);

/// A JWK and a token that it signed, of an RFC.
struct Vector {
    algorithm: PublicKeyAlgorithm,
    jwk: fn() -> Value,
    token: &'static str,
}

/// RFC 7515 A.2 and A.3, RFC 8037 A.4.
const VECTORS: [Vector; 3] = [
    Vector {
        algorithm: RS256,
        jwk: || {
            json!({ "kty": "RSA", "e": "AQAB", "n": concat!(
                "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd",
                "2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7W",
                "TBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs9",
                "1kzk2PAcDTW9gb54h4FRWyuXpoQ") })
        },
        token: concat!(
            "eyJhbGciOiJSUzI1NiJ9",
            ".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ",
            ".cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF",
            "9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcO",
            "Ln6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVm",
            "tVrBp0igcN_IoypGlUPQGe77Rw"
        ),
    },
    Vector {
        algorithm: ES256,
        jwk: || {
            json!({
                "kty": "EC",
                "crv": "P-256",
                "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
            })
        },
        token: concat!(
            "eyJhbGciOiJFUzI1NiJ9",
            ".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ",
            ".DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
        ),
    },
    Vector {
        algorithm: PublicKeyAlgorithm::Ed25519,
        jwk: || json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }),
        token: concat!(
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
            ".hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
        ),
    },
];

impl Vector {
    fn jwk_with(&self, members: &Value) -> Value {
        let mut jwk = (self.jwk)();
        let more = members.as_object().unwrap().clone();
        jwk.as_object_mut().unwrap().extend(more);
        jwk
    }

    fn signed(&self) -> &'static [u8] {
        self.token.rsplit_once('.').unwrap().0.as_bytes()
    }

    fn signature(&self) -> Vec<u8> {
        BASE64_URL_SAFE_NO_PAD.decode(self.token.rsplit_once('.').unwrap().1).unwrap()
    }

    fn checked_by(&self, set: &KeySet) -> Result<(), Unconfirmed> {
        set.verify(self.algorithm, None, self.signed(), &self.signature())
    }
}

fn set(keys: &[Value]) -> KeySet {
    let (set, skipped) = KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap();
    assert_eq!(skipped, []);
    set
}

fn skipped(key: &Value) -> Option<SkipReason> {
    let (set, skipped) = KeySet::parse(json!({ "keys": [key] }).to_string().as_bytes()).unwrap();
    assert_eq!(set.len() + skipped.len(), 1);
    skipped.first().map(|skipped| skipped.why)
}

#[test]
fn the_rfcs_tokens_are_confirmed_by_their_keys_and_by_no_other() {
    let all = set(&VECTORS.each_ref().map(|vector| (vector.jwk)()));
    for vector in &VECTORS {
        assert_eq!(vector.checked_by(&set(&[(vector.jwk)()])), Ok(()), "{}", vector.token);
        assert_eq!(vector.checked_by(&all), Ok(()), "each that fits is tried");
        for other in VECTORS.iter().filter(|other| other.algorithm != vector.algorithm) {
            assert_eq!(vector.checked_by(&set(&[(other.jwk)()])), Err(Unconfirmed::NoKey));
        }
        let changed = [vector.signed(), b" "].concat();
        let verdict = all.verify(vector.algorithm, None, &changed, &vector.signature());
        assert_eq!(verdict, Err(Unconfirmed::Signature));
    }
    assert_eq!(VECTORS[0].checked_by(&KeySet::default()), Err(Unconfirmed::NoKey));
}

#[test]
fn a_kid_picks_the_key() {
    let [rsa, ec, _] = &VECTORS;
    let set = set(&[rsa.jwk_with(&json!({ "kid": "a" })), ec.jwk_with(&json!({ "kid": "b" })), (rsa.jwk)()]);
    let by = |kid| set.verify(RS256, Some(kid), rsa.signed(), &rsa.signature());
    assert_eq!(by("a"), Ok(()));
    assert_eq!(by("b"), Err(Unconfirmed::NoKey), "a key of another type");
    for kid in ["", "c", "A", "../../etc/passwd", "a' OR '1'='1"] {
        assert_eq!(by(kid), Err(Unconfirmed::NoKey), "{kid}");
    }
    assert_eq!(set.ids(), BTreeSet::from(["a", "b"]));
}

#[test]
fn a_key_serves_only_what_its_members_allow() {
    let [rsa, ec, ed] = &VECTORS;
    for (key, fault) in [
        (rsa.jwk_with(&json!({ "use": "sig", "alg": "RS256", "key_ops": ["sign", "verify"] })), None),
        (rsa.jwk_with(&json!({ "use": "enc" })), Some(SkipReason::Use)),
        (rsa.jwk_with(&json!({ "key_ops": ["sign"] })), Some(SkipReason::Use)),
        (rsa.jwk_with(&json!({ "alg": "ES256" })), Some(SkipReason::Algorithm)),
        (rsa.jwk_with(&json!({ "alg": "HS256" })), Some(SkipReason::Algorithm)),
        (rsa.jwk_with(&json!({ "alg": "RSA-OAEP" })), Some(SkipReason::Algorithm)),
        (rsa.jwk_with(&json!({ "alg": "none" })), Some(SkipReason::Algorithm)),
        (rsa.jwk_with(&json!({ "kid": 7 })), Some(SkipReason::Malformed)),
        (rsa.jwk_with(&json!({ "n": "a b" })), Some(SkipReason::Malformed)),
        (rsa.jwk_with(&json!({ "n": null })), Some(SkipReason::Malformed)),
        (rsa.jwk_with(&json!({ "n": "AQAB" })), Some(SkipReason::RsaSize)),
        (rsa.jwk_with(&json!({ "e": "AQAAAAE" })), Some(SkipReason::RsaSize)),
        (rsa.jwk_with(&json!({ "e": "AQ" })), Some(SkipReason::Numbers)),
        (rsa.jwk_with(&json!({ "e": "Ag" })), Some(SkipReason::Numbers)),
        (ec.jwk_with(&json!({ "crv": "P-384" })), Some(SkipReason::Numbers)),
        (ec.jwk_with(&json!({ "crv": "P-521" })), Some(SkipReason::Type)),
        (ec.jwk_with(&json!({ "x": (ec.jwk)()["y"] })), Some(SkipReason::Numbers)),
        (ec.jwk_with(&json!({ "x": "AA" })), Some(SkipReason::Numbers)),
        (ed.jwk_with(&json!({ "crv": "X25519" })), Some(SkipReason::Type)),
        (ed.jwk_with(&json!({ "x": "AA" })), Some(SkipReason::Numbers)),
        (json!({ "kty": "oct", "k": "c2VjcmV0" }), Some(SkipReason::Type)),
        (json!({ "kty": "rsa" }), Some(SkipReason::Type)),
        (json!({ "kid": "a" }), Some(SkipReason::Malformed)),
        (json!(["RSA"]), Some(SkipReason::Malformed)),
        (json!(7), Some(SkipReason::Malformed)),
    ] {
        assert_eq!(skipped(&key), fault, "{key}");
    }
    let only = set(&[rsa.jwk_with(&json!({ "alg": "PS256" }))]);
    assert_eq!(rsa.checked_by(&only), Err(Unconfirmed::NoKey), "the key is for another algorithm");
}

#[test]
fn what_is_no_set_is_told_and_a_bad_key_harms_no_other() {
    for text in ["", "{}", "[]", r#"{"keys":{}}"#, r#"{"keys":null}"#, r#"[[{"kty":"RSA"}]]"#, "<html>", "\u{feff}{}"] {
        assert_eq!(KeySet::parse(text.as_bytes()).unwrap_err(), KeySetFault::Malformed, "{text}");
    }
    let many = json!({ "keys": vec![json!({}); KEYS_MAX + 1] }).to_string();
    assert_eq!(KeySet::parse(many.as_bytes()).unwrap_err(), KeySetFault::TooMany(KEYS_MAX + 1));
    let text = json!({ "keys": [{ "kty": "oct" }, (VECTORS[1].jwk)()], "more": 1 }).to_string();
    let (set, skipped) = KeySet::parse(text.as_bytes()).unwrap();
    assert_eq!(skipped, [SkippedKey { index: 0, why: SkipReason::Type }]);
    assert_eq!(VECTORS[1].checked_by(&set), Ok(()));
    // Twice the same member: which one would count?
    let twice =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    assert_eq!(KeySet::parse(twice.as_bytes()).unwrap().1[0].why, SkipReason::Malformed);
}

#[test]
fn a_signature_of_zeros_or_of_another_length_confirms_nothing() {
    let all = set(&VECTORS.each_ref().map(|vector| (vector.jwk)()));
    for vector in &VECTORS {
        let good = vector.signature();
        let longer = [&good[..], &[0]].concat();
        for bad in [&[][..], &[0], &vec![0; good.len()], &vec![0xff; good.len()], &good[1..], &longer, &[0; 100_000]] {
            let verdict = all.verify(vector.algorithm, None, vector.signed(), bad);
            assert_eq!(verdict, Err(Unconfirmed::Signature), "{:?}: {} bytes", vector.algorithm, bad.len());
        }
    }
    // The DER form, which other protocols use, is not JWS' form.
    let ec = &VECTORS[1];
    let (r, s) =
        (BigNum::from_slice(&ec.signature()[..32]).unwrap(), BigNum::from_slice(&ec.signature()[32..]).unwrap());
    let der = EcdsaSig::from_private_components(r, s).unwrap().to_der().unwrap();
    assert_eq!(all.verify(ES256, None, ec.signed(), &der), Err(Unconfirmed::Signature));
}

fn encoded(number: &openssl::bn::BigNumRef, length: i32) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(number.to_vec_padded(length).unwrap())
}

#[test]
fn every_algorithm_confirms_what_its_own_key_signed_and_nothing_else() {
    let rsa = Rsa::generate(2_048).unwrap();
    let jwk = json!({ "kty": "RSA", "n": encoded(rsa.n(), 256), "e": encoded(rsa.e(), 3) });
    let (set, key) = (set(&[jwk]), PKey::from_rsa(rsa).unwrap());
    let sign = |key: &PKey<Private>, digest: Digest, with_pss: bool| {
        let mut signer = Signer::new(digest.openssl(), key).unwrap();
        if with_pss {
            signer.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
            signer.set_rsa_mgf1_md(digest.openssl()).unwrap();
            signer.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).unwrap();
        }
        signer.sign_oneshot_to_vec(b"signed").unwrap()
    };
    let digests = [Digest::Sha256, Digest::Sha384, Digest::Sha512];
    let all = digests.map(|digest| [PublicKeyAlgorithm::Rsa(digest), PublicKeyAlgorithm::RsaPss(digest)]).concat();
    for digest in digests {
        for (with_pss, own) in [(false, PublicKeyAlgorithm::Rsa(digest)), (true, PublicKeyAlgorithm::RsaPss(digest))] {
            let signature = sign(&key, digest, with_pss);
            for algorithm in &all {
                let verdict = set.verify(*algorithm, None, b"signed", &signature);
                assert_eq!(verdict.is_ok(), *algorithm == own, "{own:?} by {algorithm:?}");
            }
        }
    }
    es384();
}

fn es384() {
    let group = EcGroup::from_curve_name(Nid::SECP384R1).unwrap();
    let key = EcKey::generate(&group).unwrap();
    let mut context = openssl::bn::BigNumContext::new().unwrap();
    let (mut x, mut y) = (BigNum::new().unwrap(), BigNum::new().unwrap());
    key.public_key().affine_coordinates(&group, &mut x, &mut y, &mut context).unwrap();
    let set = set(&[json!({ "kty": "EC", "crv": "P-384", "x": encoded(&x, 48), "y": encoded(&y, 48) })]);
    let key = PKey::from_ec_key(key).unwrap();
    let der = Signer::new(MessageDigest::sha384(), &key).unwrap().sign_oneshot_to_vec(b"signed").unwrap();
    let signature = EcdsaSig::from_der(&der).unwrap();
    let padded = |half: &openssl::bn::BigNumRef| half.to_vec_padded(48).unwrap();
    let signature = [padded(signature.r()), padded(signature.s())].concat();
    let es384 = PublicKeyAlgorithm::Ecdsa(Curve::P384);
    assert_eq!(set.verify(es384, None, b"signed", &signature), Ok(()));
    assert_eq!(set.verify(es384, None, b"Signed", &signature), Err(Unconfirmed::Signature));
    assert_eq!(set.verify(ES256, None, b"signed", &signature), Err(Unconfirmed::NoKey));
}

proptest! {
    #[test]
    fn whatever_is_given_for_a_set_is_read_or_refused(
        text in "\\PC*",
        member in "kty|kid|use|key_ops|alg|crv|n|e|x|y",
        value in "\\PC{0,20}",
    ) {
        let _ = KeySet::parse(text.as_bytes());
        for vector in &VECTORS {
            let mut jwk = (vector.jwk)();
            jwk[&*member] = json!(value);
            let (set, skipped) = KeySet::parse(json!({ "keys": [jwk] }).to_string().as_bytes()).unwrap();
            prop_assert_eq!(set.len() + skipped.len(), 1);
        }
    }
}
