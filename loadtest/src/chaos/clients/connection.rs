//! A client's connection from the first packet to the end, without blocking. It owns the socket and the frames and
//! leaves their meaning to [`super::client`].

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsRawFd as _, RawFd};

use socket2::{Domain, Socket, Type};
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use crate::client::Ask;

/// Longest response to a handshake, in bytes.
const ANSWER_BYTES_MAX: usize = 8 * 1024;

/// A connection, opening or open.
pub(super) enum ClientConnection {
    /// The request head is being sent, or the response is being read.
    Opening {
        /// The socket.
        stream: TcpStream,
        /// Unsent bytes of the request head.
        head: Vec<u8>,
        /// Received bytes of the response.
        answer: Vec<u8>,
    },
    /// The handshake is complete.
    Open(Box<WebSocket<TcpStream>>),
}

/// Result of a turn of the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ConnectionEvent {
    /// A text message.
    Text(String),
    /// A completed handshake or a control frame: the pod is alive.
    Activity,
    /// A close frame with this code.
    Close(u16),
    /// The end of the connection with its reason; before the handshake is complete, the pod's response line.
    Ended(String),
    /// Nothing more to read.
    Nothing,
}

impl ClientConnection {
    /// Starts to open a connection. `receive_buffer` limits the kernel's receive buffer.
    pub(super) fn begin(ask: &Ask, receive_buffer: Option<usize>) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        match socket.connect(&ask.address().into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        Ok(Self::Opening { stream: socket.into(), head: ask.head().into_bytes(), answer: Vec::new() })
    }

    /// Descriptor and events for `poll`.
    pub(super) fn poll(&self) -> (RawFd, libc::c_short) {
        match self {
            Self::Opening { stream, head, .. } if !head.is_empty() => (stream.as_raw_fd(), libc::POLLOUT),
            Self::Opening { stream, .. } => (stream.as_raw_fd(), libc::POLLIN),
            Self::Open(socket) => (socket.get_ref().as_raw_fd(), libc::POLLIN),
        }
    }

    /// Returns the socket, to keep it open without reading it.
    pub(super) fn into_socket(self) -> TcpStream {
        match self {
            Self::Opening { stream, .. } => stream,
            Self::Open(socket) => socket.get_ref().try_clone().expect("a descriptor is left"),
        }
    }

    /// Makes progress without blocking and returns the result.
    pub(super) fn turn(&mut self) -> ConnectionEvent {
        match self {
            Self::Opening { stream, head, answer } => match open(stream, head, answer) {
                Ok(None) => ConnectionEvent::Nothing,
                Ok(Some(rest)) => {
                    let stream = stream.try_clone().expect("a descriptor is left");
                    let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
                    let socket = WebSocket::from_partially_read(stream, rest, Role::Client, Some(config));
                    *self = Self::Open(Box::new(socket));
                    ConnectionEvent::Activity
                }
                Err(why) => ConnectionEvent::Ended(why),
            },
            Self::Open(socket) => receive(socket),
        }
    }

    /// Sends a text message. If the pod is gone, reading will report it.
    pub(super) fn send(&mut self, text: &str) {
        if let Self::Open(socket) = self {
            let _ = socket.send(Message::text(text));
        }
    }

    /// Sends a close frame.
    pub(super) fn close(&mut self) {
        if let Self::Open(socket) = self {
            let _ = socket.close(Some(CloseFrame { code: 1000.into(), reason: "".into() }));
        }
    }
}

fn receive(socket: &mut WebSocket<TcpStream>) -> ConnectionEvent {
    match socket.read() {
        Ok(Message::Text(text)) => ConnectionEvent::Text(text.as_str().to_owned()),
        Ok(Message::Close(frame)) => ConnectionEvent::Close(frame.map_or(1005, |frame| frame.code.into())),
        Ok(_) => ConnectionEvent::Activity,
        Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => ConnectionEvent::Nothing,
        Err(error) => ConnectionEvent::Ended(error.to_string()),
    }
}

/// Sends the request head and reads the response. After a 101, returns the bytes behind it.
fn open(stream: &mut TcpStream, head: &mut Vec<u8>, answer: &mut Vec<u8>) -> Result<Option<Vec<u8>>, String> {
    while !head.is_empty() {
        match stream.write(head) {
            Ok(count) => drop(head.drain(..count)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        }
    }
    loop {
        if let Some(at) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = answer.split_off(at + 4);
            let line = String::from_utf8_lossy(answer).lines().next().unwrap_or_default().to_owned();
            return if line.starts_with("HTTP/1.1 101 ") { Ok(Some(rest)) } else { Err(line) };
        }
        if answer.len() > ANSWER_BYTES_MAX {
            return Err("the response head is too long".to_owned());
        }
        let mut buffer = [0; 2048];
        match stream.read(&mut buffer) {
            Ok(0) => return Err("closed during the handshake".to_owned()),
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.to_string()),
        }
    }
}
