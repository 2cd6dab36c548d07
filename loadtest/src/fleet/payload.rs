//! Payloads of records and frames of the bare loops. Both carry their due time in `timestamp`, in Unix microseconds,
//! and have the requested length.

use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::schedule::{DueItem, assessment, market};
use crate::client::raw::opcode;
use crate::events::{Kind, ticks_topic};

/// Unix time in microseconds.
pub type UnixUs = u64;

/// The current Unix time.
///
/// # Panics
/// If the clock is before 1970.
#[must_use]
pub fn now_us() -> UnixUs {
    us(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970"))
}

/// A duration in microseconds.
///
/// # Panics
/// If it is longer than half a million years.
#[must_use]
pub fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).expect("microseconds fit u64")
}

/// The topic of an item.
#[must_use]
pub fn topic(what: DueItem) -> String {
    match what {
        DueItem::Event(_) => Kind::PositionOpened.topic().to_owned(),
        DueItem::Tick(number) => ticks_topic(&market(number)),
    }
}

/// The key of an item.
#[must_use]
pub fn key(what: DueItem) -> String {
    match what {
        DueItem::Event(number) => assessment(number),
        DueItem::Tick(number) => market(number),
    }
}

/// Writes a record's payload: an event of `size` bytes, or as long as its fields. The padding is in `positionId`, which
/// the gateway passes on unchanged. The payload begins like a client's message: the gateway ignores `type`, and the
/// bare loop sends the payload itself.
pub fn record(out: &mut Vec<u8>, what: DueItem, due: UnixUs, size: usize) {
    out.clear();
    match what {
        DueItem::Tick(number) => {
            let name = market(number);
            write!(out, r#"{{"type":"market_price","market":"{name}","price":101.25,"timestamp":{due}}}"#)
        }
        DueItem::Event(number) => {
            let (id, start) = (assessment(number), r#"{"type":"position_update","assessmentId":""#);
            let end = format!(
                r#"","market":"load","side":"buy","quantity":2,"entryPrice":101.25,"unrealizedPnl":0,"timestamp":{due}}}"#
            );
            let before = format!(r#"{start}{id}","positionId":""#);
            let fill = size.saturating_sub(before.len() + end.len());
            write!(out, "{before}{:x<fill$}{end}", "")
        }
    }
    .expect("writing to memory does not fail");
}

/// Writes a text frame with `payload`, padded with spaces to `length` bytes in all.
pub fn frame(out: &mut Vec<u8>, payload: &[u8], length: usize) {
    let padded_length = |header: usize| length.saturating_sub(header).max(payload.len());
    out.clear();
    out.push(0x80 | opcode::TEXT);
    let padded = match padded_length(2) {
        short @ 0..=125 => {
            out.push(u8::try_from(short).expect("up to 125"));
            short
        }
        _ if u16::try_from(padded_length(4)).is_ok() => {
            let middle = u16::try_from(padded_length(4).max(126)).expect("checked to fit");
            out.push(126);
            out.extend(middle.to_be_bytes());
            usize::from(middle)
        }
        _ => {
            out.push(127);
            out.extend((padded_length(10) as u64).to_be_bytes());
            padded_length(10)
        }
    };
    out.extend_from_slice(payload);
    out.resize(out.len() + padded - payload.len(), b' ');
}

/// The due time in a message. Only sampled messages are parsed.
///
/// # Errors
/// If it is not a message of this load.
pub fn due_of(message: &[u8]) -> serde_json::Result<UnixUs> {
    #[derive(Deserialize)]
    struct SampledMessage {
        timestamp: UnixUs,
    }
    serde_json::from_slice(message).map(|SampledMessage { timestamp }| timestamp)
}

/// The cursor of an event or a redirect, which is the last field.
#[must_use]
pub fn cursor_of(message: &[u8]) -> Option<&str> {
    let name = br#","cursor":""#;
    let value = message.strip_suffix(br#""}"#)?;
    let start = value.iter().rposition(|byte| *byte == b'"')? + 1;
    value[..start].ends_with(name).then(|| std::str::from_utf8(&value[start..]).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{Frames, MessageKind};

    #[test]
    fn records_are_json_of_the_requested_length_with_their_due_time() {
        let mut bytes = Vec::new();
        for size in [250, 512, 5_000] {
            record(&mut bytes, DueItem::Event(12), 1_790_000_000_000_007, size);
            assert_eq!(bytes.len(), size);
            let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(json["assessmentId"], "load-12");
            assert_eq!(due_of(&bytes).unwrap(), 1_790_000_000_000_007);
        }
        record(&mut bytes, DueItem::Event(12), 7, 0);
        assert_eq!(due_of(&bytes).unwrap(), 7, "a short record has its fields and no padding");
        record(&mut bytes, DueItem::Tick(1), 8, 512);
        assert_eq!(due_of(&bytes).unwrap(), 8);
        assert!(due_of(br#"{"type":"connected"}"#).is_err());
    }

    #[test]
    fn frames_have_the_requested_length_and_remain_json() {
        let mut frames = Frames::default();
        frames.take(b"HTTP/1.1 101 \r\n\r\n", |_| {}).unwrap();
        let (mut payload, mut bytes) = (Vec::new(), Vec::new());
        record(&mut payload, DueItem::Event(0), 7, 300);
        for length in [304, 400, 65_539, 70_000, 0] {
            frame(&mut bytes, &payload, length);
            assert_eq!(bytes.len(), length.max(304));
            let mut seen = 0;
            let each = |frame: crate::frames::Frame<'_>| {
                assert_eq!(frame.kind(), Some(MessageKind::Event));
                assert_eq!(due_of(frame.payload).unwrap(), 7);
                seen += 1;
            };
            frames.take(&bytes, each).unwrap();
            assert_eq!(seen, 1);
        }
        frame(&mut bytes, b"{}", 0);
        assert_eq!(bytes, [0x81, 2, b'{', b'}']);
    }

    #[test]
    fn the_cursor_is_a_messages_last_field() {
        assert_eq!(cursor_of(br#"{"type":"a","timestamp":1,"cursor":"Ab-_9"}"#), Some("Ab-_9"));
        assert_eq!(cursor_of(br#"{"type":"a","cursor":"Ab","node":"pod"}"#), None);
        assert_eq!(cursor_of(br#"{"type":"a","timestamp":1}"#), None);
        assert_eq!(cursor_of(b""), None);
    }
}
