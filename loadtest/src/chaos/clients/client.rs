//! One client: it opens connections, reads, keeps the last cursor, and follows the protocol when a connection ends. It
//! logs everything that it does and receives.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Shared;
use super::connection::{ClientConnection, ConnectionEvent};
use super::reconnect_policy::{Goal, Next, after_end, after_failure, is_half_open, is_violation};
use crate::chaos::log::{ClientFact, ClientLogEntry, EndCause};
use crate::chaos::producer;
use crate::chaos::schedule::FaultKind;
use crate::client::{Ask, Message};
use crate::events::{ExpectedMessage, FIRST_TIMESTAMP};

/// A connection without any frame for this time is given up. The pod must send a ping every second.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// A pod that does not answer a handshake within this time is given up for another.
const OPENED_WITHIN: Duration = Duration::from_secs(2);

/// Messages that a client reads per turn.
const MESSAGES_A_TURN: usize = 64;

/// One client in this many has a small receive buffer, so that it is slow as soon as it stops reading.
const SMALL_BUFFER_IN: u32 = 4;
const SMALL_BUFFER_BYTES: usize = 4096;

/// Longest connection of a hasty client, in milliseconds.
const HASTY_MS_MAX: u64 = 60;

/// A client of the chaos run.
pub(super) struct ChaosClient {
    number: u32,
    assessment: u32,
    random: fastrand::Rng,
    state: State,
    /// Last cursor received.
    cursor: Option<String>,
    /// Highest number received, by topic.
    seen: BTreeMap<u8, u64>,
    /// URL of the last redirect.
    url: Option<String>,
    /// The pod of the last redirect, while the client tries to reach it.
    redirected_to: Option<String>,
    /// The pod that it was redirected to, and did not reach.
    unreachable: Option<String>,
    attempts: u32,
    /// Number of times that it will still drop its connection.
    hasty: u32,
    /// Start of the injected pause in reading, if any.
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
    last_frame: Instant,
    sent_cursor: bool,
    is_accepted: bool,
    close: Option<u16>,
    /// End of the injected stall, if any.
    stalled_until: Option<Instant>,
    /// Time at which it drops the connection, if set.
    drop_at: Option<Instant>,
    /// Timestamp of the last tick, by market.
    ticks: BTreeMap<String, u64>,
}

/// The fields that a message may have.
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
    /// A client that connects at the next turn.
    pub(super) fn new(number: u32, assessment: u32, seed: u64, shared: &Shared) -> Self {
        let random = fastrand::Rng::with_seed(seed ^ (u64::from(number) << 32));
        let state = State::Waiting { until: Instant::now(), goal: Goal::Any };
        let (seen, url, cursor) = (BTreeMap::new(), None, None);
        let (hasty, absent_since) = (0, None);
        let client = Self {
            number,
            assessment,
            random,
            state,
            cursor,
            seen,
            url,
            redirected_to: None,
            unreachable: None,
            attempts: 0,
            hasty,
            absent_since,
        };
        client.log(shared, ClientFact::Subscribes(assessment));
        client
    }

    fn log(&self, shared: &Shared, what: ClientFact) {
        shared.log.add(&ClientLogEntry { at_ms: shared.clock.ms(), client: self.number, what });
    }

    /// Whether the pod has accepted it.
    pub(super) fn is_connected(&self) -> bool {
        matches!(&self.state, State::Connected(session) if session.is_accepted)
    }

    /// Whether it has received every event of its assessment.
    pub(super) fn has_all(&self, last: &BTreeMap<(u32, u8), u64>) -> bool {
        let mut required = last.range((self.assessment, 0)..=(self.assessment, u8::MAX));
        self.is_connected() && required.all(|((_, topic), number)| self.seen.get(topic) >= Some(number))
    }

    /// Descriptor and events for `poll`, if it reads.
    pub(super) fn poll(&self) -> Option<libc::pollfd> {
        let State::Connected(session) = &self.state else { return None };
        if session.stalled_until.is_some() {
            return None;
        }
        let (fd, events) = session.connection.poll();
        Some(libc::pollfd { fd, events, revents: 0 })
    }

    // ---- time -------------------------------------------------------------------------------------------------------

    /// Runs its timers.
    pub(super) fn tick(&mut self, now: Instant, shared: &mut Shared) {
        match &mut self.state {
            State::Waiting { until, .. } if *until <= now => self.open(now, shared),
            State::Connected(session) => {
                if session.stalled_until.is_some_and(|until| until <= now) {
                    session.stalled_until = None;
                    session.last_frame = now;
                    return self.log_pause(now, shared);
                }
                if session.stalled_until.is_some() {
                    return;
                }
                if session.drop_at.is_some_and(|at| at <= now) {
                    self.lose(FaultKind::Hasty, shared);
                } else if !session.is_accepted && now > session.began + OPENED_WITHIN {
                    self.fail("no answer", now, shared);
                } else if session.is_accepted && now > session.last_frame + SILENCE_MAX {
                    self.ended(EndCause::HeartbeatTimeout, now, shared);
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, now: Instant, shared: &Shared) {
        let State::Waiting { goal, .. } = std::mem::replace(&mut self.state, State::Done) else { return };
        let url = match goal {
            Goal::Url(url) => Some(url),
            Goal::Any => {
                self.redirected_to = None;
                shared.directory.any(&mut self.random)
            }
        };
        self.log_pause(now, shared);
        self.log(shared, ClientFact::Connecting);
        let Some(url) = url else { return self.fail("no pod is known", now, shared) };
        let mut ask = Ask::to(&url).assessment(&producer::assessment(self.assessment));
        if let Some(cursor) = &self.cursor {
            ask = ask.parameter(&format!("cursor={cursor}"));
        }
        if let Some(node) = self.unreachable.take() {
            ask = ask.parameter(&format!("unreachable={node}"));
        }
        let buffer = self.number.is_multiple_of(SMALL_BUFFER_IN).then_some(SMALL_BUFFER_BYTES);
        match ClientConnection::begin(&ask, buffer) {
            Ok(connection) => {
                let session = ServedSession {
                    connection,
                    began: now,
                    last_frame: now,
                    sent_cursor: self.cursor.is_some(),
                    is_accepted: false,
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
        self.log(shared, ClientFact::ConnectFailed(why.to_owned()));
        self.unreachable = self.redirected_to.take();
        let next = after_failure(self.attempts, &mut self.random);
        self.go(next, now);
    }

    fn ended(&mut self, end: EndCause, now: Instant, shared: &Shared) {
        if let EndCause::Closed(code) = end
            && is_violation(code, self.url.is_some())
        {
            self.log(shared, ClientFact::Violation(format!("closed with {code}")));
        }
        self.log(shared, ClientFact::Disconnected(end));
        let next = after_end(end, self.url.take(), self.attempts, &mut self.random);
        self.go(next, now);
    }

    // ---- injected faults --------------------------------------------------------------------------------------------

    /// Carries out a fault of the clients.
    pub(super) fn misbehave(&mut self, kind: FaultKind, lasts: Duration, shared: &mut Shared) {
        let now = Instant::now();
        let State::Connected(session) = &mut self.state else { return };
        if !session.is_accepted || session.stalled_until.is_some() {
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

    /// Drops its connection without a close frame, and reconnects at once.
    fn lose(&mut self, kind: FaultKind, shared: &mut Shared) {
        let State::Connected(session) = std::mem::replace(&mut self.state, State::Done) else { return };
        if is_half_open(kind) {
            shared.abandon(session.connection.into_socket());
        }
        self.hasty = if kind == FaultKind::Hasty { self.hasty.saturating_sub(1) } else { 0 };
        self.ended(EndCause::Injected(kind), Instant::now(), shared);
    }

    /// Logs the length of the pause in reading, if there was one.
    fn log_pause(&mut self, now: Instant, shared: &Shared) {
        if let Some(since) = self.absent_since.take() {
            let ms = u64::try_from(now.saturating_duration_since(since).as_millis()).expect("minutes at most");
            self.log(shared, ClientFact::NotReading(ms));
        }
    }

    /// Ends its injected absence, because the run is about to end.
    pub(super) fn return_now(&mut self) {
        match &mut self.state {
            State::Waiting { until, .. } => *until = Instant::now(),
            State::Connected(session) => {
                session.stalled_until = session.stalled_until.map(|_| Instant::now());
            }
            State::Done => {}
        }
    }

    /// Closes the connection.
    pub(super) fn finish(&mut self, shared: &Shared) {
        if let State::Connected(session) = &mut self.state {
            session.connection.close();
        }
        self.state = State::Done;
        self.log(shared, ClientFact::Done);
    }

    // ---- received messages ------------------------------------------------------------------------------------------

    /// Reads what has arrived.
    pub(super) fn read(&mut self, now: Instant, shared: &mut Shared) {
        for _ in 0..MESSAGES_A_TURN {
            let State::Connected(session) = &mut self.state else { return };
            let event = session.connection.turn();
            if !matches!(event, ConnectionEvent::Nothing | ConnectionEvent::Ended(_)) {
                session.last_frame = now;
            }
            match event {
                ConnectionEvent::Text(text) => self.message(&text, shared),
                ConnectionEvent::Activity => {}
                ConnectionEvent::Close(code) => session.close = Some(code),
                ConnectionEvent::Ended(why) => {
                    let end = session.close.map_or(EndCause::Aborted, EndCause::Closed);
                    // A refusal is a close too. An end before the first message is a failed attempt.
                    if session.is_accepted || session.close.is_some() {
                        self.ended(end, now, shared);
                    } else {
                        self.fail(&why, now, shared);
                    }
                    return;
                }
                ConnectionEvent::Nothing => return,
            }
        }
        // The library's buffer may hold more, which `poll` does not report.
        shared.has_more.push(self.number);
    }

    fn message(&mut self, text: &str, shared: &mut Shared) {
        let State::Connected(session) = &mut self.state else { return };
        let Ok(fields) = serde_json::from_str::<Text<'_>>(text) else {
            return self.log(shared, ClientFact::Violation(format!("no JSON: {text}")));
        };
        let kind = fields.r#type.or(fields.error).unwrap_or_default();
        if !session.is_accepted && !matches!(kind, "connected" | "Redirect") {
            self.log(shared, ClientFact::Violation(format!("before connected: {text}")));
            return;
        }
        let mut event = None;
        let mut cursor = fields.cursor;
        match kind {
            "connected" => {
                session.is_accepted = true;
                if self.hasty > 0 {
                    session.drop_at = Some(Instant::now() + Duration::from_millis(self.random.u64(0..HASTY_MS_MAX)));
                }
                self.attempts = 0;
                self.redirected_to = None;
                let (sent_cursor, node) = (session.sent_cursor, fields.node.unwrap_or_default());
                let resumed = fields.resumed.unwrap_or_default();
                if sent_cursor && !resumed {
                    // Events were lost, and a reset must follow. Until then the client keeps its old cursor.
                    cursor = None;
                }
                self.log(shared, ClientFact::Connected { node, sent_cursor, resumed });
            }
            "ping" => session.connection.send(r#"{"type":"pong"}"#),
            "pong" => {}
            "market_price" => {
                let market = fields.market.unwrap_or_default();
                let timestamp = fields.timestamp.and_then(|timestamp| timestamp.as_u64()).unwrap_or_default();
                let last = session.ticks.insert(market, timestamp);
                if last > Some(timestamp) {
                    self.log(shared, ClientFact::Violation(format!("a tick older than the last: {text}")));
                }
            }
            "reset" => self.log(shared, ClientFact::Reset(fields.reason.unwrap_or_default())),
            "Redirect" => {
                self.url = fields.url;
                let node = fields.node.unwrap_or_default();
                self.redirected_to = Some(node.clone());
                self.log(shared, ClientFact::Redirected(node));
            }
            _ => event = fields.timestamp.and_then(|timestamp| timestamp.as_u64()?.checked_sub(FIRST_TIMESTAMP)),
        }
        match (event, kind) {
            (Some(number), _) => self.event(number, kind.to_owned(), text, shared),
            (None, "connected" | "ping" | "pong" | "market_price" | "reset" | "Redirect") => {}
            _ => self.log(shared, ClientFact::Violation(format!("unknown message: {text}"))),
        }
        if cursor.is_some() {
            self.cursor = cursor;
        }
    }

    fn event(&mut self, stamp: u64, kind: String, text: &str, shared: &mut Shared) {
        let (number, topic) = (stamp / 10, u8::try_from(stamp % 10).expect("below ten"));
        self.log(shared, ClientFact::Event { topic, number });
        shared.seen += 1;
        let seen = self.seen.entry(topic).or_insert(number);
        *seen = number.max(*seen);
        let message = Message { at: Instant::now(), kind, text: text.to_owned() };
        if ExpectedMessage::from(&message) != producer::event(self.assessment, topic, number).expected {
            self.log(shared, ClientFact::Violation(format!("not the event that was produced: {}", message.text)));
        }
    }
}

/// Abandoned sockets, with the time.
pub(super) type Abandoned = Vec<(Instant, TcpStream)>;
