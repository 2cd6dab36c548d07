//! A shard's connections, history and board, and the work of a turn. A plain value: time and sockets come from outside.
//! Methods that visit many connections take a budget so that the loop can yield; they go backwards, so that a
//! connection that closes meanwhile makes them skip none.

use std::io;
use std::task::Poll;
use std::time::Instant;

use super::connection::{
    CloseState, Connection, ConnectionKey, ControlDue, DueQueue, InboundBucket, LifeTime, NewConnection, OnceASecond,
    PartialFrame, Pass, QueuedFlag, Socket, Subscription,
};
use super::connections::{Connections, Visit};
use super::loss_notices::LossNotices;
use super::metrics::TurnCounts;
use super::outbound::{self, Flushed, Scratch, SharedWrite, WriteContext, WriteOutcome};
use super::recent_redirects::RecentRedirects;
use super::redirect::Redirect;
use super::resume::{self, AheadCursors, StartPosition};
use crate::clock::{Moment, Now};
use crate::config::ShardConfig;
use crate::ids::NodeId;
use crate::limits::{
    BOARD_BYTES_MAX, BOARD_HISTORY_DIVISOR, LINGER, STEPS_A_SEND, STEPS_MAX, TURN_BYTES_MAX, VISITS_A_SEND,
};
use crate::protocol::close::CloseReason;
use crate::protocol::head::BearerToken;
use crate::protocol::session::Inbound;
use crate::stream::batch::Batch;
use crate::stream::board::{Board, BoardVersion};
use crate::stream::history::{
    AssessmentLogKey, History, HistoryLimits, IndexKey, Position, PositionStatus, RecordFindings,
};

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClosedConnection {
    pub(super) reason: CloseReason,
    /// Whether the close frame was sent: the client's input is then discarded until it has read that frame.
    pub(super) close_sent: bool,
    pub(super) opened: Instant,
}

/// A pass over the subscribers of one assessment, last first; each gets everything that has arrived by then.
#[derive(Debug, Clone, Copy)]
struct DispatchPass {
    log_key: AssessmentLogKey,
    /// Number of subscribers not visited yet.
    left: usize,
    /// The log's end at the start of the pass. If more arrived since, another pass serves the subscribers visited
    /// before.
    began_at: Position,
}

pub(super) struct ShardState<S> {
    pub(super) config: ShardConfig,
    /// Name of this pod.
    pub(super) node: NodeId,
    pub(super) connections: Connections<S>,
    pub(super) history: History,
    board: Board,
    pub(super) ahead: AheadCursors,
    loss_notices: LossNotices,
    /// The pass over an assessment's subscribers that is under way.
    dispatch_pass: Option<DispatchPass>,
    /// Number of connections that the market flush under way has not visited.
    flushing: Option<usize>,
    /// Start of the last market flush, if there was one.
    flushed: Option<Instant>,
    /// The image that the last market flush sent.
    flushed_image: BoardVersion,
    pub(super) recent_redirects: RecentRedirects,
    /// New tokens of clients, which wait to be verified.
    pub(super) refreshes: Vec<(ConnectionKey, BearerToken)>,
    pub(super) scratch: Scratch,
    pub(super) counts: TurnCounts,
}

impl<S: Socket> ShardState<S> {
    pub(super) fn new(config: ShardConfig, node: NodeId) -> Self {
        let limits = HistoryLimits {
            bytes_max: config.history_bytes / usize::from(config.shards.max(1)),
            window: config.history,
        };
        Self {
            connections: Connections::default(),
            history: History::new(limits),
            board: Board::new(config.history, BOARD_BYTES_MAX.min(limits.bytes_max / BOARD_HISTORY_DIVISOR)),
            ahead: AheadCursors::default(),
            loss_notices: LossNotices::default(),
            dispatch_pass: None,
            flushing: None,
            flushed: None,
            flushed_image: BoardVersion::default(),
            recent_redirects: RecentRedirects::default(),
            refreshes: Vec::new(),
            scratch: Scratch::default(),
            counts: TurnCounts::default(),
            config,
            node,
        }
    }

    pub(super) fn with_index_key(self, key: IndexKey) -> Self {
        Self { history: self.history.with_index_key(key), ..self }
    }

    // ---- connections open and close ---------------------------------------------------------------------------------

    /// Adds a connection: live, or from its cursor on. The caller flushes it.
    pub(super) fn attach(&mut self, mut new_connection: NewConnection<S>, now: Now) -> ConnectionKey {
        if self.board.is_stale(now.instant) {
            self.board.publish(now.instant);
        }
        let log_key = new_connection.assessment.as_ref().map(|id| self.history.subscribe(id));
        let Self { history, scratch, counts, node, config, .. } = self;
        let (cursor, mut steps) = (new_connection.cursor.as_deref(), scratch.steps_max);
        let mut start = resume::resolve_start(log_key, cursor, history, steps, counts);
        let made_in = (&mut scratch.text, &mut steps);
        let (start_at, of) = ((log_key, &mut start), (&*node, &*config));
        let greeting = resume::greeting(&mut new_connection, start_at, history, made_in, of, now);
        let StartPosition { position, resume_filter, catching_up, is_ahead, .. } = start;
        let key = self.connections.insert(Connection {
            socket: new_connection.socket,
            subscription: None,
            board_seen: BoardVersion::default(),
            board_at_open: self.board.image_version(),
            resume_filter,
            owner_doubt: new_connection.owner_doubt,
            catching_up,
            partial: Some(greeting),
            control_due: ControlDue::default(),
            blocked_since: None,
            queued: QueuedFlag::default(),
            end: CloseState::Live,
            index: 0,
            opened: now.instant.into(),
            heard_at: LifeTime::default(),
            pinged_at: LifeTime::default(),
            complaints: OnceASecond::default(),
            refreshes: OnceASecond::default(),
            token_expires_at: new_connection.client.expires().and_then(|time| now.instant_of(time)).map(Moment::from),
            expiry_told: false,
            client: new_connection.client,
            inbound: InboundBucket::full(self.config.inbound_per_second),
            ping_payload: None,
        });
        if self.connections[key].is_expiry_due(now.instant) {
            self.connections[key].tell_expiry();
        }
        if catching_up {
            self.connections.push_due(key);
        }
        if is_ahead {
            self.ahead.track(key, &self.connections);
        }
        if let Some((log_key, id)) = log_key.zip(new_connection.assessment) {
            self.connections.subscribe(key, log_key, (id.hash(), position));
        }
        key
    }

    /// Removes a connection. `gone` is the reason if it has none yet.
    pub(super) fn detach(&mut self, key: ConnectionKey, gone: CloseReason) -> Option<ClosedConnection> {
        let mut connection = self.connections.remove(key)?;
        if let Some(partial) = connection.partial.take() {
            partial.release(&mut self.history);
        }
        if let Some(subscription) = connection.subscription {
            self.history.unsubscribe(subscription.log_key);
        }
        let (reason, close_sent) = match connection.end {
            CloseState::Closed { reason, close_sent } => (reason, close_sent),
            CloseState::Closing(pending_close) => (pending_close.reason, false),
            CloseState::Live => (gone, false),
        };
        Some(ClosedConnection { reason, close_sent, opened: connection.opened.instant() })
    }

    /// Why a connection ended; `None` if it has not.
    pub(super) fn ended(&self, key: ConnectionKey) -> Option<CloseReason> {
        match self.connections.get(key)?.end {
            CloseState::Closed { reason, .. } => Some(reason),
            CloseState::Live | CloseState::Closing(_) => None,
        }
    }

    /// The assessment of a connection, if it has one.
    pub(super) fn assessment_of(&self, connection: &Connection<S>) -> Option<&str> {
        self.history.assessment_id(connection.subscription?.log_key)
    }

    /// Events of its assessment that a connection has not been sent.
    pub(super) fn lag_events(&self, connection: &Connection<S>) -> u64 {
        let behind = |Subscription { log_key, position, .. }| self.history.entries_after(log_key, position);
        connection.subscription.map_or(0, behind)
    }

    /// Whether the client's input still matters.
    pub(super) fn is_live(&self, key: ConnectionKey) -> bool {
        self.connections.get(key).is_some_and(Connection::is_live)
    }

    // ---- events -----------------------------------------------------------------------------------------------------

    /// Appends a batch to history and board. [`ShardState::dispatch`] sends its events.
    pub(super) fn take(&mut self, mut batch: Batch, now: Instant) {
        self.board.apply(&batch, now);
        let ends = batch.ends.take();
        let logs_changed = !(batch.epochs.is_empty() && batch.topics.is_empty());
        self.history.append(batch, now);
        self.loss_notices.collect(&mut self.history);
        self.ahead.restart(logs_changed, ends.as_deref(), &self.history);
    }

    /// Continues to judge cursors that are ahead, for about `budget` sends.
    pub(super) fn recheck_ahead(&mut self, budget: usize) -> Pass {
        self.ahead.recheck(budget, &self.config, (&mut self.connections, &self.history), &mut self.counts)
    }

    /// Whether the ends of the logs would decide about a client's cursor.
    pub(super) fn needs_ends(&self) -> bool {
        self.ahead.needs_ends()
    }

    /// Whether events that were due to a connection have left the history.
    pub(super) fn is_overtaken(&self, key: ConnectionKey) -> bool {
        let connection = &self.connections[key];
        // One that catches up is sent a reset when its socket takes it, and is live from then on.
        let subscription = connection.subscription.filter(|_| !connection.catching_up);
        subscription.is_some_and(|Subscription { log_key, mut position, .. }| {
            self.history.locate(log_key, &mut position) == PositionStatus::Lost
        })
    }

    /// Bytes of batches that may be taken in before their events are sent, so that the window cannot overtake
    /// up-to-date clients.
    pub(super) fn intake_bytes_max(&self) -> usize {
        self.config.history_bytes / usize::from(self.config.shards.max(1)) / 4
    }

    /// Queues the resets that are due, then sends undispatched events to their subscribers, for about `budget` sends. Batches taken in between two calls
    /// reach the subscribers not yet visited in the same write.
    pub(super) fn dispatch(&mut self, mut budget: usize, now: Now) -> Pass {
        let Self { connections, counts, history, loss_notices, .. } = self;
        if loss_notices.queue_resets(&mut budget, (connections, counts), history) == Pass::More {
            return Pass::More;
        }
        while let Some(log_key) = self.history.next_undispatched() {
            let all = self.connections.subscribers(log_key).len();
            let end = self.history.end(log_key);
            let mut dispatch_pass = match self.dispatch_pass.take() {
                Some(dispatch_pass) if dispatch_pass.log_key == log_key => dispatch_pass,
                _ => DispatchPass { log_key, left: all, began_at: end },
            };
            dispatch_pass.left = self.dispatch_to_subscribers(log_key, dispatch_pass.left.min(all), &mut budget, now);
            if dispatch_pass.left > 0 {
                self.dispatch_pass = Some(dispatch_pass);
                return Pass::More;
            }
            if dispatch_pass.began_at.is_at(end) {
                self.history.mark_dispatched(log_key);
            }
        }
        Pass::Done
    }

    /// Sends what is due to the first `left` subscribers of an assessment, last first; returns how many are left.
    /// Subscribers at the same position, with nothing else due, share the same slices.
    fn dispatch_to_subscribers(
        &mut self,
        log_key: AssessmentLogKey,
        left: usize,
        budget: &mut usize,
        now: Now,
    ) -> usize {
        let Self { connections, history, counts, .. } = self;
        let Visit { keys, slots, due_queue } = connections.visit_subscribers(log_key);
        let end = history.end(log_key);
        let mut shared: Option<SharedWrite<'_>> = None;
        for index in (0..left).rev() {
            if *budget == 0 {
                return index + 1;
            }
            *budget -= 1;
            let key = keys[index];
            let connection = &mut slots[key];
            S::fetch_ahead((key, connection), &keys[..index]);
            let (is_plain, is_open) = (connection.is_plain(), connection.is_open());
            let Some(subscription) =
                connection.subscription.as_mut().filter(|subscription| !subscription.position.is_at(end))
            else {
                continue;
            };
            if is_plain && !shared.as_ref().is_some_and(|shared| shared.from.is_at(subscription.position)) {
                let mut steps = STEPS_MAX;
                let due = history.due(log_key, subscription.position, (TURN_BYTES_MAX, &mut steps));
                shared = due.map(|due| SharedWrite::of(history, due, subscription.position, end));
            }
            let Some(common) = shared.as_ref().filter(|shared| is_plain && shared.is_all) else {
                // Its next entry is located. It is served on its own, or once its socket takes something.
                history.locate(log_key, &mut subscription.position);
                if is_open {
                    due_queue.push(key, connection);
                }
                continue;
            };
            let SharedWrite { due, after, .. } = common;
            if due.bytes == 0 {
                subscription.position = after.position;
                continue;
            }
            let result = connection.socket.send(&common.slices[..common.filled]);
            let sent = settle((key, connection), result, due.bytes, (due_queue, counts), now);
            let Some(subscription) = &mut connection.subscription else { continue };
            if sent == due.bytes {
                subscription.position = after.position;
                counts.sent += after.frames;
            } else if sent > 0 {
                let progress = history.progress(subscription.position, due, sent);
                subscription.position = progress.position;
                counts.sent += progress.frames;
                // The slices borrow from the history, so the next subscriber at this position makes new ones.
                shared = None;
                connection.partial = PartialFrame::event(&progress, history);
            } else {
                history.locate(log_key, &mut subscription.position);
            }
        }
        0
    }

    /// Serves clients that lag or catch up, in queue order, for about `budget` sends and `bytes` bytes; up-to-date
    /// clients wait meanwhile.
    pub(super) fn catch_up(&mut self, mut budget: usize, bytes: &mut u64, now: Now) -> Pass {
        while budget > 0 {
            if *bytes == 0 {
                return Pass::Done;
            }
            let Some(key) = self.connections.pop_due() else { return Pass::Done };
            let before = self.counts.bytes;
            self.flush(key, now);
            let steps = self.scratch.steps_max - self.scratch.steps;
            *bytes = bytes.saturating_sub(self.counts.bytes - before + steps as u64);
            budget = budget.saturating_sub(1 + steps / STEPS_A_SEND);
        }
        if self.connections.has_due() { Pass::More } else { Pass::Done }
    }

    /// Writes what is due to a connection, unless it is queued. While resets for losses are due, it is queued.
    pub(super) fn flush(&mut self, key: ConnectionKey, now: Now) {
        let Self { connections, history, board, scratch, counts, .. } = self;
        let Some((connection, due_queue)) = connections.with_queue(key).filter(|(it, _)| !it.is_queued()) else {
            return;
        };
        if !self.loss_notices.is_empty() {
            return due_queue.push(key, connection);
        }
        flush((key, connection), &mut WriteContext { history, board, scratch, counts }, due_queue, now);
    }

    /// Writes to a connection whose socket was full, from its own task: `write` returns `Pending` if the socket still
    /// takes nothing, and wakes the task when it does.
    pub(super) fn write_blocked(
        &mut self,
        key: ConnectionKey,
        now: Now,
        mut write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>,
    ) {
        while self.connections.get(key).is_some_and(|connection| connection.blocked_since.is_some()) {
            if !self.loss_notices.is_empty() {
                self.connections[key].blocked_since = None;
                return self.flush(key, now);
            }
            let Self { connections, history, board, scratch, counts, .. } = self;
            scratch.steps = scratch.steps_max;
            let mut source = WriteContext { history, board, scratch, counts };
            let mut is_full = false;
            outbound::write_once(&mut connections[key], &mut source, now, |_, slices| {
                match write(slices.first().map_or(&[][..], |slice| &**slice)) {
                    Poll::Ready(result) => result,
                    Poll::Pending => {
                        is_full = true;
                        Err(io::ErrorKind::WouldBlock.into())
                    }
                }
            });
            if is_full {
                return;
            }
            // It accepted something or failed; an ordinary write tells whether it accepts more.
            self.connections[key].blocked_since = None;
            self.flush(key, now);
        }
    }

    // ---- what a client sends ----------------------------------------------------------------------------------------

    /// Handles a whole frame from a client. The next [`ShardState::flush`] answers it, together with others of one read.
    pub(super) fn inbound(&mut self, key: ConnectionKey, frame: Inbound, now: Now) {
        let Some(connection) = self.connections.get_mut(key).filter(|connection| connection.is_live()) else { return };
        let life = connection.life(now.instant);
        connection.heard_at = life;
        self.counts.received += u64::from(frame.is_text());
        if !connection.inbound.take(frame.is_text(), self.config.inbound_per_second, life) {
            return self.close(key, CloseReason::RateLimited, None, now);
        }
        match frame {
            Inbound::Ping => connection.control_due.pong = true,
            Inbound::BadMessage => {
                connection.control_due.bad_message |= connection.complaints.admit(life);
            }
            Inbound::Refresh(token) => self.request_refresh(key, token, life),
            Inbound::ControlPing(payload) => connection.ping_payload = Some(Box::new(payload)),
            Inbound::Pong | Inbound::Other | Inbound::ControlPong | Inbound::Fragment => {}
        }
    }

    /// Begins a connection's end with a close frame, which is dropped if the socket takes nothing for too long.
    pub(super) fn close(&mut self, key: ConnectionKey, reason: CloseReason, to: Option<Redirect>, now: Now) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.close(reason, to, now.instant, LINGER);
            self.flush(key, now);
        }
    }

    /// The client closed: the close frame echoes its code.
    pub(super) fn close_by_client(&mut self, key: ConnectionKey, code: Option<u16>, now: Now) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.close(CloseReason::ClientClosed, None, now.instant, LINGER);
            if let CloseState::Closing(pending_close) = &mut connection.end {
                pending_close.echo = code;
            }
            self.flush(key, now);
        }
    }

    // ---- markets ----------------------------------------------------------------------------------------------------

    /// When the next market flush is due; `None` if there is nothing to flush.
    pub(super) fn next_market_flush(&self, now: Instant) -> Option<Instant> {
        let next = self.flushed.map_or(now, |flushed| flushed + self.config.market_flush);
        (self.flushing.is_some() || self.has_unsent_markets()).then_some(next)
    }

    /// Whether the board has changed since the last flush.
    fn has_unsent_markets(&self) -> bool {
        self.board.has_unpublished() || self.board.image_version() > self.flushed_image
    }

    /// Begins a market flush if the last one began an interval ago or earlier, and continues it for about `budget` sends:
    /// a visit without one costs a part of it. So the first tick after a quiet interval leaves at once.
    pub(super) fn flush_markets(&mut self, budget: usize, now: Now) -> Pass {
        if self.flushing.is_none() {
            let due = self.flushed.is_none_or(|last| now.instant >= last + self.config.market_flush);
            if !due || !self.has_unsent_markets() {
                return Pass::Done;
            }
            self.board.publish(now.instant);
            self.flushed_image = self.board.image_version();
            self.flushed = Some(now.instant);
            self.flushing = Some(self.connections.len());
        }
        let left = self.flushing.take().unwrap_or(0).min(self.connections.len());
        let left = self.send_markets(left, budget.saturating_mul(VISITS_A_SEND), now);
        if left > 0 {
            self.flushing = Some(left);
            return Pass::More;
        }
        Pass::Done
    }

    /// Sends the image's changes to the first `left` connections, last first; returns how many are left. Connections that
    /// were sent the same version share the same bytes, if nothing else is due to them.
    fn send_markets(&mut self, left: usize, mut visits: usize, now: Now) -> usize {
        let Self { connections, history, board, scratch, counts, .. } = self;
        let Visit { keys, slots, due_queue } = connections.visit_all();
        let board = &*board;
        let mut shared_since = board.image_version();
        let mut shared = board.changes_since(shared_since);
        for index in (0..left).rev() {
            if visits == 0 {
                return index + 1;
            }
            let key = keys[index];
            let connection = &mut slots[key];
            if connection.board_seen != shared_since {
                (shared, shared_since) = (board.changes_since(connection.board_seen), connection.board_seen);
            }
            if shared.is_empty() || !connection.is_open() {
                visits -= 1;
                continue;
            }
            visits = visits.saturating_sub(VISITS_A_SEND);
            S::fetch_ahead((key, connection), &keys[..index]);
            if !connection.is_plain() {
                flush((key, connection), &mut WriteContext { history, board, scratch, counts }, due_queue, now);
                continue;
            }
            let result = connection.socket.send(&[io::IoSlice::new(shared.bytes)]);
            let sent = settle((key, connection), result, shared.bytes.len(), (due_queue, counts), now);
            connection.record_board_write(&shared, sent, counts);
        }
        0
    }

    /// Whether work waits for the next turn.
    pub(super) fn has_queued(&self) -> bool {
        self.connections.has_due() || !self.loss_notices.is_empty()
    }

    // ---- for the event loop -----------------------------------------------------------------------------------------

    /// Evicts what is too old. Returns the counts and the findings since the last call, and the history's size in bytes.
    pub(super) fn end_turn(&mut self, now: Instant) -> (TurnCounts, RecordFindings, usize) {
        self.history.evict(now);
        self.loss_notices.collect(&mut self.history);
        self.board.evict(now);
        let mut findings = self.history.take_findings();
        findings.unusable += self.board.take_unusable();
        findings.board_overflow += self.board.take_refused();
        (std::mem::take(&mut self.counts), findings, self.history.bytes())
    }
}

/// Writes what is due to a connection that is not queued; queues it if more is due than one turn's share.
fn flush<S: Socket>(
    (key, connection): (ConnectionKey, &mut Connection<S>),
    source: &mut WriteContext<'_>,
    due_queue: &mut DueQueue,
    now: Now,
) {
    if outbound::flush(connection, source, now) == Flushed::More {
        due_queue.push(key, connection);
    }
}

/// Applies the result of a write of `len` shared bytes to a plain connection; returns how many were written. An
/// interrupted write is repeated in the next turn.
fn settle<S: Socket>(
    (key, connection): (ConnectionKey, &mut Connection<S>),
    result: io::Result<usize>,
    len: usize,
    (due_queue, counts): (&mut DueQueue, &mut TurnCounts),
    now: Now,
) -> usize {
    match outbound::take_outcome(connection, counts, result, len, now) {
        WriteOutcome::Took(sent) => return sent,
        WriteOutcome::Interrupted => due_queue.push(key, connection),
        WriteOutcome::Gone => {}
    }
    0
}
