//! Settings, from the environment and from a file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;

use shardgate::clock::UnixMs;
use shardgate::config::{Config, MachineLimits, Sources};

/// The secret in all secret settings.
const SECRET: &str = "kept-quiet-kept-quiet-kept-quiet";

/// Lines of the environment (`NAME=value`), then a NUL, then the settings file. In secret settings, `$` stands for the
/// secret, which must not appear in any message.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (lines, file) = text.split_once('\0').unwrap_or((text, ""));
    // Skips librdkafka's properties, some of which name files, programs and libraries. Skips inputs with the secret
    // itself, which a fuzzer may learn from a comparison and put anywhere.
    if text.to_ascii_lowercase().contains("kafka_properties") || text.contains(SECRET) {
        return;
    }
    let mut environment: BTreeMap<OsString, OsString> = [("JWT_SECRET".into(), SECRET.into())].into();
    for (name, value) in lines.lines().filter_map(|line| line.split_once('=')) {
        let value = match name {
            "JWT_SECRET" | "REDIS_PASSWORD" => value.replace('$', SECRET),
            // Elsewhere in the URL it would not be a password.
            "REDIS_URL" => value.replace("$@", &format!("{SECRET}@")),
            _ => value.to_owned(),
        };
        environment.insert(name.into(), value.into());
    }
    let flags = [OsString::from("--config=settings.toml")];
    let read_file = |path: &Path| match path.to_str() {
        Some("settings.toml") => Ok(file.to_owned()),
        _ => Err(io::ErrorKind::NotFound.into()),
    };
    let machine = MachineLimits {
        cores: 4,
        descriptors: 65_536,
        host_name: "host".to_owned(),
        can_listen_on: |_| true,
        now: UnixMs(0),
    };
    let sources = Sources {
        flags: &flags,
        environment: &environment,
        presets: &[],
        unused: &[],
        read_file: &read_file,
        machine: &machine,
    };
    match Config::from_sources(&sources) {
        Ok(config) => {
            assert!(config.shard.shards > 0 && config.shard.history_bytes > 0 && !config.shard.history.is_zero());
            assert!(!format!("{config:?}").contains(SECRET), "a secret is never printed");
            assert!(config.shard.silence >= 2 * config.shard.heartbeat);
        }
        Err(faults) => {
            assert!(!faults.0.is_empty() && faults.0.iter().all(|fault| !fault.is_empty()));
            assert!(!faults.0.iter().any(|fault| fault.contains(SECRET)), "a secret is in {:?}", faults.0);
        }
    }
}
