//! A world and its time: it applies the events of a plan, runs pods and clients in changing order, and ends when
//! everything is repaired and each client has read every event.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::checker::{Violation, ViolationKind};
use super::client::{self, SimulatedClient};
use super::kafka::SimulatedKafka;
use super::outcomes::Outcomes;
use super::plan::{TROUBLE_MS, WorldEvent, WorldPlan, WorldShape};
use super::pod::{self, PodAnswer, SimulatedPod};
use super::redis::{RedisState, SimulatedRedis};
use crate::clock::{Now, UnixMs};
use crate::exchange::{Owner, PodState};
use crate::ids::AssessmentId;

/// When a last event of each assessment is written to each topic. Everything is repaired by then, so these must arrive.
const LAST_EVENTS_MS: u64 = TROUBLE_MS + 2_500;

/// How long after that each client must be served, in ms: a lease, a start, a wait of 5 s after a 1001, and some more.
const SERVED_WITHIN_MS: u64 = 15_000;

/// How long the world runs on after the last event is read, in ms, since a duplicate may arrive late.
const TRAILING_MS: u64 = 500;

/// Redirects that a client may get in a row while Redis is up. Five occurred in one of 20,000 worlds, where a pod drains and
/// its leave is on its way to Redis.
const REDIRECTS_MAX: u32 = 6;

/// Result of a world without a violation.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct RunSummary {
    pub(super) outcomes: Outcomes,
    /// Time from the last events until each client was served, in ms of the world.
    pub(super) elapsed_ms: u64,
}

pub(super) struct World<'a> {
    plan: &'a WorldPlan,
    log: SimulatedKafka,
    redis: SimulatedRedis,
    pods: Vec<SimulatedPod>,
    clients: Vec<SimulatedClient>,
    start: Instant,
    now_ms: u64,
    /// Index of the plan's next event.
    next: usize,
    /// Hidden topics, and when each is shown again.
    hidden: Vec<(u64, usize)>,
    /// When Redis comes back, and whether it is empty then.
    redis_back: Option<(u64, bool)>,
    rng: Rng,
    pub(super) trace: Option<Vec<String>>,
}

impl<'a> World<'a> {
    pub(super) fn new(plan: &'a WorldPlan, start: Instant) -> Self {
        let WorldPlan { seed, shape, .. } = plan;
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let id = |number| AssessmentId::parse(&format!("a{number}-{}", seed % 1_000)).expect("a short id");
        let mut log = SimulatedKafka::new((0..shape.assessments).map(id).collect(), shape.padding);
        for &(partitions, spread, beginning) in &shape.topics {
            log.create(partitions, spread, beginning, None);
        }
        let pods = (0..shape.pods).map(|index| SimulatedPod::new(index, rng.u64(..))).collect();
        let clients = shape.clients.iter().enumerate();
        let clients = clients.map(|(number, &of)| {
            let (begins_ms, seed) = (rng.u64(..2_500), rng.u64(..));
            let begins_ms = if plan.absent.contains(&number) { u64::MAX } else { begins_ms };
            SimulatedClient::new(number, of, begins_ms, seed)
        });
        let clients = clients.collect();
        Self {
            plan,
            log,
            redis: SimulatedRedis::new(1_790_000_000_000 + rng.u64(..10_000)),
            pods,
            clients,
            start,
            now_ms: 0,
            next: 0,
            hidden: Vec::new(),
            redis_back: None,
            rng,
            trace: None,
        }
    }

    fn now(&self) -> Now {
        let passed = Duration::from_millis(self.now_ms);
        Now { instant: self.start + passed, unix: UnixMs(1_790_000_000_000).plus(passed) }
    }

    /// Runs the world to its end.
    pub(super) fn run(&mut self) -> Result<RunSummary, Violation> {
        let mut served_ms = None;
        let mut is_repaired = false;
        let mut is_last_written = false;
        loop {
            // Steps are uneven, like the gateway's own turns: sometimes in quick succession, sometimes late.
            self.now_ms += [5, 20, 60, 100, 150][self.rng.usize(..5)];
            self.run_due_events();
            if self.now_ms >= TROUBLE_MS {
                self.repair(!std::mem::replace(&mut is_repaired, true));
            }
            if self.now_ms >= LAST_EVENTS_MS && !is_last_written {
                is_last_written = true;
                self.write_last_events();
            }
            self.step()?;
            if !is_last_written {
                continue;
            }
            match served_ms {
                None if self.is_served() => served_ms = Some(self.now_ms),
                None if self.now_ms > LAST_EVENTS_MS + SERVED_WITHIN_MS => return Err(self.unserved()),
                Some(at) if self.now_ms > at + TRAILING_MS => return self.is_steady().map(|()| self.sum(at)),
                _ => {}
            }
        }
    }

    /// Whether no client was redirected too often in a row. While Redis is down, each pod uses its last view, and two
    /// pods that disagree redirect a client to each other until Redis is back.
    fn is_steady(&self) -> Result<(), Violation> {
        let is_of_redis = |event: &WorldEvent| {
            matches!(event, WorldEvent::RedisDies { .. } | WorldEvent::RedisHangs { .. } | WorldEvent::RedisForgets)
        };
        let had_redis = !self.plan.events.iter().any(|(_, event)| is_of_redis(event));
        let looping = self.present().find(|(_, client)| had_redis && client.redirects() > REDIRECTS_MAX);
        looping.map_or(Ok(()), |(number, client)| {
            let what = format!("c{number} is redirected {} times in a row", client.redirects());
            Err(Violation { kind: ViolationKind::RedirectLoop, what })
        })
    }

    fn sum(&self, served_ms: u64) -> RunSummary {
        let mut outcomes = Outcomes::default();
        self.clients.iter().for_each(|client| outcomes.add(&client.outcomes));
        RunSummary { outcomes, elapsed_ms: served_ms - LAST_EVENTS_MS }
    }

    /// Whether the pods agree, and each client is at its owner and has read every event.
    fn is_served(&self) -> bool {
        let is_served = |client: &SimulatedClient| self.is_at_owner(client) && client.checker.is_complete(&self.log);
        self.present().all(|(_, client)| is_served(client)) && self.pods_agree()
    }

    fn present(&self) -> impl Iterator<Item = (usize, &SimulatedClient)> {
        self.clients.iter().enumerate().filter(|(number, _)| !self.plan.absent.contains(number))
    }

    fn pods_agree(&self) -> bool {
        let mut pod_states = self.pods.iter().map(SimulatedPod::pod_state);
        let Some(Some(first)) = pod_states.next() else { return false };
        let own = |pod_state: &PodState| pod_state.own_slot.is_some() && pod_state.view.slots == first.view.slots;
        own(first) && pod_states.all(|pod_state| pod_state.is_some_and(own))
    }

    /// Whether a client is connected to the owner of its assessment.
    fn is_at_owner(&self, client: &SimulatedClient) -> bool {
        let Some(pod_state) = client.pod().and_then(|pod| self.pods[pod].pod_state()) else { return false };
        let hash = self.log.assessments[client.assessment].hash();
        self.plan.shape.place_anywhere || matches!(pod_state.owner(hash), Owner::ThisPod)
    }

    fn unserved(&self) -> Violation {
        let mut left: Vec<String> = Vec::new();
        for (number, client) in self.present() {
            let missing = client.checker.missing(&self.log);
            match client.pod() {
                None => left.push(format!("c{number} is connected to no pod")),
                Some(pod) if !self.is_at_owner(client) => left.push(format!("c{number} is at p{pod}, not its owner")),
                Some(pod) if !missing.is_empty() => left.push(format!("c{number} at p{pod} lacks {missing:?}")),
                Some(_) => {}
            }
        }
        if !self.pods_agree() {
            left.push("the pods do not agree on the live slots".into());
        }
        Violation { kind: ViolationKind::Unserved, what: left.join("; ") }
    }

    /// Runs Redis, then each pod and each client once, in random order.
    fn step(&mut self) -> Result<(), Violation> {
        for announcement in self.redis.step(self.now_ms) {
            self.pods.iter_mut().for_each(|pod| pod.receive_announcement(&announcement, self.now_ms));
        }
        let (pods, all) = (self.pods.len(), self.pods.len() + self.clients.len());
        let mut order: [usize; 16] = std::array::from_fn(|index| index);
        self.rng.shuffle(&mut order[..all]);
        let (now, now_ms) = (self.now(), self.now_ms);
        for &index in &order[..all] {
            let Self { plan, log, redis, pods: all_pods, clients, trace, .. } = self;
            let shape: &WorldShape = &plan.shape;
            if index < pods {
                let answers: [PodAnswer; 4] =
                    std::array::from_fn(|pod| all_pods.get(pod).map_or(PodAnswer::Refused, |pod| pod.answer(now_ms)));
                all_pods[index].advance(&mut pod::PodContext { shape, now, now_ms, log, redis, answers: &answers });
                continue;
            }
            let mut context = client::ClientContext { now_ms, log, shape, pods: all_pods, trace };
            clients[index - pods].advance(&mut context).map_err(|fault| Violation {
                what: format!("at {:.3} s, c{}: {}", now_ms as f64 / 1e3, index - pods, fault.what),
                ..fault
            })?;
        }
        Ok(())
    }

    // ---- events -----------------------------------------------------------------------------------------------------

    fn run_due_events(&mut self) {
        if let Some((_, empty)) = self.redis_back.take_if(|(at_ms, _)| *at_ms <= self.now_ms) {
            self.redis.state = RedisState::Up;
            if empty {
                self.redis.forget();
            }
        }
        for (_, topic) in self.hidden.extract_if(.., |(at_ms, _)| *at_ms <= self.now_ms) {
            self.log.hide(topic, false);
        }
        while let Some(&(_, event)) = self.plan.events.get(self.next).filter(|(at_ms, _)| *at_ms <= self.now_ms) {
            self.next += 1;
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{:>6.3} s  * {event}", self.now_ms as f64 / 1e3));
            }
            self.apply_to_kafka(event);
            self.apply_to_pod(event);
            self.apply_to_redis(event);
            self.apply_to_client(event);
        }
    }

    fn apply_to_kafka(&mut self, event: WorldEvent) {
        let (log, now_ms) = (&mut self.log, self.now_ms);
        match event {
            WorldEvent::Produce { topic, assessment, count, hole, choice } => {
                for number in 0..count {
                    let hole = if number == 0 { hole } else { 0 };
                    log.produce(topic, assessment, hole, choice + number, false, now_ms);
                }
            }
            WorldEvent::Misplace { topic, assessment } => log.produce(topic, assessment, 0, 0, true, now_ms),
            WorldEvent::Pad { topic, offsets } => log.pad(topic, offsets),
            WorldEvent::Trim { topic, kept } => log.trim(topic, kept),
            WorldEvent::Create { partitions, spread } => log.create(partitions, spread, 0, Some(now_ms)),
            WorldEvent::Widen { topic } => log.widen(topic, now_ms),
            WorldEvent::Recreate { topic } => log.recreate(topic, now_ms),
            WorldEvent::Hide { topic, ms } => {
                log.hide(topic, true);
                self.hidden.push((now_ms + ms, topic));
            }
            _ => {}
        }
    }

    fn apply_to_pod(&mut self, event: WorldEvent) {
        let (now, now_ms) = (self.now(), self.now_ms);
        match event {
            WorldEvent::Start { pod } => self.pods[pod].start(&self.plan.shape, now),
            WorldEvent::Crash { pod } => self.pods[pod].crash(),
            WorldEvent::Drain { pod } => self.pods[pod].start_drain(now),
            WorldEvent::Pause { pod, ms } => self.pods[pod].paused_until_ms = now_ms + ms,
            WorldEvent::Blind { pod, other, ms } => self.pods[pod].blind.push((other, now_ms + ms)),
            WorldEvent::Deafen { pod, ms } => self.pods[pod].deaf_until_ms = now_ms + ms,
            WorldEvent::Starve { pod: Some(pod), ms } => self.pods[pod].starved_until_ms = now_ms + ms,
            WorldEvent::Starve { pod: None, ms } => {
                self.pods.iter_mut().for_each(|pod| pod.starved_until_ms = now_ms + ms);
            }
            _ => {}
        }
    }

    fn apply_to_redis(&mut self, event: WorldEvent) {
        match event {
            WorldEvent::RedisDies { ms, empty } => {
                self.redis.die();
                self.redis_back = Some((self.now_ms + ms, empty));
            }
            WorldEvent::RedisHangs { ms } if self.redis.state == RedisState::Up => {
                self.redis.state = RedisState::Hanging;
                self.redis_back = Some((self.now_ms + ms, false));
            }
            WorldEvent::RedisForgets => self.redis.forget(),
            WorldEvent::RedisClock { ms } => self.redis.step_clock(ms),
            _ => {}
        }
    }

    fn apply_to_client(&mut self, event: WorldEvent) {
        let now_ms = self.now_ms;
        match event {
            WorldEvent::Cut { client, ms, same } => self.clients[client].cut(now_ms, ms, same),
            WorldEvent::HalfOpen { client } => self.clients[client].half_open(now_ms),
            WorldEvent::Slow { client, bytes, ms } => self.clients[client].slow_down(bytes, now_ms + ms),
            WorldEvent::CutAll => self.clients.iter_mut().for_each(|client| client.cut(now_ms, 0, false)),
            WorldEvent::Damage { client } => self.clients[client].damage_cursor(),
            _ => {}
        }
    }

    /// Repairs everything; pods that end later are started again.
    fn repair(&mut self, first: bool) {
        let now = self.now();
        self.pods.iter_mut().for_each(|pod| pod.start(&self.plan.shape, now));
        if !first {
            return;
        }
        // Remaining events are dropped, but pods that drain must come back.
        self.next = self.plan.events.len();
        if self.redis.state != RedisState::Up {
            self.redis_back = Some((self.now_ms, self.redis_back.is_some_and(|(_, empty)| empty)));
        }
        for pod in &mut self.pods {
            (pod.paused_until_ms, pod.starved_until_ms, pod.deaf_until_ms) = (0, 0, 0);
        }
        self.clients.iter_mut().for_each(|client| client.slow_down(0, 0));
        self.hidden.iter_mut().for_each(|(at_ms, _)| *at_ms = self.now_ms);
    }

    /// Writes the events that show whether everything works again.
    fn write_last_events(&mut self) {
        for topic in 0..self.log.topics.len() {
            for assessment in 0..self.plan.shape.assessments {
                self.log.produce(topic, assessment, 0, self.rng.usize(..3), false, self.now_ms);
            }
        }
    }
}
