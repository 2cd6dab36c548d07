//! The bare loops that the gateway is compared with. One sends frames by its own schedule, the other takes records from
//! librdkafka as the gateway does. Both write to each subscriber's socket with one send(2). They keep no history, make
//! no cursors and don't let clients catch up: a frame that a full socket does not accept is lost and counted. Each loop
//! has as many processes as there are pods; each process has its share of the clients and the whole load.

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
use super::wire::{FloorMessage, FloorPlan, LoopSource};
use crate::process::{allow_descriptors, loopback};
use kafka::From;

/// Listen backlog.
const BACKLOG: i32 = 4096;

/// The response to every client. All our clients send the same key (RFC 6455 section 1.3).
const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The first message and the length of its frame, which is that of a gateway's with a cursor.
const CONNECTED: &[u8] = br#"{"type":"connected","connectionId":"bare","resumed":false}"#;
const CONNECTED_BYTES: usize = 270;

/// Descriptors of a bare loop besides its clients'.
pub(super) const SPARE_DESCRIPTORS: u64 = 200;

/// Longest request.
const HEAD_BYTES: usize = 4096;

/// The sockets of all clients.
struct Sockets {
    streams: Vec<TcpStream>,
    /// Indices of the subscribers' streams, by assessment.
    subscribers: Vec<Vec<usize>>,
    sent: u64,
    refused: u64,
}

/// Runs the bare loop of the plan in the first line of standard input, until that input ends.
///
/// # Errors
/// If a client or the brokers fail.
pub fn run() -> Result<()> {
    let mut input = io::stdin().lock();
    let mut line = String::new();
    input.read_line(&mut line)?;
    let plan: FloorPlan = serde_json::from_str(&line).context("the first line is the plan")?;
    allow_descriptors(u64::from(plan.clients) + SPARE_DESCRIPTORS);
    let mut sockets = Sockets::accept(&plan)?;
    // The slow start of the consumer happens before the loop reports that it is ready.
    let reader = match &plan.source {
        LoopSource::Schedule(_) | LoopSource::Log { .. } => None,
        LoopSource::Kafka { brokers, topics } => Some(kafka::TopicReader::new(brokers, topics, From::Ends)?),
    };
    send_message(&FloorMessage::Ready)?;
    line.clear();
    input.read_line(&mut line)?;
    drop(input);
    let ended = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let ended = Arc::clone(&ended);
        move || {
            // Blocks without CPU time until the harness closes the pipe.
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
            by_schedule(&plan.load, seconds, plan.frame_bytes, &ended, &mut sockets);
        }
        (None, LoopSource::Log { brokers, topics }) => read_log(&brokers, &topics, &ended)?,
        (None, LoopSource::Kafka { .. }) => {}
    }
    // The sockets stay open until the harness has the clients' counts, because the clients still read.
    await_end(&ended);
    send_message(&FloorMessage::Sent { frames: sockets.sent, refused: sockets.refused })
}

fn await_end(ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(20));
    }
}

/// Reads everything in the topics and discards it.
fn read_log(brokers: &str, topics: &[String], ended: &AtomicBool) -> Result<()> {
    let mut reader = kafka::TopicReader::new(brokers, topics, From::Beginnings)?;
    let start = Instant::now();
    let records = reader.read_to_the_ends();
    send_message(&FloorMessage::Read { records, us: us(start.elapsed()) })?;
    // librdkafka's threads, and their CPU time in /proc, end with the reader.
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

fn send_message(what: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(what).context("plain values are JSON")?;
    line.push(b'\n');
    io::stdout().write_all(&line).and_then(|()| io::stdout().flush()).context("the harness is gone")
}

impl Sockets {
    /// Listens, reports the address, and accepts all clients one after the other, with five system calls for each.
    /// Their requests name the assessment. The harness gives up on a client that never sends its request.
    fn accept(plan: &FloorPlan) -> Result<Self> {
        let clients = plan.clients as usize;
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.bind(&SocketAddr::from((loopback(), 0)).into()).context("a loopback address")?;
        listener.listen(BACKLOG)?;
        let address = listener.local_addr()?.as_socket().context("an address of IPv4")?;
        send_message(&FloorMessage::Listens(address))?;
        let mut sockets = Self {
            streams: Vec::with_capacity(clients),
            subscribers: vec![Vec::new(); plan.load.assessments as usize],
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
            let subscribers = sockets.subscribers.get_mut(number as usize).context("an assessment of the load")?;
            subscribers.push(sockets.streams.len());
            stream.write_all(&answer)?;
            stream.set_nonblocking(true)?;
            sockets.streams.push(stream);
        }
        Ok(sockets)
    }

    fn send_to(&mut self, assessment: u32, frame: &[u8]) {
        for &index in &self.subscribers[assessment as usize] {
            let is_sent = send(&self.streams[index], frame);
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

/// One non-blocking send(2). Returns whether the socket accepted the whole frame.
fn send(stream: &TcpStream, frame: &[u8]) -> bool {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointer and the length are of a live slice, which the kernel only reads.
    let sent = unsafe { libc::send(stream.as_raw_fd(), frame.as_ptr().cast(), frame.len(), flags) };
    usize::try_from(sent) == Ok(frame.len())
}

/// Reads a request and returns the number of its assessment.
fn read_assessment(stream: &mut TcpStream) -> Result<u32> {
    let (mut buffer, mut len) = ([0; HEAD_BYTES], 0);
    while !buffer[..len].ends_with(b"\r\n\r\n") {
        let more = stream.read(&mut buffer[len..]).context("a client's request")?;
        ensure!(more > 0, "a client's request has no end");
        len += more;
    }
    assessment_of(&buffer[..len]).context("a client's request names its assessment")
}

/// The number of the assessment in a request.
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
