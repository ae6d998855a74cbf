//! Runs `targets/template.rs` under libFuzzer.
#![no_main]

#[path = "../targets/template.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
