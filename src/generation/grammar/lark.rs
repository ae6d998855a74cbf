//! Bounds on a grammar in llguidance's variant of Lark's syntax, found by splitting it into the same tokens as the
//! library does. It does not validate the grammar: where a token is malformed the library refuses the whole text.

use super::bounds::{
    ALTERNATIVES, BRACKETS, Excess, JSON_VALUES, LARK_BYTES, LARK_NESTING, OPERANDS, OPERANDS_OF_RULE,
    QUANTIFIERS, REPETITIONS, RULES, SUBSTRING_BYTES, Totals, within,
};
use super::{regex, schema};
use serde_json::{Deserializer, Value};
use std::collections::HashMap;

/// Checks a Lark grammar, with the schemas and regular expressions in it.
pub fn check(text: &str, totals: &mut Totals) -> Result<(), Excess> {
    let mut scan = Scan::new(text);
    let mut counts = LarkCounts::default();
    while scan.at < text.len() && scan.token(&mut counts, totals)? {}
    within("bytes in a grammar beside its schemas", LARK_BYTES, text.len() - scan.json_bytes)?;
    within("rules and terminals", RULES, counts.rules)?;
    within("alternatives", ALTERNATIVES, counts.alternatives)?;
    within("operands", OPERANDS, counts.operands)?;
    within("levels of brackets in a grammar", LARK_NESTING, counts.depth)?;
    within("brackets in a grammar", BRACKETS, counts.brackets)?;
    within("repetitions", REPETITIONS, counts.repetitions)?;
    let largest = scan.definitions.iter().map(|d| d.operands).max().unwrap_or(0);
    within("operands in a rule", OPERANDS_OF_RULE, largest)?;
    let (largest, all) = terminal_quantifiers(&scan.definitions);
    within("quantifiers in a terminal and those that it uses", QUANTIFIERS, largest)?;
    totals.quantifiers = totals.quantifiers.saturating_add(all);
    totals.check()
}

/// A rule or terminal, and what the text before the first one holds.
#[derive(Debug, Default)]
struct Definition<'t> {
    name: &'t str,
    operands: usize,
    /// In its own body, regular expressions included.
    quantifiers: usize,
    /// Names of rules and terminals in its body.
    uses: Vec<&'t str>,
}

impl Definition<'_> {
    fn is_terminal(&self) -> bool {
        self.name.trim_start_matches('_').starts_with(|c: char| c.is_ascii_uppercase())
    }
}

/// The largest number of quantifiers of a terminal, and the sum over all terminals, each with those of the terminals that
/// it uses: the library makes one regular expression of them.
fn terminal_quantifiers(definitions: &[Definition]) -> (usize, usize) {
    /// Recurses at most as deep as there are [`RULES`]; a terminal in a cycle, which the library refuses, counts nothing.
    fn expand<'t>(
        name: &'t str,
        all: &HashMap<&'t str, &Definition<'t>>,
        known: &mut HashMap<&'t str, usize>,
    ) -> usize {
        if let Some(n) = known.get(name) {
            return *n;
        }
        let Some(definition) = all.get(name) else { return 0 };
        known.insert(name, 0);
        let uses = definition.uses.iter().map(|name| expand(name, all, known));
        let n = uses.fold(definition.quantifiers, usize::saturating_add);
        known.insert(name, n);
        n
    }
    let all: HashMap<&str, &Definition> =
        definitions.iter().filter(|d| d.is_terminal()).map(|d| (d.name, d)).collect();
    let mut known = HashMap::new();
    let expanded = all.keys().map(|name| expand(name, &all, &mut known));
    expanded.fold((0, 0), |(largest, sum), n| (largest.max(n), sum.saturating_add(n)))
}

#[derive(Debug, Default, PartialEq)]
struct LarkCounts {
    rules: usize,
    alternatives: usize,
    operands: usize,
    depth: usize,
    brackets: usize,
    repetitions: usize,
    values: usize,
}

struct Scan<'t> {
    text: &'t str,
    at: usize,
    json_bytes: usize,
    depth: usize,
    /// Never empty; the last one is being scanned.
    definitions: Vec<Definition<'t>>,
}

impl<'t> Scan<'t> {
    fn new(text: &'t str) -> Self {
        Scan { text, at: 0, json_bytes: 0, depth: 0, definitions: vec![Definition::default()] }
    }

    fn definition(&mut self) -> &mut Definition<'t> {
        if self.definitions.is_empty() {
            self.definitions.push(Definition::default());
        }
        let last = self.definitions.len() - 1;
        &mut self.definitions[last]
    }

    fn operand(&mut self, counts: &mut LarkCounts) {
        counts.operands += 1;
        self.definition().operands += 1;
    }

    fn rest(&self) -> &[u8] {
        &self.text.as_bytes()[self.at..]
    }

    /// Steps over bytes as long as they fulfil a condition; returns how many.
    fn skip(&mut self, is_part: impl Fn(u8) -> bool) -> usize {
        let n = self.rest().iter().position(|b| !is_part(*b)).unwrap_or(self.rest().len());
        self.at += n;
        n
    }

    /// Steps over one token and counts it; false where the rest cannot be split.
    fn token(&mut self, counts: &mut LarkCounts, totals: &mut Totals) -> Result<bool, Excess> {
        let (byte, next) = (self.rest()[0], self.rest().get(1).copied());
        match byte {
            b'#' => drop(self.skip(|b| b != b'\n')),
            b'/' if next == Some(b'/') => drop(self.skip(|b| b != b'\n')),
            b'/' | b'"' => {
                self.operand(counts);
                return self.quoted(byte, totals);
            }
            b'%' => return self.keyword(counts, totals),
            b'<' => {
                self.operand(counts);
                self.skip(|b| b != b'>' && b != b'\n');
            }
            b'*' | b'+' | b'?' | b'~' => {
                self.definition().quantifiers += 1;
                self.at += 1;
            }
            b'(' | b'[' | b'{' => {
                // `[a]` is `a?`, `a{0,9}` a repetition.
                self.definition().quantifiers += usize::from(byte != b'(');
                self.depth += 1;
                counts.brackets += 1;
                counts.depth = counts.depth.max(self.depth);
                self.at += 1;
            }
            b')' | b']' | b'}' => {
                self.depth = self.depth.saturating_sub(1);
                self.at += 1;
            }
            b'|' | b'&' => {
                counts.alternatives += 1;
                self.at += 1;
            }
            b':' if next == Some(b':') => self.at += 2,
            b':' => {
                counts.rules += 1;
                self.at += 1;
                let name = self.definition().uses.pop().unwrap_or_default();
                self.definitions.push(Definition { name, ..Definition::default() });
            }
            b'0'..=b'9' => {
                let start = self.at;
                self.skip(|b| b.is_ascii_alphanumeric());
                let number = self.text[start..self.at].parse().unwrap_or(0);
                counts.repetitions = counts.repetitions.max(number);
            }
            _ if byte.is_ascii_alphabetic() || byte == b'_' || byte == b'@' => {
                self.operand(counts);
                let start = self.at;
                self.at += 1;
                self.skip(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
                let name = &self.text[start..self.at];
                self.definition().uses.push(name);
            }
            _ => self.at += self.text[self.at..].chars().next().map_or(1, char::len_utf8),
        }
        Ok(true)
    }

    /// A string or a regular expression.
    fn quoted(&mut self, quote: u8, totals: &mut Totals) -> Result<bool, Excess> {
        let start = self.at + 1;
        let Some(length) = quoted_length(&self.text.as_bytes()[start..], quote) else { return Ok(false) };
        self.at = start + length + 1;
        if quote == b'/' {
            let n = regex::check(&self.text[start..start + length], totals)?;
            self.definition().quantifiers += n;
        } else {
            totals.literal_bytes += length;
            self.definition().quantifiers += usize::from(length == 0);
        }
        Ok(true)
    }

    /// A statement, or JSON after `%json`, `%regex` and `%llguidance`.
    fn keyword(&mut self, counts: &mut LarkCounts, totals: &mut Totals) -> Result<bool, Excess> {
        let Some(name) =
            ["%json", "%regex", "%llguidance"].iter().find(|n| self.rest().starts_with(n.as_bytes()))
        else {
            self.at += 1;
            return Ok(true);
        };
        self.at += name.len();
        counts.values += json_values(self.rest());
        within("values in the JSON of a grammar", JSON_VALUES, counts.values)?;
        let mut values = Deserializer::from_slice(self.rest()).into_iter::<Value>();
        let Some(Ok(value)) = values.next() else { return Ok(false) };
        let length = values.byte_offset();
        self.at += length;
        self.operand(counts);
        match *name {
            "%json" => {
                self.json_bytes += length;
                schema::check(&value, totals)?;
            }
            "%regex" => within("bytes in a substring", SUBSTRING_BYTES, length)?,
            _ => {}
        }
        Ok(true)
    }
}

/// Bytes before the quote that closes a string, if one does.
fn quoted_length(text: &[u8], quote: u8) -> Option<usize> {
    let mut escaped = false;
    text.iter().position(|b| {
        let closes = *b == quote && !escaped;
        escaped = *b == b'\\' && !escaped;
        closes
    })
}

/// At least as many values and keys as the JSON has that begins here, without building any.
fn json_values(text: &[u8]) -> usize {
    let text = text.trim_ascii_start();
    let (mut values, mut open, mut at) = (1, 0usize, 0);
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => at += quoted_length(&text[at..], byte).map_or(text.len(), |length| length + 1),
            b'[' | b'{' => (values, open) = (values + 1, open + 1),
            b']' | b'}' => open = open.saturating_sub(1),
            b',' | b':' => values += 1,
            _ => {}
        }
        if open == 0 {
            break;
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    fn said(text: &str) -> String {
        check(text, &mut Totals::default()).map_or_else(|e| e.to_string(), |()| "fine".into())
    }

    #[test]
    fn tokens_are_split_as_the_library_does() {
        let text = "start: a | (B \"(((\" /[(\\/({]+/i)+ %json {\"a\": \"((( | : \"} // ((( : |\n# ((( |\na::_: <|x|> @other B{3,40}\nB: \"\\\"((\"";
        let mut scan = Scan::new(text);
        let mut counts = LarkCounts::default();
        while scan.at < text.len() && scan.token(&mut counts, &mut Totals::default()).unwrap() {}
        assert_eq!(
            counts,
            LarkCounts {
                rules: 3,
                alternatives: 1,
                operands: 14,
                depth: 1,
                brackets: 2,
                repetitions: 40,
                values: 3
            }
        );
    }

    #[test]
    fn hostile_grammars_are_refused() {
        let rules = (0..5000).fold("start: r0\n".to_owned(), |mut text, i| {
            let _ = writeln!(text, "r{i}: \"a\" r{}", i + 1);
            text
        });
        let nested =
            |open: &str, close: &str| format!("start: {}\"a\"{}\n", open.repeat(3000), close.repeat(3000));
        let condition =
            format!("start: r::0\nr::_: \"a\" %if {}true{}\n", "not(".repeat(3000), ")".repeat(3000));
        for (text, expected) in [
            (rules, "expected at most 4096 rules and terminals, found 5001"),
            (nested("(", ")"), "expected at most 64 levels of brackets in a grammar, found 3000"),
            (nested("[", "]"), "expected at most 64 levels of brackets in a grammar, found 3000"),
            (condition, "expected at most 64 levels of brackets in a grammar, found 3000"),
            (
                format!("start: \"a\"{}", " | \"a\"".repeat(20_000)),
                "expected at most 16384 alternatives, found 20000",
            ),
            (
                format!("start: {}", "(a) ".repeat(20_000)),
                "expected at most 16384 brackets in a grammar, found 20000",
            ),
            (format!("start: {}", "a ".repeat(70_000)), "expected at most 65536 operands, found 70001"),
            (
                format!("start: {}", "a ".repeat(9_000)),
                "expected at most 8192 operands in a rule, found 9000",
            ),
            ("start: a{2000000}\na: \"x\"".to_owned(), "expected at most 1000000 repetitions, found 2000000"),
            (
                "start: A\nA: /(a{9999}){9999}/".to_owned(),
                "expected at most 1000000 repetitions, multiplied where nested, found 99980001",
            ),
            (
                format!("start: %json {{\"enum\": {:?}}}", (0..40_000).collect::<Vec<_>>()),
                "expected at most 32768 values in enum and const, found 40000",
            ),
            (
                format!("start: %json {{\"title\": [{}0]}}", "{\"\":1},".repeat(100_000)),
                "expected at most 262144 values in the JSON of a grammar, found 300004",
            ),
            (
                format!("start: {}", format!("%json [{}0] ", "0,".repeat(100_000)).repeat(3)),
                "expected at most 262144 values in the JSON of a grammar, found 300006",
            ),
            (
                format!("start: A\nA: %regex {{\"substring_chars\": {:?}}}", "ab".repeat(40_000)),
                "expected at most 65536 bytes in a substring, found 80024",
            ),
            (
                format!("start: \"a\" // {}", "x".repeat(1 << 20)),
                "expected at most 524288 bytes in a grammar beside its schemas, found 1048590",
            ),
        ] {
            assert_eq!(said(&text), expected);
        }
        for malformed in ["start: \"a", "start: /a", "start: %json {", "start: <a", "é", "%", ""] {
            assert_eq!(said(malformed), "fine", "{malformed:?} is for the library to refuse");
        }
    }

    #[test]
    fn quantifiers_are_counted_through_terminals() {
        let doubled: String = (0..10).map(|i| format!("T{i}: T{0} T{0}\n", i + 1)).collect();
        for (text, expected) in [
            (
                format!("start: T0\nT10: /(a*b)?/\n{doubled}"),
                "expected at most 1000 quantifiers in a terminal and those that it uses, found 2048",
            ),
            (
                format!("start: T\nT: {}", "\"a\"? ".repeat(1001)),
                "expected at most 1000 quantifiers in a terminal and those that it uses, found 1001",
            ),
        ] {
            assert_eq!(said(&text), expected);
        }
        let rule = format!("start: {}", "\"a\"? ".repeat(1001));
        assert_eq!(said(&rule), "fine", "rules are no regular expressions");
    }
}
