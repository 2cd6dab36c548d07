//! The command line of what the tests' kit can do by itself.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use loadtest::chaos;

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
}

fn main() -> ExitCode {
    let Arguments { command: Command::Chaos(options) } = Arguments::parse();
    match chaos::run(&options) {
        Ok(outcome) if outcome.is_good() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the run could not be made: {error:#}");
            ExitCode::FAILURE
        }
    }
}
