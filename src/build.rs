//! Has the linker put a function of ours in the place of one of librdkafka's, in all that links the gateway:
//! `src/ingest/client.rs` tells why.

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    println!("cargo::rustc-link-arg=-Wl,--wrap=rd_kafka_metadata_update_op");
    // Our function is in a library that the linker comes to before it knows of the need.
    println!("cargo::rustc-link-arg=-Wl,--undefined=__wrap_rd_kafka_metadata_update_op");
}
