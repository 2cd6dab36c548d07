//! The address of a client behind proxies: the PROXY protocol header, and forwarding headers.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use shardgate::limits::PROXY_HEADER_BYTES_MAX;
use shardgate::protocol::client_address::{ForwardedFields, ProxyHeader, TrustedProxies, client_of};

static TRUSTED: LazyLock<TrustedProxies> =
    LazyLock::new(|| TrustedProxies::parse_list("10.0.0.0/8,2001:db8::/32").expect("valid networks"));

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// The first byte chooses between a PROXY protocol header and a client's own `X-Forwarded-For` or `Forwarded`.
pub fn proxy(data: &[u8]) {
    let [mode, rest @ ..] = data else { return };
    match mode % 3 {
        0 => header(rest),
        1 => forged(rest, false),
        _ => forged(rest, true),
    }
}

/// The split into reads does not change the outcome, and the header ends within the bytes read.
fn header(data: &[u8]) {
    let whole = ProxyHeader::parse(data);
    match whole {
        ProxyHeader::Incomplete => assert!(data.len() < PROXY_HEADER_BYTES_MAX, "the header has a limit"),
        ProxyHeader::Invalid => {}
        ProxyHeader::Whole { len, .. } => {
            assert!(len <= data.len().min(PROXY_HEADER_BYTES_MAX));
            assert_eq!(ProxyHeader::parse(&data[..len]), whole, "bytes behind the header are not read");
        }
    }
    for end in 0..data.len().min(PROXY_HEADER_BYTES_MAX) {
        let part = ProxyHeader::parse(&data[..end]);
        assert!(matches!(part, ProxyHeader::Incomplete) || part == whole, "{part:?} after {end} bytes, then {whole:?}");
    }
}

/// Whatever a client sends, the values that proxies append decide, in the same field or in a separate one.
fn forged(by_client: &[u8], is_forwarded: bool) {
    let added: [(&[u8], &str); 3] = match is_forwarded {
        false => [
            (b"203.0.113.9", "203.0.113.9"),
            (b"203.0.113.9, 10.9.9.9", "203.0.113.9"),
            (b"2001:db9::1, 2001:db8::1", "2001:db9::1"),
        ],
        true => [
            (b"for=203.0.113.9", "203.0.113.9"),
            (b"for=\"[2001:db9::1]:4711\";proto=https", "2001:db9::1"),
            (b"for=203.0.113.9, for=\"10.9.9.9:1\";by=\"_x\"", "203.0.113.9"),
        ],
    };
    let client = |values: &[&[u8]]| {
        let (x_forwarded_for, forwarded) = if is_forwarded { (&[][..], values) } else { (values, &[][..]) };
        client_of(PEER, &TRUSTED, ForwardedFields { x_forwarded_for, forwarded })
    };
    for (added, expected) in added {
        let expected: IpAddr = expected.parse().expect("an address");
        assert_eq!(client(&[by_client, added]), Ok(expected), "{added:?} in a separate field");
        let joined = [by_client, b", ", added].concat();
        assert_eq!(client(&[&joined]), Ok(expected), "{}", String::from_utf8_lossy(&joined));
    }
}
