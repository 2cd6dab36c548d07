//! Where an assessment lives: its shard in this pod, its slot and its pod in the cluster. A pure function of the hash
//! and the view, and so the same answer everywhere; nothing else in the gateway second-guesses it.

use std::sync::Arc;

use crate::ids::{AssessmentHash, NodeId, ShardIndex, SlotNumber};

/// The shard of this pod that an assessment's connections and events belong to.
#[must_use]
pub fn shard_of(hash: AssessmentHash, shards: u16) -> ShardIndex {
    // Another mix than the one for slots: jump hash of the same number would give a pod's shards unequal shares.
    let mixed = hash.0.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15;
    let shard = jump_consistent_hash::hash(mixed, usize::from(shards.max(1)));
    ShardIndex(u16::try_from(shard).expect("jump hash stays below the number of shards, a u16"))
}

/// A live pod, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub node: NodeId,
    /// Where clients reach it (`PUBLIC_URL`).
    pub url: Arc<str>,
}

/// The live slots at a moment. The number of slots outlives the pods in them: a vacant slot is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// Grows with every change that Redis saw.
    pub version: u64,
    /// By slot number.
    pub slots: Vec<Option<Pod>>,
}

/// Probes before a view with few live slots among many is searched in order. With half of the slots live, 64 probes
/// all miss once in 2^64.
const PROBES_MAX: u64 = 64;

impl View {
    /// The slot that owns an assessment: jump hash over all slots; where that one is vacant, again with the next probe
    /// number. `None` where no slot is live.
    #[must_use]
    pub fn owner(&self, hash: AssessmentHash) -> Option<SlotNumber> {
        let count = self.slots.len();
        let slot = (0..PROBES_MAX)
            .map(|probe| jump_consistent_hash::hash(probe_key(hash, probe), count) as usize)
            .find(|&slot| self.slots.get(slot).is_some_and(Option::is_some))
            .or_else(|| self.nth_live(hash))?;
        Some(SlotNumber(u32::try_from(slot).ok()?))
    }

    /// The pod in a slot.
    #[must_use]
    pub fn pod(&self, slot: SlotNumber) -> Option<&Pod> {
        self.slots.get(slot.0 as usize)?.as_ref()
    }

    /// The live slots with their pods, in order.
    pub fn live(&self) -> impl Iterator<Item = (SlotNumber, &Pod)> {
        (0u32..).zip(&self.slots).filter_map(|(number, pod)| Some((SlotNumber(number), pod.as_ref()?)))
    }

    fn nth_live(&self, hash: AssessmentHash) -> Option<usize> {
        let live = self.slots.iter().filter(|pod| pod.is_some()).count();
        let nth = usize::try_from(hash.0 % u64::try_from(live).ok()?.max(1)).ok()?;
        self.slots.iter().enumerate().filter(|(_, pod)| pod.is_some()).nth(nth).map(|(slot, _)| slot)
    }

    /// This view without one slot: whom a draining pod sends its clients to.
    #[must_use]
    pub fn without(&self, slot: SlotNumber) -> Self {
        let mut view = self.clone();
        if let Some(pod) = view.slots.get_mut(slot.0 as usize) {
            *pod = None;
        }
        view
    }
}

/// The number that a probe hashes: the assessment's own at first, then well mixed with the probe's number (the
/// finalizer of splitmix64), so that a lost slot's assessments spread evenly over the rest.
fn probe_key(hash: AssessmentHash, probe: u64) -> u64 {
    if probe == 0 {
        return hash.0;
    }
    let mut key = hash.0 ^ probe.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A view in which the slots of `live` are filled, each by a pod of its own.
    fn view(live: &[bool]) -> View {
        let pod = |slot: usize| Pod { node: NodeId(format!("pod-{slot}").into()), url: "ws://pod/ws".into() };
        View { version: 1, slots: live.iter().enumerate().map(|(slot, &live)| live.then(|| pod(slot))).collect() }
    }

    fn hashes(count: u32) -> impl Iterator<Item = AssessmentHash> {
        (0..count).map(|number| AssessmentHash::of(&format!("assessment-{number}")))
    }

    /// How many of `count` assessments each slot owns.
    fn shares(view: &View, count: u32) -> Vec<u32> {
        let mut shares = vec![0; view.slots.len()];
        for hash in hashes(count) {
            shares[view.owner(hash).expect("a slot is live").0 as usize] += 1;
        }
        shares
    }

    fn assert_even(shares: &[u32], of: &str) {
        let mean = f64::from(shares.iter().sum::<u32>()) / shares.len() as f64;
        for share in shares {
            let off = (f64::from(*share) - mean).abs() / mean;
            assert!(off < 0.1, "{of}: a share is {off:.2} off its mean: {shares:?}");
        }
    }

    #[test]
    fn without_a_live_slot_nobody_owns_anything() {
        let hash = AssessmentHash::of("a");
        assert_eq!(View::default().owner(hash), None);
        assert_eq!(view(&[false, false, false]).owner(hash), None);
    }

    #[test]
    fn a_lone_pod_owns_all_wherever_its_slot_is() {
        let mut far = vec![false; 1_000];
        far[700] = true;
        let far = view(&far);
        assert!(hashes(1_000).all(|hash| far.owner(hash) == Some(SlotNumber(700))));
        assert!(hashes(1_000).all(|hash| view(&[true]).owner(hash) == Some(SlotNumber(0))));
    }

    #[test]
    fn live_slots_have_even_shares() {
        assert_even(&shares(&view(&[true; 3]), 30_000), "three pods");
        assert_even(&shares(&view(&[true; 10]), 50_000), "ten pods");
    }

    #[test]
    fn a_lost_pods_share_spreads_evenly_over_the_rest() {
        let (whole, lacking) = (view(&[true; 5]), view(&[true, true, false, true, true]));
        let mut gained = [0; 5];
        for hash in hashes(100_000).filter(|&hash| whole.owner(hash) == Some(SlotNumber(2))) {
            gained[lacking.owner(hash).expect("four slots are live").0 as usize] += 1;
        }
        assert_eq!(gained[2], 0, "a vacant slot owns nothing");
        assert_even(&[gained[0], gained[1], gained[3], gained[4]], "what the survivors gained");
    }

    #[test]
    fn a_pods_shards_have_even_shares_whatever_its_slot() {
        let pods = view(&[true; 4]);
        for (slot, _) in pods.live() {
            let mut shares = [0; 3];
            for hash in hashes(60_000).filter(|&hash| pods.owner(hash) == Some(slot)) {
                shares[usize::from(shard_of(hash, 3).0)] += 1;
            }
            assert_even(&shares, "three shards of one of four pods");
        }
    }

    /// The answers are part of what pods of two versions must agree on while they are rolled out.
    #[test]
    fn the_answers_stay_the_same_from_version_to_version() {
        let owners = |live: &[bool]| -> Vec<u32> {
            hashes(12).map(|hash| view(live).owner(hash).expect("a slot is live").0).collect()
        };
        assert_eq!(owners(&[true; 5]), PINNED_OWNERS);
        assert_eq!(owners(&[true, false, true, false, true]), PINNED_OWNERS_OF_THREE);
        let shards: Vec<u16> = hashes(12).map(|hash| shard_of(hash, 4).0).collect();
        assert_eq!(shards, PINNED_SHARDS);
    }

    proptest! {
        #[test]
        fn every_answer_is_a_live_slot(live in prop::collection::vec(any::<bool>(), 0..200), hash: u64) {
            let view = view(&live);
            match view.owner(AssessmentHash(hash)) {
                Some(slot) => prop_assert!(view.pod(slot).is_some()),
                None => prop_assert!(view.live().next().is_none()),
            }
        }

        #[test]
        fn a_slot_that_is_added_takes_and_nobody_else_gains(slots in 1usize..200, hash: u64) {
            let hash = AssessmentHash(hash);
            let before = view(&vec![true; slots]).owner(hash);
            let after = view(&vec![true; slots + 1]).owner(hash);
            prop_assert!(after == before || after == Some(SlotNumber(slots as u32)));
        }

        #[test]
        fn a_slot_that_is_lost_moves_its_own_alone_and_they_come_home(
            live in prop::collection::vec(any::<bool>(), 1..200),
            lost in any::<prop::sample::Index>(),
            hash: u64,
        ) {
            let hash = AssessmentHash(hash);
            let lost = lost.index(live.len());
            let mut live = live;
            live[lost] = true;
            let before = view(&live);
            let without = before.without(SlotNumber(lost as u32));
            if before.owner(hash) != Some(SlotNumber(lost as u32)) {
                // Where few slots are live among many, the search in order takes over; it alone may move others.
                let dense = live.iter().filter(|live| **live).count() * 2 > live.len();
                if dense {
                    prop_assert_eq!(without.owner(hash), before.owner(hash));
                }
            }
            live[lost] = false;
            let mut again = view(&live);
            prop_assert_eq!(again.owner(hash), without.owner(hash));
            again.slots[lost].clone_from(&before.slots[lost]);
            prop_assert_eq!(again.owner(hash), before.owner(hash));
        }

        #[test]
        fn a_shard_is_one_of_the_pods(shards in 1u16.., hash: u64) {
            prop_assert!(shard_of(AssessmentHash(hash), shards).0 < shards);
        }
    }

    const PINNED_OWNERS: [u32; 12] = [1, 4, 2, 0, 0, 0, 0, 3, 1, 2, 0, 2];
    const PINNED_OWNERS_OF_THREE: [u32; 12] = [2, 4, 2, 0, 0, 0, 0, 0, 0, 2, 0, 2];
    const PINNED_SHARDS: [u16; 12] = [1, 1, 3, 2, 1, 0, 2, 3, 3, 3, 3, 0];
}
