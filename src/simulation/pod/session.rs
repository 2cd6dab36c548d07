//! A pod's session with Redis: the work of `discovery/redis.rs`, with the rules of membership.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::{LEASE, PodContext};
use crate::discovery::membership::Member;
use crate::discovery::redis_health::LeaseTimes;
use crate::ids::NodeId;
use crate::simulation::redis::{CallStatus, PendingAnnouncement};

pub(super) struct RedisClient {
    pub(super) member: Member,
    call: Option<PendingCall>,
    /// Announcements and when they arrive, while subscribed.
    announcements: Vec<(u64, PendingAnnouncement)>,
    is_subscribed: bool,
}

/// An open call.
struct PendingCall {
    id: u64,
    began: Instant,
    until: Instant,
}

impl RedisClient {
    pub(super) fn new(member: Member) -> Self {
        Self { member, call: None, announcements: Vec::new(), is_subscribed: false }
    }

    pub(super) fn receive_announcement(&mut self, at_ms: u64, announcement: &PendingAnnouncement) {
        if self.is_subscribed {
            self.announcements.push((at_ms, announcement.clone()));
        }
    }

    pub(super) fn run(&mut self, context: &mut PodContext<'_>, rng: &mut Rng) {
        let now = context.now.instant;
        if let Some(PendingCall { id, began, until }) = self.call {
            match context.redis.outcome(id, context.now_ms) {
                CallStatus::Answered(snapshot) => self.member.handle_snapshot(began, now, *snapshot),
                CallStatus::Waiting if now < until => return,
                CallStatus::Waiting | CallStatus::Broken => self.fail(now),
            }
            self.call = None;
        }
        for (_, announcement) in self.announcements.extract_if(.., |(at_ms, _)| *at_ms <= context.now_ms) {
            if announcement.left {
                self.member.handle_leave(NodeId(announcement.node), now);
            } else {
                self.member.handle_announcement(now);
            }
        }
        if self.member.call_at().is_none_or(|due| due <= now) {
            self.begin(context, rng);
        }
    }

    fn begin(&mut self, context: &mut PodContext<'_>, rng: &mut Rng) {
        let now = context.now.instant;
        // Sometimes the way to Redis is long.
        let mut travel_ms = || if rng.u8(..20) == 0 { rng.u64(20..700) } else { rng.u64(..15) };
        let (there_ms, back_ms) = (travel_ms(), travel_ms());
        match context.redis.send(self.member.call(now), context.now_ms, there_ms, back_ms) {
            Some(id) => {
                let until = now + LeaseTimes::of(LEASE).call;
                self.call = Some(PendingCall { id, began: now, until });
                self.is_subscribed = true;
            }
            None => self.fail(now),
        }
    }

    fn fail(&mut self, now: Instant) {
        self.member.handle_failure(now);
        self.is_subscribed = false;
        self.announcements.clear();
    }
}

const _: () = assert!(LEASE.as_millis() >= Duration::from_secs(1).as_millis(), "PROTOCOL 6 allows no shorter one");
