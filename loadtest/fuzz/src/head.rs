//! A request's head and query, and the check of its origin.

use std::net::{IpAddr, Ipv4Addr};

use shardgate::ids::AssessmentId;
use shardgate::limits::PROXY_HEADER_BYTES_MAX;
use shardgate::protocol::client_address::{ProxyHeader, TrustedProxies};
use shardgate::protocol::head::origin::OriginPattern;
use shardgate::protocol::head::{Parsed, Rules, Scan, parse};

/// The first byte chooses the rules, and whether the rest is a head, a query, a header's value, or a list of origins
/// with an origin behind a NUL. The second byte chooses how the head is split into reads.
pub fn head(data: &[u8]) {
    let [mode, cut, rest @ ..] = data else { return };
    if mode >> 4 & 1 == 1 {
        return origins(rest);
    }
    let allowed_origins = (mode & 1 == 1).then(|| patterns("https://example.com,https://*.example.org"));
    let head_bytes_max = if mode >> 5 == 0 { 256 } else { 8 * 1024 };
    // Every request comes from a trusted proxy, so that forwarding headers are read.
    let trusted_proxies = TrustedProxies::parse_list("0.0.0.0,10.0.0.0/8").expect("valid networks");
    let rules = Rules { allowed_origins, head_bytes_max, trusted_proxies, operators: mode & 2 == 2 };
    proxy_header(rest);
    let request = match mode >> 2 & 3 {
        0 | 1 => rest.to_vec(),
        2 => around(b"GET /ws?", rest, b" HTTP/1.1\r\nHost: a\r\n"),
        _ => around(b"GET /ws?assessmentId=a HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Protocol:", rest, b"\r\n"),
    };
    let whole = parse(&request, &rules);
    check(&request, &whole, &rules);
    // The split into reads does not change the outcome.
    let mut scan = Scan::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let step = usize::from(*cut).max(1 + request.len() / 256);
    for end in (1..request.len()).step_by(step).chain([request.len()]) {
        let part = scan.parse(&request[..end], &rules);
        if !matches!(part, Parsed::Incomplete) {
            return assert_eq!(outcome(&part), outcome(&whole), "after {end} of {} bytes", request.len());
        }
    }
    assert!(matches!(whole, Parsed::Incomplete), "{whole:?} at once, but incomplete in reads");
}

/// A header ends within the bytes read, and bytes behind it don't change it.
fn proxy_header(read: &[u8]) {
    match ProxyHeader::parse(read) {
        ProxyHeader::Incomplete => assert!(read.len() < PROXY_HEADER_BYTES_MAX),
        ProxyHeader::Invalid => {}
        whole @ ProxyHeader::Whole { len, .. } => {
            assert!(len <= read.len().min(PROXY_HEADER_BYTES_MAX));
            assert_eq!(ProxyHeader::parse(&read[..len]), whole);
        }
    }
}

fn patterns(list: &str) -> Vec<OriginPattern> {
    OriginPattern::parse_list(list).ok().flatten().expect("valid origins")
}

/// A pattern matches exactly its origin, or the hosts below its domain.
fn origins(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some((list, origin)) = text.split_once('\0') else { return };
    let patterns = match OriginPattern::parse_list(list) {
        Ok(Some(patterns)) => patterns,
        Ok(None) => return assert_eq!(list.trim(), "*"),
        Err(faults) => return assert!(!faults.is_empty()),
    };
    assert_eq!(patterns.len(), list.split(',').count());
    for pattern in &patterns {
        if !pattern.matches(origin.as_bytes()) {
            continue;
        }
        let origin = origin.to_ascii_lowercase();
        match pattern {
            OriginPattern::Exactly(this) => assert!(origin.starts_with(this.trim_end_matches('/')), "{this}: {origin}"),
            OriginPattern::Below { scheme, suffix, port } => {
                let host = origin.strip_prefix(&**scheme).expect("the scheme is the pattern's");
                let (host, of_origin) = host.split_once(':').unwrap_or((host, ""));
                assert!(
                    of_origin == port.trim_start_matches(':') || (port.is_empty() && matches!(of_origin, "80" | "443"))
                );
                let below = host.strip_suffix(&**suffix).expect("the host is below the suffix");
                let is_label = |label: &str| !label.is_empty() && !label.contains(['/', '@', '?', '#', ':', '\\']);
                assert!(below.split('.').all(is_label), "{host} is below {suffix}");
            }
        }
    }
}

fn around(before: &[u8], middle: &[u8], behind: &[u8]) -> Vec<u8> {
    const HANDSHAKE: &[u8] = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    [before, middle, behind, HANDSHAKE].concat()
}

fn check(request: &[u8], parsed: &Parsed, rules: &Rules) {
    match parsed {
        Parsed::Incomplete => assert!(request.len() < rules.head_bytes_max, "the head has a limit"),
        Parsed::Operators => assert!(rules.operators),
        Parsed::Refused(refusal) => {
            let (status, _) = refusal.status();
            assert!((400..600).contains(&status));
            check_answer(&refusal.response(), status);
        }
        Parsed::Upgrade { upgrade, head_len } => {
            assert!(*head_len <= rules.head_bytes_max && request[..*head_len].ends_with(b"\r\n\r\n"));
            assert_eq!(
                outcome(&parse(&request[..*head_len], rules)),
                outcome(parsed),
                "bytes behind the head are not read"
            );
            if let Ok(Some(id)) = &upgrade.assessment {
                assert_eq!(AssessmentId::check(id.as_str()), Ok(()));
            }
            assert!(upgrade.cursor.as_ref().is_none_or(|cursor| !cursor.is_empty()));
            let mut answer = Vec::new();
            upgrade.accept_response(&mut answer);
            check_answer(&answer, 101);
        }
    }
}

/// A response is a single head whatever the client sent: nothing of the request can end it early.
fn check_answer(answer: &[u8], status: u16) {
    let text = std::str::from_utf8(answer).expect("a response is text");
    assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
    let (head, _) = text.split_once("\r\n\r\n").expect("a head has an end");
    assert!(head.split("\r\n").all(|line| !line.contains(['\r', '\n'])), "{text}");
}

/// The outcome of a parse, for comparison.
fn outcome(parsed: &Parsed) -> String {
    match parsed {
        // Which of several faults is reported first may depend on the bytes read so far.
        Parsed::Refused(refusal) => format!("refused with {}", refusal.status().0),
        other => format!("{other:?}"),
    }
}
