//! Latency and CPU at several loads: each engine of the gateway, and the bare loop that reads Kafka, take the same
//! loads one after the other, in each round. What counts is the comparison within a round.

use std::thread::JoinHandle;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::measure::{ConnectedClients, Measurement, Subject};
use super::producer::Produced;
use super::report::{cell, write_json};
use super::statistics::median;
use super::{
    BareLoops, FRAME_OVER_RECORD_BYTES, above_zero, frame_bytes, kafka_source, producer, start_pods, start_world,
};
use crate::pods::World;

/// Options of the loads. `--rate` is not used.
#[derive(Debug, Clone, Serialize, clap::Args)]
#[group(skip)]
pub struct Options {
    /// The clients and their load.
    #[command(flatten)]
    #[serde(flatten)]
    pub fleet: super::Options,
    /// Values of ENGINE to measure.
    #[arg(long, value_delimiter = ',', default_value = "io_uring,epoll")]
    pub engines: Vec<String>,
    /// Deliveries per second due, in the order of the loads. The last may be more than a core can send.
    #[arg(long, value_delimiter = ',', default_value = "5000,10000,20000,40000,200000", value_parser = above_zero)]
    pub deliveries: Vec<f64>,
}

/// The measurements of a subject, one for each load.
type Parts = Vec<Measurement>;

/// The measurements of a round.
#[derive(Debug, Serialize)]
struct Round {
    /// One for each engine.
    engines: Vec<Parts>,
    kafka: Parts,
}

/// Measures, prints the table and writes the JSON file.
///
/// # Errors
/// If the options contradict each other, or a process exits.
pub fn run(options: &Options) -> Result<()> {
    options.fleet.check()?;
    ensure!(options.fleet.url.is_empty(), "rates can't be combined with --url");
    let world = start_world(&options.fleet);
    // A broker is slow at first. The result is discarded.
    measure_kafka(options, &world, None)?;
    let rounds: Vec<Round> = (0..options.fleet.rounds.rounds).map(|_| round(options, &world)).collect::<Result<_>>()?;
    let file = options.fleet.rounds.json_file("rates");
    write_json(&file, &(options, &rounds))?;
    println!("\n{}JSON: {}", table(options, &rounds), file.display());
    Ok(())
}

fn round(options: &Options, world: &World) -> Result<Round> {
    let fleet = &options.fleet;
    let brokers = world.kafka.bootstrap();
    let engine = |engine: &String| {
        let settings = [fleet.settings.clone(), vec![format!("ENGINE={engine}")]].concat();
        let fleet = super::Options { settings, ..fleet.clone() };
        let (_pods, subject) = start_pods(&fleet, world)?;
        loads(options, &subject, |at| Ok(producer::start(brokers.to_owned(), at.load(), at.length())))
    };
    let engines: Vec<Parts> = options.engines.iter().map(engine).collect::<Result<_>>()?;
    let kafka = measure_kafka(options, world, engines.iter().flatten().find_map(frame_bytes))?;
    Ok(Round { engines, kafka })
}

fn measure_kafka(options: &Options, world: &World, frame_bytes: Option<usize>) -> Result<Parts> {
    let (fleet, brokers) = (&options.fleet, world.kafka.bootstrap());
    let frame_bytes = frame_bytes.unwrap_or(fleet.size as usize + FRAME_OVER_RECORD_BYTES);
    let mut bare = BareLoops::start(fleet, frame_bytes, kafka_source(fleet, brokers))?;
    let subject = bare.subject.clone();
    let parts = loads(options, &subject, |at| bare.begin(at, brokers))?;
    bare.end()?;
    Ok(parts)
}

/// Measures each load with the same clients.
fn loads(
    options: &Options,
    subject: &Subject,
    mut begin: impl FnMut(&super::Options) -> Result<JoinHandle<Produced>>,
) -> Result<Parts> {
    let fleet = &options.fleet;
    let mut clients = ConnectedClients::connect(fleet, subject)?;
    let mut parts = Vec::new();
    for deliveries in &options.deliveries {
        let rate = deliveries * f64::from(fleet.assessments) / f64::from(fleet.clients);
        let at = super::Options { rate, ..fleet.clone() };
        clients.settle(&at, subject)?;
        parts.push(clients.measure(&at, subject, || begin(&at))?);
    }
    clients.stop()?;
    Ok(parts)
}

/// A figure of a measurement.
type Figure = fn(&Measurement) -> Option<f64>;

/// How the engine's figure compares with the loop's.
type Comparison = fn(f64, f64) -> f64;

/// The columns: each figure, and its comparison with the loop's.
const COLUMNS: &[(&str, Figure, &str, Comparison)] = &[
    ("read/s", |part| Some(part.deliveries as f64 / part.seconds), "/ kafka", RATIO),
    ("p50 ms", |part| Some(part.latencies?.p50_ms), "- kafka", DIFFERENCE),
    ("p99 ms", |part| Some(part.latencies?.p99_ms), "- kafka", DIFFERENCE),
    ("CPU us", |part| Some(part.usage.as_ref()?.total_ns() as f64 / 1e3 / part.deliveries as f64), "/ kafka", RATIO),
    ("core %", |part| Some(part.usage.as_ref()?.total_ns() as f64 / 1e7 / part.seconds), "- kafka", DIFFERENCE),
];
const RATIO: Comparison = |engine, kafka| engine / kafka;
const DIFFERENCE: Comparison = |engine, kafka| engine - kafka;

/// A line for each engine and load. Figures are medians of the rounds; a comparison is the median of the rounds' own.
fn table(options: &Options, rounds: &[Round]) -> String {
    let line = |engine: &str, due: &str, cells: &mut dyn Iterator<Item = String>| {
        let cells: String = cells.map(|cell| format!("{cell:>10}")).collect();
        format!("{engine:<10}{due:>10}{cells}\n")
    };
    let names = COLUMNS.iter().flat_map(|(name, _, compared, _)| [*name, *compared]).map(str::to_owned);
    let mut text = line("engine", "due/s", &mut names.into_iter());
    for (index, engine) in options.engines.iter().enumerate() {
        for (load, due) in options.deliveries.iter().enumerate() {
            let pairs = || rounds.iter().map(|round| (&round.engines[index][load], &round.kafka[load]));
            let mut cells = COLUMNS.iter().flat_map(|(_, of, _, compare)| {
                let own = median(pairs().filter_map(|(engine, _)| of(engine)));
                let both = median(pairs().filter_map(|(engine, kafka)| Some(compare(of(engine)?, of(kafka)?))));
                [cell(own), cell(both)]
            });
            text.push_str(&line(engine, &cell(Some(*due)), &mut cells));
        }
    }
    text
}
