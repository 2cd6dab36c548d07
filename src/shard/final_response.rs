//! The last bytes that a socket gets, and its close: refusals, and the linger after them that lets them arrive.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use futures_lite::future;

use super::admission::Admission;
use super::context::{READS_A_POLL, ShardContext};
use super::operator_log::RefusedClient;
use super::reactor::Stream;
use super::{executor, operator_log};
use crate::limits::{CLOSE_STALL_MAX, LINGER, LINGER_BYTES_MAX, LINGER_POLL_EVERY};
use crate::protocol::head::{HttpRefusal, Unavailable, Upgrade};
use crate::protocol::messages;

/// Refuses a request without an upgrade.
pub(super) async fn refuse_by_http(
    shard: &ShardContext,
    stream: Stream,
    refusal: HttpRefusal,
    client: RefusedClient<'_>,
) {
    shard.metrics.refused_by_http(refusal);
    shard.refusal_log.refused(refusal, client, Instant::now());
    send_final_response(shard, stream, &refusal.response()).await;
}

/// Refuses a client by what [`super::admission`] answered: with an error message and a close frame, or 503.
pub(super) async fn refuse_after_upgrade(
    shard: &ShardContext,
    stream: Stream,
    upgrade: &Upgrade,
    user: Option<&str>,
    answer: Admission,
) {
    let client = RefusedClient::of(upgrade, user);
    let Admission::Reject(rejection) = answer else {
        return refuse_by_http(shard, stream, HttpRefusal::Unavailable(Unavailable::NotServing), client).await;
    };
    operator_log::rejected(&rejection, client);
    let mut bytes = Vec::new();
    upgrade.accept_response(&mut bytes);
    rejection.message(&mut bytes);
    messages::close(&mut bytes, rejection.reason);
    shard.metrics.refused(rejection.reason, 1);
    send_final_response(shard, stream, &bytes).await;
}

/// Writes a final response and closes gracefully. If too many sockets linger, closes at once: the response still
/// arrives unless the client sent more than its request.
async fn send_final_response(shard: &ShardContext, mut stream: Stream, response: &[u8]) {
    let write = async {
        let mut left = response;
        while !left.is_empty() {
            match poll_fn(|cx| stream.poll_write(cx, left)).await {
                Ok(sent @ 1..) => left = &left[sent..],
                _ => return false,
            }
        }
        true
    };
    let written = executor::timeout(LINGER, write).await.unwrap_or(false);
    if !written {
        return stream.close_now();
    }
    if let Some(_counted) = shard.try_linger() {
        linger(shard, stream, Duration::ZERO).await;
    }
}

/// Discards input until the peer closes: closing a socket with unread input resets it, and the reset may overtake the
/// last answer (RFC 1122 section 4.2.2.13). Then waits until the peer has acknowledged everything, as long as it makes
/// progress, for `linger_max` at most.
pub(super) async fn linger(shard: &ShardContext, stream: Stream, linger_max: Duration) {
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
        if now - began >= linger_max || now - since >= CLOSE_STALL_MAX {
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
