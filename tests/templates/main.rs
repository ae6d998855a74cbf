//! Chat templates from untrusted model files: a rendering ends in time with a prompt or a one-line error, and the calling
//! process does not grow, hang or exit.

#[path = "../common/mod.rs"]
mod common;
mod files;
mod hostile;
#[path = "../../models/tests/support/kimi_vocabulary.rs"]
mod kimi_vocabulary;

use common::random::Random;
use kimi::runtime::template_worker::Pool;
use models::template::{Failure, InProcess, Message, RenderJob, Sandbox, Template};
use models::tokenizer::Vocabulary;
use serde_json::{Map, Value, json};
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn pool() -> Pool {
    Pool::new(env!("CARGO_BIN_EXE_kimi").into())
}

/// Renders the user message "hi".
fn render(sandbox: &dyn Sandbox, source: &str) -> Result<String, Failure> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let context =
        Map::from_iter([("messages".to_owned(), messages), ("bos_token".to_owned(), "[BOS]".into())]);
    sandbox.run(&RenderJob { source, sentinel: '\u{fdd0}', context: &context })
}

/// Renders a template, which must end within 10 s with a prompt or a one-line error.
fn check(pool: &Pool, source: &str) -> Result<String, Failure> {
    let start = Instant::now();
    let rendered = render(pool, source);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}: {source:.200}");
    if let Err(failure) = &rendered {
        let line = failure.to_string();
        assert!(line.len() < 2000 && !line.contains(['\n', '\r']), "{line}: {source:.200}");
        assert!(!line.contains("no worker") && !line.contains("broken reply"), "{line}: {source:.200}");
    }
    rendered.map(|text| text.chars().take(100).collect())
}

/// Checks all templates on two threads.
fn check_all(pool: &Pool, templates: &[String]) -> Vec<Result<String, Failure>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let taken = std::iter::from_fn(|| templates.get(next.fetch_add(1, Ordering::Relaxed)));
        taken.map(|source| check(pool, source)).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(work));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// The peak memory of this process.
fn peak_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
fn hostile_templates_end_in_time_with_one_line() {
    alone("hostile_templates_end_in_time_with_one_line", || {
        let templates = hostile::all();
        assert!(templates.len() > 200);
        let before = peak_mib();
        let pool = pool().within(Duration::from_secs(1));
        let done = check_all(&pool, &templates);
        let grown = peak_mib() - before;
        assert!(grown < 200, "this process grew by {grown} MiB");
        // Each kind of error occurred, so the limits themselves were tested.
        let ways = [
            "a stack overflow",
            "more memory",
            "no end",
            "recursion",
            "names and operators",
            "nested blocks",
        ];
        for words in ways {
            let ended =
                |r: &Result<String, Failure>| r.as_ref().is_err_and(|f| f.to_string().contains(words));
            assert!(done.iter().any(ended), "no template ended with {words:?}");
        }
        assert_eq!(render(&pool, "{{ messages[0].content }}").unwrap(), "hi");
    });
}

fn check_line(source: &str, line: &str) {
    let pool = pool().within(Duration::from_secs(2));
    assert_eq!(render(&pool, source).unwrap_err().to_string(), format!("chat_template: {line}"));
}

#[test]
fn failures_name_the_limit() {
    let within = "rendering: expected a prompt within 2 s and 512 MiB, found";
    check_line(
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
        &format!("{within} a stack overflow"),
    );
    check_line("{{ '%4000000000d' | format(1) }}", &format!("{within} more memory"));
    check_line(&hostile::wide("[ns.x, ns.x]", "{{ ns.x == ns.y }}"), &format!("{within} no end"));
    let written = "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}";
    check_line(written, "rendering: expected at most 4194928 bytes, found more");
    let program = Pool::new("/nonexistent/kimi".into());
    let line = render(&program, "").unwrap_err().to_string();
    let limit = "chat_template: rendering: expected a prompt within 3 s and 512 MiB, found no worker: ";
    assert!(line.starts_with(limit), "{line}");
}

/// A template made of pieces of others, cut, repeated or moved.
fn mutated(random: &mut Random, seeds: &[String]) -> String {
    let mut chars: Vec<char> = seeds[random.below(seeds.len())].chars().collect();
    for _ in 0..1 + random.below(3) {
        let other: Vec<char> = seeds[random.below(seeds.len())].chars().collect();
        let at = random.below(chars.len() + 1);
        let start = random.below(other.len() + 1);
        let piece = &other[start..(start + random.below(60)).min(other.len())];
        match random.below(4) {
            0 => drop(chars.splice(at..at, piece.iter().copied())),
            1 => drop(chars.drain(at..(at + random.below(20)).min(chars.len()))),
            2 => drop(chars.splice(at..at, piece.repeat(1 + random.below(50)))),
            _ => {
                let swapped = ['{', '}', '%', '\'', '|', '-', '[', '.'][random.below(8)];
                chars.iter_mut().skip(at).take(1).for_each(|c| *c = swapped);
            }
        }
    }
    chars.into_iter().collect()
}

fn goldens() -> Value {
    serde_json::from_str(include_str!("../../models/tests/data/template_goldens.json")).unwrap()
}

#[test]
fn a_thousand_mutated_templates() {
    let goldens = goldens();
    let published =
        goldens["templates"].as_object().unwrap().values().map(|t| t.as_str().unwrap().to_owned());
    let kimi = include_str!("../../models/src/kimi_linear/chat.jinja").to_owned();
    let hostile = hostile::all().into_iter().filter(|t| t.len() < 2000).step_by(4);
    let good: Vec<String> = [kimi].into_iter().chain(published).collect();
    let seeds: Vec<String> = good.iter().cycle().take(300).cloned().chain(hostile).collect();
    let mut random = Random::new(17);
    let templates: Vec<String> = (0..1000).map(|_| mutated(&mut random, &seeds)).collect();
    let done = check_all(&pool().within(Duration::from_millis(500)), &templates);
    let rendered = done.iter().filter(|r| r.is_ok()).count();
    assert!((50..900).contains(&rendered), "{rendered} of 1000 render: not what mutations should give");
}

fn vocabulary() -> Vocabulary {
    let config = fs::read_to_string("models/tests/data/tokenizer_config.json").unwrap();
    let model = kimi_vocabulary::tiktoken_model();
    Vocabulary::from_tiktoken("tiktoken.model", &model, &config, None).unwrap()
}

#[test]
fn a_worker_renders_as_the_process_does() {
    let vocabulary = vocabulary();
    let pool: Arc<dyn Sandbox> = Arc::new(pool());
    let goldens = goldens();
    for case in goldens["cases"].as_array().unwrap() {
        let source = goldens["templates"][case["name"].as_str().unwrap()].as_str();
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let tools = case["tools"].as_array().cloned().unwrap_or_default();
        let extra = case["extra"].as_object().unwrap();
        let render = |sandbox: Arc<dyn Sandbox>| {
            Template::new(source, &vocabulary, sandbox).render(&messages, &tools, true, extra)
        };
        assert_eq!(render(pool.clone()), render(Arc::new(InProcess)), "{case}");
    }
    let numbers = json!([{"content": [0.1 + 0.2, 1e23, -0.0, u64::MAX, 5e-324], "role": "user"}]);
    let messages: Vec<Message> = serde_json::from_value(numbers).unwrap();
    let source = Some("{{ messages | tojson }}<|im_end|>{{ bos_token }}");
    let render = |sandbox: Arc<dyn Sandbox>| {
        Template::new(source, &vocabulary, sandbox).render(&messages, &[], true, &Map::new()).unwrap()
    };
    let rendered = render(pool);
    assert_eq!(rendered, render(Arc::new(InProcess)));
    assert_eq!(rendered.encode(&vocabulary).iter().filter(|id| vocabulary.is_special(**id)).count(), 2);
}

#[test]
fn others_render_while_one_hangs() {
    let pool = pool();
    let hangs = hostile::wide("[ns.x, ns.x]", "{{ ns.x == ns.y }}");
    std::thread::scope(|scope| {
        let late = scope.spawn(|| render(&pool, &hangs));
        let start = Instant::now();
        for _ in 0..100 {
            assert_eq!(render(&pool, "{{ messages[0].content }}!").unwrap(), "hi!");
        }
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        assert!(late.join().unwrap().unwrap_err().to_string().ends_with("found no end"));
    });
}

/// The running child processes of this one.
fn children() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let all: String = tasks.map(|task| of(task.unwrap()) + " ").collect();
    all.split_whitespace().map(str::to_owned).collect()
}

/// Runs one test of this file in its own process, so that memory and children are that test's alone.
fn alone(name: &str, run: impl FnOnce()) {
    if std::env::var_os("TEMPLATES_ALONE").is_some() {
        return run();
    }
    let this = std::env::current_exe().unwrap();
    let out = Command::new(this).args(["--exact", name]).env("TEMPLATES_ALONE", "1").output().unwrap();
    let stdout = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && stdout.contains("1 passed"), "{stdout}");
}

#[test]
fn an_idle_worker_that_was_killed_is_replaced() {
    alone("an_idle_worker_that_was_killed_is_replaced", || {
        let pool = pool();
        assert_eq!(render(&pool, "a").unwrap(), "a");
        let [child] = &children()[..] else { panic!("one worker is kept: {:?}", children()) };
        let limits = fs::read_to_string(format!("/proc/{child}/limits")).unwrap();
        for (limit, most) in [
            ("Max core file size", "0"),
            ("Max file size", "0"),
            ("Max open files", "3"),
            ("Max processes", "0"),
            ("Max cpu time", "60"),
            ("Max data size", "671088640"),
        ] {
            let line = limits.lines().find(|line| line.starts_with(limit)).unwrap();
            let found: Vec<_> = line[limit.len()..].split_whitespace().take(2).collect();
            assert_eq!(found, [most, most], "{line}");
        }
        assert!(Command::new("kill").args(["-9", child]).status().unwrap().success());
        assert_eq!(render(&pool, "b").unwrap(), "b");
        drop(pool);
        assert_eq!(children(), Vec::<String>::new());
    });
}
