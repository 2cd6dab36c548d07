//! What operators see of a pod: its log, and its pages over HTTP (PROTOCOL 5). It owns the pages and who may be told
//! "ready"; what is measured belongs to the module that measures it.
//!
//! - [`readiness`]: from what the parts show of themselves to `/ready` and `/health`.
//! - [`console`]: the page at `/`, and the policy that lets its script, and no other, run.
//! - [`pages`]: which path is what.
//! - [`text_format`]: the metrics for scrapers that read no OpenMetrics.
//! - [`http`] (edge): the sockets, from the shards and from `ADMIN_PORT`.
//! - [`log`] (edge): standard error, for which no other thread waits.

pub mod console;
pub mod http;
pub mod log;
pub mod pages;
pub mod readiness;
pub mod text_format;
