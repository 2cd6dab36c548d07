//! A cursor's form: what a client is given to come back with (PROTOCOL 2). It owns the encoding; what a cursor covers
//! is [`super::offsets`]' to judge.
//!
//! ```text
//! version u8 | assessment's hash u64 | topic* | checksum u32        little-endian, then base64url without padding
//! topic  = name u32 | incarnation u32 | partitions varint | place+
//! place  = partition * 2 + (1 where another of the topic follows), varint | next offset varint
//! ```
//!
//! The checksum tells damage, not forgery: a client that makes up a cursor asks for no more than its token allows.
//!
//! Before it all may stand a mark: the client was sent away by a pod that drains ([`mark_draining`]). It says nothing of
//! what the client has.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use xxhash_rust::xxh3::xxh3_64;

use crate::ids::AssessmentHash;
use crate::limits::CURSOR_CHARS_MAX;
use crate::routing::table::Fingerprint;

const VERSION: u8 = 1;

/// What a pod that drains puts before the cursor: no character of base64url, and one that no URL escapes (RFC 3986
/// section 2.3).
const DRAINING: char = '~';

/// A cursor's bytes, before base64url makes four characters of three, with room left for the mark.
const BYTES_MAX: usize = (CURSOR_CHARS_MAX - DRAINING.len_utf8()) / 4 * 3;

const CHECKSUM_BYTES: usize = 4;

/// The longest place, its topic's head included.
const PLACE_BYTES_MAX: usize = 4 + 4 + 5 + 5 + 10;

/// What a cursor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Whose events it counts.
    pub assessment: AssessmentHash,
    /// Where it stands, those of one topic side by side.
    pub places: Vec<Place>,
}

/// Where a cursor stands on one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of which topic.
    pub topic: Fingerprint,
    /// How many partitions of the topic were known to whoever made the cursor.
    pub partitions: u32,
    /// The partition.
    pub partition: u32,
    /// The client has all of the assessment's events below this offset, and none from it on. From 0 to `i64::MAX`.
    pub next: i64,
}

/// Why a string is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor, or a damaged one")]
pub struct Damaged;

/// Appends a cursor's text to `out`; `false`, and nothing appended, where it would be over [`CURSOR_CHARS_MAX`]. Places
/// of one topic must come side by side.
pub fn encode(assessment: AssessmentHash, places: impl Iterator<Item = Place>, out: &mut Vec<u8>) -> bool {
    let mut raw = Raw { bytes: [0; BYTES_MAX + PLACE_BYTES_MAX], len: 0 };
    raw.put(&[VERSION]);
    raw.put(&assessment.0.to_le_bytes());
    let mut before: Option<(Fingerprint, usize)> = None;
    for place in places {
        match before {
            // The lowest bit of the place before says that its topic goes on.
            Some((topic, at)) if topic == place.topic => raw.bytes[at] |= 1,
            _ => {
                raw.put(&place.topic.name.to_le_bytes());
                raw.put(&place.topic.incarnation.to_le_bytes());
                raw.put_varint(u64::from(place.partitions));
            }
        }
        before = Some((place.topic, raw.len));
        raw.put_varint(u64::from(place.partition) << 1);
        raw.put_varint(place.next.max(0).unsigned_abs());
        if raw.len > BYTES_MAX - CHECKSUM_BYTES {
            return false;
        }
    }
    let checksum = checksum(&raw.bytes[..raw.len]);
    raw.put(&checksum);
    let start = out.len();
    out.resize(start + raw.len.div_ceil(3) * 4, 0);
    let written = BASE64_URL_SAFE_NO_PAD
        .encode_slice(&raw.bytes[..raw.len], &mut out[start..])
        .expect("four characters for each three bytes are enough");
    out.truncate(start + written);
    true
}

/// Marks a cursor as handed on by a pod that drains, whatever it says. `None` where it would be over
/// [`CURSOR_CHARS_MAX`], which only what is no cursor can be.
#[must_use]
pub fn mark_draining(text: &str) -> Option<String> {
    let text = text.trim_start_matches(DRAINING);
    (text.len() + DRAINING.len_utf8() <= CURSOR_CHARS_MAX).then(|| format!("{DRAINING}{text}"))
}

/// Whether a pod that drains handed this cursor on.
#[must_use]
pub fn is_from_draining(text: &str) -> bool {
    text.starts_with(DRAINING)
}

/// Reads a cursor, marked or not.
///
/// # Errors
/// [`Damaged`], for whatever is not exactly what [`encode`] makes.
pub fn decode(text: &str) -> Result<Cursor, Damaged> {
    if text.len() > CURSOR_CHARS_MAX {
        return Err(Damaged);
    }
    let text = text.strip_prefix(DRAINING).unwrap_or(text);
    let mut raw = [0; BYTES_MAX];
    let len = BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut raw).map_err(|_| Damaged)?;
    let (body, sum) = raw[..len].split_last_chunk::<CHECKSUM_BYTES>().ok_or(Damaged)?;
    if *sum != checksum(body) {
        return Err(Damaged);
    }
    let mut rest = Rest(body);
    if rest.take::<1>()? != [VERSION] {
        return Err(Damaged);
    }
    let assessment = AssessmentHash(u64::from_le_bytes(rest.take()?));
    let mut places = Vec::new();
    while !rest.0.is_empty() {
        let topic =
            Fingerprint { name: u32::from_le_bytes(rest.take()?), incarnation: u32::from_le_bytes(rest.take()?) };
        let partitions = u32::try_from(rest.take_varint()?).map_err(|_| Damaged)?;
        loop {
            let partition = rest.take_varint()?;
            let next = i64::try_from(rest.take_varint()?).map_err(|_| Damaged)?;
            let number = u32::try_from(partition >> 1).map_err(|_| Damaged)?;
            places.push(Place { topic, partitions, partition: number, next });
            if partition & 1 == 0 {
                break;
            }
        }
    }
    Ok(Cursor { assessment, places })
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = xxh3_64(bytes).to_le_bytes();
    [hash[0], hash[1], hash[2], hash[3]]
}

/// A cursor's bytes as they are made. There is room for one place over the bound, so that only places are counted.
struct Raw {
    bytes: [u8; BYTES_MAX + PLACE_BYTES_MAX],
    len: usize,
}

impl Raw {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Seven bits a byte, the lowest first; the highest bit says that more follow.
    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put(&[value as u8 | 0x80]);
            value >>= 7;
        }
        self.put(&[value as u8]);
    }
}

/// What is left to be read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Damaged)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn take_varint(&mut self) -> Result<u64, Damaged> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let [byte] = self.take()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Damaged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(cursor: &Cursor) -> Option<String> {
        let mut out = b"before".to_vec();
        let fits = encode(cursor.assessment, cursor.places.iter().copied(), &mut out);
        let text = String::from_utf8(out).unwrap().strip_prefix("before").unwrap().to_owned();
        assert!(fits || text.is_empty(), "what does not fit leaves nothing");
        fits.then_some(text)
    }

    fn place(topic: u32, partition: u32, next: i64) -> Place {
        Place { topic: Fingerprint { name: topic, incarnation: !topic }, partitions: 6, partition, next }
    }

    fn of_ten_topics() -> Cursor {
        let places = (0..10).map(|topic| place(topic, topic % 6, 1_000_000 * i64::from(topic))).collect();
        Cursor { assessment: AssessmentHash::of("a"), places }
    }

    #[test]
    fn a_cursor_over_the_built_in_topics_is_far_below_the_bound() {
        let text = text(&of_ten_topics()).unwrap();
        assert!(text.len() <= 224, "{} characters: {text}", text.len());
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
    }

    #[test]
    fn a_change_of_any_character_is_told() {
        let cursor = of_ten_topics();
        let text = text(&cursor).unwrap();
        for place in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[place] = if other[place] == b'A' { b'B' } else { b'A' };
            assert_eq!(decode(std::str::from_utf8(&other).unwrap()), Err(Damaged), "character {place}");
            assert_eq!(decode(&text[..place]), Err(Damaged), "cut after {place}");
        }
        assert_eq!(decode(&(text + "A")), Err(Damaged));
    }

    #[test]
    fn what_is_over_the_bound_is_not_made() {
        let of = |partitions| Cursor {
            assessment: AssessmentHash(7),
            places: (0..partitions).map(|partition| place(1, partition, i64::MAX)).collect(),
        };
        let most = (1..).take_while(|&partitions| text(&of(partitions)).is_some()).last().unwrap();
        let longest = mark_draining(&text(&of(most)).unwrap()).unwrap();
        assert_eq!(decode(&longest), Ok(of(most)));
        assert!(longest.len() <= CURSOR_CHARS_MAX);
        assert_eq!(text(&of(100_000)), None);
    }

    #[test]
    fn a_mark_is_set_once_and_says_nothing_of_what_the_client_has() {
        let text = text(&of_ten_topics()).unwrap();
        let marked = mark_draining(&text).unwrap();
        assert!(is_from_draining(&marked) && !is_from_draining(&text));
        assert_eq!((mark_draining(&marked).unwrap(), decode(&marked)), (marked.clone(), Ok(of_ten_topics())));
        assert_eq!(decode(&format!("~{marked}")), Err(Damaged));
        assert_eq!((mark_draining(&"A".repeat(CURSOR_CHARS_MAX)), decode("~")), (None, Err(Damaged)));
    }

    fn any_place() -> impl Strategy<Value = Place> {
        (0u32..3, any::<u32>(), any::<u32>(), 0..=i64::MAX)
            .prop_map(|(topic, partitions, partition, next)| Place { partitions, ..place(topic, partition, next) })
    }

    proptest! {
        #[test]
        fn what_is_made_is_read_again(assessment in any::<u64>(), mut places in prop::collection::vec(any_place(), 0..12)) {
            places.sort_by_key(|place| place.topic.name);
            // The number of partitions is the topic's.
            for index in 1..places.len() {
                if places[index].topic == places[index - 1].topic {
                    places[index].partitions = places[index - 1].partitions;
                }
            }
            let cursor = Cursor { assessment: AssessmentHash(assessment), places };
            prop_assert_eq!(decode(&text(&cursor).unwrap()), Ok(cursor));
        }

        #[test]
        fn whatever_comes_is_read_without_a_panic(text in ".{0,40}", bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(decode(&text).is_err());
            // With a good checksum, so that what comes behind it is reached.
            let mut whole = bytes;
            whole.truncate(BYTES_MAX - CHECKSUM_BYTES);
            if let Some(first) = whole.first_mut() {
                *first = VERSION;
            }
            let sum = checksum(&whole);
            whole.extend_from_slice(&sum);
            if let Ok(cursor) = decode(&BASE64_URL_SAFE_NO_PAD.encode(&whole)) {
                prop_assert!(cursor.places.len() <= BYTES_MAX / 2);
            }
        }
    }
}
