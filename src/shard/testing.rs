//! For the simulation: a shard's turns and its connections' tasks, without an executor and without sockets. The rules
//! are the real ones; this stands in for `event_loop` and `client_task`.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use super::client_identity::ClientIdentity;
use super::connection::{ConnectionKey, NewConnection, Pass, Socket};
use super::drain::Drain;
use super::handover::Handover;
use super::recent_redirects::RecentRedirects;
use super::redirect::{OwnerDoubt, Placement};
use super::state::ShardState;
use super::sweep::Sweeper;
use super::view_gate::{GateDecision, ViewGate};
use crate::clock::Now;
use crate::config::{DrainConfig, ShardConfig};
use crate::exchange::ViewFreshness;
use crate::ids::{AssessmentId, NodeId};
use crate::protocol::close::CloseReason;
use crate::protocol::session::Inbound;
use crate::shutdown::phases::DrainPhase;
use crate::stream::batch::Batch;

/// Steps that a client has to find what it lacks: few, so that some entries take several turns.
const STEPS_MAX: usize = 5;

/// A connection between a client and a pod, as both ends see it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wire(pub(crate) Rc<RefCell<WireBuffers>>);

/// The two ends of a [`Wire`].
#[derive(Debug, Default)]
pub(crate) struct WireBuffers {
    /// Number of bytes that the way to the client still takes.
    pub(crate) room: usize,
    /// Bytes on the way to the client.
    pub(crate) sent: Vec<u8>,
    /// Frames of the client that the pod has not read.
    pub(crate) said: Vec<ServerOutput>,
    /// The client has closed it.
    pub(crate) client_gone: bool,
    /// The pod has closed it: nothing follows `sent`.
    pub(crate) pod_gone: bool,
    /// The pod answered 503.
    pub(crate) unavailable: bool,
    /// Number of the pod's process that it is connected to.
    pub(crate) life: u32,
    /// What the pod's shard had read, at least, when the client connected: the next offset of each partition.
    pub(crate) base: Vec<i64>,
}

/// A frame of a simulated client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerOutput {
    /// Answer to a heartbeat.
    Pong,
}

impl Wire {
    fn take(&self, bytes: &[u8]) -> usize {
        let mut ends = self.0.borrow_mut();
        let taken = bytes.len().min(ends.room);
        ends.sent.extend_from_slice(&bytes[..taken]);
        ends.room -= taken;
        taken
    }
}

impl Socket for Wire {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.0.borrow().client_gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let sent: usize = slices.iter().map(|slice| self.take(slice)).sum();
        if sent == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(sent) }
    }

    fn acknowledged_bytes(&self) -> u64 {
        0
    }

    /// The simulation polls each connection's task by itself.
    fn wake(&self) {}
}

/// A client's wait for a fresh view before it is redirected.
#[derive(Debug, Default)]
pub(crate) struct RedirectGate(ViewGate);

/// What a redirect waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RedirectWait {
    /// Nothing: the view is fresh.
    Fresh,
    /// A refresh that has to be requested.
    Wanted,
    /// The refresh that was requested.
    Awaited,
}

impl RedirectGate {
    /// For a client that the pod redirected at this time, if it did.
    pub(crate) fn newer_than(redirected: Option<Instant>) -> Self {
        Self(ViewGate::newer_than(redirected))
    }

    pub(crate) fn ask(&mut self, view_freshness: &ViewFreshness, now: Now) -> RedirectWait {
        match self.0.check(view_freshness, now.instant) {
            GateDecision::Proceed => RedirectWait::Fresh,
            GateDecision::RequestRefresh => RedirectWait::Wanted,
            GateDecision::Wait => RedirectWait::Awaited,
        }
    }
}

/// A connection of the shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientKey(ConnectionKey);

/// A shard.
pub(crate) struct TestShard {
    state: ShardState<Wire>,
    sweeper: Sweeper,
    handover: Handover,
    drain: Drain,
    drain_config: DrainConfig,
}

impl TestShard {
    pub(crate) fn new(config: ShardConfig, drain_config: DrainConfig, node: NodeId, now: Now) -> Self {
        let (sweeper, handover) = (Sweeper::new(&config, now.instant), Handover::new(&config, now.instant));
        let mut state = ShardState::new(config, node);
        state.scratch.steps_max = STEPS_MAX;
        Self { state, sweeper, handover, drain: Drain::default(), drain_config }
    }

    // ---- turns ------------------------------------------------------------------------------------------------------

    /// Bytes of batches that one turn takes in, at most.
    pub(crate) fn intake_bytes_max(&self) -> usize {
        self.state.intake_bytes_max()
    }

    pub(crate) fn take(&mut self, batch: Batch, now: Now) {
        self.state.take(batch, now.instant);
    }

    /// Sends a part of what is due; returns whether all is sent.
    pub(crate) fn dispatch(&mut self, budget: usize, now: Now) -> bool {
        self.state.dispatch(budget, now) == Pass::Done
    }

    /// The rest of a turn, after the events are sent; clients that catch up are sent about this many bytes. Returns
    /// whether a refresh of the view is wanted.
    pub(crate) fn finish_turn(&mut self, placement: &Placement<'_>, mut bytes: u64, now: Now) -> bool {
        while self.state.flush_markets(usize::MAX, now) == Pass::More {}
        while self.sweeper.sweep(&mut self.state, usize::MAX, now) == Pass::More {}
        while self.state.recheck_ahead(1) == Pass::More {}
        while self.state.catch_up(1, &mut bytes, now) == Pass::More {}
        let phase = DrainPhase::at(now.instant, placement.pod_state.draining_since, &self.drain_config);
        let steps = [
            self.handover.advance(&mut self.state, placement, now),
            self.drain.advance(&mut self.state, phase, placement, now),
        ];
        self.state.end_turn(now.instant);
        steps.contains(&GateDecision::RequestRefresh)
    }

    /// Whether it needs the end offsets of the logs.
    pub(crate) fn needs_ends(&self) -> bool {
        self.state.needs_ends()
    }

    /// Number of connected clients.
    pub(crate) fn clients(&self) -> u64 {
        self.state.connections.len() as u64
    }

    /// Assessments whose clients were redirected moments ago.
    pub(crate) fn recent_redirects(&mut self) -> &mut RecentRedirects {
        &mut self.state.recent_redirects
    }

    // ---- connections ------------------------------------------------------------------------------------------------

    /// Adds a client.
    pub(crate) fn attach(
        &mut self,
        wire: &Wire,
        id: &AssessmentId,
        cursor: Option<Box<str>>,
        owner_doubt: OwnerDoubt,
        now: Now,
    ) -> ClientKey {
        let new_connection = NewConnection {
            socket: wire.clone(),
            assessment: Some(id.clone()),
            cursor,
            client: ClientIdentity::of_user("", None),
            owner_doubt,
            accept: Vec::new(),
            id: "".into(),
        };
        let key = self.state.attach(new_connection, now);
        self.state.flush(key, now);
        ClientKey(key)
    }

    /// What a connection's own task does when it is woken: writes what the socket takes, and reads. Returns whether the
    /// connection goes on; one that has ended is removed.
    pub(crate) fn run_task(&mut self, ClientKey(key): ClientKey, wire: &Wire, now: Now) -> bool {
        self.state.write_blocked(key, now, |bytes| {
            if wire.0.borrow().client_gone {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            match wire.take(bytes) {
                0 => Poll::Pending,
                taken => Poll::Ready(Ok(taken)),
            }
        });
        let said = std::mem::take(&mut wire.0.borrow_mut().said);
        for said in said {
            match said {
                ServerOutput::Pong => self.state.inbound(key, Inbound::Pong, now),
            }
        }
        let is_over = self.state.ended(key).is_some() || wire.0.borrow().client_gone;
        if is_over {
            self.state.detach(key, CloseReason::ClientGone);
            wire.0.borrow_mut().pod_gone = true;
        }
        !is_over
    }
}
