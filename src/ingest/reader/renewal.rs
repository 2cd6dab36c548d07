//! How the client that reads is replaced: when, and what the new one begins with. The rule is
//! [`super::super::progress`]'s.

use std::mem;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tracing::{debug, warn};

use super::Reader;
use crate::ingest::kafka::Consumer;

impl Reader {
    /// Replaces the client that reads, where it makes no progress although there is something to read; and after an
    /// outage, of which nobody knows in what state it has left the client.
    pub(super) fn renew_where_needed(&mut self, now: Instant) {
        let desk = &mut self.desk;
        let returns = self.watcher.returns();
        if mem::replace(&mut self.returns, returns) != returns {
            if desk.reads_something() {
                debug!("reading by a new Kafka client, since the brokers came back");
                return self.renew(now);
            }
            desk.status.stuck.store(false, Ordering::Release);
        }
        let Some(stuck) = desk.progress.stuck(now) else { return };
        if stuck.is_whole && !desk.status.stuck.swap(true, Ordering::Release) {
            warn!("nothing comes from Kafka, although there is something to read: not ready");
        }
        if desk.progress.may_renew(now) {
            let first = desk.positions.all()[stuck.first];
            let (topic, partition, partitions) = (desk.name(Some(first.topic)), first.partition, stuck.partitions);
            let (next, waited) = (first.offset, stuck.longest);
            warn!(
                partitions,
                ?waited,
                topic,
                partition,
                next,
                "partitions give nothing, although their logs go on: reading by a new Kafka client"
            );
            self.renew(now);
        }
    }

    /// Reads on by a new client, from where the old one came to. What the old one holds besides is never taken.
    fn renew(&mut self, now: Instant) {
        if !self.ending.has_room() {
            return warn!("the Kafka clients that were replaced don't end; reading on by the last one");
        }
        match Consumer::new(&self.config) {
            Ok(consumer) => self.ending.end(mem::replace(&mut self.consumer, consumer)),
            Err(error) => return warn!(%error, "no new Kafka client; reading on by the last one"),
        }
        self.desk.read_on(&mut self.consumer, now);
    }
}
