//! What happened to the clients of a world, counted: for the test that the worlds are as rich in trouble as they are
//! meant to be.

/// What happens to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientOutcome {
    /// It reads an event.
    Event,
    /// It is connected without a past.
    Fresh,
    /// It is resumed.
    Resumed,
    /// It is sent to another pod before it is connected.
    Redirected,
    /// 1012.
    Moved,
    /// 1001.
    GoingAway,
    /// 1013.
    TooSlow,
    /// 4408.
    Silent,
    /// 503.
    Unavailable,
    /// Its connection is over without a word, or nothing comes on it.
    Lost,
    /// A reset, by its reason.
    Expired,
    Invalid,
    Lagged,
    Misplaced,
}

impl ClientOutcome {
    pub(super) const ALL: [Self; 14] = [
        Self::Event,
        Self::Fresh,
        Self::Resumed,
        Self::Redirected,
        Self::Moved,
        Self::GoingAway,
        Self::TooSlow,
        Self::Silent,
        Self::Unavailable,
        Self::Lost,
        Self::Expired,
        Self::Invalid,
        Self::Lagged,
        Self::Misplaced,
    ];

    /// What a close code means; `None` for one that no client of the simulation is to get.
    pub(super) fn of_code(code: u16) -> Option<Self> {
        Some(match code {
            1001 => Self::GoingAway,
            1008 => Self::Redirected,
            1012 => Self::Moved,
            1013 => Self::TooSlow,
            4408 => Self::Silent,
            _ => return None,
        })
    }

    /// What a reset's reason means.
    pub(super) fn of_reason(reason: &str) -> Option<Self> {
        Some(match reason {
            "expired" => Self::Expired,
            "invalid" => Self::Invalid,
            "lagged" => Self::Lagged,
            "misplaced" => Self::Misplaced,
            _ => return None,
        })
    }
}

/// How often what happened.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Outcomes([u64; ClientOutcome::ALL.len()]);

impl Outcomes {
    pub(super) fn count(&mut self, sight: ClientOutcome) {
        self.0[sight as usize] += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, count)| *sum += count);
    }

    /// All of them with their counts.
    pub(super) fn all(&self) -> impl Iterator<Item = (ClientOutcome, u64)> {
        ClientOutcome::ALL.into_iter().zip(self.0)
    }
}
