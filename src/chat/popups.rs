//! Draws what is over the transcript: the completions of the input, the list of chats, and scroll bars.

use super::app::ChatApp;
use super::command::COMMANDS;
use super::layout::shorten;
use super::picker::{self, Picker};
use super::theme::{TextRole, TextStyle, Theme};
use models::visible::visible;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Margin, Position, Rect};
use ratatui::style::Modifier;
use ratatui::text::{Line, Span};
use ratatui::widgets::{
    Block, BorderType, Cell, Clear, HighlightSpacing, List, ListState, Padding, Row, Scrollbar,
    ScrollbarOrientation, ScrollbarState, StatefulWidget, Table, TableState,
};
use std::time::{SystemTime, UNIX_EPOCH};
use unicode_width::UnicodeWidthStr;

/// Most completions that are shown at once.
const MENU_ROWS: u16 = 8;
/// Columns of a command and its argument in the menu.
const NAME_COLUMNS: usize = 22;
/// Columns of the list of chats beside the names, with its frame.
const SIDE_COLUMNS: u16 = 23;
/// The mark before the selected row of a list.
pub const SELECTED: &str = "› ";

/// Draws a scroll bar at the right edge of an area if not all rows fit: the first visible row, and the number of rows.
pub fn scroll_bar(theme: Theme, (top, rows): (usize, usize), area: Rect, cells: &mut Buffer) {
    let height = usize::from(area.height);
    if rows <= height {
        return;
    }
    // The position counts the steps that the view can scroll.
    let mut state = ScrollbarState::new(rows - height + 1).viewport_content_length(height).position(top);
    Scrollbar::new(ScrollbarOrientation::VerticalRight)
        .begin_symbol(None)
        .end_symbol(None)
        .track_symbol(Some("│"))
        .thumb_symbol("┃")
        .track_style(theme.style(TextRole::Frame.into()))
        .thumb_style(theme.style(TextRole::Accent.into()))
        .render(area, cells, &mut state);
}

/// A frame over the transcript with a title.
fn popup(theme: Theme, title: String) -> Block<'static> {
    let bold = theme.style(TextStyle { bold: true, ..TextStyle::default() });
    Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(theme.style(TextRole::Frame.into()))
        .style(theme.base())
        .title(Span::styled(title, bold))
}

/// Draws the completions above the input.
pub fn draw_menu(app: &ChatApp, body: Rect, frame: &mut Frame<'_>) {
    let lines = &app.menu.lines;
    let rows = u16::try_from(lines.len()).unwrap_or(MENU_ROWS).min(MENU_ROWS);
    let height = (rows + 2).min(body.height);
    if lines.is_empty() || height < 3 {
        return;
    }
    let area = Rect { y: body.bottom() - height, height, ..body };
    let style = |role: TextRole| app.theme.style(role.into());
    let item = |line: &String| {
        let mut spans = vec![Span::styled(visible(line.trim_end()).into_owned(), style(TextRole::Accent))];
        if let Some((name, argument, meaning)) = COMMANDS.iter().find(|c| c.0 == line.trim()) {
            let pad = NAME_COLUMNS.saturating_sub(name.len() + 1);
            spans.push(Span::styled(format!(" {argument:<pad$}"), style(TextRole::Dim)));
            spans.push(Span::raw(*meaning));
        }
        Line::from(spans)
    };
    let mut state = ListState::default().with_selected(app.menu.chosen);
    let list = List::new(lines.iter().map(item))
        .block(popup(app.theme, " Tab completes ".into()))
        .highlight_symbol(SELECTED)
        .highlight_spacing(HighlightSpacing::Always)
        .highlight_style(app.theme.selected().add_modifier(Modifier::BOLD));
    frame.render_widget(Clear, area);
    frame.render_stateful_widget(list, area, &mut state);
    scroll_bar(app.theme, (state.offset(), lines.len()), area.inner(Margin::new(0, 1)), frame.buffer_mut());
}

/// Draws the list of chats over the transcript.
pub fn draw_picker(app: &ChatApp, picker: &Picker, area: Rect, frame: &mut Frame<'_>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let shown = picker.shown();
    let row = |entry: &&super::store::ChatSummary| {
        let changed = picker::ago(now.saturating_sub(entry.changed));
        Row::new([
            Cell::new(
                shorten(&entry.name, usize::from(area.width.saturating_sub(SIDE_COLUMNS))).into_owned(),
            ),
            Cell::new(Line::raw(entry.turns.to_string()).right_aligned()),
            Cell::new(Line::raw(changed).right_aligned()),
        ])
    };
    let dim = app.theme.style(TextRole::Dim.into());
    let header = ["Name", "Messages", "Changed"].map(|name| Line::styled(name, dim).right_aligned());
    let [name, messages, changed] = header;
    let title = format!(" Chats: {}", picker.filter());
    let cursor = Position::new(area.x + 1 + title.width() as u16, area.y);
    let block = popup(app.theme, format!("{title} "))
        .padding(Padding::right(1))
        .title_bottom(Span::styled(" Enter opens · type to narrow · Esc closes ", dim));
    let table = Table::new(
        shown.iter().map(row),
        [Constraint::Fill(1), Constraint::Length(8), Constraint::Length(7)],
    )
    .header(Row::new([name.left_aligned(), messages, changed]))
    .block(block)
    .highlight_symbol(SELECTED)
    .highlight_spacing(HighlightSpacing::Always)
    .row_highlight_style(app.theme.selected().add_modifier(Modifier::BOLD));
    let mut state = TableState::default().with_selected(Some(picker.chosen()));
    frame.render_widget(Clear, area);
    frame.render_stateful_widget(table, area, &mut state);
    let rows = Rect { y: area.y + 1, height: area.height.saturating_sub(2), ..area };
    scroll_bar(app.theme, (state.offset(), shown.len() + 1), rows, frame.buffer_mut());
    frame.set_cursor_position(Position::new(cursor.x.min(area.right().saturating_sub(1)), cursor.y));
}
