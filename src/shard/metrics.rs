//! The metrics of a pod's shards. The rules count in plain integers ([`TurnCounts`]); the loop publishes them once per
//! turn.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::ids::ShardIndex;
use crate::protocol::close::CloseReason;
use crate::protocol::head::HttpRefusal;
use crate::protocol::messages::ResetReason;
use crate::stream::history::FindingKind;

/// Counts of a shard since it last published them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct TurnCounts {
    /// Text frames sent completely.
    pub(super) sent: u64,
    /// Text messages from clients.
    pub(super) received: u64,
    /// Writes to sockets that took at least a byte.
    pub(super) writes: u64,
    /// Writes that found a socket full, in whole or in part.
    pub(super) blocked: u64,
    /// Bytes that sockets took.
    pub(super) bytes: u64,
    /// Clients that resumed from their cursor.
    pub(super) resumed: u64,
    /// Resets sent, by reason.
    pub(super) resets: [u64; ResetReason::ALL.len()],
}

impl TurnCounts {
    pub(super) fn reset(&mut self, reason: ResetReason) {
        let index = ResetReason::ALL.iter().position(|&other| other == reason);
        if let Some(count) = index.and_then(|index| self.resets.get_mut(index)) {
            *count += 1;
        }
    }
}

/// The pod's metrics of its shards.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    connections: Gauge,
    sent: Counter,
    received: Counter,
    heartbeat_failures: Counter,
    duration: Histogram,
    closed: Family<ClosedLabels, Counter>,
    turns: Counter,
    writes: Counter,
    bytes: Counter,
    blocked: Counter,
    resumed: Counter,
    resets: Family<ResetLabels, Counter>,
    refusals: Family<RefusalLabels, Counter>,
    misplaced: Counter,
    too_large: Counter,
    long: Counter,
    without_cursor: Counter,
    board_overflow: Counter,
    by_shard: Family<ShardLabels, Gauge>,
    history_bytes: Family<ShardLabels, Gauge>,
    /// Clients refused since these were last taken, by reason, for the log.
    refused: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClosedLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResetLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShardLabels {
    shard: u16,
}

/// From a second to a day, in steps of about three: connections live for minutes to days.
const DURATION_BUCKETS_S: [f64; 10] = [1.0, 5.0, 15.0, 60.0, 180.0, 600.0, 1800.0, 7200.0, 28_800.0, 86_400.0];

impl Metrics {
    fn new() -> Self {
        Self {
            connections: Gauge::default(),
            sent: Counter::default(),
            received: Counter::default(),
            heartbeat_failures: Counter::default(),
            duration: Histogram::new(DURATION_BUCKETS_S),
            closed: Family::default(),
            turns: Counter::default(),
            writes: Counter::default(),
            bytes: Counter::default(),
            blocked: Counter::default(),
            resumed: Counter::default(),
            resets: Family::default(),
            refusals: Family::default(),
            misplaced: Counter::default(),
            too_large: Counter::default(),
            long: Counter::default(),
            without_cursor: Counter::default(),
            board_overflow: Counter::default(),
            by_shard: Family::default(),
            history_bytes: Family::default(),
            refused: Arc::default(),
        }
    }

    /// The clients refused since the last call, by reason.
    pub(crate) fn take_refused(&self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn count_refused(&self, reason: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    /// Registers the metrics of all shards.
    #[must_use]
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::new();
        let m = &metrics;
        registry.register("websocket_connections_total", "Open connections", m.connections.clone());
        registry.register("websocket_messages_sent", "Text frames sent completely", m.sent.clone());
        registry.register("websocket_messages_received", "Text messages received", m.received.clone());
        registry.register(
            "websocket_heartbeat_failures",
            "Connections closed by heartbeat timeout",
            m.heartbeat_failures.clone(),
        );
        registry.register_with_unit(
            "websocket_connection_duration",
            "Connection lifetime",
            Unit::Seconds,
            m.duration.clone(),
        );
        registry.register("shardgate_connections_closed", "Connections closed, by reason", m.closed.clone());
        registry.register("shardgate_shard_turns", "Turns of the shards' loops", m.turns.clone());
        registry.register("shardgate_socket_writes", "Writes to client sockets", m.writes.clone());
        registry.register_with_unit(
            "shardgate_socket_written",
            "Bytes written to client sockets",
            Unit::Bytes,
            m.bytes.clone(),
        );
        registry.register("shardgate_socket_blocked", "Writes that found a client socket full", m.blocked.clone());
        registry.register("shardgate_resumes", "Clients resumed from a cursor", m.resumed.clone());
        registry.register("shardgate_resets", "Resets sent, by reason", m.resets.clone());
        registry.register("shardgate_refusals", "Requests refused by HTTP, by reason", m.refusals.clone());
        registry.register(
            "shardgate_misplaced_records",
            "Records of subscribed assessments on partitions where the route's partitioner would not place them",
            m.misplaced.clone(),
        );
        registry.register(
            "shardgate_board_refused_ticks",
            "Ticks dropped because a shard's board was full; each shard counts its own",
            m.board_overflow.clone(),
        );
        registry.register(
            "shardgate_events_too_large",
            "Events not delivered because they, or their messages, exceed half of a shard's window",
            m.too_large.clone(),
        );
        registry.register(
            "shardgate_long_messages",
            "Messages that some client libraries refuse by default: they are over a mebibyte",
            m.long.clone(),
        );
        registry.register(
            "shardgate_messages_without_cursor",
            "Messages sent without a cursor, because it would be too long; their clients can't resume",
            m.without_cursor.clone(),
        );
        registry.register("shardgate_shard_connections", "Open connections by shard", m.by_shard.clone());
        registry.register_with_unit(
            "shardgate_history",
            "Memory of the history by shard",
            Unit::Bytes,
            m.history_bytes.clone(),
        );
        metrics
    }

    /// The handles of one shard, resolved once.
    #[must_use]
    pub(super) fn of_shard(&self, shard: ShardIndex) -> ShardMetrics {
        let labels = ShardLabels { shard: shard.0 };
        ShardMetrics {
            pod: self.clone(),
            connections: self.by_shard.get_or_create_owned(&labels),
            history_bytes: self.history_bytes.get_or_create_owned(&labels),
            resets: ResetReason::ALL
                .map(|reason| self.resets.get_or_create_owned(&ResetLabels { reason: reason.label() })),
            closed: CloseReason::ALL
                .map(|reason| self.closed.get_or_create_owned(&ClosedLabels { reason: reason.row().label })),
        }
    }
}

/// The metrics of one shard.
pub(super) struct ShardMetrics {
    pod: Metrics,
    connections: Gauge,
    history_bytes: Gauge,
    closed: [Counter; CloseReason::ALL.len()],
    resets: [Counter; ResetReason::ALL.len()],
}

impl ShardMetrics {
    pub(super) fn opened(&self) {
        self.pod.connections.inc();
        self.connections.inc();
    }

    pub(super) fn closed(&self, reason: CloseReason, seconds: f64) {
        self.pod.connections.dec();
        self.connections.dec();
        self.pod.duration.observe(seconds);
        if reason == CloseReason::Silent {
            self.pod.heartbeat_failures.inc();
        }
        self.count(reason);
    }

    /// A client was refused after its upgrade, with `texts` text frames.
    pub(super) fn refused(&self, reason: CloseReason, texts: u64) {
        self.pod.sent.inc_by(texts);
        self.pod.count_refused(reason.row().label);
        self.count(reason);
    }

    /// A request was refused without an upgrade.
    pub(super) fn refused_by_http(&self, refusal: HttpRefusal) {
        self.pod.count_refused(refusal.label());
        self.pod.refusals.get_or_create(&RefusalLabels { reason: refusal.label() }).inc();
    }

    fn count(&self, reason: CloseReason) {
        let index = CloseReason::ALL.iter().position(|&other| other == reason);
        if let Some(counter) = index.and_then(|index| self.closed.get(index)) {
            counter.inc();
        }
    }

    pub(super) fn finding(&self, kind: FindingKind, records: u64) {
        let counter = match kind {
            FindingKind::Misplaced => &self.pod.misplaced,
            FindingKind::TooLarge => &self.pod.too_large,
            FindingKind::Long => &self.pod.long,
        };
        counter.inc_by(records);
    }

    pub(super) fn without_cursor(&self, messages: u64) {
        self.pod.without_cursor.inc_by(messages);
    }

    pub(super) fn board_overflow(&self, ticks: u64) {
        self.pod.board_overflow.inc_by(ticks);
    }

    /// At the end of a turn.
    pub(super) fn publish(&self, counts: TurnCounts, history_bytes: usize) {
        self.pod.turns.inc();
        self.pod.sent.inc_by(counts.sent);
        self.pod.received.inc_by(counts.received);
        self.pod.writes.inc_by(counts.writes);
        self.pod.bytes.inc_by(counts.bytes);
        self.pod.blocked.inc_by(counts.blocked);
        self.pod.resumed.inc_by(counts.resumed);
        for (counter, count) in self.resets.iter().zip(counts.resets) {
            counter.inc_by(count);
        }
        self.history_bytes.set(i64::try_from(history_bytes).unwrap_or(i64::MAX));
    }
}
