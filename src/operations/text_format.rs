//! `/metrics` for scrapers that read only the Prometheus text format 0.0.4: decides which format a request prefers, and
//! converts from OpenMetrics, which the registry writes.

use std::borrow::Cow;
use std::fmt::Write;

/// The media type of the older format.
pub(crate) const TEXT_0_0_4: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a request with these `Accept` headers prefers the older format. Without a preference the answer is
/// OpenMetrics.
#[must_use]
pub(crate) fn is_preferred(accept: &[&str]) -> bool {
    quality(accept, "text", "plain") > quality(accept, "application", "openmetrics-text")
}

/// The preference for a media type, in thousandths (RFC 9110 section 12.5.1): the most specific matching range counts,
/// whatever its version parameter.
fn quality(accept: &[&str], kind: &str, subtype: &str) -> u32 {
    let ranges = accept.iter().flat_map(|header| header.split(','));
    let matching = ranges.filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let (range_kind, range_subtype) = parts.next()?.split_once('/')?;
        let specificity = match (range_kind, range_subtype) {
            ("*", "*") => 0,
            (found, "*") if found.eq_ignore_ascii_case(kind) => 1,
            (found, other) if found.eq_ignore_ascii_case(kind) && other.eq_ignore_ascii_case(subtype) => 2,
            _ => return None,
        };
        let q = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        Some((specificity, q.map_or(1000, thousandths)))
    });
    matching.max().map_or(0, |(_, quality)| quality)
}

/// Parses a weight, 0 to 1 with at most three digits; an invalid one counts as 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is from 0 to 1000")]
fn thousandths(text: &str) -> u32 {
    let weight: f32 = text.parse().unwrap_or(0.0);
    // The cast saturates, and converts NaN to 0.
    (weight.clamp(0.0, 1.0) * 1000.0) as u32
}

/// Converts an OpenMetrics text to the older format: a counter's family gets the name of its samples, types that the
/// older format lacks become gauges, and units and the end mark are left out.
#[must_use]
pub(crate) fn from_openmetrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(help) = line.strip_prefix("# HELP ") else {
            if !line.starts_with('#') {
                out.push_str(line);
                out.push('\n');
            }
            continue;
        };
        // The registry writes both lines together.
        let family = lines.next_if(|next| next.starts_with("# TYPE ")).and_then(|next| next[7..].split_once(' '));
        let (Some((family, kind)), Some((_, help))) = (family, help.split_once(' ')) else { continue };
        let (name, kind) = in_text(family, kind);
        // Writing to a string can't fail.
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }
    out
}

/// A family's name and type in the older format.
fn in_text<'a>(family: &'a str, kind: &'a str) -> (Cow<'a, str>, &'a str) {
    match kind {
        "counter" => (format!("{family}_total").into(), kind),
        "info" => (format!("{family}_info").into(), "gauge"),
        "gauge" | "histogram" | "summary" => (family.into(), kind),
        _ => (family.into(), "untyped"),
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::{Registry, Unit};

    use super::*;

    #[test]
    fn the_older_format_is_used_only_if_preferred() {
        // Headers of scrapers: Prometheus 3 by default, and with only the older format allowed; Go's client; an agent.
        for older in [
            "text/plain;version=0.0.4",
            "text/plain; version=0.0.4; q=0.5, */*;q=0.1",
            "text/plain;version=0.0.4;escaping=allow-utf-8;q=0.6,*/*;q=0.5",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,\
             text/plain;version=0.0.4;q=0.3",
            "TEXT/Plain",
            "text/*",
            "application/openmetrics-text;q=0, */*",
        ] {
            assert!(is_preferred(&[older]), "{older}");
        }
        for newer in [
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/openmetrics-text, text/plain",
            "*/*",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "application/json",
            "text/plain;q=0",
            "",
            ",;=/",
        ] {
            assert!(!is_preferred(&[newer]), "{newer}");
        }
        assert!(!is_preferred(&[]));
        assert!(is_preferred(&["*/*;q=0.1", "text/plain"]), "several headers are one list");
    }

    #[test]
    fn each_type_is_written_in_the_older_format() {
        let mut registry = Registry::default();
        registry.register("build", "The version", Info::new([("version", "1.2")]));
        let requests = Family::<Vec<(&str, &str)>, Counter>::default();
        requests.get_or_create(&vec![("path", "a\"b\\c\n")]).inc_by(3);
        registry.register("requests", "Requests # of all", requests);
        let open = Gauge::<i64>::default();
        registry.register("open_total", "Open now", open);
        let took = Histogram::new([0.5]);
        took.observe(0.25);
        registry.register_with_unit("took", "Time", Unit::Seconds, took);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert_eq!(
            from_openmetrics(&text),
            "# HELP build_info The version.\n\
             # TYPE build_info gauge\n\
             build_info{version=\"1.2\"} 1\n\
             # HELP requests_total Requests # of all.\n\
             # TYPE requests_total counter\n\
             requests_total{path=\"a\\\"b\\\\c\\n\"} 3\n\
             # HELP open_total Open now.\n\
             # TYPE open_total gauge\n\
             open_total 0\n\
             # HELP took_seconds Time.\n\
             # TYPE took_seconds histogram\n\
             took_seconds_sum 0.25\n\
             took_seconds_count 1\n\
             took_seconds_bucket{le=\"0.5\"} 1\n\
             took_seconds_bucket{le=\"+Inf\"} 1\n"
        );
    }
}
