//! The bodies of `GET /settings`, `PUT /log` and `POST /disconnections`.

use serde::Serialize;
use tracing::Level;

use super::fleet::Reach;
use crate::clock::UnixMs;
use crate::config::EffectiveSetting;
use crate::ids::NodeId;

/// The answer to `GET /settings`.
#[derive(Debug, Serialize)]
pub(super) struct SettingsBody<'a> {
    pub(super) node: &'a str,
    pub(super) settings: &'a [EffectiveSetting],
}

/// The answer to `PUT /log`.
#[derive(Debug, Serialize)]
pub(super) struct LogLevelAnswer<'a> {
    node: &'a str,
    level: String,
    /// The level that comes back.
    setting: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

impl<'a> LogLevelAnswer<'a> {
    pub(super) fn new(node: &'a NodeId, level: Level, setting: Level, until: Option<UnixMs>) -> Self {
        let name = |level: Level| level.as_str().to_ascii_lowercase();
        Self { node: &node.0, level: name(level), setting: name(setting), until: until.map(|until| until.to_string()) }
    }
}

/// The answer to `POST /disconnections`.
#[derive(Debug, Serialize)]
pub(super) struct DisconnectedBody<'a> {
    node: &'a str,
    /// Number of this pod's connections that were closed.
    closed: u64,
    /// Whether as many pods got the request as hold a slot.
    everywhere: bool,
    pods: u64,
    reached: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
}

impl<'a> DisconnectedBody<'a> {
    /// `pods` hold a slot.
    pub(super) fn new(node: &'a NodeId, closed: u64, reach: Reach, pods: usize) -> Self {
        let pods = pods.max(1) as u64;
        let (pods, reached, message) = match reach {
            Reach::Alone => (1, 1, None),
            Reach::ThisPodOnly => (
                pods,
                1,
                Some("Redis does not answer: only connections of this pod were closed; ask the other pods, or again"),
            ),
            Reach::Pods(reached) if reached < pods => {
                (pods, reached, Some("some pods did not get the request: ask again, or ask them"))
            }
            Reach::Pods(reached) => (pods, reached, None),
        };
        Self { node: &node.0, closed, everywhere: message.is_none(), pods, reached, message }
    }
}
