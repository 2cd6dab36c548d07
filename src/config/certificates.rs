//! Selects the trusted certificates for brokers if no setting does: the system's. The bundled OpenSSL looks in a folder
//! that no distribution has; librdkafka finds the system's certificates if it is told to look.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// Properties that say whose certificates are trusted.
const ANSWERS: [&str; 2] = ["ssl.ca.location", "ssl.ca.pem"];

/// Variables that OpenSSL itself heeds, unless librdkafka is told where to look.
const OPENSSL_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// The property that makes librdkafka look for the system's certificates, where brokers are reached by TLS and neither
/// the properties nor the environment say whose are trusted.
pub(super) fn of_the_system(
    properties: &[(String, String)],
    environment: &BTreeMap<OsString, OsString>,
) -> Option<(String, String)> {
    let is_tls = |(name, value): &(String, String)| {
        name == "security.protocol" && ["SSL", "SASL_SSL"].iter().any(|tls| tls.eq_ignore_ascii_case(value))
    };
    let is_set = |name: &&str| environment.get(&OsString::from(name)).is_some_and(|value| !value.is_empty());
    let answered = properties.iter().any(|(name, _)| ANSWERS.contains(&name.as_str()));
    let wanted = properties.iter().any(is_tls) && !answered && !OPENSSL_VARIABLES.iter().any(is_set);
    wanted.then(|| ("ssl.ca.location".to_owned(), "probe".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_certificates_are_looked_for_where_nobody_says_whose_are_trusted() {
        let probes = |properties: &[(&str, &str)], environment: &[(&str, &str)]| {
            let properties: Vec<_> =
                properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            of_the_system(&properties, &environment.iter().map(|(name, value)| (name.into(), value.into())).collect())
        };
        let probe = Some(("ssl.ca.location".to_owned(), "probe".to_owned()));
        for protocol in ["SSL", "SASL_SSL", "sasl_ssl"] {
            assert_eq!(probes(&[("security.protocol", protocol)], &[("SSL_CERT_FILE", "")]), probe);
        }
        let tls = ("security.protocol", "SSL");
        assert_eq!(probes(&[tls, ("ssl.ca.location", "/ca.pem")], &[]), None);
        assert_eq!(probes(&[tls, ("ssl.ca.pem", "-----BEGIN")], &[]), None);
        assert_eq!(probes(&[tls], &[("SSL_CERT_FILE", "/ca.pem")]), None);
        assert_eq!(probes(&[tls], &[("SSL_CERT_DIR", "/certs")]), None);
        assert_eq!(probes(&[("security.protocol", "SASL_PLAINTEXT")], &[]), None);
        assert_eq!(probes(&[], &[]), None);
    }
}
