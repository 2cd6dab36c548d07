//! Figures with bounds: each is the median of its rounds, beside the least and the most of them, and beside what it is
//! to be.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::report::cell;
use super::statistics::median;

/// What a figure is to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Bound {
    /// This, or more.
    AtLeast(f64),
    /// This, or less.
    AtMost(f64),
}

impl Bound {
    fn is_held(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!(">= {}", cell(Some(least))),
            Self::AtMost(most) => format!("<= {}", cell(Some(most))),
        }
    }
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoundRow {
    /// What was measured, with its unit; what begins with two spaces is a part of what stands above it.
    pub name: String,
    /// The rounds' median.
    pub median: f64,
    /// Their least.
    pub least: f64,
    /// Their most.
    pub most: f64,
    /// What the median is to keep, where there is such a bound.
    pub bound: Option<Bound>,
}

impl BoundRow {
    /// Of what each round came to; `None` where none came to a number.
    #[must_use]
    pub fn of(name: &str, bound: Option<Bound>, values: impl Iterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        let least = values.iter().copied().min_by(f64::total_cmp)?;
        let most = values.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { name: name.to_owned(), median: median(values)?, least, most, bound })
    }

    /// Whether the median keeps its bound, where there is one.
    #[must_use]
    pub fn is_held(&self) -> Option<bool> {
        self.bound.map(|bound| bound.is_held(self.median))
    }
}

/// The rows, with the remarks below them.
///
/// # Panics
/// Never: a string takes all that is written.
#[must_use]
pub fn table(rows: &[BoundRow], remarks: &[String]) -> String {
    let mut text = format!("{:<56}{:>10}{:>10}{:>10}{:>12}  held\n", "", "median", "least", "most", "bound");
    for row in rows {
        let [median, least, most] = [row.median, row.least, row.most].map(|value| cell(Some(value)));
        let bound = row.bound.map_or(String::new(), Bound::text);
        let held = row.is_held().map_or("", |is_held| if is_held { "yes" } else { "NO" });
        let line = format!("{:<56}{median:>10}{least:>10}{most:>10}{bound:>12}  {held}", row.name);
        writeln!(text, "{}", line.trim_end()).expect("a string takes all");
    }
    for remark in remarks {
        writeln!(text, "NOTE: {remark}").expect("a string takes all");
    }
    text
}
