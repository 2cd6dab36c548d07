//! Another pod with this pod's URL.

use super::*;

/// One second later, `b` has renewed its lease with the URL of `a`.
fn sees_duplicate(story: &mut Story) -> Vec<Notice> {
    story.now += Duration::from_secs(1);
    let mut snapshot = story.snapshot(EPOCH, 3, &[(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")]);
    snapshot.holders[1].url = "ws://a/ws".into();
    story.pod.handle_snapshot(story.now, story.now, snapshot);
    let mut notices = story.pod.take_notices();
    notices.retain(|notice| *notice != Notice::ViewChanged);
    notices
}

#[test]
fn a_live_pod_with_the_same_url_is_reported_every_half_minute() {
    let mut story = Story::of_three();
    let shared = Notice::UrlShared("b".into(), SlotNumber(1));
    assert_eq!(sees_duplicate(&mut story), []);
    assert_eq!(sees_duplicate(&mut story), std::slice::from_ref(&shared));
    let notices: Vec<_> = (0..60).flat_map(|_| sees_duplicate(&mut story)).collect();
    assert_eq!(notices, [shared.clone(), shared]);
    story.sees_for(Duration::from_secs(60), EPOCH, 3, &[(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")]);
    assert!(!story.pod.take_notices().iter().any(|notice| matches!(notice, Notice::UrlShared(..))));
}

#[test]
fn the_old_lease_of_a_renamed_pod_is_no_duplicate_url() {
    let mut story = Story::of_three();
    let mut snapshot = story.snapshot(EPOCH, 3, &[(0, "a", "a1"), (1, "old", "b1")]);
    snapshot.holders[1].url = "ws://a/ws".into();
    for _ in 0..9 {
        story.now += Duration::from_secs(1);
        snapshot.now_ms = story.redis_ms();
        story.pod.handle_snapshot(story.now, story.now, snapshot.clone());
        assert!(!story.pod.take_notices().iter().any(|notice| matches!(notice, Notice::UrlShared(..))));
    }
}

#[test]
fn behind_a_load_balancer_pods_may_share_a_url() {
    let mut story = Story::of_three();
    story.pod.identity.owns_url = false;
    assert!((0..60).all(|_| sees_duplicate(&mut story).is_empty()));
}
