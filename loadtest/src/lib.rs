//! What the end-to-end tests need, and later the load: a real Kafka, a real Redis, pods as processes, and clients. The
//! tests know a pod only by the contract (PROTOCOL); they lie under `tests/`, a story each.
//!
//! ```text
//! events ──> kafka ──> pods ──> client, http, metrics
//!                       │
//!                     redis
//! ```
//!
//! - [`pods`]: the [`pods::World`] of a test and its pods. Start reading here.
//! - [`kafka`], [`redis`]: what can be stopped, killed, paused and started again; [`redis_proxy`]: a pod's own way to
//!   Redis.
//! - [`wall_clock`]: a clock of a Redis' or a pod's own, which steps.
//! - [`events`]: numbered events, and what the contract makes of them.
//! - [`client`], [`token`]: clients that keep the rules, and [`client::raw`] for those that don't; [`frames`] for those
//!   that only count.
//! - [`browser`]: a page in a real browser.
//! - [`http`], [`metrics`]: what operators see, read strictly.
//! - [`chaos`]: the run in which everything fails, and the judge of what clients saw.
//! - [`fleet`]: many clients under a load, and what they cost, beside bare loops that do no more than they must; and
//!   the
//!   search for the highest load that is borne.
//! - [`storm`]: all clients of a pod come back at once.
//! - [`hangs`]: a broker hangs or dies and comes back, many times, on a busy machine.
//! - [`process`]: child processes that never outlive the tests; waiting with a deadline.
//!
//! Nothing is shared between tests, nor left behind. What fails here panics with a sentence: a missing tool fails a
//! test with one line that says how to get it, and a test that fails shows the logs of its processes.

pub mod browser;
pub mod chaos;
pub mod client;
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
