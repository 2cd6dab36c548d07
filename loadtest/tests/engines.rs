//! What the shards run on: io_uring or epoll, by choice, and where the system forbids io_uring.

use std::time::Duration;

use loadtest::client::{WITHIN, read_until};
use loadtest::confinement::Refusal;
use loadtest::events::{Kind, seen};
use loadtest::pods::{Plan, World};
use loadtest::process::Signal;

/// What may forbid io_uring, each with how it is said.
fn confinements(plan: &Plan) -> [(Plan, &'static str); 4] {
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    let refused = |calls: &[libc::c_long], errno| plan.clone().refused(Refusal { calls: calls.to_vec(), errno });
    [
        // containerd's and Docker's profiles.
        (refused(&calls, libc::EPERM), "a seccomp profile"),
        // Others.
        (refused(&calls, libc::ENOSYS), "io_uring is not there"),
        // As kernel.io_uring_disabled does, which is one setting for all of the machine.
        (refused(&calls[..1], libc::EPERM), "a seccomp profile"),
        (plan.clone().locked_memory(0), "RLIMIT_MEMLOCK = 0"),
    ]
}

/// Starts a pod, which runs on this engine, and says so once; it delivers an event, and drains when it is asked to.
fn serves_and_drains(world: &World, plan: &Plan, engine: &str) {
    let mut pod = plan.start();
    let log = pod.log();
    let said: Vec<_> = log.lines().filter(|line| line.contains("engine chosen")).collect();
    assert!(matches!(said[..], [line] if line.contains(engine) && line.contains("reason")), "{said:?}");
    let mut clients = [pod.client("assessment")];
    let producer = world.producer();
    producer.event(&Kind::BalanceUpdated.event("assessment", 1));
    producer.flush();
    read_until(&mut clients, "its event", WITHIN, |clients| seen(&clients[0]).count() == 1);
    pod.signal(Signal::Term);
    read_until(&mut clients, "the end", WITHIN, |clients| clients[0].ended().is_some());
    assert_eq!(pod.wait_exit(WITHIN).code(), Some(0));
}

fn plan(world: &World) -> Plan {
    world.pod("pod-0").unset("ENGINE").set_all(&[("DRAIN_DELAY_MS", "0"), ("DRAIN_MS", "100")])
}

#[test]
fn a_pod_on_each_engine_serves_and_drains_and_so_does_one_that_may_not_use_io_uring() {
    let world = World::start();
    let plan = plan(&world);
    for engine in ["io_uring", "epoll"] {
        serves_and_drains(&world, &plan.clone().set("ENGINE", engine), engine);
    }
    for (plan, _) in confinements(&plan) {
        serves_and_drains(&world, &plan, "epoll");
    }
}

#[test]
fn a_pod_that_is_told_to_use_io_uring_and_may_not_ends_and_says_why() {
    let plan = Plan::new("pod-0", "127.0.0.1:1", 1).set("ENGINE", "io_uring");
    for (plan, why) in confinements(&plan) {
        let mut pod = plan.spawn();
        assert_eq!(pod.wait_exit(Duration::from_secs(10)).code(), Some(1));
        let log = pod.log();
        let said: Vec<_> = log.lines().filter(|line| line.contains(why)).collect();
        assert_eq!(said.len(), 1, "{log}");
    }
}
