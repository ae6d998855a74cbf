//! Any bytes as a tokenizer file. What is accepted must encode, decode and survive GGUF metadata.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| models::tokenizer::exercise(input));
