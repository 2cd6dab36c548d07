//! Consumes with librdkafka at its fastest: in batches, by the call that rdkafka's safe API lacks, with properties that
//! avoid idle time between fetches. A gateway may fetch less often and use less CPU.

use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rdkafka::bindings as sys;
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::types::{RDKafkaMessage, RDKafkaRespErr, RDKafkaType};
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka::client_config;

/// Records per batch.
const BATCH: usize = 1024;

/// Time limit for an answer of the brokers.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Interval in ms at which an idle reader checks whether to end.
const POLL_MS: i32 = 100;

/// Start position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// The end of each partition.
    Ends,
    /// The beginning of each partition, with events at the ends.
    Beginnings,
}

/// Reads whole topics.
pub(super) struct TopicReader {
    queue: NonNull<sys::rd_kafka_queue_t>,
    messages: Vec<*mut RDKafkaMessage>,
    partitions: usize,
    /// Dropped after the queue.
    _client: Client<DefaultClientContext>,
}

impl TopicReader {
    /// Assigns all partitions of these topics.
    pub(super) fn new(brokers: &str, topics: &[String], from: From) -> Result<Self> {
        let mut config = client_config(brokers);
        config
            .set("group.id", "loadtest-floor")
            .set("enable.auto.commit", "false")
            .set("socket.nagle.disable", "true")
            .set("fetch.wait.max.ms", "100")
            .set("fetch.queue.backoff.ms", "10")
            .set("queued.max.messages.kbytes", "8192")
            .set("queued.min.messages", "20000")
            .set("fetch.max.bytes", "2097152")
            .set("enable.partition.eof", if from == From::Beginnings { "true" } else { "false" });
        let native = config.create_native_config().context("good properties")?;
        let client = Client::new(&config, native, RDKafkaType::RD_KAFKA_CONSUMER, DefaultClientContext)
            .context("a consumer needs no connection")?;
        let mut starts = TopicPartitionList::new();
        for topic in topics {
            let metadata = client.fetch_metadata(Some(topic), ANSWER_WITHIN).context("the topic's metadata")?;
            let partitions = metadata.topics().first().with_context(|| format!("no topic {topic}"))?.partitions();
            for partition in partitions {
                let marks = client.fetch_watermarks(topic, partition.id(), ANSWER_WITHIN).context("an end")?;
                let start = if from == From::Ends { marks.1 } else { marks.0 };
                starts.add_partition_offset(topic, partition.id(), Offset::Offset(start)).context("an offset")?;
            }
        }
        // SAFETY: the client is alive.
        unsafe { sys::rd_kafka_poll_set_consumer(client.native_ptr()) };
        // SAFETY: the client is alive, and is a consumer.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(client.native_ptr()) };
        let queue = NonNull::new(queue).context("a consumer has a queue")?;
        // SAFETY: the client and the list are alive.
        let assigned = unsafe { sys::rd_kafka_assign(client.native_ptr(), starts.ptr()) };
        if assigned != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            bail!("librdkafka refused the assignment: {assigned:?}");
        }
        let partitions = starts.count();
        Ok(Self { queue, messages: Vec::with_capacity(BATCH), partitions, _client: client })
    }

    /// Calls `each` for every record until `ended`, with whether it is a tick, its key and its payload.
    pub(super) fn each_until(&mut self, ended: &AtomicBool, mut each: impl FnMut(bool, &[u8], &[u8])) {
        while !ended.load(Ordering::Relaxed) {
            self.fetch();
            for message in self.messages.drain(..) {
                // SAFETY: librdkafka returned the message, and it is destroyed below.
                let (error, key, payload) = unsafe {
                    let message = &*message;
                    (message.err, bytes(message.key, message.key_len), bytes(message.payload, message.len))
                };
                if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                    each(payload.starts_with(br#"{"type":"market_price""#), key, payload);
                }
                // SAFETY: the message was returned once, and nothing borrows from it any more.
                unsafe { sys::rd_kafka_message_destroy(message) }
            }
        }
    }

    /// Reads every partition to its end and discards the records. Returns their number. The reader must have started at
    /// the beginnings.
    pub(super) fn read_to_the_ends(&mut self) -> u64 {
        let (mut records, mut ended) = (0, BTreeSet::new());
        while ended.len() < self.partitions {
            self.fetch();
            for message in self.messages.drain(..) {
                // SAFETY: librdkafka returned the message, and it is destroyed below.
                let (error, topic, partition) = unsafe { ((*message).err, (*message).rkt, (*message).partition) };
                match error {
                    RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => records += 1,
                    RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                        ended.insert((topic, partition));
                    }
                    // librdkafka retries.
                    _ => {}
                }
                // SAFETY: the message was returned once.
                unsafe { sys::rd_kafka_message_destroy(message) }
            }
        }
        records
    }

    /// Takes the available records. If there are none, waits for one.
    fn fetch(&mut self) {
        self.take_available();
        if self.messages.is_empty() {
            // SAFETY: the queue is alive.
            let first = unsafe { sys::rd_kafka_consume_queue(self.queue.as_ptr(), POLL_MS) };
            if !first.is_null() {
                self.messages.push(first);
                self.take_available();
            }
        }
    }

    fn take_available(&mut self) {
        let room = self.messages.spare_capacity_mut();
        // SAFETY: the queue is alive, and there is room for as many pointers as requested.
        let count =
            unsafe { sys::rd_kafka_consume_batch_queue(self.queue.as_ptr(), 0, room.as_mut_ptr().cast(), room.len()) };
        // SAFETY: librdkafka wrote this many. A negative count is an error, after which it wrote none.
        unsafe { self.messages.set_len(self.messages.len() + usize::try_from(count).unwrap_or(0)) }
    }
}

impl Drop for TopicReader {
    fn drop(&mut self) {
        // SAFETY: the queue was returned once, and its client is dropped after it.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

/// The bytes of a record's key or payload; empty for null.
///
/// # Safety
/// The pointer must be null, or point to `len` bytes that stay valid while the caller uses them.
unsafe fn bytes<'a>(start: *const std::ffi::c_void, len: usize) -> &'a [u8] {
    if start.is_null() {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(start.cast(), len) }
}
