//! Opens GGUF files: maps them and checks every count and offset before use.
