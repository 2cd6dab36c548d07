//! The edge to other pods: what an operator asks of one pod is published, and every pod does it (PROTOCOL 7). A pod
//! does what it was asked itself, so that it is done with Redis away.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::request::{DisconnectionBody, Target};
use super::shards::{self, LateShard};
use crate::exchange::{ConnectionFilter, Publication, ShardHandle};
use crate::ids::ConnectionIds;
use crate::limits::PUBLICATION_MAX;

/// A message between pods.
#[derive(Debug, Serialize, Deserialize)]
struct FleetMessage<'a> {
    /// The process that publishes it: it does what it was asked without this message.
    #[serde(borrow)]
    from: Cow<'a, str>,
    /// The name of the operator's token.
    #[serde(borrow)]
    operator: Cow<'a, str>,
    action: FleetAction,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum FleetAction {
    Disconnection(DisconnectionBody),
}

/// This process's way to every pod.
#[derive(Debug)]
pub(crate) struct Fleet {
    publications: mpsc::Sender<Publication>,
    ids: ConnectionIds,
}

/// How many pods got a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// As many, this one included.
    Pods(u64),
    /// This pod has no others.
    Alone,
    /// Redis does not answer.
    ThisPodOnly,
}

impl Fleet {
    /// A way to the pods that discovery publishes to, for the process with these ids.
    #[must_use]
    pub(crate) fn new(publications: mpsc::Sender<Publication>, ids: ConnectionIds) -> Self {
        Self { publications, ids }
    }

    /// Publishes a disconnection.
    pub(super) async fn publish(&self, operator: &str, body: DisconnectionBody) -> Reach {
        let message = FleetMessage {
            from: self.ids.process().into(),
            operator: operator.into(),
            action: FleetAction::Disconnection(body),
        };
        let text = serde_json::to_string(&message).expect("a message of texts and flags is always JSON");
        let published = async {
            let (answer, answered) = oneshot::channel();
            if self.publications.send(Publication { text, answer }).await.is_err() {
                return Reach::Alone;
            }
            answered.await.ok().flatten().map_or(Reach::ThisPodOnly, Reach::Pods)
        };
        timeout(PUBLICATION_MAX, published).await.unwrap_or(Reach::ThisPodOnly)
    }
}

/// Does what other pods' operators ask, until discovery ends.
pub(crate) async fn follow(mut messages: mpsc::Receiver<Box<str>>, shards: Vec<ShardHandle>, ids: ConnectionIds) {
    while let Some(text) = messages.recv().await {
        let FleetMessage { from, operator, action } = match serde_json::from_str(&text) {
            Ok(message) => message,
            Err(error) => {
                warn!(%error, "ignoring a message of another pod's operator that this version does not know");
                continue;
            }
        };
        if from == ids.process() {
            continue;
        }
        let FleetAction::Disconnection(body) = action;
        let done = match body.parse() {
            Ok((target, reconnect)) => {
                disconnect(&shards, &ids, &target, reconnect).await.map(|closed| (target, closed))
            }
            Err(fault) => {
                warn!(fault, "ignoring a disconnection of another pod's operator");
                continue;
            }
        };
        match done {
            Ok((target, closed)) => {
                info!(%operator, %from, %target, closed, "connections closed by an operator of another pod");
            }
            Err(late) => {
                error!(%operator, %from, error = %late, "connections may stay open that an operator of another pod ends");
            }
        }
    }
}

/// Closes this pod's connections of a target; returns their number.
pub(super) async fn disconnect(
    shards: &[ShardHandle],
    ids: &ConnectionIds,
    target: &Target,
    reconnect: bool,
) -> Result<u64, LateShard> {
    let mut filter = ConnectionFilter::default();
    let mut only = None;
    match target {
        Target::User(user) => filter.user = Some(user.as_str().into()),
        Target::Assessment(id) => filter.assessment = Some(id.clone()),
        Target::Connection(id) => {
            // Another pod's connection.
            let Some((shard, number)) = ids.parse(id) else { return Ok(0) };
            (only, filter.number) = (Some(shard), Some(number));
        }
    }
    shards::disconnect(shards, only, &filter, reconnect).await
}
