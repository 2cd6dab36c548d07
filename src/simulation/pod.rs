//! A simulated pod: the gateway's own rules of ingest, shard, membership and shutdown, driven by stand-ins for its
//! threads. `SimulatedPod::advance` runs the pod for a while; other pods run between two calls.
//!
//! `update_state` and `start_drain` copy `gateway/control.rs`, whose loop lives on channels and can't be driven from
//! here. A change to one must be made to the other.

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

/// Length of a lease.
pub(super) const LEASE: Duration = Duration::from_secs(1);

/// A pod of the cluster, running or not.
pub(super) struct SimulatedPod {
    pub(super) node: NodeId,
    pub(super) life: Option<RunningPod>,
    /// What each of its processes has read.
    pub(super) histories: Vec<Rc<RefCell<ReadHistory>>>,
    /// The process is paused until then.
    pub(super) paused_until_ms: u64,
    /// Kafka delivers nothing until then.
    pub(super) starved_until_ms: u64,
    /// Announcements are lost until then.
    pub(super) deaf_until_ms: u64,
    /// Its looks at another pod fail until then: at one, or at all (`None`).
    pub(super) blind: Vec<(Option<usize>, u64)>,
    /// Requests of clients.
    pub(super) requests: Vec<Request>,
    rng: Rng,
}

/// A client's request.
pub(super) struct Request {
    pub(super) at_ms: u64,
    pub(super) wire: Wire,
    pub(super) assessment: AssessmentId,
    pub(super) cursor: Option<Box<str>>,
    /// The pod that the client was redirected to, and did not reach.
    pub(super) unreachable: Option<Box<str>>,
    /// The user, another one for each client.
    pub(super) user: Box<str>,
    /// From when on the pod would redirect it.
    pub(super) redirect_gate: Option<RedirectGate>,
}

/// A running process of a pod.
pub(super) struct RunningPod {
    /// Index in [`SimulatedPod::histories`].
    number: u32,
    history: Rc<RefCell<ReadHistory>>,
    pod_state: PodState,
    feed: TestIngest,
    readings: Vec<PodReader>,
    /// Readers of topics that are deleted, or seem to be.
    retired: Vec<PodReader>,
    /// The log's version at the last metadata refresh, and when the next one is due.
    as_of: Option<u64>,
    refresh_at_ms: u64,
    inbox: VecDeque<Batch>,
    shard: TestShard,
    /// A turn has not sent everything yet.
    sending: bool,
    connections: Vec<(ClientKey, Wire)>,
    /// The shard's next offset, by partition.
    base: Vec<i64>,
    /// Log ends that the shard has not got yet, and when they are queried next.
    ends: Option<(Instant, Vec<LogEnd>)>,
    ends_at_ms: u64,
    session: RedisClient,
    reported_complete: bool,
}

/// The world around a pod in a step.
pub(super) struct PodContext<'a> {
    pub(super) shape: &'a WorldShape,
    pub(super) now: Now,
    pub(super) now_ms: u64,
    pub(super) log: &'a SimulatedKafka,
    pub(super) redis: &'a mut SimulatedRedis,
    /// What a look at each pod finds.
    pub(super) answers: &'a [PodAnswer],
}

/// What a look at a pod finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PodAnswer {
    /// It answers.
    Prompt,
    /// Its process is paused.
    None,
    /// No process listens.
    Refused,
}

impl SimulatedPod {
    pub(super) fn new(index: usize, seed: u64) -> Self {
        Self {
            node: NodeId(format!("p{index}").into()),
            life: None,
            histories: Vec::new(),
            paused_until_ms: 0,
            starved_until_ms: 0,
            deaf_until_ms: 0,
            blind: Vec::new(),
            requests: Vec::new(),
            rng: Rng::with_seed(seed),
        }
    }

    /// Starts a process, unless one runs.
    pub(super) fn start(&mut self, shape: &WorldShape, now: Now) {
        if self.life.is_some() {
            return;
        }
        let number = u32::try_from(self.histories.len()).expect("few lives");
        let history: Rc<RefCell<ReadHistory>> = Rc::default();
        self.histories.push(Rc::clone(&history));
        let node = &self.node;
        let identity = Identity {
            node: node.clone(),
            instance: format!("{node}#{}", self.histories.len()).into(),
            url: format!("ws://{node}/ws").into(),
            peer_url: shape.has_looks.then(|| format!("http://{node}").into()),
            owns_url: true,
            key_prefix: "simulated".into(),
        };
        self.life = Some(RunningPod {
            number,
            history,
            pod_state: PodState::default(),
            feed: TestIngest::new(
                SimulatedKafka::routes(),
                IndexRules::new(shape.history, Duration::from_millis(shape.refresh_ms)),
                now.instant,
            ),
            readings: Vec::new(),
            retired: Vec::new(),
            as_of: None,
            refresh_at_ms: 0,
            inbox: VecDeque::new(),
            shard: TestShard::new(shape.shard_config(), shape.drain, node.clone(), now),
            sending: false,
            connections: Vec::new(),
            base: Vec::new(),
            ends: None,
            ends_at_ms: 0,
            session: RedisClient::new(Member::new(identity, LeaseTimes::of(LEASE))),
            reported_complete: false,
        });
    }

    /// Kills the process. A part of the bytes on their way to clients is lost.
    pub(super) fn crash(&mut self) {
        let Some(life) = self.life.take() else { return };
        for (_, wire) in life.connections {
            let mut ends = wire.0.borrow_mut();
            let arrived = self.rng.usize(..=ends.sent.len());
            ends.sent.truncate(arrived);
            ends.pod_gone = true;
        }
    }

    /// Handles the signal to stop.
    pub(super) fn start_drain(&mut self, now: Now) {
        if let Some(life) = self.life.as_mut().filter(|life| life.pod_state.draining_since.is_none()) {
            life.start_drain(now.instant);
        }
    }

    /// Sends an announcement to the pod.
    pub(super) fn receive_announcement(&mut self, announcement: &PendingAnnouncement, now_ms: u64) {
        if now_ms < self.deaf_until_ms {
            return;
        }
        let delay_ms = if self.rng.u8(..10) == 0 { self.rng.u64(100..1_500) } else { self.rng.u64(..20) };
        if let Some(life) = &mut self.life {
            life.session.receive_announcement(now_ms + delay_ms, announcement);
        }
    }

    /// The published pod state; `None` if no process runs.
    pub(super) fn pod_state(&self) -> Option<&PodState> {
        self.life.as_ref().map(|life| &life.pod_state)
    }

    /// What a look at it finds.
    pub(super) fn answer(&self, now_ms: u64) -> PodAnswer {
        match &self.life {
            None => PodAnswer::Refused,
            Some(_) if now_ms < self.paused_until_ms => PodAnswer::None,
            Some(_) => PodAnswer::Prompt,
        }
    }

    /// Whether a load balancer sends clients here.
    pub(super) fn is_ready(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.pod_state.was_ready && life.pod_state.draining_since.is_none())
    }

    /// Runs the pod for a while.
    pub(super) fn advance(&mut self, context: &mut PodContext<'_>) {
        let now_ms = context.now_ms;
        let Some(life) = &mut self.life else {
            // No process listens.
            self.requests.drain(..).for_each(|request| request.wire.0.borrow_mut().pod_gone = true);
            return;
        };
        if now_ms < self.paused_until_ms {
            return;
        }
        let rng = &mut self.rng;
        if now_ms >= self.starved_until_ms {
            life.read(context, rng);
            life.request_ends(context);
        }
        self.blind.retain(|(_, until_ms)| *until_ms > now_ms);
        life.session.run(context, &self.blind, rng);
        life.update_state(context.now.instant);
        let tasks_first = rng.bool();
        if tasks_first {
            life.run_tasks(context.now);
        }
        let (node, anywhere) = (&self.node, context.shape.place_anywhere);
        let may_enter =
            |request: &mut Request| request.at_ms <= now_ms && life.may_enter(request, node, anywhere, context.now);
        let entering: Vec<Request> = self.requests.extract_if(.., may_enter).collect();
        for request in entering {
            life.enter(request, &self.node, anywhere, context.now);
        }
        life.turn(&self.node, context, rng);
        if !tasks_first {
            life.run_tasks(context.now);
        }
        let (drain, clients) = (&context.shape.drain, life.shard.clients());
        let may_end =
            |since| phases::may_end(context.now.instant, since, drain, clients, life.session.member.has_left());
        if life.pod_state.draining_since.is_some_and(may_end) {
            for (_, wire) in self.life.take().into_iter().flat_map(|life| life.connections) {
                wire.0.borrow_mut().pod_gone = true;
            }
        }
    }
}

impl RunningPod {
    fn start_drain(&mut self, since: Instant) {
        self.session.member.handle_drain(since);
        self.pod_state.draining_since = Some(since);
        if let Some(own) = self.pod_state.own_slot.take() {
            self.pod_state.view = Arc::new(self.pod_state.view.without(own));
        }
    }

    /// Updates the pod state from the state of the parts.
    fn update_state(&mut self, now: Instant) {
        let is_filled = self.reported_complete || self.feed.is_filled();
        let draining = self.pod_state.draining_since.is_some();
        if is_filled && !self.reported_complete && !draining {
            self.reported_complete = true;
            self.session.member.handle_history_complete(now);
        }
        let member = &self.session.member;
        let takes_clients = member.own_slot().is_some() && is_filled && !draining;
        let is_stale = draining && member.own_slot().is_some();
        if !is_stale && !Arc::ptr_eq(&self.pod_state.view, member.view()) {
            self.pod_state.view = Arc::clone(member.view());
        }
        self.pod_state.view_freshness =
            ViewFreshness { as_of: member.as_of(), redis_up: member.is_redis_up(), confirmed: member.is_confirmed() };
        self.pod_state.silent = member.silent();
        self.pod_state.own_slot = if draining { None } else { member.own_slot() };
        self.pod_state.was_ready |= takes_clients;
    }

    /// A turn of the shard, or a part of it.
    fn turn(&mut self, node: &NodeId, context: &PodContext<'_>, rng: &mut Rng) {
        let now = context.now;
        // Most batches that arrive during a turn wait for the next one.
        if !self.sending || rng.u8(..4) == 0 {
            let mut bytes = 0;
            while bytes < self.shard.intake_bytes_max() {
                let Some(batch) = self.inbox.pop_front() else { break };
                self.track_offsets(&batch);
                bytes += batch.arena.len();
                self.shard.take(batch, now);
            }
            self.sending = true;
        }
        // Usually in one call; sometimes other work comes in between.
        let budget = if rng.u8(..4) == 0 { rng.usize(1..3) } else { usize::MAX };
        if self.shard.dispatch(budget, now) {
            self.sending = false;
            let placement =
                Placement { node, pod_state: &self.pod_state, place_anywhere: context.shape.place_anywhere };
            // The gateway's own limit is larger than everything in a world.
            let bytes = if rng.bool() { rng.u64(1..2_000) } else { u64::MAX };
            if self.shard.finish_turn(&placement, bytes, now) {
                self.session.member.handle_refresh_request(now.instant);
            }
        }
    }

    /// Whether a client can be admitted or redirected now: a redirect waits until the view is fresh.
    fn may_enter(&mut self, request: &mut Request, node: &NodeId, place_anywhere: bool, now: Now) -> bool {
        let placement = Placement { node, pod_state: &self.pod_state, place_anywhere };
        let placement_key = PlacementKey::Assessment(request.assessment.hash());
        if let PlacementDecision::ThisPod { .. } = placement.decide(
            placement_key,
            request.cursor.as_deref(),
            request.unreachable.as_deref(),
            self.shard.recent_redirects(),
            now,
        ) {
            return true;
        }
        let recent_redirects = self.shard.recent_redirects();
        let redirected = recent_redirects.last_of_user(request.assessment.hash(), &request.user, now.instant);
        let gate = request.redirect_gate.get_or_insert_with(|| RedirectGate::newer_than(redirected));
        let freshness = gate.ask(&self.pod_state.view_freshness, now);
        if freshness == RedirectWait::Wanted {
            self.session.member.handle_refresh_request(now.instant);
        }
        freshness == RedirectWait::Fresh
    }

    /// Admits a client as `admission::admit` does for one with a valid token: serves it or redirects it.
    fn enter(&mut self, request: Request, node: &NodeId, place_anywhere: bool, now: Now) {
        let Request { wire, assessment, cursor, user, unreachable, .. } = request;
        let placement = Placement { node, pod_state: &self.pod_state, place_anywhere };
        let placement_key = PlacementKey::Assessment(assessment.hash());
        let others = !place_anywhere && self.pod_state.view.live().any(|(_, pod)| pod.node != *node);
        let is_draining = self.pod_state.draining_since.is_some();
        if !self.pod_state.was_ready || is_draining && !others {
            let mut ends = wire.0.borrow_mut();
            (ends.unavailable, ends.pod_gone) = (true, true);
            return;
        }
        let unreachable = unreachable.as_deref();
        match placement.decide(placement_key, cursor.as_deref(), unreachable, self.shard.recent_redirects(), now) {
            PlacementDecision::OtherPod { to, cursor } => {
                let recent_redirects = self.shard.recent_redirects();
                recent_redirects.record(assessment.hash(), &self.pod_state.view_freshness, now.instant);
                recent_redirects.record_user(assessment.hash(), &user, now.instant);
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

    /// Runs the tasks of the connections.
    fn run_tasks(&mut self, now: Now) {
        let Self { connections, shard, .. } = self;
        connections.retain(|(key, wire)| shard.run_task(*key, wire, now));
    }
}
