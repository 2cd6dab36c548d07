//! Bounds the size of unpacked (decompressed) batches, in bytes and records. librdkafka unpacks a whole batch and makes
//! a message of each record. gzip packs a thousand bytes into one, and a message costs far more memory than the
//! smallest record. librdkafka bounds zstd alone, and aborts the process when a Snappy batch claims terabytes. So the
//! linker replaces librdkafka's functions with those below (`src/build.rs`). They refuse a batch that is over the
//! bounds, damaged or incomplete; librdkafka would accept a part of it. [`super::reader`] passes over a refused batch.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{mem, ptr, slice};

use rdkafka::types::RDKafkaRespErr;

use crate::limits::{UNPACKED_BATCHES_MAX, UNPACKED_BYTES_MAX, UNPACKED_RECORDS_MAX};

// ---- bounds -------------------------------------------------------------------------------------------------------

/// How much may be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Allowance {
    bytes: usize,
    records: usize,
}

/// The largest unpacked batch, in bytes. For the whole process: librdkafka's functions don't say for which client they
/// run.
static BATCH_BYTES: AtomicUsize = AtomicUsize::new(UNPACKED_BYTES_MAX);

thread_local! {
    /// The allowance left for the partition that this thread of librdkafka reads now in a fetch response.
    static LEFT: Cell<Allowance> = Cell::new(Allowance::of_response());
}

/// Raises the bound so that a batch with one record of this size can be unpacked.
pub(super) fn allow_records_of(bytes: usize) {
    BATCH_BYTES.fetch_max(bytes.saturating_add(RECORD_OVERHEAD_MAX), Ordering::Relaxed);
}

/// Keys, headers and lengths of a large record.
const RECORD_OVERHEAD_MAX: usize = 64 * 1024;

impl Allowance {
    fn of_batch() -> Self {
        Self { bytes: BATCH_BYTES.load(Ordering::Relaxed), records: UNPACKED_RECORDS_MAX }
    }

    fn of_response() -> Self {
        let Self { bytes, records } = Self::of_batch();
        Self { bytes: bytes * UNPACKED_BATCHES_MAX, records: records * UNPACKED_BATCHES_MAX }
    }

    /// The allowance for the next batch. If earlier batches of the response have used it up, the batch is refused, and
    /// fetched again without them.
    fn of_next_batch() -> Self {
        let (batch, left) = (Self::of_batch(), LEFT.get());
        Self { bytes: batch.bytes.min(left.bytes), records: batch.records.min(left.records) }
    }
}

/// Whether an unpacked batch is within the bounds. If it is, its size is subtracted from the allowance.
fn admit(unpacked: &[u8]) -> bool {
    let allowed = Allowance::of_next_batch();
    let Some(records) = count_records(unpacked) else { return false };
    if unpacked.len() > allowed.bytes || records > allowed.records {
        return false;
    }
    let left = LEFT.get();
    LEFT.set(Allowance { bytes: left.bytes - unpacked.len(), records: left.records - records });
    true
}

/// Number of records in an unpacked batch; `None` if it is no list of records.
fn count_records(mut unpacked: &[u8]) -> Option<usize> {
    /// The smallest message of Kafka before 0.11. Such a message begins with the eight bytes of its offset, so its
    /// first byte is 0. A record of today begins with its length, which is never 0.
    const OLD_MESSAGE_BYTES_MIN: usize = 26;
    if unpacked.first() == Some(&0) {
        return Some(unpacked.len() / OLD_MESSAGE_BYTES_MIN);
    }
    let mut records = 0;
    while !unpacked.is_empty() {
        let (len, rest) = varint(unpacked)?;
        // Zigzag: the odd ones are negative.
        unpacked = (len % 2 == 0).then(|| rest.get(usize::try_from(len / 2).ok()?..)).flatten()?;
        records += 1;
    }
    Some(records)
}

/// Parses a variable-length number of up to 32 bits; returns it and the bytes after it.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

unsafe extern "C" {
    fn __real_rd_kafka_msgset_parse(
        response: *mut c_void,
        request: *mut c_void,
        partition: *mut c_void,
        aborted: *mut c_void,
        version: *const c_void,
    ) -> RDKafkaRespErr;
}

/// Wraps librdkafka's function that reads all batches of one partition in a fetch response: renews the allowance.
#[unsafe(no_mangle)]
extern "C" fn __wrap_rd_kafka_msgset_parse(
    response: *mut c_void,
    request: *mut c_void,
    partition: *mut c_void,
    aborted: *mut c_void,
    version: *const c_void,
) -> RDKafkaRespErr {
    LEFT.set(Allowance::of_response());
    // SAFETY: these are librdkafka's own arguments.
    unsafe { __real_rd_kafka_msgset_parse(response, request, partition, aborted, version) }
}

// ---- unpacking ----------------------------------------------------------------------------------------------------

/// Memory from `malloc`, which librdkafka frees after it has received it.
struct Buffer {
    start: *mut u8,
    len: usize,
    capacity: usize,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: it is null or was allocated here, and nothing else has it.
        unsafe { libc::free(self.start.cast()) }
    }
}

impl Buffer {
    fn new(capacity: usize) -> Option<Self> {
        let mut buffer = Self { start: ptr::null_mut(), len: 0, capacity: 0 };
        buffer.resize(capacity).then_some(buffer)
    }

    /// Changes the capacity, but not below the length. Returns whether there was memory.
    fn resize(&mut self, capacity: usize) -> bool {
        let capacity = capacity.max(self.len).max(1);
        // SAFETY: it is null or was allocated here.
        let start = unsafe { libc::realloc(self.start.cast(), capacity) };
        if start.is_null() {
            return false;
        }
        (self.start, self.capacity) = (start.cast(), capacity);
        true
    }

    /// Where the next bytes go, and the number of bytes that fit.
    fn spare(&mut self) -> (*mut u8, usize) {
        // SAFETY: the length is within what was allocated.
        (unsafe { self.start.add(self.len) }, self.capacity - self.len)
    }

    /// Returns the batch, shrunk to its length, if it is within the bounds. The caller frees it.
    fn admit(mut self) -> Option<(*mut c_void, usize)> {
        // SAFETY: `len` bytes were written.
        let is_admitted = admit(unsafe { slice::from_raw_parts(self.start, self.len) });
        if !is_admitted || !self.resize(self.len) {
            return None;
        }
        let unpacked = (self.start.cast(), self.len);
        mem::forget(self);
        Some(unpacked)
    }
}

/// Unpacks a stream in steps.
trait Codec: Sized {
    fn new() -> Option<Self>;

    /// Unpacks as much of `packed` as fits into `len` bytes at `out`; `None` if it is damaged.
    ///
    /// # Safety
    /// There must be `len` bytes at `out`.
    unsafe fn step(&mut self, packed: &[u8], out: *mut u8, len: usize) -> Option<Step>;
}

struct Step {
    taken: usize,
    made: usize,
    /// Whether the stream is at its end, and its checksum was right if it has one.
    is_end: bool,
}

/// Unpacks a batch; `None` if it is over the bounds, damaged, or not exactly one complete stream.
fn unpack<C: Codec>(mut packed: &[u8]) -> Option<Buffer> {
    const FIRST_BYTES_MIN: usize = 4096;
    let bound = Allowance::of_next_batch().bytes;
    let mut codec = C::new()?;
    let mut buffer = Buffer::new(packed.len().saturating_mul(4).clamp(FIRST_BYTES_MIN.min(bound), bound))?;
    loop {
        let (out, mut room) = buffer.spare();
        if room == 0 && buffer.capacity < bound {
            let capacity = buffer.capacity.saturating_mul(2).min(bound);
            if !buffer.resize(capacity) {
                return None;
            }
            continue;
        }
        // The buffer is full at the bound. The stream may end here; one byte more is too many.
        let mut beyond = 0;
        let out = if room == 0 { &raw mut beyond } else { out };
        room = room.max(1);
        // SAFETY: there is room for `room` bytes.
        let Step { taken, made, is_end } = unsafe { codec.step(packed, out, room)? };
        if buffer.len + made > bound {
            return None;
        }
        buffer.len += made;
        packed = packed.get(taken..)?;
        if is_end {
            return packed.is_empty().then_some(buffer);
        }
        if taken == 0 && made == 0 {
            return None;
        }
    }
}

/// A batch as librdkafka hands it over.
///
/// # Safety
/// It must live for as long as what is returned is used.
unsafe fn packed_bytes<'a>(packed: *const c_void, len: usize) -> &'a [u8] {
    if len == 0 {
        return &[];
    }
    // SAFETY: as the caller promised.
    unsafe { slice::from_raw_parts(packed.cast::<u8>(), len) }
}

// ---- gzip ---------------------------------------------------------------------------------------------------------

/// zlib's `z_stream`.
#[repr(C)]
struct ZStream {
    next_in: *const u8,
    avail_in: c_uint,
    total_in: c_ulong,
    next_out: *mut u8,
    avail_out: c_uint,
    total_out: c_ulong,
    msg: *const c_char,
    state: *mut c_void,
    zalloc: *mut c_void,
    zfree: *mut c_void,
    opaque: *mut c_void,
    data_type: c_int,
    adler: c_ulong,
    reserved: c_ulong,
}

/// zlib's constants. These window bits, which librdkafka uses too, accept both a gzip and a zlib header.
const WINDOW_BITS: c_int = 15 + 32;
const Z_NO_FLUSH: c_int = 0;
const Z_OK: c_int = 0;
const Z_STREAM_END: c_int = 1;
const Z_BUF_ERROR: c_int = -5;

unsafe extern "C" {
    fn zlibVersion() -> *const c_char;
    #[link_name = "inflateInit2_"]
    fn inflate_init(stream: *mut ZStream, window_bits: c_int, version: *const c_char, size: c_int) -> c_int;
    fn inflate(stream: *mut ZStream, flush: c_int) -> c_int;
    #[link_name = "inflateEnd"]
    fn inflate_end(stream: *mut ZStream) -> c_int;
}

/// The stream is on the heap because zlib keeps its address.
struct Gzip(Box<ZStream>);

impl Drop for Gzip {
    fn drop(&mut self) {
        // SAFETY: it was made by `inflate_init`.
        unsafe { inflate_end(&raw mut *self.0) };
    }
}

impl Codec for Gzip {
    fn new() -> Option<Self> {
        let size = c_int::try_from(size_of::<ZStream>()).ok()?;
        // SAFETY: the stream is a plain struct for which zeros are what zlib wants.
        let mut stream = Box::new(unsafe { mem::zeroed::<ZStream>() });
        // SAFETY: the stream is alive, and of this size.
        let outcome = unsafe { inflate_init(&raw mut *stream, WINDOW_BITS, zlibVersion(), size) };
        (outcome == Z_OK).then(|| Self(stream))
    }

    unsafe fn step(&mut self, packed: &[u8], out: *mut u8, len: usize) -> Option<Step> {
        let stream = &mut *self.0;
        let (packed_len, len) = (c_uint::try_from(packed.len()).ok()?, c_uint::try_from(len).unwrap_or(c_uint::MAX));
        (stream.next_in, stream.avail_in) = (packed.as_ptr(), packed_len);
        (stream.next_out, stream.avail_out) = (out, len);
        // SAFETY: the input lives, and the room is as large as stated.
        let outcome = unsafe { inflate(&raw mut *stream, Z_NO_FLUSH) };
        let step = Step {
            taken: (packed_len - stream.avail_in) as usize,
            made: (len - stream.avail_out) as usize,
            is_end: outcome == Z_STREAM_END,
        };
        matches!(outcome, Z_OK | Z_STREAM_END | Z_BUF_ERROR).then_some(step)
    }
}

/// Replaces librdkafka's function of this name. The caller frees the result.
#[unsafe(no_mangle)]
extern "C" fn __wrap_rd_gz_decompress(packed: *const c_void, len: c_int, unpacked_len: *mut u64) -> *mut c_void {
    // SAFETY: librdkafka hands over a batch that lives until this returns.
    let packed = unsafe { packed_bytes(packed, usize::try_from(len).unwrap_or(0)) };
    let Some((unpacked, len)) = unpack::<Gzip>(packed).and_then(Buffer::admit) else { return ptr::null_mut() };
    // SAFETY: where librdkafka wants the length.
    unsafe { *unpacked_len = len as u64 };
    unpacked
}

// ---- LZ4 ----------------------------------------------------------------------------------------------------------

/// `LZ4F_VERSION`.
const LZ4F_VERSION: c_uint = 100;

unsafe extern "C" {
    #[link_name = "LZ4F_createDecompressionContext"]
    fn lz4_create(context: *mut *mut c_void, version: c_uint) -> usize;
    #[link_name = "LZ4F_freeDecompressionContext"]
    fn lz4_free(context: *mut c_void) -> usize;
    #[link_name = "LZ4F_isError"]
    fn lz4_is_error(code: usize) -> c_uint;
    #[link_name = "LZ4F_decompress"]
    fn lz4_decompress(
        context: *mut c_void,
        out: *mut c_void,
        out_len: *mut usize,
        packed: *const c_void,
        packed_len: *mut usize,
        options: *const c_void,
    ) -> usize;
}

struct Lz4(*mut c_void);

impl Drop for Lz4 {
    fn drop(&mut self) {
        // SAFETY: it was made by `lz4_create`.
        unsafe { lz4_free(self.0) };
    }
}

impl Codec for Lz4 {
    fn new() -> Option<Self> {
        let mut context = ptr::null_mut();
        // SAFETY: the pointer to it is written where it lies.
        let is_made = unsafe { lz4_is_error(lz4_create(&raw mut context, LZ4F_VERSION)) == 0 };
        is_made.then_some(Self(context))
    }

    unsafe fn step(&mut self, packed: &[u8], out: *mut u8, len: usize) -> Option<Step> {
        let (mut taken, mut made) = (packed.len(), len);
        // SAFETY: the context is alive, the input lives, and the room is as large as stated.
        unsafe {
            let from = packed.as_ptr().cast();
            let code = lz4_decompress(self.0, out.cast(), &raw mut made, from, &raw mut taken, ptr::null());
            (lz4_is_error(code) == 0).then_some(Step { taken, made, is_end: code == 0 })
        }
    }
}

/// Replaces librdkafka's function of this name. The original also repairs the frames of Kafka before 0.10; this one
/// does not. The caller frees the result.
#[unsafe(no_mangle)]
extern "C" fn __wrap_rd_kafka_lz4_decompress(
    _broker: *mut c_void,
    _has_proper_hash: c_int,
    _offset: i64,
    packed: *mut c_char,
    packed_len: usize,
    out: *mut *mut c_void,
    out_len: *mut usize,
) -> RDKafkaRespErr {
    // SAFETY: librdkafka hands over a batch that lives until this returns.
    let packed = unsafe { packed_bytes(packed.cast(), packed_len) };
    // SAFETY: where librdkafka wants the answer.
    unsafe { answer(unpack::<Lz4>(packed), out, out_len) }
}

/// Hands a batch to librdkafka.
///
/// # Safety
/// The pointers must be where librdkafka wants the answer.
unsafe fn answer(unpacked: Option<Buffer>, out: *mut *mut c_void, out_len: *mut usize) -> RDKafkaRespErr {
    let Some((unpacked, len)) = unpacked.and_then(Buffer::admit) else {
        return RDKafkaRespErr::RD_KAFKA_RESP_ERR__BAD_COMPRESSION;
    };
    // SAFETY: as the caller promised.
    unsafe { (*out, *out_len) = (unpacked, len) };
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
}

// ---- zstd ---------------------------------------------------------------------------------------------------------

unsafe extern "C" {
    #[link_name = "ZSTD_decompressBound"]
    fn zstd_bound(packed: *const c_void, packed_len: usize) -> u64;
    #[link_name = "ZSTD_decompress"]
    fn zstd_decompress(out: *mut c_void, room: usize, packed: *const c_void, packed_len: usize) -> usize;
    #[link_name = "ZSTD_isError"]
    fn zstd_is_error(code: usize) -> c_uint;
}

/// Unpacks in one step: in steps, zstd would allocate the stream's window, which may be larger than the batch.
fn unpack_zstd(packed: &[u8]) -> Option<Buffer> {
    let bound = Allowance::of_next_batch().bytes;
    // SAFETY: the input lives.
    let most = unsafe { zstd_bound(packed.as_ptr().cast(), packed.len()) };
    // Input that is not zstd has no bound, and fails below.
    let mut buffer = Buffer::new(usize::try_from(most).unwrap_or(bound).min(bound)).filter(|_| !packed.is_empty())?;
    let (out, room) = buffer.spare();
    // SAFETY: the input lives, and the room is as large as stated.
    let made = unsafe { zstd_decompress(out.cast(), room, packed.as_ptr().cast(), packed.len()) };
    // SAFETY: the function has no pointer.
    if unsafe { zstd_is_error(made) } != 0 {
        return None;
    }
    buffer.len = made;
    Some(buffer)
}

/// Replaces librdkafka's function of this name. The caller frees the result.
#[unsafe(no_mangle)]
extern "C" fn __wrap_rd_kafka_zstd_decompress(
    _broker: *mut c_void,
    packed: *mut c_char,
    packed_len: usize,
    out: *mut *mut c_void,
    out_len: *mut usize,
) -> RDKafkaRespErr {
    // SAFETY: librdkafka hands over a batch that lives until this returns.
    let packed = unsafe { packed_bytes(packed.cast(), packed_len) };
    // SAFETY: where librdkafka wants the answer.
    unsafe { answer(unpack_zstd(packed), out, out_len) }
}

// ---- Snappy -------------------------------------------------------------------------------------------------------

unsafe extern "C" {
    fn __real_rd_kafka_snappy_uncompress(packed: *const c_char, packed_len: usize, out: *mut c_char) -> c_int;
}

/// The unpacked length that a Snappy block claims, if within the bounds. librdkafka allocates this much, and aborts the
/// process if it can't.
fn snappy_len(block: &[u8]) -> Option<usize> {
    let (len, _) = varint(block)?;
    usize::try_from(len).ok().filter(|&len| len <= Allowance::of_next_batch().bytes)
}

/// The blocks of a batch in the framing of snappy-java, without its header; `None` where the batch is cut off.
fn snappy_java_blocks(mut packed: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        let (len, rest) =
            packed.split_first_chunk().or_else(|| (!packed.is_empty()).then_some((&[0xff; 4], packed)))?;
        let len = usize::try_from(u32::from_be_bytes(*len)).unwrap_or(usize::MAX);
        let (block, rest) = rest.split_at_checked(len).map_or((None, &[][..]), |(block, rest)| (Some(block), rest));
        packed = rest;
        Some(block)
    })
}

fn unpack_snappy_java(packed: &[u8]) -> Option<Buffer> {
    let bound = Allowance::of_next_batch().bytes;
    let total = snappy_java_blocks(packed)
        .try_fold(0, |total, block| snappy_len(block?).map(|len| total + len).filter(|&total| total <= bound))?;
    let mut buffer = Buffer::new(total)?;
    for block in snappy_java_blocks(packed).flatten() {
        let (out, _) = buffer.spare();
        // SAFETY: the input lives, and there is room for the lengths of all blocks.
        if unsafe { __real_rd_kafka_snappy_uncompress(block.as_ptr().cast(), block.len(), out.cast()) } != 0 {
            return None;
        }
        buffer.len += snappy_len(block)?;
    }
    (total > 0).then_some(buffer)
}

/// Replaces librdkafka's function of this name. The caller allocates the length that it returns.
#[unsafe(no_mangle)]
extern "C" fn __wrap_rd_kafka_snappy_uncompressed_length(
    packed: *const c_char,
    packed_len: usize,
    out: *mut usize,
) -> bool {
    // SAFETY: librdkafka hands over a batch that lives until this returns.
    let Some(len) = snappy_len(unsafe { packed_bytes(packed.cast(), packed_len) }) else { return false };
    // SAFETY: where librdkafka wants the answer.
    unsafe { *out = len };
    true
}

/// Wraps librdkafka's function of this name, which unpacks into the buffer of the length above.
#[unsafe(no_mangle)]
extern "C" fn __wrap_rd_kafka_snappy_uncompress(packed: *const c_char, packed_len: usize, out: *mut c_char) -> c_int {
    // SAFETY: librdkafka hands over a batch that lives until this returns.
    let Some(len) = snappy_len(unsafe { packed_bytes(packed.cast(), packed_len) }) else { return -libc::EIO };
    // SAFETY: these are librdkafka's own arguments.
    let outcome = unsafe { __real_rd_kafka_snappy_uncompress(packed, packed_len, out) };
    // SAFETY: on success `len` bytes were written.
    if outcome == 0 && !admit(unsafe { packed_bytes(out.cast(), len) }) {
        return -libc::EIO;
    }
    outcome
}

/// Replaces librdkafka's function of this name. The caller frees the result.
#[unsafe(no_mangle)]
extern "C" fn __wrap_rd_kafka_snappy_java_uncompress(
    packed: *const c_char,
    packed_len: usize,
    out_len: *mut usize,
    error: *mut c_char,
    error_len: usize,
) -> *mut c_char {
    // SAFETY: librdkafka hands over a batch that lives until this returns.
    let packed = unsafe { packed_bytes(packed.cast(), packed_len) };
    let unpacked = unpack_snappy_java(packed).and_then(Buffer::admit);
    // SAFETY: where librdkafka wants the answer: a length, or a text.
    unsafe {
        match unpacked {
            Some((unpacked, len)) => {
                *out_len = len;
                unpacked.cast()
            }
            None => {
                if error_len > 0 {
                    *error = 0;
                }
                ptr::null_mut()
            }
        }
    }
}

#[cfg(test)]
mod tests;
