//! Records as they come from librdkafka at its fastest: in batches, by the call that rdkafka's safe API doesn't have,
//! with properties that let no broker wait for the next question. A gateway may ask less often, and so use less.

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

/// Records that are taken at a time.
const BATCH: usize = 1024;

/// The brokers answer within this time.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Between two looks at whether it is to end, where nothing comes, in ms.
const LOOK_EVERY_MS: i32 = 100;

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// At what comes next.
    Ends,
    /// At all that there is; the ends are told of.
    Beginnings,
}

/// Reads whole topics.
pub(super) struct TopicReader {
    queue: NonNull<sys::rd_kafka_queue_t>,
    messages: Vec<*mut RDKafkaMessage>,
    partitions: usize,
    /// Kept for its end, after the queue's.
    _client: Client<DefaultClientContext>,
}

impl TopicReader {
    /// Stands at the ends of these topics, or at their beginnings.
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
            bail!("librdkafka takes no assignment: {assigned:?}");
        }
        let partitions = starts.count();
        Ok(Self { queue, messages: Vec::with_capacity(BATCH), partitions, _client: client })
    }

    /// Hands over each record that comes until it is to end: whether it is a tick, its key and its payload.
    pub(super) fn each_until(&mut self, ended: &AtomicBool, mut each: impl FnMut(bool, &[u8], &[u8])) {
        while !ended.load(Ordering::Relaxed) {
            self.fetch();
            for message in self.messages.drain(..) {
                // SAFETY: librdkafka handed it to us, and it is given back below.
                let (error, key, payload) = unsafe {
                    let message = &*message;
                    (message.err, bytes(message.key, message.key_len), bytes(message.payload, message.len))
                };
                if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                    each(payload.starts_with(br#"{"type":"market_price""#), key, payload);
                }
                // SAFETY: it was handed to us, once, and nothing borrows from it any more.
                unsafe { sys::rd_kafka_message_destroy(message) }
            }
        }
    }

    /// Takes each record up to the end of each partition, and drops it. Returns how many there were. The reader must
    /// have begun at the beginnings.
    pub(super) fn read_to_the_ends(&mut self) -> u64 {
        let (mut records, mut ended) = (0, BTreeSet::new());
        while ended.len() < self.partitions {
            self.fetch();
            for message in self.messages.drain(..) {
                // SAFETY: librdkafka handed it to us, and it is given back below.
                let (error, topic, partition) = unsafe { ((*message).err, (*message).rkt, (*message).partition) };
                match error {
                    RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => records += 1,
                    RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                        ended.insert((topic, partition));
                    }
                    // It goes on trying.
                    _ => {}
                }
                // SAFETY: it was handed to us, once.
                unsafe { sys::rd_kafka_message_destroy(message) }
            }
        }
        records
    }

    /// Takes what is there; where nothing is, waits for one.
    fn fetch(&mut self) {
        self.take_what_is_there();
        if self.messages.is_empty() {
            // SAFETY: the queue is alive.
            let first = unsafe { sys::rd_kafka_consume_queue(self.queue.as_ptr(), LOOK_EVERY_MS) };
            if !first.is_null() {
                self.messages.push(first);
                self.take_what_is_there();
            }
        }
    }

    fn take_what_is_there(&mut self) {
        let room = self.messages.spare_capacity_mut();
        // SAFETY: the queue is alive, and there is room for as many pointers as are asked for.
        let count =
            unsafe { sys::rd_kafka_consume_batch_queue(self.queue.as_ptr(), 0, room.as_mut_ptr().cast(), room.len()) };
        // SAFETY: librdkafka wrote this many; a negative count is an error, and then it wrote none.
        unsafe { self.messages.set_len(self.messages.len() + usize::try_from(count).unwrap_or(0)) }
    }
}

impl Drop for TopicReader {
    fn drop(&mut self) {
        // SAFETY: it was handed to us, once, and its client is dropped after it.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

/// The bytes of a record's key or payload; of a null, none.
///
/// # Safety
/// The pointer must be null, or of so many bytes that stay for the caller's use of them.
unsafe fn bytes<'a>(start: *const std::ffi::c_void, len: usize) -> &'a [u8] {
    if start.is_null() {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(start.cast(), len) }
}
