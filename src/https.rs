//! One request by HTTPS, to an identity provider. Redirects are not followed: the operator names the place.

use std::io;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{HOST, USER_AGENT};
use hyper::http::request::Builder;
use hyper::{StatusCode, Uri};
use hyper_util::rt::TokioIo;
use openssl::ssl::SslConnector;
use tokio::net::TcpStream;

use crate::tls;

/// Why there is no answer, or none that is good.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpsFault {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] hyper::http::Error),
    #[error("the answer is {0}, not 200 OK")]
    Status(StatusCode),
    #[error("the answer has more than {0} bytes")]
    TooLong(usize),
}

/// Sends a request to a URL, and returns the body of the answer, of at most `bytes_max`.
///
/// # Errors
/// If there is no answer, or it is not 200 OK.
pub(crate) async fn send(
    tls: &SslConnector,
    url: &Uri,
    request: Builder,
    body: Bytes,
    bytes_max: usize,
) -> Result<Vec<u8>, HttpsFault> {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let socket = TcpStream::connect((host, url.port_u16().unwrap_or(443))).await?;
    let stream = tls::connect(tls, host, socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let request = request
            .uri(url.path_and_query().map_or("/", |path| path.as_str()))
            .header(HOST, url.authority().map_or("", |authority| authority.as_str()))
            .header(USER_AGENT, concat!("shardgate/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))?;
        let answer = sender.send_request(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(HttpsFault::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), bytes_max).collect().await;
        body.map(|body| body.to_bytes().to_vec()).map_err(|_| HttpsFault::TooLong(bytes_max))
    };
    let driven = async {
        drop(connection.await);
        std::future::pending().await
    };
    tokio::select! {
        answer = exchange => answer,
        none = driven => none,
    }
}
