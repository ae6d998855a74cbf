//! Bounds a template's source before the parser reads it.
//!
//! The parser, its code generator and the release of the tree recurse once for each operator, filter or attribute of an
//! expression and for each `elif` of a chain. This scanner recognizes delimiters and strings; it builds no tree and does
//! not recurse. Next: [`super::compiled`].

use super::sandbox::Failure;

/// Largest size of a template in bytes. Published ones have 1 to 20 KB.
pub const MAX_SOURCE_BYTES: usize = 256 << 10;
/// Largest number of names, numbers, strings and operators in one tag. Published templates have up to a few hundred.
pub const MAX_TAG_TOKENS: usize = 8192;
/// Largest number of open blocks, including each `elif` of an open chain.
pub const MAX_BLOCKS: usize = 512;

/// Checks the length of the source, the tokens of each tag, and the depth of blocks.
///
/// # Errors
/// An exceeded bound, with its line.
pub fn check(source: &str) -> Result<(), Failure> {
    if source.len() > MAX_SOURCE_BYTES {
        let expected = format!("at most {MAX_SOURCE_BYTES} bytes");
        return Err(Failure::unusable("template", &expected, source.len()));
    }
    let mut blocks = Blocks::default();
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let open = &rest[at..];
        let line = || format!("line {}", 1 + source[..source.len() - open.len()].matches('\n').count());
        rest = match open.as_bytes().get(1) {
            Some(b'#') => after(open, "#}"),
            Some(b'%') if is_tag(&open[2..], "raw") => after_raw(open),
            Some(&kind @ (b'%' | b'{')) => {
                let tag = Tag::read(&open[2..], if kind == b'%' { b'%' } else { b'}' });
                if tag.tokens > MAX_TAG_TOKENS {
                    let expected = format!("at most {MAX_TAG_TOKENS} names and operators in a tag");
                    return Err(Failure::unusable(&line(), &expected, "more"));
                }
                if kind == b'%' && blocks.enter(&tag) > MAX_BLOCKS {
                    let expected = format!("at most {MAX_BLOCKS} nested blocks and `elif`s");
                    return Err(Failure::unusable(&line(), &expected, "more"));
                }
                tag.rest
            }
            _ => &open[1..],
        };
    }
    Ok(())
}

fn after<'s>(text: &'s str, end: &str) -> &'s str {
    text.find(end).map_or("", |at| &text[at + end.len()..])
}

/// The text after the raw block that starts here.
fn after_raw(text: &str) -> &str {
    let mut rest = &text[2..];
    while let Some(at) = rest.find("{%") {
        rest = &rest[at + 2..];
        if is_tag(rest, "endraw") {
            return after(rest, "%}");
        }
    }
    ""
}

/// Returns whether the text after `{%` is a tag with this name only.
fn is_tag(text: &str, name: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text).trim_start();
    let end = text.strip_prefix(name).map(str::trim_start);
    end.is_some_and(|end| end.strip_prefix(['-', '+']).unwrap_or(end).starts_with("%}"))
}

/// One `{{ ... }}` or `{% ... %}`.
struct Tag<'s> {
    /// The first name in it.
    keyword: &'s str,
    tokens: usize,
    /// The tag has a `=` outside brackets.
    assigns: bool,
    /// The text after the closing delimiter, where scanning continues.
    rest: &'s str,
}

impl<'s> Tag<'s> {
    /// Scans up to the closing delimiter, which must be outside brackets.
    fn read(text: &'s str, end: u8) -> Tag<'s> {
        let mut tag = Tag { keyword: "", tokens: 0, assigns: false, rest: "" };
        let bytes = text.as_bytes();
        let (mut at, mut balance) = (0, 0isize);
        while let Some(&byte) = bytes.get(at) {
            if balance == 0 && byte == end && bytes.get(at + 1) == Some(&b'}') {
                tag.rest = &text[at + 2..];
                return tag;
            }
            let start = at;
            at += 1;
            match byte {
                b'\'' | b'"' => at += string(&bytes[at..], byte),
                b'(' | b'[' | b'{' => balance += 1,
                b')' | b']' | b'}' => balance -= 1,
                _ if byte.is_ascii_whitespace() => continue,
                _ if is_word(byte) => {
                    at += bytes[at..].iter().take_while(|&&byte| is_word(byte)).count();
                    if tag.keyword.is_empty() {
                        tag.keyword = &text[start..at];
                    }
                }
                b'=' => tag.assigns |= balance == 0,
                _ => {}
            }
            tag.tokens += 1;
        }
        tag
    }
}

/// Number of bytes up to and including the closing quote of a string.
fn string(bytes: &[u8], quote: u8) -> usize {
    let mut escaped = false;
    let end = bytes.iter().position(|&byte| {
        let closes = byte == quote && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    });
    end.map_or(bytes.len(), |end| end + 1)
}

/// Returns whether a byte is part of a word; bytes of multi-byte characters are never delimiters.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

/// Open blocks with the depth of each, which is 1 plus the number of its `elif`s.
#[derive(Default)]
struct Blocks {
    open: Vec<usize>,
    depth: usize,
}

impl Blocks {
    /// The depth after a tag.
    fn enter(&mut self, tag: &Tag) -> usize {
        match tag.keyword {
            "if" | "for" | "macro" | "call" | "filter" | "with" | "autoescape" | "block" => self.open.push(1),
            "set" if !tag.assigns => self.open.push(1),
            "elif" => {
                if let Some(last) = self.open.last_mut() {
                    *last += 1;
                }
            }
            end if end.starts_with("end") => {
                self.depth -= self.open.pop().unwrap_or(0);
                return self.depth;
            }
            _ => return self.depth,
        }
        self.depth += 1;
        self.depth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(source: &str, expected: &str) {
        assert_eq!(check(source).unwrap_err().to_string(), format!("chat_template: {expected}"));
    }

    #[test]
    fn bounds_are_exact() {
        let sums = |n: usize| format!("\n{{{{ {}1 }}}}", "1+".repeat(n));
        check(&sums(MAX_TAG_TOKENS / 2 - 1)).unwrap();
        let tokens = "line 2: expected at most 8192 names and operators in a tag, found more";
        check_refused(&sums(MAX_TAG_TOKENS / 2), tokens);
        check_refused(&format!("\n{{% if {}x %}}", "not ".repeat(8192)), tokens);
        check_refused(&format!("\n{{{{ {{}} {} }}}}", "-".repeat(9000)), tokens);
        check_refused(&format!("\n{{{{ '}}}}' {} }}}}", "-".repeat(9000)), tokens);
        let elifs = |n: usize| format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(n));
        check(&elifs(MAX_BLOCKS - 1).repeat(3)).unwrap();
        let blocks = "line 1: expected at most 512 nested blocks and `elif`s, found more";
        check_refused(&elifs(MAX_BLOCKS), blocks);
        check_refused(&"{%- set x %}".repeat(513), blocks);
        check(&"{% set x = 1 %}{% set y -%} a {%+ endset %}".repeat(2000)).unwrap();
        check(&" ".repeat(MAX_SOURCE_BYTES)).unwrap();
        let long = " ".repeat(MAX_SOURCE_BYTES + 1);
        check_refused(&long, "template: expected at most 262144 bytes, found 262145");
    }

    #[test]
    fn comments_strings_and_raw_blocks_do_not_count() {
        let many = "- ".repeat(9000);
        check(&format!("{{# {{{{ {many} #}} {many}")).unwrap();
        check(&format!("{{{{ '{many}' ~ \"\\\"{many}\" }}}}")).unwrap();
        check(&format!("{{% raw %}}{{{{ ' {many}{{% endraw %}}")).unwrap();
        let after = format!("{{% raw -%}}{{{{ ' {{%- endraw %}}\n{{{{ {many} }}}}");
        check_refused(&after, "line 2: expected at most 8192 names and operators in a tag, found more");
    }

    #[test]
    fn any_cut_of_a_template_is_scanned() {
        let source = "{% raw %}é{% endraw %}{{ 'a\\'' ~ {'b': [1]}['b'] }}{# x #}{%- if é -%}{% endif %}";
        for (at, _) in source.char_indices() {
            check(&source[..at]).unwrap();
            check(&source[at..]).unwrap();
        }
    }
}
