//! Queries for topics, offsets and settings, and probes, by a librdkafka client of its own. [`super::watcher`] and the
//! rules judge the answers.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr::{self, NonNull};
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};

use crate::config::{KafkaConfig, client_properties};

use super::client::{Context, InvalidProperties, KafkaClient, client, millis};
use super::kafka::Queue;
use super::reachability::ProbeFailure;
use super::retention::{Retention, Settings};

/// Queries the cluster over its own connections: a query does not wait behind a fetch, and a query that times out does
/// not close a fetch's connection.
pub(super) struct MetadataClient {
    client: KafkaClient,
}

/// A partition that has a leader, by its topic's name.
pub(super) type Partition<'a> = (&'a str, i32);

/// A broker, by its number.
#[derive(Debug, Clone, Copy)]
pub(super) struct BrokerId(i32);

/// Which offset of a partition is queried.
#[derive(Debug, Clone, Copy)]
pub(super) enum OffsetQuery {
    /// That of the first record.
    Beginning,
    /// The first record with at least this timestamp, in Unix ms.
    Since(i64),
    /// The last stable offset: no open transaction lies below it.
    End,
}

/// An offset in a partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoundOffset {
    pub(super) offset: i64,
    /// Of an end: the epoch of the leader that answered, if the broker sends it.
    pub(super) leader_epoch: Option<i32>,
}

impl MetadataClient {
    /// Makes the client; it connects by itself.
    ///
    /// # Errors
    /// If librdkafka rejects the properties.
    pub(super) fn new(config: &KafkaConfig) -> Result<Self, InvalidProperties> {
        let mut properties = client_properties(config);
        // It has no group. With one it would look for the group's coordinator.
        properties.remove("group.id");
        Ok(Self { client: client(&properties, Context::new(false, config.oidc.clone()))? })
    }

    /// Serves the callbacks of log lines and errors.
    pub(super) fn serve(&self) {
        // SAFETY: the client is alive, and the call does not block.
        unsafe { sys::rd_kafka_poll(self.client.native_ptr(), 0) };
    }

    /// Whether the brokers are gone rather than hanging, judged by the last connections.
    pub(super) fn are_brokers_gone(&self) -> bool {
        self.serve();
        self.client.context().are_brokers_gone()
    }

    /// A broker answered. Earlier connection errors no longer count.
    pub(super) fn handle_answer(&self) {
        self.serve();
        self.client.context().handle_answer();
    }

    /// Calls `each` with the name of every topic and its partitions, each with whether it has a leader. Returns the
    /// broker that answered, or one that it names.
    ///
    /// # Errors
    /// If no broker answers within `limit`.
    pub(super) fn topics(
        &self,
        limit: Duration,
        mut each: impl FnMut(&str, &mut dyn Iterator<Item = (i32, bool)>),
    ) -> Result<BrokerId, KafkaError> {
        let metadata = self.client.fetch_metadata(None, limit)?;
        for topic in metadata.topics() {
            let mut partitions = topic.partitions().iter().map(|partition| (partition.id(), partition.leader() >= 0));
            each(topic.name(), &mut partitions);
        }
        // A broker that is known by its address alone has no number yet.
        let answered = Some(metadata.orig_broker_id()).filter(|&id| id >= 0);
        Ok(BrokerId(answered.or_else(|| Some(metadata.brokers().first()?.id())).unwrap_or(-1)))
    }

    /// The cluster's id; empty if it has none. It is known after the first answer about topics.
    pub(super) fn id(&self, limit: Duration) -> String {
        // SAFETY: the client is alive; the string is ours until it is freed, and copied before.
        unsafe {
            let id = sys::rd_kafka_clusterid(self.client.native_ptr(), millis(limit));
            if id.is_null() {
                return String::new();
            }
            let copy = CStr::from_ptr(id).to_string_lossy().into_owned();
            sys::rd_kafka_mem_free(self.client.native_ptr(), id.cast());
            copy
        }
    }

    /// The ids of topics (KIP-516) by their names, each empty where the broker has none. A topic that does not
    /// exist is not in the answer. The query goes to this broker: by default librdkafka waits for the controller, which
    /// may hang.
    ///
    /// # Errors
    /// If no broker answers within `limit`.
    pub(super) fn topic_ids(
        &self,
        names: &[Box<str>],
        broker: BrokerId,
        limit: Duration,
    ) -> Result<HashMap<Box<str>, Box<str>>, KafkaError> {
        if names.is_empty() {
            return Ok(HashMap::new());
        }
        let names = names.iter().map(|name| CString::new(&**name)).collect::<Result<Vec<_>, _>>()?;
        let mut names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        // SAFETY: the names live until they are copied, and the copy is given back here. What the options don't take is
        // left as it is, and the text of an error is not needed.
        let event = self.ask(operation, limit, |client, options, queue| unsafe {
            sys::rd_kafka_AdminOptions_set_broker(options, broker.0, ptr::null_mut(), 0);
            let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
            sys::rd_kafka_DescribeTopics(client, topics, options, queue);
            sys::rd_kafka_TopicCollection_destroy(topics);
        })?;
        // SAFETY: the event is alive, and of the question that was asked.
        unsafe {
            let result = sys::rd_kafka_event_DescribeTopics_result(event.0.as_ptr());
            let mut count = 0;
            let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            (0..count).filter_map(|index| id_of(*topics.add(index)).transpose()).collect()
        }
    }

    /// Sends a query of librdkafka's admin interface, and waits for the answer.
    fn ask(
        &self,
        operation: sys::rd_kafka_admin_op_t,
        limit: Duration,
        send: impl FnOnce(*mut sys::rd_kafka_t, *mut sys::rd_kafka_AdminOptions_t, *mut sys::rd_kafka_queue_t),
    ) -> Result<AdminReply, KafkaError> {
        let client = self.client.native_ptr();
        // SAFETY: the client is alive, and a queue of its own comes of it.
        let queue = NonNull::new(unsafe { sys::rd_kafka_queue_new(client) })
            .map(Queue)
            .ok_or_else(|| KafkaError::ClientCreation("no queue".into()))?;
        // SAFETY: the client and the queue are alive; the options are given back here, and whatever is sent has copied
        // them.
        let event = unsafe {
            let options = sys::rd_kafka_AdminOptions_new(client, operation);
            sys::rd_kafka_AdminOptions_set_request_timeout(options, millis(limit), ptr::null_mut(), 0);
            send(client, options, queue.0.as_ptr());
            sys::rd_kafka_AdminOptions_destroy(options);
            sys::rd_kafka_queue_poll(queue.0.as_ptr(), millis(limit))
        };
        let timed_out = || KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);
        let event = NonNull::new(event).map(AdminReply).ok_or_else(timed_out)?;
        // SAFETY: the event is alive.
        match unsafe { sys::rd_kafka_event_error(event.0.as_ptr()) } {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(event),
            code => Err(KafkaError::MetadataFetch(code.into())),
        }
    }

    /// The partitions' high watermarks, in their order: the ends of their logs, open transactions included. `None` if a
    /// leader didn't answer.
    ///
    /// # Errors
    /// If no answer comes within `limit`.
    pub(super) fn high_watermarks(
        &self,
        partitions: &[Partition<'_>],
        limit: Duration,
    ) -> Result<Vec<Option<i64>>, KafkaError> {
        let mut places = HashMap::with_capacity(partitions.len());
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for (index, &(topic, partition)) in partitions.iter().enumerate() {
            list.add_partition_offset(topic, partition, Offset::End)?;
            places.insert((topic, partition), index);
        }
        let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
        let level = sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED;
        // SAFETY: the list is alive until it is copied. The options are for this question, and take the level.
        let event = self.ask(operation, limit, |client, options, queue| unsafe {
            sys::rd_kafka_AdminOptions_set_isolation_level(options, level);
            sys::rd_kafka_ListOffsets(client, list.ptr(), options, queue);
        })?;
        let mut offsets = vec![None; partitions.len()];
        // SAFETY: the event is alive, and of the question that was asked; all that is read belongs to it.
        unsafe {
            let result = sys::rd_kafka_event_ListOffsets_result(event.0.as_ptr());
            let mut count = 0;
            let infos = sys::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
            for index in 0..count {
                let at = &*sys::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(index));
                let Ok(topic) = CStr::from_ptr(at.topic).to_str() else { continue };
                if at.err == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
                    && let Some(&index) = places.get(&(topic, at.partition))
                {
                    offsets[index] = Some(at.offset);
                }
            }
        }
        Ok(offsets)
    }

    /// The compaction settings of these topics, in the names' order. The query goes to this broker, as for the ids.
    ///
    /// # Errors
    /// If no broker answers within `limit`.
    pub(super) fn retention(
        &self,
        names: &[&str],
        broker: BrokerId,
        limit: Duration,
    ) -> Result<Vec<Settings>, KafkaError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let asked = names.iter().map(|name| CString::new(*name)).collect::<Result<Vec<_>, _>>()?;
        let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS;
        let topic = sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
        let resource = |name: &CString| {
            // SAFETY: the strings are copied. A value goes with a name that is asked for, and is not sent.
            unsafe {
                let resource = sys::rd_kafka_ConfigResource_new(topic, name.as_ptr());
                for setting in [CLEANUP_POLICY, MIN_COMPACTION_LAG] {
                    sys::rd_kafka_ConfigResource_set_config(resource, setting.as_ptr(), c"".as_ptr());
                }
                resource
            }
        };
        // SAFETY: the resources are copied by the question, and given back here.
        let event = self.ask(operation, limit, |client, options, queue| unsafe {
            sys::rd_kafka_AdminOptions_set_broker(options, broker.0, ptr::null_mut(), 0);
            let mut resources: Vec<_> = asked.iter().map(resource).collect();
            sys::rd_kafka_DescribeConfigs(client, resources.as_mut_ptr(), resources.len(), options, queue);
            sys::rd_kafka_ConfigResource_destroy_array(resources.as_mut_ptr(), resources.len());
        })?;
        // SAFETY: the event is alive, and of the question that was asked; all that is read belongs to it. librdkafka
        // gives the answers the questions' order.
        unsafe {
            let result = sys::rd_kafka_event_DescribeConfigs_result(event.0.as_ptr());
            let mut count = 0;
            let resources = sys::rd_kafka_DescribeConfigs_result_resources(result, &raw mut count);
            Ok((0..count).map(|index| settings_in(*resources.add(index))).collect())
        }
    }

    /// A probe: queries one topic's metadata, because that answer is small.
    ///
    /// # Errors
    /// If no broker answers within `limit`, or the answer lists no broker, not even the one that sent it: it has just
    /// started, or the controller has fenced it.
    pub(super) fn probe(&self, topic: &str, limit: Duration) -> Result<(), KafkaError> {
        let metadata = self.client.fetch_metadata(Some(topic), limit)?;
        match metadata.brokers() {
            [] => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerNotAvailable)),
            _ => Ok(()),
        }
    }

    /// One offset of each partition, in their order; `None` if there is no such record. Takes one request to each leader,
    /// however many partitions it has.
    ///
    /// # Errors
    /// If not all leaders answer within `limit`, or one does not know its partition.
    pub(super) fn offsets(
        &self,
        partitions: &[Partition<'_>],
        index: OffsetQuery,
        limit: Duration,
    ) -> Result<Vec<Option<i64>>, KafkaError> {
        Ok(self.ask_for(partitions, index, limit)?.into_iter().map(|found| found.map(|found| found.offset)).collect())
    }

    /// The ends of the partitions' logs, with the leaders' epochs; otherwise as [`MetadataClient::offsets`].
    ///
    /// # Errors
    /// As [`MetadataClient::offsets`].
    pub(super) fn ends(
        &self,
        partitions: &[Partition<'_>],
        limit: Duration,
    ) -> Result<Vec<Option<FoundOffset>>, KafkaError> {
        self.ask_for(partitions, OffsetQuery::End, limit)
    }

    fn ask_for(
        &self,
        partitions: &[Partition<'_>],
        index: OffsetQuery,
        limit: Duration,
    ) -> Result<Vec<Option<FoundOffset>>, KafkaError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        // In Kafka's protocol, two special timestamps stand for the start and the end.
        let asked = match index {
            OffsetQuery::Beginning => Offset::Beginning,
            OffsetQuery::Since(unix_ms) => Offset::Offset(unix_ms.max(0)),
            OffsetQuery::End => Offset::End,
        };
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for &(topic, partition) in partitions {
            list.add_partition_offset(topic, partition, asked)?;
        }
        // SAFETY: the client and the list are alive; the answers are written into the list.
        let code = unsafe { sys::rd_kafka_offsets_for_times(self.client.native_ptr(), list.ptr(), millis(limit)) };
        if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(KafkaError::OffsetFetch(code.into()));
        }
        let answer = |(at, element): (usize, &TopicPartitionListElem<'_>)| {
            element.error()?;
            Ok(match element.offset() {
                Offset::Offset(offset) => {
                    // SAFETY: the list is alive, and has an element at each place that it is asked for.
                    let epoch = unsafe { sys::rd_kafka_topic_partition_get_leader_epoch((*list.ptr()).elems.add(at)) };
                    Some(FoundOffset { offset, leader_epoch: (epoch >= 0).then_some(epoch) })
                }
                _ => None,
            })
        };
        list.elements().iter().enumerate().map(answer).collect()
    }
}

/// An answer of librdkafka's.
struct AdminReply(NonNull<sys::rd_kafka_event_t>);

impl Drop for AdminReply {
    fn drop(&mut self) {
        // SAFETY: it was handed to us, once, and nothing borrows from it any more.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

const CLEANUP_POLICY: &CStr = c"cleanup.policy";
const MIN_COMPACTION_LAG: &CStr = c"min.compaction.lag.ms";

/// A topic's compaction settings.
///
/// # Safety
/// `resource` must belong to an answer that was not given back.
unsafe fn settings_in(resource: *const sys::rd_kafka_ConfigResource_t) -> Settings {
    // SAFETY: as the caller promised; the entries and their strings live as long as the answer.
    unsafe {
        match sys::rd_kafka_ConfigResource_error(resource) {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => {}
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => return Settings::Refused,
            _ => return Settings::Unknown,
        }
        let mut count = 0;
        let entries = sys::rd_kafka_ConfigResource_configs(resource, &raw mut count);
        let value = |setting: &CStr| {
            let named = |&entry: &*const sys::rd_kafka_ConfigEntry_t| {
                CStr::from_ptr(sys::rd_kafka_ConfigEntry_name(entry)) == setting
            };
            let entry = (0..count).map(|index| *entries.add(index)).find(named)?;
            let value = sys::rd_kafka_ConfigEntry_value(entry);
            (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
        };
        let Some(policy) = value(CLEANUP_POLICY) else { return Settings::Unknown };
        if !policy.contains("compact") {
            return Settings::Of(Retention::Plain);
        }
        let kept_for = value(MIN_COMPACTION_LAG).and_then(|lag| lag.parse().ok()).map(Duration::from_millis);
        Settings::Of(Retention::Compacted { kept_for: kept_for.unwrap_or_default() })
    }
}

type NameAndId = (Box<str>, Box<str>);

/// A described topic's name and id; `None` if it does not exist.
///
/// # Safety
/// `topic` must belong to an answer that was not given back.
unsafe fn id_of(topic: *const sys::rd_kafka_TopicDescription_t) -> Result<Option<NameAndId>, KafkaError> {
    // SAFETY: as the caller promised; all that is asked for lives as long as the answer, and is copied here.
    unsafe {
        let error = sys::rd_kafka_TopicDescription_error(topic);
        let none = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
        let code = if error.is_null() { none } else { sys::rd_kafka_error_code(error) };
        match code.into() {
            RDKafkaErrorCode::NoError => {}
            RDKafkaErrorCode::UnknownTopicOrPartition => return Ok(None),
            code => return Err(KafkaError::MetadataFetch(code)),
        }
        let name = CStr::from_ptr(sys::rd_kafka_TopicDescription_name(topic)).to_string_lossy();
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        // A broker without ids sends zeros.
        let none = id.is_null()
            || (sys::rd_kafka_Uuid_most_significant_bits(id), sys::rd_kafka_Uuid_least_significant_bits(id)) == (0, 0);
        let text = if none { ptr::null() } else { sys::rd_kafka_Uuid_base64str(id) };
        let id = if text.is_null() { "".into() } else { CStr::from_ptr(text).to_string_lossy() };
        Ok(Some((name.into(), id.into())))
    }
}

/// What a failed query says about the brokers.
pub(super) fn failure_of(error: &KafkaError) -> ProbeFailure {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::BrokerNotAvailable) => ProbeFailure::NoBrokers,
        Some(RDKafkaErrorCode::OperationTimedOut | RDKafkaErrorCode::RequestTimedOut) => ProbeFailure::Silent,
        _ => ProbeFailure::Unreachable,
    }
}
