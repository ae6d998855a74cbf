//! Parses the input as a tokenizer file. An accepted vocabulary must encode, decode and survive GGUF metadata.

/// Tests one input, and panics if a property does not hold.
pub fn run(input: &[u8]) {
    models::tokenizer::exercise(input);
}
