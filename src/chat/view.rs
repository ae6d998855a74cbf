//! Draws the state of the full-screen chat into terminal cells. It neither changes the state nor lays out text.
//!
//! From top to bottom: the transcript, the activity line, the input and the status bar.

use super::app::{ChatApp, Regions};
use super::command::COMMANDS;
use super::layout::TextRow;
use super::picker::{self, Picker};
use super::status_bar;
use super::theme::{TextRole, TextStyle};
use crate::io::units::grouped;
use models::visible::visible;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Modifier, Style};
use std::time::{SystemTime, UNIX_EPOCH};

const PROMPT: &str = "> ";
/// Most completions that are shown at once.
const MENU_ROWS: usize = 8;
/// Columns of a command and its argument in the menu.
const NAME_COLUMNS: usize = 21;

pub fn view(app: &ChatApp, frame: &mut Frame<'_>) {
    let area = frame.area();
    if area.height < 3 || area.width < 4 {
        return;
    }
    let Regions { transcript, activity, input, status } = app.regions(area);
    let cells = frame.buffer_mut();
    for (row, y) in app.transcript.visible().zip(transcript.rows()) {
        draw_row(app, row, y, cells);
    }
    draw_activity(app, activity, cells);
    let cursor = draw_input(app, input, cells);
    let dim = app.theme.style(TextRole::Dim.into());
    put(cells, status, &status_bar::status(app, usize::from(status.width)), dim);
    draw_menu(app, transcript, cells);
    match &app.picker {
        Some(picker) => draw_picker(app, picker, transcript, frame),
        None => frame.set_cursor_position(cursor),
    }
}

fn draw_row(app: &ChatApp, row: &TextRow, area: Rect, cells: &mut Buffer) {
    let mut x = area.x;
    for span in row {
        let columns = usize::from(area.right().saturating_sub(x));
        (x, _) = cells.set_stringn(x, area.y, &span.text, columns, app.theme.style(span.style));
    }
}

/// Writes text into the first row of an area, cut at its right edge; returns the column after it.
fn put(cells: &mut Buffer, area: Rect, text: &str, style: Style) -> u16 {
    cells.set_stringn(area.x, area.y, visible(text), usize::from(area.width), style).0
}

/// Draws the activity line: a rule with the activity, the rows below the screen, or the name of the chat.
fn draw_activity(app: &ChatApp, area: Rect, cells: &mut Buffer) {
    let dim = app.theme.style(TextRole::Dim.into());
    put(cells, area, &"─".repeat(usize::from(area.width)), dim);
    if let Some(text) = status_bar::activity(app, usize::from(area.width.saturating_sub(4))) {
        let inner = Rect { x: area.x + 2, width: area.width.saturating_sub(4), ..area };
        put(cells, inner, &format!(" {text} "), app.theme.style(TextRole::Accent.into()));
        return;
    }
    let below = app.transcript.below();
    let text = match below {
        0 => app.session.chat.turns.first().map(|_| app.session.chat.name()),
        _ => Some(format!("{} rows below, Ctrl-End", grouped(below))),
    };
    if let Some(text) = text {
        let inner = Rect { x: area.x + 2, width: area.width.saturating_sub(4), ..area };
        put(cells, inner, &format!(" {text} "), dim);
    }
}

/// Draws the input; returns the position of its cursor.
fn draw_input(app: &ChatApp, area: Rect, cells: &mut Buffer) -> Position {
    put(cells, area, PROMPT, app.theme.style(TextStyle { bold: true, ..TextRole::Accent.into() }));
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

/// Draws the completions above the input.
fn draw_menu(app: &ChatApp, transcript: Rect, cells: &mut Buffer) {
    let lines = &app.menu.lines;
    let height = lines.len().min(MENU_ROWS).min(usize::from(transcript.height));
    let chosen = app.menu.chosen.unwrap_or(0);
    let first = (chosen + 1).saturating_sub(height);
    let top = transcript.bottom() - height as u16;
    for (i, line) in lines.iter().enumerate().skip(first).take(height) {
        let area = Rect { y: top + (i - first) as u16, height: 1, ..transcript };
        put(cells, area, &" ".repeat(usize::from(area.width)), Style::new());
        let style = app.theme.style(TextRole::Accent.into());
        let style = if app.menu.chosen == Some(i) { style.add_modifier(Modifier::REVERSED) } else { style };
        let end = put(cells, area, &format!("  {}", line.trim_end()), style);
        if let Some((_, argument, meaning)) = COMMANDS.iter().find(|c| c.0 == line.trim()) {
            let pad = NAME_COLUMNS.saturating_sub(line.trim().len());
            let text = format!(" {argument:<pad$}{meaning}");
            let rest = Rect { x: end, width: area.right().saturating_sub(end), ..area };
            put(cells, rest, &text, app.theme.style(TextRole::Dim.into()));
        }
    }
}

/// Draws the list of chats over the transcript.
fn draw_picker(app: &ChatApp, picker: &Picker, area: Rect, frame: &mut Frame<'_>) {
    let cells = frame.buffer_mut();
    let blank = " ".repeat(usize::from(area.width));
    area.rows().for_each(|row| {
        put(cells, row, &blank, Style::new());
    });
    let head = format!("Chats: {}", picker.filter());
    let bold = app.theme.style(TextStyle { bold: true, ..TextStyle::default() });
    let end = put(cells, area, &head, bold);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let height = usize::from(area.height.saturating_sub(2));
    let first = (picker.chosen() + 1).saturating_sub(height);
    let rows = area.rows().skip(1).take(height);
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
    if let Some(row) = area.rows().next_back() {
        put(cells, row, "Enter opens · type to narrow · Esc closes", app.theme.style(TextRole::Dim.into()));
    }
    frame.set_cursor_position(Position::new(end.min(area.right().saturating_sub(1)), area.y));
}
