//! Defines the text of Kimi models: the pre-tokenizer's pattern, the tokens that end a reply, and the chat template.

use crate::text_spec::TextSpec;

/// The text of vocabularies with the pre-tokenizer `kimi-k2`.
pub(crate) const TEXT: TextSpec = TextSpec {
    pre: "kimi-k2",
    pieces: &[
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
    ],
    whole_pieces: true,
    end_names: &["[EOS]", "<|im_end|>", "[EOT]", "[PAD]"],
    chat_template: include_str!("chat.jinja"),
};
