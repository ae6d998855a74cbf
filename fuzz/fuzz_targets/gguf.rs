//! Runs `targets/gguf.rs` under libFuzzer.
#![no_main]

#[path = "../targets/gguf.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
