//! Operators' view of a pod: its log, and its pages over HTTP (PROTOCOL 5). Owns the pages, and when a pod is ready;
//! each module owns its metrics.
//!
//! - [`readiness`]: `/ready`, `/accepting` and `/health`, from the status of the parts.
//! - [`console`]: the page at `/`, and the policy that lets its script, and no other, run.
//! - [`pages`]: the answer for each path.
//! - [`admin`]: the pages that need a token.
//! - [`text_format`]: the metrics for scrapers that read no OpenMetrics.
//! - [`http`] (edge): the sockets, from the shards and from `ADMIN_PORT`.
//! - [`log_level`]: which of the log's lines are written.
//! - [`log`] (edge): standard error, which no other thread waits for.

pub(crate) mod admin;
pub(crate) mod console;
pub(crate) mod http;
pub mod log;
pub(crate) mod log_level;
pub(crate) mod pages;
pub(crate) mod readiness;
pub(crate) mod text_format;
