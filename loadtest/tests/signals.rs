//! The effect of each signal: SIGQUIT drains as SIGTERM does, SIGHUP reloads the routes, SIGUSR1 and SIGUSR2 change the
//! level of the log, SIGPIPE does nothing.

use std::time::Duration;

use loadtest::client::WITHIN;
use loadtest::pods::{Pod, World, run};
use loadtest::process::{Signal, TempDir, eventually};

fn awaits_line(pod: &Pod, text: &str) {
    eventually(text, WITHIN, || pod.log().contains(text).then_some(()));
}

#[test]
fn sigquit_drains_a_pod_and_a_second_one_makes_it_exit_at_once() {
    let world = World::without_topics();
    let mut pod = world.pod("pod-0").set("DRAIN_DELAY_MS", "60000").start();
    let client = pod.client("a");
    let counts_it = || (pod.metrics().sum("websocket_connections_total") == 1.0).then_some(());
    eventually("the client is counted", WITHIN, counts_it);
    pod.signal(Signal::Quit);
    eventually("the pod drains", WITHIN, || (pod.get("/ready").json()["draining"] == true).then_some(()));
    // Signals that don't end a pod at other times don't end it now.
    pod.signal(Signal::Hup);
    pod.signal(Signal::User1);
    pod.signal(Signal::User2);
    pod.signal(Signal::Pipe);
    client.close();
    assert_eq!(pod.wait_exit(WITHIN).code(), Some(0), "as soon as the last client has left");

    let mut pod = world.pod("pod-0").set("DRAIN_DELAY_MS", "60000").start();
    let _client = pod.client("a");
    pod.signal(Signal::Quit);
    eventually("the pod drains", WITHIN, || (pod.get("/ready").json()["draining"] == true).then_some(()));
    pod.signal(Signal::Quit);
    assert_eq!(pod.wait_exit(Duration::from_secs(2)).code(), Some(130));
    assert!(pod.log().trim_end().ends_with("second signal: exiting at once signal=\"SIGQUIT\""), "{}", pod.log());
}

#[test]
fn sigusr1_logs_more_and_sigusr2_less() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    pod.signal(Signal::User1);
    awaits_line(&pod, "log level changed before=INFO now=DEBUG setting=INFO");
    pod.client("a").expect_type("connected");
    awaits_line(&pod, "connection opened");
    pod.signal(Signal::User2);
    awaits_line(&pod, "log level changed before=DEBUG now=INFO setting=INFO");
    let opened = pod.log().matches("connection opened").count();
    pod.client("b").expect_type("connected");
    pod.signal(Signal::User2);
    awaits_line(&pod, "now=WARN");
    assert_eq!(pod.log().matches("connection opened").count(), opened);
}

#[test]
fn sighup_reloads_the_routes_and_invalid_ones_change_nothing() {
    let world = World::without_topics();
    let dir = TempDir::new("routes");
    let built_in = run(&["routes"], &[]).output;
    let file = dir.file("routes.toml", &built_in);
    let pod = world.pod("pod-0").set("ROUTES_FILE", file.to_str().unwrap()).start();
    let mut client = pod.client("a");
    client.expect_type("connected");

    pod.signal(Signal::Hup);
    awaits_line(&pod, "routes unchanged");
    dir.file("routes.toml", &built_in.replacen("scope = \"market\"", "scope = \"everyone\"", 1));
    pod.signal(Signal::Hup);
    awaits_line(&pod, "invalid routes");
    let fault = pod.log().lines().find(|line| line.contains("invalid routes")).unwrap().to_owned();
    assert!(fault.contains("ERROR") && fault.contains("ROUTES_FILE (environment)"), "{fault}");
    assert!(fault.contains("line ") && fault.contains("everyone"), "{fault}");
    dir.file("routes.toml", &built_in.replacen("type = \"market_price\"", "type = \"price\"", 1));
    pod.signal(Signal::Hup);
    awaits_line(&pod, "new routes in force");

    pod.signal(Signal::Pipe);
    client.send(r#"{"type":"ping"}"#);
    client.expect_type("pong");
    assert_eq!(pod.get("/ready").status, 200);
}
