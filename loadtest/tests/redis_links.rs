//! Redis as companies run it: behind TLS, with an ACL user, at a Unix socket, behind Sentinels, as a Redis Cluster.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use loadtest::certificates::{Authority, Certified};
use loadtest::client::{WITHIN, read_until};
use loadtest::events::{assert_saw, event, seen};
use loadtest::kafka::Kafka;
use loadtest::pods::{Plan, Pod, READY_WITHIN, World, run};
use loadtest::process::{Process, TempDir, eventually, free_port, tool};
use loadtest::redis::Redis;
use loadtest::token::SECRET;

/// As `deploy/README.md` has it: what a pod's user may do, behind the prefix `websocket`.
const ACL: &str = "~websocket:* &websocket:* -@all +@connection +@hash +@scripting +time +publish +subscribe";

/// A broker without topics, and a Redis with these settings.
fn world(settings: &[&str]) -> World {
    World { kafka: Kafka::start(), redis: Redis::start_with(settings) }
}

fn pod(world: &World, name: &str, url: &str) -> Plan {
    world.pod(name).unset("REDIS_HOST").unset("REDIS_PORT").set("REDIS_URL", url)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("our own paths are text")
}

#[track_caller]
fn refuses(plan: &Plan, why: &str) {
    let pod = plan.spawn();
    eventually(why, READY_WITHIN, || {
        let log = pod.log();
        log.lines().any(|line| line.contains("Redis unreachable") && line.contains(why)).then_some(())
    });
    assert_eq!(pod.get("/ready").json()["redis"], "disconnected");
}

#[test]
fn redis_is_reached_by_tls_as_an_acl_user_and_only_if_its_certificate_is_good() {
    let authority = Authority::new();
    let (good, other) = (authority.sign("redis", "IP:127.0.0.1"), authority.sign("other", "DNS:other.example"));
    let [port, wrong] = [(); 2].map(|()| free_port(Ipv4Addr::LOCALHOST));
    let with = |port: u16, certified: &Certified| {
        let (certificate, key) = (text(&certified.certificate), text(&certified.key));
        let tls = format!(
            "--tls-port {port} --tls-cert-file {certificate} --tls-key-file {key} --tls-ca-cert-file {} \
             --tls-auth-clients no --user gate on >p@ss/w:rd {ACL}",
            text(&authority.file())
        );
        tls.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    let settings = with(port, &good);
    let world = world(&settings.iter().map(String::as_str).collect::<Vec<_>>());
    let url = format!("rediss://gate:p%40ss%2Fw%3Ard@127.0.0.1:{port}");
    let plan = pod(&world, "pod-0", &url);
    let trusting = plan.clone().set("REDIS_CA_FILE", text(&authority.file()));
    let served = trusting.start();
    assert_eq!(world.redis.live().len(), 1);
    drop(served);

    refuses(&plan, "certificate verify failed");
    let stranger = Authority::new();
    refuses(&plan.set("REDIS_CA_FILE", text(&stranger.file())), "certificate verify failed");
    let unknown = trusting.clone().set("REDIS_URL", &format!("rediss://gate:hunter2@127.0.0.1:{port}"));
    refuses(&unknown, "authentication failed");
    // A good certificate, but of another host.
    let settings = with(wrong, &other);
    let _other = Redis::start_with(&settings.iter().map(String::as_str).collect::<Vec<_>>());
    let elsewhere = trusting.set("REDIS_URL", &format!("rediss://gate:p%40ss%2Fw%3Ard@127.0.0.1:{wrong}"));
    refuses(&elsewhere, "IP address mismatch");
}

#[test]
fn redis_is_reached_by_a_unix_socket() {
    let dir = TempDir::new("socket");
    let socket = dir.path().join("redis.sock");
    let world = world(&["--unixsocket", text(&socket), "--requirepass", ""]);
    let served = pod(&world, "pod-0", &format!("unix://{}", text(&socket))).start();
    assert_eq!(world.redis.live().len(), 1);
    assert!(served.log().contains(text(&socket)), "{}", served.log());
}

/// Three Sentinels of a primary, each with a password.
struct Sentinels {
    ports: [u16; 3],
    running: Vec<Process>,
    _dir: TempDir,
}

impl Sentinels {
    fn of(primary: u16) -> Self {
        let dir = TempDir::new("sentinels");
        let ports = [(); 3].map(|()| free_port(Ipv4Addr::LOCALHOST));
        let running = ports.into_iter().map(|port| {
            let config = dir.file(
                &format!("sentinel-{port}.conf"),
                &format!(
                    "port {port}\nbind 127.0.0.1\nrequirepass watch\nsentinel sentinel-pass watch\n\
                     sentinel monitor gate 127.0.0.1 {primary} 2\nsentinel down-after-milliseconds gate 2000\n\
                     sentinel failover-timeout gate 10000\n"
                ),
            );
            // Debian's redis-sentinel is this very program.
            let mut command = Command::new(tool("redis-server", "redis-server"));
            command.arg(config).arg("--sentinel");
            Process::start("sentinel", command, &dir.path().join(format!("log-{port}")))
        });
        let running = running.collect();
        let sentinels = Self { ports, running, _dir: dir };
        for port in ports {
            eventually("a Sentinel knows the replica and the others", WITHIN, || {
                let state = what_it_knows(port)?;
                let is = |name: &str, value: &str| state.get(name).is_some_and(|is| is == value);
                (is("num-slaves", "1") && is("num-other-sentinels", "2")).then_some(())
            });
        }
        sentinels
    }

    fn url(&self) -> String {
        let hosts = self.ports.map(|port| format!("127.0.0.1:{port}"));
        format!("redis+sentinel://{}/gate", hosts.join(","))
    }
}

/// What a Sentinel knows of the primary.
fn what_it_knows(sentinel: u16) -> Option<BTreeMap<String, String>> {
    let client = redis::Client::open(format!("redis://:watch@127.0.0.1:{sentinel}")).ok()?;
    redis::cmd("SENTINEL").arg("MASTER").arg("gate").query(&mut client.get_connection().ok()?).ok()
}

#[track_caller]
fn redis_is(pod: &Pod, state: &str) {
    let what = format!("Redis is {state} for {}", pod.name());
    eventually(&what, READY_WITHIN, || (pod.get("/ready").json()["redis"] == state).then_some(()));
}

#[test]
fn after_a_failover_of_sentinels_pods_keep_their_slots_and_clients_their_events() {
    let mut world = World::start();
    let replica = Redis::start();
    replica.follow(&world.redis);
    let mut sentinels = Sentinels::of(world.redis.port());
    let plan = |name: &str| pod(&world, name, &sentinels.url()).set("REDIS_SENTINEL_PASSWORD", "watch");
    let pods = ["pod-0", "pod-1"].map(|name| plan(name).start());
    world.settled(&pods);
    let slots = world.redis.live();
    let assessment = (0..).map(|n| format!("a-{n}")).find(|id| pods[0].owner_of(id) == pods[0].url());
    let assessment = assessment.expect("half of them");
    let mut clients = [pods[0].client(&assessment)];
    clients[0].expect_type("connected");
    let producer = world.producer();

    // The first Sentinel of the URL is away, too: the others are asked.
    sentinels.running.remove(0).kill();
    world.redis.kill();
    redis_is(&pods[0], "disconnected");
    producer.event(&event(&assessment, 0));
    for pod in &pods {
        redis_is(pod, "connected");
        pod.ready();
    }
    assert_eq!(replica.live(), slots);
    producer.event(&event(&assessment, 1));
    read_until(&mut clients, "both events", WITHIN, |clients| seen(&clients[0]).count() >= 2);
    assert_saw(&clients[0], &assessment, 0..2);

    // A replica that is promoted empty: each pod takes its own slot again.
    replica.flush();
    eventually("the slots are back", READY_WITHIN, || (replica.live() == slots).then_some(()));

    // The old primary returns as a replica; the pods stay with the new one.
    world.redis.start_again();
    eventually("the old primary follows the new one", READY_WITHIN, || (world.redis.live() == slots).then_some(()));
    for pod in &pods {
        pod.ready();
    }
    assert_eq!((clients[0].ended(), clients[0].of_type("reset").count()), (None, 0));
}

#[test]
fn a_redis_cluster_is_served_by_the_node_of_the_hash_tag_and_refused_without_one() {
    // By default the nodes' own port is 10,000 higher, where something else may listen.
    let buses = [(); 2].map(|()| free_port(Ipv4Addr::LOCALHOST).to_string());
    let nodes =
        [0, 1].map(|node: usize| Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &buses[node]]));
    let run_on = |node: &Redis, command: &str| {
        let mut words = command.split(' ');
        let mut command = redis::cmd(words.next().expect("a command"));
        words.for_each(|word| {
            command.arg(word);
        });
        command.exec(&mut node.connection()).expect("Redis takes the command");
    };
    run_on(&nodes[0], "CLUSTER ADDSLOTSRANGE 0 8191");
    run_on(&nodes[1], "CLUSTER ADDSLOTSRANGE 8192 16383");
    run_on(&nodes[0], &format!("CLUSTER MEET 127.0.0.1 {} {}", nodes[1].port(), buses[1]));
    for node in &nodes {
        eventually("the cluster is whole", WITHIN, || {
            let info: String = redis::cmd("CLUSTER").arg("INFO").query(&mut node.connection()).ok()?;
            (info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:2")).then_some(())
        });
    }
    let (kafka, broker) = (Kafka::start(), &nodes[0]);
    // The tag `a` is in slot 15495, `b` in 3300: one of each node.
    for (tag, owner) in [("a", &nodes[1]), ("b", &nodes[0])] {
        let prefix = format!("{{{tag}}}gate");
        let plan = Plan::new("pod-0", kafka.bootstrap(), broker.port()).set("REDIS_KEY_PREFIX", &prefix);
        let served = plan.start();
        assert_eq!(owner.slots_of(&prefix).len(), 1);
        assert!(!served.log().contains("Redis unreachable"), "{}", served.log());
        let environment = [
            ("JWT_SECRET", SECRET),
            ("KAFKA_BROKERS", kafka.bootstrap()),
            ("REDIS_PORT", &broker.port().to_string()),
            ("REDIS_KEY_PREFIX", &prefix),
        ];
        let checked = run(&["check"], &environment);
        assert_eq!(checked.code, Some(0), "{}", checked.output);
    }
    // The prefix `websocket` is on the other node.
    refuses(&Plan::new("pod-0", kafka.bootstrap(), nodes[1].port()), "give REDIS_KEY_PREFIX a hash tag");
}
