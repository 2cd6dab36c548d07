//! How much a compressed batch may come to. librdkafka unpacks a batch whole, and bounds what becomes of zstd alone;
//! gzip packs a gigabyte of nothing into a megabyte. So the linker has these functions called in the place of
//! librdkafka's own (`src/build.rs`): they count first, into no memory, and refuse what is over the bound.
//! [`super::reader`] passes over such a batch.

use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use std::{mem, ptr};

use rdkafka::types::RDKafkaRespErr;

use crate::limits::UNPACKED_BYTES_MAX;

/// Where what is counted goes.
const SCRATCH_BYTES: usize = 32 * 1024;

// ---- gzip
// ---------------------------------------------------------------------------------------------------------------

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

/// zlib's values, as librdkafka uses them: with a gzip or zlib header, as it comes.
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

/// Unpacks a gzip batch into what `next_out` gives, call by call, until that is `None`. Returns how many bytes it came
/// to; `None` where it is damaged.
fn gunzip(packed: &[u8], mut next_out: impl FnMut(u64) -> Option<(*mut u8, c_uint)>) -> Option<u64> {
    let len = c_uint::try_from(packed.len()).ok()?;
    // SAFETY: the stream is a plain struct for which zeros are what zlib wants; the input lives until the end of the
    // block, and so does what `next_out` gives.
    unsafe {
        let mut stream: ZStream = mem::zeroed();
        let size = c_int::try_from(size_of::<ZStream>()).ok()?;
        if inflate_init(&raw mut stream, WINDOW_BITS, zlibVersion(), size) != Z_OK {
            return None;
        }
        (stream.next_in, stream.avail_in) = (packed.as_ptr(), len);
        let mut outcome = Z_OK;
        while outcome == Z_OK
            && let Some((out, out_len)) = next_out(stream.total_out)
        {
            (stream.next_out, stream.avail_out) = (out, out_len);
            outcome = inflate(&raw mut stream, Z_NO_FLUSH);
        }
        inflate_end(&raw mut stream);
        matches!(outcome, Z_OK | Z_STREAM_END | Z_BUF_ERROR).then_some(stream.total_out)
    }
}

/// How many bytes a gzip batch comes to; `None` where that is over the bound, or it is damaged.
fn gzip_len(packed: &[u8]) -> Option<usize> {
    let mut scratch = [0_u8; SCRATCH_BYTES];
    let bound = UNPACKED_BYTES_MAX as u64;
    let len = gunzip(packed, |total| (total <= bound).then_some((scratch.as_mut_ptr(), SCRATCH_BYTES as c_uint)))?;
    usize::try_from(len).ok().filter(|&len| len <= UNPACKED_BYTES_MAX)
}

/// Stands in for librdkafka's function of this name, which counts first as well, and knows no bound. Its caller frees
/// what it returns.
#[unsafe(no_mangle)]
extern "C" fn __wrap_rd_gz_decompress(packed: *const c_void, len: c_int, unpacked_len: *mut u64) -> *mut c_void {
    // SAFETY: librdkafka hands over a batch that lives until this returns, and where the length goes.
    let packed = unsafe { std::slice::from_raw_parts(packed.cast::<u8>(), usize::try_from(len).unwrap_or(0)) };
    let Some(len) = gzip_len(packed) else { return ptr::null_mut() };
    // SAFETY: it takes any length; one byte more, so that nothing is an address as well.
    let out = unsafe { libc::malloc(len + 1) };
    if out.is_null() {
        return out;
    }
    let index = |total: u64| {
        let done = usize::try_from(total).unwrap_or(len).min(len);
        // SAFETY: not beyond the end of what was allocated.
        Some((unsafe { out.cast::<u8>().add(done) }, c_uint::try_from(len - done).unwrap_or(0)))
    };
    let unpacked = gunzip(packed, index);
    if unpacked.is_none_or(|unpacked| unpacked != len as u64) {
        // SAFETY: it was allocated here, and nobody has it.
        unsafe { libc::free(out) };
        return ptr::null_mut();
    }
    // SAFETY: as above.
    unsafe { *unpacked_len = len as u64 };
    out
}

// ---- LZ4
// ----------------------------------------------------------------------------------------------------------------

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

/// Unpacks an LZ4 batch into what `next_out` gives, call by call, until that is `None`. Returns how many bytes it came
/// to; `None` where it is damaged.
fn unpack_lz4(mut packed: &[u8], mut next_out: impl FnMut(usize) -> Option<(*mut u8, usize)>) -> Option<usize> {
    let (mut context, mut total, mut is_good) = (ptr::null_mut(), 0, true);
    // SAFETY: the context is given back here; the input lives until the end of the block, and so does what `next_out`
    // gives.
    unsafe {
        if lz4_is_error(lz4_create(&raw mut context, LZ4F_VERSION)) != 0 {
            return None;
        }
        while let Some((out, mut made)) = next_out(total) {
            let mut taken = packed.len();
            let from = packed.as_ptr().cast();
            let code = lz4_decompress(context, out.cast(), &raw mut made, from, &raw mut taken, ptr::null());
            is_good = lz4_is_error(code) == 0;
            if !is_good {
                break;
            }
            packed = packed.get(taken..).unwrap_or_default();
            total += made;
            // The end, or the input's.
            if code == 0 || (taken == 0 && made == 0) {
                break;
            }
        }
        lz4_free(context);
    }
    is_good.then_some(total)
}

/// How many bytes an LZ4 batch comes to; `None` where that is over the bound, or it is damaged.
fn lz4_len(packed: &[u8]) -> Option<usize> {
    let mut scratch = [0_u8; SCRATCH_BYTES];
    let index = |total| (total <= UNPACKED_BYTES_MAX).then_some((scratch.as_mut_ptr(), SCRATCH_BYTES));
    unpack_lz4(packed, index).filter(|&len| len <= UNPACKED_BYTES_MAX)
}

/// Stands in for librdkafka's function of this name, which unpacks into memory that grows, and mends the frames of
/// Kafka before 0.10 besides. Its caller frees what it gives.
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
    let packed = unsafe { std::slice::from_raw_parts(packed.cast::<u8>(), packed_len) };
    let Some(len) = lz4_len(packed) else { return RDKafkaRespErr::RD_KAFKA_RESP_ERR__BAD_COMPRESSION };
    // SAFETY: it takes any length; one byte more, so that nothing is an address as well.
    let unpacked = unsafe { libc::malloc(len + 1) };
    if unpacked.is_null() {
        return RDKafkaRespErr::RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE;
    }
    // SAFETY: not beyond the end of what was allocated.
    let index = |total: usize| Some((unsafe { unpacked.cast::<u8>().add(total.min(len)) }, len - total.min(len)));
    if unpack_lz4(packed, index) != Some(len) {
        // SAFETY: it was allocated here, and nobody has it.
        unsafe { libc::free(unpacked) };
        return RDKafkaRespErr::RD_KAFKA_RESP_ERR__BAD_COMPRESSION;
    }
    // SAFETY: where librdkafka wants the answer.
    unsafe { (*out, *out_len) = (unpacked, len) };
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn rd_gz_decompress(packed: *const c_void, len: c_int, unpacked_len: *mut u64) -> *mut c_void;
        fn rd_kafka_lz4_decompress();
    }

    #[test]
    fn librdkafka_calls_these_functions() {
        let is_wrapped = rd_gz_decompress as *const () == __wrap_rd_gz_decompress as *const ();
        let is_lz4_wrapped = rd_kafka_lz4_decompress as *const () == __wrap_rd_kafka_lz4_decompress as *const ();
        assert!(is_wrapped && is_lz4_wrapped, "the linker was not told");
    }

    #[test]
    fn what_is_no_gzip_is_refused_and_what_is_comes_out_as_it_went_in() {
        assert_eq!(gzip_len(b"not gzip"), None);
        assert_eq!(gzip_len(b""), Some(0));
        // `printf hello | gzip -n`
        let hello = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xcb\x48\xcd\xc9\xc9\x07\0\x86\xa6\x10\x36\x05\0\0\0";
        assert_eq!(gzip_len(hello), Some(5));
        let mut len = 0;
        // SAFETY: the input lives, and the output is ours: it is as long as is said.
        unsafe {
            let out = rd_gz_decompress(hello.as_ptr().cast(), c_int::try_from(hello.len()).unwrap(), &raw mut len);
            assert_eq!((std::slice::from_raw_parts(out.cast::<u8>(), 5), len), (&b"hello"[..], 5));
            libc::free(out);
        }
    }
}
