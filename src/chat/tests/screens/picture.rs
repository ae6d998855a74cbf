//! The pictures of the chat in README.md and docs/chat.md, recorded as cells of the screen.
//!
//! `UPDATE_PICTURES=1 cargo test --lib picture` rewrites the records, from which `docs/figures.py` draws SVG files.

use super::*;
use crate::chat::palette::rgb_of;
use crate::chat::picker::Picker;
use crate::chat::store::ChatSummary;
use ratatui::buffer::Cell;
use ratatui::style::{Color, Modifier};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

const RECORDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/results");

/// What the demonstration model replies at temperature 0.
const EXCHANGES: [(&str, &str); 4] = [
    ("Where does the keeper of the Tiolmere museum live?", "The keeper is Mara Dellwood. In Tarnford."),
    (
        "What is the phone number of the manager of the Hartwell mill?",
        "The manager is Oskar Venton. The number is 555-0142.",
    ),
    (
        "What is the access code of the Hartwell mill? Quote the text.",
        "The code is 4713.\n> Hartwell mill is 4713",
    ),
    ("Who is the sister of Jona Selkirk?", "The text does not say."),
];

/// What it replies at temperature 2 with seed 1, with a quote that the file does not have.
const MISQUOTE: (&str, &str) = (
    "Who runs the Hartwell mill? Quote the text.",
    "It is Oskar Venton.\n> Stona Selkirk was born in Morwick",
);

/// A reply with a table and code, written for the picture.
const TABLE_AND_CODE: &str = "Both read a file line by line:\n\n| | memory | when the file has no last newline |\n|---|---|---|\n\
    | `read_to_string` | the whole file | nothing is lost |\n| `BufRead::lines` | one line | nothing is lost |\n\n\
    ```rust\nfor line in BufReader::new(file).lines() {\n    println!(\"{}\", line?); // without its newline\n}\n```\n";

const DARK: Theme = Theme { depth: Depth::Exact, light: false };
const LIGHT: Theme = Theme { depth: Depth::Exact, light: true };
const INDEXED: Theme = Theme { depth: Depth::Indexed, light: false };
const NO_COLOR: Theme = Theme { depth: Depth::None, light: false };

#[test]
fn the_picture_of_the_chat_is_up_to_date() {
    let mut stale = Vec::new();
    for (name, mut screen) in [
        ("chat", source(DARK, (120, 40))),
        ("chat-light", source(LIGHT, (120, 40))),
        ("chat-first", started(DARK)),
        ("chat-reading", reading(LIGHT)),
        ("chat-no-color", source(NO_COLOR, (80, 24))),
        ("chat-code", table_and_code(DARK)),
        ("chat-menu", menu(INDEXED)),
        ("chat-list", list(LIGHT)),
    ] {
        let path = format!("{RECORDS}/{name}.screen.json");
        let drawn = record(&mut screen);
        if std::env::var_os("UPDATE_PICTURES").is_some() {
            std::fs::write(&path, &drawn).unwrap();
        }
        if std::fs::read_to_string(&path).ok() != Some(drawn) {
            stale.push(path);
        }
    }
    assert!(stale.is_empty(), "stale: {stale:?}: UPDATE_PICTURES=1 cargo test --lib picture");
}

/// The first screen of the demonstration model.
fn first(theme: Theme, (columns, rows): (u16, u16)) -> TestScreen {
    let mut s = TestScreen::new(columns, rows);
    s.app.theme = theme;
    let model = ModelInfo {
        name: "kimi-demo".into(),
        runs_on: "CPU".into(),
        context_limit: Some(1 << 20),
        ..ModelInfo::default()
    };
    s.send(AppEvent::Worker(WorkerEvent::Ready(model)));
    s
}

fn started(theme: Theme) -> TestScreen {
    first(theme, (80, 24))
}

/// A conversation about a file.
fn conversation(theme: Theme, size: (u16, u16)) -> TestScreen {
    let mut s = first(theme, size);
    s.enters("/file docs/museum.txt");
    for (message, reply) in EXCHANGES {
        s.enters(message);
        s.receives(reply);
        s.send(AppEvent::Worker(WorkerEvent::Done(outcome())));
    }
    s
}

/// The source of a quote, beside or below the conversation, in which another quote is not in the file.
fn source(theme: Theme, size: (u16, u16)) -> TestScreen {
    let mut s = conversation(theme, size);
    s.enters(MISQUOTE.0);
    s.receives(MISQUOTE.1);
    s.send(AppEvent::Worker(WorkerEvent::Done(outcome())));
    s.control('p');
    s.control('p');
    s.types("Where was Jona Selkirk born?");
    s
}

/// A long file while it is prefilled.
fn reading(theme: Theme) -> TestScreen {
    let mut s = first(theme, (80, 24));
    s.enters("/file docs/museum.txt");
    s.app.session.files[0].name = "report.pdf".into();
    s.app.session.files[0].text = "A line of a long report, which takes a while to read.\n".repeat(9_120);
    s.enters("Who signed the report, and when?");
    s.send(AppEvent::Worker(WorkerEvent::Prefill { done: 51_200, total: 127_716, rate: 412.0 }));
    s
}

fn table_and_code(theme: Theme) -> TestScreen {
    let mut s = first(theme, (80, 24));
    s.enters("How do I read a file line by line in Rust?");
    s.receives(TABLE_AND_CODE);
    s
}

/// The completions of a command over a conversation.
fn menu(theme: Theme) -> TestScreen {
    let mut s = conversation(theme, (80, 24));
    s.types("/e");
    s.send(KeyCode::Tab);
    s
}

/// The list of saved chats.
fn list(theme: Theme) -> TestScreen {
    let mut s = first(theme, (80, 24));
    for (message, reply) in EXCHANGES {
        s.enters("/clear");
        s.exchange(message, reply);
    }
    s.control('o');
    // Changed now, however long the test takes.
    let now = |chat| ChatSummary { changed: u64::MAX, ..chat };
    s.app.picker = Some(Picker::new(s.app.session.store.list().into_iter().map(now).collect()));
    s.send(KeyCode::Down);
    s
}

/// The figures of the last reply, as measured with the demonstration model on two cores.
fn outcome() -> ReplyOutcome {
    let prefill = Prefill { reused: 295, source: Some(PrefixSource::Live), computed: 25, stopped: false };
    let (prefill_time, decode_time) = (Duration::from_millis(24), Duration::from_millis(32));
    let stats = Stats {
        prefill,
        prefill_time,
        generated: 6,
        decode_time,
        draft: DraftCounts::default(),
        expert_cache: None,
        ended: FinishReason::EndToken,
    };
    ReplyOutcome { ids: vec![1, 2], stats }
}

/// The colors of text and background where a cell has none: those of the theme, else of a terminal.
fn ground(theme: Theme) -> (String, String) {
    let base = theme.base();
    let of = |color: Option<Color>, terminal: &str| color.and_then(rgb).unwrap_or(terminal.to_owned());
    (of(base.fg, "#e4e4e4"), of(base.bg, "#1c1c1c"))
}

/// The screen in the format of docs/figures.py: one line per row, each a list of runs of equal style.
fn record(s: &mut TestScreen) -> String {
    s.terminal.draw(|frame| view(&s.app, frame)).unwrap();
    let cells = s.terminal.backend().buffer();
    let (foreground, background) = ground(s.app.theme);
    let rows: Vec<String> = (0..cells.area.height)
        .map(|y| {
            let row: Vec<&Cell> = (0..cells.area.width).map(|x| &cells[(x, y)]).collect();
            Value::Array(runs(&row, &foreground, &background)).to_string()
        })
        .collect();
    let head = json!({
        "title": "kimi chat", "columns": cells.area.width, "rows": cells.area.height,
        "foreground": foreground, "background": background,
    });
    let head = head.to_string();
    format!("{},\n\"lines\": [\n{}\n]}}\n", head.trim_end_matches('}'), rows.join(",\n"))
}

/// Runs of a row: column, columns, text, foreground, background, attributes.
fn runs(row: &[&Cell], foreground: &str, background: &str) -> Vec<Value> {
    let mut runs: Vec<(usize, usize, String, &Cell)> = Vec::new();
    let mut column = 0;
    while column < row.len() {
        let cell = row[column];
        let width = cell.symbol().width().max(1);
        match runs.last_mut().filter(|run| run.3.style() == cell.style()) {
            Some(run) => (run.1, run.2) = (run.1 + width, format!("{}{}", run.2, cell.symbol())),
            None => runs.push((column, width, cell.symbol().to_owned(), cell)),
        }
        column += width;
    }
    let other = |color: Color, ground: &str| rgb(color).filter(|rgb| rgb != ground);
    let plain =
        |cell: &Cell| other(cell.bg, background).is_none() && !cell.modifier.contains(Modifier::REVERSED);
    let seen = runs.into_iter().filter(|(_, _, text, cell)| !text.trim().is_empty() || !plain(cell));
    seen.map(|(at, columns, text, cell)| {
        let (fore, back) = (other(cell.fg, foreground), other(cell.bg, background));
        // Without trailing spaces, unless they have a background.
        let text = if plain(cell) { text.trim_end() } else { &text };
        let columns = if plain(cell) { text.width() } else { columns };
        json!([at, columns, text, fore, back, attributes(cell.modifier)])
    })
    .collect()
}

fn rgb(color: Color) -> Option<String> {
    match color {
        Color::Rgb(r, g, b) => Some(format!("#{r:02x}{g:02x}{b:02x}")),
        Color::Indexed(index) => Some(format!("#{:06x}", rgb_of(index))),
        _ => None,
    }
}

fn attributes(modifier: Modifier) -> Vec<&'static str> {
    let names = [
        (Modifier::BOLD, "bold"),
        (Modifier::ITALIC, "italic"),
        (Modifier::DIM, "dim"),
        (Modifier::UNDERLINED, "underline"),
        (Modifier::REVERSED, "reverse"),
    ];
    names.into_iter().filter(|(m, _)| modifier.contains(*m)).map(|(_, name)| name).collect()
}
