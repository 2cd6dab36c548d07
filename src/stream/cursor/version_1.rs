//! Cursors of version 1, which pods of the release before this one make.
//!
//! ```text
//! version u8 | assessment's hash u64 | topic* | checksum u32        little-endian
//! topic  = name u32 | incarnation u32 | partitions varint | place+
//! place  = partition * 2 + (1 where another of the topic follows), varint | next offset varint
//! ```

#![cfg_attr(not(test), expect(clippy::cast_possible_truncation, reason = "the wire form takes the low bits"))]

use xxhash_rust::xxh3::xxh3_64;

use super::{ByteReader, CursorContents, InvalidCursor, ListedTopic, PartitionOffset, Tag, TopicSum};
use crate::ids::AssessmentHash;
use crate::routing::table::Fingerprint;

pub(super) const VERSION: u8 = 1;

const CHECKSUM_BYTES: usize = 4;

/// Reads the bytes of a cursor.
pub(super) fn decode(raw: &[u8], assessment: AssessmentHash) -> Result<CursorContents, InvalidCursor> {
    let (body, sum) = raw.split_last_chunk::<CHECKSUM_BYTES>().ok_or(InvalidCursor)?;
    if *sum != (xxh3_64(body) as u32).to_le_bytes() {
        return Err(InvalidCursor);
    }
    let mut rest = ByteReader(body);
    let _version = rest.take::<1>()?;
    if AssessmentHash(u64::from_le_bytes(rest.take()?)) != assessment {
        return Err(InvalidCursor);
    }
    let mut listing = CursorContents { sum: TopicSum::default(), topics: Vec::new() };
    while !rest.0.is_empty() {
        let topic =
            Fingerprint { name: u32::from_le_bytes(rest.take()?), incarnation: u32::from_le_bytes(rest.take()?) };
        let partitions = rest.take_u32()?;
        let mut offsets = Vec::new();
        loop {
            let head = rest.take_varint()?;
            let partition = u32::try_from(head >> 1).map_err(|_| InvalidCursor)?;
            let next = i64::try_from(rest.take_varint()?).map_err(|_| InvalidCursor)?;
            offsets.push(PartitionOffset { partition, next, epoch: None });
            if head & 1 == 0 {
                break;
            }
        }
        listing.sum = listing.sum.plus(TopicSum::of(topic));
        listing.topics.push(ListedTopic { tag: Tag::of(topic), partitions, offsets });
    }
    Ok(listing)
}
