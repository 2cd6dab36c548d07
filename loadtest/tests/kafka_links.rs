//! Kafka as companies run it: behind SASL over TLS, behind TLS with certificates on both sides, and with a broker in each
//! zone.

use std::path::Path;

use loadtest::certificates::Authority;
use loadtest::client::{WITHIN, read_until};
use loadtest::events::{Kind, assert_saw, event, seen};
use loadtest::kafka::Kafka;
use loadtest::kafka::rights::ScramMechanism;
use loadtest::pods::{Plan, READY_WITHIN, World};
use loadtest::process::{TempDir, eventually};
use loadtest::redis::Redis;

const PASSWORD: &str = "s3cret-of-kafka";

fn text(path: &Path) -> &str {
    path.to_str().expect("our own paths are text")
}

fn start(protocol: &str, settings: &[(String, String)]) -> World {
    let settings: Vec<_> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let kafka = Kafka::start_secured(protocol, &settings);
    kafka.create_all(&Kind::ALL.map(|kind| (kind.topic(), 1)));
    World { kafka, redis: Redis::start() }
}

/// A pod that has its brokers from the properties file.
fn plan(world: &World, dir: &TempDir, properties: &str) -> Plan {
    let text = format!("bootstrap.servers={}\n{properties}", world.kafka.secured());
    let file = dir.file("kafka.properties", &text);
    world.pod("pod-0").unset("KAFKA_BROKERS").set("KAFKA_PROPERTIES_FILE", file.to_str().expect("text"))
}

#[track_caller]
fn serves(world: &World, plan: &Plan, number: u64) {
    let pod = plan.start();
    let mut clients = [pod.client("a")];
    clients[0].expect_type("connected");
    let producer = world.producer();
    producer.event(&event("a", number));
    producer.flush();
    read_until(&mut clients, "the event", WITHIN, |clients| seen(&clients[0]).count() == 1);
    assert!(!pod.log().contains(PASSWORD));
}

#[track_caller]
fn is_refused(plan: &Plan, why: &str) {
    let pod = plan.spawn();
    eventually(why, READY_WITHIN, || pod.log().contains(why).then_some(()));
    assert_eq!(pod.get("/ready").json()["kafka"], "disconnected");
    assert!(!pod.log().contains(PASSWORD));
}

#[test]
fn a_broker_with_sasl_over_tls_is_read_with_plain_and_scram() {
    let authority = Authority::new();
    let mut settings = authority.listener_of_brokers();
    let of = |name: &str, value: String| (format!("listener.name.clients.{name}"), value);
    let module = "org.apache.kafka.common.security";
    settings.push(of("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512".to_owned()));
    let plain = format!("{module}.plain.PlainLoginModule required user_gate=\"{PASSWORD}\";");
    settings.push(of("plain.sasl.jaas.config", plain));
    for mechanism in ["scram-sha-256", "scram-sha-512"] {
        let scram = format!("{module}.scram.ScramLoginModule required;");
        settings.push(of(&format!("{mechanism}.sasl.jaas.config"), scram));
    }
    let world = start("SASL_SSL", &settings);
    world.kafka.set_password(ScramMechanism::RD_KAFKA_SCRAM_MECHANISM_SHA_256, "gate", PASSWORD);
    world.kafka.set_password(ScramMechanism::RD_KAFKA_SCRAM_MECHANISM_SHA_512, "gate", PASSWORD);
    let dir = TempDir::new("properties");
    let with = |mechanism: &str, password: &str| {
        let login =
            format!("sasl.username=gate\nsasl.password={password}\nssl.ca.location={}", text(&authority.file()));
        plan(&world, &dir, &format!("security.protocol=SASL_SSL\nsasl.mechanisms={mechanism}\n{login}\n"))
    };
    for (mechanism, number) in [("PLAIN", 0), ("SCRAM-SHA-256", 1), ("SCRAM-SHA-512", 2)] {
        serves(&world, &with(mechanism, PASSWORD), number);
        is_refused(&with(mechanism, "wrong"), "uthentication failed");
    }
}

#[test]
fn a_broker_that_wants_a_certificate_gets_the_pods() {
    let authority = Authority::new();
    let mut settings = authority.listener_of_brokers();
    settings.push(("listener.name.clients.ssl.client.auth".to_owned(), "required".to_owned()));
    let world = start("SSL", &settings);
    let dir = TempDir::new("properties");
    let pod = authority.sign("gate", "DNS:gate");
    let trust = format!("security.protocol=SSL\nssl.ca.location={}\n", text(&authority.file()));
    let own = format!("ssl.certificate.location={}\nssl.key.location={}\n", text(&pod.certificate), text(&pod.key));
    serves(&world, &plan(&world, &dir, &format!("{trust}{own}")), 0);
    is_refused(&plan(&world, &dir, &trust), "SSL");
}

#[test]
fn a_pod_with_a_rack_reads_from_the_replica_there_and_from_the_leader_if_that_is_gone() {
    let selector = "org.apache.kafka.common.replica.RackAwareReplicaSelector";
    let kafka = Kafka::start_with(3, &[("broker.rack", "zone-{id}"), ("replica.selector.class", selector)]);
    kafka.create_all(&Kind::ALL.map(|kind| (kind.topic(), 1)));
    let first = event("a", 0);
    let leader = eventually("a leader", READY_WITHIN, || kafka.leader(&first.topic, 0));
    let follower = (leader + 1) % 3;
    let mut world = World { kafka, redis: Redis::start() };
    let dir = TempDir::new("properties");
    let file = dir.file("kafka.properties", &format!("client.rack=zone-{}\ndebug=fetch\n", follower + 1));
    let pod = world.pod("pod-0").set("KAFKA_PROPERTIES_FILE", file.to_str().expect("text")).set("LOG", "debug").start();
    let mut clients = [pod.client("a")];
    let producer = world.producer();
    producer.event(&first);
    producer.flush();
    let reads_there = format!("to {} (leader is {}): preferred replica updated", follower + 1, leader + 1);
    eventually("the replica of the zone is read", READY_WITHIN, || pod.log().contains(&reads_there).then_some(()));
    read_until(&mut clients, "the first event", WITHIN, |clients| seen(&clients[0]).count() == 1);

    world.kafka.broker(follower).kill();
    (1..10).for_each(|number| producer.event(&event("a", number)));
    producer.flush();
    read_until(&mut clients, "the events from the leaders", READY_WITHIN, |clients| seen(&clients[0]).count() == 10);
    assert_saw(&clients[0], "a", 0..10);
    assert_eq!(clients[0].of_type("reset").count(), 0);
}
