//! The JSON between a pod and the script in Redis (`slots.lua`): a call, and the snapshot that answers it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{is_node_name, is_peer_url, is_public_url};
use crate::ids::{NodeId, SlotNumber};
use crate::limits::SLOTS_MAX;
use crate::routing::placement::Pod;

/// One run of the script. Each run also removes expired leases if the caller may expire them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// The change to make, if any.
    pub action: Action,
    /// The caller's name.
    pub node: Arc<str>,
    /// Id of the caller's process: unlike a name, it is never reused.
    pub instance: Arc<str>,
    /// URL by which clients reach the caller.
    pub url: Arc<str>,
    /// URL by which other pods look at the caller, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_url: Option<Arc<str>>,
    /// Length of the lease that the call takes or renews.
    pub lease_ms: u64,
    /// The slot that the caller holds or held: it gets this one if it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// Whether to take over a slot under the caller's name: a restart.
    pub take_over: bool,
    /// Slots that the caller must not take although they are vacant: their pods are expected back.
    pub reserved: Vec<u32>,
    /// Number of slots that the caller knows, for an emptied Redis.
    pub slots: u32,
    /// The limit of slot numbers ([`SLOTS_MAX`]).
    pub slots_max: u32,
    /// The longest value that is read ([`crate::limits::SLOT_VALUE_BYTES_MAX`]).
    pub value_bytes_max: usize,
    /// Number of foreign fields up to which all fields are read ([`crate::limits::FOREIGN_FIELDS_MAX`]).
    pub fields_max: u32,
    /// Redis' time when the call was sent, by the caller's estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_ms: Option<u64>,
    /// Time after `sent_ms` at which the caller gives the call up; a later call must do nothing.
    pub late_ms: u64,
    /// Whether the script removes expired leases.
    pub judge: bool,
    /// Channel for pods that join.
    pub join_channel: Arc<str>,
    /// Channel for pods that leave.
    pub leave_channel: Arc<str>,
}

/// The change that a [`Call`] makes, beside reading the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Reads the slots only.
    Watch,
    /// Takes a slot: the caller's number, one under its name, or the lowest vacant one.
    Claim,
    /// Renews the lease, or takes the caller's number again if it is vacant.
    Hold,
    /// Releases the slot.
    Leave,
}

/// The hash after a call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Time of Redis.
    pub(crate) now_ms: u64,
    /// The call arrived too late and did nothing; all other fields are empty.
    pub(crate) late: bool,
    /// When this epoch of the hash began, in Redis' time: an emptied Redis starts another.
    pub(crate) epoch: u64,
    /// Grows by one with each change within an epoch.
    pub version: u64,
    /// Number of slots, vacant ones included.
    pub slots: u32,
    /// The holders, by slot number.
    pub holders: Vec<Holder>,
    /// Number of foreign fields in the hash.
    pub ignored: u64,
    /// Name of one of these fields, for the log.
    pub ignored_field: Option<Box<str>>,
}

/// A pod that holds a slot.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// The slot's number.
    pub slot: u32,
    /// The pod's name.
    pub node: Arc<str>,
    /// Id of the pod's process.
    pub instance: Arc<str>,
    /// URL by which clients reach the pod.
    pub(crate) url: Arc<str>,
    /// URL by which other pods look at it, if there is one.
    #[serde(default)]
    pub peer_url: Option<Arc<str>>,
    /// End of its lease, in Redis' time.
    pub(crate) expires_at_ms: u64,
}

impl Holder {
    /// The slot's number, as a type.
    #[must_use]
    pub(crate) fn number(&self) -> SlotNumber {
        SlotNumber(self.slot)
    }

    /// Whether it can be in a view: name and URL obey the rules of the settings.
    fn is_usable(&self) -> bool {
        self.slot < SLOTS_MAX && is_node_name(&self.node) && is_public_url(&self.url)
    }

    /// The pod, as placement uses it.
    #[must_use]
    pub fn pod(&self) -> Pod {
        Pod { node: NodeId(Arc::clone(&self.node)), url: Arc::clone(&self.url) }
    }
}

/// Why an answer can't be read: something other than our script answered.
#[derive(Debug, thiserror::Error)]
pub enum BadAnswer {
    /// The header is missing.
    #[error("the slots script returned no answer")]
    Empty,
    /// A part is not the expected JSON.
    #[error("the slots script's answer is not valid: {0}")]
    Json(#[from] serde_json::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotHeader {
    now_ms: u64,
    late: bool,
    #[serde(default)]
    epoch: u64,
    #[serde(default)]
    version: u64,
    #[serde(default)]
    slots: u32,
    #[serde(default)]
    ignored: u64,
    #[serde(default)]
    ignored_field: Option<Box<str>>,
}

impl Snapshot {
    /// Reads the script's answer: a header, then the holders. A holder that can't be read, or that no client can be
    /// redirected to, is ignored: it must not hide the others.
    ///
    /// # Errors
    /// If the header is not what the script writes.
    pub fn parse(answer: &[Vec<u8>]) -> Result<Self, BadAnswer> {
        let (header, lines) = answer.split_first().ok_or(BadAnswer::Empty)?;
        let SnapshotHeader { now_ms, late, epoch, version, slots, mut ignored, mut ignored_field } =
            serde_json::from_slice(header)?;
        let mut holders = Vec::with_capacity(lines.len());
        for line in lines {
            match serde_json::from_slice::<Holder>(line) {
                Ok(holder) if holder.is_usable() => {
                    let peer_url = holder.peer_url.filter(|url| is_peer_url(url));
                    holders.push(Holder { peer_url, ..holder });
                }
                _ => {
                    ignored += 1;
                    ignored_field = ignored_field.or_else(|| slot_of(line));
                }
            }
        }
        Ok(Self { now_ms, late, epoch, version, slots: slots.min(SLOTS_MAX), holders, ignored, ignored_field })
    }
}

/// Reads the slot's number from a line that is no valid holder; the script writes it first.
fn slot_of(line: &[u8]) -> Option<Box<str>> {
    let rest = line.strip_prefix(br#"{"slot":"#)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    Some(String::from_utf8_lossy(&rest[..digits]).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_header_and_holders() {
        let answer = [
            br#"{"nowMs":1790000000007,"late":false,"epoch":1789999999000,"version":7,"slots":3}"#.to_vec(),
            br#"{"slot":2,"node":"pod-c","instance":"i","url":"ws://c/ws","expiresAtMs":1790000010007}"#.to_vec(),
        ];
        let snapshot = Snapshot::parse(&answer).unwrap();
        assert_eq!((snapshot.now_ms, snapshot.epoch), (1_790_000_000_007, 1_789_999_999_000));
        assert_eq!((snapshot.version, snapshot.slots, snapshot.late), (7, 3, false));
        assert_eq!(snapshot.holders[0].number(), SlotNumber(2));
        assert_eq!(&*snapshot.holders[0].pod().url, "ws://c/ws");
        assert_eq!(snapshot.holders[0].expires_at_ms, 1_790_000_010_007);
        for (peer_url, expected) in [("http://10.1.2.3:3004", true), ("file:///x", false), ("http://a/b", false)] {
            let holder = format!(
                r#"{{"slot":2,"node":"c","instance":"i","url":"ws://c/ws","peerUrl":"{peer_url}","expiresAtMs":1}}"#
            );
            let snapshot = Snapshot::parse(&[answer[0].clone(), holder.into_bytes()]).unwrap();
            assert_eq!(snapshot.holders[0].peer_url.as_deref(), expected.then_some(peer_url));
        }
    }

    #[test]
    fn a_late_call_is_answered_with_the_time_only() {
        let snapshot = Snapshot::parse(&[br#"{"nowMs":5,"late":true}"#.to_vec()]).unwrap();
        assert_eq!(snapshot, Snapshot { now_ms: 5, late: true, ..Snapshot::default() });
    }

    #[test]
    fn any_other_answer_is_an_error_and_does_not_panic() {
        assert!(matches!(Snapshot::parse(&[]), Err(BadAnswer::Empty)));
        assert!(matches!(Snapshot::parse(&[b"OK".to_vec()]), Err(BadAnswer::Json(_))));
    }

    #[test]
    fn an_unreadable_holder_is_ignored_and_hides_no_other() {
        let holder = |node: &[u8], url: &str, expires: &str| {
            let rest = format!(r#"","instance":"i","url":"{url}","expiresAtMs":{expires}}}"#);
            [br#"{"slot":2,"node":""#, node, rest.as_bytes()].concat()
        };
        let header =
            br#"{"nowMs":7,"late":false,"epoch":1,"version":7,"slots":3,"ignored":1,"ignoredField":null}"#.to_vec();
        let long_url = format!("ws://{}/ws", "h".repeat(1 << 20));
        let bad = [
            holder(b"\xff", "ws://c/ws", "5"),
            holder(b"c", "ws://c/ws", "1.79e+15"),
            holder(b"c", "ws://c/ws", "-1"),
            holder(b"", "ws://c/ws", "5"),
            holder(b"c\\u0007", "ws://c/ws", "5"),
            holder(&[b'c'; 1_000], "ws://c/ws", "5"),
            holder(b"c", "javascript:alert(1)", "5"),
            holder(b"c", "ws://c/ws?token=", "5"),
            holder(b"c", "", "5"),
            holder(b"c", &long_url, "5"),
            b"\"OK\"".to_vec(),
            Vec::new(),
        ];
        for line in bad {
            let answer = [header.clone(), line.clone(), holder(b"c", "wss://c/ws", "5")];
            let snapshot = Snapshot::parse(&answer).unwrap();
            assert_eq!(snapshot.holders.len(), 1, "{}", String::from_utf8_lossy(&line));
            assert_eq!(snapshot.ignored, 2);
            let field = snapshot.ignored_field.as_deref();
            assert_eq!(field, line.starts_with(b"{").then_some("2"));
        }
    }

    #[test]
    fn a_call_leaves_out_unknown_fields() {
        let call = Call {
            action: Action::Watch,
            node: "a".into(),
            instance: "i".into(),
            url: "ws://a/ws".into(),
            peer_url: None,
            lease_ms: 10_000,
            slot: None,
            take_over: false,
            reserved: vec![],
            slots: 0,
            slots_max: SLOTS_MAX,
            value_bytes_max: 8_192,
            fields_max: 1_000,
            sent_ms: None,
            late_ms: 2_000,
            judge: true,
            join_channel: "websocket:node:join".into(),
            leave_channel: "websocket:node:leave".into(),
        };
        let json: serde_json::Value = serde_json::to_value(&call).unwrap();
        assert_eq!(json["action"], "watch");
        assert_eq!(json["takeOver"], false);
        assert!(json.get("slot").is_none() && json.get("sentMs").is_none());
    }
}
