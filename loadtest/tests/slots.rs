//! The script that changes the slots hash, on a real Redis: foreign fields in the hash, and its run time.

use std::time::{Duration, Instant};

use loadtest::client::WITHIN;
use loadtest::pods::World;
use loadtest::process::{always, eventually};
use loadtest::redis::Redis;
use shardgate::discovery::wire::{Action, Call, Snapshot};
use shardgate::limits::{FOREIGN_FIELDS_MAX, SLOT_VALUE_BYTES_MAX, SLOTS_MAX};

const SCRIPT: &str = include_str!("../../src/discovery/slots.lua");
const KEY: &str = "websocket:slots";

/// A caller of the script, like a pod.
struct Caller<'a> {
    redis: &'a Redis,
    call: Call,
}

impl<'a> Caller<'a> {
    fn new(redis: &'a Redis, node: &str) -> Self {
        let call = Call {
            action: Action::Watch,
            node: node.into(),
            instance: format!("{node}-1").into(),
            url: format!("ws://{node}/ws").into(),
            peer_url: Some(format!("http://{node}:3004").into()),
            lease_ms: 10_000,
            slot: None,
            take_over: true,
            reserved: Vec::new(),
            slots: 0,
            slots_max: SLOTS_MAX,
            value_bytes_max: SLOT_VALUE_BYTES_MAX,
            fields_max: FOREIGN_FIELDS_MAX,
            sent_ms: None,
            late_ms: 2_000,
            judge: true,
            join_channel: "websocket:node:join".into(),
            leave_channel: "websocket:node:leave".into(),
        };
        Self { redis, call }
    }

    fn runs(&mut self, action: Action) -> Snapshot {
        self.call.action = action;
        let call = serde_json::to_string(&self.call).expect("a call is JSON");
        let answer: Vec<Vec<u8>> = redis::cmd("EVAL")
            .arg(SCRIPT)
            .arg(1)
            .arg(KEY)
            .arg(call)
            .query(&mut self.redis.connection())
            .expect("the script runs");
        Snapshot::parse(&answer).expect("the answer is valid")
    }

    /// Claims or renews, and returns the live pods.
    fn holds(&mut self) -> String {
        let action = if self.call.slot.is_none() { Action::Claim } else { Action::Hold };
        let snapshot = self.runs(action);
        let mine = snapshot.holders.iter().find(|holder| holder.instance == self.call.instance);
        self.call.slot = Some(mine.expect("the caller has a slot").slot);
        self.call.slots = snapshot.slots;
        pods(&snapshot)
    }
}

fn pods(snapshot: &Snapshot) -> String {
    let pods = snapshot.holders.iter().map(|holder| format!("{}={}", holder.slot, holder.node));
    pods.collect::<Vec<_>>().join(" ")
}

/// A value as a pod writes it, with a part replaced.
fn value(part: &str, by: &str) -> Vec<u8> {
    let good =
        r#"{"node":"x","instance":"y","url":"ws://x/ws","expiresAtMs":1,"view":{"epoch":1,"version":1,"slots":1}}"#;
    assert!(good.contains(part));
    good.replacen(part, by, 1).into_bytes()
}

/// Fields that no pod writes, each of which has broken a snapshot or could.
fn bad_fields() -> Vec<(&'static str, Vec<u8>)> {
    let mut not_text = value("x", "@");
    not_text.iter_mut().filter(|byte| **byte == b'@').for_each(|byte| *byte = 0xff);
    let deep = format!("{}1{}", "[".repeat(900), "]".repeat(900));
    vec![
        ("7", value(":1,", ":1790000000000000,")),
        ("7", value(":1,", ":99999999999999999999,")),
        ("7", value(":1,", ":1e400,")),
        ("7", value(":1,", ":-1,")),
        ("7", value(":1,", ":1790000000000.5,")),
        ("7", value(":1,", ":NaN,")),
        ("7", value(":1,", r#":"1790000000000","#)),
        ("7", value("version\":1", "version\":9007199254740991")),
        ("7", value("version\":1", "version\":1.5")),
        ("7", value("epoch\":1", "epoch\":1e15")),
        ("7", value("slots\":1", "slots\":9e12")),
        ("7", value(r#""view":{"epoch":1,"version":1,"slots":1}"#, r#""view":7,"more":1e999"#)),
        ("7", value(r#""view":{"epoch":1,"version":1,"slots":1}"#, &format!(r#""more":{deep}"#))),
        ("7", not_text),
        ("7", value("\"x\"", "\"\\ud800\"")),
        ("7", value("\"x\"", "\"\"")),
        ("7", value("\"x\"", "\"x\\u0000\\n\"")),
        ("7", value("\"x\"", "7")),
        ("7", value("\"y\"", "null")),
        ("7", value("ws://x/ws", "javascript:alert(1)")),
        ("7", value("ws://x/ws", "")),
        ("7", value("ws://x/ws", &format!("ws://{}/ws", "x".repeat(1 << 20)))),
        ("7", b"no JSON".to_vec()),
        ("7", b"[]".to_vec()),
        ("7", Vec::new()),
        ("7", vec![0xff; 10 << 20]),
        ("10000", value("x", "x")),
        ("4294967296", value("x", "x")),
        ("07", value("x", "x")),
        ("-1", value("x", "x")),
        ("", value("x", "x")),
        ("\n", value("x", "x")),
        ("version", b"7".to_vec()),
    ]
}

#[test]
fn no_content_of_a_field_hides_another_slot() {
    let redis = Redis::start();
    for (field, bad) in bad_fields() {
        redis.flush();
        let mut first = Caller::new(&redis, "first");
        first.holds();
        redis.set_field(KEY, field.as_bytes(), &bad);
        let shown = format!("{field:?} {}", String::from_utf8_lossy(&bad[..bad.len().min(120)]));
        // A view with more slots than possible, or an implausible version, is not trusted.
        let holders = first.holds();
        let seen = holders.split_once(" 7=").map_or(&*holders, |(pods, _)| pods);
        assert_eq!(seen, "0=first", "{shown}");
        assert!(first.call.slots <= 8, "{shown}");
        let mut second = Caller::new(&redis, "second");
        assert!(second.holds().starts_with("0=first 1=second"), "{shown}");
        assert!(second.runs(Action::Watch).version < 100, "{shown}");
        // Also if its value is the one that continues the view.
        first.runs(Action::Leave);
        second.runs(Action::Leave);
        assert_eq!(pods(&Caller::new(&redis, "third").runs(Action::Watch)), "", "{shown}");
    }
}

#[test]
fn ignored_fields_are_counted_with_one_of_them() {
    let redis = Redis::start();
    let mut pod = Caller::new(&redis, "a");
    assert_eq!((pod.runs(Action::Claim).ignored, pod.runs(Action::Watch).ignored_field), (0, None));
    redis.set_field(KEY, b"version", b"7");
    let snapshot = pod.runs(Action::Watch);
    assert_eq!((snapshot.ignored, snapshot.ignored_field.as_deref()), (1, Some("version")));
    redis.set_field(KEY, b"\xff\n", b"7");
    assert_eq!(pod.runs(Action::Watch).ignored, 2);
}

#[test]
fn foreign_fields_cost_redis_no_time_and_no_pod_its_slot() {
    let redis = Redis::start();
    let mut pods: Vec<_> = (0..12).map(|number| Caller::new(&redis, &format!("p{number}"))).collect();
    let holders = pods.iter_mut().map(Caller::holds).last().expect("there are pods");
    redis.add_fields(KEY, 300_000);
    // The best of several, because of other work on the machine.
    let took = (0..5).map(|_| {
        let began = Instant::now();
        assert_eq!(pods[0].holds(), holders);
        began.elapsed()
    });
    let took = took.min().expect("some");
    assert!(took < Duration::from_millis(100), "a call takes {took:?}");
    let snapshot = pods[0].runs(Action::Watch);
    assert_eq!((snapshot.ignored, snapshot.slots), (300_000, 12));
    // A new caller sees all of them and claims the next number.
    assert_eq!(Caller::new(&redis, "new").holds(), format!("{holders} 12=new"));
    pods[3].runs(Action::Leave);
    assert!(Caller::new(&redis, "next").holds().contains(" 3=next "));
}

#[test]
fn all_slots_are_seen_beside_many_foreign_fields() {
    let redis = Redis::start();
    redis.add_fields(KEY, 5_000);
    // More than are queried without knowing their number: the values contain it.
    let count = FOREIGN_FIELDS_MAX + 200;
    for number in 0..count {
        let mut value = format!(r#"{{"node":"n{number}","instance":"i{number}","url":"ws://n/ws"#);
        value += r#"","expiresAtMs":99999999999999"#;
        if number == 3 {
            value += &format!(r#","view":{{"epoch":1,"version":9,"slots":{count}}}"#);
        }
        redis.set_field(KEY, number.to_string().as_bytes(), format!("{value}}}").as_bytes());
    }
    let snapshot = Caller::new(&redis, "new").runs(Action::Claim);
    assert_eq!((snapshot.holders.len(), snapshot.slots), (count as usize + 1, count + 1));
    assert_eq!(snapshot.holders.last().map(|holder| &*holder.node), Some("new"));
}

#[test]
fn pods_stay_ready_and_new_ones_claim_a_slot_whatever_the_hash_contains() {
    let world = World::without_topics();
    let old = world.pod("old").start();
    let mut names = Vec::new();
    for (number, (field, bad)) in bad_fields().into_iter().enumerate() {
        // All at once, each in its own field.
        let field = if field == "7" { (number + 7).to_string() } else { field.to_owned() };
        world.redis.set_field(KEY, field.as_bytes(), &bad);
        names.push(field);
    }
    always("the pod is ready", Duration::from_secs(3), || old.get("/ready").status == 200);
    let new = world.pod("new").start();
    eventually("both are live", WITHIN, || {
        let metrics = [&old, &new].map(|pod| pod.metrics().sum("shardgate_pods"));
        (metrics == [2.0, 2.0]).then_some(())
    });
    assert!(old.metrics().sum("shardgate_redis_fields_ignored") > 10.0);
    let logged = old.log().lines().filter(|line| line.contains("foreign fields in the slots hash")).count();
    assert_eq!(logged, 1, "once");
}

#[test]
fn a_pods_peer_url_is_in_the_hash_and_goes_when_the_pod_has_none() {
    let redis = Redis::start();
    let mut pod = Caller::new(&redis, "pod");
    let peer_url = |snapshot: &Snapshot| snapshot.holders[0].peer_url.as_deref().map(str::to_owned);
    assert_eq!(peer_url(&pod.runs(Action::Claim)).as_deref(), Some("http://pod:3004"));
    pod.call.peer_url = None;
    assert_eq!(peer_url(&pod.runs(Action::Hold)), None);
    for other in ["7", "null", r#""file:///etc/passwd""#, r#""http://a/b""#] {
        let stored = format!(r#"{{"node":"x","instance":"y","url":"ws://x/ws","peerUrl":{other},"expiresAtMs":1}}"#);
        redis.set_field(KEY, b"0", stored.as_bytes());
        pod.call.judge = false;
        let snapshot = pod.runs(Action::Watch);
        assert_eq!((&*snapshot.holders[0].node, peer_url(&snapshot)), ("x", None), "{other}");
    }
}
