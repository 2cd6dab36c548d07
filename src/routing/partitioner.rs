//! The partition of a topic that holds an assessment's records, by the producers' own rule, so that a cursor lists one
//! partition of a topic and not all. A route names the rule (PROTOCOL 3).

/// How a topic's producers place an assessment on a partition. The key is the assessment's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioner {
    /// As Java's and kafkajs' producers do.
    Murmur2,
    /// librdkafka's default, `consistent_random`.
    Crc32,
    /// Any partition.
    None,
}

impl Partitioner {
    /// What an assessment's id comes to, whatever the number of partitions; `None` where any partition will do.
    #[must_use]
    pub(crate) fn hash(self, id: &str) -> Option<KeyHash> {
        match self {
            // Java takes the sign off before it divides (`Utils.toPositive`).
            Self::Murmur2 => Some(KeyHash(murmur2(id.as_bytes()) & 0x7fff_ffff)),
            Self::Crc32 => Some(KeyHash(crc32fast::hash(id.as_bytes()))),
            Self::None => None,
        }
    }
}

/// A key's hash, by its topic's partitioner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyHash(u32);

impl KeyHash {
    /// The partition, where there are `partitions` of them (at least one).
    #[must_use]
    pub(crate) fn of(self, partitions: u32) -> u32 {
        self.0 % partitions.max(1)
    }
}

/// MurmurHash2 with Kafka's seed (`org.apache.kafka.common.utils.Utils.murmur2`).
#[expect(clippy::cast_possible_truncation, reason = "a key is far below 4 GiB")]
fn murmur2(bytes: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const MIX: u32 = 0x5bd1_e995;
    // A key is an assessment's id, far below 4 GiB.
    let mut hash = SEED ^ bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let mut word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(MIX);
        word ^= word >> 24;
        hash = hash.wrapping_mul(MIX) ^ word.wrapping_mul(MIX);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (place, &byte) in rest.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * place);
        }
        hash = hash.wrapping_mul(MIX);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MIX);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_is_kafkas() {
        // From Kafka's own test, `UtilsTest.testMurmur2`.
        let cases: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (key, expected) in cases {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), expected, "{key}");
        }
    }

    #[test]
    fn crc32_is_the_one_of_zlib_as_librdkafkas_is() {
        assert_eq!(Partitioner::Crc32.hash("123456789"), Some(KeyHash(0xcbf4_3926)));
        assert_eq!(Partitioner::Crc32.hash("123456789").unwrap().of(6), 0xcbf4_3926 % 6);
    }

    #[test]
    fn a_negative_hash_loses_its_sign_before_it_is_divided() {
        let positive = (-973_932_308_i32 & 0x7fff_ffff) as u32;
        assert_eq!(Partitioner::Murmur2.hash("21").unwrap().of(7), positive % 7);
        assert_eq!(Partitioner::None.hash("21"), None);
    }
}
