//! When a pod knows of each pod in its view that it lives, or died a moment ago.

use super::*;

#[test]
fn a_view_is_proven_when_each_pod_had_a_lease_long_to_show_itself_since_redis_was_away() {
    let three = [(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")];
    let mut story = Story::of_three();
    assert!(story.pod.is_confirmed(), "a first look shows leases that were renewed of late");
    story.sees_for(Duration::from_secs(3), EPOCH, 3, &three);
    assert!(story.pod.is_confirmed());

    story.fails_for(Duration::from_secs(30));
    assert!(!story.pod.is_confirmed());
    story.sees(EPOCH, 3, &three);
    story.sees_for(LEASE - Duration::from_secs(1), EPOCH, 3, &three);
    assert!(!story.call().judge && !story.pod.is_confirmed(), "any of them may have died meanwhile");
    story.sees_for(Duration::from_secs(1), EPOCH, 3, &three);
    assert!(story.pod.is_confirmed());

    // It comes back empty at once: `c` is remembered.
    story.sees(EPOCH + 7, 2, &three[..2]);
    assert_eq!(story.pods(), "0=a 1=b 2=c");
    story.sees_for(LEASE - Duration::from_secs(1), EPOCH + 7, 2, &three[..2]);
    assert!(!story.pod.is_confirmed());
    story.sees_for(Duration::from_secs(1), EPOCH + 7, 2, &three[..2]);
    assert_eq!((story.pods().as_str(), story.pod.is_confirmed()), ("0=a 1=b", true));
}

#[test]
fn a_first_look_after_trouble_or_with_a_lease_that_nobody_renews_proves_nothing() {
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
