//! The edge to clients' sockets: reading request heads, the task of each connection, and the close sequence. The rules
//! decide what bytes mean.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_lite::future;
use tokio::sync::mpsc::error::TrySendError;

use super::admission::{Admission, admit, authenticate};
use super::connection::ConnectionKey;
use super::context::ShardContext;
use super::executor::{self, TaskKey};
use super::handshakes::Handshake;
use super::pod_limits::ConnectionPermit;
use super::reactor::Stream;
use super::redirect::{OwnerDoubt, Placement};
use super::state::NewConnection;
use super::writer::Writer;
use crate::clock::Now;
use crate::exchange::{AuthenticatedUpgrade, Handoff, HttpRequest, PodState};
use crate::limits::{CLOSE_STALL_MAX, LINGER, LINGER_BYTES_MAX, LINGER_POLL_EVERY};
use crate::protocol::auth::Grant;
use crate::protocol::client_address::ProxyHeader;
use crate::protocol::close::CloseReason;
use crate::protocol::head::{HttpRefusal, Parsed, RequestFault, Scan, Unavailable, Upgrade};
use crate::protocol::messages;
use crate::protocol::session::Session;
use crate::routing::placement::shard_of;

/// Reads in one poll of a connection's task, before others have their turn.
const READS_A_POLL: usize = 4;

/// Refused clients may linger in at most one in this many handshake slots.
const LINGERING_PART: usize = 4;

// ---- handshakes
// -------------------------------------------------------------------------------------------------------

/// What came of reading a head.
enum HeadOutcome {
    Upgrade(Box<Upgrade>, usize),
    Operators,
    Rejection(HttpRefusal),
    Gone,
}

/// Reads an accepted socket's request head and passes it on to whoever it is for.
pub(super) async fn run_handshake(
    shard: &Rc<ShardContext>,
    handshake: &Handshake<TaskKey>,
    mut stream: Stream,
    peer: IpAddr,
) {
    let mut read = Vec::new();
    let reading = read_head(shard, handshake, &mut stream, peer, &mut read);
    let head = executor::timeout(shard.config.handshake_timeout, reading).await;
    match head.unwrap_or(HeadOutcome::Rejection(HttpRefusal::Timeout)) {
        HeadOutcome::Gone => {}
        HeadOutcome::Rejection(refusal) => {
            shard.refusal_log.refused(refusal, peer, Instant::now());
            refuse_by_http(shard, stream, refusal).await;
        }
        HeadOutcome::Operators => {
            let passed = shard.http.try_send(HttpRequest { socket: stream.into_fd(), read });
            if let Err(TrySendError::Full(request) | TrySendError::Closed(request)) = passed {
                refuse_by_http(shard, Stream::new(&shard.reactor, request.socket), BUSY).await;
            }
        }
        HeadOutcome::Upgrade(upgrade, head_len) => {
            let rest = read.split_off(head_len);
            drop(read);
            route_to_owner_shard(shard, stream, *upgrade, rest).await;
        }
    }
}

/// Passes an authenticated client to the shard that owns its assessment, at the pod's accept rate. A client without a
/// good token is refused here, before it uses anything that authenticated clients need.
async fn route_to_owner_shard(shard: &Rc<ShardContext>, stream: Stream, upgrade: Upgrade, rest: Vec<u8>) {
    shard.yield_to_turns().await;
    let now = Now::read();
    let identified = {
        let pod_state = shard.pod_state.load();
        let placement =
            Placement { node: &shard.node, pod_state: &pod_state, place_anywhere: shard.config.place_anywhere };
        authenticate(&upgrade, &placement, &shard.verifier, now.unix)
    };
    let grant = match identified {
        Ok(grant) => grant,
        Err(Admission::Reject(_)) if !shard.pod.allow_refusal(now.instant) => {
            return refuse_by_http(shard, stream, TOO_FAST).await;
        }
        Err(answer) => return refuse_after_upgrade(shard, stream, &upgrade, answer).await,
    };
    if !shard.pod.allow_accept(now.instant) {
        return refuse_by_http(shard, stream, TOO_FAST).await;
    }
    let owner = match &upgrade.assessment {
        Ok(Some(id)) => shard_of(id.hash(), shard.config.shards),
        _ => shard.index,
    };
    let request = Box::new(AuthenticatedUpgrade { upgrade, grant, rest });
    if owner == shard.index {
        return admit_client(shard, stream, request).await;
    }
    let handoff = Handoff { socket: stream.into_fd(), request };
    if let Err(handoff) = shard.shard_handles[usize::from(owner.0)].try_handoff(handoff) {
        refuse_by_http(shard, Stream::new(&shard.reactor, handoff.socket), BUSY).await;
    }
}

async fn read_head(
    shard: &ShardContext,
    handshake: &Handshake<TaskKey>,
    stream: &mut Stream,
    peer: IpAddr,
    read: &mut Vec<u8>,
) -> HeadOutcome {
    let client = match read_proxy_header(shard, handshake, stream, peer, read).await {
        Ok(client) => client,
        Err(head) => return head,
    };
    let mut scan = Scan::new(client);
    loop {
        match scan.parse(read, &shard.head_rules) {
            Parsed::Incomplete => {}
            Parsed::Upgrade { upgrade, head_len } => return HeadOutcome::Upgrade(Box::new(upgrade), head_len),
            Parsed::Operators => return HeadOutcome::Operators,
            Parsed::Refused(refusal) => return HeadOutcome::Rejection(refusal),
        }
        if !read_more(shard, handshake, stream, read).await {
            return HeadOutcome::Gone;
        }
    }
}

/// Takes the PROXY protocol's header off what was read, where one is due; returns the address that it names, else the
/// peer's.
async fn read_proxy_header(
    shard: &ShardContext,
    handshake: &Handshake<TaskKey>,
    stream: &mut Stream,
    peer: IpAddr,
    read: &mut Vec<u8>,
) -> Result<IpAddr, HeadOutcome> {
    if !shard.admission.proxy_protocol || !shard.head_rules.trusted_proxies.contains(peer) {
        return Ok(peer);
    }
    loop {
        match ProxyHeader::parse(read) {
            ProxyHeader::Incomplete => {}
            ProxyHeader::Invalid => {
                return Err(HeadOutcome::Rejection(HttpRefusal::Malformed(RequestFault::ProxyHeader)));
            }
            ProxyHeader::Whole { len, client } => {
                read.drain(..len);
                return Ok(client.unwrap_or(peer));
            }
        }
        if !read_more(shard, handshake, stream, read).await {
            return Err(HeadOutcome::Gone);
        }
    }
}

/// Reads what comes next; returns whether something did.
async fn read_more(
    shard: &ShardContext,
    handshake: &Handshake<TaskKey>,
    stream: &mut Stream,
    read: &mut Vec<u8>,
) -> bool {
    let got = poll_fn(|cx| {
        let mut scratch = shard.scratch.borrow_mut();
        let got = ready!(stream.poll_read(cx, &mut scratch));
        Poll::Ready(got.inspect(|&len| read.extend_from_slice(&scratch[..len])))
    })
    .await;
    handshake.mark_started();
    matches!(got, Ok(1..))
}

/// Serves a client on the shard that it belongs to, or refuses it.
pub(super) async fn admit_client(shard: &Rc<ShardContext>, stream: Stream, request: Box<AuthenticatedUpgrade>) {
    shard.yield_to_turns().await;
    let AuthenticatedUpgrade { upgrade, grant, rest } = *request;
    let mut now = Now::read();
    let permit = match shard.pod.acquire_connection(upgrade.client, &grant.user) {
        Ok(permit) => permit,
        Err(why) => {
            let refusal = HttpRefusal::Unavailable(why);
            shard.refusal_log.refused(refusal, upgrade.client, now.instant);
            return refuse_by_http(shard, stream, refusal).await;
        }
    };
    let judge_by = |pod_state: &PodState, now: Now| {
        let placement = Placement { node: &shard.node, pod_state, place_anywhere: shard.config.place_anywhere };
        admit(&upgrade, &grant, &placement, &shard.state.borrow().recent_redirects, now)
    };
    let mut pod_state = shard.pod_state.load_full();
    let mut admission = judge_by(&pod_state, now);
    if admission.depends_on_view() {
        pod_state = shard.fresh_pod_state().await;
        now = Now::read();
        admission = judge_by(&pod_state, now);
    }
    if let (true, Ok(Some(id))) = (admission.depends_on_view(), &upgrade.assessment) {
        shard.state.borrow_mut().recent_redirects.record(id.hash(), &pod_state.view_freshness, now.instant);
    }
    match admission {
        Admission::Serve { owner_doubt } => {
            let key = attach(shard, &stream, &upgrade, grant, owner_doubt, now);
            let mut session = Session::new(shard.config.message_bytes_max);
            receive(shard, key, &mut session, &rest);
            let (shard_of_it, stream) = (Rc::clone(shard), Some(stream));
            shard.tasks.spawn(ConnectionTask {
                shard: shard_of_it,
                key,
                stream,
                session,
                lingering: None,
                _place: permit,
            });
        }
        answer => {
            // The socket may linger; the permit is free for others.
            drop(permit);
            refuse_after_upgrade(shard, stream, &upgrade, answer).await;
        }
    }
}

fn attach(
    shard: &ShardContext,
    stream: &Stream,
    upgrade: &Upgrade,
    grant: Grant,
    owner_doubt: OwnerDoubt,
    now: Now,
) -> ConnectionKey {
    let assessment = upgrade.assessment.as_ref().ok().and_then(Option::as_ref);
    let mut accept = Vec::new();
    upgrade.accept_response(&mut accept);
    let new_connection = NewConnection {
        socket: Writer::of(stream),
        assessment: assessment.cloned(),
        cursor: upgrade.cursor.clone(),
        token_expires: grant.expires,
        owner_doubt,
        accept,
        id: shard.next_connection_id().into(),
        user: grant.user,
    };
    shard.metrics.opened();
    shard.state.borrow_mut().attach(new_connection, now)
}

// ---- a connection's task
// ----------------------------------------------------------------------------------------------

/// A connection's task: reads from the client, writes when its full socket drains, and detaches at the end. A
/// hand-written future: the compiler's state machine would hold each part twice, and there is one task per client.
struct ConnectionTask {
    shard: Rc<ShardContext>,
    key: ConnectionKey,
    /// Until it lingers.
    stream: Option<Stream>,
    session: Session,
    /// Reading and dropping what a client still sends that was told its end.
    lingering: Option<Pin<Box<dyn Future<Output = ()>>>>,
    _place: ConnectionPermit,
}

impl Future for ConnectionTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let client = self.get_mut();
        if client.lingering.is_none() {
            let gone = ready!(client.serve(cx));
            let close_sent = client.detach(gone);
            let Some(stream) = client.stream.take() else { return Poll::Ready(()) };
            if !close_sent {
                stream.close_now();
                return Poll::Ready(());
            }
            let shard = Rc::clone(&client.shard);
            let patience = shard.config.stall_timeout;
            client.lingering = Some(Box::pin(async move { linger(&shard, stream, patience).await }));
        }
        client.lingering.as_mut().map_or(Poll::Ready(()), |lingering| lingering.as_mut().poll(cx))
    }
}

impl ConnectionTask {
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
                // After closing began, input no longer matters; it is read within a bound once the close frame is sent.
                if !state.is_live(self.key) {
                    stream.register_task_waker(cx);
                    return Poll::Pending;
                }
            }
            let mut scratch = self.shard.scratch.borrow_mut();
            match ready!(stream.poll_read(cx, &mut scratch)) {
                Ok(len @ 1..) => receive(&self.shard, self.key, &mut self.session, &scratch[..len]),
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
            ended.close_sent
        })
    }
}

/// Also runs if the task is cancelled, before the stream is dropped: the state writes to its descriptor.
impl Drop for ConnectionTask {
    fn drop(&mut self) {
        self.detach(CloseReason::GoingAway);
        if let Some(stream) = self.stream.take() {
            stream.close_now();
        }
    }
}

/// Takes in what a client sent, and answers.
fn receive(shard: &ShardContext, key: ConnectionKey, session: &mut Session, bytes: &[u8]) {
    let now = Now::read();
    let mut state = shard.state.borrow_mut();
    // After the connection's end began, what comes is read so that the answer arrives, and no more.
    if state.is_live(key) {
        match session.receive(bytes, &mut |frame| state.inbound(key, frame, now)) {
            Ok(()) => {}
            Err(CloseReason::ClientClosed) => state.close_by_client(key, session.close_code(), now),
            Err(reason) => state.close(key, reason, None, now),
        }
    }
    state.flush(key, now);
    if state.has_queued() {
        shard.wake();
    }
}

// ---- farewells
// --------------------------------------------------------------------------------------------------------

const TOO_FAST: HttpRefusal = HttpRefusal::Unavailable(Unavailable::Rate);
const BUSY: HttpRefusal = HttpRefusal::Unavailable(Unavailable::Busy);

/// Refuses a request without an upgrade.
async fn refuse_by_http(shard: &ShardContext, stream: Stream, refusal: HttpRefusal) {
    shard.metrics.refused_by_http(refusal);
    send_final_response(shard, stream, &refusal.response()).await;
}

/// Refuses a client that is not served here.
async fn refuse_after_upgrade(shard: &ShardContext, stream: Stream, upgrade: &Upgrade, answer: Admission) {
    let Admission::Reject(refused) = answer else {
        return refuse_by_http(shard, stream, HttpRefusal::Unavailable(Unavailable::NotServing)).await;
    };
    let mut bytes = Vec::new();
    upgrade.accept_response(&mut bytes);
    refused.message(&mut bytes);
    messages::close(&mut bytes, refused.reason);
    shard.metrics.refused(refused.reason, 1);
    send_final_response(shard, stream, &bytes).await;
}

/// Writes a final response and closes gracefully. If too many sockets linger, closes at once: the response still
/// arrives unless the client sent more than its request.
async fn send_final_response(shard: &ShardContext, mut stream: Stream, answer: &[u8]) {
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
        stream.close_now();
    }
}

/// Counts one less when it is dropped.
struct Lingering<'a>(&'a Cell<usize>);

impl Drop for Lingering<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Discards input until the peer closes: closing a socket with unread input resets it, and the reset may overtake the
/// last answer (RFC 1122 section 4.2.2.13). Then waits until the peer has acknowledged everything, as long as it makes
/// progress and `patience` lasts.
async fn linger(shard: &ShardContext, stream: Stream, patience: Duration) {
    stream.shutdown_write();
    let mut stream = stream;
    let is_gone = executor::timeout(LINGER, discard_input(shard, &mut stream)).await.unwrap_or(false);
    if is_gone {
        return stream.close_now();
    }
    let began = Instant::now();
    let (mut left, mut since) = (stream.unacknowledged(), began);
    while left > 0 {
        let now = Instant::now();
        if now - began >= patience || now - since >= CLOSE_STALL_MAX {
            return stream.close_now();
        }
        executor::sleep(LINGER_POLL_EVERY).await;
        let before = std::mem::replace(&mut left, stream.unacknowledged());
        if left < before {
            since = now;
        }
    }
}

/// Returns when the peer closes (`false`) or the connection breaks (`true`). Never returns if the peer sends more than
/// [`LINGER_BYTES_MAX`]; the rest stays in the socket and costs nothing.
async fn discard_input(shard: &ShardContext, stream: &mut Stream) -> bool {
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
