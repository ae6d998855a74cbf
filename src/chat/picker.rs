//! State of the list of saved chats: a filter and a selection.

use super::store::ChatSummary;

/// The chats, the filter and the index of the selected chat.
#[derive(Default)]
pub struct Picker {
    all: Vec<ChatSummary>,
    filter: String,
    chosen: usize,
}

impl Picker {
    /// Lists chats, given from the newest to the oldest.
    pub fn new(all: Vec<ChatSummary>) -> Self {
        Picker { all, ..Default::default() }
    }

    pub fn filter(&self) -> &str {
        &self.filter
    }

    /// The chats whose names contain the filter, in any case.
    pub fn shown(&self) -> Vec<&ChatSummary> {
        let lowercase = self.filter.to_lowercase();
        self.all.iter().filter(|e| e.name.to_lowercase().contains(&lowercase)).collect()
    }

    /// Index of the selected chat among the shown ones.
    pub fn chosen(&self) -> usize {
        self.chosen
    }

    /// The id of the selected chat.
    pub fn id(&self) -> Option<String> {
        self.shown().get(self.chosen).map(|e| e.id.clone())
    }

    /// Appends a character to the filter.
    pub fn push(&mut self, c: char) {
        self.filter.push(c);
        self.chosen = 0;
    }

    /// Removes the last character of the filter.
    pub fn pop(&mut self) {
        self.filter.pop();
        self.chosen = 0;
    }

    /// Moves the selection, upwards if negative.
    pub fn go(&mut self, by: isize) {
        let last = self.shown().len().saturating_sub(1);
        self.chosen = self.chosen.saturating_add_signed(by).min(last);
    }
}

/// Formats an age in its largest unit, such as `5 min`.
pub fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => "now".into(),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_narrows_and_the_selection_stays_inside() {
        let entry = |name: &str| ChatSummary { id: name.into(), name: name.into(), turns: 2, changed: 0 };
        let mut picker = Picker::new(vec![entry("Rust"), entry("你好"), entry("trust")]);
        picker.go(5);
        assert_eq!(picker.id().as_deref(), Some("trust"));
        "rus".chars().for_each(|c| picker.push(c));
        assert_eq!((picker.shown().len(), picker.id().as_deref()), (2, Some("Rust")));
        picker.push('x');
        assert_eq!(picker.id(), None);
        (0..4).for_each(|_| picker.pop());
        picker.go(-1);
        assert_eq!(picker.chosen(), 0);
        assert_eq!([ago(5), ago(120), ago(7200), ago(200_000)], ["now", "2 min", "2 h", "2 d"]);
    }
}
