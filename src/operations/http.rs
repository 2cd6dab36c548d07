//! The edge to operators: sockets passed on by shards, and those of `ADMIN_PORT`. One request per connection. A probe
//! is answered however many connections others hold: a request head has little time, and at the limit the oldest
//! connection is closed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Cursor;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::admin::Admin;
use super::pages::{PageResponse, Pages};
use crate::clock::Now;
use crate::exchange::HttpRequest;
use crate::limits::{ACCEPT_LOG_EVERY, HTTP_ANSWER_MAX, HTTP_CONNECTIONS_MAX, HTTP_HEAD_MAX, REQUEST_HEAD_BYTES_MAX};
use crate::log_throttle::LogThrottle;
use crate::protocol::pages::{AdminPage, Page};

/// Pause after a failed accept, most likely for lack of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Time limits of a connection.
#[derive(Debug, Clone, Copy)]
struct HttpLimits {
    /// Until the request's head has arrived.
    head: Duration,
    /// From then until the answer is read.
    answer: Duration,
}

const LIMITS: HttpLimits = HttpLimits { head: HTTP_HEAD_MAX, answer: HTTP_ANSWER_MAX };

/// What a port serves.
#[derive(Debug)]
pub(crate) struct Site {
    pages: Arc<Pages>,
    /// The pages that need a token, on `ADMIN_PORT` with `ADMIN_TOKEN`.
    admin: Option<Admin>,
    /// Only one scrape at a time, and other requests go first: no other page takes long, and a flood of scrapes must
    /// not delay a probe.
    scrape: tokio::sync::Mutex<()>,
}

impl Site {
    /// These pages, and those that need a token.
    pub(crate) fn new(pages: &Arc<Pages>, admin: Option<Admin>) -> Arc<Self> {
        Arc::new(Self { pages: Arc::clone(pages), admin, scrape: tokio::sync::Mutex::default() })
    }

    async fn answer(&self, request: Request<Incoming>, client: IpAddr) -> PageResponse {
        let path = request.uri().path();
        if let (Some(admin), Some(page)) = (&self.admin, AdminPage::of(path)) {
            return admin.answer(page, request, client, Now::read()).await;
        }
        let is_scrape = Page::of(path) == Some(Page::Metrics);
        let _one_at_a_time = if is_scrape { Some(self.scrape.lock().await) } else { None };
        self.pages.answer(&request, Now::read())
    }
}

/// Serves requests that shards pass on, until the last shard has ended.
pub(crate) async fn serve_passed_on(site: Arc<Site>, mut requests: mpsc::Receiver<HttpRequest>) {
    let connections = Arc::new(Connections::default());
    while let Some(HttpRequest { socket, read }) = requests.recv().await {
        // Sockets from shards are non-blocking.
        match TcpStream::from_std(socket.into()) {
            Ok(socket) => connections.serve(&site, socket, read),
            Err(error) => debug!(%error, "unusable operator socket"),
        }
    }
}

/// Serves `ADMIN_PORT` until the process ends.
pub(crate) async fn serve_admin(site: Arc<Site>, listener: TcpListener) {
    let connections = Arc::new(Connections::default());
    let failures = LogThrottle::new(ACCEPT_LOG_EVERY);
    loop {
        match listener.accept().await {
            Ok((socket, _)) => connections.serve(&site, socket, Vec::new()),
            Err(error) => {
                if let Some(held_back) = failures.admit(Instant::now()) {
                    warn!(%error, suppressed = held_back, "ADMIN_PORT cannot accept connections; retrying");
                }
                // Closing one of our own connections frees a descriptor.
                connections.lock().close_one();
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

// ---- connections ----------------------------------------------------------------------------------------------------

/// The open connections.
#[derive(Debug, Default)]
struct Connections {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_age: BTreeMap<u64, ConnectionGuard>,
}

#[derive(Debug)]
struct ConnectionGuard {
    task: AbortHandle,
    /// Whether its request has arrived.
    asked: Arc<AtomicBool>,
}

impl Connections {
    /// Serves one connection in its own task. At the limit another is closed: the oldest whose request has not arrived,
    /// since a probe's arrives within milliseconds; or else the oldest, whose client does not read the answer.
    fn serve(self: &Arc<Self>, site: &Arc<Site>, socket: TcpStream, read: Vec<u8>) {
        let mut open = self.lock();
        while open.by_age.len() >= HTTP_CONNECTIONS_MAX && open.close_one() {}
        let number = open.next;
        open.next += 1;
        let (connections, site) = (Arc::clone(self), Arc::clone(site));
        let asked = Arc::new(AtomicBool::new(false));
        let has_asked = Arc::clone(&asked);
        // The task starts when this thread runs it, so after its entry is made.
        let task = tokio::spawn(async move {
            exchange(&site, socket, read, LIMITS, &has_asked).await;
            connections.lock().by_age.remove(&number);
        });
        open.by_age.insert(number, ConnectionGuard { task: task.abort_handle(), asked });
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Closes one connection; returns whether there was one.
    fn close_one(&mut self) -> bool {
        let idle = self.by_age.iter().find(|(_, held)| !held.asked.load(Ordering::Relaxed));
        let Some(number) = idle.or(self.by_age.first_key_value()).map(|(number, _)| *number) else { return false };
        self.by_age.remove(&number).inspect(|held| held.task.abort()).is_some()
    }
}

/// One request and its answer. `asked` is set once the request has arrived.
async fn exchange(site: &Site, socket: TcpStream, read: Vec<u8>, limits: HttpLimits, asked: &AtomicBool) {
    let client = socket.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip().to_canonical());
    let (reader, writer) = socket.into_split();
    // The bytes that the shard has read come first.
    let io = TokioIo::new(tokio::io::join(Cursor::new(read).chain(reader), writer));
    let service = service_fn(|request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        async move { Ok::<_, Infallible>(site.answer(request, client).await) }
    });
    let connection =
        http1::Builder::new().keep_alive(false).max_buf_size(REQUEST_HEAD_BYTES_MAX).serve_connection(io, service);
    tokio::pin!(connection);
    let mut done = timeout(limits.head, &mut connection).await;
    if done.is_err() && asked.load(Ordering::Relaxed) {
        done = timeout(limits.answer, &mut connection).await;
    }
    match done {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "operator request failed"),
        Err(_) => debug!("operator request timed out"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::fd::OwnedFd;

    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::registry::Registry;
    use tokio::io::AsyncWriteExt;
    use tokio::sync::watch;

    use super::*;
    use crate::ids::NodeId;
    use crate::operations::readiness::{Readiness, Threads};

    fn site(registry: Registry) -> Arc<Site> {
        let threads = Threads { ingest: Arc::default(), shards: vec![] };
        let readiness = watch::channel(Readiness::default()).1;
        Site::new(&Arc::new(Pages::new(NodeId("a".into()), readiness, threads, registry)), None)
    }

    /// Both ends of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    async fn answer_to(read: &str, sent_after: &str) -> String {
        let (mut client, socket) = pair().await;
        let (door, requests) = mpsc::channel(1);
        let socket = OwnedFd::from(socket.into_std().unwrap());
        door.send(HttpRequest { socket, read: read.as_bytes().to_vec() }).await.unwrap();
        drop(door);
        client.write_all(sent_after.as_bytes()).await.unwrap();
        serve_passed_on(site(Registry::default()), requests).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn bytes_read_by_a_shard_are_part_of_the_request() {
        for (read, rest) in [
            ("GET /ready HTTP/1.1\r\nHost: a\r\n\r\n", ""),
            ("GET /ready HTTP/1.1\r\nHo", "st: a\r\n\r\n"),
            ("", "GET /ready?x=1 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ] {
            let answer = answer_to(read, rest).await;
            assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
            assert!(answer.contains("connection: close\r\n"), "{answer}");
            assert!(answer.contains(r#"{"status":"not_ready","#), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_head_request_gets_the_head_of_the_answer() {
        let answer = answer_to("HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"));
        assert!(answer.contains("content-length: 6\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn bytes_that_are_no_http_are_refused() {
        let answer = answer_to("SSH-2.0-OpenSSH_9.2\r\n\r\n", "").await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    }

    /// Serves a port like `ADMIN_PORT`, until the test ends.
    async fn admin() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve_admin(site(Registry::default()), listener));
        address
    }

    async fn answer_of_health(address: SocketAddr) -> String {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn over_the_limit_the_oldest_connection_is_closed_and_a_probe_is_answered() {
        let address = admin().await;
        let mut idle = Vec::new();
        for _ in 0..HTTP_CONNECTIONS_MAX + 10 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let answer = answer_of_health(address).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        // The oldest are closed, the newest are not.
        assert!(matches!(idle[0].read(&mut [0; 1]).await, Ok(0) | Err(_)));
        let mut last = idle.pop().unwrap();
        last.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        last.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn a_slow_head_is_closed_early_and_an_unread_answer_a_little_later() {
        let limits = HttpLimits { head: Duration::from_millis(300), answer: Duration::from_millis(500) };
        let (mut trickles, socket) = pair().await;
        let start = Instant::now();
        let served = tokio::spawn(async move {
            exchange(&site(Registry::default()), socket, Vec::new(), limits, &AtomicBool::new(false)).await;
        });
        while !served.is_finished() {
            let _ = trickles.write_all(b"G").await;
            sleep(Duration::from_millis(10)).await;
        }
        assert!(start.elapsed() >= limits.head);

        // A text that is larger than a socket accepts.
        let mut registry = Registry::default();
        let help = "x".repeat(16 << 20);
        registry.register("shardgate_test", help, Gauge::<i64>::default());
        let (mut unread, socket) = pair().await;
        unread.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let start = Instant::now();
        exchange(&site(registry), socket, Vec::new(), limits, &AtomicBool::new(false)).await;
        assert!(start.elapsed() >= limits.head + limits.answer);
        assert_eq!(unread.read(&mut [0; 8]).await.unwrap(), 8, "the bytes sent before have arrived");
    }
}
