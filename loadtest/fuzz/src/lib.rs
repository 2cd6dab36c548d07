//! The bodies of the fuzz targets: each passes bytes from outside to a parser of the gateway and asserts the invariants
//! of every outcome. libFuzzer calls them through `fuzz_targets/`. `loadtest/tests/fuzz.rs` runs them over the corpus
//! as an ordinary test.
//!
//! To fuzz a target (in `loadtest`; the compiler's instrumentation is not stable yet):
//!
//! ```text
//! cargo install cargo-fuzz
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none head -- -max_total_time=3600
//! ```
//!
//! An input that failed stays in `corpus/<target>`, named after the fault.

mod cursor;
mod frames;
mod head;
mod json;
mod proxy;
mod record;
mod redis;
mod routes;
mod settings;
mod token;

pub use cursor::cursor;
pub use frames::frames;
pub use head::head;
pub use proxy::proxy;
pub use record::record;
pub use redis::redis;
pub use routes::routes;
pub use settings::settings;
pub use token::token;

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("head", head),
    ("frames", frames),
    ("cursor", cursor),
    ("token", token),
    ("proxy", proxy),
    ("record", record),
    ("routes", routes),
    ("redis", redis),
    ("settings", settings),
];
