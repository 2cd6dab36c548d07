//! Tokens of identity providers: which are accepted, and what becomes of them while a provider rotates its keys, is
//! away, or answers with something else.

#[path = "identity/provider.rs"]
mod provider;

use std::thread;
use std::time::{Duration, Instant};

use loadtest::certificates::Authority;
use loadtest::client::{Ask, Client, Message, WITHIN, read_until};
use loadtest::events::{Kind, event, seen};
use loadtest::kafka::Kafka;
use loadtest::pods::{Plan, Pod, READY_WITHIN, World, run};
use loadtest::process::{Signal, TempDir, always, eventually};
use loadtest::redis::Redis;
use loadtest::token;
use openssl::nid::Nid;
use provider::{Answer, Key, Provider, key_set};
use serde_json::{Value, json};

/// What a client gets first: its user, or its error.
fn outcome(ask: &Ask) -> Result<String, String> {
    let mut client = ask.try_open().map_err(|answer| answer.status.to_string())?;
    read_until(std::slice::from_mut(&mut client), "the first message", WITHIN, |clients| {
        !clients[0].messages().is_empty()
    });
    let first = client.messages()[0].json();
    match first["error"].as_str() {
        Some(error) => Err(format!("{error}: {}", first["message"].as_str().unwrap_or_default())),
        None => Ok(first["userId"].as_str().unwrap_or_default().to_owned()),
    }
}

fn with_token(pod: &Pod, token: &str) -> Result<String, String> {
    outcome(&pod.ask().token(token))
}

#[track_caller]
fn is_refused(outcome: &Result<String, String>) {
    assert!(outcome.as_ref().is_err_and(|error| error.starts_with("Unauthorized: ")), "{outcome:?}");
}

/// A pod to be, whose tokens a provider signs.
fn plan(world: &World, provider: &Provider) -> Plan {
    world
        .pod("pod-0")
        .unset("JWT_SECRET")
        .set("JWT_JWKS", &provider.url())
        .set("JWT_JWKS_CA_FILE", provider.ca_file().to_str().unwrap())
}

fn claims() -> Value {
    json!({ "sub": "u-1", "exp": token::in_seconds(60.0) })
}

#[test]
fn tokens_of_each_algorithm_are_accepted_and_known_attacks_are_not() {
    let world = World::start();
    let (rsa, p256, p384) = (Key::rsa("rsa"), Key::p256("p256"), Key::ec("p384", Nid::SECP384R1));
    let ed = Key::ed25519("ed");
    let dir = TempDir::new("keys");
    let file = dir.file("jwks.json", &key_set(&[&rsa, &p256, &p384, &ed]));
    let pod = world.pod("pod-0").set("JWT_JWKS", file.to_str().unwrap()).start();
    let keyed = [
        (&rsa, &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"][..]),
        (&p256, &["ES256"]),
        (&p384, &["ES384"]),
        (&ed, &["EdDSA"]),
    ];
    for (key, algorithms) in keyed {
        for algorithm in algorithms {
            assert_eq!(with_token(&pod, &key.sign(algorithm, &claims())).as_deref(), Ok("u-1"), "{algorithm}");
            let anonymous = key.sign_with(algorithm, &json!({ "alg": algorithm }), &claims());
            assert_eq!(with_token(&pod, &anonymous).as_deref(), Ok("u-1"), "{algorithm} without a kid");
            is_refused(&with_token(&pod, &key.sign(algorithm, &json!({ "sub": "u-1", "exp": 1 }))));
        }
    }
    assert_eq!(with_token(&pod, &token::signed(&claims())).as_deref(), Ok("u-1"), "HS256 by the secret");

    let hs = |secret: &[u8], kid: &str| token::signed_with(secret, &json!({ "alg": "HS256", "kid": kid }), &claims());
    let other = Key::rsa("rsa");
    let embedded =
        json!({ "alg": "RS256", "jwk": other.jwk(), "jku": "https://127.0.0.1/keys", "x5u": "https://127.0.0.1/" });
    let good = rsa.sign("RS256", &claims());
    let unsigned = good.rsplit_once('.').unwrap().0;
    let attacks = [
        ("HS256 by the public RSA key", hs(&rsa.public_pem(), "rsa")),
        ("HS256 by the public key's JWK", hs(rsa.jwk().to_string().as_bytes(), "rsa")),
        ("another key of the same kid", other.sign("RS256", &claims())),
        ("a key within the header", other.sign_with("RS256", &embedded, &claims())),
        (
            "a kid that is a path",
            p256.sign_with("ES256", &json!({ "alg": "ES256", "kid": "../../dev/null" }), &claims()),
        ),
        ("a kid that is SQL", p256.sign_with("ES256", &json!({ "alg": "ES256", "kid": "' OR 1=1 --" }), &claims())),
        ("another key's kid", p256.sign_with("ES256", &json!({ "alg": "ES256", "kid": "rsa" }), &claims())),
        ("no signature", format!("{unsigned}.")),
        (
            "a signature of zeros",
            format!("{}.{}", p256.sign("ES256", &claims()).rsplit_once('.').unwrap().0, "A".repeat(86)),
        ),
    ];
    for (name, token) in attacks {
        let outcome = with_token(&pod, &token);
        assert!(outcome.as_ref().is_err_and(|error| error.starts_with("Unauthorized: ")), "{name}: {outcome:?}");
    }
    for none in ["none", "None", "NONE", "nOnE", ""] {
        is_refused(&with_token(&pod, &rsa.sign_with("RS256", &json!({ "alg": none }), &claims())));
    }
    let huge = rsa.sign("RS256", &json!({ "sub": "u", "more": "x".repeat(100_000) }));
    assert_eq!(with_token(&pod, &huge), Err("431".to_owned()), "a head has a bound");
    assert!(!pod.log().contains(&good), "no token reaches the log");
}

#[test]
fn a_provider_that_rotates_its_keys_is_asked_again_and_one_that_is_away_or_answers_wrong_changes_nothing() {
    let world = World::start();
    let (old, new) = (Key::p256("old"), Key::p256("new"));
    let provider = Provider::start(Some(Answer::keys(&[&old])));
    let pod = plan(&world, &provider).set("JWT_JWKS_REFRESH_MS", "1000").start();
    let ask = |key: &Key| with_token(&pod, &key.sign("ES256", &claims()));
    assert_eq!(ask(&old).as_deref(), Ok("u-1"));
    is_refused(&ask(&new));
    let request = &provider.requests()[0];
    assert!(request.starts_with("GET /realms/shop/certs?use=sig HTTP/1.1\r\n"), "{request}");
    assert!(request.to_ascii_lowercase().contains(&format!("host: {}\r\n", provider.address)), "{request}");

    provider.answers(Some(Answer::keys(&[&old, &new])));
    eventually("the new key is known", WITHIN, || ask(&new).is_ok().then_some(()));
    assert!(ask(&old).is_ok());
    provider.answers(Some(Answer::keys(&[&new])));
    eventually("the old key is withdrawn", WITHIN, || ask(&old).is_err().then_some(()));
    assert_eq!(pod.metrics().of("shardgate_key_set_keys", &[("issuer", "")]), 1.0);

    let slow = Answer { delay: Duration::from_secs(3_600), ..Answer::keys(&[&old]) };
    let wrong = [
        (None, "HTTP: "),
        (Some(Answer::of("503 Service Unavailable", &key_set(&[&old]))), "the answer is 503"),
        (Some(Answer::of("302 Found", &key_set(&[&old]))), "the answer is 302"),
        (Some(Answer::of("200 OK", "<html>")), "not a JSON object with an array"),
        (Some(Answer::of("200 OK", r#"{"keys":[]}"#)), "it has no key"),
        (
            Some(Answer::of("200 OK", &format!("{}{}", key_set(&[&old]), " ".repeat(2 << 20)))),
            "more than 1048576 bytes",
        ),
        (Some(slow), "no answer within"),
    ];
    for (answer, fault) in wrong {
        let read = || pod.metrics().of("shardgate_key_set_reads_total", &[("issuer", ""), ("outcome", "failed")]);
        let before = read();
        provider.answers(answer);
        eventually(fault, WITHIN, || (read() > before).then_some(()));
        assert!(ask(&new).is_ok(), "the last good set holds: {fault}");
        is_refused(&ask(&old));
        eventually(fault, WITHIN, || pod.log().contains(fault).then_some(()));
        let age = pod.metrics().of("shardgate_key_set_age_seconds", &[("issuer", "")]);
        assert!(age > 0.0 && age < 60.0, "{age}");
        provider.answers(Some(Answer::keys(&[&new])));
        let again = || pod.log().matches("key set is read again").count();
        let before = again();
        eventually("the set is read again", WITHIN, || (again() > before).then_some(()));
    }
    assert_eq!(pod.get("/accepting").status, 200);
}

#[test]
fn a_kid_that_is_unknown_has_the_set_read_once_in_half_a_minute() {
    let world = World::start();
    let (old, new) = (Key::p256("old"), Key::p256("new"));
    let provider = Provider::start(Some(Answer::keys(&[&old])));
    let pod = plan(&world, &provider).start();
    let started = Instant::now();
    provider.answers(Some(Answer::keys(&[&new])));
    let ask = |key: &Key| with_token(&pod, &key.sign("ES256", &claims()));
    is_refused(&ask(&new));
    assert_eq!(provider.requests().len(), 1, "it was read a moment ago");
    eventually("the set is read for the kid", Duration::from_secs(60), || ask(&new).is_ok().then_some(()));
    assert!(started.elapsed() > Duration::from_secs(20), "{:?}", started.elapsed());
    is_refused(&ask(&old));
    assert_eq!(provider.requests().len(), 2);
}

#[test]
fn a_pod_without_a_key_set_accepts_no_client_until_one_came() {
    let world = World::start();
    let key = Key::p256("key");
    let provider = Provider::start(None);
    let pod = plan(&world, &provider).spawn();
    eventually("all else is there", WITHIN, || {
        let accepting = pod.try_get("/accepting")?;
        (accepting.status == 503 && accepting.json()["waitingFor"] == json!(["a key set", "a slot"])).then_some(())
    });
    always("it claims no slot", Duration::from_secs(1), || world.redis.live().is_empty());
    assert_eq!(with_token(&pod, &key.sign("ES256", &claims())), Err("503".to_owned()));
    provider.answers(Some(Answer::keys(&[&key])));
    pod.ready();
    assert_eq!(with_token(&pod, &key.sign("ES256", &claims())).as_deref(), Ok("u-1"));

    let secretive = plan(&world, &provider).set("JWT_SECRET", token::SECRET);
    provider.answers(None);
    drop(pod);
    let pod = secretive.start();
    assert_eq!(with_token(&pod, &token::good()).as_deref(), Ok(token::USER), "a secret needs no set");
}

#[test]
fn check_reads_the_key_set() {
    let world = World::start();
    let provider = Provider::start(Some(Answer::keys(&[&Key::p256("a"), &Key::rsa("b")])));
    let (kafka, redis) = (world.kafka.bootstrap().to_owned(), world.redis.port().to_string());
    let (url, ca_file) = (provider.url(), provider.ca_file().display().to_string());
    let settings =
        [("KAFKA_BROKERS", &*kafka), ("REDIS_PORT", &*redis), ("JWT_JWKS", &*url), ("JWT_JWKS_CA_FILE", &*ca_file)];
    let good = run(&["check"], &settings);
    assert!(good.code == Some(0) && good.output.contains("certs?use=sig: good, 2 keys"), "{}", good.output);
    provider.answers(Some(Answer::of("404 Not Found", "")));
    let bad = run(&["check"], &settings);
    assert!(bad.code == Some(2) && bad.output.contains("FAILED: the answer is 404"), "{}", bad.output);
}

#[test]
fn a_provider_whose_certificate_is_not_trusted_gives_no_keys() {
    let world = World::start();
    let provider = Provider::start(Some(Answer::keys(&[&Key::p256("key")])));
    let pod = plan(&world, &provider).unset("JWT_JWKS_CA_FILE").set("JWT_SECRET", token::SECRET).start();
    eventually("the fault is told", WITHIN, || pod.log().contains("certificate verify failed").then_some(()));
    assert!(provider.requests().is_empty());
}

#[test]
fn each_issuers_keys_confirm_its_own_tokens_by_the_rules_of_claims() {
    let world = World::start();
    let (a, b) = (Key::p256("a"), Key::rsa("b"));
    let dir = TempDir::new("keys");
    let files =
        [("a.json", &a), ("b.json", &b)].map(|(name, key)| dir.file(name, &key_set(&[key])).display().to_string());
    let pod = world
        .pod("pod-0")
        .unset("JWT_SECRET")
        .set("JWT_JWKS", &files.join(","))
        .set("JWT_ISSUER", "https://a.example/,https://b.example/")
        .set("JWT_AUDIENCE", "gateway,account")
        .set("JWT_USER_CLAIM", "https://example.com/user,sub")
        .set("JWT_ASSESSMENTS_CLAIM", "/realm_access/assessments")
        .start();
    let claims = |issuer: &str| {
        json!({
            "iss": issuer, "aud": ["account"], "sub": "s", "https://example.com/user": 42,
            "realm_access": { "assessments": ["x", 7] },
        })
    };
    let (of_a, of_b) = (claims("https://a.example/"), claims("https://b.example/"));
    assert_eq!(with_token(&pod, &a.sign("ES256", &of_a)).as_deref(), Ok("42"));
    assert_eq!(with_token(&pod, &b.sign("RS256", &of_b)).as_deref(), Ok("42"));
    is_refused(&with_token(&pod, &a.sign("ES256", &of_b)));
    is_refused(&with_token(&pod, &b.sign("RS256", &of_a)));
    is_refused(&with_token(&pod, &a.sign("ES256", &claims("https://c.example/"))));
    let mut elsewhere = of_a.clone();
    elsewhere["aud"] = json!("other");
    is_refused(&with_token(&pod, &a.sign("ES256", &elsewhere)));
    for (assessment, expected) in [("x", Ok("42")), ("7", Ok("42"))] {
        assert_eq!(outcome(&pod.ask().token(&a.sign("ES256", &of_a)).assessment(assessment)).as_deref(), expected);
    }
    let forbidden = outcome(&pod.ask().token(&a.sign("ES256", &of_a)).assessment("y"));
    assert!(forbidden.as_ref().is_err_and(|error| error.starts_with("Forbidden")), "{forbidden:?}");
}

#[test]
fn sighup_reads_the_key_sets_file_and_a_faulty_one_changes_nothing() {
    let world = World::start();
    let (old, new) = (Key::p256("old"), Key::p256("new"));
    let dir = TempDir::new("keys");
    let file = dir.file("jwks.json", &key_set(&[&old]));
    let pod = world.pod("pod-0").unset("JWT_SECRET").set("JWT_JWKS", file.to_str().unwrap()).start();
    let ask = |key: &Key| with_token(&pod, &key.sign("ES256", &claims()));
    assert!(ask(&old).is_ok());
    dir.file("jwks.json", "{");
    pod.signal(Signal::Hup);
    eventually("the fault is told", WITHIN, || pod.log().contains("key set can't be read").then_some(()));
    assert!(ask(&old).is_ok());
    dir.file("jwks.json", &key_set(&[&new]));
    pod.signal(Signal::Hup);
    eventually("the new key is known", WITHIN, || ask(&new).is_ok().then_some(()));
    is_refused(&ask(&old));
}

#[test]
fn both_secrets_confirm_tokens_while_one_replaces_the_other() {
    let world = World::start();
    let pod = world
        .pod("pod-0")
        .set("JWT_SECRET", "the new secret, 32 bytes or more")
        .set("JWT_SECRET_PREVIOUS", token::SECRET)
        .start();
    let by =
        |secret: &str| with_token(&pod, &token::signed_with(secret.as_bytes(), &json!({ "alg": "HS256" }), &claims()));
    assert!(by("the new secret, 32 bytes or more").is_ok() && by(token::SECRET).is_ok());
    is_refused(&by("another secret, 32 bytes or more"));
}

// ---- tokens of open connections -------------------------------------------------------------------------------------

/// Reads until a message of this type, or an error of this name, has come; returns it.
fn next(client: &mut Client, kind: &str) -> Value {
    let of_kind = |client: &Client| {
        let mut all = client.messages().iter().map(Message::json);
        all.find(|json| json["type"] == kind || json["error"] == kind)
    };
    read_until(std::slice::from_mut(client), kind, WITHIN, |clients| of_kind(&clients[0]).is_some());
    of_kind(client).unwrap()
}

#[test]
fn a_client_goes_on_by_a_new_token_of_a_provider_and_is_closed_when_its_token_has_run_out() {
    let world = World::start();
    let key = Key::p256("key");
    let provider = Provider::start(Some(Answer::keys(&[&key])));
    let pod = plan(&world, &provider).set("HEARTBEAT_INTERVAL", "1000").start();
    let expires = |seconds: f64| key.sign("ES256", &json!({ "sub": "u-1", "exp": token::in_seconds(seconds) }));
    let mut goes_on = pod.ask().token(&expires(-27.0)).assessment("a").open();
    let mut ends = pod.ask().token(&expires(-27.0)).assessment("a").open();
    let told = next(&mut goes_on, "token_expiring");
    let connected = goes_on.messages()[0].json();
    assert!(told["tokenExpiresAt"].is_string() && told["tokenExpiresAt"] == connected["tokenExpiresAt"]);
    let other = key.sign("ES256", &json!({ "sub": "u-2", "exp": token::in_seconds(600.0) }));
    goes_on.send(&json!({ "type": "refresh", "token": other }).to_string());
    assert_eq!(next(&mut goes_on, "Unauthorized")["message"], "the new token is another user's");
    thread::sleep(Duration::from_secs(1));
    goes_on.send(&json!({ "type": "refresh", "token": expires(600.0) }).to_string());
    let refreshed = next(&mut goes_on, "refreshed");
    assert!(refreshed["tokenExpiresAt"].as_str() > told["tokenExpiresAt"].as_str(), "{refreshed} {told}");
    read_until(std::slice::from_mut(&mut ends), "the old token has run out", WITHIN, |clients| {
        clients[0].close_frame().is_some()
    });
    assert_eq!(ends.close_frame().unwrap().0, 4401);
    let producer = world.producer();
    producer.event(&event("a", 0));
    producer.flush();
    read_until(std::slice::from_mut(&mut goes_on), "an event by the new token", WITHIN, |clients| {
        seen(&clients[0]).count() == 1
    });
    assert!(goes_on.close_frame().is_none());
}

/// An operator's request to a pod; returns its status and body.
fn operator(pod: &Pod, method: &str, path: &str, body: &str) -> (u16, Value) {
    let answer = pod.operator(ADMIN_TOKEN, method, path, body);
    (answer.status, answer.json())
}

const ADMIN_TOKEN: &str = "a-token-of-an-operator";

#[test]
fn a_revocation_holds_on_every_pod_within_a_second_and_outlives_pods_and_outages() {
    let mut world = World::start();
    let plans = ["pod-0", "pod-1", "pod-2"].map(|name| world.pod(name).set("PLACEMENT", "any").with_admin(ADMIN_TOKEN));
    let pods = [plans[0].start(), plans[1].start()];
    let token = |user: &str, jti: &str, iat: u64| token::signed(&json!({ "userId": user, "jti": jti, "iat": iat }));
    let tokens = [
        ("gone", "t-1", 1_000),
        ("old", "t-2", 1_000),
        ("old", "t-3", 3_000),
        ("one", "t-4", 1_000),
        ("one", "t-5", 1_000),
    ];
    let mut clients: Vec<Client> = pods
        .iter()
        .flat_map(|pod| tokens.map(|(user, jti, iat)| pod.ask().token(&token(user, jti, iat)).open()))
        .collect();
    let revoked_on = |pod: &Pod, body: &Value| operator(pod, "POST", "/revocations", &body.to_string());
    let began = Instant::now();
    for body in
        [json!({ "user": "gone" }), json!({ "user": "old", "issuedBefore": 2_000_000 }), json!({ "jti": "t-4" })]
    {
        let (status, answer) = revoked_on(&pods[0], &body);
        assert_eq!((status, &answer["onAllPods"]), (200, &json!(true)), "{answer}");
    }
    read_until(&mut clients, "revoked clients are closed", WITHIN, |clients| {
        clients.iter().filter(|client| client.close_frame().is_some()).count() >= 6
    });
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}: within a second on a machine at rest", began.elapsed());
    for (index, client) in clients.iter().enumerate() {
        let code = client.close_frame().map(|(code, _)| *code);
        assert_eq!(code, [Some(4403), Some(4403), None, Some(4403), None][index % 5], "{:?}", tokens[index % 5]);
    }
    let check = |pod: &Pod| {
        for (index, (user, jti, iat)) in tokens.into_iter().enumerate() {
            let outcome = with_token(pod, &token(user, jti, iat));
            let expected = if matches!(index, 2 | 4) { Ok(user.to_owned()) } else { Err(REVOKED.to_owned()) };
            assert_eq!(outcome, expected, "{jti} on {}", pod.name());
        }
    };
    let late = plans[2].start();
    pods.iter().chain([&late]).for_each(check);
    let (status, page) = operator(&late, "GET", "/revocations?limit=2", "");
    assert_eq!(
        (status, page["revocations"].as_array().map(Vec::len), &page["next"]),
        (200, Some(2), &json!("user:gone"))
    );
    let (_, page) = operator(&late, "GET", "/revocations?limit=2&after=user%3Agone", "");
    assert_eq!((page["revocations"][0]["user"].as_str(), &page["next"]), (Some("old"), &Value::Null));
    assert_eq!(late.metrics().sum("shardgate_revocations"), 3.0);
    assert!(pods[0].log().contains("tokens revoked by an operator"));

    // While Redis is away it holds on the pod that was asked, which stores it later.
    world.redis.kill();
    let (status, answer) = revoked_on(&late, &json!({ "user": "later" }));
    assert_eq!((status, &answer["onAllPods"]), (200, &json!(false)), "{answer}");
    let of_later = token("later", "t-9", 1);
    assert_eq!(with_token(&late, &of_later), Err(REVOKED.to_owned()));
    assert!(with_token(&pods[1], &of_later).is_ok());
    world.redis.start_again();
    eventually("the other pods know it", WITHIN, || with_token(&pods[1], &of_later).is_err().then_some(()));
}

const REVOKED: &str = "Unauthorized: the token was revoked";

#[test]
fn what_is_wrong_with_a_revocation_is_told() {
    let world = World::start();
    let pod = world.pod("pod-0").with_admin(ADMIN_TOKEN).start();
    for body in ["", "{", r#"{"user":"u","jti":"t"}"#, r#"{"user":"u","forSeconds":0}"#] {
        let (status, answer) = operator(&pod, "POST", "/revocations", body);
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(status == 400 && message.contains(r#"takes a JSON object with "user" or "jti""#), "{body}: {answer}");
    }
    assert_eq!(operator(&pod, "DELETE", "/revocations", "").0, 405);
    assert_eq!(operator(&pod, "GET", "/revocations?user=u", "").0, 400);
}

#[test]
fn tokens_made_by_the_command_are_accepted_with_each_algorithm() {
    let world = World::start();
    let (rsa, p256, p384) = (Key::rsa("rsa"), Key::p256("p256"), Key::ec("p384", Nid::SECP384R1));
    let ed = Key::ed25519("ed");
    let dir = TempDir::new("keys");
    let file = dir.file("jwks.json", &key_set(&[&rsa, &p256, &p384, &ed]));
    let pod = world.pod("pod-0").set_all(&[("JWT_JWKS", file.to_str().unwrap()), ("JWT_AUDIENCE", "a,b")]).start();
    let token = |flags: &[&str]| {
        let made = run(&[&["token", "--claim", "aud=[\"x\",\"b\"]"], flags].concat(), &[("JWT_SECRET", token::SECRET)]);
        (made.code, made.output.trim().to_owned())
    };
    let keyed = [
        (&rsa, &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"][..]),
        (&p256, &["ES256"]),
        (&p384, &["ES384"]),
        (&ed, &["EdDSA"]),
    ];
    for (key, algorithms) in keyed {
        let file = dir.file("key.pem", &key.private_pem());
        let key_file = file.to_str().unwrap();
        for algorithm in algorithms {
            let (code, made) = token(&["--alg", algorithm, "--key-file", key_file, "--kid", key.id, "--user", "ada"]);
            assert_eq!((code, with_token(&pod, &made).as_deref()), (Some(0), Ok("ada")), "{algorithm}: {made}");
        }
        let (code, fault) = token(&["--key-file", key_file]);
        assert!(code == Some(2) && fault.contains("--alg HS256: takes JWT_SECRET"), "{fault}");
        let other = if key.id == "p256" { "ES384" } else { "ES256" };
        let (code, fault) = token(&["--alg", other, "--key-file", key_file]);
        assert!(code == Some(2) && fault.contains("takes a"), "{fault}");
    }
    for algorithm in ["HS256", "HS384", "HS512"] {
        let (_, made) = token(&["--alg", algorithm, "--expires-in", "90s"]);
        assert_eq!(with_token(&pod, &made).as_deref(), Ok("demo"), "{algorithm}");
    }
    let (_, expired) = token(&["--expires-in", "-1h"]);
    assert_eq!(with_token(&pod, &expired), Err("Unauthorized: the token has expired".to_owned()));
    for (flags, takes) in [
        (&["--alg", "none"][..], "takes HS256"),
        (&["--alg", "RS256"], "takes --key-file"),
        (&["--expires-in", "soon"], "such as 1h"),
        (&["--claim", "x"], "takes NAME=VALUE"),
    ] {
        let (code, fault) = token(flags);
        assert!(code == Some(2) && fault.contains(takes), "{flags:?}: {code:?} {fault}");
    }
}

#[test]
fn a_pod_reads_kafka_by_tokens_that_its_provider_gives_and_the_brokers_verify() {
    let (key, authority) = (Key::rsa("kafka"), Authority::new());
    let settings = authority.listener_of_brokers();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let kafka = Kafka::start_with_tokens(&key_set(&[&key]), &settings);
    kafka.create_all(&Kind::ALL.map(|kind| (kind.topic(), 1)));
    let world = World { kafka, redis: Redis::start() };
    let [now, later] = [0.0, 600.0].map(|seconds| token::in_seconds(seconds) as u64);
    let answer = |signer: &Key| {
        let claims = json!({ "iss": "https://idp.example", "sub": "gate", "aud": "kafka", "iat": now, "exp": later });
        let token = signer.sign("RS256", &claims);
        Answer::of("200 OK", &json!({ "access_token": token, "token_type": "Bearer", "expires_in": 600 }).to_string())
    };
    let provider = Provider::start(Some(answer(&key)));
    let dir = TempDir::new("properties");
    let properties = format!(
        "bootstrap.servers={}\nsecurity.protocol=SASL_SSL\nssl.ca.location={}\nsasl.mechanisms=OAUTHBEARER\n\
         sasl.oauthbearer.method=oidc\nsasl.oauthbearer.token.endpoint.url={}\nhttps.ca.location={}\n\
         sasl.oauthbearer.client.id=gate\nsasl.oauthbearer.client.secret=s3cret/of=gate\nsasl.oauthbearer.scope=events\n",
        world.kafka.secured(),
        authority.file().display(),
        provider.url(),
        provider.ca_file().display()
    );
    let file = dir.file("kafka.properties", &properties);
    let plan = world.pod("pod-0").unset("KAFKA_BROKERS").set("KAFKA_PROPERTIES_FILE", file.to_str().unwrap());
    let pod = plan.start();
    let mut clients = [pod.client("a")];
    clients[0].expect_type("connected");
    world.producer().event(&event("a", 0));
    read_until(&mut clients, "the event", WITHIN, |clients| seen(&clients[0]).count() == 1);
    let request = provider.requests().pop().unwrap();
    // gate:s3cret%2Fof%3Dgate
    assert!(request.contains("Basic Z2F0ZTpzM2NyZXQlMkZvZiUzRGdhdGU="), "{request}");
    assert!(request.starts_with("POST /realms/shop/"), "{request}");
    drop((clients, pod));

    for (told, given) in [
        ("SASL authentication error", answer(&Key::rsa("other"))),
        ("no token for Kafka", Answer::of("401 Unauthorized", "{}")),
        ("no access_token", Answer::of("200 OK", "{}")),
    ] {
        provider.answers(Some(given));
        let pod = plan.spawn();
        eventually(told, READY_WITHIN, || pod.log().contains(told).then_some(()));
        assert_eq!(pod.get("/ready").json()["kafka"], "disconnected");
        assert!(!pod.log().contains("s3cret"));
    }
}
