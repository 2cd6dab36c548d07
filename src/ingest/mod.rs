//! From Kafka to the shards: reads every partition of every topic that a route matches, and hands each record to the
//! shard of its assessment, in batches. It owns where reading starts and how far it is; what a shard makes of a record
//! is the shard's part.
//!
//! ```text
//!   watcher thread: what is there, does it answer, where does it end
//!      | found, ends (bounded, one each)      topics + offsets -> startup -> where to start, when the history is filled
//!      v
//!   reader, pinned thread: consumer -> batcher -> a batch for each shard -> its door
//!                                   \-> positions -> lag
//! ```
//!
//! - Rules: [`batcher`], [`positions`], [`startup`], [`lag`], [`reachability`], [`complaints`].
//! - Edges: [`kafka`] (librdkafka), and the two threads' loops, [`reader`] and [`watcher`].
//! - [`metrics`]: what is counted.

mod batcher;
mod complaints;
mod kafka;
mod lag;
mod metrics;
mod positions;
mod reachability;
mod reader;
mod startup;
mod watcher;

use std::io;
use std::mem;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::bounded;
use tracing::{info, warn};

pub use kafka::InvalidProperties;
pub use metrics::{Metrics, Skipped};

use crate::config::KafkaConfig;
use crate::exchange::{IngestStatus, PublishedStanding, ShardDoor};
use crate::routing::table::Table;

use kafka::{Cluster, Consumer};
use reader::{Desk, Reader};

/// What ingest is built of.
pub struct Parts {
    /// Where Kafka is, and how it is read.
    pub config: KafkaConfig,
    /// Which topics are read.
    pub routes: Table,
    /// The shards' doors, by index.
    pub shards: Vec<ShardDoor>,
    /// Which assessments are this pod's, for the counts, and when all is over.
    pub standing: PublishedStanding,
    /// Whether this pod serves every assessment (`PLACEMENT` is `any`).
    pub place_anywhere: bool,
    /// Where ingest shows how it is.
    pub status: Arc<IngestStatus>,
    /// Where it counts.
    pub metrics: Metrics,
    /// The core to be pinned to, with all of librdkafka's threads.
    pub core: Option<usize>,
}

/// Why ingest can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operator's properties.
    #[error(transparent)]
    Properties(#[from] InvalidProperties),
    /// The system gives no thread.
    #[error("can't start ingest's threads: {0}")]
    Thread(#[from] io::Error),
}

/// Starts ingest. Its thread ends soon after the standing says that all is over. A broker that can't be reached is no
/// error: ingest tries on, and its status tells.
///
/// # Errors
/// Where librdkafka does not take the properties, or the system gives no thread.
pub fn spawn(parts: Parts) -> Result<JoinHandle<()>, StartError> {
    let (started_in, started) = bounded(1);
    let thread = thread::Builder::new().name("ingest".into()).spawn(move || {
        let reader = start(parts);
        let (reader, outcome) = match reader {
            Ok(reader) => (Some(reader), Ok(())),
            Err(error) => (None, Err(error)),
        };
        // Whoever waits for it may have gone; then the standing will say that all is over.
        let _ = started_in.send(outcome);
        if let Some(reader) = reader {
            reader.run();
        }
    })?;
    match started.recv() {
        Ok(outcome) => outcome.map(|()| thread),
        Err(_) => Err(io::Error::other("the thread ended at its start").into()),
    }
}

/// On the thread itself: pinned first, since librdkafka's threads inherit it.
fn start(parts: Parts) -> Result<Reader, StartError> {
    if let Some(core) = parts.core {
        pin(core);
    }
    let consumer = Consumer::new(&parts.config)?;
    let cluster = Cluster::new(&parts.config)?;
    info!(brokers = %parts.config.brokers, routes = parts.routes.routes.len(), core = parts.core, "reading Kafka");
    let settings = watcher::Settings {
        routes: parts.routes.clone(),
        history: parts.config.history,
        refresh: parts.config.topic_refresh,
        status: Arc::clone(&parts.status),
    };
    let watcher = watcher::start(cluster, settings)?;
    Ok(Reader { consumer, watcher, desk: Desk::new(parts, Instant::now()) })
}

fn pin(core: usize) {
    // SAFETY: the set is a plain value, zeroed; `CPU_SET` checks nothing, so the number is checked before.
    let outcome = unsafe {
        let mut cores: libc::cpu_set_t = mem::zeroed();
        if core >= 8 * mem::size_of::<libc::cpu_set_t>() {
            return warn!(core, "no such core to be pinned to");
        }
        libc::CPU_SET(core, &mut cores);
        libc::sched_setaffinity(0, mem::size_of::<libc::cpu_set_t>(), &raw const cores)
    };
    if outcome != 0 {
        warn!(core, error = %io::Error::last_os_error(), "can't be pinned; going on");
    }
}
