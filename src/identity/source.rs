//! The edge to where key sets are: a file, or a provider's URL. Redirects are not followed: the operator names the place.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use hyper::body::Bytes;
use hyper::header::ACCEPT;
use hyper::{Request, Uri};
use openssl::ssl::SslConnector;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use crate::config::KeySetSource;
use crate::https::{self, HttpsFault};
use crate::limits::{KEY_SET_BYTES_MAX, KEY_SET_READ_MAX};
use crate::protocol::auth::{KeySet, KeySetFault, SkippedKey};
use crate::tls::Trust;

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
    Https(#[from] HttpsFault),
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
        let request = Request::get("/").header(ACCEPT, "application/jwk-set+json, application/json");
        Ok(https::send(&self.tls, &self.url, request, Bytes::new(), KEY_SET_BYTES_MAX).await?)
    }
}
