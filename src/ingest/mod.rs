//! ingest (to come)

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use crate::config::KafkaConfig;
use crate::exchange::{IngestStatus, PublishedStanding, ShardDoor};
use crate::routing::table::Table;

/// Stand-in.
#[expect(missing_docs)]
pub struct Parts {
    pub config: KafkaConfig,
    pub routes: Table,
    pub shards: Vec<ShardDoor>,
    pub standing: PublishedStanding,
    pub place_anywhere: bool,
    pub status: Arc<IngestStatus>,
    pub metrics: Metrics,
    pub core: Option<usize>,
}

/// Stand-in.
#[derive(Debug, thiserror::Error)]
#[error("stand-in")]
pub struct Error;

/// Stand-in.
#[derive(Debug, Clone)]
pub struct Metrics;

impl Metrics {
    /// Stand-in.
    pub fn register(_registry: &mut Registry) -> Self {
        Self
    }

    /// Stand-in.
    #[must_use]
    pub fn malformed(&self) -> Counter {
        Counter::default()
    }
}

/// Stand-in.
///
/// # Errors
/// Never.
pub fn spawn(parts: Parts) -> Result<JoinHandle<()>, Error> {
    Ok(std::thread::spawn(move || {
        parts.status.connected.store(true, Ordering::Relaxed);
        parts.status.filled.store(true, Ordering::Relaxed);
        while !parts.standing.load().ended {
            parts.status.pulse.beat(std::time::Instant::now());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }))
}
