//! Writes Kimi's tokenizer files, `tiktoken.model` and `tokenizer_config.json`, into a directory.
//!
//! usage: vocabulary DIR

#[path = "../tests/support/kimi_vocabulary.rs"]
mod kimi_vocabulary;

fn main() -> std::io::Result<()> {
    let dir = std::env::args().nth(1).expect("usage: vocabulary DIR");
    std::fs::write(format!("{dir}/tiktoken.model"), kimi_vocabulary::tiktoken_model())?;
    let config = include_str!("../tests/data/tokenizer_config.json");
    std::fs::write(format!("{dir}/tokenizer_config.json"), config)
}
