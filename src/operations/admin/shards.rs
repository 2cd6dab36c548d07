//! The edge to the shards for operators: requests with a time limit. A shard that is late finishes its pass all the
//! same.

use std::time::Instant;

use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::exchange::{ConnectionFilter, ConnectionRow, ShardHandle, ShardRequest};
use crate::ids::ShardIndex;
use crate::limits::SHARD_ANSWER_MAX;

/// A shard has too many requests, or did not answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("shard {} did not answer within {SHARD_ANSWER_MAX:?}", .0.0)]
pub(super) struct LateShard(ShardIndex);

/// The first connections that match, in the order of their shards and numbers, up to `limit`; `after` is the last one
/// of the previous page.
pub(super) async fn list(
    shards: &[ShardHandle],
    filter: &ConnectionFilter,
    after: Option<(ShardIndex, u64)>,
    limit: usize,
) -> Result<Vec<(ShardIndex, ConnectionRow)>, LateShard> {
    let deadline = Instant::now() + SHARD_ANSWER_MAX;
    let (first, after) = after.unwrap_or((ShardIndex(0), 0));
    let mut rows = Vec::new();
    for (shard, handle) in indexed(shards).skip(usize::from(first.0)) {
        let left = limit - rows.len();
        if left == 0 {
            break;
        }
        let (answer, answered) = oneshot::channel();
        let after = if shard == first { after } else { 0 };
        let request = ShardRequest::List { filter: filter.clone(), after, limit: left, answer };
        handle.try_request(request).map_err(|_| LateShard(shard))?;
        let found = wait(shard, answered, deadline).await?;
        rows.extend(found.into_iter().map(|row| (shard, row)));
    }
    Ok(rows)
}

/// Closes the connections that match, on one shard or on all; returns their number.
pub(super) async fn disconnect(
    shards: &[ShardHandle],
    only: Option<ShardIndex>,
    filter: &ConnectionFilter,
    reconnect: bool,
) -> Result<u64, LateShard> {
    let deadline = Instant::now() + SHARD_ANSWER_MAX;
    let mut pending = Vec::new();
    for (shard, handle) in indexed(shards).filter(|(shard, _)| only.is_none_or(|only| only == *shard)) {
        let (answer, answered) = oneshot::channel();
        let request = ShardRequest::Disconnect { filter: filter.clone(), reconnect, answer };
        handle.try_request(request).map_err(|_| LateShard(shard))?;
        pending.push((shard, answered));
    }
    let mut closed = 0;
    for (shard, answered) in pending {
        closed += wait(shard, answered, deadline).await?;
    }
    Ok(closed)
}

fn indexed(shards: &[ShardHandle]) -> impl Iterator<Item = (ShardIndex, &ShardHandle)> {
    (0..).map(ShardIndex).zip(shards)
}

async fn wait<T>(shard: ShardIndex, answered: oneshot::Receiver<T>, deadline: Instant) -> Result<T, LateShard> {
    let answer = timeout_at(deadline.into(), answered).await;
    answer.ok().and_then(Result::ok).ok_or(LateShard(shard))
}
