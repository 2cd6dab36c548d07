//! The edge to the other pods: one small request to a peer's operators' port ([`super::peers`] says when). Whatever is
//! answered, the peer is there.

use std::future::pending;
use std::sync::Arc;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::limits::PEER_LOOK_MAX;

/// Whether the pod at this `PEER_URL` answers in time.
pub(super) async fn is_there(url: &Arc<str>) -> bool {
    let Ok(url) = url.parse::<Uri>() else { return false };
    timeout(PEER_LOOK_MAX, ask(&url)).await.is_ok_and(|answer| answer.is_some())
}

async fn ask(url: &Uri) -> Option<()> {
    let (host, port) = (url.host()?.trim_matches(['[', ']']), url.port_u16().unwrap_or(80));
    let socket = TcpStream::connect((host, port)).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.ok()?;
    let request = Request::get("/health").header("host", url.authority()?.as_str()).body(Empty::<Bytes>::new()).ok()?;
    // It may end before the answer is taken, and then there is one, or an error.
    let driven = async {
        let _ = connection.await;
        pending().await
    };
    tokio::select! {
        answer = sender.send_request(request) => answer.ok().map(drop),
        none = driven => none,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn listener() -> (TcpListener, Arc<str>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).into();
        (listener, url)
    }

    /// Answers each connection with these bytes, once its request has come.
    async fn answers(listener: TcpListener, answer: &'static [u8]) {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            assert!(socket.read(&mut [0; 1024]).await.unwrap() > 0);
            socket.write_all(answer).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_pod_that_answers_anything_is_there() {
        for (answer, expected) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], true),
            (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", true),
            (b"SSH-2.0-x\r\n", false),
            (b"", false),
        ] {
            let (listener, url) = listener().await;
            let server = tokio::spawn(answers(listener, answer));
            assert_eq!(is_there(&url).await, expected, "{}", String::from_utf8_lossy(answer));
            server.abort();
        }
    }

    #[tokio::test]
    async fn a_pod_that_refuses_or_says_nothing_is_not_there() {
        let (silent, url) = listener().await;
        let began = Instant::now();
        assert!(!is_there(&url).await);
        assert!(began.elapsed() >= PEER_LOOK_MAX && began.elapsed() < PEER_LOOK_MAX + Duration::from_secs(5));
        drop(silent);
        assert!(!is_there(&url).await, "it refuses");
        for url in ["", "http://", "ws://[", "/health"] {
            assert!(!is_there(&url.into()).await, "{url}");
        }
    }
}
