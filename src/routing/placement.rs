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
