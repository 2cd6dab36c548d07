//! The body of `GET /connections`: this pod's connections, in pages.

use serde::Serialize;

use crate::clock::{Now, UnixMs, whole_ms};
use crate::exchange::ConnectionRow;
use crate::ids::{ConnectionIds, NodeId, ShardIndex};

#[derive(Serialize)]
pub(super) struct ConnectionsBody<'a> {
    node: &'a str,
    timestamp: String,
    connections: Vec<ConnectionBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionBody {
    connection_id: String,
    user: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    assessment_id: Option<Box<str>>,
    since: String,
    address: String,
    lag_events: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_ms: Option<u64>,
    bytes_sent: u64,
}

/// The answer with the first `limit` of these rows.
pub(super) fn body<'a>(
    node: &'a NodeId,
    ids: &ConnectionIds,
    mut rows: Vec<(ShardIndex, ConnectionRow)>,
    limit: usize,
    now: Now,
) -> ConnectionsBody<'a> {
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    let connections: Vec<_> =
        rows.into_iter().map(|(shard, row)| connection(ids.id(shard, row.number), row, now)).collect();
    ConnectionsBody {
        node: &node.0,
        timestamp: now.unix.to_string(),
        next: connections.last().filter(|_| has_more).map(|last| last.connection_id.clone()),
        connections,
    }
}

fn connection(connection_id: String, row: ConnectionRow, now: Now) -> ConnectionBody {
    let age = now.instant.saturating_duration_since(row.opened);
    ConnectionBody {
        connection_id,
        user: row.user,
        assessment_id: row.assessment,
        since: UnixMs(now.unix.0.saturating_sub(whole_ms(age))).to_string(),
        address: row.address.to_string(),
        lag_events: row.lag_events,
        blocked_ms: row.blocked_for.map(whole_ms),
        bytes_sent: row.acknowledged_bytes,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_page_names_its_last_connection_if_there_are_more() {
        let now = Now { instant: Instant::now(), unix: UnixMs(5_000) };
        let node = NodeId("a".into());
        let ids = ConnectionIds::new(&node, UnixMs(16));
        let row = |number| ConnectionRow {
            number,
            user: "u".into(),
            assessment: (number == 1).then(|| "x".into()),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            opened: now.instant.checked_sub(Duration::from_secs(2)).unwrap(),
            lag_events: 3,
            blocked_for: (number == 1).then_some(Duration::from_millis(40)),
            acknowledged_bytes: 500,
        };
        let rows = || [1, 2].map(|number| (ShardIndex(1), row(number))).to_vec();
        let json = |limit| serde_json::to_value(body(&node, &ids, rows(), limit, now)).unwrap();
        assert_eq!(
            json(1),
            serde_json::json!({
                "node": "a", "timestamp": "1970-01-01T00:00:05.000Z", "next": "a-10-1-1",
                "connections": [{
                    "connectionId": "a-10-1-1", "user": "u", "assessmentId": "x", "since": "1970-01-01T00:00:03.000Z",
                    "address": "127.0.0.1", "lagEvents": 3, "blockedMs": 40, "bytesSent": 500,
                }],
            })
        );
        let all = json(2);
        assert!(all.get("next").is_none() && all["connections"][1].get("assessmentId").is_none(), "{all}");
    }
}
