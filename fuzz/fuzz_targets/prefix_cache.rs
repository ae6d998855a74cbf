//! Runs `targets/prefix_cache.rs` under libFuzzer.
#![no_main]

#[path = "../targets/prefix_cache.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
