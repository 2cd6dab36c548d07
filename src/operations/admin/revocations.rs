//! The page of revoked tokens: what an operator asks, and the answers.

use serde::{Deserialize, Serialize};

use super::answer::Refusal;
use super::request::{bad, body};
use crate::clock::UnixMs;
use crate::ids::NodeId;
use crate::limits::{REVOCATION_SECONDS_DEFAULT, REVOCATION_SECONDS_MAX};
use crate::protocol::auth::{Revocation, RevocationSet, Rule, Subject};

/// The body of `POST /revocations`, as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RevocationBody {
    user: Option<Box<str>>,
    jti: Option<Box<str>>,
    issued_before: Option<Time>,
    for_seconds: Option<u64>,
}

/// A time: Unix milliseconds, or ISO 8601.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Time {
    Ms(u64),
    Text(String),
}

/// What the body takes, in words.
const TAKES: &str = r#""user" or "jti"; and, if needed, "issuedBefore" (Unix ms, or ISO 8601), and "forSeconds": how long such tokens live, 1 to 31622400, a day by default"#;

/// Reads what is to be revoked.
///
/// # Errors
/// What is wrong.
pub(super) fn parse(bytes: &[u8], now: UnixMs) -> Result<Revocation, Refusal> {
    let takes = || bad(format!("takes a JSON object with {TAKES}"));
    let RevocationBody { user, jti, issued_before, for_seconds } = body(bytes, TAKES)?;
    let subject = match (user, jti) {
        (Some(user), None) if !user.is_empty() => Subject::User(user),
        (None, Some(id)) if !id.is_empty() => Subject::TokenId(id),
        _ => return Err(takes()),
    };
    let issued_before = match issued_before {
        None => None,
        Some(Time::Ms(ms)) => Some(UnixMs(ms)),
        Some(Time::Text(text)) => Some(UnixMs::parse(&text).ok_or_else(takes)?),
    };
    let seconds = for_seconds.unwrap_or(REVOCATION_SECONDS_DEFAULT);
    if !(1..=REVOCATION_SECONDS_MAX).contains(&seconds) {
        return Err(takes());
    }
    Ok(Revocation { subject, rule: Rule { issued_before, until: UnixMs(now.0 + seconds * 1_000) } })
}

/// A revocation, as operators see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RevocationRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issued_before: Option<String>,
    until: String,
}

impl From<Revocation> for RevocationRow {
    fn from(Revocation { subject, rule }: Revocation) -> Self {
        let (user, jti) = match subject {
            Subject::User(user) => (Some(user), None),
            Subject::TokenId(id) => (None, Some(id)),
        };
        let issued_before = rule.issued_before.map(|time| time.to_string());
        Self { user, jti, issued_before, until: rule.until.to_string() }
    }
}

/// The answer to `POST /revocations`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RevokedAnswer<'a> {
    pub(super) node: &'a str,
    pub(super) revocation: RevocationRow,
    /// Whether every pod has it, or only this one, until Redis is back.
    pub(super) on_all_pods: bool,
}

/// The answer to `GET /revocations`.
#[derive(Debug, Serialize)]
pub(super) struct RevocationsBody<'a> {
    node: &'a str,
    revocations: Vec<RevocationRow>,
    /// What to send as `after` for the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A page of the revocations in force.
pub(super) fn page<'a>(node: &'a NodeId, all: &RevocationSet, after: &str, limit: usize) -> RevocationsBody<'a> {
    let mut revocations = all.page(after, limit + 1);
    let has_more = revocations.len() > limit;
    revocations.truncate(limit);
    let next = revocations.last().filter(|_| has_more).map(|last| last.subject.field());
    RevocationsBody { node: &node.0, revocations: revocations.into_iter().map(RevocationRow::from).collect(), next }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_790_000_000_000);

    #[test]
    fn a_revocation_names_a_user_or_a_token_and_for_how_long() {
        let rule = |issued_before: Option<u64>, seconds: u64| Rule {
            issued_before: issued_before.map(UnixMs),
            until: UnixMs(NOW.0 + seconds * 1_000),
        };
        let user = |rule| Revocation { subject: Subject::User("u".into()), rule };
        for (body, expected) in [
            (r#"{"user":"u"}"#, user(rule(None, 86_400))),
            (r#"{"user":"u","issuedBefore":5,"forSeconds":1}"#, user(rule(Some(5), 1))),
            (r#"{"user":"u","issuedBefore":"2026-09-21T14:13:20.007Z"}"#, user(rule(Some(1_790_000_000_007), 86_400))),
            (r#"{"jti":"t"}"#, Revocation { subject: Subject::TokenId("t".into()), rule: rule(None, 86_400) }),
        ] {
            assert_eq!(parse(body.as_bytes(), NOW), Ok(expected), "{body}");
        }
        for wrong in [
            "{}",
            "[]",
            r#"{"user":""}"#,
            r#"{"user":"u","jti":"t"}"#,
            r#"{"user":7}"#,
            r#"{"user":"u","forSeconds":0}"#,
            r#"{"user":"u","forSeconds":31622401}"#,
            r#"{"user":"u","issuedBefore":"yesterday"}"#,
            r#"{"user":"u","issuedBefore":-1}"#,
            r#"{"user":"u","forever":true}"#,
        ] {
            let Err(Refusal::BadRequest(message)) = parse(wrong.as_bytes(), NOW) else { panic!("{wrong}") };
            assert!(message.ends_with(TAKES), "{wrong}: {message}");
        }
    }

    #[test]
    fn pages_follow_each_other() {
        let mut all = RevocationSet::default();
        for user in ["a", "b", "c"] {
            let rule = Rule { issued_before: Some(UnixMs(0)), until: NOW };
            all.add(&Revocation { subject: Subject::User(user.into()), rule });
        }
        let node = NodeId("p".into());
        let json = |after, limit| serde_json::to_string(&page(&node, &all, after, limit)).unwrap();
        let row = |user: &str| {
            format!(
                r#"{{"user":"{user}","issuedBefore":"1970-01-01T00:00:00.000Z","until":"2026-09-21T14:13:20.000Z"}}"#
            )
        };
        let (a, b, c) = (row("a"), row("b"), row("c"));
        assert_eq!(json("", 2), format!(r#"{{"node":"p","revocations":[{a},{b}],"next":"user:b"}}"#));
        assert_eq!(json("user:b", 2), format!(r#"{{"node":"p","revocations":[{c}]}}"#));
        assert_eq!(json("", 3), format!(r#"{{"node":"p","revocations":[{a},{b},{c}]}}"#));
    }
}
