//! `shardgate check`: whether a pod with these settings would reach what it needs. It changes nothing.

use std::io;

use tokio::runtime;

use crate::config::Config;
use crate::{discovery, identity, ingest};

/// What was found: a line for each part, and whether all are well.
#[derive(Debug, Default)]
pub struct CheckReport {
    /// The lines.
    pub lines: Vec<String>,
    /// Whether a pod would be ready.
    pub is_good: bool,
}

impl CheckReport {
    fn add<T>(&mut self, part: &str, found: Result<T, String>, good: impl FnOnce(T) -> String) {
        self.is_good &= found.is_ok();
        let text = found.map_or_else(|fault| format!("FAILED: {fault}"), good);
        self.lines.push(format!("{part}: {text}"));
    }
}

/// Asks Kafka, Redis, and identity providers.
///
/// # Errors
/// If the kernel gives no event loop.
pub fn check(config: &Config) -> io::Result<CheckReport> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = CheckReport { lines: Vec::new(), is_good: true };
    report.add("settings", Ok(()), |()| "good".to_owned());
    report.add("routes", Ok(config.routes.routes.len()), |count| format!("good, {count} of them"));
    let kafka = ingest::check(&config.kafka, &config.routes);
    report.add(&format!("Kafka at {}", config.kafka.brokers), kafka, |topics| {
        format!("good, {topics} topics have a route")
    });
    let redis = runtime.block_on(discovery::check(&config.redis));
    report.add(&format!("Redis at {}", config.redis.servers), redis, |fields| {
        format!("good, {fields} fields in the slots")
    });
    for (source, keys) in runtime.block_on(identity::check(&config.key_sets)) {
        report.add(&format!("key set {source}"), keys, |keys| format!("good, {keys} keys"));
    }
    Ok(report)
}
