//! A conversation that comes back as text, to the ids it was made of. A model may write a word in other tokens than
//! the tokenizer would cut it into; read anew, the reply would be another sequence, of which nobody has a state. So
//! what is kept is asked first: the longest sequence with a state that spells the beginning of the text.

use super::namespace::View;
use kernels::backend::Backend;
use models::template::Rendered;
use models::tokenizer::Vocabulary;

/// The ids of a rendered conversation: of its beginning those that were read or made before in the namespace, if they
/// spell it up to a special token; of the rest the tokenizer's.
pub fn encode<B: Backend>(view: &View<'_, B>, rendered: &Rendered, vocabulary: &Vocabulary) -> Vec<u32> {
    let read = |at: usize, tokens: &[u32]| rendered.follow(at, tokens, vocabulary);
    let (at, mut ids) = view.farthest(read, |at| rendered.is_border(at)).unwrap_or_default();
    ids.extend(rendered.encode_after(at, vocabulary));
    ids
}

/// How many of the ids spell the first `bytes` of their text; None where no id ends there.
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
