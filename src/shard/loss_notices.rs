//! Resets for clients that lack events which they can't be sent any more: partitions lost records, an event is too large
//! for the window, or its topic was dropped. Finding these clients, and filters that name a topic whose index another topic
//! got, takes a pass over many connections, in steps. Until a
//! pass is done nothing is written to any connection: no client gets a cursor that lies behind a loss before the reset.

use std::collections::VecDeque;

use super::connection::{CloseState, Connection, ConnectionKey, DueQueue, Pass, Subscription};
use super::connections::{Connections, Visit};
use super::metrics::TurnCounts;
use crate::ids::TopicIndex;
use crate::protocol::messages::ResetReason;
use crate::stream::history::{AssessmentLogKey, History, Loss, Position};

/// Passes that are due, in the order in which the losses were found.
#[derive(Debug, Default)]
pub(super) struct LossNotices(VecDeque<LossPass>);

/// A pass over connections. It goes backwards, so that a connection that closes meanwhile makes it skip none.
#[derive(Debug)]
struct LossPass {
    loss: FoundLoss,
    /// How many connections it has yet to visit; `None` before it begins.
    left: Option<usize>,
}

#[derive(Debug)]
enum FoundLoss {
    /// Partitions lost records: sorted by partition, and those of one in the order in which they were found. Concerns
    /// all connections.
    Partitions(Vec<Loss>),
    /// An event that can't be sent to the assessment's subscribers before this position.
    Event(AssessmentLogKey, Position),
    /// Topics whose indexes others got: filters in use forget them. Concerns all connections.
    Topics(Vec<TopicIndex>),
}

impl LossNotices {
    /// Whether all resets are queued.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn push_partitions(&mut self, losses: Vec<Loss>) {
        if losses.is_empty() {
            return;
        }
        match self.0.back_mut() {
            Some(LossPass { loss: FoundLoss::Partitions(all), left: None }) => all.extend(losses),
            _ => self.0.push_back(LossPass { loss: FoundLoss::Partitions(losses), left: None }),
        }
        if let Some(LossPass { loss: FoundLoss::Partitions(all), .. }) = self.0.back_mut() {
            all.sort_by_key(|loss| loss.partition_id);
        }
    }

    /// Takes in what the history found to be lost.
    pub(super) fn collect(&mut self, history: &mut History) {
        let reused = history.take_reused();
        if !reused.is_empty() {
            self.0.push_back(LossPass { loss: FoundLoss::Topics(reused), left: None });
        }
        self.push_partitions(history.take_losses());
        for (log_key, position) in history.take_unsent() {
            self.0.push_back(LossPass { loss: FoundLoss::Event(log_key, position), left: None });
        }
    }

    /// Queues resets, for about `budget` sends.
    pub(super) fn queue_resets<S>(
        &mut self,
        budget: &mut usize,
        (connections, counts): (&mut Connections<S>, &mut TurnCounts),
        history: &mut History,
    ) -> Pass {
        while let Some(LossPass { loss, left }) = self.0.front_mut() {
            let Visit { keys, slots, due_queue } = match loss {
                FoundLoss::Partitions(_) | FoundLoss::Topics(_) => connections.visit_all(),
                FoundLoss::Event(log_key, _) => connections.visit_subscribers(*log_key),
            };
            let left = left.insert(left.unwrap_or(keys.len()).min(keys.len()));
            while let Some(next) = left.checked_sub(1) {
                if *budget == 0 {
                    return Pass::More;
                }
                (*budget, *left) = (*budget - 1, next);
                let Some(connection) = slots.get_mut(keys[next]) else { continue };
                if let (FoundLoss::Topics(topics), Some(resume_filter)) = (&*loss, &mut connection.resume_filter) {
                    topics.iter().for_each(|&topic| resume_filter.forget(topic));
                }
                if is_concerned(connection, loss, history) {
                    queue_expired_reset((keys[next], connection), (due_queue, counts));
                }
            }
            self.0.pop_front();
        }
        Pass::Done
    }
}

/// Whether a client should have received something that is lost.
fn is_concerned<S>(connection: &mut Connection<S>, loss: &FoundLoss, history: &mut History) -> bool {
    let Some(Subscription { log_key, position, .. }) = connection.subscription else { return false };
    let losses = match loss {
        FoundLoss::Event(_, end) => return position.is_before(*end),
        FoundLoss::Topics(_) => return false,
        FoundLoss::Partitions(losses) => losses,
    };
    history.refresh_listed(log_key);
    let mut lacks_some = false;
    for &partition_id in history.listed_partitions(log_key) {
        let from = losses.partition_point(|loss| loss.partition_id < partition_id);
        let of_it = losses[from..].iter().take_while(|loss| loss.partition_id == partition_id);
        // All of them: the filter stops covering what a log lost.
        of_it.for_each(|loss| lacks_some |= lacks(connection, history, loss));
    }
    lacks_some
}

/// Queues an `expired` reset, unless one is queued already. The client keeps its position. A client that is being closed
/// gets it before its redirect, whose cursor lies behind the loss.
fn queue_expired_reset<S>(
    (key, connection): (ConnectionKey, &mut Connection<S>),
    (due_queue, counts): (&mut DueQueue, &mut TurnCounts),
) {
    let is_over = match &connection.end {
        CloseState::Live => false,
        CloseState::Closing(pending_close) => pending_close.close_sent,
        CloseState::Closed { .. } => true,
    };
    if connection.control_due.reset.is_some() || is_over {
        return;
    }
    connection.control_due.reset = Some(ResetReason::Expired);
    counts.reset(ResetReason::Expired);
    if connection.is_open() {
        due_queue.push(key, connection);
    }
}

/// Whether a client lacks some of what a partition lost.
fn lacks<S>(connection: &mut Connection<S>, history: &History, loss: &Loss) -> bool {
    let Some(resume_filter) = &mut connection.resume_filter else { return true };
    !match loss.end {
        None => history.is_ahead(resume_filter, loss.partition_id),
        Some(end) => history.outlives(resume_filter, loss.partition_id, end),
    }
}
