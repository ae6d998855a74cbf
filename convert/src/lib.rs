//! From a Hugging Face checkpoint to one quantised GGUF file. Never runs a model.
