//! Colours of code, a line at a time, so that a block that is still being written is never read again.

use super::theme::{Ink, Span};
use std::sync::LazyLock;
use syntect::parsing::{ParseState, Scope, ScopeStack, SyntaxSet};

/// Sublime's grammars as bat collects them. Reading them takes a while, and only chats with code need them.
static SYNTAXES: LazyLock<SyntaxSet> = LazyLock::new(two_face::syntax::extra_newlines);

/// A scope's beginning and what it means; the first that fits counts.
static MEANINGS: LazyLock<Vec<(Scope, Ink)>> = LazyLock::new(|| {
    let table = [
        ("comment", Ink::Comment),
        ("string", Ink::Text),
        ("constant", Ink::Number),
        ("storage.type.function", Ink::Keyword),
        ("keyword.operator", Ink::Plain),
        ("keyword", Ink::Keyword),
        ("storage", Ink::Keyword),
        ("entity.name.function", Ink::Function),
        ("support.function", Ink::Function),
        ("variable.function", Ink::Function),
        ("entity.name", Ink::Type),
        ("support", Ink::Type),
        ("markup.inserted", Ink::Text),
        ("markup.deleted", Ink::Error),
    ];
    table.iter().filter_map(|(scope, ink)| Some((Scope::new(scope).ok()?, *ink))).collect()
});

/// Longer lines stay plain: grammars are made for what people write.
const LONGEST: usize = 2000;

/// A block of code between two of its lines.
#[derive(Clone)]
pub struct Code {
    state: Option<ParseState>,
    stack: ScopeStack,
}

impl Code {
    /// The beginning of a block in a language, by the name that stands after its fence.
    pub fn new(language: &str) -> Self {
        let word = language.split([' ', ',', '{']).next().unwrap_or_default();
        let syntax = (!word.is_empty()).then(|| SYNTAXES.find_syntax_by_token(word)).flatten();
        Code { state: syntax.map(ParseState::new), stack: ScopeStack::new() }
    }

    /// The next line, without its end.
    pub fn line(&mut self, line: &str) -> Vec<Span> {
        let plain = || vec![Span::new(line, Ink::Plain)];
        let Some(state) = self.state.as_mut().filter(|_| line.len() <= LONGEST) else { return plain() };
        let Ok(changes) = state.parse_line(&format!("{line}\n"), &SYNTAXES) else { return plain() };
        let (mut spans, mut at) = (Vec::<Span>::new(), 0);
        for (next, change) in changes.iter().map(|(n, c)| (*n, Some(c))).chain([(line.len(), None)]) {
            let next = next.min(line.len());
            if next > at {
                let ink = meaning(&self.stack);
                match spans.last_mut().filter(|last| last.look == ink.into()) {
                    Some(last) => last.text.push_str(&line[at..next]),
                    None => spans.push(Span::new(&line[at..next], ink)),
                }
                at = next;
            }
            if change.is_some_and(|change| self.stack.apply(change).is_err()) {
                return plain();
            }
        }
        spans
    }
}

fn meaning(stack: &ScopeStack) -> Ink {
    let of =
        |scope: &Scope| MEANINGS.iter().find(|(begin, _)| begin.is_prefix_of(*scope)).map(|(_, ink)| *ink);
    stack.scopes.iter().rev().find_map(of).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inks(language: &str, line: &str) -> Vec<(String, Ink)> {
        Code::new(language).line(line).into_iter().map(|s| (s.text, s.look.ink)).collect()
    }

    #[test]
    fn languages_people_ask_for_have_colours() {
        for (language, line) in [
            ("rust", "fn a() { // x"),
            ("py", "def f(): return 1"),
            ("toml", "[a] # x"),
            ("ts", "const a: number = 1;"),
            ("bash", "echo \"x\" # y"),
            ("json", "{\"a\": 1}"),
            ("cpp", "int main() { return 0; }"),
        ] {
            assert!(inks(language, line).iter().any(|(_, ink)| *ink != Ink::Plain), "{language}");
        }
    }

    #[test]
    fn text_stays_whole_and_state_goes_on() {
        let mut code = Code::new("rust");
        let all: String = code.line("let s = \"你好\"; /* a").iter().map(|s| s.text.as_str()).collect();
        assert_eq!(all, "let s = \"你好\"; /* a");
        assert_eq!(code.line("still")[0].look.ink, Ink::Comment);
        assert_eq!(
            inks("rust", "fn main"),
            [("fn".into(), Ink::Keyword), (" ".into(), Ink::Plain), ("main".into(), Ink::Function)]
        );
        assert_eq!(inks("no such language", "fn"), [("fn".into(), Ink::Plain)]);
        assert_eq!(inks("rust", &"x".repeat(5000)).len(), 1);
    }
}
