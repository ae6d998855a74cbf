//! Parses GBNF: rules of strings, character classes, groups, alternatives and repetitions. It checks names and ranges;
//! the sizes of a grammar are bounded after the conversion.

use std::collections::HashMap;
use std::fmt::Write;

/// Open groups in a rule, as many as the library accepts.
const NESTING: usize = 28;
/// The largest number in a repetition.
const REPETITIONS: u32 = 100_000;

/// A rule with its name.
#[derive(Debug)]
pub struct GbnfRule {
    pub name: String,
    pub body: GbnfExpr,
}

/// An expression of a rule.
#[derive(Debug, PartialEq)]
pub enum GbnfExpr {
    Literal(String),
    /// A character class, in the syntax of regular expressions.
    Class(String),
    /// The index of a rule.
    Rule(usize),
    Sequence(Vec<GbnfExpr>),
    Alternatives(Vec<GbnfExpr>),
    /// At least and at most so many times.
    Repeat(Box<GbnfExpr>, u32, Option<u32>),
}

impl GbnfExpr {
    /// Calls a function with each reference to a rule.
    pub fn visit_rules(&self, visit: &mut dyn FnMut(usize)) {
        match self {
            GbnfExpr::Literal(_) | GbnfExpr::Class(_) => {}
            GbnfExpr::Rule(index) => visit(*index),
            GbnfExpr::Sequence(parts) | GbnfExpr::Alternatives(parts) => {
                parts.iter().for_each(|part| part.visit_rules(visit));
            }
            GbnfExpr::Repeat(part, ..) => part.visit_rules(visit),
        }
    }
}

/// Parses a grammar; every rule that is used is defined.
///
/// # Errors
/// What was expected and found, with the line.
pub fn parse(text: &str) -> Result<Vec<GbnfRule>, String> {
    let mut parser = GbnfParser { text, at: 0, depth: 0, names: HashMap::new(), rules: Vec::new() };
    parser.skip_space(true);
    while parser.peek().is_some() {
        parser.rule()?;
    }
    let defined = |NamedRule { name, first, body }| match body {
        Some(body) => Ok(GbnfRule { name, body }),
        None => Err(format!("line {}: expected a defined rule, found {name}", line(text, first))),
    };
    parser.rules.into_iter().map(defined).collect()
}

/// The line of an offset in a text.
fn line(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

/// A rule of which the definition may not have been read.
struct NamedRule {
    name: String,
    /// The offset of its first use or definition.
    first: usize,
    body: Option<GbnfExpr>,
}

struct GbnfParser<'t> {
    text: &'t str,
    at: usize,
    /// The number of groups that are open.
    depth: usize,
    names: HashMap<&'t str, usize>,
    rules: Vec<NamedRule>,
}

impl<'t> GbnfParser<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn line(&self) -> usize {
        line(self.text, self.at)
    }

    fn fail<T>(&self, expected: &str) -> Result<T, String> {
        let found = match self.peek() {
            None => "the end".to_owned(),
            Some('\n' | '\r') => "the end of the line".to_owned(),
            Some(c) => format!("{c:?}"),
        };
        Err(format!("line {}: expected {expected}, found {found}", self.line()))
    }

    /// Steps over a character if it is next.
    fn take(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        self.at += if found { c.len_utf8() } else { 0 };
        found
    }

    /// Skips spaces and comments, and line breaks where they end no rule.
    fn skip_space(&mut self, line_breaks: bool) {
        loop {
            match self.peek() {
                Some('#') => self.at += self.rest().find(['\r', '\n']).unwrap_or(self.rest().len()),
                Some(' ' | '\t') => self.at += 1,
                Some('\r' | '\n') if line_breaks => self.at += 1,
                _ => return,
            }
        }
    }

    fn rule(&mut self) -> Result<(), String> {
        let index = self.name("the name of a rule")?;
        let name = self.rules[index].name.clone();
        if self.rules[index].body.is_some() {
            return Err(format!("line {}: expected one rule {name}, found another", self.line()));
        }
        self.skip_space(false);
        if !self.rest().starts_with("::=") {
            return self.fail("::=");
        }
        self.at += 3;
        self.skip_space(true);
        let body = self.alternatives()?;
        if !matches!(self.peek(), None | Some('\r' | '\n')) {
            return self.fail("the end of the rule");
        }
        self.rules[index].body = Some(body);
        self.skip_space(true);
        Ok(())
    }

    /// Reads a name and returns the index of its rule, which may be defined later.
    fn name(&mut self, expected: &str) -> Result<usize, String> {
        let end = self.rest().find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
        let name = &self.rest()[..end.unwrap_or(self.rest().len())];
        if name.is_empty() {
            return self.fail(expected);
        }
        let next = self.rules.len();
        let index = *self.names.entry(name).or_insert(next);
        if index == next {
            self.rules.push(NamedRule { name: name.to_owned(), first: self.at, body: None });
        }
        self.at += name.len();
        Ok(index)
    }

    fn alternatives(&mut self) -> Result<GbnfExpr, String> {
        let mut all = vec![self.sequence()?];
        while self.take('|') {
            self.skip_space(true);
            all.push(self.sequence()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { GbnfExpr::Alternatives(all) })
    }

    fn sequence(&mut self) -> Result<GbnfExpr, String> {
        let mut parts = Vec::new();
        while let Some(part) = self.part()? {
            self.skip_space(self.depth > 0);
            let part = self.repetitions(part)?;
            parts.push(part);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { GbnfExpr::Sequence(parts) })
    }

    /// Reads a part of a sequence without its repetitions; `None` at the end of the sequence.
    fn part(&mut self) -> Result<Option<GbnfExpr>, String> {
        Ok(Some(match self.peek() {
            Some('"') => self.string()?,
            Some('[') => self.class()?,
            Some('(') => self.group()?,
            Some('.') => {
                self.at += 1;
                GbnfExpr::Class(r"[\x{0}-\x{10FFFF}]".to_owned())
            }
            Some('<' | '!') => return self.fail("no reference to a token, which is not supported"),
            Some(c) if c.is_ascii_alphanumeric() || c == '-' || c == '_' => {
                GbnfExpr::Rule(self.name("a name")?)
            }
            None | Some('|' | ')' | '\r' | '\n') => return Ok(None),
            Some(_) => return self.fail("a string, a character class, a group or a rule"),
        }))
    }

    fn group(&mut self) -> Result<GbnfExpr, String> {
        if self.depth == NESTING {
            return self.fail(&format!("at most {NESTING} open groups"));
        }
        self.at += 1;
        self.depth += 1;
        self.skip_space(true);
        let body = self.alternatives()?;
        if !self.take(')') {
            return self.fail("`)`");
        }
        self.depth -= 1;
        Ok(body)
    }

    /// Reads the `*`, `+`, `?` and `{m,n}` after a part. Of several in a row the first is repeated by the others.
    fn repetitions(&mut self, mut part: GbnfExpr) -> Result<GbnfExpr, String> {
        for repetitions in 0.. {
            let (least, most) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => self.counts()?,
                _ => break,
            };
            if repetitions == NESTING {
                return self.fail(&format!("at most {NESTING} repetitions of a part"));
            }
            self.at += 1;
            self.skip_space(self.depth > 0);
            part = GbnfExpr::Repeat(Box::new(part), least, most);
        }
        Ok(part)
    }

    /// Reads `{m}`, `{m,}` or `{m,n}` up to its closing brace.
    fn counts(&mut self) -> Result<(u32, Option<u32>), String> {
        self.at += 1;
        self.skip_space(true);
        let Some(least) = self.number()? else { return self.fail("a number") };
        self.skip_space(true);
        let mut most = Some(least);
        if self.take(',') {
            self.skip_space(true);
            most = self.number()?;
        }
        self.skip_space(true);
        if self.peek() != Some('}') {
            return self.fail("`}`");
        }
        match most {
            Some(most) if most < least => {
                Err(format!("line {}: expected at least {least} repetitions, found {most}", self.line()))
            }
            most => Ok((least, most)),
        }
    }

    fn number(&mut self) -> Result<Option<u32>, String> {
        let digits = self.rest().find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest().len());
        if digits == 0 {
            return Ok(None);
        }
        let number = self.rest()[..digits].parse().ok().filter(|n| *n <= REPETITIONS);
        if number.is_none() {
            return self.fail(&format!("at most {REPETITIONS} repetitions"));
        }
        self.at += digits;
        Ok(number)
    }

    fn string(&mut self) -> Result<GbnfExpr, String> {
        self.at += 1;
        let mut text = String::new();
        while !self.take('"') {
            text.push(self.character("a character or `\"`")?);
        }
        Ok(GbnfExpr::Literal(text))
    }

    fn class(&mut self) -> Result<GbnfExpr, String> {
        self.at += 1;
        let mut class = String::from(if self.take('^') { "[^" } else { "[" });
        let negated = class.len();
        while !self.take(']') {
            let first = self.character("a character or `]`")?;
            let is_range = self.rest().starts_with('-') && !self.rest().starts_with("-]");
            let last = if is_range {
                self.at += 1;
                self.character("the end of a range")?
            } else {
                first
            };
            if last < first {
                return Err(format!(
                    "line {}: expected a range upwards, found {first:?} to {last:?}",
                    self.line()
                ));
            }
            let _ = write!(class, r"\x{{{:X}}}-\x{{{:X}}}", u32::from(first), u32::from(last));
        }
        match class.len() - negated {
            0 => Err(format!("line {}: expected characters in a class, found none", self.line())),
            _ => Ok(GbnfExpr::Class(class + "]")),
        }
    }

    /// Reads a character of a string or class, with its escapes.
    fn character(&mut self, expected: &str) -> Result<char, String> {
        let Some(c) = self.peek() else { return self.fail(expected) };
        self.at += c.len_utf8();
        if c != '\\' {
            return Ok(c);
        }
        let Some(escape) = self.peek() else { return self.fail("an escaped character") };
        let digits = match escape {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            't' | 'r' | 'n' | '\\' | '"' | '[' | ']' | '-' | '^' => 0,
            _ => return self.fail("one of t, r, n, x, u, U, \\, \", [ and ] after a backslash"),
        };
        self.at += 1;
        if digits == 0 {
            return Ok(match escape {
                't' => '\t',
                'r' => '\r',
                'n' => '\n',
                other => other,
            });
        }
        let code = self.rest().get(..digits).filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit()));
        let c = code.and_then(|code| u32::from_str_radix(code, 16).ok()).and_then(char::from_u32);
        match c {
            Some(c) => {
                self.at += digits;
                Ok(c)
            }
            None => self.fail(&format!("{digits} hexadecimal digits of a character")),
        }
    }
}
