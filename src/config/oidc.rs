//! `sasl.oauthbearer.method=oidc` in `KAFKA_PROPERTIES_FILE`: from whom a pod gets tokens for brokers, as a client of its
//! own (client credentials). librdkafka's own way would bring libcurl, so ingest gets them, by librdkafka's properties.

use std::path::Path;

use hyper::Uri;

use super::reader::SettingsReader;
use super::settings as s;
use crate::tls::Trust;

/// The properties that librdkafka is not given.
pub(super) const PROPERTIES: [&str; 6] =
    ["sasl.oauthbearer.method", CLIENT_ID, CLIENT_SECRET, SCOPE, TOKEN_URL, CERTIFICATES];

const CLIENT_ID: &str = "sasl.oauthbearer.client.id";
const CLIENT_SECRET: &str = "sasl.oauthbearer.client.secret";
const SCOPE: &str = "sasl.oauthbearer.scope";
const TOKEN_URL: &str = "sasl.oauthbearer.token.endpoint.url";
const CERTIFICATES: &str = "https.ca.location";

/// From whom a pod gets tokens for brokers.
#[derive(Clone)]
pub(crate) struct OidcConfig {
    /// The provider's token endpoint.
    pub(crate) token_url: Uri,
    /// The pod's name there.
    pub(crate) client_id: Box<str>,
    /// Must not be logged.
    pub(crate) client_secret: Box<str>,
    /// What the token is for.
    pub(crate) scope: Option<Box<str>>,
    /// Whom to trust at the endpoint.
    pub(crate) trust: Trust,
}

/// Reads the properties, if they ask for it.
pub(super) fn oidc(reader: &mut SettingsReader<'_>, properties: &[(String, String)]) -> Option<OidcConfig> {
    let of = |name: &str| properties.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    let mut fault = |text: &str| reader.relation(&s::KAFKA_PROPERTIES_FILE, text);
    match of("sasl.oauthbearer.method")? {
        "oidc" => {}
        "default" => return None,
        _ => {
            fault("sasl.oauthbearer.method takes oidc or default");
            return None;
        }
    }
    let url = of(TOKEN_URL).and_then(|url| url.parse::<Uri>().ok());
    let token_url = url.filter(|url| url.scheme_str() == Some("https") && url.host().is_some());
    if token_url.is_none() {
        fault("sasl.oauthbearer.token.endpoint.url takes a URL that begins with https://");
    }
    for name in [CLIENT_ID, CLIENT_SECRET] {
        if of(name).is_none_or(str::is_empty) {
            fault(&format!("sasl.oauthbearer.method=oidc also takes {name}"));
        }
    }
    let trust = match of(CERTIFICATES).filter(|path| *path != "probe") {
        None => Some(Trust::System),
        Some(path) => match reader.read(Path::new(path)) {
            Ok(pem) => {
                let parsed = Trust::parse(&pem);
                if let Err(fault) = &parsed {
                    reader.relation(&s::KAFKA_PROPERTIES_FILE, &format!("{CERTIFICATES}: {path} {fault}"));
                }
                parsed.ok()
            }
            Err(error) => {
                reader.relation(&s::KAFKA_PROPERTIES_FILE, &format!("{CERTIFICATES}: {path} can't be read: {error}"));
                None
            }
        },
    };
    Some(OidcConfig {
        token_url: token_url?,
        client_id: of(CLIENT_ID)?.into(),
        client_secret: of(CLIENT_SECRET)?.into(),
        scope: of(SCOPE).map(Into::into),
        trust: trust?,
    })
}
