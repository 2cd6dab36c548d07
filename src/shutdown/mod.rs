//! How a pod stops (PROTOCOL 7).
//!
//! - [`phases`]: what is done when, as a rule on times.
//! - [`signals`] (edge): what begins it.

pub mod phases;
pub mod signals;
