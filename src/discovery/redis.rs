//! The edge to Redis: one connection for calls, one for announcements, a time limit on every step.
//! [`super::membership`] decides what to call and what the answers mean.

mod announcements;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Script};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep_until, timeout};
use tracing::{error, info, warn};

use self::announcements::{Announcement, Announcements, Channels, Listener, next, revocation};
use super::membership::{Identity, Member, Notice};
use super::peer_looks;
use super::peers::{Look, PeerChange};
use super::redis_health::LeaseTimes;
use super::redis_link::{NoHashTag, RedisLink};
use super::revocation_book::RevocationBook;
use super::wire::{BadAnswer, Call, Snapshot};
use super::{ClusterState, Intent, Metrics, Parts};
use crate::clock::{Now, UnixMs, whole_ms};
use crate::config::RedisConfig;
use crate::exchange::{Publication, RevokeRequest, Spread};
use crate::limits::{REVOCATIONS_A_STEP, REVOCATIONS_MAX};
use crate::outage::{OutageLine, OutageLog};
use crate::protocol::auth::Revocation;

/// The scripts' texts.
const SLOTS_SCRIPT: &str = include_str!("slots.lua");
const REVOCATIONS_SCRIPT: &str = include_str!("revocations.lua");

/// A field of a hash, and its value.
type Field = (Vec<u8>, Vec<u8>);

/// Pods that a log line names. If there are more, it gives their number.
const PODS_LOGGED_MAX: usize = 16;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
enum CallError {
    /// Redis refused, or the connection broke.
    #[error("{0}")]
    Redis(#[from] RedisError),
    /// No answer arrived in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The answer is not the script's.
    #[error("{0}")]
    Answer(#[from] BadAnswer),
    /// Another node of a Redis Cluster has the key.
    #[error("{0}")]
    NoHashTag(#[from] NoHashTag),
    /// The call cannot be serialized: a bug of ours.
    #[error("the call is no JSON: {0}")]
    Call(serde_json::Error),
}

/// Runs membership over Redis until the intent's sender is gone.
pub(super) async fn run(parts: Parts) {
    let times = LeaseTimes::of(parts.config.lease);
    let link = match RedisLink::new(&parts.config, times.call) {
        Ok(link) => link,
        // The settings' certificates were parsed, but the system's may be unreadable; `/ready` keeps reporting it.
        Err(error) => return error!(%error, "no TLS to Redis"),
    };
    let identity = Identity {
        node: parts.node.clone(),
        instance: new_instance(),
        url: Arc::clone(&parts.url),
        peer_url: parts.peer_url.clone(),
        owns_url: !parts.place_anywhere,
        key_prefix: parts.config.key_prefix.clone(),
    };
    let channels = Channels::new(&parts.config.key_prefix);
    let connections = RedisConnections {
        link,
        times,
        calls: None,
        announcements: None,
        messages: parts.fleet.messages.clone(),
        slots_script: Script::new(SLOTS_SCRIPT),
        revocations_script: Script::new(REVOCATIONS_SCRIPT),
        metrics: parts.metrics.clone(),
    };
    let session = RedisSession {
        member: Member::new(identity, times),
        connections,
        channels,
        address: parts.config.servers.to_string().into(),
        outage: OutageLog::default(),
        looks: JoinSet::new(),
        revocations: RevocationBook::default(),
        revocations_are_read: false,
        parts,
    };
    session.run().await;
}

/// Asks for the number of fields in the slots hash.
///
/// # Errors
/// Why there is no answer.
pub(super) async fn check(config: &RedisConfig) -> Result<u64, String> {
    let limit = LeaseTimes::of(config.lease).call;
    let mut link = RedisLink::new(config, limit).map_err(|error| error.to_string())?;
    loop {
        let asked = async {
            let mut connection = link.calls().await?;
            redis::cmd("HLEN").arg(slots_key(&config.key_prefix)).query_async(&mut connection).await
        };
        match within(limit, asked).await {
            Err(CallError::Redis(error)) if link.follow(&error).map_err(|error| error.to_string())? => {}
            outcome => return outcome.map_err(|error| error.to_string()),
        }
    }
}

/// The key of the slots hash.
fn slots_key(prefix: &str) -> String {
    format!("{prefix}:slots")
}

/// Makes a name for this process that no other has. It must be unique, not secret: the seeds of the standard library's
/// hasher are random enough.
fn new_instance() -> Arc<str> {
    let random = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", random(), random()).into()
}

struct RedisSession {
    parts: Parts,
    member: Member,
    connections: RedisConnections,
    channels: Channels,
    address: Box<str>,
    outage: OutageLog,
    /// Looks at other pods that are under way.
    looks: JoinSet<LookOutcome>,
    revocations: RevocationBook,
    /// Whether all were read since the connections were made. Before, announcements may have been missed.
    revocations_are_read: bool,
}

/// A look at another pod that has ended.
struct LookOutcome {
    look: Look,
    is_there: bool,
    began: Instant,
}

impl RedisSession {
    async fn run(mut self) {
        self.follow_intent();
        loop {
            let call_at = self.member.call_at().unwrap_or_else(Instant::now);
            let look_at = self.member.look_at();
            tokio::select! {
                // The intent comes first, so that a slot to release is not renewed before.
                biased;
                changed = self.parts.intent.changed() => match changed {
                    Ok(()) => self.follow_intent(),
                    Err(_) => return,
                },
                () = sleep_until(call_at.into()) => self.call().await,
                Some(Ok(outcome)) = self.looks.join_next() => self.handle_look(&outcome),
                () = sleep_until(look_at.unwrap_or(call_at).into()), if look_at.is_some() => self.begin_looks(),
                Some(publication) = self.parts.fleet.publications.recv() => self.publish_for_operator(publication).await,
                () = self.parts.refresh.notified() => self.member.handle_refresh_request(Instant::now()),
                announcement = next(&mut self.connections.announcements) => self.handle_announcement(announcement),
                Some(request) = self.parts.revoke.recv() => self.revoke(request).await,
            }
            self.publish();
        }
    }

    fn follow_intent(&mut self) {
        let now = Instant::now();
        match *self.parts.intent.borrow_and_update() {
            Intent::Watch => {}
            Intent::Serve => self.member.handle_history_complete(now),
            Intent::Drain => self.member.handle_drain(now),
        }
    }

    async fn call(&mut self) {
        let began = Instant::now();
        self.parts.metrics.calls.inc();
        let answer = match self.connections.connect(&self.channels).await {
            // Connecting may have taken a while, and the call carries the time when it is sent.
            Ok(()) => {
                let sent = Instant::now();
                self.connections.call(&self.member.call(sent), &self.key(), &self.channels).await
            }
            Err(error) => Err(error),
        };
        let now = Instant::now();
        match answer {
            Ok(snapshot) => {
                self.member.handle_snapshot(began, now, snapshot);
                if let Some(line) = self.outage.handle_success(now) {
                    self.log_reached(line);
                }
                if !self.revocations_are_read {
                    self.read_revocations().await;
                }
            }
            Err(error) => {
                self.connections.close();
                self.revocations_are_read = false;
                self.parts.metrics.calls_failed.inc();
                self.member.handle_failure(now);
                if let Some(line) = self.outage.handle_failure(began, now) {
                    self.log_not_reached(line, &error);
                }
            }
        }
    }

    /// Publishes an operator's message, unless the operator has been told that Redis does not answer.
    async fn publish_for_operator(&mut self, Publication { text, answer }: Publication) {
        if answer.is_closed() {
            return;
        }
        let published = match &mut self.connections.calls {
            Some(connection) if self.member.is_redis_up() => {
                let mut command = redis::cmd("PUBLISH");
                command.arg(&self.channels.operators).arg(text);
                within(self.connections.times.call, command.query_async::<u64>(connection)).await
            }
            _ => Err(CallError::TimedOut(Duration::ZERO)),
        };
        if let Err(error) = &published {
            warn!(%error, "an operator's request did not reach the other pods");
        }
        // A caller that has given up needs no answer.
        let _ = answer.send(published.ok());
    }

    fn handle_announcement(&mut self, announcement: Option<Announcement>) {
        let now = Instant::now();
        match announcement {
            Some(Announcement::Left(node)) => self.member.handle_leave(node, now),
            Some(Announcement::Revoked(revocation)) => {
                self.learn(&[revocation]);
            }
            Some(Announcement::Other) => self.member.handle_announcement(now),
            None => {
                // The connection is gone: the next call opens a new one, and shows whether Redis is up.
                self.connections.announcements = None;
                self.revocations_are_read = false;
                self.member.handle_announcement(now);
            }
        }
    }

    // ---- revocations ------------------------------------------------------------------------------------------------

    /// Puts a revocation in force here at once, and on all pods if Redis takes it.
    async fn revoke(&mut self, RevokeRequest { revocation, answer }: RevokeRequest) {
        let has_room = self.learn(std::slice::from_ref(&revocation));
        let spread = if has_room {
            // Here it holds before it is answered, however long Redis takes to fail: the control thread's other task, which
            // this wakes, publishes it for the shards before this one goes on.
            self.publish();
            yield_now().await;
            match self.connections.revoke(&revocation, &self.channels.revocations).await {
                Ok(true) => Spread::AllPods,
                Ok(false) => Spread::Nowhere,
                Err(error) => {
                    warn!(%error, "revocation not stored: Redis gets it when it is back");
                    self.revocations.keep_unsent(revocation);
                    self.revocations_are_read = false;
                    Spread::ThisPod
                }
            }
        } else {
            Spread::Nowhere
        };
        // It fails if the operator has gone.
        let _ = answer.send(spread);
    }

    /// Reads all revocations, and stores those that Redis has not got yet.
    async fn read_revocations(&mut self) {
        match self.connections.read_revocations(&self.channels.revocations).await {
            Ok(all) => {
                self.learn(&all);
            }
            Err(error) => return warn!(%error, "revocations can't be read"),
        }
        for revocation in self.revocations.take_unsent() {
            if self.connections.revoke(&revocation, &self.channels.revocations).await.is_err() {
                self.revocations.keep_unsent(revocation);
            }
        }
        self.revocations_are_read = true;
    }

    fn learn(&mut self, revocations: &[Revocation]) -> bool {
        let had_room = self.revocations.learn(revocations, Now::read().unix);
        let in_force = i64::try_from(self.revocations.in_force().len()).unwrap_or(i64::MAX);
        self.parts.metrics.revocations.set(in_force);
        had_room
    }

    fn begin_looks(&mut self) {
        let began = Instant::now();
        for look in self.member.take_looks(began) {
            self.parts.metrics.peer_looks.inc();
            self.looks.spawn(async move {
                let is_there = peer_looks::is_there(&look.url).await;
                LookOutcome { look, is_there, began }
            });
        }
    }

    fn handle_look(&mut self, outcome: &LookOutcome) {
        if !outcome.is_there {
            self.parts.metrics.peer_looks_failed.inc();
        }
        self.member.handle_look(&outcome.look, outcome.is_there, outcome.began, Instant::now());
    }

    fn key(&self) -> String {
        slots_key(&self.parts.config.key_prefix)
    }

    fn publish(&mut self) {
        for notice in self.member.take_notices() {
            self.log(&notice);
        }
        let now = ClusterState {
            redis_up: self.member.is_redis_up(),
            view: Arc::clone(self.member.view()),
            as_of: self.member.as_of(),
            confirmed: self.member.is_confirmed(),
            silent: self.member.silent(),
            revocations: self.revocations.in_force(),
            own_slot: self.member.own_slot(),
            left: self.member.has_left(),
        };
        self.parts.metrics.publish(&now);
        self.parts.metrics.publish_ignored(self.member.fields_ignored());
        self.parts.metrics.peers_gone.set(i64::try_from(self.member.peers().gone()).unwrap_or(i64::MAX));
        self.parts.cluster.send_if_modified(|before| {
            let changed = before.redis_up != now.redis_up
                || before.own_slot != now.own_slot
                || before.left != now.left
                || before.as_of != now.as_of
                || before.confirmed != now.confirmed
                || before.silent != now.silent
                || !Arc::ptr_eq(&before.revocations, &now.revocations)
                || !Arc::ptr_eq(&before.view, &now.view);
            *before = now;
            changed
        });
    }

    fn log_reached(&self, line: OutageLine) {
        match line {
            OutageLine::Ended(outage) => {
                info!(redis = %self.address, elapsed_ms = whole_ms(outage), "Redis connection restored");
            }
            _ => info!(redis = %self.address, "connected to Redis"),
        }
    }

    fn log_not_reached(&self, line: OutageLine, error: &CallError) {
        let address = &self.address;
        match line {
            OutageLine::Continues(outage) => {
                let since = UnixMs(Now::read().unix.0.saturating_sub(whole_ms(outage)));
                warn!(redis = %address, %since, elapsed_ms = whole_ms(outage), %error, "Redis still unreachable; the last known view stays in force");
            }
            _ => warn!(redis = %address, %error, "Redis unreachable; the last known view stays in force"),
        }
    }

    fn log(&self, notice: &Notice) {
        let node = &self.parts.node;
        match notice {
            Notice::Claimed(slot) => info!(%slot, "slot claimed"),
            Notice::Lost(slot) => warn!(%slot, "slot lost to another pod; claiming a new one"),
            Notice::Displaced(slot) => {
                error!(%slot, name = %node, "another process with this pod's name took over its slot; claiming a new one. Give each pod its \
                 own POD_NAME");
            }
            Notice::NameShared(slot) => {
                error!(%slot, name = %node, "another process with this pod's name holds a slot. Give each pod its own POD_NAME");
            }
            Notice::UrlShared(other, slot) => {
                error!(peer = %other, %slot, url = %self.parts.url, "another pod has this pod's PUBLIC_URL, and clients bounce between the two. Give each pod its own \
                 PUBLIC_URL, or set PLACEMENT=any behind a load balancer");
            }
            Notice::MemoryLost => warn!("Redis lost its data; pods claim their slots again"),
            Notice::FieldsIgnored(fields, example) => {
                warn!(fields, field = example, key = %self.key(), "ignoring foreign fields in the slots hash; they can be removed");
            }
            Notice::PeerChanged(PeerChange { node: peer, is_gone: true, silent }) => {
                warn!(%peer, elapsed_ms = whole_ms(*silent), "pod gone: it does not answer; its assessments are taken over before its lease has run out");
            }
            Notice::PeerChanged(PeerChange { node: peer, silent, .. }) => {
                info!(%peer, elapsed_ms = whole_ms(*silent), "pod back: it answers again");
            }
            Notice::CutOff(true) => {
                warn!("no other pod answers: this pod seems to be cut off, and counts none of them as gone");
            }
            Notice::CutOff(false) => info!("another pod answers again"),
            Notice::ClockStepped(ms) => {
                warn!(step_ms = ms, "the clock of Redis stepped; leases are not expired for one lease");
            }
            Notice::Left => info!("slot released"),
            Notice::ViewChanged => {
                let view = self.member.view();
                let pods = view.live().count();
                let live = view.live().take(PODS_LOGGED_MAX).map(|(slot, pod)| format!("{slot}={}", pod.node));
                let mut live = live.collect::<Vec<_>>().join(" ");
                if pods > PODS_LOGGED_MAX {
                    live.push_str(" …");
                }
                info!(view_version = view.version, slots = view.slots.len(), pods, nodes = live, "view changed");
            }
        }
    }
}

/// The connections. After a failed call both are replaced, because the state of a connection that answered late is
/// unknown.
struct RedisConnections {
    link: RedisLink,
    times: LeaseTimes,
    calls: Option<MultiplexedConnection>,
    announcements: Option<Announcements>,
    /// Takes messages of other pods' operators.
    messages: mpsc::Sender<Box<str>>,
    slots_script: Script,
    revocations_script: Script,
    metrics: Metrics,
}

impl RedisConnections {
    fn close(&mut self) {
        self.link.close();
        self.calls = None;
        self.announcements = None;
    }

    /// Opens the missing connections.
    async fn connect(&mut self, channels: &Channels) -> Result<(), CallError> {
        let limit = self.times.call;
        if self.calls.is_none() {
            self.calls = Some(within(limit, self.link.calls()).await?);
            self.metrics.connections.inc();
        }
        if self.announcements.is_none() {
            let subscribing = async {
                let mut connection = self.link.announcements().await?;
                connection.subscribe(&[&channels.join, &channels.leave, &channels.revocations]).await?;
                match connection.subscribe(&channels.operators).await {
                    Err(error) if error.is_io_error() || error.is_unrecoverable_error() => return Err(error),
                    Err(error) => {
                        warn!(%error, channel = channels.operators, "not subscribed: what operators of other pods ask does not reach this one");
                    }
                    Ok(()) => {}
                }
                Ok(connection)
            };
            let connection = within(limit, subscribing).await?;
            self.metrics.connections.inc();
            let dropped = self.metrics.announcements_dropped.clone();
            let listener = Listener { channels: channels.clone(), messages: self.messages.clone(), dropped };
            self.announcements = Some(Announcements::hear(connection, listener, limit));
        }
        Ok(())
    }

    /// Runs the script, in a Redis Cluster on the node that has the key.
    async fn call(&mut self, call: &Call, key: &str, channels: &Channels) -> Result<Snapshot, CallError> {
        match self.call_once(call, key).await {
            Err(CallError::Redis(error)) if self.link.follow(&error)? => {
                self.calls = None;
                self.connect(channels).await?;
                self.call_once(call, key).await
            }
            outcome => outcome,
        }
    }

    async fn call_once(&mut self, call: &Call, key: &str) -> Result<Snapshot, CallError> {
        let limit = self.times.call;
        let Some(connection) = &mut self.calls else { return Err(CallError::TimedOut(Duration::ZERO)) };
        let call = serde_json::to_string(call).map_err(CallError::Call)?;
        let mut invocation = self.slots_script.key(key);
        invocation.arg(call);
        let answer: Vec<Vec<u8>> = within(limit, invocation.invoke_async(connection)).await?;
        Ok(Snapshot::parse(&answer)?)
    }

    /// Stores a revocation, and tells all pods; returns whether there was room. `name` is the hash's and the channel's.
    async fn revoke(&mut self, revocation: &Revocation, name: &str) -> Result<bool, CallError> {
        let limit = self.times.call;
        let Some(connection) = &mut self.calls else { return Err(CallError::TimedOut(Duration::ZERO)) };
        let mut invocation = self.revocations_script.key(name);
        invocation.arg(revocation.subject.field()).arg(revocation.value()).arg(name).arg(REVOCATIONS_MAX);
        within(limit, invocation.invoke_async(connection)).await
    }

    /// Reads all revocations in steps, so that Redis is not held up. What another program has written is passed over.
    async fn read_revocations(&mut self, name: &str) -> Result<Vec<Revocation>, CallError> {
        let limit = self.times.call;
        let Some(connection) = &mut self.calls else { return Err(CallError::TimedOut(Duration::ZERO)) };
        let (mut all, mut cursor) = (Vec::new(), 0_u64);
        loop {
            let mut step = redis::cmd("HSCAN");
            step.arg(name).arg(cursor).arg("COUNT").arg(REVOCATIONS_A_STEP);
            let (next, fields): (u64, Vec<Field>) = within(limit, step.query_async(connection)).await?;
            all.extend(fields.iter().filter_map(|(field, value)| revocation(field, value)));
            cursor = next;
            // A scan may name a field twice, but not without end.
            if cursor == 0 || all.len() > 2 * REVOCATIONS_MAX {
                return Ok(all);
            }
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, RedisError>>) -> Result<T, CallError> {
    timeout(limit, work).await.map_err(|_| CallError::TimedOut(limit))?.map_err(CallError::Redis)
}
