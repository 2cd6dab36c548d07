//! The pages of `ADMIN_PORT` that need a token.

use std::process::Command;
use std::time::Duration;

use loadtest::events::event;
use loadtest::http::{self, HttpResponse};
use loadtest::pods::{Pod, READY_WITHIN, World};
use loadtest::process::{Signal, TempDir, eventually, tool};
use loadtest::token::{self, signed};
use serde_json::json;

/// `ADMIN_TOKEN` of these pods, and the tokens in it.
const TOKENS: &str = "ada:0123456789abcdef0123,bot:fedcba98765432100000";
const ADA: &str = "0123456789abcdef0123";
const BOT: &str = "fedcba98765432100000";

const WITHIN: Duration = Duration::from_secs(10);

/// The answer names the fault.
#[track_caller]
fn refused(answer: &HttpResponse, status: u16, error: &str) -> String {
    assert_eq!(answer.status, status, "{}", answer.text());
    let body = answer.json();
    assert_eq!(body["error"], error);
    body["message"].as_str().expect("a message").to_owned()
}

#[test]
fn operators_see_the_cluster_and_the_owner_of_an_assessment() {
    let world = World::without_topics();
    let pods = [0, 1].map(|number| world.pod(&format!("pod-{number}")).with_admin(TOKENS).spawn());
    pods.iter().for_each(|pod| pod.ready());
    world.settled(&pods);
    let cluster = |query: &str| {
        let answer = pods[0].operator(ADA, "GET", &format!("/cluster{query}"), "");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/json"));
        answer.json()
    };
    let all = cluster("");
    assert_eq!((&all["node"], &all["view"]["pods"]), (&"pod-0".into(), &2.into()));
    assert_eq!((&all["view"]["redis"], &all["draining"]), (&"connected".into(), &false.into()));
    let named = |slots: &serde_json::Value| -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        slots.as_array().unwrap().iter().map(|slot| (text(&slot["node"]), text(&slot["url"]))).collect()
    };
    let mut found = named(&all["slots"]);
    found.sort();
    assert_eq!(found, [0, 1].map(|number| (pods[number].name().to_owned(), pods[number].url())));

    let first = cluster("?limit=1");
    let second = cluster(&format!("?limit=1&after={}", first["next"]));
    assert_eq!(named(&second["slots"])[0].0, all["slots"][1]["node"].as_str().unwrap());
    assert!(second.get("next").is_none());

    for number in 0..8 {
        let id = format!("settle-{number}");
        let owner = &cluster(&format!("?assessmentId={id}"))["owner"];
        let expected = pods[0].owner_of(&id);
        assert_eq!(
            (&owner["url"], &owner["thisPod"]),
            (&expected.as_str().into(), &(expected == pods[0].url()).into())
        );
    }
    drop(pods);
}

#[test]
fn requests_of_operators_need_a_token_and_are_logged_with_its_name() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").with_admin(TOKENS).start();
    let without = http::get(pod.plan().operators(), "/cluster", WITHIN).unwrap();
    assert_eq!(without.header("www-authenticate"), Some("Bearer"));
    refused(&without, 401, "Unauthorized");
    for wrong in ["x", "0123456789abcdef012", "ada:0123456789abcdef0123", TOKENS] {
        refused(&pod.operator(wrong, "GET", "/cluster", ""), 401, "Unauthorized");
    }
    let method = pod.operator(ADA, "POST", "/cluster", "{}");
    assert_eq!(method.header("allow"), Some("GET, HEAD"));
    refused(&method, 405, "MethodNotAllowed");
    let fault = refused(&pod.operator(ADA, "GET", "/cluster?limit=0&token=qwerty", ""), 400, "BadRequest");
    assert!(fault.contains("takes assessmentId, limit, after"), "{fault}");
    assert_eq!(pod.operator(BOT, "GET", "/cluster?limit=7", "").status, 200);
    assert_eq!(http::get(pod.address(), "/cluster", WITHIN).unwrap().status, 404, "not on the clients' port");

    eventually("the log has each request", READY_WITHIN, || {
        let log = pod.log();
        let has = |parts: &[&str]| log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        (has(&["operator request", "operator=\"ada\"", "status=400"])
            && has(&["operator request", "operator=\"bot\"", "limit=7", "status=200"])
            && has(&["WARN", "operator request refused"]))
        .then_some(())
    });
    let log = pod.log();
    for secret in [ADA, BOT, "qwerty"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn without_admin_token_there_are_no_such_pages() {
    let world = World::without_topics();
    let plan = world.pod("pod-0").with_admin(TOKENS).unset("ADMIN_TOKEN");
    let pod = plan.start();
    assert_eq!(pod.operator(ADA, "GET", "/cluster", "").status, 404);
}

#[test]
fn operators_see_each_connection_once_however_small_the_pages_are() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").set("SHARDS", "2").with_admin(TOKENS).start();
    let ask = |user: &str, assessment: &str| {
        let token = signed(&json!({ "userId": user }));
        pod.ask().assessment(assessment).token(&token).open()
    };
    let mut clients: Vec<_> =
        (0..7).map(|number| ask(&format!("user-{}", number % 2), &format!("a-{number}"))).collect();
    let ids: Vec<String> = clients
        .iter_mut()
        .map(|client| client.expect_type("connected").json()["connectionId"].as_str().unwrap().to_owned())
        .collect();
    let page = |query: &str| {
        let answer = pod.operator(BOT, "GET", &format!("/connections?{query}"), "");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let all = |filter: &str, limit: u32| {
        let mut rows = Vec::new();
        let mut after = String::new();
        loop {
            let body = page(&format!("{filter}&limit={limit}&after={after}"));
            let found = body["connections"].as_array().unwrap();
            assert!(found.len() <= limit as usize);
            rows.extend(found.clone());
            let Some(next) = body["next"].as_str() else { return rows };
            next.clone_into(&mut after);
        }
    };
    for limit in [1, 2, 3, 100] {
        let mut listed: Vec<_> =
            all("", limit).iter().map(|row| row["connectionId"].as_str().unwrap().to_owned()).collect();
        listed.sort();
        let mut expected = ids.clone();
        expected.sort();
        assert_eq!(listed, expected, "in pages of {limit}");
    }
    let of_user = all("user=user-1", 2);
    assert_eq!(of_user.len(), 3);
    let row = &all("assessmentId=a-3", 1)[0];
    assert_eq!((&row["user"], &row["connectionId"]), (&"user-1".into(), &ids[3].as_str().into()));
    assert_eq!((&row["address"], &row["lagEvents"]), (&"127.0.0.1".into(), &0.into()));
    let sent = row["bytesSent"].as_u64().unwrap();
    assert!(sent > 200, "the upgrade and the greeting: {sent}");
    assert_eq!(page("node=pod-0")["connections"].as_array().unwrap().len(), 7);
    refused(&pod.operator(ADA, "GET", "/connections?node=pod-1", ""), 421, "OtherPod");
    let fault = refused(&pod.operator(ADA, "GET", "/connections?after=pod-1-1-0-1", ""), 400, "BadRequest");
    assert!(fault.contains("this pod's previous page"), "{fault}");
    clients.pop().unwrap().close();
    eventually("a closed connection is in no list", READY_WITHIN, || (all("", 9).len() == 6).then_some(()));
}

#[test]
fn an_operator_ends_connections_on_every_pod() {
    let mut world = World::without_topics();
    let pods = [0, 1].map(|number| world.pod(&format!("pod-{number}")).with_admin(TOKENS).spawn());
    pods.iter().for_each(|pod| pod.ready());
    world.settled(&pods);
    let open = |pod: &Pod, user: &str| {
        let mut client = pod.ask().token(&signed(&json!({ "userId": user }))).open();
        let id = client.expect_type("connected").json()["connectionId"].as_str().unwrap().to_owned();
        (client, id)
    };
    let disconnect = |body: &serde_json::Value| {
        let answer = pods[0].operator(ADA, "POST", "/disconnections", &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let (mut here, _) = open(&pods[0], "ada");
    let (mut there, _) = open(&pods[1], "ada");
    let (mut other, other_id) = open(&pods[1], "bob");
    let body = disconnect(&json!({ "user": "ada", "reconnect": false }));
    assert_eq!(
        body,
        json!({ "node": "pod-0", "closed": 1, "everywhere": true, "pods": 2, "reached": 2 }),
        "one is of the other pod"
    );
    for client in [&mut here, &mut there] {
        assert_eq!(client.expect_close().0, 4403);
    }
    let body = disconnect(&json!({ "connectionId": other_id, "reconnect": true }));
    assert_eq!((&body["closed"], &body["everywhere"]), (&0.into(), &true.into()));
    assert_eq!(other.expect_close().0, 1012);
    eventually("the other pod logs who closed them", READY_WITHIN, || {
        let log = pods[1].log();
        let line = log.lines().find(|line| line.contains("by an operator of another pod"))?;
        (line.contains("operator=ada") && line.contains("closed=1")).then_some(())
    });

    let (mut here, _) = open(&pods[0], "ada");
    let (there, _) = open(&pods[1], "ada");
    world.redis.kill();
    let body = disconnect(&json!({ "user": "ada", "reconnect": false }));
    assert_eq!((&body["closed"], &body["everywhere"], &body["reached"]), (&1.into(), &false.into(), &1.into()));
    assert!(body["message"].as_str().unwrap().contains("Redis does not answer"), "{body}");
    assert_eq!(here.expect_close().0, 4403);
    assert!(there.close_frame().is_none());

    for (body, takes) in [
        ("{}", "\"reconnect\": true or false"),
        (r#"{"user":"ada"}"#, "\"reconnect\": true or false"),
        (r#"{"user":"ada","assessmentId":"a","reconnect":true}"#, "takes one of"),
        (&"x".repeat(5000), "at most 4096 bytes"),
    ] {
        let fault = refused(&pods[0].operator(ADA, "POST", "/disconnections", body), 400, "BadRequest");
        assert!(fault.contains(takes), "{fault}");
    }
    refused(&pods[0].operator("wrong", "POST", "/disconnections", &"x".repeat(5000)), 401, "Unauthorized");
}

#[test]
fn operators_see_the_settings_in_force_without_secrets() {
    let world = World::without_topics();
    let dir = TempDir::new("settings");
    let file = dir.file("shardgate.toml", "shards = 1\nredis_password = \"qwerty\"\n");
    let plan =
        world.pod("pod-0").with_admin(TOKENS).set("REDIS_URL", &format!("redis://:@127.0.0.1:{}", world.redis.port()));
    let pod = plan.argument("--history-seconds=60").argument(&format!("--config={}", file.display())).start();
    let answer = pod.operator(ADA, "GET", "/settings", "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    let settings = body["settings"].as_array().unwrap();
    let of = |name: &str| {
        let setting =
            settings.iter().find(|setting| setting["name"] == name).unwrap_or_else(|| panic!("{name} is listed"));
        let source = setting["source"].as_str().unwrap();
        (setting["value"].clone(), source.strip_prefix(&*file.display().to_string()).unwrap_or(source).to_owned())
    };
    assert_eq!(of("HISTORY_SECONDS"), ("60".into(), "flag".to_owned()));
    assert_eq!(of("SHARDS"), ("1".into(), " line 1".to_owned()));
    assert_eq!(of("POD_NAME"), ("pod-0".into(), "environment".to_owned()));
    assert_eq!(of("DRAIN_MS"), ("20000".into(), "default".to_owned()));
    assert_eq!(of("ROUTES_FILE"), ("built in".into(), "default".to_owned()));
    assert_eq!(of("MAX_CONNECTIONS_PER_USER"), (json!(null), "default".to_owned()));
    for secret in ["JWT_SECRET", "ADMIN_TOKEN", "REDIS_URL", "REDIS_PASSWORD"] {
        assert_eq!(of(secret).0, "***");
    }
    for secret in [token::SECRET, ADA, BOT, "qwerty"] {
        assert!(!answer.text().contains(secret), "{secret}");
    }
    refused(&pod.operator(ADA, "GET", "/settings?name=PORT", ""), 400, "BadRequest");
}

/// The first line of a pod's log that has all these parts.
fn line_with(pod: &Pod, parts: &[&str]) -> String {
    eventually(&format!("a line with {parts:?}"), READY_WITHIN, || {
        pod.log().lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned)
    })
}

#[test]
fn operators_change_the_log_level_and_see_each_connections_life() {
    let world = World::start();
    let plan = world.pod("pod-0").with_admin(TOKENS).set("MAX_CONNECTIONS_PER_USER", "1");
    let mut pod = plan.start();
    let set = |pod: &Pod, body: &str| {
        let answer = pod.operator(ADA, "PUT", "/log", body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let body = set(&pod, r#"{"level":"debug"}"#);
    assert_eq!(body, json!({ "node": "pod-0", "level": "debug", "setting": "info" }));
    let body = set(&pod, r#"{"level":"debug","forSeconds":600}"#);
    assert!(body["until"].as_str().unwrap().starts_with("20"), "{body}");

    let ask = |user: &str| pod.ask().assessment("a 1").token(&signed(&json!({ "userId": user })));
    let mut client = ask("ada").open();
    let id = client.expect_type("connected").json()["connectionId"].as_str().unwrap().to_owned();
    let named = format!("connection=\"{id}\"");
    let whose = ["user=\"ada\"", "assessment=\"a 1\"", "client=127.0.0.1"];
    line_with(&pod, &[&["DEBUG", "connection opened", &named][..], &whose].concat());
    world.producer().event(&event("a 1", 1));
    client.expect("the event", |message| message.kind != "connected" && message.text.contains("\"a 1\""));
    client.close();
    let closed = line_with(
        &pod,
        &[&["connection closed", &named, "reason=\"client_closed\"", "lag_events=0"][..], &whose].concat(),
    );
    let bytes: u64 = closed.split_once("bytes=").unwrap().1.split(' ').next().unwrap().parse().unwrap();
    assert!(bytes > 300, "{closed}");

    pod.ask().without_token().open().expect_refusal();
    line_with(&pod, &["client refused", "reason=\"unauthorized\"", "why=\"no token", "client=127.0.0.1"]);
    let first = ask("eve").open();
    assert_eq!(ask("eve").try_open().err().map(|answer| answer.status), Some(503));
    line_with(&pod, &["client refused", "reason=\"user\"", "user=\"eve\"", "assessment=\"a 1\""]);
    drop(first);

    pod.signal(Signal::Term);
    assert_eq!(pod.wait_exit(READY_WITHIN).code(), Some(0));
    line_with(&pod, &["INFO", "clients refused clients=2 reasons=\"unauthorized=1 user=1\""]);
}

#[test]
fn the_level_of_the_log_comes_back() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").with_admin(TOKENS).set("LOG", "warn").start();
    let answer = pod.operator(BOT, "PUT", "/log", r#"{"level":"debug","forSeconds":1}"#);
    assert_eq!(answer.status, 200, "{}", answer.text());
    line_with(&pod, &["log level changed before=WARN now=DEBUG"]);
    line_with(&pod, &["log level changed before=DEBUG now=WARN"]);
    let fault = refused(&pod.operator(ADA, "PUT", "/log", r#"{"level":"loud"}"#), 400, "BadRequest");
    assert!(fault.contains("error, warn, info, debug or trace"), "{fault}");
    assert_eq!(pod.operator(ADA, "GET", "/log", "").header("allow"), Some("PUT"));
}

#[test]
fn the_walk_in_deploy_readme_runs_as_it_stands() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").with_admin(TOKENS).start();
    let mut client = pod.ask().token(&signed(&json!({ "userId": "ada" }))).open();
    client.expect_type("connected");
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/README.md")).unwrap();
    let blocks = readme.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let walk = blocks.filter(|block| block.contains("/cluster")).collect::<String>();
    let _ = tool("curl", "curl");
    let mut command = Command::new("sh");
    command.args(["-euc", &walk]).env("ADMIN", format!("http://{}", pod.plan().operators())).env("TOKEN", ADA);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{} {}", text(&output.stdout), text(&output.stderr));
    let answers: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("a line is an answer")).collect();
    let [cluster, connections, disconnected, revoked, revocations, settings, log] = &answers[..] else {
        panic!("{answers:?}")
    };
    assert_eq!((&cluster["node"], &cluster["owner"]["node"]), (&"pod-0".into(), &"pod-0".into()));
    assert_eq!(connections["connections"][0]["user"], "ada");
    assert_eq!((&disconnected["closed"], &disconnected["everywhere"]), (&1.into(), &true.into()));
    assert_eq!((&revoked["onAllPods"], &revocations["revocations"][0]["user"]), (&true.into(), &"mallory".into()));
    assert!(settings["settings"].as_array().unwrap().len() > 30);
    assert_eq!((&log["level"], &log["setting"]), (&"debug".into(), &"info".into()));
    assert_eq!(client.expect_close().0, 4403);
}
