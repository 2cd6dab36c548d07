//! What time does to connections: heartbeats, silence, stalls, expired tokens, and the drain. One pass over all of them
//! now and then, not a timer for each.

use std::time::{Duration, Instant};

use super::admission::{Here, Watching};
use super::connection::{Connection, End, Socket};
use super::freshness::{Freshness, Step};
use super::state::{Pass, State};
use crate::clock::Now;
use crate::config::ShardConfig;
use crate::ids::AssessmentHash;
use crate::protocol::close::CloseReason;
use crate::shutdown::phases::Phase;

/// How long a pass may be late before the thread counts as paused: then sockets are read before anyone is judged silent.
const PAUSE: Duration = Duration::from_secs(1);

/// Passes over a shard's connections.
#[derive(Debug)]
pub(super) struct Sweeper {
    every: Duration,
    began: Instant,
    /// How many of the roster the pass under way has left.
    left: Option<usize>,
    /// Nobody is judged silent before.
    judge_from: Instant,
    /// Clients that were there when the drain's closing began.
    to_drain: Option<usize>,
    freshness: Freshness,
}

impl Sweeper {
    pub(super) fn new(config: &ShardConfig, now: Instant) -> Self {
        // A tenth of the shortest time that is judged keeps what is late within a tenth.
        let shortest = config.heartbeat.min(config.stall_timeout);
        let every = (shortest / 10).clamp(Duration::from_millis(10), Duration::from_secs(1));
        Self { every, began: now, left: None, judge_from: now, to_drain: None, freshness: Freshness::default() }
    }

    /// When the next pass is to begin.
    pub(super) fn next(&self) -> Instant {
        self.began + self.every
    }

    /// Begins a pass if it is time, and goes on with it for about `budget` sends.
    pub(super) fn sweep<S: Socket>(&mut self, state: &mut State<S>, mut budget: usize, now: Now) -> Pass {
        if self.left.is_none() {
            if now.instant < self.next() {
                return Pass::Done;
            }
            if now.instant > self.next() + PAUSE {
                self.judge_from = now.instant + PAUSE;
            }
            self.began = now.instant;
            self.left = Some(state.roster.len());
        }
        let judge_silence = now.instant >= self.judge_from;
        let mut left = self.left.take().unwrap_or(0).min(state.roster.len());
        while left > 0 {
            if budget == 0 {
                self.left = Some(left);
                return Pass::More;
            }
            left -= 1;
            let key = state.roster[left];
            let connection = &state.connections[key];
            let verdict = if connection.blocked_since.is_some() && connection.is_live() && state.is_overtaken(key) {
                Verdict::Close(CloseReason::TooSlow)
            } else {
                judge(connection, &state.config, judge_silence, now)
            };
            match verdict {
                Verdict::Fine => continue,
                Verdict::Heartbeat => {
                    let connection = &mut state.connections[key];
                    connection.owed.heartbeat = true;
                    connection.pinged = now.instant;
                    state.flush(key, now);
                }
                Verdict::Close(reason) => state.close(key, reason, None, now),
                Verdict::Cut => {
                    let connection = &mut state.connections[key];
                    if let End::Telling(farewell) = &connection.end {
                        connection.cut(farewell.reason);
                    }
                }
            }
            budget -= 1;
        }
        Pass::Done
    }

    /// Closes as many clients as the drain's phase asks for, by a view that is sure; once all is over, by any.
    pub(super) fn drain<S: Socket>(&mut self, state: &mut State<S>, phase: Phase, here: &Here<'_>, now: Now) -> Step {
        if matches!(phase, Phase::Serving | Phase::Announcing) {
            return Step::Go;
        }
        let live = |state: &State<S>| state.roster.iter().filter(|&&key| state.connections[key].is_live()).count();
        let open = live(state);
        let remaining = phase.remaining(*self.to_drain.get_or_insert(open));
        let mut excess = open.saturating_sub(remaining);
        if excess == 0 || phase == Phase::Over {
            self.freshness.withdraw();
        } else {
            let step = self.freshness.ask(&here.standing.sight, now.instant);
            if step != Step::Go {
                return step;
            }
        }
        for index in (0..state.roster.len()).rev() {
            if excess == 0 {
                break;
            }
            let key = state.roster[index];
            let connection = &state.connections[key];
            if !connection.is_live() {
                continue;
            }
            excess -= 1;
            let spread = AssessmentHash::of(&format!("{key:?}")).0;
            let watching =
                connection.watch.map_or(Watching::Market { spread }, |watch| Watching::Assessment(watch.hash));
            let to = here.elsewhere(watching, connection.against_owner);
            let reason = if to.is_some() { CloseReason::Moved } else { CloseReason::GoingAway };
            state.close(key, reason, to, now);
        }
        Step::Go
    }
}

/// What is to be done about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    Heartbeat,
    Close(CloseReason),
    /// It was to be told why it is closed, and did not take it.
    Cut,
}

fn judge<S>(connection: &Connection<S>, config: &ShardConfig, judge_silence: bool, now: Now) -> Verdict {
    let since = |then: Instant| now.instant.saturating_duration_since(then);
    match &connection.end {
        End::Over { .. } => return Verdict::Fine,
        End::Telling(farewell) if connection.is_due_to_be_cut(farewell, config.stall_timeout, now.instant) => {
            return Verdict::Cut;
        }
        End::Telling(_) => return Verdict::Fine,
        End::Live => {}
    }
    if judge_silence && since(connection.heard) >= config.silence {
        return Verdict::Close(CloseReason::Silent);
    }
    if connection.token_ends.is_some_and(|ends| now.instant >= ends) {
        return Verdict::Close(CloseReason::TokenExpired);
    }
    if connection.blocked_since.is_some_and(|blocked| since(blocked) >= config.stall_timeout) {
        return Verdict::Close(CloseReason::TooSlow);
    }
    if since(connection.pinged) >= config.heartbeat {
        return Verdict::Heartbeat;
    }
    Verdict::Fine
}
