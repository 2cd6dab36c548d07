//! How long this pod has reached Redis without a break, and what follows. Time during which no pod reached Redis counts
//! against no lease, and a pod can only learn of it from its own calls.

use std::time::{Duration, Instant};

use crate::limits::VIEW_REFRESH_WAIT_MAX;

/// The longest time between two calls, which renew the lease and read the slots; it bounds the effect of lost
/// announcements.
const POLL_MAX: Duration = Duration::from_secs(1);

/// The time limit of a call. A hung Redis is detected after this plus one poll, and a redirect that waits for a refresh
/// then continues.
const CALL_MAX: Duration = VIEW_REFRESH_WAIT_MAX;

/// The pause after the first failed attempt; it doubles up to the time of a poll.
const RETRY_MIN: Duration = Duration::from_millis(100);

/// The times that follow from a lease.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTimes {
    /// `LEASE_TTL_MS`: length of a lease.
    pub(crate) lease: Duration,
    /// Time between the starts of two calls, or of two attempts while Redis is down. So after an outage each pod has
    /// called well within a lease.
    pub(crate) poll: Duration,
    /// Time limit of a call.
    pub(crate) call: Duration,
    /// Two successful calls at most this far apart count as uninterrupted contact, even if each took its full time. A
    /// pod that renewed just before such a gap still has a valid lease after it.
    pub(crate) gap: Duration,
}

impl LeaseTimes {
    /// The times for a lease.
    #[must_use]
    pub fn of(lease: Duration) -> Self {
        Self { lease, poll: (lease / 5).min(POLL_MAX), call: (lease * 2 / 5).min(CALL_MAX), gap: lease / 2 }
    }

    /// After an outage, how long a pod without a slot leaves earlier holders the time to take theirs again: each of
    /// them has called by then.
    fn settle(&self) -> Duration {
        self.poll + self.call
    }
}

/// Contact with Redis.
///
/// ```text
/// Never --success--> Unbroken <--success-- Broken
///   |                 |    ^                 ^
///   '-----failure-----|----|-----------------|
///                     '----|-----failure-----'
///                          '- a success after a gap, and a step of Redis' clock, start over
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HealthState {
    Never,
    Broken { failures: u32 },
    Unbroken { since: Instant, last: Instant, after_outage: bool },
}

/// Tracks this pod's contact with Redis.
#[derive(Debug, Clone)]
pub(crate) struct RedisHealth {
    times: LeaseTimes,
    state: HealthState,
}

impl RedisHealth {
    /// The state before the first attempt.
    #[must_use]
    pub(crate) fn new(times: LeaseTimes) -> Self {
        Self { times, state: HealthState::Never }
    }

    /// An attempt that began at `began` has been answered at `now`.
    pub(crate) fn handle_success(&mut self, began: Instant, now: Instant) {
        let slow = now.saturating_duration_since(began) > self.times.gap;
        self.state = match self.state {
            HealthState::Unbroken { since, last, after_outage }
                if now.saturating_duration_since(last) <= self.times.gap =>
            {
                HealthState::Unbroken { since, last: now, after_outage }
            }
            HealthState::Never => HealthState::Unbroken { since: now, last: now, after_outage: slow },
            HealthState::Broken { .. } | HealthState::Unbroken { .. } => {
                HealthState::Unbroken { since: now, last: now, after_outage: true }
            }
        };
    }

    /// Redis' clock has stepped at `now`. Redis is up, but leases that ran out by the step may be renewed before any
    /// pod expires them, as after an outage.
    pub(crate) fn handle_step(&mut self, now: Instant) {
        self.state = HealthState::Unbroken { since: now, last: now, after_outage: true };
    }

    /// An attempt failed, or arrived so late that it did nothing.
    pub(crate) fn handle_failure(&mut self) {
        let failures = if let HealthState::Broken { failures } = self.state { failures } else { 0 };
        self.state = HealthState::Broken { failures: failures.saturating_add(1) };
    }

    /// Whether the last attempt reached Redis.
    #[must_use]
    pub(crate) fn is_redis_up(&self) -> bool {
        matches!(self.state, HealthState::Unbroken { .. })
    }

    /// Whether every attempt so far reached Redis without a break.
    #[must_use]
    pub(crate) fn has_seen_no_outage(&self) -> bool {
        matches!(self.state, HealthState::Unbroken { after_outage: false, .. })
    }

    /// Whether a call at `now` may remove expired leases: contact has lasted for a whole lease, so every live pod had
    /// time to renew. A new pod without failures may do so with its second call; the first might arrive late without
    /// Redis noticing.
    #[must_use]
    pub(crate) fn may_expire_leases(&self, now: Instant) -> bool {
        match self.state {
            HealthState::Never | HealthState::Broken { .. } => false,
            HealthState::Unbroken { since, last, after_outage } => {
                now.saturating_duration_since(last) <= self.times.gap
                    && (!after_outage || now.saturating_duration_since(since) >= self.times.lease)
            }
        }
    }

    /// Whether pods that held a slot before an outage have had the time to take it again. False before the first
    /// answer.
    #[must_use]
    pub(crate) fn has_settled(&self, now: Instant) -> bool {
        match self.state {
            HealthState::Never | HealthState::Broken { .. } => false,
            HealthState::Unbroken { since, after_outage, .. } => {
                !after_outage || now.saturating_duration_since(since) >= self.times.settle()
            }
        }
    }

    /// Time of the next attempt, after one that began at `began` and ended at `now`. A slow answer does not delay the
    /// next call: it would be late for the lease, and look like a gap.
    #[must_use]
    pub(crate) fn next_attempt(&self, began: Instant, now: Instant) -> Instant {
        match self.state {
            HealthState::Never => now,
            HealthState::Broken { failures } => {
                let doubled = RETRY_MIN.saturating_mul(1 << failures.saturating_sub(1).min(10));
                now + doubled.min(self.times.poll)
            }
            HealthState::Unbroken { .. } => (began + self.times.poll).max(now),
        }
    }
}

const _: () = assert!(CALL_MAX.as_millis() + POLL_MAX.as_millis() < 15_000, "a hung Redis is detected within 15 s");
const _: () = assert!(POLL_MAX.as_millis() < 5_000, "a stopped Redis is detected within 5 s");

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn redis_health() -> (RedisHealth, Instant) {
        (RedisHealth::new(LeaseTimes::of(LEASE)), Instant::now())
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_lease_outlives_the_longest_gap_that_is_no_break() {
        for lease in [1_000, 2_000, 10_000, 60_000].map(ms) {
            let times = LeaseTimes::of(lease);
            assert!(times.poll + times.gap < lease, "{lease:?}");
            assert!(times.poll * 4 <= lease, "a lease is renewed several times before it runs out");
            assert!(times.call.max(times.poll) < times.gap, "slow calls, one after another, leave no gap");
            assert!(times.settle() < lease, "after an outage each pod has called within a lease");
        }
    }

    #[test]
    fn a_new_pod_without_failures_expires_leases_and_claims_with_its_second_call() {
        let (mut redis_health, start) = redis_health();
        assert!(
            !redis_health.may_expire_leases(start) && !redis_health.has_settled(start) && !redis_health.is_redis_up()
        );
        redis_health.handle_success(start, start + ms(2));
        assert!(
            redis_health.is_redis_up()
                && redis_health.may_expire_leases(start + ms(3))
                && redis_health.has_settled(start + ms(3))
        );
    }

    #[test]
    fn after_an_outage_no_lease_is_expired_for_a_whole_lease() {
        let (mut redis_health, start) = redis_health();
        redis_health.handle_success(start, start);
        redis_health.handle_failure();
        assert!(
            !redis_health.is_redis_up() && !redis_health.may_expire_leases(start) && !redis_health.has_settled(start)
        );
        let mut now = start + Duration::from_secs(60);
        let back = now;
        while now < back + LEASE {
            redis_health.handle_success(now, now);
            assert!(redis_health.is_redis_up() && !redis_health.may_expire_leases(now));
            assert_eq!(redis_health.has_settled(now), now >= back + Duration::from_secs(3));
            now += Duration::from_secs(1);
        }
        redis_health.handle_success(now, now);
        assert!(redis_health.may_expire_leases(now));
    }

    #[test]
    fn a_pause_of_the_pod_counts_as_an_outage() {
        let (mut redis_health, start) = redis_health();
        redis_health.handle_success(start, start);
        let resumed = start + Duration::from_secs(30);
        assert!(!redis_health.may_expire_leases(resumed), "its view is old");
        redis_health.handle_success(resumed, resumed);
        assert!(!redis_health.may_expire_leases(resumed) && !redis_health.has_settled(resumed));
        assert!(redis_health.is_redis_up());
    }

    #[test]
    fn a_step_of_redis_clock_delays_expiry_for_a_whole_lease_but_is_no_outage() {
        let (mut redis_health, start) = redis_health();
        redis_health.handle_success(start, start);
        redis_health.handle_step(start);
        for second in 1..=10 {
            let now = start + Duration::from_secs(second);
            redis_health.handle_success(now, now);
            assert!(redis_health.is_redis_up());
            assert_eq!(redis_health.may_expire_leases(now), second == 10);
        }
    }

    #[test]
    fn a_slow_first_answer_counts_as_an_outage() {
        let (mut redis_health, start) = redis_health();
        redis_health.handle_success(start, start + LEASE);
        assert!(!redis_health.may_expire_leases(start + LEASE));
    }

    #[test]
    fn a_short_gap_is_no_outage() {
        let (mut redis_health, start) = redis_health();
        redis_health.handle_success(start, start);
        redis_health.handle_success(start + ms(4_000), start + ms(5_000));
        assert!(redis_health.may_expire_leases(start + ms(5_000)));
    }

    #[test]
    fn attempts_back_off_to_one_a_second() {
        let (mut redis_health, start) = redis_health();
        assert_eq!(redis_health.next_attempt(start, start), start);
        let pauses: Vec<Duration> = (0..40)
            .map(|_| {
                redis_health.handle_failure();
                redis_health.next_attempt(start, start + ms(500)) - (start + ms(500))
            })
            .collect();
        assert_eq!(pauses[..6], [100, 200, 400, 800, 1_000, 1_000].map(ms));
        assert_eq!(pauses[39], ms(1_000));
        redis_health.handle_success(start, start + ms(300));
        assert_eq!(
            redis_health.next_attempt(start, start + ms(300)),
            start + ms(1_000),
            "once a second, however long it takes"
        );
        assert_eq!(redis_health.next_attempt(start, start + ms(1_200)), start + ms(1_200));
    }

    #[test]
    fn with_the_shortest_lease_every_pod_calls_after_an_outage_before_leases_expire() {
        let times = LeaseTimes::of(ms(1_000));
        let (start, mut redis_health) = (Instant::now(), RedisHealth::new(times));
        for _ in 0..40 {
            redis_health.handle_failure();
        }
        assert!(redis_health.next_attempt(start, start) + times.call < start + times.lease);
    }

    #[test]
    fn a_redis_that_answers_just_in_time_is_contact_without_a_break() {
        for lease in [1_000, 3_000, 10_000].map(ms) {
            let times = LeaseTimes::of(lease);
            let (mut began, mut redis_health) = (Instant::now(), RedisHealth::new(times));
            let end = began + lease * 3;
            while began < end {
                let answered = began + times.call - ms(1);
                redis_health.handle_success(began, answered);
                began = redis_health.next_attempt(began, answered);
                assert!(redis_health.may_expire_leases(began), "{lease:?}");
            }
        }
    }
}
