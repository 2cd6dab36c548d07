//! Accepts sockets, no faster than their requests can be read: what is not accepted waits in the kernel's queue.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::context::ShardContext;
use super::handshake::run_handshake;
use super::handshakes::Handshake;
use super::operator_log::RefusedClient;
use super::reactor::{Listener, Stream};
use super::{executor, operator_log};
use crate::limits::ACCEPT_LOG_EVERY;
use crate::log_throttle::LogThrottle;
use crate::protocol::head::{HttpRefusal, Unavailable};

/// How long accepting pauses when the system refuses (descriptors, memory).
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// How long accepting pauses when all handshakes are within their grace period.
const ROOM_PAUSE: Duration = Duration::from_millis(2);

/// Sockets accepted in a row before other tasks run. While sockets wait, an accept is ready at once; a storm of them
/// must not be all that the shard does. With their handshakes this is about a millisecond of work.
const ACCEPTS_A_TURN: u32 = 16;

/// Accepts from a listener for as long as the shard runs.
pub(super) fn accept_from(shard: &Rc<ShardContext>, listener: std::net::TcpListener) {
    let mut listener = Listener::new(&shard.reactor, listener);
    let own_shard = Rc::clone(shard);
    shard.tasks.spawn(async move {
        let failures = LogThrottle::new(ACCEPT_LOG_EVERY);
        let mut accepted = 0;
        loop {
            make_room(&own_shard).await;
            match listener.accept().await {
                Ok((stream, peer)) => start_handshake(&own_shard, stream, peer),
                Err(error) => {
                    if let Some(suppressed) = failures.admit(Instant::now()) {
                        operator_log::accept_failed(&error, suppressed);
                    }
                    executor::sleep(REFUSED_PAUSE).await;
                }
            }
            accepted += 1;
            if accepted == ACCEPTS_A_TURN {
                accepted = 0;
                executor::yield_to_kernel().await;
            }
        }
    });
}

/// Waits until the table of handshakes has room; past its grace period, the oldest handshake is cancelled.
async fn make_room(shard: &ShardContext) {
    while shard.handshakes.is_full() {
        match shard.handshakes.evict_oldest(Instant::now()) {
            Some(task) => shard.tasks.cancel(task),
            None => {
                executor::sleep(ROOM_PAUSE).await;
            }
        }
    }
}

/// Refuses a socket without reading its request.
fn refuse_unread(shard: &ShardContext, mut stream: Stream, peer: IpAddr, why: Unavailable) {
    let refusal = HttpRefusal::Unavailable(why);
    shard.metrics.refused_by_http(refusal);
    shard.refusal_log.refused(refusal, RefusedClient::at(peer), Instant::now());
    stream.write_now(&refusal.response());
}

fn start_handshake(shard: &Rc<ShardContext>, stream: Stream, peer: IpAddr) {
    let is_proxy = shard.head_rules.trusted_proxies.contains(peer);
    let permit = match if is_proxy { Ok(None) } else { shard.pod.acquire_handshake(peer) } {
        Ok(permit) => permit,
        Err(why) => return refuse_unread(shard, stream, peer, why),
    };
    let handshake = Handshake::begin(&shard.handshakes, permit, Instant::now());
    let (number, own_shard) = (handshake.number(), Rc::clone(shard));
    let task = shard.tasks.spawn(async move {
        run_handshake(&own_shard, &handshake, stream, peer).await;
    });
    shard.handshakes.set_task(number, task);
}
