//! What stands in front of a request behind proxies: the PROXY protocol's header, and the headers that name the client.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use shardgate::limits::PROXY_HEADER_BYTES_MAX;
use shardgate::protocol::client_address::{ForwardedFields, ProxyHeader, TrustedProxies, client_of};

static TRUSTED: LazyLock<TrustedProxies> =
    LazyLock::new(|| TrustedProxies::parse_list("10.0.0.0/8,2001:db8::/32").expect("good networks"));

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// The first byte chooses: a PROXY protocol's header, or what the client wrote into `X-Forwarded-For` or `Forwarded`.
pub fn proxy(data: &[u8]) {
    let [mode, rest @ ..] = data else { return };
    match mode % 3 {
        0 => header(rest),
        1 => invented(rest, false),
        _ => invented(rest, true),
    }
}

/// However it is cut into reads, it comes to the same, and it ends within what was read.
fn header(data: &[u8]) {
    let whole = ProxyHeader::parse(data);
    match whole {
        ProxyHeader::Incomplete => assert!(data.len() < PROXY_HEADER_BYTES_MAX, "a bound ends the waiting"),
        ProxyHeader::Invalid => {}
        ProxyHeader::Whole { len, .. } => {
            assert!(len <= data.len().min(PROXY_HEADER_BYTES_MAX));
            assert_eq!(ProxyHeader::parse(&data[..len]), whole, "what lies behind is not read");
        }
    }
    for end in 0..data.len().min(PROXY_HEADER_BYTES_MAX) {
        let part = ProxyHeader::parse(&data[..end]);
        assert!(matches!(part, ProxyHeader::Incomplete) || part == whole, "{part:?} after {end} bytes, then {whole:?}");
    }
}

/// Whatever a client writes, what the proxies in front of the pod add on its right decides: in the same field or in one
/// of its own.
fn invented(by_client: &[u8], is_forwarded: bool) {
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
        assert_eq!(client(&[by_client, added]), Ok(expected), "{added:?} in a field of its own");
        let joined = [by_client, b", ", added].concat();
        assert_eq!(client(&[&joined]), Ok(expected), "{}", String::from_utf8_lossy(&joined));
    }
}
