//! What is due to one socket, in one write: the rest of what is half written, then what the connection is owed, its
//! events, the markets; or its farewell. And how far the write came.

use std::io::{self, ErrorKind, IoSlice};

use super::admission::Redirect;
use super::connection::{Connection, End, Socket, Tail};
use super::metrics::Counts;
use crate::clock::Now;
use crate::limits::{APART_BYTES_MAX, LINGER, STEPS_MAX, TURN_BYTES_MAX, WRITE_SLICES_MAX};
use crate::protocol::close::CloseReason;
use crate::protocol::messages::{self, ResetReason};
use crate::stream::board::Board;
use crate::stream::cursor;
use crate::stream::history::{Apart, ChainKey, Due, History, Lag, Position};

/// What a shard has for its connections.
pub(super) struct Source<'a> {
    pub(super) history: &'a mut History,
    pub(super) board: &'a Board,
    pub(super) scratch: &'a mut Scratch,
    pub(super) counts: &'a mut Counts,
}

/// Where frames of one connection alone are made.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Steps along the history that each flush has, to find what a connection lacks.
    pub(super) steps_max: usize,
    /// How many the one under way has left.
    pub(super) steps: usize,
    control: Vec<u8>,
    /// Events for a client that is not past its cursor.
    apart: Apart,
    /// A cursor.
    pub(super) text: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        let (control, apart, text) = (Vec::new(), Apart::default(), Vec::new());
        Self { steps_max: STEPS_MAX, steps: STEPS_MAX, control, apart, text }
    }
}

/// What came of a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Nothing more is due.
    Done,
    /// More is due than one turn's share.
    More,
    /// The socket takes no more: the connection's task waits for it.
    Blocked,
}

/// What is due in one write, by parts. In this order, or with the board before the events for a client that has not
/// seen all of it yet (PROTOCOL 2: first the board, then events).
#[derive(Debug, Default)]
struct Plan {
    tail: usize,
    control: usize,
    control_texts: u64,
    is_farewell: bool,
    due: Option<Due>,
    /// Its events are in the scratch, and not in the history.
    apart: bool,
    events: usize,
    board: usize,
    board_first: bool,
    /// What comes behind its events is for the next turn to find.
    is_unfinished: bool,
}

impl Plan {
    fn len(&self) -> usize {
        self.tail + self.control + self.events + self.board
    }
}

/// Writes what is due to a connection.
pub(super) fn flush<S: Socket>(connection: &mut Connection<S>, source: &mut Source<'_>, now: Now) -> Flushed {
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
            Written::Part => {
                source.counts.blocked += 1;
                connection.block(now.instant);
                return Flushed::Blocked;
            }
        }
    }
}

/// What became of one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// There was nothing to write, or nobody to write to.
    Nothing,
    /// Whether there is something to write, the next turn finds out.
    NotYet,
    /// So many bytes, all that were due.
    All(usize),
    /// Less than was due, or nothing.
    Part,
}

/// Does one write of what is due.
pub(super) fn write_once<S: Socket>(
    connection: &mut Connection<S>,
    source: &mut Source<'_>,
    now: Now,
    send: impl FnOnce(&S, &[IoSlice<'_>]) -> io::Result<usize>,
) -> Written {
    let Some(plan) = plan(connection, source, now) else {
        connection.cut(CloseReason::TooSlow);
        return Written::Nothing;
    };
    let len = plan.len();
    if len == 0 {
        return if plan.is_unfinished { Written::NotYet } else { Written::Nothing };
    }
    let mut slices = [IoSlice::new(&[]); WRITE_SLICES_MAX];
    let (filled, planned) = fill(&plan, connection, source, &mut slices);
    match send(&connection.socket, &slices[..filled]) {
        Ok(sent) => {
            source.counts.writes += 1;
            source.counts.bytes += sent as u64;
            account(&plan, connection, source, sent, now);
            if sent == planned { Written::All(sent) } else { Written::Part }
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Written::Part,
        Err(error) if error.kind() == ErrorKind::Interrupted => Written::All(0),
        Err(_) => {
            connection.cut(CloseReason::ClientGone);
            Written::Nothing
        }
    }
}

/// Finds what is due. `None` where the rest of a half-written event is gone, since more is half written than the history
/// keeps: the socket must be cut.
fn plan<S: Socket>(connection: &mut Connection<S>, source: &mut Source<'_>, now: Now) -> Option<Plan> {
    let mut plan = Plan { board_first: connection.seen < connection.greeted_with, ..Plan::default() };
    source.scratch.control.clear();
    let mut position = connection.watch.map(|watch| watch.position);
    if let Some(tail) = &connection.tail {
        plan.tail = rest(tail, source.history)?.len();
    }
    match &connection.end {
        End::Over { .. } => return Some(Plan::default()),
        End::Telling(farewell) if farewell.told => return Some(plan),
        End::Telling(_) => {
            plan_farewell(&mut plan, connection, source, position);
            return Some(plan);
        }
        End::Live => {}
    }
    if let Some((chain, at)) = connection.watch.map(|watch| watch.chain).zip(position) {
        let at = plan_events(&mut plan, connection, source, (chain, at));
        if at.is_none() && !connection.catching_up {
            connection.close(CloseReason::TooSlow, None, now.instant, LINGER);
            return self::plan(connection, source, now);
        }
        // The window has overtaken it while it was catching up.
        position = Some(at.unwrap_or_else(|| begin_anew(connection, source, chain, ResetReason::Lagged)));
    }
    plan.control_texts = write_owed(connection, source, position, now);
    plan.control = source.scratch.control.len();
    plan.board = source.board.unseen(connection.seen).bytes.len();
    Some(plan)
}

/// What is left of what is half written; `None` where that has left the history.
fn rest<'a>(tail: &'a Tail, history: &'a History) -> Option<&'a [u8]> {
    match tail {
        Tail::Bytes(rest) => Some(rest.left()),
        Tail::Event { frame, sent } => history.rest_of_frame(*frame, *sent),
    }
}

fn plan_farewell<S>(
    plan: &mut Plan,
    connection: &mut Connection<S>,
    source: &mut Source<'_>,
    position: Option<Position>,
) {
    write_cursor(connection, source, position);
    let End::Telling(farewell) = &connection.end else { return };
    let Scratch { control, text, .. } = &mut *source.scratch;
    if let Some(Redirect { to, from_draining }) = &farewell.to {
        // Its cursor is behind what the client was to be told of: elsewhere nobody would tell it.
        if let Some(reason) = connection.owed.reset {
            messages::reset(control, reason, as_cursor(text));
            plan.control_texts = 1;
        }
        let marked = as_cursor(text).filter(|_| *from_draining).and_then(cursor::mark_draining);
        let cursor = marked.as_deref().or(as_cursor(text));
        let message = match farewell.reason {
            CloseReason::TooOld => "the connection is as old as connections get here: connect anew",
            _ => "this assessment is served by another pod now",
        };
        messages::redirect(control, message, to, cursor);
        plan.control_texts += 1;
    }
    match farewell.echo {
        Some(code) => messages::goodbye(control, code),
        None => messages::close(control, farewell.reason),
    }
    plan.is_farewell = true;
    plan.control = control.len();
}

/// Finds which events are due from a position on; returns the position before them, or `None` where some have left the
/// history.
fn plan_events<S>(
    plan: &mut Plan,
    connection: &mut Connection<S>,
    source: &mut Source<'_>,
    (chain, mut position): (ChainKey, Position),
) -> Option<Position> {
    let watch = connection.watch.as_mut()?;
    if let Some(cover) = connection.cover.as_deref_mut() {
        let Scratch { apart, steps, .. } = &mut *source.scratch;
        source.history.make_apart(chain, position, cover, (APART_BYTES_MAX, steps), apart);
        if let Some(reason) = apart.refuted {
            // What it has of logs that lost nothing it does not get again.
            source.history.let_go_of_lost(cover);
            if reason != ResetReason::Expired || source.history.is_past(cover) {
                connection.cover = None;
            }
            return Some(begin_anew(connection, source, chain, reason));
        }
        position = apart.from;
        plan.is_unfinished = apart.is_unfinished;
        if source.history.lag(chain, &mut position) == Lag::Lost {
            return None;
        }
        watch.position = position;
        if !apart.frames.is_empty() {
            plan.apart = true;
            plan.events = apart.bytes.len();
            return Some(position);
        }
        if apart.is_unfinished {
            return Some(position);
        }
        if apart.passed {
            connection.cover = None;
        }
    }
    match source.history.lag(chain, &mut position) {
        Lag::Lost => return None,
        Lag::Current => connection.catching_up = false,
        Lag::Behind if source.scratch.steps == 0 => plan.is_unfinished = true,
        Lag::Behind => {
            let due = source.history.due(chain, position, (TURN_BYTES_MAX, &mut source.scratch.steps))?;
            plan.due = Some(due);
            plan.events = due.bytes;
            if let Some(due) = plan.due.take_if(|due| due.bytes == 0) {
                // None of them could be mapped: there is nothing to wait for. More may be behind them.
                position = source.history.progress(position, &due, 0).position;
                watch.position = position;
                plan.is_unfinished = source.history.lag(chain, &mut position) == Lag::Behind;
            }
        }
    }
    Some(position)
}

/// A client can't go on from where it was: it is sent a reset, and goes on live.
fn begin_anew<S>(
    connection: &mut Connection<S>,
    source: &mut Source<'_>,
    chain: ChainKey,
    reason: ResetReason,
) -> Position {
    let end = source.history.end(chain);
    if let Some(watch) = &mut connection.watch {
        watch.position = end;
    }
    connection.catching_up = false;
    connection.owed.reset = Some(reason);
    source.counts.reset(reason);
    end
}

/// Makes the cursor of a connection's position, which is before its next event, and behind what is half written.
fn write_cursor<S>(connection: &mut Connection<S>, source: &mut Source<'_>, position: Option<Position>) {
    source.scratch.text.clear();
    if let Some((watch, position)) = connection.watch.zip(position) {
        let cover = connection.cover.as_deref_mut();
        source.history.write_cursor(watch.chain, position, cover, &mut source.scratch.text);
    }
}

fn as_cursor(text: &[u8]) -> Option<&str> {
    std::str::from_utf8(text).ok().filter(|cursor| !cursor.is_empty())
}

/// Appends what a connection is owed; returns how many text frames that is.
fn write_owed<S>(connection: &mut Connection<S>, source: &mut Source<'_>, position: Option<Position>, now: Now) -> u64 {
    let owed = connection.owed;
    if owed.heartbeat || owed.reset.is_some() {
        write_cursor(connection, source, position);
    }
    let Scratch { control, text, .. } = &mut *source.scratch;
    if let Some(payload) = &connection.control_ping {
        messages::control_pong(control, payload);
    }
    if let Some(reason) = owed.reset {
        messages::reset(control, reason, as_cursor(text));
    }
    if owed.pong {
        messages::pong(control, now.unix);
    }
    if owed.heartbeat {
        messages::heartbeat(control, now.unix, as_cursor(text));
    }
    if owed.complaint {
        messages::error(control, "BadMessage", "a message is a JSON object with a string \"type\"");
    }
    u64::from(owed.pong) + u64::from(owed.heartbeat) + u64::from(owed.complaint) + u64::from(owed.reset.is_some())
}

/// Fills the slices of a plan; returns how many, and of how many bytes. Where the events need more slices than there
/// are, what follows them waits for the next write.
fn fill<'a, S>(
    plan: &Plan,
    connection: &'a Connection<S>,
    source: &'a Source<'_>,
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
    push(connection.tail.as_ref().and_then(|tail| rest(tail, source.history)).unwrap_or_default(), slices, &mut filled);
    push(&source.scratch.control[..plan.control], slices, &mut filled);
    let board = source.board.unseen(connection.seen).bytes;
    if plan.board_first {
        push(&board[..plan.board], slices, &mut filled);
    }
    let mut events_whole = true;
    let mut events = 0;
    if plan.apart {
        push(&source.scratch.apart.bytes, slices, &mut filled);
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

/// Moves a connection on by what was written, in the order in which it was due.
fn account<S: Socket>(plan: &Plan, connection: &mut Connection<S>, source: &mut Source<'_>, sent: usize, now: Now) {
    let mut left = sent;
    if sent > 0 && connection.blocked_since.is_some() {
        connection.blocked_since = Some(now.instant);
    }
    if plan.tail > 0 {
        let taken = left.min(plan.tail);
        account_tail(connection, source, taken, taken == plan.tail);
        left -= taken;
    }
    let control = left.min(plan.control);
    left -= control;
    if control > 0 || (plan.is_farewell && plan.control == 0 && connection.tail.is_none()) {
        account_control(plan, connection, source, control);
    }
    if plan.board_first {
        left = account_board(plan, connection, source, left);
    }
    if let (Some(due), Some(watch), true) = (&plan.due, &mut connection.watch, left > 0) {
        let taken = left.min(plan.events);
        let progress = source.history.progress(watch.position, due, taken);
        watch.position = progress.position;
        source.counts.sent += progress.frames;
        if let Some(tail) = Tail::event(&progress, source.history) {
            connection.tail = Some(tail);
        }
        left -= taken;
    }
    if plan.apart {
        left -= account_apart(connection, source, left);
    }
    if !plan.board_first {
        account_board(plan, connection, source, left);
    }
    if let End::Telling(farewell) = &connection.end
        && farewell.told
        && connection.tail.is_none()
    {
        connection.end = End::Over { reason: farewell.reason, told: true };
        connection.socket.wake();
    }
}

fn account_tail<S>(connection: &mut Connection<S>, source: &mut Source<'_>, taken: usize, whole: bool) {
    match &mut connection.tail {
        tail @ Some(_) if whole => {
            if let Some(tail) = tail.take() {
                source.counts.sent += tail.texts();
                tail.release(source.history);
            }
        }
        Some(Tail::Bytes(rest)) => rest.sent += taken,
        Some(Tail::Event { sent, .. }) => {
            *sent += u32::try_from(taken).expect("less than a frame's length, which has 32 bits");
        }
        None => {}
    }
}

fn account_control<S>(plan: &Plan, connection: &mut Connection<S>, source: &mut Source<'_>, taken: usize) {
    if plan.is_farewell {
        if let End::Telling(farewell) = &mut connection.end {
            farewell.told = true;
        }
    } else {
        connection.owed = super::connection::Owed::default();
        connection.control_ping = None;
    }
    if taken == plan.control {
        source.counts.sent += plan.control_texts;
    } else {
        let rest = source.scratch.control[taken..plan.control].into();
        connection.tail = Some(Tail::bytes(rest, plan.control_texts));
    }
}

/// Returns how many of the bytes were of events made for this connection alone.
fn account_apart<S>(connection: &mut Connection<S>, source: &mut Source<'_>, left: usize) -> usize {
    let (Some(watch), Apart { bytes, frames, passed, .. }) = (&mut connection.watch, &source.scratch.apart) else {
        return 0;
    };
    let taken = left.min(bytes.len());
    let mut start = 0;
    for &(end, after) in frames {
        if end > taken {
            if start < taken {
                // What is half written is the connection's own, so it is past it already.
                connection.tail = Some(Tail::bytes(bytes[taken..end].into(), 1));
                watch.position = after;
            }
            return taken;
        }
        watch.position = after;
        source.counts.sent += u64::from(end > start);
        start = end;
    }
    if *passed {
        connection.cover = None;
    }
    taken
}

/// Returns what is left for what comes after the board.
fn account_board<S>(plan: &Plan, connection: &mut Connection<S>, source: &mut Source<'_>, left: usize) -> usize {
    let taken = left.min(plan.board);
    if taken == 0 {
        return left;
    }
    connection.saw(&source.board.unseen(connection.seen), taken, source.counts);
    left - taken
}
