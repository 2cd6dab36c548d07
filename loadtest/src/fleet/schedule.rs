//! When each event is due, and for whom: an open-loop schedule. It goes by the clock alone. That something is late, the
//! gateway or the producer itself, moves no due time; and latencies are told from the due time, which each record
//! carries. So a stall shows in every event that was due during it, and not only in the one that met it (coordinated
//! omission).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Clients; each watches one assessment.
    pub clients: u32,
    /// Assessments, which have events in turn.
    pub assessments: u32,
    /// Events a second, of all assessments together.
    pub rate: f64,
    /// How many events of one assessment are due at a time.
    pub burst: u32,
    /// Markets, which have ticks in turn.
    pub markets: u32,
    /// Ticks a second, of all markets together; each is due to every client.
    pub market_rate: f64,
    /// The length of an event's payload, in bytes.
    pub size: usize,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DueItem {
    /// An event of the assessment of this number.
    Event(u32),
    /// A tick of the market of this number.
    Tick(u32),
}

impl Load {
    /// The assessment that a client watches.
    #[must_use]
    pub fn watched_by(&self, client: u32) -> u32 {
        client % self.assessments
    }

    /// How many clients watch an assessment.
    #[must_use]
    pub fn watchers(&self, assessment: u32) -> u32 {
        self.clients / self.assessments + u32::from(assessment < self.clients % self.assessments)
    }

    /// All that is due within a time, in the order of due times, each from the start.
    pub fn schedule(&self, length: Duration) -> impl Iterator<Item = (Duration, DueItem)> + use<> {
        let Self { assessments, rate, burst, markets, market_rate, .. } = *self;
        let mut events = (0_u64..).map_while(move |number| {
            let slot = number / u64::from(burst);
            let turn = u32::try_from(slot % u64::from(assessments)).expect("below a u32");
            Some((due(slot * u64::from(burst), rate)?, DueItem::Event(turn)))
        });
        let mut ticks = (0_u64..).map_while(move |number| {
            let turn = u32::try_from(number % u64::from(markets)).expect("below a u32");
            Some((due(number, market_rate)?, DueItem::Tick(turn)))
        });
        let (mut event, mut tick) = (events.next(), ticks.next());
        std::iter::from_fn(move || match (event, tick) {
            (Some((at, _)), Some((tick_at, _))) if tick_at < at => std::mem::replace(&mut tick, ticks.next()),
            (Some(_), _) => std::mem::replace(&mut event, events.next()),
            (None, _) => std::mem::replace(&mut tick, ticks.next()),
        })
        .take_while(move |(at, _)| *at < length)
    }
}

/// When the one of this number is due; nothing ever is where there is no rate.
fn due(number: u64, rate: f64) -> Option<Duration> {
    (rate > 0.0).then(|| Duration::from_secs_f64(number as f64 / rate))
}

/// The assessment of this number.
#[must_use]
pub fn assessment(number: u32) -> String {
    format!("load-{number}")
}

/// The number of an assessment, where it is one of these.
#[must_use]
pub fn assessment_number(name: &[u8]) -> Option<u32> {
    std::str::from_utf8(name.strip_prefix(b"load-")?).ok()?.parse().ok()
}

/// The market of this number.
#[must_use]
pub fn market(number: u32) -> String {
    format!("load-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load =
        Load { clients: 7, assessments: 3, rate: 10.0, burst: 1, markets: 2, market_rate: 4.0, size: 300 };

    #[test]
    fn events_and_ticks_are_due_by_the_clock_in_order_and_in_turns() {
        let due: Vec<_> = LOAD.schedule(Duration::from_millis(500)).map(|(at, what)| (at.as_millis(), what)).collect();
        let expected = [
            (0, DueItem::Event(0)),
            (0, DueItem::Tick(0)),
            (100, DueItem::Event(1)),
            (200, DueItem::Event(2)),
            (250, DueItem::Tick(1)),
            (300, DueItem::Event(0)),
            (400, DueItem::Event(1)),
        ];
        assert_eq!(due, expected, "what is due at the end itself is not within");
    }

    #[test]
    fn a_burst_is_due_at_once_and_the_rate_stays() {
        let load = Load { burst: 5, market_rate: 0.0, ..LOAD };
        let due: Vec<_> = load.schedule(Duration::from_secs(10)).collect();
        assert_eq!(due.len(), 100, "ten a second");
        for (slot, burst) in due.chunks(5).enumerate() {
            let at = Duration::from_millis(500 * slot as u64);
            assert!(burst.iter().all(|due| *due == (at, DueItem::Event(slot as u32 % 3))), "{burst:?}");
        }
    }

    #[test]
    fn no_rate_is_no_schedule() {
        let idle = Load { rate: 0.0, market_rate: 0.0, ..LOAD };
        assert_eq!(idle.schedule(Duration::from_secs(1_000_000)).count(), 0);
        let ticks = Load { rate: 0.0, ..LOAD };
        assert_eq!(ticks.schedule(Duration::from_secs(1)).count(), 4);
    }

    #[test]
    fn each_client_watches_one_assessment_and_the_watchers_add_up() {
        let watched: Vec<u32> = (0..LOAD.clients).map(|client| LOAD.watched_by(client)).collect();
        for number in 0..LOAD.assessments {
            let watchers = watched.iter().filter(|watched| **watched == number).count();
            assert_eq!(watchers, LOAD.watchers(number) as usize, "{watched:?}");
        }
        let more = Load { clients: 2, assessments: 5, ..LOAD };
        assert_eq!((0..5).map(|number| more.watchers(number)).collect::<Vec<_>>(), [1, 1, 0, 0, 0]);
        assert_eq!(assessment_number(assessment(12).as_bytes()), Some(12));
        assert_eq!(assessment_number(b"another"), None);
    }
}
