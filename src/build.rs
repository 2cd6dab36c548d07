//! Tells the linker to replace some of librdkafka's functions with our own, in everything that links the gateway.
//! `src/ingest/client.rs` and `src/ingest/unpacking.rs` say why.

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    let names = [
        "rd_kafka_metadata_update_op",
        "rd_kafka_broker_fetch_toppars",
        "rd_kafka_msgset_parse",
        "rd_gz_decompress",
        "rd_kafka_lz4_decompress",
        "rd_kafka_zstd_decompress",
        "rd_kafka_snappy_uncompressed_length",
        "rd_kafka_snappy_uncompress",
        "rd_kafka_snappy_java_uncompress",
    ];
    for name in names {
        println!("cargo::rustc-link-arg=-Wl,--wrap={name}");
        // The symbol must be requested here, or the linker drops our library before it sees the reference.
        println!("cargo::rustc-link-arg=-Wl,--undefined=__wrap_{name}");
    }
}
