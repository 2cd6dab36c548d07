//! The simulation: many pods, clients and partitions and a Redis over virtual time, for tests. The gateway's rules are
//! the real ones; their environment is simulated: what arrives from Kafka and when, what Redis answers, what sockets
//! accept, which pods crash and restart.
//!
//! ```text
//!   seed -> plan: a world's shape and a list of events, each with its time
//!             |
//!             v          log (Kafka)      redis (slots.lua as a model)
//!           world: ------- pods: batcher, offsets, catalogue | membership, lease | state, handover, sweep, drain
//!             |            clients: the reconnect rules of PROTOCOL 4, slow sockets, disconnects
//!             v
//!          checker, at each message that a client reads: no gap, no double, order, resets only with a cause; at the
//!             |     end: each client is served
//!             v
//!          shrink: the report of a failing world with as few events as possible
//! ```
//!
//! The same seed makes the same world: every random choice at run time comes from a generator of each pod and each
//! client, seeded from the world's seed.

mod checker;
mod client;
mod kafka;
mod messages;
mod outcomes;
mod plan;
mod pod;
mod redis;
mod shrink;
mod world;

#[cfg(test)]
mod tests;
