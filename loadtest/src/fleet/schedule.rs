//! The open-loop schedule: the due time of each event. It depends on the clock only: a late gateway or producer moves
//! no due time. Latencies are measured from the due time, which each record carries. So a stall shows in every event
//! that was due during it, not only in the first (coordinated omission).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The load to send.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Number of clients. Each subscribes to one assessment.
    pub clients: u32,
    /// Number of assessments, which have events in turn.
    pub assessments: u32,
    /// Events per second, all assessments together.
    pub rate: f64,
    /// Number of events of one assessment that are due at once.
    pub burst: u32,
    /// Number of markets, which have ticks in turn.
    pub markets: u32,
    /// Ticks per second, all markets together. Each is due to every client.
    pub market_rate: f64,
    /// Length of an event's payload in bytes.
    pub size: usize,
}

/// An item that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DueItem {
    /// An event of the assessment with this number.
    Event(u32),
    /// A tick of the market with this number.
    Tick(u32),
}

impl Load {
    /// The assessment that a client subscribes to.
    #[must_use]
    pub fn assessment_of_client(&self, client: u32) -> u32 {
        client % self.assessments
    }

    /// Number of subscribers of an assessment.
    #[must_use]
    pub fn subscribers(&self, assessment: u32) -> u32 {
        self.clients / self.assessments + u32::from(assessment < self.clients % self.assessments)
    }

    /// The items due within a time, in order, with due times from the start.
    pub fn schedule(&self, length: Duration) -> impl Iterator<Item = (Duration, DueItem)> + use<> {
        let Self { assessments, rate, burst, markets, market_rate, .. } = *self;
        let mut events = (0_u64..).map_while(move |number| {
            let burst_number = number / u64::from(burst);
            let turn = u32::try_from(burst_number % u64::from(assessments)).expect("below a u32");
            Some((due(burst_number * u64::from(burst), rate)?, DueItem::Event(turn)))
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

/// Due time of the item with this number; `None` if the rate is zero.
fn due(number: u64, rate: f64) -> Option<Duration> {
    (rate > 0.0).then(|| Duration::from_secs_f64(number as f64 / rate))
}

/// The id of the assessment with this number.
#[must_use]
pub fn assessment(number: u32) -> String {
    format!("load-{number}")
}

/// The number of an assessment, if it belongs to the load.
#[must_use]
pub fn assessment_number(name: &[u8]) -> Option<u32> {
    std::str::from_utf8(name.strip_prefix(b"load-")?).ok()?.parse().ok()
}

/// The name of the market with this number.
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
        assert_eq!(due, expected, "an item due exactly at the end is excluded");
    }

    #[test]
    fn a_burst_is_due_at_once_and_the_rate_is_unchanged() {
        let load = Load { burst: 5, market_rate: 0.0, ..LOAD };
        let due: Vec<_> = load.schedule(Duration::from_secs(10)).collect();
        assert_eq!(due.len(), 100, "ten per second");
        for (burst_number, burst) in due.chunks(5).enumerate() {
            let at = Duration::from_millis(500 * burst_number as u64);
            assert!(burst.iter().all(|due| *due == (at, DueItem::Event(burst_number as u32 % 3))), "{burst:?}");
        }
    }

    #[test]
    fn a_rate_of_zero_has_no_schedule() {
        let idle = Load { rate: 0.0, market_rate: 0.0, ..LOAD };
        assert_eq!(idle.schedule(Duration::from_secs(1_000_000)).count(), 0);
        let ticks = Load { rate: 0.0, ..LOAD };
        assert_eq!(ticks.schedule(Duration::from_secs(1)).count(), 4);
    }

    #[test]
    fn each_client_subscribes_to_one_assessment() {
        let subscriptions: Vec<u32> = (0..LOAD.clients).map(|client| LOAD.assessment_of_client(client)).collect();
        for number in 0..LOAD.assessments {
            let subscribers = subscriptions.iter().filter(|subscriptions| **subscriptions == number).count();
            assert_eq!(subscribers, LOAD.subscribers(number) as usize, "{subscriptions:?}");
        }
        let more = Load { clients: 2, assessments: 5, ..LOAD };
        assert_eq!((0..5).map(|number| more.subscribers(number)).collect::<Vec<_>>(), [1, 1, 0, 0, 0]);
        assert_eq!(assessment_number(assessment(12).as_bytes()), Some(12));
        assert_eq!(assessment_number(b"another"), None);
    }
}
