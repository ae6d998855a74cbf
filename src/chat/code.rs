//! Syntax highlighting, one line at a time, so that the finished lines of a streaming code block are parsed once.

use super::theme::{StyledSpan, TextRole};
use std::sync::LazyLock;
use syntect::parsing::{ParseState, Scope, ScopeStack, SyntaxSet};

/// The Sublime grammars that bat collects. They are loaded on first use, as loading takes a while.
static SYNTAXES: LazyLock<SyntaxSet> = LazyLock::new(two_face::syntax::extra_newlines);

/// Scope prefixes with their roles; the first match counts.
static SCOPE_ROLES: LazyLock<Vec<(Scope, TextRole)>> = LazyLock::new(|| {
    let table = [
        ("comment", TextRole::Comment),
        ("string", TextRole::Text),
        ("constant", TextRole::Number),
        ("storage.type.function", TextRole::Keyword),
        ("keyword.operator", TextRole::Plain),
        ("keyword", TextRole::Keyword),
        ("storage", TextRole::Keyword),
        ("entity.name.function", TextRole::Function),
        ("support.function", TextRole::Function),
        ("variable.function", TextRole::Function),
        ("entity.name", TextRole::Type),
        ("support", TextRole::Type),
        ("markup.inserted", TextRole::Text),
        ("markup.deleted", TextRole::Error),
    ];
    table.iter().filter_map(|(scope, role)| Some((Scope::new(scope).ok()?, *role))).collect()
});

/// Longest line in bytes that is highlighted: grammars are slow on longer, generated lines.
const MAX_LINE_BYTES: usize = 2000;

/// The highlighter's state between two lines of a code block.
#[derive(Clone)]
pub struct CodeHighlighter {
    state: Option<ParseState>,
    stack: ScopeStack,
}

impl CodeHighlighter {
    /// Starts a block in the language that the info string after its fence names.
    pub fn new(language: &str) -> Self {
        let word = language_name(language);
        let syntax = (!word.is_empty()).then(|| SYNTAXES.find_syntax_by_token(word)).flatten();
        CodeHighlighter { state: syntax.map(ParseState::new), stack: ScopeStack::new() }
    }

    /// Highlights the next line, given without its line end.
    pub fn line(&mut self, line: &str) -> Vec<StyledSpan> {
        let plain = || vec![StyledSpan::new(line, TextRole::Plain)];
        let Some(state) = self.state.as_mut().filter(|_| line.len() <= MAX_LINE_BYTES) else {
            return plain();
        };
        let Ok(changes) = state.parse_line(&format!("{line}\n"), &SYNTAXES) else { return plain() };
        let (mut spans, mut at) = (Vec::<StyledSpan>::new(), 0);
        for (next, change) in changes.iter().map(|(n, c)| (*n, Some(c))).chain([(line.len(), None)]) {
            let next = next.min(line.len());
            if next > at {
                let role = role_of(&self.stack);
                match spans.last_mut().filter(|last| last.style == role.into()) {
                    Some(last) => last.text.push_str(&line[at..next]),
                    None => spans.push(StyledSpan::new(&line[at..next], role)),
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

/// The language in the info string of a code block: its first word, which may be empty.
pub fn language_name(info: &str) -> &str {
    info.split([' ', ',', '{']).next().unwrap_or_default()
}

fn role_of(stack: &ScopeStack) -> TextRole {
    let of = |scope: &Scope| {
        SCOPE_ROLES.iter().find(|(begin, _)| begin.is_prefix_of(*scope)).map(|(_, role)| *role)
    };
    stack.scopes.iter().rev().find_map(of).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(language: &str, line: &str) -> Vec<(String, TextRole)> {
        CodeHighlighter::new(language).line(line).into_iter().map(|s| (s.text, s.style.role)).collect()
    }

    #[test]
    fn common_languages_are_highlighted() {
        for (language, line) in [
            ("rust", "fn a() { // x"),
            ("py", "def f(): return 1"),
            ("toml", "[a] # x"),
            ("ts", "const a: number = 1;"),
            ("bash", "echo \"x\" # y"),
            ("json", "{\"a\": 1}"),
            ("cpp", "int main() { return 0; }"),
        ] {
            assert!(roles(language, line).iter().any(|(_, role)| *role != TextRole::Plain), "{language}");
        }
    }

    #[test]
    fn text_is_unchanged_and_state_carries_over_lines() {
        let mut code = CodeHighlighter::new("rust");
        let all: String = code.line("let s = \"你好\"; /* a").iter().map(|s| s.text.as_str()).collect();
        assert_eq!(all, "let s = \"你好\"; /* a");
        assert_eq!(code.line("still")[0].style.role, TextRole::Comment);
        assert_eq!(
            roles("rust", "fn main"),
            [
                ("fn".into(), TextRole::Keyword),
                (" ".into(), TextRole::Plain),
                ("main".into(), TextRole::Function)
            ]
        );
        assert_eq!(roles("no such language", "fn"), [("fn".into(), TextRole::Plain)]);
        assert_eq!(roles("rust", &"x".repeat(5000)).len(), 1);
    }
}
