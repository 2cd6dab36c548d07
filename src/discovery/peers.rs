//! Which of the other pods are gone (PROTOCOL 7, "A pod that is gone"): when to look at each, and what the outcomes mean.
//! Time is an argument; the looks themselves are left to [`super::peer_looks`].
//!
//! A pod whose looks fail [`FAILURES_MAX`] times in a row is gone until one succeeds, or until its slot is vacant. Where
//! that is wrong, two pods serve an assessment for a while, each whole. If all of several peers fail, it is this pod that
//! is cut off, and none of them counts as gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::wire::Holder;
use crate::limits::{PEER_LOOK_EVERY, PEER_LOOK_RETRY, PEER_LOOKS_PER_SECOND_MAX};

/// Failed looks in a row after which a peer is gone.
const FAILURES_MAX: u32 = 3;

/// Peers that are looked at together: as many looks as a pause of half a second has room for.
const LOOKS_AT_ONCE: u32 = PEER_LOOKS_PER_SECOND_MAX / 2;
const _: () = assert!(PEER_LOOK_EVERY.as_millis() == 500);

/// The other pods that can be looked at.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    /// By the id of their process.
    by_instance: BTreeMap<Arc<str>, Peer>,
}

#[derive(Debug)]
struct Peer {
    node: Arc<str>,
    url: Arc<str>,
    /// Failed looks in a row.
    failures: u32,
    /// When the first of them began, or when it was met.
    since: Instant,
    /// Time of the next look; `None` while one is under way.
    look_at: Option<Instant>,
}

/// A look to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    /// The process to look at.
    pub(crate) instance: Arc<str>,
    /// Its `PEER_URL`.
    pub(crate) url: Arc<str>,
}

/// A peer that is gone, or back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerChange {
    /// Its name.
    pub(crate) node: Arc<str>,
    /// Whether it is gone now.
    pub(crate) is_gone: bool,
    /// For how long it has not answered.
    pub(crate) silent: Duration,
}

impl Peers {
    /// Follows the holders of slots, this pod's own excluded.
    pub(crate) fn follow<'a>(&mut self, others: impl Iterator<Item = &'a Holder>, now: Instant) {
        let (mut before, mut new) = (std::mem::take(&mut self.by_instance), 0);
        for holder in others {
            let Some(url) = &holder.peer_url else { continue };
            let known = before.remove(&holder.instance).filter(|peer| peer.url == *url);
            let peer = known.unwrap_or_else(|| {
                // Those that are met together are looked at in groups, and stay apart from then on.
                let look_at = now + PEER_LOOK_EVERY * (1 + new / LOOKS_AT_ONCE);
                new += 1;
                let (node, url) = (Arc::clone(&holder.node), Arc::clone(url));
                Peer { node, url, failures: 0, since: now, look_at: Some(look_at) }
            });
            self.by_instance.insert(Arc::clone(&holder.instance), peer);
        }
    }

    /// Time of the next look, if one is due at some time.
    #[must_use]
    pub(crate) fn look_at(&self) -> Option<Instant> {
        self.by_instance.values().filter_map(|peer| peer.look_at).min()
    }

    /// Takes the looks that are due. Each is answered by [`Peers::handle_look`].
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<Look> {
        let due = self.by_instance.iter_mut().filter(|(_, peer)| peer.look_at.is_some_and(|at| at <= now));
        due.map(|(instance, peer)| {
            peer.look_at = None;
            Look { instance: Arc::clone(instance), url: Arc::clone(&peer.url) }
        })
        .collect()
    }

    /// Takes the outcome of a look that began at `began`. Returns the change, if the peer is gone or back by it.
    pub(crate) fn handle_look(
        &mut self,
        look: &Look,
        is_there: bool,
        began: Instant,
        now: Instant,
    ) -> Option<PeerChange> {
        let pause = self.pause();
        let peer = self.by_instance.get_mut(&look.instance).filter(|peer| peer.url == look.url)?;
        let was_gone = peer.is_gone();
        if is_there {
            peer.look_at = Some(now.max(began + pause));
            peer.failures = 0;
        } else {
            if peer.failures == 0 {
                peer.since = began;
            }
            peer.failures = peer.failures.saturating_add(1);
            // A pod that has been gone for long costs no more than one that is there.
            let pause = if peer.is_gone() { pause } else { PEER_LOOK_RETRY };
            peer.look_at = Some(now.max(began + pause));
        }
        let (is_gone, silent) = (peer.is_gone(), now.saturating_duration_since(peer.since));
        (is_gone != was_gone).then(|| PeerChange { node: Arc::clone(&peer.node), is_gone, silent })
    }

    /// Whether a process counts as gone.
    #[must_use]
    pub(crate) fn is_gone(&self, instance: &Arc<str>) -> bool {
        !self.is_cut_off() && self.by_instance.get(instance).is_some_and(Peer::is_gone)
    }

    /// Number of peers that count as gone.
    #[must_use]
    pub(crate) fn gone(&self) -> usize {
        if self.is_cut_off() { 0 } else { self.by_instance.values().filter(|peer| peer.is_gone()).count() }
    }

    /// The names of the peers that did not answer the last look.
    pub(crate) fn silent(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_instance.values().filter(|peer| peer.failures > 0).map(|peer| &peer.node)
    }

    /// Whether this pod is cut off: it reaches none of several peers.
    #[must_use]
    pub(crate) fn is_cut_off(&self) -> bool {
        self.by_instance.len() > 1 && self.by_instance.values().all(Peer::is_gone)
    }

    /// Pause between the beginnings of two looks at a peer that is there.
    fn pause(&self) -> Duration {
        let peers = u32::try_from(self.by_instance.len()).unwrap_or(u32::MAX);
        PEER_LOOK_EVERY.max(Duration::from_secs(1) * peers / PEER_LOOKS_PER_SECOND_MAX)
    }
}

impl Peer {
    fn is_gone(&self) -> bool {
        self.failures >= FAILURES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Peers of these names, and what they answer.
    struct Story {
        peers: Peers,
        now: Instant,
    }

    fn holder(node: &str, url: Option<&str>) -> Holder {
        Holder {
            slot: 0,
            node: node.into(),
            instance: format!("{node}-1").into(),
            url: "ws://pod/ws".into(),
            peer_url: url.map(Into::into),
            expires_at_ms: 0,
        }
    }

    impl Story {
        fn of(nodes: &[&str]) -> Self {
            let (mut peers, now) = (Peers::default(), Instant::now());
            peers.follow(nodes.iter().map(|node| holder(node, Some("http://pod"))).collect::<Vec<_>>().iter(), now);
            Self { peers, now }
        }

        /// Runs for this time; a look at one of `silent` takes 300 ms and fails, each other succeeds at once. Returns the
        /// number of looks, and the changes.
        fn run(&mut self, time: Duration, silent: &[&str]) -> (usize, Vec<(String, bool)>) {
            let until = self.now + time;
            let (mut looks, mut changes) = (0, Vec::new());
            while let Some(at) = self.peers.look_at().filter(|at| *at <= until) {
                self.now = self.now.max(at);
                for look in self.peers.take_due(self.now) {
                    looks += 1;
                    let is_there = !silent.iter().any(|node| look.instance.starts_with(node));
                    let took = if is_there { Duration::ZERO } else { Duration::from_millis(300) };
                    let change = self.peers.handle_look(&look, is_there, self.now, self.now + took);
                    changes.extend(change.map(|change| (change.node.to_string(), change.is_gone)));
                }
            }
            self.now = until;
            (looks, changes)
        }

        fn gone(&self) -> Vec<&str> {
            let is_gone = |(instance, _): &(&Arc<str>, &Peer)| self.peers.is_gone(instance);
            self.peers.by_instance.iter().filter(is_gone).map(|(_, peer)| &*peer.node).collect()
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_peer_is_gone_after_three_failed_looks_in_a_row_until_it_answers() {
        let mut story = Story::of(&["a", "b"]);
        assert_eq!(story.run(2 * SECOND, &[]), (8, vec![]), "two a second each");
        let (_, changes) = story.run(2 * SECOND, &["a"]);
        assert_eq!((changes, story.gone()), (vec![("a".to_owned(), true)], vec!["a"]));
        assert_eq!(story.peers.silent().map(|node| &**node).collect::<Vec<_>>(), ["a"]);
        let (_, changes) = story.run(SECOND, &[]);
        assert_eq!((changes, story.gone()), (vec![("a".to_owned(), false)], vec![]));
    }

    #[test]
    fn a_look_that_succeeds_in_between_starts_the_count_again() {
        let mut story = Story::of(&["a", "b"]);
        let look = Look { instance: "a-1".into(), url: "http://pod".into() };
        for is_there in [false, false, true, false, false] {
            assert_eq!(story.peers.handle_look(&look, is_there, story.now, story.now), None);
        }
        assert!(story.peers.handle_look(&look, false, story.now, story.now).is_some_and(|change| change.is_gone));
    }

    #[test]
    fn a_pod_that_reaches_none_of_several_peers_is_cut_off_itself() {
        let mut story = Story::of(&["a", "b", "c"]);
        story.run(3 * SECOND, &["a", "b"]);
        assert_eq!(story.gone(), ["a", "b"]);
        story.run(3 * SECOND, &["a", "b", "c"]);
        assert!(story.peers.is_cut_off() && story.gone().is_empty() && story.peers.gone() == 0);
        // A single peer that fails may be gone as well as this pod may be cut off, and both may serve.
        let mut pair = Story::of(&["a"]);
        pair.run(3 * SECOND, &["a"]);
        assert_eq!(pair.gone(), ["a"]);
    }

    #[test]
    fn a_peer_that_refuses_is_gone_within_seven_tenths_of_a_second() {
        let mut story = Story::of(&["a", "b"]);
        story.run(2 * SECOND, &[]);
        let died = story.now;
        let gone = loop {
            story.now = story.peers.look_at().unwrap();
            for look in story.peers.take_due(story.now) {
                story.peers.handle_look(&look, &*look.instance == "b-1", story.now, story.now);
            }
            if story.gone() == ["a"] {
                break story.now;
            }
        };
        assert!(gone - died <= Duration::from_millis(700), "{:?}", gone - died);
    }

    #[test]
    fn only_those_that_hold_a_slot_and_give_a_url_are_looked_at() {
        let mut story = Story::of(&["a", "b"]);
        story.run(3 * SECOND, &["a"]);
        let now = story.now;
        story.peers.follow([holder("a", Some("http://pod")), holder("b", None)].iter(), now);
        assert_eq!(story.gone(), ["a"], "it keeps what is known of those that stay");
        story.peers.follow([holder("a", Some("http://other"))].iter(), now);
        assert!(story.gone().is_empty(), "at another URL it is another one");
        story.peers.follow([].iter(), now);
        assert_eq!((story.peers.look_at(), story.gone()), (None, vec![]));
        let late = Look { instance: "a-1".into(), url: "http://pod".into() };
        assert_eq!(story.peers.handle_look(&late, false, now, now), None, "its slot is vacant");
    }

    #[test]
    fn the_looks_of_a_large_fleet_are_bounded_and_spread() {
        let names: Vec<String> = (0..500).map(|number| format!("pod-{number}")).collect();
        let mut story = Story::of(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for _ in 0..30 {
            story.now = story.peers.look_at().unwrap();
            let due = story.peers.take_due(story.now);
            assert!(due.len() <= LOOKS_AT_ONCE as usize, "{}", due.len());
            due.iter().for_each(|look| assert_eq!(story.peers.handle_look(look, true, story.now, story.now), None));
        }
        let (looks, _) = story.run(10 * SECOND, &[]);
        assert!(looks <= 10 * PEER_LOOKS_PER_SECOND_MAX as usize + 500, "{looks}");
    }
}
