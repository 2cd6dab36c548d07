//! The cost of a handshake besides its system calls: parsing the head, verifying the token, finding the owner. The
//! floors are a search for the end of the head, and the HMAC of as many bytes. A signature by a public key is checked on
//! a thread of its own.
//!
//! Not measured: accepting, reading and answering, the task of a connection, and limits per client.

use std::hint::black_box;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::{Padding, Rsa};
use openssl::sign::{RsaPssSaltlen, Signer};
use serde_json::{Value, json};
use shardgate::clock::UnixMs;
use shardgate::ids::{AssessmentHash, NodeId};
use shardgate::protocol::auth::{self, KeySets, Verdict, Verifier, mint};
use shardgate::protocol::head::{self, Parsed};
use shardgate::routing::placement::{Pod, View, shard_of};

const SECRET: &[u8] = b"a secret of thirty-two bytes or so";

fn token() -> String {
    mint(
        SECRET,
        &json!({ "userId": "user-4711", "exp": 4_000_000_000_u64, "assessments": ["assessment-1", "assessment-2"] }),
    )
}

/// A request as a browser sends it.
fn request(token: &str) -> String {
    format!(
        "GET /ws?token={token}&assessmentId=assessment-1 HTTP/1.1\r\nHost: gateway.example:3003\r\n\
         Connection: Upgrade\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36\r\n\
         Upgrade: websocket\r\nOrigin: https://app.example\r\nSec-WebSocket-Version: 13\r\n\
         Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    )
}

fn heads(c: &mut Criterion) {
    let request = request(&token());
    let rules = head::Rules::default();
    assert!(matches!(head::parse(request.as_bytes(), &rules), Parsed::Upgrade { .. }));
    let mut group = c.benchmark_group("request head");
    group.throughput(Throughput::Bytes(request.len() as u64));
    group.bench_function("parse and check", |b| b.iter(|| head::parse(black_box(request.as_bytes()), &rules)));
    group.bench_function("floor: find its end", |b| b.iter(|| black_box(&request).find("\r\n\r\n")));
    group.finish();
}

fn tokens(c: &mut Criterion) {
    let text = token();
    let config = auth::AuthConfig { secrets: vec![SECRET.into()], ..auth::AuthConfig::default() };
    let verifier = Verifier::new(&config, Arc::default());
    let (given, now) = (head::BearerToken(text.as_str().into()), UnixMs(1_790_000_000_000));
    assert!(verifier.verify(Some(&given), now).is_ok());
    let mut group = c.benchmark_group("JWT");
    group.bench_function("verify", |b| b.iter(|| verifier.verify(black_box(Some(&given)), now)));
    let signed = text.rsplit_once('.').expect("a token has three parts").0;
    let key = PKey::hmac(SECRET).expect("HMAC accepts keys of any length");
    group.bench_function("floor: HMAC", |b| {
        b.iter(|| Signer::new(MessageDigest::sha256(), &key)?.sign_oneshot_to_vec(black_box(signed.as_bytes())));
    });
    for (algorithm, key) in KEYS {
        let (jwk, token) = signed_by(algorithm, key());
        let keys = Arc::new(KeySets::of_json(format!(r#"{{"keys":[{jwk}]}}"#).as_bytes()).expect("a set of one key"));
        let verifier = Verifier::new(&auth::AuthConfig::default(), keys);
        let given = head::BearerToken(token.into());
        group.bench_function(format!("verify {algorithm}"), |b| {
            b.iter(|| match verifier.verify(black_box(Some(&given)), now) {
                Ok(Verdict::PublicKey(check)) => check.run(now).expect("the token is good"),
                other => panic!("{other:?}"),
            });
        });
    }
    group.finish();
}

type MakeKey = fn() -> PKey<Private>;

/// A key for each algorithm.
const KEYS: [(&str, MakeKey); 5] = [
    ("RS256", rsa),
    ("PS256", rsa),
    ("ES256", || ec(Nid::X9_62_PRIME256V1)),
    ("ES384", || ec(Nid::SECP384R1)),
    ("EdDSA", || PKey::generate_ed25519().expect("OpenSSL has it")),
];

fn rsa() -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(2048).expect("there is randomness")).expect("an RSA key")
}

fn ec(curve: Nid) -> PKey<Private> {
    let group = EcGroup::from_curve_name(curve).expect("OpenSSL has it");
    PKey::from_ec_key(EcKey::generate(&group).expect("there is randomness")).expect("a key on a curve")
}

/// A key's JWK, and a token that it signed.
fn signed_by(algorithm: &str, key: PKey<Private>) -> (Value, String) {
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let claims = json!({ "userId": "user-4711", "exp": 4_000_000_000_u64, "assessments": ["assessment-1"] });
    let signed = [json!({ "alg": algorithm }), claims].map(|part| encode(part.to_string().as_bytes())).join(".");
    let made = || -> Result<(Value, Vec<u8>), ErrorStack> {
        if algorithm == "EdDSA" {
            let signature = Signer::new_without_digest(&key)?.sign_oneshot_to_vec(signed.as_bytes())?;
            return Ok((json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(&key.raw_public_key()?) }), signature));
        }
        let digest = if algorithm == "ES384" { MessageDigest::sha384() } else { MessageDigest::sha256() };
        let mut signer = Signer::new(digest, &key)?;
        if let Ok(rsa) = key.rsa() {
            if algorithm == "PS256" {
                signer.set_rsa_padding(Padding::PKCS1_PSS)?;
                signer.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
            }
            let jwk = json!({ "kty": "RSA", "n": encode(&rsa.n().to_vec()), "e": encode(&rsa.e().to_vec()) });
            return Ok((jwk, signer.sign_oneshot_to_vec(signed.as_bytes())?));
        }
        let (crv, len) = if algorithm == "ES384" { ("P-384", 48) } else { ("P-256", 32) };
        let (key, mut context) = (key.ec_key()?, BigNumContext::new()?);
        let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
        key.public_key().affine_coordinates_gfp(key.group(), &mut x, &mut y, &mut context)?;
        let [x, y] = [x.to_vec_padded(len)?, y.to_vec_padded(len)?].map(|half| encode(&half));
        let signature = EcdsaSig::from_der(&signer.sign_oneshot_to_vec(signed.as_bytes())?)?;
        let halves = [signature.r().to_vec_padded(len)?, signature.s().to_vec_padded(len)?];
        Ok((json!({ "kty": "EC", "crv": crv, "x": x, "y": y }), halves.concat()))
    };
    let (jwk, signature) = made().expect("OpenSSL signs");
    (jwk, format!("{signed}.{}", encode(&signature)))
}

fn placements(c: &mut Criterion) {
    let pod = |number: u32| Pod { node: NodeId(format!("pod-{number}").into()), url: "ws://pod/ws".into() };
    let view = |vacant: u32| {
        let slots = (0..16).map(|number| (number >= vacant).then(|| pod(number))).collect();
        Arc::new(View { version: 1, slots })
    };
    let (whole, half) = (view(0), view(8));
    let mut group = c.benchmark_group("placement");
    let mut number = 0_u64;
    let mut next = || {
        number += 1;
        AssessmentHash(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    };
    group.bench_function("hash of an id", |b| b.iter(|| AssessmentHash::of(black_box("assessment-4711"))));
    group.bench_function("owner among 16 pods", |b| b.iter(|| whole.owner(next())));
    group.bench_function("owner with half of the slots vacant", |b| b.iter(|| half.owner(next())));
    group.bench_function("shard of 8", |b| b.iter(|| shard_of(next(), 8)));
    group.finish();
}

criterion_group!(benches, heads, tokens, placements);
criterion_main!(benches);
