//! Measures how much other work disturbed a measurement, repeats a disturbed one up to a limit, and keeps the quietest.

use serde::{Deserialize, Serialize};

use super::measure::Measurement;
use super::outcome::FleetRound;
use super::usage::UsageInterval;

/// Share of steal time above which CPU figures are unreliable.
const STEAL_MAX: f64 = 0.02;

/// Share of the window spent waiting for a core above which latencies are unreliable.
const WAITING_MAX: f64 = 0.05;

/// Time that other work took of the machine during a measurement, as shares from 0 to 1. It includes other processes of
/// the run, such as Kafka, if cores are not reserved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Noise {
    /// Steal time.
    pub steal: f64,
    /// Time that the server's threads waited for a core, all together.
    pub server_waited: f64,
    /// Longest time that a client process waited for a core.
    pub clients_waited: f64,
}

impl Noise {
    /// The noise of a measurement.
    #[must_use]
    pub fn of(part: &Measurement) -> Self {
        Self {
            steal: part.machine.share(part.machine.steal),
            server_waited: part.usage.as_ref().map_or(0.0, |usage| usage.waited_ns as f64 / 1e9 / part.seconds),
            clients_waited: part.client_waiting,
        }
    }

    /// The noise of an interval.
    #[must_use]
    pub fn of_interval(interval: &UsageInterval) -> Self {
        Self {
            steal: interval.machine.share(interval.machine.steal),
            server_waited: interval.usage.waited_ns as f64 / 1e9 / interval.seconds,
            clients_waited: 0.0,
        }
    }

    /// A sentence for each kind of noise over its limit; empty if the machine was quiet.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let percent = |share: f64| share * 100.0;
        let steal = format!("the host stole {:.1} % of the machine's time", percent(self.steal));
        let server = format!(
            "its threads waited for a core {:.0} % of the time: the machine has other work",
            percent(self.server_waited)
        );
        let clients = format!(
            "a client process waited for a core {:.0} % of the time, which adds to latencies",
            percent(self.clients_waited)
        );
        let all = [
            (self.steal > STEAL_MAX, steal),
            (self.server_waited > WAITING_MAX, server),
            (self.clients_waited > WAITING_MAX, clients),
        ];
        all.into_iter().filter_map(|(is_too_much, text)| is_too_much.then_some(text)).collect()
    }

    /// The sum, to choose the quieter of two measurements.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.steal + self.server_waited + self.clients_waited
    }
}

/// A measurement that is repeated if the machine was noisy.
pub trait Noisy {
    /// A sentence for each kind of noise over its limit.
    fn faults(&self) -> Vec<String>;

    /// The sum of its noise, to choose the quieter of two measurements.
    fn noise(&self) -> f64;
}

/// A discarded measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Discarded {
    /// The round or step that it measured.
    pub what: String,
    /// Reasons for discarding it.
    pub why: Vec<String>,
}

impl Noisy for FleetRound {
    fn faults(&self) -> Vec<String> {
        let faults = |(name, part)| Noise::of(part).faults().into_iter().map(move |fault| format!("{name}: {fault}"));
        self.parts().flat_map(faults).collect()
    }

    fn noise(&self) -> f64 {
        self.parts().map(|(_, part)| Noise::of(part).total()).sum()
    }
}

/// Measures until the machine is quiet, with at most `repeats` repetitions, and returns the quietest measurement. The
/// others go to `discarded`.
///
/// # Errors
/// Those of `try_once`.
pub fn quietest<T: Noisy, E>(
    what: &str,
    repeats: u32,
    discarded: &mut Vec<Discarded>,
    mut try_once: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut best = try_once()?;
    for _ in 0..repeats {
        if best.faults().is_empty() {
            break;
        }
        println!("{what}: measured again because the machine was noisy: {}", best.faults().join("; "));
        let next = try_once()?;
        let worse = if next.noise() < best.noise() { std::mem::replace(&mut best, next) } else { next };
        discarded.push(Discarded { what: what.to_owned(), why: worse.faults() });
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::report::tests::part;
    use crate::fleet::usage::MachineUsage;

    fn stolen(ticks: u64) -> FleetRound {
        let machine = MachineUsage { total: 1_000, busy: 500, steal: ticks };
        FleetRound { gateway: Some(Measurement { machine, ..part(1_000) }), ..FleetRound::default() }
    }

    fn steal(round: &FleetRound) -> u64 {
        round.gateway.as_ref().unwrap().machine.steal
    }

    fn run(repeats: u32, tries: &[u64]) -> (u64, Vec<Discarded>, usize) {
        let (mut discarded, mut left) = (Vec::new(), tries.iter());
        let tried = quietest("round 1", repeats, &mut discarded, || left.next().map(|ticks| stolen(*ticks)).ok_or(()));
        (steal(&tried.unwrap()), discarded, tries.len() - left.len())
    }

    #[test]
    fn a_quiet_measurement_is_kept_and_a_noisy_one_is_repeated_up_to_the_limit() {
        assert_eq!(run(2, &[0, 0]), (0, Vec::new(), 1));
        assert_eq!(run(2, &[20]), (20, Vec::new(), 1), "the limit itself is allowed");
        let (kept, discarded, tries) = run(2, &[100, 0, 0]);
        assert_eq!((kept, tries), (0, 2));
        let why = vec!["gateway: the host stole 10.0 % of the machine's time".to_owned()];
        assert_eq!(discarded, [Discarded { what: "round 1".into(), why }]);
        let (kept, discarded, tries) = run(2, &[100, 50, 70, 0]);
        assert_eq!((kept, discarded.len(), tries), (50, 2, 3), "the quietest if none was quiet");
        assert_eq!(run(0, &[100, 0]).0, 100);
    }
}
