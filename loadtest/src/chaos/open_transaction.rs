//! A transaction of somebody else's that stays open: readers of committed records wait behind it on every partition. In
//! the end it is aborted, so nobody may see its records.

use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::producer::{COMPACTED, event};
use crate::events;
use crate::kafka::client_config;

/// Each step of a transaction takes at most so long. Where brokers are away for longer, there is none.
const STEP_WITHIN: Duration = Duration::from_secs(5);

/// An abort that brokers don't answer is tried so often: until they are back.
const ABORTS_MAX: u32 = 12;

/// What is not aborted by us, since the brokers were away, they abort after this time themselves.
const TIMEOUT_MS: &str = "20000";

/// A number that no event of the run reaches: whoever sees one of these sees what was aborted.
const NUMBER: u64 = 1_000_000_000;

/// Makes such transactions.
pub(super) struct OpenTransaction {
    bootstrap: String,
    assessments: u32,
}

impl OpenTransaction {
    /// For the events of so many assessments.
    pub(super) fn new(bootstrap: &str, assessments: u32) -> Self {
        Self { bootstrap: bootstrap.to_owned(), assessments }
    }

    /// Has one open for this time.
    pub(super) fn stays_open_for(&self, time: Duration) {
        let mut config = client_config(&self.bootstrap);
        config.set("transactional.id", "chaos-open").set("transaction.timeout.ms", TIMEOUT_MS);
        config.set("partitioner", "murmur2_random");
        let producer: BaseProducer = config.create().expect("good properties");
        let begun = producer.init_transactions(STEP_WITHIN).and_then(|()| producer.begin_transaction());
        if begun.is_err() {
            return std::thread::sleep(time);
        }
        for assessment in 0..self.assessments {
            // What it leaves in a compacted log looks like a gap.
            for (topic, _) in (0..).zip(events::Kind::ALL).filter(|(topic, _)| *topic != COMPACTED) {
                let event = event(assessment, topic, NUMBER);
                // A queue that is full has records enough.
                let _ = producer.send(BaseRecord::to(&event.topic).key(&event.key).payload(&event.payload));
            }
        }
        let _ = producer.flush(STEP_WITHIN);
        std::thread::sleep(time);
        for _ in 0..ABORTS_MAX {
            match producer.abort_transaction(STEP_WITHIN) {
                Err(KafkaError::Transaction(error)) if error.is_retriable() => {}
                _ => break,
            }
        }
    }
}
