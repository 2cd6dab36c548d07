//! What identity providers say of the pod's clients: their key sets, and the checks of tokens by these (PROTOCOL 1,
//! `JWT_JWKS`). What a key or a token must be is [`crate::protocol::auth`]'s.
//!
//! - `checker` (edge): the thread that makes the checks. A check takes up to half a millisecond: a flood of bad tokens
//!   takes this thread's time, not the shards', and what its queue can't hold is refused.
//! - `keeper`: keeps one key set up to date, and holds tokens back that a newer set may confirm.
//! - [`schedule`]: when a set is read again: the rule, with time as an argument.
//! - `source` (edge): reads a set from a file, or from a provider by HTTPS.
//! - `metrics`.

mod checker;
mod keeper;
mod metrics;
pub(crate) mod schedule;
mod source;

use std::io;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};

use self::keeper::Keeper;
pub(crate) use self::metrics::Metrics;
use self::source::Source;
use crate::config::KeySetsConfig;
use crate::exchange::{TokenCheck, TokenChecks};
use crate::limits::TOKENS_HELD_BACK_MAX;
use crate::protocol::auth::KeySets;

/// What the room starts with.
pub(crate) struct Parts {
    /// Where the sets come from.
    pub(crate) config: KeySetsConfig,
    /// The sets, which are replaced here.
    pub(crate) keys: Arc<KeySets>,
    /// The way to the checks, to repeat one.
    pub(crate) checks: TokenChecks,
    /// The checks that shards ask for.
    pub(crate) asked: Receiver<TokenCheck>,
    /// Changes when all sets are to be read again.
    pub(crate) reload: watch::Receiver<u64>,
}

/// The places of the configured key sets.
pub(crate) fn key_sets(config: &KeySetsConfig) -> Arc<KeySets> {
    Arc::new(KeySets::of(config.sets.iter().map(|set| set.issuer.clone())))
}

/// Starts the thread of the checks and, on this thread's runtime, what keeps the sets. Without a set there is nothing to
/// start. Neither needs an orderly end: they end with the process.
///
/// # Errors
/// If the kernel refuses the thread, or OpenSSL the certificates to trust.
pub(crate) fn start(parts: Parts, registry: &mut Registry) -> io::Result<()> {
    let Parts { config, keys, checks, asked, reload } = parts;
    if config.sets.is_empty() {
        return Ok(());
    }
    let metrics = Metrics::register(registry, &config);
    let mut held_back = Vec::new();
    for (index, set) in config.sets.iter().enumerate() {
        let (sender, unknown) = mpsc::channel(TOKENS_HELD_BACK_MAX);
        held_back.push(sender);
        let keeper = Keeper {
            index,
            source: Source::new(&set.source, &config.trust)?,
            refresh: config.refresh,
            keys: Arc::clone(&keys),
            checks: checks.clone(),
            unknown,
            reload: reload.clone(),
            metrics: metrics.of_set(index),
        };
        tokio::spawn(keeper.run());
    }
    checker::spawn(asked, held_back, metrics.checks)
}

/// Reads each key set once; returns where each is, and how many keys it has, or why it can't be read.
pub(crate) async fn check(config: &KeySetsConfig) -> Vec<(String, Result<usize, String>)> {
    let mut found = Vec::new();
    for set in &config.sets {
        let source = match Source::new(&set.source, &config.trust) {
            Ok(source) => source,
            Err(error) => {
                found.push(("JWT_JWKS".to_owned(), Err(error.to_string())));
                continue;
            }
        };
        let read = source.read().await.map(|(_, keys, _)| keys.len()).map_err(|fault| fault.to_string());
        found.push((source.to_string(), read));
    }
    found
}
