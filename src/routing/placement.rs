//! Where an assessment is served: its shard in a pod, its slot and its pod in the cluster. A pure function of hash and
//! view, so every pod gives the same answer. No other module decides this.

use std::sync::Arc;

use jump_consistent_hash::hash as jump_hash;

use crate::ids::{AssessmentHash, NodeId, ShardIndex, SlotNumber};

/// The shard of this pod that an assessment's connections and events belong to.
#[must_use]
pub fn shard_of(hash: AssessmentHash, shards: u16) -> ShardIndex {
    if shards <= 1 {
        // It is asked of each record, and the hash takes a division.
        return ShardIndex(0);
    }
    // Another mix than the one for slots: jump hash of the same number would give a pod's shards unequal shares.
    let mixed = hash.0.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15;
    let shard = jump_hash(mixed, usize::from(shards));
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

/// Probes before the live slots of a view with few among many are weighed one by one. With half of the slots live, 64
/// probes all miss once in 2^64.
const PROBES_MAX: u64 = 64;

impl View {
    /// The slot that owns an assessment: jump hash over all slots; where that one is vacant, again with the next probe
    /// number. `None` where no slot is live.
    #[must_use]
    pub fn owner(&self, hash: AssessmentHash) -> Option<SlotNumber> {
        let count = self.slots.len();
        let slot = (0..PROBES_MAX)
            .map(|probe| jump_hash(probe_key(hash, probe), count) as usize)
            .find(|&slot| self.slots.get(slot).is_some_and(Option::is_some))
            .or_else(|| self.heaviest_live(hash))?;
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

    /// The live slot with the highest weight for this assessment (rendezvous hashing). Like a probe, it moves nothing
    /// but what a lost slot had; not an n-th live slot, for that would move with each other one that comes or goes.
    fn heaviest_live(&self, hash: AssessmentHash) -> Option<usize> {
        let live = self.slots.iter().enumerate().filter(|(_, pod)| pod.is_some()).map(|(slot, _)| slot);
        live.max_by_key(|&slot| mix(hash.0 ^ mix(slot as u64)))
    }

    /// The view without one slot, by which a draining pod redirects its clients.
    #[must_use]
    pub fn without(&self, slot: SlotNumber) -> Self {
        let mut view = self.clone();
        if let Some(pod) = view.slots.get_mut(slot.0 as usize) {
            *pod = None;
        }
        view
    }
}

/// The number that a probe hashes: the assessment's own at first, then well mixed with the probe's number, so that a
/// lost slot's assessments spread evenly over the rest.
fn probe_key(hash: AssessmentHash, probe: u64) -> u64 {
    if probe == 0 { hash.0 } else { mix(hash.0 ^ probe.wrapping_mul(0x9e37_79b9_7f4a_7c15)) }
}

/// The finalizer of splitmix64: each bit of the input changes half of the output's.
fn mix(mut key: u64) -> u64 {
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
    fn a_slots_number_is_the_papers_for_good() {
        assert_eq!([0, 1, 2].map(|key| jump_hash(key, 60)), [0, 55, 46]);
        // The key whose product is all ones: adding one must wrap.
        let inverse =
            (0..6).fold(1u64, |x, _| x.wrapping_mul(2u64.wrapping_sub(2_862_933_555_777_941_757u64.wrapping_mul(x))));
        assert!(jump_hash(inverse.wrapping_mul(u64::MAX), 60) < 60);
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
    fn few_live_slots_among_many_have_even_shares_too() {
        let mut few = vec![false; 2_000];
        for slot in [3, 700, 1_999] {
            few[slot] = true;
        }
        let shares = shares(&view(&few), 6_000);
        assert_even(&[shares[3], shares[700], shares[1_999]], "three of two thousand");
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

    /// Live slots from none to all of up to 400: where they are few, no probe may find one.
    fn sparse_or_dense() -> impl Strategy<Value = Vec<bool>> {
        (0.0..=1.0f64).prop_flat_map(|live| prop::collection::vec(prop::bool::weighted(live * live), 1..400))
    }

    proptest! {
        #[test]
        fn every_answer_is_a_live_slot(live in sparse_or_dense(), hash: u64) {
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
            live in sparse_or_dense(),
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
                prop_assert_eq!(without.owner(hash), before.owner(hash));
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
