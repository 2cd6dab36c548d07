//! The command line of the load and chaos tests.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use loadtest::{chaos, fleet, hangs, storm};

/// Tests the gateway with real brokers, a real Redis and real sockets.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Injects faults on a seeded schedule, then checks what every client received. Exit code 1 on any violation.
    Chaos(chaos::Options),
    /// Reconnects all clients of a pod at once, and measures the duration and the effect on live clients.
    Storm(storm::Options),
    /// Hangs or kills a broker many times on a busy machine, and measures the time until records flow again. Exit code
    /// 1 if it exceeds the limit.
    Hangs(hangs::Options),
    /// Runs many clients under load, and reports what was delivered, with which latency and at what cost.
    Fleet(fleet::Options),
    /// Measures latency and CPU of each engine at several loads, beside the bare loop that reads Kafka.
    Rates(fleet::rates::Options),
    /// Searches for the highest load with p99 latency under a limit, and sizes a fleet by it. Exit code 1 if there is
    /// none.
    Capacity(fleet::capacity::Options),
    /// Measures the cost of an idle pod and of its idle clients. Exit code 1 if a limit is exceeded.
    Idle(fleet::idle::Options),
    /// Measures only the bare loops that `fleet --with-floor` compares with a gateway.
    Floor(fleet::Options),
    /// Measures the cost of reading: ingest, records without subscribers, and filling the history at startup, each
    /// beside a bare loop that reads the same.
    Ingest(fleet::ingest::Options),
    /// A child process with clients.
    #[command(hide = true)]
    FleetClients,
    /// A child process with a bare loop.
    #[command(hide = true)]
    FleetFloor,
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let done = match command {
        Command::Chaos(options) => chaos::run(&options).map(|outcome| outcome.is_good()),
        Command::Storm(options) => {
            // It prints its measurements.
            let _ = storm::run(&options);
            Ok(true)
        }
        Command::Hangs(options) => Ok(hangs::run(&options).worst() <= hangs::BACK_WITHIN),
        Command::Fleet(options) => fleet::run(&options).map(|_| true),
        Command::Rates(options) => fleet::rates::run(&options).map(|()| true),
        Command::Capacity(options) => {
            fleet::capacity::run(&options).map(|report| report.capacity.is_some_and(|capacity| capacity.held.is_some()))
        }
        Command::Idle(options) => fleet::idle::run(&options).map(|report| report.is_held()),
        Command::Floor(options) => fleet::run_floor(&options).map(|_| true),
        Command::Ingest(options) => fleet::ingest::run(&options).map(|_| true),
        Command::FleetClients => fleet::clients::run().map(|()| true),
        Command::FleetFloor => fleet::floor::run().map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the run failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
