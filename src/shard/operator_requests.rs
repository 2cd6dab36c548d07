//! Requests of operators: a pass over all connections for each, one after another, in steps within the budget of other
//! passes. Events go first.

use std::collections::BTreeMap;
use std::time::Instant;

use crossbeam_channel::Receiver;

use super::connection::{ConnectionKey, Socket};
use super::state::ShardState;
use crate::clock::Now;
use crate::exchange::{ConnectionFilter, ConnectionRow, ShardRequest};
use crate::limits::VISITS_A_SEND;
use crate::protocol::close::CloseReason;

/// Connections visited per turn: each takes two cache misses. A close counts as [`VISITS_A_SEND`] visits, and so does a
/// row, which asks the kernel about its socket.
const VISITS_PER_TURN: usize = 2048;

/// The pass under way.
#[derive(Debug, Default)]
pub(super) struct OperatorRequests {
    pass: Option<RequestPass>,
}

#[derive(Debug)]
struct RequestPass {
    request: ShardRequest,
    /// Number of connections not visited yet. The pass goes backwards, so that a connection that closes makes it miss
    /// none; it may visit one twice.
    left: usize,
    /// The connections with the lowest numbers so far, for a list.
    found: BTreeMap<u64, ConnectionKey>,
    /// Their rows, once all connections were visited: the last first.
    rows: Vec<ConnectionRow>,
    /// Number of connections closed so far.
    closed: u64,
}

impl OperatorRequests {
    /// When there is work again, unless a request arrives earlier.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.pass.as_ref().map(|_| now)
    }

    /// Continues the pass under way, or begins the next one.
    pub(super) fn advance<S: Socket>(
        &mut self,
        requests: &Receiver<ShardRequest>,
        state: &mut ShardState<S>,
        now: Now,
    ) {
        let Some(mut pass) = self.pass.take().or_else(|| {
            let request = requests.try_recv().ok()?;
            Some(RequestPass::begin(request, state.connections.len()))
        }) else {
            return;
        };
        let mut visits = VISITS_PER_TURN;
        pass.visit(state, &mut visits, now);
        pass.describe(state, &mut visits, now.instant);
        self.pass = pass.finish();
    }
}

impl RequestPass {
    fn begin(request: ShardRequest, connections: usize) -> Self {
        Self { request, left: connections, found: BTreeMap::new(), rows: Vec::new(), closed: 0 }
    }

    /// Visits connections while there are visits left.
    fn visit<S: Socket>(&mut self, state: &mut ShardState<S>, visits: &mut usize, now: Now) {
        self.left = self.left.min(state.connections.len());
        while self.left > 0 && *visits > 0 {
            self.left -= 1;
            *visits -= 1;
            let key = state.connections.keys()[self.left];
            match &self.request {
                ShardRequest::List { answer, .. } if answer.is_closed() => self.left = 0,
                ShardRequest::List { filter, after, limit, .. } => {
                    let number = state.connections[key].client.number();
                    let is_lower = || self.found.last_key_value().is_some_and(|(highest, _)| number < *highest);
                    let has_room = self.found.len() < *limit;
                    if number > *after && (has_room || is_lower()) && matches(state, key, filter) {
                        self.found.insert(number, key);
                        if self.found.len() > *limit {
                            self.found.pop_last();
                        }
                    }
                }
                ShardRequest::Disconnect { filter, reconnect, .. } => {
                    if state.connections[key].is_live() && matches(state, key, filter) {
                        let reason = if *reconnect { CloseReason::Recalled } else { CloseReason::Disconnected };
                        state.close(key, reason, None, now);
                        self.closed += 1;
                        *visits = visits.saturating_sub(VISITS_A_SEND);
                    }
                }
            }
        }
    }

    /// Makes the rows of the connections that were found, while there are visits left.
    fn describe<S: Socket>(&mut self, state: &ShardState<S>, visits: &mut usize, now: Instant) {
        while self.left == 0 && *visits > 0 {
            let Some((_, key)) = self.found.pop_last() else { break };
            *visits = visits.saturating_sub(VISITS_A_SEND);
            // It may have ended since.
            self.rows.extend(row(state, key, now));
        }
    }

    /// Answers, if nothing is left to do; else returns itself.
    fn finish(mut self) -> Option<Self> {
        if self.left > 0 || !self.found.is_empty() {
            return Some(self);
        }
        self.rows.reverse();
        // A caller that has given up needs no answer.
        match self.request {
            ShardRequest::List { answer, .. } => drop(answer.send(self.rows)),
            ShardRequest::Disconnect { answer, .. } => drop(answer.send(self.closed)),
        }
        None
    }
}

fn matches<S: Socket>(state: &ShardState<S>, key: ConnectionKey, filter: &ConnectionFilter) -> bool {
    let connection = &state.connections[key];
    let ConnectionFilter { user, assessment, number } = filter;
    number.is_none_or(|number| connection.client.number() == number)
        && user.as_ref().is_none_or(|user| connection.client.user() == &**user)
        && assessment.as_ref().is_none_or(|id| state.assessment_of(connection) == Some(id.as_str()))
}

/// A connection as operators see it, if it is open.
pub(super) fn row<S: Socket>(state: &ShardState<S>, key: ConnectionKey, now: Instant) -> Option<ConnectionRow> {
    let connection = state.connections.get(key)?;
    Some(ConnectionRow {
        number: connection.client.number(),
        user: connection.client.user().into(),
        assessment: state.assessment_of(connection).map(Into::into),
        address: connection.client.address(),
        opened: connection.opened.instant(),
        lag_events: state.lag_events(connection),
        blocked_for: connection.blocked_since.map(|since| now.saturating_duration_since(since.instant())),
        acknowledged_bytes: connection.socket.acknowledged_bytes(),
    })
}
