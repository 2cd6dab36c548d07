//! The search: up by a factor until a load is not sustained, or down until one is; then between the two.

/// Chooses the next load. The caller tests it and records the result.
#[derive(Debug, Clone)]
pub struct CapacitySearch {
    factor: f64,
    precision: f64,
    steps_left: u32,
    next: f64,
    held: Option<f64>,
    failed: Option<f64>,
}

impl CapacitySearch {
    /// Starts at a load. Steps are by `factor`, above one, until the highest load sustained and the lowest not
    /// sustained are within `precision` of each other (0.05 is a twentieth), or `steps_max` loads were tested.
    #[must_use]
    pub fn new(start: f64, factor: f64, precision: f64, steps_max: u32) -> Self {
        debug_assert!(start > 0.0 && factor > 1.0 && precision > 0.0);
        Self { factor, precision, steps_left: steps_max, next: start, held: None, failed: None }
    }

    /// The next load to test; `None` if the search is over.
    #[must_use]
    pub fn next(&self) -> Option<f64> {
        (self.steps_left > 0 && !self.is_narrow()).then_some(self.next)
    }

    /// Records whether the last load was sustained.
    pub fn record(&mut self, is_held: bool) {
        self.steps_left = self.steps_left.saturating_sub(1);
        let edge = if is_held { &mut self.held } else { &mut self.failed };
        *edge = Some(self.next);
        self.next = match (self.held, self.failed) {
            // Loads are compared by ratio, so the next is the geometric mean.
            (Some(held), Some(failed)) => (held * failed).sqrt(),
            (Some(held), None) => held * self.factor,
            (None, Some(failed)) => failed / self.factor,
            (None, None) => self.next,
        };
    }

    /// Whether the search is as precise as requested.
    #[must_use]
    pub fn is_narrow(&self) -> bool {
        self.held.zip(self.failed).is_some_and(|(held, failed)| failed / held <= 1.0 + self.precision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Latency of a queue: it grows without bound towards the capacity.
    fn p99_ms(load: f64, capacity: f64) -> f64 {
        if load >= capacity { f64::INFINITY } else { 2.0 / (1.0 - load / capacity) }
    }

    /// The loads tested, each with whether p99 was within 50 ms.
    fn tried(start: f64, capacity: f64, steps_max: u32) -> (Vec<(f64, bool)>, bool) {
        let mut search = CapacitySearch::new(start, 2.0, 0.05, steps_max);
        let mut tried = Vec::new();
        while let Some(load) = search.next() {
            let is_held = p99_ms(load, capacity) <= 50.0;
            tried.push((load, is_held));
            search.record(is_held);
        }
        (tried, search.is_narrow())
    }

    fn highest(tried: &[(f64, bool)]) -> f64 {
        tried.iter().filter(|(_, is_held)| *is_held).map(|(load, _)| *load).fold(0.0, f64::max)
    }

    #[test]
    fn the_highest_load_is_found_from_below_and_from_above() {
        // p99 is 50 ms at 96 % of the capacity.
        for (start, capacity) in [(100.0, 10_000.0), (100.0, 101.0), (60_000.0, 900.0), (7.0, 7.0), (1.0, 1e6)] {
            let (tried, is_narrow) = tried(start, capacity, 60);
            let (found, exact) = (highest(&tried), capacity * 0.96);
            assert!(is_narrow, "{start}, {capacity}: {tried:?}");
            assert!(found <= exact * (1.0 + 1e-9) && found * 1.05 >= exact, "{found} of {exact}: {tried:?}");
        }
    }

    #[test]
    fn the_search_goes_up_by_the_factor_and_then_bisects() {
        let (tried, _) = tried(100.0, 1_000.0, 60);
        let loads: Vec<f64> = tried.iter().map(|(load, _)| load.round()).collect();
        assert_eq!(loads, [100.0, 200.0, 400.0, 800.0, 1_600.0, 1_131.0, 951.0, 1_037.0, 993.0]);
    }

    #[test]
    fn the_search_ends_if_no_load_is_sustained_and_if_every_load_is() {
        let (none, is_narrow) = tried(100.0, 0.0, 5);
        assert_eq!((none.len(), highest(&none), is_narrow), (5, 0.0, false));
        assert_eq!(none[4].0, 100.0 / 16.0, "each is half of the one before");
        let (all, is_narrow) = tried(100.0, f64::INFINITY, 5);
        assert_eq!((all.len(), highest(&all), is_narrow), (5, 1_600.0, false));
    }
}
