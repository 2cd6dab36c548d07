//! `KAFKA_PROPERTIES_FILE`: librdkafka's properties, one `key=value` per line. Each is checked by librdkafka itself, so
//! that a wrong one is reported with its line before anything starts. Values may be secrets and are never shown.

use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::types::{RDKafkaConfRes, RDKafkaType};

use super::settings::{self as s, Setting};
use super::{KafkaConfig, oidc};

/// Properties that have a setting of their own. They hold where it is not set, so that a managed service's file can be
/// used as it is.
pub(super) const SET_OTHERWISE: [(&str, &Setting); 4] = [
    ("bootstrap.servers", &s::KAFKA_BROKERS),
    ("metadata.broker.list", &s::KAFKA_BROKERS),
    ("client.id", &s::KAFKA_CLIENT_ID),
    ("group.id", &s::KAFKA_GROUP_ID),
];

/// Properties that the gateway's promises depend on: what is read, from where, and how the end of a partition is
/// reported.
const SET_BY_THE_GATEWAY: [&str; 6] = [
    "auto.offset.reset",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "group.instance.id",
    "isolation.level",
];

/// Parses a properties file. Empty lines and lines that begin with `#` or `!` are ignored.
pub(super) fn parse(text: &str) -> Result<Vec<(String, String)>, Vec<String>> {
    let mut properties: Vec<(String, String)> = Vec::new();
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        let Some((key, value)) = line.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
            faults.push(format!("line {number}: has no '='; takes key=value"));
            continue;
        };
        let twice = properties.iter().any(|(other, _)| other == key);
        match fault_of(key, value).or(twice.then(|| "is given twice".to_owned())) {
            Some(fault) => faults.push(format!("line {number}: {key} {fault}")),
            None => properties.push((key.to_owned(), value.to_owned())),
        }
    }
    if faults.is_empty() { Ok(properties) } else { Err(faults) }
}

fn fault_of(key: &str, value: &str) -> Option<String> {
    if SET_BY_THE_GATEWAY.contains(&key) {
        return Some("is set by the gateway; remove the line".to_owned());
    }
    if oidc::PROPERTIES.contains(&key) {
        return None;
    }
    match ClientConfig::new().set(key, value).create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Some("is not a property of librdkafka".to_owned())
        }
        Err(_) => Some("has a value that librdkafka rejects".to_owned()),
    }
}

/// Faults of properties that are valid alone but not together. A client of librdkafka that connects to no broker finds
/// them.
pub(super) fn faults_together(config: &KafkaConfig) -> Vec<String> {
    let mut properties = client_properties(config);
    properties.remove("bootstrap.servers");
    properties.remove("group.id");
    let mut faults = Vec::new();
    let of = |name: &str| properties.get(name).unwrap_or_default();
    let mechanism = if of("sasl.mechanism").is_empty() { of("sasl.mechanisms") } else { of("sasl.mechanism") };
    let is_sasl = of("security.protocol").to_ascii_lowercase().starts_with("sasl_");
    if is_sasl
        && mechanism == "OAUTHBEARER"
        && config.oidc.is_none()
        && of("enable.sasl.oauthbearer.unsecure.jwt") != "true"
    {
        faults.push(
            "sasl.mechanisms is OAUTHBEARER, for which nothing here gets tokens: takes sasl.oauthbearer.method=oidc with its \
             properties; a cloud's IAM is not built in"
                .to_owned(),
        );
    }
    if is_sasl && ["", "GSSAPI"].contains(&mechanism) {
        faults.push(
            "sasl.mechanisms is GSSAPI (also where it is not set): Kerberos is not built in, because every pod would need its \
             libraries; takes PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
                .to_owned(),
        );
        return faults;
    }
    let made = properties
        .create_native_config()
        .and_then(|native| Client::new(&properties, native, RDKafkaType::RD_KAFKA_CONSUMER, DefaultClientContext));
    match made {
        Ok(_) => {}
        Err(KafkaError::ClientCreation(text)) => faults.push(format!("the properties don't go together: {text}")),
        Err(error) => faults.push(format!("the properties don't go together: {error}")),
    }
    faults
}

/// Faults in the schemes of brokers. librdkafka skips a broker whose scheme is not that of `security.protocol`, and
/// then waits forever.
pub(super) fn scheme_faults(config: &KafkaConfig) -> Vec<String> {
    let given = config.properties.iter().find(|(name, _)| name == "security.protocol");
    let protocol = given.map_or("PLAINTEXT", |(_, value)| value).to_ascii_uppercase();
    let is_other =
        |broker: &&str| broker.split_once("://").is_some_and(|(scheme, _)| !scheme.eq_ignore_ascii_case(&protocol));
    let fault = |broker: &str| {
        format!("got {broker:?}; takes host[:port], or with the scheme of security.protocol, which is {protocol}")
    };
    config.brokers.split(',').filter(is_other).map(fault).collect()
}

/// The properties of librdkafka's clients; the operator's override ours.
#[must_use]
pub(crate) fn client_properties(config: &KafkaConfig) -> ClientConfig {
    let mut properties = ClientConfig::new();
    properties
        .set("bootstrap.servers", &*config.brokers)
        .set("client.id", &*config.client_id)
        .set("group.id", &*config.group_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // The other values silently skip ahead if records were deleted before they were read.
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        // Requests are small, and none should wait for the answer to the previous one.
        .set("socket.nagle.disable", "true")
        // A fetch that waits for records delays the next request on its connection, and the report that a partition is at
        // its end. The price of this value is five empty answers a second, which are a quarter of an idle pod's CPU.
        .set("fetch.wait.max.ms", "200")
        // A broker gets no further fetch while this many records wait in the queue, and is asked again soon. The count
        // covers the one queue of all partitions. `ingest::batching_delay` decides when fewer fetches are better.
        .set("queued.min.messages", "20000")
        .set("fetch.queue.backoff.ms", "1")
        // Records that wait here are outside of the history's budget. With tenfold compression, and with what
        // librdkafka adds to each record, 16 MiB of answers and 100,000 queued records took 290 MiB while a million
        // records were read; with this bound and 20,000 queued records, 70 MiB. Each broker's answer is held as a
        // whole.
        .set("queued.max.messages.kbytes", "8192")
        .set("fetch.max.bytes", "2097152")
        // A broker that is back is found soon.
        .set("reconnect.backoff.max.ms", "1000")
        .set("socket.keepalive.enable", "true")
        .set("log.thread.name", "false")
        .set_log_level(RDKafkaLogLevel::Info);
    let is_ours =
        |name: &str| SET_OTHERWISE.iter().any(|(other, _)| *other == name) || oidc::PROPERTIES.contains(&name);
    for (name, value) in config.properties.iter().filter(|(name, _)| !is_ours(name)) {
        if name == "debug" {
            // librdkafka's debug lines are logged at our own level of that name.
            properties.set_log_level(RDKafkaLogLevel::Debug);
        }
        properties.set(name, value);
    }
    properties
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_parsed_and_comments_ignored() {
        let text = "# TLS\n\nsecurity.protocol = SASL_SSL\n  sasl.password=a=b \n! more\nfetch.wait.max.ms=10\n";
        let expected = [("security.protocol", "SASL_SSL"), ("sasl.password", "a=b"), ("fetch.wait.max.ms", "10")];
        assert_eq!(parse(text).unwrap(), expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn each_wrong_line_is_reported_and_no_value_is_shown() {
        let text = "nonsense\nno.such.property=hunter2\nsecurity.protocol=hunter2\ngroup.id=hunter2\n\
                    isolation.level=hunter2\nfetch.wait.max.ms=10\nfetch.wait.max.ms=11\n=hunter2";
        assert_eq!(
            parse(text).unwrap_err(),
            [
                "line 1: has no '='; takes key=value",
                "line 2: no.such.property is not a property of librdkafka",
                "line 3: security.protocol has a value that librdkafka rejects",
                "line 5: isolation.level is set by the gateway; remove the line",
                "line 7: fetch.wait.max.ms is given twice",
                "line 8:  is not a property of librdkafka",
            ]
        );
    }
}
