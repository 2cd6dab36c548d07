//! The allowed origins of browsers (`ALLOWED_ORIGINS`). An entry is an origin as browsers write it, `null`, `file://`,
//! or a pattern such as `https://*.example.com`, which matches every host below `example.com` but not `example.com`
//! itself. Scheme, host and port are compared in any case; a scheme's default port equals no port.

use std::net::IpAddr;

/// An entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPattern {
    /// Exactly this origin, in lower case.
    Exactly(Box<str>),
    /// Every host with at least one label before a suffix.
    Below {
        /// Scheme with its colon and slashes: `https://`.
        scheme: Box<str>,
        /// Suffix with its dot: `.example.com`.
        suffix: Box<str>,
        /// Port with its colon, unless it is the scheme's default: `:8443`.
        port: Box<str>,
    },
}

/// Why an entry is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOrigin {
    /// Neither `null`, `file://` nor a scheme and a host.
    #[error("is no origin: write scheme://host, scheme://host:port, null or file://")]
    Form,
    /// A slash, a query or a fragment behind the host, or a user in front of it.
    #[error("has more than a scheme, a host and a port: an origin ends there, without a slash")]
    More,
    /// The port is no valid port.
    #[error("has a port that is none")]
    Port,
    /// `*` stands beside other entries.
    #[error("stands for all origins: it takes no others beside it")]
    AnyAmongOthers,
    /// A wildcard that is not the first label.
    #[error(
        "has a wildcard in the wrong place: it stands for whole labels at the host's start, as in https://*.example.com"
    )]
    Wildcard,
    /// A wildcard over a top-level domain.
    #[error("would let in every host of a top-level domain")]
    TooWide,
    /// A wildcard in front of an address.
    #[error("has a wildcard in front of an IP address, which has no hosts below it")]
    Address,
}

impl OriginPattern {
    /// Reads the list; `None` stands for `*`, any origin.
    ///
    /// # Errors
    /// Each invalid entry, with the reason.
    pub fn parse_list(text: &str) -> Result<Option<Vec<Self>>, Vec<(String, InvalidOrigin)>> {
        if text.trim() == "*" {
            return Ok(None);
        }
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for entry in text.split(',').map(str::trim) {
            match Self::parse(entry) {
                Ok(pattern) => good.push(pattern),
                Err(fault) => bad.push((entry.to_owned(), fault)),
            }
        }
        if bad.is_empty() { Ok(Some(good)) } else { Err(bad) }
    }

    fn parse(entry: &str) -> Result<Self, InvalidOrigin> {
        let entry = entry.to_ascii_lowercase();
        match &*entry {
            "*" => return Err(InvalidOrigin::AnyAmongOthers),
            "null" | "file://" => return Ok(Self::Exactly(entry.into())),
            _ => {}
        }
        let (scheme, authority) = entry.split_once("://").ok_or(InvalidOrigin::Form)?;
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(is_scheme) {
            return Err(InvalidOrigin::Form);
        }
        if authority.contains(['/', '?', '#', '@', '\\']) {
            return Err(InvalidOrigin::More);
        }
        let (host, port) = split_port(scheme, authority)?;
        if let Some(suffix) = host.strip_prefix('*') {
            return Self::below(scheme, suffix, port);
        }
        match host {
            "" => Err(InvalidOrigin::Form),
            host if host.contains('*') => Err(InvalidOrigin::Wildcard),
            host if !host.bytes().all(is_host_byte) => Err(InvalidOrigin::Form),
            host => Ok(Self::Exactly(format!("{scheme}://{host}{port}").into())),
        }
    }

    fn below(scheme: &str, suffix: &str, port: &str) -> Result<Self, InvalidOrigin> {
        let domain = suffix.strip_prefix('.').ok_or(InvalidOrigin::Wildcard)?;
        if domain.contains('*') || domain.split('.').any(str::is_empty) {
            return Err(InvalidOrigin::Wildcard);
        }
        if domain.parse::<IpAddr>().is_ok() || domain.contains(['[', ':']) {
            return Err(InvalidOrigin::Address);
        }
        if !domain.bytes().all(is_host_byte) {
            return Err(InvalidOrigin::Form);
        }
        if !domain.contains('.') && domain != "localhost" {
            return Err(InvalidOrigin::TooWide);
        }
        let scheme = format!("{scheme}://");
        Ok(Self::Below { scheme: scheme.into(), suffix: suffix.into(), port: port.into() })
    }

    /// Whether the value of an `Origin` header matches.
    #[must_use]
    pub fn matches(&self, origin: &[u8]) -> bool {
        match self {
            Self::Exactly(this) => this.as_bytes().eq_ignore_ascii_case(origin),
            Self::Below { scheme, suffix, port } => {
                let origin = origin.to_ascii_lowercase();
                let host = origin.strip_prefix(scheme.as_bytes()).and_then(|rest| rest.strip_suffix(port.as_bytes()));
                let labels = host.and_then(|host| host.strip_suffix(suffix.as_bytes()));
                labels.is_some_and(|labels| {
                    let is_label = |label: &[u8]| !label.is_empty() && label.iter().copied().all(is_label_byte);
                    labels.split(|&byte| byte == b'.').all(is_label)
                })
            }
        }
    }
}

/// Splits into host and port. The port keeps its colon; it is empty if missing or the scheme's default, which browsers
/// leave out.
fn split_port<'a>(scheme: &str, authority: &'a str) -> Result<(&'a str, &'a str), InvalidOrigin> {
    let at = authority.rfind(':').filter(|at| !authority[*at..].contains(']'));
    let Some(at) = at else { return Ok((authority, "")) };
    let (host, port) = authority.split_at(at);
    let digits = &port[1..];
    let number: u16 = digits.parse().map_err(|_| InvalidOrigin::Port)?;
    if number == 0 || number.to_string() != digits {
        return Err(InvalidOrigin::Port);
    }
    let is_default = matches!((scheme, number), ("https", 443) | ("http", 80));
    Ok((host, if is_default { "" } else { port }))
}

/// Whether a host may contain this byte; an IPv6 address stands in brackets.
fn is_host_byte(byte: u8) -> bool {
    is_label_byte(byte) || b".:[]".contains(&byte)
}

fn is_label_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(entry: &str) -> OriginPattern {
        OriginPattern::parse_list(entry).unwrap_or_else(|faults| panic!("{faults:?}")).expect("not `*`").remove(0)
    }

    #[test]
    fn a_pattern_matches_only_hosts_below_its_domain() {
        let pattern = one("https://*.Example.com");
        for origin in ["https://a.example.com", "https://a.b.example.com", "HTTPS://A-1.EXAMPLE.COM"] {
            assert!(pattern.matches(origin.as_bytes()), "{origin}");
        }
        for origin in [
            "https://example.com",
            "https://.example.com",
            "https://a..example.com",
            "https://evilexample.com",
            "https://a.example.com.evil.net",
            "https://evil.net/.example.com",
            "https://evil.net#.example.com",
            "https://user@a.example.com",
            "https://evil.net:1.example.com",
            "http://a.example.com",
            "https://a.example.com:8443",
            "https://a.example.com:443",
            "null",
            "",
        ] {
            assert!(!pattern.matches(origin.as_bytes()), "{origin}");
        }
        let with_port = one("http://*.localhost:8080");
        assert!(with_port.matches(b"http://app.localhost:8080"));
        assert!(!with_port.matches(b"http://app.localhost") && !with_port.matches(b"http://app.localhost:80808080"));
    }

    #[test]
    fn an_origin_matches_itself_and_a_default_port_equals_none() {
        assert!(one("https://a.example:443").matches(b"https://a.example"));
        assert!(one("http://a.example:80").matches(b"http://a.example"));
        assert!(one("http://a.example:443").matches(b"http://a.example:443"));
        assert!(one("https://[2001:db8::1]:8443").matches(b"https://[2001:db8::1]:8443"));
        assert!(one("chrome-extension://abcdef").matches(b"chrome-extension://abcdef"));
        assert!(one("null").matches(b"null") && one("NULL").matches(b"null") && !one("null").matches(b"file://"));
        assert!(one("file://").matches(b"file://") && !one("file://").matches(b"file:///tmp/page.html"));
        assert_eq!(OriginPattern::parse_list(" * "), Ok(None));
    }

    #[test]
    fn each_invalid_entry_is_reported_with_its_reason() {
        use InvalidOrigin::{Address, AnyAmongOthers, Form, More, Port, TooWide, Wildcard};
        for (entry, fault) in [
            ("", Form),
            ("a.example", Form),
            ("https://", Form),
            ("://a", Form),
            ("https://exämple.com", Form),
            ("*.example.com", Form),
            ("https://a.example/", More),
            ("https://u@a.example", More),
            ("https://a.example:", Port),
            ("https://a.example:0", Port),
            ("https://a.example:http", Port),
            ("https://a.example:70000", Port),
            ("https://a.example:+80", Port),
            ("https://*", Wildcard),
            ("https://*example.com", Wildcard),
            ("https://a.*.example.com", Wildcard),
            ("https://*.*.example.com", Wildcard),
            ("https://*..com", Wildcard),
            ("https://*.com", TooWide),
            ("https://*.10.0.0.1", Address),
            ("https://*.[::1]", Address),
        ] {
            assert_eq!(OriginPattern::parse_list(entry), Err(vec![(entry.to_owned(), fault)]), "{entry}");
        }
        let faults = OriginPattern::parse_list("https://a.example, *, null, https://*.com").unwrap_err();
        assert_eq!(faults, [("*".to_owned(), AnyAmongOthers), ("https://*.com".to_owned(), TooWide)]);
    }
}
