//! The state of the full-screen chat as cells of the screen. It changes nothing and lays nothing out.
//!
//! From the top: what was said, a row for what goes on, the message being written, a row of meters.

use super::app::App;
use super::command::COMMANDS;
use super::layout::Row;
use super::meters;
use super::picker::{self, Picker};
use super::theme::{Ink, Look};
use crate::io::units::grouped;
use models::visible::visible;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Modifier, Style};
use std::time::{SystemTime, UNIX_EPOCH};

const PROMPT: &str = "> ";
/// Completions shown at once.
const MENU: usize = 8;
/// Columns of a command and what follows it.
const NAMES: usize = 21;

/// Draws the chat.
pub fn view(app: &App, frame: &mut Frame<'_>) {
    let area = frame.area();
    if area.height < 3 || area.width < 4 {
        return;
    }
    let input = app.input_rows().min(area.height - 2);
    let said = Rect { height: area.height - input - 2, ..area };
    let going = Rect { y: said.bottom(), height: 1, ..area };
    let writing = Rect { y: going.bottom(), height: input, ..area };
    let meters = Rect { y: writing.bottom(), height: 1, ..area };
    let cells = frame.buffer_mut();
    for (row, y) in app.transcript.visible().zip(said.rows()) {
        draw(app, row, y, cells);
    }
    activity(app, going, cells);
    let cursor = message(app, writing, cells);
    let dim = app.theme.style(Ink::Dim.into());
    put(cells, meters, &meters::status(app, usize::from(meters.width)), dim);
    menu(app, said, cells);
    match &app.picker {
        Some(picker) => list(app, picker, said, frame),
        None => frame.set_cursor_position(cursor),
    }
}

fn draw(app: &App, row: &Row, area: Rect, cells: &mut Buffer) {
    let mut x = area.x;
    for span in row {
        let room = usize::from(area.right().saturating_sub(x));
        (x, _) = cells.set_stringn(x, area.y, &span.text, room, app.theme.style(span.look));
    }
}

/// Text at the left of an area's first row, cut at its right.
fn put(cells: &mut Buffer, area: Rect, text: &str, style: Style) -> u16 {
    cells.set_stringn(area.x, area.y, visible(text), usize::from(area.width), style).0
}

/// A line across with what goes on in it, and how much is below the rows on the screen.
fn activity(app: &App, area: Rect, cells: &mut Buffer) {
    let dim = app.theme.style(Ink::Dim.into());
    put(cells, area, &"─".repeat(usize::from(area.width)), dim);
    if let Some(text) = meters::activity(app, usize::from(area.width.saturating_sub(4))) {
        let inner = Rect { x: area.x + 2, width: area.width.saturating_sub(4), ..area };
        put(cells, inner, &format!(" {text} "), app.theme.style(Ink::Accent.into()));
        return;
    }
    let below = app.transcript.below();
    let text = match below {
        0 => app.talk.chat.turns.first().map(|_| app.talk.chat.name()),
        _ => Some(format!("{} rows below, Ctrl-End", grouped(below))),
    };
    if let Some(text) = text {
        let inner = Rect { x: area.x + 2, width: area.width.saturating_sub(4), ..area };
        put(cells, inner, &format!(" {text} "), dim);
    }
}

/// The message being written; where its cursor is.
fn message(app: &App, area: Rect, cells: &mut Buffer) -> Position {
    put(cells, area, PROMPT, app.theme.style(Look { bold: true, ..Ink::Accent.into() }));
    let (row, column) = app.input.cursor_at();
    let height = usize::from(area.height);
    let first = (row + 1).saturating_sub(height);
    let indent = PROMPT.len() as u16;
    let inner = Rect { x: area.x + indent, width: area.width.saturating_sub(indent), ..area };
    for (text, place) in app.input.rows(first).zip(inner.rows()) {
        put(cells, place, &text, Style::new());
    }
    let column = u16::try_from(column).unwrap_or(u16::MAX);
    let row = u16::try_from(row - first).unwrap_or(u16::MAX);
    Position::new(inner.x.saturating_add(column).min(area.right() - 1), area.y.saturating_add(row))
}

/// What the line may go on to, above it.
fn menu(app: &App, said: Rect, cells: &mut Buffer) {
    let lines = &app.menu.lines;
    let height = lines.len().min(MENU).min(usize::from(said.height));
    let chosen = app.menu.chosen.unwrap_or(0);
    let first = (chosen + 1).saturating_sub(height);
    let top = said.bottom() - height as u16;
    for (i, line) in lines.iter().enumerate().skip(first).take(height) {
        let area = Rect { y: top + (i - first) as u16, height: 1, ..said };
        put(cells, area, &" ".repeat(usize::from(area.width)), Style::new());
        let style = app.theme.style(Ink::Accent.into());
        let style = if app.menu.chosen == Some(i) { style.add_modifier(Modifier::REVERSED) } else { style };
        let end = put(cells, area, &format!("  {}", line.trim_end()), style);
        if let Some((_, argument, meaning)) = COMMANDS.iter().find(|c| c.0 == line.trim()) {
            let pad = NAMES.saturating_sub(line.trim().len());
            let text = format!(" {argument:<pad$}{meaning}");
            let rest = Rect { x: end, width: area.right().saturating_sub(end), ..area };
            put(cells, rest, &text, app.theme.style(Ink::Dim.into()));
        }
    }
}

/// The chats there are.
fn list(app: &App, picker: &Picker, said: Rect, frame: &mut Frame<'_>) {
    let cells = frame.buffer_mut();
    let blank = " ".repeat(usize::from(said.width));
    said.rows().for_each(|row| {
        put(cells, row, &blank, Style::new());
    });
    let head = format!("Chats: {}", picker.typed());
    let bold = app.theme.style(Look { bold: true, ..Look::default() });
    let end = put(cells, said, &head, bold);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let height = usize::from(said.height.saturating_sub(2));
    let first = (picker.chosen() + 1).saturating_sub(height);
    let rows = said.rows().skip(1).take(height);
    for ((i, entry), row) in picker.shown().into_iter().enumerate().skip(first).zip(rows) {
        let style =
            if i == picker.chosen() { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        let side =
            format!("{:>4} messages {:>7} ", entry.turns, picker::ago(now.saturating_sub(entry.changed)));
        let name = Rect { width: row.width.saturating_sub(side.len() as u16), ..row };
        put(cells, row, &blank, style);
        put(cells, name, &format!(" {}", entry.name), style);
        put(cells, Rect { x: name.right(), width: row.width - name.width, ..row }, &side, style);
    }
    if let Some(row) = said.rows().next_back() {
        put(cells, row, "Enter opens · type to narrow · Esc closes", app.theme.style(Ink::Dim.into()));
    }
    frame.set_cursor_position(Position::new(end.min(said.right().saturating_sub(1)), said.y));
}
