//! Three pods behind a real load balancer: an outage that hits all of them takes none out of rotation.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use loadtest::client::Ask;
use loadtest::http;
use loadtest::pods::{Pod, READY_WITHIN, World};
use loadtest::process::{Process, Signal, TempDir, eventually, free_port, tool};

/// The balancer's check interval.
const CHECK_EVERY: Duration = Duration::from_millis(200);

/// Twice the number of failed checks after which the balancer takes a pod out.
const CHECKS: u32 = 10;

/// HAProxy with the pods behind two ports: one checks `/accepting`, the other `/ready`.
struct Balancer {
    by_accepting: SocketAddr,
    by_ready: SocketAddr,
    _process: Process,
    _dir: TempDir,
}

impl Balancer {
    fn start(pods: &[Pod]) -> Self {
        let dir = TempDir::new("haproxy");
        let [by_accepting, by_ready] =
            [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(Ipv4Addr::LOCALHOST))));
        let mut settings = String::from(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  timeout tunnel 60s\n",
        );
        for (address, path) in [(by_accepting, "/accepting"), (by_ready, "/ready")] {
            settings += &format!("listen clients_by{}\n  bind {address}\n", path.replace('/', "_"));
            settings += &format!("  balance roundrobin\n  option httpchk GET {path}\n  http-check expect status 200\n");
            settings += &format!("  default-server inter {}ms fall 3 rise 1\n", CHECK_EVERY.as_millis());
            for pod in pods {
                settings += &format!("  server {} {} check\n", pod.name(), pod.address());
            }
        }
        let file = dir.file("haproxy.cfg", &settings);
        let mut command = Command::new(tool("haproxy", "haproxy"));
        // In the foreground, as one process.
        command.args(["-db", "-f"]).arg(&file).current_dir(dir.path());
        let log = dir.path().join("log");
        let process = Process::start("haproxy", command, &log);
        eventually("the balancer listens", READY_WITHIN, || http::get(by_ready, "/health", CHECK_EVERY).ok());
        assert!(!fs::read_to_string(log).unwrap().contains("ALERT"), "{}", process.log_tail());
        Self { by_accepting, by_ready, _process: process, _dir: dir }
    }

    /// The pods that accept this many clients, one after the other; `None` if one is refused.
    fn pods_of(&self, clients: usize) -> Option<BTreeSet<String>> {
        let ask = Ask::to(&format!("ws://{}/ws", self.by_accepting));
        let nodes = (0..clients).map(|_| {
            let mut client = ask.try_open().ok()?;
            let first = client.expect("a first message", |_| true);
            (first.kind == "connected").then(|| first.json()["node"].as_str().map(str::to_owned))?
        });
        nodes.collect()
    }

    /// Without a healthy pod, the balancer itself answers 503.
    fn has_a_ready_pod(&self) -> bool {
        http::get(self.by_ready, "/health", READY_WITHIN).is_ok_and(|answer| answer.status == 200)
    }
}

#[test]
fn without_redis_all_pods_behind_a_balancer_keep_accepting_clients() {
    let mut world = World::without_topics();
    let mut pods = world.three_pods(&[("DRAIN_DELAY_MS", "60000")]);
    let balancer = Balancer::start(&pods);
    let names: BTreeSet<String> = pods.iter().map(|pod| pod.name().to_owned()).collect();
    eventually("each pod has clients", READY_WITHIN, || (balancer.pods_of(3).as_ref() == Some(&names)).then_some(()));

    world.redis.kill();
    eventually("no pod is ready", READY_WITHIN, || (!balancer.has_a_ready_pod()).then_some(()));
    let since = Instant::now();
    while since.elapsed() < CHECK_EVERY * CHECKS {
        assert_eq!(balancer.pods_of(3).as_ref(), Some(&names), "each pod accepts clients");
    }

    // A draining pod is taken out of rotation before it refuses clients. Connected clients stay for the delay.
    let mut stays = pods[0].market_client();
    stays.expect_type("connected");
    pods[0].signal(Signal::Term);
    eventually("the draining pod accepts no more clients", READY_WITHIN, || {
        (pods[0].get("/accepting").status == 503).then_some(())
    });
    eventually("the balancer has taken it out", READY_WITHIN, || {
        balancer.pods_of(6).filter(|nodes| nodes.len() == 2 && !nodes.contains(pods[0].name()))
    });
    drop(stays);
    assert!(pods[0].wait_exit(READY_WITHIN).success());

    // A pod that was never ready accepts no client.
    let never_ready = world.pod("pod-3").spawn();
    eventually("the pod answers", READY_WITHIN, || never_ready.try_get("/health"));
    assert_eq!(never_ready.get("/accepting").status, 503);
}
