//! Selects the system's certificates for brokers if no setting does. The bundled OpenSSL looks in a folder that no
//! distribution has; librdkafka finds the system's certificates if asked to.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// Properties that set the trusted certificates.
const ANSWERS: [&str; 2] = ["ssl.ca.location", "ssl.ca.pem"];

/// Variables that OpenSSL itself reads, unless librdkafka gets a path.
const OPENSSL_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// Returns the property that makes librdkafka search for the system's certificates, if brokers are reached by TLS and
/// neither the properties nor the environment set any.
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
    fn the_systems_certificates_are_used_if_no_setting_names_others() {
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
