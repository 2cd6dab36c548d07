//! One connection: its position, its version of the board, the control messages due to it, and how it ends. It owns no
//! queue: events wait in the history, prices on the board, and control messages as flags here.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use slotmap::{SlotMap, new_key_type};

use super::metrics::TurnCounts;
use super::redirect::{OwnerDoubt, Redirect};
use crate::ids::AssessmentHash;
use crate::limits::CLOSE_STALL_MAX;
use crate::protocol::close::CloseReason;
use crate::protocol::messages::ResetReason;
use crate::stream::board::{BoardChanges, BoardVersion};
use crate::stream::history::{AssessmentLogKey, FrameRef, History, Position, WriteProgress};
use crate::stream::offsets::ResumeFilter;

new_key_type! {
    /// A connection of a shard. A key that outlives its connection matches no other.
    pub(super) struct ConnectionKey;
}

/// What a connection is written to. The edge's is a socket, the tests' a script.
pub(super) trait Socket {
    /// Writes what the socket takes now, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` where it takes nothing; anything else where the connection is gone.
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Tells the connection's own task to look at it: its socket is full, or it has ended.
    fn wake(&self);

    /// Prefetches the last of these connections, which is written next. A hint without effect on results.
    fn fetch_ahead(_this: (ConnectionKey, &Connection<Self>), _others: &[ConnectionKey])
    where
        Self: Sized,
    {
    }
}

/// A connection.
///
/// ```text
/// live --close(reason)--> ending: what is half written, a redirect if any, the close frame --written or cut--> over
///  \---------------------------------- gone (error, end of input) ---------------------------------------------^
/// ```
///
/// Fields are in memory order: those read for every event come first, within three cache lines. With many thousands of
/// connections none of it is cached, and each further line would add a stall.
#[repr(C)]
pub(super) struct Connection<S> {
    pub(super) socket: S,
    /// The assessment that it watches; without one it gets market data alone.
    pub(super) subscription: Option<Subscription>,
    /// The rest of what is half written: it goes before all else.
    pub(super) partial: Option<PartialFrame>,
    /// What its cursor covers. Until it has been sent everything beyond, its frames are made for it alone.
    pub(super) resume_filter: Option<Box<ResumeFilter>>,
    /// The payload of the newest WebSocket ping that was not answered yet (RFC 6455 section 5.5.3 lets the rest go).
    pub(super) ping_payload: Option<Box<[u8]>>,
    /// Since when its socket takes nothing.
    pub(super) blocked_since: Option<Instant>,
    pub(super) end: CloseState,
    /// What else it is to be told, besides events and markets.
    pub(super) control_due: ControlDue,
    /// Whether it waits in the [`DueQueue`].
    pub(super) queued: QueuedFlag,
    /// It resumed and has not been sent all missed events yet.
    pub(super) catching_up: bool,
    /// Signs against the owner named by the view when the client arrived.
    pub(super) owner_doubt: OwnerDoubt,
    /// How far it has seen the board.
    pub(super) board_seen: BoardVersion,
    /// The board's version at connect. Until it has seen this version, the board precedes its events (PROTOCOL 2).
    pub(super) board_at_open: BoardVersion,
    /// Its place in the shard's roster.
    pub(super) index: u32,
    pub(super) opened: Instant,
    /// When it last gave a sign of life.
    pub(super) heard_at: Instant,
    /// When it was last sent a heartbeat.
    pub(super) pinged_at: Instant,
    /// When it was last told that a message was none.
    pub(super) bad_message_at: Option<Instant>,
    /// When its token expires, on the monotonic clock: a wall-clock step disconnects nobody.
    pub(super) token_expires_at: Option<Instant>,
    pub(super) inbound: InboundBucket,
}

/// A connection's part in its assessment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subscription {
    pub(super) log_key: AssessmentLogKey,
    pub(super) hash: AssessmentHash,
    pub(super) position: Position,
    /// Its place among the chain's watchers.
    pub(super) index: u32,
}

/// The rest of a frame that is half written.
#[derive(Debug)]
pub(super) enum PartialFrame {
    /// Bytes of its own: a control frame, a market's, or the greeting.
    Bytes(Box<UnsentBytes>),
    /// An event's frame, written up to `sent`. The position is past it already, and the history keeps the frame until
    /// [`PartialFrame::release`].
    Event { frame: FrameRef, sent: u32 },
}

// Each connection has room for one, idle or not.
const _: () = assert!(size_of::<Option<PartialFrame>>() == 16);

/// Bytes of a connection's own that are half written.
#[derive(Debug)]
pub(super) struct UnsentBytes {
    pub(super) bytes: Box<[u8]>,
    /// How many of them are written.
    pub(super) sent: usize,
    /// Text frames that are written when all of them are.
    pub(super) texts: u64,
}

impl PartialFrame {
    pub(super) fn bytes(bytes: Box<[u8]>, texts: u64) -> Self {
        Self::Bytes(Box::new(UnsentBytes { bytes, sent: 0, texts }))
    }

    /// What a write left half written of the history's frames.
    pub(super) fn event(progress: &WriteProgress, history: &mut History) -> Option<Self> {
        let (frame, sent) = progress.partial?;
        history.hold(frame);
        Some(Self::Event { frame, sent })
    }

    /// It is written, or its connection is over.
    pub(super) fn release(self, history: &mut History) {
        if let Self::Event { frame, .. } = self {
            history.release(frame);
        }
    }

    /// Text frames that are written when all of it is.
    pub(super) fn texts(&self) -> u64 {
        match self {
            Self::Bytes(rest) => rest.texts,
            Self::Event { .. } => 1,
        }
    }
}

impl UnsentBytes {
    /// What is not written yet.
    pub(super) fn left(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }
}

/// Control messages due to a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ControlDue {
    pub(super) heartbeat: bool,
    pub(super) pong: bool,
    pub(super) bad_message: bool,
    /// That it has to fetch its state anew, and why.
    pub(super) reset: Option<ResetReason>,
}

impl ControlDue {
    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// Whether and how a connection ends.
#[derive(Debug)]
pub(super) enum CloseState {
    /// It does not.
    Live,
    /// It is still to be told why.
    Closing(Box<PendingClose>),
    /// Its task is to let go of it.
    Closed { reason: CloseReason, close_sent: bool },
}

/// What a connection that ends is to be told.
#[derive(Debug)]
pub(super) struct PendingClose {
    pub(super) reason: CloseReason,
    /// Where it is to go.
    pub(super) to: Option<Redirect>,
    /// The client's own code, where it was the client that closed with one.
    pub(super) echo: Option<u16>,
    /// The last bytes are under way.
    pub(super) close_sent: bool,
    /// When its socket is aborted, close frame sent or not, unless it still accepts earlier bytes (see
    /// [`Connection::is_abort_due`]).
    pub(super) abort_at: Instant,
}

/// Token buckets for inbound frames. Control frames have their own: they are not messages, but a flood of them must hit
/// a limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct InboundBucket {
    /// In thousandths of a text message.
    texts: u32,
    /// In thousandths of a control frame.
    controls: u32,
    filled: Instant,
}

/// A text, or a control frame, in thousandths.
const ONE: u32 = 1000;

/// Control frames that are let pass for each text: far more than a client has reason to send.
const CONTROLS_PER_TEXT: u32 = 10;

impl InboundBucket {
    /// A full bucket: a burst of twice the rate.
    pub(super) fn full(per_second: u32, now: Instant) -> Self {
        Self { texts: burst(per_second), controls: burst(controls(per_second)), filled: now }
    }

    /// Takes a frame's token; `false` where the client is over its rate.
    pub(super) fn take(&mut self, is_text: bool, per_second: u32, now: Instant) -> bool {
        let passed_ms = u32::try_from(now.saturating_duration_since(self.filled).as_millis()).unwrap_or(u32::MAX);
        if passed_ms > 0 {
            let refill = |level: u32, rate: u32| level.saturating_add(passed_ms.saturating_mul(rate)).min(burst(rate));
            self.texts = refill(self.texts, per_second);
            self.controls = refill(self.controls, controls(per_second));
            self.filled = now;
        }
        let level = if is_text { &mut self.texts } else { &mut self.controls };
        let left = level.checked_sub(ONE);
        *level = left.unwrap_or(*level);
        left.is_some()
    }
}

fn controls(per_second: u32) -> u32 {
    per_second.saturating_mul(CONTROLS_PER_TEXT)
}

fn burst(rate: u32) -> u32 {
    rate.saturating_mul(2 * ONE)
}

/// The connections that have more due than one turn's share, or wait to be served on their own. In the order in which
/// they are served, each once.
#[derive(Debug, Default)]
pub(super) struct DueQueue(VecDeque<ConnectionKey>);

/// Set while its connection is in the [`DueQueue`], which alone writes it.
#[derive(Debug, Default)]
pub(super) struct QueuedFlag(bool);

impl DueQueue {
    /// Queues a connection, unless it is queued already.
    pub(super) fn push<S>(&mut self, key: ConnectionKey, connection: &mut Connection<S>) {
        if !std::mem::replace(&mut connection.queued.0, true) {
            self.0.push_back(key);
        }
    }

    /// Takes out the connection that is next, past those that are gone.
    pub(super) fn pop<S>(&mut self, connections: &mut SlotMap<ConnectionKey, Connection<S>>) -> Option<ConnectionKey> {
        while let Some(key) = self.0.pop_front() {
            if let Some(connection) = connections.get_mut(key) {
                connection.queued.0 = false;
                return Some(key);
            }
        }
        None
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<S> Connection<S> {
    /// Whether only shared data is due to it, as to every up-to-date connection.
    pub(super) fn is_plain(&self) -> bool {
        self.partial.is_none()
            && self.resume_filter.is_none()
            && self.control_due.is_empty()
            && self.ping_payload.is_none()
            && self.is_open()
    }

    /// Whether it can be written to, waits for no turn, and does not end.
    pub(super) fn is_open(&self) -> bool {
        self.blocked_since.is_none() && !self.is_queued() && self.is_live()
    }

    /// Whether it waits in the [`DueQueue`] for its turn.
    pub(super) fn is_queued(&self) -> bool {
        self.queued.0
    }

    /// Moves it on by what was written of what it has not seen of the board.
    pub(super) fn record_board_write(&mut self, unseen: &BoardChanges<'_>, written: usize, counts: &mut TurnCounts) {
        let progress = unseen.progress(written);
        counts.sent += progress.frames;
        if let Some(until) = progress.cut_until {
            self.partial = Some(PartialFrame::bytes(unseen.bytes[written..until].into(), 1));
        }
        if let Some(version) = progress.version {
            self.board_seen = version;
        }
    }

    /// Whether it does not end.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.end, CloseState::Live)
    }

    /// Whether its closing time is over. A socket that still accepts earlier bytes, such as the rest of an event, is
    /// kept until it accepts nothing for [`CLOSE_STALL_MAX`], and for `stall_timeout` at most.
    pub(super) fn is_abort_due(&self, pending_close: &PendingClose, stall_timeout: Duration, now: Instant) -> bool {
        let since = |then: Instant| now.saturating_duration_since(then);
        let takes = self.blocked_since.is_some_and(|blocked| since(blocked) < CLOSE_STALL_MAX);
        now >= pending_close.abort_at && (!takes || since(pending_close.abort_at) >= stall_timeout)
    }

    /// Begins its end: it is told why, if the socket takes it within `linger`.
    pub(super) fn close(&mut self, reason: CloseReason, to: Option<Redirect>, now: Instant, linger: Duration) {
        if self.is_live() {
            let pending_close = PendingClose { reason, to, echo: None, close_sent: false, abort_at: now + linger };
            self.end = CloseState::Closing(Box::new(pending_close));
        }
    }
}

impl<S: Socket> Connection<S> {
    /// Notes that its socket is full.
    pub(super) fn block(&mut self, now: Instant) {
        self.blocked_since = Some(now);
        self.socket.wake();
    }

    /// Ends it without a close frame.
    pub(super) fn abort(&mut self, reason: CloseReason) {
        if !matches!(self.end, CloseState::Closed { .. }) {
            self.end = CloseState::Closed { reason, close_sent: false };
            self.socket.wake();
        }
    }
}
