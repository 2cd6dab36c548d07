//! The browser client in README, run in a real browser against a real pod.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::slice::from_mut;

use loadtest::browser::Page;
use loadtest::client::{WITHIN, read_until};
use loadtest::events::{assert_saw, event, seen};
use loadtest::pods::{Pod, World};
use loadtest::process::Signal;
use loadtest::token;
use serde_json::json;

const ASSESSMENT: &str = "a b&c";

/// The address in README, which the test replaces.
const ADDRESS: &str = "ws://localhost:3003/ws";

/// Functions that the client calls, and its sockets, so that the test can close one. A new title triggers the page's
/// observer.
const HOOKS: &str = "
    window.sockets = [];
    window.shown = [];
    window.show = message => { document.title = shown.push(message); };
    window.reload = () => show({ type: 'reset' });
    window.ofType = type => shown.filter(message => message.type === type);
    window.events = () => shown.filter(message => message.assessmentId && message.type !== 'connected');
    window.WebSocket = class extends WebSocket {
        constructor(url) { super(url); sockets.push(this); }
    };";

/// The block of JavaScript in README.
fn readme_client() -> String {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let (_, after) = readme.split_once("```js\n").expect("README has a browser client");
    let (client, _) = after.split_once("```").expect("its block ends");
    assert!(client.lines().count() <= 15, "it has at most 15 lines");
    assert!(client.contains(ADDRESS), "{client}");
    client.to_owned()
}

/// A page that runs the client, with this pod as its home.
fn open(pod: &Pod) -> Page {
    let mut page = Page::open(&format!("http://{}/health", pod.address()), HOOKS);
    let client = readme_client().replace(ADDRESS, &pod.url());
    let variables = format!("id = encodeURIComponent('{ASSESSMENT}'); token = '{}';", token::good());
    page.evaluate(&format!("{variables}\n{client}\nnull"));
    page.until("it connects", "ofType('connected').length === 1");
    page
}

/// After one interruption it has eight events.
fn assert_resumed(page: &mut Page) {
    assert_eq!(page.evaluate("ofType('connected').map(message => message.resumed)"), json!([false, true]));
    assert_eq!(page.evaluate("new Set(events().map(message => message.timestamp)).size"), json!(8), "each once");
    assert_eq!(page.evaluate("ofType('reset').length"), json!(0));
    assert_eq!(page.errors(), [""; 0], "its script throws nothing");
}

#[test]
fn the_browser_client_in_readme_resumes_after_its_socket_was_closed() {
    let world = World::start();
    let pod = world.pod("pod-0").start();
    let producer = world.producer();
    let mut other_client = pod.client(ASSESSMENT);
    // Returns when the pod has the events.
    let mut produce = |numbers: Range<u64>| {
        numbers.clone().for_each(|number| producer.event(&event(ASSESSMENT, number)));
        producer.flush();
        let count = usize::try_from(numbers.end).unwrap();
        read_until(from_mut(&mut other_client), "the pod has the events", WITHIN, |clients| {
            seen(&clients[0]).count() >= count
        });
        assert_saw(&other_client, ASSESSMENT, 0..numbers.end);
    };

    let mut page = open(&pod);
    produce(0..3);
    page.until("events show", "events().length === 3");
    // It pauses for at least a second before it reconnects, so it misses these.
    page.evaluate("sockets.at(-1).close(), null");
    produce(3..6);
    page.until("it reconnects", "ofType('connected').length === 2");
    page.until("it has the events that it missed", "events().length === 6");
    produce(6..8);
    page.until("live events follow", "events().length === 8");
    assert_resumed(&mut page);
}

#[test]
fn the_browser_client_in_readme_follows_a_redirect_and_resumes_on_the_other_pod() {
    let world = World::start();
    let pods = world.three_pods(&[("DRAIN_DELAY_MS", "500"), ("DRAIN_MS", "500")]);
    let owner = pods[0].owner_of(ASSESSMENT);
    let home = pods.iter().find(|pod| pod.url() == owner).expect("a pod owns it");
    let producer = world.producer();
    let produce = |numbers: Range<u64>| {
        numbers.for_each(|number| producer.event(&event(ASSESSMENT, number)));
        producer.flush();
    };

    let mut page = open(home);
    produce(0..3);
    page.until("events show", "events().length === 3");
    home.signal(Signal::Term);
    produce(3..6);
    page.until("it is served by another pod", "ofType('connected').length === 2");
    page.until("it has the events that came meanwhile", "events().length === 6");
    produce(6..8);
    page.until("live events follow", "events().length === 8");

    assert_resumed(&mut page);
    let to = page.evaluate("sockets.at(-1).url");
    let is_there = |pod: &Pod| pod.url() != owner && to.as_str().is_some_and(|to| to.starts_with(&pod.url()));
    assert!(pods.iter().any(is_there), "{to}");
    assert_eq!(page.evaluate("sockets.length"), json!(2), "it went straight there");
}
