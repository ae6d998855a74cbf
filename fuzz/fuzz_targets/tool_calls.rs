//! Runs `targets/tool_calls.rs` under libFuzzer.
#![no_main]

#[path = "../targets/tool_calls.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
