//! Runs the fuzz targets on their seeds and on deterministic mutations of them, without libFuzzer.
//!
//! `fuzz/README.md` says how to fuzz them with coverage feedback.

use random::Random;
use std::fs;
use std::path::Path;

#[path = "../fuzz/targets/documents.rs"]
mod documents;
#[path = "../fuzz/targets/gguf.rs"]
mod gguf;
#[path = "../fuzz/targets/imatrix.rs"]
mod imatrix;
#[path = "../fuzz/targets/prefix_cache.rs"]
mod prefix_cache;
#[path = "../kernels/tests/common/random.rs"]
mod random;
#[path = "../fuzz/targets/safetensors_header.rs"]
mod safetensors_header;
#[path = "../fuzz/targets/template.rs"]
mod template;
#[path = "../fuzz/targets/tokenizer.rs"]
mod tokenizer;
#[path = "../fuzz/targets/tool_calls.rs"]
mod tool_calls;

/// The mutations of each target; `KIMI_FUZZ_MUTATIONS` sets another number.
const MUTATIONS: u64 = 2000;

impl Random {
    /// Changes, inserts, removes or repeats some bytes, or splices in a piece of another seed.
    fn mutate(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            let end = (at + 1 + self.below(16)).min(input.len());
            match self.below(6) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff, b'{'][self.below(6)],
                2 => drop(input.drain(at..end.max(at))),
                3 => input.insert(at, self.below(256) as u8),
                4 => {
                    let piece = input[at..end.max(at)].to_vec();
                    input.splice(at..at, piece);
                }
                _ => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    let piece = &other[from..(from + 1 + self.below(64)).min(other.len())];
                    input.splice(at..at, piece.iter().copied());
                }
            }
        }
    }
}

/// Runs a target on its seeds, then on mutations of them; a panic names the mutation.
fn check(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    seeds.iter().for_each(|seed| run(seed));
    let mutations = std::env::var("KIMI_FUZZ_MUTATIONS").map_or(MUTATIONS, |n| n.parse().unwrap());
    for number in 0..mutations {
        let mut random = Random::new(number);
        let mut input = seeds[random.below(seeds.len())].clone();
        random.mutate(&mut input, &seeds);
        let outcome = std::panic::catch_unwind(|| run(&input));
        assert!(outcome.is_ok(), "{target}: mutation {number}");
    }
}

#[test]
fn documents() {
    for format in ["docx", "pptx", "xlsx", "epub"] {
        check(&format!("document_{format}"), documents::archive);
    }
    check("document_pdf", documents::pdf);
    check("document_html", documents::html);
    check("document_text", documents::text);
}

#[test]
fn gguf_files() {
    check("gguf", gguf::run);
}

#[test]
fn importance_matrices() {
    check("imatrix", imatrix::run);
}

#[test]
fn prefix_cache_files() {
    check("prefix_cache", prefix_cache::run);
}

#[test]
fn safetensors_headers() {
    check("safetensors_header", safetensors_header::run);
}

#[test]
fn templates() {
    check("template", template::run);
}

#[test]
fn tokenizers() {
    check("tokenizer", tokenizer::run);
}

#[test]
fn tool_calls_in_replies() {
    check("tool_calls", tool_calls::run);
}
