//! How a pod stops (PROTOCOL 7).
//!
//! - [`phases`]: what is done when, as a rule on times.

pub mod phases;
