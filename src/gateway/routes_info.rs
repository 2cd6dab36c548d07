//! The metric that says which routes are in force, so that pods with different routes files can be seen.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;

use crate::exchange::PublishedRoutes;

/// Reads the routes at each scrape: they change when the file is read again.
#[derive(Debug)]
pub(super) struct RoutesInfo(pub(super) PublishedRoutes);

impl Collector for RoutesInfo {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let routes = self.0.load();
        let help =
            "The routes in force: the first 16 digits of the SHA-256 of the routes file, as `sha256sum` prints it";
        let metric = encoder.encode_descriptor("shardgate_routes", help, None, MetricType::Info)?;
        Info::new([("sha256", &*routes.digest)]).encode(metric)
    }
}
