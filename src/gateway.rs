//! The pod: builds, connects, drains and stops its parts.
//!
//! - [`engine`]: what the shards run on.
//! - [`check`]: whether a pod would reach what it needs.
//! - [`machine`]: limits of the machine.
//! - [`listeners`]: the ports.
//! - `refusal_summary`: the lines about refused clients.
//! - `routes_info`: the metric of the routes in force.
//! - `control`: the loop of the control thread, which is the thread that calls [`run`].

pub mod check;
mod control;
pub(crate) mod engine;
pub(crate) mod listeners;
pub mod machine;
mod refusal_summary;
mod routes_info;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::Receiver;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{error, info};

use self::control::Control;
use self::engine::{Choice, IoUringForbidden};
use self::listeners::{ListenError, Listeners};
use self::routes_info::RoutesInfo;
use crate::clock::{Now, whole_ms};
use crate::config::{Config, Engine, InvalidConfig};
use crate::cores::Cores;
use crate::discovery::{self, ClusterMode, ClusterState, Intent};
use crate::exchange::{
    FleetChannels, HttpRequest, Publication, PublishedPodState, PublishedRoutes, RefreshRequest, RevokeRequest,
    RevokeSender, ShardHandle, ShardInbox, TokenCheck, TokenChecks, shard_channel,
};
use crate::ids::{ConnectionIds, ShardIndex};
use crate::limits::{
    ADMIN_REQUESTS_MAX, FLEET_MESSAGES_MAX, HTTP_CHANNEL_DEPTH, REVOKE_CHANNEL_DEPTH, THREADS_END_MAX,
};
use crate::operations::admin::fleet::{self, Fleet};
use crate::operations::admin::{Admin, AdminParts};
use crate::operations::http::{self, Site};
use crate::operations::log::Log;
use crate::operations::log_level::LogLevel;
use crate::operations::pages::Pages;
use crate::operations::readiness::{Readiness, Threads};
use crate::protocol::auth::{KeySets, Verifier};
use crate::protocol::head;
use crate::routing::table::RouteTable;
use crate::shutdown::signals::Signals;
use crate::{identity, ingest, shard};

/// Poll interval for the end of the threads.
const JOIN_POLL: Duration = Duration::from_millis(5);

/// Why a pod does not start, or does not end cleanly. Exit code 1.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// A port cannot be bound.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The machine forbids io_uring, which the shards need.
    #[error(transparent)]
    Machine(#[from] IoUringForbidden),
    /// Ingest cannot start.
    #[error("ingest cannot start: {0}")]
    Ingest(#[from] ingest::StartError),
    /// The kernel refuses a thread.
    #[error("a thread cannot be started: {0}")]
    Thread(io::Error),
    /// Key sets can't be kept.
    #[error("JWT_JWKS can't be used: {0}")]
    Identity(io::Error),
    /// The control thread has no event loop or no signals.
    #[error("the control thread cannot start: {0}")]
    Control(io::Error),
    /// Some thread did not end.
    #[error("some threads did not end within {THREADS_END_MAX:?}")]
    Stuck,
}

/// Parts of the process that a pod uses.
pub struct ProcessHandles {
    /// The log: its count of dropped lines is a metric, and the last lines are written before a panic or a second
    /// signal ends the process.
    pub log: Log,
    /// Reads the routes again.
    pub read_routes: Box<dyn Fn() -> Result<RouteTable, InvalidConfig>>,
}

/// Runs a pod on this thread and the threads that it starts, until a signal has drained it.
///
/// # Errors
/// Why it did not start, or did not end cleanly.
pub fn run(config: Config, membership: ClusterMode, process: &ProcessHandles) -> Result<(), GatewayError> {
    let started = Instant::now();
    abort_on_panic(process.log.clone());
    machine::raise_descriptor_limit();
    let engine = engine::choose(config.engine)?;
    let listeners = Listeners::bind(config.host, config.port, config.admin_port, config.shard.shards)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(GatewayError::Control)?;
    // Before anything starts, so that a signal during the start drains the pod, too.
    let signals = runtime.block_on(async { Signals::listen() }).map_err(GatewayError::Control)?;
    let cores = Cores::share(config.shard.shards);
    log_start(&config, membership, &listeners, &cores, engine);

    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    process.log.register(&mut registry);
    let mut exchange = Exchange::new(&config);
    registry.register_collector(Box::new(RoutesInfo(Arc::clone(&exchange.routes))));
    let (http_sender, http_requests) = mpsc::channel(HTTP_CHANNEL_DEPTH);
    let mut threads = exchange.spawn_shards(&config, &metrics, listeners.shards, &cores, engine.engine, http_sender)?;
    threads.push(exchange.spawn_ingest(&config, &metrics, &cores)?);
    let identity = exchange.identity(&config);
    runtime.block_on(async { identity::start(identity, &mut registry) }).map_err(GatewayError::Identity)?;

    let (publications, publications_in) = mpsc::channel(ADMIN_REQUESTS_MAX);
    let (messages_in, messages) = mpsc::channel(FLEET_MESSAGES_MAX);
    let fleet = FleetChannels { publications: publications_in, messages: messages_in };
    let shard_metrics = metrics.shard.clone();
    let log = process.log.clone();
    let log_level = Arc::new(LogLevel::new(config.log, move |level| log.set_level(level)));
    let admin = admin(&config, &exchange, publications, &log_level);
    let (shards, ids) = (exchange.shard_handles.clone(), exchange.connection_ids.clone());
    let (control, discovery, readiness) = connect(&config, exchange, fleet, metrics, (started, log_level));
    let pages = Pages::new(config.node.clone(), readiness, control.threads.clone(), registry);
    runtime.block_on(async {
        serve_operators(pages, http_requests, admin, listeners.admin).map_err(GatewayError::Control)?;
        tokio::spawn(discovery::run(membership, discovery));
        tokio::spawn(fleet::follow(messages, shards, ids));
        tokio::spawn(refusal_summary::run(shard_metrics.clone()));
        control.run(signals, process).await;
        refusal_summary::log(&shard_metrics);
        join(threads).await
    })?;
    info!(elapsed_ms = whole_ms(started.elapsed()), "stopped");
    Ok(())
}

/// Builds what the control thread runs, its loop and discovery, and the channels between them and to the pages.
fn connect(
    config: &Config,
    exchange: Exchange,
    fleet: FleetChannels,
    metrics: Metrics,
    (started, log_level): (Instant, Arc<LogLevel>),
) -> (Control, discovery::Parts, watch::Receiver<Readiness>) {
    let (intent, intent_seen) = watch::channel(Intent::Watch);
    let (cluster, cluster_seen) = watch::channel(ClusterState::default());
    let (readiness, readiness_seen) = watch::channel(Readiness::default());
    let discovery = discovery::Parts {
        config: config.redis.clone(),
        node: config.node.clone(),
        url: Arc::clone(&config.public_url),
        peer_url: config.peer_url.clone(),
        place_anywhere: config.shard.place_anywhere,
        intent: intent_seen,
        cluster,
        refresh: exchange.refresh,
        fleet,
        revoke: exchange.revoke.1,
        metrics: metrics.discovery,
    };
    let control = Control {
        pod_state: exchange.pod_state,
        shard_handles: exchange.shard_handles,
        threads: exchange.threads,
        intent,
        cluster: cluster_seen,
        readiness,
        routes: exchange.routes,
        verifier: Verifier::new(&config.auth, exchange.keys),
        reload: exchange.reload,
        drain: config.drain,
        log_level,
        started,
        was_ready_logged: false,
        wait: None,
    };
    (control, discovery, readiness_seen)
}

/// A panic on any thread logs its message and ends the process: half a gateway that keeps its lease is worse than none.
/// The standard hook could block on standard error.
fn abort_on_panic(log: Log) {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        error!(thread = thread.name().unwrap_or("unnamed"), error = %panic, backtrace, "thread panicked; the process ends");
        log.flush();
        std::process::abort();
    }));
}

fn log_start(config: &Config, membership: ClusterMode, listeners: &Listeners, cores: &Cores, engine: Choice) {
    let pinned: Vec<usize> = cores.ingest.into_iter().chain(cores.shards.iter().copied().flatten()).collect();
    info!(
        version = env!("CARGO_PKG_VERSION"),
        name = %config.node,
        url = %config.public_url,
        listen = %SocketAddr::new(config.host, listeners.port),
        admin_port = config.admin_port,
        shards = config.shard.shards,
        cores = ?pinned,
        kafka = %config.kafka.brokers,
        redis = (membership == ClusterMode::Redis).then_some(config.redis.servers.to_string()),
        "shardgate starts"
    );
    info!(engine = engine.engine.name(), reason = %engine.why, "engine chosen");
}

/// The registered metrics of the parts.
struct Metrics {
    shard: shard::Metrics,
    ingest: ingest::Metrics,
    discovery: discovery::Metrics,
}

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("shardgate_build", "The gateway's version", version);
        Self {
            shard: shard::Metrics::register(registry),
            ingest: ingest::Metrics::register(registry),
            discovery: discovery::Metrics::register(registry),
        }
    }
}

/// The shared state of the threads.
struct Exchange {
    pod_state: PublishedPodState,
    routes: PublishedRoutes,
    refresh: RefreshRequest,
    connection_ids: ConnectionIds,
    shard_handles: Vec<ShardHandle>,
    inboxes: Vec<ShardInbox>,
    threads: Threads,
    keys: Arc<KeySets>,
    token_checks: (TokenChecks, Receiver<TokenCheck>),
    /// Has key sets read again.
    reload: watch::Sender<u64>,
    revoke: (RevokeSender, mpsc::Receiver<RevokeRequest>),
}

impl Exchange {
    fn new(config: &Config) -> Self {
        let shards = config.shard.shards;
        let (shard_handles, inboxes) = (0..shards).map(|_| shard_channel()).unzip();
        let threads = Threads { ingest: Arc::default(), shards: (0..shards).map(|_| Arc::default()).collect() };
        Self {
            pod_state: PublishedPodState::default(),
            routes: Arc::new(ArcSwap::from_pointee(config.routes.clone())),
            refresh: RefreshRequest::default(),
            connection_ids: ConnectionIds::new(&config.node, Now::read().unix),
            shard_handles,
            inboxes,
            threads,
            keys: identity::key_sets(&config.key_sets),
            token_checks: TokenChecks::channel(),
            reload: watch::Sender::new(0),
            revoke: mpsc::channel(REVOKE_CHANNEL_DEPTH),
        }
    }

    fn identity(&self, config: &Config) -> identity::Parts {
        let ((checks, asked), reload) = (self.token_checks.clone(), self.reload.subscribe());
        identity::Parts { config: config.key_sets.clone(), keys: Arc::clone(&self.keys), checks, asked, reload }
    }

    fn spawn_shards(
        &mut self,
        config: &Config,
        metrics: &Metrics,
        listeners: Vec<std::net::TcpListener>,
        cores: &Cores,
        engine: Engine,
        http: mpsc::Sender<HttpRequest>,
    ) -> Result<Vec<JoinHandle<()>>, GatewayError> {
        let head_rules = head::Rules {
            allowed_origins: config.allowed_origins.clone(),
            operators: config.admin_port.is_none(),
            head_bytes_max: config.head_bytes_max,
            trusted_proxies: config.trusted_proxies.clone(),
        };
        let pod = Arc::new(shard::PodLimits::new(&config.shard, &config.admission));
        let inboxes = std::mem::take(&mut self.inboxes);
        let each = (0..).zip(inboxes).zip(listeners).zip(&cores.shards).zip(&self.threads.shards);
        let spawned = each.map(|((((index, inbox), listener), core), status)| {
            shard::spawn(shard::Parts {
                index: ShardIndex(index),
                core: *core,
                engine,
                config: config.shard.clone(),
                admission: config.admission.clone(),
                drain: config.drain,
                auth: config.auth.clone(),
                keys: Arc::clone(&self.keys),
                token_checks: self.token_checks.0.clone(),
                head_rules: head_rules.clone(),
                node: config.node.clone(),
                connection_ids: self.connection_ids.clone(),
                listener,
                inbox,
                shard_handles: self.shard_handles.clone(),
                http: http.clone(),
                pod_state: Arc::clone(&self.pod_state),
                refresh: Arc::clone(&self.refresh),
                status: Arc::clone(status),
                pod: Arc::clone(&pod),
                metrics: metrics.shard.clone(),
                malformed: metrics.ingest.skipped(ingest::SkipReason::Malformed),
            })
        });
        spawned.collect::<Result<_, _>>().map_err(GatewayError::Thread)
    }

    fn spawn_ingest(&self, config: &Config, metrics: &Metrics, cores: &Cores) -> Result<JoinHandle<()>, GatewayError> {
        let parts = ingest::Parts {
            config: config.kafka.clone(),
            routes: Arc::clone(&self.routes),
            indexes: ingest::IndexRules::new(config.kafka.history, config.kafka.topic_refresh),
            shards: self.shard_handles.clone(),
            pod_state: Arc::clone(&self.pod_state),
            place_anywhere: config.shard.place_anywhere,
            status: Arc::clone(&self.threads.ingest),
            metrics: metrics.ingest.clone(),
            core: cores.ingest,
            has_own_core: cores.has_ingest_its_own(),
        };
        Ok(ingest::spawn(parts)?)
    }
}

/// The pages that need a token, if `ADMIN_TOKEN` is set.
fn admin(
    config: &Config,
    exchange: &Exchange,
    publications: mpsc::Sender<Publication>,
    log_level: &Arc<LogLevel>,
) -> Option<Admin> {
    Some(Admin::new(AdminParts {
        tokens: config.admin_tokens.clone()?,
        node: config.node.clone(),
        place_anywhere: config.shard.place_anywhere,
        pod_state: Arc::clone(&exchange.pod_state),
        settings: config.settings.clone(),
        log_level: Arc::clone(log_level),
        revoke: exchange.revoke.0.clone(),
        shards: exchange.shard_handles.clone(),
        connection_ids: exchange.connection_ids.clone(),
        fleet: Fleet::new(publications, exchange.connection_ids.clone()),
    }))
}

/// Starts the tasks that answer operators.
fn serve_operators(
    pages: Pages,
    requests: mpsc::Receiver<HttpRequest>,
    admin: Option<Admin>,
    admin_port: Option<std::net::TcpListener>,
) -> io::Result<()> {
    let pages = Arc::new(pages);
    tokio::spawn(http::serve_passed_on(Site::new(&pages, None), requests));
    if let Some(listener) = admin_port {
        tokio::spawn(http::serve_admin(Site::new(&pages, admin), tokio::net::TcpListener::from_std(listener)?));
    }
    Ok(())
}

/// Waits for the threads, which have been told to end. A panic of one has ended the process already.
async fn join(threads: Vec<JoinHandle<()>>) -> Result<(), GatewayError> {
    let all_ended = async {
        while !threads.iter().all(JoinHandle::is_finished) {
            sleep(JOIN_POLL).await;
        }
    };
    timeout(THREADS_END_MAX, all_ended).await.map_err(|_| GatewayError::Stuck)
}
