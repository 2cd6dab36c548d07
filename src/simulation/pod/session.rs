//! A pod's talk with Redis: what `discovery/redis.rs` does with the rules of membership.

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
    /// Announcements and when they arrive, while they can be heard.
    news: Vec<(u64, PendingAnnouncement)>,
    is_subscribed: bool,
}

/// A call under way.
struct PendingCall {
    id: u64,
    began: Instant,
    until: Instant,
}

impl RedisClient {
    pub(super) fn new(member: Member) -> Self {
        Self { member, call: None, news: Vec::new(), is_subscribed: false }
    }

    pub(super) fn hear(&mut self, at_ms: u64, news: &PendingAnnouncement) {
        if self.is_subscribed {
            self.news.push((at_ms, news.clone()));
        }
    }

    pub(super) fn run(&mut self, around: &mut PodContext<'_>, dice: &mut Rng) {
        let now = around.now.instant;
        if let Some(PendingCall { id, began, until }) = self.call {
            match around.redis.outcome(id, around.now_ms) {
                CallStatus::Answered(snapshot) => self.member.handle_snapshot(began, now, *snapshot),
                CallStatus::Waiting if now < until => return,
                CallStatus::Waiting | CallStatus::Broken => self.fail(now),
            }
            self.call = None;
        }
        for (_, news) in self.news.extract_if(.., |(at_ms, _)| *at_ms <= around.now_ms) {
            if news.left {
                self.member.handle_leave(NodeId(news.node), now);
            } else {
                self.member.handle_announcement(now);
            }
        }
        if self.member.call_at().is_none_or(|due| due <= now) {
            self.begin(around, dice);
        }
    }

    fn begin(&mut self, around: &mut PodContext<'_>, dice: &mut Rng) {
        let now = around.now.instant;
        // Now and then the way to Redis is long.
        let mut way_ms = || if dice.u8(..20) == 0 { dice.u64(20..700) } else { dice.u64(..15) };
        let (there_ms, back_ms) = (way_ms(), way_ms());
        match around.redis.send(self.member.call(now), around.now_ms, there_ms, back_ms) {
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
        self.news.clear();
    }
}

const _: () = assert!(LEASE.as_millis() >= Duration::from_secs(1).as_millis(), "PROTOCOL 6 allows no shorter one");
