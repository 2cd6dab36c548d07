//! Redis hangs, dies, and loses connections silently, also on a busy machine: pods recover by themselves within
//! seconds, and log what they wait for and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use loadtest::client::WITHIN;
use loadtest::pods::{Pod, World};
use loadtest::process::{always, eventually, own_cores};
use loadtest::redis_proxy::RedisProxy;

/// Time limit for recovery.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// Threads that keep every core busy until this is dropped.
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

fn await_recovery(pods: &[Pod], what: &str) {
    for pod in pods {
        eventually(&format!("{} reaches Redis after {what}", pod.name()), BACK_WITHIN, || {
            is_connected(pod).then_some(())
        });
    }
}

fn lines(pod: &Pod, text: &str) -> usize {
    pod.log().lines().filter(|line| line.contains(text)).count()
}

/// A pod with its own proxy to Redis.
fn pod_with_proxy(world: &World) -> (RedisProxy, Pod) {
    let proxy = RedisProxy::to(world.redis.port());
    let pod = world.pod("pod-0").set("REDIS_PORT", &proxy.port().to_string()).start();
    (proxy, pod)
}

#[test]
fn pods_recover_within_seconds_after_a_hang_or_death_of_redis_even_on_a_busy_machine() {
    let mut world = World::without_topics();
    let pods = [world.pod("pod-0").spawn(), world.pod("pod-1").spawn()];
    pods.iter().for_each(Pod::ready);
    let _busy = Busy::cores();
    for ms in [100, 300, 1_000, 2_500, 6_000] {
        world.redis.pause();
        thread::sleep(Duration::from_millis(ms));
        world.redis.resume();
        await_recovery(&pods, &format!("a hang of {ms} ms"));
        world.redis.kill();
        thread::sleep(Duration::from_millis(ms));
        world.redis.start_again();
        await_recovery(&pods, &format!("a death of {ms} ms"));
        eventually("both have their slots", BACK_WITHIN, || (world.redis.live().len() == 2).then_some(()));
    }
}

#[test]
fn an_outage_of_redis_is_logged_at_its_start_every_half_minute_and_at_its_end() {
    let mut world = World::without_topics();
    let pod = world.pod("pod-0").start();
    world.redis.kill();
    eventually("the outage is logged", WITHIN, || (lines(&pod, "Redis unreachable") == 1).then_some(()));
    eventually("the outage is logged again", Duration::from_secs(40), || {
        let log = pod.log();
        let line = log.lines().find(|line| line.contains("Redis still unreachable"))?;
        let address = format!("127.0.0.1:{}", world.redis.port());
        assert!(line.contains(&address) && line.contains("since=2") && line.contains("error="), "{line}");
        Some(())
    });
    assert_eq!(lines(&pod, "Redis unreachable"), 1);
    world.redis.start_again();
    eventually("its end is logged", BACK_WITHIN, || {
        let log = pod.log();
        let line = log.lines().find(|line| line.contains("Redis connection restored"))?;
        assert!(line.contains("elapsed_ms=3"), "more than 30 s: {line}");
        Some(())
    });
}

#[test]
fn a_dead_redis_connection_is_replaced() {
    let world = World::without_topics();
    let (proxy, pod) = pod_with_proxy(&world);
    for _ in 0..5 {
        let before = pod.metrics().sum("shardgate_redis_connections_total");
        proxy.blackhole();
        eventually("both connections are replaced", BACK_WITHIN, || {
            (pod.metrics().sum("shardgate_redis_connections_total") >= before + 2.0).then_some(())
        });
        eventually("the pod reaches Redis", BACK_WITHIN, || is_connected(&pod).then_some(()));
    }
}

#[test]
fn a_dead_announcement_connection_is_replaced_while_calls_continue() {
    let world = World::without_topics();
    let (proxy, pod) = pod_with_proxy(&world);
    let connections = pod.metrics().sum("shardgate_redis_connections_total");
    let failed = pod.metrics().sum("shardgate_redis_calls_failed_total");
    proxy.blackhole_announcements();
    eventually("the connection is replaced", BACK_WITHIN, || {
        assert!(is_connected(&pod), "calls are answered");
        (pod.metrics().sum("shardgate_redis_connections_total") == connections + 1.0).then_some(())
    });
    assert_eq!(lines(&pod, "stopped answering"), 1);
    assert_eq!(pod.metrics().sum("shardgate_redis_calls_failed_total"), failed);
    always("a quiet connection that answers pings is kept", Duration::from_secs(8), || {
        pod.metrics().sum("shardgate_redis_connections_total") == connections + 1.0
    });
}

#[test]
fn a_flood_of_announcements_costs_bounded_memory_and_calls() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let (memory, calls) = (pod.memory(), world.redis.scripts_run());
    // During a call nothing is taken from the queue.
    let payload = "x".repeat(100_000);
    let script = "for n = 1, ARGV[1] do redis.call('PUBLISH', KEYS[1], ARGV[2]) end";
    for _ in 0..20 {
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(1).arg("websocket:node:join").arg(100).arg(&payload);
        command.exec(&mut world.redis.connection()).expect("Redis answers");
    }
    always("the pod is ready", Duration::from_secs(2), || pod.get("/ready").status == 200);
    let grown = pod.memory().saturating_sub(memory);
    assert!(grown < 64 << 20, "200 MB were announced, and memory grew by {grown} bytes");
    let calls_made = world.redis.scripts_run() - calls;
    assert!(calls_made < 1_000, "2,000 announcements caused {calls_made} calls");
}
