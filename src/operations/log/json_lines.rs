//! Lines of `LOG_FORMAT=json`: `node`, `timestamp`, `level` and `message` first, then a line's own fields, all at the
//! top.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Adds this pod's name to the lines of a format that begin with `{`.
pub(super) struct WithNode<F> {
    format: F,
    /// The name, as a field with a comma behind it.
    field: String,
}

impl<F> WithNode<F> {
    pub(super) fn new(format: F, node: &str) -> Self {
        let node = serde_json::Value::from(node);
        Self { format, field: format!("\"node\":{node},") }
    }
}

impl<S, N, F> FormatEvent<S, N> for WithNode<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        match line.strip_prefix('{') {
            Some(rest) => write!(writer, "{{{}{rest}", self.field),
            None => writer.write_str(&line),
        }
    }
}
