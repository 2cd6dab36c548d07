//! A simulated client that follows the contract (PROTOCOL 1, 2, 4): it keeps its last cursor, follows redirects, waits
//! before it reconnects, and trusts every message. The checker verifies the messages.

use std::cell::Ref;
use std::rc::Rc;

use fastrand::Rng;

use super::checker::{ClientChecker, Reset, Violation, ViolationKind};
use super::kafka::SimulatedKafka;
use super::messages::{self, ServerMessage};
use super::outcomes::{ClientOutcome, Outcomes};
use super::plan::WorldShape;
use super::pod::{ReadHistory, Request, SimulatedPod};
use crate::shard::testing::{ServerOutput, Wire};

/// How long a client waits for the answer to its request, and then for any frame, in ms.
const ANSWER_MS: u64 = 2_000;
const SILENCE_MS: u64 = 2_000;

/// Bytes that the way to a client holds: a small version of the kernel's buffers.
const ROOM_MAX: usize = 2_000;

pub(super) struct SimulatedClient {
    number: usize,
    pub(super) assessment: usize,
    state: ClientPhase,
    /// The last cursor that it read.
    cursor: Option<HeldCursor>,
    /// Bytes of an incomplete frame.
    read: Vec<u8>,
    /// Bytes that it reads at a time, and until when; otherwise it reads everything.
    slow: Option<(usize, u64)>,
    /// Time when it last read a whole frame.
    last_read_ms: u64,
    pub(super) checker: ClientChecker,
    pub(super) outcomes: Outcomes,
    /// Redirects in a row: now, and at most.
    redirects: (u32, u32),
    /// The pod that it was redirected to, and did not reach.
    unreachable: Option<usize>,
    rng: Rng,
}

#[derive(Clone)]
struct HeldCursor {
    text: Box<str>,
    /// The process that made it, and when the client read it.
    maker: (usize, u32),
    at_ms: u64,
    is_damaged: bool,
}

enum ClientPhase {
    /// It waits to connect, to this pod or to any.
    Away { until_ms: u64, to: Option<usize> },
    /// It has a connection, or has asked for one.
    Attachment(Box<Attachment>),
}

struct Attachment {
    wire: Wire,
    pod: usize,
    /// Whether it was redirected there.
    is_redirected: bool,
    since_ms: u64,
    /// The cursor in its request.
    asked: Option<HeldCursor>,
    is_connected: bool,
    /// It was not resumed, so a reset must follow.
    expects_reset: bool,
    redirect: Option<usize>,
    /// The close frame's code.
    closed: Option<u16>,
}

/// The world around a client in a step.
pub(super) struct ClientContext<'a> {
    pub(super) now_ms: u64,
    pub(super) log: &'a SimulatedKafka,
    pub(super) shape: &'a WorldShape,
    pub(super) pods: &'a mut [SimulatedPod],
    /// A log of what happens, if it is wanted.
    pub(super) trace: &'a mut Option<Vec<String>>,
}

impl ClientContext<'_> {
    fn history(&self, (pod, life): (usize, u32)) -> Ref<'_, ReadHistory> {
        self.pods[pod].histories[life as usize].borrow()
    }
}

impl SimulatedClient {
    pub(super) fn new(number: usize, assessment: usize, begins_ms: u64, seed: u64) -> Self {
        Self {
            number,
            assessment,
            state: ClientPhase::Away { until_ms: begins_ms, to: None },
            cursor: None,
            read: Vec::new(),
            slow: None,
            last_read_ms: 0,
            checker: ClientChecker::new(assessment),
            outcomes: Outcomes::default(),
            redirects: (0, 0),
            unreachable: None,
            rng: Rng::with_seed(seed),
        }
    }

    // ---- events of the plan -----------------------------------------------------------------------------------------

    /// Its connection breaks, and it reconnects later.
    pub(super) fn cut(&mut self, now_ms: u64, after_ms: u64, same: bool) {
        if let ClientPhase::Attachment(attachment) = &self.state {
            attachment.wire.0.borrow_mut().client_gone = true;
            let to = same.then_some(attachment.pod);
            self.leave(now_ms + after_ms, to);
        }
    }

    /// It disappears without notice to the pod.
    pub(super) fn half_open(&mut self, now_ms: u64) {
        if matches!(self.state, ClientPhase::Attachment { .. }) {
            self.leave(now_ms + 300, None);
        }
    }

    pub(super) fn slow_down(&mut self, bytes: usize, until_ms: u64) {
        self.slow = Some((bytes, until_ms));
    }

    pub(super) fn damage_cursor(&mut self) {
        if let Some(cursor) = &mut self.cursor {
            cursor.is_damaged = true;
            let mut text = cursor.text.to_string();
            let last = text.pop().unwrap_or('A');
            text.push(if last == 'A' { 'B' } else { 'A' });
            cursor.text = text.into();
        }
    }

    /// The most redirects in a row.
    pub(super) fn redirects(&self) -> u32 {
        self.redirects.1
    }

    /// The pod to which it is connected.
    pub(super) fn pod(&self) -> Option<usize> {
        match &self.state {
            ClientPhase::Attachment(attachment) if attachment.is_connected => Some(attachment.pod),
            ClientPhase::Attachment(_) | ClientPhase::Away { .. } => None,
        }
    }

    // ---- actions ----------------------------------------------------------------------------------------------------

    fn leave(&mut self, until_ms: u64, to: Option<usize>) {
        self.state = ClientPhase::Away { until_ms, to };
        self.read.clear();
    }

    fn log(&self, context: &mut ClientContext<'_>, what: impl FnOnce() -> String) {
        if let Some(trace) = context.trace {
            trace.push(format!("{:>6.3} s  c{} {}", context.now_ms as f64 / 1e3, self.number, what()));
        }
    }

    /// Runs the client for a while.
    pub(super) fn advance(&mut self, context: &mut ClientContext<'_>) -> Result<(), Violation> {
        match &self.state {
            ClientPhase::Away { until_ms, to } => {
                if context.now_ms >= *until_ms {
                    let to = *to;
                    self.ask(to, context);
                }
                Ok(())
            }
            ClientPhase::Attachment(attachment) => {
                let wire = attachment.wire.clone();
                self.receive(&wire, context)?;
                self.follow_close(context);
                Ok(())
            }
        }
    }

    fn ask(&mut self, to: Option<usize>, context: &mut ClientContext<'_>) {
        let ready = |pod: &usize| context.pods[*pod].is_ready();
        let pod = match to {
            Some(pod) => pod,
            None => {
                let ready: Vec<usize> = (0..context.pods.len()).filter(ready).collect();
                if ready.is_empty() {
                    self.rng.usize(..context.pods.len())
                } else {
                    ready[self.rng.usize(..ready.len())]
                }
            }
        };
        let wire = Wire::default();
        let cursor = self.cursor.clone();
        self.log(context, || match &cursor {
            Some(cursor) => format!("asks p{pod}, with the cursor of {:.3} s", cursor.at_ms as f64 / 1e3),
            None => format!("asks p{pod}, without a cursor"),
        });
        context.pods[pod].requests.push(Request {
            at_ms: context.now_ms + self.rng.u64(..60),
            wire: wire.clone(),
            assessment: context.log.assessments[self.assessment].clone(),
            cursor: cursor.as_ref().map(|cursor| cursor.text.clone()),
            unreachable: self.unreachable.take().map(|pod| format!("p{pod}").into()),
            user: self.number.to_string().into(),
            redirect_gate: None,
        });
        self.last_read_ms = context.now_ms;
        self.state = ClientPhase::Attachment(Box::new(Attachment {
            wire,
            pod,
            is_redirected: to.is_some(),
            since_ms: context.now_ms,
            asked: cursor,
            is_connected: false,
            expects_reset: false,
            redirect: None,
            closed: None,
        }));
    }

    /// Reads from the connection, as much as the client takes now.
    fn receive(&mut self, wire: &Wire, context: &mut ClientContext<'_>) -> Result<(), Violation> {
        let takes = match self.slow {
            Some((bytes, until_ms)) if context.now_ms < until_ms => bytes,
            // Bytes arrive in parts; a broken connection loses those on the way.
            _ if self.rng.u8(..4) == 0 => self.rng.usize(..300),
            _ => usize::MAX,
        };
        {
            let mut ends = wire.0.borrow_mut();
            let taken = takes.min(ends.sent.len());
            self.read.extend(ends.sent.drain(..taken));
            ends.room = ROOM_MAX.saturating_sub(ends.sent.len()).min(takes);
        }
        let read = std::mem::take(&mut self.read);
        let mut left = &read[..];
        let mut verdict = Ok(());
        while let Some((opcode, payload, rest)) = messages::frame(left) {
            left = rest;
            self.last_read_ms = context.now_ms;
            verdict = match opcode {
                messages::TEXT => self.text(payload, wire, context),
                messages::CLOSE => self.close(payload),
                _ => Ok(()),
            };
            if verdict.is_err() {
                break;
            }
        }
        self.read = left.to_vec();
        verdict
    }

    fn close(&mut self, payload: &[u8]) -> Result<(), Violation> {
        let code = payload.first_chunk().map_or(1005, |&code| u16::from_be_bytes(code));
        let Some(outcome) = ClientOutcome::of_code(code) else {
            return Err(strange(&format!("it is closed with {code}")));
        };
        self.outcomes.count(outcome);
        if let ClientPhase::Attachment(attachment) = &mut self.state {
            attachment.closed = Some(code);
        }
        Ok(())
    }

    /// Handles a text.
    fn text(&mut self, text: &[u8], wire: &Wire, context: &mut ClientContext<'_>) -> Result<(), Violation> {
        let ClientPhase::Attachment(attachment) = &mut self.state else { return Ok(()) };
        let maker = (attachment.pod, wire.0.borrow().life);
        if let Some(text) = messages::cursor(text) {
            let made = HeldCursor { text: text.into(), maker, at_ms: context.now_ms, is_damaged: false };
            // A pod that redirects an arriving client returns its own cursor, with a flag.
            let returned = attachment.asked.as_ref().filter(|_| !attachment.is_connected);
            self.cursor = Some(match returned {
                Some(asked) => HeldCursor { text: made.text, ..asked.clone() },
                None => made,
            });
        }
        let message = messages::read(text);
        if std::mem::take(&mut attachment.expects_reset) && !matches!(message, ServerMessage::Reset { .. }) {
            return Err(strange("it was neither resumed nor reset"));
        }
        match message {
            ServerMessage::Event { number } => {
                self.outcomes.count(ClientOutcome::Event);
                self.log(context, || format!("reads event {number}"));
                self.checker.event(context.log, number)
            }
            ServerMessage::Connected { resumed } => self.connected(resumed, wire, context),
            ServerMessage::Ping => {
                wire.0.borrow_mut().said.push(ServerOutput::Pong);
                Ok(())
            }
            ServerMessage::Reset { reason } => self.reset(reason, wire, maker, context),
            ServerMessage::Redirect { to } => {
                attachment.redirect = Some(to);
                self.redirects.0 += 1;
                self.redirects.1 = self.redirects.1.max(self.redirects.0);
                self.log(context, || format!("is redirected to p{to}"));
                Ok(())
            }
            ServerMessage::Other => Err(strange(&format!("it reads {}", String::from_utf8_lossy(text)))),
        }
    }

    fn connected(&mut self, resumed: bool, wire: &Wire, context: &mut ClientContext<'_>) -> Result<(), Violation> {
        let ClientPhase::Attachment(attachment) = &mut self.state else { return Ok(()) };
        let asked = attachment.asked.is_some();
        attachment.is_connected = true;
        self.redirects.0 = 0;
        attachment.expects_reset = asked && !resumed;
        self.outcomes.count(if resumed { ClientOutcome::Resumed } else { ClientOutcome::Fresh });
        self.log(context, || (if resumed { "is resumed" } else { "is connected" }).into());
        match (asked, resumed) {
            (false, true) => return Err(strange("it is resumed without a cursor")),
            (false, false) => self.checker.started(context.log, &wire.0.borrow().base),
            (true, false) => self.checker.connected_without_resume(context.log, &wire.0.borrow().base),
            (true, true) => self.checker.resumed(),
        }
        Ok(())
    }

    fn reset(
        &mut self,
        reason: &str,
        wire: &Wire,
        pod: (usize, u32),
        context: &mut ClientContext<'_>,
    ) -> Result<(), Violation> {
        let ClientPhase::Attachment(attachment) = &mut self.state else { return Ok(()) };
        let asked = attachment.asked.take();
        let Some(outcome) = ClientOutcome::of_reason(reason) else { return Err(strange("a reset without a reason")) };
        self.outcomes.count(outcome);
        self.log(context, || format!("is reset: {reason}"));
        let pod = context.history(pod);
        let maker = asked.as_ref().map(|cursor| context.history(cursor.maker));
        let reset = Reset {
            reason,
            pod: &pod,
            maker: maker.as_deref(),
            cursor_ms: asked.as_ref().map_or(context.now_ms, |cursor| cursor.at_ms),
            is_damaged: asked.as_ref().is_some_and(|cursor| cursor.is_damaged),
            now_ms: context.now_ms,
        };
        self.checker.reset(context.log, context.shape, &reset, &wire.0.borrow().base)
    }

    /// If the connection is over, decides where and when to reconnect.
    fn follow_close(&mut self, context: &mut ClientContext<'_>) {
        let ClientPhase::Attachment(attachment) = &self.state else { return };
        let now_ms = context.now_ms;
        let is_slow = self.slow.is_some_and(|(_, until_ms)| now_ms < until_ms + SILENCE_MS);
        let waited_ms = now_ms - self.last_read_ms.max(attachment.since_ms);
        let is_silent = !is_slow && waited_ms > if attachment.is_connected { SILENCE_MS } else { ANSWER_MS };
        let (is_over, unavailable) = {
            let ends = attachment.wire.0.borrow();
            (ends.pod_gone && ends.sent.is_empty(), ends.unavailable)
        };
        let (code, redirect) = (attachment.closed, attachment.redirect);
        if code.is_none() && !is_over && !is_silent {
            return;
        }
        let is_refused = code.is_none() && !unavailable && !attachment.is_connected;
        self.unreachable = (is_refused && attachment.is_redirected).then_some(attachment.pod);
        let wire = Rc::clone(&attachment.wire.0);
        let (wait_ms, to) = match code {
            Some(1008 | 1012) if redirect.is_some() => (0, redirect),
            Some(1001) => (self.rng.u64(1_000..5_000), None),
            Some(1011 | 1013) => (self.rng.u64(100..600), None),
            _ if unavailable => (self.rng.u64(200..1_000), None),
            _ => (self.rng.u64(..400), None),
        };
        wire.borrow_mut().client_gone = true;
        if code.is_none() {
            self.outcomes.count(if unavailable { ClientOutcome::Unavailable } else { ClientOutcome::Lost });
        }
        self.log(context, || match code {
            Some(code) => format!("is closed with {code}"),
            None => "has lost its connection".into(),
        });
        self.leave(now_ms + wait_ms, to);
    }
}

fn strange(what: &str) -> Violation {
    Violation { kind: ViolationKind::Strange, what: what.into() }
}
