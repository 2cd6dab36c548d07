//! Runs the fuzz targets over their corpus and over small mutations of it, so that earlier findings stay fixed. The
//! fuzzer itself is run by hand (`loadtest/fuzz`).

#[path = "../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it is a separate crate for the fuzzer")]
mod targets;

use std::fs;
use std::path::Path;

/// Mutations of each input of the corpus.
const CHANGES: usize = 50;

#[test]
fn every_target_accepts_its_corpus_and_small_mutations_of_it() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let inputs = inputs(&corpus.join(name));
        assert!(!inputs.is_empty(), "{name} has a corpus");
        let mut random = fastrand::Rng::with_seed(7);
        for (file, input) in &inputs {
            println!("{name}: {file}");
            target(input);
            for _ in 0..CHANGES {
                target(&changed(input, &inputs, &mut random));
            }
        }
        for input in [&b""[..], b"\0", &[0xff; 64], &[b'{'; 100_000]] {
            target(input);
        }
    }
}

fn inputs(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let entry = entry.expect("a folder of files");
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a file"))
        })
        .collect();
    inputs.sort();
    inputs
}

/// The input with some bytes changed, removed, duplicated, or taken from another input.
fn changed(input: &[u8], inputs: &[(String, Vec<u8>)], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut input = input.to_vec();
    for _ in 0..random.usize(1..4) {
        let at = random.usize(0..=input.len());
        let end = (at + random.usize(0..16)).min(input.len());
        match random.u8(0..4) {
            0 => input[at..end].iter_mut().for_each(|byte| *byte = random.u8(..)),
            1 => drop(input.drain(at..end)),
            2 => drop(input.splice(at..at, input[at..end].to_vec())),
            _ => {
                let (_, other) = &inputs[random.usize(..inputs.len())];
                let from = random.usize(0..=other.len());
                drop(input.splice(at..end, other[from..].iter().copied().take(64)));
            }
        }
    }
    input
}
