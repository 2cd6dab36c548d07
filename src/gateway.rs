//! The parts, built and connected (to come: a stand-in, so that the command line compiles).

use std::process::ExitCode;

use crate::config::Config;

/// How a pod knows the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// Through Redis.
    Redis,
    /// It is the only one.
    Alone,
}

/// Why a pod could not start, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A stand-in.
    #[error("the gateway of {membership:?} on port {port} is not connected yet")]
    NotConnected {
        /// As given.
        membership: Membership,
        /// As given.
        port: u16,
    },
}

/// Runs a pod until it is told to stop and has drained.
///
/// # Errors
/// Where it can't start.
pub fn run(config: Config, membership: Membership) -> Result<ExitCode, Error> {
    Err(Error::NotConnected { membership, port: config.port })
}
