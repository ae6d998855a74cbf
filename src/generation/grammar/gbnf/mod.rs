//! GBNF, the grammar syntax of llama.cpp, converted to llguidance's variant of Lark's.
//!
//! [`parse`] reads the text. Rules that use no recursive rule become terminals, which the library turns into regular
//! expressions; so does each longest run of such parts in the other rules. Of a recursive grammar, a terminal matches as
//! much as it can: replies always match the grammar, but a text may be excluded that only a shorter match would allow.

mod parse;

use parse::{GbnfExpr, GbnfRule};
use std::fmt::Write;

/// Converts a grammar.
///
/// # Errors
/// A mistake in the grammar, with its line.
pub fn to_lark(text: &str) -> Result<String, String> {
    let rules = parse::parse(text)?;
    let regular = regular_rules(&rules);
    let root = rules.iter().position(|rule| rule.name == "root").ok_or("expected a rule root, found none")?;
    let mut lark = LarkWriter { rules: &rules, regular: &regular, pieces: Vec::new(), text: String::new() };
    let start = lark.name(root);
    lark.text += &format!("start: {start}\n");
    for (index, rule) in rules.iter().enumerate() {
        let body = if regular[index] { lark.terminal(&rule.body) } else { lark.parsed(&rule.body) };
        let name = lark.name(index);
        lark.text += &format!("{name}: {body}\n");
    }
    for (index, piece) in lark.pieces.iter().enumerate() {
        lark.text += &format!("{PIECE}{index}: {piece}\n");
    }
    Ok(lark.text)
}

/// The name of a terminal for a run of regular parts.
const PIECE: &str = "PART_";

/// For each rule whether it uses no recursive rule and is none.
fn regular_rules(rules: &[GbnfRule]) -> Vec<bool> {
    let uses: Vec<Vec<usize>> = rules
        .iter()
        .map(|rule| {
            let mut used = Vec::new();
            rule.body.visit_rules(&mut |index| used.push(index));
            used.sort_unstable();
            used.dedup();
            used
        })
        .collect();
    let mut users = vec![Vec::new(); rules.len()];
    let mut open: Vec<usize> = uses.iter().map(Vec::len).collect();
    for (index, used) in uses.iter().enumerate() {
        used.iter().for_each(|other| users[*other].push(index));
    }
    // From the rules that use none up; recursive rules are never reached.
    let mut regular = vec![false; rules.len()];
    let mut ready: Vec<usize> = (0..rules.len()).filter(|index| open[*index] == 0).collect();
    while let Some(index) = ready.pop() {
        regular[index] = true;
        for user in &users[index] {
            open[*user] -= 1;
            if open[*user] == 0 {
                ready.push(*user);
            }
        }
    }
    regular
}

/// Writes rules in Lark's syntax.
struct LarkWriter<'r> {
    rules: &'r [GbnfRule],
    regular: &'r [bool],
    /// The bodies of the terminals for runs of regular parts.
    pieces: Vec<String>,
    text: String,
}

impl LarkWriter<'_> {
    /// The name of a rule, in upper case for terminals. The index keeps names apart that differ in case only.
    fn name(&self, index: usize) -> String {
        let name = self.rules[index].name.replace('-', "_");
        match self.regular[index] {
            true => format!("RULE_{}_{index}", name.to_ascii_uppercase()),
            false => format!("rule_{}_{index}", name.to_ascii_lowercase()),
        }
    }

    fn is_regular(&self, expr: &GbnfExpr) -> bool {
        let mut all = true;
        expr.visit_rules(&mut |index| all &= self.regular[index]);
        all
    }

    /// Writes a regular expression of terminals.
    fn terminal(&self, expr: &GbnfExpr) -> String {
        match expr {
            GbnfExpr::Literal(text) => literal(text),
            GbnfExpr::Class(class) => format!("/{class}/"),
            GbnfExpr::Rule(index) => self.name(*index),
            GbnfExpr::Sequence(parts) if parts.is_empty() => "\"\"".to_owned(),
            GbnfExpr::Sequence(parts) => {
                parts.iter().map(|part| self.terminal(part)).collect::<Vec<_>>().join(" ")
            }
            GbnfExpr::Alternatives(all) => grouped(all.iter().map(|one| self.terminal(one)).collect()),
            GbnfExpr::Repeat(part, least, most) => {
                repeated(&operand(part, self.terminal(part)), *least, *most)
            }
        }
    }

    /// Writes an expression that uses recursive rules.
    fn parsed(&mut self, expr: &GbnfExpr) -> String {
        match expr {
            GbnfExpr::Sequence(parts) if parts.is_empty() => "\"\"".to_owned(),
            expr if self.is_regular(expr) => self.piece(std::slice::from_ref(expr)),
            GbnfExpr::Sequence(parts) => {
                let runs = parts.chunk_by(|a, b| self.is_regular(a) && self.is_regular(b));
                let runs: Vec<&[GbnfExpr]> = runs.collect();
                let written = runs.into_iter().map(|run| match run {
                    [part] if !self.is_regular(part) => self.parsed(part),
                    run => self.piece(run),
                });
                written.collect::<Vec<_>>().join(" ")
            }
            GbnfExpr::Alternatives(all) => grouped(all.iter().map(|one| self.parsed(one)).collect()),
            GbnfExpr::Repeat(part, least, most) => {
                let text = self.parsed(part);
                repeated(&operand(part, text), *least, *most)
            }
            GbnfExpr::Rule(index) => self.name(*index),
            GbnfExpr::Literal(_) | GbnfExpr::Class(_) => unreachable!("literals and classes are regular"),
        }
    }

    /// Adds a terminal for a run of regular parts, unless it is one already; returns its name.
    fn piece(&mut self, run: &[GbnfExpr]) -> String {
        if let [GbnfExpr::Rule(index)] = run {
            return self.name(*index);
        }
        let body = run.iter().map(|part| self.terminal(part)).collect::<Vec<_>>().join(" ");
        self.pieces.push(body);
        format!("{PIECE}{}", self.pieces.len() - 1)
    }
}

fn grouped(alternatives: Vec<String>) -> String {
    format!("({})", alternatives.join(" | "))
}

/// The text of a repeated part, in parentheses where it is more than one operand: the library limits their depth.
fn operand(part: &GbnfExpr, text: String) -> String {
    match part {
        GbnfExpr::Sequence(_) | GbnfExpr::Repeat(..) => grouped(vec![text]),
        _ => text,
    }
}

fn repeated(group: &str, least: u32, most: Option<u32>) -> String {
    match (least, most) {
        (0, None) => format!("{group}*"),
        (1, None) => format!("{group}+"),
        (0, Some(1)) => format!("{group}?"),
        (least, None) => format!("{group}{{{least},}}"),
        (least, Some(most)) => format!("{group}{{{least},{most}}}"),
    }
}

/// A string in Lark's syntax, which is that of JSON with control characters escaped.
fn literal(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out + "\""
}

#[cfg(test)]
mod tests;
