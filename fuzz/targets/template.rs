//! Parses the input as a chat template and, after a NUL, renders it as a message. A template within the bounds must parse on
//! a worker's stack; no message may become a special token of the built-in template.

use models::template::{CompiledTemplate, InProcess, Message, Template};
use models::tokenizer::Vocabulary;
use std::sync::{Arc, LazyLock};

/// The stack of `kimi template-worker`. Only that process bounds the rendering of a template; `tests/templates` tests it.
const STACK_BYTES: usize = 128 << 20;

const CONFIG: &str = r#"{"added_tokens_decoder": {
    "256": {"content": "<|im_end|>"}, "257": {"content": "<|im_user|>"}, "258": {"content": "<|im_middle|>"},
    "259": {"content": "<|im_assistant|>"}, "260": {"content": "[EOS]"}}}"#;

static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let ranks: String = (0..=255u8).map(|byte| format!("{} {byte}\n", base64(byte))).collect();
    Vocabulary::from_tiktoken("bytes", ranks.as_bytes(), CONFIG, None).expect("a vocabulary of the bytes")
});

static TEMPLATE: LazyLock<Template> = LazyLock::new(|| Template::new(None, &VOCABULARY, Arc::new(InProcess)));

fn base64(byte: u8) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    [byte >> 2, byte << 4 & 63].map(|six| char::from(LETTERS[usize::from(six)])).iter().collect::<String>()
        + "=="
}

/// The number of special tokens in the prompt for a user's message.
fn specials(typed: &str) -> usize {
    let prompt = TEMPLATE.render(&[Message::new("user", typed)], &[], true, &Default::default());
    let ids = prompt.expect("the built-in form accepts any text").encode(&VOCABULARY);
    ids.iter().filter(|id| VOCABULARY.is_special(**id)).count()
}

/// Tests one input, and panics if a property does not hold.
pub fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input).into_owned();
    let (source, typed) = text.split_once('\0').unwrap_or((&text, ""));
    assert_eq!(specials(typed), specials("x"));
    let source = source.to_owned();
    let parse = move || drop(CompiledTemplate::new(&source));
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(parse).expect("a thread starts");
    thread.join().expect("no panic");
}
