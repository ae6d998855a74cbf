//! Runs `targets/safetensors_header.rs` under libFuzzer.
#![no_main]

#[path = "../targets/safetensors_header.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
