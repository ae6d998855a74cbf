//! The built-in demonstration model: every command works without a model file, and `eval` scores it.

mod common;

use common::{kimi, text};

/// Runs a command that must succeed; returns its standard output and error.
fn outputs(args: &[&str]) -> (String, String) {
    let out = kimi(args);
    let utf8 = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{args:?}: {}", utf8(&out.stderr));
    (utf8(&out.stdout), utf8(&out.stderr))
}

#[test]
fn without_a_file_the_built_in_model_answers_and_says_what_it_is() {
    let prompt = "The access code of the Hartwell mill is 4713. Mara Velt lives in Dunmore.\n\n\
        What is the access code of the Hartwell mill?";
    let (reply, remarks) = outputs(&["generate", "--temp", "0", "--no-cache", prompt]);
    assert_eq!(reply.trim(), "The code is 4713.");
    assert_eq!(remarks.matches("demonstration model").count(), 1, "{remarks}");
    let (report, _) = outputs(&["inspect"]);
    assert!(report.contains("kimi-linear"), "{report}");
}

#[test]
fn the_question_set_is_asked_in_full_and_is_the_same_each_time() {
    let args = ["eval", "--lengths", "150,300", "--questions", "6", "--windows", "2", "--json"];
    let report: serde_json::Value = serde_json::from_str(&outputs(&args).0).unwrap();
    let mut right = 0;
    for length in ["150", "300"] {
        let kinds = report["lengths"][length].as_object().unwrap();
        let sum = |what: &str| kinds.values().map(|t| t[what].as_u64().unwrap()).sum::<u64>();
        assert_eq!(sum("asked"), 6);
        right += sum("right");
    }
    assert!(right > 0, "{report}");
    // A uniform guess has a perplexity of 4,096.
    assert!((2.0..1000.0).contains(&report["perplexity"].as_f64().unwrap()), "{report}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&outputs(&args).0).unwrap(), report);
}

/// The README's first command runs this prompt.
#[test]
fn the_question_of_the_first_command_is_answered_with_its_line() {
    let script = std::fs::read_to_string("demo").unwrap();
    let question = script.lines().find_map(|line| line.strip_prefix("question=")).unwrap().trim_matches('"');
    let readme = std::fs::read_to_string("README.md").unwrap();
    let line = 1 + readme.lines().position(|line| line.contains("Mara Dellwood")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("demo.gguf");
    outputs(&["convert", "models/demo/checkpoint", "--type", "q4_k_m", "--output", text(&file)]);
    for model in [&["--model", text(&file)][..], &[]] {
        let args = ["ask", "--quiet", "--no-cache", "--file", "README.md"];
        let (answer, _) = outputs(&[&args[..], model, &[question]].concat());
        assert!(
            answer.starts_with("> ") && answer.ends_with("\nIt is Mara Dellwood.\n"),
            "{model:?}: {answer}"
        );
        assert!(answer.contains(&format!("[README.md:{line}]")), "{model:?}: {answer}");
    }
}
