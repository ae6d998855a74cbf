//! The built-in demonstration model answers questions about a text of about 20,000 tokens after quoting the lines. Names, values,
//! wording and prose are held out from its training data.

mod common;

use common::{kimi_command, text};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;

/// A sentence of the text, a question, and its answer.
const FACTS: [[&str; 3]; 10] = [
    [
        "The full size of the Sheellham lighthouse comes to 1010 acres.",
        "Which size is given for the Sheellham lighthouse?",
        "It is 1010 acres.",
    ],
    [
        "For Roullel Ovov the phone book gives 2431.",
        "Give me the phone number of Roullel Ovov.",
        "The number is 2431.",
    ],
    [
        "Bevie Feavton bought a home in Beellbury.",
        "Could you tell me where Bevie Feavton lives?",
        "In Beellbury.",
    ],
    ["Boba Cloulvard has long worked as a watchmaker.", "As what does Boba Cloulvard work?", "A watchmaker."],
    [
        "All in all the price paid for the Soulvov bridge was 7523 francs.",
        "What price was paid for the Soulvov bridge?",
        "It is 7523 francs.",
    ],
    [
        "At the Zuller harbour the keeper is named Prourtel Treagini.",
        "Who serves as keeper of the Zuller harbour?",
        "It is Prourtel Treagini.",
    ],
    ["Here the value of probe.age stays at 76 MB.", "What value has probe.age?", "It is 76 MB."],
    [
        "Trouben Pombero gave as birthplace the town of Shimby.",
        "Name the birthplace of Trouben Pombero.",
        "In Shimby.",
    ],
    [
        "As for Treaben Preagton, the sister is called Caista Sheebov.",
        "How is the sister of Treaben Preagton called?",
        "It is Caista Sheebov.",
    ],
    [
        "The lock of the Gainbury museum takes the code 33125.",
        "Which access code does the Gainbury museum have?",
        "The code is 33125.",
    ],
];
/// Number of lines of prose, the first line with a fact, and the number of lines from one fact to the next.
const PROSE: usize = 400;
const FIRST: usize = 17;
const EVERY: usize = 37;

fn document() -> String {
    let prose = std::fs::read_to_string("models/demo/prose/heldout.txt").unwrap();
    let mut facts = FACTS.iter();
    let mut document = String::new();
    for (line, sentence) in prose.lines().take(PROSE).enumerate() {
        if line % EVERY == FIRST
            && let Some([fact, ..]) = facts.next()
        {
            writeln!(document, "{fact}").unwrap();
        }
        writeln!(document, "{sentence}").unwrap();
    }
    assert!(facts.next().is_none());
    document
}

#[test]
fn answers_cite_the_right_lines() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.txt");
    let document = document();
    std::fs::write(&file, &document).unwrap();
    let mut command = kimi_command();
    command.args(["ask", "--json", "--quiet", "--no-cache", "--temp", "0", "-f", text(&file)]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let questions: Vec<&str> = FACTS.iter().map(|[_, question, _]| *question).collect();
    child.stdin.take().unwrap().write_all(questions.join("\n").as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let mut wrong = String::new();
    let answers: Vec<Value> = String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), FACTS.len());
    let tokens = answers[0]["prompt_tokens"].as_u64().unwrap();
    assert!((18_000..22_000).contains(&tokens), "{tokens} tokens");
    let (mut right, mut lines) = (0, 0);
    for ([fact, _, expected], answer) in FACTS.iter().zip(&answers) {
        let line = 1 + document.lines().position(|line| line == *fact).unwrap() as u64;
        let text = answer["answer"].as_str().unwrap();
        assert!(!text.contains('>') || text.starts_with("> "), "quotes come first: {text}");
        assert_eq!(answer["unsupported"].as_array().map(Vec::len), Some(0), "{answer}");
        let (is_right, found) =
            (text.lines().last() == Some(expected), &answer["quotes"][0]["places"][0]["line"]);
        (right, lines) = (right + usize::from(is_right), lines + usize::from(*found == line));
        if !is_right || *found != line {
            writeln!(wrong, "line {line}: {fact}\n{answer}\n").unwrap();
        }
    }
    assert!(right >= 9 && lines >= 9, "{right} answers and {lines} lines right of {}\n{wrong}", FACTS.len());
}
