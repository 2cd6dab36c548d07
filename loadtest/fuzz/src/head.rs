//! A request's head and query.

use shardgate::ids::AssessmentId;
use shardgate::limits::REQUEST_HEAD_BYTES_MAX;
use shardgate::protocol::head::{Parsed, Rules, parse};

/// The first byte chooses the rules, and whether the rest is a head, a query or a header's value; the second one, how
/// the head is cut into reads.
pub fn head(data: &[u8]) {
    let [mode, cut, rest @ ..] = data else { return };
    let allowed_origins = (mode & 1 == 1).then(|| vec!["https://example.com".into()]);
    let rules = Rules { allowed_origins, operators: mode & 2 == 2 };
    let request = match mode >> 2 & 3 {
        0 | 1 => rest.to_vec(),
        2 => around(b"GET /ws?", rest, b" HTTP/1.1\r\nHost: a\r\n"),
        _ => around(b"GET /ws?assessmentId=a HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Protocol:", rest, b"\r\n"),
    };
    let whole = parse(&request, &rules);
    check(&request, &whole, &rules);
    // However it is cut into reads, it comes to the same.
    let step = usize::from(*cut).max(1 + request.len() / 64);
    for end in (0..request.len()).step_by(step) {
        let part = parse(&request[..end], &rules);
        if !matches!(part, Parsed::Incomplete) {
            assert_eq!(outcome(&part), outcome(&whole), "after {end} of {} bytes", request.len());
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
        Parsed::Incomplete => assert!(request.len() < REQUEST_HEAD_BYTES_MAX, "a bound ends the waiting"),
        Parsed::Operators => assert!(rules.operators),
        Parsed::Refused(refusal) => {
            let (status, _) = refusal.status();
            assert!((400..600).contains(&status));
            check_answer(&refusal.response(), status);
        }
        Parsed::Upgrade { upgrade, head_len } => {
            assert!(*head_len <= REQUEST_HEAD_BYTES_MAX && request[..*head_len].ends_with(b"\r\n\r\n"));
            assert_eq!(outcome(&parse(&request[..*head_len], rules)), outcome(parsed), "what lies behind is not read");
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

/// An answer is one head, whatever the client sent: nothing of the request can end it early.
fn check_answer(answer: &[u8], status: u16) {
    let text = std::str::from_utf8(answer).expect("an answer is text");
    assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
    let (head, _) = text.split_once("\r\n\r\n").expect("a head has an end");
    assert!(head.split("\r\n").all(|line| !line.contains(['\r', '\n'])), "{text}");
}

/// What a parse comes to.
fn outcome(parsed: &Parsed) -> String {
    match parsed {
        // Which of several faults is told first may depend on how much has come.
        Parsed::Refused(refusal) => format!("refused with {}", refusal.status().0),
        other => format!("{other:?}"),
    }
}
