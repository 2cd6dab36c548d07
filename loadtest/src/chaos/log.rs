//! What a run writes down while it happens, one line a fact, and reads afterwards: what was made, what each client saw,
//! and which faults there were. Times are milliseconds since the run's start.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};

use super::schedule::FaultKind;

/// What became of an event that was sent to the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The brokers have it, and its transaction, if it had one, is committed.
    ProducedEvent,
    /// Its transaction is aborted: nobody may see it.
    Aborted,
    /// Nobody told: it may be seen or not.
    Unknown,
    /// The brokers had it, and lost it with the end of a log. It may have been seen before.
    Truncated,
    /// Besides what else is known of it: compaction removed it from the log. Who was there got it before.
    Compacted,
    /// Besides what else is known of it: the log holds it more than once. A producer may write an event again where the
    /// brokers went down before they answered; a gateway is to deliver what the log holds.
    Again,
}

/// An event, and when its fate was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducedEvent {
    /// When its fate was known.
    pub at_ms: u64,
    /// Whose it is.
    pub assessment: u32,
    /// Its topic's place among the ten.
    pub topic: u8,
    /// Its number in this topic of this assessment, from 0, without holes.
    pub number: u64,
    /// What became of it.
    pub fate: Fate,
}

/// A fact of a client's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientLogEntry {
    /// When it was so.
    pub at_ms: u64,
    /// Which client.
    pub client: u32,
    /// What was.
    pub what: ClientFact,
}

/// What a client did, or saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientFact {
    /// It will watch this assessment. Its first word.
    Watches(u32),
    /// It opens a connection.
    Tries,
    /// It could not open one: why.
    Failed(String),
    /// `connected` came.
    Connected {
        /// The pod.
        node: String,
        /// Whether the client gave a cursor.
        asked: bool,
        /// Whether the pod goes on from it.
        resumed: bool,
    },
    /// An event came.
    Event {
        /// Its topic's place among the ten.
        topic: u8,
        /// Its number there.
        number: u64,
    },
    /// `reset` came, for this reason.
    Reset(String),
    /// It was sent to this pod.
    Redirected(String),
    /// It did not read for so many milliseconds, by its own will; told when it reads again.
    Absent(u64),
    /// Its connection ended: how.
    Gone(EndCause),
    /// It was told what no pod should say.
    Wrong(String),
    /// The run is over for it.
    Done,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// By a close frame of this code.
    Closed(u16),
    /// Without one.
    Cut,
    /// The client heard nothing for too long, and gave up.
    Silent,
    /// The client itself ended it, as a fault of this kind.
    Own(FaultKind),
}

/// A fault, from its begin until all that it touched was up again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultSpan {
    /// What it was.
    pub kind: FaultKind,
    /// Whom it hit: names, divided by commas; empty for what has no name.
    pub target: String,
    /// Its begin.
    pub from_ms: u64,
    /// Its end.
    pub to_ms: u64,
}

// ---- as lines -------------------------------------------------------------------------------------------------------

impl fmt::Display for ProducedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = match self.fate {
            Fate::ProducedEvent => "made",
            Fate::Aborted => "aborted",
            Fate::Unknown => "unknown",
            Fate::Truncated => "truncated",
            Fate::Compacted => "compacted",
            Fate::Again => "again",
        };
        write!(f, "{} {} {} {} {fate}", self.at_ms, self.assessment, self.topic, self.number)
    }
}

impl FromStr for ProducedEvent {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split(' ');
        let mut word = || words.next().context("a word is missing");
        Ok(Self {
            at_ms: word()?.parse()?,
            assessment: word()?.parse()?,
            topic: word()?.parse()?,
            number: word()?.parse()?,
            fate: match word()? {
                "made" => Fate::ProducedEvent,
                "aborted" => Fate::Aborted,
                "unknown" => Fate::Unknown,
                "truncated" => Fate::Truncated,
                "compacted" => Fate::Compacted,
                "again" => Fate::Again,
                other => bail!("no fate: {other:?}"),
            },
        })
    }
}

impl fmt::Display for ClientLogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.at_ms, self.client)?;
        match &self.what {
            ClientFact::Watches(assessment) => write!(f, "watches {assessment}"),
            ClientFact::Tries => f.write_str("tries"),
            ClientFact::Failed(why) => write!(f, "failed {}", one_line(why)),
            ClientFact::Connected { node, asked, resumed } => write!(f, "connected {asked} {resumed} {node}"),
            ClientFact::Event { topic, number } => write!(f, "event {topic} {number}"),
            ClientFact::Reset(reason) => write!(f, "reset {reason}"),
            ClientFact::Redirected(node) => write!(f, "redirected {node}"),
            ClientFact::Absent(ms) => write!(f, "absent {ms}"),
            ClientFact::Gone(EndCause::Closed(code)) => write!(f, "gone closed {code}"),
            ClientFact::Gone(EndCause::Cut) => f.write_str("gone cut"),
            ClientFact::Gone(EndCause::Silent) => f.write_str("gone silent"),
            ClientFact::Gone(EndCause::Own(kind)) => write!(f, "gone own {kind}"),
            ClientFact::Wrong(what) => write!(f, "wrong {}", one_line(what)),
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
            "watches" => ClientFact::Watches(rest.parse()?),
            "tries" => ClientFact::Tries,
            "failed" => ClientFact::Failed(rest.to_owned()),
            "connected" => {
                let (asked, (resumed, node)) = pair().and_then(|(asked, more)| {
                    Ok((asked.parse()?, more.split_once(' ').context("two words were expected")?))
                })?;
                ClientFact::Connected { node: node.to_owned(), asked, resumed: resumed.parse()? }
            }
            "event" => pair()
                .and_then(|(topic, number)| Ok(ClientFact::Event { topic: topic.parse()?, number: number.parse()? }))?,
            "reset" => ClientFact::Reset(rest.to_owned()),
            "redirected" => ClientFact::Redirected(rest.to_owned()),
            "absent" => ClientFact::Absent(rest.parse()?),
            "gone" => ClientFact::Gone(match rest {
                "cut" => EndCause::Cut,
                "silent" => EndCause::Silent,
                _ => match pair()? {
                    ("closed", code) => EndCause::Closed(code.parse()?),
                    ("own", kind) => EndCause::Own(kind.parse()?),
                    _ => bail!("no end: {rest:?}"),
                },
            }),
            "wrong" => ClientFact::Wrong(rest.to_owned()),
            "done" => ClientFact::Done,
            other => bail!("no such fact: {other:?}"),
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

// ---- as files -------------------------------------------------------------------------------------------------------

/// A file that only grows.
pub(super) struct LogFile(Mutex<BufWriter<File>>);

impl LogFile {
    /// A new file.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(Mutex::new(BufWriter::new(File::create(path)?))))
    }

    /// Adds a line. A log that can't be written would make the checker's word worthless: that ends the run.
    pub(super) fn add(&self, line: &impl fmt::Display) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(file, "{line}").expect("the run's directory takes its logs");
    }

    /// Brings all to the file.
    pub(super) fn flush(&self) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.flush().expect("the run's directory takes its logs");
    }
}

/// Reads a log line by line.
///
/// # Errors
/// Where the file can't be read; each line that is none of its kind is an error of its own.
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
    fn what_is_written_is_read_as_it_was() {
        let besides = [Fate::Compacted, Fate::Again];
        for fate in [Fate::ProducedEvent, Fate::Aborted, Fate::Unknown, Fate::Truncated].into_iter().chain(besides) {
            let made = ProducedEvent { at_ms: 5, assessment: 7, topic: 9, number: 11, fate };
            assert_eq!(made.to_string().parse::<ProducedEvent>().unwrap(), made);
        }
        let facts = [
            ClientFact::Watches(3),
            ClientFact::Tries,
            ClientFact::Failed("503 come back later".into()),
            ClientFact::Connected { node: "pod-1".into(), asked: true, resumed: false },
            ClientFact::Event { topic: 2, number: 40 },
            ClientFact::Reset("expired".into()),
            ClientFact::Redirected("pod-2".into()),
            ClientFact::Absent(75_000),
            ClientFact::Gone(EndCause::Closed(1012)),
            ClientFact::Gone(EndCause::Cut),
            ClientFact::Gone(EndCause::Silent),
            ClientFact::Gone(EndCause::Own(FaultKind::Drop)),
            ClientFact::Wrong("a message nobody knows".into()),
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
