//! The refusals of PROTOCOL 1: those that a browser's script must read come after the upgrade, those that protect the
//! pod are HTTP responses. Beside each are the valid forms.

use std::time::{Duration, Instant};

use loadtest::client::Ask;
use loadtest::client::raw::{Raw, RawFrame, Sent, opcode};
use loadtest::http::HttpResponse;
use loadtest::pods::{Pod, World, run};
use loadtest::process::{allow_descriptors, eventually, leave_descriptors};
use loadtest::token::{SECRET, good, in_seconds, signed, signed_with, unsigned};
use serde_json::{Value, json};

/// Sends a request and expects a refusal after the upgrade.
#[track_caller]
fn refused(ask: &Ask, error: &str) {
    let (refusal, code) = ask.open().expect_refusal();
    assert_eq!((refusal["error"].as_str(), code), (Some(error), 1008), "{}", ask.head());
    let message = refusal["message"].as_str().expect("a message");
    assert!(!message.contains("eyJ"), "no token in an error's text: {message}");
}

/// Sends a request and expects to be accepted. Returns `connected`.
#[track_caller]
fn accepted(ask: &Ask) -> Value {
    let mut client = ask.open();
    let first = client.expect("a first message", |_| true);
    assert_eq!(first.kind, "connected", "{}: {}", ask.head(), first.text);
    first.json()
}

/// Sends bytes and reads the HTTP response.
#[track_caller]
fn answer(pod: &Pod, bytes: &[u8]) -> HttpResponse {
    let mut raw = Raw::connect(&pod.ask());
    raw.send(bytes);
    raw.answer()
}

// ---- after the upgrade ----------------------------------------------------------------------------------------------

#[test]
fn a_missing_invalid_or_expired_token_is_unauthorized() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let ask = pod.ask();
    let header = json!({ "alg": "HS256", "typ": "JWT" });
    let user = json!({ "userId": "u" });
    let tampered = good().replacen('.', ".eyJhIjoxfQ", 1);
    let bad = [
        ("rubbish", "rubbish".to_owned()),
        ("three rubbish parts", "a.b.c".to_owned()),
        ("empty", String::new()),
        ("another secret", signed_with(b"another secret, of more than 32 bytes", &header, &user)),
        ("claims that were changed", tampered),
        ("alg none", unsigned(&user)),
        ("alg none with a signature", signed_with(SECRET.as_bytes(), &json!({ "alg": "none" }), &user)),
        ("another algorithm", signed_with(SECRET.as_bytes(), &json!({ "alg": "HS512" }), &user)),
        ("an algorithm in lower case", signed_with(SECRET.as_bytes(), &json!({ "alg": "hs256" }), &user)),
        ("expired", signed(&json!({ "userId": "u", "exp": in_seconds(-45.0) }))),
        ("not valid yet", signed(&json!({ "userId": "u", "nbf": in_seconds(45.0) }))),
        ("exp is no number", signed(&json!({ "userId": "u", "exp": "never" }))),
        ("no user", signed(&json!({ "name": "u" }))),
        ("an empty user", signed(&json!({ "userId": "" }))),
        ("a user that is a list", signed(&json!({ "userId": ["u"] }))),
        ("claims that are no object", signed(&json!(["userId"]))),
    ];
    refused(&ask.clone().without_token(), "Unauthorized");
    for (what, token) in &bad {
        println!("{what}, in each of the three places");
        refused(&ask.clone().token(token), "Unauthorized");
        let bearer = ask.clone().without_token().header("Authorization", &format!("Bearer {token}"));
        refused(&bearer, "Unauthorized");
        let protocols = format!("shardgate.v1, bearer.{token}");
        refused(&ask.clone().without_token().header("Sec-WebSocket-Protocol", &protocols), "Unauthorized");
    }
    // An invalid token never falls through to the next place.
    refused(&ask.clone().token(&good()).header("Authorization", "Bearer rubbish"), "Unauthorized");
    let protocols = "shardgate.v1, bearer.rubbish";
    refused(&ask.clone().token(&good()).header("Sec-WebSocket-Protocol", protocols), "Unauthorized");
}

#[test]
fn no_token_reaches_a_log_at_any_level() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").set("LOG", "trace").start();
    const RUBBISH: &str = "no-token-but-someones-secret-9f3a";
    for token in [good().as_str(), RUBBISH] {
        let ask = pod.ask().without_token();
        drop(ask.clone().token(token).open());
        drop(ask.clone().header("Authorization", &format!("Bearer {token}")).open());
        drop(ask.clone().header("Sec-WebSocket-Protocol", &format!("bearer.{token}")).open());
        // Refused heads contain tokens too.
        let ask = ask.token(token);
        for head in [ask.clone().path("/nothing").head(), ask.head().replace("\r\n", "\n")] {
            let _ = answer(&pod, head.as_bytes());
        }
    }
    pod.await_metric("websocket_connections_total", 0.0);
    assert!(!pod.log().contains(RUBBISH));
    assert!(!pod.log().contains("eyJ"));
}

#[test]
fn a_valid_token_is_accepted_in_each_of_its_places() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let ask = pod.ask().without_token();
    let bearer = format!("Bearer {}", good());
    assert_eq!(accepted(&ask.clone().header("Authorization", &bearer))["userId"], "user-1");
    accepted(&ask.clone().header("authorization", &bearer).token("rubbish"));
    accepted(&ask.clone().header("Authorization", "Basic dTpw").token(&good()));

    let protocols = format!("shardgate.v1, bearer.{}", good());
    let client = ask.clone().header("Sec-WebSocket-Protocol", &protocols).open();
    assert_eq!(
        client.answer().header("sec-websocket-protocol"),
        Some("shardgate.v1"),
        "the response names only that protocol"
    );
    assert_eq!(pod.ask().open().answer().header("sec-websocket-protocol"), None);

    let users = [
        (json!({ "userId": "u", "sub": "s" }), "u"),
        (json!({ "sub": "s" }), "s"),
        (json!({ "userId": 42 }), "42"),
        (json!({ "userId": "u", "exp": in_seconds(-10.0) }), "u"),
        (json!({ "userId": "u", "exp": in_seconds(600.5), "nbf": in_seconds(10.5) }), "u"),
    ];
    for (claims, user) in users {
        assert_eq!(accepted(&ask.clone().token(&signed(&claims)))["userId"], user, "{claims}");
    }

    // The subcommand makes a token for experiments.
    let made = run(&["token"], &[("JWT_SECRET", SECRET)]);
    assert_eq!(made.code, Some(0), "{}", made.output);
    let token = made.output.split_whitespace().find(|word| word.starts_with("eyJ")).expect("a token").to_owned();
    accepted(&ask.token(&token));
}

#[test]
fn an_assessment_outside_its_rule_is_a_bad_request() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let longest = "é".repeat(64);
    for bad in [
        "assessmentId=",
        &format!("assessmentId={}", "x".repeat(129)),
        &format!("assessmentId={}x", "%C3%A9".repeat(64)),
        "assessmentId=a%00b",
        "assessmentId=a%1Fb",
        "assessmentId=a%7Fb",
        "assessmentId=a%C2%85b",
        "assessmentId=a&assessmentId=a",
        "assessmentId=a%",
        "assessmentId=a%4",
        "assessmentId=a%zz",
        "assessmentId=a%FF",
        "assessmentId=%C3",
        "assessmentId=%ED%A0%80",
    ] {
        refused(&pod.ask().parameter(bad), "BadRequest");
    }
    for good in ["a", "a b", "a+b", "a&b=c", "100%", "é", &"x".repeat(128), &longest, "\u{2028}", "🦀"] {
        assert_eq!(accepted(&pod.ask().assessment(good))["assessmentId"], good);
    }
    assert_eq!(accepted(&pod.ask().parameter("assessmentId=a+b"))["assessmentId"], "a+b", "a plus stays a plus");
    assert_eq!(accepted(&pod.ask().parameter("%61ssessmentId=x&other=1&other=2")).get("resumed"), Some(&false.into()));
    let market_only = accepted(&pod.ask());
    assert_eq!(market_only.get("assessmentId"), None);
    for field in ["connectionId", "timestamp", "node", "userId"] {
        assert!(market_only[field].is_string(), "{field}: {market_only}");
    }
    assert_eq!((&market_only["heartbeatIntervalMs"], &market_only["node"]), (&30_000.into(), &"pod-0".into()));
}

#[test]
fn the_assessments_claim_is_enforced_and_refusals_have_an_order() {
    let world = World::without_topics();
    let pods = [world.pod("pod-0").start(), world.pod("pod-1").set("JWT_REQUIRE_ASSESSMENTS", "true").start()];
    world.settled(&pods);
    let [pod, strict] = &pods;
    let here = |pod: &Pod| (0..).map(|n| format!("id-{n}")).find(|id| pod.owner_of(id) == pod.url()).unwrap();
    // A pod that requires the claim refuses clients without it before it looks up the owner, so ask the other pod.
    let owned = here(pod);
    let elsewhere = (0..).map(|n| format!("id-{n}")).find(|id| pod.owner_of(id) == strict.url()).unwrap();
    let claims = |assessments: Value| signed(&json!({ "userId": "u", "assessments": assessments }));

    accepted(&pod.ask().assessment(&owned).token(&claims(json!(["x", owned]))));
    for none in [json!(["x"]), json!([]), json!(owned), json!(null), json!({ &owned: true }), json!([[owned]])] {
        refused(&pod.ask().assessment(&owned).token(&claims(none.clone())), "Forbidden");
        accepted(&pod.ask().token(&claims(none)));
    }
    refused(&strict.ask().assessment(&elsewhere), "Forbidden");
    accepted(&strict.ask().assessment(&elsewhere).token(&claims(json!([elsewhere]))));
    accepted(&strict.ask());

    // Unauthorized, BadRequest, Forbidden, Redirect.
    refused(&pod.ask().parameter("assessmentId=").token("rubbish"), "Unauthorized");
    refused(&pod.ask().parameter("assessmentId=").token(&claims(json!([]))), "BadRequest");
    refused(&pod.ask().assessment(&elsewhere).token(&claims(json!([]))), "Forbidden");
    refused(&pod.ask().assessment(&elsewhere).token(&claims(json!([elsewhere]))), "Redirect");
}

#[test]
fn an_expiring_token_ends_the_connection() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let started = Instant::now();
    // The leeway of 30 s is almost over.
    let token = signed(&json!({ "userId": "u", "exp": in_seconds(-28.0) }));
    let mut client = pod.ask().assessment("a").token(&token).open();
    assert_eq!(client.expect_close().0, 4401);
    let after = started.elapsed();
    assert!((Duration::from_millis(1800)..Duration::from_secs(5)).contains(&after), "after {after:?}");
}

// ---- without an upgrade ---------------------------------------------------------------------------------------------

#[test]
fn a_malformed_request_is_a_400() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let head = pod.ask().head();
    let with = |lines: &str| format!("{}{lines}\r\n", head.strip_suffix("\r\n").unwrap());
    let key = |key: &str| pod.ask().header("Sec-WebSocket-Key", key).head();
    let bad = [
        ("lone LF", head.replace("\r\n", "\n")),
        ("one lone LF", head.replacen("\r\n", "\n", 1)),
        ("a folded header", with("X-Folded: a\r\n b\r\n")),
        ("NUL in a value", with("X-Nul: a\0b\r\n")),
        ("NUL in a name", with("X-\0Nul: a\r\n")),
        ("NUL in the target", head.replacen("/ws?", "/ws?\0", 1)),
        ("two Content-Length", with("Content-Length: 0\r\nContent-Length: 1\r\n")),
        ("a body", with("Content-Length: 5\r\n") + "hello"),
        ("a chunked body", with("Transfer-Encoding: chunked\r\n") + "0\r\n\r\n"),
        ("a header without a colon", with("rubbish\r\n")),
        ("a space before the colon", with("X-Space : a\r\n")),
        ("no HTTP", "rubbish\r\n\r\n".to_owned()),
        ("no key", pod.ask().without_header("Sec-WebSocket-Key").head()),
        ("an empty key", key("")),
        ("a key of 15 bytes", key("AAAAAAAAAAAAAAAAAAAA")),
        ("a key of 17 bytes", key("AAAAAAAAAAAAAAAAAAAAAAA=")),
        ("a key that is no base64", key("!!!!!!!!!!!!!!!!!!!!!!==")),
    ];
    for (what, bytes) in bad {
        assert_eq!(answer(&pod, bytes.as_bytes()).status, 400, "{what}");
    }
    let tls_hello = [&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03][..], b"\r\n\r\n"].concat();
    assert_eq!(answer(&pod, &tls_hello).status, 400, "TLS on a port without it");
}

#[test]
fn wrong_origins_paths_methods_and_versions_have_their_status() {
    let world = World::without_topics();
    let origins = "https://good.example, https://better.example:8443";
    let pod = world.pod("pod-0").set("ALLOWED_ORIGINS", origins).start();
    let status = |ask: Ask| answer(&pod, ask.head().as_bytes()).status;
    for (origin, expected) in [
        ("https://good.example", 101),
        ("https://better.example:8443", 101),
        ("https://evil.example", 403),
        ("http://good.example", 403),
        ("https://good.example.evil.example", 403),
        ("https://better.example", 403),
        ("null", 403),
    ] {
        assert_eq!(status(pod.ask().header("Origin", origin)), expected, "{origin}");
    }
    assert_eq!(status(pod.ask()), 101, "absent: allowed");
    for path in ["/nothing", "/ws2", "/w", "//ws"] {
        assert_eq!(status(pod.ask().path(path)), 404, "{path}");
    }
    let post = answer(&pod, pod.ask().head().replacen("GET", "POST", 1).as_bytes());
    assert_eq!(post.status, 405);
    assert!(post.header("allow").is_some_and(|allow| allow.contains("GET")));
    for (what, ask) in [
        ("plain GET", pod.ask().without_header("Upgrade").without_header("Connection")),
        ("no version", pod.ask().without_header("Sec-WebSocket-Version")),
        ("an old version", pod.ask().header("Sec-WebSocket-Version", "8")),
        ("Connection without upgrade", pod.ask().header("Connection", "keep-alive")),
        ("another upgrade", pod.ask().header("Upgrade", "h2c")),
    ] {
        let answer = answer(&pod, ask.head().as_bytes());
        assert_eq!((answer.status, answer.header("sec-websocket-version")), (426, Some("13")), "{what}");
    }
}

#[test]
fn all_valid_forms_of_a_request_are_accepted() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let head = pod.ask().head();
    let absolute = head.replacen("GET /ws", &format!("GET http://{}/ws", pod.address()), 1);
    for (what, bytes) in [
        ("names in upper case", head.replace("Sec-WebSocket-Key", "SEC-WEBSOCKET-KEY").replace("Upgrade:", "UPGRADE:")),
        ("names in lower case", head.replace("Connection:", "connection:").replace("Host:", "host:")),
        (
            "the upgrade token in any case",
            head.replace("websocket\r\n", "WebSocket\r\n").replace(": Upgrade", ": uPGRADE"),
        ),
        ("a list in Connection", head.replace(": Upgrade", ": keep-alive, Upgrade")),
        ("absolute form", absolute),
        ("an empty body", format!("{}Content-Length: 0\r\n\r\n", head.strip_suffix("\r\n").unwrap())),
    ] {
        assert_eq!(answer(&pod, bytes.as_bytes()).status, 101, "{what}: {bytes}");
    }

    // Frames right behind the head are not lost, and a head may arrive in pieces.
    let mut raw = Raw::connect(&pod.ask());
    let (first, rest) = head.as_bytes().split_at(40);
    raw.send(first);
    assert!(!raw.is_answered(Duration::from_millis(100)), "half a head has no response");
    raw.send(&[rest, &RawFrame::new(opcode::PING, "at once").bytes()].concat());
    raw.expect_upgrade();
    assert_eq!(raw.next_answer(), Sent::Pong(b"at once".to_vec()));
}

#[test]
fn a_head_over_8_kib_is_refused_whatever_follows_it() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let sized = |bytes: usize| {
        let empty = pod.ask().header("X-Fill", "").head().len();
        pod.ask().header("X-Fill", &"f".repeat(bytes - empty)).head()
    };
    assert_eq!(sized(8192).len(), 8192);
    assert_eq!(answer(&pod, sized(8192).as_bytes()).status, 101, "its last CRLF included");
    assert_eq!(answer(&pod, sized(8193).as_bytes()).status, 431);
    assert_eq!(answer(&pod, sized(200_000).as_bytes()).status, 431, "unread input is drained, so the response arrives");
    let endless = "x".repeat(9000);
    assert_eq!(answer(&pod, endless.as_bytes()).status, 431, "also without an end");
}

#[test]
fn a_head_that_is_too_slow_is_a_408_and_delays_no_other_client() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").set("HANDSHAKE_TIMEOUT_MS", "2500").start();
    let mut slow: Vec<_> = (0..20).map(|_| Raw::connect(&pod.ask())).collect();
    let started = Instant::now();
    let head = pod.ask().head();
    let mut others = Vec::new();
    // A byte per second on each. In between, other clients connect as usual.
    for byte in head.as_bytes().chunks(1).take(2) {
        slow.iter_mut().for_each(|raw| raw.send(byte));
        let second = Instant::now();
        while second.elapsed() < Duration::from_secs(1) {
            let asked = Instant::now();
            accepted(&pod.ask().assessment("others"));
            others.push(asked.elapsed());
        }
    }
    for raw in &mut slow {
        assert_eq!(raw.answer().status, 408);
    }
    let after = started.elapsed();
    assert!((Duration::from_millis(2400)..Duration::from_secs(6)).contains(&after), "after {after:?}");
    // Nine in ten, because of other work on the machine.
    others.sort_unstable();
    let p90 = others[others.len() * 9 / 10];
    assert!(p90 < Duration::from_millis(200), "other clients are not delayed: {p90:?}");
}

#[test]
fn a_pod_at_capacity_or_over_its_accept_rate_sends_retry_after() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").set("MAX_CONNECTIONS", "2").start();
    let first = pod.client("a");
    let _second = pod.client("b");
    pod.await_metric("websocket_connections_total", 2.0);
    let refusal = pod.ask().try_open().expect_err("a third");
    assert_eq!(refusal.status, 503);
    let seconds: u32 = refusal.header("retry-after").expect("when").parse().expect("seconds");
    assert!(seconds >= 1);
    assert_eq!(pod.get("/ready").status, 200, "operators can connect");
    first.close();
    eventually("a client is accepted again", Duration::from_secs(5), || pod.ask().try_open().ok());

    let slow = world.pod("pod-1").set("ACCEPTS_PER_SECOND", "5").start();
    let answers: Vec<_> = (0..40).map(|_| slow.ask().try_open().err().map(|refusal| refusal.status)).collect();
    assert!(answers.iter().filter(|status| status.is_none()).count() <= 30, "{answers:?}");
    assert!(answers.contains(&Some(503)), "{answers:?}");
    assert!(answers.iter().all(|status| matches!(status, None | Some(503))), "{answers:?}");
    eventually("a client is accepted a second later", Duration::from_secs(5), || slow.ask().try_open().ok());
}

#[test]
fn silent_sockets_make_room_for_requests() {
    /// Handshakes that a shard reads at a time.
    const HEADS_MAX: usize = 4096;
    allow_descriptors(20_000);
    let world = World::without_topics();
    let pod = world.pod("pod-0").set_all(&[("SHARDS", "1"), ("HANDSHAKE_TIMEOUT_MS", "60000")]).start();
    let silent: Vec<_> = (0..HEADS_MAX + 500).map(|_| Raw::connect(&pod.ask())).collect();
    let began = Instant::now();
    let mut client = pod.ask().open();
    assert!(began.elapsed() < Duration::from_secs(10), "long before HANDSHAKE_TIMEOUT_MS: {:?}", began.elapsed());
    client.expect_type("connected");
    drop(silent);
}

#[test]
fn a_lack_of_descriptors_is_logged_once_and_clients_are_accepted_again_afterwards() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").set_all(&[("SHARDS", "1"), ("HEARTBEAT_INTERVAL", "250")]).start();
    let mut client = pod.client("a");
    leave_descriptors(pod.pid(), 20);
    let many: Vec<_> = (0..40).map(|_| Raw::connect(&pod.ask())).collect();
    let logged = || pod.log().matches("cannot accept").count();
    eventually("the lack is logged", Duration::from_secs(10), || (logged() > 0).then_some(()));
    for _ in 0..4 {
        client.expect("a heartbeat", |message| message.kind == "ping");
    }
    assert_eq!(logged(), 1, "it tries ten times per second and logs it once");
    drop(many);
    eventually("a client is accepted again", Duration::from_secs(10), || pod.ask().try_open().ok());
}
