//! Composes what is due to one socket into one write (the rest of a partial frame, control messages, events, markets;
//! or the close sequence), and applies how far the write got.

use std::io::{self, ErrorKind, IoSlice};

use super::connection::{CloseState, Connection, PartialFrame, RefreshAnswer, Socket};
use super::metrics::TurnCounts;
use super::redirect::Redirect;
use super::resume::{reset_reason, reset_to_live};
use crate::clock::{Now, UnixMs};
use crate::limits::{CATCH_UP_FRAMES_BYTES_MAX, LINGER, STEPS_MAX, TURN_BYTES_MAX, WRITE_SLICES_MAX};
use crate::protocol::close::CloseReason;
use crate::protocol::messages::{self, ResetReason};
use crate::stream::board::Board;
use crate::stream::cursor;
use crate::stream::history::{
    AssessmentLogKey, CatchUpFrames, DueFrames, History, Position, PositionStatus, WriteProgress,
};

/// What a write of any connection needs of its shard.
pub(super) struct WriteContext<'a> {
    pub(super) history: &'a mut History,
    pub(super) board: &'a Board,
    pub(super) scratch: &'a mut Scratch,
    pub(super) counts: &'a mut TurnCounts,
}

/// Buffers for the frames of one connection alone, reused by every write.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Steps along the history that a flush has to find what a connection lacks.
    pub(super) steps_max: usize,
    /// Steps that the flush under way has left.
    pub(super) steps: usize,
    control: Vec<u8>,
    /// Events for a client that has not been sent everything beyond its cursor.
    catch_up_frames: CatchUpFrames,
    /// A cursor.
    pub(super) text: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        let (control, catch_up_frames, text) = (Vec::new(), CatchUpFrames::default(), Vec::new());
        Self { steps_max: STEPS_MAX, steps: STEPS_MAX, control, catch_up_frames, text }
    }
}

/// The result of a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Nothing more is due.
    Done,
    /// More is due than one turn's share: it waits for the next.
    More,
    /// The socket takes no more: the connection's task waits for it.
    Blocked,
}

/// What is due in one write, by parts. In this order, or with the board before the events for a client that has not
/// seen all of it yet (PROTOCOL 2: first the board, then events).
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each part is there or not")]
struct WritePlan {
    partial: usize,
    control: usize,
    control_texts: u64,
    is_close: bool,
    due: Option<DueFrames>,
    /// Whether its events are in the scratch, not in the history.
    catch_up_frames: bool,
    events: usize,
    board: usize,
    board_first: bool,
    /// Whether the next turn has to find what follows its events.
    is_unfinished: bool,
}

impl WritePlan {
    fn len(&self) -> usize {
        self.partial + self.control + self.events + self.board
    }
}

/// Writes what is due to a connection.
pub(super) fn flush<S: Socket>(connection: &mut Connection<S>, source: &mut WriteContext<'_>, now: Now) -> Flushed {
    source.scratch.steps = source.scratch.steps_max;
    if connection.blocked_since.is_some() {
        return Flushed::Blocked;
    }
    let mut budget = TURN_BYTES_MAX;
    loop {
        let sent = write_once(connection, source, now, |socket, slices| socket.send(slices));
        match sent {
            Written::Nothing => return Flushed::Done,
            Written::NotYet => return Flushed::More,
            Written::All(bytes) if bytes < budget => budget -= bytes,
            Written::All(_) => return Flushed::More,
            Written::Part => return Flushed::Blocked,
        }
    }
}

/// The result of one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing was due, or the connection is gone.
    Nothing,
    /// The next turn has to find whether something is due.
    NotYet,
    /// All that was due: this many bytes.
    All(usize),
    /// Less than was due, or nothing. The connection is blocked.
    Part,
}

/// Does one write of what is due.
pub(super) fn write_once<S: Socket>(
    connection: &mut Connection<S>,
    source: &mut WriteContext<'_>,
    now: Now,
    send: impl FnOnce(&S, &[IoSlice<'_>]) -> io::Result<usize>,
) -> Written {
    let Some(plan) = plan(connection, source, now) else {
        connection.abort(CloseReason::TooSlow);
        return Written::Nothing;
    };
    let len = plan.len();
    if len == 0 {
        return if plan.is_unfinished { Written::NotYet } else { Written::Nothing };
    }
    let mut slices = [IoSlice::new(&[]); WRITE_SLICES_MAX];
    let (filled, planned) = fill(&plan, connection, source, &mut slices);
    let result = send(&connection.socket, &slices[..filled]);
    match take_outcome(connection, source.counts, result, planned, now) {
        WriteOutcome::Took(0) => Written::Part,
        WriteOutcome::Took(sent) => {
            advance(&plan, connection, source, sent, now);
            if sent == planned { Written::All(sent) } else { Written::Part }
        }
        WriteOutcome::Interrupted => Written::All(0),
        WriteOutcome::Gone => Written::Nothing,
    }
}

/// What a socket did with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteOutcome {
    /// It took this many bytes. If they are fewer than were due, its connection is blocked.
    Took(usize),
    /// A signal came first: the write can be tried again.
    Interrupted,
    /// The peer is gone, and the connection is aborted.
    Gone,
}

/// Applies the result of a write of `len` bytes to its connection and to the counts. Every write to a client goes
/// through here. A connection that is blocked already stays so: its own task is the one that writes.
pub(super) fn take_outcome<S: Socket>(
    connection: &mut Connection<S>,
    counts: &mut TurnCounts,
    result: io::Result<usize>,
    len: usize,
    now: Now,
) -> WriteOutcome {
    let sent = match result {
        Ok(sent) => {
            counts.writes += 1;
            counts.bytes += sent as u64;
            sent
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) if error.kind() == ErrorKind::Interrupted => return WriteOutcome::Interrupted,
        Err(_) => {
            connection.abort(CloseReason::ClientGone);
            return WriteOutcome::Gone;
        }
    };
    if sent < len && connection.blocked_since.is_none() {
        counts.blocked += 1;
        connection.block(now.instant);
    }
    WriteOutcome::Took(sent)
}

/// Plans a write. `None` if the rest of a partial event is gone, because the partial events exceed what the history
/// keeps; the socket must then be aborted.
fn plan<S: Socket>(connection: &mut Connection<S>, source: &mut WriteContext<'_>, now: Now) -> Option<WritePlan> {
    let mut plan = WritePlan { board_first: connection.board_seen < connection.board_at_open, ..WritePlan::default() };
    source.scratch.control.clear();
    let mut position = connection.subscription.map(|subscription| subscription.position);
    if let Some(partial) = &connection.partial {
        plan.partial = unsent(partial, source.history)?.len();
    }
    match &connection.end {
        CloseState::Closed { .. } => return Some(WritePlan::default()),
        CloseState::Closing(pending_close) if pending_close.close_sent => return Some(plan),
        CloseState::Closing(_) => {
            plan_close(&mut plan, connection, source, position);
            return Some(plan);
        }
        CloseState::Live => {}
    }
    if let Some((log_key, at)) = connection.subscription.map(|subscription| subscription.log_key).zip(position) {
        let at = plan_events(&mut plan, connection, source, (log_key, at));
        if at.is_none() && !connection.catching_up {
            connection.close(CloseReason::TooSlow, None, now.instant, LINGER);
            return self::plan(connection, source, now);
        }
        // The window has overtaken it while it was catching up.
        position =
            Some(at.unwrap_or_else(|| reset_to_live(connection, source.history, source.counts, ResetReason::Lagged)));
    }
    plan.control_texts = write_control(connection, source, position, now);
    plan.control = source.scratch.control.len();
    plan.board = source.board.changes_since(connection.board_seen).bytes.len();
    Some(plan)
}

/// The unsent bytes of a partial frame; `None` if they have left the history.
fn unsent<'a>(partial: &'a PartialFrame, history: &'a History) -> Option<&'a [u8]> {
    match partial {
        PartialFrame::Bytes(unsent) => Some(unsent.left()),
        PartialFrame::Event { frame, sent } => history.rest_of_frame(*frame, *sent),
    }
}

fn plan_close<S>(
    plan: &mut WritePlan,
    connection: &mut Connection<S>,
    source: &mut WriteContext<'_>,
    position: Option<Position>,
) {
    write_cursor(connection, source, position);
    let CloseState::Closing(pending_close) = &connection.end else { return };
    let Scratch { control, text, .. } = &mut *source.scratch;
    if let Some(Redirect { to, from_draining }) = &pending_close.to {
        // The cursor precedes the loss, which the next pod would not report.
        if let Some(reason) = connection.control_due.reset {
            messages::reset(control, reason, as_cursor(text));
            plan.control_texts = 1;
        }
        let marked = as_cursor(text).filter(|_| *from_draining).and_then(cursor::add_draining_flag);
        let cursor = marked.as_deref().or(as_cursor(text));
        let message = match pending_close.reason {
            CloseReason::TooOld => "the connection is as old as connections get here: connect anew",
            _ => "this assessment is served by another pod now",
        };
        messages::redirect(control, message, to, cursor);
        plan.control_texts += 1;
    }
    match pending_close.echo {
        Some(code) => messages::close_reply(control, code),
        None => messages::close(control, pending_close.reason),
    }
    plan.is_close = true;
    plan.control = control.len();
}

/// Finds the events that are due from a position on; returns the position before them, or `None` if some have left the
/// history.
fn plan_events<S>(
    plan: &mut WritePlan,
    connection: &mut Connection<S>,
    source: &mut WriteContext<'_>,
    (log_key, mut position): (AssessmentLogKey, Position),
) -> Option<Position> {
    let subscription = connection.subscription.as_mut()?;
    if let Some(resume_filter) = connection.resume_filter.as_deref_mut() {
        let Scratch { catch_up_frames, steps, .. } = &mut *source.scratch;
        source.history.make_catch_up_frames(
            log_key,
            position,
            resume_filter,
            (CATCH_UP_FRAMES_BYTES_MAX, steps),
            catch_up_frames,
        );
        if let Some(reason) = reset_reason(catch_up_frames.verdict, &mut connection.resume_filter) {
            return Some(reset_to_live(connection, source.history, source.counts, reason));
        }
        position = catch_up_frames.from;
        plan.is_unfinished = catch_up_frames.is_unfinished;
        if source.history.locate(log_key, &mut position) == PositionStatus::Lost {
            return None;
        }
        subscription.position = position;
        if !catch_up_frames.frames.is_empty() {
            plan.catch_up_frames = true;
            plan.events = catch_up_frames.bytes.len();
            return Some(position);
        }
        if catch_up_frames.is_unfinished {
            return Some(position);
        }
        if catch_up_frames.passed {
            connection.resume_filter = None;
        }
    }
    match source.history.locate(log_key, &mut position) {
        PositionStatus::Lost => return None,
        PositionStatus::Current => connection.catching_up = false,
        PositionStatus::Behind if source.scratch.steps == 0 => plan.is_unfinished = true,
        PositionStatus::Behind => {
            let due = source.history.due(log_key, position, (TURN_BYTES_MAX, &mut source.scratch.steps))?;
            plan.due = Some(due);
            plan.events = due.bytes;
            if let Some(due) = plan.due.take_if(|due| due.bytes == 0) {
                // None of them could be mapped, so there is nothing to write.
                position = source.history.progress(position, &due, 0).position;
                subscription.position = position;
                plan.is_unfinished = source.history.locate(log_key, &mut position) == PositionStatus::Behind;
            }
        }
    }
    Some(position)
}

/// Makes the cursor of a connection's position: before its next event, and past its partial frame.
fn write_cursor<S>(connection: &mut Connection<S>, source: &mut WriteContext<'_>, position: Option<Position>) {
    source.scratch.text.clear();
    if let Some((subscription, position)) = connection.subscription.zip(position) {
        let resume_filter = connection.resume_filter.as_deref_mut();
        let Scratch { steps, text, .. } = &mut *source.scratch;
        source.history.write_cursor(subscription.log_key, position, resume_filter, steps, text);
    }
}

fn as_cursor(text: &[u8]) -> Option<&str> {
    std::str::from_utf8(text).ok().filter(|cursor| !cursor.is_empty())
}

/// Appends the control messages due to a connection; returns their number of text frames.
fn write_control<S>(
    connection: &mut Connection<S>,
    source: &mut WriteContext<'_>,
    position: Option<Position>,
    now: Now,
) -> u64 {
    let control_due = connection.control_due;
    if control_due.heartbeat || control_due.reset.is_some() {
        write_cursor(connection, source, position);
    }
    let Scratch { control, text, .. } = &mut *source.scratch;
    if let Some(payload) = &connection.ping_payload {
        messages::control_pong(control, payload);
    }
    if let Some(reason) = control_due.reset {
        messages::reset(control, reason, as_cursor(text));
    }
    if control_due.pong {
        messages::pong(control, now.unix);
    }
    if control_due.heartbeat {
        messages::heartbeat(control, now.unix, as_cursor(text));
    }
    if control_due.bad_message {
        messages::error(control, "BadMessage", "a message is a JSON object with a string \"type\"");
    }
    if let Some(answer) = control_due.refresh {
        write_refresh_answer(control, answer, connection.client.token_expires());
    }
    if control_due.token_expiring {
        messages::token_expiring(control, connection.client.token_expires());
    }
    control_due.texts()
}

fn write_refresh_answer(out: &mut Vec<u8>, answer: RefreshAnswer, expires: Option<UnixMs>) {
    match answer {
        RefreshAnswer::Refreshed => messages::refreshed(out, expires),
        RefreshAnswer::Unauthorized(why) => messages::error(out, "Unauthorized", &why.to_string()),
        RefreshAnswer::OtherUser => messages::error(out, "Unauthorized", "the new token is another user's"),
        RefreshAnswer::Forbidden => messages::error(out, "Forbidden", "the new token does not allow this assessment"),
        RefreshAnswer::TooOften => {
            messages::error(
                out,
                "BadMessage",
                "one refresh a second, and none while the gateway has many: try again later",
            );
        }
    }
}

/// Fills the slices for a plan; returns their number and their bytes. If the events need more slices than there are,
/// the rest waits for the next write.
fn fill<'a, S>(
    plan: &WritePlan,
    connection: &'a Connection<S>,
    source: &'a WriteContext<'_>,
    slices: &mut [IoSlice<'a>; WRITE_SLICES_MAX],
) -> (usize, usize) {
    let mut filled = 0;
    let mut bytes = 0;
    let mut push = |slice: &'a [u8], slices: &mut [IoSlice<'a>; WRITE_SLICES_MAX], filled: &mut usize| {
        if !slice.is_empty() {
            slices[*filled] = IoSlice::new(slice);
            *filled += 1;
            bytes += slice.len();
        }
    };
    push(
        connection.partial.as_ref().and_then(|partial| unsent(partial, source.history)).unwrap_or_default(),
        slices,
        &mut filled,
    );
    push(&source.scratch.control[..plan.control], slices, &mut filled);
    let board = source.board.changes_since(connection.board_seen).bytes;
    if plan.board_first {
        push(&board[..plan.board], slices, &mut filled);
    }
    let mut events_whole = true;
    let mut events = 0;
    if plan.catch_up_frames {
        push(&source.scratch.catch_up_frames.bytes, slices, &mut filled);
    }
    if let Some(due) = &plan.due {
        // One slice stays free for the board.
        let (used, len) = source.history.slices(due, &mut slices[filled..WRITE_SLICES_MAX - 1]);
        filled += used;
        events = len;
        events_whole = len == due.bytes;
    }
    if !plan.board_first && events_whole {
        push(&board[..plan.board], slices, &mut filled);
    }
    (filled, bytes + events)
}

/// Applies a write to its connection, in the order of the plan.
fn advance<S: Socket>(
    plan: &WritePlan,
    connection: &mut Connection<S>,
    source: &mut WriteContext<'_>,
    sent: usize,
    now: Now,
) {
    let mut left = sent;
    if sent > 0 && connection.blocked_since.is_some() {
        connection.blocked_since = Some(now.instant.into());
    }
    if plan.partial > 0 {
        let taken = left.min(plan.partial);
        advance_partial(connection, source, taken, taken == plan.partial);
        left -= taken;
    }
    let control = left.min(plan.control);
    left -= control;
    if control > 0 || (plan.is_close && plan.control == 0 && connection.partial.is_none()) {
        advance_control(plan, connection, source, control);
    }
    if plan.board_first {
        left = advance_board(plan, connection, source, left);
    }
    if let (Some(due), Some(subscription), true) = (&plan.due, &mut connection.subscription, left > 0) {
        let taken = left.min(plan.events);
        let progress = source.history.progress(subscription.position, due, taken);
        subscription.position = progress.position;
        source.counts.sent += progress.frames;
        if let Some(partial) = PartialFrame::event(&progress, source.history) {
            connection.partial = Some(partial);
        }
        left -= taken;
    }
    if plan.catch_up_frames {
        left -= advance_catch_up(connection, source, left);
    }
    if !plan.board_first {
        advance_board(plan, connection, source, left);
    }
    if let CloseState::Closing(pending_close) = &connection.end
        && pending_close.close_sent
        && connection.partial.is_none()
    {
        connection.end = CloseState::Closed { reason: pending_close.reason, close_sent: true };
        connection.socket.wake();
    }
}

fn advance_partial<S>(connection: &mut Connection<S>, source: &mut WriteContext<'_>, taken: usize, whole: bool) {
    match &mut connection.partial {
        partial @ Some(_) if whole => {
            if let Some(partial) = partial.take() {
                source.counts.sent += partial.texts();
                partial.release(source.history);
            }
        }
        Some(PartialFrame::Bytes(unsent)) => unsent.sent += taken,
        Some(PartialFrame::Event { sent, .. }) => {
            *sent += u32::try_from(taken).expect("less than a frame's length, which has 32 bits");
        }
        None => {}
    }
}

fn advance_control<S>(plan: &WritePlan, connection: &mut Connection<S>, source: &mut WriteContext<'_>, taken: usize) {
    if plan.is_close {
        if let CloseState::Closing(pending_close) = &mut connection.end {
            pending_close.close_sent = true;
        }
    } else {
        connection.control_due = super::connection::ControlDue::default();
        connection.ping_payload = None;
    }
    if taken == plan.control {
        source.counts.sent += plan.control_texts;
    } else {
        let rest = source.scratch.control[taken..plan.control].into();
        connection.partial = Some(PartialFrame::bytes(rest, plan.control_texts));
    }
}

/// Applies a write of events made for this connection alone; returns how many of the bytes were theirs.
fn advance_catch_up<S>(connection: &mut Connection<S>, source: &mut WriteContext<'_>, left: usize) -> usize {
    let (Some(subscription), CatchUpFrames { bytes, frames, passed, .. }) =
        (&mut connection.subscription, &source.scratch.catch_up_frames)
    else {
        return 0;
    };
    let taken = left.min(bytes.len());
    let mut start = 0;
    for &(end, after) in frames {
        if end > taken {
            if start < taken {
                // The connection owns the partial frame, so its position is past it.
                connection.partial = Some(PartialFrame::bytes(bytes[taken..end].into(), 1));
                subscription.position = after;
            }
            return taken;
        }
        subscription.position = after;
        source.counts.sent += u64::from(end > start);
        start = end;
    }
    if *passed {
        connection.resume_filter = None;
    }
    taken
}

/// Applies a write of board changes; returns the number of bytes that belong to what follows.
fn advance_board<S>(
    plan: &WritePlan,
    connection: &mut Connection<S>,
    source: &mut WriteContext<'_>,
    left: usize,
) -> usize {
    let taken = left.min(plan.board);
    if taken == 0 {
        return left;
    }
    connection.record_board_write(&source.board.changes_since(connection.board_seen), taken, source.counts);
    left - taken
}

/// What is due to the subscribers of an assessment that are at one position.
pub(super) struct SharedWrite<'a> {
    pub(super) from: Position,
    pub(super) due: DueFrames,
    /// Their progress once they have it.
    pub(super) after: WriteProgress,
    pub(super) slices: [IoSlice<'a>; WRITE_SLICES_MAX],
    pub(super) filled: usize,
    /// Whether one write holds all entries up to the end of the log.
    pub(super) is_all: bool,
}

impl<'a> SharedWrite<'a> {
    pub(super) fn of(history: &'a History, due: DueFrames, from: Position, end: Position) -> Self {
        let mut slices = [IoSlice::new(&[]); WRITE_SLICES_MAX];
        let (filled, bytes) = history.slices(&due, &mut slices);
        let after = history.progress(from, &due, due.bytes);
        let is_all = bytes == due.bytes && after.position.is_at(end);
        Self { from, due, after, slices, filled, is_all }
    }
}
