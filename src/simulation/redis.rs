//! The simulated Redis: the hash of slots with the one script that changes it, calls on their way, and announcements.
//!
//! [`SlotsScript::run`] is `discovery/slots.lua`, statement by statement, in its order. A change to one must be made to
//! the other. The model leaves out what the simulation does not have: foreign fields in the hash, and replicas.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::discovery::wire::{Action, Call, Holder, Snapshot};

/// Redis, and the connections to it.
pub(super) struct SimulatedRedis {
    pub(super) state: RedisState,
    script: SlotsScript,
    /// Difference between Redis' clock and the simulation's, in ms.
    skew_ms: u64,
    calls: Vec<InFlightCall>,
    next_call: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RedisState {
    Up,
    /// Connections are refused; existing ones broke.
    Down,
    /// Connections are accepted, but nothing is answered.
    Hanging,
}

/// A call on its way to Redis or back.
struct InFlightCall {
    id: u64,
    /// When it reaches Redis.
    at_ms: u64,
    /// Travel time of the answer.
    back_ms: u64,
    call: Call,
    answer: Option<(u64, Snapshot)>,
}

/// State of a call.
pub(super) enum CallStatus {
    Waiting,
    Answered(Box<Snapshot>),
    Broken,
}

/// An announcement.
#[derive(Debug, Clone)]
pub(super) struct PendingAnnouncement {
    /// Whether a pod left; otherwise one joined.
    pub(super) left: bool,
    pub(super) node: Arc<str>,
}

impl SimulatedRedis {
    pub(super) fn new(skew_ms: u64) -> Self {
        Self { state: RedisState::Up, script: SlotsScript::default(), skew_ms, calls: Vec::new(), next_call: 0 }
    }

    /// Sends a call; `None` without a connection.
    pub(super) fn send(&mut self, call: Call, now_ms: u64, there_ms: u64, back_ms: u64) -> Option<u64> {
        if self.state == RedisState::Down {
            return None;
        }
        self.next_call += 1;
        self.calls.push(InFlightCall { id: self.next_call, at_ms: now_ms + there_ms, back_ms, call, answer: None });
        Some(self.next_call)
    }

    /// Returns the state of a call, and forgets it unless it is still waiting.
    pub(super) fn outcome(&mut self, id: u64, now_ms: u64) -> CallStatus {
        let Some(index) = self.calls.iter().position(|call| call.id == id) else { return CallStatus::Broken };
        if self.calls[index].answer.as_ref().is_none_or(|(at_ms, _)| *at_ms > now_ms) {
            return CallStatus::Waiting;
        }
        let answer = self.calls.swap_remove(index).answer;
        answer.map_or(CallStatus::Broken, |(_, snapshot)| CallStatus::Answered(Box::new(snapshot)))
    }

    /// Runs the calls that have arrived; returns the announcements.
    pub(super) fn step(&mut self, now_ms: u64) -> Vec<PendingAnnouncement> {
        let mut announcements = Vec::new();
        if self.state != RedisState::Up {
            return announcements;
        }
        let mut arrived: Vec<usize> = (0..self.calls.len()).collect();
        arrived.retain(|&index| self.calls[index].answer.is_none() && self.calls[index].at_ms <= now_ms);
        arrived.sort_by_key(|&index| self.calls[index].at_ms);
        for index in arrived {
            let InFlightCall { back_ms, call, answer, .. } = &mut self.calls[index];
            *answer = Some((now_ms + *back_ms, self.script.run(call, now_ms + self.skew_ms, &mut announcements)));
        }
        announcements
    }

    /// Stops Redis: calls on their way are lost.
    pub(super) fn die(&mut self) {
        self.state = RedisState::Down;
        self.calls.clear();
    }

    /// Steps its clock.
    pub(super) fn step_clock(&mut self, ms: i64) {
        self.skew_ms = self.skew_ms.saturating_add_signed(ms);
    }

    /// Deletes all its data.
    pub(super) fn forget(&mut self) {
        self.script = SlotsScript::default();
    }
}

/// The hash: slot number to value.
#[derive(Default)]
struct SlotsScript {
    hash: BTreeMap<u32, SlotEntry>,
}

#[derive(Debug, Clone)]
struct SlotEntry {
    node: Arc<str>,
    instance: Arc<str>,
    url: Arc<str>,
    peer_url: Option<Arc<str>>,
    expires_at_ms: u64,
    lease_ms: u64,
    view: Option<ViewHeader>,
}

#[derive(Debug, Clone, Copy)]
struct ViewHeader {
    epoch: u64,
    version: u64,
    slots: u32,
}

/// State of one run of the script: its local variables.
struct ScriptRun<'a> {
    call: &'a Call,
    hash: &'a mut BTreeMap<u32, SlotEntry>,
    /// The slots that were held at the start.
    holders: Vec<u32>,
    changed: bool,
    announcements: &'a mut Vec<PendingAnnouncement>,
}

impl SlotsScript {
    /// Runs the script at Redis' time `now`.
    fn run(&mut self, call: &Call, now: u64, announcements: &mut Vec<PendingAnnouncement>) -> Snapshot {
        if call.sent_ms.is_some_and(|sent| now.saturating_sub(sent) > call.late_ms) {
            return Snapshot { now_ms: now, late: true, ..Snapshot::default() };
        }
        let mut view = ViewHeader { epoch: now, version: 0, slots: call.slots };
        for stored in self.hash.values().filter_map(|value| value.view) {
            if stored.version > view.version {
                (view.epoch, view.version) = (stored.epoch, stored.version);
            }
            view.slots = view.slots.max(stored.slots);
        }
        for value in self.hash.values_mut() {
            value.expires_at_ms = value.expires_at_ms.min(now + value.lease_ms);
        }
        let holders = self.hash.keys().copied().collect();
        let mut run = ScriptRun { call, hash: &mut self.hash, holders, changed: false, announcements };
        let is_known = run.hash.values().any(|value| value.instance == call.instance);
        let found = run.find_mine(now);
        if !is_known {
            run.announce_leave();
        }
        let mine = run.renew(found, now);
        let changed = run.changed;
        view.slots = self.hash.keys().map(|slot| slot + 1).max().unwrap_or(0).max(view.slots).min(call.slots_max);
        if changed {
            view.version += 1;
            let keeper = mine.filter(|slot| self.hash.contains_key(slot)).or(self.hash.keys().next().copied());
            if let Some(value) = keeper.and_then(|slot| self.hash.get_mut(&slot)) {
                value.view = Some(view);
            }
        }
        let epoch = if view.version > 0 { view.epoch } else { 0 };
        let holders = self.hash.iter().map(|(&slot, value)| value.holder(slot)).collect();
        Snapshot {
            now_ms: now,
            late: false,
            epoch,
            version: view.version,
            slots: view.slots,
            holders,
            ..Snapshot::default()
        }
    }
}

impl ScriptRun<'_> {
    fn announce(&mut self, left: bool, node: Arc<str>) {
        self.changed = true;
        self.announcements.push(PendingAnnouncement { left, node });
    }

    fn vacate(&mut self, slot: u32) {
        if let Some(value) = self.hash.remove(&slot) {
            self.announce(true, value.node);
        }
    }

    /// Announces the leave of a pod that an emptied Redis does not list.
    fn announce_leave(&mut self) {
        let is_held = self.hash.values().any(|value| value.node == self.call.node);
        if self.call.action == Action::Leave && !is_held {
            self.announcements.push(PendingAnnouncement { left: true, node: Arc::clone(&self.call.node) });
        }
    }

    /// Removes expired leases, and the caller's own slot if it leaves; returns the caller's slot.
    fn find_mine(&mut self, now: u64) -> Option<u32> {
        let mut mine = None;
        for slot in self.holders.clone() {
            let Some(value) = self.hash.get(&slot) else { continue };
            if value.instance == self.call.instance {
                if self.call.action == Action::Leave || mine.is_some() {
                    self.vacate(slot);
                } else {
                    mine = Some(slot);
                }
            } else if self.call.judge && value.expires_at_ms < now {
                self.vacate(slot);
            }
        }
        mine
    }

    fn lowest_vacant(&self) -> Option<u32> {
        (0..self.call.slots_max).find(|slot| !self.hash.contains_key(slot) && !self.call.reserved.contains(slot))
    }

    fn held_by_name(&self) -> Option<u32> {
        let is_mine = |slot: &u32| self.hash.get(slot).is_some_and(|value| value.node == self.call.node);
        self.holders.iter().copied().find(is_mine)
    }

    fn choose(&self) -> Option<u32> {
        if let Some(slot) = self.call.slot.filter(|slot| !self.hash.contains_key(slot)) {
            return Some(slot);
        }
        if self.call.action != Action::Claim {
            return None;
        }
        self.held_by_name().filter(|_| self.call.take_over).or_else(|| self.lowest_vacant())
    }

    /// Holds or claims a slot, if the action says so.
    fn renew(&mut self, mut mine: Option<u32>, now: u64) -> Option<u32> {
        if !matches!(self.call.action, Action::Hold | Action::Claim) {
            return mine;
        }
        let Call { node, instance, url, lease_ms, .. } = self.call;
        if mine.is_none() {
            mine = self.choose();
            if mine.is_some() {
                self.announce(false, Arc::clone(node));
            }
        } else if mine.and_then(|slot| self.hash.get(&slot)).is_some_and(|value| value.url != *url) {
            self.changed = true;
        }
        let slot = mine?;
        let view = self.hash.get(&slot).and_then(|value| value.view);
        let (node, instance, url) = (Arc::clone(node), Arc::clone(instance), Arc::clone(url));
        let peer_url = self.call.peer_url.clone();
        self.hash.insert(
            slot,
            SlotEntry { node, instance, url, peer_url, expires_at_ms: now + lease_ms, lease_ms: *lease_ms, view },
        );
        mine
    }
}

impl SlotEntry {
    fn holder(&self, slot: u32) -> Holder {
        let Self { node, instance, url, expires_at_ms, .. } = self;
        let (node, instance, url) = (Arc::clone(node), Arc::clone(instance), Arc::clone(url));
        Holder { slot, node, instance, url, peer_url: self.peer_url.clone(), expires_at_ms: *expires_at_ms }
    }
}
