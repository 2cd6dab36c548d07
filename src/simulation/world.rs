//! A world and its time: it does the deeds of a plan, lets pods and clients have their turns in an order that changes,
//! and ends when all is mended and each client has seen all that it is to see.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::checker::{Violation, ViolationKind};
use super::client::{self, SimulatedClient};
use super::kafka::SimulatedKafka;
use super::outcomes::Outcomes;
use super::plan::{TROUBLE_MS, WorldEvent, WorldPlan, WorldShape};
use super::pod::{self, SimulatedPod};
use super::redis::{RedisState, SimulatedRedis};
use crate::clock::{Now, UnixMs};
use crate::exchange::{Owner, PodState};
use crate::ids::AssessmentId;

/// When a last event of each assessment is written to each topic: all is mended, and they must arrive.
const LAST_EVENTS_MS: u64 = TROUBLE_MS + 2_500;

/// How long after that each client must have been served, in ms: a lease, a start, a wait of 5 s after a 1001, and then
/// some.
const SERVED_WITHIN_MS: u64 = 15_000;

/// How long the world goes on when all is seen, in ms: what comes twice may come late.
const AFTERWARDS_MS: u64 = 500;

/// Redirects that a client may be given one after another while Redis is there. Five were seen in two of 2,000 worlds,
/// in rolling restarts and with pods that stood still.
const BOUNCES_MAX: u32 = 8;

/// What was seen of a world in which nothing went wrong.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct RunSummary {
    pub(super) outcomes: Outcomes,
    /// From the last events until each client was served, in ms of the world.
    pub(super) took_ms: u64,
}

pub(super) struct World<'a> {
    plan: &'a WorldPlan,
    log: SimulatedKafka,
    redis: SimulatedRedis,
    pods: Vec<SimulatedPod>,
    clients: Vec<SimulatedClient>,
    start: Instant,
    now_ms: u64,
    /// The next of the plan's deeds.
    next: usize,
    /// Topics that nobody can see, each with when they are seen again.
    hidden: Vec<(u64, usize)>,
    /// When Redis is up again, and whether it is empty then.
    redis_back: Option<(u64, bool)>,
    dice: Rng,
    pub(super) tale: Option<Vec<String>>,
}

impl<'a> World<'a> {
    pub(super) fn new(plan: &'a WorldPlan, start: Instant) -> Self {
        let WorldPlan { seed, shape, .. } = plan;
        let mut dice = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let id = |number| AssessmentId::parse(&format!("a{number}-{}", seed % 1_000)).expect("a short id");
        let mut log = SimulatedKafka::new((0..shape.assessments).map(id).collect(), shape.padding);
        for &(partitions, spread, beginning) in &shape.topics {
            log.create(partitions, spread, beginning, None);
        }
        let pods = (0..shape.pods).map(|index| SimulatedPod::new(index, dice.u64(..))).collect();
        let clients = shape.clients.iter().enumerate();
        let clients = clients.map(|(number, &of)| {
            let (begins_ms, seed) = (dice.u64(..2_500), dice.u64(..));
            let begins_ms = if plan.absent.contains(&number) { u64::MAX } else { begins_ms };
            SimulatedClient::new(number, of, begins_ms, seed)
        });
        let clients = clients.collect();
        Self {
            plan,
            log,
            redis: SimulatedRedis::new(1_790_000_000_000 + dice.u64(..10_000)),
            pods,
            clients,
            start,
            now_ms: 0,
            next: 0,
            hidden: Vec::new(),
            redis_back: None,
            dice,
            tale: None,
        }
    }

    fn now(&self) -> Now {
        let passed = Duration::from_millis(self.now_ms);
        Now { instant: self.start + passed, unix: UnixMs(1_790_000_000_000).plus(passed) }
    }

    /// Runs to the end.
    pub(super) fn run(&mut self) -> Result<RunSummary, Violation> {
        let mut served_ms = None;
        let mut is_mended = false;
        let mut is_last_written = false;
        loop {
            // As even as the gateway's own turns are not: now close upon one another, now late.
            self.now_ms += [5, 20, 60, 100, 150][self.dice.usize(..5)];
            self.run_due_events();
            if self.now_ms >= TROUBLE_MS {
                self.mend(!std::mem::replace(&mut is_mended, true));
            }
            if self.now_ms >= LAST_EVENTS_MS && !is_last_written {
                is_last_written = true;
                self.write_last();
            }
            self.step()?;
            if !is_last_written {
                continue;
            }
            match served_ms {
                None if self.is_served() => served_ms = Some(self.now_ms),
                None if self.now_ms > LAST_EVENTS_MS + SERVED_WITHIN_MS => return Err(self.unserved()),
                Some(at) if self.now_ms > at + AFTERWARDS_MS => return self.is_steady().map(|()| self.sum(at)),
                _ => {}
            }
        }
    }

    /// Whether no client was sent to and fro. Where Redis is away, each pod goes by the last view that it has: then two
    /// that disagree send a client to each other until it is back.
    fn is_steady(&self) -> Result<(), Violation> {
        let is_of_redis = |event: &WorldEvent| {
            matches!(event, WorldEvent::RedisDies { .. } | WorldEvent::RedisHangs { .. } | WorldEvent::RedisForgets)
        };
        let had_redis = !self.plan.events.iter().any(|(_, event)| is_of_redis(event));
        let bounced = self.present().find(|(_, client)| had_redis && client.bounces() > BOUNCES_MAX);
        bounced.map_or(Ok(()), |(number, client)| {
            let what = format!("c{number} is sent to another pod {} times, one after another", client.bounces());
            Err(Violation { kind: ViolationKind::Bounced, what })
        })
    }

    fn sum(&self, served_ms: u64) -> RunSummary {
        let mut outcomes = Outcomes::default();
        self.clients.iter().for_each(|client| outcomes.add(&client.outcomes));
        RunSummary { outcomes, took_ms: served_ms - LAST_EVENTS_MS }
    }

    /// Whether the pods agree, and each client is where they say, and has seen all.
    fn is_served(&self) -> bool {
        let is_served = |client: &SimulatedClient| self.is_home(client) && client.witness.is_complete(&self.log);
        self.present().all(|(_, client)| is_served(client)) && self.do_agree()
    }

    fn present(&self) -> impl Iterator<Item = (usize, &SimulatedClient)> {
        self.clients.iter().enumerate().filter(|(number, _)| !self.plan.absent.contains(number))
    }

    fn do_agree(&self) -> bool {
        let mut standings = self.pods.iter().map(SimulatedPod::pod_state);
        let Some(Some(first)) = standings.next() else { return false };
        let own = |pod_state: &PodState| pod_state.own.is_some() && pod_state.view.slots == first.view.slots;
        own(first) && standings.all(|pod_state| pod_state.is_some_and(own))
    }

    /// Whether a client is connected to the pod that its assessment belongs to.
    fn is_home(&self, client: &SimulatedClient) -> bool {
        let Some(pod_state) = client.pod().and_then(|pod| self.pods[pod].pod_state()) else { return false };
        let hash = self.log.assessments[client.assessment].hash();
        self.plan.shape.place_anywhere || matches!(pod_state.owner(hash), Owner::ThisPod)
    }

    fn unserved(&self) -> Violation {
        let mut left: Vec<String> = Vec::new();
        for (number, client) in self.present() {
            let missing = client.witness.missing(&self.log);
            match client.pod() {
                None => left.push(format!("c{number} is connected to no pod")),
                Some(pod) if !self.is_home(client) => left.push(format!("c{number} is at p{pod}, not its owner")),
                Some(pod) if !missing.is_empty() => left.push(format!("c{number} at p{pod} lacks {missing:?}")),
                Some(_) => {}
            }
        }
        if !self.do_agree() {
            left.push("the pods do not agree on who lives".into());
        }
        Violation { kind: ViolationKind::Unserved, what: left.join("; ") }
    }

    /// Lets Redis, then each pod and each client have a turn, in any order.
    fn step(&mut self) -> Result<(), Violation> {
        for news in self.redis.step(self.now_ms) {
            self.pods.iter_mut().for_each(|pod| pod.hear(&news, self.now_ms));
        }
        let (pods, all) = (self.pods.len(), self.pods.len() + self.clients.len());
        let mut order: [usize; 16] = std::array::from_fn(|place| place);
        self.dice.shuffle(&mut order[..all]);
        let (now, now_ms) = (self.now(), self.now_ms);
        for &place in &order[..all] {
            let Self { plan, log, redis, pods: all_pods, clients, tale, .. } = self;
            let shape: &WorldShape = &plan.shape;
            if place < pods {
                all_pods[place].slot(&mut pod::PodContext { shape, now, now_ms, log, redis });
                continue;
            }
            let mut around = client::WorldContext { now_ms, log, shape, pods: all_pods, tale };
            clients[place - pods].slot(&mut around).map_err(|fault| Violation {
                what: format!("at {:.3} s, c{}: {}", now_ms as f64 / 1e3, place - pods, fault.what),
                ..fault
            })?;
        }
        Ok(())
    }

    // ---- deeds ------------------------------------------------------------------------------------------------------

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
            if let Some(tale) = &mut self.tale {
                tale.push(format!("{:>6.3} s  * {event}", self.now_ms as f64 / 1e3));
            }
            self.do_to_the_log(event);
            self.do_to_a_pod(event);
            self.do_to_redis(event);
            self.do_to_a_client(event);
        }
    }

    fn do_to_the_log(&mut self, event: WorldEvent) {
        let (log, now_ms) = (&mut self.log, self.now_ms);
        match event {
            WorldEvent::Produce { topic, assessment, count, hole, dice } => {
                for number in 0..count {
                    let hole = if number == 0 { hole } else { 0 };
                    log.produce(topic, assessment, hole, dice + number, false, now_ms);
                }
            }
            WorldEvent::Misplace { topic, assessment } => log.produce(topic, assessment, 0, 0, true, now_ms),
            WorldEvent::Pad { topic, offsets } => log.pad(topic, offsets),
            WorldEvent::Trim { topic, kept } => log.trim(topic, kept),
            WorldEvent::Create { partitions, spread } => log.create(partitions, spread, 0, Some(now_ms)),
            WorldEvent::Widen { topic } => log.widen(topic, now_ms),
            WorldEvent::Remake { topic } => log.remake(topic, now_ms),
            WorldEvent::Hide { topic, ms } => {
                log.hide(topic, true);
                self.hidden.push((now_ms + ms, topic));
            }
            _ => {}
        }
    }

    fn do_to_a_pod(&mut self, event: WorldEvent) {
        let (now, now_ms) = (self.now(), self.now_ms);
        match event {
            WorldEvent::Start { pod } => self.pods[pod].start(&self.plan.shape, now),
            WorldEvent::Crash { pod } => self.pods[pod].crash(),
            WorldEvent::Drain { pod } => self.pods[pod].begin_to_drain(now),
            WorldEvent::Pause { pod, ms } => self.pods[pod].paused_until_ms = now_ms + ms,
            WorldEvent::Deafen { pod, ms } => self.pods[pod].deaf_until_ms = now_ms + ms,
            WorldEvent::Starve { pod: Some(pod), ms } => self.pods[pod].starved_until_ms = now_ms + ms,
            WorldEvent::Starve { pod: None, ms } => {
                self.pods.iter_mut().for_each(|pod| pod.starved_until_ms = now_ms + ms);
            }
            _ => {}
        }
    }

    fn do_to_redis(&mut self, event: WorldEvent) {
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

    fn do_to_a_client(&mut self, event: WorldEvent) {
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

    /// Mends all that is broken; pods that end later are started when they have.
    fn mend(&mut self, first: bool) {
        let now = self.now();
        self.pods.iter_mut().for_each(|pod| pod.start(&self.plan.shape, now));
        if !first {
            return;
        }
        // Deeds that a deed brought with it may be left: pods that drain are to come back.
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

    /// Writes the events that show whether all is well again.
    fn write_last(&mut self) {
        for topic in 0..self.log.topics.len() {
            for assessment in 0..self.plan.shape.assessments {
                self.log.produce(topic, assessment, 0, self.dice.usize(..3), false, self.now_ms);
            }
        }
    }
}
