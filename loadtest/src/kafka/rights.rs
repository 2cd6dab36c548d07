//! Access control lists of topics, and passwords of users. All clients of a test are the same user unless they log in, so
//! an ACL applies to all of them.

use std::ffi::CString;
use std::ptr::{self, NonNull};

use rdkafka::bindings as sys;
use rdkafka::types::RDKafkaRespErr;

use super::{ANSWER_WITHIN, Kafka};

/// Settings of brokers that check ACLs. A topic without ACLs is open to every user.
pub const WITH_ACLS: &[(&str, &str)] = &[
    ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
    ("allow.everyone.if.no.acl.found", "true"),
];

/// An operation on a topic. The right to write includes the right to describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Read records.
    Read,
    /// Write records.
    Write,
}

/// A mechanism whose passwords brokers store.
pub use sys::rd_kafka_ScramMechanism_t as ScramMechanism;

impl Kafka {
    /// Gives a user a password for a mechanism.
    ///
    /// # Panics
    /// If the brokers refuse.
    pub fn set_password(&self, mechanism: ScramMechanism, user: &str, password: &str) {
        let admin = self.admin();
        let client = admin.inner().native_ptr();
        let user = CString::new(user).expect("no zero byte");
        // SAFETY: the client is alive until the end, the strings are copied, and everything that is created here is
        // destroyed here.
        let code = unsafe {
            let mut alteration = sys::rd_kafka_UserScramCredentialUpsertion_new(
                user.as_ptr(),
                mechanism,
                4096,
                password.as_ptr(),
                password.len(),
                ptr::null(),
                0,
            );
            let queue = sys::rd_kafka_queue_new(client);
            sys::rd_kafka_AlterUserScramCredentials(client, &raw mut alteration, 1, ptr::null(), queue);
            sys::rd_kafka_UserScramCredentialAlteration_destroy(alteration);
            let event = sys::rd_kafka_queue_poll(queue, i32::try_from(ANSWER_WITHIN.as_millis()).expect("seconds"));
            let event = NonNull::new(event).expect("an answer in time").as_ptr();
            let code = sys::rd_kafka_event_error(event);
            sys::rd_kafka_event_destroy(event);
            sys::rd_kafka_queue_destroy(queue);
            code
        };
        assert_eq!(code, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, "the password of {user:?}");
    }

    /// Allows every user an operation on a topic. From the first ACL on, operations without one are denied.
    ///
    /// # Panics
    /// If the brokers refuse.
    pub fn allow(&self, topic: &str, right: Right) {
        let admin = self.admin();
        let client = admin.inner().native_ptr();
        let [topic, user, host] = [topic, "User:*", "*"].map(|text| CString::new(text).expect("no zero byte"));
        let operation = match right {
            Right::Read => sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ,
            Right::Write => sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE,
        };
        // SAFETY: the client is alive until the end, the strings are copied, and everything that is created here is
        // destroyed here.
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
                let error = |index| sys::rd_kafka_acl_result_error(*acls.add(index));
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
