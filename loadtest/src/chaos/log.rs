//! What a run writes down while it happens, one line a fact, and reads afterwards: what was made, what each client saw,
//! and which faults there were. Times are milliseconds since the run's start.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};

use super::schedule::Kind;

/// What became of an event that was sent to the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The brokers have it, and its transaction, if it had one, is committed.
    Made,
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
pub struct Made {
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
pub struct Entry {
    /// When it was so.
    pub at_ms: u64,
    /// Which client.
    pub client: u32,
    /// What was.
    pub what: What,
}

/// What a client did, or saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
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
    Gone(End),
    /// It was told what no pod should say.
    Wrong(String),
    /// The run is over for it.
    Done,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By a close frame of this code.
    Closed(u16),
    /// Without one.
    Cut,
    /// The client heard nothing for too long, and gave up.
    Silent,
    /// The client itself ended it, as a fault of this kind.
    Own(Kind),
}

/// A fault, from its begin until all that it touched was up again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// What it was.
    pub kind: Kind,
    /// Whom it hit: names, divided by commas; empty for what has no name.
    pub target: String,
    /// Its begin.
    pub from_ms: u64,
    /// Its end.
    pub to_ms: u64,
}

// ---- as lines -------------------------------------------------------------------------------------------------------

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = match self.fate {
            Fate::Made => "made",
            Fate::Aborted => "aborted",
            Fate::Unknown => "unknown",
            Fate::Truncated => "truncated",
            Fate::Compacted => "compacted",
            Fate::Again => "again",
        };
        write!(f, "{} {} {} {} {fate}", self.at_ms, self.assessment, self.topic, self.number)
    }
}

impl FromStr for Made {
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
                "made" => Fate::Made,
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

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.at_ms, self.client)?;
        match &self.what {
            What::Watches(assessment) => write!(f, "watches {assessment}"),
            What::Tries => f.write_str("tries"),
            What::Failed(why) => write!(f, "failed {}", one_line(why)),
            What::Connected { node, asked, resumed } => write!(f, "connected {asked} {resumed} {node}"),
            What::Event { topic, number } => write!(f, "event {topic} {number}"),
            What::Reset(reason) => write!(f, "reset {reason}"),
            What::Redirected(node) => write!(f, "redirected {node}"),
            What::Absent(ms) => write!(f, "absent {ms}"),
            What::Gone(End::Closed(code)) => write!(f, "gone closed {code}"),
            What::Gone(End::Cut) => f.write_str("gone cut"),
            What::Gone(End::Silent) => f.write_str("gone silent"),
            What::Gone(End::Own(kind)) => write!(f, "gone own {kind}"),
            What::Wrong(what) => write!(f, "wrong {}", one_line(what)),
            What::Done => f.write_str("done"),
        }
    }
}

impl FromStr for Entry {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().context("a word is missing");
        let (at_ms, client, verb) = (word()?.parse()?, word()?.parse()?, word()?);
        let rest = words.next().unwrap_or_default();
        let pair = || rest.split_once(' ').context("two words were expected");
        let what = match verb {
            "watches" => What::Watches(rest.parse()?),
            "tries" => What::Tries,
            "failed" => What::Failed(rest.to_owned()),
            "connected" => {
                let (asked, (resumed, node)) = pair().and_then(|(asked, more)| {
                    Ok((asked.parse()?, more.split_once(' ').context("two words were expected")?))
                })?;
                What::Connected { node: node.to_owned(), asked, resumed: resumed.parse()? }
            }
            "event" => {
                pair().and_then(|(topic, number)| Ok(What::Event { topic: topic.parse()?, number: number.parse()? }))?
            }
            "reset" => What::Reset(rest.to_owned()),
            "redirected" => What::Redirected(rest.to_owned()),
            "absent" => What::Absent(rest.parse()?),
            "gone" => What::Gone(match rest {
                "cut" => End::Cut,
                "silent" => End::Silent,
                _ => match pair()? {
                    ("closed", code) => End::Closed(code.parse()?),
                    ("own", kind) => End::Own(kind.parse()?),
                    _ => bail!("no end: {rest:?}"),
                },
            }),
            "wrong" => What::Wrong(rest.to_owned()),
            "done" => What::Done,
            other => bail!("no such fact: {other:?}"),
        };
        Ok(Self { at_ms, client, what })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.from_ms, self.to_ms, self.kind, self.target)
    }
}

impl FromStr for Span {
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
pub(super) struct Writer(Mutex<BufWriter<File>>);

impl Writer {
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
        for fate in [Fate::Made, Fate::Aborted, Fate::Unknown, Fate::Truncated].into_iter().chain(besides) {
            let made = Made { at_ms: 5, assessment: 7, topic: 9, number: 11, fate };
            assert_eq!(made.to_string().parse::<Made>().unwrap(), made);
        }
        let facts = [
            What::Watches(3),
            What::Tries,
            What::Failed("503 come back later".into()),
            What::Connected { node: "pod-1".into(), asked: true, resumed: false },
            What::Event { topic: 2, number: 40 },
            What::Reset("expired".into()),
            What::Redirected("pod-2".into()),
            What::Absent(75_000),
            What::Gone(End::Closed(1012)),
            What::Gone(End::Cut),
            What::Gone(End::Silent),
            What::Gone(End::Own(Kind::Drop)),
            What::Wrong("a message nobody knows".into()),
            What::Done,
        ];
        for what in facts {
            let entry = Entry { at_ms: 1, client: 2, what };
            assert_eq!(entry.to_string().parse::<Entry>().unwrap(), entry);
        }
        for target in ["pod-0,pod-1", ""] {
            let span = Span { kind: Kind::Rolling, target: target.into(), from_ms: 1, to_ms: 9 };
            assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
        }
        for bad in ["", "1 2", "1 2 event 3", "1 2 event x 3", "1 2 gone home", "1 2 sleeps"] {
            assert!(bad.parse::<Entry>().is_err(), "{bad:?}");
        }
    }
}
