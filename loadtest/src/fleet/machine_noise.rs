//! Measures how much other work disturbed a measurement, repeats a disturbed one up to a limit, and keeps the quietest.

use serde::{Deserialize, Serialize};

use super::measure::Measurement;
use super::outcome::FleetRound;
use super::usage::UsageInterval;

/// More steal than this, as a share of the machine, spoils figures of CPU time.
const STEAL_MAX: f64 = 0.02;

/// More waiting for a core than this, as a share of the window, spoils latencies.
const WAITING_MAX: f64 = 0.05;

/// What others took of the machine while a part was measured, as shares from 0 to 1. Others may be of the run itself,
/// such as its Kafka, where cores are not told apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Noise {
    /// What the machine's host gave to others.
    pub steal: f64,
    /// How long the server's threads waited for a core, all together.
    pub server_waited: f64,
    /// How long the process of clients waited for one that waited the longest.
    pub clients_waited: f64,
}

impl Noise {
    /// That of a part.
    #[must_use]
    pub fn of(part: &Measurement) -> Self {
        Self {
            steal: part.machine.share(part.machine.steal),
            server_waited: part.usage.as_ref().map_or(0.0, |usage| usage.waited_ns as f64 / 1e9 / part.seconds),
            clients_waited: part.client_waiting,
        }
    }

    /// That of a stretch of time.
    #[must_use]
    pub fn of_stretch(stretch: &UsageInterval) -> Self {
        Self {
            steal: stretch.machine.share(stretch.machine.steal),
            server_waited: stretch.usage.waited_ns as f64 / 1e9 / stretch.seconds,
            clients_waited: 0.0,
        }
    }

    /// What of it is too much, a sentence each; nothing, where the machine was quiet.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let percent = |share: f64| share * 100.0;
        let steal = format!("the machine's host took {:.1} % of its time", percent(self.steal));
        let server = format!(
            "its threads waited for a core {:.0} % of the time: others share the machine",
            percent(self.server_waited)
        );
        let clients = format!(
            "a process of clients waited for a core {:.0} % of the time: latencies hold this",
            percent(self.clients_waited)
        );
        let all = [
            (self.steal > STEAL_MAX, steal),
            (self.server_waited > WAITING_MAX, server),
            (self.clients_waited > WAITING_MAX, clients),
        ];
        all.into_iter().filter_map(|(is_too_much, text)| is_too_much.then_some(text)).collect()
    }

    /// All together, for which of two tries was the quieter.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.steal + self.server_waited + self.clients_waited
    }
}

/// What is measured again where the machine was noisy.
pub trait Noisy {
    /// What of its noise is too much, a sentence each.
    fn faults(&self) -> Vec<String>;

    /// All of its noise, for which of two tries was the quieter.
    fn noise(&self) -> f64;
}

/// What was measured and thrown away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Discarded {
    /// What it was a try of: a round, or a step.
    pub what: String,
    /// Why.
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

/// Measures until the machine is quiet, at most `repeats` times more, and returns the quietest try. The others are told
/// in `discarded`.
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
        println!("{what}: the machine was noisy, and it is measured again: {}", best.faults().join("; "));
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
    fn a_quiet_try_is_kept_and_a_noisy_one_is_made_again_up_to_the_bound() {
        assert_eq!(run(2, &[0, 0]), (0, Vec::new(), 1));
        assert_eq!(run(2, &[20]), (20, Vec::new(), 1), "up to the bound is not too much");
        let (kept, discarded, tries) = run(2, &[100, 0, 0]);
        assert_eq!((kept, tries), (0, 2));
        let why = vec!["gateway: the machine's host took 10.0 % of its time".to_owned()];
        assert_eq!(discarded, [Discarded { what: "round 1".into(), why }]);
        let (kept, discarded, tries) = run(2, &[100, 50, 70, 0]);
        assert_eq!((kept, discarded.len(), tries), (50, 2, 3), "the quietest, where none was quiet");
        assert_eq!(run(0, &[100, 0]).0, 100);
    }
}
