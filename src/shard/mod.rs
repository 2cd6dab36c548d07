//! shard (to come)

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use crate::config::{DrainConfig, ShardConfig};
use crate::exchange::{HttpDoor, PublishedStanding, ShardDoor, ShardInbox, ShardStatus};
use crate::ids::{NodeId, ShardIndex};
use crate::protocol::{auth, head};

/// Stand-in.
#[expect(missing_docs)]
pub struct Parts {
    pub index: ShardIndex,
    pub core: Option<usize>,
    pub config: ShardConfig,
    pub drain: DrainConfig,
    pub auth: auth::Config,
    pub head_rules: head::Rules,
    pub node: NodeId,
    pub listener: std::net::TcpListener,
    pub inbox: ShardInbox,
    pub doors: Vec<ShardDoor>,
    pub http: HttpDoor,
    pub standing: PublishedStanding,
    pub status: Arc<ShardStatus>,
    pub pod: Arc<PodLimits>,
    pub metrics: Metrics,
    pub malformed: Counter,
}

/// Stand-in.
#[derive(Debug)]
pub struct PodLimits;

impl PodLimits {
    /// Stand-in.
    #[must_use]
    pub fn new(_config: &ShardConfig) -> Self {
        Self
    }
}

/// Stand-in.
#[derive(Debug, Clone)]
pub struct Metrics;

impl Metrics {
    /// Stand-in.
    pub fn register(_registry: &mut Registry) -> Self {
        Self
    }
}

/// Stand-in: passes every request on to the control thread.
///
/// # Errors
/// Where there is no thread to be had.
pub fn spawn(parts: Parts) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(format!("shard-{}", parts.index.0)).spawn(move || {
        while !parts.standing.load().ended {
            parts.status.pulse.beat(std::time::Instant::now());
            match parts.listener.accept() {
                Ok((socket, _)) => {
                    let _ = socket.set_nonblocking(true);
                    let socket = socket.into();
                    let _ = parts.http.try_send(crate::exchange::HttpRequest { socket, read: Vec::new() });
                }
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        }
    })
}
