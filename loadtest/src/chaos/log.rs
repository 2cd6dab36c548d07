//! The log files of a run, one line per fact: produced events, what each client received, and the faults. Times are
//! milliseconds since the start of the run.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};

use super::schedule::FaultKind;

/// Fate of an event that was sent to the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The brokers acknowledged it, and its transaction, if any, is committed.
    Produced,
    /// Its transaction was aborted: no client may receive it.
    Aborted,
    /// The producer never learned it: clients may receive it or not.
    Unknown,
    /// The brokers had it and lost it in a truncation. Clients may have received it before.
    Truncated,
    /// In addition to its other fate: compaction removed it from the log. Connected clients received it before.
    Compacted,
    /// In addition to its other fate: the log holds it more than once. A producer may write an event again if the
    /// brokers went down before they answered. A gateway delivers what the log holds.
    Repeated,
}

/// An event and its fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducedEvent {
    /// Time when its fate became known.
    pub at_ms: u64,
    /// Time when it was sent, or its transaction began: no pod has read it before. Equal to `at_ms` for a fate that the
    /// log's contents show.
    pub sent_ms: u64,
    /// Its assessment.
    pub assessment: u32,
    /// Index of its topic among the ten.
    pub topic: u8,
    /// Its number in this topic of this assessment, from 0, without gaps.
    pub number: u64,
    /// Its fate.
    pub fate: Fate,
}

/// A line in the clients' log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientLogEntry {
    /// Time of the fact.
    pub at_ms: u64,
    /// The client's number.
    pub client: u32,
    /// The fact.
    pub what: ClientFact,
}

/// An action of a client, or something that it received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientFact {
    /// It will subscribe to this assessment. The first fact of each client.
    Subscribes(u32),
    /// It opens a connection.
    Connecting,
    /// It could not open one, for this reason.
    ConnectFailed(String),
    /// It received `connected`.
    Connected {
        /// The pod.
        node: String,
        /// Whether the client sent a cursor.
        sent_cursor: bool,
        /// Whether the pod resumed from it.
        resumed: bool,
    },
    /// It received an event.
    Event {
        /// Index of its topic among the ten.
        topic: u8,
        /// Its number in that topic.
        number: u64,
    },
    /// It received `reset` with this reason.
    Reset(String),
    /// It was redirected to this pod.
    Redirected(String),
    /// An injected fault kept it from reading for this many milliseconds. Logged when it reads again.
    NotReading(u64),
    /// Its connection ended.
    Disconnected(EndCause),
    /// It received something that breaks the protocol.
    Violation(String),
    /// It ended with the run.
    Done,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// A close frame with this code.
    Closed(u16),
    /// The connection was aborted without a close frame.
    Aborted,
    /// The client received nothing for too long.
    HeartbeatTimeout,
    /// The client ended it, as a fault of this kind.
    Injected(FaultKind),
}

/// A fault, from its start until everything that it hit was up again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultSpan {
    /// Kind of the fault.
    pub kind: FaultKind,
    /// Names of what it hit, separated by commas. Empty if the target has no name.
    pub target: String,
    /// Start of the fault.
    pub from_ms: u64,
    /// End of the fault.
    pub to_ms: u64,
}

// ---- lines ----------------------------------------------------------------------------------------------------------

impl fmt::Display for ProducedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = match self.fate {
            Fate::Produced => "made",
            Fate::Aborted => "aborted",
            Fate::Unknown => "unknown",
            Fate::Truncated => "truncated",
            Fate::Compacted => "compacted",
            Fate::Repeated => "again",
        };
        write!(f, "{} {} {} {} {} {fate}", self.at_ms, self.sent_ms, self.assessment, self.topic, self.number)
    }
}

impl FromStr for ProducedEvent {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split(' ');
        let mut word = || words.next().context("a word is missing");
        Ok(Self {
            at_ms: word()?.parse()?,
            sent_ms: word()?.parse()?,
            assessment: word()?.parse()?,
            topic: word()?.parse()?,
            number: word()?.parse()?,
            fate: match word()? {
                "made" => Fate::Produced,
                "aborted" => Fate::Aborted,
                "unknown" => Fate::Unknown,
                "truncated" => Fate::Truncated,
                "compacted" => Fate::Compacted,
                "again" => Fate::Repeated,
                other => bail!("unknown fate: {other:?}"),
            },
        })
    }
}

impl fmt::Display for ClientLogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.at_ms, self.client)?;
        match &self.what {
            ClientFact::Subscribes(assessment) => write!(f, "watches {assessment}"),
            ClientFact::Connecting => f.write_str("tries"),
            ClientFact::ConnectFailed(why) => write!(f, "failed {}", one_line(why)),
            ClientFact::Connected { node, sent_cursor, resumed } => {
                write!(f, "connected {sent_cursor} {resumed} {node}")
            }
            ClientFact::Event { topic, number } => write!(f, "event {topic} {number}"),
            ClientFact::Reset(reason) => write!(f, "reset {reason}"),
            ClientFact::Redirected(node) => write!(f, "redirected {node}"),
            ClientFact::NotReading(ms) => write!(f, "absent {ms}"),
            ClientFact::Disconnected(EndCause::Closed(code)) => write!(f, "gone closed {code}"),
            ClientFact::Disconnected(EndCause::Aborted) => f.write_str("gone cut"),
            ClientFact::Disconnected(EndCause::HeartbeatTimeout) => f.write_str("gone silent"),
            ClientFact::Disconnected(EndCause::Injected(kind)) => write!(f, "gone own {kind}"),
            ClientFact::Violation(what) => write!(f, "wrong {}", one_line(what)),
            ClientFact::Done => f.write_str("done"),
        }
    }
}

impl FromStr for ClientLogEntry {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().context("a word is missing");
        let (at_ms, client, verb) = (word()?.parse()?, word()?.parse()?, word()?);
        let rest = words.next().unwrap_or_default();
        let pair = || rest.split_once(' ').context("two words were expected");
        let what = match verb {
            "watches" => ClientFact::Subscribes(rest.parse()?),
            "tries" => ClientFact::Connecting,
            "failed" => ClientFact::ConnectFailed(rest.to_owned()),
            "connected" => {
                let (sent_cursor, (resumed, node)) = pair().and_then(|(sent_cursor, more)| {
                    Ok((sent_cursor.parse()?, more.split_once(' ').context("two words were expected")?))
                })?;
                ClientFact::Connected { node: node.to_owned(), sent_cursor, resumed: resumed.parse()? }
            }
            "event" => pair()
                .and_then(|(topic, number)| Ok(ClientFact::Event { topic: topic.parse()?, number: number.parse()? }))?,
            "reset" => ClientFact::Reset(rest.to_owned()),
            "redirected" => ClientFact::Redirected(rest.to_owned()),
            "absent" => ClientFact::NotReading(rest.parse()?),
            "gone" => ClientFact::Disconnected(match rest {
                "cut" => EndCause::Aborted,
                "silent" => EndCause::HeartbeatTimeout,
                _ => match pair()? {
                    ("closed", code) => EndCause::Closed(code.parse()?),
                    ("own", kind) => EndCause::Injected(kind.parse()?),
                    _ => bail!("unknown end cause: {rest:?}"),
                },
            }),
            "wrong" => ClientFact::Violation(rest.to_owned()),
            "done" => ClientFact::Done,
            other => bail!("unknown fact: {other:?}"),
        };
        Ok(Self { at_ms, client, what })
    }
}

impl fmt::Display for FaultSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.from_ms, self.to_ms, self.kind, self.target)
    }
}

impl FromStr for FaultSpan {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().context("a word is missing");
        let (from_ms, to_ms, kind) = (word()?.parse()?, word()?.parse()?, word()?.parse()?);
        Ok(Self { kind, target: word()?.to_owned(), from_ms, to_ms })
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

// ---- files ----------------------------------------------------------------------------------------------------------

/// An append-only log file.
pub(super) struct LogFile(Mutex<BufWriter<File>>);

impl LogFile {
    /// Creates the file.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(Mutex::new(BufWriter::new(File::create(path)?))))
    }

    /// Appends a line. A log that can't be written ends the run, because the checker could not be trusted.
    pub(super) fn add(&self, line: &impl fmt::Display) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(file, "{line}").expect("the run's directory is writable");
    }

    /// Writes buffered lines to the file.
    pub(super) fn flush(&self) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.flush().expect("the run's directory is writable");
    }
}

/// Reads a log line by line.
///
/// # Errors
/// If the file can't be opened. Each line that can't be parsed is an error in the iterator.
pub fn read<T: FromStr<Err = anyhow::Error>>(path: &Path) -> Result<impl Iterator<Item = Result<T>>> {
    let file = BufReader::new(File::open(path).with_context(|| path.display().to_string())?);
    Ok(file.lines().map(|line| {
        let line = line?;
        line.parse().with_context(|| format!("in the line {line:?}"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_line_is_read_as_it_was_written() {
        let additional = [Fate::Compacted, Fate::Repeated];
        for fate in [Fate::Produced, Fate::Aborted, Fate::Unknown, Fate::Truncated].into_iter().chain(additional) {
            let made = ProducedEvent { at_ms: 5, sent_ms: 3, assessment: 7, topic: 9, number: 11, fate };
            assert_eq!(made.to_string().parse::<ProducedEvent>().unwrap(), made);
        }
        let facts = [
            ClientFact::Subscribes(3),
            ClientFact::Connecting,
            ClientFact::ConnectFailed("503 come back later".into()),
            ClientFact::Connected { node: "pod-1".into(), sent_cursor: true, resumed: false },
            ClientFact::Event { topic: 2, number: 40 },
            ClientFact::Reset("expired".into()),
            ClientFact::Redirected("pod-2".into()),
            ClientFact::NotReading(75_000),
            ClientFact::Disconnected(EndCause::Closed(1012)),
            ClientFact::Disconnected(EndCause::Aborted),
            ClientFact::Disconnected(EndCause::HeartbeatTimeout),
            ClientFact::Disconnected(EndCause::Injected(FaultKind::Drop)),
            ClientFact::Violation("an unknown message".into()),
            ClientFact::Done,
        ];
        for what in facts {
            let entry = ClientLogEntry { at_ms: 1, client: 2, what };
            assert_eq!(entry.to_string().parse::<ClientLogEntry>().unwrap(), entry);
        }
        for target in ["pod-0,pod-1", ""] {
            let span = FaultSpan { kind: FaultKind::Rolling, target: target.into(), from_ms: 1, to_ms: 9 };
            assert_eq!(span.to_string().parse::<FaultSpan>().unwrap(), span);
        }
        for bad in ["", "1 2", "1 2 event 3", "1 2 event x 3", "1 2 gone home", "1 2 sleeps"] {
            assert!(bad.parse::<ClientLogEntry>().is_err(), "{bad:?}");
        }
    }
}
