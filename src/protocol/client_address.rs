//! The client's address behind proxies: the PROXY protocol header, `X-Forwarded-For` and `Forwarded` (RFC 7239). Owns
//! their meaning and which of them is trusted; the shard applies limits by address.
//!
//! Each proxy appends the address that connected to it. So the list is read from the right while the addresses belong
//! to `TRUSTED_PROXIES`; the first address that is not trusted is the client's. Everything to its left was written by
//! the client. An entry that is no address (`unknown`, an obfuscated name) ends the search: the last address before it
//! counts.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proxy_header::{Error, ParseConfig};

use crate::limits::PROXY_HEADER_BYTES_MAX;

/// The trusted proxies: `TRUSTED_PROXIES`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

/// An entry of the list that is no network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is neither an IP address nor a network such as 10.0.0.0/8 or 2001:db8::/32, without bits behind its prefix")]
pub struct InvalidNetwork;

impl TrustedProxies {
    /// Reads a comma list of addresses and networks.
    ///
    /// # Errors
    /// Each entry that is neither an address nor a network.
    pub fn parse_list(text: &str) -> Result<Self, Vec<(String, InvalidNetwork)>> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for entry in text.split(',').map(str::trim) {
            match network(entry) {
                Some(network) => good.push(network),
                None => bad.push((entry.to_owned(), InvalidNetwork)),
            }
        }
        if bad.is_empty() { Ok(Self(good)) } else { Err(bad) }
    }

    /// Whether an address is a trusted proxy's.
    #[must_use]
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Reads a network whose address has no bit set behind its prefix: `10.1.2.3/8` is most likely a typing error.
fn network(entry: &str) -> Option<IpNet> {
    match entry.parse::<IpAddr>() {
        Ok(address) => Some(address.to_canonical().into()),
        Err(_) => entry.parse::<IpNet>().ok().filter(|network| network.addr() == network.network()),
    }
}

/// State of reading a PROXY protocol header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    /// The header's end has not arrived.
    Incomplete,
    /// The bytes are no such header, or the header is longer than a proxy needs.
    Invalid,
    /// A complete header.
    Whole {
        /// Length of the header in bytes; the client's bytes follow.
        len: usize,
        /// Address of the client; `None` if the proxy itself connects, for a health check.
        client: Option<IpAddr>,
    },
}

impl ProxyHeader {
    /// Parses the bytes read from a connection so far.
    #[must_use]
    pub fn parse(read: &[u8]) -> Self {
        if !may_become_one(read) {
            return Self::Invalid;
        }
        let config = ParseConfig { include_tlvs: false, allow_v1: true, allow_v2: true };
        match proxy_header::ProxyHeader::parse(read, config) {
            Ok((_, len)) if len > bytes_max(read) => Self::Invalid,
            Ok((header, len)) => {
                let client = header.proxied_address().map(|proxied| proxied.source.ip().to_canonical());
                Self::Whole { len, client }
            }
            Err(Error::BufferTooShort) if read.len() < PROXY_HEADER_BYTES_MAX => Self::Incomplete,
            Err(_) => Self::Invalid,
        }
    }
}

/// The longest header of the version in use. The parser applies the bound of version 1 only before the line's end has
/// arrived.
fn bytes_max(read: &[u8]) -> usize {
    /// With its CRLF (section 2.1 of the protocol).
    const V1_BYTES_MAX: usize = 107;
    if read.starts_with(b"PROXY") { V1_BYTES_MAX } else { PROXY_HEADER_BYTES_MAX }
}

/// The parser waits for the shortest header before it decides, and a client that speaks HTTP would wait for an answer
/// meanwhile. The parser also skips the byte behind `PROXY`.
fn may_become_one(read: &[u8]) -> bool {
    const STARTS: [&[u8]; 2] = [b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"];
    STARTS.iter().any(|start| {
        let len = start.len().min(read.len());
        start[..len] == read[..len]
    })
}

/// The values of the headers that proxies extend, in the order of the fields.
#[derive(Debug, Clone, Copy)]
pub struct ForwardedFields<'a> {
    /// `X-Forwarded-For`.
    pub x_forwarded_for: &'a [&'a [u8]],
    /// `Forwarded`.
    pub forwarded: &'a [&'a [u8]],
}

/// Both headers are present and name different clients, so a proxy passes one of them on as the client wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contradiction;

/// Returns the address of the client whose request came from `peer`.
///
/// # Errors
/// If the two headers contradict each other.
pub fn client_of(peer: IpAddr, trusted: &TrustedProxies, fields: ForwardedFields<'_>) -> Result<IpAddr, Contradiction> {
    if !trusted.contains(peer) {
        return Ok(peer);
    }
    let by_list = |elements: Vec<&[u8]>, read: fn(&str) -> Option<IpAddr>| {
        walk(peer, trusted, elements.into_iter().rev().map(String::from_utf8_lossy), read)
    };
    let (x_forwarded_for, forwarded) = (fields.x_forwarded_for, fields.forwarded);
    // This header has no quoted strings.
    let plain = || x_forwarded_for.iter().flat_map(|value| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii);
    let by_x_forwarded_for = || by_list(plain().collect(), address_of);
    let by_forwarded = || by_list(forwarded.iter().flat_map(|value| elements_of(value, b',')).collect(), for_of);
    match (x_forwarded_for.is_empty(), forwarded.is_empty()) {
        (true, true) => Ok(peer),
        (false, true) => Ok(by_x_forwarded_for()),
        (true, false) => Ok(by_forwarded()),
        (false, false) => {
            let client = by_x_forwarded_for();
            if by_forwarded() == client { Ok(client) } else { Err(Contradiction) }
        }
    }
}

/// Follows the list from the nearest hop to the first address that is not trusted.
fn walk<'a>(
    peer: IpAddr,
    trusted: &TrustedProxies,
    hops: impl Iterator<Item = Cow<'a, str>>,
    read: fn(&str) -> Option<IpAddr>,
) -> IpAddr {
    let mut client = peer;
    for hop in hops {
        if !trusted.contains(client) {
            break;
        }
        let Some(address) = read(&hop) else { break };
        client = address;
    }
    client
}

/// Splits at separators outside of quotes, and trims white space. A quote that a client leaves open must not hide what
/// proxies append behind it: in that case quotes are ignored.
fn elements_of(value: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut quotes = Quotes::default();
    value.iter().for_each(|&byte| quotes.pass(byte));
    let (is_closed, mut quotes) = (!quotes.open, Quotes::default());
    value
        .split(move |&byte| {
            quotes.pass(byte);
            byte == separator && !(quotes.open && is_closed)
        })
        .map(<[u8]>::trim_ascii)
}

/// Tracks whether the current byte lies within a quoted string (RFC 9110 section 5.6.4).
#[derive(Debug, Default)]
struct Quotes {
    open: bool,
    escaped: bool,
}

impl Quotes {
    fn pass(&mut self, byte: u8) {
        let was_escaped = std::mem::take(&mut self.escaped);
        match byte {
            b'\\' if self.open && !was_escaped => self.escaped = true,
            b'"' if !was_escaped => self.open = !self.open,
            _ => {}
        }
    }
}

/// Reads an address, with or without a port; an IPv6 address with or without brackets.
fn address_of(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

/// Reads the address of an element's `for`: `for="[2001:db8::1]:4711";proto=https`.
fn for_of(element: &str) -> Option<IpAddr> {
    let pairs = elements_of(element.as_bytes(), b';').filter_map(|pair| std::str::from_utf8(pair).ok());
    let mut values = pairs.filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim_end().eq_ignore_ascii_case("for").then(|| value.trim())
    });
    let value = values.next().filter(|_| values.next().is_none())?;
    address_of(value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEER: &str = "10.0.0.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn trusted() -> TrustedProxies {
        TrustedProxies::parse_list("10.0.0.0/8, 192.0.2.7, 2001:db8:f::/48").unwrap()
    }

    /// The client by `X-Forwarded-For` and `Forwarded`, each with at most one field.
    fn client(peer: &str, x_forwarded_for: Option<&str>, forwarded: Option<&str>) -> Result<IpAddr, Contradiction> {
        let x_forwarded_for: Vec<&[u8]> = x_forwarded_for.into_iter().map(str::as_bytes).collect();
        let forwarded: Vec<&[u8]> = forwarded.into_iter().map(str::as_bytes).collect();
        let fields = ForwardedFields { x_forwarded_for: &x_forwarded_for, forwarded: &forwarded };
        client_of(ip(peer), &trusted(), fields)
    }

    #[test]
    fn the_rightmost_untrusted_address_is_the_clients() {
        for (list, expected) in [
            ("203.0.113.9", "203.0.113.9"),
            ("203.0.113.9, 10.1.2.3", "203.0.113.9"),
            ("6.6.6.6, 203.0.113.9, 192.0.2.7,10.1.2.3", "203.0.113.9"),
            ("10.0.0.2, 10.0.0.3", "10.0.0.2"),
            ("203.0.113.9:4711", "203.0.113.9"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("6.6.6.6, 2001:db8:f::9", "6.6.6.6"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("", PEER),
            ("unknown", PEER),
            ("203.0.113.9, unknown, 10.9.9.9", "10.9.9.9"),
            ("203.0.113.9, , 10.9.9.9", "10.9.9.9"),
            ("<script>", PEER),
            ("\", 203.0.113.9", "203.0.113.9"),
            ("6.6.6.6\\\", 203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ] {
            assert_eq!(client(PEER, Some(list), None), Ok(ip(expected)), "{list}");
        }
        assert_eq!(client("203.0.113.1", Some("6.6.6.6"), Some("for=6.6.6.6")), Ok(ip("203.0.113.1")), "not trusted");
        assert_eq!(client(PEER, None, None), Ok(ip(PEER)));
    }

    #[test]
    fn an_open_quote_of_a_client_hides_nothing_that_proxies_append() {
        for by_client in ["for=\"6.6.6.6", "\"", "for=\"6.6.6.6\\", "for=\"6.6.6.6\\\"", "for=\"a\", \""] {
            for by_proxy in
                ["for=203.0.113.9", "for=\"203.0.113.9:4711\";by=\"_x\"", "for=203.0.113.9, for=\"10.1.2.3:1\""]
            {
                let list = format!("{by_client}, {by_proxy}");
                assert_eq!(client(PEER, None, Some(&list)), Ok(ip("203.0.113.9")), "{list}");
            }
        }
    }

    #[test]
    fn the_fields_of_a_list_are_one_list() {
        let fields: [&[u8]; 2] = [b"6.6.6.6, 203.0.113.9", b"10.1.2.3"];
        let fields = ForwardedFields { x_forwarded_for: &fields, forwarded: &[] };
        assert_eq!(client_of(ip(PEER), &trusted(), fields), Ok(ip("203.0.113.9")));
    }

    #[test]
    fn forwarded_is_parsed_by_its_rfc() {
        for (list, expected) in [
            ("for=203.0.113.9", "203.0.113.9"),
            ("For=\"203.0.113.9:4711\"", "203.0.113.9"),
            ("for=\"[2001:db8::1]:4711\";proto=https;by=10.0.0.1", "2001:db8::1"),
            ("for=203.0.113.9, for=10.1.2.3;proto=http", "203.0.113.9"),
            ("proto=https; for = 203.0.113.9", "203.0.113.9"),
            ("for=6.6.6.6;x=\"a, for=7.7.7.7\", for=203.0.113.9", "203.0.113.9"),
            ("for=203.0.113.9;x=\"a\\\", b\", for=10.9.9.9", "203.0.113.9"),
            ("for=_hidden, for=10.9.9.9", "10.9.9.9"),
            ("proto=https", PEER),
            ("for=6.6.6.6;for=7.7.7.7", PEER),
        ] {
            assert_eq!(client(PEER, None, Some(list)), Ok(ip(expected)), "{list}");
        }
    }

    #[test]
    fn contradicting_headers_are_an_error() {
        assert_eq!(client(PEER, Some("203.0.113.9"), Some("for=203.0.113.9;proto=https")), Ok(ip("203.0.113.9")));
        assert_eq!(client(PEER, Some("203.0.113.9, 10.1.1.1"), Some("for=203.0.113.9")), Ok(ip("203.0.113.9")));
        assert_eq!(client(PEER, Some("203.0.113.9"), Some("for=6.6.6.6")), Err(Contradiction));
    }

    #[test]
    fn a_network_with_bits_behind_its_prefix_is_an_error() {
        for good in ["10.0.0.0/8", "10.1.2.3", "10.1.2.3/32", "::1", "2001:db8::/32", "0.0.0.0/0", "::/0"] {
            assert!(TrustedProxies::parse_list(good).is_ok(), "{good}");
        }
        let faults = TrustedProxies::parse_list("10.0.0.0/8, 10.1.2.3/8,10.0.0.0/33, proxy.local,").unwrap_err();
        let entries: Vec<&str> = faults.iter().map(|(entry, _)| &**entry).collect();
        assert_eq!(entries, ["10.1.2.3/8", "10.0.0.0/33", "proxy.local", ""]);
    }

    #[test]
    fn a_proxy_header_is_read_up_to_its_end_and_no_further() {
        let v2 = |command: u8, family: u8, addresses: &[u8]| {
            let len = u16::try_from(addresses.len()).unwrap().to_be_bytes();
            [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &len, addresses].concat()
        };
        let addresses = [203, 0, 113, 9, 10, 0, 0, 1, 1, 2, 3, 4];
        let with_tlv = [&addresses[..], &[4, 0, 2, 0, 0]].concat();
        for (header, client) in [
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 56324 443\r\n".to_vec(), Some("203.0.113.9")),
            (b"PROXY TCP6 2001:db8::1 ::1 56324 443\r\n".to_vec(), Some("2001:db8::1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (v2(0x21, 0x11, &addresses), Some("203.0.113.9")),
            (v2(0x21, 0x11, &with_tlv), Some("203.0.113.9")),
            (v2(0x20, 0, &[]), None),
        ] {
            let whole = ProxyHeader::Whole { len: header.len(), client: client.map(ip) };
            assert_eq!(ProxyHeader::parse(&[&header[..], b"GET /ws HTTP/1.1\r\n"].concat()), whole);
            for len in 0..header.len() {
                assert_eq!(ProxyHeader::parse(&header[..len]), ProxyHeader::Incomplete, "at {len} of {header:?}");
            }
        }
        for bad in [
            &b"GET /ws HTTP/1.1\r\n"[..],
            b"G",
            b"PROXY\xfaUNKNOWN\r\n",
            &[&b"PROXY UNKNOWN "[..], &[b'x'; 92], b"\r\n"].concat(),
            b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n",
            b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n    ",
            &[&b"PROXY TCP4 "[..], &[b'1'; 200]].concat(),
            &v2(0x31, 0x11, &addresses),
            &[v2(0x21, 0x11, &addresses[..8]), b"GET /ws HTTP/1.1\r\n".to_vec()].concat(),
            &v2(0x21, 0x11, &vec![0; PROXY_HEADER_BYTES_MAX]),
        ] {
            assert_eq!(ProxyHeader::parse(bad), ProxyHeader::Invalid, "{:?}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_header_parser_panic(
            start in prop_oneof![Just(&b""[..]), Just(&b"PROXY TCP4 "[..]), Just(&b"PROXY "[..]), Just(&b"\r\n\r\n\0\r\nQUIT\n"[..])],
            more in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let read = [start, &more].concat();
            if let ProxyHeader::Whole { len, .. } = ProxyHeader::parse(&read) {
                prop_assert!(len <= read.len());
            }
        }

        #[test]
        fn no_header_list_makes_the_parser_panic(x_forwarded_for in "[ -~]{0,60}", forwarded in "(for=)?[ -~]{0,60}") {
            let _ = client(PEER, Some(&x_forwarded_for), Some(&forwarded));
            prop_assert!(client(PEER, Some(&x_forwarded_for), None).is_ok());
            prop_assert!(client(PEER, None, Some(&forwarded)).is_ok());
        }
    }
}
