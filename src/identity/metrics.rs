//! Metrics of key sets and of checks by them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::config::KeySetsConfig;

/// The metrics of the room.
pub(crate) struct Metrics {
    pub(super) checks: Arc<CheckCounts>,
    sets: Vec<SetMetrics>,
}

/// A set, by the issuer whose tokens it confirms.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SetLabel {
    /// Empty: anyone's.
    issuer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReadLabel {
    issuer: String,
    outcome: &'static str,
}

/// The outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum CheckOutcome {
    Granted,
    Rejected,
    /// It waits for a newer set, or is refused.
    UnknownKey,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabel {
    outcome: &'static str,
}

/// Number of checks by outcome.
#[derive(Debug)]
pub(super) struct CheckCounts([Counter; 3]);

impl CheckCounts {
    pub(super) fn add(&self, outcome: CheckOutcome) {
        self.0[outcome as usize].inc();
    }
}

/// The metrics of one set.
#[derive(Debug, Clone)]
pub(super) struct SetMetrics {
    issuer: String,
    keys: Arc<AtomicU64>,
    read: Arc<Mutex<Option<Instant>>>,
    good: Counter,
    failed: Counter,
}

impl SetMetrics {
    pub(super) fn set_keys(&self, keys: usize) {
        self.keys.store(keys as u64, Ordering::Relaxed);
    }

    pub(super) fn read_ended(&self, is_good: bool, now: Instant) {
        if is_good {
            self.good.inc();
            *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        } else {
            self.failed.inc();
        }
    }
}

impl Metrics {
    /// Registers the families.
    pub(super) fn register(registry: &mut Registry, config: &KeySetsConfig) -> Self {
        let checks: Family<CheckLabel, Counter> = Family::default();
        let counts =
            ["granted", "rejected", "unknown_key"].map(|outcome| checks.get_or_create(&CheckLabel { outcome }).clone());
        registry.register("shardgate_token_checks", "Tokens checked by a key set, by outcome", checks);
        let reads: Family<ReadLabel, Counter> = Family::default();
        let read =
            |issuer: &str, outcome| reads.get_or_create(&ReadLabel { issuer: issuer.to_owned(), outcome }).clone();
        let sets = config.sets.iter().map(|set| {
            let issuer = set.issuer.as_deref().unwrap_or_default();
            SetMetrics {
                issuer: issuer.to_owned(),
                keys: Arc::default(),
                read: Arc::default(),
                good: read(issuer, "ok"),
                failed: read(issuer, "failed"),
            }
        });
        let sets: Vec<_> = sets.collect();
        registry.register("shardgate_key_set_reads", "Reads of a key set (JWT_JWKS), by outcome", reads);
        registry.register_collector(Box::new(SetState(sets.clone())));
        Self { checks: Arc::new(CheckCounts(counts)), sets }
    }

    pub(super) fn of_set(&self, index: usize) -> SetMetrics {
        self.sets[index].clone()
    }
}

/// What a scrape tells of each set.
#[derive(Debug)]
struct SetState(Vec<SetMetrics>);

impl Collector for SetState {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let label = |set: &SetMetrics| SetLabel { issuer: set.issuer.clone() };
        let help = "Keys of a key set that can verify tokens; 0 until it was read";
        let mut keys = encoder.encode_descriptor("shardgate_key_set_keys", help, None, MetricType::Gauge)?;
        for set in &self.0 {
            let gauge = ConstGauge::new(set.keys.load(Ordering::Relaxed));
            gauge.encode(keys.encode_family(&label(set))?)?;
        }
        let help = "Time since a key set was read; absent until it was read";
        let mut age =
            encoder.encode_descriptor("shardgate_key_set_age", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for set in &self.0 {
            if let Some(read) = *set.read.lock().unwrap_or_else(PoisonError::into_inner) {
                ConstGauge::new(read.elapsed().as_secs_f64()).encode(age.encode_family(&label(set))?)?;
            }
        }
        Ok(())
    }
}
