//! Pages of constructed reports.

use super::*;
use crate::fleet::outcome::{Limit, SearchStep};
use crate::fleet::report::tests::part;

fn at(ms: f64) -> Percentiles {
    Percentiles { samples: 9, p50_ms: ms, p90_ms: ms * 2.0, p99_ms: ms * 3.0, p999_ms: ms * 4.0, max_ms: ms * 5.0 }
}

fn timeline(seconds: u32) -> Vec<Moment> {
    let moment = |second: u32| Moment {
        at_seconds: f64::from(second),
        deliveries_per_second: 100.0,
        latencies: Some(at(f64::from(second))),
        cores: Some(0.5),
        memory: Some(u64::from(second) << 20),
    };
    (1..=seconds).map(moment).collect()
}

fn round(ns: u64) -> FleetRound {
    let part = |ns| Some(Measurement { timeline: timeline(3), ..part(ns) });
    FleetRound { gateway: part(ns), send: part(ns / 2), kafka: part(ns) }
}

fn report(rounds: Vec<FleetRound>) -> FleetReport {
    let options = serde_json::json!({ "settings": ["A=<b>&'\""], "url": null, "gateway_cores": [1] });
    FleetReport::of(options, rounds, Vec::new())
}

fn titles(page: &str) -> Vec<&str> {
    page.split("<figcaption>").skip(1).filter_map(|rest| rest.split("</figcaption>").next()).collect()
}

#[test]
fn a_page_is_self_contained_and_has_the_plots_the_figures_and_the_options() {
    let report = report(vec![round(2_000)]);
    let page = page(&report, "fleet");
    let expected = [
        "Latency over time (gateway)",
        "Latency over load (one point per round)",
        "CPU per delivery",
        "Memory of an idle connection",
        "Process memory over time",
    ];
    assert_eq!(titles(&page), expected);
    for row in &report.rows {
        assert!(page.contains(&format!("<td>{}</td>", escape(&row.name))), "{}", row.name);
    }
    assert!(page.contains("<td>settings</td><td>[&quot;A=&lt;b&gt;&amp;&#39;\\&quot;&quot;]</td>"), "{page}");
    assert!(page.contains("<td>gateway-cores</td><td>[1]</td>") && !page.contains("<td>url</td>"));
    for outside in ["http:", "https:", "src=", "href=", "@import", "<script", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn remarks_are_above_the_plots_and_many_are_collapsed() {
    let with = |count: usize| {
        let remarks = (0..count).map(|number| format!("remark <{number}>")).collect();
        page(&FleetReport { remarks, ..report(vec![round(2_000)]) }, "fleet")
    };
    assert!(with(1).contains(" open><summary>Remarks: 1</summary><ul><li>remark &lt;0&gt;</li>"));
    assert!(with(9).contains("<details class=\"remarks\"><summary>Remarks: 9<"));
    assert!(!with(0).contains("<details"));
}

#[test]
fn each_tag_is_closed() {
    let remarks = vec!["a remark".to_owned()];
    let page = page(&FleetReport { remarks, ..report(vec![round(2_000), round(3_000)]) }, "fleet");
    for tag in [
        "html", "main", "div", "section", "details", "table", "tr", "td", "th", "figure", "ul", "li", "svg", "text",
        "p",
    ] {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        assert!(opened > 0, "{tag}");
    }
}

#[test]
fn the_round_with_the_median_p99_is_plotted_over_time() {
    let with = |ms| {
        let gateway = Some(Measurement { latencies: Some(at(ms)), timeline: timeline(2), ..part(1_000) });
        FleetRound { gateway, ..FleetRound::default() }
    };
    let page = page(&report(vec![with(9.0), with(1.0), with(4.0)]), "fleet");
    assert_eq!(titles(&page)[0], "Latency over time (gateway, round 3 of 3)");
    assert!(page.contains("Figures, medians of 3 rounds"));
    let none = shown(&[]);
    assert!(none.is_none());
    let floor = FleetRound { kafka: Some(part(1)), ..FleetRound::default() };
    assert_eq!(shown(&[floor]).unwrap().0, "kafka loop", "without a gateway, that of a loop");
}

#[test]
fn a_search_has_its_steps_its_bound_and_its_lines() {
    let step = |load: f64, faults: &[&str]| SearchStep {
        rate: load / 10.0,
        market_rate: 0.0,
        due_per_second: load,
        deliveries_per_second: load,
        latencies: at(load / 1_000.0),
        cores: Some(0.5),
        cpu_ns: Some(1_500.0),
        faults: faults.iter().map(|fault| (*fault).to_owned()).collect(),
        limit: (!faults.is_empty()).then_some(Limit::Gateway),
    };
    let steps = vec![step(1_000.0, &[]), step(4_000.0, &["3 resets"]), step(2_000.0, &[])];
    let lines = vec!["capacity: <number>".to_owned()];
    let capacity = Capacity { p99_ms: 9.0, steps, held: Some(2), sizing: None, lines };
    let page = page(&FleetReport { capacity: Some(capacity), ..report(vec![round(2_000)]) }, "capacity");
    assert_eq!(titles(&page)[1..3], ["Latency over load (gateway)", "CPU per delivery over load (gateway)"]);
    assert!(page.contains("<p class=\"lead\">capacity: &lt;number&gt;</p>"));
    assert!(page.contains("p99 bound: 9 ms"));
    assert!(page.contains("<td>3 resets; the gateway is the limit</td>"));
    // Three percentiles and the CPU, and the marker in both legends.
    assert_eq!(page.matches("hollow\"").count(), 4 + 2);
}
