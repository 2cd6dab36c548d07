//! Reads the request head of an accepted socket, and passes the socket on: a client to the shard that owns its
//! assessment, an operator's request to the control thread. What a head means is left to [`crate::protocol::head`].

use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Poll, ready};

use super::admission::{Admission, unauthorized};
use super::client_task::admit_client;
use super::context::ShardContext;
use super::executor::{self, TaskKey};
use super::final_response::{refuse_after_upgrade, refuse_by_http};
use super::handshakes::Handshake;
use super::operator_log::RefusedClient;
use super::reactor::Stream;
use crate::clock::Now;
use crate::exchange::{AuthenticatedUpgrade, Busy, Handoff, HttpRequest};
use crate::protocol::client_address::ProxyHeader;
use crate::protocol::head::{HttpRefusal, Parsed, RequestFault, Scan, Unavailable, Upgrade};
use crate::routing::placement::shard_of;

/// The pod accepts no more clients this second.
const TOO_FAST: HttpRefusal = HttpRefusal::Unavailable(Unavailable::Rate);
/// The queue to the thread that is to take the socket, or to check its token, is full.
const BUSY: HttpRefusal = HttpRefusal::Unavailable(Unavailable::Busy);

/// The result of reading a request head.
enum HeadOutcome {
    /// A client's request, and its length.
    Upgrade(Box<Upgrade>, usize),
    Operators,
    Refused(HttpRefusal),
    /// The socket closed first.
    Gone,
}

/// Reads an accepted socket's request head, within the time limit, and passes the socket on.
pub(super) async fn run_handshake(
    shard: &Rc<ShardContext>,
    handshake: &Handshake<TaskKey>,
    mut stream: Stream,
    peer: IpAddr,
) {
    let (mut read, mut client) = (Vec::new(), peer);
    let reading = read_head(shard, handshake, &mut stream, &mut client, &mut read);
    let head = executor::timeout(shard.config.handshake_timeout, reading).await;
    match head.unwrap_or(HeadOutcome::Refused(HttpRefusal::Timeout)) {
        HeadOutcome::Gone => {}
        HeadOutcome::Refused(refusal) => {
            refuse_by_http(shard, stream, refusal, RefusedClient::at(client)).await;
        }
        HeadOutcome::Operators => {
            if let Err(request) = shard.pass_to_operators(HttpRequest { socket: stream.into_fd(), read }) {
                let stream = Stream::new(&shard.reactor, request.socket);
                refuse_by_http(shard, stream, BUSY, RefusedClient::at(client)).await;
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
    if !shard.placement(&shard.pod_state.load()).accepts_clients() || !shard.can_verify() {
        return refuse_after_upgrade(shard, stream, &upgrade, None, Admission::Unavailable).await;
    }
    let verdict = shard.verify(upgrade.token.as_ref()).await;
    let now = Now::read();
    let grant = match verdict {
        Ok(Ok(grant)) => grant,
        Ok(Err(_)) if !shard.pod.allow_refusal(now.instant) => {
            return refuse_by_http(shard, stream, TOO_FAST, RefusedClient::of(&upgrade, None)).await;
        }
        Ok(Err(why)) => return refuse_after_upgrade(shard, stream, &upgrade, None, unauthorized(why)).await,
        Err(Busy) => return refuse_by_http(shard, stream, BUSY, RefusedClient::of(&upgrade, None)).await,
    };
    if !shard.pod.allow_accept(now.instant) {
        return refuse_by_http(shard, stream, TOO_FAST, RefusedClient::of(&upgrade, Some(&grant.user))).await;
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
    if let Err(Handoff { socket, request }) = shard.hand_off(owner, handoff) {
        let client = RefusedClient::of(&request.upgrade, Some(&request.grant.user));
        refuse_by_http(shard, Stream::new(&shard.reactor, socket), BUSY, client).await;
    }
}

/// `client` is the peer's address, and becomes the one that the PROXY protocol's header names.
async fn read_head(
    shard: &ShardContext,
    handshake: &Handshake<TaskKey>,
    stream: &mut Stream,
    client: &mut IpAddr,
    read: &mut Vec<u8>,
) -> HeadOutcome {
    *client = match read_proxy_header(shard, handshake, stream, *client, read).await {
        Ok(client) => client,
        Err(head) => return head,
    };
    let mut scan = Scan::new(*client);
    loop {
        match scan.parse(read, &shard.head_rules) {
            Parsed::Incomplete => {}
            Parsed::Upgrade { upgrade, head_len } => return HeadOutcome::Upgrade(Box::new(upgrade), head_len),
            Parsed::Operators => return HeadOutcome::Operators,
            Parsed::Refused(refusal) => return HeadOutcome::Refused(refusal),
        }
        if !read_more(shard, handshake, stream, read).await {
            return HeadOutcome::Gone;
        }
    }
}

/// Removes the PROXY protocol's header from what was read, if the peer has to send one; returns the address that it
/// names, else the peer's.
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
                return Err(HeadOutcome::Refused(HttpRefusal::Malformed(RequestFault::ProxyHeader)));
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

/// Waits for more input; returns `false` if the socket closed.
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
