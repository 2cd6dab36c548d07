//! A transaction of another producer that stays open: consumers of committed records wait behind it on every partition.
//! It is aborted in the end, so no client may receive its records.

use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::producer::{COMPACTED, event};
use crate::events;
use crate::kafka::client_config;

/// Time limit for each step of a transaction. If brokers are down for longer, there is no transaction.
const STEP_WITHIN: Duration = Duration::from_secs(5);

/// Attempts to abort until the brokers are back.
const ABORTS_MAX: u32 = 12;

/// If the abort fails because brokers are down, they abort it themselves after this time.
const TIMEOUT_MS: &str = "20000";

/// A number beyond all other events of the run: a client that receives it received an aborted record.
const NUMBER: u64 = 1_000_000_000;

/// Opens and aborts transactions.
pub(super) struct OpenTransaction {
    bootstrap: String,
    assessments: u32,
}

impl OpenTransaction {
    /// For this many assessments.
    pub(super) fn new(bootstrap: &str, assessments: u32) -> Self {
        Self { bootstrap: bootstrap.to_owned(), assessments }
    }

    /// Keeps a transaction open for this time.
    pub(super) fn hold_open_for(&self, time: Duration) {
        let mut config = client_config(&self.bootstrap);
        config.set("transactional.id", "chaos-open").set("transaction.timeout.ms", TIMEOUT_MS);
        config.set("partitioner", "murmur2_random");
        let producer: BaseProducer = config.create().expect("good properties");
        let begun = producer.init_transactions(STEP_WITHIN).and_then(|()| producer.begin_transaction());
        if begun.is_err() {
            return std::thread::sleep(time);
        }
        for assessment in 0..self.assessments {
            // Its marker in a compacted log would look like a gap.
            for (topic, _) in (0..).zip(events::Kind::ALL).filter(|(topic, _)| *topic != COMPACTED) {
                let event = event(assessment, topic, NUMBER);
                // A full queue holds enough records.
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
