//! Answers of Redis to the slots script, and the state of a member after a sequence of them.

use std::time::{Duration, Instant};

use shardgate::discovery::membership::{Identity, Member};
use shardgate::discovery::redis_health::LeaseTimes;
use shardgate::discovery::wire::Snapshot;
use shardgate::ids::{AssessmentHash, NodeId};
use shardgate::limits::SLOTS_MAX;

/// Largest number of answers in a sequence.
const ANSWERS_MAX: usize = 16;

/// Answers separated by NUL. Each has lines: a header, then the holders.
pub fn redis(data: &[u8]) {
    let identity = Identity {
        node: NodeId("a".into()),
        instance: "i".into(),
        url: "ws://a/ws".into(),
        peer_url: Some("http://a".into()),
        owns_url: true,
        key_prefix: "p".into(),
    };
    let mut member = Member::new(identity, LeaseTimes::of(Duration::from_secs(10)));
    let mut now = Instant::now();
    for answer in data.split(|&byte| byte == 0).take(ANSWERS_MAX) {
        let began = now;
        now += Duration::from_millis(700);
        let lines: Vec<Vec<u8>> = answer.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
        match Snapshot::parse(&lines) {
            Ok(snapshot) => {
                check(&snapshot, lines.len());
                member.handle_snapshot(began, now, snapshot);
            }
            Err(_) if answer.is_empty() => member.handle_history_complete(now),
            Err(_) => member.handle_failure(now),
        }
        check_member(&mut member, now);
    }
}

fn check(snapshot: &Snapshot, lines: usize) {
    assert!(snapshot.slots <= SLOTS_MAX);
    assert!(snapshot.holders.len() as u64 + snapshot.ignored >= lines as u64 - 1, "each line is a holder or counted");
    for holder in &snapshot.holders {
        assert!(holder.slot < SLOTS_MAX);
        let pod = holder.pod();
        assert!(!pod.node.0.is_empty() && !pod.node.0.chars().any(char::is_control), "it is sent to clients");
        assert!(pod.url.starts_with("ws://") || pod.url.starts_with("wss://"), "clients are redirected to it");
        assert!(!pod.url.contains(|c: char| c.is_control() || c.is_whitespace()));
    }
}

/// After any answers its view is bounded, an owner is a pod of the view, and its next call can be made.
fn check_member(member: &mut Member, now: Instant) {
    let view = member.view();
    assert!(view.slots.len() <= SLOTS_MAX as usize);
    for hash in [0, 1 << 32, u64::MAX] {
        let owner = view.owner(AssessmentHash(hash));
        assert_eq!(owner.is_some(), view.live().next().is_some());
        assert!(owner.is_none_or(|slot| view.pod(slot).is_some()));
    }
    let call = member.call(now);
    assert!(call.slots <= SLOTS_MAX && call.reserved.iter().all(|&slot| slot < SLOTS_MAX));
    assert!(serde_json::to_string(&call).is_ok());
    assert!(member.take_notices().len() <= 8);
}
