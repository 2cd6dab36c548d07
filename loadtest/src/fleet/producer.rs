//! The producer: a thread that sends each record when it is due, whatever happened to earlier ones.

use std::collections::HashMap;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::payload::{key, now_us, record, topic, us};
use super::schedule::{DueItem, Load};
use super::statistics::Latencies;
use crate::events::Producer;

/// Numbers of a producer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Produced {
    /// Events produced.
    pub events: u64,
    /// Ticks produced.
    pub ticks: u64,
    /// Deliveries due: for each event, one per subscriber.
    pub event_deliveries: u64,
    /// Time from a record's due time until it was passed to librdkafka. Latencies begin at the due time.
    pub lateness: Latencies,
}

/// Produces the load for this time, in a new thread.
///
/// # Panics
/// The thread panics if the brokers don't accept the records.
#[must_use]
pub fn start(brokers: String, load: Load, length: Duration) -> JoinHandle<Produced> {
    thread::spawn(move || {
        // No record waits for another. Only records due at the same time form a batch.
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
            // A fixed time. It does not wait for an event.
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

/// Numbers of a schedule that a loop in another process carries out.
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
                self.event_deliveries += u64::from(load.subscribers(number));
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
    fn a_delayed_producer_reports_its_lateness_and_keeps_due_times() {
        let load = Load { clients: 10, assessments: 4, rate: 100.0, burst: 1, markets: 1, market_rate: 0.0, size: 300 };
        let (mut due, delay) = (Vec::new(), Duration::from_millis(50));
        let made = make(&load, Duration::from_millis(100), |_, _, payload| {
            if due.is_empty() {
                let held = Instant::now();
                while held.elapsed() < delay {
                    std::hint::spin_loop();
                }
            }
            due.push(due_of(payload).unwrap());
        });
        assert_eq!((made.events, made.ticks), (10, 0));
        // Ten events of four assessments in turn, of which two have three subscribers and two have two.
        assert_eq!(made.event_deliveries, 3 * 3 + 3 * 3 + 2 * 2 + 2 * 2);
        let steps: Vec<_> = due.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.iter().all(|step| *step == 10_000), "{steps:?}");
        assert!(made.lateness.percentiles().unwrap().max_ms >= 49.0, "{:?}", made.lateness.percentiles());
    }
}
