//! The kit of the end-to-end tests and load tests: a real Kafka, a real Redis, pods as processes, and clients. The
//! tests in `tests/` know a pod only by its contract (PROTOCOL). Each file there has one subject.
//!
//! ```text
//! events ──> kafka ──> pods ──> client, http, metrics
//!                       │
//!                     redis
//! ```
//!
//! - [`pods`]: the [`pods::World`] of a test and its pods. Start reading here.
//! - [`kafka`], [`redis`]: servers that can be stopped, killed, paused and restarted; [`redis_proxy`]: a proxy between
//!   one pod and Redis.
//! - [`certificates`]: an authority of a test's own.
//! - [`wall_clock`]: a wall clock for a Redis or a pod that can step.
//! - [`events`]: numbered events and their messages by PROTOCOL 3.
//! - [`client`], [`token`]: clients that follow the protocol, and [`client::raw`] for those that don't; [`frames`] for
//!   those that only count.
//! - [`browser`]: a page in a real browser.
//! - [`http`], [`metrics`]: the operators' endpoints, parsed strictly.
//! - [`chaos`]: a run with every kind of fault, and a check of what clients received.
//! - [`fleet`]: many clients under load, their cost compared with bare loops that do the least possible, and the search
//!   for the highest load that is sustained.
//! - [`storm`]: all clients of a pod reconnect at once.
//! - [`hangs`]: a broker hangs or is killed and returns, many times, on a busy machine.
//! - [`process`]: child processes that never outlive the tests; waiting with a time limit. [`confinement`]: limits of
//!   such a process, and system calls that are refused to it.
//!
//! Tests share nothing and leave nothing behind. A failure panics with a sentence, a missing tool with a line that says
//! how to install it, and a failed test prints the logs of its processes.

pub mod browser;
pub mod certificates;
pub mod chaos;
pub mod client;
pub mod confinement;
pub mod events;
pub mod fleet;
pub mod frames;
pub mod hangs;
pub mod http;
pub mod kafka;
pub mod metrics;
pub mod pods;
pub mod process;
pub mod redis;
pub mod redis_proxy;
pub mod storm;
pub mod token;
pub mod wall_clock;
