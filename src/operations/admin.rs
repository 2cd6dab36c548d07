//! The pages of `ADMIN_PORT` that need a token (PROTOCOL 5): who asks, and what each request gets. No socket.
//!
//! - [`request`]: queries and bodies of requests, checked;
//! - [`answer`]: JSON answers, and those of requests that get nothing;
//! - [`bodies`]: the short ones of them;
//! - [`cluster`]: the slots and their pods;
//! - [`connections`]: this pod's connections;
//! - [`revocations`]: revoked tokens;
//! - [`fleet`] (edge): what is done on every pod;
//! - [`shards`] (edge): what the shards are asked.

mod answer;
mod bodies;
mod cluster;
mod connections;
pub(crate) mod fleet;
mod request;
mod revocations;
mod shards;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::AUTHORIZATION;
use hyper::{Method, Request, StatusCode};
use tokio::sync::{Semaphore, oneshot};
use tracing::{info, warn};

use self::answer::{Refusal, json, refuse};
use self::bodies::{DisconnectedBody, LogLevelAnswer, SettingsBody};
use self::fleet::Fleet;
use self::request::{DisconnectionBody, LogLevelBody};
use self::revocations::RevokedAnswer;
use super::log_level::LogLevel;
use super::pages::PageResponse;
use crate::clock::Now;
use crate::config::EffectiveSetting;
use crate::exchange::{PublishedPodState, RevokeRequest, RevokeSender, ShardHandle, Spread};
use crate::ids::{ConnectionIds, NodeId};
use crate::limits::{ADMIN_BODY_BYTES_MAX, ADMIN_REFUSED_LOG_EVERY, ADMIN_REQUESTS_MAX};
use crate::log_throttle::LogThrottle;
use crate::protocol::admin_tokens::AdminTokens;
use crate::protocol::pages::AdminPage;

/// What the pages report and change.
#[derive(Debug)]
pub(crate) struct AdminParts {
    /// `ADMIN_TOKEN`.
    pub(crate) tokens: AdminTokens,
    /// This pod's name.
    pub(crate) node: NodeId,
    /// `PLACEMENT=any`.
    pub(crate) place_anywhere: bool,
    /// The pod's newest state.
    pub(crate) pod_state: PublishedPodState,
    /// The handles of all shards, by index.
    pub(crate) shards: Vec<ShardHandle>,
    /// The ids of their connections.
    pub(crate) connection_ids: ConnectionIds,
    /// The other pods.
    pub(crate) fleet: Fleet,
    /// The settings in force.
    pub(crate) settings: Arc<[EffectiveSetting]>,
    /// The log's level.
    pub(crate) log_level: Arc<LogLevel>,
    /// Takes requests to revoke tokens.
    pub(crate) revoke: RevokeSender,
}

/// Answers requests for an [`AdminPage`].
#[derive(Debug)]
pub(crate) struct Admin {
    parts: AdminParts,
    /// Probes share the thread and must not wait for operators.
    running: Semaphore,
    /// Throttles the line about a wrong token.
    refused: Mutex<LogThrottle>,
}

impl Admin {
    /// Makes the pages of a pod.
    #[must_use]
    pub(crate) fn new(parts: AdminParts) -> Self {
        let refused = Mutex::new(LogThrottle::new(ADMIN_REFUSED_LOG_EVERY));
        Self { parts, running: Semaphore::new(ADMIN_REQUESTS_MAX), refused }
    }

    /// Answers a request of `client`, and logs what was asked by whom.
    pub(crate) async fn answer(
        &self,
        page: AdminPage,
        request: Request<Incoming>,
        client: IpAddr,
        now: Now,
    ) -> PageResponse {
        let Some(operator) = self.operator(&request) else {
            self.log_refused(client, now.instant);
            return refuse(Refusal::Unauthorized);
        };
        let (method, query) = (request.method().clone(), request.uri().query().map(str::to_owned));
        let answer = self.perform(page, operator, request, now).await;
        // A query with a fault may hold anything, a token too.
        let query = query.filter(|_| answer.status() != StatusCode::BAD_REQUEST);
        let (path, status) = (page.path(), answer.status().as_u16());
        info!(operator, %client, %method, path, query, status, "operator request");
        answer
    }

    /// The name of the token that a request carries.
    fn operator(&self, request: &Request<Incoming>) -> Option<&str> {
        let value = request.headers().get(AUTHORIZATION)?.as_bytes();
        let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
        if !scheme.eq_ignore_ascii_case(b"Bearer ") {
            return None;
        }
        self.parts.tokens.name_of(token.trim_ascii())
    }

    fn log_refused(&self, client: IpAddr, now: Instant) {
        let admitted = self.refused.lock().unwrap_or_else(PoisonError::into_inner).admit(now);
        if let Some(suppressed) = admitted {
            warn!(%client, suppressed, "operator request refused: no token of ADMIN_TOKEN");
        }
    }

    async fn perform(&self, page: AdminPage, operator: &str, request: Request<Incoming>, now: Now) -> PageResponse {
        let Ok(_running) = self.running.try_acquire() else { return refuse(Refusal::Busy) };
        if !page.methods().split(", ").any(|method| method == request.method().as_str()) {
            return refuse(Refusal::Method(page.methods()));
        }
        let uri = request.uri().clone();
        let query = uri.query().unwrap_or_default();
        let answer = match page {
            AdminPage::Cluster => self.cluster(query, now),
            AdminPage::Connections => self.connections(query, now).await,
            AdminPage::Disconnections => self.disconnect(operator, request).await,
            AdminPage::Settings => self.settings(query),
            AdminPage::Revocations if request.method() == Method::POST => self.revoke(operator, request, now).await,
            AdminPage::Revocations => self.revocations(query),
            AdminPage::Log => self.set_log_level(operator, request, now).await,
        };
        answer.unwrap_or_else(refuse)
    }

    fn cluster(&self, query: &str, now: Now) -> Result<PageResponse, Refusal> {
        let query = request::ClusterQuery::parse(query)?;
        let AdminParts { node, place_anywhere, pod_state, .. } = &self.parts;
        let pod_state = pod_state.load();
        Ok(json(StatusCode::OK, &cluster::body(node, &pod_state, *place_anywhere, &query, now)))
    }

    async fn connections(&self, query: &str, now: Now) -> Result<PageResponse, Refusal> {
        let AdminParts { node, shards, connection_ids: ids, .. } = &self.parts;
        let query = request::ConnectionsQuery::parse(query, ids)?;
        if query.node.is_some_and(|other| *other != *node.0) {
            return Err(Refusal::OtherPod(node.to_string()));
        }
        // One more shows whether there are more.
        let rows = shards::list(shards, &query.filter, query.after, query.limit + 1).await.map_err(Refusal::Late)?;
        Ok(json(StatusCode::OK, &connections::body(node, ids, rows, query.limit, now)))
    }

    fn settings(&self, query: &str) -> Result<PageResponse, Refusal> {
        request::no_query(query)?;
        let AdminParts { node, settings, .. } = &self.parts;
        Ok(json(StatusCode::OK, &SettingsBody { node: &node.0, settings }))
    }

    fn revocations(&self, query: &str) -> Result<PageResponse, Refusal> {
        let request::PageQuery { after, limit } = request::PageQuery::parse(query)?;
        let AdminParts { node, pod_state, .. } = &self.parts;
        let all = Arc::clone(&pod_state.load().revocations);
        Ok(json(StatusCode::OK, &revocations::page(node, &all, &after, limit)))
    }

    async fn revoke(&self, operator: &str, request: Request<Incoming>, now: Now) -> Result<PageResponse, Refusal> {
        let revocation = revocations::parse(&read_body(request).await?, now.unix)?;
        let AdminParts { node, revoke, .. } = &self.parts;
        let subject = revocation.subject.field();
        info!(operator, subject, until = %revocation.rule.until, "tokens revoked by an operator");
        let (answer, answered) = oneshot::channel();
        revoke.try_send(RevokeRequest { revocation: revocation.clone(), answer }).map_err(|_| Refusal::Busy)?;
        let spread = answered.await.map_err(|_| Refusal::Busy)?;
        if spread == Spread::Nowhere {
            return Err(Refusal::Full);
        }
        let on_all_pods = spread == Spread::AllPods;
        let answer = RevokedAnswer { node: &node.0, revocation: revocation.into(), on_all_pods };
        Ok(json(StatusCode::OK, &answer))
    }

    async fn set_log_level(
        &self,
        operator: &str,
        request: Request<Incoming>,
        now: Now,
    ) -> Result<PageResponse, Refusal> {
        let bytes = read_body(request).await?;
        let body: LogLevelBody = request::body(&bytes, LogLevelBody::TAKES)?;
        let (level, seconds) = body.parse().map_err(Refusal::BadRequest)?;
        let duration = seconds.map(Duration::from_secs);
        let AdminParts { node, log_level, .. } = &self.parts;
        info!(operator, %level, seconds, "log level requested by an operator");
        log_level.set(level, duration, now.instant);
        let until = duration.map(|duration| now.unix.plus(duration));
        Ok(json(StatusCode::OK, &LogLevelAnswer::new(node, level, log_level.setting(), until)))
    }

    /// Closes connections here and on all pods.
    async fn disconnect(&self, operator: &str, request: Request<Incoming>) -> Result<PageResponse, Refusal> {
        let AdminParts { node, shards, connection_ids: ids, fleet, pod_state, .. } = &self.parts;
        let bytes = read_body(request).await?;
        let body: DisconnectionBody = request::body(&bytes, DisconnectionBody::TAKES)?;
        let (target, reconnect) = body.parse().map_err(Refusal::BadRequest)?;
        let here = fleet::disconnect(shards, ids, &target, reconnect);
        let (closed, reach) = tokio::join!(here, fleet.publish(operator, body));
        info!(operator, %target, reconnect, closed = closed.as_ref().ok(), ?reach, "connections closed by an operator");
        let pods = pod_state.load().view.live().count();
        Ok(json(StatusCode::OK, &DisconnectedBody::new(node, closed.map_err(Refusal::Late)?, reach, pods)))
    }
}

/// A request's whole body.
async fn read_body(request: Request<Incoming>) -> Result<Bytes, Refusal> {
    let body = Limited::new(request.into_body(), ADMIN_BODY_BYTES_MAX).collect().await;
    // The client is gone, or the body is too long.
    let fault = |_| Refusal::BadRequest(format!("a body has at most {ADMIN_BODY_BYTES_MAX} bytes"));
    Ok(body.map_err(fault)?.to_bytes())
}
