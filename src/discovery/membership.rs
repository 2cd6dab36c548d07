//! This pod's membership: the calls that it makes to Redis, and what it concludes from the answers. Time is an
//! argument.
//!
//! Redis holds the slots in a hash; each answer has a snapshot of it. How a snapshot is read:
//! - **The hash is the truth**, even if it contradicts what this pod knew: every holder in it lives, at the slot where
//!   it is. A pod whose own slot is vacant takes it again; a pod that finds another holder there claims a new one.
//! - **Unless Redis lost its data.** A snapshot of another epoch (the hash was created anew), or of a lower version,
//!   comes from a Redis that was emptied or restored from an old state. Its holders are accepted too. But the holders
//!   that this pod knew and that are missing in it had no chance to register again: they stay in the view for one more
//!   lease, until they appear or their slot is filled.
//! - **No answer changes nothing.** While Redis is unreachable, the last view stays in force.
//!
//! A call is made every second, after an announcement, and before a redirect, which needs a fresh view
//! ([`Member::handle_refresh_request`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lease::{Lease, LeaseEvent};
use super::peers::{Look, PeerChange, Peers};
use super::redis_health::{LeaseTimes, RedisHealth};
use super::wire::{Action, Call, Holder, Snapshot};
use crate::clock::whole_ms;
use crate::ids::{NodeId, SlotNumber};
use crate::limits::{FOREIGN_FIELDS_MAX, SLOT_VALUE_BYTES_MAX, SLOTS_MAX, VIEW_AGE_MAX};
use crate::routing::placement::{Pod, View};

/// How often the same finding is logged while it comes and goes.
const FINDING_LOG_EVERY: Duration = Duration::from_secs(30);

/// Pause between an answer and a call that an announcement triggers.
const BETWEEN_CALLS: Duration = Duration::from_millis(20);

/// Identity of this pod.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Name of the pod.
    pub node: NodeId,
    /// Id of this process. Unlike the name, it is never reused.
    pub instance: Arc<str>,
    /// URL by which clients reach the pod.
    pub url: Arc<str>,
    /// `PEER_URL`: by which other pods look at this one.
    pub peer_url: Option<Arc<str>>,
    /// Whether clients are redirected to this URL because they belong to this pod; then no other pod may have it.
    pub owns_url: bool,
    /// `REDIS_KEY_PREFIX`.
    pub key_prefix: Box<str>,
}

/// Events to log, once each time they happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// This pod claimed a slot.
    Claimed(SlotNumber),
    /// Another pod holds the slot that this pod had, because its lease ran out; this pod claims a new one.
    Lost(SlotNumber),
    /// Another process under this pod's name took over its slot; this pod claims a new one.
    Displaced(SlotNumber),
    /// Another process under this pod's name holds this slot.
    NameShared(SlotNumber),
    /// Another pod, with this name and slot, has this pod's URL.
    UrlShared(Arc<str>, SlotNumber),
    /// Redis lost its data.
    MemoryLost,
    /// This pod released its slot.
    Left,
    /// A new view is in force.
    ViewChanged,
    /// The clock of Redis is ahead of the expected time (or behind it) by this many ms.
    ClockStepped(i64),
    /// Another pod is gone, or back.
    PeerChanged(PeerChange),
    /// This pod reaches none of several peers any more (`true`), or one again.
    CutOff(bool),
    /// The hash has this many foreign fields, and the name of one of them, if known.
    FieldsIgnored(u64, Option<Box<str>>),
}

/// Holders that a Redis without its data does not list yet.
#[derive(Debug)]
struct RetainedHolders {
    until: Instant,
    holders: Vec<Holder>,
}

/// Another pod that has this pod's URL.
#[derive(Debug)]
struct DuplicateUrl {
    instance: Arc<str>,
    /// Its lease when it was first seen. A lease that is renewed later does not belong to a pod that has just died.
    expires_at_ms: u64,
    logged: Option<Instant>,
}

/// The rules of membership for one pod. The `handle_` functions take events; the others return what to do.
#[derive(Debug)]
pub struct Member {
    identity: Identity,
    times: LeaseTimes,
    redis_health: RedisHealth,
    lease: Lease,
    /// Redis' time, and when it was read: `None` before the first answer.
    clock: Option<(u64, Instant)>,
    /// No lease is expired before this time.
    expire_from: Option<Instant>,
    /// When the attempt began that returned the last snapshot.
    as_of: Option<Instant>,
    /// Whether each pod in the view had to renew its lease since Redis was last down.
    confirmed: bool,
    /// When the hash of the last snapshot was created, in Redis' time; 0 before the first snapshot.
    epoch: u64,
    /// Live holders that this pod knows, by slot, itself included.
    holders: Vec<Holder>,
    /// Pods that announced their leave since the last snapshot.
    left: Vec<NodeId>,
    retained: Option<RetainedHolders>,
    peers: Peers,
    view: Arc<View>,
    same_name_instance: Option<Arc<str>>,
    duplicate_url: Option<DuplicateUrl>,
    /// Ignored fields of the last snapshot, and when they were last logged.
    ignored: u64,
    ignored_logged: Option<Instant>,
    step_logged: Option<Instant>,
    call_at: Option<Instant>,
    notices: Vec<Notice>,
}

impl Member {
    /// A pod that has just started, with these lease times.
    #[must_use]
    pub fn new(identity: Identity, times: LeaseTimes) -> Self {
        Self {
            identity,
            times,
            redis_health: RedisHealth::new(times),
            lease: Lease::Watching,
            clock: None,
            expire_from: None,
            as_of: None,
            confirmed: false,
            epoch: 0,
            holders: Vec::new(),
            left: Vec::new(),
            retained: None,
            peers: Peers::default(),
            view: Arc::default(),
            same_name_instance: None,
            duplicate_url: None,
            ignored: 0,
            ignored_logged: None,
            step_logged: None,
            call_at: None,
            notices: Vec::new(),
        }
    }

    // ---- events -----------------------------------------------------------------------------------------------------

    /// The history is complete: the pod claims a slot.
    pub fn handle_history_complete(&mut self, now: Instant) {
        self.apply(LeaseEvent::HistoryComplete, now);
    }

    /// The pod starts to drain: it owns no assessment from now on, whatever Redis holds.
    pub(crate) fn handle_drain(&mut self, now: Instant) {
        self.apply(LeaseEvent::DrainStarted, now);
        self.publish_view(self.view.version, self.view.slots.len());
    }

    /// A pod announced that it leaves, or that another pod's lease ran out.
    pub(crate) fn handle_leave(&mut self, node: NodeId, now: Instant) {
        if self.holders.iter().any(|holder| holder.node == node.0) && !self.left.contains(&node) {
            self.left.push(node);
        }
        self.handle_announcement(now);
    }

    /// The slots have changed: the next call is made now instead of at the next poll.
    pub(crate) fn handle_announcement(&mut self, now: Instant) {
        if !self.redis_health.is_redis_up() {
            return;
        }
        // Many pods that start at once announce themselves in a burst: one call covers all of them.
        let soon = self.clock.map_or(now, |(_, answered)| now.max(answered + BETWEEN_CALLS));
        self.call_at = Some(self.call_at.map_or(soon, |due| due.min(soon)));
    }

    /// A redirect needs a newer view: a call is made at once, or [`VIEW_AGE_MAX`] after the last one. If Redis is down,
    /// the attempts continue at their own rate.
    pub(crate) fn handle_refresh_request(&mut self, now: Instant) {
        if !self.redis_health.is_redis_up() {
            return;
        }
        let soon = self.as_of.map_or(now, |as_of| now.max(as_of + VIEW_AGE_MAX));
        self.call_at = Some(self.call_at.map_or(soon, |due| due.min(soon)));
    }

    /// A call failed, or connecting before it.
    pub fn handle_failure(&mut self, now: Instant) {
        self.redis_health.handle_failure();
        self.confirmed = false;
        self.call_at = Some(self.redis_health.next_attempt(now, now));
    }

    /// An attempt that began at `began`, with connecting if needed, has been answered.
    pub fn handle_snapshot(&mut self, began: Instant, now: Instant, snapshot: Snapshot) {
        let stepped = self.step_of_clock(began, now, snapshot.now_ms);
        let is_first = self.clock.replace((snapshot.now_ms, now)).is_none();
        if let Some(ms) = stepped {
            self.notice_step(now, ms);
        }
        if snapshot.late {
            // If the call was stuck, it took long by our clock, too. If it did not take long, Redis' clock has stepped.
            if now.saturating_duration_since(began) > self.times.call {
                self.handle_failure(now);
            } else {
                self.redis_health.handle_step(now);
                self.confirmed = false;
                self.call_at = Some(now + BETWEEN_CALLS);
            }
            return;
        }
        let judged = self.may_expire_leases(began);
        self.redis_health.handle_success(began, now);
        self.as_of = Some(began);
        self.call_at = Some(self.redis_health.next_attempt(began, now));
        let Snapshot { now_ms, epoch, version, slots, holders, ignored, ignored_field, .. } = snapshot;
        self.check_ignored_fields(now, ignored, ignored_field);
        if is_first && self.has_missed_renewals(now_ms, &holders) {
            self.expire_from = Some(now + self.times.lease);
        }
        self.retain_missing(now, epoch, version);
        self.check_own_lease(now, &holders);
        self.check_same_name(&holders);
        self.check_duplicate_url(now, &holders);
        self.holders = self.with_retained(now, holders);
        self.follow_peers(now);
        // If the first call succeeds and nothing failed before, all leases in its answer were renewed recently.
        let is_fresh = is_first && self.redis_health.has_seen_no_outage() && self.expire_from.is_none();
        self.confirmed = (judged || is_fresh) && self.retained.is_none();
        self.epoch = epoch;
        self.publish_view(version, slots as usize);
        self.schedule_next_expiry(now, now_ms);
        if is_first && matches!(self.lease, Lease::Wanting { .. }) {
            self.call_at = Some(now);
        }
    }

    /// A look at another pod has ended.
    pub(crate) fn handle_look(&mut self, look: &Look, is_there: bool, began: Instant, now: Instant) {
        let was_cut_off = self.peers.is_cut_off();
        // Nearly every look finds what the last one found.
        let Some(change) = self.peers.handle_look(look, is_there, began, now) else { return };
        self.notices.push(match self.peers.is_cut_off() {
            is_cut_off if is_cut_off != was_cut_off => Notice::CutOff(is_cut_off),
            _ => Notice::PeerChanged(change),
        });
        self.publish_view(self.view.version, self.view.slots.len());
    }

    // ---- outputs ----------------------------------------------------------------------------------------------------

    /// Time of the next look at another pod, if there is one.
    #[must_use]
    pub(crate) fn look_at(&self) -> Option<Instant> {
        self.peers.look_at()
    }

    /// Takes the looks that are due; [`Member::handle_look`] takes their outcomes.
    pub(crate) fn take_looks(&mut self, now: Instant) -> Vec<Look> {
        self.peers.take_due(now)
    }

    /// The pods that did not answer the last look.
    #[must_use]
    pub(crate) fn silent(&self) -> Arc<[NodeId]> {
        self.peers.silent().map(|node| NodeId(Arc::clone(node))).collect()
    }

    /// The other pods, as looks find them.
    #[must_use]
    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Time of the next call to Redis; `None` for at once.
    #[must_use]
    pub(crate) fn call_at(&self) -> Option<Instant> {
        self.call_at
    }

    /// The call to make at `now`.
    #[must_use]
    pub fn call(&self, now: Instant) -> Call {
        let (action, take_over) = match self.lease {
            Lease::Watching | Lease::Left => (Action::Watch, false),
            // A pod that had no slot first reads the slots, and after an outage gives earlier holders the time to take
            // theirs again.
            Lease::Wanting { had: None, .. } if !self.redis_health.has_settled(now) => (Action::Watch, false),
            Lease::Wanting { take_over, .. } => (Action::Claim, take_over),
            Lease::Holding { .. } => (Action::Hold, false),
            Lease::Leaving => (Action::Leave, false),
        };
        let expected_back = self.retained.iter().flat_map(|retained| &retained.holders);
        let prefix = &self.identity.key_prefix;
        Call {
            action,
            node: Arc::clone(&self.identity.node.0),
            instance: Arc::clone(&self.identity.instance),
            url: Arc::clone(&self.identity.url),
            peer_url: self.identity.peer_url.clone(),
            lease_ms: whole_ms(self.times.lease),
            slot: self.lease.number().map(|slot| slot.0),
            take_over,
            reserved: expected_back.map(|holder| holder.slot).collect(),
            slots: u32::try_from(self.view.slots.len()).unwrap_or(SLOTS_MAX),
            slots_max: SLOTS_MAX,
            value_bytes_max: SLOT_VALUE_BYTES_MAX,
            fields_max: FOREIGN_FIELDS_MAX,
            sent_ms: self.clock.map(|(ms, at)| ms.saturating_add(whole_ms(now.saturating_duration_since(at)))),
            late_ms: whole_ms(self.times.call),
            judge: self.may_expire_leases(now),
            join_channel: format!("{prefix}:node:join").into(),
            leave_channel: format!("{prefix}:node:leave").into(),
        }
    }

    /// The live slots.
    #[must_use]
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// The slot of this pod, while it holds one.
    #[must_use]
    pub(crate) fn own_slot(&self) -> Option<SlotNumber> {
        self.lease.held()
    }

    /// Whether this pod drains, and Redis has confirmed that it holds no slot.
    #[must_use]
    pub(crate) fn has_left(&self) -> bool {
        self.lease == Lease::Left
    }

    /// The time that the view reflects, at least: when the newest answered call began.
    #[must_use]
    pub(crate) fn as_of(&self) -> Option<Instant> {
        self.as_of
    }

    /// Whether each pod in the view had to renew its lease since Redis was last down or lost its data. As of the last
    /// call, the view then has no pod whose lease has run out.
    #[must_use]
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Whether the last attempt reached Redis.
    #[must_use]
    pub(crate) fn is_redis_up(&self) -> bool {
        self.redis_health.is_redis_up()
    }

    /// Foreign fields in the last snapshot.
    #[must_use]
    pub(crate) fn fields_ignored(&self) -> u64 {
        self.ignored
    }

    /// Takes the events to log since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    // ---- internals --------------------------------------------------------------------------------------------------

    fn apply(&mut self, event: LeaseEvent, now: Instant) {
        let before = self.lease;
        self.lease = before.after(event);
        if self.lease == before {
            return;
        }
        // An attempt that waits for its back-off keeps waiting: a new state doesn't make Redis reachable.
        let needs_call = matches!(self.lease, Lease::Wanting { .. } | Lease::Leaving);
        if needs_call && self.redis_health.is_redis_up() {
            self.call_at = Some(now);
        }
        match (before, self.lease, event) {
            (_, Lease::Holding { slot }, _) => self.notices.push(Notice::Claimed(slot)),
            (Lease::Holding { slot }, _, LeaseEvent::Taken) => self.notices.push(Notice::Lost(slot)),
            (Lease::Holding { slot }, _, LeaseEvent::Displaced) => self.notices.push(Notice::Displaced(slot)),
            (Lease::Leaving, Lease::Left, _) => self.notices.push(Notice::Left),
            _ => {}
        }
    }

    /// Whether a call at `now` may expire leases.
    fn may_expire_leases(&self, now: Instant) -> bool {
        self.redis_health.may_expire_leases(now) && self.expire_from.is_none_or(|from| now >= from)
    }

    fn is_own(&self, holder: &Holder) -> bool {
        holder.instance == self.identity.instance
    }

    fn has_left_announced(&self, holder: &Holder) -> bool {
        self.left.iter().any(|node| node.0 == holder.node)
    }

    /// How far Redis' clock is off from the expected time by the last answer, in ms; `None` if the delay of answers
    /// explains it.
    fn step_of_clock(&self, began: Instant, now: Instant, now_ms: u64) -> Option<i64> {
        let (before_ms, at) = self.clock?;
        let least = before_ms.saturating_add(whole_ms(began.saturating_duration_since(at)));
        let most = before_ms.saturating_add(whole_ms(now.saturating_duration_since(at)));
        let tolerance = whole_ms(self.times.call);
        let ahead = now_ms.saturating_sub(most.saturating_add(tolerance));
        let behind = least.saturating_sub(now_ms.saturating_add(tolerance));
        let off = |ms: u64| i64::try_from(ms.saturating_add(tolerance)).unwrap_or(i64::MAX);
        if ahead > 0 { Some(off(ahead)) } else { (behind > 0).then(|| -off(behind)) }
    }

    fn notice_step(&mut self, now: Instant, ms: i64) {
        let is_logged = |at| now.saturating_duration_since(at) < FINDING_LOG_EVERY;
        if !self.step_logged.is_some_and(is_logged) {
            self.step_logged = Some(now);
            self.notices.push(Notice::ClockStepped(ms));
        }
    }

    /// Whether another pod's last renewal is older than it can be while Redis is up. A pod that has just started can't
    /// tell a dead pod from an outage in which none could renew, so it leaves the others the time to renew. If the pod
    /// is dead, the pods that were running know.
    fn has_missed_renewals(&self, now_ms: u64, holders: &[Holder]) -> bool {
        let renewed_by = now_ms.saturating_add(whole_ms(self.times.lease.saturating_sub(self.times.gap)));
        holders.iter().any(|holder| holder.node != self.identity.node.0 && holder.expires_at_ms < renewed_by)
    }

    /// If Redis lost its data, keeps the known holders for one more lease.
    fn retain_missing(&mut self, now: Instant, epoch: u64, version: u64) {
        let lost = self.epoch != 0 && epoch != self.epoch || version < self.view.version;
        if !lost || self.holders.is_empty() {
            return;
        }
        let others = self.holders.iter().filter(|holder| !self.is_own(holder) && !self.has_left_announced(holder));
        let holders: Vec<Holder> = others.cloned().collect();
        let until = now + self.times.lease;
        self.retained = (!holders.is_empty()).then_some(RetainedHolders { until, holders });
        if !self.lease.is_draining() || self.retained.is_some() {
            self.notices.push(Notice::MemoryLost);
        }
    }

    /// Applies a snapshot to this pod's own lease.
    fn check_own_lease(&mut self, now: Instant, holders: &[Holder]) {
        let event = if let Some(mine) = holders.iter().find(|holder| self.is_own(holder)) {
            LeaseEvent::Ours(mine.number())
        } else {
            let number = self.lease.number();
            match holders.iter().find(|holder| Some(holder.number()) == number) {
                Some(other) if other.node == self.identity.node.0 => {
                    // This event covers the shared name; no second notice is needed.
                    self.same_name_instance = Some(Arc::clone(&other.instance));
                    LeaseEvent::Displaced
                }
                Some(_) => LeaseEvent::Taken,
                None => LeaseEvent::Missing,
            }
        };
        self.apply(event, now);
    }

    /// Reports each other process under this pod's name once. Only while this pod holds a slot: before, the lease may
    /// be its own from before a restart.
    fn check_same_name(&mut self, holders: &[Holder]) {
        if self.lease.held().is_none() {
            return;
        }
        let same_name_instance =
            holders.iter().find(|holder| holder.node == self.identity.node.0 && !self.is_own(holder));
        match same_name_instance {
            Some(other) if self.same_name_instance.as_ref() != Some(&other.instance) => {
                self.same_name_instance = Some(Arc::clone(&other.instance));
                self.notices.push(Notice::NameShared(other.number()));
            }
            Some(_) => {}
            None => self.same_name_instance = None,
        }
    }

    /// Reports another live pod with this pod's URL every 30 seconds: clients redirected to either reach one of them at
    /// random.
    fn check_duplicate_url(&mut self, now: Instant, holders: &[Holder]) {
        let Identity { node, url, owns_url, .. } = &self.identity;
        let is_twin = |holder: &&Holder| holder.url == *url && holder.node != node.0;
        let twin = holders.iter().find(is_twin).filter(|_| *owns_url && self.lease.held().is_some());
        let Some(twin) = twin else {
            self.duplicate_url = None;
            return;
        };
        let known = self.duplicate_url.take().filter(|known| known.instance == twin.instance);
        let mut known = known.unwrap_or_else(|| DuplicateUrl {
            instance: Arc::clone(&twin.instance),
            expires_at_ms: twin.expires_at_ms,
            logged: None,
        });
        let is_logged = |at| now.saturating_duration_since(at) < FINDING_LOG_EVERY;
        if known.expires_at_ms != twin.expires_at_ms && !known.logged.is_some_and(is_logged) {
            known.logged = Some(now);
            self.notices.push(Notice::UrlShared(Arc::clone(&twin.node), twin.number()));
        }
        self.duplicate_url = Some(known);
    }

    /// Logs ignored fields once, when the first appears.
    fn check_ignored_fields(&mut self, now: Instant, count: u64, field: Option<Box<str>>) {
        let is_logged = |at| now.saturating_duration_since(at) < FINDING_LOG_EVERY;
        if count > 0 && self.ignored == 0 && !self.ignored_logged.is_some_and(is_logged) {
            self.ignored_logged = Some(now);
            self.notices.push(Notice::FieldsIgnored(count, field));
        }
        self.ignored = count;
    }

    /// The holders of a snapshot, plus the retained ones that are still missing.
    fn with_retained(&mut self, now: Instant, mut holders: Vec<Holder>) -> Vec<Holder> {
        let left = std::mem::take(&mut self.left);
        let Some(retained) = &mut self.retained else { return holders };
        let is_back = |old: &Holder| holders.iter().any(|new| new.slot == old.slot || new.instance == old.instance);
        let has_left = |old: &Holder| left.iter().any(|node| node.0 == old.node);
        retained.holders.retain(|old| !is_back(old) && !has_left(old));
        if now >= retained.until || retained.holders.is_empty() {
            self.retained = None;
            return holders;
        }
        holders.extend(retained.holders.iter().cloned());
        holders.sort_by_key(|holder| holder.slot);
        holders
    }

    /// Looks at the other pods that hold slots, if they can look at this one. One that does not know of looks is left
    /// out.
    fn follow_peers(&mut self, now: Instant) {
        let own = Arc::clone(&self.identity.instance);
        if self.identity.peer_url.is_some() {
            self.peers.follow(self.holders.iter().filter(|holder| holder.instance != own), now);
        }
    }

    fn publish_view(&mut self, version: u64, slots: usize) {
        let numbers = self.holders.iter().map(|holder| holder.slot as usize + 1);
        let count = numbers.max().unwrap_or(0).max(slots).min(SLOTS_MAX as usize);
        let mut pods: Vec<Option<Pod>> = vec![None; count];
        let is_draining = self.lease.is_draining();
        for holder in &self.holders {
            if is_draining && self.is_own(holder) || self.peers.is_gone(&holder.instance) {
                continue;
            }
            if let Some(pod) = pods.get_mut(holder.slot as usize) {
                *pod = Some(holder.pod());
            }
        }
        let view = View { version, slots: pods };
        if *self.view != view {
            if self.view.slots != view.slots {
                self.notices.push(Notice::ViewChanged);
            }
            self.view = Arc::new(view);
        }
    }

    /// Schedules a call for when the next lease of another pod runs out, if that is before the next poll.
    fn schedule_next_expiry(&mut self, now: Instant, now_ms: u64) {
        let others = self.holders.iter().filter(|holder| !self.is_own(holder));
        // A lease that has run out and is still listed may not be expired yet, so it is no reason to call earlier.
        let left = others.filter_map(|holder| holder.expires_at_ms.checked_sub(now_ms)).min();
        let lease_ends = left.map(|ms| now + Duration::from_millis(ms.saturating_add(1)));
        let retained_until = self.retained.as_ref().map(|retained| retained.until);
        self.call_at = [self.call_at, lease_ends, retained_until].into_iter().flatten().min();
    }
}

#[cfg(test)]
mod tests;
