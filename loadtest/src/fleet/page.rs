//! The page of a run: one self-contained HTML file with the plots, the table, the steps, the options and the remarks.
//! The plots are drawn here because their colours must follow the reader's light or dark mode: plotting crates write
//! colours instead of classes.

mod plot;
mod scale;

use std::fmt::Write as _;

use serde_json::Value;

use super::capacity::rate;
use super::capacity::sizing::grouped;
use super::measure::{Measurement, Moment};
use super::outcome::{Capacity, FleetRound};
use super::report::{FleetReport, cell};
use super::statistics::Percentiles;
use plot::{Axis, Bars, Lines, Point, Series};
use scale::ScaleKind;

const STYLE: &str = include_str!("page/style.css");

/// More remarks than this are collapsed.
const REMARKS_OPEN_MAX: usize = 8;

/// Notes below the plots, for readers of the page alone.
const NOTES: &str = "Latency is from a record's due time, by an open-loop schedule, until a client read it: \
    every delay on the way counts. CPU is that of the processes' threads in the window after the warm-up, per message \
    read in it. Memory per connection is the growth while clients connect: of the processes' own pages, and of the \
    kernel's sockets with their inodes, files, names and buffers, less the clients' ends. The send loop is a bare loop \
    of send(2), the kafka loop one from librdkafka to send(2).";

/// The page of a report. `name` is the subcommand.
#[must_use]
pub fn page(report: &FleetReport, name: &str) -> String {
    let mut body = format!("<h1>shardgate: {}</h1>\n", escape(name));
    for line in report.capacity.iter().flat_map(|capacity| &capacity.lines) {
        body += &format!("<p class=\"lead\">{}</p>\n", escape(line));
    }
    if !report.remarks.is_empty() {
        let items: String = report.remarks.iter().map(|remark| format!("<li>{}</li>", escape(remark))).collect();
        let count = report.remarks.len();
        // Many remarks must not hide the plots.
        let open = if count <= REMARKS_OPEN_MAX { " open" } else { "" };
        body += &format!(
            "<details class=\"remarks\"{open}><summary>Remarks: {count}</summary><ul>{items}</ul></details>\n"
        );
    }
    body += &format!("<div class=\"plots\">\n{}</div>\n", plots(report).concat());
    body += &figures(report);
    body += &report.capacity.as_ref().map(steps).unwrap_or_default();
    body += &options(&report.options);
    body += &format!("<p class=\"notes\">{NOTES}</p>\n");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>shardgate: {}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(name)
    )
}

/// Escapes text for HTML, also within attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(letter),
        }
    }
    out
}

// ---- plots ----------------------------------------------------------------------------------------------------------

type OfPercentiles = (&'static str, fn(&Percentiles) -> f64);

const PERCENTILES: [OfPercentiles; 3] =
    [("p50", |all| all.p50_ms), ("p99", |all| all.p99_ms), ("p99.9", |all| all.p999_ms)];

type OfRound = (&'static str, fn(&FleetRound) -> Option<&Measurement>);

/// The measurements of a round, with their names in the plots.
const PARTS: [OfRound; 3] = [
    ("gateway", |round| round.gateway.as_ref()),
    ("send loop", |round| round.send.as_ref()),
    ("kafka loop", |round| round.kafka.as_ref()),
];

fn plots(report: &FleetReport) -> Vec<String> {
    let mut plots = Vec::new();
    if let Some((name, part)) = shown(&report.rounds) {
        plots.push(over_time(&name, &part.timeline));
    }
    match &report.capacity {
        Some(capacity) => {
            plots.push(load_and_latency(capacity));
            plots.push(cpu_over_load(capacity));
        }
        None => plots.push(rounds_and_latency(&report.rounds)),
    }
    let row = |name: &str| report.rows.iter().find(|row| row.name == name);
    let bars = |names: [&str; 2], is_rest: bool| -> Vec<(String, Vec<f64>)> {
        let [first, second] = names.map(row);
        let values =
            |row: Option<&super::report::TableRow>| row.map_or([None; 3], |row| [row.gateway, row.send, row.kafka]);
        let pairs = PARTS.iter().zip(values(first)).zip(values(second));
        let bar = |((part, first), second): ((&(&str, _), Option<f64>), Option<f64>)| {
            let (first, second) = (first?, second?);
            Some((part.0.to_owned(), vec![first, if is_rest { (second - first).max(0.0) } else { second }]))
        };
        pairs.filter_map(bar).collect()
    };
    plots.push(
        Bars {
            title: "CPU per delivery".into(),
            axis: "CPU time per delivery, ns",
            parts: vec!["user", "kernel"],
            bars: bars(["CPU per delivery, user, ns", "CPU per delivery, user+sys, ns"], true),
        }
        .figure(),
    );
    plots.push(
        Bars {
            title: "Memory of an idle connection".into(),
            axis: "memory per connection, bytes",
            parts: vec!["user", "kernel"],
            bars: bars(["own memory per connection, bytes", "kernel memory per connection, bytes"], false),
        }
        .figure(),
    );
    plots.push(memory_over_time(&report.rounds));
    plots
}

/// The measurement to plot over time: the gateway's if there is one, of the round with the median p99.
fn shown(rounds: &[FleetRound]) -> Option<(String, &Measurement)> {
    let (name, of) = PARTS.iter().find(|(_, of)| rounds.iter().any(|round| of(round).is_some()))?;
    let mut parts: Vec<(usize, &Measurement)> =
        rounds.iter().enumerate().filter_map(|(number, round)| Some((number + 1, of(round)?))).collect();
    parts.sort_by(|(_, a), (_, b)| p99(a).total_cmp(&p99(b)));
    let (number, part) = parts[(parts.len() - 1) / 2];
    let round = if rounds.len() > 1 { format!(", round {number} of {}", rounds.len()) } else { String::new() };
    Some((format!("{name}{round}"), part))
}

fn p99(part: &Measurement) -> f64 {
    part.latencies.or(part.tick_latencies).map_or(0.0, |latencies| latencies.p99_ms)
}

fn solid(x: f64, y: f64) -> Point {
    Point { x, y, is_hollow: false }
}

fn over_time(name: &str, timeline: &[Moment]) -> String {
    let series = |(percentile, of): &OfPercentiles| {
        let at = |moment: &Moment| Some(solid(moment.at_seconds, of(moment.latencies.as_ref()?)));
        Series { name: (*percentile).to_owned(), points: timeline.iter().filter_map(at).collect(), is_line: true }
    };
    let series = PERCENTILES.iter().map(series).collect();
    Lines {
        title: format!("Latency over time ({name})"),
        x: Axis { title: "time in the window, s", kind: ScaleKind::Linear },
        y: Axis { title: "latency, ms", kind: ScaleKind::Log },
        series,
        bound: None,
        hollow: None,
    }
    .figure()
}

fn load_and_latency(capacity: &Capacity) -> String {
    let mut steps: Vec<_> = capacity.steps.iter().collect();
    steps.sort_by(|a, b| a.due_per_second.total_cmp(&b.due_per_second));
    let series = |(percentile, of): &OfPercentiles| {
        let points = steps.iter().map(|step| Point {
            x: step.due_per_second,
            y: of(&step.latencies),
            is_hollow: !step.is_held(),
        });
        Series { name: (*percentile).to_owned(), points: points.collect(), is_line: true }
    };
    Lines {
        title: "Latency over load (gateway)".into(),
        x: Axis { title: "deliveries due per second", kind: ScaleKind::Log },
        y: Axis { title: "latency, ms", kind: ScaleKind::Log },
        series: PERCENTILES.iter().map(series).collect(),
        bound: Some((capacity.p99_ms, format!("p99 bound: {} ms", capacity.p99_ms))),
        hollow: Some("load not sustained"),
    }
    .figure()
}

fn cpu_over_load(capacity: &Capacity) -> String {
    let mut points: Vec<Point> = capacity
        .steps
        .iter()
        .filter_map(|step| Some(Point { x: step.due_per_second, y: step.cpu_ns?, is_hollow: !step.is_held() }))
        .collect();
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    Lines {
        title: "CPU per delivery over load (gateway)".into(),
        x: Axis { title: "deliveries due per second", kind: ScaleKind::Log },
        y: Axis { title: "CPU time per delivery, ns", kind: ScaleKind::Linear },
        series: vec![Series { name: "user and system".into(), points, is_line: true }],
        bound: None,
        hollow: Some("load not sustained"),
    }
    .figure()
}

fn rounds_and_latency(rounds: &[FleetRound]) -> String {
    let series = |name: &str, of_round: fn(&FleetRound) -> Option<&Measurement>, (percentile, of): &OfPercentiles| {
        let point = |round: &FleetRound| {
            let part = of_round(round)?;
            let latencies = part.latencies.or(part.tick_latencies)?;
            Some(solid(part.deliveries as f64 / part.seconds, of(&latencies)))
        };
        let points: Vec<Point> = rounds.iter().filter_map(point).collect();
        (!points.is_empty()).then(|| Series { name: format!("{name} {percentile}"), points, is_line: false })
    };
    let [p50, p99, _] = &PERCENTILES;
    let [gateway, send, kafka] = PARTS;
    let wanted = [(gateway, p50), (gateway, p99), (send, p99), (kafka, p99)];
    Lines {
        title: "Latency over load (one point per round)".into(),
        x: Axis { title: "deliveries per second", kind: ScaleKind::Log },
        y: Axis { title: "latency, ms", kind: ScaleKind::Log },
        series: wanted.into_iter().filter_map(|((name, of), percentile)| series(name, of, percentile)).collect(),
        bound: None,
        hollow: None,
    }
    .figure()
}

fn memory_over_time(rounds: &[FleetRound]) -> String {
    let series = |(name, of): &OfRound| {
        let part = rounds.iter().rev().find_map(of)?;
        let at = |moment: &Moment| Some(solid(moment.at_seconds, moment.memory? as f64 / f64::from(1 << 20)));
        let points: Vec<Point> = part.timeline.iter().filter_map(at).collect();
        (!points.is_empty()).then(|| Series { name: (*name).to_owned(), points, is_line: true })
    };
    let round = if rounds.len() > 1 { " (last round)" } else { "" };
    Lines {
        title: format!("Process memory over time{round}"),
        x: Axis { title: "time in the window, s", kind: ScaleKind::Linear },
        y: Axis { title: "memory, MiB", kind: ScaleKind::Linear },
        series: PARTS.iter().filter_map(series).collect(),
        bound: None,
        hollow: None,
    }
    .figure()
}

// ---- tables ---------------------------------------------------------------------------------------------------------

/// A table with a heading. The first column is text, the others are numbers.
fn table(title: &str, head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |tag: &str, cells: &[String]| -> String {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
    let mut text = format!("<section><h2>{}</h2><div class=\"wide\"><table>\n<thead>", escape(title));
    write!(text, "{}</thead>\n<tbody>", line("th", &head)).expect("writing to a string does not fail");
    rows.for_each(|row| text += &line("td", &row));
    text + "</tbody></table></div></section>\n"
}

fn figures(report: &FleetReport) -> String {
    let ratio = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
    let rows = report.rows.iter().map(|row| {
        let [gateway, send, kafka] = [row.gateway, row.send, row.kafka].map(cell);
        vec![row.name.clone(), gateway, send, kafka, ratio(row.to_send), ratio(row.to_kafka)]
    });
    let rounds = report.rounds.len();
    let title = if rounds > 1 { format!("Figures, medians of {rounds} rounds") } else { "Figures".to_owned() };
    table(&title, &["", "gateway", "send loop", "kafka loop", "/ send", "/ kafka"], rows)
}

fn steps(capacity: &Capacity) -> String {
    let head = [
        "events per second",
        "deliveries due per second",
        "read per second",
        "p50, ms",
        "p99, ms",
        "p99.9, ms",
        "% of a core",
        "CPU, ns",
        "",
    ];
    let rows = capacity.steps.iter().map(|step| {
        let verdict = match step.limit {
            None => "sustained".to_owned(),
            Some(limit) => format!("{}; {}", step.faults.join("; "), limit.text()),
        };
        let latencies = [step.latencies.p50_ms, step.latencies.p99_ms, step.latencies.p999_ms];
        let mut cells = vec![rate(step.rate), grouped(step.due_per_second), grouped(step.deliveries_per_second)];
        cells.extend(latencies.map(|ms| cell(Some(ms))));
        cells.extend([step.cores.map(|cores| cores * 100.0), step.cpu_ns].map(cell));
        cells.push(verdict);
        cells
    });
    table("Steps", &head, rows)
}

fn options(options: &Value) -> String {
    let pairs = options.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let rows = pairs.map(|(name, value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        vec![name.replace('_', "-"), value]
    });
    table("Options", &["", ""], rows)
}

#[cfg(test)]
mod tests;
