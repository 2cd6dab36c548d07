//! The resume storm: all clients of a pod reconnect at once, each with a cursor and missed events, while others are
//! live. Measures how long it takes and how it affects the live ones.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::raw::opcode;
use crate::client::{Ask, Client, WITHIN, read_for, watch};
use crate::events::{Producer, event, number_of, seen};
use crate::fleet::epoll::Epoll;
use crate::frames::{Frames, MessageKind};
use crate::pods::{Pod, World};
use crate::process::{allow_descriptors, loopback};

/// A storm.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many clients come back.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=18_000))]
    pub clients: u32,
    /// How many assessments they watch.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=18_000))]
    pub assessments: u32,
    /// How many events each client lacks.
    #[arg(long, default_value_t = 20)]
    pub lacking: u32,
    /// How many clients are live, each with ten events a second.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub live: u32,
}

/// What was measured.
#[derive(Debug)]
pub struct StormOutcome {
    /// From the first connection until the last client had all that it lacked.
    pub took: Duration,
    /// The live clients' p99 during the storm, from before a record is handed to its producer until its message is
    /// read.
    pub p99_during: Duration,
    /// The same for a while before the storm.
    pub p99_before: Duration,
}

/// Threads that hold the clients who come back.
const THREADS: usize = 2;

/// Between two events for each live client.
const LIVE_EVERY: Duration = Duration::from_millis(100);

/// How long the live clients are measured before the storm, after the producer's first second, in which it warms up.
const BEFORE: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_secs(1);

/// Makes a storm, and prints what it measures.
///
/// # Panics
/// Where a client gets less than it lacks, or more; or a part doesn't start.
#[must_use]
pub fn run(options: &Options) -> StormOutcome {
    allow_descriptors(20_000);
    let world = World::start();
    let pod = world.pod("pod-0").set("ACCEPTS_PER_SECOND", "20000").start();
    let producer = world.producer();
    let asks = asks(&pod, options);
    make_what_they_lack(&producer, &pod, options);

    let ids: Vec<_> = (0..options.live).map(|number| format!("live-{number}")).collect();
    let mut live: Vec<Client> = ids.iter().map(|id| pod.client(id)).collect();
    let storming = AtomicBool::new(true);
    let (mut sent, mut storm_began, mut took) = (Vec::new(), Instant::now(), Duration::ZERO);
    thread::scope(|scope| {
        let sender = scope.spawn(|| send_while(&producer, &ids, &storming));
        let storm = scope.spawn(|| {
            // A pause of its own length: what the live ones have without a storm.
            thread::sleep(WARM_UP + BEFORE);
            let began = Instant::now();
            let clients = come_back(&asks, options.lacking);
            let took = began.elapsed();
            storming.store(false, Ordering::Relaxed);
            (began, took, clients)
        });
        while storming.load(Ordering::Relaxed) {
            read_for(&mut live, Duration::from_millis(20));
        }
        sent = sender.join().expect("the sender does not panic");
        let clients;
        (storm_began, took, clients) = storm.join().expect("all clients are served");
        watch(&mut live, "the live clients have all", WITHIN, |live| {
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
        "{clients} clients of {assessments} assessments came back, each with {lacking} events to be sent: {:.2} s\n\
         p99 of {live} live ones: {:.1} ms during, {:.1} ms before",
        took.as_secs_f64(),
        outcome.p99_during.as_secs_f64() * 1e3,
        outcome.p99_before.as_secs_f64() * 1e3,
    );
    outcome
}

fn assessment(number: u32) -> String {
    format!("storm-{number}")
}

/// What each client asks for: it was there once, before what it lacks.
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

fn make_what_they_lack(producer: &Producer, pod: &Pod, options: &Options) {
    for number in 0..u64::from(options.lacking) {
        for assessment in (0..options.assessments).map(assessment) {
            producer.event(&event(&assessment, number));
        }
    }
    producer.flush();
    pod.await_metric("websocket_kafka_messages_processed_total", f64::from(options.lacking * options.assessments));
}

/// Sends each live client an event every [`LIVE_EVERY`]; returns when each round was sent.
fn send_while(producer: &Producer, ids: &[String], storming: &AtomicBool) -> Vec<Instant> {
    let (start, mut sent) = (Instant::now(), Vec::new());
    while storming.load(Ordering::Relaxed) {
        let number = sent.len() as u64;
        sent.push(Instant::now());
        ids.iter().for_each(|id| producer.event(&event(id, number)));
        // A pace, not a wait for something.
        thread::sleep((start + LIVE_EVERY * sent.len() as u32).saturating_duration_since(Instant::now()));
    }
    producer.flush();
    sent
}

/// When each event was sent, and how long it took.
fn latencies_of<'a>(client: &'a Client, sent: &'a [Instant]) -> impl Iterator<Item = (Instant, Duration)> + 'a {
    seen(client).map(|message| {
        let at = sent[usize::try_from(number_of(message)).expect("a small number")];
        (at, message.at.saturating_duration_since(at))
    })
}

// ---- those who come back
// ----------------------------------------------------------------------------------------------

/// A client that only counts: thousands of them must not be what is measured.
struct Counter {
    stream: TcpStream,
    frames: Frames,
    events: u32,
}

/// Connects all, asks, and reads until each has as many events as it lacks. They stay until they are dropped: that they
/// leave, all at a time, is another story.
fn come_back(asks: &[Ask], lacking: u32) -> Vec<Counter> {
    thread::scope(|scope| {
        let parts: Vec<_> = asks
            .chunks(asks.len().div_ceil(THREADS))
            .map(|asks| scope.spawn(move || part_comes_back(asks, lacking)))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("all clients are served")).collect()
    })
}

fn part_comes_back(asks: &[Ask], lacking: u32) -> Vec<Counter> {
    let mut epoll = Epoll::new().expect("a descriptor is left");
    let mut counters: Vec<_> = asks.iter().map(Counter::begin).collect();
    for (counter, token) in counters.iter().zip(0..) {
        epoll.add_readable(counter.stream.as_raw_fd(), token).expect("a socket that is new to it");
    }
    let (deadline, mut left) = (Instant::now() + 4 * WITHIN, counters.len());
    while left > 0 {
        assert!(Instant::now() < deadline, "clients that came back were not served");
        let ready: Vec<_> = epoll.wait(Duration::from_secs(1)).expect("it is open").collect();
        for token in ready.iter().map(|ready| usize::try_from(ready.token).expect("an index")) {
            counters[token].turn(lacking);
            if counters[token].events == lacking {
                epoll.remove(counters[token].stream.as_raw_fd()).expect("it was added");
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
                Ok(0) => panic!("a pod closed a client that came back after {} events", self.events),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("a client that came back: {error}"),
            };
            let Self { frames, events, .. } = self;
            let taken = frames.take(&buffer[..len], |frame| {
                let told = || String::from_utf8_lossy(frame.payload);
                assert!(frame.opcode != opcode::CLOSE, "a pod closes a client that came back: {}", told());
                match frame.kind() {
                    Some(MessageKind::Event) => *events += 1,
                    Some(MessageKind::Reset | MessageKind::Refusal) => {
                        panic!("a client that came back was told {}", told())
                    }
                    _ => {}
                }
            });
            taken.unwrap_or_else(|fault| panic!("a client that came back: {fault}"));
        }
        assert_eq!(self.events, lacking, "no event comes twice");
    }
}
