//! What operators ask, parsed: unknown, repeated and invalid parameters are faults that say what would be right.

use std::fmt;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use tracing::Level;

use super::answer::Refusal;
use crate::exchange::ConnectionFilter;
use crate::ids::{AssessmentId, ConnectionIds, ShardIndex, SlotNumber};
use crate::limits::{ADMIN_ROWS_DEFAULT, ADMIN_ROWS_MAX, LEVEL_SECONDS_MAX};

/// The query of `GET /cluster`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClusterQuery {
    /// The assessment whose owner is asked for.
    pub(super) assessment: Option<AssessmentId>,
    /// Rows in the answer.
    pub(super) limit: usize,
    /// The last slot of the previous page.
    pub(super) after: Option<SlotNumber>,
}

impl ClusterQuery {
    pub(super) fn parse(query: &str) -> Result<Self, Refusal> {
        let mut parameters = Parameters::parse(query, &["assessmentId", "limit", "after"])?;
        Ok(Self {
            assessment: parameters.assessment()?,
            limit: parameters.limit()?,
            after: parameters.parsed("after", "the number of a slot", |text| text.parse().ok().map(SlotNumber))?,
        })
    }
}

/// The query of a page of rows that have names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PageQuery {
    /// The last name of the previous page.
    pub(super) after: String,
    /// Rows in the answer.
    pub(super) limit: usize,
}

impl PageQuery {
    pub(super) fn parse(query: &str) -> Result<Self, Refusal> {
        let mut parameters = Parameters::parse(query, &["limit", "after"])?;
        Ok(Self { limit: parameters.limit()?, after: parameters.take("after").unwrap_or_default() })
    }
}

/// The query of `GET /connections`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ConnectionsQuery {
    /// Which connections.
    pub(super) filter: ConnectionFilter,
    /// The pod whose connections are asked for.
    pub(super) node: Option<String>,
    /// Rows in the answer.
    pub(super) limit: usize,
    /// The last connection of the previous page.
    pub(super) after: Option<(ShardIndex, u64)>,
}

impl ConnectionsQuery {
    pub(super) fn parse(query: &str, ids: &ConnectionIds) -> Result<Self, Refusal> {
        let mut parameters = Parameters::parse(query, &["user", "assessmentId", "node", "limit", "after"])?;
        Ok(Self {
            filter: ConnectionFilter {
                user: parameters.take("user").map(Into::into),
                assessment: parameters.assessment()?,
                number: None,
            },
            node: parameters.take("node"),
            limit: parameters.limit()?,
            after: parameters.parsed("after", "the `next` of this pod's previous page", |id| ids.parse(id))?,
        })
    }
}

/// The body of `POST /disconnections`, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DisconnectionBody {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    connection_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    assessment_id: Option<String>,
    reconnect: bool,
}

/// The connections that are to be closed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// All of a user.
    User(String),
    /// All of an assessment.
    Assessment(AssessmentId),
    /// The one with this id, of any pod.
    Connection(String),
}

/// For the log.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user={user:?}"),
            Self::Assessment(id) => write!(f, "assessmentId={:?}", id.as_str()),
            Self::Connection(id) => write!(f, "connectionId={id:?}"),
        }
    }
}

impl DisconnectionBody {
    /// What the body takes, in words.
    pub(super) const TAKES: &str =
        r#"one of "user", "connectionId" and "assessmentId", and "reconnect": true or false"#;

    /// The target, and whether its clients should come back.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn parse(&self) -> Result<(Target, bool), String> {
        let texts = [&self.user, &self.connection_id, &self.assessment_id];
        let target = match texts.map(Option::as_deref) {
            [Some(user), None, None] if !user.is_empty() => Target::User(user.to_owned()),
            [None, Some(id), None] if !id.is_empty() => Target::Connection(id.to_owned()),
            [None, None, Some(id)] => Target::Assessment(AssessmentId::parse(id).map_err(|fault| fault.to_string())?),
            _ => return Err(format!("takes {}", Self::TAKES)),
        };
        Ok((target, self.reconnect))
    }
}

/// The body of `PUT /log`, as it is written.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LogLevelBody {
    level: String,
    #[serde(default)]
    for_seconds: Option<u64>,
}

impl LogLevelBody {
    /// What the body takes, in words.
    pub(super) const TAKES: &str =
        r#""level": error, warn, info, debug or trace, and, if for a while, "forSeconds", up to a week"#;

    /// The level, and for how many seconds.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn parse(&self) -> Result<(Level, Option<u64>), String> {
        let names = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        let level = names.into_iter().find(|level| level.as_str().to_ascii_lowercase() == self.level);
        let is_bounded = self.for_seconds.is_none_or(|seconds| (1..=LEVEL_SECONDS_MAX).contains(&seconds));
        match level {
            Some(level) if is_bounded => Ok((level, self.for_seconds)),
            _ => Err(format!("takes {}", Self::TAKES)),
        }
    }
}

/// The page takes no parameter.
pub(super) fn no_query(query: &str) -> Result<(), Refusal> {
    Parameters::parse(query, &[]).map(drop)
}

/// Parses a JSON body; a fault says what it takes.
pub(super) fn body<'a, T: Deserialize<'a>>(bytes: &'a [u8], takes: &str) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|fault| bad(format!("{fault}; takes a JSON object with {takes}")))
}

/// A query's parameters, percent-decoded; an empty one counts as absent.
struct Parameters(Vec<(&'static str, String)>);

impl Parameters {
    fn parse(query: &str, known: &[&'static str]) -> Result<Self, Refusal> {
        let mut parameters: Vec<(&'static str, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(name) = known.iter().find(|known| **known == name) else {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(bad(format!("unknown parameter {name:?}; takes {known}")));
            };
            let value = percent_decode_str(value).decode_utf8().map_err(|_| bad(format!("{name} is not UTF-8")))?;
            if parameters.iter().any(|(other, _)| other == name) {
                return Err(bad(format!("{name} is given twice")));
            }
            parameters.push((name, value.into_owned()));
        }
        parameters.retain(|(_, value)| !value.is_empty());
        Ok(Self(parameters))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(other, _)| *other == name)?;
        Some(self.0.swap_remove(index).1)
    }

    fn parsed<T>(
        &mut self,
        name: &str,
        takes: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        parse(&value).map(Some).ok_or_else(|| bad(format!("{name}: got {value:?}; takes {takes}")))
    }

    fn assessment(&mut self) -> Result<Option<AssessmentId>, Refusal> {
        let id = self.take("assessmentId").map(|id| AssessmentId::parse(&id));
        id.transpose().map_err(|fault| bad(fault.to_string()))
    }

    fn limit(&mut self) -> Result<usize, Refusal> {
        let takes = format!("a number of rows, 1 to {ADMIN_ROWS_MAX}");
        let in_bounds = |text: &str| text.parse().ok().filter(|limit| (1..=ADMIN_ROWS_MAX).contains(limit));
        Ok(self.parsed("limit", &takes, in_bounds)?.unwrap_or(ADMIN_ROWS_DEFAULT))
    }
}

pub(super) fn bad(message: String) -> Refusal {
    Refusal::BadRequest(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(query: &str) -> String {
        match ClusterQuery::parse(query) {
            Err(Refusal::BadRequest(message)) => message,
            other => panic!("{query}: {other:?}"),
        }
    }

    #[test]
    fn a_query_is_decoded_and_has_defaults() {
        let query = |query| ClusterQuery::parse(query).unwrap();
        let none = ClusterQuery { assessment: None, limit: ADMIN_ROWS_DEFAULT, after: None };
        assert_eq!(query(""), none);
        assert_eq!(query("&assessmentId=&limit="), none);
        let all = query("after=7&limit=1&assessmentId=a%20%26+b");
        assert_eq!(all.assessment.as_ref().map(AssessmentId::as_str), Some("a &+b"));
        assert_eq!((all.limit, all.after), (1, Some(SlotNumber(7))));
    }

    fn disconnection(text: &str) -> Result<(Target, bool), String> {
        match body::<DisconnectionBody>(text.as_bytes(), DisconnectionBody::TAKES) {
            Ok(body) => body.parse(),
            Err(Refusal::BadRequest(fault)) => Err(fault),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_disconnection_has_one_target() {
        let id = AssessmentId::parse("a").unwrap();
        let good = [
            (r#"{"user":"u","reconnect":false}"#, (Target::User("u".into()), false)),
            (r#"{"reconnect":true,"connectionId":"p-1"}"#, (Target::Connection("p-1".into()), true)),
            (r#"{"assessmentId":"a","reconnect":false}"#, (Target::Assessment(id), false)),
        ];
        for (text, expected) in good {
            assert_eq!(disconnection(text), Ok(expected), "{text}");
        }
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"reconnect":true}"#,
            r#"{"user":"u"}"#,
            r#"{"user":"","reconnect":true}"#,
            r#"{"user":"u","assessmentId":"a","reconnect":true}"#,
            r#"{"usr":"u","reconnect":true}"#,
            r#"{"user":7,"reconnect":true}"#,
            r#"{"user":"u","reconnect":"no"}"#,
        ] {
            let fault = disconnection(wrong).unwrap_err();
            assert!(fault.ends_with(DisconnectionBody::TAKES), "{wrong}: {fault}");
        }
        assert!(disconnection(r#"{"assessmentId":"","reconnect":true}"#).unwrap_err().contains("is empty"));
    }

    #[test]
    fn a_level_of_the_log_may_have_a_time() {
        let parse = |text: &str| match body::<LogLevelBody>(text.as_bytes(), LogLevelBody::TAKES) {
            Ok(body) => body.parse(),
            Err(Refusal::BadRequest(fault)) => Err(fault),
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(parse(r#"{"level":"debug"}"#), Ok((Level::DEBUG, None)));
        assert_eq!(parse(r#"{"level":"error","forSeconds":60}"#), Ok((Level::ERROR, Some(60))));
        for wrong in [
            "{}",
            r#"{"level":"DEBUG"}"#,
            r#"{"level":"loud"}"#,
            r#"{"level":"info","forSeconds":0}"#,
            r#"{"level":"info","forSeconds":604801}"#,
            r#"{"level":"info","forSeconds":-1}"#,
            r#"{"level":"info","seconds":1}"#,
        ] {
            let fault = parse(wrong).unwrap_err();
            assert!(fault.ends_with(LogLevelBody::TAKES), "{wrong}: {fault}");
        }
    }

    #[test]
    fn a_fault_says_what_would_be_right() {
        assert_eq!(fault("user=a"), r#"unknown parameter "user"; takes assessmentId, limit, after"#);
        assert_eq!(fault("limit=0"), format!(r#"limit: got "0"; takes a number of rows, 1 to {ADMIN_ROWS_MAX}"#));
        assert_eq!(fault("limit=1&limit=2"), "limit is given twice");
        assert_eq!(fault("after=-1"), r#"after: got "-1"; takes the number of a slot"#);
        assert_eq!(fault("assessmentId=%ff"), "assessmentId is not UTF-8");
        assert!(fault("assessmentId=%07").contains("control character"));
    }
}
