//! One connection: its position, its version of the board, the control messages due to it, and how it ends. It owns no
//! queue: events wait in the history, prices on the board, and control messages as flags here.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use slotmap::{SlotMap, new_key_type};

use super::client_identity::ClientIdentity;
use super::metrics::TurnCounts;
use super::redirect::{OwnerDoubt, Redirect};
use crate::clock::Moment;
use crate::ids::{AssessmentHash, AssessmentId};
use crate::limits::{CLOSE_STALL_MAX, TOKEN_EXPIRING_BEFORE, TOKEN_LEEWAY};
use crate::protocol::auth::Unauthorized;
use crate::protocol::close::CloseReason;
use crate::protocol::messages::ResetReason;
use crate::stream::board::{BoardChanges, BoardVersion};
use crate::stream::history::{AssessmentLogKey, FrameRef, History, Position, WriteProgress};
use crate::stream::offsets::ResumeFilter;

new_key_type! {
    /// A connection of a shard. A key that outlives its connection matches no other.
    pub(super) struct ConnectionKey;
}

/// Where a connection writes to. The edge's is a socket, the tests' a script.
pub(super) trait Socket {
    /// Writes what the socket takes now, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if it takes nothing now; any other kind if the connection is gone.
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Bytes that the client's system has acknowledged.
    fn acknowledged_bytes(&self) -> u64;

    /// Wakes the connection's task, because the socket is full or the connection has ended.
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
/// Live --close(reason)--> Closing: the partial frame, a redirect if any, the close frame --written or aborted--> Closed
///  \----------------------------------- gone (error, end of input) -------------------------------------------------^
/// ```
///
/// Fields are in memory order: those read for every event come first, within three cache lines. With many thousands of
/// connections none of it is cached, and each further line would add a stall.
#[repr(C)]
pub(super) struct Connection<S> {
    pub(super) socket: S,
    /// Its assessment; without one it gets market data alone.
    pub(super) subscription: Option<Subscription>,
    /// The rest of a frame that is half written. It goes before anything else.
    pub(super) partial: Option<PartialFrame>,
    /// What the client has by its cursor. Until it has been sent everything beyond, its frames are made for it alone.
    pub(super) resume_filter: Option<Box<ResumeFilter>>,
    /// The payload of the newest unanswered WebSocket ping (RFC 6455 section 5.5.3 requires no more).
    pub(super) ping_payload: Option<Box<PingPayload>>,
    /// When its socket last took something, if it is full.
    pub(super) blocked_since: Option<Moment>,
    pub(super) end: CloseState,
    /// Control messages due to it.
    pub(super) control_due: ControlDue,
    /// Whether it waits in the [`DueQueue`].
    pub(super) queued: QueuedFlag,
    /// Whether it resumed and has not been sent all missed events yet.
    pub(super) catching_up: bool,
    /// Sign against the owner named by the view when the client arrived.
    pub(super) owner_doubt: OwnerDoubt,
    /// Whether it was told that its token expires soon.
    pub(super) expiry_told: bool,
    /// The version of the board that it was sent.
    pub(super) board_seen: BoardVersion,
    /// The board's version at connect. Until it has seen this version, the board precedes its events (PROTOCOL 2).
    pub(super) board_at_open: BoardVersion,
    pub(super) opened: Moment,
    /// Time of the client's last frame.
    pub(super) heard_at: LifeTime,
    /// Time of the last heartbeat.
    pub(super) pinged_at: LifeTime,
    /// Complaints about bad messages.
    pub(super) complaints: OnceASecond,
    /// Tries to replace its token.
    pub(super) refreshes: OnceASecond,
    /// Expiry of its token on the monotonic clock: a step of the wall clock disconnects no client.
    pub(super) token_expires_at: Option<Moment>,
    pub(super) client: ClientIdentity,
    pub(super) inbound: InboundBucket,
    /// Its index in the list of all connections.
    pub(super) index: u32,
}

/// What a connection starts with.
pub(super) struct NewConnection<S> {
    pub(super) socket: S,
    pub(super) assessment: Option<AssessmentId>,
    /// Where the client wants to resume.
    pub(super) cursor: Option<Box<str>>,
    /// Who it is, from where, by which token.
    pub(super) client: ClientIdentity,
    /// Sign against the owner that the view names, if that is another pod.
    pub(super) owner_doubt: OwnerDoubt,
    /// The answer to the handshake. It is sent first.
    pub(super) accept: Vec<u8>,
    /// Unique among all connections.
    pub(super) id: Box<str>,
}

/// A connection's subscription to its assessment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subscription {
    pub(super) log_key: AssessmentLogKey,
    pub(super) hash: AssessmentHash,
    pub(super) position: Position,
    /// Its index in the list of subscribers.
    pub(super) index: u32,
}

/// Whether a pass ended within its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// It has ended.
    Done,
    /// Call again to continue it.
    More,
}

/// The rest of a frame of which the socket took a part.
#[derive(Debug)]
pub(super) enum PartialFrame {
    /// Bytes of this connection alone: a control frame, a tick, or the greeting.
    Bytes(Box<UnsentBytes>),
    /// An event's frame, written up to `sent`. The position is past it already, and the history keeps the frame until
    /// [`PartialFrame::release`].
    Event { frame: FrameRef, sent: u32 },
}

// Each connection has room for one, idle or not.
const _: () = assert!(size_of::<Option<PartialFrame>>() == 16);

/// Bytes of one connection alone, written in part.
#[derive(Debug)]
pub(super) struct UnsentBytes {
    pub(super) bytes: Box<[u8]>,
    /// Number of bytes written.
    pub(super) sent: usize,
    /// Number of text frames that they hold.
    pub(super) texts: u64,
}

impl PartialFrame {
    pub(super) fn bytes(bytes: Box<[u8]>, texts: u64) -> Self {
        Self::Bytes(Box::new(UnsentBytes { bytes, sent: 0, texts }))
    }

    /// The frame of the history that a write left half written, if any.
    pub(super) fn event(progress: &WriteProgress, history: &mut History) -> Option<Self> {
        let (frame, sent) = progress.partial?;
        history.hold(frame);
        Some(Self::Event { frame, sent })
    }

    /// Releases the history's frame, once it is written or the connection is gone.
    pub(super) fn release(self, history: &mut History) {
        if let Self::Event { frame, .. } = self {
            history.release(frame);
        }
    }

    /// Number of text frames that are complete once this is written.
    pub(super) fn texts(&self) -> u64 {
        match self {
            Self::Bytes(unsent) => unsent.texts,
            Self::Event { .. } => 1,
        }
    }
}

impl UnsentBytes {
    /// The bytes not written yet.
    pub(super) fn left(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }
}

/// The answer to a client that sent a new token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RefreshAnswer {
    /// The connection goes on by the new token.
    Refreshed,
    /// It goes on by the old one: the new one is rejected.
    Unauthorized(Unauthorized),
    /// The new one is another user's.
    OtherUser,
    /// The new one does not allow the assessment.
    Forbidden,
    /// Too many tokens are being checked, or this client tries more than once a second.
    TooOften,
}

/// Control messages due to a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each message is due or not")]
pub(super) struct ControlDue {
    pub(super) heartbeat: bool,
    pub(super) pong: bool,
    pub(super) bad_message: bool,
    /// The answer to the client's `refresh`.
    pub(super) refresh: Option<RefreshAnswer>,
    pub(super) token_expiring: bool,
    /// The reason for which it has to fetch its state again.
    pub(super) reset: Option<ResetReason>,
}

impl ControlDue {
    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Number of text frames.
    pub(super) fn texts(self) -> u64 {
        let flags = [self.heartbeat, self.pong, self.bad_message, self.token_expiring];
        let others = [self.refresh.is_some(), self.reset.is_some()];
        flags.into_iter().chain(others).map(u64::from).sum()
    }
}

/// Whether and how a connection ends.
#[derive(Debug)]
pub(super) enum CloseState {
    /// It is served.
    Live,
    /// The close frame is not sent completely.
    Closing(Box<PendingClose>),
    /// Nothing more is sent. Its task detaches it.
    Closed { reason: CloseReason, close_sent: bool },
}

/// The close sequence of a connection.
#[derive(Debug)]
pub(super) struct PendingClose {
    pub(super) reason: CloseReason,
    /// Target of a redirect, if any.
    pub(super) to: Option<Redirect>,
    /// The client's close code, if the client closed with one.
    pub(super) echo: Option<u16>,
    /// Whether the close frame is written, at least in part.
    pub(super) close_sent: bool,
    /// When its socket is aborted, close frame sent or not, unless it still accepts earlier bytes (see
    /// [`Connection::is_abort_due`]).
    pub(super) abort_at: Instant,
}

/// Token buckets for inbound frames. Control frames have their own: they are not messages, but a flood of them must hit
/// a limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct InboundBucket {
    /// Level in thousandths of a text message.
    texts: u32,
    /// Level in thousandths of a control frame.
    controls: u32,
    filled: LifeTime,
}

/// One text message or control frame, in thousandths.
const ONE: u32 = 1000;

/// Control frames allowed for each text message: far more than a client has reason to send.
const CONTROLS_PER_TEXT: u32 = 10;

impl InboundBucket {
    /// A full bucket: a burst of twice the rate.
    pub(super) fn full(per_second: u32) -> Self {
        let (texts, controls) = (burst(per_second), burst(controls(per_second)));
        Self { texts, controls, filled: LifeTime::default() }
    }

    /// Takes a frame's token; returns `false` if the client is over its rate.
    pub(super) fn take(&mut self, is_text: bool, per_second: u32, now: LifeTime) -> bool {
        let passed_ms = now.ms_since(self.filled);
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

/// A time in a connection's life: ms since it was opened, modulo 2^32. So a difference counts that is shorter than seven
/// weeks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct LifeTime(u32);

impl LifeTime {
    /// The ms from an earlier time to this one.
    pub(super) fn ms_since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }
}

/// Something that a client may cause once a second, and when it last did. For a second after seven weeks it counts as
/// just done.
#[derive(Debug, Clone, Copy)]
pub(super) struct OnceASecond(LifeTime);

const SECOND_MS: u32 = 1_000;

/// Not done yet.
impl Default for OnceASecond {
    fn default() -> Self {
        Self(LifeTime(0_u32.wrapping_sub(SECOND_MS)))
    }
}

impl OnceASecond {
    /// Whether it may be done now. Then it counts as done.
    pub(super) fn admit(&mut self, now: LifeTime) -> bool {
        let is_due = now.ms_since(self.0) >= SECOND_MS;
        if is_due {
            self.0 = now;
        }
        is_due
    }
}

/// The payload of a WebSocket ping.
pub(super) type PingPayload = Box<[u8]>;

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

    /// Whether it is live, not queued, and its socket not full.
    pub(super) fn is_open(&self) -> bool {
        self.blocked_since.is_none() && !self.is_queued() && self.is_live()
    }

    /// Whether it waits in the [`DueQueue`] for its turn.
    pub(super) fn is_queued(&self) -> bool {
        self.queued.0
    }

    /// Applies a write of board changes.
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

    /// Whether it is to be told that its token expires soon.
    pub(super) fn is_expiry_due(&self, now: Instant) -> bool {
        let is_soon =
            |ends: Moment| ends.instant().saturating_duration_since(now) <= TOKEN_LEEWAY + TOKEN_EXPIRING_BEFORE;
        !self.expiry_told && self.token_expires_at.is_some_and(is_soon)
    }

    /// Tells it, once, that its token expires soon.
    pub(super) fn tell_expiry(&mut self) {
        self.expiry_told = true;
        self.control_due.token_expiring = true;
    }

    /// The time in its life.
    #[expect(clippy::cast_possible_truncation, reason = "modulo 2^32")]
    pub(super) fn life(&self, now: Instant) -> LifeTime {
        LifeTime(now.saturating_duration_since(self.opened.instant()).as_millis() as u32)
    }

    /// How long ago a time in its life was.
    pub(super) fn since(&self, then: LifeTime, now: Instant) -> Duration {
        Duration::from_millis(self.life(now).ms_since(then).into())
    }

    /// Whether its end has not begun.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.end, CloseState::Live)
    }

    /// Whether its closing time is over. A socket that still accepts earlier bytes, such as the rest of an event, is
    /// kept until it accepts nothing for [`CLOSE_STALL_MAX`], and for `stall_timeout` at most.
    pub(super) fn is_abort_due(&self, pending_close: &PendingClose, stall_timeout: Duration, now: Instant) -> bool {
        let since = |then: Instant| now.saturating_duration_since(then);
        let takes = self.blocked_since.is_some_and(|blocked| since(blocked.instant()) < CLOSE_STALL_MAX);
        now >= pending_close.abort_at && (!takes || since(pending_close.abort_at) >= stall_timeout)
    }

    /// Begins its end: a close frame is sent, if the socket takes it within `linger`.
    pub(super) fn close(&mut self, reason: CloseReason, to: Option<Redirect>, now: Instant, linger: Duration) {
        if self.is_live() {
            let pending_close = PendingClose { reason, to, echo: None, close_sent: false, abort_at: now + linger };
            self.end = CloseState::Closing(Box::new(pending_close));
        }
    }
}

impl<S: Socket> Connection<S> {
    /// Marks its socket as full; its own task writes from now on.
    pub(super) fn block(&mut self, now: Instant) {
        self.blocked_since = Some(now.into());
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
