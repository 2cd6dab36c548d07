//! A broker that hangs or is killed and returns, repeatedly, on a machine without an idle core. Measures the time until
//! records flow again and checks that each arrives once.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Client, read_for, read_until};
use crate::events::{event, number_of, seen};
use crate::pods::{Pod, World};
use crate::process::eventually;

/// Options of a run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Number of outages of the broker.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Longest outage in seconds. Most are far shorter: durations are log-uniform from 0.1 s.
    #[arg(long, default_value_t = 60.0)]
    pub longest_s: f64,
    /// Threads that only keep cores busy.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(..=64))]
    pub busy: u32,
    /// Always hang the broker, until the pod reports that it is not ready.
    #[arg(long)]
    pub until_not_ready: bool,
    /// Seed of the durations and kinds of outages.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What a run of hangs measured.
#[derive(Debug, Default)]
pub struct HangsOutcome {
    /// For each round, the time from the broker's return until all clients had received events that were produced from
    /// then on.
    pub took: Vec<Duration>,
    /// Kafka clients that the pod replaced.
    pub rebuilds: f64,
}

impl HangsOutcome {
    /// The longest time.
    #[must_use]
    pub fn worst(&self) -> Duration {
        self.took.iter().max().copied().unwrap_or_default()
    }
}

const CLIENTS: u64 = 12;
/// Events for each client in a round.
const EVENTS: u64 = 10;
/// Shortest outage in seconds.
const SHORTEST_S: f64 = 0.1;
/// Limit for the time until records flow, after the broker's return. It includes what the producer takes.
pub const BACK_WITHIN: Duration = Duration::from_secs(10);
/// Time limit of a round.
const ROUND_MAX: Duration = Duration::from_secs(60);

/// Executes a run and prints its measurements.
///
/// # Panics
/// If events are lost or duplicated, or don't arrive in time.
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
                ("killed", kill(&mut world, &mut clients, away))
            } else {
                ("hung", hang(&mut world, &mut clients, away))
            };
            let back = Instant::now();
            let acknowledged = deliver(&world, &pod, &mut clients, round * EVENTS..(round + 1) * EVENTS);
            let took = back.elapsed();
            println!(
                "round {round}: broker {what} for {:.1} s; after its return it acknowledged events in {:.1} s, and all were delivered in {:.1} s",
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
    println!("worst {:.1} s, {} Kafka clients replaced", outcome.worst().as_secs_f64(), outcome.rebuilds);
    outcome
}

/// Stops the busy threads, even if the run panics.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn assessment(number: u64) -> String {
    format!("a-{number}")
}

// Each of these returns the length of the outage once the broker serves again.

fn kill(world: &mut World, clients: &mut [Client], away: Duration) -> Duration {
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
    eventually("the pod is not ready", ROUND_MAX, || {
        clients.iter_mut().for_each(Client::turn);
        (pod.get("/ready").status == 503).then_some(())
    });
    let away = began.elapsed();
    broker.resume();
    broker.await_back();
    away
}

/// Produces events and waits for their delivery. Returns the time when the broker had acknowledged them.
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
    read_until(clients, &format!("all events; the pod: {}", pod.get("/ready").text()), ROUND_MAX, all);
    for client in clients.iter() {
        let mut numbers: Vec<_> = seen(client).map(number_of).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..count as u64), "each event comes once");
    }
    acknowledged
}
