//! The resume storm: all clients of a pod reconnect at once, each with a cursor and missed events, while live clients
//! receive events. Measures its duration and its effect on the live clients.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::raw::opcode;
use crate::client::{Ask, Client, WITHIN, read_for, read_until};
use crate::events::{Producer, event, number_of, seen};
use crate::fleet::epoll::Epoll;
use crate::frames::{Frames, MessageKind};
use crate::pods::{Pod, World};
use crate::process::{allow_descriptors, loopback};

/// Options of a storm.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Number of clients that reconnect.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=18_000))]
    pub clients: u32,
    /// Number of assessments that they subscribe to.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=18_000))]
    pub assessments: u32,
    /// Number of events that each client missed.
    #[arg(long, default_value_t = 20)]
    pub lacking: u32,
    /// Number of live clients, each with ten events per second.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub live: u32,
}

/// What a storm measured.
#[derive(Debug)]
pub struct StormOutcome {
    /// Time from the first connection until the last client had received everything that it missed.
    pub took: Duration,
    /// p99 of the live clients' latency during the storm, from before a record is passed to its producer until its
    /// message is read.
    pub p99_during: Duration,
    /// The same before the storm.
    pub p99_before: Duration,
}

/// Threads of reconnecting clients.
const THREADS: usize = 2;

/// Interval between two events for each live client.
const LIVE_EVERY: Duration = Duration::from_millis(100);

/// Length of the measurement before the storm, and of the producer's warm-up before that.
const BEFORE: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_secs(1);

/// Runs a storm and prints its measurements.
///
/// # Panics
/// If a client receives fewer or more events than it missed, or a part does not start.
#[must_use]
pub fn run(options: &Options) -> StormOutcome {
    allow_descriptors(20_000);
    let world = World::start();
    let pod = world.pod("pod-0").set("ACCEPTS_PER_SECOND", "20000").start();
    let producer = world.producer();
    let asks = asks(&pod, options);
    produce_missed_events(&producer, &pod, options);

    let ids: Vec<_> = (0..options.live).map(|number| format!("live-{number}")).collect();
    let mut live: Vec<Client> = ids.iter().map(|id| pod.client(id)).collect();
    let is_running = AtomicBool::new(true);
    let (mut sent, mut storm_began, mut took) = (Vec::new(), Instant::now(), Duration::ZERO);
    thread::scope(|scope| {
        let sender = scope.spawn(|| send_while(&producer, &ids, &is_running));
        let storm = scope.spawn(|| {
            // Live clients are measured without a storm first.
            thread::sleep(WARM_UP + BEFORE);
            let began = Instant::now();
            let clients = reconnect_all(&asks, options.lacking);
            let took = began.elapsed();
            is_running.store(false, Ordering::Relaxed);
            (began, took, clients)
        });
        while is_running.load(Ordering::Relaxed) {
            read_for(&mut live, Duration::from_millis(20));
        }
        sent = sender.join().expect("the sender does not panic");
        let clients;
        (storm_began, took, clients) = storm.join().expect("all clients are served");
        read_until(&mut live, "the live clients have all events", WITHIN, |live| {
            live.iter().all(|c| seen(c).count() == sent.len())
        });
        drop(clients);
    });
    let latencies = |during: bool| {
        let is_warm = |at: Instant| storm_began.saturating_duration_since(at) <= BEFORE;
        let is_of = |&(at, _): &(Instant, Duration)| is_warm(at) && (at >= storm_began) == during;
        let mut all: Vec<_> = live.iter().flat_map(|client| latencies_of(client, &sent)).filter(is_of).collect();
        all.sort_unstable_by_key(|&(_, latency)| latency);
        all.get(all.len() * 99 / 100).map_or(Duration::ZERO, |&(_, latency)| latency)
    };
    let outcome = StormOutcome { took, p99_during: latencies(true), p99_before: latencies(false) };
    let Options { clients, assessments, lacking, live } = options;
    println!(
        "{clients} clients of {assessments} assessments resumed, each with {lacking} missed events, within {:.2} s\n\
         p99 latency of {live} live clients: {:.1} ms during, {:.1} ms before",
        took.as_secs_f64(),
        outcome.p99_during.as_secs_f64() * 1e3,
        outcome.p99_before.as_secs_f64() * 1e3,
    );
    outcome
}

fn assessment(number: u32) -> String {
    format!("storm-{number}")
}

/// The clients' requests, with cursors from before the missed events.
fn asks(pod: &Pod, options: &Options) -> Vec<Ask> {
    let cursor = |number| {
        let mut client = pod.client(&assessment(number));
        let connected = client.expect_type("connected");
        connected.json()["cursor"].as_str().expect("connected has a cursor").to_owned()
    };
    let cursors: Vec<_> = (0..options.assessments).map(cursor).collect();
    let source = loopback();
    let ask = |number: u32| {
        let number = number % options.assessments;
        let cursor = &cursors[number as usize];
        pod.ask().assessment(&assessment(number)).parameter(&format!("cursor={cursor}")).from(source)
    };
    (0..options.clients).map(ask).collect()
}

fn produce_missed_events(producer: &Producer, pod: &Pod, options: &Options) {
    for number in 0..u64::from(options.lacking) {
        for assessment in (0..options.assessments).map(assessment) {
            producer.event(&event(&assessment, number));
        }
    }
    producer.flush();
    pod.await_metric("websocket_kafka_messages_processed_total", f64::from(options.lacking * options.assessments));
}

/// Sends each live client an event every [`LIVE_EVERY`]. Returns the time at which each round was sent.
fn send_while(producer: &Producer, ids: &[String], is_running: &AtomicBool) -> Vec<Instant> {
    let (start, mut sent) = (Instant::now(), Vec::new());
    while is_running.load(Ordering::Relaxed) {
        let number = sent.len() as u64;
        sent.push(Instant::now());
        ids.iter().for_each(|id| producer.event(&event(id, number)));
        // This sets the rate. It does not wait for an event.
        thread::sleep((start + LIVE_EVERY * sent.len() as u32).saturating_duration_since(Instant::now()));
    }
    producer.flush();
    sent
}

/// The send time and the latency of each event.
fn latencies_of<'a>(client: &'a Client, sent: &'a [Instant]) -> impl Iterator<Item = (Instant, Duration)> + 'a {
    seen(client).map(|message| {
        let at = sent[usize::try_from(number_of(message)).expect("a small number")];
        (at, message.at.saturating_duration_since(at))
    })
}

// ---- reconnecting clients -------------------------------------------------------------------------------------------

/// A client that only counts, because thousands of them must be cheap beside what is measured.
struct Counter {
    stream: TcpStream,
    frames: Frames,
    events: u32,
}

/// Connects all clients and reads until each has all missed events. Returns them so that they stay connected during the
/// measurement.
fn reconnect_all(asks: &[Ask], lacking: u32) -> Vec<Counter> {
    thread::scope(|scope| {
        let parts: Vec<_> = asks
            .chunks(asks.len().div_ceil(THREADS))
            .map(|asks| scope.spawn(move || reconnect_part(asks, lacking)))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("all clients are served")).collect()
    })
}

fn reconnect_part(asks: &[Ask], lacking: u32) -> Vec<Counter> {
    let mut epoll = Epoll::new().expect("a descriptor is left");
    let mut counters: Vec<_> = asks.iter().map(Counter::begin).collect();
    for (counter, token) in counters.iter().zip(0..) {
        epoll.add_readable(counter.stream.as_raw_fd(), token).expect("a new socket");
    }
    let (deadline, mut left) = (Instant::now() + 4 * WITHIN, counters.len());
    while left > 0 {
        assert!(Instant::now() < deadline, "the reconnected clients were not served in time");
        let ready: Vec<_> = epoll.wait(Duration::from_secs(1)).expect("the epoll is open").collect();
        for token in ready.iter().map(|ready| usize::try_from(ready.token).expect("an index")) {
            counters[token].turn(lacking);
            if counters[token].events == lacking {
                epoll.remove(counters[token].stream.as_raw_fd()).expect("the socket was added");
                left -= 1;
            }
        }
    }
    counters
}

impl Counter {
    fn begin(ask: &Ask) -> Self {
        let mut stream = ask.connect();
        stream.write_all(ask.head().as_bytes()).expect("a request fits into a socket");
        stream.set_nonblocking(true).expect("a TCP socket");
        Self { stream, frames: Frames::default(), events: 0 }
    }

    fn turn(&mut self, lacking: u32) {
        let mut buffer = [0; 16 * 1024];
        while self.events < lacking {
            let len = match self.stream.read(&mut buffer) {
                Ok(0) => panic!("the pod closed a reconnected client after {} events", self.events),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("a reconnected client: {error}"),
            };
            let Self { frames, events, .. } = self;
            let taken = frames.take(&buffer[..len], |frame| {
                let text = || String::from_utf8_lossy(frame.payload);
                assert!(frame.opcode != opcode::CLOSE, "the pod closed a reconnected client: {}", text());
                match frame.kind() {
                    Some(MessageKind::Event) => *events += 1,
                    Some(MessageKind::Reset | MessageKind::Refusal) => {
                        panic!("a reconnected client received {}", text())
                    }
                    _ => {}
                }
            });
            taken.unwrap_or_else(|fault| panic!("a reconnected client: {fault}"));
        }
        assert_eq!(self.events, lacking, "each event comes once");
    }
}
