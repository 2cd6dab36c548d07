//! A client that is served: its admission by the shard that owns its assessment, and the task that reads from its socket
//! until its end. What it is sent is left to [`super::state`].

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tracing::{Level, enabled};

use super::admission::{Admission, admit};
use super::client_identity::ClientIdentity;
use super::connection::{ConnectionKey, NewConnection};
use super::context::{READS_A_POLL, ShardContext};
use super::final_response::{linger, refuse_after_upgrade, refuse_by_http};
use super::operator_log::RefusedClient;
use super::pod_limits::ConnectionPermit;
use super::reactor::Stream;
use super::redirect::OwnerDoubt;
use super::writer::Writer;
use super::{executor, operator_log, operator_requests};
use crate::clock::Now;
use crate::exchange::{AuthenticatedUpgrade, PodState};
use crate::ids::AssessmentId;
use crate::protocol::auth::{Grant, Unauthorized};
use crate::protocol::close::CloseReason;
use crate::protocol::head::{BearerToken, HttpRefusal, Upgrade};
use crate::protocol::session::Session;

/// Serves an authenticated client on the shard that owns its assessment, or refuses it.
pub(super) async fn admit_client(shard: &Rc<ShardContext>, stream: Stream, request: Box<AuthenticatedUpgrade>) {
    shard.yield_to_turns().await;
    let AuthenticatedUpgrade { upgrade, grant, rest } = *request;
    let mut now = Now::read();
    let permit = match shard.pod.acquire_connection(upgrade.client, &grant.user) {
        Ok(permit) => permit,
        Err(why) => {
            let client = RefusedClient::of(&upgrade, Some(&grant.user));
            return refuse_by_http(shard, stream, HttpRefusal::Unavailable(why), client).await;
        }
    };
    let admit_by = |pod_state: &PodState, now: Now| {
        admit(&upgrade, &grant, &shard.placement(pod_state), &shard.state.borrow().recent_redirects, now)
    };
    let mut pod_state = shard.pod_state.load_full();
    let mut admission = admit_by(&pod_state, now);
    if admission.depends_on_view() {
        let last_redirect =
            |id: &AssessmentId| shard.state.borrow().recent_redirects.last_of_user(id.hash(), &grant.user, now.instant);
        let redirected = upgrade.assessment.as_ref().ok().and_then(Option::as_ref).and_then(last_redirect);
        pod_state = shard.fresh_pod_state(redirected).await;
        now = Now::read();
        admission = admit_by(&pod_state, now);
    }
    if let (true, Ok(Some(id))) = (admission.depends_on_view(), &upgrade.assessment) {
        let recent_redirects = &mut shard.state.borrow_mut().recent_redirects;
        recent_redirects.record(id.hash(), &pod_state.view_freshness, now.instant);
        recent_redirects.record_user(id.hash(), &grant.user, now.instant);
    }
    match admission {
        Admission::Serve { owner_doubt } => {
            let key = attach(shard, &stream, &upgrade, grant, owner_doubt, now);
            let mut session = Session::new(shard.config.message_bytes_max);
            receive(shard, key, &mut session, &rest);
            let (own_shard, phase) = (Rc::clone(shard), Phase::Serving(stream));
            shard.tasks.spawn(ConnectionTask { shard: own_shard, key, phase, session, _permit: permit });
        }
        answer => {
            // The socket may linger; the permit is free for others.
            drop(permit);
            refuse_after_upgrade(shard, stream, &upgrade, Some(&grant.user), answer).await;
        }
    }
}

fn attach(
    shard: &ShardContext,
    stream: &Stream,
    upgrade: &Upgrade,
    grant: Grant,
    owner_doubt: OwnerDoubt,
    now: Now,
) -> ConnectionKey {
    let assessment = upgrade.assessment.as_ref().ok().and_then(Option::as_ref);
    let mut accept = Vec::new();
    upgrade.accept_response(&mut accept);
    let number = shard.next_connection_number();
    let id = shard.connection_ids.id(shard.index, number);
    operator_log::opened(&id, &grant.user, assessment, upgrade.client);
    let new_connection = NewConnection {
        socket: Writer::of(stream),
        assessment: assessment.cloned(),
        cursor: upgrade.cursor.clone(),
        client: ClientIdentity::new(number, &grant, upgrade.client),
        owner_doubt,
        accept,
        id: id.into(),
    };
    shard.metrics.opened();
    shard.state.borrow_mut().attach(new_connection, now)
}

/// A connection's task: reads from the client, writes when its full socket drains, and detaches at the end. A
/// hand-written future: the compiler's state machine would hold each part twice, and there is one task per client.
struct ConnectionTask {
    shard: Rc<ShardContext>,
    key: ConnectionKey,
    phase: Phase,
    session: Session,
    _permit: ConnectionPermit,
}

/// What becomes of a connection's socket.
enum Phase {
    Serving(Stream),
    /// Discards input after the close frame was sent.
    Lingering(Pin<Box<dyn Future<Output = ()>>>),
    Closed,
}

impl Future for ConnectionTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let task = self.get_mut();
        if matches!(task.phase, Phase::Serving(_)) {
            let gone = ready!(task.serve(cx));
            let close_sent = task.detach(gone);
            let Phase::Serving(stream) = mem::replace(&mut task.phase, Phase::Closed) else { return Poll::Ready(()) };
            if !close_sent {
                stream.close_now();
                return Poll::Ready(());
            }
            let shard = Rc::clone(&task.shard);
            let linger_max = shard.config.stall_timeout;
            task.phase = Phase::Lingering(Box::pin(async move { linger(&shard, stream, linger_max).await }));
        }
        match &mut task.phase {
            Phase::Lingering(lingering) => lingering.as_mut().poll(cx),
            Phase::Serving(_) | Phase::Closed => Poll::Ready(()),
        }
    }
}

impl ConnectionTask {
    /// Ready when the connection has ended, with the reason for the case that the state has none.
    fn serve(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let Phase::Serving(stream) = &mut self.phase else { return Poll::Ready(CloseReason::ClientGone) };
        let now = Now::read();
        for _ in 0..READS_A_POLL {
            {
                let mut state = self.shard.state.borrow_mut();
                state.write_blocked(self.key, now, |bytes| stream.poll_write(cx, bytes));
                if let Some(reason) = state.ended(self.key) {
                    return Poll::Ready(reason);
                }
                // After closing began, input no longer matters; it is read within a bound once the close frame is sent.
                if !state.is_live(self.key) {
                    stream.register_task_waker(cx);
                    return Poll::Pending;
                }
            }
            let mut scratch = self.shard.scratch.borrow_mut();
            match ready!(stream.poll_read(cx, &mut scratch)) {
                Ok(len @ 1..) => receive(&self.shard, self.key, &mut self.session, &scratch[..len]),
                _ => return Poll::Ready(CloseReason::ClientGone),
            }
        }
        executor::yield_in_poll(cx);
        Poll::Pending
    }

    /// Takes the connection out of the shard's state; returns whether the close frame was sent.
    fn detach(&self, gone: CloseReason) -> bool {
        let shard = &self.shard;
        let row =
            enabled!(Level::DEBUG).then(|| operator_requests::row(&shard.state.borrow(), self.key, Instant::now()));
        let Some(ended) = shard.state.borrow_mut().detach(self.key, gone) else { return false };
        shard.metrics.closed(ended.reason, ended.opened.elapsed().as_secs_f64());
        if let Some(row) = row.flatten() {
            let id = shard.connection_ids.id(shard.index, row.number);
            operator_log::closed(&id, &row, ended.reason, Instant::now());
        }
        ended.close_sent
    }
}

/// Also runs if the task is cancelled, before the stream is dropped: the state writes to its descriptor.
impl Drop for ConnectionTask {
    fn drop(&mut self) {
        self.detach(CloseReason::GoingAway);
        if let Phase::Serving(stream) = mem::replace(&mut self.phase, Phase::Closed) {
            stream.close_now();
        }
    }
}

/// Handles input of a client, and answers it.
fn receive(shard: &Rc<ShardContext>, key: ConnectionKey, session: &mut Session, bytes: &[u8]) {
    let now = Now::read();
    let mut state = shard.state.borrow_mut();
    // After closing began, input is read only so that the close frame arrives.
    if state.is_live(key) {
        match session.receive(bytes, &mut |frame| state.inbound(key, frame, now)) {
            Ok(()) => {}
            Err(CloseReason::ClientClosed) => state.close_by_client(key, session.close_code(), now),
            Err(reason) => state.close(key, reason, None, now),
        }
    }
    state.flush(key, now);
    let refreshes = std::mem::take(&mut state.refreshes);
    if state.has_queued() {
        shard.wake();
    }
    drop(state);
    for (key, token) in refreshes {
        shard.tasks.spawn(refresh(Rc::clone(shard), key, token));
    }
}

/// Verifies a client's new token, and has the connection go on by it.
async fn refresh(shard: Rc<ShardContext>, key: ConnectionKey, token: BearerToken) {
    let mut verdict = shard.verify(Some(&token)).await;
    let now = Now::read();
    if let Ok(Ok(grant)) = &verdict
        && shard.pod_state.load().revocations.covers_grant(grant, now.unix)
    {
        verdict = Ok(Err(Unauthorized::Revoked));
    }
    let mut state = shard.state.borrow_mut();
    state.refresh(key, verdict, now);
    state.flush(key, now);
}
