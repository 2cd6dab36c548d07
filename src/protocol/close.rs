//! Why a connection ends: one table of codes, texts, metric labels and advice (PROTOCOL 4). The shard decides when to
//! close.

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client sent a close frame.
    ClientClosed,
    /// The connection broke without a close frame.
    ClientGone,
    /// 1001: this pod stops, and no other pod lives.
    GoingAway,
    /// 1002: not a valid WebSocket frame.
    ProtocolError,
    /// 1003: binary data.
    Unsupported,
    /// 1007: a text that is not UTF-8.
    InvalidText,
    /// 1009: a message over `MAX_MESSAGE_BYTES`.
    MessageTooBig,
    /// 1008: no valid token.
    Unauthorized,
    /// 1008: an invalid assessmentId.
    BadRequest,
    /// 1008: the token doesn't allow this assessment.
    Forbidden,
    /// 1008: another pod owns the assessment.
    Redirect,
    /// 1008: over the inbound message rate.
    RateLimited,
    /// 1011: a fault of the gateway.
    Internal,
    /// 1012: the assessment moved to another pod, or the pod drains.
    Moved,
    /// 1012: the connection reached its age limit (`MAX_CONNECTION_AGE_MS`).
    TooOld,
    /// 1012: an operator asked for a new connection.
    Recalled,
    /// 1013: a live client fell out of the window, or its socket accepted nothing for `STALL_TIMEOUT_MS`.
    TooSlow,
    /// 4401: the token expired.
    TokenExpired,
    /// 4403: the token was revoked.
    Revoked,
    /// 4403: ended by an operator who wants no return.
    Disconnected,
    /// 4408: heartbeat timeout.
    Silent,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CloseReasonRow {
    /// The status code (RFC 6455 section 7.4); `None` if no close frame is sent.
    pub(crate) code: Option<u16>,
    /// The close frame's text: what happened, and what the client should do. At most 123 bytes, to fit into a control
    /// frame with the code.
    pub(crate) text: &'static str,
    /// Label in the metric.
    pub(crate) label: &'static str,
}

impl CloseReason {
    /// Every reason, in the order of the table: the labels of the metric.
    pub(crate) const ALL: [Self; 21] = [
        Self::ClientClosed,
        Self::ClientGone,
        Self::GoingAway,
        Self::ProtocolError,
        Self::Unsupported,
        Self::InvalidText,
        Self::MessageTooBig,
        Self::Unauthorized,
        Self::BadRequest,
        Self::Forbidden,
        Self::Redirect,
        Self::RateLimited,
        Self::Internal,
        Self::Moved,
        Self::TooOld,
        Self::Recalled,
        Self::TooSlow,
        Self::TokenExpired,
        Self::Revoked,
        Self::Disconnected,
        Self::Silent,
    ];

    /// Returns the reason's row. The close frame of a client is answered with the client's own code
    /// ([`super::messages::close_reply`]).
    #[must_use]
    pub(crate) const fn row(self) -> CloseReasonRow {
        let (code, label, text) = match self {
            Self::ClientClosed => (1000, "client_closed", "closed by the client"),
            Self::ClientGone => return CloseReasonRow { code: None, text: "", label: "client_gone" },
            Self::GoingAway => {
                (1001, "going_away", "this pod goes away: reconnect with your cursor after a random 1 to 5 seconds")
            }
            Self::ProtocolError => (1002, "protocol_error", "not a valid WebSocket frame (RFC 6455)"),
            Self::Unsupported => (1003, "unsupported", "binary data: send JSON as text"),
            Self::InvalidText => (1007, "invalid_text", "the text is not UTF-8"),
            Self::MessageTooBig => (1009, "message_too_big", "the message is longer than this gateway takes"),
            Self::Unauthorized => (1008, "unauthorized", "no good token: do not retry unchanged"),
            Self::BadRequest => (1008, "bad_request", "bad request: do not retry unchanged"),
            Self::Forbidden => (1008, "forbidden", "the token does not allow this assessment: do not retry unchanged"),
            Self::Redirect => {
                (1008, "redirect", "another pod serves this assessment: connect to the url of the redirect")
            }
            Self::RateLimited => (1008, "rate_limited", "too many messages a second: send fewer"),
            Self::Internal => (1011, "internal", "our fault: reconnect with back-off"),
            Self::Moved => (1012, "moved", "served by another pod now: connect to the url with your cursor, at once"),
            Self::TooOld => {
                (1012, "too_old", "as old as connections get here: connect anew, to the url if any, with your cursor")
            }
            Self::Recalled => (1012, "recalled", "asked for by an operator: connect anew with your cursor, at once"),
            Self::TooSlow => (1013, "too_slow", "too slow to keep up: reconnect with your cursor"),
            Self::TokenExpired => {
                (4401, "token_expired", "the token ran out: reconnect with a new one and your last cursor")
            }
            Self::Revoked => (4403, "revoked", "the token was revoked: do not reconnect with it"),
            Self::Disconnected => (4403, "disconnected", "ended by an operator: do not reconnect with this token"),
            Self::Silent => (4408, "silent", "no sign of life: reconnect with your cursor"),
        };
        CloseReasonRow { code: Some(code), text, label }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;
    use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;
    use crate::protocol::contract;

    #[test]
    fn the_codes_are_those_of_the_contract() {
        let codes: BTreeSet<u16> = CloseReason::ALL.iter().filter_map(|reason| reason.row().code).collect();
        let contract = contract::rows(4).into_iter().map(|row| row[0].parse().expect("a code"));
        assert_eq!(codes, contract.collect());
    }

    #[test]
    fn each_reason_is_listed_once_with_its_own_label() {
        let reasons: HashSet<CloseReason> = CloseReason::ALL.into_iter().collect();
        let labels: HashSet<&str> = CloseReason::ALL.iter().map(|reason| reason.row().label).collect();
        assert_eq!(reasons.len(), CloseReason::ALL.len());
        assert_eq!(labels.len(), CloseReason::ALL.len());
        // The last variant's number shows how many there are: a variant that is not listed fails here.
        assert_eq!(CloseReason::Silent as usize + 1, CloseReason::ALL.len());
    }

    #[test]
    fn a_text_fits_into_a_control_frame_with_its_code() {
        for reason in CloseReason::ALL {
            assert!(reason.row().text.len() + 2 <= CONTROL_PAYLOAD_BYTES_MAX, "{reason:?}");
        }
    }
}
