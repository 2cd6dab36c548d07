//! What the brokers' users may do with a topic, where the brokers ask: each test's clients are the same user, so a
//! topic that has rights of its own has them for all.

use std::ffi::CString;
use std::ptr::{self, NonNull};

use rdkafka::bindings as sys;
use rdkafka::types::RDKafkaRespErr;

use super::{ANSWER_WITHIN, Kafka};

/// Settings of brokers that ask: what no right is set for, everyone may do.
pub const ASKING: &[(&str, &str)] = &[
    ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
    ("allow.everyone.if.no.acl.found", "true"),
];

/// What may be done with a topic. Who may write, may also describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Its records may be read.
    Read,
    /// Records may be added.
    Write,
}

impl Kafka {
    /// Gives everyone a right to a topic. From the first one on, nobody may do what nobody has the right to.
    ///
    /// # Panics
    /// Where the brokers refuse.
    pub fn allow(&self, topic: &str, right: Right) {
        let admin = self.admin();
        let client = admin.inner().native_ptr();
        let [topic, user, host] = [topic, "User:*", "*"].map(|text| CString::new(text).expect("no zero byte"));
        let operation = match right {
            Right::Read => sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ,
            Right::Write => sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE,
        };
        // SAFETY: the client is alive until the end, the strings are copied, and all that is made here is given back
        // here.
        let codes = unsafe {
            let mut binding = sys::rd_kafka_AclBinding_new(
                sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC,
                topic.as_ptr(),
                sys::rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_LITERAL,
                user.as_ptr(),
                host.as_ptr(),
                operation,
                sys::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW,
                ptr::null_mut(),
                0,
            );
            let queue = sys::rd_kafka_queue_new(client);
            sys::rd_kafka_CreateAcls(client, &raw mut binding, 1, ptr::null(), queue);
            sys::rd_kafka_AclBinding_destroy(binding);
            let event = sys::rd_kafka_queue_poll(queue, i32::try_from(ANSWER_WITHIN.as_millis()).expect("seconds"));
            let event = NonNull::new(event).expect("an answer in time").as_ptr();
            let mut codes = vec![sys::rd_kafka_event_error(event)];
            let (result, mut count) = (sys::rd_kafka_event_CreateAcls_result(event), 0);
            if !result.is_null() {
                let acls = sys::rd_kafka_CreateAcls_result_acls(result, &raw mut count);
                let error = |place| sys::rd_kafka_acl_result_error(*acls.add(place));
                let failed = (0..count).map(error).filter(|error| !error.is_null());
                codes.extend(failed.map(|error| sys::rd_kafka_error_code(error)));
            }
            sys::rd_kafka_event_destroy(event);
            sys::rd_kafka_queue_destroy(queue);
            codes
        };
        let good = |code: &RDKafkaRespErr| *code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
        assert!(codes.iter().all(good), "a right to {topic:?}: {codes:?}");
    }
}
