//! A real Apache Kafka in KRaft mode on 127.0.0.1: brokers that can be stopped, killed, paused and restarted, and their
//! topics. It owns the brokers' processes and files. [`crate::events`] produces records.

mod install;
pub mod rights;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_lite::future::block_on;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};

use crate::process::{Process, Signal, TempDir, eventually, free_port};
use install::{Archive, Install};

/// Time limit for a broker's start, on a busy machine.
const START_WITHIN: Duration = Duration::from_secs(60);

/// Time limit for a request to a running broker.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The file of a key set, in the cluster's directory.
const KEY_SET: &str = "key-set.json";

/// A second listener of brokers.
#[derive(Clone, Copy)]
struct Secured<'a> {
    protocol: &'a str,
    /// Whose tokens it takes; empty: it takes none.
    key_set: &'a str,
}

/// A cluster of brokers. All are killed on drop.
pub struct Kafka {
    bootstrap: String,
    brokers: Vec<Broker>,
    /// Holds the brokers' files until the end.
    _dir: TempDir,
}

/// A broker, which keeps its port and its data while it is down.
pub struct Broker {
    number: usize,
    port: u16,
    secured: Option<u16>,
    properties: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

impl Kafka {
    /// Starts one broker and waits until it serves.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(1, &[])
    }

    /// Starts this many brokers with these settings on top of the kit's, in which `{id}` stands for a broker's id, and
    /// waits until all serve.
    #[must_use]
    pub fn start_with(brokers: usize, settings: &[(&str, &str)]) -> Self {
        Self::launch(brokers, settings, None, Install::get(), Archive::Use)
    }

    /// Starts one broker with a second listener, `CLIENTS`, of this protocol.
    #[must_use]
    pub fn start_secured(protocol: &str, settings: &[(&str, &str)]) -> Self {
        Self::launch(1, settings, Some(Secured { protocol, key_set: "" }), Install::get(), Archive::Use)
    }

    /// Starts one broker whose second listener takes tokens that this key set confirms, whose `aud` is `kafka` and whose
    /// `iss` is `https://idp.example`. With these settings on top, such as the listener's certificate.
    #[must_use]
    pub fn start_with_tokens(key_set: &str, settings: &[(&str, &str)]) -> Self {
        Self::launch(1, settings, Some(Secured { protocol: "SASL_SSL", key_set }), Install::get(), Archive::Use)
    }

    fn launch(
        count: usize,
        settings: &[(&str, &str)],
        second: Option<Secured<'_>>,
        install: &Install,
        archive: Archive,
    ) -> Self {
        let dir = TempDir::new("kafka");
        let cluster = random_uuid();
        let ports: Vec<u16> = (0..count).map(|_| free_port(Ipv4Addr::LOCALHOST)).collect();
        let controllers: Vec<u16> = (0..count).map(|_| free_port(Ipv4Addr::LOCALHOST)).collect();
        let voters: Vec<_> = (1..).zip(&controllers).map(|(id, port)| format!("{id}@127.0.0.1:{port}")).collect();
        let mut brokers = Vec::with_capacity(count);
        for number in 0..count {
            let data = dir.path().join(format!("data-{number}"));
            format_data(install, &data, &cluster, number + 1).expect("our own directory can be written to");
            let mut config = configure(number + 1, ports[number], controllers[number], &voters.join(","), &data);
            let secured = second.map(|Secured { protocol, key_set }| {
                let port = free_port(Ipv4Addr::LOCALHOST);
                config = with_listener(&config, port, protocol);
                if !key_set.is_empty() {
                    config += &with_tokens(&dir.file(KEY_SET, key_set));
                }
                port
            });
            for (key, value) in settings {
                let value = value.replace("{id}", &(number + 1).to_string());
                config.push_str(&format!("{key}={value}\n"));
            }
            let properties = dir.file(&format!("broker-{number}.properties"), &config);
            let log = dir.path().join(format!("broker-{number}.log"));
            brokers.push(Broker { number, port: ports[number], secured, properties, log, process: None });
        }
        for broker in &mut brokers {
            broker.spawn(install, archive);
        }
        let bootstrap: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let kafka = Self { bootstrap: bootstrap.join(","), brokers, _dir: dir };
        for broker in &kafka.brokers {
            broker.await_serving(count);
        }
        kafka
    }

    /// The brokers' addresses, for `bootstrap.servers`.
    #[must_use]
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// The addresses of the second listener.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn secured(&self) -> String {
        let port = |broker: &Broker| broker.secured.expect("brokers with a second listener");
        self.brokers.iter().map(|broker| format!("127.0.0.1:{}", port(broker))).collect::<Vec<_>>().join(",")
    }

    /// Process ids of the running brokers.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.brokers.iter().filter_map(|broker| broker.process.as_ref()).map(Process::pid).collect()
    }

    /// The broker with this number, from 0.
    ///
    /// # Panics
    /// If there is no such broker.
    pub fn broker(&mut self, number: usize) -> &mut Broker {
        &mut self.brokers[number]
    }

    /// Starts all brokers after each was stopped or killed, and waits until all serve. One broker alone would have no
    /// quorum.
    pub fn start_all(&mut self) {
        for broker in &mut self.brokers {
            broker.spawn(Install::get(), Archive::Use);
        }
        for broker in &self.brokers {
            broker.await_serving(self.brokers.len());
        }
    }

    // ---- topics -----------------------------------------------------------------------------------------------------

    /// Creates a topic.
    pub fn create(&self, topic: &str, partitions: i32) {
        self.create_all(&[(topic, partitions)]);
    }

    /// Creates topics in one request and waits until clients see their partitions.
    pub fn create_all(&self, topics: &[(&str, i32)]) {
        let replicas = i32::try_from(self.brokers.len().min(3)).expect("three at most");
        let new: Vec<_> =
            topics.iter().map(|(name, count)| NewTopic::new(name, *count, TopicReplication::Fixed(replicas))).collect();
        let results = block_on(self.admin().create_topics(&new, &options()));
        done("create topics", results);
        for (topic, partitions) in topics {
            self.await_partitions(topic, *partitions);
        }
    }

    /// Creates a topic with one partition on these brokers. Any of them may become leader, even without the end of the
    /// log.
    pub fn create_on(&self, topic: &str, brokers: &[usize]) {
        let ids: Vec<_> = brokers.iter().map(|number| i32::try_from(number + 1).expect("few brokers")).collect();
        let assignment = [&*ids];
        let new = NewTopic::new(topic, 1, TopicReplication::Variable(&assignment));
        let new = new.set("min.insync.replicas", "1").set("unclean.leader.election.enable", "true");
        done("create a topic", block_on(self.admin().create_topics([&new], &options())));
        self.await_partitions(topic, 1);
    }

    /// Raises a topic's number of partitions to `partitions`.
    pub fn grow(&self, topic: &str, partitions: usize) {
        let new = NewPartitions::new(topic, partitions);
        done("grow a topic", block_on(self.admin().create_partitions([&new], &options())));
        self.await_partitions(topic, i32::try_from(partitions).expect("few partitions"));
    }

    /// Deletes the records of a partition before an offset.
    ///
    /// # Panics
    /// If the brokers refuse.
    pub fn trim(&self, topic: &str, partition: i32, before: i64) {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(before)).expect("an offset from 0");
        let trimmed = block_on(self.admin().delete_records(&offsets, &options())).expect("delete records");
        for element in trimmed.elements() {
            element.error().expect("delete records of the partition");
        }
    }

    /// Lets the retention of a topic delete all records of a partition, and waits until it has. Later records are kept.
    ///
    /// # Panics
    /// If the brokers refuse, or don't delete them.
    pub fn expire(&self, topic: &str, partition: i32) {
        self.set(topic, &[("retention.ms", "1")]);
        eventually("the retention deletes all records", ANSWER_WITHIN, || {
            let (first, next) = self.offsets(topic, partition);
            (first == next).then_some(())
        });
        self.set(topic, &[("retention.ms", "-1")]);
    }

    /// Replaces the settings of a topic and waits until its broker reports them.
    ///
    /// # Panics
    /// If the brokers refuse.
    pub fn set(&self, topic: &str, settings: &[(&str, &str)]) {
        let (name, admin) = (ResourceSpecifier::Topic(topic), self.admin());
        let change = settings.iter().fold(AlterConfig::new(name), |change, (key, value)| change.set(key, value));
        for result in block_on(admin.alter_configs([&change], &options())).expect("alter a topic's settings") {
            result.unwrap_or_else(|(_, error)| panic!("alter the settings of {topic}: {error}"));
        }
        eventually("the topic's settings", ANSWER_WITHIN, || {
            let now = block_on(admin.describe_configs([&name], &options())).ok()?.pop()?.ok()?;
            let is_set = |(key, value): &(&str, &str)| now.get(key).and_then(|now| now.value.as_deref()) == Some(value);
            settings.iter().all(is_set).then_some(())
        });
    }

    /// Deletes a topic.
    pub fn delete(&self, topic: &str) {
        done("delete a topic", block_on(self.admin().delete_topics(&[topic], &options())));
    }

    /// The first offset of a partition, and that of its next record.
    ///
    /// # Panics
    /// If the brokers don't answer.
    #[must_use]
    pub fn offsets(&self, topic: &str, partition: i32) -> (i64, i64) {
        self.consumer().fetch_watermarks(topic, partition, ANSWER_WITHIN).expect("the partition's offsets")
    }

    /// The offsets of the committed records in a partition.
    ///
    /// # Panics
    /// If the brokers don't answer.
    #[must_use]
    pub fn records(&self, topic: &str, partition: i32) -> Vec<i64> {
        let mut offsets = Vec::new();
        self.each_record(topic, partition, |record| offsets.push(record.offset()));
        offsets
    }

    /// The payloads of the committed records in a partition.
    ///
    /// # Panics
    /// If the brokers don't answer.
    #[must_use]
    pub fn payloads(&self, topic: &str, partition: i32) -> Vec<Vec<u8>> {
        let mut payloads = Vec::new();
        self.each_record(topic, partition, |record| payloads.extend(record.payload().map(<[u8]>::to_vec)));
        payloads
    }

    fn each_record(&self, topic: &str, partition: i32, mut take: impl FnMut(&BorrowedMessage<'_>)) {
        let mut config = client_config(&self.bootstrap);
        config.set("group.id", "loadtest").set("isolation.level", "read_committed").set("enable.partition.eof", "true");
        let consumer: BaseConsumer = config.create().expect("a consumer needs no connection");
        let mut whole = TopicPartitionList::new();
        whole.add_partition_offset(topic, partition, Offset::Beginning).expect("the beginning is a valid offset");
        consumer.assign(&whole).expect("the partition exists");
        loop {
            match consumer.poll(ANSWER_WITHIN).expect("records, or their end") {
                Ok(record) => take(&record),
                Err(KafkaError::PartitionEOF(_)) => return,
                Err(error) => panic!("records of {topic}: {error}"),
            }
        }
    }

    /// The number of the broker that leads a partition, from 0. `None` during an election.
    #[must_use]
    pub fn leader(&self, topic: &str, partition: i32) -> Option<usize> {
        let metadata = self.consumer().fetch_metadata(Some(topic), ANSWER_WITHIN).ok()?;
        let found = metadata.topics().iter().find(|found| found.name() == topic)?;
        let leader = found.partitions().iter().find(|found| found.id() == partition)?.leader();
        usize::try_from(leader - 1).ok()
    }

    /// The numbers of the brokers that are in sync for a partition, from 0.
    #[must_use]
    pub fn in_sync(&self, topic: &str, partition: i32) -> Option<Vec<usize>> {
        let metadata = self.consumer().fetch_metadata(Some(topic), ANSWER_WITHIN).ok()?;
        let found = metadata.topics().iter().find(|found| found.name() == topic)?;
        let in_sync = found.partitions().iter().find(|found| found.id() == partition)?.isr();
        in_sync.iter().map(|id| usize::try_from(id - 1).ok()).collect()
    }

    /// The number of partitions of a topic.
    ///
    /// # Panics
    /// If the brokers don't answer.
    #[must_use]
    pub fn partitions(&self, topic: &str) -> usize {
        let metadata = self.consumer().fetch_metadata(Some(topic), ANSWER_WITHIN).expect("the topic's metadata");
        metadata.topics().iter().find(|found| found.name() == topic).map_or(0, |found| found.partitions().len())
    }

    fn await_partitions(&self, topic: &str, partitions: i32) {
        let consumer = self.consumer();
        eventually(&format!("{topic} has {partitions} partitions with leaders"), ANSWER_WITHIN, || {
            let metadata = consumer.fetch_metadata(Some(topic), ANSWER_WITHIN).ok()?;
            let found = metadata.topics().iter().find(|found| found.name() == topic)?;
            let led = found.partitions().iter().filter(|partition| partition.leader() >= 0).count();
            (led == usize::try_from(partitions).ok()?).then_some(())
        });
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        client_config(&self.bootstrap).create().expect("an admin client needs no connection")
    }

    fn consumer(&self) -> BaseConsumer {
        client_config(&self.bootstrap).create().expect("a consumer needs no connection")
    }
}

impl Broker {
    /// Starts it after [`Self::stop`] or [`Self::kill`] and waits until it serves.
    pub fn start(&mut self) {
        self.spawn(Install::get(), Archive::Use);
        self.await_serving(1);
    }

    /// Stops it with SIGTERM and waits until it exits.
    ///
    /// # Panics
    /// If it is down.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("the broker is up");
        process.signal(Signal::Term);
        process.wait_exit(START_WITHIN);
    }

    /// Kills it.
    ///
    /// # Panics
    /// If it is down.
    pub fn kill(&mut self) {
        self.process.take().expect("the broker is up").kill();
    }

    /// Pauses it: connections stay open, but nothing answers.
    ///
    /// # Panics
    /// If it is down.
    pub fn pause(&self) {
        self.process.as_ref().expect("the broker is up").signal(Signal::Stop);
    }

    /// Resumes it after [`Self::pause`].
    ///
    /// # Panics
    /// If it is down.
    pub fn resume(&self) {
        self.process.as_ref().expect("the broker is up").signal(Signal::Cont);
    }

    /// Waits until it serves again after [`Self::resume`].
    pub fn await_back(&self) {
        self.await_serving(1);
    }

    fn spawn(&mut self, install: &Install, archive: Archive) {
        assert!(self.process.is_none(), "the broker is down");
        let temp = self.properties.parent().expect("the file is in the cluster's directory");
        let mut command = install.java(archive, temp, "kafka.Kafka");
        command.arg(&self.properties);
        self.process = Some(Process::start(&format!("kafka broker {}", self.number), command, &self.log));
    }

    /// Waits until it accepts connections and knows at least this many brokers.
    fn await_serving(&self, brokers: usize) {
        let process = self.process.as_ref().expect("the broker is up");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        eventually("a broker listens", START_WITHIN, || {
            let ended = !Path::new(&format!("/proc/{}/fd/1", process.pid())).exists();
            assert!(!ended, "the broker exited at startup\n{}", process.log_tail());
            TcpStream::connect(address).ok()
        });
        let consumer: BaseConsumer =
            client_config(&address.to_string()).create().expect("a consumer needs no connection");
        eventually("a broker serves", START_WITHIN, || {
            let metadata = consumer.fetch_metadata(None, Duration::from_secs(2)).ok()?;
            (metadata.brokers().len() >= brokers).then_some(())
        });
    }
}

/// Properties of every client of these brokers, which make it reconnect fast.
pub(crate) fn client_config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "200");
    config.set("socket.timeout.ms", "10000").set("allow.auto.create.topics", "false");
    config
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_WITHIN)).operation_timeout(Some(ANSWER_WITHIN))
}

#[track_caller]
fn done(what: &str, results: KafkaResult<Vec<Result<String, (String, RDKafkaErrorCode)>>>) {
    for result in results.unwrap_or_else(|error| panic!("{what}: {error}")) {
        result.unwrap_or_else(|(topic, error)| panic!("{what}, {topic}: {error}"));
    }
}

/// 16 random bytes in the form in which Kafka writes ids.
fn random_uuid() -> String {
    let mut bytes = [0; 16];
    let mut random = fs::File::open("/dev/urandom").expect("/dev/urandom exists");
    std::io::Read::read_exact(&mut random, &mut bytes).expect("/dev/urandom never ends");
    // Kafka's command lines take an id with a leading dash for an option.
    bytes[0] &= 0x7f;
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Formats a new broker's log directory. Only `meta.properties` differs between brokers.
fn format_data(install: &Install, data: &Path, cluster: &str, id: usize) -> std::io::Result<()> {
    install.copy_format(data)?;
    let directory = random_uuid();
    let meta = format!("version=1\ncluster.id={cluster}\nnode.id={id}\ndirectory.id={directory}\n");
    fs::write(data.join("meta.properties"), meta)
}

/// Settings of the second listener that takes tokens which this key set confirms.
fn with_tokens(key_set: &Path) -> String {
    let security = "org.apache.kafka.common.security.oauthbearer";
    let handler = format!("{security}.OAuthBearerValidatorCallbackHandler");
    format!(
        "listener.name.clients.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.clients.oauthbearer.sasl.jaas.config={security}.OAuthBearerLoginModule required;
listener.name.clients.oauthbearer.sasl.server.callback.handler.class={handler}
listener.name.clients.oauthbearer.sasl.oauthbearer.jwks.endpoint.url=file://{}
listener.name.clients.oauthbearer.sasl.oauthbearer.expected.audience=kafka
listener.name.clients.oauthbearer.sasl.oauthbearer.expected.issuer=https://idp.example
",
        key_set.display()
    )
}

/// The same settings with a listener `CLIENTS` of this protocol.
fn with_listener(config: &str, port: u16, protocol: &str) -> String {
    let line = |line: &str| match line.split_once('=') {
        Some(("listeners" | "advertised.listeners", _)) => format!("{line},CLIENTS://127.0.0.1:{port}\n"),
        Some(("listener.security.protocol.map", _)) => format!("{line},CLIENTS:{protocol}\n"),
        _ => format!("{line}\n"),
    };
    config.lines().map(line).collect()
}

fn configure(id: usize, port: u16, controller: u16, voters: &str, data: &Path) -> String {
    let brokers = voters.split(',').count();
    let replicas = brokers.min(3);
    let in_sync = if replicas < 3 { 1 } else { 2 };
    let data = data.display();
    format!(
        "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
listeners=BROKER://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=BROKER://127.0.0.1:{port}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=1
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=1
# A dead broker is detected after 3 s instead of 9. A stopped one exits without waiting for others.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
# Records of 8 MiB, for tests with records that are too large for the gateway.
message.max.bytes=8388608
# A small broker whose retention acts within a second.
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=4194304
log.initial.task.delay.ms=100
log.retention.check.interval.ms=200
log.segment.delete.delay.ms=100
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Producer;

    #[test]
    fn a_broker_keeps_its_records_when_stopped_or_killed_and_its_topics_can_grow_and_be_trimmed() {
        let mut kafka = Kafka::start();
        kafka.create("numbers", 2);
        assert_eq!(kafka.partitions("numbers"), 2);
        kafka.grow("numbers", 3);
        assert_eq!(kafka.partitions("numbers"), 3);

        let producer = Producer::to(kafka.bootstrap());
        for number in 0..10 {
            producer.send_to("numbers", 1, Some("key"), Some(format!("{number}").as_bytes()));
        }
        producer.flush();
        assert_eq!(kafka.offsets("numbers", 1), (0, 10));
        kafka.trim("numbers", 1, 4);
        assert_eq!(kafka.offsets("numbers", 1), (4, 10));

        kafka.broker(0).stop();
        kafka.broker(0).start();
        assert_eq!(kafka.offsets("numbers", 1), (4, 10));
        kafka.broker(0).kill();
        kafka.broker(0).start();
        assert_eq!(kafka.offsets("numbers", 1), (4, 10));

        kafka.broker(0).pause();
        let consumer = kafka.consumer();
        assert!(consumer.fetch_metadata(None, Duration::from_millis(500)).is_err(), "a paused broker doesn't answer");
        kafka.broker(0).resume();
        assert!(consumer.fetch_metadata(None, ANSWER_WITHIN).is_ok());
        kafka.delete("numbers");
    }

    #[test]
    fn topics_of_three_brokers_survive_the_loss_of_one() {
        let mut kafka = Kafka::start_with(3, &[]);
        kafka.create("numbers", 3);
        let producer = Producer::to(kafka.bootstrap());
        producer.send("numbers", Some("a"), Some(b"1"));
        producer.flush();
        kafka.broker(2).kill();
        producer.send("numbers", Some("a"), Some(b"2"));
        producer.flush();
        let end: i64 = (0..3).map(|partition| kafka.offsets("numbers", partition).1).sum();
        assert_eq!(end, 2);
    }
}
