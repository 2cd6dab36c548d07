//! The cost of a handshake besides its system calls: parsing the head, verifying the token, finding the owner. The
//! floors are a search for the end of the head, and the HMAC of as many bytes.
//!
//! Not measured: accepting, reading and answering, the task of a connection, and limits per client.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;
use shardgate::clock::UnixMs;
use shardgate::ids::{AssessmentHash, NodeId};
use shardgate::protocol::auth::{self, Verifier, mint};
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
    let verifier = Verifier::new(&auth::AuthConfig { secret: SECRET.into(), require_assessments: false });
    let (given, now) = (head::BearerToken(text.as_str().into()), UnixMs(1_790_000_000_000));
    assert!(verifier.verify(Some(&given), now).is_ok());
    let mut group = c.benchmark_group("JWT");
    group.bench_function("verify", |b| b.iter(|| verifier.verify(black_box(Some(&given)), now)));
    let signed = text.rsplit_once('.').expect("a token has three parts").0;
    let keyed = Hmac::<Sha256>::new_from_slice(SECRET).expect("HMAC accepts keys of any length");
    group.bench_function("floor: HMAC", |b| {
        b.iter(|| keyed.clone().chain_update(black_box(signed.as_bytes())).finalize());
    });
    group.finish();
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
