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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn limits(open_max: u64, accepts_per_second: u32) -> Arc<PodLimits> {
        let interval_ns = 1_000_000_000 / u64::from(accepts_per_second);
        Arc::new(PodLimits {
            open: AtomicU64::new(0),
            open_max,
            start: Instant::now(),
            interval_ns,
            next_ns: AtomicU64::new(0),
        })
    }

    #[test]
    fn a_place_that_is_given_back_is_there_for_the_next() {
        let pod = limits(2, 1000);
        let now = pod.start;
        let first = pod.enter(now);
        let second = pod.enter(now);
        assert!(first.is_some() && second.is_some());
        assert!(pod.enter(now).is_none());
        drop(first);
        assert!(pod.enter(now).is_some());
    }

    #[test]
    fn a_burst_of_a_second_is_let_in_and_then_the_rate() {
        let pod = limits(u64::MAX, 100);
        let entered = |at: Duration| (0..1000).filter(|_| pod.enter(pod.start + at).is_some()).count();
        assert_eq!(entered(Duration::ZERO), 100);
        assert_eq!(entered(Duration::from_millis(500)), 50);
        assert_eq!(entered(Duration::from_millis(505)), 0);
        assert_eq!(entered(Duration::from_secs(60)), 100, "a long rest earns no more than the burst");
        assert_eq!(pod.open.load(Ordering::Relaxed), 0, "who is refused takes no place");
    }
}
