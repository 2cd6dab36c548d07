//! Everything that a gateway needs, in its own process: librdkafka's mock cluster and a generator of events. Owns the
//! edges that differ from `serve`; the gateway's code is the same.
//!
//! - [`world`]: the events, as a rule on a seed and the time.
//! - [`token`]: tokens for trials.

pub mod token;
pub(crate) mod world;

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use tracing::warn;

use crate::clock::{Now, UnixMs};
use crate::config::{Config, Preset};
use world::{ASSESSMENT_TOPICS, DemoWorld, MARKETS, STEP_MS, assessment_id, market_topic};

/// Partitions of a topic of assessments: more than one, as in production; few, because each takes about 5 MB in the
/// mock.
const PARTITIONS: i32 = 2;

/// Lifetime of the demo's own token: a day.
const TOKEN_SECONDS: i64 = 24 * 60 * 60;

/// How long the mock waits for records before it answers a fetch, in ms. This is its latency, because it never answers
/// earlier.
const FETCH_WAIT_MS: u32 = 10;

/// Pause between two created topics: the mock ignores a request for a second if it arrives right after its last answer.
const TOPIC_PAUSE: Duration = Duration::from_millis(2);

/// How long `stop` waits for the last events to reach the mock cluster.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the demo does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mock cluster or its client didn't start.
    #[error("the mock of Kafka can't start: {0}")]
    Mock(#[from] KafkaError),
    /// The kernel refuses a thread.
    #[error("the generator's thread can't start: {0}")]
    Thread(#[source] io::Error),
}

/// A running mock of Kafka, and the generator that fills it.
pub struct Demo {
    // Declared before the cluster, because it is stopped first.
    generator: Generator,
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl Demo {
    /// Settings of parts that a demo brings along or does without. It ignores them, so that it starts in any
    /// environment.
    pub const UNUSED: [&str; 11] = [
        "KAFKA_BROKERS",
        "KAFKA_CLIENT_ID",
        "KAFKA_GROUP_ID",
        "KAFKA_PROPERTIES_FILE",
        "REDIS_URL",
        "REDIS_HOST",
        "REDIS_PORT",
        "REDIS_PASSWORD",
        "REDIS_KEY_PREFIX",
        "LEASE_TTL_MS",
        "PLACEMENT",
    ];

    /// Makes a key for the tokens of this run from the system's random source.
    ///
    /// # Errors
    /// If the system has no random source.
    pub fn make_secret() -> io::Result<String> {
        let mut bytes = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Defaults of the demo: only this machine can reach it, it has a secret, and it stops quickly.
    #[must_use]
    pub fn presets(secret: &str) -> [Preset; 4] {
        [("HOST", "127.0.0.1"), ("JWT_SECRET", secret), ("DRAIN_DELAY_MS", "200"), ("DRAIN_MS", "500")]
            .map(|(name, value)| Preset { name, value: value.to_owned() })
    }

    /// Starts the mock cluster and the generator, and points the config there, whatever Kafka it named.
    ///
    /// # Errors
    /// If a part does not start.
    pub fn start(config: &mut Config) -> Result<Self, Error> {
        let cluster = MockCluster::new(1)?;
        let topics = ASSESSMENT_TOPICS.iter().map(|&topic| (topic.to_owned(), PARTITIONS));
        for (topic, partitions) in topics.chain(MARKETS.iter().map(|(market, _)| (market_topic(market), 1))) {
            cluster.create_topic(&topic, partitions, 1)?;
            thread::sleep(TOPIC_PAUSE);
        }
        let brokers = cluster.bootstrap_servers();
        config.kafka.brokers = brokers.as_str().into();
        config.kafka.properties = vec![("fetch.wait.max.ms".into(), FETCH_WAIT_MS.to_string())];
        config.kafka.has_topic_settings = false;
        let generator = Generator::start(&brokers, Now::read().unix)?;
        Ok(Self { generator, cluster })
    }

    /// The text for the user: the page's address, a command line of a client, and the secret if it was made for this
    /// run, with its use. `program` is how this program was called.
    #[must_use]
    pub fn welcome(config: &Config, made_secret: &str, now: UnixMs, program: &str) -> String {
        let assessment = assessment_id(1);
        let allowed = if config.auth.claims.require_assessments { &[assessment.clone()][..] } else { &[] };
        let token = token::mint(config.auth.signing_secret(), "demo", allowed, now, TOKEN_SECONDS);
        let host = Authority(config.host, config.port);
        let gateway = format!("ws://{host}/ws");
        let query = format!("assessmentId={assessment}&token={token}");
        let page = match config.admin_port {
            // The page connects to its own address unless the URL names another.
            None => format!("http://{host}/#{query}"),
            Some(port) => format!("http://{}/#url={gateway}&{query}", Authority(config.host, port)),
        };
        let mut text = format!(
            "\nshardgate demo: five markets, a hundred assessments, all in this process. Ctrl-C ends it.\n\n  \
             Watch in a browser:\n    {page}\n\n  \
             Watch in a terminal:\n    npx --yes wscat --connect '{gateway}?{query}'\n\n"
        );
        if *config.auth.signing_secret() == *made_secret.as_bytes() {
            let other = assessment_id(2);
            let _ = write!(
                text,
                "  Mint other tokens with this run's secret:\n    \
                 JWT_SECRET={made_secret} {program} token --assessment {other}\n\n",
            );
        }
        text
    }

    /// Stops the generator, then the mock cluster.
    pub fn stop(self) {
        self.generator.stop();
        drop(self.cluster);
    }
}

/// The address at which a browser on this machine reaches a listener.
struct Authority(IpAddr, u16);

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            host if host.is_unspecified() => write!(f, "localhost:{}", self.1),
            IpAddr::V4(host) => write!(f, "{host}:{}", self.1),
            IpAddr::V6(host) => write!(f, "[{host}]:{}", self.1),
        }
    }
}

/// The thread that produces events.
struct Generator {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Generator {
    fn start(brokers: &str, now: UnixMs) -> Result<Self, Error> {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            // The partitioner of the built-in routes.
            .set("partitioner", "murmur2_random")
            .create()?;
        let (stop, stopped) = bounded(1);
        let world = DemoWorld::new(now.0);
        let thread = thread::Builder::new()
            .name("demo-generator".into())
            .spawn(move || generate(world, &producer, &stopped))
            .map_err(Error::Thread)?;
        Ok(Self { stop, thread })
    }

    fn stop(self) {
        drop(self.stop);
        // A panic of the thread has ended the process already.
        let _ = self.thread.join();
    }
}

fn generate(mut world: DemoWorld, producer: &BaseProducer, stopped: &Receiver<()>) {
    while stopped.recv_timeout(Duration::from_millis(STEP_MS)) == Err(RecvTimeoutError::Timeout) {
        for event in world.step(Now::read().unix) {
            let payload = event.payload.to_string();
            let record = BaseRecord::to(&event.topic).key(&event.key).payload(&payload);
            if let Err((error, _)) = producer.send(record) {
                warn!(%error, "demo event not produced");
            }
        }
        producer.poll(Duration::ZERO);
    }
    if let Err(error) = producer.flush(FLUSH_TIMEOUT) {
        warn!(%error, "demo events not flushed at shutdown");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::time::Instant;

    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::{Message, Offset, TopicPartitionList};

    use super::*;
    use crate::config::{MachineLimits, Sources};
    use crate::routing::mapping::assessment_of;

    #[test]
    fn events_reach_the_mock_cluster() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("assessment.created", PARTITIONS, 1).unwrap();
        let brokers = cluster.bootstrap_servers();
        let generator = Generator::start(&brokers, UnixMs(1)).unwrap();

        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &brokers).set("group.id", "test").create().unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset("assessment.created", partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&partitions).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut seen = [false; PARTITIONS as usize];
        while seen.contains(&false) {
            assert!(Instant::now() < deadline, "the generator's events arrive");
            let Some(record) = consumer.poll(Duration::from_secs(1)) else { continue };
            let record = record.unwrap();
            let key = std::str::from_utf8(record.key().unwrap()).unwrap();
            assert_eq!(assessment_of(record.payload().unwrap()).as_deref(), Ok(key));
            seen[usize::try_from(record.partition()).unwrap()] = true;
        }
        generator.stop();
    }

    #[test]
    fn the_welcome_names_the_page_and_shows_only_a_secret_of_this_run() {
        let machine = MachineLimits {
            cores: 2,
            descriptors: 1024,
            host_name: "here".into(),
            can_listen_on: |_| true,
            now: UnixMs(0),
        };
        let config = Config::from_sources(&Sources {
            flags: &[],
            environment: &BTreeMap::new(),
            presets: &Demo::presets("made"),
            unused: &Demo::UNUSED,
            read_file: &|_: &Path| Err(io::Error::from(io::ErrorKind::NotFound)),
            machine: &machine,
        })
        .unwrap();
        let welcome = Demo::welcome(&config, "made", UnixMs(0), "./shardgate");
        assert!(welcome.contains("http://127.0.0.1:3003/#assessmentId=assessment-001&token="), "{welcome}");
        assert!(welcome.contains("'ws://127.0.0.1:3003/ws?assessmentId=assessment-001&token="), "{welcome}");
        assert!(welcome.contains("JWT_SECRET=made ./shardgate token "), "{welcome}");
        assert!(!Demo::welcome(&config, "other", UnixMs(0), "./shardgate").contains("JWT_SECRET"));
    }
}
