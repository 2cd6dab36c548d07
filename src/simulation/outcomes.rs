//! Counts what happened to the clients of a world, for the test that the worlds have every kind of trouble.

/// A thing that happens to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientOutcome {
    /// It reads an event.
    Event,
    /// It connects without a cursor.
    Fresh,
    /// It is resumed.
    Resumed,
    /// It is redirected before it is connected.
    Redirected,
    /// Closed with 1012.
    Moved,
    /// Closed with 1001.
    GoingAway,
    /// Closed with 1013.
    TooSlow,
    /// Closed with 4408.
    Silent,
    /// Refused with 503.
    Unavailable,
    /// Its connection ends without a close frame, or delivers nothing.
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

    /// The outcome of a close code; `None` for a code that no client of the simulation may get.
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

    /// The outcome of a reset's reason.
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

/// Count of each outcome.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Outcomes([u64; ClientOutcome::ALL.len()]);

impl Outcomes {
    pub(super) fn count(&mut self, outcome: ClientOutcome) {
        self.0[outcome as usize] += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, count)| *sum += count);
    }

    /// Every outcome with its count.
    pub(super) fn all(&self) -> impl Iterator<Item = (ClientOutcome, u64)> {
        ClientOutcome::ALL.into_iter().zip(self.0)
    }
}
