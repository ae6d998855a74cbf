//! The picture of the chat in README.md: a conversation with the demonstration model, recorded as cells of the screen.
//!
//! `UPDATE_PICTURES=1 cargo test --lib picture` rewrites the record, from which `docs/figures.py` draws the SVG.

use super::*;
use ratatui::buffer::Cell;
use ratatui::style::{Color, Modifier};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/results/chat.screen.json");

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

#[test]
fn the_picture_of_the_chat_is_up_to_date() {
    let mut s = TestScreen::new(88, 22);
    s.app.theme = Theme { depth: Depth::Exact, light: false };
    s.app.session.model_info = ModelInfo {
        name: "kimi-demo".into(),
        runs_on: "CPU".into(),
        context_limit: Some(1 << 20),
        ..ModelInfo::default()
    };
    s.enters("/file docs/museum.txt");
    for (message, reply) in EXCHANGES {
        s.enters(message);
        s.receives(reply);
        s.send(AppEvent::Worker(WorkerEvent::Done(outcome())));
    }
    s.types("Where was Jona Selkirk born?");
    let drawn = record(&mut s);
    if std::env::var_os("UPDATE_PICTURES").is_some() {
        std::fs::write(RECORD, &drawn).unwrap();
    }
    let recorded = std::fs::read_to_string(RECORD).unwrap();
    assert!(recorded == drawn, "{RECORD} is stale: UPDATE_PICTURES=1 cargo test --lib picture");
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

/// The screen in the format of docs/figures.py: one line per row, each a list of runs of equal style.
fn record(s: &mut TestScreen) -> String {
    s.terminal.draw(|frame| view(&s.app, frame)).unwrap();
    let cells = s.terminal.backend().buffer();
    let rows: Vec<String> = (0..cells.area.height)
        .map(|y| {
            let row: Vec<&Cell> = (0..cells.area.width).map(|x| &cells[(x, y)]).collect();
            Value::Array(runs(&row)).to_string()
        })
        .collect();
    let head = json!({
        "title": "kimi chat", "columns": cells.area.width, "rows": cells.area.height,
        "foreground": "#e6edf3", "background": "#0d1117",
    });
    let head = head.to_string();
    format!("{},\n\"lines\": [\n{}\n]}}\n", head.trim_end_matches('}'), rows.join(",\n"))
}

/// Runs of a row: column, columns, text, foreground, background, attributes.
fn runs(row: &[&Cell]) -> Vec<Value> {
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
    let plain = |cell: &Cell| cell.bg == Color::Reset && !cell.modifier.contains(Modifier::REVERSED);
    let seen = runs.into_iter().filter(|(_, _, text, cell)| !text.trim().is_empty() || !plain(cell));
    seen.map(|(at, columns, text, cell)| {
        json!([at, columns, text, color(cell.fg), color(cell.bg), attributes(cell.modifier)])
    })
    .collect()
}

fn color(color: Color) -> Option<String> {
    match color {
        Color::Rgb(r, g, b) => Some(format!("#{r:02x}{g:02x}{b:02x}")),
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
