//! Carries out a schedule, each lane on its own thread. Whatever a fault broke is up again when it ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use super::Clock;
use super::clients::Misbehaviour;
use super::fleet::{HISTORY, PodFleet};
use super::log::{FaultSpan, LogFile};
use super::log_reader::LogReader;
use super::open_transaction::OpenTransaction;
use super::producer::{COMPACTION_LAG, FRAGILE, FRAGILE_ON};
use super::schedule::{FaultKind, Planned};
use crate::events;
use crate::kafka::Kafka;
use crate::process::{Signal, eventually, own_cores};
use crate::redis::Redis;

/// Interval of a lane's checks between two faults.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// Pause of a rolling update after a pod is ready.
const BETWEEN_PODS: Duration = Duration::from_millis(500);

/// Absence beyond the history after which a client can't be resumed.
const BEYOND_HISTORY: Duration = Duration::from_secs(15);

/// Time after the lag of compaction within which the log is compacted, so that a pod started then finds gaps.
const COMPACTED_WITHIN: Duration = Duration::from_secs(6);

/// Steps of Redis' clock in seconds: less than a lease, more, and far.
const CLOCK_STEPS: [i64; 6] = [-3_600, -5, -2, 2, 5, 3_600];

/// Time for which the machine stays busy after a hung broker resumes.
const BUSY_AFTER: Duration = Duration::from_secs(3);

/// Time limit for a leader election, and for both replicas to be in sync.
const ELECTED_WITHIN: Duration = Duration::from_secs(90);

/// Number of brokers.
pub(super) const BROKERS: u32 = 3;

/// The faults in progress, for the progress line, and those that ended, for the checker.
pub(super) struct FaultLog {
    log: LogFile,
    clock: Clock,
    now: Mutex<BTreeMap<usize, String>>,
    next: AtomicUsize,
}

impl FaultLog {
    /// An empty log.
    pub(super) fn new(log: LogFile, clock: Clock) -> Self {
        Self { log, clock, now: Mutex::default(), next: AtomicUsize::new(0) }
    }

    /// The faults in progress.
    pub(super) fn now(&self) -> Vec<String> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Writes buffered lines to the file.
    pub(super) fn flush(&self) {
        self.log.flush();
    }

    /// Runs `act` and logs it as a fault.
    fn during<T>(&self, kind: FaultKind, target: &str, act: impl FnOnce() -> T) -> T {
        let (from_ms, number) = (self.clock.ms(), self.next.fetch_add(1, Ordering::Relaxed));
        let label = if target.is_empty() { kind.to_string() } else { format!("{kind} {target}") };
        self.now.lock().unwrap_or_else(PoisonError::into_inner).insert(number, label);
        let result = act();
        self.now.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        self.log.add(&FaultSpan { kind, target: target.to_owned(), from_ms, to_ms: self.clock.ms() });
        result
    }
}

/// Carries out a lane's plan. Calls `idle` between faults and `act` for each.
fn walk<T>(clock: Clock, plan: &[Planned], it: &mut T, idle: impl Fn(&mut T), act: impl Fn(&mut T, &Planned)) {
    for planned in plan {
        while clock.elapsed() < planned.at {
            thread::sleep(CHECK_EVERY.min(planned.at.saturating_sub(clock.elapsed())));
            idle(it);
        }
        act(it, planned);
    }
}

// ---- pods -----------------------------------------------------------------------------------------------------------

/// The lane of pods.
pub(super) fn pods(
    clock: Clock,
    plan: &[Planned],
    fleet: &mut PodFleet,
    orders: &mpsc::SyncSender<Misbehaviour>,
    fault_log: &FaultLog,
) {
    walk(clock, plan, fleet, PodFleet::restart_exited, |fleet, planned| {
        let running = fleet.running();
        let hit = running[planned.pick as usize % running.len()];
        match planned.kind {
            FaultKind::Kill => fault_log.during(FaultKind::Kill, &PodFleet::name(hit), || {
                fleet.kill(hit);
                thread::sleep(planned.lasts);
                fleet.spawn(hit);
                fleet.await_ready();
            }),
            FaultKind::Stop => fault_log.during(FaultKind::Stop, &PodFleet::name(hit), || {
                fleet.pause(hit, Signal::Stop);
                thread::sleep(planned.lasts);
                fleet.pause(hit, Signal::Cont);
            }),
            FaultKind::Compaction => fault_log.during(FaultKind::Compaction, &PodFleet::name(hit), || {
                let Planned { kind, lasts, pick: seed, .. } = *planned;
                let back = clock.elapsed() + lasts;
                // The clients end after all lanes.
                orders.send(Misbehaviour { kind, lasts, seed }).expect("the clients receive orders");
                thread::sleep(COMPACTION_LAG + COMPACTED_WITHIN);
                fleet.end(&[hit], false);
                fleet.spawn(hit);
                fleet.await_ready();
                thread::sleep(back.saturating_sub(clock.elapsed()));
            }),
            FaultKind::Rolling => fault_log.during(FaultKind::Rolling, &fleet.names(), || {
                for pod in running {
                    fleet.end(&[pod], false);
                    fleet.spawn(pod);
                    fleet.await_ready();
                    thread::sleep(BETWEEN_PODS);
                }
            }),
            _ => fault_log.during(FaultKind::Scale, "pod-0,pod-1,pod-2,pod-3,pod-4", || {
                scale(fleet, &[0, 1, 2, 3, 4], planned.lasts);
                // Which two stay is random: the first pods may leave too.
                let stays = [0, 1 + planned.pick as usize % 4];
                scale(fleet, &stays, planned.lasts);
                scale(fleet, &[0, 1, 2], Duration::ZERO);
            }),
        }
    });
}

/// Starts and stops pods until exactly these run.
fn scale(fleet: &mut PodFleet, pods: &[usize], then: Duration) {
    let running = fleet.running();
    for pod in pods.iter().filter(|pod| !running.contains(pod)) {
        fleet.spawn(*pod);
    }
    fleet.await_ready();
    let leave: Vec<usize> = running.into_iter().filter(|pod| !pods.contains(pod)).collect();
    fleet.end(&leave, true);
    thread::sleep(then);
}

// ---- Redis and Kafka ------------------------------------------------------------------------------------------------

/// The lane of Redis.
pub(super) fn redis(clock: Clock, plan: &[Planned], redis: &mut Redis, fault_log: &FaultLog) {
    walk(
        clock,
        plan,
        redis,
        |_| {},
        |redis, planned| {
            fault_log.during(planned.kind, "", || match planned.kind {
                FaultKind::RedisKill => {
                    redis.kill();
                    thread::sleep(planned.lasts);
                    redis.start_again();
                }
                FaultKind::RedisPause => {
                    redis.pause();
                    thread::sleep(planned.lasts);
                    redis.resume();
                }
                FaultKind::RedisClock => {
                    redis.set_clock(CLOCK_STEPS[planned.pick as usize % CLOCK_STEPS.len()]);
                    thread::sleep(planned.lasts);
                    redis.set_clock(0);
                }
                _ => redis.flush(),
            });
        },
    );
}

/// The lane of brokers.
pub(super) fn brokers(clock: Clock, plan: &[Planned], kafka: &mut Kafka, fault_log: &FaultLog) {
    walk(
        clock,
        plan,
        kafka,
        |_| {},
        |kafka, planned| {
            let hit = (planned.pick % BROKERS) as usize;
            match planned.kind {
                FaultKind::BrokerKill => fault_log.during(FaultKind::BrokerKill, &format!("broker-{hit}"), || {
                    kafka.broker(hit).kill();
                    thread::sleep(planned.lasts);
                    kafka.broker(hit).start();
                }),
                FaultKind::BrokerPause => fault_log.during(FaultKind::BrokerPause, &format!("broker-{hit}"), || {
                    kafka.broker(hit).pause();
                    thread::sleep(planned.lasts);
                    kafka.broker(hit).resume();
                }),
                FaultKind::BrokerHang => fault_log.during(FaultKind::BrokerHang, &format!("broker-{hit}"), || {
                    while_busy(|| {
                        kafka.broker(hit).pause();
                        thread::sleep(planned.lasts);
                        kafka.broker(hit).resume();
                        thread::sleep(BUSY_AFTER);
                    });
                }),
                FaultKind::Unclean => fault_log.during(FaultKind::Unclean, "", || truncate(kafka, planned.lasts)),
                _ => fault_log.during(FaultKind::BrokersDown, "", || {
                    (0..BROKERS as usize).for_each(|number| kafka.broker(number).kill());
                    thread::sleep(planned.lasts);
                    kafka.start_all();
                }),
            }
        },
    );
}

/// The leader of the fragile topic takes records alone for this time and dies. Then the other replica leads without
/// them.
fn truncate(kafka: &mut Kafka, alone_for: Duration) {
    let topic = events::Kind::ALL[usize::from(FRAGILE)].topic();
    let both = |kafka: &Kafka| kafka.in_sync(topic, 0).is_some_and(|brokers| brokers.len() == FRAGILE_ON.len());
    eventually("both replicas are in sync", ELECTED_WITHIN, || both(kafka).then_some(()));
    let leader = eventually("a replica leads", ELECTED_WITHIN, || kafka.leader(topic, 0));
    let other = FRAGILE_ON.into_iter().find(|broker| *broker != leader).expect("there are two");
    kafka.broker(other).pause();
    eventually("the leader is alone in sync", ELECTED_WITHIN, || (kafka.in_sync(topic, 0)? == [leader]).then_some(()));
    thread::sleep(alone_for);
    kafka.broker(leader).kill();
    kafka.broker(other).resume();
    eventually("the other leads", ELECTED_WITHIN, || (kafka.leader(topic, 0)? == other).then_some(()));
    kafka.broker(leader).start();
    eventually("both replicas are in sync again", ELECTED_WITHIN, || both(kafka).then_some(()));
}

/// Runs `act` while every core of the machine is overloaded.
fn while_busy(act: impl FnOnce()) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in own_cores() {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        act();
        is_over.store(true, Ordering::Relaxed);
    });
}

// ---- environment ----------------------------------------------------------------------------------------------------

/// The lane of the environment.
pub(super) fn environment(
    clock: Clock,
    plan: &[Planned],
    (transactions, logs): &mut (OpenTransaction, LogReader),
    fault_log: &FaultLog,
) {
    for planned in plan {
        thread::sleep(planned.at.saturating_sub(clock.elapsed()));
        fault_log.during(planned.kind, "", || match planned.kind {
            FaultKind::OpenTransaction => transactions.hold_open_for(planned.lasts),
            _ => logs.pause_for(planned.lasts),
        });
    }
}

// ---- clients --------------------------------------------------------------------------------------------------------

/// The lane of clients, which inject these faults themselves.
pub(super) fn clients(
    clock: Clock,
    plan: &[Planned],
    orders: &mut mpsc::SyncSender<Misbehaviour>,
    fault_log: &FaultLog,
) {
    walk(
        clock,
        plan,
        orders,
        |_| {},
        |orders, planned| {
            let lasts = if planned.kind == FaultKind::Away { HISTORY + BEYOND_HISTORY } else { planned.lasts };
            let order = Misbehaviour { kind: planned.kind, lasts, seed: planned.pick };
            // The clients end after all lanes.
            orders.send(order).expect("the clients receive orders");
            // Absences overlap with the faults that follow.
            let lasts = if planned.kind == FaultKind::Away { Duration::ZERO } else { lasts };
            fault_log.during(planned.kind, "", || thread::sleep(lasts));
        },
    );
}
