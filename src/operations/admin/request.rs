//! What operators ask, parsed: unknown, repeated and invalid parameters are faults that say what would be right.

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tracing::Level;

use super::answer::Refusal;
use crate::ids::{AssessmentId, SlotNumber};
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
