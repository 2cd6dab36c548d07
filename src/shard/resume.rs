//! How a client begins: live, or where its cursor says, and what it is told of that. What a cursor covers is the
//! history's to judge.

use std::collections::VecDeque;
use std::time::Instant;

use super::connection::{Connection, ConnectionKey, Socket, Tail, Watch};
use super::metrics::Counts;
use super::state::{Entrance, State};
use crate::clock::{Now, whole_ms};
use crate::ids::AssessmentId;
use crate::protocol::messages::{self, Connected, ResetReason};
use crate::stream::batch::Ends;
use crate::stream::epochs::AtEnd;
use crate::stream::history::{ChainKey, History, Lag, Loss, Position};
use crate::stream::offsets::Cover;
use crate::stream::planted::{Mistake, is_planted};

/// Where a connection begins.
#[derive(Debug, Default)]
pub(super) struct Beginning {
    pub(super) position: Position,
    /// What its cursor covers beyond its position.
    pub(super) cover: Option<Box<Cover>>,
    /// Whether it lacks events that are there.
    pub(super) catching_up: bool,
    /// Whether its cursor is ahead of what is read here.
    pub(super) is_ahead: bool,
    resumed: bool,
    reset: Option<ResetReason>,
}

/// A connection whose cursor was ahead of what is read here, or of a newer log: either this pod is behind the one that made
/// it, or it lies past the end of the log, and is no good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    key: ConnectionKey,
    /// How often in a row the ends of the logs spoke against it.
    beyond: u8,
}

/// What is known by now of a cursor that was ahead.
enum Judged {
    /// It may be good.
    Open,
    /// Its client can't go on from it.
    Refuted(ResetReason),
}

/// So many that are ahead are remembered without a look whether they are still there.
const AHEAD_KEPT: usize = 64;

/// So many answers must say that a cursor lies past the end: the first may be that of a leader that is none any more.
const ANSWERS_MIN: u8 = 2;

impl<S: Socket> State<S> {
    /// Finds where a client begins that watches a chain.
    pub(super) fn begin(&mut self, chain: Option<ChainKey>, cursor: Option<&str>) -> Beginning {
        let Some(chain) = chain else { return Beginning::default() };
        let live = Beginning { position: self.history.end(chain), ..Beginning::default() };
        let steps = self.scratch.steps_max;
        match cursor.map(|cursor| self.history.resume(chain, cursor, steps)) {
            None => live,
            Some(Err(reason)) => {
                self.counts.reset(reason);
                Beginning { reset: Some(reason), ..live }
            }
            Some(Ok((cover, mut position))) => {
                self.counts.resumed += 1;
                let catching_up = self.history.lag(chain, &mut position) != Lag::Current;
                let is_ahead = !self.history.is_past(&cover);
                let keep = catching_up || is_ahead;
                let cover = keep.then(|| Box::new(cover)).filter(|_| !is_planted(Mistake::ResumeAsSuffix));
                Beginning { position, cover, catching_up, is_ahead, resumed: true, reset: None }
            }
        }
    }

    /// Remembers a connection whose cursor is ahead. While Kafka tells no ends, those that have left are forgotten now and
    /// then: there are never more than twice as many as connections, or a few.
    pub(super) fn remember_ahead(&mut self, key: ConnectionKey) {
        if self.ahead.len() >= 2 * self.roster.len().max(AHEAD_KEPT) {
            let connections = &self.connections;
            self.ahead.retain(|ahead| connections.contains_key(ahead.key));
        }
        self.ahead.push(Ahead { key, beyond: 0 });
    }

    /// Whether the ends of the logs would tell something about a client's cursor.
    pub(super) fn wants_ends(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// The first bytes to a client: the answer to its handshake, `connected`, and `reset` where it can't go on.
    pub(super) fn greet(
        &mut self,
        entrance: &mut Entrance<S>,
        chain: Option<ChainKey>,
        beginning: &mut Beginning,
        now: Now,
    ) -> Tail {
        let text = &mut self.scratch.text;
        text.clear();
        if let Some(chain) = chain {
            self.history.write_cursor(chain, beginning.position, beginning.cover.as_deref_mut(), text);
        }
        let cursor = std::str::from_utf8(text).ok().filter(|cursor| !cursor.is_empty());
        let mut greeting = std::mem::take(&mut entrance.accept);
        messages::connected(
            &mut greeting,
            &Connected {
                connection_id: &entrance.id,
                user_id: &entrance.user,
                timestamp: now.unix,
                node: &self.node.0,
                assessment_id: entrance.assessment.as_ref().map(AssessmentId::as_str),
                heartbeat_interval_ms: whole_ms(self.config.heartbeat),
                resumed: beginning.resumed,
                cursor,
            },
        );
        if let Some(reason) = beginning.reset {
            messages::reset(&mut greeting, reason, cursor);
        }
        Tail::bytes(greeting.into(), 1 + u64::from(beginning.reset.is_some()))
    }

    /// Whether events that were due to a connection have left the history.
    pub(super) fn is_overtaken(&self, key: ConnectionKey) -> bool {
        let connection = &self.connections[key];
        // One that catches up is told when its socket takes it, and goes on live.
        let Some(Watch { chain, mut position, .. }) = connection.watch.filter(|_| !connection.catching_up) else {
            return false;
        };
        self.history.lag(chain, &mut position) == Lag::Lost
    }

    /// Has those told who might have got what these partitions lost.
    pub(super) fn tell_of_losses(&mut self, losses: &[Loss]) {
        let Self { connections, watchers, history, pending, counts, .. } = self;
        for (chain, keys) in watchers.iter() {
            for &Loss { place, end } in losses {
                if !history.lists(chain, place) {
                    continue;
                }
                for &key in keys {
                    let connection = &mut connections[key];
                    let lacks_nothing = match (&mut connection.cover, end) {
                        (None, _) => false,
                        (Some(cover), None) => history.is_ahead(cover, place),
                        (Some(cover), Some(end)) => history.outlives(cover, place, end),
                    };
                    if !lacks_nothing {
                        owe_expired((key, connection), (pending, counts));
                    }
                }
            }
        }
    }

    /// Some events are too large for the window: whoever watches their assessments lacks them.
    pub(super) fn tell_of_too_large(&mut self) {
        for chain in self.history.take_without_event() {
            let Self { connections, watchers, pending, counts, .. } = self;
            for &key in watchers.get(chain).into_iter().flatten() {
                owe_expired((key, &mut connections[key]), (pending, counts));
            }
        }
    }

    /// Cursors in use forget the topics whose indexes others got.
    pub(super) fn forget_topics(&mut self) {
        for topic in self.history.take_reused() {
            self.connections
                .values_mut()
                .filter_map(|connection| connection.cover.as_mut())
                .for_each(|cover| cover.forget(topic));
        }
    }

    /// Events of topics that were dropped are sent to nobody any more: who was yet to get them lacks them.
    pub(super) fn tell_of_dropped(&mut self) {
        for (chain, end) in self.history.take_dropped_from() {
            let Self { connections, watchers, pending, counts, .. } = self;
            for &key in watchers.get(chain).into_iter().flatten() {
                let connection = &mut connections[key];
                if connection.watch.is_some_and(|watch| watch.position.is_before(end)) {
                    owe_expired((key, connection), (pending, counts));
                }
            }
        }
    }

    /// More is known of the logs: a cursor that was ahead may turn out to be of another one. Its client is told, and is live
    /// from now on.
    pub(super) fn judge_those_ahead_again(&mut self) {
        self.judge_ahead(|history, _, cover, _| match history.refuted(cover) {
            Some(reason) => Judged::Refuted(reason),
            None => Judged::Open,
        });
    }

    /// The ends of some logs are known: a cursor that was there before they were asked for, and lies past one, is none of
    /// this log. Its client is told, and is live from now on.
    pub(super) fn judge_those_ahead(&mut self, ends: &Ends) {
        self.judge_ahead(|history, opened, cover, beyond| {
            if opened > ends.asked {
                return Judged::Open;
            }
            let Some(at_end) = history.judge_ends(cover, &ends.ends) else { return Judged::Open };
            let reason = match at_end {
                AtEnd::Lost => return Judged::Refuted(ResetReason::Expired),
                AtEnd::Earlier => ResetReason::Expired,
                AtEnd::Beyond => ResetReason::Invalid,
                AtEnd::Within => {
                    *beyond = 0;
                    return Judged::Open;
                }
            };
            *beyond += 1;
            if *beyond < ANSWERS_MIN { Judged::Open } else { Judged::Refuted(reason) }
        });
    }

    fn judge_ahead(&mut self, mut judge: impl FnMut(&History, Instant, &mut Cover, &mut u8) -> Judged) {
        let Self { connections, history, pending, counts, ahead, .. } = self;
        ahead.retain_mut(|Ahead { key, beyond }| {
            let Some(connection) = connections.get_mut(*key).filter(|connection| connection.is_live()) else {
                return false;
            };
            let (Some(cover), Some(watch)) = (&mut connection.cover, &mut connection.watch) else { return false };
            let Judged::Refuted(reason) = judge(history, connection.opened, cover, beyond) else { return true };
            connection.cover = None;
            connection.catching_up = false;
            watch.position = history.end(watch.chain);
            connection.owed.reset = Some(reason);
            counts.reset(reason);
            if connection.is_open() {
                connection.pending = true;
                pending.push_back(*key);
            }
            false
        });
    }
}

/// A client lacks something: it is told to fetch its state anew, unless it is told already.
fn owe_expired<S: Socket>(
    (key, connection): (ConnectionKey, &mut Connection<S>),
    (pending, counts): (&mut VecDeque<ConnectionKey>, &mut Counts),
) {
    if connection.owed.reset.is_some() || !connection.is_live() {
        return;
    }
    connection.owed.reset = Some(ResetReason::Expired);
    counts.reset(ResetReason::Expired);
    if connection.is_open() {
        connection.pending = true;
        pending.push_back(key);
    }
}
