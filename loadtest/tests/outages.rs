//! Redis hangs, dies, and loses connections without a word, also on a machine that does much else: pods are back by
//! themselves, within seconds, and the log says what they wait for and how long it took.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use loadtest::client::WITHIN;
use loadtest::pods::{Pod, World};
use loadtest::process::{always, eventually, own_cores};
use loadtest::redis_proxy::RedisProxy;

/// Pods are back within this time, whatever happened.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// Threads that keep every core busy, until it is dropped.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn cores() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        for _ in own_cores() {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(over)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn is_connected(pod: &Pod) -> bool {
    pod.get("/ready").json()["redis"] == "connected"
}

fn back(pods: &[Pod], what: &str) {
    for pod in pods {
        eventually(&format!("{} reaches Redis after {what}", pod.name()), BACK_WITHIN, || {
            is_connected(pod).then_some(())
        });
    }
}

fn lines(pod: &Pod, text: &str) -> usize {
    pod.log().lines().filter(|line| line.contains(text)).count()
}

/// A pod with a way to Redis of its own.
fn linked(world: &World) -> (RedisProxy, Pod) {
    let link = RedisProxy::to(world.redis.port());
    let pod = world.pod("pod-0").set("REDIS_PORT", &link.port().to_string()).start();
    (link, pod)
}

#[test]
fn after_hangs_and_deaths_of_any_length_pods_are_back_within_seconds_also_on_a_busy_machine() {
    let mut world = World::without_topics();
    let pods = [world.pod("pod-0").spawn(), world.pod("pod-1").spawn()];
    pods.iter().for_each(Pod::ready);
    let _busy = Busy::cores();
    for ms in [100, 300, 1_000, 2_500, 6_000] {
        world.redis.pause();
        thread::sleep(Duration::from_millis(ms));
        world.redis.resume();
        back(&pods, &format!("a hang of {ms} ms"));
        world.redis.kill();
        thread::sleep(Duration::from_millis(ms));
        world.redis.start_again();
        back(&pods, &format!("a death of {ms} ms"));
        eventually("both have their slots", BACK_WITHIN, || (world.redis.live().len() == 2).then_some(()));
    }
}

#[test]
fn a_pod_that_waits_for_redis_says_so_every_half_a_minute_and_how_long_it_took() {
    let mut world = World::without_topics();
    let pod = world.pod("pod-0").start();
    world.redis.kill();
    eventually("it says so", WITHIN, || (lines(&pod, "Redis unreachable") == 1).then_some(()));
    eventually("it says so again", Duration::from_secs(40), || {
        let log = pod.log();
        let line = log.lines().find(|line| line.contains("Redis still unreachable"))?;
        let address = format!("127.0.0.1:{}", world.redis.port());
        assert!(line.contains(&address) && line.contains("since=2") && line.contains("error="), "{line}");
        Some(())
    });
    assert_eq!(lines(&pod, "Redis unreachable"), 1);
    world.redis.start_again();
    eventually("it says that it is over", BACK_WITHIN, || {
        let log = pod.log();
        let line = log.lines().find(|line| line.contains("Redis connection restored"))?;
        assert!(line.contains("elapsed=3"), "30 s and some: {line}");
        Some(())
    });
}

#[test]
fn a_dead_redis_connection_is_replaced() {
    let world = World::without_topics();
    let (link, pod) = linked(&world);
    for _ in 0..5 {
        let before = pod.metrics().sum("shardgate_redis_connections_total");
        link.blackhole();
        eventually("both connections are made anew", BACK_WITHIN, || {
            (pod.metrics().sum("shardgate_redis_connections_total") >= before + 2.0).then_some(())
        });
        eventually("it reaches Redis", BACK_WITHIN, || is_connected(&pod).then_some(()));
    }
}

#[test]
fn a_dead_connection_for_announcements_is_found_and_made_anew_while_calls_go_on() {
    let world = World::without_topics();
    let (link, pod) = linked(&world);
    let made = pod.metrics().sum("shardgate_redis_connections_total");
    let failed = pod.metrics().sum("shardgate_redis_calls_failed_total");
    link.blackhole_announcements();
    eventually("another is made", BACK_WITHIN, || {
        assert!(is_connected(&pod), "calls are answered");
        (pod.metrics().sum("shardgate_redis_connections_total") == made + 1.0).then_some(())
    });
    assert_eq!(lines(&pod, "stopped answering"), 1);
    assert_eq!(pod.metrics().sum("shardgate_redis_calls_failed_total"), failed);
    always("a quiet connection that answers is kept", Duration::from_secs(8), || {
        pod.metrics().sum("shardgate_redis_connections_total") == made + 1.0
    });
}

#[test]
fn a_flood_of_announcements_costs_neither_memory_nor_calls_without_a_bound() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let (memory, calls) = (pod.memory(), world.redis.scripts_run());
    // While a call is under way nothing is taken from the queue.
    let payload = "x".repeat(100_000);
    let script = "for n = 1, ARGV[1] do redis.call('PUBLISH', KEYS[1], ARGV[2]) end";
    for _ in 0..20 {
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(1).arg("websocket:node:join").arg(100).arg(&payload);
        command.exec(&mut world.redis.connection()).expect("Redis answers");
    }
    always("it is ready", Duration::from_secs(2), || pod.get("/ready").status == 200);
    let grown = pod.memory().saturating_sub(memory);
    assert!(grown < 64 << 20, "200 MB were announced, and {grown} bytes are kept");
    let looks = world.redis.scripts_run() - calls;
    assert!(looks < 1_000, "2,000 announcements made {looks} calls");
}
