//! Applies time to connections in one periodic pass instead of a timer each: heartbeats, heartbeat timeouts, stalls and
//! expired tokens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{CloseState, Connection, Pass, Socket};
use super::state::ShardState;
use crate::clock::{Moment, Now};
use crate::config::ShardConfig;
use crate::limits::VISITS_A_SEND;
use crate::protocol::auth::RevocationSet;
use crate::protocol::close::CloseReason;

/// A pass later than this means that the thread was paused; sockets are then read before heartbeat timeouts apply.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs the passes over a shard's connections.
#[derive(Debug)]
pub(super) struct Sweeper {
    every: Duration,
    began: Instant,
    /// Number of connections that the pass under way has not visited.
    left: Option<usize>,
    /// Heartbeat timeouts apply from this time on.
    judge_from: Instant,
    /// What was revoked when the pass under way began; `None` if that did not change since the last one.
    revoked: Option<Arc<RevocationSet>>,
    /// What was revoked when the last pass began.
    known: Arc<RevocationSet>,
}

impl Sweeper {
    pub(super) fn new(config: &ShardConfig, now: Instant) -> Self {
        // A pass each tenth of the shortest limit: none is applied later than that.
        let shortest = config.heartbeat.min(config.stall_timeout);
        let every = (shortest / 10).clamp(Duration::from_millis(10), Duration::from_secs(1));
        Self { every, began: now, left: None, judge_from: now, revoked: None, known: Arc::default() }
    }

    /// When the next pass is to begin.
    pub(super) fn next(&self) -> Instant {
        self.began + self.every
    }

    /// Begins a pass anew if other tokens are revoked than before: their connections are closed.
    pub(super) fn judge_by(&mut self, revocations: &Arc<RevocationSet>, connections: usize) {
        if !Arc::ptr_eq(&self.known, revocations) {
            self.known = Arc::clone(revocations);
            self.revoked = Some(Arc::clone(revocations));
            self.left = Some(connections);
        }
    }

    /// Begins a pass if it is time, and continues it for about `budget` sends: a visit without one costs a part of it.
    pub(super) fn sweep<S: Socket>(&mut self, state: &mut ShardState<S>, budget: usize, now: Now) -> Pass {
        if self.left.is_none() {
            if now.instant < self.next() {
                return Pass::Done;
            }
            if now.instant > self.next() + PAUSE {
                self.judge_from = now.instant + PAUSE;
            }
            self.began = now.instant;
            self.left = Some(state.connections.len());
        }
        let (judge_silence, revoked) = (now.instant >= self.judge_from, self.revoked.as_deref());
        let mut visits = budget.saturating_mul(VISITS_A_SEND);
        let mut left = self.left.take().unwrap_or(0).min(state.connections.len());
        while left > 0 {
            if visits == 0 {
                self.left = Some(left);
                return Pass::More;
            }
            left -= 1;
            let key = state.connections.keys()[left];
            let connection = &state.connections[key];
            let action = if connection.blocked_since.is_some() && connection.is_live() && state.is_overtaken(key) {
                SweepAction::Close(CloseReason::TooSlow)
            } else {
                judge(connection, &state.config, judge_silence, revoked, now)
            };
            match action {
                SweepAction::Keep => {
                    visits -= 1;
                    continue;
                }
                SweepAction::Heartbeat => {
                    let connection = &mut state.connections[key];
                    connection.control_due.heartbeat = true;
                    connection.pinged_at = connection.life(now.instant);
                    state.flush(key, now);
                }
                SweepAction::TellExpiry => {
                    state.connections[key].tell_expiry();
                    state.flush(key, now);
                }
                SweepAction::Close(reason) => state.close(key, reason, None, now),
                SweepAction::Abort => {
                    let connection = &mut state.connections[key];
                    if let CloseState::Closing(pending_close) = &connection.end {
                        connection.abort(pending_close.reason);
                    }
                }
            }
            visits = visits.saturating_sub(VISITS_A_SEND);
        }
        self.revoked = None;
        Pass::Done
    }
}

/// What the sweep does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SweepAction {
    Keep,
    Heartbeat,
    /// Its token expires soon.
    TellExpiry,
    Close(CloseReason),
    /// Its close frame was not accepted in time.
    Abort,
}

/// Applies the limits to one connection.
fn judge<S>(
    connection: &Connection<S>,
    config: &ShardConfig,
    judge_silence: bool,
    revoked: Option<&RevocationSet>,
    now: Now,
) -> SweepAction {
    let since = |then: Moment| now.instant.saturating_duration_since(then.instant());
    match &connection.end {
        CloseState::Closed { .. } => return SweepAction::Keep,
        CloseState::Closing(pending_close)
            if connection.is_abort_due(pending_close, config.stall_timeout, now.instant) =>
        {
            return SweepAction::Abort;
        }
        CloseState::Closing(_) => return SweepAction::Keep,
        CloseState::Live => {}
    }
    let client = &connection.client;
    if revoked.is_some_and(|set| set.covers(client.user(), client.issued(), client.token_id(), now.unix)) {
        return SweepAction::Close(CloseReason::Revoked);
    }
    if judge_silence && connection.since(connection.heard_at, now.instant) >= config.silence {
        return SweepAction::Close(CloseReason::Silent);
    }
    if connection.token_expires_at.is_some_and(|ends| now.instant >= ends.instant()) {
        return SweepAction::Close(CloseReason::TokenExpired);
    }
    if connection.is_expiry_due(now.instant) {
        return SweepAction::TellExpiry;
    }
    if connection.blocked_since.is_some_and(|blocked| since(blocked) >= config.stall_timeout) {
        return SweepAction::Close(CloseReason::TooSlow);
    }
    if connection.since(connection.pinged_at, now.instant) >= config.heartbeat {
        return SweepAction::Heartbeat;
    }
    SweepAction::Keep
}
