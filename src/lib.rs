//! shardgate: a WebSocket fan-out gateway. Events come from Kafka; each reaches every client that watches its
//! assessment, in order, none lost, none doubled.
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
//! Kafka is a log, and the gateway never stops treating it as one: each shard keeps a bounded window of the latest
//! events ([`stream::history`]), and a connection owns a *position* in it, not a queue. Sending is moving a position.
//!
//! Where to read next, from the bottom up; lower layers never import higher ones (a test holds this):
//!
//! 1. **Vocabulary**: [`ids`], [`limits`], [`clock`], [`log_throttle`], [`outage`], and `prefetch`.
//! 2. **Rules** without I/O, clock or thread: [`routing`] (topic to message, assessment to shard and pod), [`stream`]
//!    (history, cursors, market board), [`protocol`] (request head, session, messages, close codes, auth), and the pure parts of
//!    [`ingest`], [`discovery`], [`shard`], [`shutdown`] (when a draining pod does what) and [`operations`] (`/ready`,
//!    the console page).
//! 3. **Edges**, each named for what it touches: `ingest/kafka.rs`, `discovery/redis.rs`, `shard/executor.rs`,
//!   `shard/reactor.rs`, `shard/handshake.rs`, `shard/event_loop.rs`, `operations/http.rs`, `operations/log.rs`, `shutdown/signals.rs`,
//!    `gateway/listeners.rs`, `gateway/machine.rs`; and the loops of ingest's two threads, `ingest/reader.rs` and `ingest/watcher.rs`. The parts
//!    meet only in [`exchange`], the types that one thread hands another.
//! 4. [`config`], all settings, parsed whole before anything runs; [`gateway`], which builds, connects, drains and
//!    stops the parts; [`demo`], which embeds a Kafka besides; and the command line, `main.rs`.
//!
//! Beside them, for the tests alone, `simulation` plays whole clusters with these rules over a time that is only a
//! number: thousands of worlds of pods, clients, a Kafka and a Redis, each with its troubles.
//!
//! To follow an event, read `ingest::reader` (it comes from Kafka), `ingest::batcher` (its shard is found),
//! `shard::state` (the batch is taken in, and its watchers are gone through) and `shard::outbound` (one write). To
//! follow a client: `shard::handshake` (its request is read), [`protocol::head`] and `shard::admission` (it is judged),
//! and `shard::connection` (what it is from then on).

#![doc = include_str!("GLOSSARY.md")]

pub mod clock;
pub mod config;
pub mod demo;
pub mod discovery;
pub mod exchange;
pub mod gateway;
pub mod ids;
pub mod ingest;
pub mod limits;
pub mod log_throttle;
pub mod operations;
pub mod outage;
mod prefetch;
pub mod protocol;
pub mod routing;
pub mod shard;
pub mod shutdown;
#[cfg(test)]
mod simulation;
pub mod stream;
