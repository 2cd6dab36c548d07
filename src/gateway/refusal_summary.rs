//! Logs how many clients were refused, by reason: each minute in which some were, and at the end of the pod.

use std::time::Duration;

use tokio::time::sleep;
use tracing::info;

use crate::shard::Metrics;

/// How often refusals are logged.
const EVERY: Duration = Duration::from_secs(60);

/// Logs until the process ends.
pub(super) async fn run(metrics: Metrics) {
    loop {
        sleep(EVERY).await;
        log(&metrics);
    }
}

/// Logs the refusals since the last line.
pub(super) fn log(metrics: &Metrics) {
    let refused = metrics.take_refused();
    if refused.is_empty() {
        return;
    }
    let clients: u64 = refused.values().sum();
    let reasons: Vec<String> = refused.iter().map(|(reason, count)| format!("{reason}={count}")).collect();
    info!(clients, reasons = reasons.join(" "), "clients refused");
}
