//! shardgate: a WebSocket fan-out gateway. It delivers events from Kafka to every client that subscribed to their
//! assessment: in order, without loss and without duplicates.
//!
//! ```text
//!              Kafka                                       clients
//!                |                                            |
//!    +-----------v-----------+   bounded channel        +-----v------------------+
//!    | ingest core           |   per shard              | shard core 1..n        |
//!    | records -> batches    |------------------------->| history, connections   |
//!    +-----------------------+   one wake per batch     +-----+------------^-----+
//!    | control thread        |   pod state (view, phase)       |            | hand-off: socket + head
//!    | Redis, HTTP, signals  |------------------------->      +------------+
//!    +-----------------------+
//! ```
//!
//! Kafka is a log, and the gateway treats it as one throughout: each shard keeps a bounded window of the latest events
//! ([`stream::history`]), and a connection owns a *position* in it, not a queue. Sending moves the position.
//!
//! Where to read next, from the bottom up. Lower layers never import higher ones; a test enforces this:
//!
//! 1. **Vocabulary**: [`ids`], [`limits`], [`clock`], [`log_throttle`], [`outage`], [`cores`], [`tls`], [`https`], and `prefetch`.
//! 2. **Rules** without I/O, clock or thread: [`routing`] (topic to message, assessment to shard and pod), [`stream`]
//!    (history, cursors, market board), [`protocol`] (request head, session, messages, close codes, auth), and the pure
//!    parts of [`ingest`], [`discovery`], [`shard`], [`identity`], [`shutdown`] (the phases of a drain) and [`operations`] (`/ready`,
//!    the console page).
//! 3. **Edges**, each named for what it touches: `ingest/kafka.rs`, `discovery/redis.rs`, `discovery/redis_link.rs`, `shard/executor.rs` and its two engines,
//!    `shard/reactor.rs`, `shard/handshake.rs`, `shard/event_loop.rs`, `operations/http.rs`, `operations/admin/shards.rs`,
//!    `operations/admin/fleet.rs`, `operations/log.rs`,
//!    `shutdown/signals.rs`, `identity/checker.rs`, `identity/source.rs`, `gateway/listeners.rs`, `gateway/machine.rs`, `gateway/engine.rs`; and the loops of ingest's two threads,
//!    `ingest/reader.rs` and `ingest/watcher.rs`. They meet only in [`exchange`], the types that threads pass to each
//!    other.
//! 4. [`config`], all settings, parsed completely before anything runs; [`gateway`], which builds, connects, drains and
//!    stops the parts; [`demo`], which also embeds a Kafka; and the command line, `main.rs`.
//!
//! `simulation`, for tests only, runs whole clusters with these rules over virtual time: thousands of worlds of pods
//! and clients with a Kafka and a Redis, each with its own faults.
//!
//! To follow an event, read `ingest::reader` (reads it from Kafka), `ingest::batcher` (finds its shard), `shard::state`
//! (appends the batch and visits its subscribers) and `shard::outbound` (writes). To follow a client:
//! `shard::handshake` (reads its request), [`protocol::head`] and `shard::admission` (check it), and
//! `shard::connection` (its state from then on).
#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::decimal_bitwise_operands,
        clippy::format_collect,
        clippy::format_push_string,
        clippy::naive_bytecount,
        clippy::unchecked_time_subtraction,
        clippy::unnecessary_wraps,
        reason = "a test knows the numbers that it counts with"
    )
)]
#![doc = include_str!("GLOSSARY.md")]

pub mod clock;
pub mod config;
pub(crate) mod cores;
pub mod demo;
pub mod discovery;
pub(crate) mod exchange;
pub mod gateway;
pub(crate) mod https;
pub(crate) mod identity;
pub mod ids;
pub(crate) mod ingest;
pub mod limits;
pub(crate) mod log_throttle;
pub mod operations;
pub(crate) mod outage;
mod prefetch;
pub mod protocol;
pub mod routing;
pub(crate) mod shard;
pub mod shutdown;
#[cfg(test)]
mod simulation;
pub mod stream;
pub(crate) mod tls;
