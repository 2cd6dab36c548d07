//! The edge to operators: sockets that a shard accepted and read the head of, and those of `ADMIN_PORT`. One request a
//! connection, each with a time limit, and few at a time: probes and scrapes need no more.

use std::convert::Infallible;
use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::pages::{Answer, Pages, plain};
use crate::clock::Now;
use crate::exchange::HttpRequest;
use crate::limits::{ACCEPT_LOG_EVERY, HTTP_CONNECTIONS_MAX, HTTP_EXCHANGE_MAX, REQUEST_HEAD_BYTES_MAX};
use crate::log_throttle::LogThrottle;

/// The pause after an accept that failed: out of descriptors, most likely, which passes.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves the requests that shards pass on, until the last shard's door is gone.
pub async fn serve_passed_on(pages: Arc<Pages>, mut requests: mpsc::Receiver<HttpRequest>) {
    let slots = Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX));
    while let Some(HttpRequest { socket, read }) = requests.recv().await {
        // A shard's sockets don't block.
        match TcpStream::from_std(socket.into()) {
            Ok(socket) => spawn_exchange(&pages, &slots, socket, read),
            Err(error) => debug!(%error, "an operator's socket is no good"),
        }
    }
}

/// Serves `ADMIN_PORT`, for ever.
pub async fn serve_admin(pages: Arc<Pages>, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX));
    let failures = LogThrottle::new(ACCEPT_LOG_EVERY);
    loop {
        match listener.accept().await {
            Ok((socket, _)) => spawn_exchange(&pages, &slots, socket, Vec::new()),
            Err(error) => {
                if let Some(held_back) = failures.admit(Instant::now()) {
                    warn!(%error, held_back, "ADMIN_PORT can't accept connections; trying again until it works");
                }
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

fn spawn_exchange(pages: &Arc<Pages>, slots: &Arc<Semaphore>, socket: TcpStream, read: Vec<u8>) {
    let pages = Arc::clone(pages);
    let permit = Arc::clone(slots).try_acquire_owned();
    // Refused ones are answered as well, by a task that is as short-lived as the answer: nobody's slowness is waited for.
    let limit = if permit.is_ok() { HTTP_EXCHANGE_MAX } else { ACCEPT_RETRY };
    tokio::spawn(async move {
        let pages = permit.is_ok().then_some(pages);
        if timeout(limit, exchange(pages, socket, read)).await.is_err() {
            debug!("an operator's request took too long");
        }
        drop(permit);
    });
}

/// One request and its answer; 503 where there are no pages to spare.
async fn exchange(pages: Option<Arc<Pages>>, socket: TcpStream, read: Vec<u8>) {
    let (reader, writer) = socket.into_split();
    // What the shard has read comes first.
    let io = TokioIo::new(tokio::io::join(Cursor::new(read).chain(reader), writer));
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(pages.as_deref(), &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection =
        http1::Builder::new().keep_alive(false).max_buf_size(REQUEST_HEAD_BYTES_MAX).serve_connection(io, service);
    if let Err(error) = connection.await {
        debug!(%error, "an operator's request came to nothing");
    }
}

fn answer(pages: Option<&Pages>, request: &Request<Incoming>) -> Answer {
    match pages {
        Some(pages) => pages.answer(request.method(), request.uri().path(), Now::read()),
        None => plain(StatusCode::SERVICE_UNAVAILABLE, "too many requests at a time\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use prometheus_client::registry::Registry;
    use tokio::io::AsyncWriteExt;
    use tokio::sync::watch;

    use super::*;
    use crate::ids::NodeId;
    use crate::operations::readiness::{Readiness, Threads};

    fn pages() -> Arc<Pages> {
        let threads = Threads { ingest: Arc::default(), shards: vec![] };
        let readiness = watch::channel(Readiness::default()).1;
        Arc::new(Pages::new(NodeId("a".into()), readiness, threads, Registry::default()))
    }

    /// A connection of which both ends are ours.
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
        serve_passed_on(pages(), requests).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn what_a_shard_has_read_counts_as_read() {
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
    async fn what_is_no_http_is_refused() {
        let answer = answer_to("SSH-2.0-OpenSSH_9.2\r\n\r\n", "").await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn over_the_number_at_a_time_the_answer_is_503_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve_admin(pages(), listener));
        let mut idle = Vec::new();
        for _ in 0..HTTP_CONNECTIONS_MAX {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("503 Service Unavailable") && answer.contains("too many"), "{answer}");

        // As soon as one of them goes, there is room again.
        drop(idle);
        loop {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            if answer.starts_with("HTTP/1.1 200 OK\r\n") {
                break;
            }
        }
        server.abort();
    }
}
