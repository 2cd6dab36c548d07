//! librdkafka's consumer, which reads the partitions that it is assigned. It decides nothing: the reader's rules say
//! which partitions it reads, and from where. Queries go through another client, [`super::metadata_client`].
//!
//! It takes records with `rd_kafka_consume_batch_queue`, which rdkafka's safe API doesn't have: a record then costs
//! this thread 174 ns, measured, instead of 334 ns with `poll`.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::thread;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaMessage, RDKafkaRespErr, RDKafkaTopic};

use crate::config::{KafkaConfig, client_properties};
use crate::ids::TopicIndex;
use crate::limits::CONSUME_RECORDS_MAX;
use crate::routing::table::Topic;
use crate::stream::batch::Origin;

use super::batcher::{ConsumedRecord, Headers};
use super::client::{Context, InvalidProperties, KafkaClient, client, millis};
use super::unpacking::allow_records_of;

/// Reads the partitions that it is assigned. It stays on the thread that made it.
pub(super) struct Consumer {
    messages: Vec<*mut RDKafkaMessage>,
    queue: NotifiedQueue,
    /// By name. librdkafka has one handle for a name, even if a topic is deleted and another one created under it.
    handles: HashMap<Box<str>, TopicHandle>,
    /// By a handle's number: the topic that has the handle's name now.
    indexes: Vec<TopicIndex>,
    /// Numbers of handles that were given back.
    free_numbers: Vec<usize>,
    #[cfg(test)]
    stuck: super::stuck::Stuck,
    client: KafkaClient,
}

// SAFETY: the pointers are librdkafka's, whose functions may be called from any thread; between two calls of `fetch`
// there is no message among them. It is moved to another thread only to be dropped there.
unsafe impl Send for Consumer {}

/// A queue of librdkafka: the consumer's, which receives the records, errors and log lines of all partitions, or that
/// of one query.
pub(super) struct Queue(pub(super) NonNull<sys::rd_kafka_queue_t>);

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it was handed to us, once, and its client is dropped after it.
        unsafe { sys::rd_kafka_queue_destroy(self.0.as_ptr()) }
    }
}

/// A queue with an eventfd, which librdkafka signals when the empty queue receives something.
struct NotifiedQueue {
    queue: Queue,
    eventfd: OwnedFd,
}

impl NotifiedQueue {
    /// # Errors
    /// If the system has no descriptor for the eventfd.
    fn new(queue: Queue) -> io::Result<Self> {
        // SAFETY: the call takes no memory of ours.
        let eventfd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if eventfd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and has no other owner.
        let eventfd = unsafe { OwnedFd::from_raw_fd(eventfd) };
        let one = 1_u64;
        // SAFETY: the queue is alive, and the number is copied. The descriptor is taken back before it is closed.
        unsafe {
            let payload = ptr::from_ref(&one).cast();
            sys::rd_kafka_queue_io_event_enable(queue.0.as_ptr(), eventfd.as_raw_fd(), payload, size_of_val(&one));
        }
        Ok(Self { queue, eventfd })
    }

    /// Waits for the eventfd's signal; returns whether it came. The signal may be for something that was taken already.
    fn wait(&self, wait: Duration) -> bool {
        let mut poll = libc::pollfd { fd: self.eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer is of one live struct of the type that poll takes.
        let is_signalled = unsafe { libc::poll(&raw mut poll, 1, millis(wait)) } > 0;
        if is_signalled {
            let mut count = 0_u64;
            // SAFETY: the pointer and the length are of a live number, as long as an eventfd's count is.
            unsafe { libc::read(self.eventfd.as_raw_fd(), (&raw mut count).cast(), size_of_val(&count)) };
        }
        is_signalled
    }
}

impl Drop for NotifiedQueue {
    fn drop(&mut self) {
        // SAFETY: the queue is alive. Its client lives on for a while, and must not signal another file that gets this
        // descriptor's number.
        unsafe { sys::rd_kafka_queue_io_event_enable(self.queue.0.as_ptr(), -1, ptr::null(), 0) }
    }
}

/// A topic's handle, to which each of its messages points. Its opaque value in librdkafka is `number` plus one.
struct TopicHandle {
    handle: NonNull<RDKafkaTopic>,
    number: usize,
}

impl Drop for TopicHandle {
    fn drop(&mut self) {
        // SAFETY: it was handed to us, once, by `rd_kafka_topic_new`, and its client is dropped after it.
        unsafe { sys::rd_kafka_topic_destroy(self.handle.as_ptr()) }
    }
}

/// What the consumer's queue holds.
#[derive(Debug)]
pub(super) enum ConsumerEvent<'a> {
    /// A record.
    Record(ConsumedRecord<'a>),
    /// The partition is read to its end, which is at this offset. Reported again each time the end was reached anew.
    End { topic: TopicIndex, partition: i32, offset: i64 },
    /// The next offset is out of range. Reading stopped until [`Consumer::restart`].
    OutOfRange { topic: TopicIndex, partition: i32 },
    /// A fetch failed. librdkafka retries. If a batch could not be unpacked, the offset is where it begins.
    Failed { topic: Option<TopicIndex>, partition: i32, offset: i64, failure: FetchFailure, error: String },
}

/// What a failed fetch means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FetchFailure {
    /// The broker does not know the topic or the partition.
    Gone,
    /// The pod's user may not read it. This is logged once.
    Refused,
    /// A batch can't be unpacked, or is over the bounds. librdkafka fetches it again and again.
    NotUnpacked,
    /// Anything else.
    Other,
}

/// Where reading of a partition begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadFrom<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// The leader epoch of the last record before it, if known. librdkafka then checks that the leader still has that
    /// record.
    pub(super) epoch: Option<i32>,
}

impl Consumer {
    /// Creates the consumer. It connects to no broker before partitions are assigned.
    ///
    /// # Errors
    /// If librdkafka refuses the properties.
    pub(super) fn new(config: &KafkaConfig) -> Result<Self, InvalidProperties> {
        let client = client(&client_properties(config), Context::new(true, config.oidc.clone()))?;
        allow_records_of(config.event_bytes_max);
        // SAFETY: the client is alive and a consumer. Its main queue, with log lines and errors, is served with the
        // rest.
        let queue = unsafe {
            sys::rd_kafka_poll_set_consumer(client.native_ptr());
            sys::rd_kafka_queue_get_consumer(client.native_ptr())
        };
        let queue = Queue(NonNull::new(queue).ok_or_else(|| InvalidProperties::Property("group.id".into()))?);
        let queue = NotifiedQueue::new(queue)?;
        Ok(Self {
            messages: Vec::with_capacity(CONSUME_RECORDS_MAX),
            queue,
            handles: HashMap::new(),
            indexes: Vec::new(),
            free_numbers: Vec::new(),
            #[cfg(test)]
            stuck: super::stuck::Stuck::of(&config.client_id),
            client,
        })
    }

    /// Registers a topic, so that its messages map to its index. Call this before its first partition is assigned. If
    /// an earlier topic had the same name, drop that topic's partitions first: none of its messages arrives after that.
    ///
    /// # Errors
    /// If librdkafka refuses the name.
    pub(super) fn add_topic(&mut self, topic: &Topic) -> Result<(), KafkaError> {
        if let Some(known) = self.handles.get(&topic.name) {
            self.indexes[known.number] = topic.index;
            return Ok(());
        }
        let name = CString::new(&*topic.name)?;
        let number = self.free_numbers.pop().unwrap_or(self.indexes.len());
        // SAFETY: the client is alive; the configuration is a copy that `rd_kafka_topic_new` takes over. The opaque is
        // a number that is never followed as a pointer.
        let handle = unsafe {
            let settings = sys::rd_kafka_default_topic_conf_dup(self.client.native_ptr());
            sys::rd_kafka_topic_conf_set_opaque(settings, ptr::without_provenance_mut(number + 1));
            sys::rd_kafka_topic_new(self.client.native_ptr(), name.as_ptr(), settings)
        };
        let handle = NonNull::new(handle).ok_or_else(|| KafkaError::ClientCreation("no handle for a topic".into()))?;
        self.handles.insert(topic.name.clone(), TopicHandle { handle, number });
        self.indexes.resize(self.indexes.len().max(number + 1), TopicIndex::NONE);
        self.indexes[number] = topic.index;
        Ok(())
    }

    /// Forgets a topic that is no longer read, unless another topic has its name now.
    pub(super) fn forget_topic(&mut self, topic: &Topic) {
        if self.handles.get(&topic.name).is_some_and(|handle| self.indexes[handle.number] == topic.index)
            && let Some(handle) = self.handles.remove(&topic.name)
        {
            self.indexes[handle.number] = TopicIndex::NONE;
            self.free_numbers.push(handle.number);
        }
    }

    /// Starts to read these partitions, each from its offset, in addition to those assigned before.
    ///
    /// # Errors
    /// If librdkafka refuses.
    pub(super) fn assign<'a>(&self, partitions: impl IntoIterator<Item = ReadFrom<'a>>) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for ReadFrom { topic, partition, offset, epoch } in partitions {
            list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
            if let Some(epoch) = epoch {
                // SAFETY: the list is alive, and the partition is its last element, since it was just added.
                unsafe {
                    let list = &*list.ptr();
                    let last = list.elems.add(usize::try_from(list.cnt - 1).expect("it has an element"));
                    sys::rd_kafka_topic_partition_set_leader_epoch(last, epoch);
                }
            }
        }
        self.incremental_assign(&list)
    }

    /// Stops reading these partitions. Records of them that librdkafka has fetched already are discarded.
    ///
    /// # Errors
    /// If librdkafka refuses.
    pub(super) fn drop_partitions(
        &self,
        topic: &str,
        partitions: impl IntoIterator<Item = i32>,
    ) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(topic, partition);
        }
        // SAFETY: the client and the list are alive.
        check(unsafe { sys::rd_kafka_incremental_unassign(self.client.native_ptr(), list.ptr()) })
    }

    /// Restarts a partition at this offset, after [`ConsumerEvent::OutOfRange`].
    ///
    /// # Errors
    /// If librdkafka refuses.
    pub(super) fn restart(&self, topic: &str, partition: i32, offset: i64) -> Result<(), KafkaError> {
        // Seeking fails: librdkafka does not fetch a partition that is out of range.
        self.drop_partitions(topic, [partition])?;
        self.assign([ReadFrom { topic, partition, offset, epoch: None }])
    }

    fn incremental_assign(&self, list: &TopicPartitionList) -> Result<(), KafkaError> {
        // SAFETY: the client and the list are alive.
        check(unsafe { sys::rd_kafka_incremental_assign(self.client.native_ptr(), list.ptr()) })
    }

    /// Number of messages and other events in the queue. Takes the queue's lock.
    pub(super) fn queue_len(&self) -> usize {
        // SAFETY: the queue is alive.
        unsafe { sys::rd_kafka_queue_length(self.queue.queue.0.as_ptr()) }
    }

    /// Takes all that the queue has, up to [`CONSUME_RECORDS_MAX`]; waits for it if the queue is empty.
    pub(super) fn fetch(&mut self, wait: Duration) -> Fetched<'_> {
        #[cfg(test)]
        if self.stuck.gives_nothing() {
            thread::sleep(wait);
            return Fetched { messages: &mut self.messages, indexes: &self.indexes };
        }
        self.take_queued();
        if self.messages.is_empty() && self.queue.wait(wait) {
            // librdkafka's thread signals while it holds the queue's lock, with a part of its broker's answer still to
            // add. If we have just taken the core from it, it gets the core back here, adds the rest, and sends its
            // next fetch before we begin.
            thread::yield_now();
            self.take_queued();
        }
        Fetched { messages: &mut self.messages, indexes: &self.indexes }
    }

    fn take_queued(&mut self) {
        let room = self.messages.spare_capacity_mut();
        // SAFETY: the queue is alive, and there is room for `room.len()` pointers.
        let count = unsafe {
            sys::rd_kafka_consume_batch_queue(self.queue.queue.0.as_ptr(), 0, room.as_mut_ptr().cast(), room.len())
        };
        // SAFETY: librdkafka wrote this many; a negative count is an error, and then it wrote none.
        unsafe { self.messages.set_len(self.messages.len() + usize::try_from(count).unwrap_or(0)) }
    }
}

/// The result of one fetch. When it is dropped, its messages are returned to librdkafka.
pub(super) struct Fetched<'a> {
    messages: &'a mut Vec<*mut RDKafkaMessage>,
    indexes: &'a [TopicIndex],
}

impl Fetched<'_> {
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether the fetch took the most that it may: most likely the queue has more.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= CONSUME_RECORDS_MAX
    }

    /// The events, in the order in which they arrived.
    pub(super) fn iter(&self) -> impl Iterator<Item = ConsumerEvent<'_>> {
        // SAFETY: each pointer is a message that librdkafka handed us, and none is given back before `self` is dropped.
        self.messages.iter().map(|&message| unsafe { read(&*message, self.indexes) })
    }
}

impl Drop for Fetched<'_> {
    fn drop(&mut self) {
        for message in self.messages.drain(..) {
            // SAFETY: it was handed to us, once, and nothing borrows from it any more.
            unsafe { sys::rd_kafka_message_destroy(message) }
        }
    }
}

/// Reads a message without copying it.
///
/// # Safety
/// `message` must be one that librdkafka handed out and that was not given back.
unsafe fn read<'a>(message: &'a RDKafkaMessage, indexes: &[TopicIndex]) -> ConsumerEvent<'a> {
    let partition = message.partition;
    let topic = NonNull::new(message.rkt).and_then(|handle| {
        // SAFETY: a message keeps its topic's handle alive.
        let opaque = unsafe { sys::rd_kafka_topic_opaque(handle.as_ptr()) };
        indexes.get(opaque.addr().checked_sub(1)?).copied()
    });
    match (message.err, topic) {
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, Some(topic)) => {
            // SAFETY: the message is alive; the timestamp's type is not asked for.
            let timestamp_ms = unsafe { sys::rd_kafka_message_timestamp(message, ptr::null_mut()) };
            // SAFETY: librdkafka keeps key and payload for as long as the message is not given back.
            let (key, payload) = unsafe { (bytes(message.key, message.key_len), bytes(message.payload, message.len)) };
            // SAFETY: the message is alive, and of a consumer.
            let epoch = unsafe { sys::rd_kafka_message_leader_epoch(message) };
            let origin = Origin { topic, partition, offset: message.offset };
            ConsumerEvent::Record(ConsumedRecord {
                origin,
                timestamp_ms,
                epoch,
                key,
                payload,
                headers: Message::of(message),
            })
        }
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF, Some(topic)) => {
            ConsumerEvent::End { topic, partition, offset: message.offset }
        }
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET, Some(topic)) => {
            ConsumerEvent::OutOfRange { topic, partition }
        }
        (code, _) => {
            let failure = match code {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID => FetchFailure::Gone,
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED => FetchFailure::Refused,
                RDKafkaRespErr::RD_KAFKA_RESP_ERR__BAD_COMPRESSION
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED => FetchFailure::NotUnpacked,
                _ => FetchFailure::Other,
            };
            // SAFETY: the message is alive; the string is its own, or a constant.
            let error = unsafe { CStr::from_ptr(sys::rd_kafka_message_errstr(message)) };
            let error = error.to_string_lossy().into_owned();
            ConsumerEvent::Failed { topic, partition, offset: message.offset, failure, error }
        }
    }
}

/// A message that librdkafka handed out, whose headers are read on demand: it has parsed none before.
#[repr(transparent)]
#[derive(Debug)]
struct Message(RDKafkaMessage);

impl Message {
    fn of(message: &RDKafkaMessage) -> &Self {
        // SAFETY: both have one layout, and the reference lives as long.
        unsafe { &*ptr::from_ref(message).cast::<Self>() }
    }
}

impl Headers for Message {
    fn last(&self, name: &str) -> Option<&[u8]> {
        let name = CString::new(name).ok()?;
        let (mut headers, mut value, mut len) = (ptr::null_mut(), ptr::null(), 0);
        // SAFETY: the message is alive, and keeps its headers. The pointers are written before they are used, as the
        // codes say.
        unsafe {
            if sys::rd_kafka_message_headers(&raw const self.0, &raw mut headers)
                != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
            {
                return None;
            }
            let found = sys::rd_kafka_header_get_last(headers, name.as_ptr(), &raw mut value, &raw mut len);
            if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return None;
            }
            bytes(value.cast_mut(), len)
        }
    }
}

/// The bytes of a message's key or payload, `None` for a null.
///
/// # Safety
/// `start` must be null or point to `len` bytes that live for `'a`.
unsafe fn bytes<'a>(start: *mut c_void, len: usize) -> Option<&'a [u8]> {
    let start = NonNull::new(start)?;
    // SAFETY: as the caller promised.
    Some(unsafe { slice::from_raw_parts(start.as_ptr().cast(), len) })
}

/// Converts librdkafka's error object, if there is one, into our error, and destroys the object.
fn check(error: *mut sys::rd_kafka_error_t) -> Result<(), KafkaError> {
    let Some(error) = NonNull::new(error) else { return Ok(()) };
    // SAFETY: the object is ours until it is destroyed, and its string is copied before.
    let text = unsafe {
        let text = CStr::from_ptr(sys::rd_kafka_error_string(error.as_ptr())).to_string_lossy().into_owned();
        sys::rd_kafka_error_destroy(error.as_ptr());
        text
    };
    Err(KafkaError::Subscription(text))
}
