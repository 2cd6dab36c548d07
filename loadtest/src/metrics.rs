//! A strict parser of the OpenMetrics text format (version 1.0.0), as far as the gateway's metrics need it. Errors that
//! a lenient scraper ignores are errors here. It is our own: of the crates that read such text, `prometheus-parse` reads
//! the older format of Prometheus, and `openmetrics-parser` is under the LGPL.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

/// Sorted labels of a sample.
pub type Labels = BTreeMap<String, String>;

/// The metrics of a pod at one time.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    families: BTreeMap<String, Family>,
}

/// One metric family.
#[derive(Debug, Clone, Default)]
pub struct Family {
    /// `gauge`, `counter`, `histogram`, …
    pub kind: String,
    /// Its help text.
    pub help: String,
    /// Its unit, if it has one.
    pub unit: Option<String>,
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: Labels,
    value: f64,
}

impl Scrape {
    /// Parses a whole response.
    ///
    /// # Errors
    /// The first violation of OpenMetrics, with its line.
    pub fn parse(text: &str) -> Result<Self> {
        let body =
            text.strip_suffix("# EOF\n").or_else(|| text.strip_suffix("# EOF")).context("no # EOF at the end")?;
        let mut metrics = Self::default();
        let mut current = None;
        for line in body.split_terminator('\n') {
            metrics.line(line, &mut current).with_context(|| format!("in the line {line:?}"))?;
        }
        for (name, family) in &metrics.families {
            family.check(name).with_context(|| format!("in the family {name}"))?;
        }
        Ok(metrics)
    }

    fn line(&mut self, line: &str, current: &mut Option<String>) -> Result<()> {
        ensure!(!line.is_empty(), "an empty line");
        let Some(descriptor) = line.strip_prefix("# ") else {
            ensure!(!line.starts_with('#'), "a comment that is no descriptor");
            let sample = Sample::parse(line)?;
            let name = current.as_ref().context("a sample before its family's TYPE")?;
            let family = self.families.get_mut(name).expect("the current family is there");
            ensure!(family.takes(name, &sample.name), "it does not belong to the family {name}");
            family.samples.push(sample);
            return Ok(());
        };
        let mut words = descriptor.splitn(3, ' ');
        let (Some(what), Some(name), Some(rest)) = (words.next(), words.next(), words.next()) else {
            bail!("a descriptor of fewer than three words");
        };
        ensure!(is_name(name), "not a valid metric name");
        if current.as_deref() != Some(name) {
            ensure!(!self.families.contains_key(name), "the lines of the family are not contiguous");
            self.families.insert(name.to_owned(), Family::default());
            *current = Some(name.to_owned());
        }
        let family = self.families.get_mut(name).expect("the family was just inserted");
        ensure!(family.samples.is_empty(), "a descriptor after samples");
        let field = match what {
            "TYPE" => &mut family.kind,
            "HELP" => &mut family.help,
            "UNIT" => family.unit.get_or_insert_default(),
            other => bail!("unknown descriptor: {other}"),
        };
        ensure!(field.is_empty(), "the descriptor is repeated");
        field.push_str(rest);
        Ok(())
    }

    /// The families, by name.
    #[must_use]
    pub fn families(&self) -> &BTreeMap<String, Family> {
        &self.families
    }

    /// The sum of all samples with this name, over all labels. 0 if there is none.
    #[must_use]
    pub fn sum(&self, name: &str) -> f64 {
        self.samples(name).map(|sample| sample.value).sum()
    }

    /// The value of the sample with this name that has these labels, and possibly others. 0 if there is none.
    #[must_use]
    pub fn of(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matches = |sample: &&Sample| {
            labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        };
        self.samples(name).filter(matches).map(|sample| sample.value).sum()
    }

    /// The samples with this name, by the value of one label.
    #[must_use]
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let pairs = self.samples(name).filter_map(|sample| Some((sample.labels.get(label)?.clone(), sample.value)));
        pairs.collect()
    }

    /// Whether there is a sample of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.samples(name).next().is_some()
    }

    fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.families.values().flat_map(|family| &family.samples).filter(move |sample| sample.name == name)
    }
}

impl Family {
    /// Whether a sample with this name belongs to the family. Its type determines the suffixes.
    fn takes(&self, family: &str, sample: &str) -> bool {
        let suffixes: &[&str] = match self.kind.as_str() {
            "counter" => &["_total", "_created"],
            "histogram" => &["_bucket", "_count", "_sum", "_created"],
            "summary" => &["", "_count", "_sum", "_created"],
            "info" => &["_info"],
            _ => &[""],
        };
        suffixes.iter().any(|suffix| sample.strip_prefix(family) == Some(suffix))
    }

    fn check(&self, name: &str) -> Result<()> {
        const KINDS: &[&str] = &["gauge", "counter", "histogram", "summary", "info", "stateset", "unknown"];
        ensure!(KINDS.contains(&self.kind.as_str()), "unknown type: {:?}", self.kind);
        ensure!(!self.help.is_empty(), "no help text");
        if let Some(unit) = &self.unit {
            ensure!(name.ends_with(&format!("_{unit}")), "its name does not end with its unit, {unit}");
        }
        let mut seen = BTreeSet::new();
        for sample in &self.samples {
            ensure!(seen.insert((&sample.name, &sample.labels)), "repeated: {sample:?}");
            let counts = self.kind == "counter" || (self.kind == "histogram" && !sample.name.ends_with("_sum"));
            ensure!(!counts || (sample.value >= 0.0 && sample.value.is_finite()), "not a count: {sample:?}");
        }
        if self.kind == "histogram" { self.check_histograms(name) } else { Ok(()) }
    }

    /// Checks that buckets ascend by bound and by count, and that the last is +Inf with the total count.
    fn check_histograms(&self, name: &str) -> Result<()> {
        let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        let mut counts: BTreeMap<Labels, f64> = BTreeMap::new();
        for sample in &self.samples {
            let mut labels = sample.labels.clone();
            match sample.name.strip_prefix(name) {
                Some("_bucket") => {
                    let bound = number(&labels.remove("le").context("a bucket without le")?)?;
                    buckets.entry(labels).or_default().push((bound, sample.value));
                }
                Some("_count") => _ = counts.insert(labels, sample.value),
                _ => {}
            }
        }
        for (labels, buckets) in &buckets {
            let ascend = buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1);
            ensure!(ascend, "the buckets don't ascend: {labels:?}");
            let last = buckets.last().expect("no list is empty");
            ensure!(last.0 == f64::INFINITY, "no bucket +Inf: {labels:?}");
            ensure!(counts.get(labels) == Some(&last.1), "the bucket +Inf is not the count: {labels:?}");
        }
        ensure!(buckets.len() == counts.len(), "a count without buckets");
        Ok(())
    }
}

impl Sample {
    /// `name{label="value",…} number [timestamp] [# exemplar]`.
    fn parse(line: &str) -> Result<Self> {
        let name_end = line.find(['{', ' ']).context("no value")?;
        let (name, mut rest) = line.split_at(name_end);
        ensure!(is_name(name), "not a valid metric name");
        let mut labels = Labels::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = parse_labels(inside, &mut labels)?;
        }
        let rest = rest.strip_prefix(' ').context("no space before the value")?;
        let value = rest.split(' ').next().unwrap_or_default();
        let sample = Self { name: name.to_owned(), labels, value: number(value)? };
        let after = &rest[value.len()..];
        let tail = after.split_once(" # ").map_or(after, |(timestamp, _exemplar)| timestamp);
        ensure!(tail.is_empty() || number(tail.trim_start()).is_ok(), "the text after the value is not a timestamp");
        Ok(sample)
    }
}

/// Parses labels up to their closing brace and returns the rest.
fn parse_labels<'a>(mut rest: &'a str, labels: &mut Labels) -> Result<&'a str> {
    if let Some(after) = rest.strip_prefix('}') {
        return Ok(after);
    }
    loop {
        let (name, after) = rest.split_once("=\"").context("a label without =\"")?;
        ensure!(is_name(name) && !name.contains(':'), "not a valid label name: {name:?}");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().context("a label value without an end")? {
                (at, '"') => break at + 1,
                (_, '\\') => value.push(match chars.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, escaped @ ('"' | '\\'))) => escaped,
                    other => bail!("unknown escape: {other:?}"),
                }),
                (_, plain) => value.push(plain),
            }
        };
        ensure!(labels.insert(name.to_owned(), value).is_none(), "repeated label: {name}");
        rest = &after[end..];
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(after);
        }
        rest = rest.strip_prefix(',').context("no comma between labels")?;
    }
}

fn number(text: &str) -> Result<f64> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        "NaN" => Ok(f64::NAN),
        _ => {
            let plain = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
            ensure!(plain, "not a number: {text:?}");
            text.parse().with_context(|| format!("not a number: {text:?}"))
        }
    }
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || matches!(first, b'_' | b':'))
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = concat!(
        "# HELP up Clients.\n# TYPE up gauge\nup 3\n",
        "# TYPE sent counter\n# HELP sent Frames \\n sent.\n",
        "sent_total{topic=\"a\\\"b\",pod=\"x\"} 5\nsent_total{topic=\"c\",pod=\"x\"} 7 1520879607.789\n",
        "# HELP open_seconds How long.\n# TYPE open_seconds histogram\n# UNIT open_seconds seconds\n",
        "open_seconds_bucket{le=\"1.0\"} 1\nopen_seconds_bucket{le=\"+Inf\"} 2 # {id=\"7\"} 0.5\n",
        "open_seconds_sum 3.5\nopen_seconds_count 2\n# EOF\n",
    );

    #[test]
    fn a_valid_response_is_parsed_with_its_labels() {
        let metrics = Scrape::parse(GOOD).unwrap();
        assert_eq!(metrics.sum("up"), 3.0);
        assert_eq!(metrics.sum("sent_total"), 12.0);
        assert_eq!(metrics.of("sent_total", &[("topic", "a\"b")]), 5.0);
        assert_eq!(metrics.by("sent_total", "topic").len(), 2);
        assert_eq!(metrics.sum("open_seconds_count"), 2.0);
        assert!(!metrics.has("other"));
    }

    #[test]
    fn violations_that_a_lenient_scraper_ignores_are_errors() {
        let faults = [
            ("# EOF\n", ""),
            ("up 3\n", "up 3\n\n"),
            ("up 3", "up three"),
            ("up 3", "up  3"),
            ("up 3", "up_total 3"),
            ("sent_total{topic=\"c\",pod=\"x\"}", "sent{topic=\"c\",pod=\"x\"}"),
            ("topic=\"c\",pod=\"x\"", "topic=\"a\\\"b\",pod=\"x\""),
            ("} 5\n", "} -5\n"),
            ("# UNIT open_seconds seconds", "# UNIT open_seconds bytes"),
            ("# HELP up Clients.\n", ""),
            ("# TYPE up gauge\n", ""),
            ("le=\"+Inf\"", "le=\"2\""),
            ("_count 2", "_count 3"),
            ("open_seconds_sum 3.5\n", "# HELP up Again.\n"),
            ("le=\"1.0\"} 1", "le=\"1.0\"} 3"),
        ];
        for (good, bad) in faults {
            let text = GOOD.replace(good, bad);
            assert_ne!(text, GOOD);
            assert!(Scrape::parse(&text).is_err(), "{bad:?} in place of {good:?}");
        }
    }
}
