//! Builds the config of tokens: secrets, key sets, and what the claims must hold.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;

use super::reader::{SettingsReader, plain_text};
use super::settings::{self as s, Setting};
use crate::protocol::auth::{AuthConfig, ClaimPath, ClaimRules, KeySet};
use crate::tls::Trust;

/// A key of HS256 should be as long as its hash, or it is the weakest part (RFC 7518 section 3.2).
const SECRET_BYTES_GOOD: usize = 32;

/// Where key sets come from.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeySetsConfig {
    /// `JWT_JWKS`, each with the issuer whose tokens it confirms.
    pub(crate) sets: Vec<KeySetConfig>,
    /// `JWT_JWKS_REFRESH_MS`.
    pub(crate) refresh: Duration,
    /// Whom to trust at the URLs: `JWT_JWKS_CA_FILE`.
    pub(crate) trust: Trust,
}

/// One key set.
#[derive(Debug, Clone)]
pub(crate) struct KeySetConfig {
    /// Whose tokens it confirms; `None`: anyone's.
    pub(crate) issuer: Option<Box<str>>,
    /// Where it is read from.
    pub(crate) source: KeySetSource,
}

/// Where a key set is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeySetSource {
    /// A file.
    File(PathBuf),
    /// A URL that begins with `https://`.
    Url(Uri),
}

impl KeySetSource {
    fn parse(text: &str) -> Option<Self> {
        let text = plain_text(text)?;
        if !text.contains("://") {
            return Some(Self::File(PathBuf::from(&*text)));
        }
        let url: Uri = text.parse().ok()?;
        let is_good = url.scheme_str() == Some("https")
            && url.host().is_some_and(|host| !host.is_empty())
            && url.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        is_good.then_some(Self::Url(url))
    }
}

pub(super) fn auth(reader: &mut SettingsReader<'_>) -> AuthConfig {
    let secrets = [&s::JWT_SECRET, &s::JWT_SECRET_PREVIOUS].map(|setting| secret(reader, setting));
    AuthConfig {
        secrets: secrets.into_iter().flatten().collect(),
        claims: ClaimRules {
            issuers: texts(reader, &s::JWT_ISSUER).into(),
            audiences: texts(reader, &s::JWT_AUDIENCE).into(),
            user: reader.parsed(&s::JWT_USER_CLAIM, claim_paths).unwrap_or_default().into(),
            assessments: reader
                .parsed(&s::JWT_ASSESSMENTS_CLAIM, ClaimPath::parse)
                .unwrap_or_else(|| ClaimRules::default().assessments),
            require_assessments: reader.switch(&s::JWT_REQUIRE_ASSESSMENTS),
        },
    }
}

/// `JWT_SECRET` of those who can't do without.
pub(super) fn signing_secret(reader: &mut SettingsReader<'_>) -> Box<[u8]> {
    let secret = secret(reader, &s::JWT_SECRET);
    if secret.is_none() && reader.is_good(&s::JWT_SECRET) {
        reader.missing(&s::JWT_SECRET, "takes the key to sign with");
    }
    secret.unwrap_or_default()
}

fn secret(reader: &mut SettingsReader<'_>, setting: &Setting) -> Option<Box<[u8]>> {
    reader.parsed(setting, |text| (!text.is_empty()).then(|| text.as_bytes().into()))
}

pub(super) fn key_sets(reader: &mut SettingsReader<'_>, auth: &AuthConfig) -> KeySetsConfig {
    let sources = |text: &str| text.split(',').map(|source| KeySetSource::parse(source.trim())).collect();
    let sources: Vec<KeySetSource> = reader.parsed(&s::JWT_JWKS, sources).unwrap_or_default();
    if sources.is_empty() && auth.secrets.is_empty() && reader.is_good(&s::JWT_SECRET) && reader.is_good(&s::JWT_JWKS) {
        reader.missing(
            &s::JWT_SECRET,
            "needed unless JWT_JWKS is set: takes the key of HS256, preferably 32 bytes or more",
        );
    }
    let issuers = &auth.claims.issuers;
    if sources.len() > 1 && sources.len() != issuers.len() && reader.is_good(&s::JWT_ISSUER) {
        let (sets, issuers) = (sources.len(), issuers.len());
        let text = format!(
            "got {sets} key sets; several take as many entries of JWT_ISSUER, in their order; it has {issuers}"
        );
        reader.relation(&s::JWT_JWKS, &text);
    }
    let issuer_of = |index: usize| (sources.len() > 1).then(|| issuers.get(index).cloned()).flatten();
    let sets = sources.iter().enumerate();
    let sets = sets.map(|(index, source)| KeySetConfig { issuer: issuer_of(index), source: source.clone() }).collect();
    KeySetsConfig {
        sets,
        refresh: reader.millis(&s::JWT_JWKS_REFRESH_MS),
        trust: reader.certificates(&s::JWT_JWKS_CA_FILE),
    }
}

/// Reports files that hold no key set. What a URL gives is seen when the pod runs.
pub(super) fn check_files(reader: &mut SettingsReader<'_>, config: &KeySetsConfig) {
    for set in &config.sets {
        let KeySetSource::File(path) = &set.source else { continue };
        let fault = match reader.read(path) {
            Err(error) => format!("{}: can't be read: {error}", path.display()),
            Ok(text) => match KeySet::parse(text.as_bytes()) {
                Err(fault) => format!("{}: {fault}", path.display()),
                Ok((keys, _)) if keys.is_empty() => format!("{}: has no key that can verify a token", path.display()),
                Ok(_) => continue,
            },
        };
        reader.relation(&s::JWT_JWKS, &fault);
    }
}

pub(super) fn warnings(auth: &AuthConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    for secret in &auth.secrets {
        if secret.len() < SECRET_BYTES_GOOD {
            warnings.push(format!(
                "JWT_SECRET has {} bytes; HS256 is only as strong as its key: use {SECRET_BYTES_GOOD} or more",
                secret.len()
            ));
        }
        if secret.last().is_some_and(u8::is_ascii_whitespace) {
            warnings.push(
                "JWT_SECRET ends in white space, which is part of the key: is it a line end from a file?".to_owned(),
            );
        }
    }
    warnings
}

fn texts(reader: &mut SettingsReader<'_>, setting: &Setting) -> Vec<Box<str>> {
    let parse = |text: &str| text.split(',').map(|text| plain_text(text.trim())).collect();
    reader.parsed(setting, parse).unwrap_or_default()
}

fn claim_paths(text: &str) -> Option<Vec<ClaimPath>> {
    text.split(',').map(|path| ClaimPath::parse(path.trim())).collect()
}
