//! The demo in a browser: prices move, events arrive, and the page shows when the gateway goes away.

use std::process::Command;

use loadtest::browser::{Page, WITHIN};
use loadtest::pods::binary;
use loadtest::process::{Process, Signal, TempDir, eventually, free_port};
use serde_json::Value;

#[test]
fn prices_move_events_arrive_and_a_drain_shows() {
    let mut demo = DemoProcess::start();
    eventually("the demo logs its start", WITHIN, || demo.process.log().contains("shardgate starts").then_some(()));
    let mut page = Page::open(&demo.url, HOOKS);
    page.until("it is connected", "state() === 'live'");

    page.until("all markets show", "Object.keys(prices()).length === 5");
    page.evaluate("window.before = prices(), null");
    page.until("each price moves", "Object.entries(prices()).every(([market, price]) => price !== before[market])");

    page.until("events show", "events().length > 0");
    page.evaluate("window.before = events().join(), null");
    page.until("more events arrive", "events().join() !== before");

    demo.process.signal(Signal::Term);
    let state = page.until("the drain shows", "state() !== 'live' && state()");
    assert!(["connecting", "reconnecting", "closed"].map(Value::from).contains(&state), "{state}");
    assert!(demo.process.wait_exit(WITHIN).success(), "the demo drains and exits successfully");
    assert_eq!(page.errors(), [""; 0], "the page's script throws nothing");
}

/// Environment variables for a real gateway, or for something else, must not keep the demo from starting.
#[test]
fn a_demo_ignores_settings_that_it_does_not_use() {
    let demo = DemoProcess::start_with(&[
        ("KAFKA_BROKERS", "no broker, at all"),
        ("KAFKA_PROPERTIES_FILE", "no-such.properties"),
        ("REDIS_URL", "nonsense"),
        ("REDIS_PORT", "tcp://10.0.0.1:6379"),
        ("LEASE_TTL_MS", "soon"),
    ]);
    let log = demo.process.log();
    for unused in ["KAFKA_BROKERS", "KAFKA_PROPERTIES_FILE", "REDIS_URL", "REDIS_PORT", "LEASE_TTL_MS"] {
        assert!(log.contains(&format!("{unused} (environment) is not used here")), "{log}");
    }
}

/// `shardgate demo`, running.
struct DemoProcess {
    process: Process,
    url: String,
    _dir: TempDir,
}

impl DemoProcess {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(settings: &[(&str, &str)]) -> Self {
        let (dir, port) = (TempDir::new("demo"), free_port([127, 0, 0, 1].into()));
        let mut command = Command::new(binary());
        command.arg("demo").env("PORT", port.to_string()).envs([("DRAIN_DELAY_MS", "100"), ("DRAIN_MS", "500")]);
        command.envs(settings.iter().copied());
        let process = Process::start("shardgate demo", command, &dir.path().join("demo.log"));
        let address = format!("http://127.0.0.1:{port}/");
        let url = eventually("the demo prints its page's address", WITHIN, || {
            process.log().split_whitespace().find(|word| word.starts_with(&address)).map(str::to_owned)
        });
        Self { process, url, _dir: dir }
    }
}

/// The elements of the page that tests rely on.
const HOOKS: &str = "
    window.state = () => document.querySelector('#state')?.dataset.state;
    window.prices = () => Object.fromEntries([...document.querySelectorAll('#prices [data-market]')]
        .map(market => [market.dataset.market, market.querySelector('.price').textContent]));
    window.events = () => [...document.querySelectorAll('#events li')].map(event => event.textContent);";
