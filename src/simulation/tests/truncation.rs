//! Two logs that lose their ends, several times. Pods learn of it late or keep reading the old log; pods restart; one
//! client moves from pod to pod with its cursor, from before or after. In the end the client has the logs. A `reset`
//! reports each lost end of which it had records, and nothing else causes one.

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
use crate::routing::table::Fingerprint;
use crate::shard::redirect::{OwnerDoubt, Placement};
use crate::shard::testing::{ClientKey, ServerOutput, TestShard, Wire};
use crate::simulation::kafka::SimulatedKafka as Routes;
use crate::simulation::messages::{self, ServerMessage};
use crate::stream::batch::{LogEnd, NextOffset, Origin};
use crate::stream::cursor::{self, Cursor, Tag};
use crate::stream::fault_injection::{self, InjectedFault};

const PODS: usize = 3;

/// Topics of one partition, each a log.
const LOGS: usize = 2;

#[derive(Debug, Clone)]
enum Step {
    /// Records of the client's assessment, or of another one.
    Produce { log: usize, count: usize, is_own: bool },
    /// Control records.
    Pad { log: usize, offsets: i64 },
    /// A leader is elected that lacks this many of the last records.
    Elect { log: usize, lacks: usize },
    /// A pod reads the log that it knows.
    Read { pod: usize, log: usize, records: usize },
    /// A pod learns of the election.
    LearnOfElection { pod: usize, log: usize },
    /// A pod receives the log's end from a leader, or from the leader before it.
    End { pod: usize, log: usize, is_old: bool },
    /// A pod restarts, and finds only this many of the last records of each log.
    Start { pod: usize, kept: usize },
    /// The client connects to a pod; the last `lost` bytes from its previous pod never arrive.
    Connect { pod: usize, lost: usize },
    /// The client's socket takes this many bytes.
    Take(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let (pod, log) = (0..PODS, 0..LOGS);
    let at = (0..PODS, 0..LOGS);
    let kept = prop_oneof![3 => Just(usize::MAX), 1 => 1..30usize];
    let lost = prop_oneof![2 => Just(0usize), 1 => 0..300usize];
    let room = prop_oneof![Just(0usize), 1..600usize, Just(usize::MAX)];
    let lacks = prop_oneof![1 => Just(0usize), 3 => 1..12usize];
    let is_own = prop::bool::weighted(0.7);
    let is_old = prop::bool::weighted(0.2);
    prop_oneof![
        6 => (log.clone(), 1..6usize, is_own).prop_map(|(log, count, is_own)| Step::Produce { log, count, is_own }),
        1 => (log.clone(), 1..4i64).prop_map(|(log, offsets)| Step::Pad { log, offsets }),
        3 => (log, lacks).prop_map(|(log, lacks)| Step::Elect { log, lacks }),
        10 => (at.clone(), 0..9usize).prop_map(|((pod, log), records)| Step::Read { pod, log, records }),
        4 => at.clone().prop_map(|(pod, log)| Step::LearnOfElection { pod, log }),
        3 => (at, is_old).prop_map(|((pod, log), is_old)| Step::End { pod, log, is_old }),
        1 => (pod.clone(), kept).prop_map(|(pod, kept)| Step::Start { pod, kept }),
        6 => (pod, lost).prop_map(|(pod, lost)| Step::Connect { pod, lost }),
        3 => room.prop_map(Step::Take),
    ]
}

// ---- Kafka --------------------------------------------------------------------------------------------------------

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

// ---- a pod --------------------------------------------------------------------------------------------------------

struct Pod {
    feed: TestIngest,
    shard: TestShard,
    readings: [Reading; LOGS],
}

/// How a pod reads a log.
struct Reading {
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
    fn start(logs: &[Vec<Branch>; LOGS], kept: usize, now: Now) -> Self {
        let drain = DrainConfig { delay: Duration::ZERO, over: Duration::ZERO };
        let branch = |log: usize| logs[log].last().unwrap();
        let lows: [i64; LOGS] = std::array::from_fn(|log| {
            let first = branch(log).records.len().saturating_sub(kept);
            let begin = branch(log).records.get(first).map_or(branch(log).end, |record| record.offset);
            if kept == usize::MAX { 0 } else { begin }
        });
        let indexes = IndexRules::new(Duration::from_secs(300), Duration::from_secs(10));
        let mut feed = TestIngest::new(Routes::routes(), indexes, now.instant);
        let names: [String; LOGS] = std::array::from_fn(|log| format!("keyed.t{log}"));
        let seen: Vec<_> = names.iter().map(|name| TestTopic { name, id: name, partitions: 1 }).collect();
        let change = feed.apply_metadata(&seen, now.instant, |name, _| {
            let log = names.iter().position(|other| other == name).unwrap();
            TestOffsets { beginning: lows[log], since: Some(lows[log]), end: branch(log).end }
        });
        let shard = TestShard::new(config(), drain, NodeId("p".into()), now);
        let readings = std::array::from_fn(|log| {
            let (topic, _, fetch) = change.fresh[log];
            assert_eq!(feed.name(topic), names[log]);
            let (last, last_epoch, is_rereading, had_old_end) = (None, None, false, false);
            let (branch, low) = (logs[log].len() - 1, lows[log]);
            Reading { topic, branch, fetch, low, last, last_epoch, is_rereading, had_old_end }
        });
        let mut pod = Self { feed, shard, readings };
        // It accepts no clients before it has read the existing records.
        (0..LOGS).for_each(|log| pod.read(log, &logs[log], 1, now));
        pod
    }

    fn next(&self, log: usize) -> i64 {
        self.feed.next(self.readings[log].topic, 0)
    }

    /// Whether it has read records that are no longer in the log.
    fn has_lost_records(&self, log: usize, branches: &[Branch]) -> bool {
        branches[self.readings[log].branch + 1..].iter().any(|later| self.next(log) > later.begin)
    }

    fn read(&mut self, log: usize, branches: &[Branch], records: usize, now: Now) {
        let Reading { topic, branch, fetch, .. } = self.readings[log];
        let branch = &branches[branch];
        let found = branch.from(fetch);
        for &record in found.iter().take(records) {
            let assessment = if record.is_own { "a" } else { "b" };
            let payload = format!(r#"{{"assessmentId":"{assessment}","n":{}}}"#, record.number);
            // Losses that were found are reported before anything else.
            self.send(now);
            let before = self.next(log);
            let origin = Origin { topic, partition: 0, offset: record.offset };
            self.feed.record(origin, record.epoch, payload.as_bytes());
            let is_taken = self.next(log) != before || record.offset >= before;
            let reading = &mut self.readings[log];
            reading.fetch = record.offset + 1;
            if is_taken {
                reading.last = Some(record);
                reading.last_epoch = reading.last_epoch.max(Some(record.epoch));
            }
        }
        if found.len() < records {
            self.send(now);
            self.feed.end_seen(topic, 0, branch.end);
            let reading = &mut self.readings[log];
            reading.fetch = branch.end;
            let last = branch.records.last().copied().or(reading.last);
            reading.last = last.filter(|last| last.offset < branch.end);
        }
        let next = self.next(log);
        let reading = &mut self.readings[log];
        reading.is_rereading &= reading.fetch < next;
        self.send(now);
    }

    /// Continues in the current log.
    fn learn_of_election(&mut self, log: usize, branches: &[Branch], now: Now) {
        let now_is = branches.last().unwrap();
        let has_lost_records = self.has_lost_records(log, branches);
        self.readings[log].branch = branches.len() - 1;
        if has_lost_records {
            self.send(now);
            let old_next = self.next(log);
            let fetch = self.feed.restart(self.readings[log].topic, 0, 0, now_is.end);
            let reading = &mut self.readings[log];
            (reading.is_rereading, reading.fetch) = (true, fetch);
            // If no record comes again, the pod does not know where the logs diverge.
            let first = now_is.from(fetch).first().filter(|first| first.offset < old_next);
            let comes_again = |old: &Branch| first.is_some_and(|first| old.records.contains(first));
            if reading.last.is_none() || !branches[..reading.branch].iter().any(comes_again) {
                let from = now_is.from(fetch).first().map_or(now_is.end, |record| record.offset);
                reading.low = reading.low.max(from);
            }
            self.send(now);
        }
    }

    /// Sends the records read so far.
    fn send(&mut self, now: Now) {
        while let Some(batch) = self.feed.take(now.instant) {
            self.shard.take(batch, now);
        }
        while !self.shard.dispatch(1, now) {}
        let (node, pod_state) = (NodeId("p".into()), PodState::default());
        self.shard.finish_turn(&Placement { node: &node, pod_state: &pod_state, place_anywhere: true }, u64::MAX, now);
    }
}

// ---- the client ---------------------------------------------------------------------------------------------------

struct Client {
    at: Option<(usize, ClientKey, Wire)>,
    cursor: Option<Box<str>>,
    /// Bytes of an incomplete frame.
    read: Vec<u8>,
    /// Events of each log since the last reset, and the number of records written at that time.
    has: [Vec<usize>; LOGS],
    since: usize,
    /// Of each log, from its cursor when it connected or from that of its last reset: its next offset, and the leader
    /// epoch of the record before.
    stood: [Stood; LOGS],
    /// Of which logs a reset would be correct.
    may_be_reset: [bool; LOGS],
}

type Stood = (i64, Option<i32>);

/// What a cursor says of each log.
fn stood(cursor: Option<&str>, id: &AssessmentId) -> [Stood; LOGS] {
    let listing = cursor.and_then(|text| match cursor::decode(text, id.hash()).unwrap() {
        Cursor::Of(listing) => Some(listing),
        Cursor::None => None,
    });
    std::array::from_fn(|log| {
        let tag = Tag::of(Fingerprint::new(&format!("keyed.t{log}"), "simulated", &format!("keyed.t{log}")));
        let listed = listing.iter().flat_map(|listing| &listing.topics).find(|topic| topic.tag.name == tag.name);
        listed.map_or((0, None), |topic| (topic.offsets[0].next, topic.offsets[0].epoch))
    })
}

/// The client, the pods and the logs.
struct Run {
    logs: [Vec<Branch>; LOGS],
    pods: Vec<Pod>,
    client: Client,
    now: Now,
    /// By number, the log of each record that was written.
    written: Vec<usize>,
    id: AssessmentId,
}

impl Run {
    fn new() -> Self {
        let now = Now { instant: Instant::now(), unix: UnixMs(1_790_000_000_000) };
        let client = Client {
            at: None,
            cursor: None,
            read: Vec::new(),
            has: Default::default(),
            since: 0,
            stood: [(0, None); LOGS],
            may_be_reset: [true; LOGS],
        };
        let logs = std::array::from_fn(|_| vec![Branch::default()]);
        let id = AssessmentId::parse("a").unwrap();
        let mut run = Self { logs, pods: Vec::new(), client, now, written: Vec::new(), id };
        // A record that is never lost: if no pod knows a leader, a cursor can't tell which one wrote the log.
        (0..LOGS).for_each(|log| run.produce(log, 1, false));
        run.pods = (0..PODS).map(|_| Pod::start(&run.logs, usize::MAX, now)).collect();
        run
    }

    fn log(&mut self, log: usize) -> &mut Branch {
        self.logs[log].last_mut().unwrap()
    }

    fn produce(&mut self, log: usize, count: usize, is_own: bool) {
        for _ in 0..count {
            let number = self.written.len();
            self.written.push(log);
            let branch = self.log(log);
            branch.records.push(Record { offset: branch.end, epoch: branch.epoch, number, is_own });
            branch.end += 1;
        }
    }

    fn elect(&mut self, log: usize, lacks: usize) {
        let mut next = self.log(log).clone();
        next.epoch += 1;
        if lacks > 0 {
            next.records.truncate(next.records.len().saturating_sub(lacks).max(1));
            next.end = next.records.last().map_or(0, |last| last.offset + 1);
        }
        next.begin = next.end;
        let (at, epoch) = self.client.stood[log];
        self.client.may_be_reset[log] |= next.may_lack(at, epoch);
        self.logs[log].push(next);
    }

    /// A pod that has lost records resets all its clients, except those with the log of a later leader.
    fn note_possible_reset(&mut self, pod: usize, log: usize) {
        let Self { client, pods, .. } = self;
        if client.at.as_ref().is_some_and(|(at, ..)| *at == pod) {
            let (at, epoch) = client.stood[log];
            let reading = &pods[pod].readings[log];
            let has_newer = epoch.zip(reading.last_epoch).is_some_and(|(own, last)| own > last);
            client.may_be_reset[log] |= !has_newer || at <= reading.low;
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        self.now = Now { instant: self.now.instant + Duration::from_millis(150), ..self.now };
        let now = self.now;
        match *step {
            Step::Produce { log, count, is_own } => self.produce(log, count, is_own),
            Step::Pad { log, offsets } => {
                // Not as the first records of a leader: if only control records replace lost ones, no epoch shows it.
                let branch = self.log(log);
                branch.end += if branch.end > branch.begin { offsets } else { 0 };
            }
            Step::Elect { log, lacks } => self.elect(log, lacks),
            Step::Read { pod, log, records } => self.pods[pod].read(log, &self.logs[log], records, now),
            Step::LearnOfElection { pod, log } => {
                if self.pods[pod].readings[log].branch + 1 < self.logs[log].len() {
                    let has_lost_records = self.pods[pod].has_lost_records(log, &self.logs[log]);
                    self.pods[pod].learn_of_election(log, &self.logs[log], now);
                    if has_lost_records {
                        self.note_possible_reset(pod, log);
                    }
                }
            }
            Step::End { pod, log, is_old } => self.end_of_log(pod, log, is_old),
            Step::Start { pod, kept } => {
                if self.client.at.as_ref().is_some_and(|(at, ..)| *at == pod) {
                    self.leave(0)?;
                }
                self.pods[pod] = Pod::start(&self.logs, kept, now);
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

    fn end_of_log(&mut self, pod: usize, log: usize, is_old: bool) {
        let Self { pods, logs, now, .. } = self;
        let (pod, branches) = (&mut pods[pod], &logs[log]);
        let reading = &mut pod.readings[log];
        // Not twice in a row.
        reading.had_old_end = is_old && branches.len() > 1 && !reading.had_old_end;
        let Branch { epoch, end, .. } = branches[branches.len() - 1 - usize::from(reading.had_old_end)];
        let at = NextOffset { topic: reading.topic, partition: 0, offset: end };
        pod.feed.update_ends(now.instant, vec![LogEnd { at, leader_epoch: Some(epoch) }]);
        pod.send(*now);
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
        let Self { client, pods, logs, written, now, id, .. } = self;
        let wire = Wire::default();
        wire.0.borrow_mut().room = usize::MAX;
        client.stood = stood(client.cursor.as_deref(), id);
        client.may_be_reset = std::array::from_fn(|log| {
            let ((next, epoch), reading) = (client.stood[log], &pods[pod].readings[log]);
            let may_lack = logs[log].iter().any(|branch| branch.may_lack(next, epoch));
            let has_newer = epoch.zip(reading.last_epoch).is_some_and(|(own, last)| own > last);
            let has_less = next <= reading.low || next > 0 && epoch.is_none();
            client.cursor.is_none() || may_lack || has_less || reading.is_rereading && !has_newer
        });
        if client.cursor.is_none() {
            (client.has, client.since) = (Default::default(), written.len());
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
            let may_be_reset = self.client.may_be_reset.contains(&true);
            match messages::read(payload) {
                ServerMessage::Event { number } => self.event(number)?,
                ServerMessage::Connected { resumed } => {
                    prop_assert!(resumed || may_be_reset, "not resumed without a cause: {}", text);
                }
                ServerMessage::Ping => {}
                ServerMessage::Reset { reason } => {
                    // Beyond the end of a log, a cursor without an epoch can mean anything.
                    let is_unknown = reason == "invalid" && self.client.stood.iter().any(|(_, epoch)| epoch.is_none());
                    prop_assert!(reason == "expired" || is_unknown, "{text}");
                    prop_assert!(may_be_reset, "a reset without a cause: {}", text);
                    self.is_reset(messages::cursor(payload));
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

    /// From its reset on the client has what its pod reads, except what its cursor has ahead of that. So one reset
    /// explains no other.
    fn is_reset(&mut self, cursor: Option<&str>) {
        let Self { client, pods, logs, written, id, .. } = self;
        (client.has, client.since) = (Default::default(), written.len());
        client.stood = stood(cursor, id);
        let pod = client.at.as_ref().map(|(pod, ..)| &pods[*pod]);
        client.may_be_reset = std::array::from_fn(|log| {
            let (next, epoch) = client.stood[log];
            let has_newer = |last: Option<i32>| epoch.zip(last).is_some_and(|(own, last)| own > last);
            let is_ahead = pod.is_some_and(|pod| next > pod.next(log) || has_newer(pod.readings[log].last_epoch));
            let is_rereading = pod.is_some_and(|pod| pod.readings[log].is_rereading);
            is_rereading || is_ahead && logs[log].iter().any(|branch| branch.may_lack(next, epoch))
        });
    }

    fn event(&mut self, number: usize) -> Result<(), TestCaseError> {
        let log = self.written[number];
        let has = &mut self.client.has[log];
        prop_assert!(!has.contains(&number), "{number} came again: {has:?}");
        if let Some(&last) = has.last() {
            let follows = |branch: &Branch| {
                let own: Vec<_> = branch.own().collect();
                own.windows(2).any(|pair| pair == [last, number])
            };
            prop_assert!(self.logs[log].iter().any(follows), "{number} does not follow {last} in any log");
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
            for (pod, log) in (0..PODS).flat_map(|pod| (0..LOGS).map(move |log| (pod, log))) {
                self.step(&Step::LearnOfElection { pod, log })?;
                self.step(&Step::Read { pod, log, records: usize::MAX })?;
                self.step(&Step::End { pod, log, is_old: false })?;
            }
            if round == 1 {
                (0..LOGS).try_for_each(|log| self.step(&Step::Produce { log, count: 2, is_own: true }))?;
            }
        }
        let Client { has, since, .. } = &self.client;
        for (branches, has) in self.logs.iter().zip(has) {
            let own: Vec<usize> = branches.last().unwrap().own().collect();
            prop_assert!(own.ends_with(has), "the log ends with {own:?}, the client has {has:?}");
            let expected = own.iter().filter(|number| *number >= since).count();
            prop_assert!(has.len() >= expected, "{own:?} since {since}: it has {has:?}");
        }
        Ok(())
    }
}

/// `TRUNCATION_CASES` plays more of them.
fn cases() -> u32 {
    std::env::var("TRUNCATION_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1_000)
}

fn play(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut run = Run::new();
    for step in steps {
        run.step(step)?;
    }
    run.end()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

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
