//! How a pod stops (PROTOCOL 7).
//!
//! - [`phases`]: the phases of a drain, as a rule on times.
//! - [`signals`] (edge): the signals that start it.

pub(crate) mod phases;
pub mod signals;
