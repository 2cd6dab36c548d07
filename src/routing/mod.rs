//! Which topic becomes which message, and where an assessment lives. Rules only: no I/O, no clock.
//!
//! - [`table`]: the routes as data; the built-in ones are `routes.toml` beside it.
//! - [`mapping`]: from a record's payload to a message's JSON, byte for byte.
//! - [`placement`]: from an assessment to its shard, its slot and its pod.

pub mod mapping;
pub mod placement;
pub mod table;
