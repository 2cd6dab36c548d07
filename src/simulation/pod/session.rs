//! A pod's session with Redis: the work of `discovery/redis.rs`, with the rules of membership.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::{LEASE, PodAnswer, PodContext};
use crate::clock::whole_ms;
use crate::discovery::membership::Member;
use crate::discovery::peers::Look;
use crate::discovery::redis_health::LeaseTimes;
use crate::ids::NodeId;
use crate::limits::PEER_LOOK_MAX;
use crate::simulation::redis::{CallStatus, PendingAnnouncement};

pub(super) struct RedisClient {
    pub(super) member: Member,
    call: Option<PendingCall>,
    /// Announcements and when they arrive, while subscribed.
    announcements: Vec<(u64, PendingAnnouncement)>,
    is_subscribed: bool,
    /// Looks under way: each with its outcome, when it began, and when it ends, in ms of the world.
    looks: Vec<(Look, bool, Instant, u64)>,
}

/// An open call.
struct PendingCall {
    id: u64,
    began: Instant,
    until: Instant,
}

impl RedisClient {
    pub(super) fn new(member: Member) -> Self {
        Self { member, call: None, announcements: Vec::new(), is_subscribed: false, looks: Vec::new() }
    }

    pub(super) fn receive_announcement(&mut self, at_ms: u64, announcement: &PendingAnnouncement) {
        if self.is_subscribed {
            self.announcements.push((at_ms, announcement.clone()));
        }
    }

    /// Runs the session for a while. Looks at the `blind` ones fail: each with its time, `None` for all pods.
    pub(super) fn run(&mut self, context: &mut PodContext<'_>, blind: &[(Option<usize>, u64)], rng: &mut Rng) {
        self.look(context, blind, rng);
        self.call(context, rng);
    }

    fn look(&mut self, context: &PodContext<'_>, blind: &[(Option<usize>, u64)], rng: &mut Rng) {
        let now = context.now.instant;
        for (look, is_there, began, _) in self.looks.extract_if(.., |(.., ends_ms)| *ends_ms <= context.now_ms) {
            self.member.handle_look(&look, is_there, began, now);
        }
        for look in self.member.take_looks(now) {
            let pod: usize = look.url.trim_start_matches("http://p").parse().expect("the URL of a simulated pod");
            let is_blind = blind.iter().any(|(other, _)| other.is_none_or(|other| other == pod));
            let answer = if is_blind { PodAnswer::None } else { context.answers[pod] };
            let takes_ms = if answer == PodAnswer::None { whole_ms(PEER_LOOK_MAX) } else { rng.u64(..15) };
            self.looks.push((look, answer == PodAnswer::Prompt, now, context.now_ms + takes_ms));
        }
    }

    fn call(&mut self, context: &mut PodContext<'_>, rng: &mut Rng) {
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
