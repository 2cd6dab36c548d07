//! Maps values to positions on an axis, and chooses the labelled ones.

/// Kind of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScaleKind {
    /// Linear, from zero.
    Linear,
    /// Logarithmic: small values stay visible beside large ones.
    Log,
}

/// Range of an axis, rounded to labelled values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    kind: ScaleKind,
    low: f64,
    high: f64,
}

/// Approximate number of labels.
const TICKS: f64 = 5.0;

/// With fewer labels than this on a logarithmic axis, all digits are labelled.
const LOG_TICKS_MIN: usize = 4;

/// With more labels than this on a logarithmic axis, only powers of ten are labelled.
const LOG_TICKS_MAX: usize = 7;

impl Scale {
    /// The scale for all values that can be drawn; `None` if there are none.
    pub(super) fn of(kind: ScaleKind, values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let can_be_shown = |value: &f64| value.is_finite() && (kind == ScaleKind::Linear || *value > 0.0);
        let (low, high) = values.into_iter().filter(can_be_shown).fold(None, |range, value| {
            let (low, high) = range.unwrap_or((value, value));
            Some((value.min(low), value.max(high)))
        })?;
        Some(match kind {
            ScaleKind::Linear => {
                let step = step(high.max(0.0) / TICKS);
                Self { kind, low: 0.0, high: ((high / step - 1e-9).ceil() * step).max(step) }
            }
            ScaleKind::Log => {
                let (low, high) = (round_down(low), round_up(high));
                Self { kind, low, high: if high > low { high } else { round_up(low * 1.5) } }
            }
        })
    }

    /// Position of a value, from 0 to 1.
    pub(super) fn at(&self, value: f64) -> f64 {
        let position = match self.kind {
            ScaleKind::Linear => (value - self.low) / (self.high - self.low),
            ScaleKind::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        if position.is_finite() { position.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// The labelled values, in order.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let within = |value: &f64| (self.low * 0.999..=self.high * 1.001).contains(value);
        match self.kind {
            ScaleKind::Linear => {
                let step = step(self.high / TICKS);
                (0..=20).map(|number| f64::from(number) * step).filter(within).collect()
            }
            ScaleKind::Log => {
                let decades = |steps: &[f64]| -> Vec<f64> {
                    let decade = |power: i32| steps.iter().map(move |step| step * 10_f64.powi(power));
                    (-9..=12).flat_map(decade).filter(within).collect()
                };
                let all = decades(&[1.0, 2.0, 5.0]);
                match all.len() {
                    few if few < LOG_TICKS_MIN => decades(&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]),
                    many if many > LOG_TICKS_MAX => decades(&[1.0]),
                    _ => all,
                }
            }
        }
    }
}

/// The next of 1, 2, 5, 10, … that is not smaller; for zero, 1/5.
fn step(least: f64) -> f64 {
    if least > 0.0 { round_up(least) } else { 1.0 / TICKS }
}

fn round_up(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
    steps.into_iter().find(|step| *step >= value * (1.0 - 1e-9)).unwrap_or(10.0 * decade)
}

fn round_down(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let steps = [10.0, 5.0, 2.0, 1.0].map(|step| step * decade);
    steps.into_iter().find(|step| *step <= value * (1.0 + 1e-9)).unwrap_or(decade)
}

/// Formats a label, with k for thousands and M for millions.
pub(super) fn name(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        millions if millions >= 1e6 => (value / 1e6, "M"),
        thousands if thousands >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match scaled.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 1.0 => 2,
        _ => 4,
    };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(scale: Scale) -> Vec<String> {
        scale.ticks().into_iter().map(name).collect()
    }

    #[test]
    fn a_linear_axis_begins_at_zero_and_ends_at_a_label() {
        let scale = Scale::of(ScaleKind::Linear, [3.0, 93.0, f64::NAN]).unwrap();
        assert_eq!(names(scale), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!((scale.at(0.0), scale.at(50.0), scale.at(100.0)), (0.0, 0.5, 1.0));
        assert_eq!((scale.at(-5.0), scale.at(500.0), scale.at(f64::NAN)), (0.0, 1.0, 0.0), "nothing is drawn outside");
        assert_eq!(names(Scale::of(ScaleKind::Linear, [10.0]).unwrap()), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(names(Scale::of(ScaleKind::Linear, [0.0]).unwrap()).first().unwrap(), "0");
        assert_eq!(names(Scale::of(ScaleKind::Linear, [1_234_567.0]).unwrap()), ["0", "500k", "1M", "1.5M"]);
    }

    #[test]
    fn a_logarithmic_axis_places_equal_ratios_at_equal_distances() {
        let scale = Scale::of(ScaleKind::Log, [0.3, 40.0, 0.0, -1.0]).unwrap();
        assert_eq!(names(scale), ["1", "10"], "from 0.2 to 50 there is room for powers of ten only");
        assert!((scale.at(1.0) - scale.at(0.2) - (scale.at(5.0) - scale.at(1.0))).abs() < 1e-9);
        assert_eq!((scale.at(0.2), scale.at(50.0)), (0.0, 1.0));
        assert_eq!(scale.at(0.0), 0.0, "values that a logarithmic axis can't show are at its end");
        assert_eq!(names(Scale::of(ScaleKind::Log, [1.2, 9.0]).unwrap()), ["1", "2", "5", "10"]);
        assert_eq!(
            names(Scale::of(ScaleKind::Log, [5.0]).unwrap()),
            ["5", "6", "7", "8", "9", "10"],
            "one value has room"
        );
        assert_eq!(names(Scale::of(ScaleKind::Log, [2_000.0, 4_000.0]).unwrap()), ["2k", "3k", "4k", "5k"]);
        assert_eq!(names(Scale::of(ScaleKind::Log, [1.1]).unwrap()), ["1", "1.5", "2"]);
    }

    #[test]
    fn without_values_there_is_no_scale() {
        assert_eq!(Scale::of(ScaleKind::Linear, []), None);
        assert_eq!(Scale::of(ScaleKind::Log, [0.0, f64::INFINITY]), None);
    }

    #[test]
    fn every_axis_covers_its_values_and_has_a_few_labels() {
        fastrand::seed(7);
        for _ in 0..10_000 {
            let value = || 10_f64.powf(fastrand::f64() * 10.0 - 3.0);
            let (low, high) = (value(), value());
            for kind in [ScaleKind::Linear, ScaleKind::Log] {
                let scale = Scale::of(kind, [low, high]).unwrap();
                let ticks = scale.ticks();
                assert!(scale.high >= high.max(low) * 0.999 && scale.low <= low.min(high) * 1.001, "{scale:?}");
                assert!((2..=12).contains(&ticks.len()), "{scale:?}: {ticks:?}");
                assert!(ticks.windows(2).all(|pair| pair[0] < pair[1]), "{ticks:?}");
            }
        }
    }
}
