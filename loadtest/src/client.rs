//! WebSocket clients: their requests, and the messages that they receive, in order. Hundreds of them run on the one
//! thread of their test. [`raw`] has the clients that break the protocol.

pub mod raw;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer as _};
use serde_json::Value;
use serde_json::value::RawValue;
use socket2::{Domain, Socket, Type};
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, WebSocket};

use crate::http::HttpResponse;
use crate::token;

/// Time limit for a message to a client, on a busy machine.
pub const WITHIN: Duration = Duration::from_secs(20);

/// Interval at which [`read_until`] evaluates its condition if no client receives anything.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// The key of RFC 6455 section 1.3 and the server's answer to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

// ---- requests -------------------------------------------------------------------------------------------------------

/// A client's request. By default, market data for [`token::USER`].
#[derive(Debug, Clone)]
pub struct Ask {
    address: SocketAddr,
    path: String,
    query: Vec<String>,
    token: Option<String>,
    headers: Vec<(String, String)>,
    source: Option<Ipv4Addr>,
    receive_buffer: Option<usize>,
}

impl Ask {
    /// A request to a URL such as `ws://127.0.0.1:3003/ws`.
    ///
    /// # Panics
    /// If it is not of this form.
    #[must_use]
    #[track_caller]
    pub fn to(url: &str) -> Self {
        let rest = url.strip_prefix("ws://").unwrap_or_else(|| panic!("{url} doesn't begin with ws://"));
        let (address, path) = rest.split_once('/').unwrap_or_else(|| panic!("{url} has no path"));
        let headers = [
            ("Host", address),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", KEY),
        ];
        Self {
            address: address.parse().unwrap_or_else(|error| panic!("{url}: {error}")),
            path: format!("/{path}"),
            query: Vec::new(),
            token: Some(token::good()),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            source: None,
            receive_buffer: None,
        }
    }

    /// Subscribes to an assessment.
    #[must_use]
    pub fn assessment(self, id: &str) -> Self {
        let id = percent_encoded(id);
        self.parameter(&format!("assessmentId={id}"))
    }

    /// Adds a parameter to the query, without encoding.
    #[must_use]
    pub fn parameter(mut self, parameter: &str) -> Self {
        self.query.push(parameter.to_owned());
        self
    }

    /// Sets the token in the query.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Removes the token.
    #[must_use]
    pub fn without_token(mut self) -> Self {
        self.token = None;
        self
    }

    /// Sets a header.
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Self {
        let mut ask = self.without_header(name);
        ask.headers.push((name.to_owned(), value.to_owned()));
        ask
    }

    /// Removes a header.
    #[must_use]
    pub fn without_header(mut self, name: &str) -> Self {
        self.headers.retain(|(found, _)| !found.eq_ignore_ascii_case(name));
        self
    }

    /// Sets the path.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Connects from this loopback address. Each has its own 28,000 ports.
    #[must_use]
    pub fn from(mut self, source: Ipv4Addr) -> Self {
        self.source = Some(source);
        self
    }

    /// Sets the size of the receive buffer (SO_RCVBUF).
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// The pod's address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The request head, as it is sent.
    #[must_use]
    pub fn head(&self) -> String {
        let token = self.token.iter().map(|token| format!("token={token}"));
        let query: Vec<_> = self.query.iter().cloned().chain(token).collect();
        let separator = if query.is_empty() { "" } else { "?" };
        let mut head = format!("GET {}{separator}{} HTTP/1.1\r\n", self.path, query.join("&"));
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head + "\r\n"
    }

    /// Opens a connection and sends nothing yet.
    ///
    /// # Panics
    /// If the connection fails.
    #[must_use]
    #[track_caller]
    pub fn connect(&self) -> TcpStream {
        self.try_connect().unwrap_or_else(|error| panic!("connect to {}: {error}", self.address))
    }

    /// Opens a connection and sends nothing yet.
    ///
    /// # Errors
    /// If the connection fails.
    ///
    /// # Panics
    /// If the machine has no descriptor left.
    #[track_caller]
    pub fn try_connect(&self) -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a descriptor is left");
        if let Some(source) = self.source {
            socket.bind(&SocketAddr::from((source, 0)).into()).expect("a loopback address");
        }
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes).expect("a size");
        }
        socket.connect_timeout(&self.address.into(), WITHIN)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(WITHIN)).expect("a timeout above 0");
        Ok(stream)
    }

    /// Completes the handshake.
    ///
    /// # Panics
    /// If the pod refuses with an HTTP response.
    #[must_use]
    #[track_caller]
    pub fn open(&self) -> Client {
        self.try_open().unwrap_or_else(|answer| panic!("refused: {} {}", answer.status, answer.text()))
    }

    /// Completes the handshake. `None` if that fails.
    #[must_use]
    pub fn attempt(&self) -> Option<Client> {
        let mut stream = self.try_connect().ok()?;
        std::io::Write::write_all(&mut stream, self.head().as_bytes()).ok()?;
        let answer = HttpResponse::read(&mut stream).ok()?;
        (answer.status == 101).then(|| Client::new(stream, answer))
    }

    /// Completes the handshake, or returns the pod's refusal.
    ///
    /// # Errors
    /// The HTTP response that refuses.
    ///
    /// # Panics
    /// If the response is not HTTP, or does not come.
    #[track_caller]
    pub fn try_open(&self) -> Result<Client, HttpResponse> {
        let mut stream = self.connect();
        std::io::Write::write_all(&mut stream, self.head().as_bytes()).expect("a head fits into the socket's buffer");
        let answer =
            HttpResponse::read(&mut stream).unwrap_or_else(|error| panic!("the answer to a handshake: {error:#}"));
        if answer.status != 101 {
            return Err(answer);
        }
        assert_eq!(answer.header("sec-websocket-accept"), Some(ACCEPT));
        Ok(Client::new(stream, answer))
    }
}

fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

// ---- received messages ----------------------------------------------------------------------------------------------

/// A text message that a client received.
#[derive(Debug, Clone)]
pub struct Message {
    /// Time when it was read.
    pub at: Instant,
    /// Its `type`, or its `error` if it has none.
    pub kind: String,
    /// Its text, as received.
    pub text: String,
}

impl Message {
    #[track_caller]
    fn new(text: &str) -> Self {
        #[derive(Deserialize)]
        struct UpgradeOutcome {
            r#type: Option<String>,
            error: Option<String>,
        }
        let head: UpgradeOutcome =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("invalid message, {error}: {text}"));
        let kind = head.r#type.or(head.error).unwrap_or_else(|| panic!("neither type nor error: {text}"));
        Self { at: Instant::now(), kind, text: text.to_owned() }
    }

    /// The message as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Its fields except `type` and `cursor`, in order, with the original bytes of each value.
    ///
    /// # Panics
    /// If it is not a JSON object, or has a field twice.
    #[must_use]
    #[track_caller]
    pub fn fields(&self) -> Vec<(String, String)> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Vec<(String, String)>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    fields.push((name, value.get().to_owned()));
                }
                Ok(fields)
            }
        }
        let mut fields = serde_json::Deserializer::from_str(&self.text)
            .deserialize_map(InOrder)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text));
        for (index, (name, _)) in fields.iter().enumerate() {
            assert!(fields[..index].iter().all(|(other, _)| other != name), "{name} twice: {}", self.text);
        }
        fields.retain(|(name, _)| name != "type" && name != "cursor");
        fields
    }
}

/// A client that follows the protocol: it answers pings and closes, and keeps all messages.
#[derive(Debug)]
pub struct Client {
    socket: WebSocket<TcpStream>,
    answer: HttpResponse,
    messages: Vec<Message>,
    /// Number of messages that `expect` has passed.
    passed: usize,
    pings: usize,
    pongs: Vec<Vec<u8>>,
    close: Option<(u16, String)>,
    ended: Option<Instant>,
}

impl Client {
    fn new(stream: TcpStream, mut answer: HttpResponse) -> Self {
        stream.set_nonblocking(true).expect("a socket");
        let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
        let rest = std::mem::take(&mut answer.body);
        let socket = WebSocket::from_partially_read(stream, rest, Role::Client, Some(config));
        let (messages, pongs) = (Vec::new(), Vec::new());
        Self { socket, answer, messages, passed: 0, pings: 0, pongs, close: None, ended: None }
    }

    /// The answer to its handshake.
    #[must_use]
    pub fn answer(&self) -> &HttpResponse {
        &self.answer
    }

    /// The messages received so far.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The messages of a type received so far.
    pub fn of_type<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Message> {
        self.messages.iter().filter(move |message| message.kind == kind)
    }

    /// The last cursor received so far.
    ///
    /// # Panics
    /// If there was none.
    #[must_use]
    #[track_caller]
    pub fn last_cursor(&self) -> String {
        let cursor = |message: &Message| Some(message.json()["cursor"].as_str()?.to_owned());
        self.messages.iter().rev().find_map(cursor).expect("a message with a cursor")
    }

    /// Number of ping frames received.
    #[must_use]
    pub fn pings(&self) -> usize {
        self.pings
    }

    /// Payloads of the pong frames received.
    #[must_use]
    pub fn pongs(&self) -> &[Vec<u8>] {
        &self.pongs
    }

    /// The close frame received, if any.
    #[must_use]
    pub fn close_frame(&self) -> Option<&(u16, String)> {
        self.close.as_ref()
    }

    /// Time when its connection ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<Instant> {
        self.ended
    }

    /// Sends a text message.
    ///
    /// # Panics
    /// If the connection has ended.
    #[track_caller]
    pub fn send(&mut self, text: &str) {
        self.send_frame(tungstenite::Message::text(text));
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// If the connection has ended.
    #[track_caller]
    pub fn send_frame(&mut self, frame: tungstenite::Message) {
        self.socket.send(frame).expect("the connection is open and takes a small frame");
    }

    /// Reads everything that has arrived.
    pub fn turn(&mut self) {
        while self.ended.is_none() {
            match self.socket.read() {
                Ok(tungstenite::Message::Text(text)) => {
                    self.messages.push(Message::new(text.as_str()));
                }
                Ok(tungstenite::Message::Ping(_)) => self.pings += 1,
                Ok(tungstenite::Message::Pong(payload)) => self.pongs.push(payload.to_vec()),
                Ok(tungstenite::Message::Close(frame)) => {
                    let frame =
                        frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
                    self.close = Some(frame);
                }
                Ok(other) => panic!("a pod sends no binary data: {other:?}"),
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(Error::ConnectionClosed | Error::AlreadyClosed | Error::Io(_)) => self.ended = Some(Instant::now()),
                Err(Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => {
                    self.ended = Some(Instant::now());
                }
                Err(error) => panic!("a pod sends good frames: {error}"),
            }
        }
    }

    /// Waits for the next message for which `is` holds, and skips those before it.
    ///
    /// # Panics
    /// If it does not come within [`WITHIN`].
    #[track_caller]
    pub fn expect(&mut self, what: &str, is: impl Fn(&Message) -> bool) -> Message {
        self.expect_within(what, WITHIN, is)
    }

    /// Waits for the next message for which `is` holds, and skips those before it.
    ///
    /// # Panics
    /// If it does not come `within` the time.
    #[track_caller]
    pub fn expect_within(&mut self, what: &str, within: Duration, is: impl Fn(&Message) -> bool) -> Message {
        let mut found = None;
        read_until(std::slice::from_mut(self), what, within, |clients| {
            let client = &mut clients[0];
            while found.is_none() && client.passed < client.messages.len() {
                let message = &client.messages[client.passed];
                client.passed += 1;
                found = is(message).then(|| message.clone());
            }
            found.is_some()
        });
        found.expect("read_until returns when it was found")
    }

    /// Waits for the next message of a type.
    ///
    /// # Panics
    /// If it does not come within [`WITHIN`].
    #[track_caller]
    pub fn expect_type(&mut self, kind: &str) -> Message {
        self.expect(kind, |message| message.kind == kind)
    }

    /// Waits until it has all that the pod had for it at this moment: the pod answers a ping behind that.
    ///
    /// # Panics
    /// If the answer does not come within [`WITHIN`].
    #[track_caller]
    pub fn catch_up(&mut self) {
        let before = self.of_type("pong").count();
        self.send(r#"{"type":"ping"}"#);
        read_until(std::slice::from_mut(self), "the answer to a ping", WITHIN, |clients| {
            clients[0].of_type("pong").count() > before
        });
    }

    /// Waits until the connection ends and returns the close frame.
    ///
    /// # Panics
    /// If the connection does not end within [`WITHIN`], or ends without a close frame.
    #[track_caller]
    pub fn expect_close(&mut self) -> (u16, String) {
        read_until(std::slice::from_mut(self), "a close", WITHIN, |clients| clients[0].ended.is_some());
        self.close.clone().unwrap_or_else(|| panic!("the connection ended without a close frame"))
    }

    /// Waits for a refusal, which must be the only message, and the close that follows.
    ///
    /// # Panics
    /// If anything else is received.
    #[track_caller]
    pub fn expect_refusal(&mut self) -> (Value, u16) {
        let (code, _) = self.expect_close();
        assert_eq!(self.messages.len(), 1, "one message with a refusal: {:?}", self.messages);
        (self.messages[0].json(), code)
    }

    /// Closes the connection and waits for the pod's close frame.
    ///
    /// # Panics
    /// If the pod does not answer with the same code.
    #[track_caller]
    pub fn close(mut self) {
        let frame = CloseFrame { code: 1000.into(), reason: "".into() };
        self.send_frame(tungstenite::Message::Close(Some(frame)));
        assert_eq!(self.expect_close().0, 1000);
    }
}

// ---- many clients ---------------------------------------------------------------------------------------------------

/// Reads for all clients until `done`. Evaluates it whenever something was read, and at an interval.
///
/// # Panics
/// If that does not happen `within` the time. The message names `what`.
#[track_caller]
pub fn read_until(clients: &mut [Client], what: &str, within: Duration, mut done: impl FnMut(&mut [Client]) -> bool) {
    let deadline = Instant::now() + within;
    for client in clients.iter_mut() {
        client.turn();
    }
    while !done(clients) {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{what}: not within {within:?}; {}", summary(clients));
        read_ready(clients, left.min(CHECK_EVERY));
    }
}

/// Reads for all clients for this time, to check that something does not come.
pub fn read_for(clients: &mut [Client], time: Duration) {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        read_ready(clients, deadline.saturating_duration_since(Instant::now()));
    }
}

/// Waits until a client's socket is readable, and reads it.
fn read_ready(clients: &mut [Client], within: Duration) {
    let (indices, mut polls): (Vec<_>, Vec<_>) = clients
        .iter()
        .enumerate()
        .filter(|(_, client)| client.ended.is_none())
        .map(|(index, client)| {
            let fd = client.socket.get_ref().as_raw_fd();
            (index, libc::pollfd { fd, events: libc::POLLIN, revents: 0 })
        })
        .unzip();
    let timeout = i32::try_from(within.as_millis()).unwrap_or(i32::MAX).max(1);
    let count = libc::nfds_t::try_from(polls.len()).expect("fewer clients than descriptors");
    // SAFETY: the pointer and the count are of one live vector, whose descriptors the clients keep open.
    unsafe { libc::poll(polls.as_mut_ptr(), count, timeout) };
    for (index, poll) in indices.into_iter().zip(polls) {
        if poll.revents != 0 {
            clients[index].turn();
        }
    }
}

fn summary(clients: &[Client]) -> String {
    let messages: usize = clients.iter().map(|client| client.messages.len()).sum();
    let ended = clients.iter().filter(|client| client.ended.is_some()).count();
    let last = clients.iter().filter_map(|client| client.messages.last()).max_by_key(|message| message.at);
    let last = last.map_or("none", |message| message.text.as_str());
    format!("{} clients, {ended} ended, {messages} messages, the last: {last}", clients.len())
}

/// The IP address in a URL.
#[must_use]
#[track_caller]
pub fn address_of(url: &str) -> IpAddr {
    Ask::to(url).address.ip()
}

#[cfg(test)]
mod tests;
