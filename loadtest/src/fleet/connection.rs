//! One client's connection: it connects, counts what it receives, and keeps the cursor. It reads without blocking and
//! parses only sampled messages.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::Instant;

use serde::Deserialize;
use socket2::{Domain, Socket, Type};

use super::payload::{UnixUs, cursor_of, due_of, now_us, us};
use super::wire::Counts;
use crate::client::raw::opcode;
use crate::frames::{Frame, Frames, MessageKind};

/// Receive buffer of a slow client.
const SLOW_RECEIVE_BUFFER_BYTES: usize = 4 * 1024;

/// A connection, possibly still in its handshake.
#[derive(Debug)]
pub struct FleetConnection {
    stream: TcpStream,
    frames: Frames,
    began: Instant,
    /// Unix time at which it was accepted. Events due before that are caught up.
    since: Option<UnixUs>,
    phase: ConnectionPhase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionPhase {
    /// The socket is connecting.
    Connecting,
    /// The request was sent.
    Open,
}

/// State of a client that survives its connections.
#[derive(Debug, Default)]
pub struct ClientState {
    /// Whether it keeps its cursor, which only clients that reconnect need.
    pub keeps_cursor: bool,
    /// Whether it is slow.
    pub is_slow: bool,
    /// The last cursor received, if it keeps one.
    pub cursor: String,
}

/// Result of a read.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// The connection stays open.
    On,
    /// The connection ended with this close code.
    Ended(u16),
    /// A redirect to this URL.
    Moved(String),
    /// The connection failed, for this reason.
    Failed(String),
}

/// Chooses the messages to parse. The gaps are random, so that they don't match a rhythm of the load.
#[derive(Debug)]
pub struct Sampler {
    every: u32,
    left: u32,
}

impl Sampler {
    /// Samples one in `every` messages, on average.
    #[must_use]
    pub fn new(every: u32) -> Self {
        Self { every, left: 0 }
    }

    /// Whether to sample this message.
    fn is_due(&mut self) -> bool {
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            return false;
        }
        self.left = fastrand::u32(0..=2 * (self.every - 1));
        true
    }
}

impl FleetConnection {
    /// Starts to connect, from this source address if given.
    ///
    /// # Errors
    /// If no descriptor or no port is left.
    pub fn begin(to: SocketAddr, source: Option<Ipv4Addr>, is_slow: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if is_slow {
            socket.set_recv_buffer_size(SLOW_RECEIVE_BUFFER_BYTES)?;
        }
        if let Some(source) = source {
            bind_address_alone(&socket)?;
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let (stream, frames) = (TcpStream::from(socket), Frames::default());
        Ok(Self { stream, frames, began: Instant::now(), since: None, phase: ConnectionPhase::Connecting })
    }

    /// Its socket's descriptor.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Whether the socket is still connecting.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        self.phase == ConnectionPhase::Connecting
    }

    /// Whether it has received `connected`.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.since.is_some()
    }

    /// Sends the request once the socket is connected.
    ///
    /// # Errors
    /// If the connection was refused.
    pub fn ask(&mut self, head: &str) -> io::Result<()> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        self.stream.write_all(head.as_bytes())?;
        self.phase = ConnectionPhase::Open;
        Ok(())
    }

    /// Reads what has arrived, up to `budget` bytes, and counts it.
    pub fn read(
        &mut self,
        scratch: &mut [u8],
        mut budget: usize,
        memory: &mut ClientState,
        counts: &mut Counts,
        sampler: &mut Sampler,
    ) -> ReadOutcome {
        while budget > 0 {
            let room = scratch.len().min(budget);
            let len = match self.stream.read(&mut scratch[..room]) {
                Ok(0) => return self.ended(),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return ReadOutcome::On,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return self.ended(),
            };
            let mut seen =
                FrameCounter { counts, memory, sampler, since: self.since, began: self.began, turn: ReadOutcome::On };
            let mut pong = Vec::new();
            let taken = self.frames.take(&scratch[..len], |frame| seen.frame(frame, &mut pong));
            self.since = seen.since;
            let turn = seen.turn;
            if let Err(fault) = taken {
                return ReadOutcome::Failed(fault.to_string().lines().next().unwrap_or_default().to_owned());
            }
            if !pong.is_empty() {
                // A gateway with a full socket is not waiting for a pong.
                let _ = self.stream.write(&pong);
            }
            if turn != ReadOutcome::On {
                return turn;
            }
            // Everything that has arrived is read, so another read would only return `WouldBlock`.
            if len < room {
                return ReadOutcome::On;
            }
            budget -= len;
        }
        ReadOutcome::On
    }

    fn ended(&self) -> ReadOutcome {
        if self.is_open() {
            ReadOutcome::Ended(1006)
        } else {
            ReadOutcome::Failed("the connection ended before `connected`".into())
        }
    }
}

/// Counts the frames of a read.
struct FrameCounter<'a> {
    counts: &'a mut Counts,
    memory: &'a mut ClientState,
    sampler: &'a mut Sampler,
    since: Option<UnixUs>,
    began: Instant,
    turn: ReadOutcome,
}

impl FrameCounter<'_> {
    fn frame(&mut self, frame: Frame<'_>, pong: &mut Vec<u8>) {
        match frame.kind() {
            Some(MessageKind::Event) => self.event(frame.payload),
            Some(MessageKind::Market) => {
                self.counts.ticks += 1;
                self.sample(frame.payload, true);
            }
            Some(MessageKind::Connected) => self.connected(frame.payload),
            Some(MessageKind::Reset) => {
                self.counts.resets += 1;
                self.keep_cursor(frame.payload);
            }
            Some(MessageKind::Refusal) => self.refused(frame.payload),
            Some(MessageKind::Heartbeat) => {}
            None => self.control(frame, pong),
        }
    }

    fn event(&mut self, payload: &[u8]) {
        let header = if payload.len() < 126 { 2 } else { 4 };
        self.counts.events += 1;
        self.counts.slow_events += u64::from(self.memory.is_slow);
        self.counts.event_bytes += (payload.len() + header) as u64;
        self.keep_cursor(payload);
        self.sample(payload, false);
    }

    fn keep_cursor(&mut self, payload: &[u8]) {
        if self.memory.keeps_cursor
            && let Some(cursor) = cursor_of(payload)
        {
            self.memory.cursor.clear();
            self.memory.cursor.push_str(cursor);
        }
    }

    fn sample(&mut self, payload: &[u8], is_tick: bool) {
        if !self.sampler.is_due() {
            return;
        }
        let Ok(due) = due_of(payload) else {
            self.counts.strange += 1;
            return;
        };
        let latency = now_us().saturating_sub(due);
        let is_late = self.memory.is_slow || self.since.is_none_or(|since| due < since);
        match (is_tick, is_late) {
            (false, false) => self.counts.latencies.record(latency),
            (false, true) => self.counts.late_latencies.record(latency),
            (true, false) => self.counts.tick_latencies.record(latency),
            // The image that a new client gets: its ticks may be old.
            (true, true) => {}
        }
    }

    fn connected(&mut self, payload: &[u8]) {
        #[derive(Deserialize)]
        struct ConnectedMessage {
            #[serde(default)]
            resumed: bool,
            cursor: Option<String>,
        }
        let Ok(connected) = serde_json::from_slice::<ConnectedMessage>(payload) else {
            self.counts.strange += 1;
            return;
        };
        self.counts.connected += 1;
        self.counts.open += 1;
        self.counts.resumed += u64::from(connected.resumed);
        self.counts.handshakes.record(us(self.began.elapsed()));
        self.since = Some(now_us());
        if self.memory.keeps_cursor
            && let Some(cursor) = connected.cursor
        {
            self.memory.cursor = cursor;
        }
    }

    fn refused(&mut self, payload: &[u8]) {
        #[derive(Deserialize)]
        struct RefusalMessage {
            error: String,
            url: Option<String>,
            cursor: Option<String>,
        }
        let refusal = serde_json::from_slice(payload);
        self.turn = match refusal {
            Ok(RefusalMessage { url: Some(url), cursor, .. }) => {
                if self.memory.keeps_cursor
                    && let Some(cursor) = cursor
                {
                    self.memory.cursor = cursor;
                }
                ReadOutcome::Moved(url)
            }
            Ok(RefusalMessage { error, .. }) => ReadOutcome::Failed(error),
            Err(_) => ReadOutcome::Failed("neither type nor error".into()),
        };
    }

    fn control(&mut self, frame: Frame<'_>, pong: &mut Vec<u8>) {
        match frame.opcode {
            opcode::PING => {
                self.counts.pings += 1;
                // A control frame has at most 125 bytes. A zero mask leaves them unchanged.
                let length = u8::try_from(frame.payload.len().min(125)).expect("up to 125");
                pong.extend([0x80 | opcode::PONG, 0x80 | length, 0, 0, 0, 0]);
                pong.extend(&frame.payload[..usize::from(length)]);
            }
            opcode::CLOSE if self.turn == ReadOutcome::On => {
                let code = frame.payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                self.turn = ReadOutcome::Ended(code);
            }
            _ => {}
        }
    }
}

/// Lets bind choose only the address, and connect the port, so that one address has 28,000 ports for each gateway
/// (IP_BIND_ADDRESS_NO_PORT).
fn bind_address_alone(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&on)).expect("an int has four bytes");
    // SAFETY: the pointer and the length are of a live int, which the kernel only reads.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            len,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_n_messages_is_sampled_on_average_and_every_one_for_n_of_one() {
        let mut all = Sampler::new(1);
        assert!((0..100).all(|_| all.is_due()));
        let mut some = Sampler::new(16);
        let sampled = (0..160_000).filter(|_| some.is_due()).count();
        assert!((9_000..11_000).contains(&sampled), "{sampled} of 160,000");
    }
}
