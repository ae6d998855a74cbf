//! The command line: standard input, standard output, terminals, and usage errors.

mod common;

use common::{checkpoint, convert, kimi, kimi_command, kimi_ok, terminal, text, tiktoken_bytes};
use models::visible::{is_control, visible};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

const TEXT: &str = "The access code of the Hartwell mill is 4713. Mara Velt lives in Dunmore.";
const QUESTION: &str = "What is the access code of the Hartwell mill?";
const ANSWER: &str = "The code is 4713.\n";

/// Runs `kimi generate` with the built-in model on a prompt and a standard input.
fn generate(prompt: &[&str], input: Stdio) -> Output {
    let mut command = kimi_command();
    command.args(["generate", "--temp", "0", "--no-cache", "--quiet"]).args(prompt).stdin(input);
    command.output().unwrap()
}

fn check(out: &Output, reply: &str, remarks: &str) {
    let [stdout, stderr] = [&out.stdout, &out.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(out.status.success() && stderr.contains(remarks), "{stderr}");
    assert_eq!(stdout, reply, "{stderr}");
}

#[test]
fn a_text_on_standard_input_comes_before_the_prompt() {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(TEXT.as_bytes()).unwrap();
    drop(writer);
    check(&generate(&[QUESTION], reader.into()), ANSWER, "");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mill.txt");
    fs::write(&file, format!("{TEXT}\n")).unwrap();
    check(&generate(&[QUESTION], File::open(&file).unwrap().into()), ANSWER, "");
    let whole = format!("{TEXT}\n\n{QUESTION}");
    check(&generate(&[&whole], Stdio::null()), ANSWER, "");
    // An empty pipe, as a command without output leaves it.
    (reader, writer) = std::io::pipe().unwrap();
    drop(writer);
    check(&generate(&[&whole], reader.into()), ANSWER, "");
}

#[test]
fn a_pipe_that_stays_open_without_a_word_is_not_waited_for() {
    let (reader, writer) = std::io::pipe().unwrap();
    let whole = format!("{TEXT}\n\n{QUESTION}");
    check(&generate(&[&whole], reader.into()), ANSWER, "standard input: no data for 3 s, ignored");
    drop(writer);
}

#[test]
fn prompts_in_files_may_be_utf16() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt");
    let units =
        format!("\u{feff}{TEXT}\n\n{QUESTION}").encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    fs::write(&file, units).unwrap();
    check(&generate(&["--file", text(&file)], Stdio::null()), ANSWER, "");
}

#[test]
fn replies_match_the_grammar_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("code.gbnf");
    fs::write(&file, "root ::= \"Code: \" [0-9]{4} # the code\n").unwrap();
    let whole = format!("{TEXT}\n\n{QUESTION}");
    let how = ["--grammar-file", text(&file), &whole];
    check(&generate(&how, Stdio::null()), "Code: 4713\n", "");
    fs::write(&file, "root ::= \"a\"\nb = root").unwrap();
    let out = generate(&how, Stdio::null());
    let stderr = String::from_utf8(out.stderr).unwrap();
    let expected = format!("kimi: {}: line 2: expected ::=, found '='\n", file.display());
    assert_eq!((out.status.code(), stderr), (Some(1), expected));
}

/// A random model whose tokens are the 256 bytes. Its replies contain many control characters.
fn model_of_bytes(dir: &Path) -> PathBuf {
    let fields = ["vocab_size=264", "hidden_size=64", "num_hidden_layers=4", "num_experts=8"];
    let source = checkpoint(dir, "tiny", 5, &fields);
    fs::write(source.join("tiktoken.model"), tiktoken_bytes()).unwrap();
    fs::write(source.join("tokenizer_config.json"), "{}").unwrap();
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
    fs::write(source.join("chat_template.jinja"), template).unwrap();
    convert(&source, "q8_0")
}

#[test]
fn replies_command_no_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_of_bytes(dir.path());
    let file = dir.path().join("a.txt");
    fs::write(&file, "Some text.").unwrap();
    let how = ["-m", text(&model), "--no-cache", "--quiet", "--temp", "1", "--seed", "1", "-n", "200"];
    for command in
        [&["generate", "--ignore-eos", "hello"][..], &["ask", "--no-quotes", "-f", text(&file), "hello"]]
    {
        let args = [command, &how].concat();
        let piped = kimi_ok(&args);
        assert!(visible(&piped) != piped, "no control characters to be shown: {piped:?}");
        let mut command = kimi_command();
        command.args(&args);
        let (status, shown) = terminal::run(command, None);
        assert!(status.success(), "{args:?}: {shown}");
        // The terminal turns a line feed into a line end; `ask` underlines what the file lacks.
        let shown = ["\r", "\x1b[4;33m", "\x1b[0m"].iter().fold(shown, |shown, own| shown.replace(own, ""));
        assert_eq!(shown, visible(&piped), "{args:?}");
    }
}

#[test]
fn write_errors_name_standard_output() {
    for args in [
        &["generate", "--no-cache", "--quiet", "-n", "2", "x"][..],
        &["inspect"],
        &["inspect", "--json"],
        &["convert", "--type", "help"],
        &["convert", "models/demo/checkpoint", "--dry-run"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let out = kimi_command().args(args).stdout(full).output().unwrap();
        let stderr = String::from_utf8(out.stderr).unwrap();
        let last = stderr.lines().last().unwrap_or_default();
        let expected = "kimi: standard output: No space left on device (os error 28)";
        assert_eq!((out.status.code(), last), (Some(1), expected), "{args:?}: {stderr}");
    }
}

#[test]
fn values_that_no_option_takes_are_wrong_usage() {
    for (args, words) in [
        (&["generate", "--ids", "1", "-t", "0"][..], "'--threads <N>': 0 is not in 1..=1024"),
        (&["generate", "--ids", "1", "-t", "100000"], "'--threads <N>': 100000 is not in 1..=1024"),
        (&["generate", "--ids", "1", "-b", "0"], "'--batch <TOKENS>': 0 is not in 1.."),
        (&["generate", "--ids", "1", "--system", "Be brief."], "cannot be used with"),
        (&["inspect", "-b", "0"], "'--batch <TOKENS>': 0 is not in 1.."),
        (&["inspect", "a.gguf", "-m", "b.gguf"], "cannot be used with"),
        (&["serve", "--parallel", "0"], "'--parallel <N>': 0 is not in 1.."),
        (&["convert"], "required argument was not provided: input"),
        (&["convert", ".", "-t", "0"], "'--threads <N>': 0 is not in 1..=1024"),
        (&["convert", ".", "--type", "foo"], "expected one of F32, F16,"),
        (&["convert", ".", "--tensor-type", "foo"], "expected REGEX=TYPE, found foo"),
        (&["convert", ".", "--tensor-type", "x=foo"], "expected one of F32, F16,"),
        (&["convert", ".", "--tensor-type", "(=q8_0"], "expected a regular expression before the ="),
        (&["synth", "x.gguf", "--type", "foo"], "expected one of F32, F16,"),
    ] {
        let out = kimi(args);
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() == Some(2) && stderr.contains(words), "{args:?}: {}: {stderr}", out.status);
    }
}

#[test]
fn arguments_in_messages_are_visible_and_short() {
    let (hostile, long) = ("\u{1b}]0;x\u{7}\u{9b}31m\u{202e}", "9".repeat(100_000));
    let key = format!("--threads={hostile}");
    for (args, code) in [
        (&["generate", "-t", hostile][..], 2),
        (&["generate", &key], 2),
        (&["generate", "--ids", "1", "-t", &long], 2),
        (&["serve", "--parallel", &format!("{hostile}{long}")], 2),
        (&["inspect", "--ctx", &format!("7,{long}x")], 2),
        (&[hostile], 2),
        (&["convert", ".", "--tensor-type", &long], 2),
        (&["generate", "--ids", &format!("{hostile}{long}")], 1),
        (&["generate", "-m", &format!("/{hostile}"), "x"], 1),
        (&["generate", "-m", &format!("/{long}"), "x"], 1),
    ] {
        let out = kimi(args);
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(code), "{stderr:?}");
        assert!(!stderr.contains(|c| is_control(c) && c != '\n') && stderr.len() < 2500, "{stderr:?}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert_eq!(kimi_command().args(args).stderr(full).status().unwrap().code(), Some(code));
    }
}

#[test]
fn types_are_listed_without_an_input() {
    let types = kimi_ok(&["convert", "--type", "help"]);
    assert!(types.lines().any(|line| line == "Q4_K_M"), "{types}");
    assert_eq!(kimi_ok(&["convert", "models/demo/checkpoint", "--type", "help"]), types);
}

#[test]
fn inspect_takes_the_names_that_other_commands_have() {
    let report = kimi_ok(&["inspect", "-m", "models/demo/kimi-demo.gguf", "--ctx", "7,8", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["files"], serde_json::json!(["models/demo/kimi-demo.gguf"]));
    let tokens = |i: usize| report["model"]["contexts"][i]["tokens"].as_u64();
    assert_eq!((tokens(0), tokens(1)), (Some(7), Some(8)));
}

#[test]
fn progress_is_shown_to_people_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rates.svg");
    let out = kimi(&["bench", "-p", "1", "-n", "1", "-r", "1", "-d", "0,64", "--plot", text(&file)]);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success() && !stderr.contains(['\u{1b}', '\r']), "{stderr:?}");
    check_picture(
        &file,
        &["Tokens per second by depth", "Prefill of 1 token, tok/s", "Decode of 1 token, tok/s", "\n64\n"],
    );
}

/// Checks that a picture is complete and has the given texts.
fn check_picture(file: &Path, texts: &[&str]) {
    let svg = fs::read_to_string(file).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
    assert!(texts.iter().all(|text| svg.contains(text)), "{texts:?} in {svg}");
    let files = fs::read_dir(file.parent().unwrap()).unwrap();
    assert_eq!(files.count(), 1, "a file beside the picture");
}

#[test]
fn bars_in_a_pipe_are_plain_and_pictures_have_their_figures() {
    let (dir, prose) = (tempfile::tempdir().unwrap(), "models/demo/prose/heldout.txt");
    let file = dir.path().join("x.svg");
    for (args, bars, texts) in [
        (
            &["eval", "--lengths", "96,128", "--questions", "3", "--windows", "0"][..],
            &["96 tokens ", "\nquestions ", "\nall "][..],
            &["Correct answers, %", "128 tokens"][..],
        ),
        (
            &["perplexity", "-f", prose, "-w", "32", "--windows", "3"],
            &["perplexity by position in the window\n", "\n  30-31  ", "perplexity by window\n  1  "],
            &["By window", "3 windows of 32 tokens"],
        ),
    ] {
        let shown = kimi_ok(&[args, &["--plot", text(&file)]].concat());
        let plain = |c: char| c == '±' || c == '\n' || c.is_ascii() && !c.is_control();
        assert!(shown.chars().all(plain) && bars.iter().all(|bar| shown.contains(bar)), "{shown}");
        check_picture(&file, texts);
    }
    let report = kimi_ok(&["inspect"]);
    let (_, shown) = report.split_once("\nRAM, ").unwrap();
    assert!(shown.contains("  W weights 9") && shown.is_ascii() && !shown.contains('\u{1b}'), "{shown}");
}

/// The place of a picture is checked before the model is loaded.
#[test]
fn pictures_that_cannot_be_written_are_refused_first() {
    for command in ["bench", "eval", "perplexity"] {
        let out = kimi(&[command, "-m", "missing.gguf", "--plot", "missing/x.svg"]);
        let stderr = String::from_utf8(out.stderr).unwrap();
        let expected = "kimi: --plot missing/x.svg: No such file or directory (os error 2)\n";
        assert_eq!((out.status.code(), &*stderr), (Some(1), expected), "{command}");
    }
}

/// The experts of each token and layer that selects some, of the prefill and of the decode; the cache is replayed on them.
#[test]
fn experts_are_traced_and_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name)).to_owned();
    let (tiny, real, trace) = (path("tiny.gguf"), path("48b.gguf"), path("x.trace"));
    kimi_ok(&["synth", &tiny, "--preset", "tiny", "--layers", "4"]);
    kimi_ok(&["synth", &real, "--preset", "48b", "--sparse"]);
    let bench = ["bench", "-m", &tiny, "--device", "cpu", "-p", "3", "-n", "2", "-r", "1", "--json"];
    let bench = |more: &[&str]| kimi_ok(&[&bench[..], more].concat());
    let report: serde_json::Value = serde_json::from_str(&bench(&["--trace-experts", &trace])).unwrap();
    assert_eq!(report["cases"].as_array().unwrap().len(), 2);
    let first = fs::read_to_string(&trace).unwrap();
    assert_eq!(first.lines().next(), Some("# kimi expert trace 1\texperts=16\tselected=4"));
    // The step, layer and token of each line, and the layers with the experts in any order of the lines.
    let places = |trace: &str| {
        let place = |line: &str| line.rsplit_once('\t').unwrap().0.replace('\t', " ");
        trace.lines().skip(1).map(place).collect::<Vec<_>>()
    };
    let experts = |trace: &str| {
        let fields = trace.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
        let mut experts: Vec<String> = fields.map(|fields| format!("{} {}", fields[1], fields[3])).collect();
        experts.sort_unstable();
        experts
    };
    let tokens = |step: usize, tokens: usize| {
        (1..4).flat_map(move |layer| (0..tokens).map(move |token| format!("{step} {layer} {token}")))
    };
    assert_eq!(places(&first), tokens(0, 3).chain(tokens(1, 1)).chain(tokens(2, 1)).collect::<Vec<_>>());
    // The tokens are the same in each run; a prefill in batches of one has other steps with the same experts.
    bench(&["--trace-experts", &trace, "-b", "1"]);
    let second = fs::read_to_string(&trace).unwrap();
    assert_eq!(places(&second), (0..5).flat_map(|step| tokens(step, 1)).collect::<Vec<_>>());
    assert_eq!(experts(&first), experts(&second));

    let shown = kimi_ok(&["bench", "-m", &tiny, "--replay-experts", &trace, "--cards", "8G"]);
    assert!(
        shown.contains("5 tokens, 4 of 16 experts in 3 layers") && shown.contains("\n8.00 GiB   all experts")
    );
    let out = kimi(&["bench", "-m", &real, "--replay-experts", &trace]);
    let expected =
        format!("kimi: {trace}: expected 8 of 256 experts, as in the model, found 4 of 16 experts\n");
    assert_eq!((out.status.code(), String::from_utf8(out.stderr).unwrap()), (Some(1), expected));
    fs::write(&trace, &second[..second.len() - 2]).unwrap();
    let out = kimi(&["bench", "-m", &tiny, "--replay-experts", &trace]);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(
        out.status.code() == Some(1) && stderr.starts_with(&format!("kimi: {trace}: line 16: expected "))
    );
}

/// The first tokens of the text are prefilled, the next ones decoded.
#[test]
fn a_text_is_measured_instead_of_random_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let [prose, trace] = ["x.txt", "x.trace"].map(|name| dir.path().join(name));
    let steps = |words: &str| {
        fs::write(&prose, words).unwrap();
        let args = ["bench", "-f", text(&prose), "-p", "3", "-n", "1", "-r", "1", "--device", "cpu"];
        kimi_ok(&[&args[..], &["--trace-experts", text(&trace)]].concat());
        let trace = fs::read_to_string(&trace).unwrap();
        let lines = trace.lines().skip(1).map(str::to_owned);
        lines.partition::<Vec<String>, _>(|line| line.starts_with("0\t"))
    };
    let (first, second) = (steps("one two three four"), steps("one two three mill"));
    assert!(first.0 == second.0 && first.1 != second.1 && !first.0.is_empty(), "{first:?} {second:?}");
    let out = kimi(&["bench", "-f", text(&prose), "-p", "512", "-n", "8"]);
    let stderr = String::from_utf8(out.stderr).unwrap();
    let expected = format!("kimi: {}: expected 520 tokens to prefill and decode, found ", text(&prose));
    assert!(out.status.code() == Some(1) && stderr.contains(&expected), "{stderr}");
}

/// The slots are those of the memory plan of the real shape.
#[test]
fn hit_rates_of_cards_follow_the_memory_plan() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("48b.gguf");
    kimi_ok(&["synth", text(&model), "--preset", "48b", "--sparse"]);
    let replay = |routing: &str| -> serde_json::Value {
        let args = ["--cards", "2G,8G,24G,80G", "-p", "512", "-n", "4", "--json"];
        let args = [&["bench", "-m", text(&model), "--replay-experts", routing], &args[..]].concat();
        serde_json::from_str(&kimi_ok(&args)).unwrap()
    };
    let report = replay("skewed");
    assert_eq!((&report["layers"], &report["tokens"]), (&26.into(), &516.into()));
    let number = |card: usize, field: &str| report["cards"][card][field].as_u64().unwrap();
    assert!(number(0, "missing_bytes") > 0 && number(3, "gpu_layers") == 26);
    assert!((1..number(2, "slots")).contains(&number(1, "slots")), "{report}");
    let policies = |card: usize| report["cards"][card]["policies"].as_array().unwrap();
    assert_eq!([0, 1, 2, 3].map(|card| policies(card).len()), [0, 5, 5, 0]);
    for card in [1, 2] {
        let lookups = |policy: &serde_json::Value| policy["lookups"].as_u64();
        assert!(policies(card).iter().all(|policy| lookups(policy) == Some(4 * 26 * 8)), "{report}");
    }
    let hits = |card: usize, policy: usize| policies(card)[policy]["hits"].as_u64().unwrap();
    assert!((0..5).all(|policy| hits(1, policy) < hits(2, policy)) && hits(2, 0) <= hits(2, 4), "{report}");
    assert!(replay("uniform") != report && replay("skewed") == report);
}
