//! How long this pod has been in contact with Redis, and what follows. Time during which no pod reached Redis counts
//! against no lease, and a pod can only learn of it from its own calls.

use std::time::{Duration, Instant};

use crate::limits::VIEW_REFRESH_WAIT_MAX;

/// The longest time between two calls, which renew the lease and read the slots; covers lost announcements.
const POLL_MAX: Duration = Duration::from_secs(1);

/// The time limit of a call. A hung Redis shows after this plus one poll, and a redirect that waits for a refresh then
/// continues.
const CALL_MAX: Duration = VIEW_REFRESH_WAIT_MAX;

/// The pause after a first failed try; it doubles up to the time of a poll.
const RETRY_MIN: Duration = Duration::from_millis(100);

/// The times that follow from a lease.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTimes {
    /// `LEASE_TTL_MS`.
    pub lease: Duration,
    /// Between the beginnings of two calls, and between two tries while Redis is away. So after an outage everyone has
    /// called well within a lease.
    pub poll: Duration,
    /// For one call.
    pub call: Duration,
    /// Two successful calls at most this far apart count as uninterrupted contact, even if each took its full time. A
    /// pod that renewed just before such a gap still has a valid lease after it.
    pub gap: Duration,
}

impl LeaseTimes {
    /// The times for a lease.
    #[must_use]
    pub fn of(lease: Duration) -> Self {
        Self { lease, poll: (lease / 5).min(POLL_MAX), call: (lease * 2 / 5).min(CALL_MAX), gap: lease / 2 }
    }

    /// After an outage, how long a pod that had no slot leaves those who had one the time to take theirs again: each of
    /// them has called again by then.
    fn settle(&self) -> Duration {
        self.poll + self.call
    }
}

/// Whether Redis is reached.
///
/// ```text
/// Never --success--> Unbroken <--success-- Broken
///   |                 |    ^                 ^
///   '-----failure-----|----|-----------------|
///                     '----|-----failure-----'
///                          '- success after a gap, and a step of Redis' clock, begin anew
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HealthState {
    Never,
    Broken { failures: u32 },
    Unbroken { since: Instant, last: Instant, after_outage: bool },
}

/// This pod's contact with Redis.
#[derive(Debug, Clone)]
pub struct RedisHealth {
    times: LeaseTimes,
    state: HealthState,
}

impl RedisHealth {
    /// Before the first try.
    #[must_use]
    pub fn new(times: LeaseTimes) -> Self {
        Self { times, state: HealthState::Never }
    }

    /// A try that began at `began` has been answered at `now`.
    pub fn handle_success(&mut self, began: Instant, now: Instant) {
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

    /// Redis' clock has stepped at `now`. Leases that ran out by that may be renewed before anyone judges, as after an
    /// outage; but it is reached.
    pub fn handle_step(&mut self, now: Instant) {
        self.state = HealthState::Unbroken { since: now, last: now, after_outage: true };
    }

    /// A try has failed, or came so late that it did nothing.
    pub fn handle_failure(&mut self) {
        let failures = if let HealthState::Broken { failures } = self.state { failures } else { 0 };
        self.state = HealthState::Broken { failures: failures.saturating_add(1) };
    }

    /// Whether the last try reached Redis.
    #[must_use]
    pub fn is_redis_up(&self) -> bool {
        matches!(self.state, HealthState::Unbroken { .. })
    }

    /// Whether Redis has been reached from the first try on.
    #[must_use]
    pub fn has_seen_no_outage(&self) -> bool {
        matches!(self.state, HealthState::Unbroken { after_outage: false, .. })
    }

    /// Whether a call at `now` may remove expired leases: contact has lasted for a whole lease, so every live pod had
    /// time to renew. A new pod without failures may do so with its second call; the first might arrive late without
    /// Redis noticing.
    #[must_use]
    pub fn may_expire_leases(&self, now: Instant) -> bool {
        match self.state {
            HealthState::Never | HealthState::Broken { .. } => false,
            HealthState::Unbroken { since, last, after_outage } => {
                now.saturating_duration_since(last) <= self.times.gap
                    && (!after_outage || now.saturating_duration_since(since) >= self.times.lease)
            }
        }
    }

    /// Whether those who had a slot before an outage have had the time to take it again, as far as is known: before the
    /// first answer, nothing is.
    #[must_use]
    pub fn has_settled(&self, now: Instant) -> bool {
        match self.state {
            HealthState::Never | HealthState::Broken { .. } => false,
            HealthState::Unbroken { since, after_outage, .. } => {
                !after_outage || now.saturating_duration_since(since) >= self.times.settle()
            }
        }
    }

    /// When to try next, after a try that began at `began` and ended at `now`. An answer that took long does not put
    /// the next call off: it would be late for a lease, and a gap to who judges.
    #[must_use]
    pub fn next_attempt(&self, began: Instant, now: Instant) -> Instant {
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

const _: () = assert!(CALL_MAX.as_millis() + POLL_MAX.as_millis() < 15_000, "a hanging Redis shows within 15 s");
const _: () = assert!(POLL_MAX.as_millis() < 5_000, "a stopped Redis shows within 5 s");

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
            assert!(times.settle() < lease, "and after an outage everyone has called within a lease");
        }
    }

    #[test]
    fn a_new_pod_that_met_no_failure_judges_and_claims_with_its_second_call() {
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
    fn after_an_outage_nobody_is_judged_for_a_whole_lease() {
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
    fn a_pod_that_was_paused_is_as_one_after_an_outage() {
        let (mut redis_health, start) = redis_health();
        redis_health.handle_success(start, start);
        let resumed = start + Duration::from_secs(30);
        assert!(!redis_health.may_expire_leases(resumed), "what it knows is old");
        redis_health.handle_success(resumed, resumed);
        assert!(!redis_health.may_expire_leases(resumed) && !redis_health.has_settled(resumed));
        assert!(redis_health.is_redis_up());
    }

    #[test]
    fn after_a_step_of_redis_clock_nobody_is_judged_for_a_whole_lease_and_it_is_reached() {
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
    fn a_first_answer_that_took_long_tells_of_an_outage() {
        let (mut redis_health, start) = redis_health();
        redis_health.handle_success(start, start + LEASE);
        assert!(!redis_health.may_expire_leases(start + LEASE));
    }

    #[test]
    fn a_hiccup_is_no_outage() {
        let (mut redis_health, start) = redis_health();
        redis_health.handle_success(start, start);
        redis_health.handle_success(start + ms(4_000), start + ms(5_000));
        assert!(redis_health.may_expire_leases(start + ms(5_000)));
    }

    #[test]
    fn tries_follow_each_other_more_and_more_slowly_up_to_once_a_second() {
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
    fn with_the_shortest_lease_an_outage_leaves_everyone_the_time_to_call_before_anyone_judges() {
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
