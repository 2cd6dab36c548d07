use proptest::prelude::*;

use super::*;

unsafe extern "C" {
    fn rd_gz_decompress(packed: *const c_void, len: c_int, unpacked_len: *mut u64) -> *mut c_void;
    fn rd_kafka_lz4_decompress(
        broker: *mut c_void,
        has_proper_hash: c_int,
        offset: i64,
        packed: *mut c_char,
        packed_len: usize,
        out: *mut *mut c_void,
        out_len: *mut usize,
    ) -> RDKafkaRespErr;
    fn rd_kafka_zstd_decompress(
        broker: *mut c_void,
        packed: *mut c_char,
        packed_len: usize,
        out: *mut *mut c_void,
        out_len: *mut usize,
    ) -> RDKafkaRespErr;
    fn rd_kafka_snappy_uncompressed_length(packed: *const c_char, packed_len: usize, out: *mut usize) -> bool;
    fn rd_kafka_snappy_uncompress(packed: *const c_char, packed_len: usize, out: *mut c_char) -> c_int;
    fn rd_kafka_snappy_java_uncompress(
        packed: *const c_char,
        packed_len: usize,
        out_len: *mut usize,
        error: *mut c_char,
        error_len: usize,
    ) -> *mut c_char;
    fn rd_kafka_msgset_parse();

    #[link_name = "deflateInit2_"]
    fn deflate_init(
        stream: *mut ZStream,
        level: c_int,
        method: c_int,
        window_bits: c_int,
        memory: c_int,
        strategy: c_int,
        version: *const c_char,
        size: c_int,
    ) -> c_int;
    fn deflate(stream: *mut ZStream, flush: c_int) -> c_int;
    #[link_name = "deflateEnd"]
    fn deflate_end(stream: *mut ZStream) -> c_int;
    #[link_name = "LZ4F_compressFrameBound"]
    fn lz4_compress_bound(len: usize, preferences: *const c_void) -> usize;
    #[link_name = "LZ4F_compressFrame"]
    fn lz4_compress(
        out: *mut c_void,
        room: usize,
        from: *const c_void,
        len: usize,
        preferences: *const c_void,
    ) -> usize;
    #[link_name = "ZSTD_compressBound"]
    fn zstd_compress_bound(len: usize) -> usize;
    #[link_name = "ZSTD_compress"]
    fn zstd_compress(out: *mut c_void, room: usize, from: *const c_void, len: usize, level: c_int) -> usize;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gzip,
    Lz4,
    Zstd,
    Snappy,
    SnappyJava,
}

const KINDS: [Kind; 5] = [Kind::Gzip, Kind::Lz4, Kind::Zstd, Kind::Snappy, Kind::SnappyJava];

/// This many records, the smallest that there are.
fn records(count: usize) -> Vec<u8> {
    [12, 0, 0, 0, 1, 1, 0].repeat(count)
}

/// One record of this many bytes, its length included.
fn record(len: usize) -> Vec<u8> {
    let mut record = Vec::new();
    let mut left = 2 * (len - 4);
    for last in [false, false, false, true] {
        record.push(u8::try_from(left & 0x7f).unwrap() | if last { 0 } else { 0x80 });
        left >>= 7;
    }
    record.resize(len, b' ');
    record
}

fn pack(kind: Kind, bytes: &[u8]) -> Vec<u8> {
    let with = |room: usize, pack: &dyn Fn(*mut u8, usize) -> usize| {
        let mut out = vec![0; room];
        let made = pack(out.as_mut_ptr(), room);
        out.truncate(made);
        out
    };
    let (from, len) = (bytes.as_ptr().cast::<c_void>(), bytes.len());
    // SAFETY: what is read lives, and there is as much room as is said.
    unsafe {
        match kind {
            Kind::Gzip => with(len + len / 100 + 1000, &|out, room| {
                let mut stream: ZStream = mem::zeroed();
                let size = c_int::try_from(size_of::<ZStream>()).unwrap();
                assert_eq!(deflate_init(&raw mut stream, 6, 8, 15 + 16, 8, 0, zlibVersion(), size), Z_OK);
                (stream.next_in, stream.avail_in) = (bytes.as_ptr(), c_uint::try_from(len).unwrap());
                (stream.next_out, stream.avail_out) = (out, c_uint::try_from(room).unwrap());
                assert_eq!(deflate(&raw mut stream, 4), Z_STREAM_END);
                deflate_end(&raw mut stream);
                usize::try_from(stream.total_out).unwrap()
            }),
            Kind::Lz4 => with(lz4_compress_bound(len, ptr::null()), &|out, room| {
                lz4_compress(out.cast(), room, from, len, ptr::null())
            }),
            Kind::Zstd => with(zstd_compress_bound(len), &|out, room| zstd_compress(out.cast(), room, from, len, 3)),
            Kind::Snappy => snappy_block(bytes),
            Kind::SnappyJava => {
                let mut packed = Vec::new();
                for part in bytes.chunks(32 * 1024) {
                    let block = snappy_block(part);
                    packed.extend(u32::try_from(block.len()).unwrap().to_be_bytes());
                    packed.extend(block);
                }
                packed
            }
        }
    }
}

/// Literals alone.
fn snappy_block(bytes: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    let mut left = bytes.len();
    while left >= 0x80 {
        block.push(u8::try_from(left & 0x7f).unwrap() | 0x80);
        left >>= 7;
    }
    block.push(u8::try_from(left).unwrap());
    for part in bytes.chunks(60) {
        block.push(u8::try_from((part.len() - 1) << 2).unwrap());
        block.extend(part);
    }
    block
}

/// By the function that librdkafka calls.
fn unpack(kind: Kind, packed: &[u8]) -> Option<Vec<u8>> {
    let (from, len) = (packed.as_ptr().cast::<c_char>().cast_mut(), packed.len());
    let (mut out, mut out_len) = (ptr::null_mut::<c_void>(), 0_usize);
    // SAFETY: the input lives, nothing writes to it, and the output is ours, as long as is said.
    unsafe {
        match kind {
            Kind::Gzip => {
                let mut made = 0;
                out = rd_gz_decompress(from.cast(), c_int::try_from(len).unwrap(), &raw mut made);
                out_len = usize::try_from(made).unwrap();
            }
            Kind::Lz4 => {
                rd_kafka_lz4_decompress(ptr::null_mut(), 1, 0, from, len, &raw mut out, &raw mut out_len);
            }
            Kind::Zstd => {
                rd_kafka_zstd_decompress(ptr::null_mut(), from, len, &raw mut out, &raw mut out_len);
            }
            Kind::Snappy => {
                if !rd_kafka_snappy_uncompressed_length(from, len, &raw mut out_len) {
                    return None;
                }
                out = libc::malloc(out_len.max(1));
                if rd_kafka_snappy_uncompress(from, len, out.cast()) != 0 {
                    libc::free(out);
                    return None;
                }
            }
            Kind::SnappyJava => {
                let mut error = [1; 128];
                let room = error.len();
                out = rd_kafka_snappy_java_uncompress(from, len, &raw mut out_len, error.as_mut_ptr(), room).cast();
                assert!(!out.is_null() || error.contains(&0), "librdkafka logs it");
            }
        }
        if out.is_null() {
            return None;
        }
        let unpacked = packed_bytes(out, out_len).to_vec();
        libc::free(out);
        Some(unpacked)
    }
}

#[test]
fn librdkafka_calls_these_functions() {
    let pairs: [(*const (), *const ()); 7] = [
        (rd_gz_decompress as *const (), __wrap_rd_gz_decompress as *const ()),
        (rd_kafka_lz4_decompress as *const (), __wrap_rd_kafka_lz4_decompress as *const ()),
        (rd_kafka_zstd_decompress as *const (), __wrap_rd_kafka_zstd_decompress as *const ()),
        (rd_kafka_snappy_uncompressed_length as *const (), __wrap_rd_kafka_snappy_uncompressed_length as *const ()),
        (rd_kafka_snappy_uncompress as *const (), __wrap_rd_kafka_snappy_uncompress as *const ()),
        (rd_kafka_snappy_java_uncompress as *const (), __wrap_rd_kafka_snappy_java_uncompress as *const ()),
        (rd_kafka_msgset_parse as *const (), __wrap_rd_kafka_msgset_parse as *const ()),
    ];
    for (index, (theirs, ours)) in pairs.into_iter().enumerate() {
        assert_eq!(theirs, ours, "the linker does not wrap function {index}");
    }
}

#[test]
fn a_batch_comes_out_as_it_went_in() {
    for kind in KINDS {
        for batch in [records(1), records(1000), record(300_000), [record(90_000), records(9)].concat()] {
            let packed = pack(kind, &batch);
            assert!(unpack(kind, &packed).is_some_and(|unpacked| unpacked == batch), "{kind:?}, {}", batch.len());
        }
    }
}

#[test]
fn a_batch_that_is_incomplete_or_has_something_behind_its_end_is_refused() {
    let batch: Vec<u8> = [record(2000), records(20)].concat();
    for kind in KINDS {
        let packed = pack(kind, &batch);
        for len in 0..packed.len() {
            assert_eq!(unpack(kind, &packed[..len]), None, "{kind:?}, {len} of {}", packed.len());
        }
        let longer = [&packed[..], b"\0"].concat();
        assert_eq!(unpack(kind, &longer), None, "{kind:?}, with a byte more");
        assert_eq!(unpack(kind, b"not packed"), None, "{kind:?}");
    }
}

#[test]
fn what_is_no_list_of_records_is_refused() {
    let batch = records(20);
    for kind in KINDS {
        assert_eq!(unpack(kind, &pack(kind, &batch[..batch.len() - 1])), None, "{kind:?}");
    }
    assert_eq!(count_records(&records(3)), Some(3));
    assert_eq!(count_records(&[0; 260]), Some(10), "messages of Kafka before 0.11");
    assert_eq!(count_records(&[0x0b, 0, 0, 0, 0, 0, 0, 0]), None, "a negative length");
    assert_eq!(count_records(&[0xff; 9]), None, "a length without an end");
}

#[test]
fn a_batch_of_more_bytes_or_records_than_the_bound_is_refused() {
    const BOUND: Allowance = Allowance { bytes: 100_000, records: 100 };
    for kind in KINDS {
        let within = |batch: &[u8]| {
            LEFT.set(BOUND);
            unpack(kind, &pack(kind, batch)).is_some()
        };
        assert!(within(&record(BOUND.bytes)) && !within(&record(BOUND.bytes + 1)), "{kind:?}");
        assert!(within(&records(BOUND.records)) && !within(&records(BOUND.records + 1)), "{kind:?}");
    }
}

#[test]
fn batches_of_one_response_are_bounded_together() {
    for kind in KINDS {
        let packed = pack(kind, &records(100));
        LEFT.set(Allowance { bytes: 100_000, records: 350 });
        assert_eq!((0..9).filter(|_| unpack(kind, &packed).is_some()).count(), 3, "{kind:?}");
        assert_eq!(LEFT.get(), Allowance { bytes: 100_000 - 3 * 700, records: 50 }, "{kind:?}");
    }
}

#[test]
fn snappy_that_claims_more_than_it_holds_allocates_nothing() {
    let claim = b"\xff\xff\xff\xff\x0f\0x";
    assert_eq!(unpack(Kind::Snappy, claim), None);
    let block = [&7_u32.to_be_bytes()[..], claim].concat();
    assert_eq!(unpack(Kind::SnappyJava, &block.repeat(10_000)), None, "40 terabytes");
    assert_eq!(unpack(Kind::SnappyJava, b"\xff\xff\xff\xffx"), None, "a block beyond the end");
}

/// Packed batches with some bytes changed, and bytes that are none.
fn some_packed() -> impl Strategy<Value = (usize, Vec<u8>)> {
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4);
    let batch = (1_usize..400, 0_usize..3_000);
    (0..KINDS.len(), batch, changes, any::<proptest::sample::Index>(), 0_u8..8).prop_map(
        |(kind, (count, len), changes, cut, what)| {
            let mut packed = match what {
                0 => (0..len).map(|at| (at * 7 + count) as u8).collect(),
                _ => pack(KINDS[kind], &[record(len + 10), records(count)].concat()),
            };
            for (at, byte) in changes {
                let at = at.index(packed.len().max(1));
                packed.get_mut(at).into_iter().for_each(|changed| *changed = byte);
            }
            if what == 1 {
                packed.truncate(cut.index(packed.len() + 1));
            }
            (kind, packed)
        },
    )
}

proptest! {
    /// The decoders are C: what counts is that the process goes on, within its bounds.
    #[test]
    fn whatever_comes_is_unpacked_within_the_bounds_or_refused((kind, packed) in some_packed()) {
        const BOUND: Allowance = Allowance { bytes: 20_000, records: 300 };
        LEFT.set(BOUND);
        if let Some(unpacked) = unpack(KINDS[kind], &packed) {
            prop_assert!(unpacked.len() <= BOUND.bytes);
            prop_assert!(count_records(&unpacked).is_some_and(|records| records <= BOUND.records));
        }
    }
}
