//! The gateway's own messages (PROTOCOL 2) and the frames around them. Each function appends one whole, unmasked frame
//! to `out`. Owns their form; the shard decides when to send them.

use serde::{Serialize, Serializer};

use crate::clock::UnixMs;
use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;
use crate::protocol::close::CloseReason;
use crate::routing::placement::Pod;

/// The longest header of a server's frame, in bytes (RFC 6455 section 5.2).
pub(crate) const HEADER_BYTES_MAX: usize = 10;

/// FIN and the opcodes that the gateway sends (RFC 6455 section 5.2). It never fragments.
const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// Fields of `connected`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename = "connected", rename_all = "camelCase")]
pub(crate) struct Connected<'a> {
    /// Id of this connection, unique in the cluster for practical purposes.
    pub(crate) connection_id: &'a str,
    /// User that the token names.
    pub(crate) user_id: &'a str,
    /// Time of the greeting.
    #[serde(serialize_with = "iso_8601")]
    pub(crate) timestamp: UnixMs,
    /// Name of this pod.
    pub(crate) node: &'a str,
    /// The subscribed assessment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) assessment_id: Option<&'a str>,
    /// `HEARTBEAT_INTERVAL` in milliseconds.
    pub(crate) heartbeat_interval_ms: u64,
    /// When the token expires, without the leeway.
    #[serde(serialize_with = "some_iso_8601", skip_serializing_if = "Option::is_none")]
    pub(crate) token_expires_at: Option<UnixMs>,
    /// Whether the stream continues from the client's cursor.
    pub(crate) resumed: bool,
    /// The position to resume from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cursor: Option<&'a str>,
}

/// Why a client must fetch its state again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResetReason {
    /// The window no longer reaches back to the cursor, or records were deleted before they were read.
    Expired,
    /// The cursor is not valid here.
    Invalid,
    /// The window passed the client's position while it was catching up.
    Lagged,
    /// Records lie on partitions where the route's partitioner would not have put them.
    Misplaced,
}

impl ResetReason {
    /// Every reason, in the order of the metric's labels.
    pub(crate) const ALL: [Self; 4] = [Self::Expired, Self::Invalid, Self::Lagged, Self::Misplaced];

    /// The reason in the message, and the metric's label.
    #[must_use]
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Invalid => "invalid",
            Self::Lagged => "lagged",
            Self::Misplaced => "misplaced",
        }
    }
}

/// The messages `ping` and `pong`.
#[derive(Serialize)]
struct Beat<'a> {
    r#type: &'static str,
    #[serde(serialize_with = "iso_8601")]
    timestamp: UnixMs,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<&'a str>,
}

/// The messages `token_expiring` and `refreshed`.
#[derive(Serialize)]
struct TokenMessage {
    r#type: &'static str,
    #[serde(rename = "tokenExpiresAt", serialize_with = "some_iso_8601", skip_serializing_if = "Option::is_none")]
    expires: Option<UnixMs>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "reset")]
struct Reset<'a> {
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<&'a str>,
}

/// An error. A redirect is an error with more fields.
#[derive(Serialize)]
struct ErrorMessage<'a> {
    error: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<&'a str>,
}

/// Makes the header of a text frame for `len` bytes of payload. The second value is the header's length in the buffer.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "each range fits its type")]
pub const fn text_header(len: usize) -> ([u8; HEADER_BYTES_MAX], usize) {
    let mut header = [0; HEADER_BYTES_MAX];
    header[0] = TEXT;
    // Each arm's range fits the type that it is cast to.
    match len {
        0..=125 => {
            header[1] = len as u8;
            (header, 2)
        }
        126..=0xffff => {
            header[1] = 126;
            [header[2], header[3]] = (len as u16).to_be_bytes();
            (header, 4)
        }
        _ => {
            header[1] = 127;
            let bytes = (len as u64).to_be_bytes();
            header.split_at_mut(2).1.copy_from_slice(&bytes);
            (header, HEADER_BYTES_MAX)
        }
    }
}

/// Appends the greeting `connected`.
pub(crate) fn connected(out: &mut Vec<u8>, message: &Connected<'_>) {
    text(out, message);
}

/// Appends the heartbeat: a WebSocket ping frame, then the text `ping`.
pub(crate) fn heartbeat(out: &mut Vec<u8>, timestamp: UnixMs, cursor: Option<&str>) {
    control(out, PING, &[]);
    text(out, &Beat { r#type: "ping", timestamp, cursor });
}

/// Appends the answer to the client's text `ping`.
pub(crate) fn pong(out: &mut Vec<u8>, timestamp: UnixMs) {
    text(out, &Beat { r#type: "pong", timestamp, cursor: None });
}

/// Appends `reset`.
pub(crate) fn reset(out: &mut Vec<u8>, reason: ResetReason, cursor: Option<&str>) {
    text(out, &Reset { reason: reason.label(), cursor });
}

/// Appends `token_expiring`; `expires` is without the leeway.
pub(crate) fn token_expiring(out: &mut Vec<u8>, expires: Option<UnixMs>) {
    text(out, &TokenMessage { r#type: "token_expiring", expires });
}

/// Appends `refreshed`, the answer to a good `refresh`.
pub(crate) fn refreshed(out: &mut Vec<u8>, expires: Option<UnixMs>) {
    text(out, &TokenMessage { r#type: "refreshed", expires });
}

/// Appends an error: `Unauthorized`, `BadRequest`, `Forbidden` or `BadMessage`.
pub(crate) fn error(out: &mut Vec<u8>, error: &str, message: &str) {
    text(out, &ErrorMessage { error, message, node: None, url: None, cursor: None });
}

/// Appends the redirect to the pod that owns the assessment.
pub(crate) fn redirect(out: &mut Vec<u8>, message: &str, to: &Pod, cursor: Option<&str>) {
    text(out, &ErrorMessage { error: "Redirect", message, node: Some(&to.node.0), url: Some(&to.url), cursor });
}

/// Appends a close frame, unless the reason sends none.
pub(crate) fn close(out: &mut Vec<u8>, reason: CloseReason) {
    let row = reason.row();
    if let Some(code) = row.code {
        control(out, CLOSE, &[&code.to_be_bytes(), row.text.as_bytes()]);
    }
}

/// Appends the answer to a client's close frame: its own code (RFC 6455 section 5.5.1).
pub(crate) fn close_reply(out: &mut Vec<u8>, code: u16) {
    control(out, CLOSE, &[&code.to_be_bytes()]);
}

/// Appends a WebSocket pong frame with the ping's payload (RFC 6455 section 5.5.3).
///
/// # Panics
/// If the payload is longer than a control frame's; [`super::session::Session`] passes on none that is.
pub(crate) fn control_pong(out: &mut Vec<u8>, payload: &[u8]) {
    control(out, PONG, &[payload]);
}

/// Appends a text frame around a message's JSON.
fn text(out: &mut Vec<u8>, message: &impl Serialize) {
    let start = out.len();
    serde_json::to_writer(&mut *out, message).expect("strings, numbers and booleans always go into a Vec as JSON");
    // The header's length depends on the payload's. These messages are short, and moving them is cheaper than two
    // passes.
    let (header, header_len) = text_header(out.len() - start);
    out.splice(start..start, header.into_iter().take(header_len));
}

/// Appends a control frame.
fn control(out: &mut Vec<u8>, first: u8, payload: &[&[u8]]) {
    let len: usize = payload.iter().map(|part| part.len()).sum();
    assert!(len <= CONTROL_PAYLOAD_BYTES_MAX, "a control frame carries at most {CONTROL_PAYLOAD_BYTES_MAX} bytes");
    let len = u8::try_from(len).expect("just checked");
    out.extend_from_slice(&[first, len]);
    payload.iter().for_each(|part| out.extend_from_slice(part));
}

#[expect(clippy::ref_option, reason = "serde passes a reference")]
fn some_iso_8601<S: Serializer>(timestamp: &Option<UnixMs>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&timestamp.unwrap_or_default())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn iso_8601<S: Serializer>(timestamp: &UnixMs, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(timestamp)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::sync::Arc;

    use tungstenite::Message;
    use tungstenite::protocol::{Role, WebSocket};

    use super::*;
    use crate::ids::NodeId;

    const NOW: UnixMs = UnixMs(1_790_000_000_007);

    /// Reads the bytes as a client does: each message, until there are no more.
    fn read_as_client(bytes: Vec<u8>) -> Vec<Message> {
        let mut client = WebSocket::from_raw_socket(Cursor::new(bytes), Role::Client, None);
        std::iter::from_fn(|| client.read().ok()).collect()
    }

    /// Returns the single text that `write` appends.
    fn single_text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = b"earlier bytes stay".to_vec();
        let before = out.len();
        write(&mut out);
        match read_as_client(out.split_off(before)).as_slice() {
            [Message::Text(text)] => text.to_string(),
            other => panic!("one text expected, got {other:?}"),
        }
    }

    #[test]
    fn connected_leaves_out_missing_fields() {
        let mut message = Connected {
            connection_id: "c-1",
            user_id: "u \"quoted\" \u{1} ü",
            timestamp: NOW,
            node: "pod-0",
            assessment_id: None,
            heartbeat_interval_ms: 30_000,
            token_expires_at: None,
            resumed: false,
            cursor: None,
        };
        assert_eq!(
            single_text(|out| connected(out, &message)),
            r#"{"type":"connected","connectionId":"c-1","userId":"u \"quoted\" \u0001 ü","#.to_owned()
                + r#""timestamp":"2026-09-21T14:13:20.007Z","node":"pod-0","heartbeatIntervalMs":30000,"resumed":false}"#
        );
        message.user_id = "u";
        message.assessment_id = Some("a-1");
        message.resumed = true;
        message.token_expires_at = Some(UnixMs(1_000));
        message.cursor = Some("AbC");
        assert_eq!(
            single_text(|out| connected(out, &message)),
            r#"{"type":"connected","connectionId":"c-1","userId":"u","timestamp":"2026-09-21T14:13:20.007Z","#
                .to_owned()
                + r#""node":"pod-0","assessmentId":"a-1","heartbeatIntervalMs":30000,"#
                + r#""tokenExpiresAt":"1970-01-01T00:00:01.000Z","resumed":true,"cursor":"AbC"}"#
        );
    }

    #[test]
    fn a_heartbeat_is_a_ping_frame_and_a_text() {
        let mut out = Vec::new();
        heartbeat(&mut out, NOW, Some("AbC"));
        let text = r#"{"type":"ping","timestamp":"2026-09-21T14:13:20.007Z","cursor":"AbC"}"#;
        assert_eq!(read_as_client(out), [Message::Ping(Vec::new().into()), Message::text(text)]);
    }

    #[test]
    fn the_other_messages_match_the_contract() {
        assert_eq!(single_text(|out| pong(out, NOW)), r#"{"type":"pong","timestamp":"2026-09-21T14:13:20.007Z"}"#);
        for (reason, name) in [
            (ResetReason::Expired, "expired"),
            (ResetReason::Invalid, "invalid"),
            (ResetReason::Lagged, "lagged"),
            (ResetReason::Misplaced, "misplaced"),
        ] {
            let expected = format!(r#"{{"type":"reset","reason":"{name}","cursor":"AbC"}}"#);
            assert_eq!(single_text(|out| reset(out, reason, Some("AbC"))), expected);
        }
        assert_eq!(
            single_text(|out| error(out, "BadRequest", "assessmentId is empty")),
            r#"{"error":"BadRequest","message":"assessmentId is empty"}"#
        );
        let pod = Pod { node: NodeId(Arc::from("pod-1")), url: Arc::from("ws://pod-1:3003/ws") };
        assert_eq!(
            single_text(|out| redirect(out, "moved", &pod, None)),
            r#"{"error":"Redirect","message":"moved","node":"pod-1","url":"ws://pod-1:3003/ws"}"#
        );
        assert_eq!(
            single_text(|out| redirect(out, "moved", &pod, Some("AbC"))),
            r#"{"error":"Redirect","message":"moved","node":"pod-1","url":"ws://pod-1:3003/ws","cursor":"AbC"}"#
        );
    }

    #[test]
    fn a_close_frame_carries_its_code_and_text() {
        for reason in CloseReason::ALL {
            let mut out = Vec::new();
            close(&mut out, reason);
            match (read_as_client(out).as_slice(), reason.row().code) {
                ([], None) => {}
                ([Message::Close(Some(frame))], Some(code)) => {
                    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (code, reason.row().text));
                }
                (messages, code) => panic!("{reason:?} with code {code:?} became {messages:?}"),
            }
        }
    }

    #[test]
    fn a_pong_frame_carries_the_payload_of_its_ping() {
        for len in [0, 1, CONTROL_PAYLOAD_BYTES_MAX] {
            let payload = vec![7; len];
            let mut out = Vec::new();
            control_pong(&mut out, &payload);
            assert_eq!(read_as_client(out), [Message::Pong(payload.into())]);
        }
    }

    #[test]
    fn a_text_header_holds_the_length_in_its_shortest_form() {
        for (len, header_len) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10), (1 << 20, 10)] {
            let (header, used) = text_header(len);
            assert_eq!(used, header_len, "for {len}");
            let mut frame = header[..used].to_vec();
            frame.resize(used + len, b'x');
            assert_eq!(read_as_client(frame), [Message::text("x".repeat(len))]);
        }
    }
}
