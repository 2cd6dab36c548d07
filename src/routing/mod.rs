//! Which topic becomes which message, and where an assessment lives. Rules only: no I/O, no clock.
//!
//! - [`table`]: the routes as data; the built-in ones are `routes.toml` beside it, `routes_file` reads that format.
//! - [`pattern`]: what a topic's name must look like.
//! - [`mapping`]: from a record's payload to a message's JSON, byte for byte.
//! - `json`: how a payload's fields are read; `record_values`: what else a route takes from a record, and which ones.
//! - [`partitioner`]: from an assessment to the partition of a topic where its producers put it.
//! - [`placement`]: from an assessment to its shard, its slot and its pod.

mod json;
pub mod mapping;
pub(crate) mod partitioner;
pub(crate) mod pattern;
pub mod placement;
pub(crate) mod record_values;
mod routes_file;
pub mod table;
