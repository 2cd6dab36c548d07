//! Tokens signed by a secret and by public keys, good and bad, and the known attacks on their readers.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const SECRET: &[u8] = b"a secret for the tests, 32 bytes";
/// 2026-09-21.
const NOW: UnixMs = UnixMs(1_790_000_000_000);
const NOW_SECONDS: f64 = 1_790_000_000.0;

fn verify(token: &str) -> Result<Grant, Unauthorized> {
    verifier(false).grant(Some(&BearerToken(token.into())), NOW)
}

fn verifier(require_assessments: bool) -> Verifier {
    let claims = ClaimRules { require_assessments, ..ClaimRules::default() };
    Verifier::new(&AuthConfig { secrets: vec![SECRET.into()], claims }, Arc::default())
}

/// Signs any header and claims, also such as no JSON library writes.
fn signed(header: &str, claims: &str) -> String {
    sign(SECRET, header, claims)
}

fn with_claims(claims: &str) -> Result<Grant, Unauthorized> {
    verify(&signed(r#"{"alg":"HS256","typ":"JWT"}"#, claims))
}

#[test]
fn a_minted_token_grants_what_it_says() {
    let claims =
        json!({ "userId": "u-1", "sub": "s-1", "exp": 1_790_000_060, "assessments": ["a"], "iat": 1.5, "jti": "t" });
    let grant = verify(&mint(SECRET, &claims)).unwrap();
    let (allowed, token_id) = (Allowed::Only(["a".into()].into()), Some(claims::token_id("t")));
    let (expires, issued) = (Some(UnixMs(1_790_000_090_000)), Some(UnixMs(1_500)));
    assert_eq!(grant, Grant { user: "u-1".into(), expires, allowed, issued, token_id });
}

#[test]
fn a_token_of_another_library_is_accepted() {
    // The example of RFC 7515, appendix A.1: its header has line breaks, its claims a URL for a name.
    let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9\
                 .eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ\
                 .dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let secret = BASE64_URL_SAFE_NO_PAD.decode(key).unwrap().into();
    let verifier = Verifier::new(&AuthConfig { secrets: vec![secret], ..AuthConfig::default() }, Arc::default());
    let verify_at = |seconds: u64| verifier.grant(Some(&BearerToken(token.into())), UnixMs(seconds * 1000));
    assert_eq!(verify_at(1_300_819_380), Err(Unauthorized::NoUser), "the signature and the time are good");
    assert_eq!(verify_at(1_300_819_380 + 30), Err(Unauthorized::Expired));
}

/// Made once by PyJWT, jose (npm) and nimbus-jose-jwt (Java), with keys of their own making.
#[test]
fn tokens_of_other_libraries_are_accepted_with_each_algorithm_and_with_no_other_key() {
    #[derive(Deserialize)]
    struct Token {
        library: String,
        algorithm: String,
        #[serde(rename = "token")]
        text: Box<str>,
    }
    let made: Value = serde_json::from_str(include_str!("tests/other_libraries.json")).unwrap();
    let tokens: Vec<Token> = serde_json::from_value(made["tokens"].clone()).unwrap();
    let claims = ClaimRules {
        issuers: ["https://id.example/".into()].into(),
        audiences: ["gateway".into()].into(),
        ..ClaimRules::default()
    };
    let config = AuthConfig {
        secrets: vec![(*b"a secret of the interoperability test, of a length that is good for HS512 too").into()],
        claims,
    };
    let keys = |keys: &Value| Arc::new(KeySets::of_json(json!({ "keys": keys }).to_string().as_bytes()).unwrap());
    let check = |keys: &Arc<KeySets>, token: &Token| {
        let verifier = Verifier::new(&config, Arc::clone(keys));
        match verifier.verify(Some(&BearerToken(token.text.clone())), NOW).unwrap() {
            Verdict::Granted(grant) => Ok(grant),
            Verdict::PublicKey(check) => check.run(NOW),
        }
    };
    let (all, none) = (keys(&made["keys"]), keys(&json!([])));
    for token in &tokens {
        let name = format!("{} of {}", token.algorithm, token.library);
        let grant = check(&all, token).unwrap_or_else(|fault| panic!("{name}: {fault:?}"));
        let allowed = Allowed::Only(["a".into(), "7".into()].into());
        assert_eq!((&*grant.user, grant.allowed), ("u-1", allowed), "{name}");
        assert_eq!(check(&none, token).is_ok(), token.algorithm.starts_with("HS"), "{name}");
    }
    let libraries: std::collections::BTreeSet<&str> = tokens.iter().map(|token| &*token.library).collect();
    assert_eq!((libraries.len(), tokens.len()), (3, 35));
}

#[test]
fn the_user_is_user_id_else_sub_a_string_or_a_number() {
    for (claims, user) in [
        (r#"{"sub":"s"}"#, Some("s")),
        (r#"{"userId":"u","sub":"s"}"#, Some("u")),
        (r#"{"userId":42}"#, Some("42")),
        (r#"{"userId":0,"sub":"s"}"#, Some("0")),
        (r#"{"sub":123456789012345678901234567890}"#, Some("123456789012345678901234567890")),
        (r#"{"sub":-1.50e3}"#, Some("-1.50e3")),
        (r#"{"sub":"\u00fc\n"}"#, Some("ü\n")),
        (r#"{"userId":"","sub":"s"}"#, Some("s")),
        (r#"{"userId":null,"sub":"s"}"#, Some("s")),
        (r#"{"userId":{"id":1},"sub":7}"#, Some("7")),
        (r#"{"userId":true}"#, None),
        (r#"{"userId":["u"],"sub":""}"#, None),
        (r#"{"sub":null}"#, None),
        (r#"{"sub":"\ud800"}"#, None),
        (r#"{"name":"x"}"#, None),
    ] {
        let got = with_claims(claims).map(|grant| grant.user);
        assert_eq!(got, user.map(Into::into).ok_or(Unauthorized::NoUser), "{claims}");
    }
}

#[test]
fn exp_counts_with_its_leeway_and_its_fraction() {
    for (exp, left_ms) in [(NOW_SECONDS, Some(30_000)), (NOW_SECONDS - 29.5, Some(500)), (NOW_SECONDS - 30.0, None)] {
        let expires = with_claims(&json!({ "sub": "s", "exp": exp }).to_string()).map(|grant| grant.expires);
        let expected = left_ms.map(|ms| Some(UnixMs(NOW.0 + ms))).ok_or(Unauthorized::Expired);
        assert_eq!(expires, expected, "exp {exp}");
    }
    assert_eq!(with_claims(r#"{"sub":"s"}"#).unwrap().expires, None);
}

#[test]
fn nbf_counts_with_its_leeway_and_its_fraction() {
    for (nbf, good) in [(NOW_SECONDS + 30.0, true), (NOW_SECONDS + 30.5, false), (0.0, true), (-1.0, true)] {
        let verdict = with_claims(&json!({ "sub": "s", "nbf": nbf }).to_string()).map(|_| ());
        assert_eq!(verdict, if good { Ok(()) } else { Err(Unauthorized::NotYet) }, "nbf {nbf}");
    }
}

#[test]
fn absurd_times_do_not_panic() {
    for (claims, verdict) in [
        (r#"{"sub":"s","exp":1e300}"#, Ok(Some(UnixMs(u64::MAX)))),
        (r#"{"sub":"s","exp":-1e300}"#, Err(Unauthorized::Expired)),
        (r#"{"sub":"s","exp":-0}"#, Err(Unauthorized::Expired)),
        (r#"{"sub":"s","nbf":-1e300}"#, Ok(None)),
        (r#"{"sub":"s","nbf":1e300}"#, Err(Unauthorized::NotYet)),
        (r#"{"sub":"s","exp":1e400}"#, Err(Unauthorized::Malformed)),
        (r#"{"sub":"s","exp":NaN}"#, Err(Unauthorized::Malformed)),
        (r#"{"sub":"s","exp":"1790000060"}"#, Err(Unauthorized::Malformed)),
        (r#"{"sub":"s","exp":null}"#, Err(Unauthorized::Malformed)),
        (r#"{"sub":"s","nbf":null}"#, Err(Unauthorized::Malformed)),
        (r#"{"sub":"s","nbf":[1]}"#, Err(Unauthorized::Malformed)),
        (r#"{"sub":"s","exp":1790000060,"exp":1e300}"#, Err(Unauthorized::Malformed)),
    ] {
        assert_eq!(with_claims(claims).map(|grant| grant.expires), verdict, "{claims}");
    }
}

#[test]
fn assessments_allow_only_the_strings_of_an_array() {
    for (claim, may_a, may_b) in [
        (json!(["a", "b"]), true, true),
        (json!(["a", 1, null, ["b"]]), true, false),
        (json!([]), false, false),
        (json!("a"), false, false),
        (json!({ "a": true }), false, false),
        (json!(null), false, false),
    ] {
        let allowed = verify(&mint(SECRET, &json!({ "sub": "s", "assessments": claim }))).unwrap().allowed;
        assert_eq!((allowed.covers("a"), allowed.covers("b")), (may_a, may_b), "{claim}");
    }
}

#[test]
fn without_the_claim_any_assessment_is_allowed_unless_the_claim_is_required() {
    let token = BearerToken(mint(SECRET, &json!({ "sub": "s" })).into());
    for require in [false, true] {
        let allowed = verifier(require).grant(Some(&token), NOW).unwrap().allowed;
        assert_eq!(allowed.covers("a"), !require);
    }
}

#[test]
fn only_a_supported_algorithm_with_the_right_secret_counts() {
    let good = mint(SECRET, &json!({ "sub": "s" }));
    let claims = good.split('.').nth(1).unwrap();
    let none = format!("{}.{claims}.", BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#));
    for (token, fault) in [
        (none, Unauthorized::Algorithm),
        (signed(r#"{"alg":"HS512"}"#, r#"{"sub":"s"}"#), Unauthorized::Signature),
        (signed(r#"{"alg":"RS256"}"#, r#"{"sub":"s"}"#), Unauthorized::Algorithm),
        (signed(r#"{"alg":"hs256"}"#, r#"{"sub":"s"}"#), Unauthorized::Algorithm),
        (signed(r#"{"typ":"JWT"}"#, r#"{"sub":"s"}"#), Unauthorized::Malformed),
        (signed(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, r#"{"sub":"s"}"#), Unauthorized::Malformed),
        (signed(r#"{"alg":"HS256"}"#, "not JSON"), Unauthorized::Malformed),
        (signed(r#"{"alg":"HS256"}"#, r#"["u","s"]"#), Unauthorized::Malformed),
        (mint(b"another secret", &json!({ "sub": "s" })), Unauthorized::Signature),
        (format!("{}.", good.rsplit_once('.').unwrap().0), Unauthorized::Signature),
        (format!("{good}="), Unauthorized::Malformed),
        (format!("{good}.x"), Unauthorized::Malformed),
        (format!("x.{good}"), Unauthorized::Malformed),
        (good.replace('.', ""), Unauthorized::Malformed),
        (String::new(), Unauthorized::Malformed),
        ("..".into(), Unauthorized::Malformed),
        ("ü.\u{0}.…".into(), Unauthorized::Malformed),
    ] {
        assert_eq!(verify(&token), Err(fault), "{token}");
    }
    assert_eq!(verifier(false).grant(None, NOW), Err(Unauthorized::Missing));
}

#[test]
fn no_secret_and_no_token_is_ever_printed() {
    let config = AuthConfig { secrets: vec![SECRET.into()], ..AuthConfig::default() };
    let token = BearerToken(mint(SECRET, &json!({ "sub": "s" })).into());
    let printed = format!("{config:?} {:?} {token:?}", Verifier::new(&config, Arc::default()));
    for secret in ["a secret", "97, 32, 115", &*token.0] {
        assert!(!printed.contains(secret), "{printed}");
    }
}

proptest! {
    #[test]
    fn a_token_changed_anywhere_grants_nothing(at in any::<prop::sample::Index>(), byte in b' '..=b'~') {
        let good = mint(SECRET, &json!({ "sub": "s" }));
        let mut changed = good.clone().into_bytes();
        let at = at.index(changed.len());
        changed[at] = byte;
        let changed = String::from_utf8(changed).unwrap();
        prop_assert_eq!(verify(&changed).is_ok(), changed == good);
    }

    #[test]
    fn whatever_is_signed_grants_to_a_user_or_not_at_all(
        claims in "\\PC*",
        key in "userId|sub|exp|nbf|assessments",
        value in "\\PC{0,20}",
    ) {
        for claims in [claims, format!(r#"{{"userId":"u","{key}":{value}}}"#)] {
            if let Ok(grant) = with_claims(&claims) {
                prop_assert!(!grant.user.is_empty());
            }
        }
    }
}
