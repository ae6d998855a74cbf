//! Describes how the models of an architecture write text. It is data: [`crate::tokenizer`] and [`crate::template`] use it.

/// The form of text that a vocabulary and a chat template belong to.
#[derive(Debug)]
pub struct TextSpec {
    /// Name of the pre-tokenizer, as in `tokenizer.ggml.pre`.
    pub pre: &'static str,
    /// Regular expressions for pieces of text, tried in order before `\s+(?!\S)|\s+`.
    pub pieces: &'static [&'static str],
    /// Whether a piece that is a token stays whole, as in tiktoken, or is a token only where its merges yield it.
    pub whole_pieces: bool,
    /// Names of tokens that end a reply or a turn.
    pub end_names: &'static [&'static str],
    /// Chat template of files without one.
    pub chat_template: &'static str,
}
