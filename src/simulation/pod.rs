//! A simulated pod: the gateway's own rules of ingest, shard, membership and shutdown, driven by what stands in for its
//! threads. `SimulatedPod::slot` is a stretch of time in which the pod runs; between two of them others run.
//!
//! `look` and `begin_to_drain` are `gateway/control.rs`, whose loop lives on channels and can't be driven from here;
//! who changes the one changes the other.

mod ingest;
mod session;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;

use self::ingest::PodReader;
pub(super) use self::ingest::{KnownTopic, ReadHistory};
use self::session::RedisClient;
use super::kafka::SimulatedKafka;
use super::plan::WorldShape;
use super::redis::{PendingAnnouncement, SimulatedRedis};
use crate::clock::Now;
use crate::discovery::membership::{Identity, Member};
use crate::discovery::redis_health::LeaseTimes;
use crate::exchange::{PodState, ViewFreshness};
use crate::ids::{AssessmentId, NodeId};
use crate::ingest::IndexRules;
use crate::ingest::testing::TestIngest;
use crate::protocol::close::CloseReason;
use crate::protocol::messages;
use crate::shard::redirect::{Placement, PlacementDecision, PlacementKey};
use crate::shard::testing::{ClientKey, RedirectGate, RedirectWait, TestShard, Wire};
use crate::shutdown::phases;
use crate::stream::batch::{Batch, LogEnd};

/// The time of a lease.
pub(super) const LEASE: Duration = Duration::from_secs(1);

/// A pod's name and place, whether a process of it runs or not.
pub(super) struct SimulatedPod {
    pub(super) node: NodeId,
    pub(super) life: Option<RunningPod>,
    /// What each process that it had has read.
    pub(super) memories: Vec<Rc<RefCell<ReadHistory>>>,
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
    pub(super) patience: RedirectGate,
}

/// A process.
pub(super) struct RunningPod {
    /// Its place in [`SimulatedPod::memories`].
    number: u32,
    memory: Rc<RefCell<ReadHistory>>,
    pod_state: PodState,
    feed: TestIngest,
    readings: Vec<PodReader>,
    /// Of topics that are deleted, or seem to be.
    retired: Vec<PodReader>,
    /// The log's version at the last look, and when the next one is due.
    as_of: Option<u64>,
    look_at_ms: u64,
    inbox: VecDeque<Batch>,
    shard: TestShard,
    /// A turn's sending is under way.
    sending: bool,
    connections: Vec<(ClientKey, Wire)>,
    /// Where the shard stands, by partition.
    base: Vec<i64>,
    /// What the logs' ends were, which the shard is to be told of, and when they are asked for next.
    ends: Option<(Instant, Vec<LogEnd>)>,
    ends_at_ms: u64,
    session: RedisClient,
    told_complete: bool,
}

/// What a pod's slot goes by.
pub(super) struct PodContext<'a> {
    pub(super) shape: &'a WorldShape,
    pub(super) now: Now,
    pub(super) now_ms: u64,
    pub(super) log: &'a SimulatedKafka,
    pub(super) redis: &'a mut SimulatedRedis,
}

impl SimulatedPod {
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
    pub(super) fn start(&mut self, shape: &WorldShape, now: Now) {
        if self.life.is_some() {
            return;
        }
        let number = u32::try_from(self.memories.len()).expect("few lives");
        let memory: Rc<RefCell<ReadHistory>> = Rc::default();
        self.memories.push(Rc::clone(&memory));
        let node = &self.node;
        let identity = Identity {
            node: node.clone(),
            instance: format!("{node}#{}", self.memories.len()).into(),
            url: format!("ws://{node}/ws").into(),
            owns_url: true,
            key_prefix: "simulated".into(),
        };
        self.life = Some(RunningPod {
            number,
            memory,
            pod_state: PodState::default(),
            feed: TestIngest::new(
                SimulatedKafka::routes(),
                IndexRules::new(shape.history, Duration::from_millis(shape.refresh_ms)),
            ),
            readings: Vec::new(),
            retired: Vec::new(),
            as_of: None,
            look_at_ms: 0,
            inbox: VecDeque::new(),
            shard: TestShard::new(shape.shard_config(), shape.drain, node.clone(), now),
            sending: false,
            connections: Vec::new(),
            base: Vec::new(),
            ends: None,
            ends_at_ms: 0,
            session: RedisClient::new(Member::new(identity, LeaseTimes::of(LEASE))),
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
        if let Some(life) = self.life.as_mut().filter(|life| life.pod_state.draining_since.is_none()) {
            life.begin_to_drain(now.instant);
        }
    }

    /// An announcement is on its way to it.
    pub(super) fn hear(&mut self, news: &PendingAnnouncement, now_ms: u64) {
        if now_ms < self.deaf_until_ms {
            return;
        }
        let delay_ms = if self.dice.u8(..10) == 0 { self.dice.u64(100..1_500) } else { self.dice.u64(..20) };
        if let Some(life) = &mut self.life {
            life.session.hear(now_ms + delay_ms, news);
        }
    }

    /// Where it stands in the cluster; `None` where no process runs.
    pub(super) fn pod_state(&self) -> Option<&PodState> {
        self.life.as_ref().map(|life| &life.pod_state)
    }

    /// Whether a load balancer sends clients here.
    pub(super) fn is_ready(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.pod_state.was_ready && life.pod_state.draining_since.is_none())
    }

    /// Runs for a while.
    pub(super) fn slot(&mut self, around: &mut PodContext<'_>) {
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
        if life.pod_state.draining_since.is_some_and(may_end) {
            for (_, wire) in self.life.take().into_iter().flat_map(|life| life.connections) {
                wire.0.borrow_mut().pod_gone = true;
            }
        }
    }
}

impl RunningPod {
    fn begin_to_drain(&mut self, since: Instant) {
        self.session.member.handle_give_up(since);
        self.pod_state.draining_since = Some(since);
        if let Some(own) = self.pod_state.own.take() {
            self.pod_state.view = Arc::new(self.pod_state.view.without(own));
        }
    }

    /// Brings together what the parts show.
    fn look(&mut self, now: Instant) {
        let is_filled = self.told_complete || self.feed.is_filled();
        let draining = self.pod_state.draining_since.is_some();
        if is_filled && !self.told_complete && !draining {
            self.told_complete = true;
            self.session.member.handle_history_complete(now);
        }
        let member = &self.session.member;
        let takes_clients = member.own().is_some() && is_filled && !draining;
        let is_stale = draining && member.own().is_some();
        if !is_stale && !Arc::ptr_eq(&self.pod_state.view, member.view()) {
            self.pod_state.view = Arc::clone(member.view());
        }
        self.pod_state.view_freshness =
            ViewFreshness { as_of: member.as_of(), redis_up: member.is_redis_up(), confirmed: member.is_confirmed() };
        self.pod_state.own = if draining { None } else { member.own() };
        self.pod_state.was_ready |= takes_clients;
    }

    /// A turn of the shard, or a part of it.
    fn turn(&mut self, node: &NodeId, around: &PodContext<'_>, dice: &mut Rng) {
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
            let placement = Placement { node, pod_state: &self.pod_state, place_anywhere: around.shape.place_anywhere };
            // The gateway's own bound is larger than all that a world has.
            let bytes = if dice.bool() { dice.u64(1..2_000) } else { u64::MAX };
            if self.shard.finish_turn(&placement, bytes, now) {
                self.session.member.handle_refresh_request(now.instant);
            }
        }
    }

    /// Whether a client is to be judged now: one that is to be sent away waits until the view is sure.
    fn may_enter(&mut self, request: &mut Request, node: &NodeId, place_anywhere: bool, now: Now) -> bool {
        let placement = Placement { node, pod_state: &self.pod_state, place_anywhere };
        let placement_key = PlacementKey::Assessment(request.assessment.hash());
        if let PlacementDecision::ThisPod { .. } =
            placement.decide(placement_key, request.cursor.as_deref(), self.shard.recent_redirects(), now)
        {
            return true;
        }
        let look = request.patience.ask(&self.pod_state.view_freshness, now);
        if look == RedirectWait::Wanted {
            self.session.member.handle_refresh_request(now.instant);
        }
        look == RedirectWait::Fresh
    }

    /// Judges a client, as `admission::admit` does one with a valid token, and serves it or tells it where to go.
    fn enter(&mut self, request: Request, node: &NodeId, place_anywhere: bool, now: Now) {
        let Request { wire, assessment, cursor, .. } = request;
        let placement = Placement { node, pod_state: &self.pod_state, place_anywhere };
        let placement_key = PlacementKey::Assessment(assessment.hash());
        let others = !place_anywhere && self.pod_state.view.live().any(|(_, pod)| pod.node != *node);
        let is_draining = self.pod_state.draining_since.is_some();
        if !self.pod_state.was_ready || is_draining && !others {
            let mut ends = wire.0.borrow_mut();
            (ends.unavailable, ends.pod_gone) = (true, true);
            return;
        }
        match placement.decide(placement_key, cursor.as_deref(), self.shard.recent_redirects(), now) {
            PlacementDecision::OtherPod { to, cursor } => {
                self.shard.recent_redirects().record(assessment.hash(), &self.pod_state.view_freshness, now.instant);
                let mut ends = wire.0.borrow_mut();
                messages::redirect(&mut ends.sent, "another pod serves this", &to, cursor.as_deref());
                messages::close(&mut ends.sent, CloseReason::Redirect);
                ends.pod_gone = true;
            }
            PlacementDecision::ThisPod { owner_doubt } => {
                {
                    let mut ends = wire.0.borrow_mut();
                    (ends.base, ends.life) = (self.base.clone(), self.number);
                }
                let key = self.shard.attach(&wire, &assessment, cursor, owner_doubt, now);
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
