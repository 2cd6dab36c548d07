//! The edge to the identity provider of Kafka's brokers: gets a token as a client of its own (RFC 6749 section 4.4). Called
//! on a thread of librdkafka's, which may wait.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::Request;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::runtime;
use tokio::time::timeout;

use crate::clock::Now;
use crate::config::OidcConfig;
use crate::https::{self, HttpsFault};
use crate::limits::{BROKER_TOKEN_BYTES_MAX, BROKER_TOKEN_WAIT_MAX};

/// How long a token is used whose provider does not say how long it is valid.
const VALID_UNSAID: Duration = Duration::from_secs(300);

/// A token for brokers.
pub(super) struct BrokerToken {
    pub(super) text: String,
    /// In Unix ms.
    pub(super) valid_until_ms: i64,
}

/// Why there is no token. It names no secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoToken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Https(#[from] HttpsFault),
    #[error("no answer within {BROKER_TOKEN_WAIT_MAX:?}")]
    TimedOut,
    #[error("the answer has no access_token")]
    Missing,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    expires_in: Option<u64>,
}

/// Asks for a token and waits for it.
///
/// # Errors
/// Why there is none.
pub(super) fn token(config: &OidcConfig) -> Result<BrokerToken, NoToken> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = Now::read().unix;
    let text = runtime
        .block_on(async { timeout(BROKER_TOKEN_WAIT_MAX, ask(config)).await.map_err(|_| NoToken::TimedOut)? })?;
    let answer: Answer = serde_json::from_slice(&text).map_err(|_| NoToken::Missing)?;
    let valid_ms = answer.expires_in.unwrap_or(VALID_UNSAID.as_secs()).saturating_mul(1000);
    let valid_until_ms = i64::try_from(asked.0.saturating_add(valid_ms)).unwrap_or(i64::MAX);
    Ok(BrokerToken { text: answer.access_token, valid_until_ms })
}

async fn ask(config: &OidcConfig) -> Result<Vec<u8>, NoToken> {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let login = format!("{}:{}", encoded(&config.client_id), encoded(&config.client_secret));
    let request = Request::post("/")
        .header(AUTHORIZATION, format!("Basic {}", BASE64_STANDARD.encode(login)))
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(ACCEPT, "application/json");
    let scope = config.scope.as_ref().map(|scope| format!("&scope={}", encoded(scope))).unwrap_or_default();
    let body = format!("grant_type=client_credentials{scope}").into();
    let tls = config.trust.connector().map_err(io::Error::from)?;
    Ok(https::send(&tls, &config.token_url, request, body, BROKER_TOKEN_BYTES_MAX).await?)
}
