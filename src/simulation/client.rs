//! A simulated client that follows the contract (PROTOCOL 1, 2, 4): it keeps its last cursor, follows redirects, waits
//! before it reconnects, and believes what it is sent. The checker judges what that was.

use std::cell::Ref;
use std::rc::Rc;

use fastrand::Rng;

use super::checker::{ClientChecker, ResetEvent, Violation, ViolationKind};
use super::kafka::SimulatedKafka;
use super::messages::{self, ServerMessage};
use super::outcomes::{ClientOutcome, Outcomes};
use super::plan::WorldShape;
use super::pod::{ReadHistory, Request, SimulatedPod};
use crate::shard::testing::{RedirectGate, ServerOutput, Wire};

/// How long a client waits for the answer to its request, and for a sign of life after that, in ms.
const ANSWER_MS: u64 = 2_000;
const SILENCE_MS: u64 = 2_000;

/// What the way to a client takes, in bytes: a kernel's buffers, in small.
const ROOM_MAX: usize = 2_000;

pub(super) struct SimulatedClient {
    number: usize,
    pub(super) assessment: usize,
    state: ClientPhase,
    /// The last one that it was told.
    cursor: Option<HeldCursor>,
    /// What it read of a frame that is not whole.
    read: Vec<u8>,
    /// Bytes that it takes at a time, and until when; else it takes all.
    slow: Option<(usize, u64)>,
    /// When it last read a whole frame.
    heard_ms: u64,
    pub(super) witness: ClientChecker,
    pub(super) outcomes: Outcomes,
    /// Redirects one after another, and the most that there were.
    bounces: (u32, u32),
    dice: Rng,
}

#[derive(Clone)]
struct HeldCursor {
    text: Box<str>,
    /// Which process made it, and when the client read it.
    maker: (usize, u32),
    at_ms: u64,
    is_damaged: bool,
}

enum ClientPhase {
    /// It comes, to this pod or to any.
    Away { until_ms: u64, to: Option<usize> },
    /// It has a connection, or asks for one.
    ServedState(Box<ServedState>),
}

struct ServedState {
    wire: Wire,
    pod: usize,
    since_ms: u64,
    /// What it asked to go on from.
    asked: Option<HeldCursor>,
    is_connected: bool,
    /// A reset must come next: it was not resumed.
    is_to_be_reset: bool,
    redirect: Option<usize>,
    /// The close frame's code.
    closed: Option<u16>,
}

/// What a client's slot goes by.
pub(super) struct WorldContext<'a> {
    pub(super) now_ms: u64,
    pub(super) log: &'a SimulatedKafka,
    pub(super) shape: &'a WorldShape,
    pub(super) pods: &'a mut [SimulatedPod],
    /// What happens, in words, where somebody listens.
    pub(super) tale: &'a mut Option<Vec<String>>,
}

impl WorldContext<'_> {
    fn memory(&self, (pod, life): (usize, u32)) -> Ref<'_, ReadHistory> {
        self.pods[pod].memories[life as usize].borrow()
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
            heard_ms: 0,
            witness: ClientChecker::new(assessment),
            outcomes: Outcomes::default(),
            bounces: (0, 0),
            dice: Rng::with_seed(seed),
        }
    }

    // ---- what is done to it -----------------------------------------------------------------------------------------

    /// Its connection breaks, and it comes again after a while.
    pub(super) fn cut(&mut self, now_ms: u64, after_ms: u64, same: bool) {
        if let ClientPhase::ServedState(there) = &self.state {
            there.wire.0.borrow_mut().client_gone = true;
            let to = same.then_some(there.pod);
            self.leave(now_ms + after_ms, to);
        }
    }

    /// It is gone, and nobody tells the pod.
    pub(super) fn half_open(&mut self, now_ms: u64) {
        if matches!(self.state, ClientPhase::ServedState { .. }) {
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

    /// How many redirects it was given one after another, at most.
    pub(super) fn bounces(&self) -> u32 {
        self.bounces.1
    }

    /// The pod that it is connected to.
    pub(super) fn pod(&self) -> Option<usize> {
        match &self.state {
            ClientPhase::ServedState(there) if there.is_connected => Some(there.pod),
            ClientPhase::ServedState(_) | ClientPhase::Away { .. } => None,
        }
    }

    // ---- what it does -----------------------------------------------------------------------------------------------

    fn leave(&mut self, until_ms: u64, to: Option<usize>) {
        self.state = ClientPhase::Away { until_ms, to };
        self.read.clear();
    }

    fn tell(&self, around: &mut WorldContext<'_>, what: impl FnOnce() -> String) {
        if let Some(tale) = around.tale {
            tale.push(format!("{:>6.3} s  c{} {}", around.now_ms as f64 / 1e3, self.number, what()));
        }
    }

    /// Does what it does in a while.
    pub(super) fn slot(&mut self, around: &mut WorldContext<'_>) -> Result<(), Violation> {
        match &self.state {
            ClientPhase::Away { until_ms, to } => {
                if around.now_ms >= *until_ms {
                    let to = *to;
                    self.ask(to, around);
                }
                Ok(())
            }
            ClientPhase::ServedState(there) => {
                let wire = there.wire.clone();
                self.receive(&wire, around)?;
                self.look_after(around);
                Ok(())
            }
        }
    }

    fn ask(&mut self, to: Option<usize>, around: &mut WorldContext<'_>) {
        let ready = |pod: &usize| around.pods[*pod].is_ready();
        let pod = match to {
            Some(pod) => pod,
            None => {
                let ready: Vec<usize> = (0..around.pods.len()).filter(ready).collect();
                if ready.is_empty() {
                    self.dice.usize(..around.pods.len())
                } else {
                    ready[self.dice.usize(..ready.len())]
                }
            }
        };
        let wire = Wire::default();
        let cursor = self.cursor.clone();
        self.tell(around, || match &cursor {
            Some(cursor) => format!("asks p{pod}, with the cursor of {:.3} s", cursor.at_ms as f64 / 1e3),
            None => format!("asks p{pod}, without a cursor"),
        });
        around.pods[pod].requests.push(Request {
            at_ms: around.now_ms + self.dice.u64(..60),
            wire: wire.clone(),
            assessment: around.log.assessments[self.assessment].clone(),
            cursor: cursor.as_ref().map(|cursor| cursor.text.clone()),
            patience: RedirectGate::default(),
        });
        self.heard_ms = around.now_ms;
        self.state = ClientPhase::ServedState(Box::new(ServedState {
            wire,
            pod,
            since_ms: around.now_ms,
            asked: cursor,
            is_connected: false,
            is_to_be_reset: false,
            redirect: None,
            closed: None,
        }));
    }

    /// Reads what has come, as much as it takes now.
    fn receive(&mut self, wire: &Wire, around: &mut WorldContext<'_>) -> Result<(), Violation> {
        let takes = match self.slow {
            Some((bytes, until_ms)) if around.now_ms < until_ms => bytes,
            // Bytes come in parts; what is under way when a connection breaks is lost.
            _ if self.dice.u8(..4) == 0 => self.dice.usize(..300),
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
            self.heard_ms = around.now_ms;
            verdict = match opcode {
                messages::TEXT => self.text(payload, wire, around),
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
        let Some(sight) = ClientOutcome::of_code(code) else {
            return Err(strange(&format!("it is closed with {code}")));
        };
        self.outcomes.count(sight);
        if let ClientPhase::ServedState(there) = &mut self.state {
            there.closed = Some(code);
        }
        Ok(())
    }

    /// A text came.
    fn text(&mut self, text: &[u8], wire: &Wire, around: &mut WorldContext<'_>) -> Result<(), Violation> {
        let ClientPhase::ServedState(there) = &mut self.state else { return Ok(()) };
        let maker = (there.pod, wire.0.borrow().life);
        if let Some(text) = messages::cursor(text) {
            self.cursor = Some(HeldCursor { text: text.into(), maker, at_ms: around.now_ms, is_damaged: false });
        }
        let message = messages::read(text);
        if std::mem::take(&mut there.is_to_be_reset) && !matches!(message, ServerMessage::Reset { .. }) {
            return Err(strange("it was not resumed, and not reset"));
        }
        match message {
            ServerMessage::Event { number } => {
                self.outcomes.count(ClientOutcome::Event);
                self.tell(around, || format!("reads event {number}"));
                self.witness.event(around.log, number)
            }
            ServerMessage::Connected { resumed } => self.connected(resumed, wire, around),
            ServerMessage::Ping => {
                wire.0.borrow_mut().said.push(ServerOutput::Pong);
                Ok(())
            }
            ServerMessage::Reset { reason } => self.reset(reason, wire, maker, around),
            ServerMessage::Redirect { to } => {
                there.redirect = Some(to);
                self.bounces.0 += 1;
                self.bounces.1 = self.bounces.1.max(self.bounces.0);
                self.tell(around, || format!("is sent to p{to}"));
                Ok(())
            }
            ServerMessage::Other => Err(strange(&format!("it reads {}", String::from_utf8_lossy(text)))),
        }
    }

    fn connected(&mut self, resumed: bool, wire: &Wire, around: &mut WorldContext<'_>) -> Result<(), Violation> {
        let ClientPhase::ServedState(there) = &mut self.state else { return Ok(()) };
        let asked = there.asked.is_some();
        there.is_connected = true;
        self.bounces.0 = 0;
        there.is_to_be_reset = asked && !resumed;
        self.outcomes.count(if resumed { ClientOutcome::Resumed } else { ClientOutcome::Fresh });
        self.tell(around, || (if resumed { "is resumed" } else { "is connected" }).into());
        match (asked, resumed) {
            (false, true) => return Err(strange("it is resumed from nothing")),
            (false, false) => self.witness.begin(around.log, &wire.0.borrow().base),
            (true, false) => self.witness.begin_again(around.log, &wire.0.borrow().base),
            (true, true) => self.witness.go_on(),
        }
        Ok(())
    }

    fn reset(
        &mut self,
        reason: &str,
        wire: &Wire,
        pod: (usize, u32),
        around: &mut WorldContext<'_>,
    ) -> Result<(), Violation> {
        let ClientPhase::ServedState(there) = &mut self.state else { return Ok(()) };
        let asked = there.asked.take();
        let Some(sight) = ClientOutcome::of_reason(reason) else { return Err(strange("a reset without a reason")) };
        self.outcomes.count(sight);
        self.tell(around, || format!("is reset: {reason}"));
        let pod = around.memory(pod);
        let maker = asked.as_ref().map(|cursor| around.memory(cursor.maker));
        let reset = ResetEvent {
            reason,
            pod: &pod,
            maker: maker.as_deref(),
            cursor_ms: asked.as_ref().map_or(around.now_ms, |cursor| cursor.at_ms),
            is_damaged: asked.as_ref().is_some_and(|cursor| cursor.is_damaged),
            now_ms: around.now_ms,
        };
        self.witness.reset(around.log, around.shape, &reset, &wire.0.borrow().base)
    }

    /// Goes where it is to go, where its connection is over.
    fn look_after(&mut self, around: &mut WorldContext<'_>) {
        let ClientPhase::ServedState(there) = &self.state else { return };
        let now_ms = around.now_ms;
        let is_slow = self.slow.is_some_and(|(_, until_ms)| now_ms < until_ms + SILENCE_MS);
        let waited_ms = now_ms - self.heard_ms.max(there.since_ms);
        let is_silent = !is_slow && waited_ms > if there.is_connected { SILENCE_MS } else { ANSWER_MS };
        let (is_over, unavailable) = {
            let ends = there.wire.0.borrow();
            (ends.pod_gone && ends.sent.is_empty(), ends.unavailable)
        };
        let (code, redirect) = (there.closed, there.redirect);
        if code.is_none() && !is_over && !is_silent {
            return;
        }
        let wire = Rc::clone(&there.wire.0);
        let (wait_ms, to) = match code {
            Some(1008 | 1012) if redirect.is_some() => (0, redirect),
            Some(1001) => (self.dice.u64(1_000..5_000), None),
            Some(1011 | 1013) => (self.dice.u64(100..600), None),
            _ if unavailable => (self.dice.u64(200..1_000), None),
            _ => (self.dice.u64(..400), None),
        };
        wire.borrow_mut().client_gone = true;
        if code.is_none() {
            self.outcomes.count(if unavailable { ClientOutcome::Unavailable } else { ClientOutcome::Lost });
        }
        self.tell(around, || match code {
            Some(code) => format!("is closed with {code}"),
            None => "has lost its connection".into(),
        });
        self.leave(now_ms + wait_ms, to);
    }
}

fn strange(what: &str) -> Violation {
    Violation { kind: ViolationKind::Strange, what: what.into() }
}
