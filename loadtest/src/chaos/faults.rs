//! Carries out a schedule: each lane on a thread of its own, fault after fault. What a fault broke is up again when it
//! ends.

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

/// Between two faults a lane looks this often whether all is as it should be.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A rolling update goes on to the next pod this long after the last one was ready.
const BETWEEN_PODS: Duration = Duration::from_millis(500);

/// Who was away for so much longer than the history can't be resumed.
const BEYOND_HISTORY: Duration = Duration::from_secs(15);

/// A pod that is started so long after clients left finds gaps where they lack records.
const COMPACTED_WITHIN: Duration = Duration::from_secs(6);

/// Seconds by which Redis' clock steps: by less than a lease, by more, and far.
const CLOCK_STEPS: [i64; 6] = [-3_600, -5, -2, 2, 5, 3_600];

/// A machine stays busy for so long after a broker that hung on it goes on.
const BUSY_AFTER: Duration = Duration::from_secs(3);

/// A topic with two replicas changes its leader, or has both in sync again, within this time.
const ELECTED_WITHIN: Duration = Duration::from_secs(90);

/// Brokers, from 0.
pub(super) const BROKERS: u32 = 3;

/// What happens now, for the progress line, and what happened, for the checker.
pub(super) struct FaultLog {
    log: LogFile,
    clock: Clock,
    now: Mutex<BTreeMap<usize, String>>,
    next: AtomicUsize,
}

impl FaultLog {
    /// An empty one.
    pub(super) fn new(log: LogFile, clock: Clock) -> Self {
        Self { log, clock, now: Mutex::default(), next: AtomicUsize::new(0) }
    }

    /// What happens now.
    pub(super) fn now(&self) -> Vec<String> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Brings all to the file.
    pub(super) fn flush(&self) {
        self.log.flush();
    }

    /// Tells of a fault while it happens.
    fn during<T>(&self, kind: FaultKind, target: &str, act: impl FnOnce() -> T) -> T {
        let (from_ms, number) = (self.clock.ms(), self.next.fetch_add(1, Ordering::Relaxed));
        let told = if target.is_empty() { kind.to_string() } else { format!("{kind} {target}") };
        self.now.lock().unwrap_or_else(PoisonError::into_inner).insert(number, told);
        let result = act();
        self.now.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        self.log.add(&FaultSpan { kind, target: target.to_owned(), from_ms, to_ms: self.clock.ms() });
        result
    }
}

/// Goes through a lane's plan; `idle` is called between faults, `act` for each.
fn walk<T>(clock: Clock, plan: &[Planned], it: &mut T, idle: impl Fn(&mut T), act: impl Fn(&mut T, &Planned)) {
    for planned in plan {
        while clock.elapsed() < planned.at {
            thread::sleep(LOOK_EVERY.min(planned.at.saturating_sub(clock.elapsed())));
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
    chronicle: &FaultLog,
) {
    walk(clock, plan, fleet, PodFleet::look, |fleet, planned| {
        let running = fleet.running();
        let hit = running[planned.pick as usize % running.len()];
        match planned.kind {
            FaultKind::Kill => chronicle.during(FaultKind::Kill, &PodFleet::name(hit), || {
                fleet.kill(hit);
                thread::sleep(planned.lasts);
                fleet.spawn(hit);
                fleet.await_ready();
            }),
            FaultKind::Stop => chronicle.during(FaultKind::Stop, &PodFleet::name(hit), || {
                fleet.pause(hit, Signal::Stop);
                thread::sleep(planned.lasts);
                fleet.pause(hit, Signal::Cont);
            }),
            FaultKind::Compaction => chronicle.during(FaultKind::Compaction, &PodFleet::name(hit), || {
                let Planned { kind, lasts, pick: seed, .. } = *planned;
                let back = clock.elapsed() + lasts;
                // The clients end after all lanes did.
                orders.send(Misbehaviour { kind, lasts, seed }).expect("the clients listen");
                thread::sleep(COMPACTION_LAG + COMPACTED_WITHIN);
                fleet.end(&[hit], false);
                fleet.spawn(hit);
                fleet.await_ready();
                thread::sleep(back.saturating_sub(clock.elapsed()));
            }),
            FaultKind::Rolling => chronicle.during(FaultKind::Rolling, &fleet.names(), || {
                for place in running {
                    fleet.end(&[place], false);
                    fleet.spawn(place);
                    fleet.await_ready();
                    thread::sleep(BETWEEN_PODS);
                }
            }),
            _ => chronicle.during(FaultKind::Scale, "pod-0,pod-1,pod-2,pod-3,pod-4", || {
                scale(fleet, &[0, 1, 2, 3, 4], planned.lasts);
                // Which two stay is left to chance: also those that were there first may go.
                let stays = [0, 1 + planned.pick as usize % 4];
                scale(fleet, &stays, planned.lasts);
                scale(fleet, &[0, 1, 2], Duration::ZERO);
            }),
        }
    });
}

/// Makes the fleet consist of these pods.
fn scale(fleet: &mut PodFleet, places: &[usize], then: Duration) {
    let running = fleet.running();
    for place in places.iter().filter(|place| !running.contains(place)) {
        fleet.spawn(*place);
    }
    fleet.await_ready();
    let leave: Vec<usize> = running.into_iter().filter(|place| !places.contains(place)).collect();
    fleet.end(&leave, true);
    thread::sleep(then);
}

// ---- what pods depend on --------------------------------------------------------------------------------------------

/// The lane of Redis.
pub(super) fn redis(clock: Clock, plan: &[Planned], redis: &mut Redis, chronicle: &FaultLog) {
    walk(
        clock,
        plan,
        redis,
        |_| {},
        |redis, planned| {
            chronicle.during(planned.kind, "", || match planned.kind {
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
pub(super) fn brokers(clock: Clock, plan: &[Planned], kafka: &mut Kafka, chronicle: &FaultLog) {
    walk(
        clock,
        plan,
        kafka,
        |_| {},
        |kafka, planned| {
            let hit = (planned.pick % BROKERS) as usize;
            match planned.kind {
                FaultKind::BrokerKill => chronicle.during(FaultKind::BrokerKill, &format!("broker-{hit}"), || {
                    kafka.broker(hit).kill();
                    thread::sleep(planned.lasts);
                    kafka.broker(hit).start();
                }),
                FaultKind::BrokerPause => chronicle.during(FaultKind::BrokerPause, &format!("broker-{hit}"), || {
                    kafka.broker(hit).pause();
                    thread::sleep(planned.lasts);
                    kafka.broker(hit).resume();
                }),
                FaultKind::BrokerHang => chronicle.during(FaultKind::BrokerHang, &format!("broker-{hit}"), || {
                    while_busy(|| {
                        kafka.broker(hit).pause();
                        thread::sleep(planned.lasts);
                        kafka.broker(hit).resume();
                        thread::sleep(BUSY_AFTER);
                    });
                }),
                FaultKind::Unclean => chronicle.during(FaultKind::Unclean, "", || lose_the_end(kafka, planned.lasts)),
                _ => chronicle.during(FaultKind::BrokersDown, "", || {
                    (0..BROKERS as usize).for_each(|number| kafka.broker(number).kill());
                    thread::sleep(planned.lasts);
                    kafka.start_all();
                }),
            }
        },
    );
}

/// The leader of the fragile topic's log takes records alone for this time, and dies; its other replica leads without
/// them.
fn lose_the_end(kafka: &mut Kafka, alone_for: Duration) {
    let topic = events::Kind::ALL[usize::from(FRAGILE)].topic();
    let both = |kafka: &Kafka| kafka.in_sync(topic, 0).is_some_and(|brokers| brokers.len() == FRAGILE_ON.len());
    eventually("both replicas are in sync", ELECTED_WITHIN, || both(kafka).then_some(()));
    let leader = eventually("a replica leads", ELECTED_WITHIN, || kafka.leader(topic, 0));
    let other = FRAGILE_ON.into_iter().find(|broker| *broker != leader).expect("there are two");
    kafka.broker(other).pause();
    eventually("it is alone", ELECTED_WITHIN, || (kafka.in_sync(topic, 0)? == [leader]).then_some(()));
    thread::sleep(alone_for);
    kafka.broker(leader).kill();
    kafka.broker(other).resume();
    eventually("the other leads", ELECTED_WITHIN, || (kafka.leader(topic, 0)? == other).then_some(()));
    kafka.broker(leader).start();
    eventually("both replicas are in sync again", ELECTED_WITHIN, || both(kafka).then_some(()));
}

/// Does something while every core of the machine has more to do than it can.
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

// ---- beside ---------------------------------------------------------------------------------------------------------

/// The lane of what stands beside.
pub(super) fn beside(
    clock: Clock,
    plan: &[Planned],
    (transactions, logs): &mut (OpenTransaction, LogReader),
    chronicle: &FaultLog,
) {
    for planned in plan {
        thread::sleep(planned.at.saturating_sub(clock.elapsed()));
        chronicle.during(planned.kind, "", || match planned.kind {
            FaultKind::OpenTransaction => transactions.stays_open_for(planned.lasts),
            _ => logs.rests_for(planned.lasts),
        });
    }
}

// ---- clients --------------------------------------------------------------------------------------------------------

/// The lane of clients: they do it themselves.
pub(super) fn clients(
    clock: Clock,
    plan: &[Planned],
    orders: &mut mpsc::SyncSender<Misbehaviour>,
    chronicle: &FaultLog,
) {
    walk(
        clock,
        plan,
        orders,
        |_| {},
        |orders, planned| {
            let lasts = if planned.kind == FaultKind::Away { HISTORY + BEYOND_HISTORY } else { planned.lasts };
            let order = Misbehaviour { kind: planned.kind, lasts, seed: planned.pick };
            // The clients end after all lanes did.
            orders.send(order).expect("the clients listen");
            // Who is away is so beside the faults that follow.
            let lasts = if planned.kind == FaultKind::Away { Duration::ZERO } else { lasts };
            chronicle.during(planned.kind, "", || thread::sleep(lasts));
        },
    );
}
