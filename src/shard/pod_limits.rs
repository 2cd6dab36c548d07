//! The limits that a pod's shards share: open connections, per address and per user, and accept rates. Counters are
//! atomic; the per-address and per-user counts, if limited, are behind a lock that is taken at handshake and close.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::config::{AdmissionConfig, ShardConfig};
use crate::limits::HANDSHAKES_PER_ADDRESS_MIN;
use crate::protocol::head::Unavailable;

/// A pod's limits on connections.
#[derive(Debug)]
pub(crate) struct PodLimits {
    counts: Arc<PodCounts>,
    /// The charge of every connection, if neither addresses nor users are limited.
    anonymous: Arc<Charge>,
    start: Instant,
    /// Clients with a good token.
    accepts: RateLimiter,
    /// Clients without a good token. Limited separately, so that they take nothing from authenticated clients.
    refusals: RateLimiter,
}

/// The counts of open connections.
#[derive(Debug)]
struct PodCounts {
    open: AtomicU64,
    open_max: u64,
    of_addresses: Option<KeyedCounts<AddressKey>>,
    /// Handshakes under way, if connections per address are limited.
    handshakes: Option<KeyedCounts<AddressKey>>,
    of_users: Option<KeyedCounts<u64>>,
    /// Users are counted by a hash with a random key.
    user_hasher: RandomState,
}

/// The key of a client address: IPv4 whole, IPv6 by its /64 network, which one client owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum AddressKey {
    V4(u32),
    V6(u64),
}

impl AddressKey {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => {
                let [high @ .., _, _, _, _, _, _, _, _] = address.octets();
                Self::V6(u64::from_be_bytes(high))
            }
        }
    }
}

/// Counts by a key: at most one entry for each open connection.
#[derive(Debug)]
struct KeyedCounts<K> {
    max: u64,
    counts: Mutex<HashMap<K, u64>>,
}

impl<K: Eq + Hash> KeyedCounts<K> {
    fn new(max: u64) -> Self {
        Self { max, counts: Mutex::default() }
    }

    /// Counts one more, unless the limit is reached.
    fn acquire(&self, key: K) -> bool {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key).or_default();
        let is_free = *count < self.max;
        *count += u64::from(is_free);
        is_free
    }

    fn release(&self, key: &K) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(key);
            }
        }
    }
}

/// The address and the user that a connection is counted for.
#[derive(Debug)]
struct Charge {
    counts: Arc<PodCounts>,
    address: Option<AddressKey>,
    user: Option<u64>,
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let (Some(counts), Some(address)) = (&self.counts.of_addresses, &self.address) {
            counts.release(address);
        }
        if let (Some(counts), Some(user)) = (&self.counts.of_users, &self.user) {
            counts.release(user);
        }
    }
}

/// A permit for one open connection. Dropping it releases the permit.
#[derive(Debug)]
pub(crate) struct ConnectionPermit(Arc<Charge>);

/// A permit for one handshake of an address. Dropping it releases the permit.
#[derive(Debug)]
pub(super) struct HandshakePermit {
    counts: Arc<PodCounts>,
    address: AddressKey,
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        if let Some(handshakes) = &self.counts.handshakes {
            handshakes.release(&self.address);
        }
    }
}

/// A token bucket with a depth of one second (the generic cell rate algorithm, ITU-T I.371): one word holds level and
/// clock.
#[derive(Debug)]
struct RateLimiter {
    /// Nanoseconds between two tokens.
    interval_ns: u64,
    /// Time of the next token if all were taken evenly, in nanoseconds since the pod's start.
    next_ns: AtomicU64,
}

impl RateLimiter {
    fn new(per_second: u32) -> Self {
        Self { interval_ns: 1_000_000_000 / u64::from(per_second.max(1)), next_ns: AtomicU64::new(0) }
    }

    fn acquire(&self, now_ns: u64) -> bool {
        const BURST_NS: u64 = 1_000_000_000;
        self.next_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next_ns| {
                let next_ns = next_ns.max(now_ns).saturating_add(self.interval_ns);
                (next_ns - now_ns <= BURST_NS).then_some(next_ns)
            })
            .is_ok()
    }
}

impl PodLimits {
    /// The limits of `MAX_CONNECTIONS`, per address and per user, and of `ACCEPTS_PER_SECOND` with a burst of one second;
    /// the latter once more for clients without a good token.
    #[must_use]
    pub(crate) fn new(config: &ShardConfig, admission: &AdmissionConfig) -> Self {
        Self::with(config.connections_max, config.accepts_per_second, admission.per_address_max, admission.per_user_max)
    }

    fn with(open_max: u64, accepts_per_second: u32, per_address: Option<u64>, per_user: Option<u64>) -> Self {
        let counts = Arc::new(PodCounts {
            open: AtomicU64::new(0),
            open_max,
            of_addresses: per_address.map(KeyedCounts::new),
            handshakes: per_address.map(|max| KeyedCounts::new(max.max(HANDSHAKES_PER_ADDRESS_MIN))),
            of_users: per_user.map(KeyedCounts::new),
            user_hasher: RandomState::new(),
        });
        Self {
            anonymous: Arc::new(Charge { counts: Arc::clone(&counts), address: None, user: None }),
            counts,
            start: Instant::now(),
            accepts: RateLimiter::new(accepts_per_second),
            refusals: RateLimiter::new(accepts_per_second),
        }
    }

    /// Counts an accepted socket for its address until its handshake ends; `None` if addresses are not limited.
    ///
    /// # Errors
    /// If the address has too many handshakes under way.
    pub(super) fn acquire_handshake(&self, address: IpAddr) -> Result<Option<HandshakePermit>, Unavailable> {
        let Some(handshakes) = &self.counts.handshakes else { return Ok(None) };
        let address = AddressKey::of(address);
        let is_free = handshakes.acquire(address);
        is_free.then(|| Some(HandshakePermit { counts: Arc::clone(&self.counts), address })).ok_or(Unavailable::Address)
    }

    /// Whether one more client with a good token may connect at `now`.
    #[must_use]
    pub(crate) fn allow_accept(&self, now: Instant) -> bool {
        self.accepts.acquire(self.since_start(now))
    }

    /// Whether one more client without a good token gets an error message at `now`; else it gets 503.
    #[must_use]
    pub(crate) fn allow_refusal(&self, now: Instant) -> bool {
        self.refusals.acquire(self.since_start(now))
    }

    /// Takes a permit for one more connection of this user from this address.
    ///
    /// # Errors
    /// The limit that is reached.
    pub(crate) fn acquire_connection(&self, address: IpAddr, user: &str) -> Result<ConnectionPermit, Unavailable> {
        let charge = self.charge(address, user)?;
        let counts = &self.counts;
        let opened = counts
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < counts.open_max).then_some(open + 1));
        opened.map(|_| ConnectionPermit(charge)).map_err(|_| Unavailable::Capacity)
    }

    /// Counts a connection for its address and its user, if these are limited.
    fn charge(&self, address: IpAddr, user: &str) -> Result<Arc<Charge>, Unavailable> {
        let PodCounts { of_addresses, of_users, user_hasher, .. } = &*self.counts;
        if of_addresses.is_none() && of_users.is_none() {
            return Ok(Arc::clone(&self.anonymous));
        }
        let mut charge = Charge { counts: Arc::clone(&self.counts), address: None, user: None };
        if let Some(counts) = of_addresses {
            let key = AddressKey::of(address);
            charge.address = counts.acquire(key).then_some(key);
            charge.address.ok_or(Unavailable::Address)?;
        }
        if let Some(counts) = of_users {
            let key = user_hasher.hash_one(user);
            charge.user = counts.acquire(key).then_some(key);
            charge.user.ok_or(Unavailable::User)?;
        }
        Ok(Arc::new(charge))
    }

    fn since_start(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.counts.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_released_permit_can_be_acquired_again() {
        let pod = PodLimits::with(2, 1000, None, None);
        let first = pod.acquire_connection(HERE, "u");
        let second = pod.acquire_connection(HERE, "u");
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(pod.acquire_connection(HERE, "u").err(), Some(Unavailable::Capacity));
        drop(first);
        assert!(pod.acquire_connection(HERE, "u").is_ok());
    }

    #[test]
    fn a_burst_of_one_second_is_accepted_and_then_the_rate() {
        let pod = PodLimits::with(u64::MAX, 100, None, None);
        let accepted = |at: Duration| (0..1000).filter(|_| pod.allow_accept(pod.start + at)).count();
        assert_eq!(accepted(Duration::ZERO), 100);
        assert_eq!(accepted(Duration::from_millis(500)), 50);
        assert_eq!(accepted(Duration::from_millis(505)), 0);
        assert_eq!(accepted(Duration::from_secs(60)), 100, "a long pause allows no more than the burst");
    }

    #[test]
    fn refusals_do_not_use_up_the_accept_rate() {
        let pod = PodLimits::with(u64::MAX, 100, None, None);
        let refused = (0..1000).filter(|_| pod.allow_refusal(pod.start)).count();
        assert_eq!(refused, 100);
        assert_eq!((0..1000).filter(|_| pod.allow_accept(pod.start)).count(), 100);
    }

    #[test]
    fn permits_are_limited_per_address_and_per_user() {
        let pod = PodLimits::with(5, 1000, Some(2), Some(3));
        let first = pod.acquire_connection(ip("203.0.113.1"), "a").unwrap();
        let _second = pod.acquire_connection(ip("::ffff:203.0.113.1"), "a").unwrap();
        assert_eq!(pod.acquire_connection(ip("203.0.113.1"), "b").err(), Some(Unavailable::Address), "in either form");
        let _third = pod.acquire_connection(ip("2001:db8::1"), "a").unwrap();
        assert_eq!(pod.acquire_connection(ip("203.0.113.9"), "a").err(), Some(Unavailable::User));
        let _fourth = pod.acquire_connection(ip("2001:db8::ffff:1"), "b").unwrap();
        assert_eq!(
            pod.acquire_connection(ip("2001:db8::2"), "b").err(),
            Some(Unavailable::Address),
            "a /64 is one address"
        );
        let _fifth = pod.acquire_connection(ip("2001:db8:0:1::2"), "b").unwrap();
        assert_eq!(pod.acquire_connection(ip("203.0.113.9"), "b").err(), Some(Unavailable::Capacity));
        drop(first);
        drop(pod.acquire_connection(ip("203.0.113.1"), "b").unwrap());
        drop(pod.acquire_connection(ip("203.0.113.1"), "a").unwrap());
    }

    #[test]
    fn handshakes_are_limited_per_address() {
        let pod = PodLimits::with(5, 1000, Some(2), None);
        let arrive = |address: &str| pod.acquire_handshake(ip(address));
        let mut permits: Vec<_> = (0..HANDSHAKES_PER_ADDRESS_MIN).map(|_| arrive("203.0.113.1").unwrap()).collect();
        assert_eq!(arrive("203.0.113.1").err(), Some(Unavailable::Address));
        assert!(arrive("203.0.113.2").unwrap().is_some());
        drop(permits.pop());
        assert!(arrive("203.0.113.1").unwrap().is_some());
        assert!(PodLimits::with(5, 1000, None, None).acquire_handshake(HERE).unwrap().is_none(), "no limit");
    }

    #[test]
    fn a_refused_client_changes_no_count() {
        let pod = PodLimits::with(1, 1000, Some(1), Some(1));
        let permit = pod.acquire_connection(ip("203.0.113.1"), "a").unwrap();
        for number in 0..100 {
            assert!(pod.acquire_connection(ip("203.0.113.1"), &number.to_string()).is_err());
            assert!(pod.acquire_connection(ip(&format!("203.0.113.{}", 2 + number)), "a").is_err());
            assert!(pod.acquire_connection(ip("203.0.113.250"), "b").is_err(), "the pod is full");
        }
        let entries = |pod: &PodLimits| {
            let addresses = pod.counts.of_addresses.as_ref().unwrap().counts.lock().unwrap().len();
            (addresses, pod.counts.of_users.as_ref().unwrap().counts.lock().unwrap().len())
        };
        assert_eq!(entries(&pod), (1, 1));
        drop(permit);
        assert_eq!((entries(&pod), pod.counts.open.load(Ordering::Relaxed)), ((0, 0), 0));
    }
}
