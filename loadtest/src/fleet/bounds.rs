//! Figures with bounds: the median, minimum and maximum of the rounds beside the bound.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::report::cell;
use super::statistics::median;

/// A bound of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Bound {
    /// Lower bound.
    AtLeast(f64),
    /// Upper bound.
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
    /// Name of the figure, with its unit. Two leading spaces mark a part of the row above.
    pub name: String,
    /// Median of the rounds.
    pub median: f64,
    /// Minimum of the rounds.
    pub least: f64,
    /// Maximum of the rounds.
    pub most: f64,
    /// Bound of the median, if it has one.
    pub bound: Option<Bound>,
}

impl BoundRow {
    /// A row of the rounds' values; `None` if none is finite.
    #[must_use]
    pub fn of(name: &str, bound: Option<Bound>, values: impl Iterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        let least = values.iter().copied().min_by(f64::total_cmp)?;
        let most = values.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { name: name.to_owned(), median: median(values)?, least, most, bound })
    }

    /// Whether the median is within its bound, if it has one.
    #[must_use]
    pub fn is_held(&self) -> Option<bool> {
        self.bound.map(|bound| bound.is_held(self.median))
    }
}

/// The table of the rows, with the remarks below.
///
/// # Panics
/// Never: writing to a string does not fail.
#[must_use]
pub fn table(rows: &[BoundRow], remarks: &[String]) -> String {
    let mut text = format!("{:<56}{:>10}{:>10}{:>10}{:>12}  met\n", "", "median", "min", "max", "bound");
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
