//! The parts, built and connected (to come: a stand-in, so that the command line compiles).

use crate::config::Config;
use crate::discovery::Membership;

/// Why a pod does not start, or does not end as it should.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// A stand-in.
    #[error("the gateway is not connected yet")]
    NotConnected,
}

/// Runs a pod until a signal has drained it.
///
/// # Errors
/// Why it did not start, or did not end cleanly.
pub fn run(_config: Config, _membership: Membership) -> Result<(), GatewayError> {
    Err(GatewayError::NotConnected)
}
