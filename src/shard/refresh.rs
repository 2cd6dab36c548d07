//! A client's new token on an open connection (`refresh`, PROTOCOL 2): it must be good, of the same user, and cover the
//! assessment; else the connection goes on by the old one.

use super::client_identity::ClientIdentity;
use super::connection::{ConnectionKey, LifeTime, RefreshAnswer, Socket};
use super::state::ShardState;
use crate::clock::{Moment, Now};
use crate::exchange::Busy;
use crate::protocol::auth::{Grant, Unauthorized};
use crate::protocol::head::BearerToken;

impl<S: Socket> ShardState<S> {
    /// Takes a client's new token to be verified, at most one a second.
    pub(super) fn request_refresh(&mut self, key: ConnectionKey, token: BearerToken, now: LifeTime) {
        let connection = &mut self.connections[key];
        if connection.refreshes.admit(now) {
            self.refreshes.push((key, token));
        } else {
            connection.control_due.refresh = Some(RefreshAnswer::TooOften);
        }
    }

    /// Applies the verdict on a client's new token. The caller flushes the connection.
    pub(super) fn refresh(&mut self, key: ConnectionKey, verdict: Result<Result<Grant, Unauthorized>, Busy>, now: Now) {
        let Some(connection) = self.connections.get_mut(key).filter(|connection| connection.is_live()) else { return };
        let assessment =
            connection.subscription.and_then(|subscription| self.history.assessment_id(subscription.log_key));
        connection.control_due.refresh = Some(match verdict {
            Err(Busy) => RefreshAnswer::TooOften,
            Ok(Err(why)) => RefreshAnswer::Unauthorized(why),
            Ok(Ok(grant)) if *grant.user != *connection.client.user() => RefreshAnswer::OtherUser,
            Ok(Ok(grant)) if assessment.is_some_and(|id| !grant.allowed.covers(id)) => RefreshAnswer::Forbidden,
            Ok(Ok(grant)) => {
                connection.token_expires_at = grant.expires.and_then(|time| now.instant_of(time)).map(Moment::from);
                connection.expiry_told = false;
                let old = &connection.client;
                connection.client = ClientIdentity::new(old.number(), &grant, old.address());
                RefreshAnswer::Refreshed
            }
        });
    }
}
