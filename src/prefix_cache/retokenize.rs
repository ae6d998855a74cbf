//! Encodes a conversation that a client sends back as text with the ids of its cached prefix. A model may generate
//! other tokens for a word than the tokenizer produces; encoding the reply's text would give another sequence, which is
//! not cached. The encoder therefore first looks for the longest cached sequence whose text is a prefix of the
//! conversation.

use super::namespace::StoreView;
use kernels::backend::Backend;
use models::template::Rendered;
use models::tokenizer::Vocabulary;

/// Encodes a rendered conversation: the cached ids of the namespace for the longest prefix that they spell up to a
/// special token, and the tokenizer's ids for the rest.
pub fn encode<B: Backend>(view: &StoreView<'_, B>, rendered: &Rendered, vocabulary: &Vocabulary) -> Vec<u32> {
    let read = |at: usize, tokens: &[u32]| rendered.follow(at, tokens, vocabulary);
    let (at, mut ids) = view.farthest(read, |at| rendered.is_border(at)).unwrap_or_default();
    ids.extend(rendered.encode_after(at, vocabulary));
    ids
}

/// Returns the number of ids that spell the first `bytes` bytes of their text; `None` if no id ends there.
pub fn ids_before(ids: &[u32], bytes: usize, vocabulary: &Vocabulary) -> Option<usize> {
    let mut at = 0;
    let ends = ids.iter().map(|id| {
        at += vocabulary.token_bytes(*id).len();
        at
    });
    ends.take_while(|end| *end <= bytes)
        .enumerate()
        .last()
        .filter(|(_, end)| *end == bytes)
        .map(|(i, _)| i + 1)
}

/// Returns for each of the ascending byte offsets the number of ids that lie wholly before it.
pub fn ids_within(ids: &[u32], offsets: &[usize], vocabulary: &Vocabulary) -> Vec<usize> {
    let (mut at, mut count) = (0, 0);
    let within = |offset: &usize| {
        while let Some(id) = ids.get(count) {
            let end = at + vocabulary.token_bytes(*id).len();
            if end > *offset {
                break;
            }
            (at, count) = (end, count + 1);
        }
        count
    };
    offsets.iter().map(within).collect()
}
