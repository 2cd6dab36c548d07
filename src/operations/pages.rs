//! The answer for each path and method. No socket.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::console;
use super::readiness::{Readiness, Threads};
use super::text_format::{self, TEXT_0_0_4};
use crate::clock::Now;
use crate::ids::NodeId;
use crate::protocol::pages::Page;

/// Content type of `/metrics`, unless the older format is requested.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Content type of JSON.
pub(super) const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// An answer with its whole body.
pub(crate) type PageResponse = Response<Full<Bytes>>;

/// The parts that the pages report.
#[derive(Debug)]
pub(crate) struct Pages {
    /// This pod's name.
    node: NodeId,
    /// For `/ready`.
    readiness: watch::Receiver<Readiness>,
    /// For `/health`.
    threads: Threads,
    /// For `/metrics`.
    registry: Registry,
    /// The console page's policy.
    console_policy: HeaderValue,
}

impl Pages {
    /// Makes the pages of a pod.
    #[must_use]
    pub(crate) fn new(
        node: NodeId,
        readiness: watch::Receiver<Readiness>,
        threads: Threads,
        registry: Registry,
    ) -> Self {
        let policy = HeaderValue::from_str(&console::policy());
        let console_policy = policy.expect("a policy is made of keywords and base64");
        Self { node, readiness, threads, registry, console_policy }
    }

    /// Answers a request. A HEAD is answered like a GET; the HTTP library omits the body.
    #[must_use]
    pub(crate) fn answer<B>(&self, request: &Request<B>, now: Now) -> PageResponse {
        let method = request.method();
        let Some(page) = Page::of(request.uri().path()) else {
            let paths = Page::ALL.map(Page::path).join(", ");
            return plain(StatusCode::NOT_FOUND, format!("no such page; the pages are {paths}\n"));
        };
        if method != Method::GET && method != Method::HEAD {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match page {
            Page::Health => {
                let (healthy, body) = self.threads.health(now);
                whole(status(healthy), JSON, body)
            }
            Page::Ready => {
                let readiness = *self.readiness.borrow();
                let missing = self.threads.ingest.missing_names.load();
                whole(status(readiness.is_ready()), JSON, readiness.json(&self.node, &missing, now))
            }
            Page::Accepting => {
                let readiness = *self.readiness.borrow();
                whole(status(readiness.is_accepting()), JSON, readiness.accepting_json(&self.node, now))
            }
            Page::Metrics => {
                let accept = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
                self.metrics(text_format::is_preferred(&accept.collect::<Vec<_>>()))
            }
            Page::Console => self.console(),
        }
    }

    fn metrics(&self, as_text: bool) -> PageResponse {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) if as_text => whole(StatusCode::OK, TEXT_0_0_4, text_format::from_openmetrics(&text)),
            Ok(()) => whole(StatusCode::OK, OPENMETRICS, text),
            // Writing to a string fails only if a metric reports an error.
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "a metric could not be written\n"),
        }
    }

    fn console(&self) -> PageResponse {
        let mut answer = whole(StatusCode::OK, HTML, console::PAGE);
        answer.headers_mut().insert(CONTENT_SECURITY_POLICY, self.console_policy.clone());
        answer
    }
}

fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// An answer with a short text.
#[must_use]
pub(crate) fn plain(status: StatusCode, text: impl Into<Bytes>) -> PageResponse {
    whole(status, TEXT, text)
}

/// An answer with a body that no cache keeps.
#[must_use]
pub(super) fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> PageResponse {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::metrics::gauge::Gauge;

    use super::*;
    use crate::ids::SlotNumber;
    use crate::limits::LOOP_STALL_MAX;

    fn pages(readiness: Readiness) -> (Pages, Gauge) {
        let mut registry = Registry::default();
        let connections = Gauge::default();
        registry.register("websocket_connections_total", "Open connections", connections.clone());
        let threads = Threads { ingest: Arc::default(), shards: vec![Arc::default()] };
        (Pages::new(NodeId("a".into()), watch::channel(readiness).1, threads, registry), connections)
    }

    fn request(method: Method, path: &str) -> Request<()> {
        Request::builder().method(method).uri(path).body(()).unwrap()
    }

    fn get(pages: &Pages, path: &str) -> (StatusCode, String) {
        let answer = pages.answer(&request(Method::GET, path), Now::read());
        (answer.status(), answer.headers()[CONTENT_TYPE].to_str().unwrap().to_owned())
    }

    #[test]
    fn each_page_has_its_type() {
        let (pages, _) = pages(Readiness::default());
        assert_eq!(get(&pages, "/"), (StatusCode::OK, HTML.to_owned()));
        assert_eq!(get(&pages, "/health"), (StatusCode::OK, JSON.to_owned()));
        assert_eq!(get(&pages, "/ready"), (StatusCode::SERVICE_UNAVAILABLE, JSON.to_owned()));
        assert_eq!(get(&pages, "/accepting"), (StatusCode::SERVICE_UNAVAILABLE, JSON.to_owned()));
        assert_eq!(get(&pages, "/metrics"), (StatusCode::OK, OPENMETRICS.to_owned()));
        assert_eq!(get(&pages, "/health/"), (StatusCode::NOT_FOUND, TEXT.to_owned()));
        let ready = Readiness {
            redis_up: true,
            missing: 0,
            kafka_up: true,
            history_complete: true,
            can_verify: true,
            own_slot: Some(SlotNumber(0)),
            had_slot: true,
            draining: false,
        };
        assert_eq!(get(&super::tests::pages(ready).0, "/ready").0, StatusCode::OK);
        let without_redis = super::tests::pages(Readiness { redis_up: false, ..ready }).0;
        assert_eq!(get(&without_redis, "/ready").0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get(&without_redis, "/accepting").0, StatusCode::OK);
    }

    #[test]
    fn a_scraper_that_accepts_only_the_older_format_gets_it() {
        let (pages, _) = pages(Readiness::default());
        let accept = |types: &str| {
            let mut request = request(Method::GET, "/metrics");
            request.headers_mut().insert(ACCEPT, HeaderValue::from_str(types).unwrap());
            pages.answer(&request, Now::read()).headers()[CONTENT_TYPE].to_str().unwrap().to_owned()
        };
        assert_eq!(accept("text/plain;version=0.0.4"), TEXT_0_0_4);
        assert_eq!(accept("application/openmetrics-text, text/plain"), OPENMETRICS);
    }

    #[test]
    fn a_stalled_thread_fails_health() {
        let (pages, _) = pages(Readiness::default());
        let mut now = Now::read();
        now.instant += LOOP_STALL_MAX * 2;
        assert_eq!(pages.answer(&request(Method::GET, "/health"), now).status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn other_methods_get_the_list_of_allowed_ones() {
        let (pages, _) = pages(Readiness::default());
        for path in Page::ALL.map(Page::path) {
            let answer = pages.answer(&request(Method::POST, path), Now::read());
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(answer.headers()[ALLOW], "GET, HEAD");
            assert_ne!(
                pages.answer(&request(Method::HEAD, path), Now::read()).status(),
                StatusCode::METHOD_NOT_ALLOWED
            );
        }
        assert_eq!(pages.answer(&request(Method::POST, "/ws"), Now::read()).status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn the_console_page_comes_with_its_policy() {
        let (pages, _) = pages(Readiness::default());
        let answer = pages.answer(&request(Method::GET, "/"), Now::read());
        assert_eq!(answer.headers()[CONTENT_SECURITY_POLICY], console::policy().as_str());
    }

    #[test]
    fn a_gauge_named_like_a_counter_is_written_as_a_gauge() {
        let (pages, connections) = pages(Readiness::default());
        connections.set(3);
        let mut text = String::new();
        encode(&mut text, &pages.registry).unwrap();
        assert_eq!(
            text,
            "# HELP websocket_connections_total Open connections.\n\
             # TYPE websocket_connections_total gauge\n\
             websocket_connections_total 3\n\
             # EOF\n"
        );
    }
}
