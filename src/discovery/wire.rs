//! What a pod and the script in Redis (`slots.lua`) tell each other: a call and the snapshot that answers it, as JSON.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{is_node_name, is_public_url};
use crate::ids::{NodeId, SlotNumber};
use crate::limits::SLOTS_MAX;
use crate::routing::placement::Pod;

/// One run of the script. Each run also removes the leases that have run out, where the caller may judge that.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// What to do beside looking.
    pub action: Action,
    /// The caller's name.
    pub node: Arc<str>,
    /// The caller's process: a name may come again, an instance doesn't.
    pub instance: Arc<str>,
    /// Where clients reach the caller.
    pub url: Arc<str>,
    /// How long a lease lasts that the call takes or renews.
    pub lease_ms: u64,
    /// The number that the caller has or had: it gets this one where it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// Whether a slot that the caller's name holds is to be taken over: a restart.
    pub take_over: bool,
    /// Numbers that the caller must not take although they are vacant: their pods are expected back.
    pub reserved: Vec<u32>,
    /// How many slots the caller knows of: what an emptied Redis is to learn again.
    pub slots: u32,
    /// The bound of slot numbers ([`SLOTS_MAX`]).
    pub slots_max: u32,
    /// The longest value that is read ([`crate::limits::SLOT_VALUE_BYTES_MAX`]).
    pub value_bytes_max: usize,
    /// Fields beyond the slots, up to which all are read ([`crate::limits::FOREIGN_FIELDS_MAX`]).
    pub fields_max: u32,
    /// Redis' time when the call was sent, as far as the caller can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_ms: Option<u64>,
    /// How long after that the caller has given the call up: then it must do nothing.
    pub late_ms: u64,
    /// Whether leases that have run out are to be removed.
    pub judge: bool,
    /// Where to announce a pod that came.
    pub join_channel: Arc<str>,
    /// Where to announce a pod that went.
    pub leave_channel: Arc<str>,
}

/// What a [`Call`] does beside looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Nothing.
    Watch,
    /// Takes a slot: the own number, one that the own name holds, the lowest that is free.
    Claim,
    /// Renews the lease, or takes the own number again where it is vacant.
    Hold,
    /// Gives the slot up.
    Leave,
}

/// What the hash held when a call had done its work.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Redis' time.
    pub now_ms: u64,
    /// The call came too late and did nothing; all else here is empty.
    pub late: bool,
    /// When this life of the hash began, in Redis' time: an emptied Redis begins another.
    pub epoch: u64,
    /// Grows by one with each change in an epoch.
    pub version: u64,
    /// How many slots there are, vacant ones included.
    pub slots: u32,
    /// The slots that are held, by number.
    pub holders: Vec<Holder>,
    /// Fields of the hash that are no slots, or whose value no pod wrote.
    pub ignored: u64,
    /// One of these fields, for the log.
    pub ignored_field: Option<Box<str>>,
}

/// Who holds a slot.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// The slot's number.
    pub slot: u32,
    /// The pod's name.
    pub node: Arc<str>,
    /// The pod's process.
    pub instance: Arc<str>,
    /// Where clients reach it.
    pub url: Arc<str>,
    /// When its lease runs out, in Redis' time.
    pub expires_at_ms: u64,
}

impl Holder {
    /// The slot's number, as a type.
    #[must_use]
    pub fn number(&self) -> SlotNumber {
        SlotNumber(self.slot)
    }

    /// Whether it can be in a view: its name and its URL are what the settings of a pod allow.
    fn is_usable(&self) -> bool {
        self.slot < SLOTS_MAX && is_node_name(&self.node) && is_public_url(&self.url)
    }

    /// The pod, as placement knows it.
    #[must_use]
    pub fn pod(&self) -> Pod {
        Pod { node: NodeId(Arc::clone(&self.node)), url: Arc::clone(&self.url) }
    }
}

/// Why the script's answer cannot be read: something that is not our script answered.
#[derive(Debug, thiserror::Error)]
pub enum BadAnswer {
    /// No header came.
    #[error("the slots script answered nothing")]
    Empty,
    /// A part is not the JSON that it should be.
    #[error("the slots script's answer is not understood: {0}")]
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
    /// Reads the script's answer: a header, then the holders. A holder that can't be read, or to whom no client can be
    /// sent, is ignored: it must not hide the others.
    ///
    /// # Errors
    /// Where the header is not what the script writes.
    pub fn parse(answer: &[Vec<u8>]) -> Result<Self, BadAnswer> {
        let (header, lines) = answer.split_first().ok_or(BadAnswer::Empty)?;
        let SnapshotHeader { now_ms, late, epoch, version, slots, mut ignored, mut ignored_field } =
            serde_json::from_slice(header)?;
        let mut holders = Vec::with_capacity(lines.len());
        for line in lines {
            match serde_json::from_slice::<Holder>(line) {
                Ok(holder) if holder.is_usable() => holders.push(holder),
                _ => {
                    ignored += 1;
                    ignored_field = ignored_field.or_else(|| slot_of(line));
                }
            }
        }
        Ok(Self { now_ms, late, epoch, version, slots: slots.min(SLOTS_MAX), holders, ignored, ignored_field })
    }
}

/// The slot's number in a line that is no holder: it comes first, as the script writes it.
fn slot_of(line: &[u8]) -> Option<Box<str>> {
    let rest = line.strip_prefix(br#"{"slot":"#)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    Some(String::from_utf8_lossy(&rest[..digits]).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_header_and_the_holders() {
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
    }

    #[test]
    fn a_call_that_came_late_is_answered_with_the_time_alone() {
        let snapshot = Snapshot::parse(&[br#"{"nowMs":5,"late":true}"#.to_vec()]).unwrap();
        assert_eq!(snapshot, Snapshot { now_ms: 5, late: true, ..Snapshot::default() });
    }

    #[test]
    fn another_answer_is_an_error_and_no_panic() {
        assert!(matches!(Snapshot::parse(&[]), Err(BadAnswer::Empty)));
        assert!(matches!(Snapshot::parse(&[b"OK".to_vec()]), Err(BadAnswer::Json(_))));
    }

    #[test]
    fn a_holder_that_cannot_be_read_is_ignored_and_hides_no_other() {
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
    fn a_call_leaves_out_what_it_does_not_know() {
        let call = Call {
            action: Action::Watch,
            node: "a".into(),
            instance: "i".into(),
            url: "ws://a/ws".into(),
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
