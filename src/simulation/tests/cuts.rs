//! One client that moves from pod to pod. In whatever order each pod reads the partitions, and wherever connections
//! break, the events read before each break and after each resume are the log. No cluster and no faults here, only
//! rules.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use crate::clock::{Now, UnixMs};
use crate::config::{DrainConfig, ShardConfig};
use crate::exchange::PodState;
use crate::ids::{AssessmentId, NodeId, TopicIndex};
use crate::ingest::IndexRules;
use crate::ingest::testing::{TestIngest, TestOffsets, TestTopic};
use crate::shard::redirect::{OwnerDoubt, Placement};
use crate::shard::testing::{ClientKey, ServerOutput, TestShard, Wire};
use crate::simulation::checker::ClientChecker;
use crate::simulation::kafka::SimulatedKafka;
use crate::simulation::messages::{self, ServerMessage};
use crate::stream::batch::Origin;

const PODS: usize = 3;

#[derive(Debug, Clone)]
struct Story {
    /// Of each topic: partition count, and whether records lie on any partition.
    topics: Vec<(i32, bool)>,
    /// Topic, assessment, hole and partition choice of each event.
    events: Vec<(usize, usize, i64, usize)>,
    legs: Vec<ConnectionLeg>,
}

/// A connection, from its start to its break.
#[derive(Debug, Clone)]
struct ConnectionLeg {
    pod: usize,
    /// Reads before the connection: a pod, and the partition of which it reads a record.
    reads: Vec<(usize, usize)>,
    /// Reads of the pod, then the bytes that the socket takes.
    steps: Vec<(Vec<usize>, usize)>,
    /// Bytes that the socket took and that never arrive.
    lost: usize,
}

fn story() -> impl Strategy<Value = Story> {
    let topics = vec((1..3i32, prop::bool::weighted(0.2)), 1..4);
    let events = vec((0..4usize, 0..2usize, prop_oneof![4 => Just(0i64), 1 => 1..4i64], 0..4usize), 0..25);
    let step = (vec(0..6usize, 0..6), prop_oneof![Just(0usize), 1..600usize, Just(5_000)]);
    let reads = vec((0..PODS, 0..6usize), 0..12);
    let leg = (0..PODS, reads, vec(step, 0..5), prop_oneof![Just(0usize), 0..300usize]);
    let leg = leg.prop_map(|(pod, reads, steps, lost)| ConnectionLeg { pod, reads, steps, lost });
    (topics, events, vec(leg, 0..8)).prop_map(|(topics, events, legs)| Story { topics, events, legs })
}

/// A pod without a cluster.
struct LonePod {
    feed: TestIngest,
    shard: TestShard,
    /// Topic and partition of each partition of the log.
    readings: Vec<(TopicIndex, i32)>,
}

impl LonePod {
    fn new(log: &SimulatedKafka, now: Now) -> Self {
        let drain = DrainConfig { delay: Duration::ZERO, over: Duration::ZERO };
        let mut pod = Self {
            feed: TestIngest::new(
                SimulatedKafka::routes(),
                IndexRules::new(Duration::from_secs(300), Duration::from_secs(10)),
                now.instant,
            ),
            shard: TestShard::new(config(), drain, NodeId("p".into()), now),
            readings: Vec::new(),
        };
        let seen = log.topics.iter().map(|topic| TestTopic {
            name: &topic.name,
            id: &topic.id,
            partitions: i32::try_from(topic.parts.len()).unwrap(),
        });
        let change = pod.feed.apply_metadata(&seen.collect::<Vec<_>>(), now.instant, |_, _| TestOffsets {
            beginning: 0,
            since: None,
            end: 0,
        });
        pod.readings = change.fresh.iter().map(|&(topic, partition, _)| (topic, partition)).collect();
        pod.send(now);
        pod
    }

    /// Reads the next record of a partition, if there is one.
    fn read(&mut self, log: &SimulatedKafka, which: usize) {
        let index = which % self.readings.len();
        let (topic, partition) = self.readings[index];
        let part = &log.parts[index];
        match part.records.get(part.index_of(self.feed.next(topic, partition))) {
            Some(record) => {
                self.feed.record(Origin { topic, partition, offset: record.offset }, 0, record.payload.as_bytes());
            }
            None => self.feed.end_seen(topic, partition, part.end),
        }
    }

    fn read_all(&mut self, log: &SimulatedKafka) {
        for index in 0..self.readings.len() {
            (0..=log.parts[index].records.len()).for_each(|_| self.read(log, index));
        }
    }

    /// Sends the records read so far as a batch.
    fn send(&mut self, now: Now) {
        while let Some(batch) = self.feed.take(now.instant) {
            self.shard.take(batch, now);
        }
        while !self.shard.dispatch(1, now) {}
        let (node, pod_state) = (NodeId("p".into()), PodState::default());
        self.shard.finish_turn(&Placement { node: &node, pod_state: &pod_state, place_anywhere: true }, u64::MAX, now);
    }
}

pub(super) fn config() -> ShardConfig {
    ShardConfig {
        shards: 1,
        history: Duration::from_secs(3_600),
        history_bytes: 64 << 20,
        market_flush: Duration::from_millis(100),
        heartbeat: Duration::from_millis(400),
        silence: Duration::from_secs(3_600),
        connections_max: 1_000,
        accepts_per_second: 1_000,
        inbound_per_second: 100,
        message_bytes_max: 4_096,
        handshake_timeout: Duration::from_secs(10),
        stall_timeout: Duration::from_secs(3_600),
        handover_per_second: 1_000,
        place_anywhere: true,
    }
}

/// The client, the log and the pods.
struct DisconnectRun {
    log: SimulatedKafka,
    pods: Vec<LonePod>,
    now: Now,
    checker: ClientChecker,
    cursor: Option<Box<str>>,
    sent: String,
}

impl DisconnectRun {
    fn begin(story: &Story) -> Self {
        let now = Now { instant: Instant::now(), unix: UnixMs(1_790_000_000_000) };
        let mut log = SimulatedKafka::new(["a", "b"].map(|id| AssessmentId::parse(id).unwrap()).into(), 0);
        story.topics.iter().for_each(|&(partitions, spread)| log.create(partitions, spread, 0, None));
        let pods = (0..PODS).map(|_| LonePod::new(&log, now)).collect();
        let mut checker = ClientChecker::new(0);
        checker.started(&log, &[]);
        Self { log, pods, now, checker, cursor: None, sent: String::new() }
    }

    fn connect(&mut self, pod: usize) -> (ClientKey, Wire) {
        let wire = Wire::default();
        let key = self.pods[pod].shard.attach(
            &wire,
            &self.log.assessments[0],
            self.cursor.clone(),
            OwnerDoubt::None,
            self.now,
        );
        (key, wire)
    }

    /// Lets the socket take `room` bytes and runs the pod.
    fn pass(&mut self, pod: usize, (key, wire): &(ClientKey, Wire), room: usize) {
        self.now = Now { instant: self.now.instant + Duration::from_millis(150), ..self.now };
        {
            let mut ends = wire.0.borrow_mut();
            ends.room = room;
            ends.said.push(ServerOutput::Pong);
        }
        self.pods[pod].send(self.now);
        self.pods[pod].shard.run_task(*key, wire, self.now);
        self.pods[pod].send(self.now);
    }

    /// Breaks the connection; the client reads what arrived.
    fn cut(&mut self, pod: usize, (key, wire): (ClientKey, Wire), lost: usize) -> Result<(), TestCaseError> {
        wire.0.borrow_mut().client_gone = true;
        self.pods[pod].shard.run_task(key, &wire, self.now);
        let sent = std::mem::take(&mut wire.0.borrow_mut().sent);
        self.sent = String::from_utf8_lossy(&sent).into_owned();
        let mut left = &sent[..sent.len().saturating_sub(lost)];
        while let Some((opcode, payload, rest)) = messages::frame(left) {
            left = rest;
            if opcode != messages::TEXT {
                continue;
            }
            match messages::read(payload) {
                ServerMessage::Event { number } => {
                    let verdict = self.checker.event(&self.log, number);
                    prop_assert!(verdict.is_ok(), "{verdict:?}");
                }
                ServerMessage::Connected { resumed } => prop_assert_eq!(resumed, self.cursor.is_some()),
                ServerMessage::Ping => {}
                other => prop_assert!(false, "{:?}", other),
            }
            if let Some(cursor) = messages::cursor(payload) {
                self.cursor = Some(cursor.into());
            }
        }
        Ok(())
    }
}

/// Plays a story. The client connects before the first event, and its last connection lasts.
fn play(story: &Story) -> Result<(), TestCaseError> {
    let mut run = DisconnectRun::begin(story);
    let first = run.connect(0);
    run.pass(0, &first, usize::MAX);
    run.cut(0, first, 0)?;
    for &(topic, assessment, hole, choice) in &story.events {
        run.log.produce(topic % story.topics.len(), assessment, hole, choice, false, 0);
    }
    for leg in &story.legs {
        for &(pod, which) in &leg.reads {
            run.pods[pod].read(&run.log, which);
            if which == 0 {
                run.pods[pod].send(run.now);
            }
        }
        let connection = run.connect(leg.pod);
        for (reads, room) in &leg.steps {
            reads.iter().for_each(|&which| run.pods[leg.pod].read(&run.log, which));
            run.pass(leg.pod, &connection, *room);
        }
        run.cut(leg.pod, connection, leg.lost)?;
    }
    let last = run.connect(0);
    run.pods[0].read_all(&run.log);
    run.pass(0, &last, usize::MAX);
    run.cut(0, last, 0)?;
    if !run.checker.is_complete(&run.log) {
        println!("{:?}", run.sent);
    }
    prop_assert_eq!(run.checker.missing(&run.log), Vec::<usize>::new());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn events_before_each_break_and_after_each_resume_are_the_log(story in story()) {
        play(&story)?;
    }
}
