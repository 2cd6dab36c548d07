//! The number of rounds of a measurement, and the files for its results.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::machine_noise::{Discarded, Noisy, quietest};

/// Options of rounds and files.
#[derive(Debug, Clone, Serialize, clap::Args)]
pub struct Rounds {
    /// Number of rounds. The table has their medians.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// Repetitions of a round, or of a step that was not sustained, if the machine was noisy or something stalled.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub repeats: u32,
    /// The JSON file; by default in the directory for temporary files, named after the subcommand.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

impl Rounds {
    /// Measures all rounds, numbered from 1, and repeats noisy ones.
    pub(super) fn measure<T: Noisy>(&self, mut one: impl FnMut(u32) -> Result<T>) -> Result<(Vec<T>, Vec<Discarded>)> {
        let mut discarded = Vec::new();
        let rounds = (1..=self.rounds)
            .map(|number| quietest(&format!("round {number}"), self.repeats, &mut discarded, || one(number)))
            .collect::<Result<_>>()?;
        Ok((rounds, discarded))
    }

    /// The JSON file of a subcommand.
    pub(super) fn json_file(&self, name: &str) -> PathBuf {
        self.json.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("{name}.json")))
    }
}
