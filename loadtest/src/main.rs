//! The command line of what the tests' kit can do by itself.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use loadtest::{chaos, fleet, hangs, storm};

/// Tries the gateway on real brokers, a real Redis and real sockets.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Breaks everything on a seeded schedule, and judges afterwards what the clients saw. Exit code 1 on any fault.
    Chaos(chaos::Options),
    /// Lets all clients of a pod come back at once, and measures how long it takes and what live ones notice of it.
    Storm(storm::Options),
    /// Has a broker hang or die and come back, many times, on a busy machine, and measures how long it takes until
    /// records flow again. Exit code 1 where it takes too long.
    Hangs(hangs::Options),
    /// Holds many clients under a load, and tells what was delivered, how late, and at what cost.
    Fleet(fleet::Options),
    /// Searches for the highest load at which p99 stays under a bound, and sizes a fleet by it. Exit code 1 where none
    /// is.
    Capacity(fleet::capacity::Options),
    /// Measures what an idle pod costs, and each idle client of it. Exit code 1 where a bound is not held.
    Idle(fleet::idle::Options),
    /// Measures the bare loops alone that `fleet --with-floor` measures beside a gateway.
    Floor(fleet::Options),
    /// Measures what reading costs a pod: its ingest, records that it serves nobody, and the history at its start, each
    /// beside a bare loop that reads the same.
    Ingest(fleet::ingest::Options),
    /// A process of clients.
    #[command(hide = true)]
    FleetClients,
    /// A bare loop.
    #[command(hide = true)]
    FleetFloor,
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let done = match command {
        Command::Chaos(options) => chaos::run(&options).map(|outcome| outcome.is_good()),
        Command::Storm(options) => {
            // It prints what it measures.
            let _ = storm::run(&options);
            Ok(true)
        }
        Command::Hangs(options) => Ok(hangs::run(&options).worst() <= hangs::BACK_WITHIN),
        Command::Fleet(options) => fleet::run(&options).map(|_| true),
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
            eprintln!("the run could not be made: {error:#}");
            ExitCode::FAILURE
        }
    }
}
