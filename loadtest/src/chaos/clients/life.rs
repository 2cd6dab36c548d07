//! One client's life: it opens connections, reads, keeps the last cursor that it saw, and does as the contract says
//! when a connection ends. All that it sees, it writes down.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Shared;
use super::connection::{ClientConnection, ConnectionEvent};
use super::reconnect_policy::{Goal, Next, after_end, after_failure, is_half_open, is_wrong};
use crate::chaos::log::{ClientFact, ClientLogEntry, EndCause};
use crate::chaos::producer;
use crate::chaos::schedule::FaultKind;
use crate::client::{Ask, Message};
use crate::events::{ExpectedMessage, FIRST_TIMESTAMP};

/// A pod that says nothing for so long is given up: it owes a ping each second.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// A pod that was asked answers within this time, or another is asked.
const OPENED_WITHIN: Duration = Duration::from_secs(2);

/// Messages that are read at one go, before others have their turn.
const MESSAGES_A_TURN: usize = 64;

/// One client in so many has a kernel that takes only so many bytes ahead: it is slow at once when it doesn't read.
const SMALL_BUFFER_IN: u32 = 4;
const SMALL_BUFFER_BYTES: usize = 4096;

/// A hasty client stays up to this long.
const HASTY_MS_MAX: u64 = 60;

/// A client.
pub(super) struct ChaosClient {
    number: u32,
    assessment: u32,
    random: fastrand::Rng,
    state: State,
    /// The last that it saw.
    cursor: Option<String>,
    /// The highest number of each topic.
    seen: BTreeMap<u8, u64>,
    /// Where it was last told to go.
    url: Option<String>,
    attempts: u32,
    /// It will lose its connection on purpose so often.
    hasty: u32,
    /// It doesn't read since then, by its own will.
    absent_since: Option<Instant>,
}

enum State {
    Waiting { until: Instant, goal: Goal },
    Connected(Box<ServedSession>),
    Done,
}

struct ServedSession {
    connection: ClientConnection,
    began: Instant,
    heard: Instant,
    asked: bool,
    is_welcome: bool,
    close: Option<u16>,
    /// It doesn't read up to then.
    stalled_until: Option<Instant>,
    /// It loses the connection then.
    drop_at: Option<Instant>,
    /// The last tick of each market.
    ticks: BTreeMap<String, u64>,
}

/// What a message may hold.
#[derive(Deserialize)]
struct Text<'a> {
    #[serde(borrow)]
    r#type: Option<&'a str>,
    #[serde(borrow)]
    error: Option<&'a str>,
    cursor: Option<String>,
    timestamp: Option<serde_json::Value>,
    node: Option<String>,
    url: Option<String>,
    reason: Option<String>,
    market: Option<String>,
    resumed: Option<bool>,
}

impl ChaosClient {
    /// A client that will connect at once.
    pub(super) fn new(number: u32, assessment: u32, seed: u64, shared: &Shared) -> Self {
        let random = fastrand::Rng::with_seed(seed ^ (u64::from(number) << 32));
        let state = State::Waiting { until: Instant::now(), goal: Goal::Any };
        let (seen, url, cursor) = (BTreeMap::new(), None, None);
        let (hasty, absent_since) = (0, None);
        let life = Self { number, assessment, random, state, cursor, seen, url, attempts: 0, hasty, absent_since };
        life.tell(shared, ClientFact::Watches(assessment));
        life
    }

    fn tell(&self, shared: &Shared, what: ClientFact) {
        shared.log.add(&ClientLogEntry { at_ms: shared.clock.ms(), client: self.number, what });
    }

    /// Whether it is served.
    pub(super) fn is_connected(&self) -> bool {
        matches!(&self.state, State::Connected(session) if session.is_welcome)
    }

    /// Whether it has all that was made for it.
    pub(super) fn has_all(&self, last: &BTreeMap<(u32, u8), u64>) -> bool {
        let mut owed = last.range((self.assessment, 0)..=(self.assessment, u8::MAX));
        self.is_connected() && owed.all(|((_, topic), number)| self.seen.get(topic) >= Some(number))
    }

    /// What `poll` is to wait for, if anything.
    pub(super) fn poll(&self) -> Option<libc::pollfd> {
        let State::Connected(session) = &self.state else { return None };
        if session.stalled_until.is_some() {
            return None;
        }
        let (fd, events) = session.connection.poll();
        Some(libc::pollfd { fd, events, revents: 0 })
    }

    // ---- time -------------------------------------------------------------------------------------------------------

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Instant, shared: &mut Shared) {
        match &mut self.state {
            State::Waiting { until, .. } if *until <= now => self.open(now, shared),
            State::Connected(session) => {
                if session.stalled_until.is_some_and(|until| until <= now) {
                    session.stalled_until = None;
                    session.heard = now;
                    return self.is_back(now, shared);
                }
                if session.stalled_until.is_some() {
                    return;
                }
                if session.drop_at.is_some_and(|at| at <= now) {
                    self.lose(FaultKind::Hasty, shared);
                } else if !session.is_welcome && now > session.began + OPENED_WITHIN {
                    self.fail("no answer", now, shared);
                } else if session.is_welcome && now > session.heard + SILENCE_MAX {
                    self.ended(EndCause::Silent, now, shared);
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, now: Instant, shared: &Shared) {
        let State::Waiting { goal, .. } = std::mem::replace(&mut self.state, State::Done) else { return };
        let url = match goal {
            Goal::Url(url) => Some(url),
            Goal::Any => shared.directory.any(&mut self.random),
        };
        self.is_back(now, shared);
        self.tell(shared, ClientFact::Tries);
        let Some(url) = url else { return self.fail("no pod is known", now, shared) };
        let mut ask = Ask::to(&url).assessment(&producer::assessment(self.assessment));
        if let Some(cursor) = &self.cursor {
            ask = ask.parameter(&format!("cursor={cursor}"));
        }
        let buffer = self.number.is_multiple_of(SMALL_BUFFER_IN).then_some(SMALL_BUFFER_BYTES);
        match ClientConnection::begin(&ask, buffer) {
            Ok(connection) => {
                let session = ServedSession {
                    connection,
                    began: now,
                    heard: now,
                    asked: self.cursor.is_some(),
                    is_welcome: false,
                    close: None,
                    stalled_until: None,
                    drop_at: None,
                    ticks: BTreeMap::new(),
                };
                self.state = State::Connected(Box::new(session));
            }
            Err(error) => self.fail(&error.to_string(), now, shared),
        }
    }

    // ---- ends -------------------------------------------------------------------------------------------------------

    fn go(&mut self, next: Next, now: Instant) {
        self.attempts = self.attempts.saturating_add(1);
        self.url = None;
        self.state = State::Waiting { until: now + next.after, goal: next.goal };
    }

    fn fail(&mut self, why: &str, now: Instant, shared: &Shared) {
        self.tell(shared, ClientFact::Failed(why.to_owned()));
        let next = after_failure(self.attempts, &mut self.random);
        self.go(next, now);
    }

    fn ended(&mut self, end: EndCause, now: Instant, shared: &Shared) {
        if let EndCause::Closed(code) = end
            && is_wrong(code, self.url.is_some())
        {
            self.tell(shared, ClientFact::Wrong(format!("closed with {code}")));
        }
        self.tell(shared, ClientFact::Gone(end));
        let next = after_end(end, self.url.take(), self.attempts, &mut self.random);
        self.go(next, now);
    }

    // ---- faults of its own ------------------------------------------------------------------------------------------

    /// Does what a fault of the clients makes it do.
    pub(super) fn suffer(&mut self, kind: FaultKind, lasts: Duration, shared: &mut Shared) {
        let now = Instant::now();
        let State::Connected(session) = &mut self.state else { return };
        if !session.is_welcome || session.stalled_until.is_some() {
            return;
        }
        match kind {
            FaultKind::Stall => {
                session.stalled_until = Some(now + lasts);
                self.absent_since = Some(now);
            }
            FaultKind::Away | FaultKind::Compaction => {
                self.lose(kind, shared);
                self.absent_since = Some(now);
                self.state = State::Waiting { until: now + lasts, goal: Goal::Any };
            }
            FaultKind::Hasty => {
                self.hasty = self.random.u32(3..=10);
                self.lose(kind, shared);
            }
            _ => self.lose(kind, shared),
        }
    }

    /// Loses its connection without a word, and comes back at once.
    fn lose(&mut self, kind: FaultKind, shared: &mut Shared) {
        let State::Connected(session) = std::mem::replace(&mut self.state, State::Done) else { return };
        if is_half_open(kind) {
            shared.abandon(session.connection.into_socket());
        }
        self.hasty = if kind == FaultKind::Hasty { self.hasty.saturating_sub(1) } else { 0 };
        self.ended(EndCause::Own(kind), Instant::now(), shared);
    }

    /// Tells how long it was absent, if it was.
    fn is_back(&mut self, now: Instant, shared: &Shared) {
        if let Some(since) = self.absent_since.take() {
            let ms = u64::try_from(now.saturating_duration_since(since).as_millis()).expect("minutes at most");
            self.tell(shared, ClientFact::Absent(ms));
        }
    }

    /// Comes back from where it went by its own will: the run nears its end.
    pub(super) fn hurry(&mut self) {
        match &mut self.state {
            State::Waiting { until, .. } => *until = Instant::now(),
            State::Connected(session) => {
                session.stalled_until = session.stalled_until.map(|_| Instant::now());
            }
            State::Done => {}
        }
    }

    /// Says goodbye.
    pub(super) fn finish(&mut self, shared: &Shared) {
        if let State::Connected(session) = &mut self.state {
            session.connection.close();
        }
        self.state = State::Done;
        self.tell(shared, ClientFact::Done);
    }

    // ---- what comes -------------------------------------------------------------------------------------------------

    /// Reads what has come.
    pub(super) fn read(&mut self, now: Instant, shared: &mut Shared) {
        for _ in 0..MESSAGES_A_TURN {
            let State::Connected(session) = &mut self.state else { return };
            let came = session.connection.turn();
            if !matches!(came, ConnectionEvent::Nothing | ConnectionEvent::EndCause(_)) {
                session.heard = now;
            }
            match came {
                ConnectionEvent::Text(text) => self.message(&text, shared),
                ConnectionEvent::ChaosClient => {}
                ConnectionEvent::Close(code) => session.close = Some(code),
                ConnectionEvent::EndCause(why) => {
                    let end = session.close.map_or(EndCause::Cut, EndCause::Closed);
                    // A refusal is a close, too; what ends before any word was no connection.
                    if session.is_welcome || session.close.is_some() {
                        self.ended(end, now, shared);
                    } else {
                        self.fail(&why, now, shared);
                    }
                    return;
                }
                ConnectionEvent::Nothing => return,
            }
        }
        // There may be more that `poll` doesn't tell of: it is in the library's buffer.
        shared.has_more.push(self.number);
    }

    fn message(&mut self, text: &str, shared: &mut Shared) {
        let State::Connected(session) = &mut self.state else { return };
        let Ok(said) = serde_json::from_str::<Text<'_>>(text) else {
            return self.tell(shared, ClientFact::Wrong(format!("no JSON: {text}")));
        };
        let kind = said.r#type.or(said.error).unwrap_or_default();
        if !session.is_welcome && !matches!(kind, "connected" | "Redirect") {
            self.tell(shared, ClientFact::Wrong(format!("before connected: {text}")));
            return;
        }
        let mut event = None;
        let mut cursor = said.cursor;
        match kind {
            "connected" => {
                session.is_welcome = true;
                if self.hasty > 0 {
                    session.drop_at = Some(Instant::now() + Duration::from_millis(self.random.u64(0..HASTY_MS_MAX)));
                }
                self.attempts = 0;
                let (asked, node) = (session.asked, said.node.unwrap_or_default());
                let resumed = said.resumed.unwrap_or_default();
                if asked && !resumed {
                    // It has lost something, and will be told so: until then it counts as not told.
                    cursor = None;
                }
                self.tell(shared, ClientFact::Connected { node, asked, resumed });
            }
            "ping" => session.connection.send(r#"{"type":"pong"}"#),
            "pong" => {}
            "market_price" => {
                let market = said.market.unwrap_or_default();
                let timestamp = said.timestamp.and_then(|timestamp| timestamp.as_u64()).unwrap_or_default();
                let last = session.ticks.insert(market, timestamp);
                if last > Some(timestamp) {
                    self.tell(shared, ClientFact::Wrong(format!("a price older than the last: {text}")));
                }
            }
            "reset" => self.tell(shared, ClientFact::Reset(said.reason.unwrap_or_default())),
            "Redirect" => {
                self.url = said.url;
                self.tell(shared, ClientFact::Redirected(said.node.unwrap_or_default()));
            }
            _ => event = said.timestamp.and_then(|timestamp| timestamp.as_u64()?.checked_sub(FIRST_TIMESTAMP)),
        }
        match (event, kind) {
            (Some(number), _) => self.event(number, kind.to_owned(), text, shared),
            (None, "connected" | "ping" | "pong" | "market_price" | "reset" | "Redirect") => {}
            _ => self.tell(shared, ClientFact::Wrong(format!("no message of ours: {text}"))),
        }
        if cursor.is_some() {
            self.cursor = cursor;
        }
    }

    fn event(&mut self, stamp: u64, kind: String, text: &str, shared: &mut Shared) {
        let (number, topic) = (stamp / 10, u8::try_from(stamp % 10).expect("below ten"));
        self.tell(shared, ClientFact::Event { topic, number });
        shared.seen += 1;
        let seen = self.seen.entry(topic).or_insert(number);
        *seen = number.max(*seen);
        let message = Message { at: Instant::now(), kind, text: text.to_owned() };
        if ExpectedMessage::from(&message) != producer::event(self.assessment, topic, number).told {
            self.tell(shared, ClientFact::Wrong(format!("not as it was made: {}", message.text)));
        }
    }
}

/// Sockets that were abandoned, and when.
pub(super) type Abandoned = Vec<(Instant, TcpStream)>;
