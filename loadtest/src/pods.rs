//! Pods as processes, each on its own loopback address, and their surroundings: a Kafka and a Redis.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Ask, Client};
use crate::confinement::{Refusal, limit_descriptors, limit_locked_memory, refuse};
use crate::events::{Kind, MARKETS, Producer, ticks_topic};
use crate::http::{self, HttpResponse};
use crate::kafka::Kafka;
use crate::metrics::Scrape;
use crate::process::{Process, Signal, TempDir, eventually, free_port, loopback, run_on};
use crate::redis::Redis;
use crate::token;

/// Time limit until a pod is ready, on a busy machine.
pub const READY_WITHIN: Duration = Duration::from_secs(40);

/// Time limit for an answer of an operators' endpoint.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

// ---- the program ----------------------------------------------------------------------------------------------------

/// The path of the gateway's program, built from the same tree with the profile of this test.
///
/// # Panics
/// If the build fails.
#[must_use]
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // A test's program is target/<directory of the profile>/deps/<name>.
        let this = std::env::current_exe().expect("the test's own program");
        // A program that is not a test is in the directory itself.
        let deps = this.parent().filter(|parent| parent.ends_with("deps"));
        let directory = deps.unwrap_or(&this).parent().expect("a directory up");
        let profile = directory.file_name().and_then(|name| name.to_str()).expect("a profile's directory");
        let profile = if profile == "debug" { "dev" } else { profile };
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--workspace", "--bin", "shardgate", "--profile", profile, "--target-dir"]);
        cargo.arg(directory.parent().expect("the target directory")).current_dir(env!("CARGO_MANIFEST_DIR"));
        let status = cargo.status().expect("cargo runs the tests, so it is there");
        assert!(status.success(), "the gateway doesn't build");
        directory.join("shardgate")
    })
}

/// Result of a run of the program.
#[derive(Debug)]
pub struct Run {
    /// Its exit code. `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output and standard error.
    pub output: String,
}

/// Runs the program with only these arguments and this environment, and waits until it exits.
///
/// # Panics
/// If it does not exit.
#[must_use]
#[track_caller]
pub fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Run {
    let dir = TempDir::new("run");
    let mut command = Command::new(binary());
    command.args(arguments).env_clear().envs(environment.iter().copied()).current_dir(dir.path());
    let mut process = Process::start("shardgate", command, &dir.path().join("log"));
    let status = process.wait_exit(ANSWER_WITHIN);
    Run { code: status.code(), output: process.log() }
}

// ---- the world ------------------------------------------------------------------------------------------------------

/// The surroundings of a test's pods: a Kafka with one broker and a Redis.
pub struct World {
    /// The source of events.
    pub kafka: Kafka,
    /// Holds the cluster's slots.
    pub redis: Redis,
}

impl World {
    /// A world with the topics of the built-in routes: one partition for a market's ticks, three for each other topic.
    ///
    /// # Panics
    /// If a tool is missing. The message is one line that says how to install it.
    #[must_use]
    pub fn start() -> Self {
        let world = Self::without_topics();
        Self::create_topics(&world.kafka);
        world
    }

    /// Like [`Self::start`], with this Redis.
    #[must_use]
    pub fn with_redis(redis: Redis) -> Self {
        let _ = binary();
        let world = Self { kafka: Kafka::start(), redis };
        Self::create_topics(&world.kafka);
        world
    }

    /// Creates the topics of a world.
    pub(crate) fn create_topics(kafka: &Kafka) {
        let topics = Self::topics();
        kafka.create_all(&topics.iter().map(|(name, partitions)| (name.as_str(), *partitions)).collect::<Vec<_>>());
    }

    /// The topics of a world with their numbers of partitions.
    #[must_use]
    pub fn topics() -> Vec<(String, i32)> {
        let events = Kind::ALL.map(|kind| (kind.topic().to_owned(), 3));
        MARKETS.map(|market| (ticks_topic(market), 1)).into_iter().chain(events).collect()
    }

    /// A world without any topic.
    ///
    /// # Panics
    /// If a tool is missing. The message is one line that says how to install it.
    #[must_use]
    pub fn without_topics() -> Self {
        // Builds the gateway before the time limits of the test start.
        let _ = binary();
        Self { kafka: Kafka::start(), redis: Redis::start() }
    }

    /// The plan of a pod with this name.
    #[must_use]
    pub fn pod(&self, name: &str) -> Plan {
        Plan::new(name, self.kafka.bootstrap(), self.redis.port())
    }

    /// Starts three pods, `pod-0` to `pod-2`, and waits until all know each other.
    #[must_use]
    pub fn three_pods(&self, settings: &[(&str, &str)]) -> [Pod; 3] {
        self.three_of(|plan| plan.set_all(settings))
    }

    /// The same, by these plans.
    #[must_use]
    pub fn three_of(&self, plan: impl Fn(Plan) -> Plan) -> [Pod; 3] {
        let pods = [0, 1, 2].map(|number| plan(self.pod(&format!("pod-{number}"))).spawn());
        for pod in &pods {
            pod.ready();
        }
        self.settled(&pods);
        pods
    }

    /// Waits until as many slots are live as there are pods, and every pod redirects clients to every other pod.
    pub fn settled(&self, pods: &[Pod]) {
        eventually("each pod has a slot", READY_WITHIN, || (self.redis.live().len() == pods.len()).then_some(()));
        for pod in pods {
            for other in pods {
                eventually(&format!("{} redirects to {}", pod.name(), other.name()), READY_WITHIN, || {
                    let ids = (0..64).map(|number| format!("settle-{number}"));
                    ids.into_iter().any(|id| pod.owner_of(&id) == other.url()).then_some(())
                });
            }
        }
    }

    /// A producer for the world's Kafka.
    #[must_use]
    pub fn producer(&self) -> Producer {
        Producer::to(self.kafka.bootstrap())
    }
}

// ---- pods -----------------------------------------------------------------------------------------------------------

/// How to start a pod.
#[derive(Debug, Clone)]
pub struct Plan {
    name: String,
    host: Ipv4Addr,
    port: u16,
    admin_port: Option<u16>,
    environment: BTreeMap<String, String>,
    arguments: Vec<String>,
    log: Option<PathBuf>,
    errors: Option<Arc<OwnedFd>>,
    cores: Vec<usize>,
    descriptors: Option<u64>,
    locked_memory: Option<u64>,
    refusal: Option<Refusal>,
}

impl Plan {
    /// A pod with this name and these brokers and Redis, on its own address. Its lease and its refresh of topics are
    /// shorter than the defaults, so that tests are fast.
    #[must_use]
    pub fn new(name: &str, kafka: &str, redis_port: u16) -> Self {
        let host = loopback();
        let port = free_port(host);
        let plan = Self {
            name: name.to_owned(),
            host,
            port,
            admin_port: None,
            environment: BTreeMap::new(),
            arguments: Vec::new(),
            log: None,
            errors: None,
            cores: Vec::new(),
            descriptors: None,
            locked_memory: None,
            refusal: None,
        };
        plan.set("POD_NAME", name)
            .set("HOST", &host.to_string())
            .set("PORT", &port.to_string())
            .set("PUBLIC_URL", &format!("ws://{host}:{port}/ws"))
            .set("KAFKA_BROKERS", kafka)
            .set("REDIS_HOST", "127.0.0.1")
            .set("REDIS_PORT", &redis_port.to_string())
            .set("JWT_SECRET", token::SECRET)
            .set("LEASE_TTL_MS", "3000")
            .set("TOPIC_REFRESH_MS", "500")
            .set("RUST_BACKTRACE", "1")
            .on_engine(std::env::var("TEST_ENGINE").ok().as_deref())
    }

    /// `TEST_ENGINE`, where it is set for the tests, is every pod's `ENGINE`.
    fn on_engine(self, engine: Option<&str>) -> Self {
        match engine {
            Some(engine) => self.set("ENGINE", engine),
            None => self,
        }
    }

    /// Sets a setting.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Removes a setting, so that its default applies.
    #[must_use]
    pub fn unset(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// Sets settings.
    #[must_use]
    pub fn set_all(mut self, settings: &[(&str, &str)]) -> Self {
        self.environment.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self
    }

    /// Adds a command-line argument.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Appends its log to this file, which stays.
    #[must_use]
    pub fn log_to(mut self, file: &Path) -> Self {
        self.log = Some(file.to_owned());
        self
    }

    /// Redirects its standard error, and thereby its log.
    #[must_use]
    pub fn errors_to(mut self, errors: OwnedFd) -> Self {
        self.errors = Some(Arc::new(errors));
        self
    }

    /// Lets other pods look at it.
    #[must_use]
    pub fn with_looks(self) -> Self {
        let url = format!("http://{}:{}", self.host, self.port);
        self.set("PEER_URL", &url)
    }

    /// With operators' endpoints on a port of their own, where this token (`name:token`) is good.
    #[must_use]
    pub fn with_admin(mut self, token: &str) -> Self {
        let port = free_port(self.host);
        self.admin_port = Some(port);
        self.set("ADMIN_PORT", &port.to_string()).set("ADMIN_TOKEN", token)
    }

    /// Restricts it to these cores. An empty list allows all cores.
    #[must_use]
    pub fn on_cores(mut self, cores: &[usize]) -> Self {
        cores.clone_into(&mut self.cores);
        self
    }

    /// Limits its number of descriptors.
    #[must_use]
    pub fn descriptors(mut self, count: u64) -> Self {
        self.descriptors = Some(count);
        self
    }

    /// With so much memory that it may lock, in bytes.
    #[must_use]
    pub fn locked_memory(mut self, bytes: u64) -> Self {
        self.locked_memory = Some(bytes);
        self
    }

    /// Without some system calls.
    #[must_use]
    pub fn refused(mut self, refusal: Refusal) -> Self {
        self.refusal = Some(refusal);
        self
    }

    /// The address on which it will listen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.host, self.port))
    }

    /// The address of operators' endpoints.
    #[must_use]
    pub fn operators(&self) -> SocketAddr {
        SocketAddr::from((self.host, self.admin_port.unwrap_or(self.port)))
    }

    /// Starts it and waits until it is ready.
    #[must_use]
    #[track_caller]
    pub fn start(&self) -> Pod {
        let pod = self.spawn();
        pod.ready();
        pod
    }

    /// Starts it without waiting.
    #[must_use]
    #[track_caller]
    pub fn spawn(&self) -> Pod {
        let mut command = Command::new(binary());
        command.arg("serve").args(&self.arguments).env_clear().envs(&self.environment);
        let dir = TempDir::new("pod");
        command.current_dir(dir.path());
        run_on(&mut command, &self.cores);
        if let Some(count) = self.descriptors {
            limit_descriptors(&mut command, count);
        }
        if let Some(bytes) = self.locked_memory {
            limit_locked_memory(&mut command, bytes);
        }
        if let Some(refusal) = &self.refusal {
            refuse(&mut command, refusal);
        }
        let log = self.log.clone().unwrap_or_else(|| dir.path().join("log"));
        let errors = self.errors.as_ref().map(|errors| errors.try_clone().expect("a second handle of an open file"));
        let process = Process::start_with(&self.name, command, &log, errors);
        Pod { plan: self.clone(), process, _dir: dir }
    }
}

/// A started pod.
#[derive(Debug)]
pub struct Pod {
    plan: Plan,
    process: Process,
    _dir: TempDir,
}

impl Pod {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Its `PUBLIC_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        self.plan.environment["PUBLIC_URL"].clone()
    }

    /// The address on which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.plan.address()
    }

    /// The plan by which it was started. It can start another pod with the same name.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until `/ready` answers 200.
    ///
    /// # Panics
    /// If it exits, or is not ready within [`READY_WITHIN`].
    #[track_caller]
    pub fn ready(&self) {
        eventually(&format!("{} is ready", self.name()), READY_WITHIN, || {
            let ended = !Path::new(&format!("/proc/{}/fd/1", self.pid())).exists();
            assert!(!ended, "{} exited at startup\n{}", self.name(), self.process.log_tail());
            (self.try_get("/ready")?.status == 200).then_some(())
        });
    }

    /// GETs a path.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    #[track_caller]
    pub fn get(&self, path: &str) -> HttpResponse {
        let answer = http::get(self.plan.operators(), path, ANSWER_WITHIN);
        answer.unwrap_or_else(|error| panic!("{} of {}: {error:#}", path, self.name()))
    }

    /// Asks its `ADMIN_PORT` with this token.
    #[must_use]
    #[track_caller]
    pub fn operator(&self, token: &str, method: &str, path: &str, body: &str) -> HttpResponse {
        let authorization = format!("Authorization: Bearer {token}");
        let request = http::Request { method, path, headers: &[&authorization], body };
        let answer = http::send(self.plan.operators(), &request, ANSWER_WITHIN);
        answer.unwrap_or_else(|error| panic!("{method} {path} of {}: {error:#}", self.name()))
    }

    /// GETs a path. `None` if there is no answer.
    #[must_use]
    pub fn try_get(&self, path: &str) -> Option<HttpResponse> {
        http::get(self.plan.operators(), path, ANSWER_WITHIN).ok()
    }

    /// Its metrics, parsed strictly.
    ///
    /// # Panics
    /// If they are not valid OpenMetrics.
    #[must_use]
    #[track_caller]
    pub fn metrics(&self) -> Scrape {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200);
        let media = answer.header("content-type").unwrap_or_default();
        assert!(media.starts_with("application/openmetrics-text; version=1.0.0"), "{media}");
        Scrape::parse(&answer.text()).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Waits until the sum of a metric over all labels is `value`.
    ///
    /// # Panics
    /// If that does not happen in time, or a counter is already beyond it.
    #[track_caller]
    pub fn await_metric(&self, name: &str, value: f64) {
        let mut last = f64::NAN;
        let is = || {
            last = self.metrics().sum(name);
            (last == value).then_some(())
        };
        let deadline = Instant::now() + READY_WITHIN;
        let mut is = is;
        while is().is_none() {
            assert!(Instant::now() < deadline, "{name} of {} is {last}, not {value}", self.name());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A request to this pod.
    #[must_use]
    pub fn ask(&self) -> Ask {
        Ask::to(&self.url())
    }

    /// A client of market data.
    #[must_use]
    #[track_caller]
    pub fn market_client(&self) -> Client {
        self.ask().open()
    }

    /// A client that subscribes to an assessment.
    #[must_use]
    #[track_caller]
    pub fn client(&self, assessment: &str) -> Client {
        self.ask().assessment(assessment).open()
    }

    /// The URL of the pod that serves an assessment according to this pod: its own, or that of its redirect.
    ///
    /// # Panics
    /// If the first message is neither `connected` nor a redirect.
    #[must_use]
    #[track_caller]
    pub fn owner_of(&self, assessment: &str) -> String {
        let claims = json!({ "userId": token::USER, "assessments": [assessment] });
        let mut client = self.ask().assessment(assessment).token(&token::signed(&claims)).open();
        let first = client.expect("a first message", |_| true);
        match first.kind.as_str() {
            "connected" => self.url(),
            "Redirect" => first.json()["url"].as_str().expect("a redirect has a URL").to_owned(),
            _ => panic!("neither connected nor a redirect: {}", first.text),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until it exits.
    ///
    /// # Panics
    /// If it does not exit `within` the time.
    #[track_caller]
    pub fn wait_exit(&mut self, within: Duration) -> ExitStatus {
        self.process.wait_exit(within)
    }

    /// Its exit status, if it has exited.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.process.exited()
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Its anonymous memory, in bytes (RssAnon: heap and stacks, no program text).
    ///
    /// # Panics
    /// If it has exited.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the pod is running");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux since 4.5");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
        kib * 1024
    }
}

/// Checks in every test that the log holds no token, no secret and no panic.
impl Drop for Pod {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        let log = self.log();
        // The base64url form of the start of a JSON object, with which every token begins.
        assert!(!log.contains("eyJ"), "{} logged a token", self.name());
        assert!(!log.contains(token::SECRET), "{} logged the secret", self.name());
        assert!(!log.contains("panicked at"), "{} panicked: {}", self.name(), self.process.log_tail());
    }
}
