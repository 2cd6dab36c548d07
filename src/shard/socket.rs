//! The edge to clients' sockets: the reading of request heads, the task of each connection, farewells, and what a
//! socket is written with. What they mean is left to the rules.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_lite::future;
use tokio::sync::mpsc::error::TrySendError;

use super::admission::{Admission, Evidence, Here, identify, judge};
use super::connection::ConnectionKey;
use super::context::Shard;
use super::executor::{self, TaskKey};
use super::handshakes::Handshake;
use super::pod_limits::Place;
use super::reactor::Stream;
use super::state::Entrance;
use super::writer::Writer;
use crate::clock::Now;
use crate::exchange::{Handoff, HttpRequest, Newcomer, Standing};
use crate::limits::{FINISH_STALL_MAX, LINGER, LINGER_BYTES_MAX, LINGER_LOOK_EVERY};
use crate::protocol::auth::Grant;
use crate::protocol::client_address::ProxyHeader;
use crate::protocol::close::CloseReason;
use crate::protocol::head::{Fault, Parsed, Refusal, Scan, Unavailable, Upgrade};
use crate::protocol::messages;
use crate::protocol::session::Session;
use crate::routing::placement::shard_of;

/// Reads in one poll of a connection's task, before others have their turn.
const READS_A_POLL: usize = 4;

/// Refused clients may linger in one in so many of the handshakes' places: the rest is for those who come.
const LINGERING_PART: usize = 4;

// ---- handshakes -------------------------------------------------------------------------------------------------------

/// What came of reading a head.
enum Head {
    Upgrade(Box<Upgrade>, usize),
    Operators,
    Refused(Refusal),
    Gone,
}

/// Reads an accepted socket's request head and passes it on to whoever it is for.
pub(super) async fn handshake(shard: &Rc<Shard>, handshake: &Handshake<TaskKey>, mut stream: Stream, peer: IpAddr) {
    let mut read = Vec::new();
    let reading = read_head(shard, handshake, &mut stream, peer, &mut read);
    let head = executor::timeout(shard.config.handshake_timeout, reading).await;
    match head.unwrap_or(Head::Refused(Refusal::Timeout)) {
        Head::Gone => {}
        Head::Refused(refusal) => {
            shard.handshakes.warn_of(refusal, peer, Instant::now());
            refuse(shard, stream, refusal).await;
        }
        Head::Operators => {
            let passed = shard.http.try_send(HttpRequest { socket: stream.into_socket(), read });
            if let Err(TrySendError::Full(request) | TrySendError::Closed(request)) = passed {
                refuse(shard, Stream::new(&shard.reactor, request.socket), BUSY).await;
            }
        }
        Head::Upgrade(upgrade, head_len) => {
            let rest = read.split_off(head_len);
            drop(read);
            admit(shard, stream, *upgrade, rest).await;
        }
    }
}

/// Lets a client with a good token in, at the pod's rate, on the shard that owns its assessment. One without is refused
/// here: it takes none of what those with a token could want.
async fn admit(shard: &Rc<Shard>, stream: Stream, upgrade: Upgrade, rest: Vec<u8>) {
    shard.give_way().await;
    let now = Now::read();
    let identified = {
        let standing = shard.standing.load();
        let here = Here { node: &shard.node, standing: &standing, place_anywhere: shard.config.place_anywhere };
        identify(&upgrade, &here, &shard.verifier, now.unix)
    };
    let grant = match identified {
        Ok(grant) => grant,
        Err(Admission::Refuse(_)) if !shard.pod.refuse(now.instant) => return refuse(shard, stream, TOO_FAST).await,
        Err(answer) => return turn_away(shard, stream, &upgrade, answer).await,
    };
    if !shard.pod.admit(now.instant) {
        return refuse(shard, stream, TOO_FAST).await;
    }
    let owner = match &upgrade.assessment {
        Ok(Some(id)) => shard_of(id.hash(), shard.config.shards),
        _ => shard.index,
    };
    let newcomer = Box::new(Newcomer { upgrade, grant, rest });
    if owner == shard.index {
        return enter(shard, stream, newcomer).await;
    }
    let handoff = Handoff { socket: stream.into_socket(), newcomer };
    if let Err(handoff) = shard.doors[usize::from(owner.0)].try_handoff(handoff) {
        refuse(shard, Stream::new(&shard.reactor, handoff.socket), BUSY).await;
    }
}

async fn read_head(
    shard: &Shard,
    handshake: &Handshake<TaskKey>,
    stream: &mut Stream,
    peer: IpAddr,
    read: &mut Vec<u8>,
) -> Head {
    let client = match read_proxy_header(shard, handshake, stream, peer, read).await {
        Ok(client) => client,
        Err(head) => return head,
    };
    let mut scan = Scan::new(client);
    loop {
        match scan.parse(read, &shard.head_rules) {
            Parsed::Incomplete => {}
            Parsed::Upgrade { upgrade, head_len } => return Head::Upgrade(Box::new(upgrade), head_len),
            Parsed::Operators => return Head::Operators,
            Parsed::Refused(refusal) => return Head::Refused(refusal),
        }
        if !read_more(shard, handshake, stream, read).await {
            return Head::Gone;
        }
    }
}

/// Takes the PROXY protocol's header off what was read, where one is due; returns the address that it names, else the peer's.
async fn read_proxy_header(
    shard: &Shard,
    handshake: &Handshake<TaskKey>,
    stream: &mut Stream,
    peer: IpAddr,
    read: &mut Vec<u8>,
) -> Result<IpAddr, Head> {
    if !shard.door.proxy_protocol || !shard.head_rules.trusted_proxies.contains(peer) {
        return Ok(peer);
    }
    loop {
        match ProxyHeader::parse(read) {
            ProxyHeader::Incomplete => {}
            ProxyHeader::Invalid => return Err(Head::Refused(Refusal::Malformed(Fault::ProxyHeader))),
            ProxyHeader::Whole { len, client } => {
                read.drain(..len);
                return Ok(client.unwrap_or(peer));
            }
        }
        if !read_more(shard, handshake, stream, read).await {
            return Err(Head::Gone);
        }
    }
}

/// Reads what comes next; returns whether something did.
async fn read_more(shard: &Shard, handshake: &Handshake<TaskKey>, stream: &mut Stream, read: &mut Vec<u8>) -> bool {
    let got = poll_fn(|cx| {
        let mut scratch = shard.scratch.borrow_mut();
        let got = ready!(stream.poll_read(cx, &mut scratch));
        Poll::Ready(got.inspect(|&len| read.extend_from_slice(&scratch[..len])))
    })
    .await;
    handshake.has_begun();
    matches!(got, Ok(1..))
}

/// Serves a client on the shard that it belongs to, or refuses it.
pub(super) async fn enter(shard: &Rc<Shard>, stream: Stream, newcomer: Box<Newcomer>) {
    shard.give_way().await;
    let Newcomer { upgrade, grant, rest } = *newcomer;
    let mut now = Now::read();
    let place = match shard.pod.enter(upgrade.client, &grant.user) {
        Ok(place) => place,
        Err(why) => {
            let refusal = Refusal::Unavailable(why);
            shard.handshakes.warn_of(refusal, upgrade.client, now.instant);
            return refuse(shard, stream, refusal).await;
        }
    };
    let judge_by = |standing: &Standing, now: Now| {
        let here = Here { node: &shard.node, standing, place_anywhere: shard.config.place_anywhere };
        judge(&upgrade, &grant, &here, &shard.state.borrow().sent_away, now)
    };
    let mut standing = shard.standing.load_full();
    let mut admission = judge_by(&standing, now);
    if admission.goes_by_view() {
        standing = shard.sure_standing().await;
        now = Now::read();
        admission = judge_by(&standing, now);
    }
    if let (true, Ok(Some(id))) = (admission.goes_by_view(), &upgrade.assessment) {
        shard.state.borrow_mut().sent_away.note(id.hash(), &standing.sight, now.instant);
    }
    match admission {
        Admission::Serve { against_owner } => {
            let key = attach(shard, &stream, &upgrade, grant, against_owner, now);
            let mut session = Session::new(shard.config.message_bytes_max);
            take_in(shard, key, &mut session, &rest);
            let (shard_of_it, stream) = (Rc::clone(shard), Some(stream));
            shard.tasks.spawn(Client { shard: shard_of_it, key, stream, session, lingering: None, _place: place });
        }
        answer => {
            // Its socket may linger; its place is for others.
            drop(place);
            turn_away(shard, stream, &upgrade, answer).await;
        }
    }
}

fn attach(
    shard: &Shard,
    stream: &Stream,
    upgrade: &Upgrade,
    grant: Grant,
    against_owner: Evidence,
    now: Now,
) -> ConnectionKey {
    let assessment = upgrade.assessment.as_ref().ok().and_then(Option::as_ref);
    let mut accept = Vec::new();
    upgrade.accept_response(&mut accept);
    let entrance = Entrance {
        socket: Writer::of(stream),
        assessment: assessment.cloned(),
        cursor: upgrade.cursor.clone(),
        token_expires: grant.expires,
        against_owner,
        accept,
        id: shard.next_connection_id().into(),
        user: grant.user,
    };
    shard.metrics.opened();
    shard.state.borrow_mut().attach(entrance, now)
}

// ---- a connection's task ----------------------------------------------------------------------------------------------

/// A connection's task: reads what the client sends, waits for a full socket, and lets go at the end. Written by hand,
/// for the compiler's form of it keeps each part twice, and there are as many of these as there are clients.
struct Client {
    shard: Rc<Shard>,
    key: ConnectionKey,
    /// Until it lingers.
    stream: Option<Stream>,
    session: Session,
    /// Reading and dropping what a client still sends that was told its end.
    lingering: Option<Pin<Box<dyn Future<Output = ()>>>>,
    _place: Place,
}

impl Future for Client {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let client = self.get_mut();
        if client.lingering.is_none() {
            let gone = ready!(client.serve(cx));
            let told = client.detach(gone);
            let Some(stream) = client.stream.take() else { return Poll::Ready(()) };
            if !told {
                stream.abandon();
                return Poll::Ready(());
            }
            let shard = Rc::clone(&client.shard);
            let patience = shard.config.stall_timeout;
            client.lingering = Some(Box::pin(async move { linger(&shard, stream, patience).await }));
        }
        client.lingering.as_mut().map_or(Poll::Ready(()), |lingering| lingering.as_mut().poll(cx))
    }
}

impl Client {
    /// Ready when the connection has ended; with why, where the state doesn't know better.
    fn serve(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(CloseReason::ClientGone) };
        let now = Now::read();
        for _ in 0..READS_A_POLL {
            {
                let mut state = self.shard.state.borrow_mut();
                state.write_blocked(self.key, now, |bytes| stream.poll_write(cx, bytes));
                if let Some(reason) = state.ended(self.key) {
                    return Poll::Ready(reason);
                }
                // What comes after its end began matters no more. It is read, within a bound, when the client is told.
                if !state.is_live(self.key) {
                    stream.expect_bell(cx);
                    return Poll::Pending;
                }
            }
            let mut scratch = self.shard.scratch.borrow_mut();
            match ready!(stream.poll_read(cx, &mut scratch)) {
                Ok(len @ 1..) => take_in(&self.shard, self.key, &mut self.session, &scratch[..len]),
                _ => return Poll::Ready(CloseReason::ClientGone),
            }
        }
        executor::yield_in_poll(cx);
        Poll::Pending
    }

    /// Takes the connection out of the shard's state; returns whether the client was told its end.
    fn detach(&self, gone: CloseReason) -> bool {
        let ended = self.shard.state.borrow_mut().detach(self.key, gone);
        ended.is_some_and(|ended| {
            self.shard.metrics.closed(ended.reason, ended.opened.elapsed().as_secs_f64());
            ended.told
        })
    }
}

/// Also where the task is cancelled; before the stream goes, for the state writes to its descriptor.
impl Drop for Client {
    fn drop(&mut self) {
        self.detach(CloseReason::GoingAway);
        if let Some(stream) = self.stream.take() {
            stream.abandon();
        }
    }
}

/// Takes in what a client sent, and answers.
fn take_in(shard: &Shard, key: ConnectionKey, session: &mut Session, bytes: &[u8]) {
    let now = Now::read();
    let mut state = shard.state.borrow_mut();
    // After the connection's end began, what comes is read so that the answer arrives, and no more.
    if state.is_live(key) {
        match session.receive(bytes, &mut |frame| state.inbound(key, frame, now)) {
            Ok(()) => {}
            Err(CloseReason::ClientClosed) => state.goodbye(key, session.goodbye(), now),
            Err(reason) => state.close(key, reason, None, now),
        }
    }
    state.flush(key, now);
    if state.has_pending() {
        shard.ring();
    }
}

// ---- farewells --------------------------------------------------------------------------------------------------------

const TOO_FAST: Refusal = Refusal::Unavailable(Unavailable::Rate);
const BUSY: Refusal = Refusal::Unavailable(Unavailable::Busy);

/// Refuses a request without an upgrade.
async fn refuse(shard: &Shard, stream: Stream, refusal: Refusal) {
    shard.metrics.refused_by_http(refusal);
    farewell(shard, stream, &refusal.response()).await;
}

/// Refuses a client that is not served here.
async fn turn_away(shard: &Shard, stream: Stream, upgrade: &Upgrade, answer: Admission) {
    let Admission::Refuse(refused) = answer else {
        return refuse(shard, stream, Refusal::Unavailable(Unavailable::NotServing)).await;
    };
    let mut bytes = Vec::new();
    upgrade.accept_response(&mut bytes);
    refused.message(&mut bytes);
    messages::close(&mut bytes, refused.reason);
    shard.metrics.refused(refused.reason, 1);
    farewell(shard, stream, &bytes).await;
}

/// Writes a last answer and closes, so that it arrives. Where too many others linger the socket is closed at once: the answer
/// still arrives, unless the client has sent more than its request.
async fn farewell(shard: &Shard, mut stream: Stream, answer: &[u8]) {
    let write = async {
        let mut left = answer;
        while !left.is_empty() {
            match poll_fn(|cx| stream.poll_write(cx, left)).await {
                Ok(sent @ 1..) => left = &left[sent..],
                _ => return false,
            }
        }
        true
    };
    let written = executor::timeout(LINGER, write).await.unwrap_or(false);
    let lingering = shard.lingering.get();
    if written && lingering < shard.handshakes.max() / LINGERING_PART {
        shard.lingering.set(lingering + 1);
        let _one_less = Lingering(&shard.lingering);
        linger(shard, stream, Duration::ZERO).await;
    } else if !written {
        stream.abandon();
    }
}

/// Counts one less when it is dropped.
struct Lingering<'a>(&'a Cell<usize>);

impl Drop for Lingering<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Reads and drops what a peer still sends, until it closes: a socket that is closed with input unread is reset, and a
/// reset may overtake the last answer (RFC 1122 section 4.2.2.13). Then waits until the peer has taken all that was
/// written, for as long as it goes on taking it and `patience` holds.
async fn linger(shard: &Shard, stream: Stream, patience: Duration) {
    stream.finish();
    let mut stream = stream;
    let is_gone = executor::timeout(LINGER, drain(shard, &mut stream)).await.unwrap_or(false);
    if is_gone {
        return stream.abandon();
    }
    let began = Instant::now();
    let (mut left, mut since) = (stream.unacknowledged(), began);
    while left > 0 {
        let now = Instant::now();
        if now - began >= patience || now - since >= FINISH_STALL_MAX {
            return stream.abandon();
        }
        executor::sleep(LINGER_LOOK_EVERY).await;
        let before = std::mem::replace(&mut left, stream.unacknowledged());
        if left < before {
            since = now;
        }
    }
}

/// Returns when the peer closes, or breaks the connection: whether it did the latter. Where it sends more than
/// [`LINGER_BYTES_MAX`] it never returns: the rest stays in the socket, and costs nothing.
async fn drain(shard: &Shard, stream: &mut Stream) -> bool {
    let mut left = LINGER_BYTES_MAX;
    while left > 0 {
        for _ in 0..READS_A_POLL {
            match poll_fn(|cx| stream.poll_read(cx, &mut shard.scratch.borrow_mut())).await {
                Ok(0) => return false,
                Ok(read) => left = left.saturating_sub(read),
                Err(_) => return true,
            }
        }
        executor::yield_to_kernel().await;
    }
    future::pending().await
}
