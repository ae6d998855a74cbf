//! Runs `targets/imatrix.rs` under libFuzzer.
#![no_main]

#[path = "../targets/imatrix.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
