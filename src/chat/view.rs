//! Draws the state of the full-screen chat into terminal cells. It neither changes the state nor lays out text.
//!
//! From top to bottom: the transcript with the source panel, the activity line, the input and the status bar. Next:
//! [`super::popups`], what is drawn over them.

use super::app::{ChatApp, Regions};
use super::layout::{TextRow, shorten};
use super::popups::{SELECTED, draw_menu, draw_picker, scroll_bar};
use super::status_bar::{self, ActivityLine};
use super::theme::{TextRole, TextStyle, Theme};
use crate::io::units::grouped;
use models::visible::visible;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Margin, Position, Rect};
use ratatui::style::Style;
use ratatui::symbols::line::{HORIZONTAL, THICK_HORIZONTAL};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Borders, LineGauge, Widget};

const PROMPT: &str = "> ";

pub fn view(app: &ChatApp, frame: &mut Frame<'_>) {
    let area = frame.area();
    frame.buffer_mut().set_style(area, app.theme.base());
    if area.height < 3 || area.width < 4 {
        return;
    }
    let Regions { transcript, source, activity, input, status } = app.regions(area);
    let cells = frame.buffer_mut();
    draw_transcript(app, transcript, cells);
    if let Some(area) = source {
        draw_source(app, area, cells);
    }
    draw_activity(app, activity, cells);
    let cursor = draw_input(app, input, cells);
    let dim = app.theme.style(TextRole::Dim.into());
    put(cells, status, &status_bar::status(app, usize::from(status.width)), dim);
    let body = Rect { height: activity.y - area.y, ..area };
    draw_menu(app, body, frame);
    match &app.picker {
        Some(picker) => draw_picker(app, picker, body, frame),
        None => frame.set_cursor_position(cursor),
    }
}

fn draw_transcript(app: &ChatApp, area: Rect, cells: &mut Buffer) {
    let mut inner = Rect { width: area.width.saturating_sub(1), ..area };
    if app.session.chat.turns.is_empty() {
        // What to do first is in the upper half of the screen, not at its edge.
        let free = usize::from(area.height).saturating_sub(app.transcript.total());
        inner = inner.inner(Margin::new(0, (free / 3) as u16));
    }
    let mut is_first = true;
    for ((row, is_selected), place) in app.transcript.visible().zip(inner.rows()) {
        let end = draw_row(app.theme, row, place, cells);
        if is_selected {
            // Reversed cells are loud: only the text is reversed.
            let width = if app.theme.base().bg.is_some() { place.width } else { end - place.x };
            cells.set_style(Rect { width, ..place }, app.theme.selected());
            if std::mem::take(&mut is_first) {
                put(cells, place, SELECTED, app.theme.style(TextRole::Accent.into()));
            }
        }
    }
    scroll_bar(app.theme, (app.transcript.top(), app.transcript.total()), area, cells);
}

/// Draws the source panel in its frame.
fn draw_source(app: &ChatApp, area: Rect, cells: &mut Buffer) {
    let of =
        app.transcript.selected_of().map_or(String::new(), |(at, count)| format!(" quote {at} of {count} "));
    let bold = app.theme.style(TextStyle { bold: true, ..TextStyle::default() });
    let dim = app.theme.style(TextRole::Dim.into());
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(app.theme.style(TextRole::Frame.into()))
        .title(Span::styled(format!(" {} ", visible(app.source.title())), bold))
        .title(Line::styled(of, dim).right_aligned())
        .title_bottom(Span::styled(" Ctrl-P, Ctrl-N: quotes · Esc closes ", dim));
    block.render(area, cells);
    for (row, place) in app.source.visible().zip(area.inner(Margin::new(2, 1)).rows()) {
        draw_row(app.theme, row, place, cells);
    }
    scroll_bar(app.theme, app.source.position(), area.inner(Margin::new(0, 1)), cells);
}

/// Draws a row; returns the column after its text.
fn draw_row(theme: Theme, row: &TextRow, area: Rect, cells: &mut Buffer) -> u16 {
    let mut x = area.x;
    for span in row {
        let columns = usize::from(area.right().saturating_sub(x));
        (x, _) = cells.set_stringn(x, area.y, &span.text, columns, theme.style(span.style));
    }
    x
}

/// Writes text into the first row of an area, cut at its right edge.
fn put(cells: &mut Buffer, area: Rect, text: &str, style: Style) {
    cells.set_stringn(area.x, area.y, visible(text), usize::from(area.width), style);
}

/// Draws the activity line: the progress of prefill, or a rule with the activity or the name of the chat, and with the
/// number of rows below the screen.
fn draw_activity(app: &ChatApp, area: Rect, cells: &mut Buffer) {
    let style = |role: TextRole| app.theme.style(role.into());
    let hint = match app.transcript.below() {
        0 if app.transcript.has_quotes() => " Ctrl-P: source of the quote ".to_owned(),
        0 => String::new(),
        below => format!(" {} rows below, Ctrl-End ", grouped(below)),
    };
    let title = match status_bar::activity(app, usize::from(area.width.saturating_sub(4))) {
        Some(ActivityLine::Progress(text, done)) => {
            let gauge = LineGauge::default()
                .ratio(done)
                .label(Span::styled(format!("── {text}"), style(TextRole::Accent)))
                .filled_symbol(THICK_HORIZONTAL)
                .unfilled_symbol(HORIZONTAL)
                .filled_style(style(TextRole::Accent))
                .unfilled_style(style(TextRole::Frame));
            return gauge.render(area, cells);
        }
        Some(ActivityLine::Text(text)) => Some((text, TextRole::Accent)),
        None => app.session.chat.turns.first().map(|_| (app.session.chat.name(), TextRole::Dim)),
    };
    let mut block = Block::new().borders(Borders::TOP).border_style(style(TextRole::Frame));
    if let Some((text, role)) = title {
        // Two columns of the rule are before the text, and two before the hint.
        let columns = usize::from(area.width).saturating_sub(hint.len() + 6);
        let text = Span::styled(format!(" {} ", shorten(&text, columns)), style(role));
        block = block.title(Line::from(vec![Span::styled("──", style(TextRole::Frame)), text]));
    }
    if !hint.is_empty() {
        block = block.title(Line::styled(hint, style(TextRole::Accent)).right_aligned());
    }
    block.render(area, cells);
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
