//! A shard: one pinned thread that alone owns its connections, its history and its counters.
//!
//! Rules, tried with scripted sockets and plain times:
//! - [`state`]: the connections, who watches what, and what each turn does for them;
//! - [`connection`]: one connection: its position, what it is owed, how it ends;
//! - [`resume`]: how a client begins that comes back;
//! - [`outbound`]: what is due to a socket, in one write, and how far the write came;
//! - [`sweep`]: heartbeats, heartbeat timeouts, stalls and expired tokens, by passes over all connections;
//! - [`drain`]: the clients of a pod that stops, closed evenly;
//! - [`handover`]: clients whose assessment moved, sent to their new pod;
//! - [`age_limit`]: clients whose connection is as old as it may get, sent elsewhere;
//! - [`view_gate`]: how sure the view has to be for somebody to be sent away;
//! - [`sleep_watchdog`]: when the executor is woken in case that it sleeps on its work;
//! - [`recent_redirects`]: who is served that was sent away in vain;
//! - [`admission`]: the answer to a client that asks to be served;
//! - [`redirect`]: the pod that is to serve a client, if it is another;
//! - [`findings_log`]: when findings about records are logged;
//! - [`operator_log`]: the lines that operators read;
//! - [`pod_limits`]: what the shards of a pod share: its bounds on connections.
//!
//! Edges, from the bottom up: `executor.rs` (runs the tasks), `reactor.rs` (readiness of sockets), `writer.rs` (a
//! connection's writes), `context.rs` (what tasks share), `final_response.rs` (refusals and the end of a socket),
//! `client_task.rs` (a client that is served), `handshake.rs` (its request before that), `accept.rs` (new sockets),
//! `event_loop.rs` (the turns).

mod accept;
mod admission;
mod age_limit;
mod client_task;
mod connection;
mod context;
mod drain;
mod event_loop;
mod executor;
mod final_response;
mod findings_log;
mod handover;
mod handshake;
mod handshakes;
mod metrics;
mod operator_log;
mod outbound;
pub mod pod_limits;
mod reactor;
mod recent_redirects;
pub(crate) mod redirect;
mod resume;
mod sleep_watchdog;
mod state;
mod sweep;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod view_gate;
mod writer;

use std::sync::Arc;
use std::thread::JoinHandle;

use prometheus_client::metrics::counter::Counter;

pub use self::metrics::Metrics;
pub use self::pod_limits::PodLimits;
use crate::config::{AdmissionConfig, DrainConfig, ShardConfig};
use crate::exchange::{HttpSender, PublishedPodState, RefreshRequest, ShardHandle, ShardInbox, ShardStatus};
use crate::ids::{NodeId, ShardIndex};
use crate::protocol::{auth, head};

/// What a shard is made of.
#[derive(Debug)]
pub struct Parts {
    /// Which shard of the pod it is.
    pub index: ShardIndex,
    /// The core that it is pinned to.
    pub core: Option<usize>,
    /// Its settings.
    pub config: ShardConfig,
    /// How clients come in.
    pub admission: AdmissionConfig,
    /// How the pod stops.
    pub drain: DrainConfig,
    /// How tokens are checked.
    pub auth: auth::AuthConfig,
    /// How requests are judged.
    pub head_rules: head::Rules,
    /// This pod's name.
    pub node: NodeId,
    /// Its own listener on the pod's port (SO_REUSEPORT).
    pub listener: std::net::TcpListener,
    /// Its way in.
    pub inbox: ShardInbox,
    /// The ways in of all shards, by index.
    pub shard_handles: Vec<ShardHandle>,
    /// The way to the control thread, for operators' requests.
    pub http: HttpSender,
    /// Where the pod stands.
    pub pod_state: PublishedPodState,
    /// Asks for a look at Redis.
    pub refresh: RefreshRequest,
    /// What this shard shows of itself.
    pub status: Arc<ShardStatus>,
    /// The pod's bounds on connections.
    pub pod: Arc<PodLimits>,
    /// The pod's metrics.
    pub metrics: Metrics,
    /// Ingest's counter of records that can't be used: some are found out here.
    pub malformed: Counter,
}

/// Starts a shard's thread. It ends when the pod state says so.
///
/// # Errors
/// Where the executor can't be made: the gateway checks for io_uring before, and says what forbids it.
pub fn spawn(parts: Parts) -> std::io::Result<JoinHandle<()>> {
    event_loop::spawn(parts)
}
