//! The lines that a shard logs for an operator: what happened, and which setting changes it. When a line is due is left
//! to the callers, except for refused clients ([`RefusalLog`]). At DEBUG, a connection has two lines, its opening and its
//! end, and a refusal has one; they cost nothing while that level is off.

use std::io;
use std::net::IpAddr;
use std::time::Instant;

use super::admission::Rejection;
use crate::clock::whole_ms;
use crate::exchange::ConnectionRow;
use crate::ids::AssessmentId;
use crate::limits::{ACCEPT_LOG_EVERY, BOARD_BYTES_MAX, CURSOR_CHARS_MAX, MARKETS_MAX, MESSAGE_BYTES_COMMON};
use crate::log_throttle::LogThrottle;
use crate::protocol::close::CloseReason;
use crate::protocol::head::{HttpRefusal, RequestFault, Unavailable, Upgrade};
use crate::stream::history::{FindingKind, TopicFinding};

/// A client, as far as it is known when it is refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct RefusedClient<'a> {
    address: IpAddr,
    user: Option<&'a str>,
    assessment: Option<&'a str>,
}

impl<'a> RefusedClient<'a> {
    /// One whose request is not read, or not accepted.
    pub(super) fn at(address: IpAddr) -> Self {
        Self { address, user: None, assessment: None }
    }

    /// One that asks for this; the user if its token is good.
    pub(super) fn of(upgrade: &'a Upgrade, user: Option<&'a str>) -> Self {
        let assessment = upgrade.assessment.as_ref().ok().and_then(Option::as_ref).map(AssessmentId::as_str);
        Self { address: upgrade.client, user, assessment }
    }
}

/// Logs refusals whose cause may be a setting, at a bounded rate.
#[derive(Debug)]
pub(super) struct RefusalLog {
    address: LogThrottle,
    proxy: LogThrottle,
}

impl Default for RefusalLog {
    fn default() -> Self {
        Self { address: LogThrottle::new(ACCEPT_LOG_EVERY), proxy: LogThrottle::new(ACCEPT_LOG_EVERY) }
    }
}

impl RefusalLog {
    /// Logs a refusal without an upgrade; as a warning if a setting may have caused it.
    pub(super) fn refused(&self, refusal: HttpRefusal, refused: RefusedClient<'_>, now: Instant) {
        let RefusedClient { address: client, user, assessment } = refused;
        tracing::debug!(reason = refusal.label(), why = %refusal, %client, user, assessment, "client refused");
        let (throttle, advice) = match refusal {
            HttpRefusal::Unavailable(Unavailable::Address) => (
                &self.address,
                "refused: as many connections as MAX_CONNECTIONS_PER_ADDRESS allows come from this address; if it is a \
                 proxy's, name it in TRUSTED_PROXIES",
            ),
            HttpRefusal::Malformed(RequestFault::ProxyHeader) => (
                &self.proxy,
                "refused: a trusted proxy's connection does not begin with the PROXY protocol's header; make it send \
                 one, or unset PROXY_PROTOCOL",
            ),
            HttpRefusal::Malformed(RequestFault::Forwarded) => (
                &self.proxy,
                "refused: X-Forwarded-For and Forwarded of a trusted proxy name different clients; make it set both, or \
                 remove the one that it does not set",
            ),
            _ => return,
        };
        if let Some(suppressed) = throttle.admit(now) {
            tracing::warn!(%client, suppressed, "{advice}");
        }
    }
}

/// A client is refused after its upgrade.
pub(super) fn rejected(rejection: &Rejection, rejected: RefusedClient<'_>) {
    let RefusedClient { address: client, user, assessment } = rejected;
    let (reason, why) = (rejection.reason.row().label, rejection.why());
    let peer = rejection.redirected_to().map(tracing::field::display);
    tracing::debug!(reason, why, peer, %client, user, assessment, "client refused");
}

/// A connection is open.
pub(super) fn opened(connection: &str, user: &str, assessment: Option<&AssessmentId>, client: IpAddr) {
    let assessment = assessment.map(AssessmentId::as_str);
    tracing::debug!(connection, user, assessment, %client, "connection opened");
}

/// A connection has ended; the row is of its last moment.
pub(super) fn closed(connection: &str, row: &ConnectionRow, reason: CloseReason, now: Instant) {
    let ConnectionRow { user, assessment, address: client, lag_events, acknowledged_bytes, .. } = row;
    tracing::debug!(
        connection,
        reason = reason.row().label,
        user = &**user,
        assessment = assessment.as_deref(),
        %client,
        bytes = acknowledged_bytes,
        lag_events,
        lasted_ms = whole_ms(now.saturating_duration_since(row.opened)),
        "connection closed"
    );
}

/// The listener can't accept: the system is out of descriptors or memory.
pub(super) fn accept_failed(error: &io::Error, suppressed: u64) {
    tracing::warn!(%error, suppressed, "PORT cannot accept connections; retrying");
}

/// A connection is closed because the kernel could not register its socket.
pub(super) fn registration_failed(error: &io::Error, suppressed: u64) {
    tracing::warn!(
        %error,
        suppressed,
        "connection closed: the kernel cannot watch more sockets. Raise fs.epoll.max_user_watches above the \
         connections of all processes of this user"
    );
}

/// Events of this topic do not fit into the window.
/// A finding about a topic's records.
pub(super) fn finding(finding: &TopicFinding) {
    let topic = finding.topic.as_ref().map_or("unknown", |topic| &topic.name);
    match finding.kind {
        FindingKind::TooLarge => events_too_large(topic, finding.records),
        FindingKind::Misplaced => records_misplaced(topic, finding.records),
        FindingKind::Long => messages_too_long(topic, finding.records),
    }
}

fn events_too_large(topic: &str, events: u64) {
    tracing::warn!(
        topic,
        events,
        "events too large for the window; their clients get a reset. An event and its message may each take half of a \
         shard's share of HISTORY_BYTES"
    );
}

/// Records of this topic are on other partitions than the route's partitioner puts them on.
fn records_misplaced(topic: &str, records: u64) {
    tracing::warn!(
        topic,
        records,
        "misplaced records: not on the partition of the route's partitioner, so clients of their assessment cannot \
         resume. Set the route's `partitioner` to that of the producers, or to \"none\""
    );
}

/// The market board had no room for ticks.
pub(super) fn board_full(ticks: u64) {
    tracing::warn!(
        ticks,
        "market board full; ticks not shown. It holds {MARKETS_MAX} markets and {BOARD_BYTES_MAX} bytes of ticks, or a \
         quarter of the shard's share of HISTORY_BYTES"
    );
}

/// Messages went out with a cursor that can't be resumed from.
pub(super) fn cursors_too_long(messages: u64) {
    tracing::warn!(
        messages,
        "cursors over {CURSOR_CHARS_MAX} characters; these clients cannot resume and get a reset. A cursor lists every \
         topic of an assessment, and every partition of topics whose `partitioner` is \"none\""
    );
}

/// Messages of this topic are longer than common client libraries accept.
fn messages_too_long(topic: &str, messages: u64) {
    tracing::warn!(
        topic,
        messages,
        "messages over {MESSAGE_BYTES_COMMON} bytes: a client library with a lower default limit (Python's websockets) \
         closes at each of them and again after reconnecting. A lower MAX_EVENT_BYTES counts such records as malformed"
    );
}
