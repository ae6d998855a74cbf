//! The house rules that a machine can check. Function and parameter counts are clippy's (clippy.toml).

#[path = "common/repository.rs"]
mod repository;

use repository::{TextFile, text_files};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The Rust sources of the packages and the tests.
fn sources() -> Vec<TextFile> {
    let roots = ["src/", "kernels/", "models/", "convert/", "tests/", "fuzz/"];
    let is_source = |file: &TextFile| file.is_rust() && roots.iter().any(|root| file.path.starts_with(root));
    text_files().into_iter().filter(is_source).collect()
}

/// Asserts that no line of the sources breaks a rule; `broken` says what is wrong with a line, if anything.
fn no_line(broken: impl Fn(&TextFile, &str) -> Option<String>) {
    let mut all = Vec::new();
    for source in sources().iter().filter(|s| s.path != "tests/tidy.rs") {
        for (i, line) in source.text.lines().enumerate() {
            if let Some(what) = broken(source, line) {
                all.push(format!("{}:{}: {what}", source.path, i + 1));
            }
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

/// Names of types that several packages or backends define: each package's error, and what a backend makes of weights.
const SHARED_TYPE_NAMES: [&str; 5] = ["Error", "Tensor", "Weight", "Cache", "Routed"];

/// The name of the type that a line of code at the top level of a file defines.
fn defined_type(line: &str) -> Option<&str> {
    let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    let kind = words.find(|word| !["pub", "crate", "super"].contains(word))?;
    let name = words.next()?;
    let is_type = ["struct", "enum", "trait", "type", "union"].contains(&kind) && !line.starts_with(' ');
    (is_type && name.starts_with(char::is_uppercase)).then_some(name)
}

#[test]
fn a_type_name_is_defined_once() {
    assert_eq!(defined_type("pub(crate) struct Gemm<B> {"), Some("Gemm"));
    assert_eq!(defined_type("enum Device {"), Some("Device"));
    assert_eq!(defined_type("    type Output = ();"), None);
    assert_eq!(defined_type("use kernels::backend::Backend;"), None);
    let mut places: HashMap<String, Vec<String>> = HashMap::new();
    for source in sources() {
        for name in source.text.lines().filter_map(defined_type) {
            places.entry(name.to_owned()).or_default().push(source.path.clone());
        }
    }
    assert!(places.len() > 500, "found only {} types", places.len());
    places.retain(|name, places| places.len() > 1 && !SHARED_TYPE_NAMES.contains(&name.as_str()));
    assert!(places.is_empty(), "{places:#?}");
}

fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or("")
}

#[test]
fn unsafe_is_only_in_kernels_and_at_the_one_mapping() {
    no_line(|s, line| {
        let is_unsafe = code(line).split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
        // tests/peer calls llama.cpp's C interface, and is no part of the program.
        let allowed =
            ["kernels/", "models/src/gguf/read.rs", "tests/peer/"].iter().any(|p| s.path.starts_with(p));
        (is_unsafe && !allowed).then(|| "unsafe outside kernels and the mapping".into())
    });
    let read = sources().into_iter().find(|s| s.path == "models/src/gguf/read.rs").expect("the reader");
    assert_eq!(read.text.matches("unsafe {").count(), 1, "one mapping, one unsafe block");
}

#[test]
fn files_open_with_what_they_are_and_stay_small() {
    for s in sources() {
        assert!(s.text.starts_with("//!"), "{}: no //! at its head", s.path);
        let lines = s.text.lines().count();
        assert!(lines <= 600, "{}: {lines} lines, at most 600", s.path);
    }
}

#[test]
fn modules_of_the_page_open_with_what_they_are_and_stay_small() {
    let modules = text_files().into_iter().filter(|file| file.path.starts_with("src/serve/page/"));
    let modules: Vec<_> = modules.filter(|file| file.path.ends_with(".js")).collect();
    assert!(modules.len() > 10, "found only {} modules", modules.len());
    for module in modules {
        assert!(module.text.starts_with("// "), "{}: no comment at its head", module.path);
        let lines = module.text.lines().count();
        assert!(lines <= 300, "{}: {lines} lines, at most 300", module.path);
    }
}

#[test]
fn libraries_do_not_print_and_nothing_is_left_open() {
    no_line(|s, line| {
        let library = ["kernels/src", "models/src", "convert/src"].iter().any(|p| s.path.starts_with(p));
        let prints = ["println!", "eprintln!", "print!(", "eprint!("].iter().any(|p| code(line).contains(p));
        (library && prints).then(|| "a print in a library".into())
    });
    no_line(|_, line| line.contains("#[ignore").then(|| "an ignored test".into()));
    no_line(|_, line| {
        let open = ["TODO", "FIXME", "XXX"].iter().any(|w| line.contains(w)) && !line.contains("TODO(#");
        open.then(|| "left open without an issue number".into())
    });
}

#[test]
fn packages_depend_only_downwards() {
    let allowed: [(&str, &[&str]); 3] =
        [("kernels", &[]), ("models", &["kernels"]), ("convert", &["kernels", "models"])];
    for (package, below) in allowed {
        let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(package).join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).unwrap();
        for other in ["kernels", "models", "convert", "kimi"] {
            let depends = manifest
                .lines()
                .any(|l| l.starts_with(&format!("{other}.")) || l.starts_with(&format!("{other} =")));
            assert!(!depends || below.contains(&other), "{package} depends on {other}");
        }
    }
    no_line(|s, line| {
        let runs = code(line).contains("hybrid::Model") || code(line).contains("kernels::backend");
        (s.path.starts_with("convert/src") && runs).then(|| "convert never runs a model".into())
    });
    no_line(|s, line| {
        let knows = ["target_feature", "std::arch", "cfg(feature", "std::thread", "rayon"].iter();
        let knows = knows.clone().find(|w| code(line).contains(**w));
        (s.path.starts_with("models/src")).then_some(knows).flatten().map(|w| format!("models know no {w}"))
    });
}

/// Every promise of docs/security.md and every invariant of ARCHITECTURE.md names the test that holds it: `path.rs::test`, or
/// a test alone after its path.
#[test]
fn the_threat_model_and_the_invariants_name_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (document, least) in [("docs/security.md", 30), ("ARCHITECTURE.md", 15)] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        let (mut named, mut path) = (0, String::new());
        for word in text.split('`').skip(1).step_by(2) {
            let (file, test) = match word.split_once("::") {
                Some((file, test)) => (file, test),
                None if word.ends_with(".rs") || word.ends_with(".py") => (word, ""),
                None if word.matches('_').count() >= 3 && !word.contains(['-', '/']) => (path.as_str(), word),
                None => continue,
            };
            let source =
                fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{document}: {file}: {e}"));
            let exists = test.is_empty() || source.contains(&format!("fn {test}("));
            assert!(exists, "{document}: {file}: no test {test}");
            named += 1;
            path = file.to_owned();
        }
        assert!(named > least, "{document}: only {named} tests are named");
    }
}

/// Relative links and pictures of the documents lead to files, and the documents keep their lengths.
#[test]
fn documents_are_short_and_their_links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = [
        ("README.md", 130),
        ("ARCHITECTURE.md", 150),
        ("CONTRIBUTING.md", 150),
        ("CHANGELOG.md", 400),
        ("SECURITY.md", 50),
        ("THIRD-PARTY.md", 50),
        ("docs/ask.md", 100),
        ("docs/install.md", 150),
        ("docs/performance.md", 200),
        ("docs/terms.md", 100),
        ("docs/security.md", 200),
    ];
    for (document, lines) in documents {
        let path = root.join(document);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() <= lines, "{document}: more than {lines} lines");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let outside = link.contains("://");
            assert!(outside || path.with_file_name(link).exists(), "{document}: no file {link}");
        }
    }
}

/// The module of a file below a `src` directory, with its package first: `src/io/text.rs` is `["kimi", "io", "text"]`.
fn module(path: &str) -> Option<Vec<String>> {
    let (package, inside) = match path.strip_prefix("src/") {
        Some(inside) => ("kimi", inside),
        None => path.split_once("/src/")?,
    };
    let names = inside.trim_end_matches(".rs").split('/').filter(|n| !["mod", "lib", "main"].contains(n));
    Some(std::iter::once(package).chain(names).map(str::to_owned).collect())
}

/// The names in backticks after `Next:` in the head of a file, up to the end of the paragraph.
fn next_names(text: &str) -> Vec<&str> {
    let head: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let Some(start) = head.iter().position(|line| line.contains("Next:")) else { return Vec::new() };
    let paragraph = head[start..].iter().take_while(|line| !line.trim().is_empty());
    let parts = paragraph.map(|line| line.split_once("Next:").map_or(*line, |(_, after)| after));
    parts
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .map(|name| name.trim_start_matches("mod@"))
        .collect()
}

/// The file of a module that a head names: by a path from a package or `super`, or by one from the module itself, its
/// parent or the package.
fn named_file<'a>(from: &[String], name: &str, files: &'a [(String, Vec<String>)]) -> Option<&'a str> {
    let names: Vec<String> = name.split("::").map(str::to_owned).collect();
    let above = names.iter().take_while(|n| *n == "super").count();
    let bases = match &*names[0] {
        "crate" => vec![[&from[..1], &names[1..]].concat()],
        "super" => vec![[&from[..from.len().checked_sub(above)?], &names[above..]].concat()],
        "kimi" | "kernels" | "models" | "convert" => vec![names],
        _ => vec![from, &from[..from.len() - 1], &from[..1]]
            .into_iter()
            .map(|base| [base, &names].concat())
            .collect(),
    };
    let found = bases.iter().find_map(|base| files.iter().find(|(_, module)| module == base));
    found.map(|(path, _)| &**path)
}

/// The `Next:` pointers that name no file or a module around their own, or that lie on a circle.
fn wrong_pointers(sources: &[(&str, &str)]) -> Vec<String> {
    let modules = sources.iter().filter(|(path, _)| !path.ends_with("main.rs"));
    let files: Vec<_> = modules.filter_map(|(path, _)| Some(((*path).to_owned(), module(path)?))).collect();
    let (mut wrong, mut pointers) = (Vec::new(), Vec::new());
    for (path, text) in sources {
        let Some(from) = module(path) else { continue };
        for name in next_names(text) {
            match named_file(&from, name, &files) {
                None => wrong.push(format!("{path}: Next: no module {name}")),
                Some(to) if from.starts_with(&module(to).unwrap()) && !path.ends_with("main.rs") => {
                    wrong.push(format!("{path}: Next: {name} contains this file"));
                }
                Some(to) => pointers.push((*path, to)),
            }
        }
    }
    let reaches = |start: &str, end: &str| {
        let (mut seen, mut open) = (vec![start], vec![start]);
        while let Some(file) = open.pop() {
            for (_, to) in pointers.iter().filter(|(from, _)| *from == file) {
                if !seen.contains(to) {
                    seen.push(to);
                    open.push(to);
                }
            }
        }
        seen.contains(&end)
    };
    let on_circle = pointers.iter().filter(|(from, to)| reaches(to, from));
    wrong.extend(on_circle.map(|(from, to)| format!("{from}: Next: {to} leads back")));
    wrong
}

#[test]
fn next_pointers_lead_down_and_never_back() {
    let all = sources();
    let texts: Vec<_> = all.iter().map(|s| (&*s.path, &*s.text)).collect();
    assert!(texts.iter().map(|(_, text)| next_names(text).len()).sum::<usize>() > 100, "few pointers found");
    let wrong = wrong_pointers(&texts);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn planted_pointers_are_reported() {
    let check = |text: &str, expected: &[&str]| {
        let files = [
            ("src/main.rs", "//! Main. Next: [`kimi::io`].\n"),
            ("src/io/mod.rs", "//! Io.\n//! Next: [`text`] (words), then\n//! `units`.\n//!\n//! `x`"),
            ("src/io/text.rs", text),
            ("src/io/units.rs", "//! Units. Next: `kernels::cpu`.\n"),
            ("kernels/src/cpu/mod.rs", "//! Cpu."),
        ];
        assert_eq!(wrong_pointers(&files), expected, "{text}");
    };
    check("//! Text. Next: [`crate::io::units`], [`super::units`].", &[]);
    check("//! Text. Next: `unit`.", &["src/io/text.rs: Next: no module unit"]);
    check("//! Text. Next: [`super`].", &["src/io/text.rs: Next: super contains this file"]);
    let cpu = ("kernels/src/cpu/mod.rs", "//! Cpu. Next: `matmul`.");
    let matmul = ("kernels/src/cpu/matmul.rs", "//! Next: `super::pool`.");
    let pool = ("kernels/src/cpu/pool.rs", "//! Next: [`crate::cpu::matmul`].");
    let circle = ["matmul.rs: Next: kernels/src/cpu/pool.rs", "pool.rs: Next: kernels/src/cpu/matmul.rs"];
    let circle = circle.map(|pointer| format!("kernels/src/cpu/{pointer} leads back"));
    assert_eq!(wrong_pointers(&[cpu, matmul, pool]), circle);
}

/// All files of the repository that are not built or hidden, by their paths from the root.
fn repository_files() -> Vec<String> {
    fn add(root: &Path, dir: &Path, found: &mut Vec<String>) {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !["target", "shared", "node_modules"].contains(&&*name) {
                    add(root, &path, found);
                }
            } else {
                found.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    add(root, root, &mut found);
    found
}

/// The identifiers of a text.
fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with(|c: char| c.is_alphabetic() || c == '_'))
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn without_braces(path: &str) -> Vec<String> {
    match path.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?))) {
        Some((head, (names, tail))) => names.split(',').map(|name| format!("{head}{name}{tail}")).collect(),
        None => vec![path.to_owned()],
    }
}

/// The paths and code names that a document names in backticks or in its code blocks, and that are neither a file or
/// directory of the repository nor an identifier of its code.
fn missing_names(text: &str, files: &[String], known: &HashSet<&str>) -> Vec<String> {
    let mut missing = Vec::new();
    let (mut block, mut spans) = (false, Vec::new());
    for line in text.lines() {
        if line.starts_with("```") {
            block = !block;
        } else if block {
            spans.push((true, line.split('#').next().unwrap()));
        } else {
            spans.extend(line.split('`').skip(1).step_by(2).map(|span| (false, span)));
        }
    }
    for (block, span) in spans {
        for word in span
            .split([' ', '='])
            .filter(|word| !word.contains(['<', '*', '~', '@', '$']) && !word.contains("/target/"))
        {
            let path = word.split("::").next().unwrap().trim_matches(['(', ')', ',', ':', '"']);
            let extensions =
                [".rs", ".py", ".cu", ".cuh", ".h", ".cpp", ".md", ".svg", ".json", ".toml", ".gz"];
            let is_path =
                extensions.iter().any(|e| path.ends_with(e)) || path.trim_end_matches('/').contains('/');
            let inside = |path: &str| files.iter().any(|f| f.split('/').next() == path.split('/').next());
            if is_path && (!block || path.contains('/')) && (inside(path) || path.ends_with(".rs")) {
                let exists = |path: &String| {
                    let path = path.trim_end_matches('/');
                    let below = format!("/{path}");
                    files.iter().any(|f| {
                        f == path || f.ends_with(&below) || format!("/{f}").contains(&format!("{below}/"))
                    })
                };
                missing.extend(without_braces(path).into_iter().filter(|path| !exists(path)));
            }
            if block || is_path && !word.contains("::") || word.starts_with(['-', '/']) {
                continue;
            }
            let names = identifiers(word.split_once(".rs::").map_or(word, |(_, test)| test)).filter(|name| {
                let is_type = name.starts_with(char::is_uppercase) && name.contains(char::is_lowercase);
                let is_call = word.contains(&format!("{name}!")) || word.contains(&format!("{name}("));
                is_type || is_call || name.contains('_')
            });
            missing.extend(names.filter(|name| !known.contains(name)).map(str::to_owned));
        }
    }
    missing
}

#[test]
fn names_in_the_documents_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = repository_files();
    let is_code = |f: &&String| [".rs", ".cu", ".cuh", ".h", ".py"].iter().any(|e| f.ends_with(e));
    let texts: Vec<String> =
        files.iter().filter(is_code).map(|f| fs::read_to_string(root.join(f)).unwrap()).collect();
    let known: HashSet<&str> =
        texts.iter().flat_map(|text| text.lines().map(code)).flat_map(identifiers).collect();
    let mut wrong = Vec::new();
    let documents = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/ask.md",
        "docs/performance.md",
        "docs/security.md",
        "docs/terms.md",
        "kernels/cuda/README.md",
        "models/demo/README.md",
        "tests/hostile/README.md",
    ];
    for document in documents {
        let mut text = fs::read_to_string(root.join(document)).unwrap();
        if document == "docs/terms.md" {
            // The first column has the names of other projects.
            text = text.lines().filter_map(|line| line.rsplit('|').nth(1)).collect::<Vec<_>>().join("\n");
        }
        wrong.extend(
            missing_names(&text, &files, &known).into_iter().map(|name| format!("{document}: {name}")),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn planted_names_are_reported() {
    let files = ["src/chat/app/mod.rs", "src/chat/app/keys.rs", "tests/tui.py"].map(str::to_owned);
    let known = HashSet::from(["App", "Action", "check", "row_bytes"]);
    let check =
        |text: &str, expected: &[&str]| assert_eq!(missing_names(text, &files, &known), expected, "{text}");
    check(
        "`App` in `src/chat/app/{mod,keys}.rs`, `keys.rs`, `tests/tui.py`, `src/chat/`, `src/<format>.rs`.",
        &[],
    );
    check("`check!` and `App::row_bytes`; `--flag FILE`, `/v1/models`, `all`.", &[]);
    check("It returns a `Gone`, as `App::gone()` and `no_rows` do.", &["Gone", "gone", "no_rows"]);
    check("`src/chat/{mod,app/mod}.rs`, `gone.rs`", &["src/chat/mod.rs", "gone.rs"]);
    check("```sh\npython tests/tui.py --x\npython tests/gone.py # b_c\n```\n`App`", &["tests/gone.py"]);
}
