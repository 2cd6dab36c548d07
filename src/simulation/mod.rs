//! The simulation: many pods, clients and partitions and a Redis over virtual time, for tests. The gateway's rules are
//! the real ones; their environment is simulated: what arrives from Kafka and when, what Redis answers, what sockets
//! accept, which pods crash and restart.
//!
//! ```text
//!   seed -> plan: a world's shape and a list of deeds, each with its time
//!             |
//!             v          log (Kafka)      redis (slots.lua as a model)
//!           world: ------- pods: batcher, positions, catalogue | membership, lease | state, handover, sweep, drain
//!             |            clients: PROTOCOL 4's manners, slow sockets, cuts
//!             v
//!          checker, at each message that a client reads: no gap, no double, order, resets only with a cause; at the
//!             |     end: each client is served
//!             v
//!          story: the deeds of a world that fails, as few as still make it fail, in words
//! ```
//!
//! The same seed makes the same world: whatever is left to chance while it runs comes from dice of each pod and each
//! client, made of the seed.

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
