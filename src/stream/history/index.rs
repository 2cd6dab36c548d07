//! Finds an assessment's log by hash and id. Clients choose ids, and the hash is unkeyed because all pods must place an
//! assessment alike; so anyone can find ids with equal or neighbouring hashes. The index mixes the hash with a secret
//! of the process and keeps ids with equal hashes in an ordered map, so that no id is slow to find.

use std::collections::BTreeMap;

use hashbrown::HashTable;
use slotmap::SlotMap;

use super::assessment_logs::{AssessmentLog, AssessmentLogKey};
use crate::ids::AssessmentHash;

/// Finds assessment logs.
#[derive(Debug)]
pub(super) struct Index {
    key: IndexKey,
    /// One log of each hash.
    logs: HashTable<AssessmentLogKey>,
    /// The others of a hash that more than one has.
    namesakes: BTreeMap<AssessmentHash, BTreeMap<Box<[u8]>, AssessmentLogKey>>,
}

/// Random numbers of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexKey(pub(crate) u64, pub(crate) u64);

impl Index {
    pub(super) fn new(key: IndexKey) -> Self {
        Self { key, logs: HashTable::new(), namesakes: BTreeMap::new() }
    }

    /// A log that likely has this hash.
    pub(super) fn likely(&self, hash: AssessmentHash) -> Option<AssessmentLogKey> {
        self.logs.find(self.key.mix(hash), |_| true).copied()
    }

    pub(super) fn find(
        &self,
        all: &SlotMap<AssessmentLogKey, AssessmentLog>,
        hash: AssessmentHash,
        id: &[u8],
    ) -> Option<AssessmentLogKey> {
        let first = self.first(all, hash)?;
        if all.get(first)?.id.as_bytes() == id {
            return Some(first);
        }
        self.namesakes.get(&hash)?.get(id).copied()
    }

    /// Adds a log that is not in it yet.
    pub(super) fn insert(&mut self, all: &SlotMap<AssessmentLogKey, AssessmentLog>, key: AssessmentLogKey) {
        let Some(AssessmentLog { hash, id, .. }) = all.get(key) else { return };
        if self.first(all, *hash).is_some() {
            self.namesakes.entry(*hash).or_default().insert(id.as_bytes().into(), key);
        } else {
            self.insert_first(all, *hash, key);
        }
    }

    /// Removes a log, before it is dropped.
    pub(super) fn remove(&mut self, all: &SlotMap<AssessmentLogKey, AssessmentLog>, key: AssessmentLogKey) {
        let Some(AssessmentLog { hash, id, .. }) = all.get(key) else { return };
        let first = self.logs.find_entry(self.key.mix(*hash), |&other| other == key).map(|first| first.remove());
        let Some(namesakes) = self.namesakes.get_mut(hash) else { return };
        let next = match first {
            Ok(_) => namesakes.pop_first(),
            Err(_) => {
                namesakes.remove(id.as_bytes());
                None
            }
        };
        if namesakes.is_empty() {
            self.namesakes.remove(hash);
        }
        if let Some((_, next)) = next {
            self.insert_first(all, *hash, next);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.logs.len() + self.namesakes.values().map(BTreeMap::len).sum::<usize>()
    }

    fn first(&self, all: &SlotMap<AssessmentLogKey, AssessmentLog>, hash: AssessmentHash) -> Option<AssessmentLogKey> {
        self.logs.find(self.key.mix(hash), |&key| all.get(key).is_some_and(|log| log.hash == hash)).copied()
    }

    fn insert_first(
        &mut self,
        all: &SlotMap<AssessmentLogKey, AssessmentLog>,
        hash: AssessmentHash,
        key: AssessmentLogKey,
    ) {
        let Self { key: mixer, logs, .. } = self;
        let mixed = |&key: &AssessmentLogKey| all.get(key).map_or(0, |log| mixer.mix(log.hash));
        logs.insert_unique(mixer.mix(hash), key, mixed);
    }
}

impl IndexKey {
    /// Both halves of a product: without the key no client knows which hashes come out near each other.
    fn mix(self, hash: AssessmentHash) -> u64 {
        let (one, other) = (hash.0 ^ self.0, self.1 | 1);
        let high = (u128::from(one) * u128::from(other)) >> u64::BITS;
        one.wrapping_mul(other) ^ u64::try_from(high).expect("the upper half of a product of two has 64 bits")
    }
}

/// For those who need no secret.
impl Default for IndexKey {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03)
    }
}
