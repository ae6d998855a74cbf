//! Runs `archive` of `targets/documents.rs` under libFuzzer.
#![no_main]

#[path = "../targets/documents.rs"]
#[allow(dead_code, reason = "each format has its target")]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::archive(input));
