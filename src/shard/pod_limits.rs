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
    /// Clients with a good token.
    accepts: Rate,
    /// Clients without one. Their rate is their own: it takes nothing from those who may come in.
    refusals: Rate,
}

/// A bucket of a second's depth (the generic cell rate algorithm, ITU-T I.371): one word holds its level and its clock.
#[derive(Debug)]
struct Rate {
    /// Nanoseconds between two tokens.
    interval_ns: u64,
    /// When the next token would be taken if all were taken evenly, in nanoseconds since the pod's start.
    next_ns: AtomicU64,
}

impl Rate {
    fn new(per_second: u32) -> Self {
        Self { interval_ns: 1_000_000_000 / u64::from(per_second.max(1)), next_ns: AtomicU64::new(0) }
    }

    fn take(&self, now_ns: u64) -> bool {
        const BURST_NS: u64 = 1_000_000_000;
        self.next_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next_ns| {
                let next_ns = next_ns.max(now_ns).saturating_add(self.interval_ns);
                (next_ns - now_ns <= BURST_NS).then_some(next_ns)
            })
            .is_ok()
    }
}

/// A connection's place among those that a pod may have. Dropping it gives the place back.
#[derive(Debug)]
pub struct Place(Arc<PodLimits>);

impl PodLimits {
    /// The bounds of `MAX_CONNECTIONS` and `ACCEPTS_PER_SECOND`, the latter with a burst of as many, and once more for
    /// clients without a good token.
    #[must_use]
    pub fn new(config: &ShardConfig) -> Self {
        Self {
            open: AtomicU64::new(0),
            open_max: config.connections_max,
            start: Instant::now(),
            accepts: Rate::new(config.accepts_per_second),
            refusals: Rate::new(config.accepts_per_second),
        }
    }

    /// Whether one more client with a good token may come at `now`.
    #[must_use]
    pub fn admit(&self, now: Instant) -> bool {
        self.accepts.take(self.since_start(now))
    }

    /// Whether one more client without a good token is told so at `now`; else it gets 503.
    #[must_use]
    pub fn refuse(&self, now: Instant) -> bool {
        self.refusals.take(self.since_start(now))
    }

    /// A place for one more connection; `None` where the pod is full.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Option<Place> {
        let entered = self
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < self.open_max).then_some(open + 1));
        entered.ok().map(|_| Place(Arc::clone(self)))
    }

    fn since_start(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
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
        Arc::new(PodLimits {
            open: AtomicU64::new(0),
            open_max,
            start: Instant::now(),
            accepts: Rate::new(accepts_per_second),
            refusals: Rate::new(accepts_per_second),
        })
    }

    #[test]
    fn a_place_that_is_given_back_is_there_for_the_next() {
        let pod = limits(2, 1000);
        let first = pod.enter();
        let second = pod.enter();
        assert!(first.is_some() && second.is_some());
        assert!(pod.enter().is_none(), "who is refused takes no place");
        drop(first);
        assert!(pod.enter().is_some());
    }

    #[test]
    fn a_burst_of_a_second_is_let_in_and_then_the_rate() {
        let pod = limits(u64::MAX, 100);
        let entered = |at: Duration| (0..1000).filter(|_| pod.admit(pod.start + at)).count();
        assert_eq!(entered(Duration::ZERO), 100);
        assert_eq!(entered(Duration::from_millis(500)), 50);
        assert_eq!(entered(Duration::from_millis(505)), 0);
        assert_eq!(entered(Duration::from_secs(60)), 100, "a long rest earns no more than the burst");
    }

    #[test]
    fn clients_without_a_token_take_nothing_from_those_who_have_one() {
        let pod = limits(u64::MAX, 100);
        let refused = (0..1000).filter(|_| pod.refuse(pod.start)).count();
        assert_eq!(refused, 100);
        assert_eq!((0..1000).filter(|_| pod.admit(pod.start)).count(), 100);
    }
}
