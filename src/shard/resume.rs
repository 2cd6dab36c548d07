//! Where a client's stream starts: live, or at its cursor; and what its greeting reports. The history judges cursors.

use super::connection::{Connection, ConnectionKey, NewConnection, PartialFrame, Pass, Subscription};
use super::connections::{Connections, Visit};
use super::metrics::TurnCounts;
use crate::clock::{Now, whole_ms};
use crate::config::ShardConfig;
use crate::ids::{AssessmentId, NodeId};
use crate::limits::GROWTH_NOTICED_MAX;
use crate::protocol::messages::{self, Connected, ResetReason};
use crate::stream::batch::PartitionEnds;
use crate::stream::fault_injection::{InjectedFault, is_injected};
use crate::stream::history::{AssessmentLogKey, History, Position, PositionStatus};
use crate::stream::offsets::{CursorVerdict, LogEnds, ResumeFilter};

/// Where a connection begins.
#[derive(Debug, Default)]
pub(super) struct StartPosition {
    pub(super) position: Position,
    /// What its cursor covers beyond its position.
    pub(super) resume_filter: Option<Box<ResumeFilter>>,
    /// Whether it missed events that the window still has.
    pub(super) catching_up: bool,
    /// Whether its cursor is ahead of what is read here.
    pub(super) is_ahead: bool,
    resumed: bool,
    reset: Option<ResetReason>,
}

/// Finds where a client's stream starts. Takes `steps` at most along the window.
pub(super) fn resolve_start(
    log_key: Option<AssessmentLogKey>,
    cursor: Option<&str>,
    history: &mut History,
    steps: usize,
    counts: &mut TurnCounts,
) -> StartPosition {
    let Some(log_key) = log_key else { return StartPosition::default() };
    let live = StartPosition { position: history.end(log_key), ..StartPosition::default() };
    match cursor.map(|cursor| history.resume(log_key, cursor, steps)) {
        None => live,
        Some(Err(reason)) => {
            counts.reset(reason);
            StartPosition { reset: Some(reason), ..live }
        }
        Some(Ok((resume_filter, mut position))) => {
            counts.resumed += 1;
            let catching_up = history.locate(log_key, &mut position) != PositionStatus::Current;
            let is_ahead = !history.is_caught_up(&resume_filter);
            let keep = (catching_up || is_ahead) && !is_injected(InjectedFault::ResumeAsSuffix);
            let resume_filter = keep.then(|| Box::new(resume_filter));
            StartPosition { position, resume_filter, catching_up, is_ahead, resumed: true, reset: None }
        }
    }
}

/// The first bytes to a client: the answer to its handshake, `connected`, and `reset` if it can't continue from its
/// cursor. `text` is where the cursor is made.
pub(super) fn greeting<S>(
    new_connection: &mut NewConnection<S>,
    (log_key, start): (Option<AssessmentLogKey>, &mut StartPosition),
    history: &mut History,
    (text, steps): (&mut Vec<u8>, &mut usize),
    (node, config): (&NodeId, &ShardConfig),
    now: Now,
) -> PartialFrame {
    text.clear();
    if let Some(log_key) = log_key {
        history.write_cursor(log_key, start.position, start.resume_filter.as_deref_mut(), steps, text);
    }
    let cursor = std::str::from_utf8(text).ok().filter(|cursor| !cursor.is_empty());
    let mut greeting = std::mem::take(&mut new_connection.accept);
    messages::connected(
        &mut greeting,
        &Connected {
            connection_id: &new_connection.id,
            user_id: new_connection.client.user(),
            timestamp: now.unix,
            node: &node.0,
            assessment_id: new_connection.assessment.as_ref().map(AssessmentId::as_str),
            heartbeat_interval_ms: whole_ms(config.heartbeat),
            token_expires_at: new_connection.client.token_expires(),
            resumed: start.resumed,
            cursor,
        },
    );
    if let Some(reason) = start.reset {
        messages::reset(&mut greeting, reason, cursor);
    }
    PartialFrame::bytes(greeting.into(), 1 + u64::from(start.reset.is_some()))
}

/// Up to this many connections are kept without checking whether they still exist.
const AHEAD_KEPT: usize = 64;

/// Connections whose cursor was ahead of this pod, or of a newer log. Either this pod is behind the one that made the
/// cursor, or the cursor lies past the end of the log and is invalid. Passes over them judge them again; they go
/// backwards, so that a connection that is removed makes them skip none.
#[derive(Debug, Default)]
pub(super) struct AheadCursors {
    pub(super) keys: Vec<ConnectionKey>,
    /// How many the pass under way has yet to judge.
    left: usize,
    /// By which ends it judges, besides what is known of the logs. Ends that arrive during a pass are dropped: the next
    /// ones are asked for while a cursor is ahead.
    ends: Option<LogEnds>,
}

impl AheadCursors {
    /// Adds a connection. If Kafka reports no ends, closed connections are removed now and then: the list holds at most
    /// twice the open connections, or a few.
    pub(super) fn track<S>(&mut self, key: ConnectionKey, connections: &Connections<S>) {
        if self.keys.len() >= 2 * connections.len().max(AHEAD_KEPT) {
            self.keys.retain(|key| connections.contains_key(*key));
            (self.left, self.ends) = (self.keys.len(), None);
        }
        self.keys.push(key);
    }

    /// Whether the ends of the logs would decide about a client's cursor.
    pub(super) fn needs_ends(&self) -> bool {
        !self.keys.is_empty()
    }

    /// More is known of the logs, or where some of them end: all are judged again.
    pub(super) fn restart(&mut self, logs_changed: bool, ends: Option<&PartitionEnds>, history: &History) {
        if logs_changed || ends.is_some() && self.left == 0 {
            let ends = ends.filter(|_| !self.keys.is_empty()).map(|ends| history.index_ends(ends));
            (self.left, self.ends) = (self.keys.len(), ends);
        }
    }

    /// Continues the pass, for about `budget` sends.
    pub(super) fn recheck<S>(
        &mut self,
        budget: usize,
        config: &ShardConfig,
        (connections, history): (&mut Connections<S>, &History),
        counts: &mut TurnCounts,
    ) -> Pass {
        let Visit { slots, due_queue, .. } = connections.visit_all();
        let topics_rest = config.history + GROWTH_NOTICED_MAX;
        for _ in 0..budget {
            let Some(at) = self.left.min(self.keys.len()).checked_sub(1) else { return Pass::Done };
            self.left = at;
            let key = self.keys[at];
            let connection = slots.get_mut(key).filter(|connection| connection.is_live());
            let Some(connection) = connection.filter(|connection| connection.resume_filter.is_some()) else {
                self.keys.swap_remove(at);
                continue;
            };
            // Ends that were asked for before the client came prove nothing about its cursor.
            let opened = connection.opened.instant();
            let ends = self.ends.as_ref().filter(|ends| ends.asked >= opened);
            if ends.is_some_and(|ends| ends.asked >= opened + topics_rest)
                && let Some(resume_filter) = &mut connection.resume_filter
            {
                history.forget_unread_topics(resume_filter);
            }
            if let Some(reason) = recheck(connection, history, ends) {
                reset_to_live(connection, history, counts, reason);
                if connection.is_open() {
                    due_queue.push(key, connection);
                }
            }
            if connection.resume_filter.is_none() {
                self.keys.swap_remove(at);
            }
        }
        if self.left == 0 { Pass::Done } else { Pass::More }
    }
}

/// Judges a connection's cursor again. Returns why it needs a reset, if it does. A connection that has everything needs
/// its filter no longer.
fn recheck<S>(connection: &mut Connection<S>, history: &History, ends: Option<&LogEnds>) -> Option<ResetReason> {
    let resume_filter = connection.resume_filter.as_mut()?;
    let reason = reset_reason(history.recheck(resume_filter, ends), &mut connection.resume_filter);
    let is_current = |Subscription { log_key, mut position, .. }: Subscription| {
        history.locate(log_key, &mut position) == PositionStatus::Current
    };
    if connection.subscription.is_some_and(is_current) {
        connection.resume_filter.take_if(|resume_filter| history.is_caught_up(resume_filter));
    }
    reason
}

/// Why a client needs a reset after a verdict on its cursor. A refuted cursor covers nothing.
pub(super) fn reset_reason(
    verdict: CursorVerdict,
    resume_filter: &mut Option<Box<ResumeFilter>>,
) -> Option<ResetReason> {
    match verdict {
        CursorVerdict::Open => None,
        CursorVerdict::Lost => Some(ResetReason::Expired),
        CursorVerdict::Refuted(reason) => {
            *resume_filter = None;
            Some(reason)
        }
    }
}

/// A client can't continue from where it was: it is sent a reset and is live from now on, but for what its cursor has
/// ahead of this pod. Returns its position.
pub(super) fn reset_to_live<S>(
    connection: &mut Connection<S>,
    history: &History,
    counts: &mut TurnCounts,
    reason: ResetReason,
) -> Position {
    connection.resume_filter.take_if(|resume_filter| history.is_caught_up(resume_filter));
    connection.catching_up = false;
    connection.control_due.reset = Some(reason);
    counts.reset(reason);
    let Some(subscription) = &mut connection.subscription else { return Position::default() };
    subscription.position = history.end(subscription.log_key);
    subscription.position
}
