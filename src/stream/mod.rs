//! The part of Kafka's logs that a shard keeps, as plain values: no I/O, no clock.
//!
//! - [`batch`]: what ingest hands a shard: an arena of bytes and a list of records.
//! - [`cursor`]: what a client comes back with, and its form.
//! - [`epochs`]: which leader wrote what was read of a partition.
//! - [`offsets`]: where a shard stands on each partition, and so what a cursor lacks.
//! - [`history`]: the bounded window of the assessments' events, and positions in it.
//! - [`board`]: the latest tick of each market, by version.

pub mod batch;
pub mod board;
pub mod cursor;
pub(crate) mod epochs;
pub(crate) mod fault_injection;
pub mod history;
pub mod offsets;
#[cfg(test)]
pub(crate) mod testing;
