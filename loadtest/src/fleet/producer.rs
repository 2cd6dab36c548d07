//! The producer: a thread that makes each record when it is due, whatever became of those before.

use std::collections::HashMap;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::payload::{key, now_us, record, topic, us};
use super::schedule::{DueItem, Load};
use super::statistics::Latencies;
use crate::events::Producer;

/// What was made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Produced {
    /// Events.
    pub events: u64,
    /// Ticks.
    pub ticks: u64,
    /// The events that are due to clients: of each as many as watch it.
    pub event_deliveries: u64,
    /// From a record's due time until it was handed to librdkafka. The due time is what latencies begin at.
    pub lateness: Latencies,
}

/// Makes what the load says for so long, in a thread of its own.
///
/// # Panics
/// Its thread does, where the brokers don't take what it makes.
#[must_use]
pub fn start(brokers: String, load: Load, length: Duration) -> JoinHandle<Produced> {
    thread::spawn(move || {
        // A record waits for no other: what batches there are come of what is due together.
        let producer = Producer::with(&brokers, &[("linger.ms", "0")]);
        let made = make(&load, length, |topic, key, payload| producer.send(topic, Some(key), Some(payload)));
        producer.flush();
        made
    })
}

fn make(load: &Load, length: Duration, mut send: impl FnMut(&str, &str, &[u8])) -> Produced {
    let (start, start_us) = (Instant::now(), now_us());
    let mut names: HashMap<(bool, u32), (String, String)> = HashMap::new();
    let (mut made, mut payload) = (Produced::default(), Vec::new());
    for (due, what) in load.schedule(length) {
        if let Some(early) = due.checked_sub(start.elapsed()) {
            // A pace, not a wait for something.
            thread::sleep(early);
        }
        let id = match what {
            DueItem::Event(number) => (false, number),
            DueItem::Tick(number) => (true, number),
        };
        let (topic, key) = names.entry(id).or_insert_with(|| (topic(what), key(what)));
        record(&mut payload, what, start_us + us(due), load.size);
        send(topic, key, &payload);
        made.lateness.record(us(start.elapsed().saturating_sub(due)));
        made.count(load, what);
    }
    made
}

/// What a schedule comes to, where it is not a producer of this process that keeps it.
#[must_use]
pub fn of_schedule(load: &Load, length: Duration) -> Produced {
    let mut made = Produced::default();
    load.schedule(length).for_each(|(_, what)| made.count(load, what));
    made
}

impl Produced {
    fn count(&mut self, load: &Load, what: DueItem) {
        match what {
            DueItem::Event(number) => {
                self.events += 1;
                self.event_deliveries += u64::from(load.watchers(number));
            }
            DueItem::Tick(_) => self.ticks += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::payload::due_of;

    #[test]
    fn a_producer_that_was_held_up_says_so_and_moves_no_due_time() {
        let load = Load { clients: 10, assessments: 4, rate: 100.0, burst: 1, markets: 1, market_rate: 0.0, size: 300 };
        let (mut due, hold_up) = (Vec::new(), Duration::from_millis(50));
        let made = make(&load, Duration::from_millis(100), |_, _, payload| {
            if due.is_empty() {
                let held = Instant::now();
                while held.elapsed() < hold_up {
                    std::hint::spin_loop();
                }
            }
            due.push(due_of(payload).unwrap());
        });
        assert_eq!((made.events, made.ticks), (10, 0));
        // Ten events of four assessments in turn, of which two have three watchers and two have two.
        assert_eq!(made.event_deliveries, 3 * 3 + 3 * 3 + 2 * 2 + 2 * 2);
        let steps: Vec<_> = due.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.iter().all(|step| *step == 10_000), "{steps:?}");
        assert!(made.lateness.percentiles().unwrap().max_ms >= 49.0, "{:?}", made.lateness.percentiles());
    }
}
