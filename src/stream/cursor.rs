//! The encoding of cursors (PROTOCOL 2). [`super::offsets`] decides which topics a cursor lists and what it covers.
//!
//! ```text
//! form u8 | check u32 | sum u24 | topic*                    little-endian, then base64url without padding
//! topic = head u16 | mark u8 | shape? | next | epoch? | place*
//! place = head varint | next | epoch?                       the topic's further partitions, in their order
//! shape = partitions varint | partition varint
//! ```
//!
//! - A topic's *tag* stands for its name (10 bits in the head) and for which topic of that name it is (the mark, not in
//!   a narrow cursor). Tags are short, so they may be shared; the *sum* is taken over the long fingerprints of all
//!   topics that the cursor lists, and tells whether the tags were understood.
//! - A topic's head also says how long `next` is, whether an epoch follows (else it is the one before), which of the
//!   first three shapes it has (else one follows), and whether a place follows. A place's head says the same, and how
//!   many partitions are passed over.
//! - `epoch` is a varint: 0 for unknown, else one more than the leader epoch of the last record before `next`.
//! - The *check* is over everything else and the assessment's hash. It tells damage, not forgery: a client that makes
//!   up a cursor gets no more than its token allows.
//! - Partitions without records are left out where the rest says as much ([`super::offsets`]).
//!
//! Version 1 listed each topic's whole fingerprint and no epochs. Such cursors are still read ([`mod@version_1`]), but
//! no longer written.
//!
//! A cursor may begin with the draining flag: the client was redirected by a draining pod ([`add_draining_flag`]). The
//! flag says nothing of what the client has.

#![cfg_attr(not(test), expect(clippy::cast_possible_truncation, reason = "the wire form takes the low bits"))]

#[cfg(test)]
mod tests;
mod version_1;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::ids::AssessmentHash;
use crate::limits::CURSOR_CHARS_MAX;
use crate::routing::table::Fingerprint;

/// The draining flag, in front of the cursor: not a base64url character, and not escaped in URLs (RFC 3986 section
/// 2.3).
const DRAINING: char = '~';

/// A cursor's bytes, before base64url makes four characters of three, with room left for the mark.
const BYTES_MAX: usize = (CURSOR_CHARS_MAX - DRAINING.len_utf8()) / 4 * 3;

/// The form, the check and the sum.
const HEADER_BYTES: usize = 1 + CHECK_BYTES + SUM_BYTES;
const CHECK_BYTES: usize = 4;
const SUM_BYTES: usize = 3;

/// The longest topic with one place: head and mark, a shape of two varints, an offset, an epoch.
const TOPIC_BYTES_MAX: usize = 3 + 2 * 5 + 8 + 5;

/// How many bytes an offset takes, by its code in a head.
const NEXT_BYTES: [usize; 4] = [2, 3, 4, 8];

/// Shapes that later topics refer to.
const SHAPES: usize = 3;

/// How a cursor is written: the first that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// With all that there is to say.
    Full,
    /// Without topics' marks: a pod that does not know all of its topics sends a reset.
    WithoutMarks,
    /// Without epochs: it does not tell a log that lost its end.
    WithoutEpochs,
    /// Without both.
    Narrow,
}

impl Form {
    /// Best first: an unnecessary reset is better than a silent loss.
    pub(crate) const ALL: [Self; 4] = [Self::Full, Self::WithoutMarks, Self::WithoutEpochs, Self::Narrow];

    fn has_marks(self) -> bool {
        matches!(self, Self::Full | Self::WithoutEpochs)
    }

    fn has_epochs(self) -> bool {
        matches!(self, Self::Full | Self::WithoutMarks)
    }
}

/// The first byte of a cursor.
const WIDE: u8 = 2;
const NARROW: u8 = 3;
/// Of one that says that none could be made.
const NONE: u8 = 4;

/// What stands for a topic in a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tag {
    /// Of its name, [`Tag::NAME_BITS`] wide.
    pub(crate) name: u16,
    /// Of its incarnation; `None` in a narrow cursor.
    pub(crate) mark: Option<u8>,
}

impl Tag {
    const NAME_BITS: u32 = 10;

    /// The tag of a topic.
    #[must_use]
    pub fn of(topic: Fingerprint) -> Self {
        Self { name: topic.name as u16 & ((1 << Self::NAME_BITS) - 1), mark: Some(topic.incarnation as u8) }
    }

    /// Whether it may stand for a topic.
    #[must_use]
    pub(crate) fn fits(self, topic: Fingerprint) -> bool {
        let of = Self::of(topic);
        self.name == of.name && (self.mark.is_none() || self.mark == of.mark)
    }
}

/// What the fingerprints of all topics of a cursor come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TopicSum(u32);

impl TopicSum {
    /// Of one topic.
    #[must_use]
    pub fn of(topic: Fingerprint) -> Self {
        let both = u64::from(topic.name) << 32 | u64::from(topic.incarnation);
        // Spread by a multiplication: the upper half depends on all bits.
        Self((both.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32)
    }

    /// With one topic more.
    #[must_use]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0) & 0xff_ffff)
    }

    /// Without one of its topics.
    #[must_use]
    pub(crate) fn minus(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0) & 0xff_ffff)
    }
}

/// What a cursor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cursor {
    /// Where the client stands.
    Of(CursorContents),
    /// Stands for a cursor that could not be made: a client that resumes with it gets a reset.
    None,
}

/// Where a client stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorContents {
    /// Over the topics' fingerprints.
    pub(crate) sum: TopicSum,
    /// In the order in which they are listed.
    pub(crate) topics: Vec<ListedTopic>,
}

/// Where a client stands on the partitions of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedTopic {
    /// What stands for the topic.
    pub(crate) tag: Tag,
    /// How many partitions it had, as far as the pod knew that made the cursor.
    pub(crate) partitions: u32,
    /// At least one, in the order of the partitions.
    pub(crate) offsets: Vec<PartitionOffset>,
}

/// Where a client stands on one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionOffset {
    /// The partition.
    pub partition: u32,
    /// The client has every event of the assessment below this offset and none from it on. From 0 to `i64::MAX`.
    pub next: i64,
    /// The leader epoch of the last record before that, where it is known: from 0.
    pub epoch: Option<i32>,
}

impl PartitionOffset {
    /// Whether it is further on than another one of its partition: in one log by the offset, and in a later leader's
    /// log whatever the offsets are.
    #[must_use]
    pub(crate) fn is_beyond(&self, other: &Self) -> bool {
        match self.epoch.zip(other.epoch) {
            Some((own, others)) if own != others => own > others,
            _ => self.next > other.next,
        }
    }
}

/// Why a string is no cursor of an assessment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this assessment, or a damaged one")]
pub struct InvalidCursor;

// ---- made ---------------------------------------------------------------------------------------------------------

/// Writes a cursor, topic by topic.
pub struct Encoder {
    raw: CursorBytes,
    form: Form,
    sum: TopicSum,
    shapes: [(u32, u32); SHAPES],
    shapes_known: usize,
    epoch: Option<i32>,
}

impl Encoder {
    /// Begins a cursor.
    #[must_use]
    pub fn new(form: Form) -> Self {
        let mut raw = CursorBytes { bytes: [0; BYTES_MAX + TOPIC_BYTES_MAX], len: HEADER_BYTES };
        raw.bytes[0] = if form.has_marks() { WIDE } else { NARROW };
        Self { raw, form, sum: TopicSum::default(), shapes: [(0, 0); SHAPES], shapes_known: 0, epoch: None }
    }

    /// Whether topics have their marks.
    #[must_use]
    pub(crate) fn has_marks(&self) -> bool {
        self.form.has_marks()
    }

    /// Adds a topic, with the places of its partitions in their order. `false` where the cursor is too long by now.
    #[must_use]
    #[inline]
    pub fn topic(
        &mut self,
        tag: Tag,
        sum: TopicSum,
        partitions: u32,
        offsets: impl IntoIterator<Item = PartitionOffset>,
    ) -> bool {
        let mut offsets = offsets.into_iter();
        let Some(first) = offsets.next() else { return true };
        self.sum = self.sum.plus(sum);
        let at = self.raw.len;
        let shape = self.shape((partitions, first.partition));
        self.raw.len += 2;
        if self.form.has_marks() {
            self.raw.bytes[self.raw.len] = tag.mark.unwrap_or(0);
            self.raw.len += 1;
        }
        if shape == SHAPES {
            self.raw.put_varint(u64::from(partitions));
            self.raw.put_varint(u64::from(first.partition));
        }
        let (len, has_epoch) = self.place(&first);
        let mut head = tag.name << 6 | len << 4 | (shape as u16) << 2 | u16::from(has_epoch) << 1;
        let (mut before, mut more_at) = (first.partition, None);
        for place in offsets {
            match more_at {
                None => head |= 1,
                Some(at) => self.raw.bytes[at] |= 1,
            }
            more_at = Some(self.raw.len);
            let gap = place.partition.saturating_sub(before + 1);
            before = place.partition;
            let start = self.raw.len;
            self.raw.put_varint(u64::from(gap) << 4);
            let (len, has_epoch) = self.place(&place);
            self.raw.bytes[start] |= (len << 2) as u8 | u8::from(has_epoch) << 1;
            if self.raw.len > BYTES_MAX {
                return false;
            }
        }
        self.raw.bytes[at..at + 2].copy_from_slice(&head.to_le_bytes());
        self.raw.len <= BYTES_MAX
    }

    /// The number of a shape, [`SHAPES`] for one that is to be written out.
    fn shape(&mut self, shape: (u32, u32)) -> usize {
        if let Some(known) = self.shapes[..self.shapes_known].iter().position(|known| *known == shape) {
            return known;
        }
        if self.shapes_known < SHAPES {
            self.shapes[self.shapes_known] = shape;
            self.shapes_known += 1;
        }
        SHAPES
    }

    /// Writes an offset, and an epoch where it is not the one before; returns the code of the offset's length.
    fn place(&mut self, place: &PartitionOffset) -> (u16, bool) {
        let next = place.next.max(0).unsigned_abs();
        let code = match next {
            0..=0xffff => 0,
            0x1_0000..=0xff_ffff => 1,
            0x100_0000..=0xffff_ffff => 2,
            _ => 3,
        };
        self.raw.bytes[self.raw.len..self.raw.len + 8].copy_from_slice(&next.to_le_bytes());
        self.raw.len += NEXT_BYTES[usize::from(code)];
        let epoch = place.epoch.filter(|_| self.form.has_epochs());
        let has_epoch = epoch != self.epoch;
        if has_epoch {
            self.epoch = epoch;
            self.raw.put_varint(epoch.map_or(0, |epoch| u64::from(epoch.unsigned_abs()) + 1));
        }
        (code, has_epoch)
    }

    /// Appends the cursor's text to `out`. `topics` are the ones that it lists besides, which this pod does not know.
    pub fn finish(&mut self, assessment: AssessmentHash, unknown: TopicSum, out: &mut Vec<u8>) {
        let sum = self.sum.plus(unknown).0.to_le_bytes();
        self.raw.bytes[1 + CHECK_BYTES..HEADER_BYTES].copy_from_slice(&sum[..SUM_BYTES]);
        self.raw.seal(assessment, out);
    }
}

/// Appends the text that stands for a cursor that could not be made.
pub(crate) fn encode_unresumable(assessment: AssessmentHash, out: &mut Vec<u8>) {
    let mut raw = CursorBytes { bytes: [0; BYTES_MAX + TOPIC_BYTES_MAX], len: HEADER_BYTES };
    raw.bytes[0] = NONE;
    raw.seal(assessment, out);
}

/// Marks a cursor as handed on by a pod that drains, whatever it says. `None` where it would be over
/// [`CURSOR_CHARS_MAX`], which only what is no cursor can be.
#[must_use]
pub(crate) fn add_draining_flag(text: &str) -> Option<String> {
    let text = text.trim_start_matches(DRAINING);
    (text.len() + DRAINING.len_utf8() <= CURSOR_CHARS_MAX).then(|| format!("{DRAINING}{text}"))
}

/// Whether a pod that drains handed this cursor on.
#[must_use]
pub(crate) fn has_draining_flag(text: &str) -> bool {
    text.starts_with(DRAINING)
}

/// How many topics a cursor has room for at least, whose partitions' offsets are below 2^32, where each has one place.
#[must_use]
pub(crate) const fn topics_max() -> usize {
    // In the narrow form: a head and an offset; and the first three shapes.
    (BYTES_MAX - HEADER_BYTES - SHAPES * 4) / (2 + 4)
}

/// Whether there is room for this many topics, with this many places besides the first one of each. Offsets as above.
#[must_use]
pub(crate) const fn has_room_for(topics: usize, further_places: usize) -> bool {
    topics * (2 + 4) + further_places * (1 + 4) <= BYTES_MAX - HEADER_BYTES - SHAPES * 4
}

/// Whether there is room for their leader epochs, too, below 16,383 and different from one to the next.
#[must_use]
pub(crate) const fn has_room_for_epochs(topics: usize, further_places: usize) -> bool {
    topics * (2 + 4 + 2) + further_places * (1 + 4 + 2) <= BYTES_MAX - HEADER_BYTES - SHAPES * 4
}

/// How many partitions of one topic a cursor has room for at least, likewise.
#[cfg(test)]
pub(crate) const fn places_max() -> usize {
    (BYTES_MAX - HEADER_BYTES - TOPIC_BYTES_MAX) / (1 + 4)
}

// ---- read ---------------------------------------------------------------------------------------------------------

/// Reads a cursor of an assessment, marked or not.
///
/// # Errors
/// [`InvalidCursor`], for whatever is not what a pod makes.
pub fn decode(text: &str, assessment: AssessmentHash) -> Result<Cursor, InvalidCursor> {
    if text.len() > CURSOR_CHARS_MAX {
        return Err(InvalidCursor);
    }
    let text = text.strip_prefix(DRAINING).unwrap_or(text);
    let mut raw = [0; BYTES_MAX];
    let len = BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut raw).map_err(|_| InvalidCursor)?;
    let raw = &mut raw[..len];
    let Some((&mut form, _)) = raw.split_first_mut() else { return Err(InvalidCursor) };
    if form == version_1::VERSION {
        return version_1::decode(raw, assessment).map(Cursor::Of);
    }
    let header: [u8; HEADER_BYTES] = *raw.first_chunk().ok_or(InvalidCursor)?;
    raw[1..=CHECK_BYTES].fill(0);
    if check(raw, assessment).to_le_bytes() != header[1..=CHECK_BYTES] {
        return Err(InvalidCursor);
    }
    let [.., a, b, c] = header;
    let sum = TopicSum(u32::from_le_bytes([a, b, c, 0]));
    let rest = ByteReader(&raw[HEADER_BYTES..]);
    match form {
        NONE if rest.0.is_empty() => Ok(Cursor::None),
        WIDE | NARROW => rest.topics(form == NARROW).map(|topics| Cursor::Of(CursorContents { sum, topics })),
        _ => Err(InvalidCursor),
    }
}

/// Over the bytes of a cursor in which the check is left at zero.
fn check(bytes: &[u8], assessment: AssessmentHash) -> u32 {
    xxh3_64_with_seed(bytes, assessment.0) as u32
}

/// A cursor's bytes as they are made. There is room for one topic over the bound, so that only whole ones are counted.
struct CursorBytes {
    bytes: [u8; BYTES_MAX + TOPIC_BYTES_MAX],
    len: usize,
}

impl CursorBytes {
    /// Seven bits a byte, the lowest first; the highest bit says that more follow.
    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes[self.len] = value as u8 | 0x80;
            self.len += 1;
            value >>= 7;
        }
        self.bytes[self.len] = value as u8;
        self.len += 1;
    }

    fn seal(&mut self, assessment: AssessmentHash, out: &mut Vec<u8>) {
        let check = check(&self.bytes[..self.len], assessment).to_le_bytes();
        self.bytes[1..=CHECK_BYTES].copy_from_slice(&check);
        let start = out.len();
        out.resize(start + self.len.div_ceil(3) * 4, 0);
        let written = BASE64_URL_SAFE_NO_PAD
            .encode_slice(&self.bytes[..self.len], &mut out[start..])
            .expect("four characters for each three bytes are enough");
        out.truncate(start + written);
    }
}

/// What is left to be read.
struct ByteReader<'a>(&'a [u8]);

impl ByteReader<'_> {
    fn topics(mut self, is_narrow: bool) -> Result<Vec<ListedTopic>, InvalidCursor> {
        let mut topics = Vec::new();
        let mut shapes: Vec<(u32, u32)> = Vec::with_capacity(SHAPES);
        let mut epoch = None;
        while !self.0.is_empty() {
            let head = u16::from_le_bytes(self.take()?);
            let mark = if is_narrow { None } else { Some(self.take::<1>()?[0]) };
            let shape = usize::from(head >> 2 & 3);
            let (partitions, partition) = if shape == SHAPES {
                let shape = (self.take_u32()?, self.take_u32()?);
                if shapes.len() < SHAPES {
                    shapes.push(shape);
                }
                shape
            } else {
                *shapes.get(shape).ok_or(InvalidCursor)?
            };
            let next = self.take_next(head >> 4 & 3)?;
            if head >> 1 & 1 == 1 {
                epoch = self.take_epoch()?;
            }
            let mut offsets = vec![PartitionOffset { partition, next, epoch }];
            let (mut before, mut more) = (partition, head & 1 == 1);
            while more {
                let head = self.take_varint()?;
                let gap = u32::try_from(head >> 4).map_err(|_| InvalidCursor)?;
                let partition = before.checked_add(1).and_then(|after| after.checked_add(gap)).ok_or(InvalidCursor)?;
                let next = self.take_next((head >> 2 & 3) as u16)?;
                if head >> 1 & 1 == 1 {
                    epoch = self.take_epoch()?;
                }
                offsets.push(PartitionOffset { partition, next, epoch });
                (before, more) = (partition, head & 1 == 1);
            }
            topics.push(ListedTopic { tag: Tag { name: head >> 6, mark }, partitions, offsets });
        }
        Ok(topics)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], InvalidCursor> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(InvalidCursor)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn take_next(&mut self, code: u16) -> Result<i64, InvalidCursor> {
        let (taken, rest) = self.0.split_at_checked(NEXT_BYTES[usize::from(code)]).ok_or(InvalidCursor)?;
        self.0 = rest;
        let mut bytes = [0; 8];
        bytes[..taken.len()].copy_from_slice(taken);
        i64::try_from(u64::from_le_bytes(bytes)).map_err(|_| InvalidCursor)
    }

    fn take_epoch(&mut self) -> Result<Option<i32>, InvalidCursor> {
        let epoch = self.take_varint()?.checked_sub(1);
        epoch.map(|epoch| i32::try_from(epoch).map_err(|_| InvalidCursor)).transpose()
    }

    fn take_u32(&mut self) -> Result<u32, InvalidCursor> {
        u32::try_from(self.take_varint()?).map_err(|_| InvalidCursor)
    }

    fn take_varint(&mut self) -> Result<u64, InvalidCursor> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let [byte] = self.take()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(InvalidCursor)
    }
}
