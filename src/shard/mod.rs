//! A shard: one pinned thread that alone owns its connections, its history and its counters.
//!
//! Rules, tested with scripted sockets and with time as an argument:
//! - [`state`]: the connections with their subscriptions, and the work of a turn for them;
//! - [`connections`]: all connections, the subscribers of each assessment, and the queue for the next turn;
//! - [`connection`]: one connection: its position, the control messages due to it, its end;
//! - [`client_identity`]: whose it is, from where, and by which token;
//! - [`refresh`]: a new token on an open connection;
//! - [`resume`]: where a client's stream starts, live or at its cursor;
//! - [`loss_notices`]: resets for clients that lack events which they can't be sent;
//! - [`outbound`]: what is due to a socket, in one write, and how far the write got;
//! - [`sweep`]: heartbeats, heartbeat timeouts, stalls and expired tokens, by passes over all connections;
//! - [`drain`]: the clients of a pod that stops, closed evenly;
//! - [`handover`]: redirects of clients whose assessment moved to another pod;
//! - [`age_limit`]: the end of connections that reach their maximum age;
//! - [`view_gate`]: how fresh the view has to be before a redirect;
//! - [`recent_redirects`]: clients that were redirected moments ago, and may return;
//! - [`admission`]: the answer to a client that asks to be served;
//! - [`redirect`]: the pod that is to serve a client, if it is another;
//! - [`findings_log`]: when findings about records are logged;
//! - [`operator_log`]: the lines that operators read;
//! - [`operator_requests`]: connections listed and closed for operators;
//! - [`pod_limits`]: the limits on connections, which the shards of a pod share;
//! - [`handshakes`]: the table of handshakes, and which makes room at the limit.
//!
//! Edges, from the bottom up: `executor.rs` (runs the tasks, on one of two engines), `reactor.rs` (readiness of
//! sockets), `writer.rs` (a connection's writes), `context.rs` (what tasks share), `final_response.rs` (refusals and the end of a socket),
//! `client_task.rs` (a client that is served), `handshake.rs` (its request before that), `accept.rs` (new sockets),
//! `event_loop.rs` (the turns).

mod accept;
mod admission;
mod age_limit;
mod client_identity;
mod client_task;
mod connection;
mod connections;
mod context;
mod drain;
mod event_loop;
mod executor;
mod final_response;
mod findings_log;
mod handover;
mod handshake;
mod handshakes;
mod loss_notices;
mod metrics;
mod operator_log;
mod operator_requests;
mod outbound;
pub(crate) mod pod_limits;
mod reactor;
mod recent_redirects;
pub(crate) mod redirect;
mod refresh;
mod resume;
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

pub(crate) use self::metrics::Metrics;
pub(crate) use self::pod_limits::PodLimits;
use crate::config::{AdmissionConfig, DrainConfig, Engine, ShardConfig};
use crate::exchange::{
    HttpSender, PublishedPodState, RefreshRequest, ShardHandle, ShardInbox, ShardStatus, TokenChecks,
};
use crate::ids::{ConnectionIds, NodeId, ShardIndex};
use crate::protocol::{auth, head};

/// Everything that a shard starts with.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Number of the shard within its pod.
    pub(crate) index: ShardIndex,
    /// The core that its thread is pinned to, if any.
    pub(crate) core: Option<usize>,
    /// What runs its tasks.
    pub(crate) engine: Engine,
    /// Settings of connections and history.
    pub(crate) config: ShardConfig,
    /// Settings of accepting and of handshakes.
    pub(crate) admission: AdmissionConfig,
    /// Settings of the drain.
    pub(crate) drain: DrainConfig,
    /// Settings of token verification.
    pub(crate) auth: auth::AuthConfig,
    /// The key sets of identity providers.
    pub(crate) keys: Arc<auth::KeySets>,
    /// Where tokens are checked by these.
    pub(crate) token_checks: TokenChecks,
    /// What a request head must satisfy.
    pub(crate) head_rules: head::Rules,
    /// Name of this pod.
    pub(crate) node: NodeId,
    /// The ids of the pod's connections.
    pub(crate) connection_ids: ConnectionIds,
    /// The shard's listener on the pod's port (SO_REUSEPORT).
    pub(crate) listener: std::net::TcpListener,
    /// Receives batches and sockets from other threads.
    pub(crate) inbox: ShardInbox,
    /// The handles of all shards, by index.
    pub(crate) shard_handles: Vec<ShardHandle>,
    /// Sends operators' requests to the control thread.
    pub(crate) http: HttpSender,
    /// The pod's newest state.
    pub(crate) pod_state: PublishedPodState,
    /// Requests a refresh of the view.
    pub(crate) refresh: RefreshRequest,
    /// Status that the shard publishes.
    pub(crate) status: Arc<ShardStatus>,
    /// The pod's limits on connections.
    pub(crate) pod: Arc<PodLimits>,
    /// The pod's metrics.
    pub(crate) metrics: Metrics,
    /// Ingest's counter of malformed records: some are found when a frame is made.
    pub(crate) malformed: Counter,
}

/// Starts a shard's thread. It ends when the pod state says so.
///
/// # Errors
/// If the executor can't be made. The gateway chooses an engine that the system allows.
pub(crate) fn spawn(parts: Parts) -> std::io::Result<JoinHandle<()>> {
    event_loop::spawn(parts)
}
