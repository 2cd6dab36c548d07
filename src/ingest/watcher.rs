//! The thread that asks: for topics and partitions as they come, for a sign of life, and for the partitions' ends. Its
//! questions block, within limits, and so never hold up the records. It finds; what to make of it is the reader's part
//! and the rules' ([`super::startup`], [`super::reachability`]).

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rdkafka::error::KafkaError;
use tracing::{info, warn};

use crate::clock::{Now, whole_ms};
use crate::exchange::IngestStatus;
use crate::ids::TopicIndex;
use crate::limits::{ENDS_ASKED_MAX, KAFKA_LOG_EVERY, PROBE_EVERY, PROBE_TIMEOUT, QUESTION_TIMEOUT};
use crate::routing::table::{Table, Topic};
use crate::stream::batch::NextOffset;

use super::complaints::Complaints;
use super::kafka::{Cluster, Partition, Place, failure_of};
use super::reachability::Reachability;
use super::startup::{Extent, Start};

/// Topics and partitions to be read, from now on.
#[derive(Debug)]
pub(super) struct Found {
    /// Topics that were not known, in the order of their indexes.
    pub(super) topics: Vec<Arc<Topic>>,
    /// Their partitions, and new ones of known topics.
    pub(super) partitions: Vec<Start>,
    /// Whether these are the ones of the start, which the history is filled from.
    pub(super) initial: bool,
}

/// The reader's side of the thread. The thread ends when this is dropped, after the question that it is at.
pub(super) struct Watcher {
    /// What was found. One at a time: while it waits here, nothing more is looked for.
    pub(super) found: Receiver<Found>,
    /// The partitions' ends. What is not taken is replaced by nothing newer until it is.
    pub(super) ends: Receiver<Vec<NextOffset>>,
    stop: Option<Sender<Infallible>>,
    done: Receiver<Infallible>,
}

/// How long the thread is waited for when all is over. It may be at a question that a broker leaves open, and holds
/// nothing that must be put in order.
const END_WAIT: Duration = Duration::from_secs(1);

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Comes back when the thread has dropped its end, or after the wait: either way there is nothing to do.
        let _ = self.done.recv_timeout(END_WAIT);
    }
}

/// The topic that is asked about where none is read: it need not be there, and asking does not make it.
const ANY_TOPIC: &str = "__consumer_offsets";

/// What the thread goes by.
pub(super) struct Settings {
    pub(super) routes: Table,
    pub(super) history: Duration,
    pub(super) refresh: Duration,
    pub(super) status: Arc<IngestStatus>,
}

/// Starts the thread.
///
/// # Errors
/// Where the system gives no thread.
pub(super) fn start(cluster: Cluster, settings: Settings) -> io::Result<Watcher> {
    let (found_in, found) = bounded(1);
    let (ends_in, ends) = bounded(1);
    let (stop, stopped) = bounded(0);
    let (done_in, done) = bounded(0);
    let watch = Watch {
        cluster,
        settings,
        found: found_in,
        ends: ends_in,
        brokers: Reachability::default(),
        topics: Vec::new(),
        known: HashSet::new(),
        led: Vec::new(),
        asked_until: 0,
        refreshed: None,
        started: false,
        complaints: Complaints::new(KAFKA_LOG_EVERY),
    };
    thread::Builder::new().name("kafka-watcher".into()).spawn(move || {
        let _done = done_in;
        watch.run(&stopped);
    })?;
    Ok(Watcher { found, ends, stop: Some(stop), done })
}

struct Watch {
    cluster: Cluster,
    settings: Settings,
    found: Sender<Found>,
    ends: Sender<Vec<NextOffset>>,
    brokers: Reachability,
    /// By [`TopicIndex`].
    topics: Vec<Arc<Topic>>,
    /// Partitions that the reader was told of.
    known: HashSet<(TopicIndex, i32)>,
    /// Those of them that had a leader when the topics were last looked through.
    led: Vec<(TopicIndex, i32)>,
    /// The place among them from which on ends are asked for next.
    asked_until: usize,
    refreshed: Option<Instant>,
    started: bool,
    complaints: Complaints<&'static str>,
}

/// A look through the cluster's topics.
#[derive(Default)]
struct Look {
    /// New topics, in the order of the indexes that they are to have.
    topics: Vec<Arc<Topic>>,
    /// Partitions with a leader, of topics that a route matches.
    led: Vec<(TopicIndex, i32)>,
    /// Partitions without one.
    leaderless: usize,
}

impl Watch {
    fn run(mut self, stopped: &Receiver<Infallible>) {
        loop {
            let asked = Instant::now();
            if let Err(error) = self.turn(asked) {
                self.failed(&error);
            }
            self.cluster.serve();
            let pause = self.settings.refresh.min(PROBE_EVERY).saturating_sub(asked.elapsed());
            if stopped.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }

    /// Asks for what is due: first, and each time, for a sign of life.
    fn turn(&mut self, now: Instant) -> Result<(), KafkaError> {
        let one = self.led.first().and_then(|(topic, _)| self.topics.get(usize::from(topic.0)));
        self.cluster.probe(one.map_or(ANY_TOPIC, |topic| &topic.name), PROBE_TIMEOUT)?;
        self.answered();
        let refresh = self.settings.refresh;
        let due = self.refreshed.is_none_or(|last| now.saturating_duration_since(last) >= refresh);
        // While the reader has not taken what was found, there is no use in looking for more.
        if due && !self.found.is_full() {
            let look = self.look()?;
            self.refreshed = self.take_in(look).then_some(now);
        }
        self.ask_for_ends();
        Ok(())
    }

    /// The brokers answered, just now.
    fn answered(&mut self) {
        self.brokers.answered(Instant::now());
        if !self.settings.status.connected.swap(true, Ordering::Relaxed) {
            info!("Kafka is connected");
        }
    }

    /// A question failed. What that means is the rule's to say.
    fn failed(&mut self, error: &KafkaError) {
        self.brokers.failed(failure_of(error), Instant::now());
        if !self.brokers.connected() && self.settings.status.connected.swap(false, Ordering::Relaxed) {
            warn!(%error, "Kafka is disconnected; trying on");
        }
    }

    fn look(&self) -> Result<Look, KafkaError> {
        let known: HashMap<&str, TopicIndex> = self.topics.iter().map(|topic| (&*topic.name, topic.index)).collect();
        let mut look = Look::default();
        self.cluster.topics(QUESTION_TIMEOUT, |name, partitions| {
            let mut partitions = partitions.peekable();
            // One that is being made or unmade has none yet, or no more.
            if partitions.peek().is_none() {
                return;
            }
            let Some(index) = known.get(name).copied().or_else(|| self.meet(name, &mut look.topics)) else { return };
            for (partition, has_leader) in partitions {
                if has_leader {
                    look.led.push((index, partition));
                } else {
                    look.leaderless += 1;
                }
            }
        })?;
        Ok(look)
    }

    /// The index of a topic that was not known; it joins `new` if a route matches it.
    fn meet(&self, name: &str, new: &mut Vec<Arc<Topic>>) -> Option<TopicIndex> {
        // Over 65,536 topics: the rest is not read. Kafka itself is in trouble long before.
        let index = TopicIndex(u16::try_from(self.topics.len() + new.len()).ok()?);
        new.push(Arc::new(self.settings.routes.resolve(index, name)?));
        Some(index)
    }

    /// Hands what is new to the reader. Whether that is done: else it is looked for again at the next turn.
    fn take_in(&mut self, look: Look) -> bool {
        let initial = !self.started;
        if initial && look.leaderless > 0 {
            // A history with holes that nobody knows of would be worse than a pod that waits.
            self.complain("partitions without a leader: the start waits for them", look.leaderless, None);
            return false;
        }
        let fresh: Vec<_> = look.led.iter().copied().filter(|partition| !self.known.contains(partition)).collect();
        let mut topics = self.topics.clone();
        topics.extend(look.topics.iter().cloned());
        let names = names_of(&fresh, &topics);
        let extents = if initial { self.extents_of_start(&names) } else { self.extents_of_newcomers(&names) };
        let extents = match extents {
            Ok(extents) => extents,
            Err(error) => {
                self.complain("can't learn the partitions' offsets; trying on", fresh.len(), Some(&error));
                return false;
            }
        };
        let start = |(&(topic, partition), extent): (&(TopicIndex, i32), Extent)| Start {
            topic,
            partition,
            offset: extent.start(),
            end: extent.end,
        };
        let partitions: Vec<_> = fresh.iter().zip(extents).map(start).collect();
        if initial || !partitions.is_empty() {
            let found = Found { topics: look.topics, partitions, initial };
            // Full is when the reader has not taken the last: then this is found again. It is gone when all is over.
            if self.found.try_send(found).is_err() {
                return false;
            }
            self.topics = topics;
            self.known.extend(fresh);
            self.started = true;
        }
        self.led = look.led;
        true
    }

    fn complain(&mut self, what: &'static str, partitions: usize, error: Option<&KafkaError>) {
        if self.complaints.admit(what, Instant::now()).is_some() {
            warn!(partitions, error = error.map(tracing::field::display), "{what}");
        }
    }

    /// The partitions of the start: what they hold of the history's time.
    fn extents_of_start(&self, names: &[Partition<'_>]) -> Result<Vec<Extent>, KafkaError> {
        let ends = self.cluster.offsets(names, Place::End, QUESTION_TIMEOUT)?;
        let history_ms = whole_ms(self.settings.history);
        let since = i64::try_from(Now::read().unix.0.saturating_sub(history_ms)).unwrap_or(i64::MAX);
        let times = self.cluster.offsets(names, Place::Since(since), QUESTION_TIMEOUT).unwrap_or_else(|error| {
            warn!(%error, "no offsets for a time; the history starts with each partition's last hundred records");
            vec![None; names.len()]
        });
        let beginnings = self.cluster.offsets(names, Place::Beginning, QUESTION_TIMEOUT)?;
        let extent = |((end, since), beginning): ((Option<i64>, Option<i64>), Option<i64>)| Extent {
            beginning: beginning.unwrap_or(0),
            since,
            end: end.unwrap_or(0),
        };
        Ok(ends.into_iter().zip(times).zip(beginnings).map(extent).collect())
    }

    /// Partitions that came later: all that they hold is new.
    fn extents_of_newcomers(&self, names: &[Partition<'_>]) -> Result<Vec<Extent>, KafkaError> {
        let beginnings = self.cluster.offsets(names, Place::Beginning, QUESTION_TIMEOUT)?;
        let extent = |beginning: Option<i64>| {
            let beginning = beginning.unwrap_or(0);
            Extent { beginning, since: Some(beginning), end: beginning }
        };
        Ok(beginnings.into_iter().map(extent).collect())
    }

    /// Hands partitions' ends to the reader, those of many partitions by turns. Where a leader doesn't answer, the last
    /// ones stand.
    fn ask_for_ends(&mut self) {
        if self.ends.is_full() {
            return;
        }
        let first = if self.asked_until < self.led.len() { self.asked_until } else { 0 };
        self.asked_until = self.led.len().min(first + ENDS_ASKED_MAX);
        let led = &self.led[first..self.asked_until];
        let names = names_of(led, &self.topics);
        let Ok(offsets) = self.cluster.offsets(&names, Place::End, PROBE_TIMEOUT) else { return };
        let end = |(&(topic, partition), offset): (&(TopicIndex, i32), Option<i64>)| {
            Some(NextOffset { topic, partition, offset: offset? })
        };
        let ends = led.iter().zip(offsets).filter_map(end).collect();
        // It was not full, and nobody else sends; where it is closed, all is over.
        drop(self.ends.try_send(ends));
    }
}

/// The partitions by their topics' names.
fn names_of<'a>(partitions: &[(TopicIndex, i32)], topics: &'a [Arc<Topic>]) -> Vec<Partition<'a>> {
    let name = |topic: TopicIndex| topics.get(usize::from(topic.0)).map_or("", |topic| &topic.name);
    partitions.iter().map(|&(topic, partition)| (name(topic), partition)).collect()
}
