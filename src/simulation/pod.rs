//! A simulated pod: the gateway's own rules of ingest, shard, membership and shutdown, driven by what stands in for its
//! threads. `Pod::slot` is a stretch of time in which the pod runs; between two of them others run.
//!
//! `look` and `begin_to_drain` are `gateway/control.rs`, whose loop lives on channels and can't be driven from here; who
//! changes the one changes the other.

mod ingest;
mod session;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;

use self::ingest::Reading;
pub(super) use self::ingest::{Known, Memory};
use self::session::Session;
use super::log::Log;
use super::plan::Shape;
use super::redis::{News, Redis};
use crate::clock::Now;
use crate::discovery::contact::Times;
use crate::discovery::membership::{Identity, Member};
use crate::exchange::{Sight, Standing};
use crate::ids::{AssessmentId, NodeId};
use crate::ingest::IndexRules;
use crate::ingest::testing::Feed;
use crate::protocol::close::CloseReason;
use crate::protocol::messages;
use crate::shard::admission::{Here, Placed, Watching};
use crate::shard::testing::{Bench, Key, Look, Patience, Wire};
use crate::shutdown::phases;
use crate::stream::batch::{Batch, LogEnd};

/// The time of a lease.
pub(super) const LEASE: Duration = Duration::from_secs(1);

/// A pod's name and place, whether a process of it runs or not.
pub(super) struct Pod {
    pub(super) node: NodeId,
    pub(super) life: Option<Life>,
    /// What each process that it had has read.
    pub(super) memories: Vec<Rc<RefCell<Memory>>>,
    /// Until then the process stands still.
    pub(super) paused_until_ms: u64,
    /// Until then nothing comes from Kafka.
    pub(super) starved_until_ms: u64,
    /// Until then announcements are lost on their way.
    pub(super) deaf_until_ms: u64,
    /// Clients that ask to be served.
    pub(super) requests: Vec<Request>,
    dice: Rng,
}

/// A client that asks to be served.
pub(super) struct Request {
    pub(super) at_ms: u64,
    pub(super) wire: Wire,
    pub(super) assessment: AssessmentId,
    pub(super) cursor: Option<Box<str>>,
    pub(super) patience: Patience,
}

/// A process.
pub(super) struct Life {
    /// Its place in [`Pod::memories`].
    number: u32,
    memory: Rc<RefCell<Memory>>,
    standing: Standing,
    feed: Feed,
    readings: Vec<Reading>,
    /// Of topics that are deleted, or seem to be.
    retired: Vec<Reading>,
    /// The log's version at the last look, and when the next one is due.
    looked: Option<u64>,
    look_at_ms: u64,
    inbox: VecDeque<Batch>,
    shard: Bench,
    /// A turn's sending is under way.
    sending: bool,
    connections: Vec<(Key, Wire)>,
    /// Where the shard stands, by partition.
    base: Vec<i64>,
    /// What the logs' ends were, which the shard is to be told of, and when they are asked for next.
    ends: Option<(Instant, Vec<LogEnd>)>,
    ends_at_ms: u64,
    session: Session,
    told_complete: bool,
}

/// What a pod's slot goes by.
pub(super) struct Around<'a> {
    pub(super) shape: &'a Shape,
    pub(super) now: Now,
    pub(super) now_ms: u64,
    pub(super) log: &'a Log,
    pub(super) redis: &'a mut Redis,
}

impl Pod {
    pub(super) fn new(index: usize, seed: u64) -> Self {
        Self {
            node: NodeId(format!("p{index}").into()),
            life: None,
            memories: Vec::new(),
            paused_until_ms: 0,
            starved_until_ms: 0,
            deaf_until_ms: 0,
            requests: Vec::new(),
            dice: Rng::with_seed(seed),
        }
    }

    /// A process starts, where none runs.
    pub(super) fn start(&mut self, shape: &Shape, now: Now) {
        if self.life.is_some() {
            return;
        }
        let number = u32::try_from(self.memories.len()).expect("few lives");
        let memory: Rc<RefCell<Memory>> = Rc::default();
        self.memories.push(Rc::clone(&memory));
        let node = &self.node;
        let identity = Identity {
            node: node.clone(),
            instance: format!("{node}#{}", self.memories.len()).into(),
            url: format!("ws://{node}/ws").into(),
            owns_url: true,
            key_prefix: "simulated".into(),
        };
        self.life = Some(Life {
            number,
            memory,
            standing: Standing::default(),
            feed: Feed::new(Log::routes(), IndexRules::new(shape.history, Duration::from_millis(shape.refresh_ms))),
            readings: Vec::new(),
            retired: Vec::new(),
            looked: None,
            look_at_ms: 0,
            inbox: VecDeque::new(),
            shard: Bench::new(shape.shard_config(), shape.drain, node.clone(), now),
            sending: false,
            connections: Vec::new(),
            base: Vec::new(),
            ends: None,
            ends_at_ms: 0,
            session: Session::new(Member::new(identity, Times::of(LEASE))),
            told_complete: false,
        });
    }

    /// The process dies. Of what was on its way to clients, a part is lost.
    pub(super) fn crash(&mut self) {
        let Some(life) = self.life.take() else { return };
        for (_, wire) in life.connections {
            let mut ends = wire.0.borrow_mut();
            let arrived = self.dice.usize(..=ends.sent.len());
            ends.sent.truncate(arrived);
            ends.pod_gone = true;
        }
    }

    /// The signal to stop came.
    pub(super) fn begin_to_drain(&mut self, now: Now) {
        if let Some(life) = self.life.as_mut().filter(|life| life.standing.draining_since.is_none()) {
            life.begin_to_drain(now.instant);
        }
    }

    /// An announcement is on its way to it.
    pub(super) fn hear(&mut self, news: &News, now_ms: u64) {
        if now_ms < self.deaf_until_ms {
            return;
        }
        let delay_ms = if self.dice.u8(..10) == 0 { self.dice.u64(100..1_500) } else { self.dice.u64(..20) };
        if let Some(life) = &mut self.life {
            life.session.hear(now_ms + delay_ms, news);
        }
    }

    /// Where it stands in the cluster; `None` where no process runs.
    pub(super) fn standing(&self) -> Option<&Standing> {
        self.life.as_ref().map(|life| &life.standing)
    }

    /// Whether a load balancer sends clients here.
    pub(super) fn is_ready(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.standing.was_ready && life.standing.draining_since.is_none())
    }

    /// Runs for a while.
    pub(super) fn slot(&mut self, around: &mut Around<'_>) {
        let now_ms = around.now_ms;
        let Some(life) = &mut self.life else {
            // Nobody listens.
            self.requests.drain(..).for_each(|request| request.wire.0.borrow_mut().pod_gone = true);
            return;
        };
        if now_ms < self.paused_until_ms {
            return;
        }
        let dice = &mut self.dice;
        if now_ms >= self.starved_until_ms {
            life.read(around, dice);
            life.ask_for_ends(around);
        }
        life.session.run(around, dice);
        life.look(around.now.instant);
        let tasks_first = dice.bool();
        if tasks_first {
            life.run_tasks(around.now);
        }
        let (node, anywhere) = (&self.node, around.shape.place_anywhere);
        let may_enter =
            |request: &mut Request| request.at_ms <= now_ms && life.may_enter(request, node, anywhere, around.now);
        let entering: Vec<Request> = self.requests.extract_if(.., may_enter).collect();
        for request in entering {
            life.enter(request, &self.node, anywhere, around.now);
        }
        life.turn(&self.node, around, dice);
        if !tasks_first {
            life.run_tasks(around.now);
        }
        let (drain, clients) = (&around.shape.drain, life.shard.clients());
        let may_end =
            |since| phases::may_end(around.now.instant, since, drain, clients, life.session.member.has_left());
        if life.standing.draining_since.is_some_and(may_end) {
            for (_, wire) in self.life.take().into_iter().flat_map(|life| life.connections) {
                wire.0.borrow_mut().pod_gone = true;
            }
        }
    }
}

impl Life {
    fn begin_to_drain(&mut self, since: Instant) {
        self.session.member.handle_give_up(since);
        self.standing.draining_since = Some(since);
        if let Some(own) = self.standing.own.take() {
            self.standing.view = Arc::new(self.standing.view.without(own));
        }
    }

    /// Brings together what the parts show.
    fn look(&mut self, now: Instant) {
        let is_filled = self.told_complete || self.feed.is_filled();
        let draining = self.standing.draining_since.is_some();
        if is_filled && !self.told_complete && !draining {
            self.told_complete = true;
            self.session.member.handle_history_complete(now);
        }
        let member = &self.session.member;
        let takes_clients = member.own().is_some() && is_filled && !draining;
        let is_stale = draining && member.own().is_some();
        if !is_stale && !Arc::ptr_eq(&self.standing.view, member.view()) {
            self.standing.view = Arc::clone(member.view());
        }
        self.standing.sight =
            Sight { looked: member.looked(), reached: member.is_connected(), proven: member.is_proven() };
        self.standing.own = if draining { None } else { member.own() };
        self.standing.was_ready |= takes_clients;
    }

    /// A turn of the shard, or a part of it.
    fn turn(&mut self, node: &NodeId, around: &Around<'_>, dice: &mut Rng) {
        let now = around.now;
        // Most of what comes while a turn sends waits for the next one.
        if !self.sending || dice.u8(..4) == 0 {
            let mut bytes = 0;
            while bytes < self.shard.intake_bytes_max() {
                let Some(batch) = self.inbox.pop_front() else { break };
                self.follow(&batch);
                bytes += batch.arena.len();
                self.shard.take(batch, now);
            }
            self.sending = true;
        }
        // Mostly in one go; now and then others have their turn in between.
        let budget = if dice.u8(..4) == 0 { dice.usize(1..3) } else { usize::MAX };
        if self.shard.dispatch(budget, now) {
            self.sending = false;
            let here = Here { node, standing: &self.standing, place_anywhere: around.shape.place_anywhere };
            // The gateway's own bound is larger than all that a world has.
            let bytes = if dice.bool() { dice.u64(1..2_000) } else { u64::MAX };
            if self.shard.finish_turn(&here, bytes, now) {
                self.session.member.handle_look_wish(now.instant);
            }
        }
    }

    /// Whether a client is to be judged now: one that is to be sent away waits until the view is sure.
    fn may_enter(&mut self, request: &mut Request, node: &NodeId, place_anywhere: bool, now: Now) -> bool {
        let here = Here { node, standing: &self.standing, place_anywhere };
        let watching = Watching::Assessment(request.assessment.hash());
        if let Placed::Here { .. } = here.place(watching, request.cursor.as_deref(), self.shard.sent_away(), now) {
            return true;
        }
        let look = request.patience.ask(&self.standing.sight, now);
        if look == Look::Wanted {
            self.session.member.handle_look_wish(now.instant);
        }
        look == Look::Sure
    }

    /// Judges a client, as `admission::judge` does one with a good token, and serves it or tells it where to go.
    fn enter(&mut self, request: Request, node: &NodeId, place_anywhere: bool, now: Now) {
        let Request { wire, assessment, cursor, .. } = request;
        let here = Here { node, standing: &self.standing, place_anywhere };
        let watching = Watching::Assessment(assessment.hash());
        let others = !place_anywhere && self.standing.view.live().any(|(_, pod)| pod.node != *node);
        let is_draining = self.standing.draining_since.is_some();
        if !self.standing.was_ready || is_draining && !others {
            let mut ends = wire.0.borrow_mut();
            (ends.unavailable, ends.pod_gone) = (true, true);
            return;
        }
        match here.place(watching, cursor.as_deref(), self.shard.sent_away(), now) {
            Placed::Elsewhere { to, cursor } => {
                self.shard.sent_away().note(assessment.hash(), &self.standing.sight, now.instant);
                let mut ends = wire.0.borrow_mut();
                messages::redirect(&mut ends.sent, "another pod serves this", &to, cursor.as_deref());
                messages::close(&mut ends.sent, CloseReason::Redirect);
                ends.pod_gone = true;
            }
            Placed::Here { against_owner } => {
                {
                    let mut ends = wire.0.borrow_mut();
                    (ends.base, ends.life) = (self.base.clone(), self.number);
                }
                let key = self.shard.attach(&wire, &assessment, cursor, against_owner, now);
                self.connections.push((key, wire));
            }
        }
    }

    /// Runs the connections' own tasks.
    fn run_tasks(&mut self, now: Now) {
        let Self { connections, shard, .. } = self;
        connections.retain(|(key, wire)| shard.run_task(*key, wire, now));
    }
}
