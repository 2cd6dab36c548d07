//! The schedule of faults: a pure function of the seed and the run's length. [`super::faults`] carries it out.
//!
//! Faults of one lane follow each other, faults of different lanes overlap: a pod may be killed while Redis is down and
//! clients are disconnected.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A group of targets. The faults of a lane never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// The gateway's pods.
    Pods,
    /// Faults of Redis.
    Redis,
    /// Kafka's brokers.
    Brokers,
    /// The clients.
    Clients,
    /// The environment: transactions of other producers, and the reader of the pods' logs.
    Environment,
}

impl Lane {
    /// All lanes.
    pub const ALL: [Self; 5] = [Self::Pods, Self::Redis, Self::Brokers, Self::Clients, Self::Environment];
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// A pod is killed and restarted some seconds later.
    Kill,
    /// Each pod in turn is stopped and restarted, as in a rolling update.
    Rolling,
    /// A pod is paused for longer than its lease.
    Stop,
    /// The fleet grows to five pods, shrinks to two and returns to three.
    Scale,
    /// Some clients are away while a topic is compacted and a pod is restarted. They return within the history's time.
    Compaction,
    /// Redis is killed and restarted empty.
    RedisKill,
    /// Redis is paused for longer than a lease.
    RedisPause,
    /// Redis is emptied.
    RedisEmpty,
    /// Redis' clock steps forth and back.
    RedisClock,
    /// A broker is killed and restarted.
    BrokerKill,
    /// A broker is paused.
    BrokerPause,
    /// A broker hangs on a machine without an idle core.
    BrokerHang,
    /// All brokers are down for 20 s.
    BrokersDown,
    /// Of a topic's two replicas, one is paused and the other dies; then the first leads without the end of the log.
    Unclean,
    /// Some clients stop reading for a while.
    Stall,
    /// All clients disconnect at the same time.
    Drop,
    /// Some clients vanish and leave half-open connections.
    HalfOpen,
    /// Some clients reconnect repeatedly before they have caught up.
    Hasty,
    /// Some clients are away for longer than the history.
    Away,
    /// A transaction stays open on every partition and is then aborted.
    OpenTransaction,
    /// The pods' logs are not read.
    LogStop,
}

/// A kind with its name, its lane, and its shortest and longest duration in seconds.
type Row = (FaultKind, &'static str, Lane, u64, u64);

/// Durations exclude stopping and starting. The pods' lease is 3 s here.
const KINDS: [Row; 21] = [
    (FaultKind::Kill, "kill", Lane::Pods, 0, 8),
    (FaultKind::Rolling, "rolling", Lane::Pods, 0, 1),
    (FaultKind::Stop, "stop", Lane::Pods, 5, 10),
    (FaultKind::Scale, "scale", Lane::Pods, 3, 6),
    (FaultKind::Compaction, "compaction", Lane::Pods, 26, 30),
    (FaultKind::RedisKill, "redis-kill", Lane::Redis, 1, 8),
    (FaultKind::RedisPause, "redis-pause", Lane::Redis, 2, 10),
    (FaultKind::RedisEmpty, "redis-empty", Lane::Redis, 0, 1),
    (FaultKind::RedisClock, "redis-clock", Lane::Redis, 1, 8),
    (FaultKind::BrokerKill, "broker-kill", Lane::Brokers, 1, 10),
    (FaultKind::BrokerPause, "broker-pause", Lane::Brokers, 2, 12),
    (FaultKind::BrokerHang, "broker-hang", Lane::Brokers, 0, 8),
    (FaultKind::BrokersDown, "brokers-down", Lane::Brokers, 20, 20),
    (FaultKind::Unclean, "unclean", Lane::Brokers, 1, 3),
    (FaultKind::Stall, "stall", Lane::Clients, 3, 15),
    (FaultKind::Drop, "drop", Lane::Clients, 0, 1),
    (FaultKind::HalfOpen, "half-open", Lane::Clients, 0, 1),
    (FaultKind::Hasty, "hasty", Lane::Clients, 2, 5),
    (FaultKind::Away, "away", Lane::Clients, 0, 1),
    (FaultKind::OpenTransaction, "open-transaction", Lane::Environment, 3, 12),
    (FaultKind::LogStop, "log-stop", Lane::Environment, 5, 20),
];

impl FaultKind {
    /// All kinds.
    pub const ALL: [Self; 21] = {
        let mut all = [Self::Kill; 21];
        let mut at = 0;
        while at < all.len() {
            all[at] = KINDS[at].0;
            at += 1;
        }
        all
    };

    fn row(self) -> &'static Row {
        KINDS.iter().find(|row| row.0 == self).expect("each kind has a row, as a test checks")
    }

    /// The lane of this kind.
    #[must_use]
    pub fn lane(self) -> Lane {
        self.row().2
    }

    /// Rough total duration, until everything that was hit is up again.
    fn takes(self) -> Duration {
        let (_, _, _, shortest, longest) = self.row();
        // Pods take 2 to 5 s to drain and start, brokers 5.
        let machine = match self {
            Self::Rolling => 15,
            Self::Scale => 20,
            Self::Kill => 3,
            Self::BrokerKill | Self::BrokersDown => 5,
            Self::BrokerHang | Self::OpenTransaction => 4,
            // The replica leaves the in-sync set, the other leads, and the first is in sync again.
            Self::Unclean => 20,
            _ => 1,
        };
        Duration::from_secs(shortest.midpoint(*longest) + machine)
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}

impl FromStr for FaultKind {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        let row = KINDS.iter().find(|row| row.1 == name);
        row.map(|row| row.0).ok_or_else(|| anyhow::anyhow!("unknown fault: {name:?}"))
    }
}

/// A scheduled fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Start of the fault. Later if the one before it in its lane took longer than planned.
    pub at: Duration,
    /// Duration of the fault.
    pub lasts: Duration,
    /// Kind of the fault.
    pub kind: FaultKind,
    /// Random number that chooses the target among those available.
    pub pick: u32,
}

/// Each kind of a lane happens once in this time, in a new order each time. A shorter run has as many as fit.
const ROUND: Duration = Duration::from_secs(100);

/// Time without faults at the start and at the end of a run.
const QUIET: Duration = Duration::from_secs(5);

/// Schedules the faults of a lane, in order, from among `kinds`.
#[must_use]
pub fn schedule(seed: u64, length: Duration, lane: Lane, kinds: &[FaultKind]) -> Vec<Planned> {
    // Each lane has its own random sequence, so that omitting a kind changes no other lane.
    let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(31).wrapping_add(lane as u64));
    let mut kinds: Vec<FaultKind> = kinds.iter().copied().filter(|kind| kind.lane() == lane).collect();
    let mut plan = Vec::new();
    let busy: Duration = kinds.iter().map(|kind| kind.takes()).sum();
    let spread = ROUND.min(length.saturating_sub(QUIET * 2));
    let mut round = QUIET;
    while !kinds.is_empty() && round + QUIET < length {
        random.shuffle(&mut kinds);
        // Clients that are away for longer than the history need the rest of a short run to return.
        kinds.sort_by_key(|kind| *kind != FaultKind::Away);
        let mut cuts: Vec<Duration> = kinds.iter().map(|_| spread.saturating_sub(busy).mul_f64(random.f64())).collect();
        cuts.sort();
        cuts[0] = if kinds[0] == FaultKind::Away { Duration::ZERO } else { cuts[0] };
        let mut taken = Duration::ZERO;
        for (kind, cut) in kinds.iter().zip(cuts) {
            let (_, _, _, shortest, longest) = kind.row();
            let lasts = Duration::from_millis(random.u64(shortest * 1000..=longest * 1000));
            plan.push(Planned { at: round + cut + taken, lasts, kind: *kind, pick: random.u32(..) });
            taken += kind.takes();
        }
        round += spread.max(busy);
    }
    plan.retain(|planned| planned.at + QUIET <= length);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(seed: u64, minutes: u64) -> Vec<Planned> {
        Lane::ALL
            .iter()
            .flat_map(|lane| schedule(seed, Duration::from_secs(minutes * 60), *lane, &FaultKind::ALL))
            .collect()
    }

    #[test]
    fn every_kind_is_parsed_from_its_name() {
        for kind in FaultKind::ALL {
            assert_eq!(kind.to_string().parse::<FaultKind>().unwrap(), kind);
        }
        assert!("meteor".parse::<FaultKind>().is_err());
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule() {
        assert_eq!(all(7, 30), all(7, 30));
        assert_ne!(all(7, 30), all(8, 30));
    }

    #[test]
    fn two_minutes_contain_every_kind_of_fault_for_any_seed() {
        for seed in 0..500 {
            let plan = all(seed, 2);
            for kind in FaultKind::ALL {
                assert!(plan.iter().any(|planned| planned.kind == kind), "{kind} with seed {seed}");
            }
        }
    }

    #[test]
    fn a_lane_is_in_order_within_the_run_and_a_longer_run_has_more_of_each() {
        for lane in Lane::ALL {
            let plan = schedule(3, Duration::from_secs(1800), lane, &FaultKind::ALL);
            assert!(plan.is_sorted_by_key(|planned| planned.at));
            assert!(plan.iter().all(|planned| planned.at >= QUIET && planned.at < Duration::from_secs(1795)));
            for kind in FaultKind::ALL.into_iter().filter(|kind| kind.lane() == lane) {
                assert!(plan.iter().filter(|planned| planned.kind == kind).count() >= 15, "{kind}");
            }
        }
        let firsts: Vec<_> = (0..20).map(|seed| schedule(seed, ROUND, Lane::Pods, &FaultKind::ALL)[0].kind).collect();
        assert!(firsts.iter().any(|first| *first != firsts[0]), "orders differ");
    }

    #[test]
    fn a_short_run_has_as_many_faults_as_fit() {
        for seed in 0..50 {
            let plan = schedule(seed, Duration::from_secs(30), Lane::Pods, &[FaultKind::Kill]);
            assert!(plan.iter().any(|planned| planned.at < Duration::from_secs(20)), "{seed}");
        }
    }

    #[test]
    fn omitted_kinds_are_not_scheduled() {
        let length = Duration::from_secs(300);
        assert!(Lane::ALL.iter().all(|lane| schedule(1, length, *lane, &[]).is_empty()));
        let kills = schedule(1, length, Lane::Pods, &[FaultKind::Kill]);
        assert!(kills.len() > 1 && kills.iter().all(|planned| planned.kind == FaultKind::Kill));
    }
}
