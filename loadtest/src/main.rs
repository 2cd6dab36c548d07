//! The command line of what the tests' kit can do by itself.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use loadtest::{chaos, storm};

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
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    match command {
        Command::Chaos(options) => match chaos::run(&options) {
            Ok(outcome) if outcome.is_good() => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("the run could not be made: {error:#}");
                ExitCode::FAILURE
            }
        },
        Command::Storm(options) => {
            // It prints what it measures.
            let _ = storm::run(&options);
            ExitCode::SUCCESS
        }
    }
}
