//! A log that loses its end, several times. Pods learn of it late or keep reading the old log; pods restart; one client
//! moves from pod to pod with its cursor, from before or after. In the end the client has the log. A `reset` reports
//! each lost record that it had, and nothing else causes one.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::cuts::config;
use crate::clock::{Now, UnixMs};
use crate::config::DrainConfig;
use crate::exchange::PodState;
use crate::ids::{AssessmentId, NodeId, TopicIndex};
use crate::ingest::IndexRules;
use crate::ingest::testing::{TestIngest, TestOffsets, TestTopic};
use crate::shard::redirect::{OwnerDoubt, Placement};
use crate::shard::testing::{ClientKey, ServerOutput, TestShard, Wire};
use crate::simulation::kafka::SimulatedKafka as Routes;
use crate::simulation::messages::{self, ServerMessage};
use crate::stream::batch::{LogEnd, NextOffset, Origin};
use crate::stream::cursor::{self, Cursor};
use crate::stream::fault_injection::{self, InjectedFault};

const PODS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    /// Records of the client's assessment, or of another one.
    Produce { count: usize, is_own: bool },
    /// Control records.
    Pad(i64),
    /// A leader is elected that lacks this many of the last records.
    Elect { lacks: usize },
    /// A pod reads the log that it knows.
    Read { pod: usize, records: usize },
    /// A pod learns of the election.
    LearnOfElection { pod: usize },
    /// A pod receives the log's end from a leader, or from the leader before it.
    End { pod: usize, is_old: bool },
    /// A pod restarts, and finds only this many of the last records.
    Start { pod: usize, kept: usize },
    /// The client connects to a pod; the last `lost` bytes from its previous pod never arrive.
    Connect { pod: usize, lost: usize },
    /// The client's socket takes this many bytes.
    Take(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let pod = 0..PODS;
    let kept = prop_oneof![3 => Just(usize::MAX), 1 => 1..30usize];
    let lost = prop_oneof![2 => Just(0usize), 1 => 0..300usize];
    let room = prop_oneof![Just(0usize), 1..600usize, Just(usize::MAX)];
    prop_oneof![
        6 => (1..6usize, prop::bool::weighted(0.7)).prop_map(|(count, is_own)| Step::Produce { count, is_own }),
        1 => (1..4i64).prop_map(Step::Pad),
        3 => prop_oneof![1 => Just(0usize), 3 => 1..12usize].prop_map(|lacks| Step::Elect { lacks }),
        10 => (pod.clone(), 0..9usize).prop_map(|(pod, records)| Step::Read { pod, records }),
        4 => pod.clone().prop_map(|pod| Step::LearnOfElection { pod }),
        3 => (pod.clone(), prop::bool::weighted(0.2)).prop_map(|(pod, is_old)| Step::End { pod, is_old }),
        1 => (pod.clone(), kept).prop_map(|(pod, kept)| Step::Start { pod, kept }),
        6 => (pod, lost).prop_map(|(pod, lost)| Step::Connect { pod, lost }),
        3 => room.prop_map(Step::Take),
    ]
}

// ---- Kafka
// ------------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    offset: i64,
    epoch: i32,
    number: usize,
    is_own: bool,
}

/// The log of one leader.
#[derive(Debug, Clone, Default)]
struct Branch {
    epoch: i32,
    /// The first offset that its leader wrote.
    begin: i64,
    records: Vec<Record>,
    end: i64,
}

impl Branch {
    /// Whether a client at `next`, behind a record of `epoch`, may have records that this leader lacks.
    fn may_lack(&self, next: i64, epoch: Option<i32>) -> bool {
        next > self.begin && epoch.is_none_or(|epoch| epoch < self.epoch)
    }

    fn from(&self, offset: i64) -> &[Record] {
        &self.records[self.records.partition_point(|record| record.offset < offset)..]
    }

    fn own(&self) -> impl DoubleEndedIterator<Item = usize> {
        self.records.iter().filter(|record| record.is_own).map(|record| record.number)
    }
}

// ---- a pod
// ------------------------------------------------------------------------------------------------------------

struct Pod {
    feed: TestIngest,
    shard: TestShard,
    topic: TopicIndex,
    /// The log that it knows, and the offset that it fetches next.
    branch: usize,
    fetch: i64,
    /// It may lack records below this offset; if so, it knows no earlier leader.
    low: i64,
    /// The last record that it read, and the highest leader epoch so far.
    last: Option<Record>,
    last_epoch: Option<i32>,
    /// It learned of an election, and has not found out yet what it lost.
    is_rereading: bool,
    had_old_end: bool,
}

impl Pod {
    fn start(branches: &[Branch], kept: usize, now: Now) -> Self {
        let drain = DrainConfig { delay: Duration::ZERO, over: Duration::ZERO };
        let branch = branches.last().unwrap();
        let first = branch.records.len().saturating_sub(kept);
        let begin = branch.records.get(first).map_or(branch.end, |record| record.offset);
        let low = if kept == usize::MAX { 0 } else { begin };
        let mut feed =
            TestIngest::new(Routes::routes(), IndexRules::new(Duration::from_secs(300), Duration::from_secs(10)));
        let seen = TestTopic { name: "keyed.t0", id: "id", partitions: 1 };
        let change = feed.apply_metadata(&[seen], now.instant, |_, _| TestOffsets {
            beginning: low,
            since: Some(low),
            end: branch.end,
        });
        let (topic, _, fetch) = change.fresh[0];
        let shard = TestShard::new(config(), drain, NodeId("p".into()), now);
        let branch = branches.len() - 1;
        let (last, last_epoch, is_rereading, had_old_end) = (None, None, false, false);
        let mut pod = Self { feed, shard, topic, branch, fetch, low, last, last_epoch, is_rereading, had_old_end };
        // It accepts no clients before it has read the existing records.
        pod.read(branches, 1, now);
        pod
    }

    fn next(&self) -> i64 {
        self.feed.next(self.topic, 0)
    }

    /// Whether it has read records that are no longer in the log.
    fn has_lost_records(&self, branches: &[Branch]) -> bool {
        branches[self.branch + 1..].iter().any(|later| self.next() > later.begin)
    }

    fn read(&mut self, branches: &[Branch], records: usize, now: Now) {
        let branch = &branches[self.branch];
        let found = branch.from(self.fetch);
        for &record in found.iter().take(records) {
            let assessment = if record.is_own { "a" } else { "b" };
            let payload = format!(r#"{{"assessmentId":"{assessment}","n":{}}}"#, record.number);
            // Losses that were found are reported before anything else.
            self.send(now);
            let before = self.next();
            let origin = Origin { topic: self.topic, partition: 0, offset: record.offset };
            self.feed.record(origin, record.epoch, payload.as_bytes());
            self.fetch = record.offset + 1;
            if self.next() != before || record.offset >= before {
                self.last = Some(record);
                self.last_epoch = self.last_epoch.max(Some(record.epoch));
            }
        }
        if found.len() < records {
            self.send(now);
            self.fetch = branch.end;
            self.feed.end_seen(self.topic, 0, branch.end);
            self.last = branch.records.last().copied().or(self.last).filter(|last| last.offset < branch.end);
        }
        self.is_rereading &= self.fetch < self.next();
        self.send(now);
    }

    /// Continues in the current log.
    fn learn_of_election(&mut self, branches: &[Branch], now: Now) {
        let log = branches.last().unwrap();
        let has_lost_records = self.has_lost_records(branches);
        self.branch = branches.len() - 1;
        if has_lost_records {
            self.send(now);
            self.is_rereading = true;
            let old_next = self.next();
            self.fetch = self.feed.restart(self.topic, 0, 0, log.end);
            // If no record comes again, the pod does not know where the logs diverge.
            let first = log.from(self.fetch).first().filter(|first| first.offset < old_next);
            let comes_again = |old: &Branch| first.is_some_and(|first| old.records.contains(first));
            if self.last.is_none() || !branches[..self.branch].iter().any(comes_again) {
                let from = log.from(self.fetch).first().map_or(log.end, |record| record.offset);
                self.low = self.low.max(from);
            }
            self.send(now);
        }
    }

    /// Sends the records read so far as a batch.
    fn send(&mut self, now: Now) {
        if let Some(batch) = self.feed.take(now.instant) {
            self.shard.take(batch, now);
        }
        while !self.shard.dispatch(1, now) {}
        let (node, pod_state) = (NodeId("p".into()), PodState::default());
        self.shard.finish_turn(&Placement { node: &node, pod_state: &pod_state, place_anywhere: true }, u64::MAX, now);
    }
}

// ---- the client
// -------------------------------------------------------------------------------------------------------

struct Client {
    at: Option<(usize, ClientKey, Wire)>,
    cursor: Option<Box<str>>,
    /// Bytes of an incomplete frame.
    read: Vec<u8>,
    /// Events since the last reset, and the number of records written at that time.
    has: Vec<usize>,
    since: usize,
    /// From its cursor when it connected: its next offset, and the leader epoch of the record before.
    next: i64,
    epoch: Option<i32>,
    /// Whether a reset would be correct.
    may_be_reset: bool,
}

/// The client, the pods and the log.
struct Run {
    branches: Vec<Branch>,
    pods: Vec<Pod>,
    client: Client,
    now: Now,
    written: usize,
    id: AssessmentId,
}

impl Run {
    fn new() -> Self {
        let now = Now { instant: Instant::now(), unix: UnixMs(1_790_000_000_000) };
        let branches = vec![Branch::default()];
        let pods = Vec::new();
        let client = Client {
            at: None,
            cursor: None,
            read: Vec::new(),
            has: Vec::new(),
            since: 0,
            next: 0,
            epoch: None,
            may_be_reset: true,
        };
        let mut run = Self { branches, pods, client, now, written: 0, id: AssessmentId::parse("a").unwrap() };
        // A record that is never lost: if no pod knows a leader, a cursor can't tell which one wrote the log.
        run.produce(1, false);
        run.pods = (0..PODS).map(|_| Pod::start(&run.branches, usize::MAX, now)).collect();
        run
    }

    fn log(&mut self) -> &mut Branch {
        self.branches.last_mut().unwrap()
    }

    fn produce(&mut self, count: usize, is_own: bool) {
        for _ in 0..count {
            let number = self.written;
            self.written += 1;
            let log = self.log();
            log.records.push(Record { offset: log.end, epoch: log.epoch, number, is_own });
            log.end += 1;
        }
    }

    fn elect(&mut self, lacks: usize) {
        let mut next = self.log().clone();
        next.epoch += 1;
        if lacks > 0 {
            next.records.truncate(next.records.len().saturating_sub(lacks).max(1));
            next.end = next.records.last().map_or(0, |last| last.offset + 1);
        }
        next.begin = next.end;
        self.client.may_be_reset |= next.may_lack(self.client.next, self.client.epoch);
        self.branches.push(next);
    }

    /// A pod that has lost records resets all its clients, except those with the log of a later leader.
    fn note_possible_reset(&mut self, pod: usize) {
        let Self { client, pods, .. } = self;
        if client.at.as_ref().is_some_and(|(at, ..)| *at == pod) {
            let has_newer = client.epoch.zip(pods[pod].last_epoch).is_some_and(|(own, last)| own > last);
            client.may_be_reset |= !has_newer || client.next <= pods[pod].low;
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        self.now = Now { instant: self.now.instant + Duration::from_millis(150), ..self.now };
        let now = self.now;
        match *step {
            Step::Produce { count, is_own } => self.produce(count, is_own),
            Step::Pad(offsets) => {
                // Not as the first records of a leader: if only control records replace lost ones, no epoch shows it.
                let log = self.log();
                log.end += if log.end > log.begin { offsets } else { 0 };
            }
            Step::Elect { lacks } => self.elect(lacks),
            Step::Read { pod, records } => self.pods[pod].read(&self.branches, records, now),
            Step::LearnOfElection { pod } => {
                if self.pods[pod].branch + 1 < self.branches.len() {
                    let has_lost_records = self.pods[pod].has_lost_records(&self.branches);
                    self.pods[pod].learn_of_election(&self.branches, now);
                    if has_lost_records {
                        self.note_possible_reset(pod);
                    }
                }
            }
            Step::End { pod, is_old } => {
                let Self { pods, branches, .. } = self;
                // Not twice in a row.
                let is_old = is_old && branches.len() > 1 && !pods[pod].had_old_end;
                pods[pod].had_old_end = is_old;
                let Branch { epoch, end, .. } = branches[branches.len() - 1 - usize::from(is_old)];
                let at = NextOffset { topic: pods[pod].topic, partition: 0, offset: end };
                pods[pod].feed.update_ends(now.instant, vec![LogEnd { at, leader_epoch: Some(epoch) }]);
                pods[pod].send(now);
            }
            Step::Start { pod, kept } => {
                if self.client.at.as_ref().is_some_and(|(at, ..)| *at == pod) {
                    self.leave(0)?;
                }
                self.pods[pod] = Pod::start(&self.branches, kept, now);
            }
            Step::Connect { pod, lost } => {
                self.leave(lost)?;
                self.connect(pod);
            }
            Step::Take(room) => {
                if let Some((_, _, wire)) = &self.client.at {
                    wire.0.borrow_mut().room = room;
                }
            }
        }
        self.pass()
    }

    /// Runs the client's pod; the client reads what arrived.
    fn pass(&mut self) -> Result<(), TestCaseError> {
        let Some((pod, key, wire)) = &self.client.at else { return Ok(()) };
        wire.0.borrow_mut().said.push(ServerOutput::Pong);
        let pod = &mut self.pods[*pod];
        pod.send(self.now);
        pod.shard.run_task(*key, wire, self.now);
        pod.send(self.now);
        let sent = std::mem::take(&mut wire.0.borrow_mut().sent);
        self.receive(&sent)
    }

    fn connect(&mut self, pod: usize) {
        let Self { client, pods, branches, written, now, id, .. } = self;
        let wire = Wire::default();
        wire.0.borrow_mut().room = usize::MAX;
        let known = client.cursor.as_deref().and_then(|text| match cursor::decode(text, id.hash()).unwrap() {
            Cursor::Of(listing) => listing.topics.first().map(|topic| topic.offsets[0]),
            Cursor::None => None,
        });
        (client.next, client.epoch) = known.map_or((0, None), |known| (known.next, known.epoch));
        let may_lack = branches.iter().any(|branch| branch.may_lack(client.next, client.epoch));
        let has_newer = client.epoch.zip(pods[pod].last_epoch).is_some_and(|(own, last)| own > last);
        let has_less = client.next <= pods[pod].low || client.next > 0 && client.epoch.is_none();
        client.may_be_reset = client.cursor.is_none() || may_lack || has_less || pods[pod].is_rereading && !has_newer;
        if client.cursor.is_none() {
            (client.has, client.since) = (Vec::new(), *written);
        }
        let key = pods[pod].shard.attach(&wire, id, client.cursor.clone(), OwnerDoubt::None, *now);
        client.at = Some((pod, key, wire));
    }

    fn leave(&mut self, lost: usize) -> Result<(), TestCaseError> {
        let Some((pod, key, wire)) = self.client.at.take() else { return Ok(()) };
        self.pods[pod].send(self.now);
        let mut sent = {
            let mut ends = wire.0.borrow_mut();
            ends.client_gone = true;
            std::mem::take(&mut ends.sent)
        };
        sent.truncate(sent.len().saturating_sub(lost));
        self.pods[pod].shard.run_task(key, &wire, self.now);
        let received = self.receive(&sent);
        self.client.read.clear();
        received
    }

    fn receive(&mut self, sent: &[u8]) -> Result<(), TestCaseError> {
        self.client.read.extend_from_slice(sent);
        let read = std::mem::take(&mut self.client.read);
        let mut left = &read[..];
        while let Some((opcode, payload, rest)) = messages::frame(left) {
            left = rest;
            if opcode != messages::TEXT {
                continue;
            }
            let text = String::from_utf8_lossy(payload).into_owned();
            match messages::read(payload) {
                ServerMessage::Event { number } => self.event(number)?,
                ServerMessage::Connected { resumed } => {
                    prop_assert!(resumed || self.client.may_be_reset, "not resumed without a cause: {}", text);
                }
                ServerMessage::Ping => {}
                ServerMessage::Reset { reason } => {
                    // Beyond the end of a log, a cursor without an epoch can mean anything.
                    let is_unknown = reason == "invalid" && self.client.epoch.is_none();
                    prop_assert!(reason == "expired" || is_unknown, "{text}");
                    prop_assert!(self.client.may_be_reset, "a reset without a cause: {}", text);
                    (self.client.has, self.client.since) = (Vec::new(), self.written);
                }
                other => prop_assert!(false, "{:?}", other),
            }
            if let Some(cursor) = messages::cursor(payload) {
                self.client.cursor = Some(cursor.into());
            }
        }
        self.client.read = left.to_vec();
        Ok(())
    }

    fn event(&mut self, number: usize) -> Result<(), TestCaseError> {
        let has = &mut self.client.has;
        prop_assert!(!has.contains(&number), "{number} came again: {has:?}");
        if let Some(&last) = has.last() {
            let follows = |branch: &Branch| {
                let own: Vec<_> = branch.own().collect();
                own.windows(2).any(|pair| pair == [last, number])
            };
            prop_assert!(self.branches.iter().any(follows), "{number} does not follow {last} in any log");
        }
        has.push(number);
        Ok(())
    }

    /// Every pod learns of the elections and reads everything; then checks what the client has.
    fn end(&mut self) -> Result<(), TestCaseError> {
        if self.client.at.is_none() {
            self.step(&Step::Connect { pod: 0, lost: 0 })?;
        }
        self.step(&Step::Take(usize::MAX))?;
        for round in 0..3 {
            for pod in 0..PODS {
                self.step(&Step::LearnOfElection { pod })?;
                self.step(&Step::Read { pod, records: usize::MAX })?;
                self.step(&Step::End { pod, is_old: false })?;
            }
            if round == 1 {
                self.step(&Step::Produce { count: 2, is_own: true })?;
            }
        }
        let own: Vec<usize> = self.branches.last().unwrap().own().collect();
        let Client { has, since, .. } = &self.client;
        prop_assert!(own.ends_with(has), "the log ends with {own:?}, the client has {has:?}");
        let expected = own.iter().filter(|number| *number >= since).count();
        prop_assert!(has.len() >= expected, "{own:?} since {since}: it has {has:?}");
        Ok(())
    }
}

fn play(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut run = Run::new();
    for step in steps {
        run.step(step)?;
    }
    run.end()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_client_is_reset_exactly_if_its_log_loses_its_end(steps in vec(step(), 0..60)) {
        play(&steps)?;
    }
}

#[test]
fn each_injected_fault_is_found() {
    let config =
        ProptestConfig { failure_persistence: None, max_shrink_iters: 0, cases: 5_000, ..ProptestConfig::default() };
    for injected in [InjectedFault::OldLogToANewerCursor, InjectedFault::CutConcernsAll, InjectedFault::LostCountsAsHad]
    {
        let mut runner = TestRunner::new(config.clone());
        let found = fault_injection::tests::with(injected, || runner.run(&vec(step(), 0..60), |steps| play(&steps)));
        println!("{injected:?}: {}", found.expect_err("no run finds it"));
    }
}
