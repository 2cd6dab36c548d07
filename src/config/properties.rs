//! `KAFKA_PROPERTIES_FILE`: librdkafka's properties, `key=value` a line. Each is tried on librdkafka itself, so that a
//! wrong one is told with its line before anything starts. Values may be secrets and are never shown.

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

/// Properties that another setting is for.
const SET_OTHERWISE: [(&str, &str); 4] = [
    ("bootstrap.servers", "KAFKA_BROKERS"),
    ("metadata.broker.list", "KAFKA_BROKERS"),
    ("client.id", "KAFKA_CLIENT_ID"),
    ("group.id", "KAFKA_GROUP_ID"),
];

/// Properties that the gateway's promises rest on: what is read, from where, and how the end of a partition shows.
const SET_BY_THE_GATEWAY: [&str; 6] = [
    "auto.offset.reset",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "group.instance.id",
    "isolation.level",
];

/// Reads a properties file: empty lines and those that begin with `#` or `!` are passed over.
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
    if let Some((_, setting)) = SET_OTHERWISE.iter().find(|(other, _)| *other == key) {
        return Some(format!("is what {setting} is for"));
    }
    if SET_BY_THE_GATEWAY.contains(&key) {
        return Some("is the gateway's to set; drop the line".to_owned());
    }
    match ClientConfig::new().set(key, value).create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Some("is no property of librdkafka's".to_owned())
        }
        Err(_) => Some("has a value that librdkafka doesn't take".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_read_and_comments_passed_over() {
        let text = "# TLS\n\nsecurity.protocol = SASL_SSL\n  sasl.password=a=b \n! more\nfetch.wait.max.ms=10\n";
        let expected = [("security.protocol", "SASL_SSL"), ("sasl.password", "a=b"), ("fetch.wait.max.ms", "10")];
        assert_eq!(parse(text).unwrap(), expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn each_wrong_line_is_told_and_no_value_is_shown() {
        let text = "nonsense\nno.such.property=hunter2\nsecurity.protocol=hunter2\ngroup.id=hunter2\n\
                    isolation.level=hunter2\nfetch.wait.max.ms=10\nfetch.wait.max.ms=11\n=hunter2";
        assert_eq!(
            parse(text).unwrap_err(),
            [
                "line 1: has no '='; takes key=value",
                "line 2: no.such.property is no property of librdkafka's",
                "line 3: security.protocol has a value that librdkafka doesn't take",
                "line 4: group.id is what KAFKA_GROUP_ID is for",
                "line 5: isolation.level is the gateway's to set; drop the line",
                "line 7: fetch.wait.max.ms is given twice",
                "line 8:  is no property of librdkafka's",
            ]
        );
    }
}
