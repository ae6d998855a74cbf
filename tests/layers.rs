//! Checks the imports of `src/`: they point down the layers, and HTTP and the terminal stay in their modules. Files of each
//! package form no circles.
//!
//! [`violations`] is a function of paths and texts, so that the tests below can plant a wrong import of each kind. Unit
//! tests (`#[cfg(test)]`) may import anything. Imports are `use` trees and inline paths; comments and string literals are
//! skipped.

#[path = "common/repository.rs"]
mod repository;

use repository::text_files;
use std::collections::{BTreeMap, BTreeSet};

/// Each module at the root of `src/` with those that it may import, from the top down.
const LAYERS: [(&str, &[&str]); 17] = [
    ("main", &["cli", "runtime", "io"]),
    ("cli", &["commands", "chat", "ask", "serve", "documents", "runtime", "io"]),
    (
        "commands",
        &[
            "args",
            "scheduler",
            "client",
            "generation",
            "runtime",
            "prefix_cache",
            "kernel_checks",
            "hub",
            "io",
        ],
    ),
    ("chat", &["args", "client", "document_qa", "documents", "generation", "runtime", "prefix_cache", "io"]),
    ("ask", &["args", "client", "document_qa", "documents", "generation", "runtime", "prefix_cache", "io"]),
    (
        "serve",
        &[
            "args",
            "scheduler",
            "client",
            "document_qa",
            "documents",
            "generation",
            "runtime",
            "prefix_cache",
            "io",
        ],
    ),
    ("args", &["runtime", "prefix_cache", "io"]),
    ("scheduler", &["generation", "runtime", "prefix_cache", "io"]),
    ("client", &["document_qa", "generation", "runtime", "prefix_cache", "io"]),
    ("document_qa", &["documents", "generation", "runtime", "prefix_cache", "io"]),
    ("generation", &["runtime", "prefix_cache", "io"]),
    ("runtime", &["prefix_cache", "kernel_checks", "io"]),
    ("prefix_cache", &["io"]),
    ("kernel_checks", &[]),
    ("hub", &["io"]),
    ("documents", &["io"]),
    ("io", &[]),
];

/// Crates of HTTP and of the terminal, with the modules that may use them: `io` has the progress bar and the line editor.
const RESTRICTED: [(&[&str], &[&str]); 3] = [
    (&["axum", "hyper", "hyper_util", "tower_http", "ureq"], &["serve", "client", "hub"]),
    (&["crossterm", "ratatui"], &["chat"]),
    (&["indicatif", "rustyline"], &["chat", "io"]),
];

/// An import: its line number and its path, as `["crate", "io", "text"]`.
#[derive(Debug, PartialEq)]
struct Import {
    line: usize,
    path: Vec<String>,
}

/// Blanks comments and string literals; line breaks stay.
fn without_comments_and_strings(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            '"' => string_end(rest),
            'r' if out.ends_with(|c: char| !c.is_alphanumeric() && c != '_') => raw_string_end(rest),
            '\'' => char_end(rest),
            _ => 0,
        };
        if length == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    out
}

fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of a raw string literal; 0 where none begins.
fn raw_string_end(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|b| *b == b'#').count();
    let start = 1 + hashes;
    if !text[start..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    text[start + 1..].find(&end).map_or(text.len(), |at| start + 1 + at + end.len())
}

/// Length of a character literal; 0 for a lifetime.
fn char_end(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some(_)) => text[3..].find('\'').map_or(text.len(), |at| at + 4),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

/// A word or a mark, and its line.
type Token<'a> = (usize, &'a str);

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    for (line, text) in text.lines().enumerate() {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let length = match first {
                _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                _ if rest.starts_with("::") => 2,
                _ => first.len_utf8(),
            };
            found.push((line + 1, &rest[..length]));
            rest = rest[length..].trim_start();
        }
    }
    found
}

/// Whether these tokens begin with those of `words`.
fn begins(tokens: &[Token<'_>], words: &[&str]) -> bool {
    tokens.len() >= words.len() && tokens.iter().zip(words).all(|((_, token), word)| token == word)
}

/// Where the item that begins here ends: after its first `;`, or the brace that closes its first `{`.
fn item_end(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0_usize;
    for (at, (_, token)) in tokens.iter().enumerate() {
        match *token {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth -= 1;
                if depth == 0 && *token == "}" {
                    return at + 1;
                }
            }
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

const TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];

/// The tokens outside items under `#[cfg(test)]`, and the modules with files of their own among those items.
fn without_tests<'a>(all: &[Token<'a>]) -> (Vec<Token<'a>>, Vec<&'a str>) {
    let (mut kept, mut test_modules) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < all.len() {
        if !begins(&all[at..], &TEST) {
            kept.push(all[at]);
            at += 1;
            continue;
        }
        let item = &all[at + TEST.len()..];
        let end = item_end(item);
        if let Some(name) =
            item[..end].iter().position(|(_, t)| *t == "mod").filter(|_| item[end - 1].1 == ";")
        {
            test_modules.push(item[name + 1].1);
        }
        at += TEST.len() + end;
    }
    (kept, test_modules)
}

/// All paths of a `use` tree, from after the word `use`; returns how many tokens it has.
fn use_tree(tokens: &[Token<'_>], prefix: &[String], found: &mut Vec<Import>) -> usize {
    let mut path = prefix.to_vec();
    let mut at = 0;
    while let Some((line, token)) = tokens.get(at) {
        match *token {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|(_, t)| *t != "}") {
                    // Steps over the comma too.
                    at += use_tree(&tokens[at..], &path, found) + 1;
                    if tokens.get(at - 1).is_some_and(|(_, t)| *t == "}") {
                        at -= 1;
                    }
                }
                return at + 1;
            }
            "as" => at += 2,
            "," | ";" | "}" | "<" => break,
            word => {
                if word != "self" || path.is_empty() {
                    path.push(word.to_owned());
                }
                at += 1;
                if tokens.get(at).is_none_or(|(_, t)| *t != "::") {
                    found.push(Import { line: *line, path: path.clone() });
                }
            }
        }
    }
    at
}

/// The paths of more than one segment that a file names outside tests: its `use` trees and its inline paths.
fn imports(tokens: &[Token<'_>]) -> Vec<Import> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (line, token) = tokens[at];
        let follows_path = at > 0 && matches!(tokens[at - 1].1, "::" | ".");
        at += 1;
        if token == "use" {
            at += use_tree(&tokens[at..], &[], &mut found);
        } else if !follows_path && tokens.get(at).is_some_and(|(_, t)| *t == "::") {
            let mut path = vec![token.to_owned()];
            while tokens.get(at).is_some_and(|(_, t)| *t == "::") {
                let Some((_, word)) = tokens.get(at + 1) else { break };
                path.push((*word).to_owned());
                at += 2;
            }
            found.push(Import { line, path });
        }
    }
    found
}

/// The path of the module in a file under `src/` of a package: `src/io/text.rs` is `["io", "text"]`.
fn module_of(path: &str) -> Vec<&str> {
    let path = path.split_once("src/").map_or(path, |(_, path)| path).trim_end_matches(".rs");
    let mut module: Vec<&str> = path.split('/').collect();
    if matches!(module.last(), Some(&"mod" | &"lib")) {
        module.pop();
    }
    module
}

/// A file with what was read from it.
struct File<'a> {
    path: &'a str,
    module: Vec<&'a str>,
    imports: Vec<Import>,
}

/// The files that are no tests.
fn read(sources: &[(String, String)]) -> Vec<File<'_>> {
    let mut test_modules = BTreeSet::new();
    let mut files = Vec::new();
    for (path, text) in sources {
        let text = without_comments_and_strings(text);
        let all = tokens(&text);
        let (kept, tests) = without_tests(&all);
        let module = module_of(path);
        let full = |name: &&str| module.iter().map(|m| (*m).to_owned()).chain([(*name).to_owned()]).collect();
        test_modules.extend(tests.iter().map(full).collect::<Vec<Vec<String>>>());
        let imports = imports(&kept);
        files.push(File { path, module, imports });
    }
    files.retain(|file| !test_modules.iter().any(|test| file.module.starts_with(&strs(test))));
    files
}

fn strs(path: &[String]) -> Vec<&str> {
    path.iter().map(String::as_str).collect()
}

/// The path from the crate's root of one that a file names; None for one into another crate.
fn absolute<'f>(file: &'f File<'_>, import: &'f Import) -> Option<Vec<&'f str>> {
    let path = strs(&import.path);
    let supers = path.iter().take_while(|segment| **segment == "super").count();
    match path[0] {
        "crate" => Some(path[1..].to_vec()),
        "kimi" if file.module == ["main"] => Some(path[1..].to_vec()),
        "self" => Some([&file.module, &path[1..]].concat()),
        "super" => Some([&file.module[..file.module.len().checked_sub(supers)?], &path[supers..]].concat()),
        _ => None,
    }
}

/// An import of one file by another.
struct Arrow {
    line: usize,
    from: usize,
    to: usize,
}

/// The imports between files: an absolute path leads to the file of its longest beginning that is a module.
fn arrows(files: &[File<'_>]) -> Vec<Arrow> {
    let of: BTreeMap<&[&str], usize> = files.iter().enumerate().map(|(i, f)| (&f.module[..], i)).collect();
    let mut found = Vec::new();
    for (from, file) in files.iter().enumerate() {
        for import in &file.imports {
            let Some(path) = absolute(file, import) else { continue };
            let module = (0..=path.len()).rev().find_map(|n| of.get(&path[..n]));
            if let Some(to) = module.copied().filter(|to| *to != from) {
                found.push(Arrow { line: import.line, from, to });
            }
        }
    }
    found
}

/// Whether one file's module contains the other's.
fn is_nested(a: &File<'_>, b: &File<'_>) -> bool {
    a.module.starts_with(&b.module) || b.module.starts_with(&a.module)
}

/// The imports that lie on a circle of files; those between a module and one inside it do not count.
fn circles(files: &[File<'_>], arrows: &[Arrow]) -> Vec<String> {
    let arrows: Vec<&Arrow> = arrows.iter().filter(|a| !is_nested(&files[a.from], &files[a.to])).collect();
    let mut next = vec![Vec::new(); files.len()];
    arrows.iter().for_each(|a| next[a.from].push(a.to));
    let reached = |start: usize| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(file) = open.pop() {
            open.extend(next[file].iter().copied().filter(|to| seen.insert(*to)));
        }
        seen
    };
    let from: Vec<BTreeSet<usize>> = (0..files.len()).map(reached).collect();
    let on_circle = arrows.iter().filter(|a| from[a.to].contains(&a.from));
    let lines: BTreeSet<String> = on_circle
        .map(|a| format!("{}:{}: circle with {}", files[a.from].path, a.line, files[a.to].path))
        .collect();
    lines.into_iter().collect()
}

/// What each wrong import of these files is, with its file and line.
fn violations(sources: &[(String, String)]) -> Vec<String> {
    let files = read(sources);
    let arrows = arrows(&files);
    let mut found = BTreeSet::new();
    let layer = |file: &File<'_>| file.module.first().map_or("lib", |first| *first).to_owned();
    for Arrow { line, from, to } in &arrows {
        let (from, to) = (&files[*from], &files[*to]);
        let (here, there) = (layer(from), layer(to));
        let allowed = LAYERS.iter().find(|(name, _)| *name == here).map_or(&[][..], |(_, below)| below);
        if here != there && !allowed.contains(&&*there) {
            found.insert(format!("{}:{line}: {here} imports {there} ({})", from.path, to.path));
        }
    }
    for file in &files {
        let here = layer(file);
        if here != "lib" && !LAYERS.iter().any(|(name, _)| *name == here) {
            found.insert(format!("{}:1: {here} has no layer", file.path));
        }
        for import in &file.imports {
            let restricted = RESTRICTED.iter().find(|(crates, _)| crates.contains(&&*import.path[0]));
            if restricted.is_some_and(|(_, users)| !users.contains(&&*here)) {
                found.insert(format!("{}:{}: {here} uses {}", file.path, import.line, import.path[0]));
            }
        }
    }
    found.into_iter().chain(circles(&files, &arrows)).collect()
}

/// The Rust files of a folder, as path and text.
fn sources(folder: &str, least: usize) -> Vec<(String, String)> {
    let files = text_files().into_iter().filter(|file| file.is_rust() && file.path.starts_with(folder));
    let found: Vec<_> = files.map(|file| (file.path, file.text)).collect();
    assert!(found.len() > least, "found only {} sources in {folder}", found.len());
    found
}

#[test]
fn imports_point_down() {
    let wrong = violations(&sources("src/", 100));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The circles in the library packages, which have no layers.
fn package_circles(sources: &[(String, String)]) -> Vec<String> {
    let files = read(sources);
    circles(&files, &arrows(&files))
}

#[test]
fn files_of_the_library_packages_form_no_circles() {
    let packages = [("kernels/src/", 50), ("models/src/", 25), ("convert/src/", 10)];
    let wrong: Vec<String> =
        packages.into_iter().flat_map(|(folder, least)| package_circles(&sources(folder, least))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Asserts what is reported for files that are given as `(path, text)`.
fn check(files: &[(&str, &str)], expected: &[&str]) {
    let files: Vec<_> = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    assert_eq!(violations(&files), expected, "{files:?}");
}

const TEXT: (&str, &str) = ("src/io/text.rs", "");
const SERVE: (&str, &str) = ("src/serve/mod.rs", "pub fn run() {}");

#[test]
fn imports_down_the_layers_are_allowed() {
    let engine =
        "use crate::io::text::read;\nuse crate::prefix_cache::Store;\nfn f() { crate::io::text::g(); }";
    let store = ("src/prefix_cache/mod.rs", "mod tree;\nuse tree::Tree;\nuse crate::io::text;");
    let tree = ("src/prefix_cache/tree.rs", "use super::Store;");
    check(&[TEXT, store, tree, ("src/runtime/engine.rs", engine)], &[]);
}

#[test]
fn an_import_of_a_higher_layer_is_reported() {
    let report = "src/io/units.rs:3: io imports serve (src/serve/mod.rs)";
    for text in [
        "//! Units.\n\nuse crate::serve::run;",
        "use std::fmt;\n\npub(crate) use crate::{io, serve as server};",
        "use crate::{\n    io::text,\n    serve::{self, run},\n};",
        "fn f() {\n    let r#\"a \" quote\"# = '\\'';\n    crate::serve::run(\"a // b\");\n}",
        "macro_rules! f {\n    () => {\n        $crate::serve::run()\n    };\n}",
        "use super::text;\n/* crate::chat */\nuse super::super::serve;",
        "#[cfg(test)]\nmod tests { fn f() -> char { '{' } }\nuse crate::serve;",
    ] {
        check(&[TEXT, SERVE, ("src/io/units.rs", text)], &[report]);
    }
}

#[test]
fn front_ends_do_not_import_each_other() {
    let ask = ("src/ask/mod.rs", "\nuse crate::serve::run;");
    check(&[SERVE, ask], &["src/ask/mod.rs:2: ask imports serve (src/serve/mod.rs)"]);
    let main = ("src/main.rs", "fn main() {\n    kimi::serve::run();\n}");
    check(&[SERVE, main], &["src/main.rs:2: main imports serve (src/serve/mod.rs)"]);
}

#[test]
fn a_module_without_a_layer_is_reported() {
    check(&[("src/helpers.rs", "")], &["src/helpers.rs:1: helpers has no layer"]);
}

#[test]
fn http_and_terminal_crates_stay_in_their_modules() {
    let http = ("src/chat/remote_model.rs", "use axum::Router;\nfn f() { ureq::get(\"\"); }");
    check(
        &[http],
        &["src/chat/remote_model.rs:1: chat uses axum", "src/chat/remote_model.rs:2: chat uses ureq"],
    );
    let terminal = ("src/serve/mod.rs", "\nfn f(x: &ratatui::Frame) {}");
    check(&[terminal], &["src/serve/mod.rs:2: serve uses ratatui"]);
    let editor = ("src/ask/mod.rs", "use rustyline::Editor;");
    check(&[editor], &["src/ask/mod.rs:1: ask uses rustyline"]);
    check(&[("src/io/progress.rs", "use indicatif::ProgressBar;"), ("src/client/mod.rs", "use ureq;")], &[]);
}

#[test]
fn circles_of_files_are_reported() {
    let (a, b) = (("src/chat/a.rs", "use super::b::B;"), ("src/chat/b.rs", "\nuse crate::chat::c::C;"));
    let c = ("src/chat/c.rs", "fn f() {}\nfn g() {\n    super::a::f();\n}");
    check(&[a, b], &[]);
    let all = [
        "a.rs:1: circle with src/chat/b.rs",
        "b.rs:2: circle with src/chat/c.rs",
        "c.rs:3: circle with src/chat/a.rs",
    ];
    let all = all.map(|line| format!("src/chat/{line}"));
    // A file beside the circle that imports it is on none.
    let beside = ("src/chat/d.rs", "use super::a::A;");
    check(&[a, b, c, beside], &all.each_ref().map(String::as_str));
}

#[test]
fn circles_of_a_library_package_are_reported() {
    let files = [
        ("kernels/src/lib.rs", "pub mod cpu;"),
        ("kernels/src/cpu/mod.rs", "mod cache;\nuse cache::Cache;"),
        ("kernels/src/cpu/cache.rs", "use super::Cpu;\nuse crate::quant::Format;"),
        ("kernels/src/quant/mod.rs", "fn f() {\n    crate::cpu::cache::g();\n}\n#[cfg(test)]\nmod tests;"),
        ("kernels/src/quant/tests.rs", "use crate::cpu::Cpu;"),
    ];
    let files = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
    let expected = [
        "kernels/src/cpu/cache.rs:2: circle with kernels/src/quant/mod.rs",
        "kernels/src/quant/mod.rs:2: circle with kernels/src/cpu/cache.rs",
    ];
    assert_eq!(package_circles(&files), expected);
}

#[test]
fn a_module_and_its_children_form_no_circle() {
    let app = ("src/chat/app/mod.rs", "mod keys;\nuse keys::HELP;\nuse self::keys::KEYS;");
    check(&[app, ("src/chat/app/keys.rs", "use super::App;\nuse crate::chat::app::State;")], &[]);
}

#[test]
fn unit_tests_comments_and_strings_are_not_imports() {
    let text = "//! [`crate::serve`]\n/// use crate::serve;\nconst A: &str = \"crate::serve::run\";\n\
        #[cfg(test)]\nmod tests {\n    use crate::serve::run;\n}\n#[cfg(test)]\nmod cases;";
    let cases = ("src/io/text/cases.rs", "use crate::serve::run;");
    check(&[SERVE, ("src/io/text.rs", text), cases], &[]);
}
