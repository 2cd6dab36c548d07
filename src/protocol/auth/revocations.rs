//! Tokens that operators have revoked (PROTOCOL 5): all of a user, or one by its id; kept until the tokens concerned are
//! over. What is kept is also what Redis holds: a field that names the tokens, and a value in JSON.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Grant;
use super::claims::token_id;
use crate::clock::UnixMs;

/// Revoked tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Revocation {
    /// Whose tokens.
    pub(crate) subject: Subject,
    /// Which of them, and for how long.
    pub(crate) rule: Rule,
}

/// Whose tokens are revoked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// All of a user.
    User(Box<str>),
    /// The one with this `jti`.
    TokenId(Box<str>),
}

/// Which tokens of a subject are revoked, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rule {
    /// Those issued before this time, and those that don't say when; `None`: all.
    #[serde(rename = "issuedBeforeMs", default, skip_serializing_if = "Option::is_none")]
    pub(crate) issued_before: Option<UnixMs>,
    /// When they are over, and the revocation is forgotten.
    #[serde(rename = "untilMs")]
    pub(crate) until: UnixMs,
}

impl Rule {
    fn covers(&self, issued: Option<UnixMs>, now: UnixMs) -> bool {
        let is_older = |before: UnixMs| issued.is_none_or(|issued| issued < before);
        now < self.until && self.issued_before.is_none_or(is_older)
    }

    /// What both cover.
    fn union(self, other: Self) -> Self {
        let issued_before = self.issued_before.zip(other.issued_before).map(|(a, b)| a.max(b));
        Self { issued_before, until: self.until.max(other.until) }
    }
}

impl Subject {
    /// Its field in Redis' hash.
    pub(crate) fn field(&self) -> String {
        match self {
            Self::User(user) => format!("user:{user}"),
            Self::TokenId(id) => format!("jti:{id}"),
        }
    }

    fn parse(field: &str) -> Option<Self> {
        let (kind, name) = field.split_once(':').filter(|(_, name)| !name.is_empty())?;
        match kind {
            "user" => Some(Self::User(name.into())),
            "jti" => Some(Self::TokenId(name.into())),
            _ => None,
        }
    }
}

impl Revocation {
    /// Reads a field of Redis' hash and its value; `None` if they are not of this form.
    pub(crate) fn parse(field: &str, value: &str) -> Option<Self> {
        Some(Self { subject: Subject::parse(field)?, rule: serde_json::from_str(value).ok()? })
    }

    /// The value in Redis' hash.
    pub(crate) fn value(&self) -> String {
        serde_json::to_string(&self.rule).expect("numbers are always JSON")
    }
}

/// All revocations in force.
#[derive(Debug, Clone, Default)]
pub(crate) struct RevocationSet {
    of_users: HashMap<Box<str>, Rule>,
    /// By the hash of the id, which is what is kept of a token.
    of_tokens: HashMap<u64, (Box<str>, Rule)>,
}

impl RevocationSet {
    pub(crate) fn len(&self) -> usize {
        self.of_users.len() + self.of_tokens.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is one of this subject.
    pub(crate) fn has(&self, subject: &Subject) -> bool {
        match subject {
            Subject::User(user) => self.of_users.contains_key(user),
            Subject::TokenId(id) => self.of_tokens.contains_key(&token_id(id)),
        }
    }

    /// Adds one to those of its subject.
    pub(crate) fn add(&mut self, revocation: &Revocation) {
        let rule = revocation.rule;
        match &revocation.subject {
            Subject::User(user) => {
                let known = self.of_users.entry(user.clone()).or_insert(rule);
                *known = known.union(rule);
            }
            Subject::TokenId(id) => {
                let (_, known) = self.of_tokens.entry(token_id(id)).or_insert_with(|| (id.clone(), rule));
                *known = known.union(rule);
            }
        }
    }

    /// Forgets those whose tokens are over.
    pub(crate) fn forget_past(&mut self, now: UnixMs) {
        self.of_users.retain(|_, rule| now < rule.until);
        self.of_tokens.retain(|_, (_, rule)| now < rule.until);
    }

    /// Whether a token is revoked.
    pub(crate) fn covers(&self, user: &str, issued: Option<UnixMs>, token_id: Option<u64>, now: UnixMs) -> bool {
        if self.is_empty() {
            return false;
        }
        let of_token = token_id.and_then(|id| self.of_tokens.get(&id)).map(|(_, rule)| rule);
        self.of_users.get(user).into_iter().chain(of_token).any(|rule| rule.covers(issued, now))
    }

    /// Whether the token of a grant is revoked.
    pub(crate) fn covers_grant(&self, grant: &Grant, now: UnixMs) -> bool {
        self.covers(&grant.user, grant.issued, grant.token_id, now)
    }

    /// Up to `limit` of them behind `after`, in the order of their fields.
    pub(crate) fn page(&self, after: &str, limit: usize) -> Vec<Revocation> {
        let users = self.of_users.iter().map(|(user, rule)| (Subject::User(user.clone()), rule));
        let tokens = self.of_tokens.values().map(|(id, rule)| (Subject::TokenId(id.clone()), rule));
        let mut all: Vec<_> = users.chain(tokens).map(|(subject, rule)| (subject.field(), subject, *rule)).collect();
        all.retain(|(field, ..)| field.as_str() > after);
        all.sort_unstable_by(|(a, ..), (b, ..)| a.cmp(b));
        all.into_iter().take(limit).map(|(_, subject, rule)| Revocation { subject, rule }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_000_000);

    fn revocation(field: &str, issued_before: Option<u64>, until: u64) -> Revocation {
        let rule = Rule { issued_before: issued_before.map(UnixMs), until: UnixMs(until) };
        Revocation { subject: Subject::parse(field).unwrap(), rule }
    }

    fn set(revocations: &[Revocation]) -> RevocationSet {
        let mut set = RevocationSet::default();
        revocations.iter().for_each(|revocation| set.add(revocation));
        set
    }

    #[test]
    fn a_users_tokens_are_revoked_by_when_they_were_issued_and_one_by_its_id() {
        let set = set(&[
            revocation("user:all", None, 2_000_000),
            revocation("user:old", Some(900_000), 2_000_000),
            revocation("jti:t-1", None, 2_000_000),
        ]);
        let covers =
            |user, issued: Option<u64>, id: Option<&str>| set.covers(user, issued.map(UnixMs), id.map(token_id), NOW);
        assert!(covers("all", Some(999_999), None) && covers("all", None, Some("t-2")));
        assert!(covers("old", Some(899_999), None) && covers("old", None, None));
        assert!(!covers("old", Some(900_000), None));
        assert!(covers("u", None, Some("t-1")) && !covers("u", None, Some("t-2")) && !covers("u", None, None));
        assert!(!set.covers("all", None, None, UnixMs(2_000_000)), "its tokens are over");
    }

    #[test]
    fn two_revocations_of_one_subject_cover_what_either_does() {
        for order in [[0, 1], [1, 0]] {
            let both = [revocation("user:u", Some(10), 500), revocation("user:u", Some(20), 400)];
            let union = set(&order.map(|index| both[index].clone())).page("", 9);
            assert_eq!(union, [revocation("user:u", Some(20), 500)]);
            let both = [revocation("user:u", Some(10), 500), revocation("user:u", None, 400)];
            assert_eq!(set(&order.map(|index| both[index].clone())).page("", 9), [revocation("user:u", None, 500)]);
        }
    }

    #[test]
    fn what_is_kept_can_be_read_again_and_the_past_is_forgotten() {
        let all = [
            revocation("jti:a:b", None, 1_000_001),
            revocation("user:ü", Some(5), 1_000_000),
            revocation("user:v", Some(u64::MAX), u64::MAX),
        ];
        for one in &all {
            assert_eq!(Revocation::parse(&one.subject.field(), &one.value()).as_ref(), Some(one));
        }
        for (field, value) in
            [("user:", r#"{"untilMs":1}"#), ("u", r#"{"untilMs":1}"#), ("user:u", "{}"), ("x:u", r#"{"untilMs":1}"#)]
        {
            assert_eq!(Revocation::parse(field, value), None, "{field} {value}");
        }
        let mut set = set(&all);
        assert_eq!(set.page("", 2), [all[0].clone(), all[2].clone()]);
        assert_eq!(set.page("user:v", 9), all[1..2]);
        assert_eq!(set.page("user:ü", 9), []);
        set.forget_past(NOW);
        assert_eq!(set.len(), 2);
    }
}
