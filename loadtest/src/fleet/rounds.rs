//! The number of rounds of a measurement, and where its results are written.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::machine_noise::{Discarded, Noisy, quietest};

/// How often, and where to.
#[derive(Debug, Clone, Serialize, clap::Args)]
pub struct Rounds {
    /// How often all is measured; the table has the medians.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// How often a round, or a step that was not held, is measured again where the machine was noisy, or something
    /// stood still.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub repeats: u32,
    /// The JSON file; without it, one of the subcommand's name in the directory for temporary files.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

impl Rounds {
    /// Measures all rounds, each told its number, from 1; noisy ones again.
    pub(super) fn measure<T: Noisy>(&self, mut one: impl FnMut(u32) -> Result<T>) -> Result<(Vec<T>, Vec<Discarded>)> {
        let mut discarded = Vec::new();
        let rounds = (1..=self.rounds)
            .map(|number| quietest(&format!("round {number}"), self.repeats, &mut discarded, || one(number)))
            .collect::<Result<_>>()?;
        Ok((rounds, discarded))
    }

    /// The JSON file, of a subcommand of this name.
    pub(super) fn json_file(&self, name: &str) -> PathBuf {
        self.json.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("{name}.json")))
    }
}
