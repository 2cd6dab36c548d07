//! What a shard keeps of Kafka, as plain values: no I/O, no clock.
//!
//! - [`batch`]: what ingest hands a shard: an arena of bytes and a list of records.
//! - [`history`]: the bounded window of the assessments' events, and positions in it.
//! - [`board`]: the latest tick of each market, by version.

pub mod batch;
pub mod board;
pub mod history;
#[cfg(test)]
pub(crate) mod testing;
