//! Foreign fields in the hash.

use super::*;

#[test]
fn ignored_fields_are_counted_and_logged_once_or_rarely_if_they_come_and_go() {
    let mut story = Story::of_three();
    let sees = |story: &mut Story, ignored: u64| {
        story.now += Duration::from_secs(1);
        let snapshot = story.snapshot(EPOCH, 3, &[(0, "a", "a1"), (1, "b", "b1"), (2, "c", "c1")]);
        let ignored_field = (ignored > 0).then(|| "7".into());
        story.pod.handle_snapshot(story.now, story.now, Snapshot { ignored, ignored_field, ..snapshot });
        assert_eq!(story.pod.fields_ignored(), ignored);
        story.pod.take_notices()
    };
    assert_eq!(sees(&mut story, 2), [Notice::FieldsIgnored(2, Some("7".into()))]);
    for _ in 0..60 {
        assert_eq!(sees(&mut story, 3), []);
    }
    let logged = (0..60).map(|second| sees(&mut story, second % 2).len()).sum::<usize>();
    assert_eq!(logged, 2, "each 30 s at most");
    assert_eq!(story.pods(), "0=a 1=b 2=c");
}
