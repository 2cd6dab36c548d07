//! What operators ask of the shards and of other pods, and the answers.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::ids::AssessmentId;

/// A request to a shard. It answers when its pass over the connections has ended; if the answer is awaited no more, the
/// pass of a list ends early.
#[derive(Debug)]
pub(crate) enum ShardRequest {
    /// Lists connections, the oldest first.
    List {
        /// Which ones.
        filter: ConnectionFilter,
        /// Only those with a higher number.
        after: u64,
        /// The first ones, up to this many.
        limit: usize,
        /// The answer.
        answer: oneshot::Sender<Vec<ConnectionRow>>,
    },
    /// Ends connections.
    Disconnect {
        /// Which ones.
        filter: ConnectionFilter,
        /// Whether their clients should come back.
        reconnect: bool,
        /// Number of connections that were closed.
        answer: oneshot::Sender<u64>,
    },
}

/// Connections for which all of this holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ConnectionFilter {
    /// Of this user.
    pub(crate) user: Option<Box<str>>,
    /// Of this assessment.
    pub(crate) assessment: Option<AssessmentId>,
    /// The one with this number on its shard.
    pub(crate) number: Option<u64>,
}

/// A connection, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConnectionRow {
    /// Its number on its shard, which is part of its id.
    pub(crate) number: u64,
    /// The user that its token names.
    pub(crate) user: Box<str>,
    /// Its assessment, if it has one.
    pub(crate) assessment: Option<Box<str>>,
    /// The client's address.
    pub(crate) address: IpAddr,
    /// When it was opened.
    pub(crate) opened: Instant,
    /// Events of its assessment that it has not been sent.
    pub(crate) lag_events: u64,
    /// How long its socket has taken nothing.
    pub(crate) blocked_for: Option<Duration>,
    /// Bytes that the client's system has acknowledged.
    pub(crate) acknowledged_bytes: u64,
}

// ---- to and from other pods -----------------------------------------------------------------------------------------

/// A message to every pod of the fleet.
#[derive(Debug)]
pub(crate) struct Publication {
    /// The message.
    pub(crate) text: String,
    /// Number of pods that got it, this one included; `None` if Redis does not answer.
    pub(crate) answer: oneshot::Sender<Option<u64>>,
}

/// Discovery's ends of the operators' channels.
#[derive(Debug)]
pub(crate) struct FleetChannels {
    /// Messages to publish.
    pub(crate) publications: mpsc::Receiver<Publication>,
    /// Messages that were published, this pod's included.
    pub(crate) messages: mpsc::Sender<Box<str>>,
}
