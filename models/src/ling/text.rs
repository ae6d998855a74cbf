//! Defines the text of Ling models: the pre-tokenizer's pattern, the tokens that end a reply, and the chat template.

use crate::text_spec::TextSpec;

/// The text of vocabularies with the pre-tokenizer `bailingmoe2`.
pub(crate) const TEXT: TextSpec = TextSpec {
    pre: "bailingmoe2",
    pieces: &[
        r"'(?i:[sdmt]|ll|ve|re)",
        r"[^\r\n\p{L}\p{N}]?+\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]++[\r\n]*",
        r"\s*[\r\n]",
    ],
    whole_pieces: false,
    end_names: &["<|endoftext|>", "<|role_end|>"],
    chat_template: include_str!("chat.jinja"),
};
