//! Brokers that hang or die and come back, again and again, on a machine that has no core to spare: how long it takes
//! until records flow again, and whether each arrives once.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Client, read_for, watch};
use crate::events::{event, number_of, seen};
use crate::pods::{Pod, World};
use crate::process::eventually;

/// A run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How often the broker hangs or is killed.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// The longest time that it is away. Most times are far shorter: their logarithms are spread evenly from 0.1 s on.
    #[arg(long, default_value_t = 60.0)]
    pub longest_s: f64,
    /// Threads that do nothing but take the cores from others.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(..=64))]
    pub busy: u32,
    /// The broker always hangs, until the pod says that it is not ready.
    #[arg(long)]
    pub until_not_ready: bool,
    /// Decides on the times, and on what happens.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct HangsOutcome {
    /// From when the broker that was back had taken all events until all clients had them, a round each.
    pub took: Vec<Duration>,
    /// Clients of librdkafka that the pod made anew.
    pub rebuilds: f64,
}

impl HangsOutcome {
    /// The longest that it took.
    #[must_use]
    pub fn worst(&self) -> Duration {
        self.took.iter().max().copied().unwrap_or_default()
    }
}

const CLIENTS: u64 = 12;
/// Events for each client, a round.
const EVENTS: u64 = 10;
/// The shortest time that a broker is away.
const SHORTEST_S: f64 = 0.1;
/// Records flow within this time after the broker that is back has taken them.
pub const BACK_WITHIN: Duration = Duration::from_secs(10);
/// A round is given up after this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a run, and prints what it measures.
///
/// # Panics
/// Where events are lost or come twice, or don't come at all.
#[must_use]
pub fn run(options: &Options) -> HangsOutcome {
    let mut world = World::start();
    let pod = world.pod("pod-0").start();
    let mut clients: Vec<_> = (0..CLIENTS).map(|number| pod.client(&assessment(number))).collect();
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut outcome = HangsOutcome::default();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for _ in 0..options.busy {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        for round in 0..u64::from(options.rounds) {
            let away = SHORTEST_S * (options.longest_s / SHORTEST_S).max(1.0).powf(random.f64());
            let away = Duration::from_secs_f64(away);
            let (what, away) = if options.until_not_ready {
                ("hung", hang_until_not_ready(&mut world, &pod, &mut clients))
            } else if random.u8(..3) == 0 {
                ("killed", be_killed(&mut world, &mut clients, away))
            } else {
                ("hung", hang(&mut world, &mut clients, away))
            };
            let back = Instant::now();
            let acknowledged = deliver(&world, &pod, &mut clients, round * EVENTS..(round + 1) * EVENTS);
            let took = acknowledged.elapsed();
            println!(
                "round {round}: {what} for {:.1} s, took events again {:.1} s after it was back, all delivered {:.1} s after that",
                away.as_secs_f64(),
                acknowledged.saturating_duration_since(back).as_secs_f64(),
                took.as_secs_f64()
            );
            if took > BACK_WITHIN {
                println!("the pod's log:\n{}", pod.log());
            }
            outcome.took.push(took);
        }
    });
    let metrics = pod.metrics();
    outcome.rebuilds = metrics.sum("shardgate_ingest_client_rebuilds_total");
    println!("worst {:.1} s, {} clients made anew", outcome.worst().as_secs_f64(), outcome.rebuilds);
    outcome
}

/// Stops the busy threads, however the run ends.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn assessment(number: u64) -> String {
    format!("a-{number}")
}

// Each of these returns when the broker serves again, and how long it was away.

fn be_killed(world: &mut World, clients: &mut [Client], away: Duration) -> Duration {
    let broker = world.kafka.broker(0);
    broker.kill();
    read_for(clients, away);
    broker.start();
    away
}

fn hang(world: &mut World, clients: &mut [Client], away: Duration) -> Duration {
    let broker = world.kafka.broker(0);
    broker.pause();
    read_for(clients, away);
    broker.resume();
    broker.await_back();
    away
}

fn hang_until_not_ready(world: &mut World, pod: &Pod, clients: &mut [Client]) -> Duration {
    let broker = world.kafka.broker(0);
    broker.pause();
    let began = Instant::now();
    eventually("it is not ready", PATIENCE, || {
        clients.iter_mut().for_each(Client::turn);
        (pod.get("/ready").status == 503).then_some(())
    });
    let away = began.elapsed();
    broker.resume();
    broker.await_back();
    away
}

/// Sends events and waits for them; returns when the broker had them.
fn deliver(world: &World, pod: &Pod, clients: &mut [Client], numbers: Range<u64>) -> Instant {
    let producer = world.producer();
    for number in numbers.clone() {
        for client in 0..CLIENTS {
            producer.event(&event(&assessment(client), number));
        }
    }
    producer.flush();
    let acknowledged = Instant::now();
    let count = usize::try_from(numbers.end).expect("few");
    let all = |clients: &mut [Client]| clients.iter().all(|client| seen(client).count() >= count);
    watch(clients, &format!("all events; the pod: {}", pod.get("/ready").text()), PATIENCE, all);
    for client in clients.iter() {
        let mut numbers: Vec<_> = seen(client).map(number_of).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..count as u64), "each event comes once");
    }
    acknowledged
}
