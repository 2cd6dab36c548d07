//! Plots as inline SVG. Colours and dashes come from the page's classes, so that they follow its light or dark mode.
//! Everything shown by colour is also shown by dash or position.

use std::fmt::Write as _;

use super::escape;
use super::scale::{Scale, ScaleKind, name};

/// Size of the drawing and position of its axes.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 622.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 252.0;

/// Position of bars, with room for their names and values.
const BAR_LEFT: f64 = 96.0;
const BAR_RIGHT: f64 = 540.0;
const BAR_PITCH: f64 = 46.0;
const BAR_THICK: f64 = 26.0;

/// More points than this are drawn as a line only.
const POINTS_MAX: usize = 150;

/// An axis' title, with its unit, and its scale.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub(super) title: &'static str,
    pub(super) kind: ScaleKind,
}

/// A point of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// Whether it is drawn hollow.
    pub(super) is_hollow: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<Point>,
    /// Whether a line connects the points.
    pub(super) is_line: bool,
}

/// A plot of series.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// A labelled horizontal line at this y, if any.
    pub(super) bound: Option<(f64, String)>,
    /// Legend of hollow points, if there are any.
    pub(super) hollow: Option<&'static str>,
}

/// Stacked bars.
#[derive(Debug, Clone)]
pub(super) struct Bars {
    pub(super) title: String,
    pub(super) axis: &'static str,
    /// Names of the parts.
    pub(super) parts: Vec<&'static str>,
    /// Names of the bars, with their parts.
    pub(super) bars: Vec<(String, Vec<f64>)>,
}

impl Lines {
    /// The figure; empty without data.
    pub(super) fn figure(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Scale::of(self.x.kind, points().map(|point| point.x));
        let bound = self.bound.iter().map(|(value, _)| *value);
        let y = Scale::of(self.y.kind, points().map(|point| point.y).chain(bound));
        let (Some(x), Some(y), true) = (x, y, points().next().is_some()) else { return String::new() };
        let mut svg = String::new();
        self.draw_axes(&mut svg, &x, &y);
        if let Some((value, _)) = &self.bound {
            let at = BOTTOM - (BOTTOM - TOP) * y.at(*value);
            push(&mut svg, format_args!(r#"<path class="bound" d="M{LEFT} {at:.1}H{RIGHT}"/>"#));
        }
        for (number, series) in self.series.iter().enumerate() {
            series.draw(&mut svg, number, (&x, &self.x), (&y, &self.y));
        }
        let mut items: Vec<String> =
            self.series.iter().enumerate().map(|(number, series)| series.item(number)).collect();
        items.extend(self.bound.as_ref().map(|(_, text)| item(r#"<path class="bound" d="M1 6H27"/>"#, text)));
        let hollow = r#"<circle class="point hollow" cx="14" cy="6" r="3.2"/>"#;
        items.extend(self.hollow.map(|text| item(hollow, text)));
        figure(&self.title, &items, HEIGHT, &svg)
    }

    fn draw_axes(&self, svg: &mut String, x: &Scale, y: &Scale) {
        for tick in y.ticks() {
            let at = BOTTOM - (BOTTOM - TOP) * y.at(tick);
            push(svg, format_args!(r#"<path class="grid" d="M{LEFT} {at:.1}H{RIGHT}"/>"#));
            let (left, base) = (LEFT - 8.0, at + 4.0);
            push(svg, format_args!(r#"<text class="end" x="{left}" y="{base:.1}">{}</text>"#, name(tick)));
        }
        for tick in x.ticks() {
            let at = LEFT + (RIGHT - LEFT) * x.at(tick);
            let (from, base) = (BOTTOM + 4.0, BOTTOM + 19.0);
            push(svg, format_args!(r#"<path class="axis" d="M{at:.1} {BOTTOM}V{from}"/>"#));
            push(svg, format_args!(r#"<text class="middle" x="{at:.1}" y="{base}">{}</text>"#, name(tick)));
        }
        push(svg, format_args!(r#"<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>"#));
        let (middle, bottom) = (f64::midpoint(LEFT, RIGHT), HEIGHT - 6.0);
        push(svg, format_args!(r#"<text class="middle" x="{middle}" y="{bottom}">{}</text>"#, escape(self.x.title)));
        let middle = f64::midpoint(TOP, BOTTOM);
        let turned = format!("rotate(-90 14 {middle})");
        let title = escape(self.y.title);
        push(svg, format_args!(r#"<text class="middle" x="14" y="{middle}" transform="{turned}">{title}</text>"#));
    }
}

impl Series {
    fn item(&self, number: usize) -> String {
        let line = if self.is_line { format!(r#"<path class="line s{number}" d="M1 6H27"/>"#) } else { String::new() };
        item(&format!("{line}{}", marker(number, false, (14.0, 6.0), "")), &self.name)
    }

    fn draw(&self, svg: &mut String, number: usize, (x, x_axis): (&Scale, &Axis), (y, y_axis): (&Scale, &Axis)) {
        let position = |point: &Point| (LEFT + (RIGHT - LEFT) * x.at(point.x), BOTTOM - (BOTTOM - TOP) * y.at(point.y));
        if self.is_line && self.points.len() > 1 {
            let mut path = String::new();
            for (number, point) in self.points.iter().enumerate() {
                let (x, y) = position(point);
                push(&mut path, format_args!("{}{x:.1} {y:.1}", if number == 0 { 'M' } else { 'L' }));
            }
            push(svg, format_args!(r#"<path class="line s{number}" d="{path}"/>"#));
        }
        if self.is_line && self.points.len() > POINTS_MAX {
            return;
        }
        for point in &self.points {
            let label =
                format!("{}: {} ({}), {} ({})", self.name, name(point.y), y_axis.title, name(point.x), x_axis.title);
            let label = format!("<title>{}</title>", escape(&label));
            svg.push_str(&marker(number, point.is_hollow, position(point), &label));
        }
    }
}

/// A point's marker. Each series has its own shape, for readers who can't tell its colour.
fn marker(series: usize, is_hollow: bool, (x, y): (f64, f64), inner: &str) -> String {
    let class = if is_hollow { format!("point s{series} hollow") } else { format!("point s{series}") };
    let path = match series % 4 {
        0 => return format!(r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3.2">{inner}</circle>"#),
        1 => "m-3-3h6v6h-6z",
        2 => "m0-4.2l4.2 4.2l-4.2 4.2l-4.2-4.2z",
        _ => "m0-4l4 7h-8z",
    };
    format!(r#"<path class="{class}" d="M{x:.1} {y:.1}{path}">{inner}</path>"#)
}

impl Bars {
    /// The figure; empty without data.
    pub(super) fn figure(&self) -> String {
        let sum = |bar: &(String, Vec<f64>)| bar.1.iter().sum::<f64>();
        let Some(scale) = Scale::of(ScaleKind::Linear, self.bars.iter().map(sum)) else { return String::new() };
        let bottom = TOP + BAR_PITCH * self.bars.len() as f64;
        let mut svg = String::new();
        for tick in scale.ticks() {
            let (at, base) = (BAR_LEFT + (BAR_RIGHT - BAR_LEFT) * scale.at(tick), bottom + 18.0);
            push(&mut svg, format_args!(r#"<path class="grid" d="M{at:.1} {TOP}V{bottom}"/>"#));
            push(&mut svg, format_args!(r#"<text class="middle" x="{at:.1}" y="{base}">{}</text>"#, name(tick)));
        }
        for (number, bar) in self.bars.iter().enumerate() {
            let top = TOP + BAR_PITCH * number as f64 + (BAR_PITCH - BAR_THICK) / 2.0;
            let base = top + BAR_THICK / 2.0 + 4.5;
            let left = BAR_LEFT - 8.0;
            push(&mut svg, format_args!(r#"<text class="end" x="{left}" y="{base}">{}</text>"#, escape(&bar.0)));
            let mut from = 0.0;
            for (part, value) in bar.1.iter().enumerate() {
                let [start, end] = [from, from + value].map(|at| BAR_LEFT + (BAR_RIGHT - BAR_LEFT) * scale.at(at));
                let (label, wide) = (escape(&format!("{}: {}", self.parts[part], name(*value))), end - start);
                push(
                    &mut svg,
                    format_args!(
                        r#"<rect class="bar s{part}" x="{start:.1}" y="{top}" width="{wide:.1}" height="{BAR_THICK}"><title>{label}</title></rect>"#
                    ),
                );
                from += value;
            }
            let each: Vec<String> = bar.1.iter().map(|value| name(*value)).collect();
            let label = if each.len() > 1 { format!("{} = {}", each.join(" + "), name(from)) } else { name(from) };
            // Beside the bar if there is room, otherwise inside its end.
            let end = BAR_LEFT + (BAR_RIGHT - BAR_LEFT) * scale.at(from) + 6.0;
            let fits = end + label.len() as f64 * 7.0 < WIDTH;
            let (at, class) = if fits { (end, "") } else { (end - 12.0, r#" class="end within""#) };
            push(&mut svg, format_args!(r#"<text{class} x="{at:.1}" y="{base}">{label}</text>"#));
        }
        push(&mut svg, format_args!(r#"<path class="axis" d="M{BAR_LEFT} {TOP}V{bottom}"/>"#));
        let (middle, base) = (f64::midpoint(BAR_LEFT, BAR_RIGHT), bottom + 38.0);
        push(&mut svg, format_args!(r#"<text class="middle" x="{middle}" y="{base}">{}</text>"#, escape(self.axis)));
        let swatch = |part: usize| format!(r#"<rect class="bar s{part}" x="2" y="0" width="24" height="12"/>"#);
        let items: Vec<String> = self.parts.iter().enumerate().map(|(part, name)| item(&swatch(part), name)).collect();
        figure(&self.title, &items, bottom + 46.0, &svg)
    }
}

fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("writing to a string does not fail");
}

/// A legend item: a swatch of 28 by 12 and its name.
fn item(swatch: &str, name: &str) -> String {
    format!(r#"<li><svg width="28" height="12" aria-hidden="true">{swatch}</svg>{}</li>"#, escape(name))
}

fn figure(title: &str, legend: &[String], height: f64, svg: &str) -> String {
    let (title, legend) = (escape(title), legend.concat());
    format!(
        "<figure><figcaption>{title}</figcaption><ul class=\"legend\">{legend}</ul>\n<svg class=\"plot\" viewBox=\"0 0 \
         {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">{svg}</svg></figure>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(points: &[(f64, f64)], title: &str) -> Lines {
        let points = points.iter().map(|&(x, y)| Point { x, y, is_hollow: y > 5.0 }).collect();
        Lines {
            title: title.to_owned(),
            x: Axis { title: "time, s", kind: ScaleKind::Linear },
            y: Axis { title: "latency, ms", kind: ScaleKind::Log },
            series: vec![Series { name: "p99 <b>".into(), points, is_line: true }],
            bound: Some((10.0, "the bound & more".into())),
            hollow: Some("not sustained"),
        }
    }

    #[test]
    fn a_point_is_drawn_at_the_position_of_its_value() {
        let figure = lines(&[(0.0, 1.0), (10.0, 10.0)], "a title").figure();
        // From the lower left to the upper right of the axes.
        assert!(figure.contains(r#"<path class="line s0" d="M66.0 252.0L622.0 12.0"/>"#), "{figure}");
        assert_eq!(figure.matches("<circle class=\"point s0\" cx=\"66.0\" cy=\"252.0\"").count(), 1);
        assert_eq!(figure.matches("<circle class=\"point s0 hollow\" cx=\"622.0\" cy=\"12.0\"").count(), 1);
        for named in ["time, s", "latency, ms", ">0</text>", ">10</text>", ">2</text>", "a title", "not sustained"] {
            assert!(figure.contains(named), "{named}: {figure}");
        }
    }

    #[test]
    fn each_series_has_its_own_shape_in_the_plot_and_in_the_legend() {
        let one = lines(&[(1.0, 2.0)], "t");
        let series = (0..4).map(|_| one.series[0].clone()).collect();
        let figure = Lines { series, ..one }.figure();
        let shape = |number: usize| marker(number, false, (0.0, 0.0), "").replace(&format!("s{number}"), "");
        for number in 0..4 {
            assert_eq!(figure.matches(&format!(r#"class="point s{number}""#)).count(), 2, "{number}: {figure}");
            assert!((0..number).all(|other| shape(other) != shape(number)), "{number}");
        }
    }

    #[test]
    fn text_from_outside_is_escaped() {
        let figure = lines(&[(0.0, 1.0)], "<script>alert('1')</script>").figure();
        assert!(!figure.contains("<script") && !figure.contains("<b>") && !figure.contains("& more"), "{figure}");
        assert!(figure.contains("p99 &lt;b&gt;") && figure.contains("the bound &amp; more"), "{figure}");
        let bars = vec![("<i>".to_owned(), vec![1.0])];
        let bars = Bars { title: "t".into(), axis: "ns", parts: vec!["user"], bars }.figure();
        assert!(bars.contains("&lt;i&gt;") && !bars.contains("<i>"), "{bars}");
    }

    #[test]
    fn bars_are_proportional_to_their_values_and_stacked() {
        let bars = vec![("gateway".to_owned(), vec![100.0, 300.0]), ("send loop".to_owned(), vec![50.0, 50.0])];
        let figure = Bars { title: "CPU".into(), axis: "ns", parts: vec!["user", "system"], bars }.figure();
        // 444 units are 400 ns.
        for (x, width) in [("96.0", "111.0"), ("207.0", "333.0"), ("96.0", "55.5"), ("151.5", "55.5")] {
            assert!(figure.contains(&format!(r#"x="{x}" y=""#)), "{x}: {figure}");
            assert!(figure.contains(&format!(r#"width="{width}""#)), "{width}: {figure}");
        }
        assert!(figure.contains(">50 + 50 = 100</text>"), "{figure}");
    }

    #[test]
    fn without_data_there_is_no_figure() {
        assert_eq!(lines(&[], "t").figure(), "");
        assert_eq!(Bars { title: "t".into(), axis: "ns", parts: vec!["user"], bars: Vec::new() }.figure(), "");
        let many: Vec<(f64, f64)> = (0..1_000).map(|number| (f64::from(number), 2.0)).collect();
        assert_eq!(lines(&many, "t").figure().matches("<title>").count(), 0, "many points are drawn as a line only");
    }
}
