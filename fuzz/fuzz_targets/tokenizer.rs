//! Runs `targets/tokenizer.rs` under libFuzzer.
#![no_main]

#[path = "../targets/tokenizer.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
