//! The connection for announcements: what other pods publish, on its way to the session and to operators' requests.

use std::time::Duration;

use futures_lite::StreamExt;
use prometheus_client::metrics::counter::Counter;
use redis::aio::{PubSub, PubSubSink};
use redis::{Msg, Value};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::warn;

use crate::config::is_node_name;
use crate::ids::NodeId;
use crate::limits::{ADMIN_BODY_BYTES_MAX, ANNOUNCEMENTS_MAX, ANNOUNCEMENTS_QUIET_MAX};
use crate::protocol::auth::Revocation;

/// The channels.
#[derive(Debug, Clone)]
pub(super) struct Channels {
    pub(super) join: String,
    pub(super) leave: String,
    /// Also the key of the hash of revocations.
    pub(super) revocations: String,
    pub(super) operators: String,
}

impl Channels {
    pub(super) fn new(prefix: &str) -> Self {
        let [join, leave, revocations, operators] =
            ["node:join", "node:leave", "revocations", "operators"].map(|what| format!("{prefix}:{what}"));
        Self { join, leave, revocations, operators }
    }
}

/// An announcement.
pub(super) enum Announcement {
    /// A pod released its slot, or lost it.
    Left(NodeId),
    /// Tokens were revoked.
    Revoked(Revocation),
    /// Anything else: the slots may have changed.
    Other,
}

/// What the task of the announcement connection passes messages on to.
pub(super) struct Listener {
    pub(super) channels: Channels,
    pub(super) messages: mpsc::Sender<Box<str>>,
    pub(super) dropped: Counter,
}

impl Listener {
    /// Passes on a message, unless its queue is full. Returns whether no revocation got lost by that; if one did, a new
    /// connection reads all of them again.
    fn take(&self, message: &Msg, announcements: &mpsc::Sender<Announcement>) -> bool {
        if message.get_channel_name() == self.channels.operators {
            self.take_of_operator(message);
            return true;
        }
        match announcements.try_send(announcement(message, &self.channels)) {
            Ok(()) => true,
            Err(TrySendError::Full(Announcement::Revoked(_))) => false,
            Err(_) => {
                self.dropped.inc();
                true
            }
        }
    }

    fn take_of_operator(&self, message: &Msg) {
        let text = std::str::from_utf8(message.get_payload_bytes()).ok();
        let text = text.filter(|text| text.len() <= 2 * ADMIN_BODY_BYTES_MAX);
        if text.is_none_or(|text| self.messages.try_send(text.into()).is_err()) {
            warn!("a message of another pod's operator is dropped: too long, or too many at once");
        }
    }
}

/// The connection for announcements. A separate task reads it into a bounded queue: the crate's own queue has no bound,
/// and a call may take seconds. The queue ends when the connection breaks or stops answering.
pub(super) struct Announcements {
    heard: mpsc::Receiver<Announcement>,
    task: JoinHandle<()>,
}

impl Announcements {
    pub(super) fn hear(connection: PubSub, listener: Listener, ping_within: Duration) -> Self {
        let (queue, heard) = mpsc::channel(ANNOUNCEMENTS_MAX);
        let task = tokio::spawn(async move {
            let (mut sink, mut messages) = connection.split();
            loop {
                match timeout(ANNOUNCEMENTS_QUIET_MAX, messages.next()).await {
                    Ok(Some(message)) if listener.take(&message, &queue) => {}
                    Ok(_) => return,
                    Err(_) if answers(&mut sink, ping_within).await => {}
                    Err(_) => {
                        warn!("announcement connection to Redis stopped answering; reconnecting");
                        return;
                    }
                }
            }
        });
        Self { heard, task }
    }
}

impl Drop for Announcements {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a message announces.
fn announcement(message: &Msg, Channels { leave, revocations, .. }: &Channels) -> Announcement {
    let payload = message.get_payload_bytes();
    let channel = message.get_channel_name();
    if channel == revocations {
        let line_end = payload.iter().position(|byte| *byte == b'\n').unwrap_or(payload.len());
        let (field, value) = payload.split_at(line_end);
        return revocation(field, value).map_or(Announcement::Other, Announcement::Revoked);
    }
    let node = std::str::from_utf8(payload).ok().filter(|node| is_node_name(node));
    match node {
        Some(node) if channel == leave => Announcement::Left(NodeId(node.into())),
        _ => Announcement::Other,
    }
}

/// The revocation in a field of the hash, or in a message.
pub(super) fn revocation(field: &[u8], value: &[u8]) -> Option<Revocation> {
    Revocation::parse(std::str::from_utf8(field).ok()?, std::str::from_utf8(value).ok()?.trim_start())
}

/// Whether a connection answers a ping in time. An error from Redis (it may forbid pings) counts as an answer.
async fn answers(sink: &mut PubSubSink, limit: Duration) -> bool {
    match timeout(limit, sink.ping::<Value>()).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => !error.is_unrecoverable_error() && !error.is_io_error(),
        Err(_) => false,
    }
}

/// Returns the next announcement; waits forever without a connection.
pub(super) async fn next(announcements: &mut Option<Announcements>) -> Option<Announcement> {
    match announcements {
        Some(announcements) => announcements.heard.recv().await,
        None => std::future::pending().await,
    }
}
