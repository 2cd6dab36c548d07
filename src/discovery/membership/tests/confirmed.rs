//! When a view is confirmed.

use super::*;

#[test]
fn a_view_is_confirmed_once_each_pod_had_a_lease_to_renew_since_redis_was_down() {
    let three = [(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")];
    let mut story = Story::of_three();
    assert!(story.pod.is_confirmed(), "the first call shows recently renewed leases");
    story.sees_for(Duration::from_secs(3), EPOCH, 3, &three);
    assert!(story.pod.is_confirmed());

    story.fails_for(Duration::from_secs(30));
    assert!(!story.pod.is_confirmed());
    story.sees(EPOCH, 3, &three);
    story.sees_for(LEASE - Duration::from_secs(1), EPOCH, 3, &three);
    assert!(!story.call().judge && !story.pod.is_confirmed(), "any of them may have died since");
    story.sees_for(Duration::from_secs(1), EPOCH, 3, &three);
    assert!(story.pod.is_confirmed());

    // Redis comes back empty at once; `c` is retained.
    story.sees(EPOCH + 7, 2, &three[..2]);
    assert_eq!(story.pods(), "0=a 1=b 2=c");
    story.sees_for(LEASE - Duration::from_secs(1), EPOCH + 7, 2, &three[..2]);
    assert!(!story.pod.is_confirmed());
    story.sees_for(Duration::from_secs(1), EPOCH + 7, 2, &three[..2]);
    assert_eq!((story.pods().as_str(), story.pod.is_confirmed()), ("0=a 1=b", true));
}

#[test]
fn a_first_call_after_a_failure_or_with_an_overdue_lease_confirms_nothing() {
    let mut story = Story::begin();
    story.fails_for(Duration::from_secs(2));
    story.sees(EPOCH, 3, &[(0, "b", "b1")]);
    assert!(!story.pod.is_confirmed());

    let mut story = Story::begin();
    let mut snapshot = story.snapshot(EPOCH, 3, &[(0, "b", "b1")]);
    snapshot.holders[0].expires_at_ms = snapshot.now_ms;
    story.pod.handle_snapshot(story.now, story.now, snapshot);
    assert!(!story.pod.is_confirmed());
}
