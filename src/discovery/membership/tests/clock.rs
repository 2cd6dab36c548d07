//! Steps of Redis' clock.

use super::*;

const HOUR_MS: u64 = 3_600_000;

/// An answer, a second after the last one, of a Redis whose clock is off by this many ms.
fn sees_with_clock(story: &mut Story, off_ms: i64, late: bool) -> Vec<Notice> {
    story.now += Duration::from_secs(1);
    let mut snapshot = story.snapshot(EPOCH, 3, &[(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")]);
    let step = |ms: &mut u64| *ms = ms.checked_add_signed(off_ms).unwrap();
    step(&mut snapshot.now_ms);
    snapshot.holders.iter_mut().for_each(|holder| step(&mut holder.expires_at_ms));
    if late {
        snapshot = Snapshot { now_ms: snapshot.now_ms, late, ..Snapshot::default() };
    }
    story.pod.handle_snapshot(story.now, story.now, snapshot);
    story.pod.take_notices()
}

#[test]
fn a_forward_step_is_no_outage_and_delays_expiry_until_all_could_renew() {
    let mut story = Story::of_three();
    assert!(story.call().judge);
    let step = sees_with_clock(&mut story, HOUR_MS.cast_signed(), true);
    assert_eq!(step.len(), 1);
    assert!(matches!(step[0], Notice::ClockStepped(ms) if ms.unsigned_abs() == HOUR_MS), "{step:?}");
    assert!(story.pod.is_redis_up(), "Redis answered at once");
    assert_eq!((story.due(), story.pods().as_str()), (BETWEEN_CALLS, "0=a 1=b 2=c"));
    let call = story.call();
    assert_eq!((call.action, call.judge), (Action::Hold, false));
    assert_eq!(call.sent_ms, Some(story.redis_ms() + HOUR_MS), "the next call uses the stepped clock");
    for second in 1..=11 {
        assert_eq!(sees_with_clock(&mut story, HOUR_MS.cast_signed(), false), []);
        assert_eq!(story.call().judge, second >= 10, "after {second} s");
    }
}

#[test]
fn a_backward_step_is_reported_and_changes_nothing_else() {
    let mut story = Story::of_three();
    story.now += Duration::from_secs(2 * HOUR_MS / 1_000);
    story.sees(EPOCH, 3, &[(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")]);
    story.sees_for(Duration::from_secs(10), EPOCH, 3, &[(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")]);
    let step = sees_with_clock(&mut story, -HOUR_MS.cast_signed(), false);
    assert!(matches!(step[..], [Notice::ClockStepped(ms)] if ms.unsigned_abs() == HOUR_MS), "{step:?}");
    assert!(story.pod.is_redis_up() && story.call().judge);
    assert_eq!(story.pods(), "0=a 1=b 2=c");
    assert_eq!(story.call().sent_ms, Some(story.redis_ms() - HOUR_MS));
}

#[test]
fn a_clock_that_keeps_stepping_is_logged_every_half_minute() {
    let mut story = Story::of_three();
    let notices: usize = (0..60).map(|second| sees_with_clock(&mut story, second % 2 * 5_000, false).len()).sum();
    assert_eq!(notices, 2);
}
