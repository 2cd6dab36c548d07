//! The bare loops that the gateway is measured against: nothing but what no gateway can do without. One sends frames by
//! a schedule of its own, one takes records from librdkafka as the gateway does; both go through the sockets of those
//! who watch, with one send(2) each. They keep no history, make no cursor, catch nobody up: what a full socket doesn't
//! take is lost, and counted. Of each there are as many processes as pods; each has its share of the clients, and all
//! of the load.

mod kafka;

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use super::payload::{frame, now_us, record, us};
use super::schedule::{DueItem, Load, assessment_number};
use super::wire::{FloorPlan, FloorSays, LoopSource};
use crate::process::{allow_descriptors, loopback};
use kafka::From;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// What every client is answered: all of ours send the same key (RFC 6455 section 1.3).
const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The first message, and the length of its frame: a gateway's, with its cursor.
const CONNECTED: &[u8] = br#"{"type":"connected","connectionId":"bare","resumed":false}"#;
const CONNECTED_BYTES: usize = 270;

/// Descriptors of a bare loop that no client takes.
pub(super) const SPARE_DESCRIPTORS: u64 = 200;

/// A request is no longer than this.
const HEAD_BYTES: usize = 4096;

/// The sockets of all clients.
struct Sockets {
    streams: Vec<TcpStream>,
    /// Those that watch each assessment: places among the streams.
    watchers: Vec<Vec<usize>>,
    sent: u64,
    refused: u64,
}

/// Runs the bare loop that the first line of the standard input tells of, until that ends.
///
/// # Errors
/// If a client or the brokers don't come.
pub fn run() -> Result<()> {
    let mut input = io::stdin().lock();
    let mut line = String::new();
    input.read_line(&mut line)?;
    let plan: FloorPlan = serde_json::from_str(&line).context("the first line is the plan")?;
    allow_descriptors(u64::from(plan.clients) + SPARE_DESCRIPTORS);
    let mut sockets = Sockets::accept(&plan)?;
    // What costs time to begin is there before the clients are told of.
    let reader = match &plan.source {
        LoopSource::Schedule(_) | LoopSource::Log { .. } => None,
        LoopSource::Kafka { brokers, topics } => Some(kafka::TopicReader::new(brokers, topics, From::Ends)?),
    };
    say(&FloorSays::Ready)?;
    line.clear();
    input.read_line(&mut line)?;
    drop(input);
    let ended = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let ended = Arc::clone(&ended);
        move || {
            // Blocked until the harness closes the pipe: it costs nothing meanwhile.
            let _ = io::stdin().read_to_end(&mut Vec::new());
            ended.store(true, Ordering::Relaxed);
        }
    });
    let mut bytes = Vec::new();
    match (reader, plan.source) {
        (Some(mut reader), _) => reader.each_until(&ended, |topic_is_ticks, key, payload| {
            frame(&mut bytes, payload, if topic_is_ticks { 0 } else { plan.frame_bytes });
            match (topic_is_ticks, assessment_number(key)) {
                (true, _) => sockets.send_to_all(&bytes),
                (false, Some(number)) => sockets.send_to(number, &bytes),
                (false, None) => {}
            }
        }),
        (None, LoopSource::Schedule(seconds)) => {
            by_schedule(&plan.load, seconds, plan.frame_bytes, &ended, &mut sockets)
        }
        (None, LoopSource::Log { brokers, topics }) => read_log(&brokers, &topics, &ended)?,
        (None, LoopSource::Kafka { .. }) => {}
    }
    // The clients still read: the sockets stay open until the harness has their counts.
    await_end(&ended);
    say(&FloorSays::Sent { frames: sockets.sent, refused: sockets.refused })
}

fn await_end(ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(20));
    }
}

/// Reads what the topics hold, and drops it.
fn read_log(brokers: &str, topics: &[String], ended: &AtomicBool) -> Result<()> {
    let mut reader = kafka::TopicReader::new(brokers, topics, From::Beginnings)?;
    let start = Instant::now();
    let records = reader.read_to_the_ends();
    say(&FloorSays::Read { records, us: us(start.elapsed()) })?;
    // librdkafka's threads end with the reader, and with them what they tell of their time.
    await_end(ended);
    Ok(())
}

fn by_schedule(load: &Load, seconds: f64, frame_bytes: usize, ended: &AtomicBool, sockets: &mut Sockets) {
    let (start, start_us) = (Instant::now(), now_us());
    let (mut payload, mut bytes) = (Vec::new(), Vec::new());
    for (due, what) in load.schedule(Duration::from_secs_f64(seconds)) {
        if let Some(early) = due.checked_sub(start.elapsed()) {
            thread::sleep(early);
        }
        if ended.load(Ordering::Relaxed) {
            return;
        }
        record(&mut payload, what, start_us + us(due), load.size);
        match what {
            DueItem::Event(number) => {
                frame(&mut bytes, &payload, frame_bytes);
                sockets.send_to(number, &bytes);
            }
            DueItem::Tick(_) => {
                frame(&mut bytes, &payload, 0);
                sockets.send_to_all(&bytes);
            }
        }
    }
}

fn say(what: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(what).context("plain values are JSON")?;
    line.push(b'\n');
    io::stdout().write_all(&line).and_then(|()| io::stdout().flush()).context("the harness is gone")
}

impl Sockets {
    /// Listens, says where, and takes all clients in, one after the other: a client costs five calls of the system, and
    /// its assessment is found in what it asks for. A client that never asks is the harness' to give up on.
    fn accept(plan: &FloorPlan) -> Result<Self> {
        let clients = plan.clients as usize;
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.bind(&SocketAddr::from((loopback(), 0)).into()).context("a loopback address")?;
        listener.listen(BACKLOG)?;
        let address = listener.local_addr()?.as_socket().context("an address of IPv4")?;
        say(&FloorSays::Listens(address))?;
        let mut sockets = Self {
            streams: Vec::with_capacity(clients),
            watchers: vec![Vec::new(); plan.load.assessments as usize],
            sent: 0,
            refused: 0,
        };
        let mut connected = Vec::new();
        frame(&mut connected, CONNECTED, CONNECTED_BYTES);
        let answer = [ANSWER, &connected].concat();
        while sockets.streams.len() < clients {
            let (socket, _) = listener.accept()?;
            let mut stream = TcpStream::from(socket);
            stream.set_nodelay(true)?;
            let number = read_assessment(&mut stream)?;
            let watchers = sockets.watchers.get_mut(number as usize).context("an assessment of the load")?;
            watchers.push(sockets.streams.len());
            stream.write_all(&answer)?;
            stream.set_nonblocking(true)?;
            sockets.streams.push(stream);
        }
        Ok(sockets)
    }

    fn send_to(&mut self, assessment: u32, frame: &[u8]) {
        for &place in &self.watchers[assessment as usize] {
            let is_sent = send(&self.streams[place], frame);
            self.sent += u64::from(is_sent);
            self.refused += u64::from(!is_sent);
        }
    }

    fn send_to_all(&mut self, frame: &[u8]) {
        for stream in &self.streams {
            let is_sent = send(stream, frame);
            self.sent += u64::from(is_sent);
            self.refused += u64::from(!is_sent);
        }
    }
}

/// One send(2), that waits for nothing; whether the socket took all.
fn send(stream: &TcpStream, frame: &[u8]) -> bool {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointer and the length are of a live slice, which the kernel only reads.
    let sent = unsafe { libc::send(stream.as_raw_fd(), frame.as_ptr().cast(), frame.len(), flags) };
    usize::try_from(sent) == Ok(frame.len())
}

/// Reads a request, and returns the number of the assessment that it asks for.
fn read_assessment(stream: &mut TcpStream) -> Result<u32> {
    let (mut buffer, mut len) = ([0; HEAD_BYTES], 0);
    while !buffer[..len].ends_with(b"\r\n\r\n") {
        let more = stream.read(&mut buffer[len..]).context("a client's request")?;
        ensure!(more > 0, "a client's request has no end");
        len += more;
    }
    assessment_of(&buffer[..len]).context("a client's request names its assessment")
}

/// The number of the assessment that a request asks for.
fn assessment_of(head: &[u8]) -> Option<u32> {
    let name = b"assessmentId=";
    let start = head.windows(name.len()).position(|window| window == name)? + name.len();
    let value = head[start..].split(|byte| matches!(byte, b'&' | b' ')).next()?;
    assessment_number(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_assessment() {
        let head = |query: &str| format!("GET /ws?{query} HTTP/1.1\r\nHost: bare\r\n\r\n");
        assert_eq!(assessment_of(head("assessmentId=load-12&token=t").as_bytes()), Some(12));
        assert_eq!(assessment_of(head("token=t&assessmentId=load-7").as_bytes()), Some(7));
        assert_eq!(assessment_of(head("token=t").as_bytes()), None);
    }
}
