//! The demo as a stranger sees it: in a browser. Prices move, events arrive, and the page says when the gateway goes away.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use loadtest::http;
use loadtest::pods::binary;
use loadtest::process::{Process, Signal, TempDir, eventually, free_port, tool};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

/// How long the page may take to show what is due. The generator makes several ticks a second; a cold browser on a busy
/// machine is what takes its time.
const WITHIN: Duration = Duration::from_secs(60);

#[test]
fn prices_move_events_arrive_and_a_drain_shows() {
    let mut demo = Demo::start();
    eventually("its log begins with what starts", WITHIN, || {
        demo.process.log().contains("shardgate starts").then_some(())
    });
    let mut page = Page::open(&demo.url);
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
    assert!(demo.process.wait_exit(WITHIN).success(), "it drains and ends well");
    assert_eq!(page.errors, Vec::<String>::new(), "the page's script throws nothing");
}

/// A shell that is set up for a real gateway, or for something else, keeps no demo from starting.
#[test]
fn a_demo_heeds_only_what_it_uses() {
    let demo = Demo::start_with(&[
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
struct Demo {
    process: Process,
    url: String,
    _dir: TempDir,
}

impl Demo {
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

/// A page in headless Chromium, spoken to by the DevTools protocol: one WebSocket, of which a few methods are needed.
struct Page {
    socket: WebSocket<TcpStream>,
    calls: u64,
    loaded: bool,
    /// What the page's scripts threw and did not catch.
    errors: Vec<String>,
    _chromium: Process,
    _dir: TempDir,
}

impl Page {
    fn open(url: &str) -> Self {
        let dir = TempDir::new("chromium");
        let mut command = Command::new(tool("chromium", "chromium"));
        // Root has no sandbox, containers a small /dev/shm, and nothing of this is to look for the internet.
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"]);
        command.args(["--no-first-run", "--disable-background-networking", "--disable-component-update"]);
        command.args(["--disable-sync", "--disable-breakpad", "--remote-debugging-port=0", "about:blank"]);
        command.arg(format!("--user-data-dir={}", dir.path().join("profile").display()));
        command.env("XDG_CONFIG_HOME", dir.path()).env("XDG_CACHE_HOME", dir.path()).env("TMPDIR", dir.path());
        let chromium = Process::start("chromium", command, &dir.path().join("chromium.log"));

        let address = eventually("Chromium takes orders", WITHIN, || {
            let log = chromium.log();
            log.split_once("DevTools listening on ws://")?.1.split_once('/')?.0.parse().ok()
        });
        let target = eventually("Chromium opens the page", WITHIN, || {
            let targets = http::get(address, "/json/list", WITHIN).expect("Chromium lists its pages").json();
            let pages = targets.as_array()?.iter().find(|target| target["type"] == "page");
            pages?["webSocketDebuggerUrl"].as_str().map(str::to_owned)
        });
        let stream = TcpStream::connect(address).expect("Chromium listens");
        stream.set_read_timeout(Some(2 * WITHIN)).expect("a time limit above zero");
        let (socket, _) = tungstenite::client(target, stream).expect("Chromium speaks WebSocket");
        let mut page = Self { socket, calls: 0, loaded: false, errors: Vec::new(), _chromium: chromium, _dir: dir };
        page.call("Runtime.enable", &json!({}));
        page.call("Page.enable", &json!({}));
        page.call("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": HOOKS }));
        page.loaded = false;
        page.call("Page.navigate", &json!({ "url": url }));
        while !page.loaded {
            page.read();
        }
        page
    }

    /// Waits until a condition on the page holds, looking at each change of the document, and returns its value.
    #[track_caller]
    fn until(&mut self, what: &str, condition: &str) -> Value {
        let limit_ms = WITHIN.as_millis();
        let found = self.evaluate(&format!(
            "new Promise(resolve => {{
                const watch = {{ subtree: true, childList: true, characterData: true, attributes: true }};
                const look = () => {{ const found = {condition}; if (found) {{ observer.disconnect(); resolve(found); }} }};
                const observer = new MutationObserver(look);
                observer.observe(document, watch);
                setTimeout(() => resolve(null), {limit_ms});
                look();
            }})"
        ));
        assert!(!found.is_null(), "{what}: not within {WITHIN:?}; the page's errors: {:?}", self.errors);
        found
    }

    /// Runs an expression on the page and returns its value, awaited.
    #[track_caller]
    fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", &params);
        assert_eq!(answer["exceptionDetails"], Value::Null, "{expression}");
        answer["result"]["value"].clone()
    }

    fn call(&mut self, method: &str, params: &Value) -> Value {
        self.calls += 1;
        let call = json!({ "id": self.calls, "method": method, "params": params });
        self.socket.send(Message::text(call.to_string())).expect("Chromium listens");
        loop {
            let mut message = self.read();
            if message["id"] == self.calls {
                assert_eq!(message["error"], Value::Null, "{method}");
                return message["result"].take();
            }
        }
    }

    /// The next message: an answer, or an event, which is taken note of.
    fn read(&mut self) -> Value {
        let message = self.socket.read().expect("Chromium goes on").into_text().expect("in text");
        let message: Value = serde_json::from_str(&message).expect("in JSON");
        match message["method"].as_str() {
            Some("Page.loadEventFired") => self.loaded = true,
            Some("Runtime.exceptionThrown") => self.errors.push(message["params"]["exceptionDetails"].to_string()),
            _ => {}
        }
        message
    }
}

/// What the page promises to whoever looks at it from outside.
const HOOKS: &str = "
    window.state = () => document.querySelector('#state')?.dataset.state;
    window.prices = () => Object.fromEntries([...document.querySelectorAll('#prices [data-market]')]
        .map(market => [market.dataset.market, market.querySelector('.price').textContent]));
    window.events = () => [...document.querySelectorAll('#events li')].map(event => event.textContent);";
