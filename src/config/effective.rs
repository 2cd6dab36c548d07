//! The settings in force, for operators: each with its value and its source. Secrets are masked.

use serde::Serialize;

use super::Config;
use super::reader::SettingsReader;
use super::settings::{self, Fallback, Setting};
use super::sources::ValueSource;

/// Stands for a secret.
const MASK: &str = "***";

/// A setting in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct EffectiveSetting {
    /// The name of its environment variable.
    pub(crate) name: &'static str,
    /// Its value, as one would set it; `None` if it is unset.
    pub(crate) value: Option<String>,
    /// Where the value comes from: `flag`, `environment`, a file with the line, or `default`.
    pub(crate) source: String,
}

/// All settings, in the order of `--help`.
pub(super) fn settings(reader: &SettingsReader<'_>, config: &Config) -> Vec<EffectiveSetting> {
    let effective = |setting: &&'static Setting| {
        let (value, source) = match reader.given(setting) {
            Some(given) => (Some(given.text.clone()), &given.source),
            None => (default(setting, config), &ValueSource::Default),
        };
        let value = value.map(|value| if setting.is_secret() { MASK.to_owned() } else { value });
        EffectiveSetting { name: setting.name, value, source: source.to_string() }
    };
    settings::ALL.iter().map(effective).collect()
}

fn default(setting: &Setting, config: &Config) -> Option<String> {
    match setting.default {
        Fallback::Value(text) => Some(match setting.name {
            // A property may stand for these.
            "KAFKA_BROKERS" => config.kafka.brokers.to_string(),
            "KAFKA_CLIENT_ID" => config.kafka.client_id.to_string(),
            "KAFKA_GROUP_ID" => config.kafka.group_id.to_string(),
            _ => text.to_owned(),
        }),
        Fallback::Unset => None,
        Fallback::Computed(words) => Some(match setting.name {
            "POD_NAME" | "NODE_ID" => config.node.to_string(),
            "PUBLIC_URL" => config.public_url.to_string(),
            "SHARDS" => config.shard.shards.to_string(),
            "MAX_CONNECTIONS" => config.shard.connections_max.to_string(),
            _ => words.to_owned(),
        }),
    }
}
