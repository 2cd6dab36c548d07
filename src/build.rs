//! Has the linker put functions of ours in the place of some of librdkafka's, in all that links the gateway:
//! `src/ingest/client.rs` and `src/ingest/unpacking.rs` tell why.

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    for name in ["rd_kafka_metadata_update_op", "rd_gz_decompress", "rd_kafka_lz4_decompress"] {
        println!("cargo::rustc-link-arg=-Wl,--wrap={name}");
        // The symbol must be requested here, or the linker drops our library before it sees the reference.
        println!("cargo::rustc-link-arg=-Wl,--undefined=__wrap_{name}");
    }
}
