//! A page in a real browser, for tests of what runs in one.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::http;
use crate::process::{Process, TempDir, eventually, tool};

/// Time limit for a page. A cold browser on a busy machine needs most of it.
pub const WITHIN: Duration = Duration::from_secs(60);

/// A page in headless Chromium, controlled by the DevTools protocol over one WebSocket.
pub struct Page {
    socket: WebSocket<TcpStream>,
    calls: u64,
    loaded: bool,
    /// Uncaught exceptions of the page's scripts.
    errors: Vec<String>,
    _chromium: Process,
    _dir: TempDir,
}

impl Page {
    /// Starts Chromium and opens a page. `script` runs on the page before its own scripts.
    ///
    /// # Panics
    /// If Chromium is missing or fails.
    #[must_use]
    pub fn open(url: &str, script: &str) -> Self {
        let dir = TempDir::new("chromium");
        let mut command = Command::new(tool("chromium", "chromium"));
        // Root has no sandbox, containers have a small /dev/shm, and Chromium must not use the network.
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"]);
        command.args(["--no-first-run", "--disable-background-networking", "--disable-component-update"]);
        command.args(["--disable-sync", "--disable-breakpad", "--remote-debugging-port=0", "about:blank"]);
        command.arg(format!("--user-data-dir={}", dir.path().join("profile").display()));
        command.env("XDG_CONFIG_HOME", dir.path()).env("XDG_CACHE_HOME", dir.path()).env("TMPDIR", dir.path());
        let chromium = Process::start("chromium", command, &dir.path().join("chromium.log"));

        let address = eventually("Chromium listens", WITHIN, || {
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
        page.call("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": script }));
        page.loaded = false;
        page.call("Page.navigate", &json!({ "url": url }));
        while !page.loaded {
            page.read();
        }
        page
    }

    /// Waits until an expression is true on the page, evaluating it at each change of the document, and returns its
    /// value.
    ///
    /// # Panics
    /// If it is not true within [`WITHIN`].
    #[track_caller]
    pub fn until(&mut self, what: &str, condition: &str) -> Value {
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
    ///
    /// # Panics
    /// If it throws.
    #[track_caller]
    pub fn evaluate(&mut self, expression: &str) -> Value {
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

    /// Uncaught exceptions of the page's scripts.
    #[must_use]
    pub fn errors(&self) -> &[String] {
        &self.errors
    }

    /// Reads the next message. Records events.
    fn read(&mut self) -> Value {
        let message = self.socket.read().expect("Chromium sends messages").into_text().expect("in text");
        let message: Value = serde_json::from_str(&message).expect("in JSON");
        match message["method"].as_str() {
            Some("Page.loadEventFired") => self.loaded = true,
            Some("Runtime.exceptionThrown") => self.errors.push(message["params"]["exceptionDetails"].to_string()),
            _ => {}
        }
        message
    }
}
