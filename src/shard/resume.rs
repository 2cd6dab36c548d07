//! Where a client's stream starts: live, or at its cursor; and what its greeting reports. The history judges cursors.

use std::sync::Arc;

use super::connection::{Connection, ConnectionKey, DueQueue, PartialFrame, Socket, Subscription};
use super::metrics::TurnCounts;
use super::state::{NewConnection, Pass, ShardState};
use crate::clock::{Now, whole_ms};
use crate::ids::AssessmentId;
use crate::protocol::messages::{self, Connected, ResetReason};
use crate::stream::batch::PartitionEnds;
use crate::stream::epochs::AtEnd;
use crate::stream::fault_injection::{InjectedFault, is_injected};
use crate::stream::history::{AssessmentLogKey, History, Loss, Position, PositionStatus};
use crate::stream::offsets::ResumeFilter;

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

/// A connection whose cursor was ahead of this pod, or of a newer log. Either this pod is behind the one that made the
/// cursor, or the cursor lies past the end of the log and is invalid.
#[derive(Debug, Clone, Copy)]
pub(super) struct AheadCursor {
    key: ConnectionKey,
    /// How often in a row the ends of the logs spoke against it.
    beyond: u8,
}

/// What is known by now of a cursor that was ahead.
enum Judged {
    /// It may be good.
    Open,
    /// Some of what its client has is lost, which is taken out of it: the client is told so. It is still ahead with the
    /// rest, or live.
    Lost,
    /// Its client can't go on from it: it is live.
    Refuted(ResetReason),
}

/// Up to this many such connections are kept without checking whether they still exist.
const AHEAD_KEPT: usize = 64;

/// End-offset answers that must confirm that a cursor lies past the end; the first may come from a deposed leader.
const ANSWERS_MIN: u8 = 2;

impl<S: Socket> ShardState<S> {
    /// Finds where a client begins that watches a chain.
    pub(super) fn resolve_start(&mut self, log_key: Option<AssessmentLogKey>, cursor: Option<&str>) -> StartPosition {
        let Some(log_key) = log_key else { return StartPosition::default() };
        let live = StartPosition { position: self.history.end(log_key), ..StartPosition::default() };
        let steps = self.scratch.steps_max;
        match cursor.map(|cursor| self.history.resume(log_key, cursor, steps)) {
            None => live,
            Some(Err(reason)) => {
                self.counts.reset(reason);
                StartPosition { reset: Some(reason), ..live }
            }
            Some(Ok((resume_filter, mut position))) => {
                self.counts.resumed += 1;
                let catching_up = self.history.locate(log_key, &mut position) != PositionStatus::Current;
                let is_ahead = !self.history.is_caught_up(&resume_filter);
                let keep = catching_up || is_ahead;
                let resume_filter =
                    keep.then(|| Box::new(resume_filter)).filter(|_| !is_injected(InjectedFault::ResumeAsSuffix));
                StartPosition { position, resume_filter, catching_up, is_ahead, resumed: true, reset: None }
            }
        }
    }

    /// Tracks a connection whose cursor is ahead. If Kafka reports no ends, closed connections are removed now and
    /// then: the list holds at most twice the open connections, or a few.
    pub(super) fn track_ahead(&mut self, key: ConnectionKey) {
        if self.ahead.len() >= 2 * self.connection_keys.len().max(AHEAD_KEPT) {
            let connections = &self.connections;
            self.ahead.retain(|ahead| connections.contains_key(ahead.key));
            self.judging.by_logs(self.ahead.len());
        }
        self.ahead.push(AheadCursor { key, beyond: 0 });
    }

    /// Whether the ends of the logs would tell something about a client's cursor.
    pub(super) fn needs_ends(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// The first bytes to a client: the answer to its handshake, `connected`, and `reset` where it can't go on.
    pub(super) fn greeting(
        &mut self,
        new_connection: &mut NewConnection<S>,
        log_key: Option<AssessmentLogKey>,
        start: &mut StartPosition,
        now: Now,
    ) -> PartialFrame {
        let text = &mut self.scratch.text;
        text.clear();
        if let Some(log_key) = log_key {
            self.history.write_cursor(log_key, start.position, start.resume_filter.as_deref_mut(), text);
        }
        let cursor = std::str::from_utf8(text).ok().filter(|cursor| !cursor.is_empty());
        let mut greeting = std::mem::take(&mut new_connection.accept);
        messages::connected(
            &mut greeting,
            &Connected {
                connection_id: &new_connection.id,
                user_id: &new_connection.user,
                timestamp: now.unix,
                node: &self.node.0,
                assessment_id: new_connection.assessment.as_ref().map(AssessmentId::as_str),
                heartbeat_interval_ms: whole_ms(self.config.heartbeat),
                resumed: start.resumed,
                cursor,
            },
        );
        if let Some(reason) = start.reset {
            messages::reset(&mut greeting, reason, cursor);
        }
        PartialFrame::bytes(greeting.into(), 1 + u64::from(start.reset.is_some()))
    }

    /// Whether events that were due to a connection have left the history.
    pub(super) fn is_overtaken(&self, key: ConnectionKey) -> bool {
        let connection = &self.connections[key];
        // One that catches up is told when its socket takes it, and goes on live.
        let Some(Subscription { log_key, mut position, .. }) =
            connection.subscription.filter(|_| !connection.catching_up)
        else {
            return false;
        };
        self.history.locate(log_key, &mut position) == PositionStatus::Lost
    }

    /// Queues a reset for every client that should have received the lost records of these partitions.
    pub(super) fn queue_loss_resets(&mut self, losses: &[Loss]) {
        let Self { connections, subscribers, history, due_queue, counts, .. } = self;
        for (log_key, keys) in subscribers.iter() {
            for &Loss { partition_id, end } in losses {
                if !history.lists_partition(log_key, partition_id) {
                    continue;
                }
                for &key in keys {
                    let connection = &mut connections[key];
                    let lacks_nothing = match (&mut connection.resume_filter, end) {
                        (None, _) => false,
                        (Some(resume_filter), None) => history.is_ahead(resume_filter, partition_id),
                        (Some(resume_filter), Some(end)) => history.outlives(resume_filter, partition_id, end),
                    };
                    if !lacks_nothing {
                        queue_expired_reset((key, connection), (due_queue, counts));
                    }
                }
            }
        }
    }

    /// Queues a reset for the subscribers of assessments with an event that is too large for the window.
    pub(super) fn queue_oversized_resets(&mut self) {
        for log_key in self.history.take_oversized() {
            let Self { connections, subscribers, due_queue, counts, .. } = self;
            for &key in subscribers.get(log_key).into_iter().flatten() {
                queue_expired_reset((key, &mut connections[key]), (due_queue, counts));
            }
        }
    }

    /// Cursors in use forget the topics whose indexes others got.
    pub(super) fn forget_topics(&mut self) {
        for topic in self.history.take_reused() {
            self.connections
                .values_mut()
                .filter_map(|connection| connection.resume_filter.as_mut())
                .for_each(|resume_filter| resume_filter.forget(topic));
        }
    }

    /// Events of topics that were dropped are sent to nobody any more: who was yet to get them lacks them.
    pub(super) fn tell_of_dropped(&mut self) {
        for (log_key, end) in self.history.take_dropped_from() {
            let Self { connections, subscribers, due_queue, counts, .. } = self;
            for &key in subscribers.get(log_key).into_iter().flatten() {
                let connection = &mut connections[key];
                if connection.subscription.is_some_and(|subscription| subscription.position.is_before(end)) {
                    queue_expired_reset((key, connection), (due_queue, counts));
                }
            }
        }
    }

    /// Judges those again whose cursors are ahead, as far as more is known since, for about `budget` sends.
    pub(super) fn recheck_ahead_ends(&mut self, budget: usize) -> Pass {
        for _ in 0..budget {
            let Self { connections, history, due_queue, counts, ahead, judging, .. } = self;
            let Some((at, ends)) = judging.next(ahead.len()) else { return Pass::Done };
            let AheadCursor { key, beyond } = &mut ahead[at];
            let connection = connections.get_mut(*key).filter(|connection| connection.is_live());
            let Some(connection) = connection.filter(|connection| connection.resume_filter.is_some()) else {
                ahead.swap_remove(at);
                continue;
            };
            let reason = match judge(connection, beyond, history, ends) {
                Judged::Open => continue,
                Judged::Lost => ResetReason::Expired,
                Judged::Refuted(reason) => {
                    connection.resume_filter = None;
                    reason
                }
            };
            if !owe_reset((*key, connection), history, (due_queue, counts), reason) {
                ahead.swap_remove(at);
            }
        }
        Pass::More
    }
}

/// The passes over those whose cursors are ahead. They go backwards, so that one that is taken out makes them miss
/// none.
#[derive(Debug, Default)]
pub(super) struct Judging {
    /// How many have yet to be judged by what else is known of the logs.
    by_logs: usize,
    /// The ends of some logs, and how many have yet to be judged by them. Ends that come meanwhile are dropped: they
    /// are asked for again while somebody is ahead.
    by_ends: Option<(Arc<PartitionEnds>, usize)>,
}

impl Judging {
    /// More is known of the logs. Nobody may be judged by the same ends twice, and this changes the order.
    pub(super) fn by_logs(&mut self, ahead: usize) {
        (self.by_logs, self.by_ends) = (ahead, None);
    }

    /// Starts a pass over the ahead cursors against end offsets.
    pub(super) fn by_ends(&mut self, ends: Arc<PartitionEnds>, ahead: usize) {
        self.by_ends.get_or_insert((ends, ahead));
    }

    /// Who is next, of so many, and by which ends.
    fn next(&mut self, ahead: usize) -> Option<(usize, Option<&PartitionEnds>)> {
        if let Some(at) = self.by_logs.min(ahead).checked_sub(1) {
            self.by_logs = at;
            return Some((at, None));
        }
        self.by_logs = 0;
        let left = self.by_ends.as_ref().map_or(0, |(_, left)| (*left).min(ahead));
        if left == 0 {
            self.by_ends = None;
        }
        let (ends, at) = self.by_ends.as_mut()?;
        *at = left - 1;
        Some((*at, Some(ends)))
    }
}

fn judge<S>(
    connection: &mut Connection<S>,
    beyond: &mut u8,
    history: &History,
    ends: Option<&PartitionEnds>,
) -> Judged {
    let Some(resume_filter) = &mut connection.resume_filter else { return Judged::Open };
    let Some(ends) = ends else {
        return match history.contradiction(resume_filter) {
            Some(ResetReason::Expired) => {
                history.let_go_of_lost(resume_filter);
                Judged::Lost
            }
            reason => reason.map_or(Judged::Open, Judged::Refuted),
        };
    };
    // A cursor that was there before the ends were asked for, and lies past one, is none of this log.
    if connection.opened > ends.asked {
        return Judged::Open;
    }
    let Some(at_end) = history.judge_ends(resume_filter, &ends.ends) else { return Judged::Open };
    let reason = match at_end {
        AtEnd::Lost => return Judged::Lost,
        AtEnd::Earlier => ResetReason::Expired,
        AtEnd::Beyond => ResetReason::Invalid,
        AtEnd::Within => {
            *beyond = 0;
            return Judged::Open;
        }
    };
    *beyond += 1;
    if *beyond < ANSWERS_MIN { Judged::Open } else { Judged::Refuted(reason) }
}

/// A client that can't go on from its cursor after all is told, and is live from now on where it is not ahead with what
/// is left of it: whether it is.
fn owe_reset<S: Socket>(
    (key, connection): (ConnectionKey, &mut Connection<S>),
    history: &History,
    (due_queue, counts): (&mut DueQueue, &mut TurnCounts),
    reason: ResetReason,
) -> bool {
    let is_ahead = connection.resume_filter.as_ref().is_some_and(|resume_filter| !history.is_caught_up(resume_filter));
    if !is_ahead {
        connection.resume_filter = None;
        connection.catching_up = false;
        if let Some(subscription) = &mut connection.subscription {
            subscription.position = history.end(subscription.log_key);
        }
    }
    connection.control_due.reset = Some(reason);
    counts.reset(reason);
    if connection.is_open() {
        due_queue.push(key, connection);
    }
    is_ahead
}

/// Queues an `expired` reset, unless one is queued already.
fn queue_expired_reset<S: Socket>(
    (key, connection): (ConnectionKey, &mut Connection<S>),
    (due_queue, counts): (&mut DueQueue, &mut TurnCounts),
) {
    if connection.control_due.reset.is_some() || !connection.is_live() {
        return;
    }
    connection.control_due.reset = Some(ResetReason::Expired);
    counts.reset(ResetReason::Expired);
    if connection.is_open() {
        due_queue.push(key, connection);
    }
}
