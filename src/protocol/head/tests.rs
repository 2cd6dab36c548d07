//! Good and bad request heads, and properties that hold for any bytes.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

use super::*;
use crate::limits::REQUEST_HEAD_BYTES_MAX;

/// The key of RFC 6455's example, section 1.3, and its answer.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const HEAD_BYTES_MAX: usize = 8 * 1024;

fn rules() -> Rules {
    Rules::default()
}

/// Joins lines into a head.
fn head(lines: &[&str]) -> String {
    lines.iter().flat_map(|line| [line, "\r\n"]).chain(["\r\n"]).collect()
}

/// The head of a good handshake for a target, with more lines.
fn handshake(target: &str, more: &[&str]) -> String {
    let request_line = format!("GET {target} HTTP/1.1");
    let key = format!("Sec-WebSocket-Key: {KEY}");
    let lines = [&*request_line, "Host: h", "Upgrade: websocket", "Connection: Upgrade", &key];
    head(&[&lines[..], &["Sec-WebSocket-Version: 13"], more].concat())
}

/// A good handshake with one line replaced, or removed if `instead` is empty.
fn handshake_with(line: &str, instead: &str) -> String {
    let good = handshake("/ws", &[]);
    assert!(good.contains(line));
    good.replace(&format!("{line}\r\n"), &if instead.is_empty() { String::new() } else { format!("{instead}\r\n") })
}

fn upgrade(head: &str) -> Upgrade {
    match parse(head.as_bytes(), &rules()) {
        Parsed::Upgrade { upgrade, head_len } => {
            assert_eq!(head_len, head.len());
            upgrade
        }
        other => panic!("{head} became {other:?}"),
    }
}

fn refusal_by(head: &str, rules: &Rules) -> Option<HttpRefusal> {
    match parse(head.as_bytes(), rules) {
        Parsed::Refused(refusal) => Some(refusal),
        Parsed::Incomplete => panic!("{head} is not complete"),
        Parsed::Upgrade { .. } | Parsed::Operators => None,
    }
}

fn refusal(head: &str) -> Option<HttpRefusal> {
    refusal_by(head, &rules())
}

#[test]
fn a_good_handshake_ends_at_its_last_byte_and_leaves_the_first_frames_unread() {
    let head = handshake("/ws?assessmentId=a-1&token=t&cursor=c", &[]);
    for len in 0..head.len() {
        assert!(matches!(parse(&head.as_bytes()[..len], &rules()), Parsed::Incomplete), "at {len}");
    }
    let upgrade = upgrade(&head);
    assert_eq!(&*upgrade.accept, ACCEPT);
    assert_eq!(upgrade.assessment.unwrap().unwrap().as_str(), "a-1");
    assert_eq!(upgrade.token, Some(BearerToken("t".into())));
    assert_eq!(upgrade.cursor.as_deref(), Some("c"));

    let with_frames = [head.as_bytes(), b"\x81\x80\0\n\r\n\r\n\n"].concat();
    let Parsed::Upgrade { head_len, .. } = parse(&with_frames, &rules()) else { panic!("the head is good") };
    assert_eq!(head_len, head.len());
}

#[test]
fn a_handshake_may_be_written_in_many_ways() {
    let many_ways = format!(
        "\r\nGET HTTP://h:3003/ws HTTP/1.1\r\nhOST:h:3003\r\nUPGRADE: h2c, WebSocket\r\nconnection: keep-alive\r\n\
         Connection: ,uPGRADE , x\r\nsec-websocket-KEY:   {KEY}  \r\nSec-WebSocket-Version:13\r\nContent-Length: 0\r\n\r\n"
    );
    assert_eq!(&*upgrade(&many_ways).accept, ACCEPT);
    upgrade(&handshake("wss://user@[::1]:80/ws?token=t", &[]));
    upgrade(&handshake_with(&format!("Sec-WebSocket-Key: {KEY}"), "Sec-WebSocket-Key: abcdefghijklmnopqrstuv=="));
}

#[test]
fn a_malformed_head_is_refused_with_its_fault() {
    let key = format!("Sec-WebSocket-Key: {KEY}");
    for (head, fault) in [
        ("GET /ws HTTP/1.1\nHost: h\n\n".into(), RequestFault::LineEnding),
        ("GET /ws HTTP/1.1\r\nHost: h\n".into(), RequestFault::LineEnding),
        ("GET /ws HTTP/1.1\rHost: h\r\n\r\n".into(), RequestFault::LineEnding),
        ("\nGET /ws HTTP/1.1\r\n".into(), RequestFault::LineEnding),
        ("GET /ws\0 HTTP/1.1".into(), RequestFault::ControlByte),
        ("\u{16}\u{3}\u{1}".into(), RequestFault::ControlByte),
        (handshake("/ws", &["X: a\u{0}b"]), RequestFault::ControlByte),
        (handshake("/ws", &["X: a\u{7f}"]), RequestFault::ControlByte),
        (handshake("/ws", &["X: a", " folded"]), RequestFault::Syntax),
        (handshake("/ws", &["X : a"]), RequestFault::Syntax),
        (handshake("/ws", &["no colon"]), RequestFault::Syntax),
        (handshake("/ws", &[": no name"]), RequestFault::Syntax),
        ("GET  /ws HTTP/1.1\r\n\r\n".into(), RequestFault::Syntax),
        ("GET /ws\r\n\r\n".into(), RequestFault::Syntax),
        ("PRI * HTTP/2.0\r\n\r\n".into(), RequestFault::Syntax),
        (handshake("ws", &[]), RequestFault::RequestTarget),
        (handshake("ftp://h/ws", &[]), RequestFault::RequestTarget),
        (handshake("http:///ws", &[]), RequestFault::RequestTarget),
        (handshake("/ws#fragment", &[]), RequestFault::RequestTarget),
        (handshake_with("Host: h", ""), RequestFault::Host),
        (handshake("/ws", &["Host: h"]), RequestFault::Host),
        (handshake_with("Host: h", "Host: h/x"), RequestFault::Host),
        (handshake("/ws", &["Content-Length: 0", "Content-Length: 0"]), RequestFault::Framing),
        (handshake("/ws", &["Content-Length: 0", "Transfer-Encoding: chunked"]), RequestFault::Framing),
        (handshake("/ws", &["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"]), RequestFault::Framing),
        (handshake("/ws", &["Content-Length: -1"]), RequestFault::Framing),
        (handshake("/ws", &["Content-Length:"]), RequestFault::Framing),
        (handshake("/ws", &["Content-Length: 1"]), RequestFault::Body),
        (handshake("/ws", &["Transfer-Encoding: chunked"]), RequestFault::Body),
        (head(&["GET /health HTTP/1.1", "Host: h", "Content-Length: 1"]), RequestFault::Body),
        (handshake_with(&key, ""), RequestFault::Key),
        (handshake("/ws", &[&key]), RequestFault::Key),
        (handshake_with(&key, "Sec-WebSocket-Key:"), RequestFault::Key),
        (handshake_with(&key, "Sec-WebSocket-Key: not base64"), RequestFault::Key),
        (handshake_with(&key, "Sec-WebSocket-Key: c2hvcnQ="), RequestFault::Key),
        (handshake_with(&key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSE="), RequestFault::Key),
    ] {
        assert_eq!(refusal(&head), Some(HttpRefusal::Malformed(fault)), "{head:?}");
    }
}

#[test]
fn path_method_and_handshake_are_judged_in_this_order() {
    let get = HttpRefusal::Method(Allow::Get);
    for (head, expected) in [
        (handshake("/", &[]), None),
        (handshake("/nope", &[]), Some(HttpRefusal::Path)),
        (handshake("/ws/", &[]), Some(HttpRefusal::Path)),
        (handshake("/%77s", &[]), Some(HttpRefusal::Path)),
        (head(&["OPTIONS * HTTP/1.1", "Host: h"]), Some(HttpRefusal::Path)),
        (head(&["POST /nope HTTP/1.1", "Host: h", "Content-Length: 9"]), Some(HttpRefusal::Path)),
        (head(&["POST /ws HTTP/1.1", "Host: h", "Content-Length: 9"]), Some(get)),
        (head(&["HEAD /ws HTTP/1.1", "Host: h"]), Some(get)),
        (head(&["get /ws HTTP/1.1", "Host: h"]), Some(get)),
        (head(&["PUT /metrics HTTP/1.1", "Host: h"]), Some(HttpRefusal::Method(Allow::GetAndHead))),
        (head(&["GET /ws HTTP/1.1", "Host: h"]), Some(HttpRefusal::UpgradeRequired)),
        (handshake("/ws", &[]).replace("HTTP/1.1", "HTTP/1.0"), Some(HttpRefusal::UpgradeRequired)),
        (handshake_with("Upgrade: websocket", "Upgrade: h2c"), Some(HttpRefusal::UpgradeRequired)),
        (handshake_with("Upgrade: websocket", ""), Some(HttpRefusal::UpgradeRequired)),
        (handshake_with("Connection: Upgrade", "Connection: keep-alive"), Some(HttpRefusal::UpgradeRequired)),
        (handshake_with("Connection: Upgrade", ""), Some(HttpRefusal::UpgradeRequired)),
        (handshake_with("Sec-WebSocket-Version: 13", ""), Some(HttpRefusal::UpgradeRequired)),
        (handshake_with("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"), Some(HttpRefusal::UpgradeRequired)),
        (handshake("/ws", &["Sec-WebSocket-Version: 13"]), Some(HttpRefusal::UpgradeRequired)),
    ] {
        assert_eq!(refusal(&head), expected, "{head:?}");
    }
}

#[test]
fn operators_pages_are_served_only_on_operators_ports() {
    let elsewhere = Rules { operators: false, ..rules() };
    for page in Page::ALL.map(Page::path) {
        for head in [
            head(&[&format!("GET {page} HTTP/1.1"), "Host: h"]),
            head(&[&format!("HEAD {page}?x=y HTTP/1.1"), "Host: h"]),
            head(&[&format!("GET {page} HTTP/1.0")]),
        ] {
            assert!(matches!(parse(head.as_bytes(), &rules()), Parsed::Operators), "{head:?}");
            assert_eq!(refusal_by(&head, &elsewhere), Some(HttpRefusal::Path), "{head:?}");
        }
    }
}

#[test]
fn a_present_origin_must_be_allowed() {
    let listed = |list| Rules { allowed_origins: OriginPattern::parse_list(list).unwrap(), ..rules() };
    let some = listed("https://a.example, http://b:8080");
    let null = listed("null");
    for (lines, by_some, by_null) in [
        (&[][..], true, true),
        (&["Origin: https://a.example"][..], true, false),
        (&["Origin: HTTPS://A.Example"][..], true, false),
        (&["Origin: http://b:8080"][..], true, false),
        (&["Origin: http://b"][..], false, false),
        (&["Origin: https://a.example.evil"][..], false, false),
        (&["Origin: null"][..], false, true),
        (&["Origin:"][..], false, false),
        (&["Origin: https://a.example", "Origin: https://a.example"][..], false, false),
    ] {
        let head = handshake("/ws", lines);
        let expected = |good: bool| (!good).then_some(HttpRefusal::Origin);
        assert_eq!(refusal_by(&head, &some), expected(by_some), "{lines:?}");
        assert_eq!(refusal_by(&head, &null), expected(by_null), "{lines:?}");
        assert_eq!(refusal(&head), None, "`*` stands for any: {lines:?}");
    }
}

#[test]
fn the_first_token_counts_good_or_bad() {
    for (target, lines, token) in [
        ("/ws", &[][..], None),
        ("/ws?token=q", &[][..], Some("q")),
        ("/ws?token=q&token=r", &[][..], Some("q")),
        ("/ws?token=a%2eb%2Ec", &[][..], Some("a.b.c")),
        ("/ws?token=a+b", &[][..], Some("a+b")),
        ("/ws?%74oken=q", &[][..], Some("q")),
        ("/ws?Token=q", &[][..], None),
        ("/ws?token=", &[][..], Some("")),
        ("/ws?token=%ff", &[][..], Some("\u{fffd}")),
        ("/ws?token=q", &["Sec-WebSocket-Protocol: shardgate.v1, bearer.p"][..], Some("p")),
        ("/ws?token=q", &["Sec-WebSocket-Protocol: x", "Sec-WebSocket-Protocol: bearer.p,bearer.o"][..], Some("p")),
        ("/ws?token=q", &["Sec-WebSocket-Protocol: bearer."][..], Some("")),
        ("/ws?token=q", &["Authorization: Bearer a", "Sec-WebSocket-Protocol: bearer.p"][..], Some("a")),
        ("/ws?token=q", &["authorization: bEARER   a"][..], Some("a")),
        ("/ws?token=q", &["Authorization: Bearer"][..], Some("")),
        ("/ws?token=q", &["Authorization: Basic dTpw"][..], Some("q")),
        ("/ws?token=q", &["Authorization: Bearerx a"][..], Some("q")),
        ("/ws?token=q", &["Authorization: Basic dTpw", "Authorization: Bearer a"][..], Some("a")),
        ("/ws?token=q", &["Authorization: Bearer a", "Authorization: Bearer b"][..], Some("a")),
    ] {
        let found = upgrade(&handshake(target, lines)).token;
        assert_eq!(found, token.map(|token| BearerToken(token.into())), "{target} {lines:?}");
    }
}

#[test]
fn an_assessment_id_is_parsed_by_its_rule() {
    let invalid = |fault| Err(BadAssessment::Invalid(fault));
    let longest = "x".repeat(128);
    for (query, assessment) in [
        ("", Ok(None)),
        ("?", Ok(None)),
        ("?&&x=y&", Ok(None)),
        ("?assessmentid=a", Ok(None)),
        ("?assessmentId=a", Ok(Some("a"))),
        ("?assessmentId=a=b", Ok(Some("a=b"))),
        ("?assessmentId=a+b", Ok(Some("a+b"))),
        ("?assessmentId=a%20%26%2Bb", Ok(Some("a &+b"))),
        ("?assessmentId=%C3%bc", Ok(Some("ü"))),
        ("?assessmentId=ü", Ok(Some("ü"))),
        ("?%61ssessmentId=a", Ok(Some("a"))),
        (&format!("?assessmentId={longest}"), Ok(Some(&*longest))),
        (&format!("?assessmentId={longest}x"), invalid(InvalidAssessmentId::TooLong(129))),
        ("?assessmentId=", invalid(InvalidAssessmentId::Empty)),
        ("?assessmentId", invalid(InvalidAssessmentId::Empty)),
        ("?assessmentId=%00", invalid(InvalidAssessmentId::ControlCharacter)),
        ("?assessmentId=%C2%85", invalid(InvalidAssessmentId::ControlCharacter)),
        ("?assessmentId=a&assessmentId=a", Err(BadAssessment::Twice)),
        ("?assessmentId=a&assessment%49d=b", Err(BadAssessment::Twice)),
        ("?assessmentId=a%", Err(BadAssessment::BrokenEscape)),
        ("?assessmentId=%4", Err(BadAssessment::BrokenEscape)),
        ("?assessmentId=%4&x=1", Err(BadAssessment::BrokenEscape)),
        ("?assessmentId=%zz", Err(BadAssessment::BrokenEscape)),
        ("?assessmentId=%+1", Err(BadAssessment::BrokenEscape)),
        ("?assessmentId=%ff", Err(BadAssessment::BrokenEscape)),
    ] {
        let expected = assessment.map(|id: Option<&str>| id.map(|id| AssessmentId::parse(id).unwrap()));
        assert_eq!(upgrade(&handshake(&format!("/ws{query}"), &[])).assessment, expected, "{query}");
    }
}

#[test]
fn a_cursor_needs_an_assessment_and_an_empty_one_is_none() {
    for (query, cursor) in [
        ("assessmentId=a&cursor=c", Some("c")),
        ("cursor=c%2Dd&assessmentId=a", Some("c-d")),
        ("assessmentId=a&cursor=c&cursor=d", Some("c")),
        ("assessmentId=a&cursor=", None),
        ("assessmentId=a&cursor=&cursor=d", None),
        ("assessmentId=&cursor=c", None),
        ("cursor=c", None),
    ] {
        assert_eq!(upgrade(&handshake(&format!("/ws?{query}"), &[])).cursor.as_deref(), cursor, "{query}");
    }
}

#[test]
fn a_head_may_have_8_kib_with_its_last_crlf_and_100_headers() {
    let padded = |len: usize| {
        let bare = handshake("/ws", &["X: "]).len();
        handshake("/ws", &[&format!("X: {}", "x".repeat(len - bare))])
    };
    assert_eq!(refusal(&padded(HEAD_BYTES_MAX)), None);
    assert_eq!(refusal(&padded(HEAD_BYTES_MAX + 1)), Some(HttpRefusal::TooLarge));
    let endless = padded(HEAD_BYTES_MAX * 2);
    assert!(matches!(parse(&endless.as_bytes()[..HEAD_BYTES_MAX - 1], &rules()), Parsed::Incomplete));
    assert_eq!(refusal(&endless[..HEAD_BYTES_MAX]), Some(HttpRefusal::TooLarge));
    assert_eq!(refusal(&"\r\n".repeat(HEAD_BYTES_MAX)), Some(HttpRefusal::TooLarge));
    let larger = Rules { head_bytes_max: REQUEST_HEAD_BYTES_MAX, ..rules() };
    assert_eq!(refusal_by(&padded(REQUEST_HEAD_BYTES_MAX), &larger), None, "with another setting");
    assert_eq!(refusal_by(&padded(REQUEST_HEAD_BYTES_MAX + 1), &larger), Some(HttpRefusal::TooLarge));

    let with_headers = |count: usize| handshake("/ws", &vec!["X: y"; count - 5]);
    assert_eq!(refusal(&with_headers(REQUEST_HEADERS_MAX)), None);
    assert_eq!(refusal(&with_headers(REQUEST_HEADERS_MAX + 1)), Some(HttpRefusal::TooLarge));
}

#[test]
fn a_refusal_is_a_complete_answer_that_says_what_would_be_right() {
    for (refusal, code, more, says) in [
        (HttpRefusal::Malformed(RequestFault::LineEnding), 400, &[][..], "CRLF"),
        (HttpRefusal::Malformed(RequestFault::Key), 400, &[][..], "Sec-WebSocket-Key"),
        (HttpRefusal::Origin, 403, &[][..], "ALLOWED_ORIGINS"),
        (HttpRefusal::Path, 404, &[][..], "/ws"),
        (HttpRefusal::Method(Allow::Get), 405, &[("Allow", "GET")][..], "use GET"),
        (HttpRefusal::Method(Allow::GetAndHead), 405, &[("Allow", "GET, HEAD")][..], "use GET, HEAD"),
        (HttpRefusal::Timeout, 408, &[][..], "HANDSHAKE_TIMEOUT_MS"),
        (
            HttpRefusal::UpgradeRequired,
            426,
            &[("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket"), ("Connection", "close, Upgrade")][..],
            "Sec-WebSocket-Version: 13",
        ),
        (HttpRefusal::TooLarge, 431, &[][..], "MAX_HEAD_BYTES"),
        (HttpRefusal::Unavailable(Unavailable::Capacity), 503, &[("Retry-After", "5")][..], "try again"),
    ] {
        let answer = refusal.response();
        let mut table = [EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut table);
        let head_len = response.parse(&answer).unwrap().unwrap();
        let value = |name: &str| {
            let field = response.headers.iter().find(|field| field.name == name);
            field.map(|field| std::str::from_utf8(field.value).unwrap())
        };
        assert_eq!(response.code, Some(code));
        let text = std::str::from_utf8(&answer[head_len..]).unwrap();
        assert_eq!(value("Content-Length"), Some(&*text.len().to_string()));
        assert!(value("Connection").unwrap().starts_with("close"));
        assert!(text.contains(says), "{text}");
        for (name, expected) in more {
            assert_eq!(value(name), Some(*expected), "{code}");
        }
    }
}

#[test]
fn the_upgrade_is_answered_with_our_subprotocol_only() {
    let answer = |lines: &[&str]| {
        let mut out = Vec::new();
        upgrade(&handshake("/ws?token=secret", lines)).accept_response(&mut out);
        String::from_utf8(out).unwrap()
    };
    let bare = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n"
    );
    assert_eq!(answer(&[]), format!("{bare}\r\n"));
    assert_eq!(answer(&["Sec-WebSocket-Protocol: chat"]), format!("{bare}\r\n"));
    let offered = answer(&["Sec-WebSocket-Protocol: bearer.secret, shardgate.v1"]);
    assert_eq!(offered, format!("{bare}Sec-WebSocket-Protocol: shardgate.v1\r\n\r\n"));
}

#[test]
fn no_token_is_ever_printed() {
    let head = handshake("/ws?token=hidden", &["Authorization: Bearer hidden"]);
    assert!(!format!("{:?}", parse(head.as_bytes(), &rules())).contains("hidden"));
}

/// The outcome for a shard, as text to compare.
fn outcome(read: &[u8]) -> String {
    outcome_of(parse(read, &rules()))
}

fn outcome_of(parsed: Parsed) -> String {
    match parsed {
        Parsed::Refused(refusal) => format!("{:?}", refusal.status()),
        other => format!("{other:?}"),
    }
}

/// Heads of which some are malformed.
fn a_head_and_more() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        "[A-Za-z-]{1,12}: ?[ -~]{0,40}",
        "(Content-Length|Transfer-Encoding|Host|Origin|Connection|Upgrade|Authorization): [ -~]{0,12}",
        "\\PC{0,20}",
        "[ \t\r\n\\x00a:]{0,6}",
    ];
    let target = prop_oneof![Just("/ws".to_owned()), "/ws\\?[a-zA-Z%=&]{0,40}", "[!-~]{0,20}", "/(health|ready)?"];
    let lines = proptest::collection::vec(line, 0..4);
    (target, lines, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(target, lines, more)| {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        [handshake(&target, &lines).into_bytes(), more].concat()
    })
}

proptest! {
    #[test]
    fn no_bytes_make_the_head_parser_panic(read in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(!outcome(&read).is_empty());
    }

    #[test]
    fn a_head_in_pieces_has_the_outcome_of_the_whole_head(
        read in a_head_and_more(),
        pieces in proptest::collection::vec(1..20_usize, 1..400),
    ) {
        let (mut scan, mut len, mut outcome_so_far) = (Scan::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), 0, "Incomplete".to_owned());
        for piece in pieces {
            len = (len + piece).min(read.len());
            outcome_so_far = outcome_of(scan.parse(&read[..len], &rules()));
            if outcome_so_far != "Incomplete" {
                break;
            }
        }
        prop_assert_eq!(outcome_so_far, outcome(&read[..len]));
    }

    #[test]
    fn an_early_outcome_does_not_change_with_more_bytes(read in a_head_and_more(), cut in any::<prop::sample::Index>()) {
        let early = outcome(&read[..cut.index(read.len() + 1)]);
        prop_assert!(early == "Incomplete" || early == outcome(&read), "{} then {}", early, outcome(&read));
    }

    #[test]
    fn a_head_made_of_valid_parts_parses_back_to_them(
        id in "\\PC{1,30}",
        token in "[A-Za-z0-9_.-]{1,60}",
        cursor in "[A-Za-z0-9_-]{1,60}",
        location in 0..3,
        key in any::<[u8; KEY_BYTES]>(),
    ) {
        let encoded = utf8_percent_encode(&id, NON_ALPHANUMERIC);
        let mut target = format!("/ws?cursor={cursor}&assessmentId={encoded}");
        let mut lines = Vec::new();
        match location {
            0 => lines.push(format!("Authorization: Bearer {token}")),
            1 => lines.push(format!("Sec-WebSocket-Protocol: shardgate.v1, bearer.{token}")),
            _ => target.push_str(&format!("&token={}", utf8_percent_encode(&token, NON_ALPHANUMERIC))),
        }
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let key = KEY_ENCODING.encode(key);
        let upgrade = upgrade(&handshake(&target, &lines).replace(KEY, &key));
        let expected = tungstenite::handshake::derive_accept_key(key.as_bytes());
        prop_assert_eq!(&*upgrade.accept, expected.as_str());
        prop_assert_eq!(upgrade.subprotocol, location == 1);
        prop_assert_eq!(upgrade.assessment, Ok(Some(AssessmentId::parse(&id).unwrap())));
        prop_assert_eq!(upgrade.token, Some(BearerToken(token.into())));
        prop_assert_eq!(upgrade.cursor.as_deref(), Some(&*cursor));
    }
}
