//! Tokens.

use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;
use shardgate::clock::UnixMs;
use shardgate::protocol::auth::{Allowed, AuthConfig, Verdict, Verifier};
use shardgate::protocol::head::BearerToken;

const SECRET: &[u8] = b"a secret for the fuzzing, 32 byte";
const NOW: UnixMs = UnixMs(1_790_000_000_000);

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    Verifier::new(&AuthConfig { secrets: vec![SECRET.into()], ..AuthConfig::default() }, Arc::default())
});

/// The JSON of a header, a NUL, and the JSON of claims, which get a valid signature here. Also parses the bytes as a
/// token.
pub fn token(data: &[u8]) {
    let raw = BearerToken(String::from_utf8_lossy(data).into());
    assert!(VERIFIER.verify(Some(&raw), NOW).is_err(), "no token is valid without the secret");
    let Some(at) = data.iter().position(|&byte| byte == 0) else { return };
    let (header, claims) = (&data[..at], &data[at + 1..]);
    let signed = [header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).join(".");
    let mac = Hmac::<Sha256>::new_from_slice(SECRET).expect("HMAC accepts keys of any length").chain_update(&signed);
    let mut signature = mac.finalize().into_bytes().to_vec();
    let token = |signature: &[u8]| BearerToken(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)).into());
    let granted = VERIFIER.verify(Some(&token(&signature)), NOW);
    signature[usize::from(claims.first().copied().unwrap_or(0)) % 32] ^= 1;
    assert!(VERIFIER.verify(Some(&token(&signature)), NOW).is_err(), "another signature");
    let Ok(Verdict::Granted(grant)) = granted else { return };
    assert!(!grant.user.is_empty());
    assert!(grant.expires.is_none_or(|expires| expires > NOW));
    let (Ok(header), Ok(claims)) = (serde_json::from_slice::<Value>(header), serde_json::from_slice::<Value>(claims))
    else {
        // Nested too deeply for the model only.
        return;
    };
    assert_eq!(header["alg"], "HS256");
    assert!(header.get("crit").is_none());
    let named = [&claims["userId"], &claims["sub"]].into_iter().find_map(|claim| match claim {
        Value::String(user) if !user.is_empty() => Some(user.clone()),
        // As written, which the model does not keep.
        Value::Number(_) => Some(grant.user.to_string()),
        _ => None,
    });
    assert_eq!(named.as_deref(), Some(&*grant.user));
    match (claims.get("assessments"), &grant.allowed) {
        (None, Allowed::Any) => {}
        (Some(Value::Array(items)), Allowed::Only(ids)) => {
            // Of numbers, the model does not keep how they were written.
            let usable = items.iter().filter(|item| item.is_string() || item.is_number());
            assert_eq!(usable.clone().count(), ids.len());
            assert!(usable.zip(ids).all(|(item, id)| item.is_number() || item.as_str() == Some(id)));
        }
        (Some(_), Allowed::Only(ids)) => assert!(ids.is_empty(), "a claim that is not an array allows none"),
        (claim, allowed) => panic!("{claim:?} grants {allowed:?}"),
    }
}
