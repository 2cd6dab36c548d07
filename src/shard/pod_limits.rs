//! What the shards of a pod share: how many connections are open, and how fast they may come. Counters without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::config::ShardConfig;

/// A pod's bounds on connections.
#[derive(Debug)]
pub struct PodLimits {
    open: AtomicU64,
    open_max: u64,
    start: Instant,
    /// Nanoseconds between two connections at the rate that is allowed.
    interval_ns: u64,
    /// When the next connection would come if all came evenly, in nanoseconds since `start` (the generic cell rate
    /// algorithm, ITU-T I.371): one word holds the bucket and its clock.
    next_ns: AtomicU64,
}

/// A connection's place among those that a pod may have. Dropping it gives the place back.
#[derive(Debug)]
pub struct Place(Arc<PodLimits>);

impl PodLimits {
    /// The bounds of `MAX_CONNECTIONS` and `ACCEPTS_PER_SECOND`, the latter with a burst of as many.
    #[must_use]
    pub fn new(config: &ShardConfig) -> Self {
        Self {
            open: AtomicU64::new(0),
            open_max: config.connections_max,
            start: Instant::now(),
            interval_ns: 1_000_000_000 / u64::from(config.accepts_per_second.max(1)),
            next_ns: AtomicU64::new(0),
        }
    }

    /// A place for one more connection at `now`; `None` where the pod is full, or they come too fast.
    #[must_use]
    pub fn enter(self: &Arc<Self>, now: Instant) -> Option<Place> {
        let entered = self
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < self.open_max).then_some(open + 1));
        entered.ok()?;
        let place = Place(Arc::clone(self));
        self.take_token(now).then_some(place)
    }

    fn take_token(&self, now: Instant) -> bool {
        const BURST_NS: u64 = 1_000_000_000;
        let now_ns = u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX);
        self.next_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next_ns| {
                let next_ns = next_ns.max(now_ns).saturating_add(self.interval_ns);
                (next_ns - now_ns <= BURST_NS).then_some(next_ns)
            })
            .is_ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
