//! The edge to where key sets are: a file, or a provider's URL. Redirects are not followed: the operator names the place.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use openssl::ssl::SslConnector;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_openssl::SslStream;

use crate::config::KeySetSource;
use crate::limits::{KEY_SET_BYTES_MAX, KEY_SET_READ_MAX};
use crate::protocol::auth::{KeySet, KeySetFault, SkippedKey};
use crate::tls::{self, Trust};

/// Where one set is.
pub(super) enum Source {
    File(PathBuf),
    Url(Provider),
}

/// A provider, reached by HTTPS.
pub(super) struct Provider {
    url: Uri,
    tls: SslConnector,
}

/// Why a set can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFault {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Request(#[from] hyper::http::Error),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("the answer is {0}, not 200 OK")]
    Status(StatusCode),
    #[error("it has more than {KEY_SET_BYTES_MAX} bytes")]
    TooLong,
    #[error("no answer within {KEY_SET_READ_MAX:?}")]
    Timeout,
    #[error("{0}")]
    NoSet(#[from] KeySetFault),
    #[error("it has no key that can verify a token")]
    NoKey,
}

/// A set: its text, its keys, and those that are not used.
pub(super) type ReadSet = (Vec<u8>, KeySet, Vec<SkippedKey>);

impl Source {
    /// # Errors
    /// If the certificates to trust can't be read.
    pub(super) fn new(source: &KeySetSource, trust: &Trust) -> io::Result<Self> {
        Ok(match source {
            KeySetSource::File(path) => Self::File(path.clone()),
            KeySetSource::Url(url) => Self::Url(Provider { url: url.clone(), tls: trust.connector()? }),
        })
    }

    /// Reads the set, within [`KEY_SET_READ_MAX`].
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn read(&self) -> Result<ReadSet, ReadFault> {
        let read = async {
            match self {
                Self::File(path) => read_file(path).await,
                Self::Url(provider) => provider.get().await,
            }
        };
        let text = timeout(KEY_SET_READ_MAX, read).await.map_err(|_| ReadFault::Timeout)??;
        let (keys, skipped) = KeySet::parse(&text)?;
        // Providers that lose their keys do so by mistake, and the last set serves better.
        if keys.is_empty() { Err(ReadFault::NoKey) } else { Ok((text, keys, skipped)) }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(provider) => provider.url.fmt(f),
        }
    }
}

async fn read_file(path: &Path) -> Result<Vec<u8>, ReadFault> {
    let mut text = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(KEY_SET_BYTES_MAX as u64 + 1).read_to_end(&mut text).await?;
    if text.len() > KEY_SET_BYTES_MAX { Err(ReadFault::TooLong) } else { Ok(text) }
}

impl Provider {
    async fn get(&self) -> Result<Vec<u8>, ReadFault> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.connect().await?)).await?;
        let exchange = async {
            let path = self.url.path_and_query().map_or("/", |path| path.as_str());
            let request = Request::get(path)
                .header(HOST, self.url.authority().map_or("", |authority| authority.as_str()))
                .header(ACCEPT, "application/jwk-set+json, application/json")
                .header(USER_AGENT, concat!("shardgate/", env!("CARGO_PKG_VERSION")))
                .body(Empty::<Bytes>::new())?;
            let answer = sender.send_request(request).await?;
            if answer.status() != StatusCode::OK {
                return Err(ReadFault::Status(answer.status()));
            }
            let body = Limited::new(answer.into_body(), KEY_SET_BYTES_MAX).collect().await;
            body.map(|body| body.to_bytes().to_vec()).map_err(|_| ReadFault::TooLong)
        };
        let driven = async {
            drop(connection.await);
            std::future::pending().await
        };
        tokio::select! {
            text = exchange => text,
            none = driven => none,
        }
    }

    async fn connect(&self) -> Result<SslStream<TcpStream>, ReadFault> {
        let host = self.url.host().unwrap_or_default().trim_matches(['[', ']']);
        let socket = TcpStream::connect((host, self.url.port_u16().unwrap_or(443))).await?;
        Ok(tls::connect(&self.tls, host, socket).await?)
    }
}
