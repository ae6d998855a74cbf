//! Which tokens of a prompt are read in the expanded form of attention: those far inside a long message.
//!
//! A token's form depends on the tokens before it and on the marks, never on what comes after it or on how a prompt is
//! cut: what was restored gives the same bits as what was never interrupted. A message begins after a special token or
//! at a mark, so a short question about a long document costs what its own tokens cost. Replies are absorbed, since they
//! come token by token.

use crate::engine::Engine;
use kernels::backend::Backend;
use models::kimi_linear::mla::Form;
use models::template::{Message, Template};
use models::tokenizer::Vocabulary;
use serde_json::Map;
use std::ops::Range;

/// Tokens at the beginning of a message that are absorbed, however long it is: keys and values that are made for a step
/// pay from some 170 tokens on.
pub const LONG: usize = 1024;

/// How many times longer steps are in expanded form.
pub const LONG_STEP: usize = 2;

/// The message that a token is in.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    reply: bool,
}

impl Place {
    fn form(self, token: usize) -> Form {
        if self.reply || token - self.start < LONG { Form::Absorbed } else { Form::Expanded }
    }
}

impl<B: Backend> Engine<B> {
    /// The form of the first of these tokens of a prompt, and where those that share it end. `marks`: lengths of the
    /// prompt at which a document ends.
    pub fn form(&self, prompt: &[u32], tokens: Range<usize>, marks: &[usize]) -> (Form, usize) {
        let mut place = self.place(prompt, tokens.start, marks);
        let form = place.form(tokens.start);
        let mut end = tokens.start + 1;
        while end < tokens.end {
            if self.is_special(prompt[end - 1]) || marks.contains(&end) {
                place = self.place(prompt, end, marks);
            }
            if place.form(end) != form {
                break;
            }
            end += 1;
        }
        (form, end.min(tokens.end))
    }

    /// Tokens that are read together at most: more where keys and values are made for a step, which costs the same for
    /// a few as for many.
    pub fn step(&self, form: Form) -> usize {
        if form == Form::Expanded && B::EXPANDS { self.batch * LONG_STEP } else { self.batch }
    }

    fn place(&self, prompt: &[u32], token: usize, marks: &[usize]) -> Place {
        let special = prompt[..token].iter().rposition(|id| self.is_special(*id)).map_or(0, |i| i + 1);
        let mark = marks.iter().copied().filter(|mark| *mark <= token).max().unwrap_or(0);
        let opening = self.opening.iter().rposition(|id| self.is_special(*id)).map_or(0, |i| i + 1);
        let (before, after) = self.opening.split_at(opening);
        let reply =
            opening > 0 && prompt[..special].ends_with(before) && prompt[special..].starts_with(after);
        Place { start: special.max(mark), reply }
    }

    fn is_special(&self, id: u32) -> bool {
        self.tokenizer.as_ref().is_some_and(|t| t.is_special(id))
    }
}

/// The ids that a template writes before a reply; none if it does not say.
pub fn opening(template: Option<&Template>, tokenizer: Option<&Vocabulary>) -> Vec<u32> {
    let (Some(template), Some(tokenizer)) = (template, tokenizer) else { return Vec::new() };
    let render = |asks| template.render(&[Message::new("user", "x")], &[], asks, &Map::new()).ok();
    match (render(false), render(true)) {
        (Some(said), Some(asks)) if asks.text().starts_with(said.text()) => {
            asks.encode_after(said.text().len(), tokenizer)
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{CacheType, EngineArgs};
    use crate::snapshot::options::StoreOptions;
    use kernels::cpu::Cpu;

    fn demo() -> Engine<Cpu> {
        let args = EngineArgs {
            model: None,
            threads: Some(1),
            ctx: None,
            batch: 512,
            cache_type: CacheType::F16,
            mlock: false,
            device: Default::default(),
            store: StoreOptions::nothing(),
        };
        Engine::open_with(&args, Box::new(|_| ())).unwrap()
    }

    /// Every token's form, from pieces of at most `most` tokens.
    fn forms(engine: &Engine<Cpu>, prompt: &[u32], marks: &[usize], most: usize) -> Vec<Form> {
        let mut forms = Vec::new();
        while forms.len() < prompt.len() {
            let at = forms.len();
            let (form, end) = engine.form(prompt, at..prompt.len().min(at + most), marks);
            assert!(end > at && end <= at + most);
            forms.resize(end, form);
        }
        forms
    }

    fn expanded(forms: &[Form]) -> Vec<usize> {
        (0..forms.len()).filter(|i| forms[*i] == Form::Expanded).collect()
    }

    #[test]
    fn far_inside_a_long_message_and_nowhere_else() {
        let engine = demo();
        let tokenizer = engine.tokenizer().unwrap();
        let long = "word ".repeat(1500);
        let text = |role: &str, said: &str| format!("<|im_{role}|>{role}<|im_middle|>{said}<|im_end|>");
        let turns = [("user", long.as_str()), ("assistant", &long), ("user", "Who?"), ("assistant", "Me.")];
        let prompt: String = turns.iter().map(|(role, said)| text(role, said)).collect();
        let prompt = tokenizer.encode_with_specials(&prompt);
        let middle = tokenizer.specials().id("<|im_middle|>").unwrap();
        let start = 1 + prompt.iter().position(|id| *id == middle).unwrap();
        let end = 1 + prompt.iter().position(|id| tokenizer.is_end(*id)).unwrap();
        assert!(end - start > LONG + 300 && prompt.len() > 2 * end);
        let all = forms(&engine, &prompt, &[], prompt.len());
        assert_eq!(expanded(&all), (start + LONG..end).collect::<Vec<_>>());
        for most in [1, 7, 512] {
            assert_eq!(forms(&engine, &prompt, &[], most), all, "pieces of {most}");
        }
        let cut = forms(&engine, &prompt[..end - 100], &[], 512);
        assert_eq!(cut, all[..end - 100], "what comes after does not matter");
        let mark = start + LONG + 50;
        assert_eq!(
            expanded(&forms(&engine, &prompt, &[mark], 512)),
            (start + LONG..mark).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_prompt_without_messages_is_one() {
        let engine = demo();
        let forms = forms(&engine, &[70; LONG + 9], &[], 100);
        assert_eq!(expanded(&forms), (LONG..LONG + 9).collect::<Vec<_>>());
    }
}
