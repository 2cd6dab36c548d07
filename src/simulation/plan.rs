//! The plan of a simulated world: its shape and a list of events, each with its time. All of it comes from a seed. A
//! shorter list of the same events is a plan too, which lets a failing plan be shrunk.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;

use crate::config::{DrainConfig, ShardConfig};

/// Time of the last events of a plan, in ms. After it everything is repaired, and each client must be served in the
/// end.
pub(super) const TROUBLE_MS: u64 = 8_000;

/// A world and its events.
#[derive(Debug, Clone)]
pub(super) struct WorldPlan {
    pub(super) seed: u64,
    pub(super) shape: WorldShape,
    /// Clients that are left out when a plan is shrunk.
    pub(super) absent: Vec<usize>,
    /// Events in order of time.
    pub(super) events: Vec<(u64, WorldEvent)>,
}

/// The shape of a world.
#[derive(Debug, Clone)]
pub(super) struct WorldShape {
    pub(super) pods: usize,
    /// The first topics: partition count, whether records lie on any partition, first offset.
    pub(super) topics: Vec<(i32, bool, i64)>,
    pub(super) assessments: usize,
    /// The assessment of each client.
    pub(super) clients: Vec<usize>,
    pub(super) history: Duration,
    pub(super) history_bytes: usize,
    /// Bytes of padding in each payload.
    pub(super) padding: usize,
    pub(super) place_anywhere: bool,
    /// The longest time between two metadata refreshes of a pod.
    pub(super) refresh_ms: u64,
    pub(super) drain: DrainConfig,
    /// Whether pods look at each other.
    pub(super) has_looks: bool,
}

/// An event in a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorldEvent {
    /// Events of an assessment, behind a hole of offsets without records.
    Produce {
        topic: usize,
        assessment: usize,
        count: usize,
        hole: i64,
        choice: usize,
    },
    /// Control records or aborted records only.
    Pad {
        topic: usize,
        offsets: i64,
    },
    /// Retention: only this many records of each partition are kept.
    Trim {
        topic: usize,
        kept: usize,
    },
    Create {
        partitions: i32,
        spread: bool,
    },
    Widen {
        topic: usize,
    },
    Recreate {
        topic: usize,
    },
    /// Metadata refreshes don't show the topic although it exists: a broker that has just started.
    Hide {
        topic: usize,
        ms: u64,
    },
    /// A producer uses another partitioner than the route's.
    Misplace {
        topic: usize,
        assessment: usize,
    },
    /// Kafka delivers nothing, to one pod or to all.
    Starve {
        pod: Option<usize>,
        ms: u64,
    },
    Start {
        pod: usize,
    },
    Crash {
        pod: usize,
    },
    Drain {
        pod: usize,
    },
    Pause {
        pod: usize,
        ms: u64,
    },
    /// Announcements to a pod are lost.
    Deafen {
        pod: usize,
        ms: u64,
    },
    /// A pod's looks at another one fail, or at all (`None`).
    Blind {
        pod: usize,
        other: Option<usize>,
        ms: u64,
    },
    RedisDies {
        ms: u64,
        empty: bool,
    },
    RedisHangs {
        ms: u64,
    },
    RedisForgets,
    /// Redis' clock steps.
    RedisClock {
        ms: i64,
    },
    /// A client's connection breaks, and it reconnects later, to the same pod or to any.
    Cut {
        client: usize,
        ms: u64,
        same: bool,
    },
    /// The same, without notice to the pod.
    HalfOpen {
        client: usize,
    },
    /// A client reads this many bytes at a time.
    Slow {
        client: usize,
        bytes: usize,
        ms: u64,
    },
    /// All connections break, and all clients reconnect at once.
    CutAll,
    /// A client's cursor is damaged.
    Damage {
        client: usize,
    },
}

impl WorldShape {
    fn new(rng: &mut Rng) -> Self {
        let topics = (0..rng.usize(1..4)).map(|_| (rng.i32(1..4), rng.u8(..4) == 0, rng.i64(0..2) * 150)).collect();
        let assessments = rng.usize(1..5);
        let clients = (0..rng.usize(3..7)).map(|_| rng.usize(..assessments)).collect();
        let (hour, much) = (Duration::from_secs(3_600), 64 << 20);
        let (history, history_bytes, padding) = match rng.u8(..16) {
            0..3 => (Duration::from_millis(rng.u64(800..3_000)), much, 0),
            3 => (hour, rng.usize(350..600) * 1024, 6_000),
            _ => (hour, much, 0),
        };
        Self {
            pods: rng.usize(2..4),
            topics,
            assessments,
            clients,
            history,
            history_bytes,
            padding,
            place_anywhere: rng.u8(..8) == 0,
            refresh_ms: rng.u64(300..2_000),
            drain: DrainConfig {
                delay: Duration::from_millis(rng.u64(50..400)),
                over: Duration::from_millis(rng.u64(100..1_000)),
            },
            has_looks: false,
        }
    }

    /// Whether the windows are large enough to keep everything.
    pub(super) fn is_roomy(&self) -> bool {
        self.history > Duration::from_secs(60) && self.padding == 0
    }

    pub(super) fn shard_config(&self) -> ShardConfig {
        ShardConfig {
            shards: 1,
            history: self.history,
            history_bytes: self.history_bytes,
            market_flush: Duration::from_millis(100),
            heartbeat: Duration::from_millis(400),
            silence: Duration::from_millis(2_800),
            connections_max: 1_000,
            accepts_per_second: 1_000,
            inbound_per_second: 100,
            message_bytes_max: 4_096,
            handshake_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_millis(2_000),
            handover_per_second: 20,
            place_anywhere: self.place_anywhere,
        }
    }
}

impl WorldPlan {
    /// The world of a seed.
    pub(super) fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut shape = WorldShape::new(&mut rng);
        let mut events: Vec<(u64, WorldEvent)> = Vec::new();
        for _ in 0..rng.usize(20..60) {
            events.push((rng.u64(..TROUBLE_MS), produce(&shape, &mut rng)));
        }
        for pod in 0..shape.pods {
            let at = if pod == 0 || rng.bool() { 0 } else { rng.u64(500..TROUBLE_MS) };
            events.push((at, WorldEvent::Start { pod }));
        }
        for _ in 0..rng.usize(1..16) {
            trouble(&shape, &mut rng, &mut events);
        }
        // Separate generators, so that the other events of a seed stay the same as before these existed.
        let mut looks_rng = Rng::with_seed(seed.rotate_left(32));
        shape.has_looks = looks_rng.u8(..4) > 0;
        if shape.has_looks && looks_rng.bool() {
            for _ in 0..looks_rng.usize(1..4) {
                let other = looks_rng.bool().then(|| looks_rng.usize(..shape.pods));
                let (pod, ms) = (looks_rng.usize(..shape.pods), looks_rng.u64(100..4_000));
                events.push((looks_rng.u64(300..TROUBLE_MS), WorldEvent::Blind { pod, other, ms }));
            }
        }
        let mut clock_rng = Rng::with_seed(!seed);
        if clock_rng.u8(..4) == 0 {
            for _ in 0..clock_rng.usize(1..3) {
                events
                    .push((clock_rng.u64(300..TROUBLE_MS), WorldEvent::RedisClock { ms: clock_step(&mut clock_rng) }));
            }
        }
        events.sort_by_key(|(at, _)| *at);
        Self { seed, shape, absent: Vec::new(), events }
    }
}

fn clock_step(rng: &mut Rng) -> i64 {
    let ms = [400, 3_000, 3_600_000][rng.usize(..3)] + rng.i64(..400);
    if rng.bool() { ms } else { -ms }
}

fn produce(shape: &WorldShape, rng: &mut Rng) -> WorldEvent {
    let hole = match rng.u8(..8) {
        0 => rng.i64(1..4),
        1 => rng.i64(40..90),
        _ => 0,
    };
    WorldEvent::Produce {
        // One more than the first topics: one may be created.
        topic: rng.usize(..=shape.topics.len()),
        assessment: rng.usize(..shape.assessments),
        count: rng.usize(1..5),
        hole,
        choice: rng.usize(..6),
    }
}

/// Adds a disturbance, which may consist of several events.
fn trouble(shape: &WorldShape, rng: &mut Rng, events: &mut Vec<(u64, WorldEvent)>) {
    let at = rng.u64(300..TROUBLE_MS);
    let (pod, client) = (rng.usize(..shape.pods), rng.usize(..shape.clients.len()));
    let topic = rng.usize(..=shape.topics.len());
    let mut ms = |range: Range<u64>| rng.u64(range);
    let (short, long) = (ms(50..600), ms(500..3_500));
    let event = match rng.u8(..100) {
        0..5 => WorldEvent::Pad { topic, offsets: rng.i64(1..120) },
        5..8 => WorldEvent::Trim { topic, kept: rng.usize(..3) },
        8..12 => WorldEvent::Create { partitions: rng.i32(1..3), spread: rng.u8(..4) == 0 },
        12..17 => WorldEvent::Widen { topic },
        17..19 => WorldEvent::Recreate { topic },
        19..21 => WorldEvent::Hide { topic, ms: long },
        21..22 => WorldEvent::Misplace { topic, assessment: rng.usize(..shape.assessments) },
        22..30 => WorldEvent::Starve { pod: (rng.u8(..4) > 0).then_some(pod), ms: long },
        30..38 => {
            events.push((at + short, WorldEvent::Start { pod }));
            WorldEvent::Crash { pod }
        }
        38..44 => {
            // A rolling restart.
            for pod in 0..shape.pods {
                let at = at + pod as u64 * (1_500 + short);
                events.push((at, WorldEvent::Drain { pod }));
                events.push((at + 1_400 + short, WorldEvent::Start { pod }));
            }
            return;
        }
        44..49 => WorldEvent::Pause { pod, ms: long },
        49..53 => WorldEvent::Deafen { pod, ms: long },
        53..56 => WorldEvent::RedisDies { ms: long, empty: rng.bool() },
        56..59 => WorldEvent::RedisHangs { ms: long },
        59..61 => WorldEvent::RedisForgets,
        61..84 => {
            // Several times, while the client catches up.
            for again in 1..rng.u64(1..6) {
                events.push((at + again * short, WorldEvent::Cut { client, ms: short / 4, same: rng.bool() }));
            }
            WorldEvent::Cut { client, ms: rng.u64(..600), same: rng.bool() }
        }
        84..87 => WorldEvent::HalfOpen { client },
        87..89 => WorldEvent::CutAll,
        89..99 => {
            WorldEvent::Slow { client, bytes: if rng.u8(..3) == 0 { 0 } else { rng.usize(1..400) }, ms: long + short }
        }
        _ => WorldEvent::Damage { client },
    };
    events.push((at, event));
}

impl WorldEvent {
    /// A weaker version of the event, if there is one.
    pub(super) fn weakened(self) -> Option<Self> {
        match self {
            Self::Produce { topic, assessment, count, hole, choice } if count > 1 || hole > 0 => {
                Some(Self::Produce { topic, assessment, count: count.div_ceil(2), hole: hole / 2, choice })
            }
            _ => None,
        }
    }
}

impl fmt::Display for WorldEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Produce { topic, assessment, count, hole: 0, .. } => {
                write!(f, "{count} event(s) of a{assessment} on t{topic}")
            }
            Self::Produce { topic, assessment, count, hole, .. } => {
                write!(f, "{count} event(s) of a{assessment} on t{topic}, behind a hole of {hole}")
            }
            Self::Pad { topic, offsets } => write!(f, "{offsets} control records on t{topic}"),
            Self::Trim { topic, kept } => write!(f, "retention leaves {kept} records of each partition of t{topic}"),
            Self::Create { partitions, spread } => {
                let how = if spread { ", records lie on any partition" } else { "" };
                write!(f, "a topic more, of {partitions} partition(s){how}")
            }
            Self::Widen { topic } => write!(f, "t{topic} gets another partition"),
            Self::Recreate { topic } => write!(f, "t{topic} is deleted and recreated"),
            Self::Hide { topic, ms } => write!(f, "no pod sees t{topic} for {ms} ms"),
            Self::CutAll => write!(f, "all clients lose their connections"),
            Self::Misplace { topic, assessment } => {
                write!(f, "an event of a{assessment} on a wrong partition of t{topic}")
            }
            Self::Starve { pod: Some(pod), ms } => write!(f, "p{pod} gets nothing from Kafka for {ms} ms"),
            Self::Starve { pod: None, ms } => write!(f, "Kafka is silent for {ms} ms"),
            Self::Start { pod } => write!(f, "p{pod} starts"),
            Self::Crash { pod } => write!(f, "p{pod} is killed"),
            Self::Drain { pod } => write!(f, "p{pod} gets SIGTERM"),
            Self::Pause { pod, ms } => write!(f, "p{pod} is paused for {ms} ms"),
            Self::Blind { pod, other: Some(other), ms } => write!(f, "p{pod} does not reach p{other} for {ms} ms"),
            Self::Blind { pod, other: None, ms } => write!(f, "p{pod} reaches no other pod for {ms} ms"),
            Self::Deafen { pod, ms } => write!(f, "p{pod} receives no announcements for {ms} ms"),
            Self::RedisDies { ms, empty: false } => write!(f, "Redis is down for {ms} ms"),
            Self::RedisDies { ms, empty: true } => write!(f, "Redis is down for {ms} ms and comes back empty"),
            Self::RedisHangs { ms } => write!(f, "Redis hangs for {ms} ms"),
            Self::RedisForgets => write!(f, "Redis is emptied"),
            Self::RedisClock { ms } => write!(f, "Redis' clock steps by {ms} ms"),
            Self::Cut { client, ms, same } => {
                let to = if same { "the same pod" } else { "any pod" };
                write!(f, "c{client} loses its connection, and reconnects to {to} after {ms} ms")
            }
            Self::HalfOpen { client } => write!(f, "c{client} disappears without notice, and reconnects"),
            Self::Slow { client, bytes, ms } => write!(f, "c{client} reads {bytes} bytes at a time for {ms} ms"),
            Self::Damage { client } => write!(f, "c{client}'s cursor is damaged"),
        }
    }
}

impl fmt::Display for WorldPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorldShape { pods, topics, clients, history, history_bytes, place_anywhere, refresh_ms, .. } = &self.shape;
        let anywhere = if *place_anywhere { ", PLACEMENT=any" } else { "" };
        writeln!(f, "seed {}: {pods} pods{anywhere}, topics seen within {refresh_ms} ms", self.seed)?;
        writeln!(f, "  windows of {history:?} and {history_bytes} bytes")?;
        for (number, (partitions, spread, beginning)) in topics.iter().enumerate() {
            let how = if *spread { ", records lie on any partition" } else { "" };
            writeln!(f, "  t{number}: {partitions} partition(s) from offset {beginning} on{how}")?;
        }
        let absent = |number: &usize| self.absent.contains(number);
        for (number, assessment) in clients.iter().enumerate().filter(|(number, _)| !absent(number)) {
            writeln!(f, "  c{number} watches a{assessment}")?;
        }
        for (at, event) in &self.events {
            writeln!(f, "  {:>6.3} s  {event}", *at as f64 / 1e3)?;
        }
        Ok(())
    }
}
